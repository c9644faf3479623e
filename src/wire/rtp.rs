//! RTP headers (RFC 3550 §5.1) and header extensions (RFC 8285): a view to read, a writer that maps extension ids.
//!
//! ```text
//! |V=2|P|X| CC  |M| PT | sequence(16) | timestamp(32) | SSRC(32) | CSRC(32) x CC |
//! if X: | profile(16) | words(16) | elements ... |
//! payload ... | if P: zeros, count(8)
//! ```

use super::{Malformed, be16, be32};
use std::ops::Range;

pub const FIXED_LEN: usize = 12;
const ONE_BYTE: u16 = 0xBEDE;
const TWO_BYTE: u16 = 0x1000;

/// A header as read. The ranges point into the packet that it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub marker: bool,
    pub payload_type: u8,
    pub sequence: u16,
    pub timestamp: u32,
    pub ssrc: u32,
    csrcs: u8,
    extension: Option<(u16, Range<usize>)>,
    /// Length of everything before the payload: the authenticated, never encrypted part of SRTP.
    pub len: usize,
    has_padding: bool,
}

impl Header {
    pub fn read(packet: &[u8]) -> Result<Self, Malformed> {
        let &[first, second, ..] = packet else { return Err(Malformed) };
        if first >> 6 != 2 || packet.len() < FIXED_LEN {
            return Err(Malformed);
        }
        let csrcs = first & 0x0F;
        let mut len = FIXED_LEN + 4 * usize::from(csrcs);
        let mut extension = None;
        if first & 0x10 != 0 {
            let profile = be16(packet, len).ok_or(Malformed)?;
            let words = usize::from(be16(packet, len + 2).ok_or(Malformed)?);
            extension = Some((profile, len + 4..len + 4 + 4 * words));
            len += 4 + 4 * words;
        }
        if len > packet.len() {
            return Err(Malformed);
        }
        Ok(Self {
            marker: second & 0x80 != 0,
            payload_type: second & 0x7F,
            sequence: be16(packet, 2).ok_or(Malformed)?,
            timestamp: be32(packet, 4).ok_or(Malformed)?,
            ssrc: be32(packet, 8).ok_or(Malformed)?,
            csrcs,
            extension,
            len,
            has_padding: first & 0x20 != 0,
        })
    }

    /// The payload of a decrypted packet without its padding.
    pub fn payload(&self, packet: &[u8]) -> Result<Range<usize>, Malformed> {
        let padding = match (self.has_padding, packet.last()) {
            (false, _) => 0,
            (true, Some(&n)) if n > 0 => usize::from(n),
            (true, _) => return Err(Malformed),
        };
        let end = packet.len().checked_sub(padding).filter(|end| *end >= self.len).ok_or(Malformed)?;
        Ok(self.len..end)
    }

    /// Id and value of each header extension, in order. Stops at the first broken one.
    pub fn extensions<'a>(&self, packet: &'a [u8]) -> Extensions<'a> {
        let (profile, block) = match &self.extension {
            Some((profile, range)) => (*profile, packet.get(range.clone()).unwrap_or_default()),
            None => (ONE_BYTE, &[][..]),
        };
        Extensions { profile, block }
    }

    /// Contributing sources, as bytes.
    pub fn csrcs<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        packet.get(FIXED_LEN..FIXED_LEN + 4 * usize::from(self.csrcs)).unwrap_or_default()
    }
}

/// Header extensions, read one by one.
#[derive(Clone)]
pub struct Extensions<'a> {
    profile: u16,
    block: &'a [u8],
}

impl<'a> Iterator for Extensions<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while let [0, rest @ ..] = self.block {
            self.block = rest;
        }
        let &first = self.block.first()?;
        let (id, len, start) = match self.profile {
            ONE_BYTE if first >> 4 == 15 => return None,
            ONE_BYTE => (first >> 4, usize::from(first & 0x0F) + 1, 1),
            p if p & 0xFFF0 == TWO_BYTE => (first, usize::from(*self.block.get(1)?), 2),
            _ => return None,
        };
        let value = self.block.get(start..start + len)?;
        self.block = &self.block[start + len..];
        Some((id, value))
    }
}

/// The fields of a header that a forwarder sets anew.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    pub marker: bool,
    /// The packet ends with padding (RFC 3550 §5.1), for the caller to write.
    pub has_padding: bool,
    pub payload_type: u8,
    pub sequence: u16,
    pub timestamp: u32,
    pub ssrc: u32,
}

/// Writes headers into `out`; returns the header's length, or `None` when `out` is too short or an id does not fit.
/// One-byte elements are used while every value allows it, else two-byte ones (RFC 8285 §4.2, §4.3).
pub fn write_header(out: &mut [u8], fields: Outgoing, csrcs: &[u8], extensions: &[(u8, &[u8])]) -> Option<usize> {
    let block = FIXED_LEN + csrcs.len();
    let is_short = |(id, value): &(u8, &[u8])| *id < 15 && (1..=16).contains(&value.len());
    let (some, end) = write_extensions(out, block, extensions, extensions.iter().all(is_short))?;
    let first = 0x80 | if fields.has_padding { 0x20 } else { 0 } | if some { 0x10 } else { 0 } | (csrcs.len() / 4) as u8;
    let second = if fields.marker { 0x80 } else { 0 } | fields.payload_type & 0x7F;
    out.get_mut(..2)?.copy_from_slice(&[first, second]);
    out.get_mut(2..4)?.copy_from_slice(&fields.sequence.to_be_bytes());
    out.get_mut(4..8)?.copy_from_slice(&fields.timestamp.to_be_bytes());
    out.get_mut(8..12)?.copy_from_slice(&fields.ssrc.to_be_bytes());
    out.get_mut(FIXED_LEN..block)?.copy_from_slice(csrcs);
    Some(end)
}

/// Writes the block of extensions (RFC 8285 §4.2, §4.3) at `block`: whether there were any, and where it ends.
fn write_extensions(out: &mut [u8], block: usize, extensions: &[(u8, &[u8])], one_byte: bool) -> Option<(bool, usize)> {
    let mut len = block + 4;
    for (id, value) in extensions {
        if one_byte {
            *out.get_mut(len)? = id << 4 | (value.len() - 1) as u8;
            len += 1;
        } else {
            out.get_mut(len..len + 2)?.copy_from_slice(&[*id, u8::try_from(value.len()).ok()?]);
            len += 2;
        }
        out.get_mut(len..len + value.len())?.copy_from_slice(value);
        len += value.len();
    }
    if len == block + 4 {
        return Some((false, block));
    }
    let end = block + 4 + (len - block - 4).next_multiple_of(4);
    out.get_mut(len..end)?.fill(0);
    let profile = if one_byte { ONE_BYTE } else { TWO_BYTE };
    out[block..block + 2].copy_from_slice(&profile.to_be_bytes());
    out[block + 2..block + 4].copy_from_slice(&(((end - block - 4) / 4) as u16).to_be_bytes());
    Some((true, end))
}

/// What a payload says about the frame it belongs to. Read from descriptors, never from coded pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameInfo {
    /// The first packet of a frame from which a decoder can start.
    pub starts_key_frame: bool,
    /// The first packet of a frame, where the payload tells; of several spatial layers each has its own frame.
    pub starts_frame: bool,
    /// The last packet of a frame, where the payload tells.
    pub ends_frame: bool,
    /// Spatial layer, in a stream that carries several.
    pub spatial_id: Option<u8>,
    /// Temporal layer; 0 when unknown.
    pub temporal_id: u8,
    /// Depends on nothing but the base layer: a receiver of lower temporal layers may go up here.
    pub is_switching_up: bool,
    /// Newer packets of its stream came before it.
    pub is_late: bool,
}

/// The payload formats that are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    Opus,
    Pcmu,
    Pcma,
    Vp8,
    Vp9,
    H264,
    H265,
    Av1,
}

impl Codec {
    /// Encoding name of an `a=rtpmap` (case-insensitive).
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "opus" => Self::Opus,
            "pcmu" => Self::Pcmu,
            "pcma" => Self::Pcma,
            "vp8" => Self::Vp8,
            "vp9" => Self::Vp9,
            "h264" => Self::H264,
            "h265" => Self::H265,
            "av1" => Self::Av1,
            _ => return None,
        })
    }

    /// Media type as the room protocol writes it.
    pub fn mime(self) -> &'static str {
        match self {
            Self::Opus => "audio/opus",
            Self::Pcmu => "audio/PCMU",
            Self::Pcma => "audio/PCMA",
            Self::Vp8 => "video/VP8",
            Self::Vp9 => "video/VP9",
            Self::H264 => "video/H264",
            Self::H265 => "video/H265",
            Self::Av1 => "video/AV1",
        }
    }

    /// Codecs whose spatial layers share one stream: their frames are told apart by the dependency descriptor.
    pub fn is_layered(self) -> bool {
        matches!(self, Self::Vp9 | Self::Av1)
    }

    pub fn is_video(self) -> bool {
        matches!(self, Self::Vp8 | Self::Vp9 | Self::H264 | Self::H265 | Self::Av1)
    }

    /// RTP clock, Hz.
    pub fn clock_rate(self) -> u32 {
        match self {
            Self::Opus => 48_000,
            Self::Pcmu | Self::Pcma => 8_000,
            _ => 90_000,
        }
    }

    /// What the payload's descriptor tells.
    pub fn frame_info(self, payload: &[u8]) -> FrameInfo {
        match self {
            Self::Vp8 => super::vp8::frame_info(payload),
            Self::Vp9 => super::vp9::frame_info(payload),
            Self::H264 => super::h264::frame_info(payload),
            Self::H265 => super::h265::frame_info(payload),
            Self::Av1 => super::av1::frame_info(payload),
            Self::Opus | Self::Pcmu | Self::Pcma => FrameInfo::default(),
        }
    }
}

/// Header extensions that Postern reads or passes on, by their URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extension {
    /// RFC 9143
    Mid,
    /// RFC 8852
    Rid,
    /// RFC 8852: whose retransmission this is.
    RepairedRid,
    /// RFC 6464
    AudioLevel,
    /// draft-holmer-rmcat-transport-wide-cc-extensions-01
    TransportCc,
    /// abs-capture-time
    AbsCaptureTime,
    /// RFC 8286-style orientation of 3GPP TS 26.114
    Orientation,
    PlayoutDelay,
    ContentType,
    ColorSpace,
    /// AV1 RTP payload specification, annex A: what an SVC receiver needs to put frames together.
    DependencyDescriptor,
}

impl Extension {
    pub const ALL: [Extension; 11] = [
        Self::Mid,
        Self::Rid,
        Self::RepairedRid,
        Self::AudioLevel,
        Self::TransportCc,
        Self::AbsCaptureTime,
        Self::Orientation,
        Self::PlayoutDelay,
        Self::ContentType,
        Self::ColorSpace,
        Self::DependencyDescriptor,
    ];

    pub fn uri(self) -> &'static str {
        match self {
            Self::Mid => "urn:ietf:params:rtp-hdrext:sdes:mid",
            Self::Rid => "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id",
            Self::RepairedRid => "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id",
            Self::AudioLevel => "urn:ietf:params:rtp-hdrext:ssrc-audio-level",
            Self::TransportCc => "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
            Self::AbsCaptureTime => "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time",
            Self::Orientation => "urn:3gpp:video-orientation",
            Self::PlayoutDelay => "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
            Self::ContentType => "http://www.webrtc.org/experiments/rtp-hdrext/video-content-type",
            Self::ColorSpace => "http://www.webrtc.org/experiments/rtp-hdrext/color-space",
            Self::DependencyDescriptor => "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension",
        }
    }

    pub fn from_uri(uri: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.uri() == uri)
    }

    /// Whether it describes the media itself and so travels on to subscribers; the others describe one hop.
    pub fn is_end_to_end(self) -> bool {
        !matches!(self, Self::Mid | Self::Rid | Self::RepairedRid | Self::TransportCc)
    }
}

/// Which id each extension has on one transport (RFC 8285 §5): ids 1..=14 one-byte, up to 255 two-byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtensionMap([u8; Extension::ALL.len()]);

impl ExtensionMap {
    pub fn set(&mut self, extension: Extension, id: u8) {
        self.0[extension as usize] = id;
    }

    pub fn id(&self, extension: Extension) -> Option<u8> {
        Some(self.0[extension as usize]).filter(|id| *id != 0)
    }

    pub fn extension(&self, id: u8) -> Option<Extension> {
        Extension::ALL.into_iter().find(|e| id != 0 && self.0[*e as usize] == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: Outgoing = Outgoing { marker: true, has_padding: false, payload_type: 96, sequence: 7, timestamp: 8, ssrc: 9 };

    #[test]
    fn extensions_survive_a_round_trip_in_both_forms() {
        let long = [5; 20];
        let rows: &[&[(u8, &[u8])]] =
            &[&[], &[(1, b"a")], &[(1, b"0"), (14, &[1; 16])], &[(1, b"0"), (3, &long)], &[(200, b"xyz"), (2, b"")]];
        for row in rows {
            let mut out = [0xAA; 128];
            let len = write_header(&mut out, FIELDS, &[0, 0, 0, 1], row).expect("it fits");
            let packet = &out[..len];
            let header = Header::read(packet).expect("our own header");
            assert_eq!(header.len, len);
            assert_eq!((header.sequence, header.timestamp, header.ssrc, header.marker), (7, 8, 9, true));
            assert_eq!(header.csrcs(packet), [0, 0, 0, 1]);
            assert_eq!(header.extensions(packet).collect::<Vec<_>>(), row.to_vec());
        }
    }

    #[test]
    fn padding_is_cut_and_a_lie_about_it_refused() {
        let mut packet = vec![0xA0, 96, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 0, 2];
        let header = Header::read(&packet).expect("a header");
        assert_eq!(header.payload(&packet), Ok(12..15));
        *packet.last_mut().expect("not empty") = 6;
        assert_eq!(header.payload(&packet), Err(Malformed));
        *packet.last_mut().expect("not empty") = 0;
        assert_eq!(header.payload(&packet), Err(Malformed));
    }

    #[test]
    fn a_header_is_never_read_past_the_packet() {
        for n in 0..12 {
            assert!(Header::read(&[0x80; 12][..n]).is_err());
        }
        assert!(Header::read(&[0x9F; 12]).is_err(), "extension missing");
        assert!(write_header(&mut [0; 20], FIELDS, &[], &[(1, &[0; 16])]).is_none());
    }
}
