//! Descriptions as a client writes them (RFC 9429), and what it reads in answers.

use crate::engine::ice::Credentials;
use crate::wire::rtp::Extension;
use crate::wire::sdp::{Description, Fingerprint, Setup};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

pub const OPUS: u8 = 111;
pub const VP8: u8 = 96;
/// Ids of the header extensions that are offered.
pub const MID: u8 = 1;
pub const RID: u8 = 2;
pub const LEVEL: u8 = 3;
/// Simulcast layers, lowest first.
pub const RIDS: [&str; 3] = ["q", "h", "f"];
/// Names of what is published, by which the server tells it apart.
pub const AUDIO_CID: &str = "load-audio";
pub const VIDEO_CID: &str = "load-video";

/// Our half of the transport.
pub struct Local<'a> {
    pub credentials: &'a Credentials,
    pub fingerprint: &'a str,
    pub version: u32,
}

/// The offer. Sections keep their order: those that send, then those that receive in pairs as they were asked for.
pub fn write(local: &Local<'_>, sections: &[Section]) -> String {
    let mids: Vec<String> = (0..sections.len()).map(|mid| mid.to_string()).collect();
    let mut text = format!(
        "v=0\r\no=- 1 {} IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE {}\r\na=msid-semantic: WMS *\r\n",
        local.version,
        mids.join(" ")
    );
    for (mid, section) in sections.iter().enumerate() {
        let (kind, payload_type) = if section.is_video() { ("video", VP8) } else { ("audio", OPUS) };
        let _ = write!(
            text,
            "m={kind} 9 UDP/TLS/RTP/SAVPF {payload_type}\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:{}\r\na=ice-pwd:{}\r\n\
             a=ice-options:trickle\r\na=fingerprint:sha-256 {}\r\na=setup:actpass\r\na=mid:{mid}\r\na=rtcp-mux\r\na=rtcp-rsize\r\n",
            local.credentials.ufrag, local.credentials.pwd, local.fingerprint
        );
        for (id, extension) in [(MID, Extension::Mid), (RID, Extension::Rid), (LEVEL, Extension::AudioLevel)] {
            let _ = write!(text, "a=extmap:{id} {}\r\n", extension.uri());
        }
        text.push_str(match section.is_video() {
            true => "a=rtpmap:96 VP8/90000\r\na=rtcp-fb:96 nack\r\na=rtcp-fb:96 nack pli\r\na=rtcp-fb:96 ccm fir\r\n",
            false => "a=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10;useinbandfec=1\r\n",
        });
        match section {
            Section::SendsAudio { ssrc } => {
                // Whoever has no layers names its source, as browsers do: some servers know it by nothing else.
                let _ = write!(text, "a=sendonly\r\na=msid:load {AUDIO_CID}\r\na=ssrc:{ssrc} cname:load\r\n");
            }
            Section::SendsVideo { layers } => {
                let _ = write!(text, "a=sendonly\r\na=msid:load {VIDEO_CID}\r\n");
                let rids = &RIDS[..usize::from(*layers)];
                for rid in rids {
                    let _ = write!(text, "a=rid:{rid} send\r\n");
                }
                let _ = write!(text, "a=simulcast:send {}\r\n", rids.join(";"));
            }
            Section::Receives { .. } => text.push_str("a=recvonly\r\n"),
        }
    }
    text
}

/// A media section of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    SendsAudio { ssrc: u32 },
    SendsVideo { layers: u8 },
    Receives { is_video: bool },
}

impl Section {
    pub fn is_video(self) -> bool {
        matches!(self, Self::SendsVideo { .. } | Self::Receives { is_video: true })
    }
}

/// The server's half of the transport, from its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub credentials: Credentials,
    pub fingerprint: Fingerprint,
    /// It opens the DTLS handshake itself (RFC 8842 §5.2).
    pub is_active: bool,
    pub candidates: Vec<Candidate>,
}

/// Where the server takes media (RFC 8839 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub is_tcp: bool,
    pub address: SocketAddr,
}

impl Remote {
    /// The nearest candidate of a transport, in the family in which signalling was reached: at its address before all others.
    pub fn address(&self, is_tcp: bool, front: IpAddr) -> Option<SocketAddr> {
        let fitting = self.candidates.iter().filter(|c| c.is_tcp == is_tcp).map(|c| c.address);
        fitting.filter(|a| a.is_ipv6() == front.is_ipv6()).min_by_key(|a| a.ip() != front)
    }
}

pub fn read(answer: &str) -> Result<Remote, String> {
    let description = Description::parse(answer).map_err(|e| e.to_string())?;
    let candidates = answer.lines().filter_map(|line| candidate(line.trim_start_matches("a=")));
    Ok(Remote {
        credentials: Credentials { ufrag: description.ufrag, pwd: description.pwd },
        fingerprint: description.fingerprint,
        is_active: description.setup == Setup::Active,
        candidates: candidates.collect(),
    })
}

/// A candidate for RTP; over TCP, one that waits for connections (RFC 6544 §4.5).
pub fn candidate(line: &str) -> Option<Candidate> {
    let mut words = line.strip_prefix("candidate:")?.split_ascii_whitespace();
    let (_, component, transport, _) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let (ip, port) = (words.next()?.parse::<IpAddr>().ok()?, words.next()?.parse().ok()?);
    let is_tcp = transport.eq_ignore_ascii_case("tcp");
    let is_usable = if is_tcp { line.contains("tcptype passive") } else { transport.eq_ignore_ascii_case("udp") };
    (component == "1" && is_usable).then_some(Candidate { is_tcp, address: SocketAddr::new(ip, port) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_reads_back() {
        let credentials = Credentials { ufrag: "abcd".into(), pwd: "a-password-that-is-long-enough".into() };
        let local = Local { credentials: &credentials, fingerprint: "AA:BB", version: 1 };
        let sections = [Section::SendsAudio { ssrc: 9 }, Section::SendsVideo { layers: 3 }, Section::Receives { is_video: true }];
        let text = write(&local, &sections);
        let offer = Description::parse(&text).expect("well-formed");
        assert_eq!((offer.ufrag.as_str(), offer.sections.len()), ("abcd", 3));
        assert_eq!(offer.sections[1].rids, RIDS);
        assert!(offer.sections[2].direction.receives() && !offer.sections[2].direction.sends());
    }

    #[test]
    fn candidates_are_taken() {
        let rows = [
            ("candidate:1 1 udp 2130706431 192.0.2.1 443 typ host", Some((false, "192.0.2.1:443"))),
            ("candidate:2 1 tcp 1518280447 192.0.2.1 443 typ host tcptype passive", Some((true, "192.0.2.1:443"))),
            ("candidate:2 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active", None),
            ("candidate:3 2 udp 1 192.0.2.1 443 typ host", None),
            ("candidate:4 1 UDP 1 2001:db8::1 7443 typ host generation 0", Some((false, "[2001:db8::1]:7443"))),
            ("candidate:5 1 udp", None),
        ];
        for (line, want) in rows {
            let want = want.map(|(is_tcp, address)| Candidate { is_tcp, address: address.parse().expect("an address") });
            assert_eq!(candidate(line), want, "{line}");
        }
    }
}
