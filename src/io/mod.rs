//! Floor 5: the driver with real sockets and a real clock. One worker is one pinned thread, one current-thread runtime and
//! one root future, which runs the turn: UDP batches, ready connections (mail before each is acted on), timers, egress, flush,
//! sleep.

pub mod clock;
mod inbox;
mod ready;
mod relays;
mod stream;
pub mod udp;

pub use inbox::Inbox;
pub use stream::Visitor;

use crate::base::id::{AllocationId, Carrier, ClientAddr, IdMap, PeerAddr, SocketId, StreamId, WorkerId};
use crate::base::net::source_of;
use crate::base::time::{Duration, Instant, Now};
use crate::engine::relay_table::Family;
use crate::engine::turn::Icmp;
use crate::shard::Shard;
use crate::shard::counters::Counter;
use crate::shard::egress::Outlet;
use crate::shard::mail::{Effect, Report};
use clock::Clock;
use inbox::{Freight, MovedStream, Outbox, RING};
use ipnet::IpNet;
use ready::ReadyList;
use relays::{RelayName, Relays};
use rtrb::Consumer;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use stream::{Stream, Turn, Why};
use tokio::net::TcpListener;
use tokio::time::Sleep;
use udp::{Batch, Received, Transmit, UdpSocket, Undelivered};

/// Turns in a row before other tasks of the runtime get their chance.
const TURNS_MAX: usize = 64;
/// Datagrams of one batch before what they make is sent.
const DATAGRAMS_MAX: usize = 256;
/// Relays that are read before what they brought is sent.
const RELAYS_MAX: usize = 64;
/// The kernel chooses the source: a relay's socket has but one.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// How often openings and unused connections are looked over.
const SWEEP: Duration = Duration::from_secs(1);
const BACKLOG: i32 = 1024;
/// Errors of accept(2) that say that this process, or the host, can open nothing more.
const NO_FILES: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];

/// What a TCP port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerRole {
    /// Everything: TLS, TURN, ICE-TCP, HTTP.
    Edge,
    /// STUN and TURN.
    Turn,
}

/// Sockets of one worker, bound and not yet tied to its runtime.
pub struct Sockets {
    udp: Vec<Socket>,
    tcp: Vec<(Socket, ListenerRole)>,
}

/// Binds the same addresses for every worker. Each address is bound once alone first: a second instance would otherwise
/// join the group and take its share of our packets.
pub fn bind(workers: usize, udp: &[SocketAddr], tcp: &[(SocketAddr, ListenerRole)]) -> Result<Vec<Sockets>, String> {
    for address in udp {
        bind_alone(*address, Type::DGRAM, Protocol::UDP).map_err(|e| taken("UDP", *address, &e))?;
    }
    for (address, _) in tcp {
        bind_alone(*address, Type::STREAM, Protocol::TCP).map_err(|e| taken("TCP", *address, &e))?;
    }
    (0..workers)
        .map(|_| {
            let udp = udp.iter().map(|a| udp::bind(*a).map_err(|e| taken("UDP", *a, &e)));
            let tcp = tcp.iter().map(|(a, role)| Ok((listen(*a).map_err(|e| taken("TCP", *a, &e))?, *role)));
            Ok(Sockets { udp: udp.collect::<Result<_, String>>()?, tcp: tcp.collect::<Result<_, String>>()? })
        })
        .collect()
}

fn taken(transport: &str, address: SocketAddr, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "another program (or another Postern) has it: stop that one, or name another port",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "no interface has this address: check network.bind_addresses",
        _ => "check network.* in the config",
    };
    format!("cannot bind {transport} {address}: {error}; {remedy}")
}

fn bind_alone(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections in TIME_WAIT of an earlier run are no second instance; its listeners are.
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.bind(&SockAddr::from(address))?;
    if kind == Type::STREAM {
        socket.listen(1)?;
    }
    Ok(())
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Where connections go that speak HTTP; `false` refuses one.
pub type HttpDoor = Arc<dyn Fn(Visitor) -> bool + Send + Sync>;
/// Where a shard's reports go.
pub type ReportSink = Arc<dyn Fn(WorkerId, Report) + Send + Sync>;

/// What a worker is made from, besides its shard.
pub struct WorkerSetup {
    pub id: WorkerId,
    pub core: Option<usize>,
    pub sockets: Sockets,
    pub tls: Arc<ServerConfig>,
    pub inboxes: Vec<Arc<Inbox>>,
    pub clock: Clock,
    pub http: HttpDoor,
    pub reports: ReportSink,
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub half_open_per_address_max: usize,
    /// Relayed addresses that stand for another address of this host's, and that one.
    pub relays_bound_to: Vec<(IpAddr, IpAddr)>,
    /// Who may say by a PROXY header for whom it connects.
    pub trusted_proxies: Vec<IpNet>,
}

/// Runs a worker on the calling thread until it is told to stop.
pub fn run(setup: WorkerSetup, shard: Shard) -> Result<(), String> {
    if let Some(core) = setup.core {
        let mut set = nix::sched::CpuSet::new();
        if set.set(core).and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)).is_err() {
            tracing::warn!(worker = setup.id.0, core, "cannot pin the worker to its core");
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("worker runtime: {e}"))?;
    runtime.block_on(async {
        let mut worker = Worker::new(setup, shard).map_err(|e| format!("worker sockets: {e}"))?;
        tokio::task::unconstrained(std::future::poll_fn(move |cx| worker.poll(cx))).await;
        Ok(())
    })
}

struct Worker {
    id: WorkerId,
    shard: Shard,
    clock: Clock,
    udp: Vec<UdpSocket>,
    listeners: Vec<(TcpListener, ListenerRole)>,
    streams: IdMap<StreamId, Stream>,
    streams_made: u64,
    half_open: HashMap<IpAddr, usize>,
    ready: Arc<ReadyList<StreamId>>,
    ready_now: Vec<StreamId>,
    relays: Relays,
    ready_relays: Vec<RelayName>,
    undelivered: Vec<Undelivered>,
    inbox: Arc<Inbox>,
    outbox: Outbox,
    /// It was told to end.
    is_over: bool,
    rings: Vec<(WorkerId, Consumer<Freight>)>,
    freight: Vec<(WorkerId, Freight)>,
    tls: Arc<ServerConfig>,
    http: HttpDoor,
    reports: ReportSink,
    trusted_proxies: Vec<IpNet>,
    connections_max: usize,
    connections_per_address_max: usize,
    half_open_max: usize,
    batch: Batch,
    /// Room for what a turn sends: a list for each socket, and one for relays.
    lists: Vec<Vec<Transmit<'static>>>,
    received: Vec<Received>,
    plaintext: Vec<u8>,
    sleep: Pin<Box<Sleep>>,
    sweep_due: Instant,
    /// When connections are accepted again, out of descriptors.
    accept_due: Option<Instant>,
    /// When something that repeats is worth a line again.
    note_due: Instant,
}

impl Worker {
    fn new(setup: WorkerSetup, mut shard: Shard) -> io::Result<Self> {
        let batch = Batch::new(&mut shard.pool);
        let inbox = Arc::clone(&setup.inboxes[usize::from(setup.id.0)]);
        let listeners = setup.sockets.tcp.into_iter().map(|(socket, role)| Ok((TcpListener::from_std(socket.into())?, role)));
        Ok(Self {
            id: setup.id,
            clock: setup.clock,
            lists: setup.sockets.udp.iter().map(|_| Vec::new()).chain([Vec::new()]).collect(),
            udp: setup.sockets.udp.into_iter().map(UdpSocket::register).collect::<io::Result<_>>()?,
            listeners: listeners.collect::<io::Result<_>>()?,
            streams: IdMap::default(),
            streams_made: 0,
            half_open: HashMap::new(),
            ready: Arc::default(),
            ready_now: Vec::new(),
            relays: Relays::new(setup.relays_bound_to),
            ready_relays: Vec::new(),
            undelivered: Vec::new(),
            inbox,
            outbox: Outbox::new(setup.id, setup.inboxes),
            is_over: false,
            rings: Vec::new(),
            freight: Vec::new(),
            tls: setup.tls,
            http: setup.http,
            reports: setup.reports,
            trusted_proxies: setup.trusted_proxies,
            connections_max: setup.connections_max,
            connections_per_address_max: setup.connections_per_address_max,
            half_open_max: setup.half_open_per_address_max,
            batch,
            received: Vec::new(),
            plaintext: Vec::new(),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            sweep_due: setup.clock.now().mono + SWEEP,
            accept_due: None,
            note_due: setup.clock.now().mono,
            shard,
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let woke = self.clock.now().mono;
        let poll = self.turns(cx);
        self.shard.load.was_busy(self.clock.now().mono.since(woke));
        poll
    }

    fn turns(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.inbox.is_awake();
        self.inbox.turns();
        self.ready.root.register(cx.waker());
        self.relays.ready.root.register(cx.waker());
        for _ in 0..TURNS_MAX {
            let mut busy = self.udp_turn(cx);
            busy |= self.relay_turn();
            busy |= self.accept_turn(cx);
            busy |= self.stream_turn();
            let now = self.clock.now();
            busy |= self.mail_turn(now);
            if self.is_over {
                self.effects_turn();
                self.write_turn();
                self.flush();
                return Poll::Ready(());
            }
            busy |= self.send_turn();
            busy |= self.outbox.retry();
            if busy {
                continue;
            }
            // Published first, then looked once more: a parcel pushed in between is seen here or wakes us.
            self.inbox.falls_asleep(cx.waker());
            if self.inbox.has_mail() || self.rings.iter().any(|(_, ring)| !ring.is_empty()) {
                self.inbox.is_awake();
                continue;
            }
            if self.arm(cx) {
                return Poll::Pending;
            }
            self.inbox.is_awake();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sleeps until the next deadline; `false` when that is now.
    fn arm(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = self.shard.deadline().map_or(self.sweep_due, |at| at.min(self.sweep_due));
        let at = tokio::time::Instant::from_std(self.clock.anchor().to_std(deadline));
        self.sleep.as_mut().reset(at);
        self.sleep.as_mut().poll(cx).is_pending()
    }

    fn udp_turn(&mut self, cx: &mut Context<'_>) -> bool {
        let mut busy = false;
        for at in 0..self.udp.len() {
            let socket = &self.udp[at];
            if !matches!(socket.poll_recv(cx, &mut self.batch, &mut self.shard.pool, &mut self.received), Poll::Ready(_)) {
                continue;
            }
            busy = true;
            let now = self.hear_news();
            let mut received = std::mem::take(&mut self.received);
            for (n, Received { remote, local, buf }) in received.drain(..).enumerate() {
                if n > 0 && n % DATAGRAMS_MAX == 0 {
                    // Long runs came in: what they make is sent before it piles up.
                    self.send_turn();
                }
                let carrier = Carrier::Udp { socket: SocketId(at as u8), local, remote: ClientAddr(remote) };
                self.shard.handle_datagram(now, carrier, buf);
            }
            self.received = received;
        }
        let counters = &self.shard.counters;
        counters.add(Counter::MessagesIn, std::mem::take(&mut self.batch.received));
        for (count, why) in [(&mut self.batch.too_long, Counter::DropTooLong), (&mut self.batch.unanswerable, Counter::DropNoSource)] {
            if *count > 0 {
                counters.add(Counter::DatagramsIn, *count);
                counters.add(why, std::mem::take(count));
            }
        }
        busy
    }

    /// What peers sent to relays.
    fn relay_turn(&mut self) -> bool {
        let mut names = std::mem::take(&mut self.ready_relays);
        self.relays.take_ready(&mut names);
        let busy = !names.is_empty();
        for (n, name) in names.drain(..).enumerate() {
            if n > 0 && n % RELAYS_MAX == 0 {
                self.send_turn();
            }
            let (mut received, mut undelivered) = (std::mem::take(&mut self.received), std::mem::take(&mut self.undelivered));
            self.relays.read(name, &mut self.batch, &mut self.shard.pool, &mut received, &mut undelivered);
            let now = self.hear_news();
            for Received { remote, buf, .. } in received.drain(..) {
                self.shard.handle_relayed(now, name.0, PeerAddr(remote), buf);
            }
            for Undelivered { to, kind, code, mtu } in undelivered.drain(..) {
                self.shard.relay_undelivered(now, name.0, PeerAddr(to), Icmp { kind, code, data: mtu });
            }
            (self.received, self.undelivered) = (received, undelivered);
        }
        self.ready_relays = names;
        busy
    }

    fn accept_turn(&mut self, cx: &mut Context<'_>) -> bool {
        let mut busy = false;
        if self.accept_due.is_some_and(|due| due > self.clock.now().mono) {
            return false;
        }
        self.accept_due = None;
        for (listener, role) in &self.listeners {
            let Poll::Ready(accepted) = listener.poll_accept(cx) else { continue };
            busy = true;
            let (tcp, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if error.raw_os_error().is_some_and(|code| NO_FILES.contains(&code)) => {
                    // What waits stays in the backlog until some are free.
                    self.shard.counters.count(Counter::RefusedNoFiles);
                    self.accept_due = Some(self.clock.now().mono + SWEEP);
                    break;
                }
                // It was gone before it was accepted.
                Err(_) => continue,
            };
            let is_trusted = self.trusted_proxies.iter().any(|net| net.contains(&remote.ip()));
            let source = source_of(remote.ip());
            let half_open = self.half_open.get(&source).copied().unwrap_or(0);
            let of_address = || self.streams.values().filter(|stream| source_of(stream.neighbour.ip()) == source).count();
            let per_address = self.connections_per_address_max;
            let refusal = match () {
                () if self.streams.len() >= self.connections_max => Some(Counter::RefusedConnectionsFull),
                // All clients of a proxy come from its one address.
                () if self.streams.len() >= per_address && !is_trusted && of_address() >= per_address => Some(Counter::RefusedPerAddress),
                () if half_open >= self.half_open_max && !is_trusted => Some(Counter::RefusedHalfOpen),
                () => None,
            };
            if let Some(counter) = refusal {
                self.shard.counters.count(counter);
                continue;
            }
            self.half_open.insert(source, half_open + 1);
            self.streams_made += 1;
            let id = StreamId(u64::from(self.id.0) << 56 | self.streams_made);
            let now = self.clock.now().mono;
            self.streams.insert(id, Stream::new(id, tcp, remote, *role == ListenerRole::Turn, is_trusted, now, &self.ready));
            self.ready_now.push(id);
        }
        busy
    }

    fn stream_turn(&mut self) -> bool {
        let mut ids = std::mem::take(&mut self.ready_now);
        self.ready.take(&mut ids);
        ids.sort_unstable();
        ids.dedup();
        let busy = !ids.is_empty();
        for id in ids.drain(..) {
            self.one_stream(id);
        }
        // Whoever had more to read than its share comes again.
        ids.append(&mut self.ready_now);
        self.ready_now = ids;
        busy
    }

    fn one_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.flush().is_err() {
            return self.close(id);
        }
        match stream.read_turn(&self.tls) {
            Turn::Waits => {}
            Turn::Busy => self.ready_now.push(id),
            Turn::Closed(why) => {
                tracing::debug!(worker = self.id.0, stream = id.0, ?why, framed = stream.is_framed(), "a connection ended");
                match why {
                    Why::Gone => {}
                    Why::UnknownOpening => self.shard.counters.count(Counter::ClosedUnknownOpening),
                    Why::Proxy => self.shard.counters.count(Counter::ClosedProxy),
                    Why::Tls => self.shard.counters.count(Counter::ClosedTls),
                }
                return self.close(id);
            }
            Turn::Told(role) => {
                let (neighbour, remote, tls) = (stream.neighbour, stream.remote, stream.tls());
                self.opened(neighbour.ip());
                self.shard.stream_opened(id, role, remote, tls);
                self.ready_now.push(id);
            }
            Turn::Http => return self.hand_over(id),
        }
        if self.shard.knows_stream(id) {
            let now = self.hear_news();
            self.frames(now, id);
        }
        if self.shard.has_frames(id) {
            // Other workers are told before whoever asked is answered.
            self.effects_turn();
            self.write_stream(id);
        }
    }

    fn frames(&mut self, now: Now, id: StreamId) {
        while self.shard.knows_stream(id) {
            let Some(stream) = self.streams.get_mut(&id) else { return };
            let mut buf = self.shard.pool.take();
            match stream.next_frame(now.mono, |frame| buf.fill(frame)) {
                Ok(Some(true)) => self.shard.handle_frame(now, id, buf),
                Ok(Some(false)) => {
                    self.shard.counters.count(Counter::FramesIn);
                    self.shard.counters.count(Counter::DropTooLong);
                    self.shard.pool.put(buf);
                }
                Ok(None) => return self.shard.pool.put(buf),
                Err(()) => {
                    self.shard.counters.count(Counter::ClosedFraming);
                    self.shard.pool.put(buf);
                    return self.close(id);
                }
            }
        }
    }

    fn opened(&mut self, ip: IpAddr) {
        let source = source_of(ip);
        if let Some(count) = self.half_open.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.half_open.remove(&source);
            }
        }
    }

    fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            if !stream.is_framed() {
                self.opened(stream.neighbour.ip());
            }
            self.shard.stream_closed(self.clock.now(), id);
        }
    }

    fn hand_over(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.opened(stream.neighbour.ip());
            let is_taken = stream.hand_over().is_ok_and(|visitor| (self.http)(visitor));
            if !is_taken {
                self.shard.counters.count(Counter::RefusedHttpBusy);
            }
        }
    }

    /// Between reading from the network and acting on it: what came may rest on an answer that another worker gave, which had told us
    /// before it answered. The time at which both are acted on.
    fn hear_news(&mut self) -> Now {
        if self.shard.egress.is_full() {
            // Media of others is in the news too.
            self.send_turn();
        }
        let now = self.clock.now();
        self.mail_turn(now);
        now
    }

    /// What the control plane and other workers have sent.
    fn mail_turn(&mut self, now: Now) -> bool {
        let mut busy = false;
        let mut freight = std::mem::take(&mut self.freight);
        loop {
            // What others sent is taken out first: whatever it refers to was commanded before and is seen below.
            for (from, ring) in &mut self.rings {
                freight.extend(std::iter::from_fn(|| ring.pop().ok()).take(RING).map(|f| (*from, f)));
            }
            let Some(mail) = self.inbox.take() else { break };
            busy = true;
            let is_complete = mail.rings.is_empty();
            self.rings.extend(mail.rings);
            for command in mail.commands {
                self.shard.handle_command(now, command);
            }
            self.is_over |= mail.stop;
            if is_complete {
                break;
            }
        }
        for (from, freight) in freight.drain(..) {
            busy = true;
            match freight {
                Freight::Parcel(parcel) => self.shard.handle_parcel(now, from, parcel),
                Freight::Stream(moved) => self.adopt(now, *moved),
            }
        }
        self.freight = freight;
        busy
    }

    fn adopt(&mut self, now: Now, moved: MovedStream) {
        let MovedStream { id, stream, cargo } = moved;
        self.shard.adopt_stream(now, id, cargo);
        match stream.register(id, &self.ready) {
            Ok(stream) => {
                self.streams.insert(id, stream);
                self.frames(now, id);
                self.ready_now.push(id);
            }
            Err(_) => self.shard.stream_closed(now, id),
        }
    }

    /// Sends what this turn has brought, piece by piece.
    fn send_turn(&mut self) -> bool {
        // What is on its way to another worker goes before anything is looked over for being unused.
        let mut busy = self.effects_turn();
        loop {
            busy |= self.time_turn();
            busy |= self.effects_turn();
            self.write_turn();
            self.flush();
            if !self.shard.is_behind() {
                return busy;
            }
        }
    }

    fn time_turn(&mut self) -> bool {
        let now = self.clock.now();
        self.shard.wake(now);
        if self.sweep_due > now.mono {
            return false;
        }
        self.sweep_due = now.mono + SWEEP;
        let shard = &self.shard;
        let overdue = |(id, stream): (&StreamId, &Stream)| Some((*id, stream.overdue(now.mono, || shard.uses_stream(now, *id))?));
        let overdue: Vec<(StreamId, Counter)> = self.streams.iter().filter_map(overdue).collect();
        for (id, why) in overdue {
            self.shard.counters.count(why);
            self.close(id);
        }
        true
    }

    fn effects_turn(&mut self) -> bool {
        let effects = self.shard.take_effects();
        let busy = !effects.is_empty();
        for effect in effects {
            match effect {
                Effect::Report(report) => (self.reports)(self.id, report),
                Effect::Parcel { to, parcel } => {
                    if let Err(drop) = self.outbox.send(to, Freight::Parcel(parcel)) {
                        self.shard.counters.count(drop);
                    }
                }
                Effect::MoveStream { stream: id, to, cargo } => {
                    let Some(Ok(stream)) = self.streams.remove(&id).map(Stream::unregister) else {
                        self.shard.cargo_lost(self.clock.now(), *cargo);
                        continue;
                    };
                    let moved = Box::new(MovedStream { id, stream, cargo: *cargo });
                    if let Err(drop) = self.outbox.send(to, Freight::Stream(moved)) {
                        self.shard.counters.count(drop);
                    }
                }
                Effect::CloseStream { stream } => {
                    self.write_stream(stream);
                    self.close(stream);
                }
                Effect::OpenRelay { allocation, at } => {
                    let opened = self.relays.open(allocation, at);
                    if let Err(error) = &opened
                        && self.note_due <= self.clock.now().mono
                    {
                        // Any client can ask for one at any time.
                        self.note_due = self.clock.now().mono + SWEEP;
                        tracing::warn!(worker = self.id.0, address = %at.0, %error, "a relay's socket cannot be opened; its client is told 508");
                    }
                    self.shard.relay_opened(self.clock.now(), allocation, Family::of(at.ip()), opened.is_ok());
                }
                Effect::CloseRelay { allocation, family } => self.relays.close(allocation, family),
            }
        }
        busy
    }

    fn write_turn(&mut self) {
        let mut ids = self.shard.take_writable();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            self.write_stream(id);
        }
    }

    /// Frames of the turn leave in one write; a full socket leaves the rest in the queue, where it can still be dropped.
    fn write_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        while stream.is_hungry() && self.shard.has_frames(id) {
            self.plaintext.clear();
            self.shard.take_frames(id, Stream::budget(), &mut self.plaintext);
            if stream.write(&self.plaintext).is_err() {
                return self.close(id);
            }
        }
    }

    fn flush(&mut self) {
        if !self.shard.egress.datagrams().is_empty() {
            self.send_datagrams();
        }
        self.shard.egress.clear();
        self.outbox.flush();
        if self.shard.has_departures() {
            self.shard.has_left(self.clock.now().mono);
        }
    }

    fn send_datagrams(&mut self) {
        let (mut sent, mut refused) = (0, 0);
        let mut shared: Vec<Vec<Transmit<'_>>> = std::mem::take(&mut self.lists);
        // Through one relay, one after the other.
        let mut relay: Vec<Transmit<'_>> = shared.pop().unwrap_or_default();
        let mut relay_of = None;
        for run in self.shard.egress.runs() {
            let (local, outlet) = match run.outlet {
                Outlet::Shared { socket, local } => (local, Ok(usize::from(socket.0))),
                Outlet::Relay { allocation, dont_fragment } => (ANY, Err((allocation, dont_fragment, run.remote.is_ipv4()))),
            };
            sent += 1;
            let segment = (run.datagrams > 1).then_some(run.segment as u16);
            let message = Transmit { remote: run.remote, local, bytes: run.bytes, segment };
            match outlet {
                Ok(socket) => shared[socket].push(message),
                Err(of) => {
                    if relay_of != Some(of) {
                        refused += flush_relay(&mut self.relays, &mut self.batch, relay_of, &mut relay);
                        relay_of = Some(of);
                    }
                    relay.push(message);
                }
            }
        }
        refused += flush_relay(&mut self.relays, &mut self.batch, relay_of, &mut relay);
        for (socket, messages) in self.udp.iter_mut().zip(&shared) {
            refused += socket.send(&mut self.batch, messages);
        }
        shared.push(relay);
        self.lists = shared.into_iter().map(emptied).collect();
        self.shard.counters.add(Counter::MessagesOut, sent);
        self.shard.counters.add(Counter::DropSendFailed, refused as u64);
    }
}

/// The room of a list for the next one.
fn emptied(mut list: Vec<Transmit<'_>>) -> Vec<Transmit<'static>> {
    list.clear();
    list.into_iter().map(|_| unreachable!("it is empty")).collect()
}

/// A relay's socket, how, and for which family.
type RelayOutlet = (AllocationId, bool, bool);

fn flush_relay(relays: &mut Relays, batch: &mut Batch, of: Option<RelayOutlet>, messages: &mut Vec<Transmit<'_>>) -> usize {
    let refused = of.map_or(0, |(allocation, dont_fragment, _)| relays.send(allocation, dont_fragment, batch, messages));
    messages.clear();
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_a_list_is_kept() {
        let bytes = [0; 4];
        let message = Transmit { remote: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), local: ANY, bytes: &bytes, segment: None };
        let mut list = Vec::with_capacity(100);
        list.push(message);
        assert_eq!(emptied(list).capacity(), 100);
    }
}
