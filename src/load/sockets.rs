//! The UDP sockets of simulated participants. On loopback they share a few, each with a source address of its own out of
//! 127.0.0.0/8; towards other hosts each has a socket, because a server tells clients apart by address and port.

use super::way::{Outgoing, Source};
use crate::base::buf::Pool;
use crate::io::udp::{self, Batch, Received, Transmit, UdpSocket};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::task::Poll;

const BUFFERS: usize = 1_024;
/// Sockets that are shared: a picture for a thousand participants is more than the buffer of one takes.
const SHARED: usize = 16;
/// Datagrams and bytes of one run.
const RUN_MAX: usize = 64;
const RUN_BYTES_MAX: usize = 65_000;
/// Turns of receiving before something else is looked at.
const TURNS_MAX: usize = 16;

pub struct Sockets {
    /// `None` where its participant is gone.
    sockets: Vec<Option<UdpSocket>>,
    is_shared: bool,
    given: u32,
    batch: Batch,
    pool: Pool,
    received: Vec<(usize, Received)>,
    one: Vec<Received>,
    /// Runs of one turn, end to end.
    arena: Vec<u8>,
}

/// Neighbours in the arena that leave as one message.
struct Run {
    source: Source,
    to: SocketAddr,
    start: usize,
    end: usize,
    segment: usize,
    count: usize,
}

impl Sockets {
    /// `is_loopback`: where the server is.
    pub fn new(is_loopback: bool) -> Result<Self, String> {
        Self::with(is_loopback, if is_loopback { SHARED } else { 0 })
    }

    /// One socket for everybody.
    pub fn single() -> Result<Self, String> {
        Self::with(true, 1)
    }

    fn with(is_shared: bool, count: usize) -> Result<Self, String> {
        let mut pool = Pool::new(BUFFERS);
        let batch = Batch::new(&mut pool);
        let (sockets, received) = (Vec::new(), Vec::new());
        let mut sockets = Self { sockets, is_shared, given: 0, batch, pool, received, one: Vec::new(), arena: Vec::new() };
        for _ in 0..count {
            sockets.add()?;
        }
        Ok(sockets)
    }

    fn add(&mut self) -> Result<usize, String> {
        let socket = udp::bind_anywhere(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).and_then(UdpSocket::register);
        let socket = Some(socket.map_err(|e| format!("a socket: {e}"))?);
        if let Some(at) = self.sockets.iter().position(Option::is_none) {
            self.sockets[at] = socket;
            return Ok(at);
        }
        self.sockets.push(socket);
        Ok(self.sockets.len() - 1)
    }

    /// The port of the single socket.
    pub fn port(&self) -> Result<u16, String> {
        let socket = self.sockets.first().and_then(Option::as_ref).ok_or("no socket")?;
        socket.port().map_err(|e| format!("a socket: {e}"))
    }

    /// Where the next participant sends from.
    pub fn take(&mut self) -> Result<Source, String> {
        if !self.is_shared {
            return Ok(Source { socket: self.add()?, ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED) });
        }
        self.given += 1;
        // 127.1.0.1 onwards, without the ends of each block.
        let n = self.given % (250 * 250 * 250);
        let socket = self.given as usize % self.sockets.len();
        Ok(Source { socket, ip: IpAddr::from([127, 1 + (n / 62_500) as u8, 1 + (n / 250 % 250) as u8, 1 + (n % 250) as u8]) })
    }

    /// The participant is gone.
    pub fn give_back(&mut self, source: Source) {
        if !self.is_shared {
            self.sockets[source.socket] = None;
        }
    }

    /// Waits for datagrams.
    pub async fn arrival(&mut self) {
        std::future::poll_fn(|cx| {
            for _ in 0..TURNS_MAX {
                let mut is_ready = false;
                for (at, socket) in self.sockets.iter().enumerate() {
                    let Some(socket) = socket else { continue };
                    if socket.poll_recv(cx, &mut self.batch, &mut self.pool, &mut self.one).is_ready() {
                        is_ready = true;
                        self.received.extend(self.one.drain(..).map(|received| (at, received)));
                    }
                }
                if !is_ready {
                    return if self.received.is_empty() { Poll::Pending } else { Poll::Ready(()) };
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    /// What has come: from whom, to which of our sources. Give it back with [`Sockets::done`].
    pub fn received(&mut self) -> Vec<(usize, Received)> {
        std::mem::take(&mut self.received)
    }

    pub fn done(&mut self, mut received: Vec<(usize, Received)>) {
        received.drain(..).for_each(|(_, r)| self.pool.put(r.buf));
        self.received = received;
    }

    /// The source that a datagram came to.
    pub fn source_of(&self, socket: usize, received: &Received) -> Source {
        Source { socket, ip: if self.is_shared { received.local } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } }
    }

    /// Sends everything, neighbours of one way and length as one message. How many the kernel refused.
    pub fn send(&mut self, outgoing: &[Outgoing]) -> u64 {
        self.arena.clear();
        let mut runs: Vec<Run> = Vec::new();
        for Outgoing { source, to, bytes } in outgoing {
            let start = self.arena.len();
            self.arena.extend_from_slice(bytes);
            let end = self.arena.len();
            match runs.last_mut() {
                Some(run)
                    if (run.source, run.to) == (*source, *to)
                        && bytes.len() <= run.segment
                        && run.end - run.start == run.count * run.segment
                        && run.count < RUN_MAX
                        && end - run.start <= RUN_BYTES_MAX =>
                {
                    (run.end, run.count) = (end, run.count + 1);
                }
                _ => runs.push(Run { source: *source, to: *to, start, end, segment: bytes.len(), count: 1 }),
            }
        }
        let mut refused = 0;
        for of_socket in runs.chunk_by(|a, b| a.source.socket == b.source.socket) {
            let messages: Vec<Transmit<'_>> = of_socket
                .iter()
                .map(|r| Transmit {
                    remote: r.to,
                    local: r.source.ip,
                    bytes: &self.arena[r.start..r.end],
                    segment: (r.count > 1).then_some(r.segment as u16),
                })
                .collect();
            if let Some(socket) = of_socket.first().and_then(|r| self.sockets.get_mut(r.source.socket)).and_then(Option::as_mut) {
                refused += socket.send(&mut self.batch, &messages) as u64;
            }
        }
        refused
    }
}
