//! Clients and peers of a relay, and what they say: the same over a shard and over real sockets.

use postern::crypto::{HmacSha1, hmac_sha256, long_term_key, sha256};
use postern::wire::stun::{Class, Method, TransactionId, Writer, attr};
use std::net::{IpAddr, SocketAddr};
use stun::attributes::{ATTR_NONCE, ATTR_REALM};
use stun::message::{Getter, Message};

pub const REALM: &str = "realm";
/// Static users of the server: name, password.
pub const ALICE: (&str, &str) = ("alice", "a");
pub const BOB: (&str, &str) = ("bob", "b");
pub const QUOTA: usize = 120;
/// What the open relay is opened to, and what is closed again.
pub const PEERS: [&str; 2] = ["127.0.0.0/8", "::1/128"];
pub const DENIED: [&str; 1] = ["127.0.9.0/24"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
    EdgeTcp,
    EdgeTls,
}

impl Transport {
    pub fn is_stream(self) -> bool {
        self != Self::Udp
    }
}

/// What carries bytes between clients, relay and peers.
pub trait Wire {
    fn transport(&self) -> Transport;
    /// A client with a 5-tuple of its own; how the server sees it.
    fn join(&mut self) -> (usize, SocketAddr);
    /// A client that comes from a given address.
    fn join_from(&mut self, _: SocketAddr) -> (usize, SocketAddr) {
        self.join()
    }
    fn close(&mut self, client: usize);
    fn send(&mut self, client: usize, bytes: &[u8]);
    /// The next whole message for a client.
    fn receive(&mut self, client: usize) -> Option<Vec<u8>>;
    /// A peer at an address of its own.
    fn peer(&mut self, ip: IpAddr) -> (usize, SocketAddr);
    fn peer_send(&mut self, peer: usize, to: SocketAddr, bytes: &[u8]);
    fn peer_receive(&mut self, peer: usize) -> Option<(SocketAddr, Vec<u8>)>;
    /// Lets time pass; `false` where it cannot.
    fn later(&mut self, seconds: u64) -> bool;
    fn can_wait(&self) -> bool;
    /// The media address of the server, and one that it listens on for others.
    fn sfu(&self) -> SocketAddr;
    fn listener(&self) -> SocketAddr;
}

pub struct Lab {
    wire: Box<dyn Wire>,
    transactions: u32,
}

/// A client and who it says it is.
#[derive(Clone, Debug)]
pub struct Client {
    pub id: usize,
    pub address: SocketAddr,
    pub user: &'static str,
    pub password: &'static str,
    pub realm: String,
    pub nonce: Vec<u8>,
}

/// What a request is signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    Sha1,
    /// The hash of the key, and of the tag.
    Sha256,
}

pub struct Answer {
    pub bytes: Vec<u8>,
    pub message: Message,
    /// 0 for success.
    pub code: u16,
}

impl Answer {
    pub fn has(&self, kind: u16) -> bool {
        self.get(kind).is_some()
    }

    pub fn get(&self, kind: u16) -> Option<Vec<u8>> {
        self.message.attributes.0.iter().find(|a| a.typ.value() == kind).map(|a| a.value.clone())
    }

    pub fn u32(&self, kind: u16) -> u32 {
        u32::from_be_bytes(self.get(kind).expect("the attribute").try_into().expect("four bytes"))
    }

    pub fn address(&self, kind: u16) -> SocketAddr {
        self.addresses(kind)[0]
    }

    pub fn addresses(&self, kind: u16) -> Vec<SocketAddr> {
        let all = self.message.attributes.0.iter().filter(|a| a.typ.value() == kind);
        all.map(|a| {
            let mut one = Message::new();
            one.transaction_id = self.message.transaction_id;
            one.write_header();
            one.add(a.typ, &a.value);
            let mut address = stun::xoraddr::XorMappedAddress::default();
            address.get_from_as(&one, a.typ).expect("an address");
            SocketAddr::new(address.ip, address.port)
        })
        .collect()
    }
}

pub type Fill<'a> = &'a dyn Fn(&mut Writer<'_>);

impl Lab {
    pub fn on(wire: impl Wire + 'static) -> Self {
        Self { wire: Box::new(wire), transactions: 0 }
    }

    pub fn can_wait(&self) -> bool {
        self.wire.can_wait()
    }

    pub fn transport(&self) -> Transport {
        self.wire.transport()
    }

    pub fn sfu(&self) -> SocketAddr {
        self.wire.sfu()
    }

    pub fn listener(&self) -> SocketAddr {
        self.wire.listener()
    }

    pub fn later(&mut self, seconds: u64) {
        assert!(self.wire.later(seconds), "rows that need time say so");
    }

    pub fn transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        let mut id = [0x5a; 12];
        id[8..].copy_from_slice(&self.transactions.to_be_bytes());
        TransactionId(id)
    }

    /// A client that has been challenged, and knows realm and nonce.
    pub fn client(&mut self, user: (&'static str, &'static str)) -> Client {
        self.client_in(REALM, user)
    }

    pub fn client_in(&mut self, realm: &str, user: (&'static str, &'static str)) -> Client {
        let joined = self.wire.join();
        self.challenged(joined, realm, user)
    }

    pub fn client_at(&mut self, user: (&'static str, &'static str), from: SocketAddr) -> Client {
        let joined = self.wire.join_from(from);
        self.challenged(joined, REALM, user)
    }

    /// One that has said nothing yet.
    pub fn stranger(&mut self, from: SocketAddr) -> Client {
        let (id, address) = self.wire.join_from(from);
        Client { id, address, user: "", password: "", realm: REALM.into(), nonce: Vec::new() }
    }

    fn challenged(&mut self, (id, address): (usize, SocketAddr), realm: &str, (user, password): (&'static str, &'static str)) -> Client {
        let mut client = Client { id, address, user, password, realm: realm.into(), nonce: Vec::new() };
        let challenge = self.bare(&client, Method::Allocate, &|w| set(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])));
        assert_eq!(challenge.code, 401);
        client.nonce = challenge.message.get(ATTR_NONCE).expect("a nonce");
        assert_eq!(challenge.message.get(ATTR_REALM).expect("a realm"), realm.as_bytes());
        client
    }

    /// One that has an allocation.
    pub fn allocated(&mut self) -> (Client, SocketAddr) {
        let client = self.client(ALICE);
        let answer = self.allocate(&client);
        assert_eq!(answer.code, 0);
        (client, answer.address(attr::XOR_RELAYED_ADDRESS))
    }

    pub fn close(&mut self, client: &Client) {
        self.wire.close(client.id);
    }

    pub fn send(&mut self, client: &Client, bytes: &[u8]) {
        self.wire.send(client.id, bytes);
    }

    pub fn receive(&mut self, client: &Client) -> Option<Vec<u8>> {
        self.wire.receive(client.id)
    }

    pub fn answer(&mut self, client: &Client) -> Answer {
        let bytes = self.receive(client).expect("an answer");
        parse(bytes)
    }

    /// Nothing has come: what comes first is the answer to a question that is asked now.
    pub fn is_silent(&mut self, client: &Client) -> bool {
        let id = self.transaction();
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Method::Binding, Class::Request, id);
        self.send(client, &bytes);
        self.receive(client).is_some_and(|answer| answer.len() >= 20 && answer[8..20] == id.0)
    }

    /// A request without credentials, and its answer.
    pub fn bare(&mut self, client: &Client, method: Method, fill: Fill<'_>) -> Answer {
        let id = self.transaction();
        let mut bytes = Vec::new();
        fill(&mut Writer::new(&mut bytes, method, Class::Request, id));
        self.send(client, &bytes);
        self.answer(client)
    }

    pub fn request(&self, client: &Client, method: Method, id: TransactionId, signed: Signed, fill: Fill<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut w = Writer::new(&mut bytes, method, Class::Request, id);
        fill(&mut w);
        w.attribute(attr::USERNAME, client.user.as_bytes())
            .attribute(attr::REALM, client.realm.as_bytes())
            .attribute(attr::NONCE, &client.nonce);
        sign(&mut w, client, signed);
        bytes
    }

    /// An authenticated request and its answer, whose integrity must fit wherever it must have one.
    pub fn ask(&mut self, client: &Client, method: Method, fill: Fill<'_>) -> Answer {
        let id = self.transaction();
        let bytes = self.request(client, method, id, Signed::Sha1, fill);
        self.send(client, &bytes);
        let answer = self.answer(client);
        assert_eq!(answer.message.transaction_id.0, id.0);
        let may_be_bare = matches!(answer.code, 400 | 401 | 438);
        if !may_be_bare || answer.has(attr::MESSAGE_INTEGRITY) {
            check_integrity(&answer, client);
        }
        answer
    }

    pub fn allocate(&mut self, client: &Client) -> Answer {
        self.allocate_with(client, &|_| {})
    }

    pub fn allocate_with(&mut self, client: &Client, fill: Fill<'_>) -> Answer {
        self.ask(client, Method::Allocate, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            fill(w);
        })
    }

    pub fn refresh(&mut self, client: &Client, lifetime_s: u32) -> Answer {
        self.ask(client, Method::Refresh, &|w| set(w.u32(attr::LIFETIME, lifetime_s)))
    }

    pub fn permit(&mut self, client: &Client, peers: &[SocketAddr]) -> u16 {
        let fill: Fill<'_> = &|w| peers.iter().for_each(|peer| set(w.xor_address(attr::XOR_PEER_ADDRESS, *peer)));
        self.ask(client, Method::CreatePermission, fill).code
    }

    /// As [`Lab::permit`], of an IPv6 address as it is, whatever it contains.
    pub fn permit_v6(&mut self, client: &Client, ip: std::net::Ipv6Addr) -> u16 {
        let id = self.transaction();
        let mask = [&[0x21, 0x12, 0xa4, 0x42][..], &id.0].concat();
        let octets: Vec<u8> = ip.octets().iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
        let value = [&[0, 2, 0x21, 0x12 ^ 9][..], &octets].concat();
        let bytes = self.request(client, Method::CreatePermission, id, Signed::Sha1, &|w| set(w.attribute(attr::XOR_PEER_ADDRESS, &value)));
        self.send(client, &bytes);
        self.answer(client).code
    }

    pub fn bind(&mut self, client: &Client, number: u16, peer: SocketAddr) -> u16 {
        let fill: Fill<'_> = &|w| set(w.u32(attr::CHANNEL_NUMBER, u32::from(number) << 16).xor_address(attr::XOR_PEER_ADDRESS, peer));
        self.ask(client, Method::ChannelBind, fill).code
    }

    pub fn indicate(&mut self, client: &Client, peer: SocketAddr, data: &[u8]) {
        self.indicate_with(client, &|w| set(w.xor_address(attr::XOR_PEER_ADDRESS, peer).attribute(attr::DATA, data)));
    }

    pub fn indicate_with(&mut self, client: &Client, fill: Fill<'_>) {
        let id = self.transaction();
        let mut bytes = Vec::new();
        fill(&mut Writer::new(&mut bytes, Method::Send, Class::Indication, id));
        self.send(client, &bytes);
    }

    pub fn channel(&mut self, client: &Client, number: u16, data: &[u8]) {
        let mut bytes = [&number.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat();
        if self.transport().is_stream() {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        self.send(client, &bytes);
    }

    pub fn peer(&mut self, ip: &str) -> Peer {
        let (id, address) = self.wire.peer(ip.parse().expect("an address"));
        Peer { id, address }
    }

    pub fn peer_send(&mut self, peer: Peer, to: SocketAddr, bytes: &[u8]) {
        self.wire.peer_send(peer.id, to, bytes);
    }

    pub fn peer_receive(&mut self, peer: Peer) -> Option<Vec<u8>> {
        self.wire.peer_receive(peer.id).map(|(_, bytes)| bytes)
    }

    pub fn peer_receive_from(&mut self, peer: Peer) -> Option<(SocketAddr, Vec<u8>)> {
        self.wire.peer_receive(peer.id)
    }

    /// Nothing has come to a peer: what comes first is what is sent to it now, over a channel or permission that is there.
    pub fn peer_got_nothing(&mut self, client: &Client, peer: Peer) -> bool {
        self.indicate(client, peer.address, b"marker");
        self.peer_receive(peer).is_some_and(|bytes| bytes == b"marker")
    }

    /// The next message for a client, as a Data indication: peer and data.
    pub fn data(&mut self, client: &Client) -> (SocketAddr, Vec<u8>) {
        let answer = self.answer(client);
        assert_eq!(answer.message.typ.to_string(), "Data indication");
        (answer.address(attr::XOR_PEER_ADDRESS), answer.get(attr::DATA).expect("data"))
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Peer {
    id: usize,
    pub address: SocketAddr,
}

/// What floods are made of: an Allocate without credentials, and one with a nonce and a tag that are made up.
pub fn strangers_allocates() -> [Vec<u8>; 2] {
    let (mut bare, mut forged) = (Vec::new(), Vec::new());
    let id = TransactionId([9; 12]);
    Writer::new(&mut bare, Method::Allocate, Class::Request, id).attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    Writer::new(&mut forged, Method::Allocate, Class::Request, id)
        .attribute(attr::USERNAME, b"alice")
        .attribute(attr::REALM, b"realm")
        .attribute(attr::NONCE, b"obMatJos2gAAAAAAAAAAAAAA")
        .integrity(|_| [7; 20]);
    [bare, forged]
}

/// Ends a chain of writer calls.
pub fn set<T>(_: T) {}

const SOFTWARE: u16 = 0x8022;
/// Longest STUN message where the path's MTU is not known (RFC 8489 §6.1: 576 bytes with IPv4's and UDP's headers), bytes.
const ANSWER_MAX: usize = 548;

/// What the server sends, whatever it is: padding is zero and says nothing of us (S33), an answer fits into any path (S34).
pub fn check_form(bytes: &[u8]) {
    let is_indication = bytes[0] & 1 == 0;
    assert!(is_indication || bytes.len() <= ANSWER_MAX, "{} bytes", bytes.len());
    let mut rest = &bytes[20..];
    while let [kind_high, kind_low, len_high, len_low, ..] = *rest {
        let len = usize::from(u16::from_be_bytes([len_high, len_low]));
        let (value, behind) = (4 + len, 4 + len.next_multiple_of(4));
        assert!(rest[value..behind].iter().all(|byte| *byte == 0), "padding: {bytes:02x?}");
        assert_ne!(u16::from_be_bytes([kind_high, kind_low]), SOFTWARE);
        rest = &rest[behind..];
    }
    assert!(rest.is_empty());
}

pub fn parse(bytes: Vec<u8>) -> Answer {
    check_form(&bytes);
    let mut message = Message::new();
    message.unmarshal_binary(&bytes).expect("the stun crate reads our answer");
    let mut code = stun::error_code::ErrorCodeAttribute::default();
    let code = if code.get_from(&message).is_ok() { code.code.0 } else { 0 };
    Answer { bytes, message, code }
}

pub fn key(client: &Client, signed: Signed) -> Vec<u8> {
    let (user, realm, password) = (client.user.as_bytes(), client.realm.as_bytes(), client.password.as_bytes());
    match signed {
        Signed::Sha1 => long_term_key(user, realm, password).to_vec(),
        Signed::Sha256 => sha256(&[user, b":", realm, b":", password]).to_vec(),
    }
}

pub fn sign(w: &mut Writer<'_>, client: &Client, signed: Signed) {
    let key = key(client, signed);
    match signed {
        Signed::Sha1 => set(w.integrity(|b| HmacSha1::new(&key).sign(&[b]))),
        Signed::Sha256 => set(w.integrity_sha256(|b| hmac_sha256(&key, &[b]))),
    }
}

pub fn check_integrity(answer: &Answer, client: &Client) {
    let integrity =
        stun::integrity::MessageIntegrity::new_long_term_integrity(client.user.into(), client.realm.clone(), client.password.into());
    let mut message = answer.message.clone();
    integrity.check(&mut message).expect("the answer's integrity fits");
}
