//! Allocations alone, without a room: for any TURN server. Clients send to a peer of ours, or that peer to them, or both, at
//! a given rate, one by one or in runs; or nobody sends, and only memory is looked at. With another address as the peer, packets
//! go there and nothing is waited for.

use super::agenda::Agenda;
use super::camera::{STAMP_LEN, stamp, stamped};
use super::ear::Spread;
use super::report::{Mark, Window, spread_json, spread_text};
use super::signal::Front;
use super::sockets::Sockets;
use super::stream::{Bytes, Inlet};
use super::turn::{Login, Told};
use super::usage::Usage;
use super::way::{Inbound, Outgoing, Relay, Source, Way};
use super::{Watch, runtime};
use crate::base::time::{Duration, Instant};
use crate::io::clock::Clock;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

const TURN: Duration = Duration::from_millis(1);
/// Packets that are behind schedule are sent as far as this allows: a tool that was held up does not flood.
const LATE_MAX: Duration = Duration::from_millis(20);
/// How long packets under way are waited for in the end.
const DRAIN: Duration = Duration::from_millis(500);
const CHUNKS_MAX: usize = 4_096;
const CHUNKS_A_TURN: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// Client to peer.
    Up,
    /// Peer to client.
    Down,
    Both,
    /// Allocations without packets.
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnPeer {
    /// A socket of this tool's.
    Own,
    At(SocketAddr),
}

#[derive(Clone, Debug)]
pub struct RelayPlan {
    /// `turn:name:port?transport=udp` or `tcp`, `turns:name:port`.
    pub url: String,
    /// Where that is, when its name does not say.
    pub address: Option<SocketAddr>,
    pub authority: Option<PathBuf>,
    pub login: Login,
    pub allocations: u32,
    pub allocations_a_second: f64,
    pub peer: TurnPeer,
    pub direction: Direction,
    /// In each direction, of all allocations together.
    pub packets_a_second: f64,
    /// Packets of one allocation that leave together.
    pub run: u32,
    pub payload_len: usize,
    pub lasts: Duration,
    pub pid: Option<u32>,
}

/// One direction of a run.
#[derive(Clone, Default)]
pub struct Flow {
    pub sent: u64,
    pub received: u64,
    pub latency: Spread,
}

impl Flow {
    fn json(&self) -> Value {
        json!({ "sent": self.sent, "received": self.received, "lost": self.lost(), "latency": spread_json(&self.latency) })
    }

    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }
}

#[derive(Default)]
pub struct RelayReport {
    pub took: Duration,
    /// Allocations with a channel, and how long each took.
    pub setups: Spread,
    pub up: Flow,
    pub down: Flow,
    pub unsent: u64,
    pub failures: BTreeMap<String, u64>,
    pub joining: Option<Window>,
    pub steady: Option<Window>,
    /// Nothing comes back from a peer that is not ours.
    has_foreign_peer: bool,
}

impl RelayReport {
    pub fn has_failed(&self) -> bool {
        let is_deaf = |flow: &Flow| flow.sent > 0 && flow.received == 0;
        !self.failures.is_empty() || is_deaf(&self.down) || (is_deaf(&self.up) && !self.has_foreign_peer)
    }

    pub fn json(&self) -> Value {
        let n = self.setups.count.max(1) as f64;
        let per = |w: Option<Window>| w.and_then(|w| w.server).map(|u| u.cpu_s * 1e6 / n);
        let up = if self.has_foreign_peer { json!({ "sent": self.up.sent }) } else { self.up.json() };
        json!({
            "seconds": self.took.as_secs_f64(),
            "allocations": spread_json(&self.setups),
            "server_cpu_us_per_allocation": per(self.joining),
            "up": up,
            "down": self.down.json(),
            "unsent": self.unsent,
            "failures": self.failures,
            "joining": self.joining.as_ref().map(Window::json),
            "steady": self.steady.as_ref().map(Window::json),
        })
    }

    pub fn text(&self) -> String {
        let mut text = format!("{} allocations: {}\n", self.setups.count, spread_text(&self.setups));
        for (name, window) in [("allocating", self.joining), ("steady", self.steady)] {
            if let Some(window) = window {
                let _ = writeln!(text, "{name}, {}", window.line());
            }
        }
        for (name, flow) in [("client to peer", &self.up), ("peer to client", &self.down)] {
            match flow.sent {
                0 => {}
                sent if self.has_foreign_peer => drop(writeln!(text, "{name}: {sent} sent, to a peer that does not answer")),
                sent => {
                    let lost = flow.lost();
                    let _ = writeln!(text, "{name}: {sent} sent, {lost} lost, one way {}", spread_text(&flow.latency));
                }
            }
        }
        let _ = writeln!(text, "not taken by the kernel: {}", self.unsent);
        for (why, count) in &self.failures {
            let _ = writeln!(text, "failed, {count}: {why}");
        }
        text
    }
}

struct Client {
    way: Way,
    inbound: Inbound,
    asked_at: Instant,
}

struct Stage<'a> {
    plan: &'a RelayPlan,
    watch: &'a Watch,
    clock: Clock,
    front: Front,
    relay: Relay,
    inlet: Inlet,
    sockets: Sockets,
    /// The socket of our peer, and its address.
    peers: Sockets,
    peer: SocketAddr,
    clients: BTreeMap<u64, Client>,
    by_source: HashMap<Source, u64>,
    agenda: Agenda,
    begun: u32,
    began: Instant,
    /// Clients that are ready, in turn, and where each is reached from the peer.
    ready: Vec<(u64, SocketAddr)>,
    /// Whose turn it is, up and down.
    next: [usize; 2],
    /// Until when packets have been sent.
    paid_until: Option<Instant>,
    datagrams: Vec<Vec<u8>>,
    outgoing: Vec<Outgoing>,
    start: Mark,
    steady_from: Option<Mark>,
    report: RelayReport,
}

/// Runs the plan to its end; `progress` is told a line each second.
pub fn run(plan: &RelayPlan, watch: &Watch, progress: &mut dyn FnMut(&str)) -> Result<RelayReport, String> {
    runtime()?.block_on(stage(plan, watch, progress))
}

async fn stage(plan: &RelayPlan, watch: &Watch, progress: &mut dyn FnMut(&str)) -> Result<RelayReport, String> {
    let clock = Clock::start();
    let (front, relay) = Front::find_relay(&plan.url, plan.address, plan.authority.as_deref(), &plan.login).await?;
    let (inlet, mut chunks) = mpsc::channel(CHUNKS_MAX);
    let peers = Sockets::single()?;
    let peer = match plan.peer {
        TurnPeer::At(peer) => peer,
        TurnPeer::Own => SocketAddr::new(own_address_towards(relay.target.address)?, peers.port()?),
    };
    let began = clock.now().mono;
    let mut stage = Stage {
        plan,
        watch,
        clock,
        sockets: Sockets::new(front.is_loopback())?,
        front,
        relay,
        inlet,
        peers,
        peer,
        clients: BTreeMap::new(),
        by_source: HashMap::new(),
        agenda: Agenda::default(),
        begun: 0,
        began,
        ready: Vec::new(),
        next: [0; 2],
        paid_until: None,
        datagrams: Vec::new(),
        outgoing: Vec::new(),
        start: Mark::default(),
        steady_from: None,
        report: RelayReport { has_foreign_peer: plan.peer != TurnPeer::Own, ..RelayReport::default() },
    };
    stage.start = stage.mark(began);
    let mut turn = tokio::time::interval(TURN);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let (mut some_chunks, mut told_at) = (Vec::new(), began);
    loop {
        tokio::select! {
            biased;
            _ = turn.tick() => stage.turn()?,
            n = chunks.recv_many(&mut some_chunks, CHUNKS_A_TURN) => {
                debug_assert!(n > 0, "the stage holds an inlet");
                some_chunks.drain(..).for_each(|(id, bytes)| stage.carried(id, bytes));
            }
            () = stage.sockets.arrival() => stage.arrived(),
            () = stage.peers.arrival() => stage.peer_heard(),
        }
        stage.flush();
        let now = clock.now().mono;
        if now.since(told_at) >= Duration::from_secs(1) {
            told_at = now;
            progress(&stage.line(now));
        }
        let end = stage.steady_from.map(|from| from.at + plan.lasts);
        if watch.is_over() || end.is_some_and(|end| now >= end + DRAIN) || stage.has_nobody() {
            break;
        }
    }
    stage.close(clock.now().mono);
    Ok(stage.report)
}

/// The address that packets to the relay leave from.
fn own_address_towards(relay: SocketAddr) -> Result<IpAddr, String> {
    let any: SocketAddr = if relay.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = std::net::UdpSocket::bind(any).and_then(|s| s.connect(relay).map(|()| s));
    socket.and_then(|s| s.local_addr()).map(|a| a.ip()).map_err(|e| format!("no way to {relay}: {e}"))
}

impl Stage<'_> {
    /// All that were to come failed.
    fn has_nobody(&self) -> bool {
        self.begun == self.plan.allocations && self.clients.is_empty()
    }

    fn mark(&self, at: Instant) -> Mark {
        let (sent, received) = (self.report.up.sent + self.report.down.sent, self.report.up.received + self.report.down.received);
        let server = self.plan.pid.and_then(Usage::of);
        Mark { at, sent, received, bytes: received * self.plan.payload_len as u64, server, own: Usage::own() }
    }

    fn turn(&mut self) -> Result<(), String> {
        let now = self.clock.now().mono;
        let allowed = (self.plan.allocations_a_second * now.since(self.began).as_secs_f64()) as u64 + 1;
        while self.begun < self.plan.allocations && u64::from(self.begun) < allowed {
            self.begun += 1;
            self.begin(now)?;
        }
        for id in self.agenda.take(now) {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            match client.way.wake(now) {
                Told::Refused(why) => self.lose(id, why),
                _ => self.send_of(id),
            }
        }
        let is_sending = self.steady_from.is_some_and(|from| now < from.at + self.plan.lasts);
        if is_sending && !self.watch.is_paused() {
            self.pay(now);
        } else {
            self.paid_until = None;
        }
        if let Some(from) = self.steady_from.filter(|from| now >= from.at + self.plan.lasts && self.report.steady.is_none()) {
            self.report.steady = Some(from.until(&self.mark(now)));
        }
        Ok(())
    }

    fn begin(&mut self, now: Instant) -> Result<(), String> {
        let (id, source) = (u64::from(self.begun), self.sockets.take()?);
        let mut way = Way::new(self.relay.path, source);
        way.allocate(now, id, &self.relay, &self.front, &self.inlet);
        way.reach(now, id, self.peer, &self.front, &self.inlet);
        self.by_source.insert(source, id);
        self.clients.insert(id, Client { way, inbound: Inbound::default(), asked_at: now });
        self.send_of(id);
        Ok(())
    }

    /// Packets that are due since the last time.
    fn pay(&mut self, now: Instant) {
        // At a low rate a run may be due less often than that.
        let late_max = LATE_MAX.max(Duration::from_secs_f64(f64::from(self.plan.run) / self.plan.packets_a_second));
        let paid = self.paid_until.unwrap_or(now).max(now - late_max);
        let runs = (self.plan.packets_a_second * now.since(paid).as_secs_f64() / f64::from(self.plan.run)) as u64;
        let worth = Duration::from_secs_f64(runs as f64 * f64::from(self.plan.run) / self.plan.packets_a_second);
        self.paid_until = Some(paid + worth);
        for _ in 0..runs {
            if matches!(self.plan.direction, Direction::Up | Direction::Both) {
                self.send_up(now);
            }
            if matches!(self.plan.direction, Direction::Down | Direction::Both) {
                self.send_down(now);
            }
        }
    }

    fn payload(&self, now: Instant) -> Vec<u8> {
        // The first byte of RTP: relays that look inside take it for media.
        let mut payload = vec![0x80; self.plan.payload_len.max(STAMP_LEN)];
        stamp(now, &mut payload);
        payload
    }

    fn send_up(&mut self, now: Instant) {
        let Some((id, _)) = self.turn_of(0) else { return };
        self.datagrams.extend((0..self.plan.run).map(|_| Vec::new()));
        for at in 0..self.datagrams.len() {
            self.datagrams[at] = self.payload(now);
        }
        self.report.up.sent += u64::from(self.plan.run);
        self.send_of(id);
    }

    fn send_down(&mut self, now: Instant) {
        let Some((_, relayed)) = self.turn_of(1) else { return };
        let source = Source { socket: 0, ip: self.peer.ip() };
        let run: Vec<Outgoing> = (0..self.plan.run).map(|_| Outgoing { source, to: relayed, bytes: self.payload(now) }).collect();
        self.report.down.sent += run.len() as u64;
        self.report.unsent += self.peers.send(&run);
    }

    fn turn_of(&mut self, direction: usize) -> Option<(u64, SocketAddr)> {
        let at = &mut self.next[direction];
        *at = if *at + 1 < self.ready.len() { *at + 1 } else { 0 };
        self.ready.get(*at).copied()
    }

    fn arrived(&mut self) {
        let now = self.clock.now().mono;
        let received = self.sockets.received();
        for (socket, datagram) in &received {
            let source = self.sockets.source_of(*socket, datagram);
            if let Some(&id) = self.by_source.get(&source) {
                self.take(now, id, &datagram.buf);
            }
        }
        self.sockets.done(received);
    }

    fn carried(&mut self, id: u64, bytes: Bytes) {
        let now = self.clock.now().mono;
        let Some(client) = self.clients.get_mut(&id) else { return };
        let bytes = match bytes {
            Bytes::Opened => {
                client.way.opened(now);
                return self.send_of(id);
            }
            Bytes::Closed(why) => return self.lose(id, why),
            Bytes::Read(bytes) => bytes,
        };
        let Some(framing) = client.way.framing() else { return };
        let mut inbound = std::mem::take(&mut client.inbound);
        inbound.push(&bytes);
        loop {
            match inbound.next(framing) {
                Ok(Some(message)) => self.take(now, id, message),
                Ok(None) => break,
                Err(why) => return self.lose(id, why),
            }
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.inbound = inbound;
        }
    }

    fn take(&mut self, now: Instant, id: u64, message: &[u8]) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match client.way.take(now, message) {
            Told::Data(range) => {
                self.report.down.received += 1;
                if let Some(sent) = stamped(&message[range]) {
                    self.report.down.latency.add(now.since(sent));
                }
            }
            Told::Bound => {
                self.report.setups.add(now.since(client.asked_at));
                self.ready.extend(client.way.relayed().map(|relayed| (id, relayed)));
                self.look_for_calm(now);
                self.send_of(id);
            }
            Told::Refused(why) => self.lose(id, why),
            Told::Allocated | Told::Nothing => self.send_of(id),
        }
    }

    /// Everybody is ready: packets flow from here on.
    fn look_for_calm(&mut self, now: Instant) {
        if self.steady_from.is_none() && self.begun == self.plan.allocations && self.ready.len() == self.clients.len() {
            let mark = self.mark(now);
            self.report.joining = Some(self.start.until(&mark));
            self.steady_from = Some(mark);
        }
    }

    fn lose(&mut self, id: u64, why: String) {
        let Some(mut client) = self.clients.remove(&id) else { return };
        client.way.free(self.clock.now().mono);
        client.way.send(&mut self.datagrams, &mut self.outgoing);
        self.flush();
        self.agenda.forget(id);
        self.by_source.remove(&client.way.source());
        self.sockets.give_back(client.way.source());
        self.ready.retain(|(ready, _)| *ready != id);
        *self.report.failures.entry(why).or_default() += 1;
        self.look_for_calm(self.clock.now().mono);
    }

    /// Our peer has received.
    fn peer_heard(&mut self) {
        let now = self.clock.now().mono;
        let received = self.peers.received();
        self.report.up.received += received.len() as u64;
        for (_, datagram) in &received {
            if let Some(sent) = stamped(&datagram.buf) {
                self.report.up.latency.add(now.since(sent));
            }
        }
        self.peers.done(received);
    }

    fn send_of(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return self.datagrams.clear() };
        client.way.send(&mut self.datagrams, &mut self.outgoing);
        if let Some(at) = client.way.deadline() {
            self.agenda.arm(id, at);
        }
    }

    fn flush(&mut self) {
        if !self.outgoing.is_empty() {
            self.report.unsent += self.sockets.send(&self.outgoing);
            self.outgoing.clear();
        }
        self.watch.sent.store(self.report.up.sent + self.report.down.sent, Ordering::Relaxed);
        self.watch.received.store(self.report.up.received + self.report.down.received, Ordering::Relaxed);
        self.watch.live.store(self.ready.len() as u64, Ordering::Relaxed);
        self.watch.failed.store(self.report.failures.values().sum(), Ordering::Relaxed);
    }

    fn line(&self, now: Instant) -> String {
        let (up, down) = (&self.report.up, &self.report.down);
        format!(
            "{:>5} s  allocations {} of {}, failed {}, up {} sent {} received, down {} sent {} received",
            now.since(self.began).as_secs(),
            self.ready.len(),
            self.plan.allocations,
            self.report.failures.values().sum::<u64>(),
            up.sent,
            up.received,
            down.sent,
            down.received,
        )
    }

    fn close(&mut self, now: Instant) {
        self.report.took = now.since(self.began);
        if let (Some(from), None) = (self.steady_from, &self.report.steady) {
            self.report.steady = Some(from.until(&self.mark(now)));
        }
        self.report.unsent += self.clients.values().map(|c| c.way.unsent).sum::<u64>();
        for client in self.clients.values_mut() {
            client.way.free(now);
            client.way.send(&mut self.datagrams, &mut self.outgoing);
        }
        self.report.unsent += self.sockets.send(&self.outgoing);
    }
}
