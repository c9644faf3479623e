//! Cutting a byte stream into messages: STUN and ChannelData over TCP (RFC 8489 §6.2.2, RFC 8656 §12.5), RFC 4571 frames.

use super::{Malformed, be16};

/// How messages follow one another on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// STUN messages carry their own length; ChannelData is padded to four bytes on a stream.
    Turn,
    /// A 16-bit length before each packet.
    Rfc4571,
}

/// One message at the front of the bytes received so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where the message begins: after the length of RFC 4571.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// How many bytes it takes off the stream, padding included.
    pub consumed: usize,
}

impl Framing {
    /// The first frame in `bytes`; `None` when more bytes are needed.
    pub fn next(self, bytes: &[u8]) -> Result<Option<Frame>, Malformed> {
        let (start, len, padding) = match self {
            Framing::Rfc4571 => match be16(bytes, 0) {
                Some(len) => (2, usize::from(len), 0),
                None => return Ok(None),
            },
            Framing::Turn => {
                let Some(len) = be16(bytes, 2).map(usize::from) else { return Ok(None) };
                match bytes[0] {
                    0..=3 if len % 4 == 0 => (0, 20 + len, 0),
                    // Numbers that nobody may bind keep the stream in step, and are dropped behind it.
                    64..=127 => (0, 4 + len, (4 - len % 4) % 4),
                    _ => return Err(Malformed),
                }
            }
        };
        let consumed = start + len + padding;
        Ok((bytes.len() >= consumed).then_some(Frame { start, end: start + len, consumed }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_in_pieces_and_padded() {
        let stun = [&[0, 1, 0, 4][..], &[0; 16], &[1, 2, 3, 4]].concat();
        let rows: &[(Framing, &[u8], Result<Option<(usize, usize, usize)>, Malformed>)] = &[
            (Framing::Rfc4571, &[0], Ok(None)),
            (Framing::Rfc4571, &[0, 2, 9], Ok(None)),
            (Framing::Rfc4571, &[0, 2, 9, 8, 7], Ok(Some((2, 4, 4)))),
            (Framing::Rfc4571, &[0, 0], Ok(Some((2, 2, 2)))),
            (Framing::Turn, &stun[..23], Ok(None)),
            (Framing::Turn, &stun, Ok(Some((0, 24, 24)))),
            (Framing::Turn, &[0x40, 0, 0, 3, 1, 2, 3], Ok(None)),
            (Framing::Turn, &[0x40, 0, 0, 3, 1, 2, 3, 0], Ok(Some((0, 7, 8)))),
            (Framing::Turn, &[0x40, 0, 0, 0], Ok(Some((0, 4, 4)))),
            (Framing::Turn, &[0x80, 0, 0, 0], Err(Malformed)),
            (Framing::Turn, &[0, 1, 0, 3], Err(Malformed)),
        ];
        for (framing, bytes, want) in rows {
            let got = framing.next(bytes).map(|f| f.map(|f| (f.start, f.end, f.consumed)));
            assert_eq!(got, *want, "{framing:?} {bytes:02x?}");
        }
    }
}
