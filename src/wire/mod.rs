//! Floor 1: bytes to values and back. Borrowed views, no allocation on the packet path, decoding never panics.
//! Nothing here knows a key: a decoded message is unauthenticated by type.

pub mod av1;
pub mod data_packet;
pub mod data_track;
pub mod dcep;
pub mod demux;
pub mod dependency;
pub mod dtls;
pub mod framing;
pub mod h264;
pub mod h265;
pub mod proxy;
pub mod red;
pub mod rtcp;
pub mod rtp;
pub mod sdp;
pub mod stun;
pub mod turn;
pub mod twcc;
pub mod vp8;
pub mod vp9;

/// Bytes that are not what they claim to be. Becomes a counter, never an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn be24(bytes: &[u8], at: usize) -> Option<u32> {
    let b = bytes.get(at..at + 3)?;
    Some(u32::from_be_bytes([0, b[0], b[1], b[2]]))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::stun::{Class, Message, Method, TransactionId, Writer, attr};
    use super::*;
    use crate::base::rng::Rng;
    use framing::Framing;
    use proxy::Proxied;

    /// What a stranger's ports hear when all is well.
    fn well_formed() -> Vec<Vec<u8>> {
        let mut allocate = Vec::new();
        Writer::new(&mut allocate, Method::Allocate, Class::Request, TransactionId([7; 12]))
            .attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
            .attribute(attr::USERNAME, b"alice")
            .attribute(attr::REALM, b"realm")
            .attribute(attr::NONCE, b"obMatJos2gAAAAAAAAAAAAAA")
            .integrity(|_| [1; 20])
            .integrity_sha256(|_| [2; 32])
            .fingerprint();
        let mut send = Vec::new();
        Writer::new(&mut send, Method::Send, Class::Indication, TransactionId([7; 12]))
            .xor_address(attr::XOR_PEER_ADDRESS, "[2001:db8::1]:9".parse().expect("an address"))
            .attribute(attr::DATA, b"data");
        let proxy_v2 =
            [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13"[..], &[192, 0, 2, 1, 192, 0, 2, 2, 0, 80, 1, 187, 4, 0, 4, 1, 2, 3, 4]].concat();
        vec![
            allocate,
            send,
            vec![0x40, 0, 0, 4, 1, 2, 3, 4],
            b"PROXY TCP6 2001:db8::1 2001:db8::2 4660 443\r\n".to_vec(),
            proxy_v2,
            vec![0x16, 3, 1, 0, 4, 1, 0, 0, 0],
        ]
    }

    #[test]
    fn s37_damage_never_panics_and_nothing_reads_past_its_end() {
        let (seeds, mut dice) = (well_formed(), Rng::new(37));
        for _ in 0..200_000 {
            let mut bytes = seeds[dice.below(seeds.len() as u64) as usize].clone();
            match dice.below(4) {
                0 => bytes.truncate(dice.below(bytes.len() as u64 + 1) as usize),
                1 => bytes.extend_from_slice(&seeds[dice.below(seeds.len() as u64) as usize]),
                2 => drop(bytes.remove(dice.below(bytes.len() as u64) as usize)),
                _ => {}
            }
            for _ in 0..dice.below(4) {
                if !bytes.is_empty() {
                    let at = dice.below(bytes.len() as u64) as usize;
                    bytes[at] = dice.next_u64() as u8;
                }
            }
            demux::datagram(&bytes);
            demux::stream(&bytes);
            let _ = turn::channel_data(&bytes);
            if let Ok(message) = Message::decode(&bytes) {
                for (_, value) in message.attributes() {
                    message.xor_address(value);
                }
                for integrity in [message.integrity(), message.integrity_sha256()].into_iter().flatten() {
                    assert!((16..=32).contains(&integrity.tag.len()));
                }
            }
            for framing in [Framing::Turn, Framing::Rfc4571] {
                let mut rest = &bytes[..];
                while let Ok(Some(frame)) = framing.next(rest) {
                    assert!(frame.start <= frame.end && frame.end <= frame.consumed && frame.consumed > 0);
                    rest = &rest[frame.consumed..];
                }
            }
            if let Proxied::For { len, .. } = proxy::header(&bytes) {
                assert!(len <= bytes.len());
            }
        }
    }
}
