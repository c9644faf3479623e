//! Connections that speak HTTP, however they came: handed over by a worker before or after TLS, or accepted on the plain
//! development port. One stream type over tokio's TCP and rustls's own state machine, so that a TLS session that a worker
//! has opened goes on here.

use crate::base::net::source_of;
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::Version;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::{ServerConfig, ServerConnection};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tower::ServiceExt;

/// How long a connection may take until it has told which HTTP it speaks, its TLS handshake included.
const OPENED_WITHIN: Duration = Duration::from_secs(10);
/// How long a request's headers may take.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// Requests of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 32;
/// How often an idle HTTP/2 connection is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// How many HTTP connections there may be, in all and of one address. One that becomes a WebSocket has shown a token, and is a
/// participant's.
pub struct Places {
    all: usize,
    per_address: usize,
    taken: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

impl Places {
    pub fn new(all: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { all, per_address, taken: Mutex::default() })
    }

    /// One for a client at `ip`, if there is one left.
    pub fn take(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let ip = source_of(ip);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *taken;
        let of_address = by_address.get(&ip).copied().unwrap_or(0);
        if *all >= self.all || of_address >= self.per_address {
            return None;
        }
        *all += 1;
        by_address.insert(ip, of_address + 1);
        Some(Place { places: Arc::clone(self), ip })
    }
}

/// Comes back when it is dropped.
pub struct Place {
    places: Arc<Places>,
    ip: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 -= 1;
        if let Entry::Occupied(mut entry) = taken.1.entry(self.ip) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// A connection with what was already read of it.
pub struct Visitor {
    pub place: Place,
    pub tcp: std::net::TcpStream,
    pub remote: SocketAddr,
    pub received: Vec<u8>,
    pub tls: Option<Box<ServerConnection>>,
    pub wants_tls: bool,
}

/// Serves one visitor until it goes. `secure` answers over TLS, `plain` over bare HTTP.
pub async fn serve(visitor: Visitor, config: Arc<ServerConfig>, secure: Router, plain: Router) {
    let remote = visitor.remote;
    let is_secure = visitor.wants_tls || visitor.tls.is_some();
    let Visitor { place: _place, tcp, received, tls, wants_tls, .. } = visitor;
    let stream = match HttpStream::new(tcp, received, tls, wants_tls, config) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "an HTTP connection was not taken over"),
    };
    let router = if is_secure { secure } else { plain };
    serve_stream(stream, remote, router).await;
}

/// Serves a connection of the plain development port.
pub async fn serve_plain(tcp: TcpStream, remote: SocketAddr, router: Router) {
    serve_stream(HttpStream::bare(tcp), remote, router).await;
}

async fn serve_stream(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, remote: SocketAddr, router: Router) {
    // Put into each request: a layer around the router would copy the whole of it for each connection.
    let service = TowerToHyperService::new(router.map_request(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(remote));
        request
    }));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    builder
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::trace!(%error, "an HTTP connection ended");
    }
}

/// How much of a body that nobody reads is swallowed, and for how long.
const SWALLOWED_MAX: usize = 1024 * 1024;
const SWALLOWED_WITHIN: Duration = Duration::from_secs(5);

/// Lets what still comes of a request run out when it was answered before its body was read: an HTTP/2 stream would be reset
/// otherwise, and many clients never look at an answer that they have already got then (RFC 9113 §8.1).
pub async fn let_bodies_end(request: Request, next: Next) -> Response {
    if request.version() != Version::HTTP_2 || request.body().is_end_stream() {
        return next.run(request).await;
    }
    next.run(request.map(|body| Body::new(Unread(Some(body))))).await
}

struct Unread(Option<Body>);

impl HttpBody for Unread {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.0.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        if let Some(mut body) = self.0.take().filter(|body| !body.is_end_stream()) {
            tokio::spawn(tokio::time::timeout(SWALLOWED_WITHIN, async move {
                let mut swallowed = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    swallowed += frame.data_ref().map_or(0, Bytes::len);
                    if swallowed > SWALLOWED_MAX {
                        break;
                    }
                }
            }));
        }
    }
}

struct HttpStream {
    tcp: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// Read before the hand-over; plaintext when inside TLS.
    received: Vec<u8>,
    taken: usize,
    peer_has_closed: bool,
    outbound: Vec<u8>,
    written: usize,
    opening: Option<Opening>,
}

/// The time until it is known whether a connection speaks HTTP/1 or HTTP/2; either has clocks of its own from there on.
struct Opening {
    deadline: Pin<Box<Sleep>>,
    /// So many bytes were read, all like the preface of HTTP/2.
    read: usize,
}

impl Opening {
    /// What HTTP/2 begins with (RFC 9113 §3.4).
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn new() -> Self {
        Self { deadline: Box::pin(sleep(OPENED_WITHIN)), read: 0 }
    }

    /// Whether these bytes tell.
    fn is_told_by(&mut self, bytes: &[u8]) -> bool {
        let awaited = &Self::PREFACE[self.read..];
        self.read += bytes.len();
        bytes.len() >= awaited.len() || !awaited.starts_with(bytes)
    }
}

impl HttpStream {
    fn bare(tcp: TcpStream) -> Self {
        let opening = Some(Opening::new());
        Self { tcp, tls: None, received: Vec::new(), taken: 0, peer_has_closed: false, outbound: Vec::new(), written: 0, opening }
    }

    fn new(
        tcp: std::net::TcpStream,
        received: Vec<u8>,
        tls: Option<Box<ServerConnection>>,
        wants_tls: bool,
        config: Arc<ServerConfig>,
    ) -> io::Result<Self> {
        let mut stream = Self { tls, received, ..Self::bare(TcpStream::from_std(tcp)?) };
        if wants_tls {
            let hello = std::mem::take(&mut stream.received);
            stream.tls = Some(Box::new(ServerConnection::new(config).map_err(io::Error::other)?));
            stream.decrypt(&hello)?;
        }
        Ok(stream)
    }

    /// Moves what TLS wants to say to the socket, as far as that takes it.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.outbound.len() {
                let n = ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.outbound[self.written..]))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += n;
            }
            self.outbound.clear();
            self.written = 0;
            match &mut self.tls {
                Some(tls) if tls.wants_write() => {
                    tls.write_tls(&mut self.outbound)?;
                }
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncRead for HttpStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let outcome = this.poll_plaintext(cx, buf);
        if let Some(opening) = &mut this.opening {
            if opening.is_told_by(&buf.filled()[before..]) {
                this.opening = None;
            } else if opening.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        outcome
    }
}

impl HttpStream {
    fn poll_plaintext(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self;
        if this.taken < this.received.len() {
            let n = buf.remaining().min(this.received.len() - this.taken);
            buf.put_slice(&this.received[this.taken..this.taken + n]);
            this.taken += n;
            return Poll::Ready(Ok(()));
        }
        if this.tls.is_none() {
            return Pin::new(&mut this.tcp).poll_read(cx, buf);
        }
        loop {
            // A full socket must not keep us from reading.
            let _ = this.poll_outbound(cx)?;
            if this.taken < this.received.len() {
                return this.poll_plaintext(cx, buf);
            }
            if this.peer_has_closed {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 8 * 1024];
            let mut raw = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut raw))?;
            // Gone without close_notify: for HTTP that is an end like any other.
            this.peer_has_closed = raw.filled().is_empty();
            if let Err(error) = this.decrypt(raw.filled()) {
                let _ = this.poll_outbound(cx);
                return Poll::Ready(Err(error));
            }
        }
    }

    /// Takes ciphertext; the plaintext in it joins `received`. TLS holds one record of plaintext at most and refuses more
    /// until it is read, so it is read after every step.
    fn decrypt(&mut self, mut ciphertext: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        self.received.drain(..self.taken);
        self.taken = 0;
        while !ciphertext.is_empty() {
            if tls.read_tls(&mut ciphertext)? == 0 {
                // Behind the peer's goodbye nothing is taken any more.
                break;
            }
            let state = tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.peer_has_closed |= state.peer_has_closed();
            let start = self.received.len();
            self.received.resize(start + state.plaintext_bytes_to_read(), 0);
            tls.reader().read_exact(&mut self.received[start..])?;
        }
        Ok(())
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.tls.is_none() {
            return Pin::new(&mut this.tcp).poll_write(cx, bytes);
        }
        ready!(this.poll_outbound(cx))?;
        let Some(tls) = &mut this.tls else { return Poll::Ready(Ok(0)) };
        let n = tls.writer().write(bytes)?;
        let _ = this.poll_outbound(cx)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_outbound(cx))?;
        Pin::new(&mut this.tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(tls) = &mut this.tls {
            tls.send_close_notify();
        }
        ready!(this.poll_outbound(cx))?;
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}
