//! A relay that is driven by bytes: each operation of a script is a request, a datagram, a connection or time that passes. For
//! fuzzing, and for scripts of chance in tests. Whatever was done, in the end nothing is left.

use crate::base::id::{AllocationId, Carrier, ClientAddr, PeerAddr, SocketId, StreamId, WorkerId};
use crate::base::rng::Rng;
use crate::base::time::{Anchor, Duration, Instant, Now, UnixTime};
use crate::crypto::{HmacSha1, SecretRng, long_term_key};
use crate::engine::dtls::Identity;
use crate::engine::peer_policy::{Opens, PeerPolicy};
use crate::engine::relay_table::Family;
use crate::engine::turn::{Icmp, TurnConfig};
use crate::engine::turn_auth::Secrets;
use crate::shard::counters::Counter;
use crate::shard::mail::{Effect, StreamRole};
use crate::shard::{PortRole, Shard, ShardConfig, table};
use crate::wire::stun::{Class, Method, TransactionId, Writer, attr};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

const SFU: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 443);
const WORKERS: u8 = 2;
const CLIENTS: u8 = 6;

/// What a script is read from.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    /// A peer: one that may be, one of our own, or any.
    fn peer(&mut self) -> SocketAddr {
        let (kind, port) = (self.byte(), u16::from_be_bytes([self.byte(), self.byte()]));
        match kind % 6 {
            0 => SocketAddr::from(([203, 0, 113, kind / 64], 9)),
            1 => SFU,
            2 => SocketAddr::new(SFU.ip(), 49_152 + port % 64),
            3 => SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9)), port),
            4 => SocketAddr::new(SFU.ip(), port),
            _ => SocketAddr::from(([kind, self.byte(), self.byte(), self.byte()], port)),
        }
    }
}

struct Lab {
    shards: Vec<Shard>,
    secrets: Secrets,
    now: Instant,
    given: u64,
    transactions: u64,
    relays: BTreeMap<(u8, AllocationId, bool), ()>,
    /// Every so many sockets cannot be opened.
    refuses: u8,
    asked: u8,
    /// Connections that moved, and those that were lost on their way with the packet that named their owner.
    moves: u64,
    lost: u64,
}

fn user(n: u8) -> (String, String) {
    (format!("user{}", n % 3), "password".into())
}

impl Lab {
    #[allow(clippy::disallowed_methods, reason = "any anchor will do: only differences to it are used")]
    fn new(refuses: u8) -> Self {
        let users: HashMap<String, String> = (0..3).map(user).collect();
        let secrets = Secrets::new("realm", b"master", &["shared".into()], &users);
        let networks = ["203.0.113.0/24", "2001:db8::/32", "192.0.2.1/32"].map(|net| net.parse().expect("a network"));
        let mut config = TurnConfig::closed(secrets.clone(), Vec::new(), WORKERS);
        config.relay_ports = 49_152..=49_215;
        config.allocations_per_user_max = 4;
        config.bytes_per_allocation = 100_000;
        config.peers = PeerPolicy::new(Opens::Networks(networks.into()), Vec::new());
        config.peers.sfu = vec![SFU, SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 443)];
        config.peers.listeners = vec![443, 3478];
        config.peers.relay_ports = Some(config.relay_ports.clone());
        let (turn, identity) = (Arc::new(config), Identity::generate().expect("a certificate"));
        let anchor = Anchor::new(std::time::Instant::now());
        let shard = |worker: u8| {
            let config = ShardConfig {
                worker: WorkerId(worker),
                workers: WORKERS,
                sockets: vec![PortRole::Media, PortRole::Turn],
                turn: Arc::clone(&turn),
                identity: identity.clone(),
                anchor,
                buffers: 4,
                store_bytes: 1 << 16,
            };
            let mut shard = Shard::new(config, SecretRng::seeded(1), Rng::new(1));
            for client in (0..CLIENTS).filter(|client| client % WORKERS == worker && client % 3 == 2) {
                shard.stream_opened(StreamId(u64::from(client)), StreamRole::Turn, address(client), None);
            }
            shard
        };
        let shards = (0..WORKERS).map(shard).collect();
        let now = Instant::from_millis(1_000);
        Self { shards, secrets, now, given: 0, transactions: 0, relays: BTreeMap::new(), refuses, asked: 0, moves: 0, lost: 0 }
    }

    fn time(&self) -> Now {
        Now { mono: self.now, wall: UnixTime::from_nanos(1_700_000_000_000_000_000 + self.now.as_nanos()) }
    }

    /// To the worker that this client's packets reach, by what carries them.
    fn give(&mut self, client: u8, bytes: &[u8]) {
        let now = self.time();
        let at = self.holder(client);
        let shard = &mut self.shards[at];
        let mut buf = shard.pool.take();
        if !buf.fill(bytes) {
            return;
        }
        match carrier(client) {
            Carrier::Stream(stream) if shard.knows_stream(stream) => shard.handle_frame(now, stream, buf),
            Carrier::Stream(_) => return,
            carrier => shard.handle_datagram(now, carrier, buf),
        }
        self.given += 1;
    }

    /// The worker whose socket gets this client's packets; of a connection, the one that has it.
    fn holder(&self, client: u8) -> usize {
        let has_it = |shard: &Shard| matches!(carrier(client), Carrier::Stream(stream) if shard.knows_stream(stream));
        self.shards.iter().position(has_it).unwrap_or(usize::from(client % WORKERS))
    }

    fn ask(&mut self, client: u8, method: Method, fill: impl FnOnce(&mut Writer<'_>)) {
        self.transactions += 1;
        let mut id = [0; 12];
        id[4..].copy_from_slice(&self.transactions.to_be_bytes());
        let (name, password) = user(client);
        let key = HmacSha1::new(&long_term_key(name.as_bytes(), b"realm", password.as_bytes()));
        let nonce = self.secrets.nonce(self.time().wall, ClientAddr(address(client)));
        let mut bytes = Vec::new();
        let mut w = Writer::new(&mut bytes, method, Class::Request, TransactionId(id));
        fill(&mut w);
        w.attribute(attr::USERNAME, name.as_bytes()).attribute(attr::REALM, b"realm").attribute(attr::NONCE, nonce.as_bytes());
        w.integrity(|b| key.sign(&[b]));
        self.give(client, &bytes);
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let (operation, client) = (script.byte(), script.byte() % CLIENTS);
        match operation % 15 {
            0 | 1 => {
                let kind = script.byte();
                self.ask(client, Method::Allocate, |w| {
                    w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
                    match kind % 6 {
                        1 => _ = w.attribute(attr::EVEN_PORT, &[kind]),
                        2 => _ = w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]),
                        3 => _ = w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[kind / 16, 0, 0, 0]),
                        4 => _ = w.attribute(attr::EVEN_PORT, &[0x80]),
                        _ => {}
                    }
                });
            }
            2 => {
                let (lifetime, family) = (u32::from(script.byte()) * 20, script.byte() % 4);
                self.ask(client, Method::Refresh, |w| {
                    w.u32(attr::LIFETIME, lifetime);
                    if family > 0 {
                        w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]);
                    }
                });
            }
            3 => {
                let peers: Vec<SocketAddr> = (0..script.byte() % 3).map(|_| script.peer()).collect();
                self.ask(client, Method::CreatePermission, |w| {
                    peers.iter().for_each(|peer| _ = w.xor_address(attr::XOR_PEER_ADDRESS, *peer))
                });
            }
            4 => {
                let (number, peer) = (0x4000 + u32::from(script.byte() % 3), script.peer());
                self.ask(client, Method::ChannelBind, |w| {
                    w.u32(attr::CHANNEL_NUMBER, number << 16).xor_address(attr::XOR_PEER_ADDRESS, peer);
                });
            }
            5 | 11 | 12 => {
                let (number, len) = (script.byte() % 3, script.byte() % 32);
                let data = script.take(usize::from(len));
                self.give(client, &[&[0x40, number, 0, data.len() as u8][..], &data].concat());
            }
            6 => {
                let (peer, len) = (script.peer(), script.byte() % 32);
                let data = script.take(usize::from(len));
                let mut bytes = Vec::new();
                Writer::new(&mut bytes, Method::Send, Class::Indication, TransactionId([7; 12]))
                    .xor_address(attr::XOR_PEER_ADDRESS, peer)
                    .attribute(attr::DATA, &data);
                self.give(client, &bytes);
            }
            7 => {
                let len = script.byte() % 64;
                let bytes = script.take(usize::from(len));
                self.give(client, &bytes);
            }
            8 => {
                let (peer, nth) = (script.peer(), usize::from(script.byte()));
                let now = self.time();
                let Some((worker, allocation, _)) = self.relays.keys().nth(nth % self.relays.len().max(1)).copied() else { return };
                let shard = &mut self.shards[usize::from(worker)];
                let buf = shard.pool.take();
                self.given += 1;
                shard.handle_relayed(now, allocation, PeerAddr(peer), buf);
                shard.relay_undelivered(now, allocation, PeerAddr(peer), Icmp { kind: 3, code: 3, data: 0 });
            }
            9 if script.byte() < 16 => {
                let (now, at) = (self.time(), self.holder(client));
                if let Carrier::Stream(stream) = carrier(client) {
                    self.shards[at].stream_closed(now, stream);
                }
            }
            // A check that names another worker: the allocation goes there.
            13 => {
                let ufrag = table::ufrag(WorkerId(script.byte() % WORKERS), "0123456789");
                let mut check = Vec::new();
                Writer::new(&mut check, Method::Binding, Class::Request, TransactionId([8; 12]))
                    .attribute(attr::USERNAME, format!("{ufrag}:x").as_bytes())
                    .fingerprint();
                self.ask(client, Method::CreatePermission, |w| _ = w.xor_address(attr::XOR_PEER_ADDRESS, SFU));
                let mut bytes = Vec::new();
                Writer::new(&mut bytes, Method::Send, Class::Indication, TransactionId([9; 12]))
                    .xor_address(attr::XOR_PEER_ADDRESS, SFU)
                    .attribute(attr::DATA, &check);
                self.give(client, &bytes);
            }
            _ => {
                // Mostly a little; now and then what a permission or an allocation lives.
                let time = script.byte();
                self.pass(Duration::from_secs(if time < 16 { 60 * u64::from(time) } else { u64::from(time / 32) }));
            }
        }
        self.collect();
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Carries out what the shards ask for, until they ask for nothing.
    fn collect(&mut self) {
        loop {
            let mut busy = false;
            for worker in 0..WORKERS {
                let now = self.time();
                self.shards[usize::from(worker)].wake(now);
                for effect in self.shards[usize::from(worker)].take_effects() {
                    busy = true;
                    self.carry_out(now, worker, effect);
                }
                let shard = &mut self.shards[usize::from(worker)];
                shard.egress.clear();
                for client in 0..CLIENTS {
                    let (Carrier::Stream(stream), mut out) = (carrier(client), Vec::new()) else { continue };
                    shard.take_frames(stream, usize::MAX / 2, &mut out);
                }
            }
            if !busy {
                return;
            }
        }
    }

    fn carry_out(&mut self, now: Now, worker: u8, effect: Effect) {
        match effect {
            Effect::Parcel { to, parcel } => self.shards[usize::from(to.0)].handle_parcel(now, WorkerId(worker), parcel),
            Effect::OpenRelay { allocation, at } => {
                self.asked = self.asked.wrapping_add(1);
                let is_open = self.refuses == 0 || !self.asked.is_multiple_of(self.refuses);
                if is_open {
                    let is_new = self.relays.insert((worker, allocation, at.0.is_ipv4()), ()).is_none();
                    assert!(is_new, "a socket is opened once");
                }
                self.shards[usize::from(worker)].relay_opened(now, allocation, Family::of(at.ip()), is_open);
            }
            Effect::CloseRelay { allocation, family } => {
                self.relays.remove(&(worker, allocation, family == Family::V4));
            }
            Effect::MoveStream { stream, to, cargo } => {
                self.moves += 1;
                // Now and then one does not arrive.
                if self.moves.is_multiple_of(3) {
                    self.shards[usize::from(worker)].cargo_lost(now, *cargo);
                    self.lost += 1;
                } else {
                    self.shards[usize::from(to.0)].adopt_stream(now, stream, *cargo);
                }
            }
            Effect::CloseStream { stream } => self.shards[usize::from(worker)].stream_closed(now, stream),
            Effect::Report(_) => {}
        }
    }
}

fn address(client: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], 1_000 + u16::from(client)))
}

/// Every third client comes over a connection.
fn carrier(client: u8) -> Carrier {
    if client % 3 == 2 {
        return Carrier::Stream(StreamId(u64::from(client)));
    }
    Carrier::Udp { socket: SocketId(1), local: SFU.ip(), remote: ClientAddr(address(client)) }
}

/// Runs a script. Panics when anything is left behind, or a packet did not end. How many allocations there were, packets that were
/// relayed, and connections that moved.
pub fn run(bytes: &[u8]) -> [u64; 3] {
    let mut script = Script(bytes);
    let mut lab = Lab::new(script.byte() % 4);
    while !script.0.is_empty() {
        lab.step(&mut script);
    }
    // The longest life there is, and a reservation behind it; somebody asks for ports, and gives them back.
    lab.pass(Duration::from_secs(3_700));
    lab.collect();
    for client in [0, 1] {
        lab.ask(client, Method::Allocate, |w| _ = w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]));
        lab.ask(client, Method::Refresh, |w| _ = w.u32(attr::LIFETIME, 0));
    }
    lab.collect();
    assert!(lab.relays.is_empty(), "sockets are closed: {:?}", lab.relays);
    for shard in &lab.shards {
        assert_eq!((shard.allocations(), shard.relay_leftovers()), (0, 0), "nothing is left");
    }
    let sum = |family: &str| lab.shards.iter().map(|s| s.counters.sum(family)).sum::<u64>();
    let redirected: u64 = lab.shards.iter().map(|s| s.counters.get(Counter::Redirected)).sum();
    assert_eq!(lab.given + redirected - lab.lost, sum("packets_consumed") + sum("drops"), "every packet ends once");
    let opened = lab.shards.iter().map(|s| s.counters.get(Counter::AllocationsOpened)).sum();
    [opened, sum("relay_packets"), lab.moves]
}
