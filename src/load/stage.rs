//! The rooms that are simulated, who is in them, and the sockets: one turn after the other on one thread.
//!
//! On loopback all participants share a socket, each with a source address of its own out of 127.0.0.0/8; towards other hosts
//! each has a socket, because a server tells clients apart by address and port.

use super::Plan;
use super::camera::Camera;
use super::ear::{Ear, Spread, Sums};
use super::offer::{self, AUDIO_CID, Local, Section, VIDEO_CID};
use super::peer::{Incoming, Peer};
use super::report::{Report, Usage};
use super::signal::{self, Front, News};
use crate::base::buf::Pool;
use crate::base::time::{Duration, Instant};
use crate::control::auth::{Claims, Keys, VideoGrants};
use crate::crypto::SecretRng;
use crate::engine::dtls::Identity;
use crate::engine::ice::Credentials;
use crate::io::clock::Clock;
use crate::io::udp::{self, Batch, Received, Transmit, UdpSocket};
use livekit_protocol as proto;
use livekit_protocol::signal_request::Message as Up;
use livekit_protocol::signal_response::Message as Down;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::task::Poll;
use tokio::sync::mpsc;

/// How often what is due is looked at.
const TURN: Duration = Duration::from_millis(2);
/// How long a participant may take until its media is connected.
const JOIN_WITHIN: Duration = Duration::from_secs(30);
const BUFFERS: usize = 1_024;
/// Reasons of failures that are told apart.
const REASONS_MAX: usize = 20;

struct Participant {
    room: u32,
    peer: Peer,
    sections: Vec<Section>,
    version: u32,
    requests: Option<mpsc::UnboundedSender<Up>>,
    camera: Option<Camera>,
    publishes: bool,
    ear: Ear,
    source: IpAddr,
    socket: usize,
    asked_at: Instant,
    is_live: bool,
    has_heard: bool,
}

/// A datagram, and the way it takes.
struct Outgoing {
    socket: usize,
    server: SocketAddr,
    source: IpAddr,
    bytes: Vec<u8>,
}

impl Participant {
    /// Its datagrams on their way to the server; none before that has told where it is.
    fn address(&self, datagrams: Vec<Vec<u8>>) -> impl Iterator<Item = Outgoing> {
        let (socket, source, server) = (self.socket, self.source, self.peer.server());
        datagrams.into_iter().filter_map(move |bytes| Some(Outgoing { socket, server: server?, source, bytes }))
    }
}

struct Room {
    ends_at: Option<Instant>,
    members: Vec<u64>,
}

struct Stage<'a> {
    plan: &'a Plan,
    keys: &'a Keys,
    clock: Clock,
    front: Front,
    identity: Identity,
    dice: SecretRng,
    news: mpsc::UnboundedSender<(u64, News)>,
    sockets: Vec<UdpSocket>,
    shares_socket: bool,
    participants: BTreeMap<u64, Participant>,
    by_source: HashMap<(usize, IpAddr), u64>,
    /// When each is due.
    due: BTreeSet<(Instant, u64)>,
    armed: HashMap<u64, Instant>,
    rooms: BTreeMap<u32, Room>,
    rooms_begun: u32,
    joined: u64,
    outgoing: Vec<Outgoing>,
    report: Report,
}

pub async fn run(plan: &Plan, keys: &Keys, progress: &mut dyn FnMut(&str)) -> Result<Report, String> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let clock = Clock::start();
    let front = Front::find(plan).await?;
    let (news_in, mut news) = mpsc::unbounded_channel();
    let shares_socket = front.is_loopback();
    let mut pool = Pool::new(BUFFERS);
    let mut batch = Batch::new(&mut pool);
    let mut stage = Stage {
        plan,
        keys,
        clock,
        front,
        identity: Identity::generate()?,
        dice: SecretRng::system(),
        news: news_in,
        sockets: Vec::new(),
        shares_socket,
        participants: BTreeMap::new(),
        by_source: HashMap::new(),
        due: BTreeSet::new(),
        armed: HashMap::new(),
        rooms: BTreeMap::new(),
        rooms_begun: 0,
        joined: 0,
        outgoing: Vec::new(),
        report: Report::default(),
    };
    if shares_socket {
        stage.add_socket()?;
    }
    let before = Usage::of(plan.pid);
    let began = clock.now().mono;
    let (mut turn, mut told_at) = (tokio::time::interval(TURN), began);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut received = Vec::new();
    loop {
        tokio::select! {
            biased;
            Some((id, news)) = news.recv() => stage.heard_of(id, news),
            at = arrival(&stage.sockets, &mut batch, &mut pool, &mut received) => {
                for Received { remote, local, mut buf } in received.drain(..) {
                    stage.arrived(at, remote, local, &mut buf);
                    pool.put(buf);
                }
            }
            _ = turn.tick() => stage.turn()?,
        }
        stage.flush(&mut batch);
        let now = clock.now().mono;
        if now.since(told_at) >= Duration::from_secs(1) {
            told_at = now;
            progress(&stage.line(now.since(began)));
        }
        if stage.is_over() {
            break;
        }
    }
    stage.report.took = clock.now().mono.since(began);
    stage.report.usage = Usage::of(plan.pid).zip(before).map(|(after, before)| after.since(&before));
    Ok(stage.report)
}

/// Waits for datagrams on any socket; which one.
async fn arrival(sockets: &[UdpSocket], batch: &mut Batch, pool: &mut Pool, out: &mut Vec<Received>) -> usize {
    std::future::poll_fn(|cx| {
        for (at, socket) in sockets.iter().enumerate() {
            if socket.poll_recv(cx, batch, pool, out).is_ready() && !out.is_empty() {
                return Poll::Ready(at);
            }
        }
        Poll::Pending
    })
    .await
}

impl Stage<'_> {
    fn add_socket(&mut self) -> Result<usize, String> {
        let socket = udp::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).and_then(UdpSocket::register);
        self.sockets.push(socket.map_err(|e| format!("a socket: {e}"))?);
        Ok(self.sockets.len() - 1)
    }

    fn is_over(&self) -> bool {
        self.rooms_begun == self.plan.rooms.calls && self.rooms.is_empty() && self.participants.is_empty()
    }

    /// Does what is due: rooms that begin and end, checks, media.
    fn turn(&mut self) -> Result<(), String> {
        let now = self.clock.now().mono;
        self.begin_rooms(now)?;
        let ended: Vec<u32> = self.rooms.iter().filter(|(_, r)| r.ends_at.is_some_and(|at| at <= now)).map(|(id, _)| *id).collect();
        for room in ended {
            let members = self.rooms.remove(&room).map(|r| r.members).unwrap_or_default();
            members.into_iter().for_each(|id| self.leave(id, None));
        }
        while let Some(&(at, id)) = self.due.first().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, id));
            self.armed.remove(&id);
            self.wake(now, id);
        }
        Ok(())
    }

    /// Lets in who is to come by now, room by room.
    fn begin_rooms(&mut self, now: Instant) -> Result<(), String> {
        let rooms = &self.plan.rooms;
        let size = rooms.publishers + rooms.subscribers;
        let allowed = (rooms.joins_a_second * now.as_nanos() as f64 / 1e9) as u64 + u64::from(size);
        loop {
            let open = self.rooms.iter().find(|(_, r)| r.members.len() < size as usize && r.ends_at.is_none()).map(|(id, _)| *id);
            if self.joined >= allowed {
                return Ok(());
            }
            let room = match open {
                Some(room) => room,
                None if self.rooms_begun < rooms.calls && self.rooms.len() < rooms.at_once as usize => {
                    self.rooms_begun += 1;
                    self.rooms.insert(self.rooms_begun, Room { ends_at: None, members: Vec::new() });
                    self.rooms_begun
                }
                None => return Ok(()),
            };
            self.join(now, room)?;
            if let Some(room) = self.rooms.get_mut(&room).filter(|r| r.members.len() == size as usize) {
                room.ends_at = Some(now + self.plan.rooms.lasts);
            }
        }
    }

    fn join(&mut self, now: Instant, room: u32) -> Result<(), String> {
        self.joined += 1;
        let id = self.joined;
        let nth = self.rooms.get(&room).map_or(0, |r| r.members.len()) as u32;
        let publishes = nth < self.plan.rooms.publishers;
        let (socket, source) = if self.shares_socket {
            // 127.1.0.1 onwards, without the ends of each block.
            let n = id % (250 * 250 * 250);
            (0, IpAddr::from([127, 1 + (n / 62_500) as u8, 1 + (n / 250 % 250) as u8, 1 + (n % 250) as u8]))
        } else {
            (self.add_socket()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        };
        let credentials = Credentials { ufrag: self.dice.ice_chars(8), pwd: self.dice.ice_chars(24) };
        let peer = Peer::new(self.identity.clone(), self.clock.anchor(), credentials);
        let media = self.plan.media;
        let mut sections = Vec::new();
        if publishes {
            sections.extend(media.audio.then_some(Section::SendsAudio));
            sections.extend((media.layers > 0).then_some(Section::SendsVideo { layers: media.layers }));
        }
        if sections.is_empty() {
            // An offer has a section at least.
            sections.push(Section::Receives { is_video: false });
        }
        let (requests, queue) = mpsc::unbounded_channel();
        let mut participant = Participant {
            room,
            peer,
            sections,
            version: 0,
            requests: Some(requests),
            camera: None,
            publishes,
            ear: Ear::default(),
            source,
            socket,
            asked_at: now,
            is_live: false,
            has_heard: false,
        };
        let request = self.request(&mut participant);
        let (token, news) = (self.token(room, nth)?, self.news.clone());
        tokio::spawn(signal::converse(self.front.clone(), token, request, queue, move |told| drop(news.send((id, told)))));
        self.by_source.insert((socket, source), id);
        self.participants.insert(id, participant);
        self.arm(id, now + JOIN_WITHIN);
        if let Some(room) = self.rooms.get_mut(&room) {
            room.members.push(id);
        }
        Ok(())
    }

    fn token(&self, room: u32, nth: u32) -> Result<String, String> {
        let video = VideoGrants { room_join: true, room: format!("{}{room}", self.plan.rooms.prefix), ..VideoGrants::default() };
        let iss = self.keys.first().ok_or("no key")?;
        let exp = self.clock.now().wall.as_secs() + 3_600;
        let claims = Claims { iss, sub: format!("load-{nth}"), exp, video, ..Claims::default() };
        self.keys.sign(&claims).ok_or_else(|| "the token cannot be signed".into())
    }

    /// Everything that a participant says first: who it is, what it publishes, its offer.
    fn request(&self, p: &mut Participant) -> proto::JoinRequest {
        let add = |cid: &str, kind: proto::TrackType, source: proto::TrackSource, layers: Vec<proto::VideoLayer>| proto::AddTrackRequest {
            cid: cid.into(),
            name: cid.into(),
            r#type: kind as i32,
            source: source as i32,
            width: if layers.is_empty() { 0 } else { 1_280 },
            height: if layers.is_empty() { 0 } else { 720 },
            layers,
            disable_red: true,
            ..Default::default()
        };
        let media = self.plan.media;
        let layer = |at: u8| {
            let down = 1 << (media.layers - 1 - at);
            proto::VideoLayer { quality: i32::from(at), width: 1_280 / down, height: 720 / down, ..Default::default() }
        };
        let mut tracks = Vec::new();
        if p.publishes && media.audio {
            tracks.push(add(AUDIO_CID, proto::TrackType::Audio, proto::TrackSource::Microphone, Vec::new()));
        }
        if p.publishes && media.layers > 0 {
            tracks.push(add(VIDEO_CID, proto::TrackType::Video, proto::TrackSource::Camera, (0..media.layers).map(layer).collect()));
        }
        let client =
            proto::ClientInfo { version: env!("CARGO_PKG_VERSION").into(), protocol: 16, os: "postern load".into(), ..Default::default() };
        proto::JoinRequest {
            client_info: Some(client),
            connection_settings: Some(proto::ConnectionSettings { auto_subscribe: true, ..Default::default() }),
            add_track_requests: tracks,
            publisher_offer: Some(self.offer(p)),
            ..Default::default()
        }
    }

    fn offer(&self, p: &mut Participant) -> proto::SessionDescription {
        p.version += 1;
        let local = Local { credentials: p.peer.credentials(), fingerprint: self.identity.fingerprint(), version: p.version };
        proto::SessionDescription { r#type: "offer".into(), sdp: offer::write(&local, &p.sections), id: p.version, ..Default::default() }
    }

    // ---- signalling -----------------------------------------------------------------------------------------------

    fn heard_of(&mut self, id: u64, news: News) {
        let now = self.clock.now().mono;
        match news {
            News::Ended(why) => self.leave(id, Some(why)),
            News::Down(message) => match *message {
                Down::Answer(answer) => self.answered(now, id, &answer.sdp),
                Down::MediaSectionsRequirement(wanted) => self.more_sections(id, wanted.num_audios, wanted.num_videos),
                Down::Leave(leave) => {
                    let reason = proto::DisconnectReason::try_from(leave.reason).unwrap_or_default();
                    self.leave(id, Some(format!("the server said: leave ({})", reason.as_str_name().to_ascii_lowercase())));
                }
                _ => {}
            },
        }
    }

    /// Servers have to tell their addresses with the answer: candidates that come later (trickle) are not looked at.
    fn answered(&mut self, now: Instant, id: u64, sdp: &str) {
        let Some(p) = self.participants.get_mut(&id) else { return };
        match offer::read(sdp) {
            Ok(remote) => {
                if let Some(address) = remote.address {
                    p.peer.connect(now, remote, address);
                    self.rearm(id);
                }
            }
            Err(error) => self.leave(id, Some(format!("the answer: {error}"))),
        }
    }

    fn more_sections(&mut self, id: u64, audios: u32, videos: u32) {
        let Some(mut p) = self.participants.remove(&id) else { return };
        let more = |n: u32, is_video: bool| (0..n).map(move |_| Section::Receives { is_video });
        p.sections.extend(more(audios, false).chain(more(videos, true)));
        let offer = self.offer(&mut p);
        if let Some(requests) = &p.requests {
            let _ = requests.send(Up::Offer(offer));
        }
        self.participants.insert(id, p);
    }

    /// A participant goes: by itself, or because something failed.
    fn leave(&mut self, id: u64, failure: Option<String>) {
        let Some(mut p) = self.participants.remove(&id) else { return };
        if let Some(at) = self.armed.remove(&id) {
            self.due.remove(&(at, id));
        }
        self.by_source.remove(&(p.socket, p.source));
        let mut out = Vec::new();
        p.peer.close(&mut out);
        self.outgoing.extend(p.address(out));
        // The task says goodbye when nobody holds the other end.
        p.requests = None;
        self.report.left(p.camera.as_ref().map_or(0, |c| c.sent), &p.ear, self.plan, p.publishes, p.is_live);
        if let Some(why) = failure {
            let reasons = &mut self.report.failures;
            let key = if reasons.len() < REASONS_MAX || reasons.contains_key(&why) { why } else { "others".into() };
            *reasons.entry(key).or_default() += 1;
        }
        if let Some(room) = self.rooms.get_mut(&p.room) {
            room.members.retain(|m| *m != id);
            if room.members.is_empty() && room.ends_at.is_some() {
                self.rooms.remove(&p.room);
            }
        }
    }

    // ---- media ----------------------------------------------------------------------------------------------------

    fn arrived(&mut self, socket: usize, remote: SocketAddr, local: IpAddr, datagram: &mut [u8]) {
        let now = self.clock.now().mono;
        let source = if self.shares_socket { local } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let Some(&id) = self.by_source.get(&(socket, source)) else { return self.report.strays += 1 };
        let Some(p) = self.participants.get_mut(&id) else { return };
        let mut out = Vec::new();
        match p.peer.handle(now, remote, datagram, &mut out) {
            Incoming::Media(header, payload, index) => {
                if !std::mem::replace(&mut p.has_heard, true) {
                    self.report.first_media.add(now.since(p.asked_at));
                }
                p.ear.heard(now, &header, &datagram[payload], index);
                return;
            }
            Incoming::Feedback(len) => p.camera.iter_mut().for_each(|camera| camera.feedback(&datagram[..len])),
            Incoming::Live => self.went_live(now, id),
            Incoming::Other => {}
            Incoming::Refused => self.report.refused += 1,
            Incoming::Ended(why) => return self.leave(id, Some(why)),
        }
        self.send_of(id, out);
        self.rearm(id);
    }

    fn went_live(&mut self, now: Instant, id: u64) {
        let Some(p) = self.participants.get_mut(&id) else { return };
        p.is_live = true;
        self.report.joins.add(now.since(p.asked_at));
        if p.publishes && self.plan.media.tracks() > 0 {
            p.camera = Some(Camera::new(now, self.plan.media, id as u32));
        }
    }

    fn wake(&mut self, now: Instant, id: u64) {
        let Some(p) = self.participants.get_mut(&id) else { return };
        if !p.is_live && now.since(p.asked_at) >= JOIN_WITHIN {
            return self.leave(id, Some(format!("media was not connected within {} s", JOIN_WITHIN.as_secs())));
        }
        let mut out = Vec::new();
        match p.peer.wake(now, &mut out) {
            Incoming::Ended(why) => return self.leave(id, Some(why)),
            Incoming::Live => self.went_live(now, id),
            _ => {}
        }
        let Some(p) = self.participants.get_mut(&id) else { return };
        if let (Some(camera), Some(sender)) = (&mut p.camera, p.peer.sender()) {
            camera.wake(now, sender, &mut out);
        }
        self.send_of(id, out);
        self.rearm(id);
    }

    fn send_of(&mut self, id: u64, out: Vec<Vec<u8>>) {
        if let Some(p) = self.participants.get(&id) {
            self.outgoing.extend(p.address(out));
        }
    }

    fn flush(&mut self, batch: &mut Batch) {
        let outgoing = std::mem::take(&mut self.outgoing);
        for of_socket in outgoing.chunk_by(|a, b| a.socket == b.socket) {
            let messages: Vec<Transmit<'_>> =
                of_socket.iter().map(|o| Transmit { remote: o.server, local: o.source, bytes: &o.bytes, segment: None }).collect();
            if let Some(socket) = of_socket.first().and_then(|o| self.sockets.get_mut(o.socket)) {
                self.report.unsent += socket.send(batch, &messages) as u64;
            }
        }
    }

    /// When a participant is due next.
    fn rearm(&mut self, id: u64) {
        let Some(p) = self.participants.get(&id) else { return };
        let camera = p.camera.as_ref().map(Camera::deadline);
        let join = (!p.is_live).then(|| p.asked_at + JOIN_WITHIN);
        if let Some(at) = [p.peer.deadline(), camera, join].into_iter().flatten().min() {
            self.arm(id, at);
        }
    }

    fn arm(&mut self, id: u64, at: Instant) {
        if let Some(before) = self.armed.insert(id, at) {
            self.due.remove(&(before, id));
        }
        self.due.insert((at, id));
    }

    /// Where it stands, for whoever waits.
    fn line(&self, elapsed: Duration) -> String {
        let live = self.participants.values().filter(|p| p.is_live).count();
        let now: Sums = self.participants.values().map(|p| p.ear.sums()).fold(self.report.heard, Sums::plus);
        let mut latency = Spread::default();
        self.participants.values().take(50).for_each(|p| latency.merge(&p.ear.latency));
        let p99 = latency.quantile(0.99).map_or_else(|| "-".into(), |d| format!("{:.1} ms", d.as_secs_f64() * 1e3));
        format!(
            "{:>5} s  rooms {} of {}, participants {live}, joined {}, received {}, lost {}, failed {}, latency p99 {p99}",
            elapsed.as_secs(),
            self.rooms_begun,
            self.plan.rooms.calls,
            self.report.joins.count,
            now.received,
            now.lost,
            self.report.failures.values().sum::<u64>(),
        )
    }
}
