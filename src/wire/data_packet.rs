//! The envelope of room data: `livekit.DataPacket`, read and stamped without decoding what is inside.
//!
//! Protobuf lets a later field win over an earlier one of the same number, so the sender's identity is stamped by
//! appending it: nothing is copied twice and fields that this server does not know travel on.

use super::Malformed;

/// How the identities begin under which the server itself takes part in a room's messages.
pub const SERVER_IDENTITIES: &str = "postern:";

const KIND: u64 = 1;
const USER: u64 = 2;
/// Destinations as older clients write them, inside the user packet: sids and identities.
const USER_DESTINATIONS: [u64; 2] = [3, 6];
const PARTICIPANT_IDENTITY: u64 = 4;
const DESTINATION_IDENTITIES: u64 = 5;
const SEQUENCE: u64 = 16;
const PARTICIPANT_SID: u64 = 17;

/// Which channel a packet came on; the deprecated `kind` field still says it to old clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Reliable = 0,
    Lossy = 1,
}

/// What stands in a field.
enum Content<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// Each field: number and content.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Content<'_>), Malformed>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = take_field(&mut bytes);
        if field.is_none() {
            bytes = &[];
        }
        Some(field.ok_or(Malformed))
    })
}

fn take_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Content<'a>)> {
    let key = take_varint(bytes)?;
    let content = match key & 7 {
        0 => Content::Varint(take_varint(bytes)?),
        1 => take(bytes, 8).map(|_| Content::Fixed)?,
        2 => {
            let len = usize::try_from(take_varint(bytes)?).ok()?;
            Content::Bytes(take(bytes, len)?)
        }
        5 => take(bytes, 4).map(|_| Content::Fixed)?,
        _ => return None,
    };
    Some((key >> 3, content))
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(n)?;
    *bytes = tail;
    Some(head)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Identities (or sids) that the packet is meant for; empty means everybody.
pub fn destinations(packet: &[u8]) -> Result<Vec<&str>, Malformed> {
    let mut found = Vec::new();
    for field in fields(packet) {
        match field? {
            (DESTINATION_IDENTITIES, Content::Bytes(identity)) => found.push(text(identity)?),
            (USER, Content::Bytes(user)) => {
                for field in fields(user) {
                    if let (number, Content::Bytes(name)) = field?
                        && USER_DESTINATIONS.contains(&number)
                    {
                        found.push(text(name)?);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Which reliable message of its sender it is, counted from 1; 0 when the sender does not count.
pub fn sequence(packet: &[u8]) -> u32 {
    let numbers = fields(packet).filter_map(|field| match field {
        Ok((SEQUENCE, Content::Varint(number))) => Some(number as u32),
        _ => None,
    });
    numbers.last().unwrap_or(0)
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed)
}

/// The packet with its true sender.
pub fn stamped(packet: &[u8], delivery: Delivery, identity: &str, sid: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(packet.len() + identity.len() + sid.len() + 12);
    out.extend_from_slice(packet);
    out.extend_from_slice(&[(KIND << 3) as u8, delivery as u8]);
    put_string(&mut out, PARTICIPANT_IDENTITY, identity);
    put_string(&mut out, PARTICIPANT_SID, sid);
    out
}

fn put_string(out: &mut Vec<u8>, field: u64, text: &str) {
    put_varint(out, field << 3 | 2);
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use livekit_protocol::{DataPacket, UserPacket, data_packet};
    use prost::Message;

    #[test]
    #[allow(deprecated)]
    fn a_stamped_packet_reads_as_its_true_senders() {
        let user = UserPacket { payload: vec![1; 300], destination_identities: vec!["old".into()], ..Default::default() };
        let forged = DataPacket {
            participant_identity: "mallory".into(),
            destination_identities: vec!["bob".into(), "eve".into()],
            sequence: 7,
            value: Some(data_packet::Value::User(user.clone())),
            ..Default::default()
        };
        let bytes = forged.encode_to_vec();
        assert_eq!(destinations(&bytes), Ok(vec!["old", "bob", "eve"]));
        let identity = "a".repeat(200);
        let got = DataPacket::decode(&*stamped(&bytes, Delivery::Lossy, &identity, "PA_1")).expect("well-formed");
        assert_eq!((got.participant_identity, got.participant_sid, got.kind), (identity, "PA_1".into(), 1));
        assert_eq!((got.sequence, got.value), (7, Some(data_packet::Value::User(user))));
    }

    #[test]
    fn damage_is_refused() {
        for bytes in [&[0x2A, 5, 1][..], &[0x2A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F], &[0x0B], &[0x2A, 1, 0xFF]] {
            assert_eq!(destinations(bytes), Err(Malformed), "{bytes:02x?}");
        }
    }
}
