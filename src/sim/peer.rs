//! A participant of the simulation: ICE, DTLS, SRTP and SCTP are str0m's, so that our engines cannot agree with a mistake of
//! their own. What it sends is carried bare, in frames, or through a TURN client that speaks just enough of RFC 8656.

use super::Way;
use super::camera::{self, Camera, Eyes, LAYERS};
use crate::crypto::{HmacSha1, long_term_key};
use crate::engine::ice::Credentials;
use crate::wire::stun::{Class, Message, Method, TransactionId, Writer, attr};
use crate::wire::turn::channel_data;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::channel::ChannelId;
use str0m::media::{Direction, MediaKind, Mid, Pt, Rid, Simulcast, SimulcastLayer};
use str0m::net::{Protocol, Receive};
use str0m::rtp::{RtpPacket, RtpWrite};
use str0m::{Candidate, Event, Input, Output, Rtc};

const OPUS: u8 = 111;
const VP8: u8 = 96;
/// Names of the camera's layers, lowest first.
const RIDS: [&str; LAYERS] = ["q", "h", "f"];

pub struct Peer {
    rtc: Rtc,
    local: SocketAddr,
    pub way: Way,
    relay: Option<RelayClient>,
    pending: Option<SdpPendingOffer>,
    voice: Mid,
    picture: Option<Mid>,
    camera: Camera,
    /// Its first frame is out.
    films: bool,
    /// What came of each picture, by SSRC.
    pub eyes: BTreeMap<u32, Eyes>,
    channel: Option<ChannelId>,
    sequence: u64,
    /// Packets sent.
    pub spoken: u64,
    outgoing: Vec<Vec<u8>>,
    deadline: Instant,
    pub credentials: Option<Credentials>,
    pub is_connected: bool,
    /// Sequence numbers of received media, by SSRC, in the order they came.
    pub heard: Vec<(u32, u64, Vec<u8>)>,
    pub messages: Vec<Vec<u8>>,
    /// How far the sender reports of each voice were from the truth, by SSRC: least and most, us.
    pub clock_errors: BTreeMap<u32, (i64, i64)>,
    offer: String,
}

impl Peer {
    /// `films`: it publishes a camera too, and has a place for the picture of each other.
    pub fn new(now: Instant, local: SocketAddr, way: Way, relay: Option<RelayClient>, others: usize, films: bool) -> Self {
        let mut rtc = Rtc::builder().set_rtp_mode(true).clear_codecs().enable_opus(true, false).enable_vp8(films).build(now);
        rtc.add_local_candidate(Candidate::host(local, "udp").expect("an address"));
        let mut changes = rtc.sdp_api();
        let voice = changes.add_media(MediaKind::Audio, Direction::SendOnly, Some("s".into()), Some("t".into()), None);
        for _ in 1..others {
            changes.add_media(MediaKind::Audio, Direction::RecvOnly, None, None, None);
        }
        let picture = films.then(|| {
            let mut layers = Simulcast::new();
            for rid in RIDS {
                layers.add_send_layer(SimulcastLayer::new(rid));
            }
            let mid = changes.add_media(MediaKind::Video, Direction::SendOnly, Some("s".into()), Some("v".into()), Some(layers));
            for _ in 1..others {
                changes.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
            }
            mid
        });
        changes.add_channel("_reliable".into());
        let (offer, pending) = changes.apply().expect("there are changes");
        let offer = offer.to_sdp_string();
        Self {
            rtc,
            local,
            way,
            relay,
            pending: Some(pending),
            voice,
            picture,
            camera: Camera::default(),
            films: false,
            eyes: BTreeMap::new(),
            channel: None,
            sequence: 1000,
            spoken: 0,
            outgoing: Vec::new(),
            deadline: now,
            credentials: None,
            is_connected: false,
            heard: Vec::new(),
            messages: Vec::new(),
            clock_errors: BTreeMap::new(),
            offer,
        }
    }

    pub fn offer(&self) -> String {
        self.offer.clone()
    }

    pub fn accept(&mut self, answer: &str) {
        let answer = SdpAnswer::from_sdp_string(answer).expect("our own answer");
        let pending = self.pending.take().expect("one answer");
        self.rtc.sdp_api().accept_answer(pending, answer).expect("an answer to this offer");
        self.drain();
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    pub fn wake(&mut self, now: Instant) {
        let _ = self.rtc.handle_input(Input::Timeout(now));
        self.drain();
    }

    /// A packet from the server: unwrapped, then given to the peer.
    pub fn receive(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let payload = match &mut self.relay {
            Some(relay) => match relay.unwrap(bytes) {
                Some(payload) => payload,
                None => return,
            },
            None => bytes.to_vec(),
        };
        if let Ok(receive) = Receive::new(Protocol::Udp, from, self.local, &payload) {
            let _ = self.rtc.handle_input(Input::Receive(now, receive));
        }
        self.drain();
    }

    /// Sends one packet of its voice, recorded at `us`.
    pub fn speak(&mut self, now: Instant, us: u64) {
        if !self.is_connected {
            return;
        }
        self.sequence += 1;
        self.spoken += 1;
        let (sequence, time) = (self.sequence, (self.sequence * 960) as u32);
        let payload = [sequence.to_be_bytes(), us.to_be_bytes()].concat();
        if let Some(stream) = self.rtc.direct_api().stream_tx_by_mid(self.voice, None) {
            stream.write_rtp(RtpWrite::new(Pt::from(OPUS), sequence.into(), time, now, payload));
        }
        let _ = self.rtc.handle_input(Input::Timeout(now));
        self.drain();
    }

    /// Sends the next frame of its camera, taken at `us`.
    pub fn film(&mut self, now: Instant, us: u64) {
        let Some(mid) = self.picture.filter(|_| self.is_connected) else { return };
        for shot in self.camera.shoot(us) {
            if let Some(stream) = self.rtc.direct_api().stream_tx_by_mid(mid, Some(Rid::from(RIDS[shot.layer]))) {
                if !self.films {
                    // A publisher with room to spare: nothing that is asked for is refused.
                    stream.set_rtx_cache(1_024, std::time::Duration::from_secs(3), None);
                }
                let write = RtpWrite::new(Pt::from(VP8), shot.sequence.into(), shot.time, now, shot.payload);
                stream.write_rtp(write.marker(shot.marker).nackable(true));
            }
        }
        self.films = true;
        let _ = self.rtc.handle_input(Input::Timeout(now));
        self.drain();
    }

    pub fn send_message(&mut self, bytes: &[u8]) -> bool {
        let sent = self.channel.and_then(|id| self.rtc.channel(id)).is_some_and(|mut c| c.write(true, bytes).unwrap_or(false));
        self.drain();
        sent
    }

    pub fn take_outgoing(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.outgoing)
    }

    fn drain(&mut self) {
        loop {
            match self.rtc.poll_output() {
                Ok(Output::Timeout(at)) => {
                    self.deadline = at;
                    return;
                }
                Ok(Output::Transmit(transmit)) => {
                    let payload = transmit.contents.to_vec();
                    self.outgoing.push(match &mut self.relay {
                        Some(relay) => relay.wrap(transmit.destination, &payload),
                        None => payload,
                    });
                }
                Ok(Output::Event(event)) => match event {
                    Event::Connected => self.is_connected = true,
                    Event::ChannelOpen(id, _) => self.channel = Some(id),
                    Event::ChannelData(data) => self.messages.push(data.data),
                    Event::RtpPacket(packet) if *packet.header.payload_type == VP8 => {
                        let error = clock_error(&packet, 90_000, camera::taken_at(&packet.payload));
                        let eyes = self.eyes.entry(*packet.header.ssrc).or_default();
                        eyes.see(*packet.seq_no, packet.header.timestamp, &packet.payload);
                        if let Some(error_us) = error {
                            eyes.see_clock(*packet.seq_no, error_us);
                        }
                    }
                    Event::RtpPacket(packet) => {
                        let recorded_us = packet.payload.get(8..16).and_then(|b| Some(u64::from_be_bytes(b.try_into().ok()?)));
                        if let Some(error_us) = clock_error(&packet, 48_000, recorded_us) {
                            let (least, most) = self.clock_errors.entry(*packet.header.ssrc).or_insert((error_us, error_us));
                            (*least, *most) = ((*least).min(error_us), (*most).max(error_us));
                        }
                        self.heard.push((*packet.header.ssrc, *packet.seq_no, packet.payload.to_vec()));
                    }
                    Event::KeyframeRequest(request) => {
                        let layer = request.rid.and_then(|rid| RIDS.iter().position(|r| Rid::from(*r) == rid));
                        self.camera.wants_key(layer.unwrap_or(0));
                    }
                    _ => {}
                },
                Err(_) => {
                    self.deadline += std::time::Duration::from_secs(3600);
                    return;
                }
            }
        }
    }
}

/// What the last sender report says about when a packet was recorded, against when it was, us.
fn clock_error(packet: &RtpPacket, clock_rate: i64, recorded_us: Option<u64>) -> Option<i64> {
    let report = packet.last_sender_info?;
    let ticks = packet.header.timestamp.wrapping_sub(report.rtp_time.numer() as u32) as i32;
    let reported_us = report.ntp_time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_micros() as i64;
    Some(reported_us + i64::from(ticks) * 1_000_000 / clock_rate - recorded_us? as i64)
}

/// The client's half of TURN: Allocate with its challenge, a permission, indications both ways.
pub struct RelayClient {
    username: String,
    realm: String,
    key: HmacSha1,
    nonce: Option<Vec<u8>>,
    relayed: Option<SocketAddr>,
    has_permission: bool,
    transactions: u8,
}

impl RelayClient {
    pub fn new(username: &str, password: &str, realm: &str) -> Self {
        let key = HmacSha1::new(&long_term_key(username.as_bytes(), realm.as_bytes(), password.as_bytes()));
        let (username, realm) = (username.to_owned(), realm.to_owned());
        Self { username, realm, key, nonce: None, relayed: None, has_permission: false, transactions: 0 }
    }

    pub fn relayed(&self) -> Option<SocketAddr> {
        self.relayed
    }

    /// The next request of the way to a permission for `peer`; `None` when it is there.
    pub fn next_request(&mut self, peer: SocketAddr) -> Option<Vec<u8>> {
        self.transactions += 1;
        let id = TransactionId([self.transactions; 12]);
        let method = if self.relayed.is_none() { Method::Allocate } else { Method::CreatePermission };
        if self.has_permission {
            return None;
        }
        let mut out = Vec::new();
        let mut w = Writer::new(&mut out, method, Class::Request, id);
        match method {
            Method::Allocate => w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]),
            _ => w.xor_address(attr::XOR_PEER_ADDRESS, peer),
        };
        if let Some(nonce) = &self.nonce {
            w.attribute(attr::USERNAME, self.username.as_bytes())
                .attribute(attr::REALM, self.realm.as_bytes())
                .attribute(attr::NONCE, nonce)
                .integrity(|b| self.key.sign(&[b]));
        }
        Some(out)
    }

    pub fn take_reply(&mut self, bytes: &[u8]) {
        let reply = Message::decode(bytes).expect("a STUN answer");
        match (reply.method, reply.class) {
            (Method::Allocate, Class::Error) => self.nonce = reply.get(attr::NONCE).map(<[u8]>::to_vec),
            (Method::Allocate, Class::Success) => {
                self.relayed = reply.get(attr::XOR_RELAYED_ADDRESS).and_then(|v| reply.xor_address(v));
            }
            (Method::CreatePermission, Class::Success) => self.has_permission = true,
            other => panic!("the relay said {other:?}"),
        }
    }

    fn wrap(&mut self, peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Writer::new(&mut out, Method::Send, Class::Indication, TransactionId([9; 12]))
            .xor_address(attr::XOR_PEER_ADDRESS, peer)
            .attribute(attr::DATA, payload);
        out
    }

    fn unwrap(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        if let Ok((_, range)) = channel_data(bytes) {
            return Some(bytes[range].to_vec());
        }
        let message = Message::decode(bytes).ok()?;
        message.get(attr::DATA).map(<[u8]>::to_vec)
    }
}
