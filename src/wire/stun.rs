//! STUN messages (RFC 8489): a borrowed, unauthenticated view, and a writer.
//!
//! ```text
//!  0                   1                   2                   3
//! |0 0|    method and class       |         length (4 | n)        |
//! |                     magic cookie 0x2112A442                   |
//! |                     transaction id (96 bits)                  |
//! |  attributes: type(16) length(16) value, padded to 4 ...       |
//! ```
//! Attributes behind MESSAGE-INTEGRITY are not seen (§14.5): an attacker on the path could have added them.

use super::{Malformed, be16, be32};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const MAGIC_COOKIE: u32 = 0x2112_A442;
pub const HEADER_LEN: usize = 20;
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Attribute types of RFC 8489 §18.3, RFC 8445 §16.1 and RFC 8656 §18.
pub mod attr {
    pub const USERNAME: u16 = 0x0006;
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub const ERROR_CODE: u16 = 0x0009;
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
    pub const CHANNEL_NUMBER: u16 = 0x000C;
    pub const LIFETIME: u16 = 0x000D;
    pub const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub const DATA: u16 = 0x0013;
    pub const REALM: u16 = 0x0014;
    pub const NONCE: u16 = 0x0015;
    pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    pub const EVEN_PORT: u16 = 0x0018;
    pub const REQUESTED_TRANSPORT: u16 = 0x0019;
    pub const DONT_FRAGMENT: u16 = 0x001A;
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
    pub const PASSWORD_ALGORITHM: u16 = 0x001D;
    pub const USERHASH: u16 = 0x001E;
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub const RESERVATION_TOKEN: u16 = 0x0022;
    pub const PRIORITY: u16 = 0x0024;
    pub const USE_CANDIDATE: u16 = 0x0025;
    pub const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
    pub const ADDRESS_ERROR_CODE: u16 = 0x8001;
    pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
    pub const ICMP: u16 = 0x8004;
    pub const ALTERNATE_SERVER: u16 = 0x8023;
    /// ADDITIONAL-ADDRESS-FAMILY of the drafts before RFC 8656, which coturn's clients still send.
    pub const ADDITIONAL_ADDRESS_FAMILY_DRAFT: u16 = 0x8032;
    pub const FINGERPRINT: u16 = 0x8028;
    pub const ICE_CONTROLLED: u16 = 0x8029;
    pub const ICE_CONTROLLING: u16 = 0x802A;
}

/// Methods of RFC 8489 §18.2 and RFC 8656 §17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Binding,
    Allocate,
    Refresh,
    Send,
    Data,
    CreatePermission,
    ChannelBind,
}

impl Method {
    fn from_wire(method: u16) -> Option<Self> {
        Some(match method {
            0x001 => Self::Binding,
            0x003 => Self::Allocate,
            0x004 => Self::Refresh,
            0x006 => Self::Send,
            0x007 => Self::Data,
            0x008 => Self::CreatePermission,
            0x009 => Self::ChannelBind,
            _ => return None,
        })
    }

    fn to_wire(self) -> u16 {
        match self {
            Self::Binding => 0x001,
            Self::Allocate => 0x003,
            Self::Refresh => 0x004,
            Self::Send => 0x006,
            Self::Data => 0x007,
            Self::CreatePermission => 0x008,
            Self::ChannelBind => 0x009,
        }
    }
}

/// RFC 8489 §5: bits C1 and C0 of the message type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Request,
    Indication,
    Success,
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// Why bytes are no STUN message that anyone may act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Malformed,
    /// A method this server does not speak (RFC 8489 §6.3: dropped).
    UnknownMethod,
    /// FINGERPRINT is there and wrong.
    BadFingerprint,
}

impl From<Malformed> for Refused {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// A decoded, unauthenticated message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    raw: &'a [u8],
    pub method: Method,
    pub class: Class,
    /// End of the attributes that count: where the first MESSAGE-INTEGRITY begins, else FINGERPRINT, else the end.
    attributes_end: usize,
    integrity_at: Option<usize>,
    integrity_sha256_at: Option<usize>,
}

/// What a MESSAGE-INTEGRITY tag was computed over (RFC 8489 §14.5, §14.6): `header`, then `rest`.
pub struct Integrity<'a> {
    pub header: [u8; 4],
    pub rest: &'a [u8],
    pub tag: &'a [u8],
}

impl<'a> Message<'a> {
    pub fn decode(raw: &'a [u8]) -> Result<Self, Refused> {
        if raw.len() < HEADER_LEN || raw[0] & 0xC0 != 0 || be32(raw, 4) != Some(MAGIC_COOKIE) {
            return Err(Refused::Malformed);
        }
        let length = usize::from(be16(raw, 2).ok_or(Malformed)?);
        if length % 4 != 0 || HEADER_LEN + length != raw.len() {
            return Err(Refused::Malformed);
        }
        let kind = be16(raw, 0).ok_or(Malformed)?;
        let class = match (kind >> 7 & 2) | (kind >> 4 & 1) {
            0 => Class::Request,
            1 => Class::Indication,
            2 => Class::Success,
            _ => Class::Error,
        };
        let method_bits = (kind & 0x000F) | (kind >> 1 & 0x0070) | (kind >> 2 & 0x0F80);
        let (mut integrity_at, mut integrity_sha256_at) = (None, None);
        let mut fingerprint_at = None;
        let mut at = HEADER_LEN;
        while at < raw.len() {
            let kind = be16(raw, at).ok_or(Malformed)?;
            let len = usize::from(be16(raw, at + 2).ok_or(Malformed)?);
            let next = at + 4 + len.next_multiple_of(4);
            if next > raw.len() {
                return Err(Refused::Malformed);
            }
            match kind {
                attr::MESSAGE_INTEGRITY if integrity_at.is_none() => {
                    if len != 20 {
                        return Err(Refused::Malformed);
                    }
                    integrity_at = Some(at);
                }
                attr::MESSAGE_INTEGRITY_SHA256 if integrity_sha256_at.is_none() => {
                    if !(16..=32).contains(&len) || len % 4 != 0 {
                        return Err(Refused::Malformed);
                    }
                    integrity_sha256_at = Some(at);
                }
                attr::FINGERPRINT => {
                    if len != 4 || next != raw.len() {
                        return Err(Refused::Malformed);
                    }
                    fingerprint_at = Some(at);
                }
                _ => {}
            }
            at = next;
        }
        if let Some(at) = fingerprint_at {
            let want = crc32fast::hash(&raw[..at]) ^ FINGERPRINT_XOR;
            if be32(raw, at + 4) != Some(want) {
                return Err(Refused::BadFingerprint);
            }
        }
        let method = Method::from_wire(method_bits).ok_or(Refused::UnknownMethod)?;
        let attributes_end = [integrity_at, integrity_sha256_at, fingerprint_at].into_iter().flatten().min().unwrap_or(raw.len());
        Ok(Self { raw, method, class, attributes_end, integrity_at, integrity_sha256_at })
    }

    pub fn transaction_id(&self) -> TransactionId {
        TransactionId(self.raw[8..20].try_into().expect("a decoded message has a header"))
    }

    /// Type and value of each attribute that counts, in order.
    pub fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let bytes = &self.raw[..self.attributes_end];
        let mut at = HEADER_LEN;
        std::iter::from_fn(move || {
            let kind = be16(bytes, at)?;
            let len = usize::from(be16(bytes, at + 2)?);
            let value = bytes.get(at + 4..at + 4 + len)?;
            at += 4 + len.next_multiple_of(4);
            Some((kind, value))
        })
    }

    /// Value of the first attribute of this type: the one that counts (RFC 8489 §14).
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.attributes().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    pub fn get_u32(&self, kind: u16) -> Option<u32> {
        self.get(kind).filter(|v| v.len() == 4).and_then(|v| be32(v, 0))
    }

    /// The tag and what it covers; `None` when the message carries no MESSAGE-INTEGRITY.
    pub fn integrity(&self) -> Option<Integrity<'a>> {
        self.covered(self.integrity_at?)
    }

    /// The same of MESSAGE-INTEGRITY-SHA256, whose tag may be cut short.
    pub fn integrity_sha256(&self) -> Option<Integrity<'a>> {
        self.covered(self.integrity_sha256_at?)
    }

    pub fn is_signed(&self) -> bool {
        self.integrity_at.is_some() || self.integrity_sha256_at.is_some()
    }

    fn covered(&self, at: usize) -> Option<Integrity<'a>> {
        let tag = &self.raw[at + 4..at + 4 + usize::from(be16(self.raw, at + 2)?)];
        let [hi, lo] = ((at + 4 + tag.len() - HEADER_LEN) as u16).to_be_bytes();
        Some(Integrity { header: [self.raw[0], self.raw[1], hi, lo], rest: &self.raw[4..at], tag })
    }

    /// An XOR-…-ADDRESS value (RFC 8489 §14.2).
    pub fn xor_address(&self, value: &[u8]) -> Option<SocketAddr> {
        decode_xor_address(value, &self.raw[4..20])
    }
}

fn decode_xor_address(value: &[u8], mask: &[u8]) -> Option<SocketAddr> {
    let port = be16(value, 2)? ^ (MAGIC_COOKIE >> 16) as u16;
    let ip = match (value.get(1)?, value.len()) {
        (1, 8) => {
            let bytes: [u8; 4] = std::array::from_fn(|i| value[4 + i] ^ mask[i]);
            IpAddr::V4(Ipv4Addr::from(bytes))
        }
        (2, 20) => {
            let bytes: [u8; 16] = std::array::from_fn(|i| value[4 + i] ^ mask[i]);
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Writes one message into a reused vector. Padding is zero (RFC 8489 §14).
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut Vec<u8>, method: Method, class: Class, id: TransactionId) -> Self {
        out.clear();
        let m = method.to_wire();
        let c = match class {
            Class::Request => 0,
            Class::Indication => 0x0010,
            Class::Success => 0x0100,
            Class::Error => 0x0110,
        };
        let kind = (m & 0x000F) | (m & 0x0070) << 1 | (m & 0x0F80) << 2 | c;
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&MAGIC_COOKIE.to_be_bytes());
        out.extend_from_slice(&id.0);
        Self { out }
    }

    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        self.out.extend_from_slice(value);
        self.out.resize(self.out.len().next_multiple_of(4), 0);
        self.set_length(0);
        self
    }

    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    pub fn xor_address(&mut self, kind: u16, addr: SocketAddr) -> &mut Self {
        let mask: [u8; 16] = self.out[4..20].try_into().expect("the header is written");
        self.masked_address(kind, addr, mask)
    }

    /// An address as it is (RFC 8489 §14.1): ALTERNATE-SERVER.
    pub fn address(&mut self, kind: u16, addr: SocketAddr) -> &mut Self {
        self.masked_address(kind, addr, [0; 16])
    }

    fn masked_address(&mut self, kind: u16, addr: SocketAddr, mask: [u8; 16]) -> &mut Self {
        let mut value = [0; 20];
        value[2..4].copy_from_slice(&(addr.port() ^ u16::from_be_bytes([mask[0], mask[1]])).to_be_bytes());
        let len = match addr.ip().to_canonical() {
            IpAddr::V4(ip) => {
                value[1] = 1;
                for (i, b) in ip.octets().iter().enumerate() {
                    value[4 + i] = b ^ mask[i];
                }
                8
            }
            IpAddr::V6(ip) => {
                value[1] = 2;
                for (i, b) in ip.octets().iter().enumerate() {
                    value[4 + i] = b ^ mask[i];
                }
                20
            }
        };
        self.attribute(kind, &value[..len])
    }

    /// ERROR-CODE without a reason phrase: replies to strangers stay small (RFC 8489 §14.8).
    pub fn error_code(&mut self, code: u16) -> &mut Self {
        self.attribute(attr::ERROR_CODE, &[0, 0, (code / 100) as u8, (code % 100) as u8])
    }

    /// Appends MESSAGE-INTEGRITY; `sign` computes the HMAC-SHA1 over the bytes so far.
    pub fn integrity(&mut self, sign: impl FnOnce(&[u8]) -> [u8; 20]) -> &mut Self {
        self.set_length(24);
        let tag = sign(self.out);
        self.attribute(attr::MESSAGE_INTEGRITY, &tag)
    }

    /// Appends MESSAGE-INTEGRITY-SHA256, whole; `sign` computes the HMAC-SHA256.
    pub fn integrity_sha256(&mut self, sign: impl FnOnce(&[u8]) -> [u8; 32]) -> &mut Self {
        self.set_length(36);
        let tag = sign(self.out);
        self.attribute(attr::MESSAGE_INTEGRITY_SHA256, &tag)
    }

    /// Appends FINGERPRINT: always last.
    pub fn fingerprint(&mut self) -> &mut Self {
        self.set_length(8);
        let crc = crc32fast::hash(self.out) ^ FINGERPRINT_XOR;
        self.u32(attr::FINGERPRINT, crc)
    }

    fn set_length(&mut self, more: usize) {
        let length = (self.out.len() - HEADER_LEN + more) as u16;
        self.out[2..4].copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769 §2.1: a Binding request with USERNAME, PRIORITY, ICE-CONTROLLED, MESSAGE-INTEGRITY, FINGERPRINT.
    const REQUEST: &[u8] = include_bytes!("../../tests/vectors/rfc5769_2_1.bin");
    const MAPPED: &[(&str, &[u8], &str)] = &[
        ("RFC 5769 §2.2", include_bytes!("../../tests/vectors/rfc5769_2_2.bin"), "192.0.2.1:32853"),
        ("RFC 5769 §2.3", include_bytes!("../../tests/vectors/rfc5769_2_3.bin"), "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
    ];

    #[test]
    fn rfc5769_request_is_read_whole() {
        let message = Message::decode(REQUEST).expect("RFC 5769 §2.1");
        assert_eq!((message.method, message.class), (Method::Binding, Class::Request));
        assert_eq!(message.get(attr::USERNAME), Some(&b"evtj:h6vY"[..]));
        assert_eq!(message.get_u32(attr::PRIORITY), Some(0x6e00_01ff));
        let i = message.integrity().expect("it has MESSAGE-INTEGRITY");
        assert!(crate::crypto::HmacSha1::new(b"VOkJxbRl1RmTxUk/WvJxBt").verify(&[&i.header, i.rest], i.tag));
    }

    #[test]
    fn rfc5769_mapped_addresses() {
        for (rule, bytes, want) in MAPPED {
            let message = Message::decode(bytes).expect(rule);
            let value = message.get(attr::XOR_MAPPED_ADDRESS).expect(rule);
            assert_eq!(message.xor_address(value), want.parse().ok(), "{rule}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for addr in ["192.0.2.7:1", "[2001:db8::9]:65535", "[::ffff:192.0.2.7]:8"] {
            let addr: SocketAddr = addr.parse().expect("a literal");
            let mut out = Vec::new();
            Writer::new(&mut out, Method::ChannelBind, Class::Success, TransactionId([7; 12]))
                .xor_address(attr::XOR_MAPPED_ADDRESS, addr)
                .attribute(attr::USERNAME, b"abcde")
                .integrity(|bytes| crate::crypto::HmacSha1::new(b"k").sign(&[bytes]))
                .fingerprint();
            let message = Message::decode(&out).expect("our own message");
            assert_eq!((message.method, message.class), (Method::ChannelBind, Class::Success));
            let got = message.get(attr::XOR_MAPPED_ADDRESS).and_then(|v| message.xor_address(v));
            assert_eq!(got, Some(SocketAddr::new(addr.ip().to_canonical(), addr.port())));
            let i = message.integrity().expect("signed");
            assert!(crate::crypto::HmacSha1::new(b"k").verify(&[&i.header, i.rest], i.tag));
        }
    }

    #[test]
    fn attributes_behind_the_integrity_are_not_seen() {
        let mut out = Vec::new();
        Writer::new(&mut out, Method::Refresh, Class::Request, TransactionId([1; 12])).integrity(|_| [0; 20]).u32(attr::LIFETIME, 0);
        assert_eq!(Message::decode(&out).expect("well-formed").get(attr::LIFETIME), None);
    }

    #[test]
    fn damage_is_refused_by_its_name() {
        let mut flipped = REQUEST.to_vec();
        flipped[30] ^= 1;
        assert_eq!(Message::decode(&flipped).err(), Some(Refused::BadFingerprint));
        assert_eq!(Message::decode(&REQUEST[..REQUEST.len() - 4]).err(), Some(Refused::Malformed));
        let mut unknown = Vec::new();
        Writer::new(&mut unknown, Method::Binding, Class::Request, TransactionId([0; 12]));
        unknown[1] = 0x0e;
        assert_eq!(Message::decode(&unknown).err(), Some(Refused::UnknownMethod));
        for n in 0..REQUEST.len() {
            assert!(Message::decode(&REQUEST[..n]).is_err(), "cut at {n}");
        }
    }
}
