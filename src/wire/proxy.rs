//! The PROXY protocol, versions 1 and 2: for whom a proxy in front of us connects.

use ppp::{HeaderResult, PartialResult, v1, v2};
use std::net::SocketAddr;

/// How a header of version 2 begins, and one of version 1.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1: &[u8] = b"PROXY ";
/// Longest header that is waited for: a line of version 1, and version 2 with some extensions.
const LINE_MAX: usize = 107;
const HEADER_MAX: usize = 1024;

/// What the first bytes of a proxy's connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    NeedMore,
    /// No header: the proxy speaks for itself, as for a health check.
    Nothing,
    /// `client` is absent when the header says that the proxy speaks for itself, or does not know. The header has `len` bytes.
    For {
        client: Option<SocketAddr>,
        len: usize,
    },
    Malformed,
}

/// Whether this is a header, for those who may not send one.
pub fn is_header(bytes: &[u8]) -> bool {
    bytes.starts_with(V1) || bytes.starts_with(V2)
}

pub fn header(bytes: &[u8]) -> Proxied {
    if !is_header(bytes) {
        return if V1.starts_with(bytes) || V2.starts_with(bytes) { Proxied::NeedMore } else { Proxied::Nothing };
    }
    let is_line = bytes.starts_with(V1);
    if is_line && !bytes.windows(2).any(|pair| pair == b"\r\n") {
        return if bytes.len() < LINE_MAX { Proxied::NeedMore } else { Proxied::Malformed };
    }
    let result = HeaderResult::parse(bytes);
    if !is_line && result.is_incomplete() && bytes.len() < HEADER_MAX {
        return Proxied::NeedMore;
    }
    match result {
        HeaderResult::V1(Ok(header)) => {
            let client = match header.addresses {
                v1::Addresses::Tcp4(a) => Some((a.source_address, a.source_port).into()),
                v1::Addresses::Tcp6(a) => Some((a.source_address, a.source_port).into()),
                v1::Addresses::Unknown => None,
            };
            Proxied::For { client: client.map(canonical), len: header.header.len() }
        }
        HeaderResult::V2(Ok(header)) => {
            let client = match (header.command, header.addresses) {
                (v2::Command::Proxy, v2::Addresses::IPv4(a)) => Some((a.source_address, a.source_port).into()),
                (v2::Command::Proxy, v2::Addresses::IPv6(a)) => Some((a.source_address, a.source_port).into()),
                _ => None,
            };
            Proxied::For { client: client.map(canonical), len: header.header.len() }
        }
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => Proxied::Malformed,
    }
}

/// Proxies that listen for both families write IPv4 clients as mapped ones.
fn canonical(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        [V2, &[0x20 | command, family], &(addresses.len() as u16).to_be_bytes(), addresses].concat()
    }

    #[test]
    fn headers_name_the_client() {
        let v4 = [198, 51, 100, 7, 192, 0, 2, 1, 0x12, 0x34, 0x01, 0xbb];
        let mut v6 = [0; 36];
        v6[15] = 7;
        v6[32..34].copy_from_slice(&[0x12, 0x34]);
        let to = |client: &str| Some(client.parse::<SocketAddr>().expect("an address"));
        let rows: &[(&str, Vec<u8>, Option<SocketAddr>)] = &[
            ("1, IPv4", b"PROXY TCP4 198.51.100.7 192.0.2.1 4660 443\r\n".to_vec(), to("198.51.100.7:4660")),
            ("1, IPv6", b"PROXY TCP6 ::7 ::1 4660 443\r\n".to_vec(), to("[::7]:4660")),
            ("1, mapped", b"PROXY TCP6 ::ffff:198.51.100.7 ::1 4660 443\r\n".to_vec(), to("198.51.100.7:4660")),
            ("1, unknown", b"PROXY UNKNOWN\r\n".to_vec(), None),
            ("2, IPv4", v2(1, 0x11, &v4), to("198.51.100.7:4660")),
            ("2, IPv6", v2(1, 0x21, &v6), to("[::7]:4660")),
            ("2, local", v2(0, 0x00, &[]), None),
            ("2, with an extension", v2(1, 0x11, &[&v4[..], &[0x04, 0, 1, 0]].concat()), to("198.51.100.7:4660")),
        ];
        for (name, bytes, client) in rows {
            let behind = [bytes, &b"rest"[..]].concat();
            assert_eq!(header(&behind), Proxied::For { client: *client, len: bytes.len() }, "{name}");
            for n in 0..bytes.len() {
                assert_eq!(header(&bytes[..n]), Proxied::NeedMore, "{name}, {n} bytes of it");
            }
        }
    }

    #[test]
    fn what_is_none_is_told_from_what_is_broken() {
        for bytes in [&b"GET / HTTP/1.1"[..], b"\x16\x03\x01", b"PROPFIND", b"\r\n\r\n\0\r\nQUIX"] {
            assert_eq!(header(bytes), Proxied::Nothing, "{bytes:?}");
        }
        let endless = [V1, &[b'x'; HEADER_MAX]].concat();
        let wrong_version = [V2, &[0x31, 0x11, 0, 0]].concat();
        for bytes in [
            &b"PROXY TCP4 198.51.100.777 192.0.2.1 4660 443\r\n"[..],
            b"PROXY\x20\r\n",
            b"PROXY TCP4 nonsense\r\n",
            &endless,
            &wrong_version,
        ] {
            assert_eq!(header(bytes), Proxied::Malformed, "{bytes:?}");
        }
    }
}
