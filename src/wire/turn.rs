//! What TURN adds to STUN on the wire (RFC 8656): ChannelData and the header of a Data indication.

use super::{Malformed, be16};

/// Channel numbers that a client may bind (RFC 8656 §12), and those that it might before (RFC 5766 §11).
pub const CHANNELS: std::ops::RangeInclusive<u16> = 0x4000..=0x4FFF;
pub const OLDER_CHANNELS: std::ops::RangeInclusive<u16> = 0x4000..=0x7FFE;
/// ChannelData header: number(16) length(16).
pub const CHANNEL_HEADER_LEN: usize = 4;
/// REQUESTED-TRANSPORT value for UDP (RFC 8656 §18.7).
pub const TRANSPORT_UDP: u8 = 17;

/// Number and payload of a ChannelData message. Bytes behind the length are padding (RFC 8656 §12.5).
pub fn channel_data(bytes: &[u8]) -> Result<(u16, std::ops::Range<usize>), Malformed> {
    let number = be16(bytes, 0).ok_or(Malformed)?;
    let end = CHANNEL_HEADER_LEN + usize::from(be16(bytes, 2).ok_or(Malformed)?);
    if !OLDER_CHANNELS.contains(&number) || end > bytes.len() {
        return Err(Malformed);
    }
    Ok((number, CHANNEL_HEADER_LEN..end))
}

/// The four bytes before a payload of `len` bytes.
pub fn channel_header(number: u16, len: usize) -> [u8; CHANNEL_HEADER_LEN] {
    let [a, b] = number.to_be_bytes();
    let [c, d] = (len as u16).to_be_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_data_rows() {
        let rows: &[(&[u8], Result<(u16, std::ops::Range<usize>), Malformed>)] = &[
            (&[0x40, 0, 0, 2, 1, 2], Ok((0x4000, 4..6))),
            (&[0x40, 0, 0, 2, 1, 2, 0, 0], Ok((0x4000, 4..6))),
            (&[0x4f, 0xff, 0, 0], Ok((0x4fff, 4..4))),
            (&[0x40, 0, 0, 3, 1, 2], Err(Malformed)),
            (&[0x7f, 0xfe, 0, 0], Ok((0x7ffe, 4..4))),
            (&[0x7f, 0xff, 0, 0], Err(Malformed)),
            (&[0x40, 0, 0], Err(Malformed)),
        ];
        for (bytes, want) in rows {
            assert_eq!(channel_data(bytes), *want, "{bytes:02x?}");
        }
    }
}
