//! What kind of thing begins with these bytes: a datagram (RFC 7983, RFC 9443) or a fresh TCP stream.

use super::stun::MAGIC_COOKIE;

/// Class of a datagram by its first byte (RFC 7983 §7, RFC 9443 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramKind {
    /// 0..=3
    Stun,
    /// 20..=63
    Dtls,
    /// 64..=79, on a port that speaks TURN
    ChannelData,
    /// 128..=191
    Rtp,
    /// 192..=255: QUIC's long header; nodes of a cluster
    Quic,
    Unknown,
}

pub fn datagram(bytes: &[u8]) -> DatagramKind {
    match bytes.first() {
        Some(0..=3) => DatagramKind::Stun,
        Some(20..=63) => DatagramKind::Dtls,
        Some(64..=79) => DatagramKind::ChannelData,
        Some(128..=191) => DatagramKind::Rtp,
        Some(192..=255) => DatagramKind::Quic,
        _ => DatagramKind::Unknown,
    }
}

/// RTCP shares RTP's ports: packet types 192..=223 (RFC 5761 §4).
pub fn is_rtcp(bytes: &[u8]) -> bool {
    matches!(bytes.get(1), Some(192..=223))
}

/// What a client that opened a TCP connection speaks, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// A TLS handshake record with a ClientHello.
    Tls,
    /// STUN and TURN messages one after another (RFC 8489 §6.2.2, RFC 8656 §12.5).
    Turn,
    /// ICE-TCP: frames with a 16-bit length (RFC 4571, RFC 6544 §10.1).
    IceTcp,
    Http,
}

/// Result of a look at the first bytes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniff {
    Is(StreamKind),
    /// So far it may become one of the kinds.
    NeedMore,
    Unknown,
}

/// Enough bytes to tell every kind from every other.
pub const SNIFF_MAX: usize = 10;

/// Looks at the first bytes of a stream. At [`SNIFF_MAX`] bytes the answer is never `NeedMore`.
pub fn stream(bytes: &[u8]) -> Sniff {
    let Some(&first) = bytes.first() else { return Sniff::NeedMore };
    if first == 0x16 {
        return match bytes.get(1) {
            None => Sniff::NeedMore,
            Some(3) => Sniff::Is(StreamKind::Tls),
            Some(_) => sniff_frames(bytes),
        };
    }
    if first.is_ascii_uppercase() {
        let looks_like_method = bytes.iter().take(SNIFF_MAX).all(|b| b.is_ascii_graphic() || matches!(b, b' ' | b'\r' | b'\n'));
        // An RFC 4571 length of 0x41.. would be a first frame of 16 KiB and more: no ICE check is that long.
        return match (looks_like_method, bytes.len() >= 4) {
            (true, true) => Sniff::Is(StreamKind::Http),
            (true, false) => Sniff::NeedMore,
            (false, _) => Sniff::Unknown,
        };
    }
    sniff_frames(bytes)
}

fn sniff_frames(bytes: &[u8]) -> Sniff {
    let cookie = MAGIC_COOKIE.to_be_bytes();
    if bytes.len() >= 8 && bytes[4..8] == cookie && bytes[0] <= 3 {
        return Sniff::Is(StreamKind::Turn);
    }
    if bytes.len() >= SNIFF_MAX {
        let framed = bytes[6..10] == cookie && bytes[2] <= 3;
        return if framed { Sniff::Is(StreamKind::IceTcp) } else { Sniff::Unknown };
    }
    Sniff::NeedMore
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_of_a_stream() {
        let turn = [0x00, 0x03, 0x00, 0x08, 0x21, 0x12, 0xa4, 0x42, 1, 2];
        let ice = [0x00, 0x64, 0x00, 0x01, 0x00, 0x50, 0x21, 0x12, 0xa4, 0x42];
        // A frame of 0x1600..0x16ff bytes starts like TLS; its cookie tells.
        let long_ice = [0x16, 0x64, 0x00, 0x01, 0x16, 0x50, 0x21, 0x12, 0xa4, 0x42];
        let rows: &[(&[u8], Sniff)] = &[
            (b"", Sniff::NeedMore),
            (b"\x16", Sniff::NeedMore),
            (b"\x16\x03", Sniff::Is(StreamKind::Tls)),
            (b"GET / HTTP", Sniff::Is(StreamKind::Http)),
            (b"GE", Sniff::NeedMore),
            (b"PRI * HTTP", Sniff::Is(StreamKind::Http)),
            (&turn[..4], Sniff::NeedMore),
            (&turn, Sniff::Is(StreamKind::Turn)),
            (&ice[..9], Sniff::NeedMore),
            (&ice, Sniff::Is(StreamKind::IceTcp)),
            (&long_ice, Sniff::Is(StreamKind::IceTcp)),
            (&[0x40, 0, 0, 4, 1, 2, 3, 4, 5, 6], Sniff::Unknown),
            (&[0xff; 10], Sniff::Unknown),
        ];
        for (bytes, want) in rows {
            assert_eq!(stream(bytes), *want, "{bytes:02x?}");
        }
    }

    #[test]
    fn ten_bytes_are_always_enough() {
        let mut dice = crate::base::rng::Rng::new(1);
        for _ in 0..20_000 {
            let bytes: [u8; SNIFF_MAX] = std::array::from_fn(|_| dice.next_u64() as u8);
            assert_ne!(stream(&bytes), Sniff::NeedMore, "{bytes:02x?}");
        }
    }
}
