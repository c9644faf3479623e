//! A look into a DTLS ClientHello before any library sees it: which SRTP profiles the client lists, and in which order.
//!
//! Browsers split their hello over two datagrams and shuffle its extensions, so it is put together whole first.
//!
//! ```text
//! record:    | 22 | version(16) | epoch(16) | sequence(48) | length(16) |
//! handshake: | 1 | length(24) | message sequence(16) | fragment offset(24) | fragment length(24) | body ...
//! ```

use super::{be16, be24};

const RECORD_LEN: usize = 13;
const HANDSHAKE_LEN: usize = 12;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const USE_SRTP: u16 = 14;
/// Longest hello that is put together, bytes. Browsers need 1.5 KiB.
const HELLO_MAX: usize = 8 * 1024;

/// `use_srtp` numbers (RFC 5764 §4.1.2, RFC 7714 §14.2).
const AES128_CM_SHA1: std::ops::RangeInclusive<u16> = 1..=2;
const AEAD_GCM: std::ops::RangeInclusive<u16> = 7..=8;

/// What the SRTP profiles of a hello ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SrtpOffer {
    /// The first profile is an AEAD.
    GcmFirst,
    /// Counter mode comes first although an AEAD is listed too.
    GcmBehindCm,
    /// No AEAD, or no `use_srtp` at all.
    WithoutGcm,
}

/// Puts the fragments of one ClientHello together.
#[derive(Default)]
pub struct HelloAssembler {
    body: Vec<u8>,
    have: Vec<bool>,
}

impl HelloAssembler {
    /// Takes one datagram; the answer once the hello is whole. Datagrams that carry no hello change nothing.
    pub fn push(&mut self, mut datagram: &[u8]) -> Option<SrtpOffer> {
        while let Some(len) = be16(datagram, 11).map(usize::from) {
            let record = datagram.get(..RECORD_LEN + len)?;
            if record[0] == HANDSHAKE {
                self.fragment(&record[RECORD_LEN..]);
            }
            datagram = &datagram[RECORD_LEN + len..];
        }
        let is_whole = !self.body.is_empty() && self.have.iter().all(|h| *h);
        is_whole.then(|| srtp_offer(&self.body).unwrap_or(SrtpOffer::WithoutGcm))
    }

    fn fragment(&mut self, message: &[u8]) -> Option<()> {
        let total = be24(message, 1)? as usize;
        let (offset, len) = (be24(message, 6)? as usize, be24(message, 9)? as usize);
        let fragment = message.get(HANDSHAKE_LEN..HANDSHAKE_LEN + len)?;
        if message[0] != CLIENT_HELLO || total == 0 || total > HELLO_MAX || offset + len > total {
            return None;
        }
        if self.body.len() != total {
            self.body = vec![0; total];
            self.have = vec![false; total];
        }
        self.body[offset..offset + len].copy_from_slice(fragment);
        self.have[offset..offset + len].fill(true);
        Some(())
    }
}

fn srtp_offer(hello: &[u8]) -> Option<SrtpOffer> {
    let mut at = 2 + 32;
    for width in [1, 1, 2, 1] {
        // session id, cookie, cipher suites, compression methods
        at += match width {
            1 => 1 + usize::from(*hello.get(at)?),
            _ => 2 + usize::from(be16(hello, at)?),
        };
    }
    let end = at + 2 + usize::from(be16(hello, at)?);
    at += 2;
    while at < end {
        let (kind, len) = (be16(hello, at)?, usize::from(be16(hello, at + 2)?));
        let value = hello.get(at + 4..at + 4 + len)?;
        if kind == USE_SRTP {
            let profiles = value.get(2..2 + usize::from(be16(value, 0)?))?;
            let profiles = profiles.chunks_exact(2).map(|p| u16::from_be_bytes([p[0], p[1]]));
            let known: Vec<u16> = profiles.filter(|p| AES128_CM_SHA1.contains(p) || AEAD_GCM.contains(p)).collect();
            return Some(match known.first() {
                Some(first) if AEAD_GCM.contains(first) => SrtpOffer::GcmFirst,
                Some(_) if known.iter().any(|p| AEAD_GCM.contains(p)) => SrtpOffer::GcmBehindCm,
                _ => SrtpOffer::WithoutGcm,
            });
        }
        at += 4 + len;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(profiles: &[u16]) -> Vec<u8> {
        let mut body = vec![0xFE, 0xFD];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[0, 0, 0, 2, 0xC0, 0x2B, 1, 0]);
        let list: Vec<u8> = profiles.iter().flat_map(|p| p.to_be_bytes()).collect();
        let padding = vec![0u8; 1200];
        let mut extensions = vec![0, 21];
        extensions.extend_from_slice(&(padding.len() as u16).to_be_bytes());
        extensions.extend_from_slice(&padding);
        extensions.extend_from_slice(&[0, 14]);
        extensions.extend_from_slice(&(list.len() as u16 + 3).to_be_bytes());
        extensions.extend_from_slice(&(list.len() as u16).to_be_bytes());
        extensions.extend_from_slice(&list);
        extensions.push(0);
        body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        body.extend_from_slice(&extensions);
        body
    }

    fn datagram(body: &[u8], from: usize, to: usize) -> Vec<u8> {
        let mut out = vec![HANDSHAKE, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0];
        out.extend_from_slice(&((HANDSHAKE_LEN + to - from) as u16).to_be_bytes());
        out.push(CLIENT_HELLO);
        out.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&(from as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&((to - from) as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&body[from..to]);
        out
    }

    #[test]
    fn fragments_in_any_order_twice_and_overlapping() {
        let rows = [(&[1, 8, 7][..], SrtpOffer::GcmBehindCm), (&[7, 8, 1, 2], SrtpOffer::GcmFirst), (&[1, 2], SrtpOffer::WithoutGcm)];
        for (profiles, want) in rows {
            let body = hello(profiles);
            let (first, second) = (datagram(&body, 0, 1000), datagram(&body, 900, body.len()));
            for order in [[&first, &first, &second], [&second, &second, &first]] {
                let mut assembler = HelloAssembler::default();
                let answers: Vec<_> = order.iter().map(|d| assembler.push(d)).collect();
                assert_eq!(answers, [None, None, Some(want)]);
            }
            assert_eq!(HelloAssembler::default().push(&datagram(&body, 0, body.len())), Some(want));
        }
    }

    #[test]
    fn damage_never_panics() {
        let mut dice = crate::base::rng::Rng::new(2);
        let body = hello(&[1, 7]);
        let whole = datagram(&body, 0, body.len());
        for _ in 0..5_000 {
            let mut bytes = whole.clone();
            for _ in 0..1 + dice.below(6) {
                let at = dice.below(120) as usize;
                bytes[at] = dice.next_u64() as u8;
            }
            bytes.truncate(dice.below(whole.len() as u64 + 1) as usize);
            HelloAssembler::default().push(&bytes);
        }
    }
}
