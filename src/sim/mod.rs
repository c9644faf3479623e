//! Floor 5, the other driver: real shards in virtual time over a lossy net, with peers made of other people's code.
//!
//! [`World`] pops the earliest of {arrival, shard deadline, peer deadline, media tick}, sets `now` to it, lets one thing act,
//! and repeats. Ties break by insertion. No thread, no sleep, no clock: one seed, one run (but for DTLS, whose keys the
//! foreign crates draw themselves).

pub mod camera;
pub mod check;
pub mod net;
pub mod peer;
pub mod relay;

use crate::base::id::{Carrier, ClientAddr, RoomId, SessionId, SocketId, Ssrc, StreamId, TrackId, WorkerId};
use crate::base::rng::Rng;
use crate::base::time::{Anchor, Duration, Instant, Now, UnixTime};
use crate::crypto::SecretRng;
use crate::engine::dtls::Identity;
use crate::engine::ice::Credentials;
use crate::engine::turn::TurnConfig;
use crate::engine::turn_auth::Secrets;
use crate::room::layers::Wanted;
use crate::session::negotiate::{self, Candidates, Local, Use, Voice};
use crate::shard::mail::{Command, Effect, Parcel, Report, StreamRole};
use crate::shard::{PortRole, Shard, ShardConfig, table};
use crate::wire::data_packet::Delivery;
use crate::wire::demux::{self, DatagramKind};
use crate::wire::framing::Framing;
use crate::wire::sdp::{Description, Direction, Kind};
use net::{Net, To};
use peer::Peer;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// The server's media address and its relay's.
pub const MEDIA: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 443);
const ROOM: RoomId = RoomId(1);
const MEDIA_SOCKET: SocketId = SocketId(0);
const TURN_SOCKET: SocketId = SocketId(1);
/// Each peer sends a packet of its voice so often, and a frame of its camera.
const TICK: Duration = Duration::from_millis(20);
const FRAME: Duration = Duration::from_nanos(33_333_333);
/// Tracks of cameras stand behind those of voices.
const CAMERAS: u64 = 1000;

/// How a peer's packets reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Udp,
    IceTcp,
    RelayUdp,
    RelayTcp,
}

impl Way {
    pub const ALL: [Way; 4] = [Way::Udp, Way::IceTcp, Way::RelayUdp, Way::RelayTcp];

    pub fn is_stream(self) -> bool {
        matches!(self, Self::IceTcp | Self::RelayTcp)
    }

    pub fn is_relay(self) -> bool {
        matches!(self, Self::RelayUdp | Self::RelayTcp)
    }
}

/// One participant: the peer, and where the kernel would put its packets.
struct Seat {
    peer: Peer,
    session: SessionId,
    carrier: Carrier,
    /// Worker whose socket gets its packets; for a connection, the one that holds it now.
    ingress: WorkerId,
    owner: WorkerId,
    next_tick: Instant,
    next_frame: Instant,
    is_silent: bool,
}

pub struct World {
    now: Instant,
    pub shards: Vec<Shard>,
    seats: Vec<Seat>,
    pub net: Net,
    anchor: Anchor,
    secrets: Secrets,
    fingerprint: String,
    chance: SecretRng,
    pub reports: Vec<Report>,
    /// Datagrams and frames that were given to shards.
    pub given: u64,
    /// Media flows while this is set.
    pub is_talking: bool,
    /// Everybody has a camera.
    pub films: bool,
    /// Only so many of the first seats talk.
    pub talkers: usize,
    /// Told when a shard begins to work on media alone, and when it is done: whatever that takes can be counted.
    pub probe: fn(bool),
    /// Peers use the relay with the credentials of another participant.
    pub borrows_credentials: bool,
    /// Peers insist on waiting for our hello, as some WHIP senders do: the server is the DTLS client.
    pub peers_are_passive: bool,
}

/// Who joins, how, where its packets arrive and who owns it.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub way: Way,
    pub ingress: WorkerId,
    pub owner: WorkerId,
}

fn track_of(at: usize, is_video: bool) -> TrackId {
    TrackId(at as u64 + 1 + if is_video { CAMERAS } else { 0 })
}

fn ssrc_of(at: usize, of: usize, is_video: bool) -> u32 {
    1000 * (at as u32 + 1) + of as u32 + if is_video { 500_000 } else { 0 }
}

impl World {
    #[allow(clippy::disallowed_methods, reason = "any anchor will do: only differences to it are used")]
    pub fn new(seed: u64, workers: u8, net: Net) -> Self {
        let anchor = Anchor::new(std::time::Instant::now());
        let identity = Identity::generate().expect("a certificate");
        let secrets = Secrets::new("sim", b"sim", &[], &HashMap::new());
        let turn = Arc::new(TurnConfig::closed(secrets.clone(), vec![MEDIA], workers));
        let shard = |worker: u8| {
            let config = ShardConfig {
                worker: WorkerId(worker),
                workers,
                sockets: vec![PortRole::Media, PortRole::Turn],
                turn: Arc::clone(&turn),
                identity: identity.clone(),
                anchor,
                buffers: 16,
                store_bytes: 16 * 1024 * 1024,
            };
            Shard::new(config, SecretRng::seeded(seed + u64::from(worker)), Rng::new(seed + u64::from(worker)))
        };
        Self {
            now: Instant::from_millis(1_000),
            shards: (0..workers).map(shard).collect(),
            seats: Vec::new(),
            net,
            anchor,
            secrets,
            fingerprint: identity.fingerprint().to_owned(),
            chance: SecretRng::seeded(seed),
            reports: Vec::new(),
            given: 0,
            is_talking: true,
            films: false,
            talkers: usize::MAX,
            probe: |_| {},
            borrows_credentials: false,
            peers_are_passive: false,
        }
    }

    fn time(&self) -> Now {
        Now { mono: self.now, wall: UnixTime::from_nanos(1_700_000_000_000_000_000 + self.now.as_nanos()) }
    }

    pub fn peer(&mut self, at: usize) -> &mut Peer {
        &mut self.seats[at].peer
    }

    pub fn len(&self) -> usize {
        self.seats.len()
    }

    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// What the server does for this peer fails from now on, as by a bug.
    pub fn break_session(&mut self, at: usize) {
        let Seat { owner, session, .. } = self.seats[at];
        self.shards[usize::from(owner.0)].break_session(session);
    }

    /// From now on nothing of this peer arrives: it was killed, or its network was.
    pub fn silence(&mut self, at: usize) {
        self.seats[at].is_silent = true;
    }

    /// Lets the given participants join one room, each publishing a voice that all others hear.
    pub fn join(&mut self, arrivals: &[Arrival]) {
        for (at, arrival) in arrivals.iter().enumerate() {
            self.take_seat(at, *arrival, arrivals.len());
        }
        for (at, arrival) in arrivals.iter().enumerate() {
            let (now, session) = (self.time(), self.seats[at].session);
            let owner = &mut self.shards[usize::from(arrival.owner.0)];
            owner.handle_command(now, Command::Publish { room: ROOM, session, track: track_of(at, false), is_video: false });
            owner.handle_command(now, Command::Publish { room: ROOM, session, track: track_of(at, true), is_video: true });
        }
        for (at, arrival) in arrivals.iter().enumerate() {
            self.negotiate(at, arrival.owner, arrivals);
        }
    }

    fn take_seat(&mut self, at: usize, arrival: Arrival, others: usize) {
        let session = SessionId(at as u64 + 1);
        let address = SocketAddr::from(([198, 51, 100, at as u8 + 1], 40_000 + at as u16));
        let carrier = if arrival.way.is_stream() {
            let id = StreamId(u64::from(arrival.ingress.0) << 56 | (at as u64 + 1));
            let role = if arrival.way.is_relay() { StreamRole::Turn } else { StreamRole::Ice };
            self.shards[usize::from(arrival.ingress.0)].stream_opened(id, role, address, None);
            Carrier::Stream(id)
        } else {
            let socket = if arrival.way.is_relay() { TURN_SOCKET } else { MEDIA_SOCKET };
            Carrier::Udp { socket, local: MEDIA.ip(), remote: ClientAddr(address) }
        };
        let ingress = arrival.ingress;
        let expires = self.time().wall.as_secs() + 3600;
        let (username, password) = self.secrets.mint(&format!("PA_{}", if self.borrows_credentials { at + 1 } else { at }), 0, expires);
        let mut relay = arrival.way.is_relay().then(|| peer::RelayClient::new(&username, &password, "sim"));
        let mut local = address;
        if let Some(relay) = &mut relay {
            // Allocate, challenge, Allocate again, permission: over a wire that loses nothing yet.
            while let Some(request) = relay.next_request(MEDIA) {
                self.give(ingress, carrier, &request);
                let reply = self.replies(carrier).pop().expect("the relay answers");
                relay.take_reply(&reply);
            }
            local = relay.relayed().expect("an allocation");
        }
        let peer = Peer::new(self.anchor.to_std(self.now), local, arrival.way, relay, others, self.films);
        let owner = arrival.owner;
        let ufrag = table::ufrag(owner, &self.chance.ice_chars(10));
        let credentials = Credentials { ufrag, pwd: self.chance.ice_chars(24) };
        let command = Command::Open {
            session,
            room: ROOM,
            credentials: credentials.clone(),
            identity: format!("p{at}"),
            sid: format!("PA_{at}"),
            can_publish_data: true,
            hears_data: true,
            opens_channels: false,
        };
        let now = self.time();
        self.shards[usize::from(owner.0)].handle_command(now, command);
        let (next_tick, next_frame) = (self.now + TICK, self.now + FRAME);
        let mut seat = Seat { peer, session, carrier, ingress, owner, next_tick, next_frame, is_silent: false };
        seat.peer.credentials = Some(credentials);
        self.seats.push(seat);
    }

    /// Answers the peer's offer as the control plane would: its voice is received, each free section sends another's.
    fn negotiate(&mut self, at: usize, owner: WorkerId, arrivals: &[Arrival]) {
        let others: Vec<usize> = (0..self.seats.len()).filter(|o| *o != at).collect();
        let mut offer_text = self.seats[at].peer.offer();
        if self.peers_are_passive {
            offer_text = offer_text.replace("a=setup:actpass", "a=setup:passive");
        }
        let offer = Description::parse(&offer_text).expect("the peer's offer");
        let (mut heard, mut seen) = (others.iter(), others.iter());
        let uses: Vec<Use> = offer
            .sections
            .iter()
            .map(|s| match (s.kind, s.direction) {
                (Kind::Application, _) => Use::Data,
                (kind, Direction::SendOnly | Direction::SendRecv) => Use::Receive {
                    track: track_of(at, kind == Kind::Video),
                    prefer: None,
                    voice: Voice { redundancy: true, ..Voice::default() },
                },
                (kind, _) => if kind == Kind::Video { &mut seen } else { &mut heard }.next().map_or(Use::Idle, |other| Use::Send {
                    track: track_of(*other, kind == Kind::Video),
                    ssrc: Ssrc(ssrc_of(at, *other, kind == Kind::Video)),
                    rtx: Ssrc(1_000_000 + ssrc_of(at, *other, kind == Kind::Video)),
                    codec: None,
                    redundancy: true,
                    stream: format!("PA_{other}"),
                    label: format!("TR_{other}"),
                }),
            })
            .collect();
        let candidates = Candidates { udp: vec![MEDIA], tcp: Vec::new() };
        let credentials = self.seats[at].peer.credentials.clone().expect("set at arrival");
        let session = self.seats[at].session;
        let local = Local {
            credentials: &credentials,
            fingerprint: &self.fingerprint,
            candidates: &candidates,
            session_id: session.0,
            version: 1,
            playout: None,
        };
        let (answer, plan) = negotiate::answer(&offer, &local, &uses);
        self.seats[at].peer.accept(&answer);
        let now = self.time();
        let shard = &mut self.shards[usize::from(owner.0)];
        shard.handle_command(now, Command::Apply { session, plan: Box::new(plan) });
        shard.handle_command(now, Command::Spread { room: ROOM, workers: arrivals.iter().map(|a| a.owner).collect() });
        for other in &others {
            let (publisher, home) = (self.seats[*other].session, arrivals[*other].owner);
            for is_video in [false, true] {
                let track = track_of(*other, is_video);
                shard.handle_command(now, Command::Subscribe { room: ROOM, session, track, publisher, is_video, home });
            }
        }
        self.collect();
    }

    /// Lets a participant want another layer of somebody's camera.
    pub fn want(&mut self, at: usize, of: usize, wanted: Option<Wanted>) {
        let (now, session, owner) = (self.time(), self.seats[at].session, self.seats[at].owner);
        self.shards[usize::from(owner.0)].handle_command(now, Command::Want { room: ROOM, session, track: track_of(of, true), wanted });
        self.collect();
    }

    /// What a participant saw of somebody's camera.
    pub fn eyes(&self, at: usize, of: usize) -> Option<&camera::Eyes> {
        self.seats[at].peer.eyes.get(&ssrc_of(at, of, true))
    }

    /// How far sound and picture of a participant are apart at somebody who goes by our sender reports: frame by frame, us,
    /// and whether the frame is right behind a switch.
    pub fn skews_us(&self, at: usize, of: usize) -> Vec<(i64, bool)> {
        let sound = self.seats[at].peer.clock_errors.get(&ssrc_of(at, of, false)).copied();
        let (Some((least, most)), Some(eyes)) = (sound, self.eyes(at, of)) else { return Vec::new() };
        eyes.clock_errors().map(|(picture, is_catching_up)| ((picture - least).max(most - picture), is_catching_up)).collect()
    }

    /// A reliable message from somebody on another worker reaches everybody.
    pub fn announce(&mut self, bytes: &[u8]) {
        let now = self.time();
        for (at, shard) in self.shards.iter_mut().enumerate() {
            let parcel = Parcel::Data { room: ROOM, delivery: Delivery::Reliable, bytes: bytes.to_vec() };
            shard.handle_parcel(now, WorkerId(at as u8), parcel);
        }
        self.collect();
    }

    /// Everybody leaves.
    pub fn leave(&mut self) {
        for at in 0..self.seats.len() {
            let (now, session, owner) = (self.time(), self.seats[at].session, self.seats[at].owner);
            self.shards[usize::from(owner.0)].handle_command(now, Command::Close { session });
        }
        self.collect();
    }

    /// Runs for a stretch of virtual time.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let next = self.next_event();
            if next.is_none_or(|at| at > end) {
                self.now = end;
                return;
            }
            self.now = self.now.max(next.unwrap_or(end));
            self.act();
            self.collect();
        }
    }

    fn next_event(&mut self) -> Option<Instant> {
        let anchor = self.anchor;
        let arrivals = self.net.next_arrival().into_iter();
        let shards: Vec<Instant> = self.shards.iter_mut().filter_map(Shard::deadline).collect();
        let peers = self.seats.iter().map(|s| anchor.from_std(s.peer.deadline()));
        let ticks = self.seats.iter().take(self.talkers).filter(|_| self.is_talking).map(|s| s.next_tick);
        let frames = self.seats.iter().take(self.talkers).filter(|_| self.films && self.is_talking).map(|s| s.next_frame);
        arrivals.chain(shards).chain(peers).chain(ticks).chain(frames).min()
    }

    /// One thing acts.
    fn act(&mut self) {
        let now = self.time();
        if let Some((to, bytes)) = self.net.pop(self.now) {
            match to {
                To::Server(at) => {
                    let (ingress, carrier) = (self.seats[at].ingress, self.seats[at].carrier);
                    self.give(ingress, carrier, &bytes);
                }
                To::Peer(at) => {
                    let std_now = self.anchor.to_std(self.now);
                    self.seats[at].peer.receive(std_now, MEDIA, &bytes);
                }
            }
            return;
        }
        if let Some(shard) = self.shards.iter_mut().find_map(|s| s.deadline().is_some_and(|d| d <= now.mono).then_some(s)) {
            return shard.wake(now);
        }
        let std_now = self.anchor.to_std(self.now);
        if let Some(seat) = self.seats.iter_mut().take(self.talkers).find(|s| self.is_talking && s.next_tick <= now.mono) {
            seat.next_tick = now.mono + TICK;
            return seat.peer.speak(std_now, now.mono.as_micros());
        }
        if let Some(seat) = self.seats.iter_mut().take(self.talkers).find(|s| self.films && self.is_talking && s.next_frame <= now.mono) {
            seat.next_frame = now.mono + FRAME;
            return seat.peer.film(std_now, now.mono.as_micros());
        }
        if let Some(seat) = self.seats.iter_mut().find(|s| s.peer.deadline() <= std_now) {
            seat.peer.wake(std_now);
        }
    }

    /// Hands bytes to the shard whose socket, or which connection, gets them.
    fn give(&mut self, ingress: WorkerId, carrier: Carrier, bytes: &[u8]) {
        let now = self.time();
        let shard = &mut self.shards[usize::from(ingress.0)];
        let mut buf = shard.pool.take();
        assert!(buf.fill(bytes), "a packet that fits");
        self.given += 1;
        let is_media = demux::datagram(bytes) == DatagramKind::Rtp && !demux::is_rtcp(bytes);
        (self.probe)(is_media);
        match carrier {
            Carrier::Udp { .. } => shard.handle_datagram(now, carrier, buf),
            Carrier::Stream(stream) => shard.handle_frame(now, stream, buf),
        }
        (self.probe)(false);
    }

    /// Carries everything that shards and peers want to send, until nobody wants anything.
    fn collect(&mut self) {
        loop {
            let mut busy = false;
            for worker in 0..self.shards.len() {
                let now = self.time();
                let shard = &mut self.shards[worker];
                let is_media = shard.deadline().is_none_or(|at| at > now.mono);
                (self.probe)(is_media);
                shard.wake(now);
                (self.probe)(false);
                busy |= shard.is_behind();
                for effect in self.shards[worker].take_effects() {
                    busy = true;
                    self.carry_out(WorkerId(worker as u8), effect);
                }
            }
            if !busy {
                break;
            }
        }
        for at in 0..self.seats.len() {
            for bytes in self.replies(self.seats[at].carrier) {
                self.net.send(self.now, To::Peer(at), bytes, self.seats[at].peer.way.is_stream());
            }
            for bytes in self.seats[at].peer.take_outgoing().into_iter().filter(|_| !self.seats[at].is_silent).collect::<Vec<_>>() {
                self.net.send(self.now, To::Server(at), bytes, self.seats[at].peer.way.is_stream());
            }
        }
        for shard in &mut self.shards {
            assert!(shard.egress.datagrams().is_empty(), "every datagram has a receiver");
            shard.has_left(self.now);
        }
    }

    fn carry_out(&mut self, from: WorkerId, effect: Effect) {
        let now = self.time();
        match effect {
            Effect::Report(report) => self.reports.push(report),
            Effect::Parcel { to, parcel } => self.shards[usize::from(to.0)].handle_parcel(now, from, parcel),
            Effect::MoveStream { stream, to, cargo } => {
                self.shards[usize::from(to.0)].adopt_stream(now, stream, *cargo);
                for seat in self.seats.iter_mut().filter(|s| s.carrier == Carrier::Stream(stream)) {
                    seat.ingress = to;
                }
            }
            Effect::CloseStream { .. } => {}
            Effect::OpenRelay { .. } | Effect::CloseRelay { .. } => unreachable!("the relay is closed"),
        }
    }

    /// What any shard has written for this carrier, taken out.
    fn replies(&mut self, carrier: Carrier) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for shard in &mut self.shards {
            match carrier {
                Carrier::Udp { .. } => {
                    let is_ours = |d: &crate::shard::egress::Datagram| d.carrier() == Some(carrier);
                    let ours: Vec<Vec<u8>> =
                        shard.egress.datagrams().iter().filter(|d| is_ours(d)).map(|d| shard.egress.bytes(d).to_vec()).collect();
                    shard.egress.forget(is_ours);
                    out.extend(ours);
                }
                Carrier::Stream(stream) => {
                    let mut bytes = Vec::new();
                    while shard.has_frames(stream) {
                        shard.take_frames(stream, 64 * 1024, &mut bytes);
                    }
                    let is_relay = self.seats.iter().find(|s| s.carrier == carrier).is_none_or(|s| s.peer.way.is_relay());
                    let framing = if is_relay { Framing::Turn } else { Framing::Rfc4571 };
                    while let Some(frame) = framing.next(&bytes).expect("our own framing") {
                        out.push(bytes[frame.start..frame.end].to_vec());
                        bytes.drain(..frame.consumed);
                    }
                    shard.take_writable();
                }
            }
        }
        out
    }
}
