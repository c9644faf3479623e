//! Data Channel Establishment Protocol (RFC 8832 §5).
//!
//! ```text
//! OPEN: | 3 | channel type(8) | priority(16) | reliability(32) | label length(16) | protocol length(16) | label | protocol |
//! ACK:  | 2 |
//! ```

use super::{be16, be32};

pub const ACK: [u8; 1] = [2];

/// How a channel treats loss and order (RFC 8832 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reliability {
    pub unordered: bool,
    pub limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    None,
    Retransmits(u32),
    LifetimeMs(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Open { reliability: Reliability, label: &'a str },
    Ack,
}

/// `None` for anything that RFC 8832 does not define.
pub fn decode(bytes: &[u8]) -> Option<Message<'_>> {
    match *bytes.first()? {
        2 => Some(Message::Ack),
        3 => {
            let &kind = bytes.get(1)?;
            let value = be32(bytes, 4)?;
            let limit = match kind & 0x7F {
                0 => Limit::None,
                1 => Limit::Retransmits(value),
                2 => Limit::LifetimeMs(value),
                _ => return None,
            };
            let label = bytes.get(12..12 + usize::from(be16(bytes, 8)?))?;
            bytes.get(12 + label.len()..12 + label.len() + usize::from(be16(bytes, 10)?))?;
            let reliability = Reliability { unordered: kind & 0x80 != 0, limit };
            Some(Message::Open { reliability, label: std::str::from_utf8(label).ok()? })
        }
        _ => None,
    }
}

/// OPEN for a channel with this label, at the default priority.
pub fn open(reliability: Reliability, label: &str) -> Vec<u8> {
    let (kind, value) = match reliability.limit {
        Limit::None => (0, 0),
        Limit::Retransmits(n) => (1, n),
        Limit::LifetimeMs(ms) => (2, ms),
    };
    let mut out = vec![3, kind | u8::from(reliability.unordered) << 7, 1, 0];
    out.extend_from_slice(&value.to_be_bytes());
    out.extend_from_slice(&(label.len() as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(label.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens() {
        let lossy = [&[3, 0x81, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0][..], b"_lossy"].concat();
        let want = Reliability { unordered: true, limit: Limit::Retransmits(0) };
        assert_eq!(decode(&lossy), Some(Message::Open { reliability: want, label: "_lossy" }));
        assert_eq!(decode(&ACK), Some(Message::Ack));
        for n in 0..lossy.len() {
            assert_eq!(decode(&lossy[..n]), None, "cut at {n}");
        }
        assert_eq!(decode(&[9]), None);
    }

    #[test]
    fn what_is_opened_reads_back() {
        for limit in [Limit::None, Limit::Retransmits(0), Limit::LifetimeMs(300)] {
            for unordered in [false, true] {
                let reliability = Reliability { unordered, limit };
                assert_eq!(decode(&open(reliability, "_lossy")), Some(Message::Open { reliability, label: "_lossy" }));
            }
        }
    }
}
