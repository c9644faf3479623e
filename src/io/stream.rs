//! One accepted TCP connection: told apart by its first bytes, TLS where it asks for it, then frames both ways.
//!
//! ```text
//! Telling ──0x16 0x03──> Hello ──ALPN h2, http/1.1, acme──> handed over as read, no key touched
//!    │                     └──no such ALPN──> TLS handshake, then Telling again inside
//!    ├──STUN cookie at 4──> Framed(Turn)       ├──cookie at 6──> Framed(Rfc4571)       └──method──> handed over
//! ```
//! No task of its own: a waker puts its id on the worker's ready list, and the worker's turn does the rest.

use super::ready::{ReadyList, waker};
use crate::base::id::StreamId;
use crate::base::time::{Duration, Instant};
use crate::shard::counters::Counter;
use crate::shard::mail::{ServerName, StreamRole};
use crate::wire::demux::{self, Sniff, StreamKind};
use crate::wire::framing::{Frame, Framing};
use crate::wire::proxy::{self, Proxied};
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::server::Acceptor;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::net::TcpStream;

/// Protocols that are the control plane's: HTTP, and a certificate authority's question (RFC 8737).
const HTTP: [&[u8]; 3] = [b"h2", b"http/1.1", b"acme-tls/1"];
/// What a TURN client names (RFC 7443). Some name HTTP besides; no web client names this.
const TURN: &[u8] = b"stun.turn";
/// How long a connection may take to tell what it is, its TLS handshake included.
const TELL_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection may carry neither an allocation nor a session.
const USE_WITHIN: Duration = Duration::from_secs(10);
/// How long a frame may take from its first byte to its last: as long as a client that was cut off is waited for.
const FRAME_WITHIN: Duration = Duration::from_secs(60);
/// Read from a socket at a time, and in one turn.
const READ: usize = 16 * 1024;
const READS_PER_TURN: usize = 4;
/// Longest ClientHello.
const HELLO_MAX: usize = 16 * 1024;
/// What one write hands to the kernel.
const WRITE: usize = 16 * 1024;
/// Bytes that wait for a socket that does not take them.
const OUTBOUND_MAX: usize = 256 * 1024;
/// Bytes that the kernel holds unsent before the connection counts as full.
const NOT_SENT_MAX: u32 = 16 * 1024;

enum Phase {
    Telling,
    Hello(Box<Acceptor>),
    Framed(Framing),
}

/// Where the socket is: registered with a runtime, or between two workers.
enum Socket {
    Registered(TcpStream),
    Travelling(std::net::TcpStream),
    Gone,
}

pub struct Stream {
    socket: Socket,
    /// Who connected: a proxy, or the client itself.
    pub neighbour: SocketAddr,
    /// Whose bytes they are, as a trusted proxy says.
    pub remote: SocketAddr,
    /// A proxy that we trust has not said yet for whom.
    awaits_proxy: bool,
    /// Only STUN and TURN may be spoken (port 3478).
    turn_only: bool,
    phase: Phase,
    tls: Option<Box<ServerConnection>>,
    /// Plaintext that is not yet a whole frame; before the role is told, what was read.
    inbound: Vec<u8>,
    /// Frames of `inbound` that were taken already.
    consumed: usize,
    /// What the socket has not taken yet, as it goes on the wire.
    outbound: Vec<u8>,
    written: usize,
    pub opened_at: Instant,
    /// Since when a frame has lacked its end.
    unfinished_since: Option<Instant>,
    waker: Waker,
}

/// What a turn of a connection came to.
pub enum Turn {
    /// Everything that was there has been read; its waker will tell of more.
    Waits,
    /// More may be there; come again.
    Busy,
    /// It now has a role and frames.
    Told(StreamRole),
    /// It speaks HTTP: take it with [`Stream::hand_over`].
    Http,
    Closed(Why),
}

/// Why a connection is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The client closed it, or the network did.
    Gone,
    /// Its first bytes are of no kind that this port speaks.
    UnknownOpening,
    /// A PROXY header that is malformed, or that comes from somebody who is not trusted to send one.
    Proxy,
    /// TLS failed: no common version, a broken record, a hello without end.
    Tls,
}

/// A connection for the control plane, with what was read of it.
pub struct Visitor {
    pub tcp: std::net::TcpStream,
    pub remote: SocketAddr,
    /// Raw bytes read; inside TLS, plaintext.
    pub received: Vec<u8>,
    /// A TLS session that was opened before it was known to carry HTTP.
    pub tls: Option<Box<ServerConnection>>,
    /// Whether the raw bytes begin with a ClientHello.
    pub wants_tls: bool,
}

impl Stream {
    /// `is_trusted` lets the one who connected speak for another by a PROXY header.
    pub fn new(
        id: StreamId,
        tcp: TcpStream,
        remote: SocketAddr,
        turn_only: bool,
        is_trusted: bool,
        now: Instant,
        list: &Arc<ReadyList<StreamId>>,
    ) -> Self {
        let socket = socket2::SockRef::from(&tcp);
        let _ = socket.set_tcp_nodelay(true);
        // Best effort: a kernel without BBR keeps its default.
        let _ = socket.set_tcp_congestion(b"bbr");
        let _ = socket.set_tcp_notsent_lowat(NOT_SENT_MAX);
        Self {
            socket: Socket::Registered(tcp),
            neighbour: remote,
            remote,
            awaits_proxy: is_trusted,
            turn_only,
            phase: Phase::Telling,
            tls: None,
            inbound: Vec::new(),
            consumed: 0,
            outbound: Vec::new(),
            written: 0,
            opened_at: now,
            unfinished_since: None,
            waker: waker(id, list),
        }
    }

    pub fn is_framed(&self) -> bool {
        matches!(self.phase, Phase::Framed(_))
    }

    /// Why it has had its time; `is_used` looks whether an allocation or a session needs it.
    pub fn overdue(&self, now: Instant, is_used: impl FnOnce() -> bool) -> Option<Counter> {
        let age = now.since(self.opened_at);
        if !self.is_framed() {
            return (age > TELL_WITHIN).then_some(Counter::ClosedSlowOpening);
        }
        if self.unfinished_since.is_some_and(|since| now.since(since) > FRAME_WITHIN) {
            return Some(Counter::ClosedSlowFrame);
        }
        (age > USE_WITHIN && !is_used()).then_some(Counter::ClosedUnused)
    }

    /// That it is TLS, and for whom.
    pub fn tls(&self) -> Option<ServerName> {
        self.tls.as_ref().map(|tls| ServerName(tls.server_name().map(Box::from)))
    }

    /// Leaves this worker's runtime.
    pub fn unregister(mut self) -> io::Result<Self> {
        if let Socket::Registered(tcp) = std::mem::replace(&mut self.socket, Socket::Gone) {
            self.socket = Socket::Travelling(tcp.into_std()?);
        }
        Ok(self)
    }

    /// Joins this worker's runtime.
    pub fn register(mut self, id: StreamId, list: &Arc<ReadyList<StreamId>>) -> io::Result<Self> {
        if let Socket::Travelling(tcp) = std::mem::replace(&mut self.socket, Socket::Gone) {
            self.socket = Socket::Registered(TcpStream::from_std(tcp)?);
        }
        self.waker = waker(id, list);
        Ok(self)
    }

    /// Reads what is there, as far as the phase allows.
    pub fn read_turn(&mut self, config: &Arc<ServerConfig>) -> Turn {
        for _ in 0..READS_PER_TURN {
            let mut bytes = [0; READ];
            let Socket::Registered(tcp) = &self.socket else { return Turn::Closed(Why::Gone) };
            match tcp.try_read(&mut bytes) {
                Ok(0) => return Turn::Closed(Why::Gone),
                Ok(n) => {
                    let was_framed = self.is_framed();
                    let outcome = self.take(&bytes[..n], config);
                    if self.flush().is_err() {
                        return Turn::Closed(Why::Gone);
                    }
                    match outcome {
                        Ok(Some(turn)) => return turn,
                        // The worker takes the frames out before more is read.
                        Ok(None) if was_framed => return Turn::Busy,
                        Ok(None) => {}
                        Err(why) => return Turn::Closed(why),
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut cx = Context::from_waker(&self.waker);
                    match tcp.poll_read_ready(&mut cx) {
                        Poll::Pending => return Turn::Waits,
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => return Turn::Closed(Why::Gone),
                    }
                }
                Err(_) => return Turn::Closed(Why::Gone),
            }
        }
        Turn::Busy
    }

    fn take(&mut self, bytes: &[u8], config: &Arc<ServerConfig>) -> Result<Option<Turn>, Why> {
        match (&mut self.tls, &mut self.phase) {
            (Some(tls), _) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    // Behind the peer's goodbye nothing is taken any more.
                    if tls.read_tls(&mut rest).map_err(|_| Why::Tls)? == 0 {
                        return Err(Why::Gone);
                    }
                    let state = tls.process_new_packets();
                    while tls.wants_write() {
                        tls.write_tls(&mut self.outbound).map_err(|_| Why::Tls)?;
                    }
                    let state = state.map_err(|_| Why::Tls)?;
                    let (waiting, is_over) = (state.plaintext_bytes_to_read(), state.peer_has_closed());
                    let start = self.inbound.len();
                    self.inbound.resize(start + waiting, 0);
                    tls.reader().read_exact(&mut self.inbound[start..]).map_err(|_| Why::Tls)?;
                    if is_over {
                        // A goodbye is answered, and then it is over (RFC 5246 §7.2.1).
                        tls.send_close_notify();
                        self.drain_tls()?;
                        let _ = self.flush();
                        return Err(Why::Gone);
                    }
                }
            }
            (None, Phase::Hello(acceptor)) => {
                read_hello(acceptor, bytes)?;
                self.inbound.extend_from_slice(bytes);
            }
            (None, Phase::Telling | Phase::Framed(_)) => self.inbound.extend_from_slice(bytes),
        }
        // Whoever makes us answer and does not read the answers is no client.
        if self.outbound.len() - self.written > OUTBOUND_MAX {
            return Err(Why::Gone);
        }
        self.tell(config)
    }

    fn tell(&mut self, config: &Arc<ServerConfig>) -> Result<Option<Turn>, Why> {
        match &mut self.phase {
            Phase::Framed(_) => Ok(None),
            Phase::Hello(acceptor) => {
                if self.inbound.len() > HELLO_MAX {
                    return Err(Why::Tls);
                }
                let accepted = match acceptor.accept() {
                    Ok(accepted) => accepted,
                    // A client that is too old is told so.
                    Err((_, mut alert)) => {
                        let _ = alert.write_all(&mut self.outbound);
                        let _ = self.flush();
                        return Err(Why::Tls);
                    }
                };
                let Some(accepted) = accepted else { return Ok(None) };
                let offered: Vec<&[u8]> = accepted.client_hello().alpn().into_iter().flatten().collect();
                let wants_http = offered.iter().any(|p| HTTP.contains(p)) && !offered.contains(&TURN);
                if wants_http {
                    return if self.turn_only { Err(Why::UnknownOpening) } else { Ok(Some(Turn::Http)) };
                }
                let tls = accepted.into_connection(Arc::clone(config)).map_err(|_| Why::Tls)?;
                self.tls = Some(Box::new(tls));
                self.inbound.clear();
                self.phase = Phase::Telling;
                // The answer to the hello leaves with the next flush.
                self.drain_tls()?;
                Ok(None)
            }
            Phase::Telling if self.awaits_proxy => match proxy::header(&self.inbound) {
                Proxied::NeedMore => Ok(None),
                Proxied::Malformed => Err(Why::Proxy),
                Proxied::Nothing => {
                    self.awaits_proxy = false;
                    self.tell(config)
                }
                Proxied::For { client, len } => {
                    self.remote = client.unwrap_or(self.remote);
                    self.inbound.drain(..len);
                    self.awaits_proxy = false;
                    self.tell(config)
                }
            },
            // Whoever may not speak for others does not get to try.
            Phase::Telling if self.tls.is_none() && proxy::is_header(&self.inbound) => Err(Why::Proxy),
            Phase::Telling => match demux::stream(&self.inbound) {
                Sniff::NeedMore => Ok(None),
                Sniff::Unknown => Err(Why::UnknownOpening),
                Sniff::Is(StreamKind::Tls) if self.tls.is_none() => {
                    let mut acceptor = Box::new(Acceptor::default());
                    read_hello(&mut acceptor, &self.inbound)?;
                    self.phase = Phase::Hello(acceptor);
                    self.tell(config)
                }
                Sniff::Is(StreamKind::Tls) => Err(Why::UnknownOpening),
                Sniff::Is(StreamKind::Turn) => {
                    self.phase = Phase::Framed(Framing::Turn);
                    Ok(Some(Turn::Told(StreamRole::Turn)))
                }
                Sniff::Is(StreamKind::IceTcp | StreamKind::Http) if self.turn_only => Err(Why::UnknownOpening),
                Sniff::Is(StreamKind::IceTcp) => {
                    self.phase = Phase::Framed(Framing::Rfc4571);
                    Ok(Some(Turn::Told(StreamRole::Ice)))
                }
                Sniff::Is(StreamKind::Http) => Ok(Some(Turn::Http)),
            },
        }
    }

    fn drain_tls(&mut self) -> Result<(), Why> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.outbound).map_err(|_| Why::Tls)?;
            }
        }
        Ok(())
    }

    /// The next whole frame: copied out by `take`, then forgotten. `Err` when the stream lost its framing.
    pub fn next_frame<R>(&mut self, now: Instant, take: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, ()> {
        let Phase::Framed(framing) = self.phase else { return Ok(None) };
        let waiting = &self.inbound[self.consumed..];
        let Some(Frame { start, end, consumed }) = framing.next(waiting).map_err(drop)? else {
            // Once for all frames of a read: moving the rest for each of them would cost its square.
            self.inbound.drain(..self.consumed);
            self.consumed = 0;
            self.unfinished_since = self.unfinished_since.or(Some(now)).filter(|_| !self.inbound.is_empty());
            return Ok(None);
        };
        let taken = take(&waiting[start..end]);
        self.unfinished_since = None;
        self.consumed += consumed;
        Ok(Some(taken))
    }

    /// Whether the socket would take more.
    pub fn is_hungry(&self) -> bool {
        self.written == self.outbound.len()
    }

    /// Queues plaintext of about [`Stream::budget`] bytes and writes it.
    pub fn write(&mut self, plaintext: &[u8]) -> Result<(), ()> {
        match &mut self.tls {
            Some(tls) => {
                tls.writer().write_all(plaintext).map_err(drop)?;
                self.drain_tls().map_err(drop)?;
            }
            None => self.outbound.extend_from_slice(plaintext),
        }
        self.flush()
    }

    pub fn budget() -> usize {
        WRITE
    }

    /// Writes what waits; the waker tells when a full socket takes more.
    pub fn flush(&mut self) -> Result<(), ()> {
        let Socket::Registered(tcp) = &self.socket else { return Err(()) };
        while self.written < self.outbound.len() {
            match tcp.try_write(&self.outbound[self.written..]) {
                Ok(n) => self.written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut cx = Context::from_waker(&self.waker);
                    match tcp.poll_write_ready(&mut cx) {
                        Poll::Pending => return Ok(()),
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => return Err(()),
                    }
                }
                Err(_) => return Err(()),
            }
        }
        self.outbound.clear();
        self.written = 0;
        Ok(())
    }

    /// Gives the connection to the control plane.
    pub fn hand_over(self) -> io::Result<Visitor> {
        let Socket::Registered(tcp) = self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        let wants_tls = matches!(self.phase, Phase::Hello(_));
        Ok(Visitor { tcp: tcp.into_std()?, remote: self.remote, received: self.inbound, tls: self.tls, wants_tls })
    }
}

/// Hands all of `bytes` to the acceptor, which reads a part at a time.
fn read_hello(acceptor: &mut Acceptor, mut bytes: &[u8]) -> Result<(), Why> {
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).map_err(|_| Why::Tls)? == 0 {
            return Err(Why::Tls);
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test waits for its own socket")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn s19_a_frame_has_a_minute_and_a_connection_that_carries_nothing_ten_seconds() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (tcp, remote) = listener.accept().await.expect("accepted");
        let second = |n: u64| Instant::from_millis(n * 1_000);
        let mut stream = Stream::new(StreamId(1), tcp, remote, true, false, second(0), &Arc::default());
        assert_eq!(stream.overdue(second(5), || true), None);
        assert_eq!(stream.overdue(second(6), || true), Some(Counter::ClosedSlowOpening));
        let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        let config = config.with_no_client_auth().with_single_cert(vec![identity.cert.der().clone()], key.into()).expect("a key");
        let config = Arc::new(config);
        // A Binding request, and the beginning of ChannelData of a hundred bytes.
        let binding = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let mut read = async |stream: &mut Stream, bytes: &[u8]| {
            use tokio::io::AsyncWriteExt;
            client.write_all(bytes).await.expect("written");
            let inbound = stream.inbound.len();
            while stream.inbound.len() < inbound + bytes.len() {
                stream.read_turn(&config);
                tokio::task::yield_now().await;
            }
        };
        read(&mut stream, &binding).await;
        assert!(matches!(stream.next_frame(second(6), |frame| frame.len()), Ok(Some(20))));
        assert!(matches!(stream.next_frame(second(6), |_| ()), Ok(None)));
        assert_eq!((stream.overdue(second(10), || false), stream.overdue(second(11), || true)), (None, None));
        assert_eq!(stream.overdue(second(11), || false), Some(Counter::ClosedUnused));
        read(&mut stream, &[0x40, 0, 0, 100, 1]).await;
        for at in [20, 79] {
            assert!(matches!(stream.next_frame(second(at), |_| ()), Ok(None)));
            assert_eq!(stream.overdue(second(80), || true), None);
        }
        assert_eq!(stream.overdue(second(81), || true), Some(Counter::ClosedSlowFrame));
        read(&mut stream, &[1; 99]).await;
        assert!(matches!(stream.next_frame(second(81), |frame| frame.len()), Ok(Some(104))));
        assert_eq!(stream.overdue(second(200), || true), None, "it was whole in the end");
    }
}
