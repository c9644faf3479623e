//! Allocations, permissions and channels (RFC 8656 §§5-12): what exists, for how long, and how many there may be.

use crate::base::id::{AllocationId, Carrier, ClientAddr, IdMap, PeerAddr, RelayedAddr};
use crate::base::time::{Duration, Instant};
use crate::crypto::HmacSha1;
use crate::wire::stun::TransactionId;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;

/// Life of a permission after CreatePermission or ChannelBind touches it: fixed (RFC 8656 §9).
pub const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// Life of a channel (§12). Its permission must be refreshed twice as often.
pub const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);
const _: () = assert!(PERMISSION_LIFETIME.as_secs() < CHANNEL_LIFETIME.as_secs());
/// Permissions of one allocation: a browser asks for one per remote candidate.
pub const PERMISSIONS_MAX: usize = 64;
/// Channels of one allocation.
pub const CHANNELS_MAX: usize = 16;

struct Permission {
    peer: IpAddr,
    expires: Instant,
}

struct Channel {
    number: u16,
    peer: PeerAddr,
    expires: Instant,
}

/// One client's relay. A plain value: it moves to another worker whole.
pub struct Allocation {
    pub id: AllocationId,
    pub carrier: Carrier,
    pub client: ClientAddr,
    pub relayed: RelayedAddr,
    pub username: Vec<u8>,
    pub quota_name: Vec<u8>,
    pub key: HmacSha1,
    /// Transaction that made it: its retransmission gets the same answer (§7.2).
    pub made_by: TransactionId,
    pub expires: Instant,
    /// It went to its owner once; it does not move again.
    pub has_moved: bool,
    permissions: Vec<Permission>,
    channels: Vec<Channel>,
}

/// Why a permission or channel was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableRefusal {
    Full,
    /// The number belongs to another peer, or the peer has another number.
    Conflict,
}

impl Allocation {
    #[allow(clippy::too_many_arguments, reason = "the parts of one value, each of a type of its own")]
    pub fn new(
        id: AllocationId,
        carrier: Carrier,
        client: ClientAddr,
        relayed: RelayedAddr,
        username: &[u8],
        quota_name: &[u8],
        key: HmacSha1,
        made_by: TransactionId,
        expires: Instant,
    ) -> Self {
        Self {
            id,
            carrier,
            client,
            relayed,
            username: username.to_vec(),
            quota_name: quota_name.to_vec(),
            key,
            made_by,
            expires,
            has_moved: false,
            permissions: Vec::new(),
            channels: Vec::new(),
        }
    }

    /// Whether traffic with this address is permitted: by IP alone (§9).
    pub fn permits(&self, now: Instant, peer: IpAddr) -> bool {
        self.permissions.iter().any(|p| p.peer == peer && p.expires > now)
    }

    /// Installs or refreshes permissions for all `peers`, or for none.
    pub fn permit(&mut self, now: Instant, peers: &[IpAddr]) -> Result<(), TableRefusal> {
        self.permissions.retain(|p| p.expires > now);
        let fresh = peers.iter().enumerate().filter(|(i, ip)| !peers[..*i].contains(ip) && !self.permits(now, **ip)).count();
        if self.permissions.len() + fresh > PERMISSIONS_MAX {
            return Err(TableRefusal::Full);
        }
        let expires = now + PERMISSION_LIFETIME;
        for peer in peers {
            match self.permissions.iter_mut().find(|p| p.peer == *peer) {
                Some(known) => known.expires = expires,
                None => self.permissions.push(Permission { peer: *peer, expires }),
            }
        }
        Ok(())
    }

    /// Binds or refreshes a channel, and the permission that goes with it (§12.2).
    pub fn bind(&mut self, now: Instant, number: u16, peer: PeerAddr) -> Result<(), TableRefusal> {
        self.channels.retain(|c| c.expires > now);
        let known = self.channels.iter().position(|c| c.number == number || c.peer == peer);
        if known.is_some_and(|at| (self.channels[at].number, self.channels[at].peer) != (number, peer)) {
            return Err(TableRefusal::Conflict);
        }
        if known.is_none() && self.channels.len() >= CHANNELS_MAX {
            return Err(TableRefusal::Full);
        }
        self.permit(now, &[peer.ip()])?;
        let expires = now + CHANNEL_LIFETIME;
        match known {
            Some(at) => self.channels[at].expires = expires,
            None => self.channels.push(Channel { number, peer, expires }),
        }
        Ok(())
    }

    pub fn peer_of(&self, now: Instant, number: u16) -> Option<PeerAddr> {
        self.channels.iter().find(|c| c.number == number && c.expires > now).map(|c| c.peer)
    }

    pub fn channel_to(&self, now: Instant, peer: PeerAddr) -> Option<u16> {
        self.channels.iter().find(|c| c.peer == peer && c.expires > now).map(|c| c.number)
    }
}

/// All allocations of one worker.
#[derive(Default)]
pub struct RelayTable {
    by_id: IdMap<AllocationId, Allocation>,
    by_carrier: HashMap<Carrier, AllocationId>,
    per_user: HashMap<Vec<u8>, usize>,
    /// When each allocation is to be looked at; a refresh is found out then.
    ends: BinaryHeap<Reverse<(Instant, AllocationId)>>,
}

impl RelayTable {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub fn of_user(&self, quota_name: &[u8]) -> usize {
        self.per_user.get(quota_name).copied().unwrap_or(0)
    }

    pub fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.by_id.get(&id)
    }

    pub fn id_of(&self, carrier: Carrier) -> Option<AllocationId> {
        self.by_carrier.get(&carrier).copied()
    }

    pub fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        self.by_id.get_mut(&id)
    }

    pub fn insert(&mut self, allocation: Allocation) {
        let id = allocation.id;
        self.ends.push(Reverse((allocation.expires, id)));
        self.by_carrier.insert(allocation.carrier, id);
        *self.per_user.entry(allocation.quota_name.clone()).or_default() += 1;
        self.by_id.insert(id, allocation);
    }

    pub fn remove(&mut self, id: AllocationId) -> Option<Allocation> {
        let allocation = self.by_id.remove(&id)?;
        self.by_carrier.remove(&allocation.carrier);
        if let Some(count) = self.per_user.get_mut(&allocation.quota_name) {
            *count -= 1;
            if *count == 0 {
                self.per_user.remove(&allocation.quota_name);
            }
        }
        Some(allocation)
    }

    /// When an allocation may expire next.
    pub fn deadline(&self) -> Option<Instant> {
        self.ends.peek().map(|Reverse((at, _))| *at)
    }

    /// An allocation that has expired, taken out.
    pub fn pop_expired(&mut self, now: Instant) -> Option<Allocation> {
        while let Some(Reverse((_, id))) = self.ends.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.ends.pop();
            match self.by_id.get(&id).map(|a| a.expires) {
                Some(expires) if expires <= now => return self.remove(id),
                Some(expires) => self.ends.push(Reverse((expires, id))),
                None => {}
            }
        }
        None
    }
}
