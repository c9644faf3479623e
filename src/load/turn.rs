//! A TURN client as a value (RFC 8656): one allocation, one channel to one peer. Independent of the server's engine.
//!
//! 1. Allocate; the 401 tells realm and nonce; Allocate again, signed (RFC 8489 §9.2).
//! 2. ChannelBind, once the peer is known.
//! 3. Payloads travel in ChannelData. The channel is bound anew every four minutes, and the allocation refreshed, before they end.

use crate::base::time::{Duration, Instant};
use crate::crypto::{HmacSha1, long_term_key};
use crate::io::clock::Clock;
use crate::wire::stun::{Class, HEADER_LEN, Message, Method, TransactionId, Writer, attr};
use crate::wire::turn::{CHANNEL_HEADER_LEN, TRANSPORT_UDP, channel_data, channel_header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::net::SocketAddr;
use std::ops::Range;

const CHANNEL: u16 = 0x4000;
/// First repetition of a request over UDP; each further one waits twice as long (RFC 8489 §6.2.1).
const REPEAT: Duration = Duration::from_millis(250);
const REPEATS: u32 = 6;
/// How long a connection is waited for, on which nothing is repeated.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Permissions last 300 s (RFC 8656 §9); a channel that is bound anew renews its own.
const BIND_EVERY: Duration = Duration::from_secs(240);

/// Who allocates.
#[derive(Clone, Debug, Default)]
pub struct Login {
    pub username: String,
    pub password: String,
}

impl Login {
    /// For a day, from a secret that is shared with the server (draft-uberti-behave-turn-rest-00).
    pub fn time_limited(secret: &str) -> Self {
        let until = Clock::start().now().wall.as_secs() + 86_400;
        let username = format!("{until}:load");
        let password = STANDARD.encode(HmacSha1::new(secret.as_bytes()).sign(&[username.as_bytes()]));
        Self { username, password }
    }
}

/// What a message of the relay's was.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// Bytes of the peer's, and where they lie.
    Data(Range<usize>),
    /// The allocation stands; the channel is next, when there is a peer.
    Allocated,
    /// The channel stands.
    Bound,
    Nothing,
    Refused(String),
}

/// The request under way.
struct Request {
    method: Method,
    bytes: Vec<u8>,
    tries: u32,
}

/// What a challenge told.
struct Challenge {
    realm: Vec<u8>,
    nonce: Vec<u8>,
    key: HmacSha1,
}

pub struct TurnClient {
    login: Login,
    is_stream: bool,
    challenge: Option<Challenge>,
    peer: Option<SocketAddr>,
    relayed: Option<SocketAddr>,
    is_bound: bool,
    is_leaving: bool,
    request: Option<Request>,
    requests: u64,
    /// When the request is repeated or given up.
    again_at: Instant,
    refresh_due: Option<Instant>,
    bind_due: Option<Instant>,
}

impl TurnClient {
    pub fn new(login: Login, is_stream: bool) -> Self {
        Self {
            login,
            is_stream,
            challenge: None,
            peer: None,
            relayed: None,
            is_bound: false,
            is_leaving: false,
            request: None,
            requests: 0,
            again_at: Instant::default(),
            refresh_due: None,
            bind_due: None,
        }
    }

    /// Asks for the allocation.
    pub fn start(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        self.ask(now, Method::Allocate, out);
    }

    /// The peer that the channel leads to.
    pub fn reach(&mut self, now: Instant, peer: SocketAddr, out: &mut Vec<Vec<u8>>) {
        self.peer = Some(peer);
        if self.relayed.is_some() && self.request.is_none() {
            self.ask(now, Method::ChannelBind, out);
        }
    }

    pub fn relayed(&self) -> Option<SocketAddr> {
        self.relayed
    }

    pub fn deadline(&self) -> Option<Instant> {
        match &self.request {
            Some(_) => Some(self.again_at),
            None => [self.refresh_due, self.bind_due].into_iter().flatten().min(),
        }
    }

    /// Does what is due: repeats, refreshes, binds anew.
    pub fn wake(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) -> Told {
        if let Some(request) = &mut self.request {
            if self.again_at > now {
                return Told::Nothing;
            }
            if self.is_stream || request.tries > REPEATS {
                return Told::Refused(format!("TURN: no answer to {:?}", request.method));
            }
            self.again_at = now + REPEAT * 2u32.pow(request.tries);
            request.tries += 1;
            out.push(request.bytes.clone());
            return Told::Nothing;
        }
        if self.bind_due.is_some_and(|at| at <= now) {
            self.ask(now, Method::ChannelBind, out);
        } else if self.refresh_due.is_some_and(|at| at <= now) {
            self.ask(now, Method::Refresh, out);
        }
        Told::Nothing
    }

    /// A message from the relay.
    pub fn handle(&mut self, now: Instant, bytes: &[u8], out: &mut Vec<Vec<u8>>) -> Told {
        if let Ok((CHANNEL, payload)) = channel_data(bytes) {
            return Told::Data(payload);
        }
        let Ok(message) = Message::decode(bytes) else { return Told::Nothing };
        let is_answer = |r: &Request| r.method == message.method && r.bytes[8..HEADER_LEN] == message.transaction_id().0;
        let Some(request) = self.request.take_if(|r| is_answer(r)) else { return Told::Nothing };
        match message.class {
            Class::Success => self.granted(now, &message, out),
            _ => self.refused(now, &message, request.method, out),
        }
    }

    fn granted(&mut self, now: Instant, message: &Message<'_>, out: &mut Vec<Vec<u8>>) -> Told {
        if let Some(lifetime_s) = message.get_u32(attr::LIFETIME) {
            self.refresh_due = Some(now + Duration::from_secs(u64::from(lifetime_s / 2).max(1)));
        }
        match message.method {
            Method::Allocate => {
                self.relayed = message.get(attr::XOR_RELAYED_ADDRESS).and_then(|value| message.xor_address(value));
                if self.peer.is_some() {
                    self.ask(now, Method::ChannelBind, out);
                }
                Told::Allocated
            }
            Method::ChannelBind => {
                self.bind_due = Some(now + BIND_EVERY);
                if std::mem::replace(&mut self.is_bound, true) { Told::Nothing } else { Told::Bound }
            }
            _ => Told::Nothing,
        }
    }

    fn refused(&mut self, now: Instant, message: &Message<'_>, method: Method, out: &mut Vec<Vec<u8>>) -> Told {
        let code = message.get(attr::ERROR_CODE).and_then(|v| Some(u16::from(v.get(2)? & 7) * 100 + u16::from(*v.get(3)?))).unwrap_or(0);
        let may_try_again = code == 438 || (code == 401 && self.challenge.is_none());
        if let (true, Some(nonce)) = (may_try_again, message.get(attr::NONCE)) {
            let known = self.challenge.take().map(|c| c.realm).unwrap_or_default();
            let realm = message.get(attr::REALM).map_or(known, <[u8]>::to_vec);
            let key = HmacSha1::new(&long_term_key(self.login.username.as_bytes(), &realm, self.login.password.as_bytes()));
            self.challenge = Some(Challenge { realm, nonce: nonce.to_vec(), key });
            self.ask(now, method, out);
            return Told::Nothing;
        }
        Told::Refused(format!("TURN: {method:?} was refused: {code}"))
    }

    fn ask(&mut self, now: Instant, method: Method, out: &mut Vec<Vec<u8>>) {
        self.requests += 1;
        let mut id = TransactionId([0x50; 12]);
        id.0[4..].copy_from_slice(&self.requests.to_be_bytes());
        let mut bytes = Vec::with_capacity(160);
        let mut writer = Writer::new(&mut bytes, method, Class::Request, id);
        match (method, self.peer) {
            (Method::Allocate, _) => {
                writer.u32(attr::REQUESTED_TRANSPORT, u32::from(TRANSPORT_UDP) << 24);
            }
            (Method::ChannelBind, Some(peer)) => {
                writer.u32(attr::CHANNEL_NUMBER, u32::from(CHANNEL) << 16).xor_address(attr::XOR_PEER_ADDRESS, peer);
            }
            (Method::Refresh, _) if self.is_leaving => {
                writer.u32(attr::LIFETIME, 0);
            }
            _ => {}
        }
        if let Some(Challenge { realm, nonce, key }) = &self.challenge {
            writer.attribute(attr::USERNAME, self.login.username.as_bytes());
            writer.attribute(attr::REALM, realm).attribute(attr::NONCE, nonce).integrity(|b| key.sign(&[b]));
        }
        out.push(bytes.clone());
        self.again_at = now + if self.is_stream { ANSWER_WITHIN } else { REPEAT };
        self.request = Some(Request { method, bytes, tries: 1 });
    }

    /// Gives the allocation back; no answer is waited for.
    pub fn free(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        if self.relayed.take().is_some() {
            self.is_leaving = true;
            self.ask(now, Method::Refresh, out);
        }
    }

    /// A payload for the peer, as ChannelData; padded where that travels on a connection (RFC 8656 §12.5).
    pub fn wrap(&self, payload: &[u8]) -> Vec<u8> {
        let padded = if self.is_stream { payload.len().next_multiple_of(4) } else { payload.len() };
        let mut bytes = Vec::with_capacity(CHANNEL_HEADER_LEN + padded);
        bytes.extend_from_slice(&channel_header(CHANNEL, payload.len()));
        bytes.extend_from_slice(payload);
        bytes.resize(CHANNEL_HEADER_LEN + padded, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::MAGIC_COOKIE;

    fn answer(request: &[u8], class: Class, fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let asked = Message::decode(request).expect("a request");
        let mut bytes = Vec::new();
        fill(&mut Writer::new(&mut bytes, asked.method, class, asked.transaction_id()));
        bytes
    }

    #[test]
    fn an_allocation_is_made_bound_kept_and_given_up() {
        let at = Instant::from_millis;
        let peer: SocketAddr = "192.0.2.1:443".parse().expect("an address");
        let mut out = Vec::new();
        let mut client = TurnClient::new(Login { username: "u".into(), password: "p".into() }, false);
        client.start(at(0), &mut out);
        assert_eq!(&out[0][4..8], MAGIC_COOKIE.to_be_bytes());
        assert_eq!(client.wake(at(250), &mut out), Told::Nothing);
        assert_eq!(out[0], out[1], "repeated as it was");
        let challenge = answer(&out[0], Class::Error, |w| {
            w.error_code(401).attribute(attr::REALM, b"r").attribute(attr::NONCE, b"n");
        });
        assert_eq!(client.handle(at(260), &challenge, &mut out), Told::Nothing);
        let signed = Message::decode(&out[2]).expect("a request");
        let key = HmacSha1::new(&long_term_key(b"u", b"r", b"p"));
        assert!(signed.integrity().is_some_and(|i| key.verify(&[&i.header, i.rest], i.tag)));
        assert_eq!(client.handle(at(265), &challenge, &mut out), Told::Nothing, "an answer to what was asked before");
        let granted = answer(&out[2], Class::Success, |w| {
            w.xor_address(attr::XOR_RELAYED_ADDRESS, peer).u32(attr::LIFETIME, 600);
        });
        assert_eq!(client.handle(at(270), &granted, &mut out), Told::Allocated);
        client.reach(at(280), peer, &mut out);
        let bound = answer(&out[3], Class::Success, |_| {});
        assert_eq!(client.handle(at(290), &bound, &mut out), Told::Bound);
        assert_eq!(client.handle(at(300), &client.wrap(b"hello"), &mut out), Told::Data(4..9));
        assert_eq!(client.deadline(), Some(at(290) + BIND_EVERY));
        assert_eq!(client.wake(at(290) + BIND_EVERY, &mut out), Told::Nothing);
        let stale = answer(&out[4], Class::Error, |w| {
            w.error_code(438).attribute(attr::REALM, b"r").attribute(attr::NONCE, b"m");
        });
        client.handle(at(241_000), &stale, &mut out);
        assert_eq!(Message::decode(&out[5]).expect("again").get(attr::NONCE), Some(&b"m"[..]));
        let gone = answer(&out[5], Class::Error, |w| {
            w.error_code(437);
        });
        assert!(matches!(client.handle(at(241_010), &gone, &mut out), Told::Refused(why) if why.contains("437")));
    }

    #[test]
    fn a_relay_that_says_nothing_is_given_up() {
        let (mut client, mut out, mut now) = (TurnClient::new(Login::default(), false), Vec::new(), Instant::default());
        client.start(now, &mut out);
        while client.wake(now, &mut out) == Told::Nothing {
            now = client.deadline().expect("it waits");
            assert!(now < Instant::from_millis(60_000));
        }
        assert_eq!(out.len(), 1 + REPEATS as usize);
    }
}
