//! Offer and policy in, answer and plan out (RFC 9429 §5.3, RFC 9143); or our own offer out, and a plan from what became of
//! it. Pure: no state, no clock, no dice.
//!
//! The caller says what each section is used for; this file says it in SDP and, for the data plane, as a [`Plan`].
//! Payload types and extension ids are always the offerer's.

mod offering;

pub use offering::section;

use crate::base::id::{Ssrc, TrackId};
use crate::engine::dtls::Role;
use crate::engine::ice::Credentials;
use crate::engine::sctp;
use crate::wire::rtp::{Codec, Extension, ExtensionMap};
use crate::wire::sdp::{Description, Fingerprint, Kind, OfferedFormat, Section, Setup};
use std::fmt::Write;
use std::net::SocketAddr;

/// Our end of the transport, the same in every answer of a session.
pub struct Local<'a> {
    pub credentials: &'a Credentials,
    pub fingerprint: &'a str,
    pub candidates: &'a Candidates,
    /// `o=` line: session id, and a version that grows with each answer.
    pub session_id: u64,
    pub version: u64,
    /// How long clients are to hold pictures back, if the room says so.
    pub playout: Option<Playout>,
}

/// Least and greatest delay before a picture is shown, in 10 ms (playout-delay extension): 12 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Playout {
    min: u16,
    max: u16,
}

impl Playout {
    /// From milliseconds; `None` where nothing is asked for. A greatest delay of 0 is the greatest there is.
    pub fn from_millis(min: u32, max: u32) -> Option<Self> {
        let units = |ms: u32| (ms / 10).min(0xFFF) as u16;
        let max = if max == 0 { 0xFFF } else { units(max.max(min)) };
        (min > 0 || max < 0xFFF).then_some(Self { min: units(min), max })
    }

    /// The extension's value.
    pub fn bytes(self) -> [u8; 3] {
        [(self.min >> 4) as u8, (self.min << 4) as u8 | (self.max >> 8) as u8, self.max as u8]
    }
}

/// Where clients find our media: UDP for everybody, TCP for those whose firewall allows nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    pub udp: Vec<SocketAddr>,
    pub tcp: Vec<SocketAddr>,
}

impl Candidates {
    /// `a=candidate` values (RFC 8839 §5.1, RFC 6544 §4.5), best first.
    pub fn lines(&self) -> Vec<String> {
        let line = |transport: &str, foundation: usize, rank: usize, addr: &SocketAddr, tail: &str| {
            let type_preference = if transport == "udp" { 126 } else { 90 };
            let priority = type_preference << 24 | (0xFFFF - rank) << 8 | 255;
            format!("candidate:{foundation} 1 {transport} {priority} {} {} typ host{tail}", addr.ip(), addr.port())
        };
        let udp = self.udp.iter().enumerate().map(|(i, a)| line("udp", 1 + i, i, a, ""));
        let tcp = self.tcp.iter().enumerate().map(|(i, a)| line("tcp", 101 + i, i, a, " tcptype passive"));
        udp.chain(tcp).collect()
    }
}

/// What one section of the offer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// The client publishes this track in it, by its own wish in this codec.
    Receive {
        track: TrackId,
        prefer: Option<Codec>,
        voice: Voice,
    },
    /// We send this track in it.
    Send {
        track: TrackId,
        ssrc: Ssrc,
        /// Of its retransmissions, where the client takes them apart.
        rtx: Ssrc,
        codec: Option<Codec>,
        /// Its publisher allows redundancy.
        redundancy: bool,
        stream: String,
        label: String,
    },
    /// Something may be sent in it later, without another negotiation.
    Keep {
        ssrc: Ssrc,
        rtx: Ssrc,
        stream: String,
    },
    Data,
    Idle,
}

/// How a publisher wants its sound to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Voice {
    /// Earlier payloads along with each new one (RFC 2198).
    pub redundancy: bool,
    /// Nothing while there is silence (RFC 7587 §3.1.3).
    pub dtx: bool,
    pub stereo: bool,
}

/// What the session receives in one section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receive {
    pub mid: String,
    pub track: TrackId,
    pub formats: Vec<OfferedFormat>,
    pub extensions: ExtensionMap,
    pub rids: Vec<String>,
    /// Hearers that take redundancy may be given it.
    pub redundancy: bool,
    pub ssrcs: Vec<u32>,
    /// Announced sources and those of their retransmissions.
    pub repairs: Vec<(u32, u32)>,
}

/// What the session sends in one section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    pub mid: String,
    pub track: TrackId,
    pub ssrc: Ssrc,
    pub rtx: Ssrc,
    /// The publisher, the same for all its tracks (RFC 7022).
    pub cname: String,
    pub formats: Vec<OfferedFormat>,
    pub extensions: ExtensionMap,
    /// Said with each key frame.
    pub playout: Option<Playout>,
}

impl Send {
    pub fn is_video(&self) -> bool {
        self.formats.iter().any(|f| f.format.codec.is_video())
    }

    /// Its packets count in the numbers of the transport.
    pub fn is_numbered(&self) -> bool {
        self.extensions.id(Extension::TransportCc).is_some()
    }
}

/// A finished negotiation, as the data plane needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub credentials: Credentials,
    pub remote_ufrag: String,
    pub remote_fingerprint: Fingerprint,
    pub role: Role,
    pub receive: Vec<Receive>,
    pub send: Vec<Send>,
}

impl Plan {
    fn new(local: &Local<'_>, remote: &Description, role: Role) -> Self {
        Self {
            credentials: local.credentials.clone(),
            remote_ufrag: remote.ufrag.clone(),
            remote_fingerprint: remote.fingerprint.clone(),
            role,
            receive: Vec::new(),
            send: Vec::new(),
        }
    }
}

/// Answers an offer. `uses` has one entry a section.
pub fn answer(offer: &Description, local: &Local<'_>, uses: &[Use]) -> (String, Plan) {
    let role = match offer.setup {
        Setup::ActPass | Setup::Active => Role::Server,
        Setup::Passive => Role::Client,
    };
    let mut plan = Plan::new(local, offer, role);
    let setup = if role == Role::Server { "passive" } else { "active" };
    let sdp = describe(&offer.sections, uses, local, setup, &mut plan);
    (sdp, plan)
}

/// Offers sections of ours. `uses` has one entry a section.
pub fn offer(sections: &[Section], local: &Local<'_>, uses: &[Use]) -> String {
    // What is sent is known once it has been answered.
    describe(sections, uses, local, "actpass", &mut Plan::default())
}

/// What became of an offer of ours: each section sends what the answer leaves of its formats and extensions; nothing, where
/// it leaves none.
pub fn accept(answer: &Description, local: &Local<'_>, uses: &[Use]) -> Plan {
    // `actpass` in an answer is against the rule (RFC 8842 §5.3); those who write it are active.
    let role = if answer.setup == Setup::Passive { Role::Client } else { Role::Server };
    let mut plan = Plan::new(local, answer, role);
    for (section, usage) in answer.sections.iter().zip(uses) {
        let Use::Send { track, ssrc, rtx, stream, .. } = usage else { continue };
        if section.is_rejected || section.formats.is_empty() || !section.direction.receives() {
            continue;
        }
        let mut extensions = ExtensionMap::default();
        accepted(section, usage).for_each(|(id, extension)| extensions.set(extension, id));
        plan.send.push(Send {
            mid: section.mid.clone(),
            track: *track,
            ssrc: *ssrc,
            rtx: *rtx,
            cname: cname_of(stream),
            formats: preferred(section, usage),
            extensions,
            playout: local.playout.filter(|_| section.kind == Kind::Video),
        });
    }
    plan
}

fn cname_of(stream: &str) -> String {
    stream.split('|').next().unwrap_or_default().to_owned()
}

/// Writes a description; what the sections in it receive and send goes into `plan`.
fn describe(sections: &[Section], uses: &[Use], local: &Local<'_>, setup: &str, plan: &mut Plan) -> String {
    let answered: Vec<(&Section, &Use, bool)> =
        sections.iter().zip(uses).map(|(section, usage)| (section, usage, section.is_rejected || !is_usable(section))).collect();
    let bundle: String = answered.iter().filter(|(_, _, rejected)| !rejected).fold(String::new(), |b, (s, ..)| b + " " + &s.mid);
    let mut sdp = format!(
        "v=0\r\no=- {} {} IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE{bundle}\r\na=ice-lite\r\na=extmap-allow-mixed\r\na=msid-semantic: WMS *\r\n",
        local.session_id, local.version
    );
    let mut has_candidates = false;
    for (section, usage, is_rejected) in answered {
        if is_rejected {
            let _ = write!(
                sdp,
                "m={} 0 {} {}\r\nc=IN IP4 0.0.0.0\r\na=mid:{}\r\na=inactive\r\n",
                section.kind.name(),
                section.proto,
                section.fmt,
                section.mid
            );
            continue;
        }
        let in_order = preferred(section, usage);
        // With redundancy first: whoever sends takes the first one.
        let with_rtx = in_order.iter().flat_map(|f| [f.red.as_ref().map(|(pt, _)| *pt), Some(f.payload_type), f.rtx]).flatten();
        let formats = with_rtx.map(|pt| pt.to_string()).collect::<Vec<_>>().join(" ");
        let formats = if section.kind == Kind::Application { section.fmt.clone() } else { formats };
        let _ = write!(sdp, "m={} 9 {} {formats}\r\nc=IN IP4 0.0.0.0\r\n", section.kind.name(), section.proto);
        if !has_candidates {
            has_candidates = true;
            for line in local.candidates.lines() {
                let _ = write!(sdp, "a={line}\r\n");
            }
            sdp.push_str("a=end-of-candidates\r\n");
        }
        let Credentials { ufrag, pwd } = local.credentials;
        let _ = write!(
            sdp,
            "a=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\na=fingerprint:sha-256 {}\r\na=setup:{setup}\r\na=mid:{}\r\n",
            local.fingerprint, section.mid
        );
        match section.kind {
            Kind::Application => {
                let port = section.sctp_port.unwrap_or(5000);
                let _ = write!(sdp, "a=sctp-port:{port}\r\na=max-message-size:{}\r\n", sctp::MESSAGE_MAX);
            }
            Kind::Audio | Kind::Video => media(&mut sdp, section, usage, local, plan),
        }
    }
    sdp
}

fn is_usable(section: &Section) -> bool {
    section.kind == Kind::Application || !section.formats.is_empty()
}

/// Extensions that an answer takes up: all that we know. Mid and rid are kept on every section: Chromium later offers only
/// what all sections of a kind have agreed to. The dependency descriptor is for AV1: VP9 has its own.
fn accepted<'a>(section: &'a Section, usage: &'a Use) -> impl Iterator<Item = (u8, Extension)> + 'a {
    let codec = match usage {
        Use::Send { codec, .. } => *codec,
        Use::Receive { prefer, .. } => *prefer,
        Use::Keep { .. } | Use::Data | Use::Idle => None,
    };
    section.extensions.iter().copied().filter(move |(_, e)| match e {
        Extension::DependencyDescriptor => codec == Some(Codec::Av1) || matches!(usage, Use::Keep { .. }),
        _ => true,
    })
}

/// Formats in the order of the answer, without what the publisher does not allow: a publisher sends the first one.
fn preferred(section: &Section, usage: &Use) -> Vec<OfferedFormat> {
    let mut formats = section.formats.clone();
    let redundancy = match usage {
        Use::Receive { voice, .. } => voice.redundancy,
        Use::Send { redundancy, .. } => *redundancy,
        Use::Keep { .. } | Use::Data | Use::Idle => true,
    };
    if !redundancy {
        formats.iter_mut().for_each(|f| f.red = None);
    }
    if let Use::Receive { prefer: Some(codec), .. } = usage {
        formats.sort_by_key(|f| f.format.codec != *codec);
    }
    formats
}

fn media(sdp: &mut String, section: &Section, usage: &Use, local: &Local<'_>, plan: &mut Plan) {
    let mut extensions = ExtensionMap::default();
    for (id, extension) in accepted(section, usage) {
        extensions.set(extension, id);
        let _ = write!(sdp, "a=extmap:{id} {}\r\n", extension.uri());
    }
    let direction = match usage {
        Use::Receive { .. } => "recvonly",
        Use::Send { .. } | Use::Keep { .. } => "sendonly",
        Use::Data | Use::Idle => "inactive",
    };
    let _ = write!(sdp, "a={direction}\r\na=rtcp-mux\r\na=rtcp-rsize\r\n");
    let formats = preferred(section, usage);
    for format in &formats {
        let pt = format.payload_type;
        if let Some((red, parameters)) = &format.red {
            let _ =
                write!(sdp, "a=rtpmap:{red} red/{}\r\na=fmtp:{red} {parameters}\r\n", format.rtpmap.split_once('/').unwrap_or_default().1);
        }
        let _ = write!(sdp, "a=rtpmap:{pt} {}\r\n", format.rtpmap);
        if extensions.id(Extension::TransportCc).is_some() {
            let _ = write!(sdp, "a=rtcp-fb:{pt} transport-cc\r\n");
        }
        if section.kind == Kind::Video {
            let _ = write!(sdp, "a=rtcp-fb:{pt} ccm fir\r\na=rtcp-fb:{pt} nack\r\na=rtcp-fb:{pt} nack pli\r\n");
        }
        if let Some(fmtp) = parameters(format, usage) {
            let _ = write!(sdp, "a=fmtp:{pt} {fmtp}\r\n");
        }
        if let Some(rtx) = format.rtx {
            let clock = format.format.codec.clock_rate();
            let _ = write!(sdp, "a=rtpmap:{rtx} rtx/{clock}\r\na=fmtp:{rtx} apt={pt}\r\n");
        }
    }
    match usage {
        Use::Receive { track, voice, .. } => {
            for rid in &section.rids {
                let _ = write!(sdp, "a=rid:{rid} recv\r\n");
            }
            if !section.rids.is_empty() {
                let _ = write!(sdp, "a=simulcast:recv {}\r\n", section.rids.join(";"));
            }
            plan.receive.push(Receive {
                mid: section.mid.clone(),
                track: *track,
                formats,
                extensions,
                rids: section.rids.clone(),
                redundancy: voice.redundancy,
                ssrcs: section.ssrcs.clone(),
                repairs: section.repairs.clone(),
            });
        }
        Use::Send { track, ssrc, rtx, stream, label, .. } => {
            let cname = cname_of(stream);
            sources(sdp, [*ssrc, *rtx], &formats, &cname, &format!("{stream} {label}"));
            let playout = local.playout.filter(|_| section.kind == Kind::Video);
            plan.send.push(Send { mid: section.mid.clone(), track: *track, ssrc: *ssrc, rtx: *rtx, cname, formats, extensions, playout });
        }
        Use::Keep { ssrc, rtx, stream } => sources(sdp, [*ssrc, *rtx], &formats, "postern", &format!("postern {stream}")),
        Use::Data | Use::Idle => {}
    }
}

/// What is sent in a section, and what it is part of.
fn sources(sdp: &mut String, [ssrc, rtx]: [Ssrc; 2], formats: &[OfferedFormat], cname: &str, msid: &str) {
    let _ = write!(sdp, "a=msid:{msid}\r\n");
    let repairs = formats.iter().any(|f| f.rtx.is_some());
    if repairs {
        let _ = write!(sdp, "a=ssrc-group:FID {ssrc} {rtx}\r\n");
    }
    for ssrc in [Some(ssrc), Some(rtx).filter(|_| repairs)].into_iter().flatten() {
        let _ = write!(sdp, "a=ssrc:{ssrc} cname:{cname}\r\na=ssrc:{ssrc} msid:{msid}\r\n");
    }
}

/// Parameters of a format as we answer them: the offerer's, and for a publisher of Opus what it asked to be told to send.
fn parameters(format: &OfferedFormat, usage: &Use) -> Option<String> {
    let offered = format.fmtp.as_deref();
    let Use::Receive { voice, .. } = usage else { return offered.map(str::to_owned) };
    let wishes = [("usedtx=1", voice.dtx), ("stereo=1", voice.stereo)];
    let added = wishes.into_iter().filter(|(wish, is_wanted)| {
        format.format.codec == Codec::Opus && *is_wanted && !offered.is_some_and(|o| o.split(';').any(|p| p.trim() == *wish))
    });
    let all: Vec<&str> = offered.into_iter().chain(added.map(|(wish, _)| wish)).collect();
    (!all.is_empty()).then(|| all.join(";"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: &str = include_str!("../../tests/vectors/offer_chromium.sdp");

    fn run(offer: &str, uses: &[Use]) -> (String, Plan) {
        let credentials = Credentials { ufrag: "00abcdefghij".into(), pwd: "p".repeat(24) };
        let candidates =
            Candidates { udp: vec!["192.0.2.1:443".parse().expect("a literal")], tcp: vec!["192.0.2.1:443".parse().expect("a literal")] };
        let local =
            Local { credentials: &credentials, fingerprint: "AA:BB", candidates: &candidates, session_id: 7, version: 2, playout: None };
        answer(&Description::parse(offer).expect("Chromium's offer"), &local, uses)
    }

    #[test]
    fn an_answer_takes_what_is_published_and_sends_what_is_assigned() {
        let (stream, label) = ("PA_x|TR_y".into(), "TR_y".into());
        let send = Use::Send { track: TrackId(5), ssrc: Ssrc(99), rtx: Ssrc(100), codec: None, redundancy: true, stream, label };
        let (sdp, plan) =
            run(OFFER, &[send, Use::Receive { track: TrackId(6), prefer: Some(Codec::Vp9), voice: Voice::default() }, Use::Data]);
        for line in [
            "a=group:BUNDLE 0 1 2",
            "a=ice-lite",
            "a=candidate:1 1 udp 2130706431 192.0.2.1 443 typ host",
            "a=candidate:101 1 tcp 1526726655 192.0.2.1 443 typ host tcptype passive",
            "a=setup:passive",
            "a=msid:PA_x|TR_y TR_y",
            "a=simulcast:recv q;h;f",
            "a=rtcp-fb:96 transport-cc",
            "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
            "m=video 9 UDP/TLS/RTP/SAVPF 98 96 97 102 103 45",
            "a=rtcp-fb:96 nack",
            "a=fmtp:97 apt=96",
            "m=audio 9 UDP/TLS/RTP/SAVPF 63 111 0 8",
            "a=rtpmap:63 red/48000/2",
            "a=fmtp:63 111/111",
            "a=rtcp-fb:111 transport-cc",
        ] {
            assert!(sdp.lines().any(|l| l == line), "{line} is not in\n{sdp}");
        }
        for absent in ["a=ssrc-group:FID 99", "a=rtcp-fb:111 nack", "telephone-event"] {
            assert!(!sdp.contains(absent), "{absent} is in\n{sdp}");
        }
        assert_eq!(plan.receive[0].rids, ["q", "h", "f"]);
        assert_eq!(plan.receive[0].extensions.id(Extension::TransportCc), Some(4));
        assert_eq!(plan.send[0].extensions.id(Extension::TransportCc), Some(4));
        assert_eq!((plan.role, plan.send[0].ssrc), (Role::Server, Ssrc(99)));
        // The answer is a description that others can read.
        let parsed = sdp_types::Session::parse(sdp.as_bytes()).expect("well-formed");
        assert_eq!(parsed.medias.len(), 3);
    }

    fn receive(track: u64, voice: Voice) -> Use {
        Use::Receive { track: TrackId(track), prefer: None, voice }
    }

    #[test]
    fn a_voice_is_sent_as_its_publisher_wishes() {
        let rows = [
            (Voice { redundancy: true, dtx: true, stereo: true }, "63 111 0 8", "minptime=10;useinbandfec=1;usedtx=1;stereo=1"),
            (Voice { dtx: true, ..Voice::default() }, "111 0 8", "minptime=10;useinbandfec=1;usedtx=1"),
            (Voice::default(), "111 0 8", "minptime=10;useinbandfec=1"),
        ];
        for (voice, formats, parameters) in rows {
            let (sdp, plan) = run(OFFER, &[receive(1, voice), receive(2, voice), Use::Data]);
            for line in [format!("m=audio 9 UDP/TLS/RTP/SAVPF {formats}"), format!("a=fmtp:111 {parameters}")] {
                assert!(sdp.lines().any(|l| l == line), "{line} is not in\n{sdp}");
            }
            assert_eq!(plan.receive[0].redundancy, voice.redundancy);
            assert_eq!(plan.receive[0].formats[0].red.is_some(), voice.redundancy);
        }
    }

    #[test]
    fn a_publisher_of_g711_is_answered_with_it_first() {
        for (codec, order) in [(Codec::Pcmu, "0 63 111 8"), (Codec::Pcma, "8 63 111 0")] {
            let voice = Voice { redundancy: true, ..Voice::default() };
            let (sdp, plan) = run(OFFER, &[Use::Receive { track: TrackId(1), prefer: Some(codec), voice }, Use::Idle, Use::Data]);
            assert!(sdp.lines().any(|l| l == format!("m=audio 9 UDP/TLS/RTP/SAVPF {order}")), "{sdp}");
            assert_eq!((plan.receive[0].formats[0].format.codec, codec.clock_rate()), (codec, 8_000));
        }
    }

    #[test]
    fn an_offer_of_ours_is_read_and_its_answer_says_what_is_sent() {
        let sections = [
            section("0", Kind::Application, None),
            section("1", Kind::Audio, Some(Codec::Opus)),
            section("2", Kind::Video, Some(Codec::Vp8)),
            section("3", Kind::Video, Some(Codec::Av1)),
        ];
        let send = |at: u64, codec| Use::Send {
            track: TrackId(at),
            ssrc: Ssrc(10 * at as u32 + 1),
            rtx: Ssrc(10 * at as u32),
            codec: Some(codec),
            redundancy: true,
            stream: "PA_x|TR_y".into(),
            label: "TR_y".into(),
        };
        let uses = [Use::Data, send(1, Codec::Opus), send(2, Codec::Vp8), Use::Idle];
        let credentials = Credentials { ufrag: "00abcdefghij".into(), pwd: "p".repeat(24) };
        let candidates = Candidates::default();
        let local =
            Local { credentials: &credentials, fingerprint: "AA:BB", candidates: &candidates, session_id: 7, version: 2, playout: None };
        let sdp = offer(&sections, &local, &uses);
        let read = Description::parse(&sdp).expect("well-formed");
        assert_eq!(read.setup, Setup::ActPass);
        let directions: Vec<_> = read.sections.iter().map(|s| (s.kind, s.direction.sends(), s.formats.len())).collect();
        assert_eq!(
            directions,
            [(Kind::Application, true, 0), (Kind::Audio, true, 1), (Kind::Video, true, 1), (Kind::Video, false, 1)],
            "{sdp}"
        );
        assert_eq!(read.sections[2].repairs, [(21, 20)]);
        assert_eq!(read.sections[1].msid, Some(("PA_x|TR_y".into(), "TR_y".into())));
        // The client takes the sound and cannot decode the picture.
        let answer = sdp
            .replace("a=setup:actpass", "a=setup:active")
            .replace("a=sendonly", "a=recvonly")
            .replace("m=video 9 UDP/TLS/RTP/SAVPF 96 97", "m=video 0 UDP/TLS/RTP/SAVPF 96 97");
        let plan = accept(&Description::parse(&answer).expect("well-formed"), &local, &uses);
        assert_eq!(plan.role, Role::Server);
        assert_eq!(plan.send.iter().map(|s| (s.track, s.formats[0].payload_type)).collect::<Vec<_>>(), [(TrackId(1), 111)]);
        assert_eq!(plan.send[0].formats[0].red.as_ref().map(|(pt, _)| *pt), Some(63));
    }

    #[test]
    fn playout_delays_as_the_extension_has_them() {
        let rows = [
            (0, 0, None),
            (100, 0, Some([0x00, 0xAF, 0xFF])),
            (0, 400, Some([0x00, 0x00, 0x28])),
            (200, 100, Some([0x01, 0x40, 0x14])),
            (40_950, 99_999, Some([0xFF, 0xFF, 0xFF])),
        ];
        for (min, max, want) in rows {
            assert_eq!(Playout::from_millis(min, max).map(Playout::bytes), want, "{min} {max}");
        }
    }

    #[test]
    fn we_are_the_client_only_for_those_who_insist() {
        let (sdp, plan) = run(&OFFER.replace("a=setup:actpass", "a=setup:passive"), &[Use::Idle, Use::Idle, Use::Data]);
        assert_eq!(plan.role, Role::Client);
        assert!(sdp.contains("a=setup:active") && !sdp.contains("a=setup:passive"));
    }

    #[test]
    fn a_section_without_a_format_of_ours_is_rejected_alone() {
        let offer = OFFER.replace("m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110", "m=audio 9 UDP/TLS/RTP/SAVPF 63 13");
        let (sdp, plan) = run(&offer, &[receive(1, Voice::default()), receive(2, Voice::default()), Use::Data]);
        assert!(sdp.contains("m=audio 0 UDP/TLS/RTP/SAVPF 63 13\r\n") && sdp.contains("a=group:BUNDLE 1 2\r\n"), "{sdp}");
        assert_eq!(plan.receive.len(), 1);
    }
}
