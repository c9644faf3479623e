//! The sections that we offer to clients that let the server offer: our payload types, the same in every offer of a
//! transport, and the extensions of each kind.

use crate::wire::rtp::{Codec, Extension};
use crate::wire::sdp::{Direction, Format, Kind, OfferedFormat, Section};

/// Payload type, that of its retransmissions, codec, parameters. Types below 64 are those that RFC 5761 leaves free.
const FORMATS: &[(u8, Option<u8>, Codec, &str)] = &[
    (111, None, Codec::Opus, "minptime=10;useinbandfec=1"),
    (0, None, Codec::Pcmu, ""),
    (8, None, Codec::Pcma, ""),
    (96, Some(97), Codec::Vp8, ""),
    (98, Some(99), Codec::Vp9, "profile-id=0"),
    (100, Some(101), Codec::Vp9, "profile-id=2"),
    (102, Some(103), Codec::H264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42001f"),
    (104, Some(105), Codec::H264, "level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42001f"),
    (106, Some(107), Codec::H264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"),
    (108, Some(109), Codec::H264, "level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42e01f"),
    (112, Some(113), Codec::H264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=4d001f"),
    (114, Some(115), Codec::H264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=64001f"),
    (45, Some(46), Codec::Av1, "level-idx=5;profile=0;tier=0"),
    (49, Some(50), Codec::H265, "level-id=93;profile-id=1;tier-flag=0;tx-mode=SRST"),
];
/// Opus with what was said before (RFC 2198).
const RED: u8 = 63;

const OF_AUDIO: &[Extension] = &[Extension::Mid, Extension::AudioLevel, Extension::TransportCc, Extension::AbsCaptureTime];
const OF_VIDEO: &[Extension] = &[
    Extension::Mid,
    Extension::TransportCc,
    Extension::AbsCaptureTime,
    Extension::Orientation,
    Extension::PlayoutDelay,
    Extension::ContentType,
    Extension::ColorSpace,
    Extension::DependencyDescriptor,
];

/// A section that sends one track; without a codec every one of the kind is offered.
pub fn section(mid: &str, kind: Kind, codec: Option<Codec>) -> Section {
    let is_data = kind == Kind::Application;
    let fits = |c: Codec| codec.map_or(c.is_video() == (kind == Kind::Video), |wanted| wanted == c);
    let formats = FORMATS.iter().filter(|(.., c, _)| !is_data && fits(*c)).map(offered).collect();
    let extensions = match kind {
        Kind::Audio => OF_AUDIO,
        Kind::Video => OF_VIDEO,
        Kind::Application => &[],
    };
    Section {
        mid: mid.to_owned(),
        kind,
        direction: Direction::SendOnly,
        is_rejected: false,
        proto: if is_data { "UDP/DTLS/SCTP" } else { "UDP/TLS/RTP/SAVPF" }.to_owned(),
        fmt: if is_data { "webrtc-datachannel" } else { "" }.to_owned(),
        formats,
        extensions: extensions.iter().map(|e| (*e as u8 + 1, *e)).collect(),
        extmap_allow_mixed: true,
        msid: None,
        ssrcs: Vec::new(),
        repairs: Vec::new(),
        rids: Vec::new(),
        sctp_port: is_data.then_some(5000),
    }
}

fn offered((payload_type, rtx, codec, parameters): &(u8, Option<u8>, Codec, &str)) -> OfferedFormat {
    let channels = if *codec == Codec::Opus { "/2" } else { "" };
    let name = codec.mime().rsplit('/').next().unwrap_or_default();
    OfferedFormat {
        payload_type: *payload_type,
        format: Format::new(*codec, parameters),
        rtpmap: format!("{name}/{}{channels}", codec.clock_rate()),
        fmtp: (!parameters.is_empty()).then(|| (*parameters).to_owned()),
        rtx: *rtx,
        red: (*codec == Codec::Opus).then(|| (RED, format!("{payload_type}/{payload_type}"))),
    }
}
