//! Permissions, channels, and what passes (RFC 8656 §§9 to 12): to the SFU, to other allocations, to peers, and back.

use super::{Asked, Dress, Effect, Refusal, Turn, TurnConfig, TurnDrop, is_understood, participant_of, succeeded};
use crate::base::id::{AllocationId, Carrier, PeerAddr, RelayedAddr};
use crate::base::pace::Pace;
use crate::base::time::{Duration, Instant};
use crate::engine::peer_policy::{Peer, PeerPolicy, Target};
use crate::engine::relay_ports::Holder;
use crate::engine::relay_table::{Allocation, Family, Full, Socket};
use crate::wire::stun::{Class, Message, Method, TransactionId, Writer, attr};
use crate::wire::turn::channel_data;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

/// What may pass at once, as time at the rate.
const BURST: Duration = Duration::from_millis(500);
/// Requests of one allocation that wait for its socket.
const WAITING_MAX: usize = 16;

impl Turn {
    /// RFC 8656 §10.2: every peer counts, and one bad peer fails the whole request.
    pub(super) fn create_permission(&mut self, asked: &Asked<'_>, reply: &mut Vec<u8>, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let (now, request, config) = (asked.now.mono, asked.request, Arc::clone(&self.config));
        let allocation = self.own(asked)?;
        let mut peers = Vec::new();
        for (_, value) in request.attributes().filter(|(kind, _)| *kind == attr::XOR_PEER_ADDRESS) {
            let ip = request.xor_address(value).ok_or(Refusal::BadRequest)?.ip();
            if !allocation.families.has(Family::of(ip)) {
                return Err(Refusal::FamilyMismatch);
            }
            peers.push(ip);
        }
        if peers.is_empty() {
            return Err(Refusal::BadRequest);
        }
        let judge = |ip: IpAddr| Some((ip, config.peers.peer(ip).filter(|_| may_reach(allocation, &config.peers.sfu, ip))?));
        let peers: Vec<(IpAddr, Peer)> = peers.into_iter().map(judge).collect::<Option<_>>().ok_or(Refusal::PeerForbidden)?;
        if peers.iter().any(|(ip, kind)| lacks_port(allocation, &config.peers, *ip, *kind)) {
            return Err(Refusal::NoSocket);
        }
        allocation.permit(now, &peers, config.permissions_max).map_err(|_| Refusal::TooManyPermissions)?;
        let id = allocation.id;
        self.succeed(id, asked, reply, out);
        Ok(())
    }

    /// RFC 8656 §12.2.
    pub(super) fn channel_bind(&mut self, asked: &Asked<'_>, reply: &mut Vec<u8>, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let (now, request, config) = (asked.now.mono, asked.request, Arc::clone(&self.config));
        let allocation = self.own(asked)?;
        let number = request.get(attr::CHANNEL_NUMBER).filter(|v| v.len() == 4).ok_or(Refusal::BadRequest)?;
        let number = u16::from_be_bytes([number[0], number[1]]);
        let peer = request.get(attr::XOR_PEER_ADDRESS).and_then(|v| request.xor_address(v)).ok_or(Refusal::BadRequest)?;
        if !config.channel_numbers.contains(&number) || peer.port() == 0 || allocation.conflicts(now, number, PeerAddr(peer)) {
            return Err(Refusal::BadRequest);
        }
        if !allocation.families.has(Family::of(peer.ip())) {
            return Err(Refusal::FamilyMismatch);
        }
        let kind = config.peers.peer(peer.ip()).filter(|_| may_reach(allocation, &config.peers.sfu, peer.ip()));
        let kind = match kind.ok_or(Refusal::PeerForbidden)? {
            // Unlike a permission, a channel names the port.
            Peer::Own if config.peers.own_target(peer).is_none() => return Err(Refusal::PeerForbidden),
            kind => kind,
        };
        if lacks_port(allocation, &config.peers, peer.ip(), kind) {
            return Err(Refusal::NoSocket);
        }
        allocation.bind(now, number, PeerAddr(peer), kind, config.permissions_max, config.channels_max).map_err(|why| match why {
            Full::Permissions => Refusal::TooManyPermissions,
            Full::Channels => Refusal::TooManyChannels,
        })?;
        let id = allocation.id;
        self.succeed(id, asked, reply, out);
        Ok(())
    }

    /// Answers that what was asked for is granted: at once, or when the socket that it needs is there.
    fn succeed(&mut self, id: AllocationId, asked: &Asked<'_>, reply: &mut Vec<u8>, out: &mut Vec<Effect>) {
        let (request, signer) = (asked.request, asked.user.signer());
        self.open_sockets(id, out);
        let outside = self.table.get_mut(id).and_then(|a| a.outside.as_deref_mut());
        match outside.filter(|outside| outside.sockets.contains(&Socket::Opening)) {
            None => succeeded(reply, request.method, request.transaction_id(), signer),
            Some(outside) if outside.waiting.len() < WAITING_MAX => {
                outside.waiting.push((request.method, request.transaction_id(), signer));
            }
            // It comes again.
            Some(_) => {}
        }
    }

    /// Asks for the sockets that an allocation's permissions need and that are not there.
    pub(super) fn open_sockets(&mut self, id: AllocationId, out: &mut Vec<Effect>) {
        let config = Arc::clone(&self.config);
        if !config.peers.is_open() {
            return;
        }
        let Some(allocation) = self.table.get_mut(id).filter(|allocation| allocation.holds_port) else { return };
        for family in Family::BOTH {
            if !allocation.needs_socket(family, |ip, kind| config.peers.needs_socket(ip, kind)) {
                continue;
            }
            let socket = &mut allocation.outside.get_or_insert_default().sockets[family as usize];
            if *socket == Socket::Closed {
                *socket = Socket::Opening;
                let ip = config.peers.relay_ip(family == Family::V4);
                out.extend(ip.map(|ip| Effect::OpenSocket { allocation: id, at: RelayedAddr((ip, allocation.port).into()) }));
            }
        }
    }

    /// What became of a socket. Without it nothing is permitted that it was needed for.
    pub fn socket_opened(&mut self, id: AllocationId, family: Family, is_open: bool, out: &mut Vec<Effect>) {
        let config = Arc::clone(&self.config);
        let Some(allocation) = self.table.get_mut(id) else { return };
        let Some(outside) = &mut allocation.outside else { return };
        outside.sockets[family as usize] = if is_open { Socket::Open } else { Socket::Closed };
        outside.has_failed |= !is_open;
        let waiting = match outside.sockets.contains(&Socket::Opening) {
            true => Vec::new(),
            false => std::mem::take(&mut outside.waiting),
        };
        let has_failed = if waiting.is_empty() { outside.has_failed } else { std::mem::take(&mut outside.has_failed) };
        let carrier = allocation.carrier;
        if !is_open {
            allocation.forbid(family, |ip, kind| config.peers.needs_socket(ip, kind));
        }
        for (method, transaction, signer) in waiting {
            let mut bytes = Vec::new();
            if !has_failed {
                succeeded(&mut bytes, method, transaction, signer);
            } else {
                let mut w = Writer::new(&mut bytes, method, Class::Error, transaction);
                signer.sign(w.error_code(Refusal::NoSocket.code()));
                out.push(Effect::Refused(Refusal::NoSocket));
            }
            out.push(Effect::Answer { carrier, bytes });
        }
    }

    /// RFC 8656 §11.2: dropped without a word when anything is wrong.
    pub(super) fn send_indication(
        &mut self,
        now: Instant,
        carrier: Carrier,
        bytes: &[u8],
        message: &Message<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), TurnDrop> {
        if message.attributes().any(|(kind, _)| !is_understood(kind)) {
            return Err(TurnDrop::Malformed);
        }
        let id = self.table.id_of(carrier).ok_or(TurnDrop::NoAllocation)?;
        let peer = message.get(attr::XOR_PEER_ADDRESS).and_then(|v| message.xor_address(v)).ok_or(TurnDrop::Malformed)?;
        let data = message.get(attr::DATA).ok_or(TurnDrop::Malformed)?;
        let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
        let dont_fragment = message.get(attr::DONT_FRAGMENT).is_some();
        self.outward(now, id, PeerAddr(peer), start..start + data.len(), dont_fragment, out)
    }

    pub(super) fn channel_data(&mut self, now: Instant, carrier: Carrier, bytes: &[u8], out: &mut Vec<Effect>) -> Result<(), TurnDrop> {
        let (number, payload) = channel_data(bytes).map_err(|_| TurnDrop::Malformed)?;
        let allocation = self.table.by_carrier(carrier).ok_or(TurnDrop::NoAllocation)?;
        let peer = allocation.peer_of(now, number).ok_or(TurnDrop::ChannelUnbound)?;
        self.outward(now, allocation.id, peer, payload, false, out)
    }

    /// From a client. A permission is by IP; for our own addresses the data path insists on the port.
    fn outward(
        &mut self,
        now: Instant,
        id: AllocationId,
        peer: PeerAddr,
        payload: Range<usize>,
        dont_fragment: bool,
        out: &mut Vec<Effect>,
    ) -> Result<(), TurnDrop> {
        let config = &self.config;
        let allocation = self.table.get_mut(id).ok_or(TurnDrop::NoAllocation)?;
        let target = match allocation.permitted(now, peer.ip()).ok_or(TurnDrop::NoPermission)? {
            Peer::Foreign => Target::Foreign,
            Peer::Own => match config.peers.own_target(peer.0) {
                Some(target) if target == Target::Sfu || participant_of(&allocation.username).is_none() => target,
                _ if config.peers.is_open() => return Err(TurnDrop::PeerIsOwn),
                _ => return Err(TurnDrop::PeerNotSfu),
            },
        };
        let family = Family::of(peer.ip());
        let effect = match (target, self.ports.holder(peer.0.port())) {
            (Target::Sfu, _) => {
                out.push(Effect::Deliver { allocation: id, peer, payload });
                return Ok(());
            }
            (Target::Relayed { .. }, Some(Holder::Here(_) | Holder::At(_))) => {
                let from = config.peers.relay_ip(family == Family::V4).ok_or(TurnDrop::PeerIsOwn)?;
                Effect::Loop { from: RelayedAddr((from, allocation.port).into()), to: RelayedAddr(peer.0), payload: payload.clone() }
            }
            (Target::Relayed { or_foreign: false }, _) => return Err(TurnDrop::PeerIsOwn),
            (Target::Relayed { or_foreign: true } | Target::Foreign, _) => {
                let is_open = allocation.outside.as_ref().is_some_and(|outside| outside.sockets[family as usize] == Socket::Open);
                if !is_open {
                    return Err(TurnDrop::NoSocket);
                }
                Effect::Outward { allocation: id, peer, payload: payload.clone(), dont_fragment }
            }
        };
        pay(now, allocation, &mut self.pace, config, payload.len())?;
        out.push(effect);
        Ok(())
    }

    /// From a peer, through the relay's own socket: how it reaches the client.
    pub fn inward(&mut self, now: Instant, id: AllocationId, peer: PeerAddr, len: usize) -> Result<(Carrier, Dress), TurnDrop> {
        let allocation = self.table.get_mut(id).ok_or(TurnDrop::NoAllocation)?;
        let dress = dress_of(allocation, now, peer).ok_or(TurnDrop::NoPermission)?;
        pay(now, allocation, &mut self.pace, &self.config, len)?;
        Ok((allocation.carrier, dress))
    }

    /// From another allocation of this server: how it reaches the client of the one here that has the address `to`. It goes no
    /// further, whatever that client is.
    pub fn looped(&mut self, now: Instant, from: RelayedAddr, to: RelayedAddr, len: usize) -> Result<(Carrier, Dress), TurnDrop> {
        let Some(Holder::Here(id)) = self.ports.holder(to.0.port()) else { return Err(TurnDrop::NoAllocation) };
        let allocation = self.table.get_mut(id).filter(|a| a.families.has(Family::of(to.ip()))).ok_or(TurnDrop::NoAllocation)?;
        // A participant's permission is meant for the SFU, whose address every relayed one shares.
        if participant_of(&allocation.username).is_some() {
            return Err(TurnDrop::NoPermission);
        }
        let dress = dress_of(allocation, now, PeerAddr(from.0)).ok_or(TurnDrop::NoPermission)?;
        pay(now, allocation, &mut self.pace, &self.config, len)?;
        Ok((allocation.carrier, dress))
    }

    /// Where the allocation is that has this relayed address.
    pub fn holder(&self, of: RelayedAddr) -> Option<Holder> {
        self.ports.holder(of.0.port())
    }

    /// The network says that it could not deliver to a peer (RFC 8656 §11.5): a Data indication for the client.
    pub fn undelivered(&self, now: Instant, id: AllocationId, peer: PeerAddr, icmp: Icmp) -> Result<(Carrier, Vec<u8>), TurnDrop> {
        let allocation = self.table.get(id).ok_or(TurnDrop::NoAllocation)?;
        allocation.permitted(now, peer.ip()).ok_or(TurnDrop::NoPermission)?;
        let mut bytes = Vec::new();
        let [a, b, c, d] = icmp.data.to_be_bytes();
        let value = [0, 0, icmp.kind, icmp.code, a, b, c, d];
        Writer::new(&mut bytes, Method::Data, Class::Indication, TransactionId([0x49; 12]))
            .xor_address(attr::XOR_PEER_ADDRESS, peer.0)
            .attribute(attr::ICMP, &value);
        Ok((allocation.carrier, bytes))
    }

    /// How the SFU's packets from `peer` reach the client; `None` when nothing permits them (RFC 8656 §11.3).
    pub fn dress(&self, now: Instant, id: AllocationId, peer: PeerAddr) -> Option<Dress> {
        dress_of(self.table.get(id)?, now, peer)
    }
}

/// An ICMP error as RFC 8656 §18.13 carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    /// The next hop's MTU, where the error tells one.
    pub data: u32,
}

/// Whether so much may pass, for this allocation and in all.
fn pay(now: Instant, allocation: &mut Allocation, all: &mut Pace, config: &TurnConfig, len: usize) -> Result<(), TurnDrop> {
    let (own, bytes) = (&mut allocation.outside.get_or_insert_default().pace, len as u64);
    let fits = own.take(now, bytes, config.bytes_per_allocation, BURST) && all.take(now, bytes, config.bytes_in_all, BURST);
    if fits { Ok(()) } else { Err(TurnDrop::TooFast) }
}

/// A participant's credentials reach the SFU and nothing else.
fn may_reach(allocation: &Allocation, sfu: &[std::net::SocketAddr], ip: IpAddr) -> bool {
    participant_of(&allocation.username).is_none() || sfu.iter().any(|own| own.ip() == ip)
}

/// The relay was closed when this allocation was made: its port is a name, and somebody else's socket may be there.
fn lacks_port(allocation: &Allocation, peers: &PeerPolicy, ip: IpAddr, kind: Peer) -> bool {
    !allocation.holds_port && kind == Peer::Foreign && peers.needs_socket(ip, kind)
}

fn dress_of(allocation: &Allocation, now: Instant, peer: PeerAddr) -> Option<Dress> {
    allocation.permitted(now, peer.ip())?;
    Some(allocation.channel_to(now, peer).map_or(Dress::Indication(peer), Dress::Channel))
}
