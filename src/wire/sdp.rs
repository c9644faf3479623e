//! Session descriptions (RFC 8866) of clients, typed: their offers and answers, over the `sdp-types` tokeniser.
//!
//! Reads what the other side decides from (RFC 9429 §5.3): sections, ICE and DTLS parameters, formats, extensions, rids.
//! Ours are written by `session/negotiate.rs`.

use super::rtp::{Codec, Extension};
use sdp_types::{Attribute, Media, Session};

/// Longest description that is looked at, bytes.
pub const LEN_MAX: usize = 1024 * 1024;
/// Most sections of one description, and those that we let it come to.
pub const SECTIONS_MAX: usize = 256;
pub const SECTIONS_USED_MAX: usize = 240;

/// Why a description cannot be answered. The text goes to the app.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SdpError {
    #[error("the description is longer than {LEN_MAX} bytes")]
    TooLong,
    #[error("the description does not parse: {0}")]
    Syntax(String),
    #[error("more than {SECTIONS_MAX} media sections")]
    TooManySections,
    #[error("no media section")]
    NoSections,
    /// RFC 9725 §4.2
    #[error("no media section {0}, in a format that this server forwards")]
    NoUsable(&'static str),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} is not understood: {1}")]
    Bad(&'static str, String),
    #[error("every section must be in one BUNDLE group (RFC 9143)")]
    NotBundled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Audio,
    Video,
    Application,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Application => "application",
        }
    }
}

/// RFC 8866 §6.7, seen from the one who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    SendRecv,
    SendOnly,
    RecvOnly,
    Inactive,
}

impl Direction {
    pub fn sends(self) -> bool {
        matches!(self, Self::SendRecv | Self::SendOnly)
    }

    pub fn receives(self) -> bool {
        matches!(self, Self::SendRecv | Self::RecvOnly)
    }
}

/// DTLS role that the writer takes (RFC 8842 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    ActPass,
    Active,
    Passive,
}

/// A payload format: what must agree between a publisher and a subscriber for bytes to pass unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    pub codec: Codec,
    /// Profile of the codec; for H.264 also its packetization mode. 0 where a codec has only one.
    pub variant: u32,
}

impl Format {
    /// From the parameters of an `a=fmtp`.
    pub fn new(codec: Codec, fmtp: &str) -> Self {
        let parameter = |name: &str| {
            fmtp.split(';').find_map(|p| p.trim().split_once('=').filter(|(k, _)| k.eq_ignore_ascii_case(name))).map(|(_, v)| v.trim())
        };
        let number = |name| parameter(name).and_then(|v: &str| v.parse::<u32>().ok());
        let variant = match codec {
            Codec::H264 => {
                let profile = parameter("profile-level-id").and_then(|v| u32::from_str_radix(v.get(..2)?, 16).ok());
                number("packetization-mode").unwrap_or(0) << 8 | profile.unwrap_or(0x42)
            }
            Codec::Vp9 | Codec::H265 => number("profile-id").unwrap_or(0),
            Codec::Av1 => number("profile").unwrap_or(0),
            Codec::Opus | Codec::Pcmu | Codec::Pcma | Codec::Vp8 => 0,
        };
        Self { codec, variant }
    }

    /// The one of `offered` that takes this format: the same profile, else the same way of packing.
    pub fn among(self, offered: &[OfferedFormat]) -> Option<&OfferedFormat> {
        let exact = offered.iter().find(|o| o.format == self);
        let close = || {
            offered.iter().find(|o| o.format.codec == self.codec && self.codec == Codec::H264 && o.format.variant >> 8 == self.variant >> 8)
        };
        exact.or_else(close)
    }
}

/// One `a=rtpmap` that we can forward, with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedFormat {
    pub payload_type: u8,
    pub format: Format,
    /// The text behind the payload type in `a=rtpmap`, repeated in the answer.
    pub rtpmap: String,
    pub fmtp: Option<String>,
    /// Payload type of its retransmissions (RFC 4588 §8.1).
    pub rtx: Option<u8>,
    /// Payload type under which it travels with earlier payloads of its own (RFC 2198), and the format's parameters.
    pub red: Option<(u8, String)>,
}

/// A certificate's digest (RFC 8122).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    pub hash: String,
    pub digest: Vec<u8>,
}

/// One media section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub mid: String,
    pub kind: Kind,
    pub direction: Direction,
    /// Port zero: the offerer gave this section up (RFC 9429 §5.2.2).
    pub is_rejected: bool,
    pub proto: String,
    pub fmt: String,
    pub formats: Vec<OfferedFormat>,
    pub extensions: Vec<(u8, Extension)>,
    pub extmap_allow_mixed: bool,
    /// Stream and track id of `a=msid` (RFC 8830).
    pub msid: Option<(String, String)>,
    pub ssrcs: Vec<u32>,
    /// Sources and those of their retransmissions: `a=ssrc-group:FID` (RFC 5576 §4.2).
    pub repairs: Vec<(u32, u32)>,
    /// Ids of the simulcast encodings that the offerer sends, lowest first (RFC 8853).
    pub rids: Vec<String>,
    pub sctp_port: Option<u16>,
}

/// A whole offer or answer: one transport, several sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub ufrag: String,
    pub pwd: String,
    pub fingerprint: Fingerprint,
    pub setup: Setup,
    pub sections: Vec<Section>,
}

impl Description {
    pub fn parse(text: &str) -> Result<Self, SdpError> {
        if text.len() > LEN_MAX {
            return Err(SdpError::TooLong);
        }
        let session = Session::parse(text.as_bytes()).map_err(|e| SdpError::Syntax(e.to_string()))?;
        match session.medias.len() {
            0 => return Err(SdpError::NoSections),
            1..=SECTIONS_MAX => {}
            _ => return Err(SdpError::TooManySections),
        }
        let sections = session.medias.iter().map(Section::parse).collect::<Result<Vec<_>, _>>()?;
        let mut mids: Vec<&str> = sections.iter().map(|s| s.mid.as_str()).collect();
        mids.sort_unstable();
        if mids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(SdpError::Bad("a=mid", "one mid, two sections".into()));
        }
        // In a bundle the first section that is not rejected carries the transport (RFC 9143 §7.2).
        let carrier = session.medias.iter().zip(&sections).find(|(_, s)| !s.is_rejected).map(|(m, _)| m);
        let transport = |name| carrier.and_then(|m| value(&m.attributes, name)).or_else(|| value(&session.attributes, name));
        let ufrag = transport("ice-ufrag").ok_or(SdpError::Missing("a=ice-ufrag"))?;
        let pwd = transport("ice-pwd").ok_or(SdpError::Missing("a=ice-pwd"))?;
        let fingerprint = transport("fingerprint").ok_or(SdpError::Missing("a=fingerprint"))?;
        let setup = match transport("setup") {
            Some("actpass") => Setup::ActPass,
            Some("active") => Setup::Active,
            Some("passive") => Setup::Passive,
            Some(other) => return Err(SdpError::Bad("a=setup", other.into())),
            None => return Err(SdpError::Missing("a=setup")),
        };
        let bundle = value(&session.attributes, "group").and_then(|g| g.strip_prefix("BUNDLE")).unwrap_or_default();
        let is_bundled = |mid: &str| bundle.split_whitespace().any(|m| m == mid);
        if sections.len() > 1 && sections.iter().any(|s| !s.is_rejected && !is_bundled(&s.mid)) {
            return Err(SdpError::NotBundled);
        }
        Ok(Self { ufrag: ufrag.into(), pwd: pwd.into(), fingerprint: parse_fingerprint(fingerprint)?, setup, sections })
    }
}

impl Section {
    fn parse(media: &Media) -> Result<Self, SdpError> {
        let attributes = &media.attributes;
        let kind = match media.media.as_str() {
            "audio" => Kind::Audio,
            "video" => Kind::Video,
            "application" => Kind::Application,
            other => return Err(SdpError::Bad("m=", other.into())),
        };
        let mid = value(attributes, "mid").ok_or(SdpError::Missing("a=mid"))?;
        if mid.is_empty() || mid.len() > 32 {
            return Err(SdpError::Bad("a=mid", mid.chars().take(40).collect()));
        }
        let direction = [
            ("sendrecv", Direction::SendRecv),
            ("sendonly", Direction::SendOnly),
            ("recvonly", Direction::RecvOnly),
            ("inactive", Direction::Inactive),
        ]
        .into_iter()
        .find(|(name, _)| has(attributes, name))
        .map_or(Direction::SendRecv, |(_, d)| d);
        Ok(Self {
            mid: mid.into(),
            kind,
            direction,
            is_rejected: media.port == 0 && !has(attributes, "bundle-only"),
            proto: media.proto.clone(),
            fmt: media.fmt.clone(),
            formats: formats(media),
            extensions: values(attributes, "extmap").filter_map(parse_extmap).collect(),
            extmap_allow_mixed: has(attributes, "extmap-allow-mixed"),
            msid: value(attributes, "msid")
                .and_then(|v| v.split_once(' '))
                .map(|(stream, track)| (stream.trim().to_owned(), track.trim().to_owned())),
            ssrcs: ssrcs(attributes),
            repairs: values(attributes, "ssrc-group").filter_map(parse_repair).collect(),
            rids: rids(attributes),
            sctp_port: value(attributes, "sctp-port").and_then(|v| v.trim().parse().ok()),
        })
    }
}

fn values<'a>(attributes: &'a [Attribute], name: &'a str) -> impl Iterator<Item = &'a str> {
    attributes.iter().filter(move |a| a.attribute == name).filter_map(|a| a.value.as_deref())
}

fn value<'a>(attributes: &'a [Attribute], name: &'a str) -> Option<&'a str> {
    values(attributes, name).next().map(str::trim)
}

fn has(attributes: &[Attribute], name: &str) -> bool {
    attributes.iter().any(|a| a.attribute == name)
}

/// `SHA-256 AB:CD:…` (RFC 8122 §5).
fn parse_fingerprint(text: &str) -> Result<Fingerprint, SdpError> {
    let bad = || SdpError::Bad("a=fingerprint", text.into());
    let (hash, digest) = text.split_once(' ').ok_or_else(bad)?;
    let digest: Option<Vec<u8>> = digest.trim().split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
    Ok(Fingerprint { hash: hash.to_ascii_lowercase(), digest: digest.filter(|d| !d.is_empty()).ok_or_else(bad)? })
}

/// `<id>[/direction] <uri> …` (RFC 8285 §8).
fn parse_extmap(text: &str) -> Option<(u8, Extension)> {
    let (id, rest) = text.split_once(' ')?;
    let id: u8 = id.split('/').next()?.parse().ok()?;
    let extension = Extension::from_uri(rest.split_whitespace().next()?)?;
    (id != 0 && id != 15).then_some((id, extension))
}

/// `FID <source> <its retransmissions>`.
fn parse_repair(text: &str) -> Option<(u32, u32)> {
    let mut words = text.strip_prefix("FID ")?.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

fn formats(media: &Media) -> Vec<OfferedFormat> {
    let rtpmaps: Vec<(u8, &str)> = values(&media.attributes, "rtpmap").filter_map(numbered).collect();
    let fmtps: Vec<(u8, &str)> = values(&media.attributes, "fmtp").filter_map(numbered).collect();
    let in_order = media.fmt.split_whitespace().filter_map(|pt| pt.parse::<u8>().ok());
    in_order
        .filter_map(|payload_type| {
            let (_, rtpmap) = rtpmaps.iter().find(|(pt, _)| *pt == payload_type)?;
            let codec = Codec::from_name(rtpmap.split('/').next()?)?;
            let fmtp = fmtps.iter().find(|(pt, _)| *pt == payload_type).map(|(_, f)| (*f).to_owned());
            let format = Format::new(codec, fmtp.as_deref().unwrap_or_default());
            let is_named = |pt: &u8, prefix| rtpmaps.iter().any(|(p, name)| p == pt && name.to_ascii_lowercase().starts_with(prefix));
            let repairs = |pt: &u8| is_named(pt, "rtx/");
            let of_this = |text: &str| text.split(';').any(|p| p.trim().strip_prefix("apt=") == Some(&payload_type.to_string()));
            let rtx = fmtps.iter().find(|(pt, text)| of_this(text) && repairs(pt)).map(|(pt, _)| *pt);
            let repeats = |text: &str| text.split('/').all(|pt| pt.trim().parse() == Ok(payload_type));
            let red = fmtps.iter().find(|(pt, text)| !codec.is_video() && repeats(text) && is_named(pt, "red/"));
            let red = red.map(|(pt, text)| (*pt, (*text).to_owned()));
            Some(OfferedFormat { payload_type, format, rtpmap: (*rtpmap).to_owned(), fmtp, rtx, red })
        })
        .collect()
}

fn numbered(text: &str) -> Option<(u8, &str)> {
    let (pt, rest) = text.split_once(' ')?;
    Some((pt.parse().ok().filter(|pt| *pt < 128)?, rest.trim()))
}

fn ssrcs(attributes: &[Attribute]) -> Vec<u32> {
    let mut found = Vec::new();
    for ssrc in values(attributes, "ssrc").filter_map(|v| v.split_whitespace().next()?.parse().ok()) {
        if !found.contains(&ssrc) {
            found.push(ssrc);
        }
    }
    found
}

/// `send q;h;f` of `a=simulcast`; `~` marks a paused encoding and commas an alternative (RFC 8853 §5.1).
fn rids(attributes: &[Attribute]) -> Vec<String> {
    let Some(simulcast) = value(attributes, "simulcast") else { return Vec::new() };
    let mut words = simulcast.split_whitespace();
    while let Some(direction) = words.next() {
        let list = words.next().unwrap_or_default();
        if direction == "send" {
            let ids = list.split(';').filter_map(|alternatives| alternatives.split(',').next());
            return lowest_first(ids.map(|id| id.trim_start_matches('~').to_owned()).filter(|id| !id.is_empty()).take(3).collect());
        }
    }
    Vec::new()
}

/// Names that senders give their encodings, lowest first: a quarter, a half and the full size; low, medium and high; and
/// numbers, of which 0 is the full size (OBS).
const LADDERS: [[&str; 3]; 6] =
    [["q", "h", "f"], ["l", "m", "h"], ["2", "1", "0"], ["r0", "r1", "r2"], ["lo", "mid", "hi"], ["low", "medium", "high"]];

/// Encodings in the order of their layers. What their names do not tell, their order does: the first one is the most
/// preferred (RFC 8853 §5.2).
fn lowest_first(mut rids: Vec<String>) -> Vec<String> {
    let rank = |ladder: &[&str; 3], rid: &String| ladder.iter().position(|step| step == rid);
    match LADDERS.iter().find(|ladder| rids.iter().all(|rid| rank(ladder, rid).is_some())) {
        Some(ladder) => rids.sort_by_key(|rid| rank(ladder, rid)),
        None => rids.reverse(),
    }
    rids
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: &str = include_str!("../../tests/vectors/offer_chromium.sdp");

    #[test]
    fn layers_by_the_names_of_encodings_and_else_by_preference() {
        let rows = [
            ("q;h;f", "q;h;f"),
            ("f;h;q", "q;h;f"),
            ("q;h", "q;h"),
            ("h;m;l", "l;m;h"),
            ("0;1;2", "2;1;0"),
            ("2;1;0", "2;1;0"),
            ("0;1", "1;0"),
            ("r0;r1;r2", "r0;r1;r2"),
            ("high;low", "low;high"),
            ("big;middle;small", "small;middle;big"),
            ("~q;h,x;f", "q;h;f"),
            ("one", "one"),
        ];
        for (offered, want) in rows {
            let attribute = Attribute { attribute: "simulcast".into(), value: Some(format!("send {offered}")) };
            assert_eq!(rids(&[attribute]).join(";"), want, "{offered}");
        }
    }

    #[test]
    fn a_browsers_offer_is_read() {
        let offer = Description::parse(OFFER).expect("Chromium's offer");
        assert_eq!((offer.ufrag.as_str(), offer.setup), ("EsAw", Setup::ActPass));
        assert_eq!((offer.fingerprint.hash.as_str(), offer.fingerprint.digest.len()), ("sha-256", 32));
        let kinds: Vec<_> = offer.sections.iter().map(|s| (s.mid.as_str(), s.kind, s.direction)).collect();
        assert_eq!(
            kinds,
            [
                ("0", Kind::Audio, Direction::SendRecv),
                ("1", Kind::Video, Direction::SendOnly),
                ("2", Kind::Application, Direction::SendRecv)
            ]
        );
        let video = &offer.sections[1];
        assert_eq!(video.rids, ["q", "h", "f"]);
        assert_eq!(video.msid, Some(("stream".into(), "track".into())));
        let codecs: Vec<_> = video.formats.iter().map(|f| (f.payload_type, f.format.codec, f.format.variant)).collect();
        assert_eq!(codecs, [(96, Codec::Vp8, 0), (102, Codec::H264, 0x142), (98, Codec::Vp9, 0), (45, Codec::Av1, 0)]);
        assert!(video.extensions.contains(&(4, Extension::TransportCc)));
        let red: Vec<_> = offer.sections[0].formats.iter().map(|f| (f.payload_type, f.red.clone())).collect();
        assert_eq!(red, [(111, Some((63, "111/111".into()))), (0, None), (8, None)]);
        assert_eq!(offer.sections[2].sctp_port, Some(5000));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (without, want) in [
            ("a=ice-ufrag", SdpError::Missing("a=ice-ufrag")),
            ("a=ice-pwd", SdpError::Missing("a=ice-pwd")),
            ("a=fingerprint", SdpError::Missing("a=fingerprint")),
            ("a=setup", SdpError::Missing("a=setup")),
            ("a=mid", SdpError::Missing("a=mid")),
            ("a=group", SdpError::NotBundled),
        ] {
            let text: String = OFFER.lines().filter(|l| !l.starts_with(without)).map(|l| format!("{l}\r\n")).collect();
            assert_eq!(Description::parse(&text), Err(want), "without {without}");
        }
        assert_eq!(Description::parse(&"x".repeat(LEN_MAX + 1)), Err(SdpError::TooLong));
        assert!(matches!(Description::parse("v=0\r\n"), Err(SdpError::Syntax(_) | SdpError::NoSections)));
    }

    #[test]
    fn damage_never_panics() {
        let mut dice = crate::base::rng::Rng::new(11);
        for _ in 0..3_000 {
            let mut bytes = OFFER.as_bytes().to_vec();
            for _ in 0..1 + dice.below(8) {
                let at = dice.below(bytes.len() as u64) as usize;
                match dice.below(3) {
                    0 => bytes[at] = dice.next_u64() as u8 & 0x7F,
                    1 => drop(bytes.drain(at..(at + 9).min(bytes.len()))),
                    _ => bytes.insert(at, b";:/ ~=\r\n0"[dice.below(9) as usize]),
                }
            }
            if let Ok(text) = String::from_utf8(bytes) {
                let _ = Description::parse(&text);
            }
        }
    }
}
