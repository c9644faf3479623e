//! The relay against its RFC: a script of requests, one row a rule. Answers are read by the `stun` crate, so that our codec
//! cannot agree with a mistake of its own.

use postern::base::id::{Carrier, ClientAddr, SocketId, StreamId, WorkerId};
use postern::base::rng::Rng;
use postern::base::time::{Duration, Instant, Now, UnixTime};
use postern::crypto::{HmacSha1, long_term_key};
use postern::engine::turn::{Effect, Origin, Turn, TurnConfig, TurnDrop};
use postern::engine::turn_auth::Secrets;
use postern::wire::stun::{Class, Method, TransactionId, Writer, attr};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use stun::message::{Getter, Message};

const SFU: &str = "192.0.2.1:443";
const WALL_S: u64 = 1_000_000;

struct Lab {
    turn: Turn,
    secrets: Secrets,
    ms: u64,
    transactions: u8,
    reply: Vec<u8>,
    effects: Vec<Effect>,
}

/// A client: its 5-tuple and who it says it is.
#[derive(Clone, Copy)]
struct Client {
    port: u16,
    user: &'static str,
    password: &'static str,
    is_stream: bool,
}

const ALICE: Client = Client { port: 1000, user: "alice", password: "a", is_stream: false };

impl Client {
    fn address(self) -> ClientAddr {
        ClientAddr(SocketAddr::from(([198, 51, 100, 1], self.port)))
    }

    fn origin(self) -> Origin<'static> {
        Origin { carrier: self.carrier(), client: self.address(), server_name: None }
    }

    fn carrier(self) -> Carrier {
        if self.is_stream {
            return Carrier::Stream(StreamId(u64::from(self.port)));
        }
        Carrier::Udp { socket: SocketId(1), local: [192, 0, 2, 1].into(), remote: self.address() }
    }
}

/// Ends a chain of writer calls.
fn done<T>(_: T) {}

type Fill<'a> = &'a dyn Fn(&mut Writer<'_>);

impl Lab {
    fn new() -> Self {
        let users = HashMap::from([("alice".to_owned(), "a".to_owned()), ("bob".to_owned(), "b".to_owned())]);
        let secrets = Secrets::new("realm", b"master", &[], &users);
        let config = TurnConfig {
            allocations_per_user_max: 2,
            allocations_max: 5,
            ..TurnConfig::closed(secrets.clone(), vec![SFU.parse().expect("a literal")], 2)
        };
        let turn = Turn::new(Arc::new(config), WorkerId(1), Rng::new(1));
        Self { turn, secrets, ms: 0, transactions: 0, reply: Vec::new(), effects: Vec::new() }
    }

    fn now(&self) -> Now {
        let mono = Instant::from_millis(self.ms);
        Now { mono, wall: UnixTime::from_nanos((WALL_S * 1000 + self.ms) * 1_000_000) }
    }

    fn send(&mut self, client: Client, bytes: &[u8]) -> Result<(), TurnDrop> {
        self.effects.clear();
        let now = self.now();
        self.turn.handle(now, client.origin(), bytes, &mut self.reply, &mut self.effects)
    }

    /// An authenticated request; the code of the answer, 0 for success. The answer's integrity must fit.
    fn ask(&mut self, client: Client, method: Method, fill: Fill<'_>) -> u16 {
        self.transactions = self.transactions.wrapping_add(1);
        let bytes = self.request(client, method, TransactionId([self.transactions; 12]), fill);
        self.send(client, &bytes).expect("a request is answered");
        self.code(Some(client))
    }

    fn request(&self, client: Client, method: Method, id: TransactionId, fill: Fill<'_>) -> Vec<u8> {
        let key = HmacSha1::new(&long_term_key(client.user.as_bytes(), b"realm", client.password.as_bytes()));
        let nonce = self.secrets.nonce(self.now().wall, client.address());
        let mut bytes = Vec::new();
        let mut w = Writer::new(&mut bytes, method, Class::Request, id);
        fill(&mut w);
        w.attribute(attr::USERNAME, client.user.as_bytes())
            .attribute(attr::REALM, b"realm")
            .attribute(attr::NONCE, nonce.as_bytes())
            .integrity(|b| key.sign(&[b]));
        bytes
    }

    fn code(&self, signed_by: Option<Client>) -> u16 {
        let mut message = Message::new();
        message.unmarshal_binary(&self.reply).expect("the stun crate reads our answer");
        if let Some(client) = signed_by {
            let key =
                stun::integrity::MessageIntegrity::new_long_term_integrity(client.user.into(), "realm".into(), client.password.into());
            key.check(&mut message).expect("its integrity fits");
        }
        let mut code = stun::error_code::ErrorCodeAttribute::default();
        if code.get_from(&message).is_ok() { code.code.0 } else { 0 }
    }

    fn allocate(&mut self, client: Client) -> u16 {
        self.ask(client, Method::Allocate, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        })
    }

    fn permit(&mut self, client: Client, peers: &[&str]) -> u16 {
        let peers: Vec<SocketAddr> = peers.iter().map(|p| p.parse().expect("a literal")).collect();
        self.ask(client, Method::CreatePermission, &|w| {
            for peer in &peers {
                w.xor_address(attr::XOR_PEER_ADDRESS, *peer);
            }
        })
    }

    fn bind(&mut self, client: Client, number: u16, peer: &str) -> u16 {
        let peer: SocketAddr = peer.parse().expect("a literal");
        self.ask(client, Method::ChannelBind, &|w| {
            w.u32(attr::CHANNEL_NUMBER, u32::from(number) << 16).xor_address(attr::XOR_PEER_ADDRESS, peer);
        })
    }

    fn refresh(&mut self, client: Client, lifetime_s: u32) -> u16 {
        self.ask(client, Method::Refresh, &|w| {
            w.u32(attr::LIFETIME, lifetime_s);
        })
    }

    fn lifetime_s(&self) -> u32 {
        let message = postern::wire::stun::Message::decode(&self.reply).expect("an answer");
        message.get_u32(attr::LIFETIME).expect("a lifetime")
    }

    fn indicate(&mut self, client: Client, peer: &str, data: &[u8]) -> Result<usize, TurnDrop> {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Method::Send, Class::Indication, TransactionId([7; 12]))
            .xor_address(attr::XOR_PEER_ADDRESS, peer.parse().expect("a literal"))
            .attribute(attr::DATA, data);
        self.send(client, &bytes)?;
        assert!(self.reply.is_empty(), "an indication has no answer");
        Ok(self.effects.iter().filter(|e| matches!(e, Effect::Deliver { .. })).count())
    }

    fn later(&mut self, seconds: u64) {
        self.ms += seconds * 1000;
        let now = self.now();
        self.turn.wake(now.mono, &mut self.effects);
    }
}

#[test]
fn strangers_get_a_small_challenge_and_no_state() {
    let mut lab = Lab::new();
    let mut bare = Vec::new();
    Writer::new(&mut bare, Method::Allocate, Class::Request, TransactionId([1; 12])).attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    lab.send(ALICE, &bare).expect("answered");
    assert_eq!(lab.code(None), 401);
    assert!(lab.reply.len() <= 80, "401 is {} bytes: an amplifier", lab.reply.len());
    assert_eq!(lab.turn.allocations(), 0);
    let mut binding = Vec::new();
    Writer::new(&mut binding, Method::Binding, Class::Request, TransactionId([1; 12]));
    lab.send(ALICE, &binding).expect("answered");
    assert_eq!((lab.code(None), lab.reply.len()), (0, 32));
    // Integrity without the rest is a bad request, without a challenge (RFC 8489 §9.2.4).
    let mut half = Vec::new();
    Writer::new(&mut half, Method::Allocate, Class::Request, TransactionId([1; 12])).integrity(|_| [0; 20]);
    lab.send(ALICE, &half).expect("answered");
    assert_eq!((lab.code(None), lab.reply.len()), (400, 28));
}

#[test]
fn allocate_by_its_rules() {
    let rows: &[(&str, u16, Fill<'static>)] = &[
        ("no transport", 400, &|_| {}),
        ("malformed transport", 400, &|w| done(w.attribute(attr::REQUESTED_TRANSPORT, &[17]))),
        ("TCP relay", 442, &|w| done(w.attribute(attr::REQUESTED_TRANSPORT, &[6, 0, 0, 0]))),
        ("unknown attribute", 420, &|w| done(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).attribute(0x7777, &[]))),
        ("token and even port", 400, &|w| {
            done(
                w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                    .attribute(attr::RESERVATION_TOKEN, &[0; 8])
                    .attribute(attr::EVEN_PORT, &[0]),
            )
        }),
        ("unknown token", 508, &|w| {
            done(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).attribute(attr::RESERVATION_TOKEN, &[0; 8]))
        }),
        ("pair of ports", 508, &|w| done(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).attribute(attr::EVEN_PORT, &[0x80]))),
        ("two families asked", 400, &|w| {
            done(
                w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                    .attribute(attr::REQUESTED_ADDRESS_FAMILY, &[1, 0, 0, 0])
                    .attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]),
            )
        }),
        ("IPv4 as additional", 400, &|w| {
            done(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[1, 0, 0, 0]))
        }),
        ("IPv6 without one", 440, &|w| {
            done(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]))
        }),
        ("family 7", 440, &|w| {
            done(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[7, 0, 0, 0]))
        }),
        ("IPv6 as additional", 0, &|w| {
            done(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]))
        }),
    ];
    for (name, want, fill) in rows {
        let mut lab = Lab::new();
        assert_eq!(lab.ask(ALICE, Method::Allocate, fill), *want, "{name}");
        assert_eq!(lab.turn.allocations(), usize::from(*want == 0), "{name}");
    }
}

#[test]
fn an_allocate_is_repeated_to_itself_and_refused_to_another() {
    let mut lab = Lab::new();
    let fill: Fill<'_> = &|w| done(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]));
    let bytes = lab.request(ALICE, Method::Allocate, TransactionId([9; 12]), fill);
    lab.send(ALICE, &bytes).expect("answered");
    let first = lab.reply.clone();
    lab.send(ALICE, &bytes).expect("answered");
    assert_eq!(lab.reply, first, "a retransmission gets the same answer");
    assert_eq!(lab.allocate(ALICE), 437, "another transaction does not");
    // The same address over another transport is another 5-tuple (RFC 8656 §3).
    assert_eq!(lab.allocate(Client { is_stream: true, ..ALICE }), 0);
}

#[test]
fn lifetimes_are_bounded_and_zero_ends_it() {
    let mut lab = Lab::new();
    assert_eq!(lab.allocate(ALICE), 0);
    assert_eq!(lab.lifetime_s(), 600);
    for (asked, want) in [(10, 600), (700, 700), (9_999, 3_600)] {
        assert_eq!((lab.refresh(ALICE, asked), lab.lifetime_s()), (0, want));
    }
    assert_eq!((lab.refresh(ALICE, 0), lab.lifetime_s()), (0, 0));
    assert_eq!(lab.refresh(ALICE, 0), 437);
    assert_eq!(lab.allocate(ALICE), 0);
    lab.later(601);
    assert_eq!((lab.turn.allocations(), lab.refresh(ALICE, 600)), (0, 437), "it ends by itself");
}

#[test]
fn quotas_are_counted_and_given_back() {
    let mut lab = Lab::new();
    let nth = |n: u16, user, password| Client { port: 1000 + n, user, password, is_stream: false };
    assert_eq!(lab.allocate(nth(0, "alice", "a")), 0);
    assert_eq!(lab.allocate(nth(1, "alice", "a")), 0);
    assert_eq!(lab.allocate(nth(2, "alice", "a")), 486);
    assert_eq!(lab.allocate(nth(3, "bob", "b")), 0, "another user is not held up");
    assert_eq!(lab.refresh(nth(0, "alice", "a"), 0), 0);
    assert_eq!(lab.allocate(nth(2, "alice", "a")), 0);
    for _ in 0..2_000 {
        assert_eq!(lab.refresh(nth(2, "alice", "a"), 0), 0);
        assert_eq!(lab.allocate(nth(2, "alice", "a")), 0);
    }
    assert_eq!(lab.turn.allocations(), 3);
}

#[test]
fn another_users_allocation_is_not_touched() {
    let mut lab = Lab::new();
    let mallory = Client { user: "bob", password: "b", ..ALICE };
    assert_eq!(lab.allocate(ALICE), 0);
    assert_eq!(lab.refresh(mallory, 0), 441);
    assert_eq!(lab.permit(mallory, &[SFU]), 441);
    assert_eq!(lab.bind(mallory, 0x4000, SFU), 441);
    assert_eq!(lab.turn.allocations(), 1);
}

#[test]
fn the_relay_reaches_the_sfu_and_nobody_else() {
    let mut lab = Lab::new();
    assert_eq!(lab.permit(ALICE, &[SFU]), 437);
    assert_eq!(lab.bind(ALICE, 0x4000, SFU), 437);
    assert_eq!(lab.allocate(ALICE), 0);
    for peer in ["10.0.0.1:443", "127.0.0.1:443", "169.254.169.254:80", "0.0.0.0:443", "255.255.255.255:443", "192.0.2.2:443", "8.8.8.8:53"]
    {
        assert_eq!(lab.permit(ALICE, &[peer]), 403, "{peer}");
        assert_eq!(lab.bind(ALICE, 0x4001, peer), 403, "{peer}");
        assert_eq!(lab.indicate(ALICE, peer, b"x"), Err(TurnDrop::NoPermission), "{peer}");
    }
    assert_eq!(lab.permit(ALICE, &["[2001:db8::1]:443"]), 443);
    assert_eq!(lab.permit(ALICE, &[]), 400);
    // One bad peer fails all, in either order, and nothing is installed.
    for peers in [[SFU, "10.0.0.1:1"], ["10.0.0.1:1", SFU]] {
        assert_eq!(lab.permit(ALICE, &peers), 403);
        assert_eq!(lab.indicate(ALICE, SFU, b"x"), Err(TurnDrop::NoPermission));
    }
    assert_eq!(lab.permit(ALICE, &[SFU]), 0);
    assert_eq!(lab.indicate(ALICE, SFU, b"x"), Ok(1));
    assert_eq!(lab.indicate(ALICE, SFU, b""), Ok(1), "empty is a packet too");
    // A permission is by IP; the data path insists on the media port.
    assert_eq!(lab.indicate(ALICE, "192.0.2.1:22", b"x"), Err(TurnDrop::PeerNotSfu));
}

#[test]
fn channels_by_their_rules() {
    let mut lab = Lab::new();
    assert_eq!(lab.allocate(ALICE), 0);
    for number in [0x3FFF, 0x5000, 0x7FFF, 0] {
        assert_eq!(lab.bind(ALICE, number, SFU), 400, "{number:04x}");
    }
    assert_eq!(lab.ask(ALICE, Method::ChannelBind, &|w| done(w.u32(attr::CHANNEL_NUMBER, 0x4000_0000))), 400, "no peer");
    assert_eq!(
        lab.ask(ALICE, Method::ChannelBind, &|w| done(w.xor_address(attr::XOR_PEER_ADDRESS, SFU.parse().expect("a literal")))),
        400,
        "no number"
    );
    assert_eq!(lab.bind(ALICE, 0x4000, SFU), 0);
    assert_eq!(lab.bind(ALICE, 0x4000, SFU), 0, "again is a refresh");
    assert_eq!(lab.bind(ALICE, 0x4001, SFU), 400, "one peer, one number");
    assert_eq!(lab.bind(ALICE, 0x4000, "192.0.2.1:9"), 400, "one number, one peer");
    assert_eq!(lab.send(ALICE, &[0x40, 0, 0, 1, 9]), Ok(()));
    assert!(matches!(lab.effects[..], [Effect::Deliver { ref payload, .. }] if *payload == (4..5)));
    assert_eq!(lab.send(ALICE, &[0x40, 1, 0, 1, 9]), Err(TurnDrop::ChannelUnbound));
    assert_eq!(lab.send(ALICE, &[0x40, 0, 0, 2, 9]), Err(TurnDrop::Malformed), "shorter than it says");
    assert_eq!(lab.send(Client { port: 5, ..ALICE }, &[0x40, 0, 0, 1, 9]), Err(TurnDrop::NoAllocation));
    // The permission lives 300 s, the channel 600 s; traffic refreshes neither.
    lab.later(299);
    assert_eq!(lab.send(ALICE, &[0x40, 0, 0, 1, 9]), Ok(()));
    lab.later(2);
    assert_eq!(lab.send(ALICE, &[0x40, 0, 0, 1, 9]), Err(TurnDrop::NoPermission));
    assert_eq!(lab.permit(ALICE, &[SFU]), 0);
    assert_eq!(lab.send(ALICE, &[0x40, 0, 0, 1, 9]), Ok(()));
    assert_eq!(lab.refresh(ALICE, 3600), 0);
    lab.later(300);
    assert_eq!(lab.permit(ALICE, &[SFU]), 0);
    assert_eq!(lab.send(ALICE, &[0x40, 0, 0, 1, 9]), Err(TurnDrop::ChannelUnbound), "the channel is over");
    assert_eq!(lab.bind(ALICE, 0x4001, SFU), 0, "and its peer free again");
}

#[test]
fn a_closed_connection_ends_its_allocation() {
    let mut lab = Lab::new();
    let stream = Client { is_stream: true, ..ALICE };
    assert_eq!(lab.allocate(stream), 0);
    lab.turn.carrier_lost(stream.carrier(), &mut lab.effects);
    assert_eq!(lab.turn.allocations(), 0);
    assert!(lab.turn.deadline().is_none() || lab.turn.deadline() > Some(Instant::from_millis(0)));
    lab.later(Duration::from_secs(3_600).as_secs());
    assert_eq!(lab.turn.deadline(), None, "nothing is left to wake for");
}
