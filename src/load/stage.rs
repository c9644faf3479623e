//! The rooms that are simulated and who is in them: one turn after the other on one thread.

use super::agenda::Agenda;
use super::camera::{Camera, voice_ssrc};
use super::ear::{Ear, Sums};
use super::offer::{self, AUDIO_CID, Local, Remote, Section, VIDEO_CID};
use super::peer::{Incoming, Peer};
use super::report::{Mark, Report, Sample};
use super::signal::{self, Front, News};
use super::sockets::Sockets;
use super::stream::{Bytes, Inlet};
use super::turn::Told;
use super::usage::Usage;
use super::way::{Inbound, Outgoing, Relay, Source, Way};
use super::{Path, Plan, Watch};
use crate::base::rng::Rng;
use crate::base::time::{Duration, Instant};
use crate::control::auth::{Claims, Keys, VideoGrants};
use crate::crypto::SecretRng;
use crate::engine::dtls::Identity;
use crate::engine::ice::Credentials;
use crate::io::clock::Clock;
use crate::wire::demux::{self, DatagramKind};
use livekit_protocol as proto;
use livekit_protocol::signal_request::Message as Up;
use livekit_protocol::signal_response::Message as Down;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

/// How often what is due is looked at.
const TURN: Duration = Duration::from_millis(1);
/// How long a participant may take until its media is connected.
const JOIN_WITHIN: Duration = Duration::from_secs(30);
/// Chunks that connections have read and nobody has looked at.
const CHUNKS_MAX: usize = 4_096;
/// Chunks that are looked at in one turn.
const CHUNKS_A_TURN: usize = 256;
/// Sources of receiver reports, apart from those of media.
const REPORTS: u32 = 0x7000_0000;
/// Reasons of failures that are told apart.
const REASONS_MAX: usize = 20;

struct Participant {
    room: u32,
    peer: Peer,
    way: Way,
    inbound: Inbound,
    remote: Option<Remote>,
    sections: Vec<Section>,
    version: u32,
    requests: Option<mpsc::UnboundedSender<Up>>,
    camera: Option<Camera>,
    publishes: bool,
    ear: Ear,
    asked_at: Instant,
    is_live: bool,
    has_heard: bool,
}

struct Room {
    ends_at: Option<Instant>,
    members: Vec<u64>,
    asked: u32,
    /// Of those who were asked in: not connected yet.
    waiting: u32,
}

struct Stage<'a> {
    plan: &'a Plan,
    keys: &'a Keys,
    watch: &'a Watch,
    clock: Clock,
    began: Instant,
    front: Front,
    identity: Identity,
    secrets: SecretRng,
    dice: Rng,
    news: mpsc::UnboundedSender<(u64, News)>,
    inlet: Inlet,
    sockets: Sockets,
    participants: HashMap<u64, Participant>,
    by_source: HashMap<Source, u64>,
    agenda: Agenda,
    rooms: BTreeMap<u32, Room>,
    rooms_begun: u32,
    joined: u64,
    sent: u64,
    received: u64,
    bytes: u64,
    datagrams: Vec<Vec<u8>>,
    outgoing: Vec<Outgoing>,
    report: Report,
    start: Mark,
    /// When those who came last have settled.
    calm_due: Option<Instant>,
    /// Since everybody has come, until the first goes.
    steady: Option<Mark>,
    sampled: Mark,
}

pub async fn run(plan: &Plan, keys: &Keys, watch: &Watch, progress: &mut dyn FnMut(&str)) -> Result<Report, String> {
    let clock = Clock::start();
    let front = Front::find(plan).await?;
    let (news_in, mut news) = mpsc::unbounded_channel();
    let (inlet, mut chunks) = mpsc::channel(CHUNKS_MAX);
    let sockets = Sockets::new(front.is_loopback())?;
    let mut stage = Stage {
        plan,
        keys,
        watch,
        clock,
        began: clock.now().mono,
        front,
        identity: Identity::generate()?,
        secrets: SecretRng::system(),
        dice: Rng::new(1),
        news: news_in,
        inlet,
        sockets,
        participants: HashMap::new(),
        by_source: HashMap::new(),
        agenda: Agenda::default(),
        rooms: BTreeMap::new(),
        rooms_begun: 0,
        joined: 0,
        sent: 0,
        received: 0,
        bytes: 0,
        datagrams: Vec::new(),
        outgoing: Vec::new(),
        report: Report::default(),
        start: Mark::default(),
        calm_due: None,
        steady: None,
        sampled: Mark::default(),
    };
    stage.start = stage.mark(stage.began);
    stage.sampled = stage.start;
    let mut turn = tokio::time::interval(TURN);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut some_chunks = Vec::new();
    loop {
        tokio::select! {
            biased;
            Some((id, news)) = news.recv() => stage.heard_of(id, news),
            _ = turn.tick() => stage.turn()?,
            n = chunks.recv_many(&mut some_chunks, CHUNKS_A_TURN) => {
                debug_assert!(n > 0, "the stage holds an inlet");
                some_chunks.drain(..).for_each(|(id, bytes)| stage.carried(id, bytes));
            }
            () = stage.sockets.arrival() => stage.arrived(),
        }
        stage.flush();
        stage.tell(progress);
        if stage.is_over() {
            break;
        }
    }
    let now = stage.clock.now().mono;
    let end = stage.mark(now);
    stage.report.took = now.since(stage.began);
    stage.report.whole = Some(stage.start.until(&end));
    Ok(stage.report)
}

impl Stage<'_> {
    fn is_over(&self) -> bool {
        let is_through = self.rooms_begun == self.plan.rooms.calls || self.watch.is_over();
        is_through && self.rooms.is_empty() && self.participants.is_empty()
    }

    // ---- figures --------------------------------------------------------------------------------------------------

    fn mark(&self, at: Instant) -> Mark {
        let server = self.plan.pid.and_then(Usage::of);
        Mark { at, sent: self.sent, received: self.received, bytes: self.bytes, server, own: Usage::own() }
    }

    /// Everybody has come: what is measured from here on is the steady state.
    fn look_for_calm(&mut self, now: Instant) {
        self.calm_due = None;
        let all_came =
            self.rooms_begun >= self.plan.rooms.at_once.min(self.plan.rooms.calls) && self.rooms.values().all(|r| r.ends_at.is_some());
        if all_came && self.steady.is_none() && !self.report.is_disturbed {
            let mark = self.mark(now);
            self.report.joining = Some(self.start.until(&mark));
            self.report.latency = Default::default();
            self.steady = Some(mark);
        }
    }

    /// Somebody goes: the steady state is over.
    fn disturb(&mut self, now: Instant) {
        if let Some(from) = self.steady.take() {
            let mark = self.mark(now);
            self.report.steady = Some(from.until(&mark));
        }
        self.report.is_disturbed = true;
    }

    /// Where it stands, each second.
    fn tell(&mut self, progress: &mut dyn FnMut(&str)) {
        self.watch.sent.store(self.sent, Ordering::Relaxed);
        self.watch.received.store(self.received, Ordering::Relaxed);
        let now = self.clock.now().mono;
        if now.since(self.sampled.at) < Duration::from_secs(1) {
            return;
        }
        let live = self.participants.values().filter(|p| p.is_live).count();
        let mark = self.mark(now);
        let window = self.sampled.until(&mark);
        let latency = std::mem::take(&mut self.report.latency_of_second);
        let sums = self.participants.values().map(|p| p.ear.sums()).fold(self.report.heard, Sums::plus);
        let seconds = window.took.as_secs_f64();
        let sample = Sample {
            at_s: now.since(self.began).as_secs_f64(),
            participants: live as u64,
            received_per_s: window.received as f64 / seconds,
            bits_per_s: window.bytes as f64 * 8.0 / seconds,
            lost: sums.lost,
            p50_ms: latency.quantile(0.5).map(|d| d.as_secs_f64() * 1e3),
            p99_ms: latency.quantile(0.99).map(|d| d.as_secs_f64() * 1e3),
            server_cpu: window.server.map(|u| u.cpu_s / seconds),
            server_memory: window.server.map(|u| u.memory_bytes),
            own_cpu: window.own.cpu_s / seconds,
        };
        progress(&format!(
            "{:>5.0} s  rooms {} of {}, participants {live}, joined {}, failed {}, {}",
            sample.at_s,
            self.rooms_begun,
            self.plan.rooms.calls,
            self.report.joins.count,
            self.report.failures.values().sum::<u64>(),
            sample.line(),
        ));
        self.report.samples.push(sample);
        self.sampled = mark;
        self.watch.live.store(live as u64, Ordering::Relaxed);
        self.watch.failed.store(self.report.failures.values().sum(), Ordering::Relaxed);
    }

    // ---- who is there ---------------------------------------------------------------------------------------------

    /// Does what is due: rooms that begin and end, checks, media.
    fn turn(&mut self) -> Result<(), String> {
        let now = self.clock.now().mono;
        if self.watch.is_over() {
            self.disturb(now);
            self.rooms.clear();
            let everybody: Vec<u64> = self.participants.keys().copied().collect();
            everybody.into_iter().for_each(|id| self.leave(id, None));
            return Ok(());
        }
        self.begin_rooms(now)?;
        if self.calm_due.is_some_and(|at| at <= now) {
            self.look_for_calm(now);
        }
        let ended: Vec<u32> = self.rooms.iter().filter(|(_, r)| r.ends_at.is_some_and(|at| at <= now)).map(|(id, _)| *id).collect();
        for room in ended {
            self.disturb(now);
            let members = self.rooms.remove(&room).map(|r| r.members).unwrap_or_default();
            members.into_iter().for_each(|id| self.leave(id, None));
        }
        // Each once a turn, whatever it wants next.
        for id in self.agenda.take(now) {
            self.wake(now, id);
        }
        Ok(())
    }

    /// Lets in who is to come by now, room by room.
    fn begin_rooms(&mut self, now: Instant) -> Result<(), String> {
        let rooms = &self.plan.rooms;
        let size = rooms.publishers + rooms.subscribers;
        let allowed = (rooms.joins_a_second * now.since(self.began).as_secs_f64()) as u64 + 1;
        while self.joined < allowed {
            let open = self.rooms.iter().find(|(_, r)| r.asked < size).map(|(id, _)| *id);
            let room = match open {
                Some(room) => room,
                None if self.rooms_begun < rooms.calls && self.rooms.len() < rooms.at_once as usize => {
                    self.rooms_begun += 1;
                    self.rooms.insert(self.rooms_begun, Room { ends_at: None, members: Vec::new(), asked: 0, waiting: 0 });
                    self.rooms_begun
                }
                None => return Ok(()),
            };
            self.join(now, room)?;
        }
        Ok(())
    }

    /// Paths take turns by their shares.
    fn path(&self, id: u64) -> Path {
        let all: u32 = self.plan.paths.iter().map(|(_, share)| share).sum();
        let mut at = (id % u64::from(all.max(1))) as u32;
        for (path, share) in &self.plan.paths {
            if at < *share {
                return *path;
            }
            at -= share;
        }
        Path::Udp
    }

    fn join(&mut self, now: Instant, room: u32) -> Result<(), String> {
        self.joined += 1;
        let id = self.joined;
        let nth = self.rooms.get(&room).map_or(0, |r| r.asked);
        let publishes = nth < self.plan.rooms.publishers;
        let source = self.sockets.take()?;
        let credentials = Credentials { ufrag: self.secrets.ice_chars(8), pwd: self.secrets.ice_chars(24) };
        let peer = Peer::new(self.identity.clone(), self.clock.anchor(), credentials);
        let media = self.plan.media;
        let mut sections = Vec::new();
        if publishes {
            sections.extend(media.audio.then(|| Section::SendsAudio { ssrc: voice_ssrc(id as u32) }));
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
            way: Way::new(self.path(id), source),
            inbound: Inbound::default(),
            remote: None,
            sections,
            version: 0,
            requests: Some(requests),
            camera: None,
            publishes,
            ear: Ear::default(),
            asked_at: now,
            is_live: false,
            has_heard: false,
        };
        let request = self.request(&mut participant);
        let (token, news) = (self.token(room, nth)?, self.news.clone());
        tokio::spawn(signal::converse(self.front.clone(), token, request, queue, move |told| drop(news.send((id, told)))));
        self.by_source.insert(source, id);
        self.participants.insert(id, participant);
        self.agenda.arm(id, now + JOIN_WITHIN);
        if let Some(room) = self.rooms.get_mut(&room) {
            room.members.push(id);
            (room.asked, room.waiting) = (room.asked + 1, room.waiting + 1);
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
            News::Relays(relays) => self.may_relay(now, id, &relays),
            News::Down(message) => match *message {
                Down::Answer(answer) => match offer::read(&answer.sdp) {
                    Ok(remote) => self.answered(now, id, remote),
                    Err(error) => self.leave(id, Some(format!("the answer: {error}"))),
                },
                Down::Trickle(trickle) => self.trickled(now, id, &trickle.candidate_init),
                Down::MediaSectionsRequirement(wanted) => self.more_sections(id, wanted.num_audios, wanted.num_videos),
                Down::Leave(leave) => {
                    let reason = proto::DisconnectReason::try_from(leave.reason).unwrap_or_default();
                    self.leave(id, Some(format!("the server said: leave ({})", reason.as_str_name().to_ascii_lowercase())));
                }
                _ => {}
            },
        }
    }

    fn may_relay(&mut self, now: Instant, id: u64, relays: &[Relay]) {
        let Some(p) = self.participants.get_mut(&id) else { return };
        let path = p.way.path();
        if matches!(path, Path::Udp | Path::Tcp) {
            return;
        }
        match relays.iter().find(|r| r.path == path) {
            Some(relay) => p.way.allocate(now, id, relay, &self.front, &self.inlet),
            None => return self.leave(id, Some(format!("the server names no relay for {}", path.name()))),
        }
        self.send_of(id);
        self.rearm(id);
    }

    fn answered(&mut self, now: Instant, id: u64, remote: Remote) {
        let Some(p) = self.participants.get_mut(&id) else { return };
        match &mut p.remote {
            // Candidates may have come before.
            Some(known) => known.candidates.extend(remote.candidates),
            None => p.remote = Some(remote),
        }
        self.reach(now, id);
    }

    /// A candidate that comes by itself (RFC 8838), as browsers write it in JSON.
    fn trickled(&mut self, now: Instant, id: u64, init: &str) {
        let Some(remote) = self.participants.get_mut(&id).and_then(|p| p.remote.as_mut()) else { return };
        let line = serde_json::from_str::<serde_json::Value>(init).ok().and_then(|v| Some(v["candidate"].as_str()?.to_owned()));
        remote.candidates.extend(line.as_deref().and_then(offer::candidate));
        self.reach(now, id);
    }

    /// Takes the server's address, once it is known.
    fn reach(&mut self, now: Instant, id: u64) {
        let Some(p) = self.participants.get_mut(&id) else { return };
        let address = p.remote.as_ref().and_then(|r| r.address(p.way.path() == Path::Tcp, self.front.ip()));
        if let Some(address) = address {
            p.way.reach(now, id, address, &self.front, &self.inlet);
            self.connect(now, id);
        }
    }

    /// Datagrams may get through by now: then checks begin.
    fn connect(&mut self, now: Instant, id: u64) {
        let Some(p) = self.participants.get_mut(&id) else { return };
        if let (Some(remote), Some(_)) = (&p.remote, p.way.server()) {
            p.peer.connect(now, remote);
        }
        self.send_of(id);
        self.rearm(id);
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
        self.agenda.forget(id);
        self.by_source.remove(&p.way.source());
        let now = self.clock.now().mono;
        p.peer.close(&mut self.datagrams);
        p.way.send(&mut self.datagrams, &mut self.outgoing);
        // Behind the goodbye, which travels through it.
        p.way.free(now);
        p.way.send(&mut self.datagrams, &mut self.outgoing);
        self.report.unsent += self.sockets.send(&self.outgoing) + p.way.unsent;
        self.outgoing.clear();
        self.sockets.give_back(p.way.source());
        // The task says goodbye when nobody holds the other end.
        p.requests = None;
        self.report.left(&p.ear, self.plan, p.publishes, p.is_live);
        if failure.is_some() && p.is_live {
            self.disturb(now);
        }
        if let Some(why) = failure {
            let reasons = &mut self.report.failures;
            let key = if reasons.len() < REASONS_MAX || reasons.contains_key(&why) { why } else { "others".into() };
            *reasons.entry(key).or_default() += 1;
        }
        if let Some(room) = self.rooms.get_mut(&p.room) {
            room.members.retain(|m| *m != id);
        }
        if !p.is_live {
            self.settle(p.room);
        }
        self.rooms.retain(|_, room| !room.members.is_empty() || room.ends_at.is_none());
    }

    /// One less is waited for in a room; its time runs from when the last has come.
    fn settle(&mut self, room: u32) {
        let now = self.clock.now().mono;
        let size = self.plan.rooms.publishers + self.plan.rooms.subscribers;
        let Some(room) = self.rooms.get_mut(&room) else { return };
        room.waiting -= 1;
        if room.waiting == 0 && room.asked == size {
            room.ends_at = Some(now + self.plan.rooms.settles + self.plan.rooms.lasts);
            self.calm_due = Some(now + self.plan.rooms.settles);
        }
    }

    // ---- media ----------------------------------------------------------------------------------------------------

    /// Datagrams have come to the sockets.
    fn arrived(&mut self) {
        let now = self.clock.now().mono;
        let mut received = self.sockets.received();
        for (socket, received) in &mut received {
            let source = self.sockets.source_of(*socket, received);
            match self.by_source.get(&source) {
                Some(&id) => self.take(now, id, received.remote, &mut received.buf),
                None => self.report.strays += 1,
            }
        }
        self.sockets.done(received);
    }

    /// A connection has something to tell.
    fn carried(&mut self, id: u64, bytes: Bytes) {
        let now = self.clock.now().mono;
        let Some(p) = self.participants.get_mut(&id) else { return };
        let bytes = match bytes {
            Bytes::Opened => {
                if p.way.opened(now) {
                    return self.connect(now, id);
                }
                self.send_of(id);
                return self.rearm(id);
            }
            Bytes::Closed(why) => return self.leave(id, Some(why)),
            Bytes::Read(bytes) => bytes,
        };
        let Some(framing) = p.way.framing() else { return };
        let from = p.way.server().unwrap_or(SocketAddr::new(self.front.ip(), 0));
        // Taken out, so that the participant may be looked at while its bytes are.
        let mut inbound = std::mem::take(&mut p.inbound);
        inbound.push(&bytes);
        loop {
            match inbound.next(framing) {
                Ok(Some(message)) => self.take(now, id, from, message),
                Ok(None) => break,
                Err(why) => return self.leave(id, Some(why)),
            }
        }
        if let Some(p) = self.participants.get_mut(&id) {
            p.inbound = inbound;
        }
    }

    /// One message for a participant.
    fn take(&mut self, now: Instant, id: u64, from: SocketAddr, message: &mut [u8]) {
        let Some(p) = self.participants.get_mut(&id) else { return };
        let datagram = match p.way.take(now, message) {
            Told::Data(range) => &mut message[range],
            Told::Refused(why) => return self.leave(id, Some(why)),
            Told::Bound => return self.connect(now, id),
            Told::Allocated | Told::Nothing => {
                self.send_of(id);
                return self.rearm(id);
            }
        };
        let mut is_unlucky = || (self.dice.next_u64() as f64 / u64::MAX as f64) < self.plan.loss;
        if self.plan.loss > 0.0 && demux::datagram(datagram) == DatagramKind::Rtp && is_unlucky() {
            self.report.thrown_away += 1;
            return;
        }
        match p.peer.handle(now, from, datagram, &mut self.datagrams) {
            Incoming::Media(header, payload, index) => {
                if !std::mem::replace(&mut p.has_heard, true) {
                    self.report.first_media.add(now.since(p.asked_at));
                }
                self.received += 1;
                self.bytes += payload.len() as u64;
                if let Some(took) = p.ear.heard(now, &header, &datagram[payload], index) {
                    self.report.latency.add(took);
                    self.report.latency_of_second.add(took);
                    self.watch.took(took);
                }
                if p.ear.deadline() <= now {
                    self.wake(now, id);
                }
                return;
            }
            Incoming::Feedback(len) => {
                p.camera.iter_mut().for_each(|camera| camera.feedback(&datagram[..len]));
                return p.ear.told(now, &datagram[..len]);
            }
            Incoming::Live => self.went_live(now, id),
            Incoming::Other => {}
            Incoming::Refused => self.report.refused += 1,
            Incoming::Ended(why) => return self.leave(id, Some(why)),
        }
        self.send_of(id);
        self.rearm(id);
    }

    fn went_live(&mut self, now: Instant, id: u64) {
        let Some(p) = self.participants.get_mut(&id) else { return };
        p.is_live = true;
        self.report.joins.add(now.since(p.asked_at));
        if p.publishes && self.plan.media.tracks() > 0 {
            p.camera = Some(Camera::new(now, self.plan.media, id as u32));
        }
        let room = p.room;
        self.settle(room);
    }

    fn wake(&mut self, now: Instant, id: u64) {
        let Some(p) = self.participants.get_mut(&id) else { return };
        if !p.is_live && now.since(p.asked_at) >= JOIN_WITHIN {
            return self.leave(id, Some(format!("media was not connected within {} s", JOIN_WITHIN.as_secs())));
        }
        if p.way.deadline().is_some_and(|at| at <= now)
            && let Told::Refused(why) = p.way.wake(now)
        {
            return self.leave(id, Some(why));
        }
        if p.peer.deadline().is_some_and(|at| at <= now) {
            match p.peer.wake(now, &mut self.datagrams) {
                Incoming::Ended(why) => return self.leave(id, Some(why)),
                Incoming::Live => self.went_live(now, id),
                _ => {}
            }
        }
        let Some(p) = self.participants.get_mut(&id) else { return };
        if let (Some(camera), Some(sender), false) = (&mut p.camera, p.peer.sender(), self.watch.is_paused()) {
            let before = camera.sent;
            camera.wake(now, sender, &mut self.datagrams);
            self.sent += camera.sent - before;
        }
        let of_camera = p.camera.as_mut().and_then(|c| c.report(now));
        for compound in of_camera.into_iter().chain(p.ear.wake(now, REPORTS | id as u32)) {
            self.datagrams.extend(p.peer.protect_reports(compound));
        }
        self.send_of(id);
        self.rearm(id);
    }

    fn send_of(&mut self, id: u64) {
        match self.participants.get_mut(&id) {
            Some(p) => p.way.send(&mut self.datagrams, &mut self.outgoing),
            None => self.datagrams.clear(),
        }
    }

    fn flush(&mut self) {
        if !self.outgoing.is_empty() {
            self.report.unsent += self.sockets.send(&self.outgoing);
            self.outgoing.clear();
        }
    }

    /// When a participant is due next.
    fn rearm(&mut self, id: u64) {
        let Some(p) = self.participants.get(&id) else { return };
        let camera = p.camera.as_ref().map(Camera::deadline);
        let waiting = if p.is_live { p.ear.deadline() } else { p.asked_at + JOIN_WITHIN };
        if let Some(at) = [p.peer.deadline(), p.way.deadline(), camera, Some(waiting)].into_iter().flatten().min() {
            self.agenda.arm(id, at);
        }
    }
}
