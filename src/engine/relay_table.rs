//! Allocations, permissions and channels (RFC 8656 §§5-12): what exists, for how long, and how many there may be.

use crate::base::id::{AllocationId, Carrier, ClientAddr, IdMap, PeerAddr};
use crate::base::pace::Pace;
use crate::base::time::{Duration, Instant};
use crate::engine::peer_policy::{Peer, PeerPolicy};
use crate::engine::turn_auth::{LongTermKey, Signer};
use crate::wire::stun::{Method, TransactionId};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;

/// Life of a permission after CreatePermission or ChannelBind touches it: fixed (RFC 8656 §9).
pub const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// Life of a channel (§12). Its permission must be refreshed twice as often.
pub const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);
const _: () = assert!(PERMISSION_LIFETIME.as_secs() < CHANNEL_LIFETIME.as_secs());

/// Places that tables keep for whoever comes next.
const KEPT_MIN: usize = 1024;

struct Permission {
    peer: IpAddr,
    kind: Peer,
    expires: Instant,
}

struct Channel {
    number: u16,
    peer: PeerAddr,
    expires: Instant,
}

/// An address family of relayed addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The socket of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Socket {
    #[default]
    Closed,
    /// The driver was asked for it.
    Opening,
    Open,
}

/// What an allocation needs once it may talk to others than the SFU.
#[derive(Default)]
pub struct Outside {
    pub sockets: [Socket; 2],
    /// Requests whose answers wait for a socket.
    pub waiting: Vec<(Method, TransactionId, Signer)>,
    /// One of the sockets that they wait for could not be opened.
    pub has_failed: bool,
    pub pace: Pace,
}

/// Of which families an allocation has a relayed address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

impl Families {
    pub fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// What an allocation is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tallies {
    pub user: u64,
    pub source: u64,
}

/// One client's relay. A plain value: it moves to another worker whole.
pub struct Allocation {
    pub id: AllocationId,
    pub carrier: Carrier,
    pub client: ClientAddr,
    /// Port of its relayed address, the same in both families.
    pub port: u16,
    /// It is held: a real one. It is a name of an allocation that was made while the relay was closed.
    pub holds_port: bool,
    pub families: Families,
    pub username: Box<[u8]>,
    /// Absent of the first realm.
    pub realm: Option<Box<str>>,
    pub key: LongTermKey,
    pub tallies: Tallies,
    /// Transaction that made it: its retransmission gets the same answer (§7.2).
    pub made_by: TransactionId,
    /// For the port that was kept back for its user, if one was.
    pub token: Option<[u8; 8]>,
    /// As it was granted at first.
    pub lifetime_s: u32,
    expires: Instant,
    /// When it is looked at: by then, or before.
    looked_at: Instant,
    /// It went to its owner once; it does not move again.
    pub has_moved: bool,
    pub outside: Option<Box<Outside>>,
    permissions: Vec<Permission>,
    channels: Vec<Channel>,
}

/// What a new allocation is made from.
pub struct Order<'a> {
    pub id: AllocationId,
    pub carrier: Carrier,
    pub client: ClientAddr,
    pub port: u16,
    pub holds_port: bool,
    pub families: Families,
    pub username: &'a [u8],
    pub realm: Option<Box<str>>,
    pub key: LongTermKey,
    pub tallies: Tallies,
    pub made_by: TransactionId,
    pub token: Option<[u8; 8]>,
    pub lifetime_s: u32,
}

/// As many as an allocation may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Permissions,
    Channels,
}

/// One more, without room for several: most allocations have one of each.
fn push_tight<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() && list.len() < 2 {
        list.reserve_exact(1);
    }
    list.push(item);
}

impl Allocation {
    pub fn new(now: Instant, order: Order<'_>) -> Self {
        let Order { id, carrier, client, port, holds_port, families, username, realm, key, tallies, made_by, token, lifetime_s } = order;
        Self {
            id,
            carrier,
            client,
            port,
            holds_port,
            families,
            username: username.into(),
            realm,
            key,
            tallies,
            made_by,
            token,
            lifetime_s,
            expires: now + Duration::from_secs(lifetime_s.into()),
            looked_at: now + Duration::from_secs(lifetime_s.into()),
            has_moved: false,
            outside: None,
            permissions: Vec::new(),
            channels: Vec::new(),
        }
    }

    /// What a permitted address is; `None` without a permission. By IP alone (§9).
    pub fn permitted(&self, now: Instant, peer: IpAddr) -> Option<Peer> {
        self.permissions.iter().find(|p| p.peer == peer && p.expires > now).map(|p| p.kind)
    }

    /// Installs or refreshes permissions for all `peers`, or for none.
    pub fn permit(&mut self, now: Instant, peers: &[(IpAddr, Peer)], permissions_max: usize) -> Result<(), Full> {
        self.permissions.retain(|p| p.expires > now);
        let is_known = |ip: &IpAddr| self.permissions.iter().any(|p| p.peer == *ip);
        let fresh =
            peers.iter().enumerate().filter(|(i, (ip, _))| !peers[..*i].iter().any(|(before, _)| before == ip) && !is_known(ip)).count();
        if self.permissions.len() + fresh > permissions_max {
            return Err(Full::Permissions);
        }
        let expires = now + PERMISSION_LIFETIME;
        for (peer, kind) in peers {
            match self.permissions.iter_mut().find(|p| p.peer == *peer) {
                Some(known) => (known.expires, known.kind) = (expires, *kind),
                None => push_tight(&mut self.permissions, Permission { peer: *peer, kind: *kind, expires }),
            }
        }
        Ok(())
    }

    /// Looks at every permission anew, after the rules have changed.
    pub fn judge(&mut self, policy: &PeerPolicy) {
        self.permissions.retain_mut(|p| match policy.peer(p.peer) {
            Some(kind) => {
                p.kind = kind;
                true
            }
            None => false,
        });
    }

    /// Whether anything is permitted that a socket is needed for.
    pub fn needs_socket(&self, family: Family, of: impl Fn(IpAddr, Peer) -> bool) -> bool {
        self.permissions.iter().any(|p| Family::of(p.peer) == family && of(p.peer, p.kind))
    }

    /// Takes back what a socket was needed for.
    pub fn forbid(&mut self, family: Family, of: impl Fn(IpAddr, Peer) -> bool) {
        self.permissions.retain(|p| Family::of(p.peer) != family || !of(p.peer, p.kind));
    }

    /// Whether the number belongs to another peer, or the peer has another number.
    pub fn conflicts(&self, now: Instant, number: u16, peer: PeerAddr) -> bool {
        let mut alive = self.channels.iter().filter(|c| c.expires > now);
        alive.any(|c| (c.number == number) != (c.peer == peer))
    }

    /// Binds or refreshes a channel that does not conflict, and the permission that goes with it (§12.2).
    pub fn bind(
        &mut self,
        now: Instant,
        number: u16,
        peer: PeerAddr,
        kind: Peer,
        permissions_max: usize,
        channels_max: usize,
    ) -> Result<(), Full> {
        self.channels.retain(|c| c.expires > now);
        let known = self.channels.iter().position(|c| c.number == number);
        if known.is_none() && self.channels.len() >= channels_max {
            return Err(Full::Channels);
        }
        self.permit(now, &[(peer.ip(), kind)], permissions_max)?;
        let expires = now + CHANNEL_LIFETIME;
        match known {
            Some(at) => self.channels[at].expires = expires,
            None => push_tight(&mut self.channels, Channel { number, peer, expires }),
        }
        Ok(())
    }

    pub fn peer_of(&self, now: Instant, number: u16) -> Option<PeerAddr> {
        self.channels.iter().find(|c| c.number == number && c.expires > now).map(|c| c.peer)
    }

    pub fn channel_to(&self, now: Instant, peer: PeerAddr) -> Option<u16> {
        self.channels.iter().find(|c| c.peer == peer && c.expires > now).map(|c| c.number)
    }

    /// One family fewer (§8.2): nothing of it is permitted any longer.
    pub fn drop_family(&mut self, family: Family) {
        match family {
            Family::V4 => self.families.v4 = false,
            Family::V6 => self.families.v6 = false,
        }
        self.permissions.retain(|p| Family::of(p.peer) != family);
        self.channels.retain(|c| Family::of(c.peer.ip()) != family);
        if let Some(outside) = &mut self.outside {
            outside.sockets[family as usize] = Socket::Closed;
        }
    }
}

/// All allocations of one worker.
#[derive(Default)]
pub struct RelayTable {
    by_id: IdMap<AllocationId, Allocation>,
    by_carrier: HashMap<Carrier, AllocationId>,
    /// Allocations of each user and each source, on all workers together.
    /// Another worker's word of an end may come before that of its beginning: then one is negative for a moment.
    tallies: IdMap<u64, i32>,
    /// When each allocation is to be looked at; a longer life is found out then.
    ends: BinaryHeap<Reverse<(Instant, AllocationId)>>,
}

impl RelayTable {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub fn tally(&self, name: u64) -> usize {
        self.tallies.get(&name).map_or(0, |n| usize::try_from(*n).unwrap_or(0))
    }

    /// Who is counted nowhere any more takes no room.
    pub fn tallied(&self) -> usize {
        self.tallies.len()
    }

    pub fn count_in(&mut self, tallies: Tallies) {
        self.count(tallies, 1);
    }

    pub fn count_out(&mut self, tallies: Tallies) {
        self.count(tallies, -1);
    }

    fn count(&mut self, tallies: Tallies, by: i32) {
        for name in [tallies.user, tallies.source] {
            let count = self.tallies.entry(name).or_default();
            *count += by;
            if *count == 0 {
                self.tallies.remove(&name);
            }
        }
    }

    pub fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.by_id.get(&id)
    }

    pub fn by_carrier(&self, carrier: Carrier) -> Option<&Allocation> {
        self.by_id.get(self.by_carrier.get(&carrier)?)
    }

    pub fn id_of(&self, carrier: Carrier) -> Option<AllocationId> {
        self.by_carrier.get(&carrier).copied()
    }

    pub fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        self.by_id.get_mut(&id)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Allocation> {
        self.by_id.values_mut()
    }

    /// It lives until then.
    pub fn prolong(&mut self, id: AllocationId, expires: Instant) {
        let Some(allocation) = self.by_id.get_mut(&id) else { return };
        allocation.expires = expires;
        if expires < allocation.looked_at {
            allocation.looked_at = expires;
            self.ends.push(Reverse((expires, id)));
        }
    }

    pub fn insert(&mut self, mut allocation: Allocation) {
        let id = allocation.id;
        allocation.looked_at = allocation.expires;
        self.ends.push(Reverse((allocation.expires, id)));
        self.by_carrier.insert(allocation.carrier, id);
        self.by_id.insert(id, allocation);
    }

    pub fn remove(&mut self, id: AllocationId) -> Option<Allocation> {
        let allocation = self.by_id.remove(&id)?;
        self.by_carrier.remove(&allocation.carrier);
        self.tidy();
        Some(allocation)
    }

    /// A crowd that came and went leaves no empty halls, and no list of when each was to end.
    fn tidy(&mut self) {
        let few = 2 * self.by_id.len() + KEPT_MIN;
        if self.ends.len() > 2 * few {
            let by_id = &self.by_id;
            self.ends.retain(|Reverse((_, id))| by_id.contains_key(id));
            self.ends.shrink_to(few);
        }
        if self.by_id.capacity() > 4 * few {
            self.by_id.shrink_to(few);
            self.by_carrier.shrink_to(few);
        }
        if self.tallies.capacity() > 4 * (2 * self.tallies.len() + KEPT_MIN) {
            self.tallies.shrink_to(2 * self.tallies.len() + KEPT_MIN);
        }
    }

    /// When an allocation may expire next.
    pub fn deadline(&self) -> Option<Instant> {
        self.ends.peek().map(|Reverse((at, _))| *at)
    }

    /// An allocation that has expired, taken out.
    pub fn pop_expired(&mut self, now: Instant) -> Option<Allocation> {
        while let Some(Reverse((at, id))) = self.ends.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.ends.pop();
            // Of several entries that with the earliest time counts.
            let Some(allocation) = self.by_id.get_mut(&id).filter(|a| a.looked_at == at) else { continue };
            if allocation.expires <= now {
                return self.remove(id);
            }
            allocation.looked_at = allocation.expires;
            self.ends.push(Reverse((allocation.expires, id)));
        }
        None
    }
}
