//! Two sessions with keys, and the clients at their other ends: what is done to media on its way through.

use super::negotiate::{Candidates, Local, Use, Voice, answer};
use super::*;
use crate::base::buf::{PacketBuf, Pool};
use crate::base::id::{ClientAddr, SocketId, Ssrc};
use crate::engine::srtp::{Receiver, Sender};
use crate::wire::rtp::{self, Extension};
use crate::wire::sdp::Description;
use crate::wire::{red, twcc};

const OFFER: &str = include_str!("../../tests/vectors/offer_chromium.sdp");
const PATH: PathId = PathId::Udp {
    socket: SocketId(0),
    local: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    remote: ClientAddr(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9)),
};
const SOURCE: u32 = 1001;
const PICTURE_SOURCE: u32 = 2001;
const OURS: u32 = 99;
const SOUND: TrackId = TrackId(5);

struct End {
    session: Session,
    to_us: Sender,
    from_us: Receiver,
}

#[allow(clippy::disallowed_methods, reason = "any anchor will do: only differences to it are used")]
fn end(offer: &str, uses: &[Use]) -> End {
    let identity = Identity::generate().expect("a certificate");
    let credentials = Credentials { ufrag: "00abcdefghij".into(), pwd: "p".repeat(24) };
    let anchor = Anchor::new(std::time::Instant::now());
    let mut session = Session::new(at(0), SessionId(1), anchor, identity, &credentials, 7);
    let candidates = Candidates::default();
    let local = Local { credentials: &credentials, fingerprint: "AA", candidates: &candidates, session_id: 7, version: 2, playout: None };
    session.apply(Instant::from_millis(0), answer(&Description::parse(offer).expect("Chromium's offer"), &local, uses).1);
    let (key, salt) = Profile::AeadAes128Gcm.lengths();
    let material: Vec<u8> = (0..2 * (key + salt) as u8).collect();
    let keys = |is_client| srtp::from_exported(Profile::AeadAes128Gcm, &material, is_client).expect("keys");
    (session.receiver, session.hearing.sender) = Some(keys(false)).unzip();
    session.state = State::Live;
    let (from_us, to_us) = keys(true);
    End { session, to_us, from_us }
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(1_000 + ms)
}

fn publisher(redundancy: bool) -> End {
    let voice = Voice { redundancy, ..Voice::default() };
    end(OFFER, &[Use::Receive { track: SOUND, prefer: None, voice }, Use::Idle, Use::Data])
}

fn hearer(offer: &str) -> End {
    let (stream, label) = ("PA_x|TR_y".into(), "TR_y".into());
    end(
        offer,
        &[Use::Send { track: SOUND, ssrc: Ssrc(OURS), rtx: Ssrc(98), codec: None, redundancy: true, stream, label }, Use::Idle, Use::Data],
    )
}

impl End {
    /// A packet of the client's arrives; what it carries, with the packet, and what it brings again.
    fn publish(&mut self, pool: &mut Pool, payload_type: u8, sequence: u16, payload: &[u8]) -> (Media, PacketBuf, Vec<Media>) {
        let mut bytes = [0; 512];
        let timestamp = u32::from(sequence) * 960;
        let fields = rtp::Outgoing { marker: false, has_padding: false, payload_type, sequence, timestamp, ssrc: SOURCE };
        let header = rtp::write_header(&mut bytes, fields, &[], &[]).expect("it fits");
        bytes[header..header + payload.len()].copy_from_slice(payload);
        let len = header + payload.len() + self.to_us.rtp_overhead();
        self.to_us.protect_rtp(&mut bytes[..len], header, SOURCE, u64::from(sequence));
        let mut buf = pool.take();
        buf.fill(&bytes[..len]);
        let media = self.session.handle_rtp(at(u64::from(sequence) * 20), PATH, &mut buf, &mut Vec::new());
        (media.expect("a packet of the plan").expect("media"), buf, self.session.take_recovered())
    }

    /// What the client gets of it: header, payload, transport-wide number.
    fn hear(&mut self, media: &Media, packet: &[u8]) -> (rtp::Header, Vec<u8>, Option<u16>) {
        let mut slot = [0; 1024];
        let len = self.session.forward(at(0), media, packet, Passage::Continue { spatial_max: 0 }, 0, &mut slot).expect("forwarded");
        let (header, len, _) = self.from_us.unprotect_rtp(&mut slot[..len]).expect("protected by us");
        let payload = header.payload(&slot[..len]).expect("well-formed");
        let id = self.session.hearing.streams()[0].plan.extensions.id(Extension::TransportCc);
        let number = header.extensions(&slot[..len]).find(|(i, _)| Some(*i) == id).map(|(_, n)| u16::from_be_bytes([n[0], n[1]]));
        let payload = slot[payload].to_vec();
        (header, payload, number)
    }
}

/// A redundant payload: `earlier` from one packet before, then `newest`.
fn redundant(earlier: &[u8], newest: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; red::growth(960, earlier).expect("it fits")];
    red::write_before(&mut payload, 111, 960, earlier);
    payload.extend_from_slice(newest);
    payload
}

fn without_redundancy() -> String {
    OFFER.lines().filter(|l| !l.starts_with("a=rtpmap:63") && !l.starts_with("a=fmtp:63")).map(|l| format!("{l}\r\n")).collect()
}

#[test]
fn redundancy_goes_to_those_who_take_it_and_repairs_for_the_others() {
    let (mut pool, mut publisher) = (Pool::new(4), publisher(true));
    let (mut takes_it, mut does_not) = (hearer(&OFFER.replace("111", "109")), hearer(&without_redundancy()));
    let (first, packet, recovered) = publisher.publish(&mut pool, 63, 1, &[111, b'a', b'a']);
    assert_eq!(recovered.len(), 0, "nothing is known to be lost before the first");
    assert_eq!(takes_it.hear(&first, &packet).1, [109, b'a', b'a'], "its parts bear the receiver's payload type");
    assert_eq!(does_not.hear(&first, &packet).1, b"aa");
    // The second is lost and comes again with the third.
    let (third, packet, recovered) = publisher.publish(&mut pool, 63, 3, &redundant(b"bbb", b"cc"));
    let [second] = &recovered[..] else { panic!("{recovered:?}") };
    assert_eq!((second.sequence, second.header.timestamp), (third.sequence - 1, 1_920));
    let (header, payload, _) = does_not.hear(second, &packet);
    assert_eq!((header.payload_type, header.timestamp, &payload[..]), (111, 1_920, &b"bbb"[..]));
    let (header, payload, _) = does_not.hear(&third, &packet);
    assert_eq!((header.payload_type, &payload[..]), (111, &b"cc"[..]));
    let (header, payload, _) = takes_it.hear(&third, &packet);
    assert_eq!(
        (header.payload_type, payload),
        (63, {
            let mut want = redundant(b"bbb", b"cc");
            red::set_payload_type(&mut want, 109);
            want
        })
    );
    let again = publisher.publish(&mut pool, 63, 4, &redundant(b"cc", b"dd"));
    assert!(again.2.is_empty(), "nothing is lost");
}

#[test]
fn redundancy_is_made_for_a_publisher_who_has_none() {
    let (mut pool, mut publisher) = (Pool::new(4), publisher(true));
    let (mut takes_it, mut does_not) = (hearer(OFFER), hearer(&without_redundancy()));
    let (first, first_packet, _) = publisher.publish(&mut pool, 111, 1, b"aa");
    let (mut second, mut packet, _) = publisher.publish(&mut pool, 111, 2, b"bbb");
    assert!(second.may_repeat && second.newest.is_none());
    second.repeat(&mut packet, &first, &first_packet);
    assert_eq!(takes_it.hear(&second, &packet).1, redundant(b"aa", b"bbb"));
    assert_eq!(does_not.hear(&second, &packet).1, b"bbb");
    let (mut fourth, mut packet, _) = publisher.publish(&mut pool, 111, 40, b"dd");
    fourth.repeat(&mut packet, &second, &[0; 100]);
    assert_eq!(fourth.newest, None, "too far back");
    let (long, long_packet, _) = publisher.publish(&mut pool, 111, 41, &[b'e'; 400]);
    let (mut longer, mut packet, _) = publisher.publish(&mut pool, 111, 42, &[b'f'; 450]);
    longer.repeat(&mut packet, &long, &long_packet);
    assert_eq!(longer.payload.len(), 450 + 400 + 5);
    let mut again = longer.clone();
    again.repeat(&mut packet, &long, &long_packet);
    assert_eq!(again.payload.len(), 450 + 400 + 5, "longer than what passes everywhere");
}

#[test]
fn rubbish_under_the_type_of_redundancy_is_malformed() {
    let mut publisher = publisher(true);
    let mut bytes = [0; 64];
    let fields = rtp::Outgoing { marker: false, has_padding: false, payload_type: 63, sequence: 1, timestamp: 0, ssrc: SOURCE };
    let header = rtp::write_header(&mut bytes, fields, &[], &[]).expect("it fits");
    bytes[header] = 0xFF;
    let len = header + 1 + publisher.to_us.rtp_overhead();
    publisher.to_us.protect_rtp(&mut bytes[..len], header, SOURCE, 1);
    let outcome = publisher.session.handle_rtp(at(0), PATH, &mut bytes[..len], &mut Vec::new());
    assert_eq!(outcome.err(), Some(SessionDrop::MalformedRtp));
}

#[test]
fn what_goes_out_is_numbered_and_told_of() {
    let (mut pool, mut publisher, mut hearer) = (Pool::new(4), publisher(false), hearer(OFFER));
    for sequence in 1..=4 {
        let (media, packet, _) = publisher.publish(&mut pool, 111, sequence, b"x");
        assert_eq!(hearer.hear(&media, &packet).2, Some(sequence - 1));
    }
    let mut feedback = Vec::new();
    twcc::write_feedback(&mut feedback, 1, OURS, 0, 0, &[Some(1_000), None, Some(3_000)]);
    hearer.to_us.protect_rtcp(&mut feedback);
    let mut out = Vec::new();
    hearer.session.handle_rtcp(at(200), PATH, &mut feedback, &mut out).expect("feedback");
    assert!(matches!(out[..], [Effect::Told(Told { received: 2, lost: 1 })]), "{out:?}");
}

#[test]
fn a_goodbye_ends_a_layer() {
    let voice = Voice::default();
    let mut publisher = end(OFFER, &[Use::Idle, Use::Receive { track: TrackId(6), prefer: None, voice }, Use::Data]);
    let mut header = [0x80, 96, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
    header[8..].copy_from_slice(&PICTURE_SOURCE.to_be_bytes());
    publisher.session.adopt_source(0, 2, &rtp::Header::read(&header).expect("a header"), 5);
    let mut bye = Vec::new();
    crate::wire::rtcp::write_bye(&mut bye, &[1, PICTURE_SOURCE]);
    publisher.to_us.protect_rtcp(&mut bye);
    let mut out = Vec::new();
    publisher.session.handle_rtcp(at(0), PATH, &mut bye, &mut out).expect("a goodbye");
    assert!(matches!(out[..], [Effect::LayerEnded { track: TrackId(6), layer: 2 }]), "{out:?}");
}
