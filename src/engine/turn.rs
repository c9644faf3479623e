//! TURN server of one worker: requests in, answers and deliveries out.
//!
//! Path:  shard/relaying.rs -> here -> relay_table.rs; a delivery goes back to the shard, which hands it to the SFU, to another
//!        allocation, or to the relay's own socket.
//! Specs: RFC 8656 (TURN), RFC 8489 (STUN). Not here, on purpose: TCP relays (RFC 6062), mobility (RFC 8016).
//! Rule:  no socket, no clock, no global; equal inputs give equal effects.
//!
//! Whom the relay talks to is [`crate::engine::peer_policy`]'s to say. An allocation that has to do with the SFU alone needs no
//! socket: its relayed address is a name.

mod allocating;
mod relaying;

use crate::base::id::{AllocationId, Carrier, ClientAddr, PeerAddr, RelayedAddr, WorkerId};
use crate::base::pace::Pace;
use crate::base::rng::Rng;
use crate::base::time::{Instant, Now};
use crate::engine::flood::{Ration, Strangers};
use crate::engine::peer_policy::{Opens, PeerPolicy};
use crate::engine::relay_ports::{Holder, RelayPorts};
use crate::engine::relay_table::{Allocation, Family, Outside, RelayTable, Socket, Tallies};
use crate::engine::turn_auth::{AuthRefusal, Authenticated, Known, Secrets, Signer, participant_of};
use crate::wire::stun::{Class, Message, Method, Refused, TransactionId, Writer, attr};
use crate::wire::turn::CHANNELS;
pub use relaying::Icmp;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

/// What the relay may do; shared by all workers, and changed as a whole.
#[derive(Clone)]
pub struct TurnConfig {
    pub secrets: Secrets,
    pub peers: PeerPolicy,
    /// Ports that relayed addresses have. While the relay is closed they are names, and nothing is bound.
    pub relay_ports: RangeInclusive<u16>,
    /// Ports that the system gives to sockets that ask for none.
    pub ephemeral_ports: Option<RangeInclusive<u16>>,
    pub allocations_per_user_max: usize,
    /// Allocations of one source address; 0 is no limit.
    pub allocations_per_address_max: usize,
    /// Allocations of one worker.
    pub allocations_max: usize,
    pub permissions_max: usize,
    pub channels_max: usize,
    pub channel_numbers: RangeInclusive<u16>,
    /// Shortest and longest life of an allocation, seconds (RFC 8656 §7.2).
    pub lifetime_s: RangeInclusive<u32>,
    /// What one allocation, and one worker, relays to and from peers other than the SFU, bytes a second; 0 is no limit.
    pub bytes_per_allocation: u64,
    pub bytes_in_all: u64,
    /// Challenges and STUN answers to those who are not authenticated.
    pub ration: Ration,
    /// Expired credentials are not even good for what they have opened.
    pub strict_expiry: bool,
    /// Binding over TCP without TLS is answered.
    pub binding_over_tcp: bool,
    /// Where clients are sent while this server drains (RFC 8489 §10).
    pub alternates: Vec<SocketAddr>,
    pub workers: u8,
}

impl TurnConfig {
    /// A relay to this SFU alone, with the limits that a server has by default.
    pub fn closed(secrets: Secrets, sfu: Vec<SocketAddr>, workers: u8) -> Self {
        Self {
            secrets,
            peers: PeerPolicy { sfu, ..PeerPolicy::new(Opens::Nobody, Vec::new()) },
            relay_ports: 49152..=65535,
            ephemeral_ports: None,
            allocations_per_user_max: 16,
            allocations_per_address_max: 0,
            allocations_max: 65_536,
            permissions_max: 64,
            channels_max: 16,
            channel_numbers: CHANNELS,
            lifetime_s: 600..=3600,
            bytes_per_allocation: 0,
            bytes_in_all: 0,
            ration: Ration { per_network: 0, in_all: 0 },
            strict_expiry: false,
            binding_over_tcp: true,
            alternates: Vec::new(),
            workers,
        }
    }
}

/// Whose message it is.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub carrier: Carrier,
    pub client: ClientAddr,
    /// Over TLS that ends here, not at a proxy before us.
    pub is_tls: bool,
    /// The name that a TLS client asked for.
    pub server_name: Option<&'a str>,
}

/// A request that is believed.
#[derive(Clone, Copy)]
struct Asked<'a> {
    now: Now,
    from: Origin<'a>,
    request: &'a Message<'a>,
    user: &'a Authenticated<'a>,
}

/// Why a well-formed request was turned down. Every variant has one code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This server drains, and another is there for its clients.
    TryAlternate(SocketAddr),
    BadRequest,
    Unauthenticated,
    PeerForbidden,
    BindingForbidden,
    UnknownAttribute,
    NoAllocation,
    StaleNonce,
    FamilyUnsupported,
    WrongCredentials,
    TransportUnsupported,
    FamilyMismatch,
    UserQuotaReached,
    SourceQuotaReached,
    CapacityReached,
    /// The range has no port for it, or its token no reservation.
    NoPort,
    TooManyPermissions,
    TooManyChannels,
    /// The port of its relayed address could not be opened.
    NoSocket,
    Draining,
}

impl Refusal {
    /// ERROR-CODE (RFC 8489 §14.8, RFC 8656 §19). No `_` arm: a new variant must choose.
    pub fn code(self) -> u16 {
        match self {
            Self::TryAlternate(_) => 300,
            Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::PeerForbidden | Self::BindingForbidden => 403,
            Self::UnknownAttribute => 420,
            Self::NoAllocation => 437,
            Self::StaleNonce => 438,
            Self::FamilyUnsupported => 440,
            Self::WrongCredentials => 441,
            Self::TransportUnsupported => 442,
            Self::FamilyMismatch => 443,
            Self::UserQuotaReached | Self::SourceQuotaReached => 486,
            Self::CapacityReached | Self::NoPort | Self::TooManyPermissions | Self::TooManyChannels | Self::NoSocket | Self::Draining => {
                508
            }
        }
    }
}

/// Why bytes led to nothing at all. Each is a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnDrop {
    Malformed,
    UnknownMethod,
    BadFingerprint,
    /// Responses, Data indications, Binding indications: nothing a server answers.
    NotARequest,
    /// Strangers of this network have had their ration of answers.
    Rationed,
    /// So many wrong passwords came from this network that they are not even refused.
    GuessRationed,
    NoAllocation,
    NoPermission,
    ChannelUnbound,
    /// The relay is closed, and the peer is not the SFU's media port.
    PeerNotSfu,
    /// One of our own addresses at a port that is no relayed one, or at one that we listen on.
    PeerIsOwn,
    /// The relay's socket is not open (yet).
    NoSocket,
    /// More than the allocation, or all of them, may relay.
    TooFast,
}

impl From<Refused> for TurnDrop {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Malformed => Self::Malformed,
            Refused::UnknownMethod => Self::UnknownMethod,
            Refused::BadFingerprint => Self::BadFingerprint,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// `payload` (a range of the input) is for the SFU's media port `peer`, from the relayed address of `allocation`.
    Deliver {
        allocation: AllocationId,
        peer: PeerAddr,
        payload: Range<usize>,
    },
    /// It is for the allocation that has the relayed address `to`.
    Loop {
        from: RelayedAddr,
        to: RelayedAddr,
        payload: Range<usize>,
    },
    /// It leaves through the allocation's own socket.
    Outward {
        allocation: AllocationId,
        peer: PeerAddr,
        payload: Range<usize>,
        dont_fragment: bool,
    },
    /// A socket at this address is wanted: tell by [`Turn::socket_opened`] what became of it.
    OpenSocket {
        allocation: AllocationId,
        at: RelayedAddr,
    },
    CloseSocket {
        allocation: AllocationId,
        family: Family,
    },
    /// An answer that had to wait.
    Answer {
        carrier: Carrier,
        bytes: Vec<u8>,
    },
    Opened {
        allocation: AllocationId,
    },
    Closed {
        allocation: AllocationId,
        carrier: Carrier,
    },
    /// To be told to the other workers: who has a port, and who is counted.
    Port {
        port: u16,
        is_held: bool,
    },
    Tally {
        tallies: Tallies,
        is_more: bool,
    },
    Refused(Refusal),
}

/// How a payload is dressed on its way to a relay's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dress {
    Channel(u16),
    Indication(PeerAddr),
}

pub struct Turn {
    config: Arc<TurnConfig>,
    worker: WorkerId,
    table: RelayTable,
    ports: RelayPorts,
    strangers: Strangers,
    /// Those who try passwords: counted apart, so that a neighbour of theirs is still challenged.
    guessers: Strangers,
    pace: Pace,
    made: u64,
    is_draining: bool,
    dice: Rng,
}

impl Turn {
    pub fn new(config: Arc<TurnConfig>, worker: WorkerId, mut dice: Rng) -> Self {
        Self {
            ports: RelayPorts::new(config.relay_ports.clone(), config.ephemeral_ports.as_ref(), worker, config.workers),
            strangers: Strangers::new(&mut dice),
            guessers: Strangers::new(&mut dice),
            table: RelayTable::default(),
            pace: Pace::default(),
            made: 0,
            is_draining: false,
            config,
            worker,
            dice,
        }
    }

    pub fn allocations(&self) -> usize {
        self.table.len()
    }

    /// Entries that are kept besides allocations: ports, and who is counted. None is left when no allocation is.
    pub fn leftovers(&self) -> usize {
        self.ports.len() + self.table.tallied()
    }

    pub fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.table.get(id)
    }

    pub fn id_of(&self, carrier: Carrier) -> Option<AllocationId> {
        self.table.id_of(carrier)
    }

    /// The relayed address that a peer of this family sees.
    pub fn relayed(&self, id: AllocationId, family: Family) -> Option<RelayedAddr> {
        self.relayed_of(self.table.get(id)?, family)
    }

    fn relayed_of(&self, allocation: &Allocation, family: Family) -> Option<RelayedAddr> {
        let ip = self.config.peers.relay_ip(family == Family::V4).filter(|_| allocation.families.has(family))?;
        Some(RelayedAddr(SocketAddr::new(ip, allocation.port)))
    }

    /// The participant that an allocation is bound to: it may reach that one's session and nothing else.
    pub fn participant(&self, id: AllocationId) -> Option<&str> {
        participant_of(&self.table.get(id)?.username)
    }

    /// Takes new settings; what is no longer permitted ends.
    pub fn reconfigure(&mut self, config: Arc<TurnConfig>, out: &mut Vec<Effect>) {
        for allocation in self.table.iter_mut() {
            allocation.judge(&config.peers);
            for family in Family::BOTH {
                let is_needed = allocation.needs_socket(family, |ip, kind| config.peers.needs_socket(ip, kind));
                let socket = allocation.outside.as_deref_mut().map(|outside| &mut outside.sockets[family as usize]);
                if let Some(socket) = socket.filter(|socket| **socket == Socket::Open && !is_needed) {
                    *socket = Socket::Closed;
                    out.push(Effect::CloseSocket { allocation: allocation.id, family });
                }
            }
        }
        self.config = config;
    }

    /// New allocations are refused from now on.
    pub fn drain(&mut self) {
        self.is_draining = true;
    }

    /// Takes an allocation out, to be [`Turn::adopt`]ed by another worker.
    pub fn release(&mut self, id: AllocationId, to: WorkerId, out: &mut Vec<Effect>) -> Option<Allocation> {
        let mut allocation = self.table.remove(id)?;
        if allocation.holds_port {
            // Told as given back: whoever hears the new holder's words first has forgotten ours in the end.
            self.ports.hold(allocation.port, Holder::At(to));
            out.push(Effect::Port { port: allocation.port, is_held: false });
        }
        if let Some(outside) = &mut allocation.outside {
            close_sockets(id, outside, out);
        }
        Some(allocation)
    }

    pub fn adopt(&mut self, mut allocation: Allocation, out: &mut Vec<Effect>) {
        allocation.has_moved = true;
        let id = allocation.id;
        if allocation.holds_port {
            self.ports.hold(allocation.port, Holder::Here(id));
            out.push(Effect::Port { port: allocation.port, is_held: true });
        }
        self.table.insert(allocation);
        self.open_sockets(id, out);
    }

    /// Another worker has a port, or gave it back.
    pub fn port_held(&mut self, port: u16, by: WorkerId, is_held: bool) {
        // A token that two workers redeemed at once gave its port twice: each keeps its own entry until it ends.
        let is_ours = matches!(self.ports.holder(port), Some(Holder::Here(id)) if self.table.get(id).is_some());
        match is_held {
            true if is_ours => {}
            true => self.ports.hold(port, Holder::At(by)),
            false => self.ports.free(port, Holder::At(by)),
        }
    }

    /// Another worker opened an allocation, or closed one.
    pub fn tallied(&mut self, tallies: Tallies, is_more: bool) {
        if is_more { self.table.count_in(tallies) } else { self.table.count_out(tallies) }
    }

    /// Takes one STUN or ChannelData message of a client; leaves the answer in `reply` (empty: none).
    pub fn handle(&mut self, now: Now, from: Origin<'_>, bytes: &[u8], reply: &mut Vec<u8>, out: &mut Vec<Effect>) -> Result<(), TurnDrop> {
        reply.clear();
        if bytes.first().is_some_and(|b| b & 0xC0 == 0x40) {
            return self.channel_data(now.mono, from.carrier, bytes, out);
        }
        let message = Message::decode(bytes)?;
        match (message.class, message.method) {
            (Class::Request, Method::Binding) => {
                self.may_answer(now.mono, from)?;
                let is_plain_tcp = matches!(from.carrier, Carrier::Stream(_)) && !from.is_tls;
                if is_plain_tcp && !self.config.binding_over_tcp {
                    Writer::new(reply, Method::Binding, Class::Error, message.transaction_id())
                        .error_code(Refusal::BindingForbidden.code());
                    out.push(Effect::Refused(Refusal::BindingForbidden));
                } else {
                    binding(from.client, &message, reply);
                }
                Ok(())
            }
            (Class::Request, Method::Send | Method::Data) => Err(TurnDrop::UnknownMethod),
            (Class::Request, _) => self.request(now, from, &message, reply, out),
            (Class::Indication, Method::Send) => self.send_indication(now.mono, from.carrier, bytes, &message, out),
            _ => Err(TurnDrop::NotARequest),
        }
    }

    /// What comes over a connection has shown where it comes from: its answers cannot be turned against others.
    fn may_answer(&mut self, now: Instant, from: Origin<'_>) -> Result<(), TurnDrop> {
        let is_shown = matches!(from.carrier, Carrier::Stream(_));
        if is_shown || self.strangers.may_answer(now, from.client.ip(), self.config.ration) { Ok(()) } else { Err(TurnDrop::Rationed) }
    }

    /// A wrong password costs everybody the same, over whatever it came.
    fn may_guess(&mut self, now: Instant, from: Origin<'_>) -> Result<(), TurnDrop> {
        if self.guessers.may_answer(now, from.client.ip(), self.config.ration) { Ok(()) } else { Err(TurnDrop::GuessRationed) }
    }

    fn request(
        &mut self,
        now: Now,
        from: Origin<'_>,
        request: &Message<'_>,
        reply: &mut Vec<u8>,
        out: &mut Vec<Effect>,
    ) -> Result<(), TurnDrop> {
        let config = Arc::clone(&self.config);
        let (id, method) = (request.transaction_id(), request.method);
        let is_allocate = method == Method::Allocate;
        let first_realm = config.secrets.realm();
        let owner = self.table.by_carrier(from.carrier);
        let known = owner.filter(|_| !is_allocate).map(|a| Known {
            username: &a.username,
            realm: a.realm.as_deref().unwrap_or(first_realm),
            key: a.key,
        });
        let is_client = owner.is_some();
        let user = match config.secrets.authenticate(now.wall, from.client, request, is_allocate || config.strict_expiry, known) {
            Ok(user) => user,
            Err(why) => {
                if why == AuthRefusal::Unauthenticated && request.is_signed() {
                    self.may_guess(now.mono, from)?;
                } else if !is_client {
                    self.may_answer(now.mono, from)?;
                }
                let refusal = match why {
                    AuthRefusal::Unauthenticated => Refusal::Unauthenticated,
                    AuthRefusal::Incomplete => Refusal::BadRequest,
                    AuthRefusal::StaleNonce => Refusal::StaleNonce,
                };
                let mut answer = Writer::new(reply, method, Class::Error, id);
                answer.error_code(refusal.code());
                if refusal != Refusal::BadRequest {
                    let realm = config.secrets.realm_for(from.server_name);
                    config.secrets.challenge(now.wall, from.client, realm, &mut answer);
                }
                out.push(Effect::Refused(refusal));
                return Ok(());
            }
        };
        let unknown = unknown_attributes(request);
        let asked = Asked { now, from, request, user: &user };
        let outcome = if unknown.is_empty() {
            match method {
                Method::Allocate => self.allocate(&asked, reply, out),
                Method::Refresh => self.refresh(&asked, reply, out),
                Method::CreatePermission => self.create_permission(&asked, reply, out),
                Method::ChannelBind => self.channel_bind(&asked, reply, out),
                Method::Binding | Method::Send | Method::Data => Err(Refusal::BadRequest),
            }
        } else {
            Err(Refusal::UnknownAttribute)
        };
        if let Err(refusal) = outcome {
            let mut answer = Writer::new(reply, method, Class::Error, id);
            answer.error_code(refusal.code());
            match refusal {
                Refusal::UnknownAttribute => _ = answer.attribute(attr::UNKNOWN_ATTRIBUTES, &unknown),
                Refusal::TryAlternate(server) => _ = answer.address(attr::ALTERNATE_SERVER, server),
                _ => {}
            }
            user.signer().sign(&mut answer);
            out.push(Effect::Refused(refusal));
        }
        Ok(())
    }

    /// The allocation of this 5-tuple, if it is this user's (RFC 8656 §5).
    fn own(&mut self, asked: &Asked<'_>) -> Result<&mut Allocation, Refusal> {
        let (user, config) = (asked.user, Arc::clone(&self.config));
        let id = self.table.id_of(asked.from.carrier).ok_or(Refusal::NoAllocation)?;
        let allocation = self.table.get_mut(id).ok_or(Refusal::NoAllocation)?;
        let realm = allocation.realm.as_deref().unwrap_or(config.secrets.realm());
        if *allocation.username != *user.username() || realm != user.realm() {
            return Err(Refusal::WrongCredentials);
        }
        Ok(allocation)
    }

    /// The client's connection is gone: its allocation ends at once (RFC 8656 §5).
    pub fn carrier_lost(&mut self, carrier: Carrier, out: &mut Vec<Effect>) {
        if let Some(allocation) = self.table.id_of(carrier).and_then(|id| self.table.remove(id)) {
            self.end(allocation, out);
        }
    }

    /// Ends what has expired.
    pub fn wake(&mut self, now: Instant, out: &mut Vec<Effect>) {
        while let Some(allocation) = self.table.pop_expired(now) {
            self.end(allocation, out);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.table.deadline()
    }

    /// One that was taken out and cannot go where it was to go.
    pub fn lose(&mut self, allocation: Allocation, out: &mut Vec<Effect>) {
        if allocation.holds_port {
            self.ports.hold(allocation.port, Holder::Here(allocation.id));
        }
        self.end(allocation, out);
    }

    /// Gives back all that an allocation had: every way by which one ends comes through here.
    fn end(&mut self, mut allocation: Allocation, out: &mut Vec<Effect>) {
        let Allocation { id, carrier, port, tallies, .. } = allocation;
        if let Some(outside) = &mut allocation.outside {
            close_sockets(id, outside, out);
        }
        if allocation.holds_port {
            self.ports.free(port, Holder::Here(id));
            out.push(Effect::Port { port, is_held: false });
        }
        self.table.count_out(tallies);
        out.push(Effect::Tally { tallies, is_more: false });
        out.push(Effect::Closed { allocation: id, carrier });
    }
}

fn close_sockets(allocation: AllocationId, outside: &mut Outside, out: &mut Vec<Effect>) {
    for family in Family::BOTH {
        if std::mem::take(&mut outside.sockets[family as usize]) != Socket::Closed {
            out.push(Effect::CloseSocket { allocation, family });
        }
    }
}

/// RFC 8489 §6.3.1: the address that we see, to anybody who asks.
fn binding(client: ClientAddr, request: &Message<'_>, reply: &mut Vec<u8>) {
    let id = request.transaction_id();
    let unknown = unknown_attributes(request);
    if unknown.is_empty() {
        Writer::new(reply, Method::Binding, Class::Success, id).xor_address(attr::XOR_MAPPED_ADDRESS, client.0);
    } else {
        Writer::new(reply, Method::Binding, Class::Error, id).error_code(420).attribute(attr::UNKNOWN_ATTRIBUTES, &unknown);
    }
}

fn succeeded(reply: &mut Vec<u8>, method: Method, id: TransactionId, signer: Signer) {
    signer.sign(&mut Writer::new(reply, method, Class::Success, id));
}

/// The first eight that must be understood and are not, as UNKNOWN-ATTRIBUTES lists them.
fn unknown_attributes(request: &Message<'_>) -> Vec<u8> {
    request.attributes().filter(|(kind, _)| !is_understood(*kind)).take(8).flat_map(|(kind, _)| kind.to_be_bytes()).collect()
}

/// Comprehension-required attributes that TURN and STUN define; known but out of place is ignored (RFC 8489 §6.3).
fn is_understood(kind: u16) -> bool {
    kind >= 0x8000
        || matches!(
            kind,
            attr::USERNAME
                | attr::ERROR_CODE
                | attr::UNKNOWN_ATTRIBUTES
                | attr::CHANNEL_NUMBER
                | attr::LIFETIME
                | attr::XOR_PEER_ADDRESS
                | attr::DATA
                | attr::REALM
                | attr::NONCE
                | attr::XOR_RELAYED_ADDRESS
                | attr::REQUESTED_ADDRESS_FAMILY
                | attr::EVEN_PORT
                | attr::REQUESTED_TRANSPORT
                | attr::DONT_FRAGMENT
                | attr::MESSAGE_INTEGRITY_SHA256
                | attr::PASSWORD_ALGORITHM
                | attr::USERHASH
                | attr::XOR_MAPPED_ADDRESS
                | attr::RESERVATION_TOKEN
                | attr::PRIORITY
                | attr::USE_CANDIDATE
        )
}
