//! The wire of a shard: no socket, and a clock that can be turned.

use super::common;
use super::lab::{ALICE, BOB, DENIED, PEERS, QUOTA, REALM, Transport, Wire};
use postern::base::id::{AllocationId, Carrier, ClientAddr, PeerAddr, SocketId, StreamId, WorkerId};
use postern::base::rng::Rng;
use postern::base::time::{Anchor, Duration, Instant, Now, UnixTime};
use postern::crypto::SecretRng;
use postern::engine::dtls::Identity;
use postern::engine::peer_policy::{Opens, PeerPolicy};
use postern::engine::relay_table::Family;
use postern::engine::turn::TurnConfig;
use postern::engine::turn_auth::Secrets;
use postern::shard::counters::Counters;
use postern::shard::egress::Outlet;
use postern::shard::mail::{Effect, ServerName, StreamRole};
use postern::shard::{PortRole, Shard, ShardConfig};
use postern::wire::framing::Framing;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

const SFU: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 443);
const TURN_SOCKET: SocketId = SocketId(1);

pub struct ShardWire {
    shard: Shard,
    transport: Transport,
    ms: u64,
    clients: Vec<(Carrier, SocketAddr, VecDeque<Vec<u8>>)>,
    peers: Vec<(SocketAddr, VecDeque<(SocketAddr, Vec<u8>)>)>,
    relays: HashMap<(AllocationId, bool), SocketAddr>,
}

impl ShardWire {
    pub fn new(transport: Transport) -> Self {
        Self::with(transport, |_| {})
    }

    /// One whose relay is set up otherwise.
    #[allow(clippy::disallowed_methods, reason = "the crates behind want a clock of std's")]
    pub fn with(transport: Transport, adjust: impl FnOnce(&mut TurnConfig)) -> Self {
        let users = HashMap::from([ALICE, BOB].map(|(name, password)| (name.to_owned(), password.to_owned())));
        let secrets = Secrets::new(REALM, b"master", &[], &users);
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a network")).collect();
        let mut config = TurnConfig::closed(secrets, Vec::new(), 1);
        config.allocations_per_user_max = QUOTA;
        config.peers = PeerPolicy::new(Opens::Networks(networks(&PEERS)), networks(&DENIED));
        config.peers.sfu = vec![SFU, "[::1]:443".parse().expect("an address")];
        config.peers.listeners = vec![443, 3478];
        config.peers.relay_ports = Some(config.relay_ports.clone());
        adjust(&mut config);
        let shard = ShardConfig {
            worker: WorkerId(0),
            workers: 1,
            sockets: vec![PortRole::Media, PortRole::Turn],
            turn: Arc::new(config),
            identity: Identity::generate().expect("a certificate"),
            anchor: Anchor::new(std::time::Instant::now()),
            buffers: 4,
            store_bytes: 1 << 20,
        };
        let shard = Shard::new(shard, SecretRng::seeded(1), Rng::new(1));
        Self { shard, transport, ms: 0, clients: Vec::new(), peers: Vec::new(), relays: HashMap::new() }
    }

    /// What it counts, also once a [`super::lab::Lab`] has it.
    pub fn counters(&self) -> Counters {
        self.shard.counters.clone()
    }

    /// One datagram of somebody who is never heard of again; how long the answer is, if there is one.
    pub fn passing(&mut self, from: SocketAddr, bytes: &[u8]) -> Option<usize> {
        let carrier = Carrier::Udp { socket: TURN_SOCKET, local: SFU.ip(), remote: ClientAddr(from) };
        let mut buf = self.shard.pool.take();
        assert!(buf.fill(bytes));
        self.shard.handle_datagram(self.now(), carrier, buf);
        self.shard.wake(self.now());
        drop(self.shard.take_effects());
        let answer = self.shard.egress.datagrams().first().map(|datagram| self.shard.egress.bytes(datagram).len());
        self.shard.egress.clear();
        answer
    }

    /// When the shard wants to be woken next.
    pub fn deadline(&mut self) -> Option<Instant> {
        self.shard.deadline()
    }

    fn now(&self) -> Now {
        Now { mono: Instant::from_millis(self.ms), wall: UnixTime::from_nanos((1_000_000_000 + self.ms) * 1_000_000) }
    }

    fn collect(&mut self) {
        let now = self.now();
        self.shard.wake(now);
        for effect in self.shard.take_effects() {
            match effect {
                Effect::OpenRelay { allocation, at } => {
                    self.relays.insert((allocation, at.0.is_ipv4()), at.0);
                    self.shard.relay_opened(now, allocation, Family::of(at.ip()), true);
                }
                Effect::CloseRelay { allocation, family } => drop(self.relays.remove(&(allocation, family == Family::V4))),
                _ => {}
            }
        }
        let datagrams: Vec<_> = self.shard.egress.datagrams().to_vec();
        for datagram in datagrams {
            let bytes = self.shard.egress.bytes(&datagram).to_vec();
            match datagram.outlet {
                Outlet::Shared { .. } => {
                    let client = self.clients.iter_mut().find(|(_, at, _)| *at == datagram.remote).expect("somebody we know");
                    client.2.push_back(bytes);
                }
                Outlet::Relay { allocation, .. } => {
                    let from = self.relays[&(allocation, datagram.remote.is_ipv4())];
                    if let Some(peer) = self.peers.iter_mut().find(|(at, _)| *at == datagram.remote) {
                        peer.1.push_back((from, bytes));
                    }
                }
            }
        }
        self.shard.egress.clear();
        for (carrier, _, inbox) in &mut self.clients {
            let Carrier::Stream(stream) = *carrier else { continue };
            let mut bytes = Vec::new();
            while self.shard.has_frames(stream) {
                self.shard.take_frames(stream, 64 * 1024, &mut bytes);
            }
            while let Some(frame) = Framing::Turn.next(&bytes).expect("our own framing") {
                inbox.push_back(bytes[frame.start..frame.end].to_vec());
                bytes.drain(..frame.consumed);
            }
        }
    }
}

impl Wire for ShardWire {
    fn transport(&self) -> Transport {
        self.transport
    }

    fn join(&mut self) -> (usize, SocketAddr) {
        let n = self.clients.len();
        self.join_from(SocketAddr::from(([198, 51, 100, 1], 20_000 + n as u16)))
    }

    fn join_from(&mut self, address: SocketAddr) -> (usize, SocketAddr) {
        let n = self.clients.len();
        let carrier = if self.transport.is_stream() {
            let stream = StreamId(n as u64 + 1);
            let tls = (self.transport == Transport::EdgeTls).then_some(ServerName(None));
            self.shard.stream_opened(stream, StreamRole::Turn, address, tls);
            Carrier::Stream(stream)
        } else {
            Carrier::Udp { socket: TURN_SOCKET, local: SFU.ip(), remote: ClientAddr(address) }
        };
        self.clients.push((carrier, address, VecDeque::new()));
        (n, address)
    }

    fn close(&mut self, client: usize) {
        let now = self.now();
        if let Carrier::Stream(stream) = self.clients[client].0 {
            self.shard.stream_closed(now, stream);
        }
        self.collect();
    }

    fn send(&mut self, client: usize, bytes: &[u8]) {
        let (now, carrier) = (self.now(), self.clients[client].0);
        match carrier {
            Carrier::Udp { .. } => {
                let mut buf = self.shard.pool.take();
                assert!(buf.fill(bytes));
                self.shard.handle_datagram(now, carrier, buf);
            }
            Carrier::Stream(stream) => {
                let mut rest = bytes;
                while let Some(frame) = Framing::Turn.next(rest).expect("whole frames") {
                    let mut buf = self.shard.pool.take();
                    assert!(buf.fill(&rest[frame.start..frame.end]));
                    self.shard.handle_frame(now, stream, buf);
                    rest = &rest[frame.consumed..];
                }
            }
        }
        self.collect();
    }

    fn receive(&mut self, client: usize) -> Option<Vec<u8>> {
        self.clients[client].2.pop_front()
    }

    fn peer(&mut self, ip: IpAddr) -> (usize, SocketAddr) {
        let [port] = common::free_ports();
        let address = SocketAddr::new(ip, port);
        self.peers.push((address, VecDeque::new()));
        (self.peers.len() - 1, address)
    }

    fn peer_send(&mut self, peer: usize, to: SocketAddr, bytes: &[u8]) {
        let now = self.now();
        let Some((&(allocation, _), _)) = self.relays.iter().find(|(_, at)| **at == to) else { return };
        let mut buf = self.shard.pool.take();
        assert!(buf.fill(bytes));
        self.shard.handle_relayed(now, allocation, PeerAddr(self.peers[peer].0), buf);
        self.collect();
    }

    fn peer_receive(&mut self, peer: usize) -> Option<(SocketAddr, Vec<u8>)> {
        self.peers[peer].1.pop_front()
    }

    fn later(&mut self, seconds: u64) -> bool {
        self.ms += Duration::from_secs(seconds).as_millis() as u64;
        self.collect();
        true
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn sfu(&self) -> SocketAddr {
        SFU
    }

    fn listener(&self) -> SocketAddr {
        SocketAddr::new(SFU.ip(), 3478)
    }
}
