//! Floors: threads on core 0 that do the least a server must do, fed and drained by one on core 1.
//!
//! *Fan-out*: receive what is there, open each packet once, write and seal it for every hearer with that hearer's key, send all
//! packets of a hearer together. *Relay*: receive, cut four bytes off, send. Both use the batches of `io/udp.rs`, as the server does.

use super::host;
use super::net::Place;
use postern::base::buf::Pool;
use postern::crypto::{AesGcm, GCM_TAG};
use postern::io::udp::{self, Batch, Received, Transmit, UdpSocket};
use postern::load::Spread;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Clear bytes of each packet: a number, by which it was sealed, and when it left.
const HEADER: usize = 20;
const BUFFERS: usize = 1_024;
/// Messages of one system call.
const MESSAGES: usize = 64;
/// Sockets that share the sinks, as the load tool's participants share some.
const SINKS: usize = 16;

/// What one source sends: so many packets of this length together, so often.
#[derive(Clone, Copy)]
pub struct Source {
    pub every: Duration,
    pub run: usize,
    /// On the wire, bytes of UDP.
    pub len: usize,
}

/// What the middle does.
#[derive(Clone, Copy)]
pub enum Work {
    FanOut { hearers: usize },
    Relay,
}

/// A floor that runs, and waits while it is not asked.
pub struct Floor {
    is_active: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    latency: Arc<Mutex<Spread>>,
    /// Whether what it sends is to arrive.
    pub arrives: AtomicBool,
    thread: i32,
    threads: Vec<JoinHandle<()>>,
}

impl Floor {
    pub fn start(place: &Place, work: Work, sources: Vec<Source>) -> Result<Self, String> {
        let [is_active, is_over] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let [sent, received] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let latency = Arc::new(Mutex::new(Spread::default()));
        let (tell_middle, middle) = mpsc::channel();
        let (tell_sinks, sinks) = mpsc::channel();
        let rim = Rim {
            place: place.clone(),
            work,
            sources,
            is_active: Arc::clone(&is_active),
            is_over: Arc::clone(&is_over),
            received: Arc::clone(&received),
            latency: Arc::clone(&latency),
        };
        let (place, over, count) = (place.clone(), Arc::clone(&is_over), Arc::clone(&sent));
        let core_0 = std::thread::spawn(move || {
            let run = move || -> Result<(), String> {
                host::pin(0)?;
                place.enter_server()?;
                runtime()?.block_on(async {
                    let socket = socket(place.server)?;
                    let address = SocketAddr::new(place.server, socket.port().map_err(|e| e.to_string())?);
                    tell_middle.send((address, host::thread_id())).map_err(|e| e.to_string())?;
                    let sinks: Vec<SocketAddr> = sinks.recv().map_err(|e| e.to_string())?;
                    middle_loop(socket, work, &sinks, &over, &count).await;
                    Ok(())
                })
            };
            if let Err(error) = run() {
                eprintln!("  floor: {error}");
            }
        });
        let (server, thread) = middle.recv().map_err(|_| "the floor did not start".to_owned())?;
        let core_1 = std::thread::spawn(move || {
            if let Err(error) = rim.run(server, &tell_sinks) {
                eprintln!("  sinks: {error}");
            }
        });
        let arrives = AtomicBool::new(true);
        Ok(Self { is_active, is_over, sent, received, latency, arrives, thread, threads: vec![core_0, core_1] })
    }

    /// The least that a packet costs a floor, us: rows take a rate that suits the machine, and not what else it does just now.
    pub fn at_ease(work: Work, sources: Vec<Source>) -> Result<f64, String> {
        let floor = Self::start(&Place::loopback(), work, sources)?;
        let windows = super::rooms::in_turns(4, || Ok(()), || floor.us_per_packet(super::rooms::WINDOW / 2))?;
        Ok(windows.into_iter().map(|((), us)| us).fold(f64::INFINITY, f64::min))
    }

    /// Processor time for each packet that leaves the floor, us. On loopback all of them have to arrive.
    pub fn us_per_packet(&self, window: Duration) -> Result<f64, String> {
        self.is_active.store(true, Relaxed);
        std::thread::sleep(super::rooms::SETTLE);
        *self.latency.lock().unwrap_or_else(PoisonError::into_inner) = Spread::default();
        let (cpu, sent, received) = (host::thread_cpu_s(self.thread), self.sent.load(Relaxed), self.received());
        std::thread::sleep(window);
        let (cpu, sent) = (host::thread_cpu_s(self.thread) - cpu, self.sent.load(Relaxed) - sent);
        self.is_active.store(false, Relaxed);
        let received = self.received() - received;
        std::thread::sleep(super::rooms::PAUSE);
        match () {
            () if sent == 0 => Err("the floor sends nothing".into()),
            // What is under way at either end of the window is a hundredth at most.
            () if self.arrives.load(Relaxed) && received * 100 < sent * 97 => {
                Err(format!("the floor lost packets: {received} of {sent} came"))
            }
            () => Ok(cpu * 1e6 / sent as f64),
        }
    }

    /// Of the last window.
    pub fn latency(&self) -> Spread {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        // The middle sleeps until something comes: the rim's last packets wake it.
        self.is_active.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())
}

fn socket(ip: IpAddr) -> Result<UdpSocket, String> {
    udp::bind_anywhere(ip).and_then(UdpSocket::register).map_err(|e| format!("a socket at {ip}: {e}"))
}

/// AES-256, which sessions have: Chromium's DTLS 1.2 ends there.
fn key(of: usize) -> AesGcm {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&(of as u64).to_be_bytes());
    AesGcm::new(&key).expect("a key of 32 bytes")
}

fn iv(header: &[u8]) -> [u8; 12] {
    header[..12].try_into().expect("a header")
}

async fn middle_loop(mut socket: UdpSocket, work: Work, sinks: &[SocketAddr], is_over: &AtomicBool, sent: &AtomicU64) {
    let mut pool = Pool::new(BUFFERS);
    let mut batch = Batch::new(&mut pool);
    let (publisher, hearers) = (
        key(usize::MAX),
        match work {
            Work::FanOut { hearers } => (0..hearers).map(|at| (sinks[at % sinks.len()], key(at))).collect(),
            Work::Relay => Vec::new(),
        },
    );
    let (mut received, mut out) = (Vec::new(), Out::default());
    while !is_over.load(Relaxed) {
        std::future::poll_fn(|cx| {
            if socket.poll_recv(cx, &mut batch, &mut pool, &mut received).is_ready() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        match work {
            Work::Relay => {
                // Back to where it came from, so that each client is a way of its own.
                for Received { buf, remote, .. } in &received {
                    out.slot(*remote, buf.len() - 4).copy_from_slice(&buf[4..]);
                    out.flush_when_full(&mut socket, &mut batch, sent);
                }
            }
            Work::FanOut { .. } => {
                for Received { buf, .. } in &mut received {
                    let (header, body) = buf.split_at_mut(HEADER);
                    let opened = publisher.open(iv(header), header, body);
                    assert!(opened.is_some(), "our own packets are authentic");
                }
                for (to, key) in &hearers {
                    for Received { buf, .. } in &received {
                        let slot = out.slot(*to, buf.len());
                        let plain = buf.len() - GCM_TAG;
                        slot[..plain].copy_from_slice(&buf[..plain]);
                        let (header, rest) = slot.split_at_mut(HEADER);
                        let (body, tag) = rest.split_at_mut(plain - HEADER);
                        tag.copy_from_slice(&key.seal(iv(header), header, body));
                    }
                    out.flush_when_full(&mut socket, &mut batch, sent);
                }
            }
        }
        out.flush(&mut socket, &mut batch, sent);
        received.drain(..).for_each(|r| pool.put(r.buf));
    }
}

/// Messages of one system call, neighbours of one length and way as one.
#[derive(Default)]
struct Out {
    arena: Vec<u8>,
    used: usize,
    runs: Vec<(SocketAddr, usize, usize, usize)>,
    packets: u64,
}

impl Out {
    fn slot(&mut self, to: SocketAddr, len: usize) -> &mut [u8] {
        let (start, end) = (self.used, self.used + len);
        if self.arena.len() < end {
            self.arena.resize(end, 0);
        }
        self.used = end;
        self.packets += 1;
        match self.runs.last_mut() {
            Some((last, from, until, segment)) if *last == to && len == *segment && end - *from < 64_000 => *until = end,
            _ => self.runs.push((to, start, end, len)),
        }
        &mut self.arena[start..end]
    }

    fn flush_when_full(&mut self, socket: &mut UdpSocket, batch: &mut Batch, sent: &AtomicU64) {
        if self.runs.len() >= MESSAGES {
            self.flush(socket, batch, sent);
        }
    }

    fn flush(&mut self, socket: &mut UdpSocket, batch: &mut Batch, sent: &AtomicU64) {
        let local = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let runs = self.runs.iter().map(|(remote, start, end, segment)| Transmit {
            remote: *remote,
            local,
            bytes: &self.arena[*start..*end],
            segment: (end - start > *segment).then_some(*segment as u16),
        });
        let runs: Vec<Transmit<'_>> = runs.collect();
        let refused = socket.send(batch, &runs) as u64;
        self.runs.clear();
        self.used = 0;
        sent.fetch_add(std::mem::take(&mut self.packets) - refused, Relaxed);
    }
}

/// Who sends to the middle, and receives from it.
struct Rim {
    place: Place,
    work: Work,
    sources: Vec<Source>,
    is_active: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    latency: Arc<Mutex<Spread>>,
}

impl Rim {
    fn run(&self, server: SocketAddr, tell: &mpsc::Sender<Vec<SocketAddr>>) -> Result<(), String> {
        host::pin(1)?;
        self.place.enter_clients()?;
        runtime()?.block_on(async {
            let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            let sockets = (0..SINKS).map(|_| socket(any)).collect::<Result<Vec<_>, String>>()?;
            let ports = sockets.iter().map(UdpSocket::port).collect::<Result<Vec<u16>, _>>().map_err(|e| e.to_string())?;
            let hearers = match self.work {
                Work::FanOut { hearers } => hearers,
                Work::Relay => 1,
            };
            let sinks = (0..hearers).map(|at| SocketAddr::new(self.place.client(at), ports[at % SINKS])).collect();
            tell.send(sinks).map_err(|e| e.to_string())?;
            self.turns(server, sockets).await;
            Ok(())
        })
    }

    async fn turns(&self, server: SocketAddr, mut sinks: Vec<UdpSocket>) {
        let mut pool = Pool::new(BUFFERS);
        let mut batch = Batch::new(&mut pool);
        let began = Instant::now();
        let mut due = vec![Duration::ZERO; self.sources.len()];
        let (publisher, hearer) = (key(usize::MAX), key(0));
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let (mut received, mut run) = (Vec::new(), Vec::new());
        while !self.is_over.load(Relaxed) {
            let arrival = std::future::poll_fn(|cx| {
                let before = received.len();
                for sink in &sinks {
                    while sink.poll_recv(cx, &mut batch, &mut pool, &mut received).is_ready() {}
                }
                if received.len() == before { Poll::Pending } else { Poll::Ready(()) }
            });
            tokio::select! {
                biased;
                _ = tick.tick() => {}
                () = arrival => {}
            }
            let now = began.elapsed();
            let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
            for Received { buf, .. } in &mut received {
                let ns = u64::from_be_bytes(buf[12..HEADER].try_into().expect("a header"));
                latency.add(now.saturating_sub(Duration::from_nanos(ns)));
                // Whose it is does not matter for what it costs to look at it.
                let (header, body) = buf.split_at_mut(HEADER);
                std::hint::black_box(hearer.open(iv(header), header, body));
            }
            drop(latency);
            self.received.fetch_add(received.len() as u64, Relaxed);
            received.drain(..).for_each(|r| pool.put(r.buf));
            // Looking at what came has taken its time.
            let now = began.elapsed();
            for (at, source) in self.sources.iter().enumerate() {
                if !self.is_active.load(Relaxed) {
                    due[at] = now;
                }
                while due[at] <= now && self.is_active.load(Relaxed) {
                    due[at] += source.every;
                    run.clear();
                    for _ in 0..source.run {
                        self.write(now, source.len, &publisher, &mut run);
                    }
                    let len = run.len() / source.run;
                    let local = self.place.client(at);
                    let segment = (source.run > 1).then_some(len as u16);
                    sinks[at % SINKS].send(&mut batch, &[Transmit { remote: server, local, bytes: &run, segment }]);
                }
            }
        }
        // Wakes the middle, which then sees that it is over.
        let mut last = Vec::new();
        self.write(began.elapsed(), 100, &publisher, &mut last);
        let local = self.place.client(0);
        sinks[0].send(&mut batch, &[Transmit { remote: server, local, bytes: &last, segment: None }]);
    }

    /// One packet of a source.
    fn write(&self, now: Duration, len: usize, key: &AesGcm, out: &mut Vec<u8>) {
        let start = out.len();
        if let Work::Relay = self.work {
            out.extend_from_slice(&[0x40, 0, (len >> 8) as u8, len as u8]);
        }
        out.extend_from_slice(&[1; 12]);
        out.extend_from_slice(&(now.as_nanos() as u64).to_be_bytes());
        out.resize(start.max(out.len() - HEADER) + len - GCM_TAG, 0x55);
        if let Work::FanOut { .. } = self.work {
            let (header, body) = out[start..].split_at_mut(HEADER);
            let tag = key.seal(iv(header), header, body);
            out.extend_from_slice(&tag);
        } else {
            out.extend_from_slice(&[0; GCM_TAG]);
        }
    }
}
