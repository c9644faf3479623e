//! How the datagrams of one simulated participant reach the server: as they are, in frames on a connection (RFC 4571), or
//! through a TURN allocation over UDP, TCP or TLS.

use super::Path;
use super::signal::Front;
use super::stream::{self, Inlet, Target};
use super::turn::{Login, Told, TurnClient};
use crate::base::time::Instant;
use crate::wire::framing::Framing;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use tokio::sync::mpsc;

/// A relay that the server has named, by the transport to it.
#[derive(Clone, Debug)]
pub struct Relay {
    pub path: Path,
    pub target: Target,
    pub login: Login,
}

/// A UDP socket of ours, and the address on it that is this participant's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pub socket: usize,
    pub ip: IpAddr,
}

/// A datagram, and the way it takes.
pub struct Outgoing {
    pub source: Source,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

pub struct Way {
    path: Path,
    source: Source,
    /// Where datagrams go: the server, or the relay before it.
    to: Option<SocketAddr>,
    stream: Option<mpsc::Sender<Vec<u8>>>,
    turn: Option<TurnClient>,
    /// Where the server takes UDP; behind a relay, its peer.
    media: Option<SocketAddr>,
    is_up: bool,
    /// Messages that a full connection did not take.
    pub unsent: u64,
    to_relay: Vec<Vec<u8>>,
}

impl Way {
    pub fn new(path: Path, source: Source) -> Self {
        Self { path, source, to: None, stream: None, turn: None, media: None, is_up: false, unsent: 0, to_relay: Vec::new() }
    }

    pub fn path(&self) -> Path {
        self.path
    }

    pub fn source(&self) -> Source {
        self.source
    }

    /// The address of the server's media, once datagrams get there.
    pub fn server(&self) -> Option<SocketAddr> {
        self.media.filter(|_| self.is_up)
    }

    /// Where the allocation is, if there is one.
    pub fn relayed(&self) -> Option<SocketAddr> {
        self.turn.as_ref().and_then(TurnClient::relayed)
    }

    /// How messages on the connection are told apart.
    pub fn framing(&self) -> Option<Framing> {
        match self.path {
            Path::Udp | Path::TurnUdp => None,
            Path::Tcp => Some(Framing::Rfc4571),
            Path::TurnTcp | Path::TurnTls => Some(Framing::Turn),
        }
    }

    /// The server has told where its media is. Without a relay this is all there is to know.
    pub fn reach(&mut self, now: Instant, id: u64, media: SocketAddr, front: &Front, inlet: &Inlet) {
        if self.media.replace(media).is_some() {
            return;
        }
        match self.path {
            Path::Udp => (self.to, self.is_up) = (Some(media), true),
            Path::Tcp => self.stream = Some(stream::open(id, front, Target { address: media, tls_name: None }, inlet.clone())),
            Path::TurnUdp | Path::TurnTcp | Path::TurnTls => {
                if let Some(turn) = &mut self.turn {
                    turn.reach(now, media, &mut self.to_relay);
                }
            }
        }
    }

    /// The server has named a relay: an allocation is made there.
    pub fn allocate(&mut self, now: Instant, id: u64, relay: &Relay, front: &Front, inlet: &Inlet) {
        if self.turn.is_some() || relay.path != self.path {
            return;
        }
        let mut turn = TurnClient::new(relay.login.clone(), self.path != Path::TurnUdp);
        if self.path == Path::TurnUdp {
            self.to = Some(relay.target.address);
            turn.start(now, &mut self.to_relay);
        } else {
            self.stream = Some(stream::open(id, front, relay.target.clone(), inlet.clone()));
        }
        if let Some(media) = self.media {
            turn.reach(now, media, &mut self.to_relay);
        }
        self.turn = Some(turn);
    }

    /// The connection stands. Whether datagrams get through now.
    pub fn opened(&mut self, now: Instant) -> bool {
        match &mut self.turn {
            Some(turn) => turn.start(now, &mut self.to_relay),
            None => self.is_up = true,
        }
        self.is_up
    }

    /// A message from the socket or the connection.
    pub fn take(&mut self, now: Instant, bytes: &[u8]) -> Told {
        let Some(turn) = &mut self.turn else { return Told::Data(0..bytes.len()) };
        let told = turn.handle(now, bytes, &mut self.to_relay);
        self.is_up |= told == Told::Bound;
        told
    }

    /// Gives the allocation back, if there is one.
    pub fn free(&mut self, now: Instant) {
        if let Some(turn) = &mut self.turn {
            turn.free(now, &mut self.to_relay);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.turn.as_ref().and_then(TurnClient::deadline)
    }

    pub fn wake(&mut self, now: Instant) -> Told {
        self.turn.as_mut().map_or(Told::Nothing, |turn| turn.wake(now, &mut self.to_relay))
    }

    /// Sends the participant's datagrams, and what the relay is to be told.
    pub fn send(&mut self, datagrams: &mut Vec<Vec<u8>>, out: &mut Vec<Outgoing>) {
        for message in std::mem::take(&mut self.to_relay) {
            self.carry(message, out);
        }
        for datagram in datagrams.drain(..) {
            match (&self.turn, self.framing()) {
                (Some(turn), _) => self.carry(turn.wrap(&datagram), out),
                (None, Some(_)) => self.carry([&(datagram.len() as u16).to_be_bytes()[..], &datagram].concat(), out),
                (None, None) => self.carry(datagram, out),
            }
        }
    }

    fn carry(&mut self, bytes: Vec<u8>, out: &mut Vec<Outgoing>) {
        match (&self.stream, self.to) {
            (Some(stream), _) => self.unsent += u64::from(stream.try_send(bytes).is_err()),
            (None, Some(to)) => out.push(Outgoing { source: self.source, to, bytes }),
            (None, None) => {}
        }
    }
}

/// What a connection has brought and is no whole message yet.
#[derive(Default)]
pub struct Inbound {
    bytes: Vec<u8>,
    consumed: usize,
}

impl Inbound {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole message off; `Err` when the framing is lost.
    pub fn next(&mut self, framing: Framing) -> Result<Option<&mut [u8]>, String> {
        let frame = framing.next(&self.bytes[self.consumed..]).map_err(|_| "the connection lost its framing".to_owned())?;
        let Some(frame) = frame else {
            self.bytes.drain(..self.consumed);
            self.consumed = 0;
            return Ok(None);
        };
        let range: Range<usize> = self.consumed + frame.start..self.consumed + frame.end;
        self.consumed += frame.consumed;
        Ok(Some(&mut self.bytes[range]))
    }
}
