//! TURN server of one worker: requests in, answers and deliveries out.
//!
//! Path:  shard/mod.rs -> here -> relay_table.rs; a delivery goes back to shard/mod.rs, which hands it to the SFU.
//! Specs: RFC 8656 (TURN), RFC 8489 (STUN). Not here, on purpose: TCP relays (RFC 6062), mobility (RFC 8016).
//! Rule:  no socket, no clock, no global; equal inputs give equal effects.
//!
//! The relay talks to this SFU and to nobody else: a permission is granted for the SFU's own addresses only, and what
//! is sent must name exactly its media port. Such an allocation needs no socket; its relayed address is a name.

use crate::base::id::{AllocationId, Carrier, ClientAddr, PeerAddr, RelayedAddr, WorkerId};
use crate::base::rng::Rng;
use crate::base::time::{Duration, Instant, Now};
use crate::crypto::HmacSha1;
use crate::engine::relay_table::{Allocation, RelayTable, TableRefusal};
use crate::engine::turn_auth::{AuthRefusal, Authenticated, Secrets};
use crate::wire::stun::{Class, Message, Method, Refused, TransactionId, Writer, attr};
use crate::wire::turn::{CHANNELS, TRANSPORT_UDP, channel_data};
use std::net::{IpAddr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

const ADDRESS_ERROR_CODE: u16 = 0x8001;
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;

/// What the relay may do; shared by all workers.
pub struct TurnConfig {
    pub secrets: Secrets,
    /// The SFU's media addresses as clients know them: the only peers. Exact port included.
    pub sfu: Vec<SocketAddr>,
    /// Ports that relayed addresses are named from. Nothing is bound.
    pub relay_ports: RangeInclusive<u16>,
    pub allocations_per_user_max: usize,
    /// Allocations of one worker.
    pub allocations_max: usize,
    /// Shortest and longest life of an allocation, seconds (RFC 8656 §7.2).
    pub lifetime_s: RangeInclusive<u32>,
    pub workers: u8,
}

/// Why a well-formed request was turned down. Every variant has one code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    BadRequest,
    Unauthenticated,
    PeerForbidden,
    UnknownAttribute,
    NoAllocation,
    StaleNonce,
    FamilyUnsupported,
    WrongCredentials,
    TransportUnsupported,
    FamilyMismatch,
    QuotaReached,
    CapacityReached,
}

impl Refusal {
    /// ERROR-CODE (RFC 8489 §14.8, RFC 8656 §19). No `_` arm: a new variant must choose.
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::PeerForbidden => 403,
            Self::UnknownAttribute => 420,
            Self::NoAllocation => 437,
            Self::StaleNonce => 438,
            Self::FamilyUnsupported => 440,
            Self::WrongCredentials => 441,
            Self::TransportUnsupported => 442,
            Self::FamilyMismatch => 443,
            Self::QuotaReached => 486,
            Self::CapacityReached => 508,
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
    NoAllocation,
    NoPermission,
    ChannelUnbound,
    /// The peer is not the SFU's media port.
    PeerNotSfu,
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
    Opened {
        allocation: AllocationId,
    },
    Closed {
        allocation: AllocationId,
        carrier: Carrier,
    },
    Refused(Refusal),
}

/// How a payload from the SFU is dressed on its way to a relayed client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dress {
    Channel(u16),
    Indication(PeerAddr),
}

pub struct Turn {
    config: Arc<TurnConfig>,
    worker: WorkerId,
    table: RelayTable,
    made: u64,
    dice: Rng,
}

impl Turn {
    pub fn new(config: Arc<TurnConfig>, worker: WorkerId, dice: Rng) -> Self {
        Self { config, worker, table: RelayTable::default(), made: 0, dice }
    }

    pub fn allocations(&self) -> usize {
        self.table.len()
    }

    pub fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.table.get(id)
    }

    pub fn id_of(&self, carrier: Carrier) -> Option<AllocationId> {
        self.table.id_of(carrier)
    }

    /// Takes an allocation out, to be [`Turn::adopt`]ed by another worker.
    pub fn release(&mut self, id: AllocationId) -> Option<Allocation> {
        self.table.remove(id)
    }

    pub fn adopt(&mut self, mut allocation: Allocation) {
        allocation.has_moved = true;
        self.table.insert(allocation);
    }

    /// Takes one STUN or ChannelData message of `client`; leaves the answer in `reply` (empty: none).
    pub fn handle(
        &mut self,
        now: Now,
        carrier: Carrier,
        client: ClientAddr,
        bytes: &[u8],
        reply: &mut Vec<u8>,
        out: &mut Vec<Effect>,
    ) -> Result<(), TurnDrop> {
        reply.clear();
        if bytes.first().is_some_and(|b| b & 0xC0 == 0x40) {
            return self.channel_data(now.mono, carrier, bytes, out);
        }
        let message = Message::decode(bytes)?;
        match (message.class, message.method) {
            (Class::Request, Method::Binding) => {
                binding(client, &message, reply);
                Ok(())
            }
            (Class::Request, Method::Send | Method::Data) => Err(TurnDrop::UnknownMethod),
            (Class::Request, _) => {
                self.request(now, carrier, client, &message, reply, out);
                Ok(())
            }
            (Class::Indication, Method::Send) => self.send_indication(now.mono, carrier, bytes, &message, out),
            _ => Err(TurnDrop::NotARequest),
        }
    }

    fn request(
        &mut self,
        now: Now,
        carrier: Carrier,
        client: ClientAddr,
        request: &Message<'_>,
        reply: &mut Vec<u8>,
        out: &mut Vec<Effect>,
    ) {
        let config = Arc::clone(&self.config);
        let id = request.transaction_id();
        let method = request.method;
        let is_allocate = method == Method::Allocate;
        let user = match config.secrets.authenticate(now.wall, client, request, is_allocate) {
            Ok(user) => user,
            Err(why) => {
                let refusal = match why {
                    AuthRefusal::Unauthenticated => Refusal::Unauthenticated,
                    AuthRefusal::Incomplete => Refusal::BadRequest,
                    AuthRefusal::StaleNonce => Refusal::StaleNonce,
                };
                let mut w = Writer::new(reply, method, Class::Error, id);
                w.error_code(refusal.code());
                if refusal != Refusal::BadRequest {
                    let nonce = config.secrets.nonce(now.wall, client);
                    w.attribute(attr::REALM, config.secrets.realm().as_bytes()).attribute(attr::NONCE, nonce.as_bytes());
                }
                out.push(Effect::Refused(refusal));
                return;
            }
        };
        let sign = |bytes: &[u8]| user.key().sign(&[bytes]);
        let unknown: Vec<u8> =
            request.attributes().filter(|(k, _)| !is_understood(*k)).take(8).flat_map(|(k, _)| k.to_be_bytes()).collect();
        let outcome = if unknown.is_empty() {
            match method {
                Method::Allocate => self.allocate(now.mono, carrier, client, request, &user, reply, out),
                Method::Refresh => self.refresh(now.mono, carrier, request, &user, reply, out),
                Method::CreatePermission => self.create_permission(now.mono, carrier, request, &user, reply),
                Method::ChannelBind => self.channel_bind(now.mono, carrier, request, &user, reply),
                Method::Binding | Method::Send | Method::Data => Err(Refusal::BadRequest),
            }
        } else {
            Err(Refusal::UnknownAttribute)
        };
        if let Err(refusal) = outcome {
            let mut w = Writer::new(reply, method, Class::Error, id);
            w.error_code(refusal.code());
            if refusal == Refusal::UnknownAttribute {
                w.attribute(attr::UNKNOWN_ATTRIBUTES, &unknown);
            }
            w.integrity(sign);
            out.push(Effect::Refused(refusal));
        }
    }

    /// RFC 8656 §7.2, in its order.
    #[allow(clippy::too_many_arguments, reason = "the request and where it came from")]
    fn allocate(
        &mut self,
        now: Instant,
        carrier: Carrier,
        client: ClientAddr,
        request: &Message<'_>,
        user: &Authenticated<'_>,
        reply: &mut Vec<u8>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let id = request.transaction_id();
        if let Some(known) = self.table.id_of(carrier).and_then(|id| self.table.get(id)) {
            if known.made_by != id {
                return Err(Refusal::NoAllocation);
            }
            let lifetime_s = known.expires.since(now).as_secs() as u32;
            allocated(reply, id, known.relayed, client, lifetime_s, None, user.key());
            return Ok(());
        }
        match request.get(attr::REQUESTED_TRANSPORT) {
            Some([TRANSPORT_UDP, _, _, _]) => {}
            Some([_, _, _, _]) => return Err(Refusal::TransportUnsupported),
            _ => return Err(Refusal::BadRequest),
        }
        let requested = request.get(attr::REQUESTED_ADDRESS_FAMILY).map(|v| v.first().copied().unwrap_or(0));
        let additional = request.get(attr::ADDITIONAL_ADDRESS_FAMILY).map(|v| v.first().copied().unwrap_or(0));
        if request.get(attr::RESERVATION_TOKEN).is_some() {
            let contradicts = request.get(attr::EVEN_PORT).is_some() || requested.is_some() || additional.is_some();
            return Err(if contradicts { Refusal::BadRequest } else { Refusal::CapacityReached });
        }
        if requested.is_some() && additional.is_some() || additional.is_some_and(|f| f != FAMILY_IPV6) {
            return Err(Refusal::BadRequest);
        }
        let family = match requested {
            None | Some(FAMILY_IPV4) => FAMILY_IPV4,
            Some(FAMILY_IPV6) => FAMILY_IPV6,
            Some(_) => return Err(Refusal::FamilyUnsupported),
        };
        let is_family = |ip: &IpAddr| ip.is_ipv4() == (family == FAMILY_IPV4);
        let ip = self.config.sfu.iter().map(SocketAddr::ip).find(is_family).ok_or(Refusal::FamilyUnsupported)?;
        if request.get(attr::EVEN_PORT).is_some_and(|v| v.first().is_some_and(|b| b & 0x80 != 0)) {
            return Err(Refusal::CapacityReached);
        }
        if self.table.of_user(user.quota_name()) >= self.config.allocations_per_user_max {
            return Err(Refusal::QuotaReached);
        }
        if self.table.len() >= self.config.allocations_max {
            return Err(Refusal::CapacityReached);
        }
        let lifetime_s = self.granted_lifetime_s(request);
        let relayed = RelayedAddr(SocketAddr::new(ip, self.name_port()));
        self.made += 1;
        let allocation_id = AllocationId(u64::from(self.worker.0) << 56 | self.made);
        let expires = now + Duration::from_secs(lifetime_s.into());
        let (username, quota_name, key) = (user.username(), user.quota_name(), user.key().clone());
        let allocation = Allocation::new(allocation_id, carrier, client, relayed, username, quota_name, key, id, expires);
        self.table.insert(allocation);
        let lacking = additional.map(|_| FAMILY_IPV6);
        allocated(reply, id, relayed, client, lifetime_s, lacking, user.key());
        out.push(Effect::Opened { allocation: allocation_id });
        Ok(())
    }

    /// A port for a relayed address. Workers count in steps of their number from a random start, so that one client's
    /// allocations never share a name although no worker knows the others' (a port comes back after the whole range).
    fn name_port(&mut self) -> u16 {
        let (first, last) = (u64::from(*self.config.relay_ports.start()), u64::from(*self.config.relay_ports.end()));
        let workers = u64::from(self.config.workers.max(1));
        let slots = ((last - first + 1) / workers).max(1);
        if self.made == 0 {
            self.made = self.dice.below(slots);
        }
        (first + (self.made % slots) * workers + u64::from(self.worker.0) % workers).min(last) as u16
    }

    fn granted_lifetime_s(&self, request: &Message<'_>) -> u32 {
        let (min, max) = (*self.config.lifetime_s.start(), *self.config.lifetime_s.end());
        request.get_u32(attr::LIFETIME).map_or(min, |asked| asked.clamp(min, max))
    }

    /// The allocation of this 5-tuple, if it is this user's (RFC 8656 §5).
    fn own(&mut self, carrier: Carrier, user: &Authenticated<'_>) -> Result<&mut Allocation, Refusal> {
        let id = self.table.id_of(carrier).ok_or(Refusal::NoAllocation)?;
        let allocation = self.table.get_mut(id).ok_or(Refusal::NoAllocation)?;
        if allocation.username != user.username() {
            return Err(Refusal::WrongCredentials);
        }
        Ok(allocation)
    }

    /// RFC 8656 §8.2.
    fn refresh(
        &mut self,
        now: Instant,
        carrier: Carrier,
        request: &Message<'_>,
        user: &Authenticated<'_>,
        reply: &mut Vec<u8>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let lifetime_s = match request.get_u32(attr::LIFETIME) {
            Some(0) => 0,
            _ => self.granted_lifetime_s(request),
        };
        let allocation = self.own(carrier, user)?;
        let asked = request.get(attr::REQUESTED_ADDRESS_FAMILY).map(|v| v.first() == Some(&FAMILY_IPV4));
        if asked.is_some_and(|v4| v4 != allocation.relayed.ip().is_ipv4()) {
            return Err(Refusal::FamilyMismatch);
        }
        let id = allocation.id;
        if lifetime_s == 0 {
            self.table.remove(id);
            out.push(Effect::Closed { allocation: id, carrier });
        } else {
            allocation.expires = now + Duration::from_secs(lifetime_s.into());
        }
        Writer::new(reply, Method::Refresh, Class::Success, request.transaction_id())
            .u32(attr::LIFETIME, lifetime_s)
            .integrity(|b| user.key().sign(&[b]));
        Ok(())
    }

    /// RFC 8656 §10.2: every peer counts, and one bad peer fails the whole request.
    fn create_permission(
        &mut self,
        now: Instant,
        carrier: Carrier,
        request: &Message<'_>,
        user: &Authenticated<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let config = Arc::clone(&self.config);
        let allocation = self.own(carrier, user)?;
        let mut peers = Vec::new();
        for (_, value) in request.attributes().filter(|(kind, _)| *kind == attr::XOR_PEER_ADDRESS) {
            let peer = request.xor_address(value).ok_or(Refusal::BadRequest)?;
            if peer.is_ipv4() != allocation.relayed.ip().is_ipv4() {
                return Err(Refusal::FamilyMismatch);
            }
            peers.push(peer.ip().to_canonical());
        }
        if peers.is_empty() {
            return Err(Refusal::BadRequest);
        }
        if !peers.iter().all(|ip| config.sfu.iter().any(|own| own.ip() == *ip)) {
            return Err(Refusal::PeerForbidden);
        }
        allocation.permit(now, &peers).map_err(|_| Refusal::CapacityReached)?;
        succeeded(reply, Method::CreatePermission, request.transaction_id(), user.key());
        Ok(())
    }

    /// RFC 8656 §12.2.
    fn channel_bind(
        &mut self,
        now: Instant,
        carrier: Carrier,
        request: &Message<'_>,
        user: &Authenticated<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let config = Arc::clone(&self.config);
        let allocation = self.own(carrier, user)?;
        let number = request.get(attr::CHANNEL_NUMBER).filter(|v| v.len() == 4).ok_or(Refusal::BadRequest)?;
        let number = u16::from_be_bytes([number[0], number[1]]);
        let peer = request.get(attr::XOR_PEER_ADDRESS).and_then(|v| request.xor_address(v)).ok_or(Refusal::BadRequest)?;
        if !CHANNELS.contains(&number) {
            return Err(Refusal::BadRequest);
        }
        if peer.is_ipv4() != allocation.relayed.ip().is_ipv4() {
            return Err(Refusal::FamilyMismatch);
        }
        if !config.sfu.iter().any(|own| own.ip() == peer.ip()) {
            return Err(Refusal::PeerForbidden);
        }
        allocation.bind(now, number, PeerAddr(peer)).map_err(|why| match why {
            TableRefusal::Full => Refusal::CapacityReached,
            TableRefusal::Conflict => Refusal::BadRequest,
        })?;
        succeeded(reply, Method::ChannelBind, request.transaction_id(), user.key());
        Ok(())
    }

    /// RFC 8656 §11.2: dropped without a word when anything is wrong.
    fn send_indication(
        &self,
        now: Instant,
        carrier: Carrier,
        bytes: &[u8],
        message: &Message<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), TurnDrop> {
        if message.attributes().any(|(kind, _)| !is_understood(kind)) {
            return Err(TurnDrop::Malformed);
        }
        let allocation = self.table.id_of(carrier).and_then(|id| self.table.get(id)).ok_or(TurnDrop::NoAllocation)?;
        let peer = message.get(attr::XOR_PEER_ADDRESS).and_then(|v| message.xor_address(v)).ok_or(TurnDrop::Malformed)?;
        let data = message.get(attr::DATA).ok_or(TurnDrop::Malformed)?;
        let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
        self.deliver(now, allocation, PeerAddr(peer), start..start + data.len(), out)
    }

    fn channel_data(&self, now: Instant, carrier: Carrier, bytes: &[u8], out: &mut Vec<Effect>) -> Result<(), TurnDrop> {
        let (number, payload) = channel_data(bytes).map_err(|_| TurnDrop::Malformed)?;
        let allocation = self.table.id_of(carrier).and_then(|id| self.table.get(id)).ok_or(TurnDrop::NoAllocation)?;
        let peer = allocation.peer_of(now, number).ok_or(TurnDrop::ChannelUnbound)?;
        self.deliver(now, allocation, peer, payload, out)
    }

    fn deliver(
        &self,
        now: Instant,
        allocation: &Allocation,
        peer: PeerAddr,
        payload: Range<usize>,
        out: &mut Vec<Effect>,
    ) -> Result<(), TurnDrop> {
        if !allocation.permits(now, peer.ip()) {
            return Err(TurnDrop::NoPermission);
        }
        // A permission is by IP; the data path insists on the port.
        if !self.config.sfu.contains(&peer.0) {
            return Err(TurnDrop::PeerNotSfu);
        }
        out.push(Effect::Deliver { allocation: allocation.id, peer, payload });
        Ok(())
    }

    /// How the SFU's packets from `peer` reach the client; `None` when nothing permits them (RFC 8656 §11.3).
    pub fn dress(&self, now: Instant, id: AllocationId, peer: PeerAddr) -> Option<Dress> {
        let allocation = self.table.get(id)?;
        if !allocation.permits(now, peer.ip()) {
            return None;
        }
        Some(allocation.channel_to(now, peer).map_or(Dress::Indication(peer), Dress::Channel))
    }

    /// The client's connection is gone: its allocation ends at once (RFC 8656 §5).
    pub fn carrier_lost(&mut self, carrier: Carrier, out: &mut Vec<Effect>) {
        if let Some(id) = self.table.id_of(carrier) {
            self.table.remove(id);
            out.push(Effect::Closed { allocation: id, carrier });
        }
    }

    /// Ends what has expired.
    pub fn wake(&mut self, now: Instant, out: &mut Vec<Effect>) {
        while let Some(allocation) = self.table.pop_expired(now) {
            out.push(Effect::Closed { allocation: allocation.id, carrier: allocation.carrier });
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.table.deadline()
    }
}

/// RFC 8489 §6.3.1: the address that we see, to anybody who asks.
fn binding(client: ClientAddr, request: &Message<'_>, reply: &mut Vec<u8>) {
    let id = request.transaction_id();
    let unknown: Vec<u8> = request.attributes().filter(|(k, _)| !is_understood(*k)).take(8).flat_map(|(k, _)| k.to_be_bytes()).collect();
    if unknown.is_empty() {
        Writer::new(reply, Method::Binding, Class::Success, id).xor_address(attr::XOR_MAPPED_ADDRESS, client.0);
    } else {
        Writer::new(reply, Method::Binding, Class::Error, id).error_code(420).attribute(attr::UNKNOWN_ATTRIBUTES, &unknown);
    }
}

fn allocated(
    reply: &mut Vec<u8>,
    id: TransactionId,
    relayed: RelayedAddr,
    client: ClientAddr,
    lifetime_s: u32,
    lacking_family: Option<u8>,
    key: &HmacSha1,
) {
    let mut w = Writer::new(reply, Method::Allocate, Class::Success, id);
    w.xor_address(attr::XOR_RELAYED_ADDRESS, relayed.0).u32(attr::LIFETIME, lifetime_s).xor_address(attr::XOR_MAPPED_ADDRESS, client.0);
    if let Some(family) = lacking_family {
        w.attribute(ADDRESS_ERROR_CODE, &[family, 0, 4, 40]);
    }
    w.integrity(|b| key.sign(&[b]));
}

fn succeeded(reply: &mut Vec<u8>, method: Method, id: TransactionId, key: &HmacSha1) {
    Writer::new(reply, method, Class::Success, id).integrity(|b| key.sign(&[b]));
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
