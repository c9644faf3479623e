//! Whose packet is this: tuple to session, ufrag to session, and the redirect table for what belongs to other workers.
//!
//! The ufrag is the only routing key: its first two characters are the owner's index. A tuple enters provisionally when a
//! check of it was sent on (the ClientHello follows its first check by 2 ms), is confirmed by the owner once the check
//! proved authentic, and is withdrawn when the session ends. Nothing unauthenticated replaces a confirmed entry.

use crate::base::id::{AllocationId, Carrier, IdMap, SessionId, WorkerId};
use crate::base::time::{Duration, Instant};
use std::collections::{HashMap, VecDeque};

/// How long an unconfirmed tuple is sent on.
pub const PROVISIONAL_LIFETIME: Duration = Duration::from_secs(2);
/// Unconfirmed tuples at a time.
pub const PROVISIONAL_MAX: usize = 1024;
/// Digits of the worker index in a ufrag.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A ufrag that names its owner: two characters of worker index, ten of chance.
pub fn ufrag(owner: WorkerId, random: &str) -> String {
    let digit = |n: u8| char::from(DIGITS[usize::from(n & 63)]);
    format!("{}{}{random}", digit(owner.0 >> 6), digit(owner.0))
}

/// The worker that a ufrag names, modulo the number of workers.
pub fn owner_of(ufrag: &[u8], workers: u8) -> Option<WorkerId> {
    let &[high, low, ..] = ufrag else { return None };
    let value = |c: u8| DIGITS.iter().position(|d| *d == c);
    let index = value(high)? << 6 | value(low)?;
    Some(WorkerId((index % usize::from(workers.max(1))) as u8))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Here(SessionId),
    Elsewhere(WorkerId),
}

enum Entry {
    Here(SessionId),
    Provisional { worker: WorkerId, until: Instant },
    Confirmed(WorkerId),
}

#[derive(Default)]
pub struct Table {
    ufrags: HashMap<Vec<u8>, SessionId>,
    tuples: HashMap<Carrier, Entry>,
    relayed: IdMap<AllocationId, SessionId>,
    /// Provisional tuples in the order they came, for their end.
    provisional: VecDeque<(Instant, Carrier)>,
    /// Carriers that are ours although the kernel gives their packets to another worker.
    received_by: HashMap<Carrier, WorkerId>,
}

impl Table {
    pub fn add_ufrag(&mut self, ufrag: &str, session: SessionId) {
        self.ufrags.insert(ufrag.as_bytes().to_vec(), session);
    }

    pub fn remove_ufrag(&mut self, ufrag: &str) {
        self.ufrags.remove(ufrag.as_bytes());
    }

    pub fn by_ufrag(&self, ufrag: &[u8]) -> Option<SessionId> {
        self.ufrags.get(ufrag).copied()
    }

    pub fn by_carrier(&self, now: Instant, carrier: Carrier) -> Option<Owner> {
        match self.tuples.get(&carrier)? {
            Entry::Here(session) => Some(Owner::Here(*session)),
            Entry::Confirmed(worker) => Some(Owner::Elsewhere(*worker)),
            Entry::Provisional { worker, until } => (*until > now).then_some(Owner::Elsewhere(*worker)),
        }
    }

    pub fn by_allocation(&self, allocation: AllocationId) -> Option<SessionId> {
        self.relayed.get(&allocation).copied()
    }

    /// A path of a session of ours passed a check.
    pub fn validated(&mut self, carrier: Carrier, session: SessionId) {
        self.tuples.insert(carrier, Entry::Here(session));
    }

    pub fn validated_relayed(&mut self, allocation: AllocationId, session: SessionId) {
        self.relayed.insert(allocation, session);
    }

    /// Whether this path of `session` is still its own: another may have taken the address over since.
    pub fn is_of(&self, carrier: Carrier, session: SessionId) -> bool {
        matches!(self.tuples.get(&carrier), Some(Entry::Here(s)) if *s == session)
    }

    pub fn forget(&mut self, carrier: Carrier) {
        self.tuples.remove(&carrier);
    }

    pub fn forget_relayed(&mut self, allocation: AllocationId) {
        self.relayed.remove(&allocation);
    }

    /// As [`Table::forget_relayed`], unless another session has the allocation now.
    pub fn forget_relayed_of(&mut self, allocation: AllocationId, session: SessionId) {
        if self.by_allocation(allocation) == Some(session) {
            self.relayed.remove(&allocation);
        }
    }

    /// A check of this tuple was sent on to `worker`. `false` when there are too many such tuples: then it is not noted, and
    /// what follows the check waits for the owner's word.
    pub fn provisional(&mut self, now: Instant, carrier: Carrier, worker: WorkerId) -> bool {
        while self.provisional.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, old)) = self.provisional.pop_front() else { break };
            match self.tuples.get(&old) {
                Some(Entry::Provisional { until, .. }) if *until <= now => drop(self.tuples.remove(&old)),
                Some(Entry::Provisional { until, .. }) => self.provisional.push_back((*until, old)),
                _ => {}
            }
        }
        if self.provisional.len() >= PROVISIONAL_MAX && !self.tuples.contains_key(&carrier) {
            return false;
        }
        let until = now + PROVISIONAL_LIFETIME;
        match self.tuples.get_mut(&carrier) {
            Some(Entry::Here(_) | Entry::Confirmed(_)) => {}
            Some(entry) => *entry = Entry::Provisional { worker, until },
            None => {
                self.tuples.insert(carrier, Entry::Provisional { worker, until });
                self.provisional.push_back((until, carrier));
            }
        }
        true
    }

    /// The owner said that this tuple is its own.
    pub fn confirm(&mut self, carrier: Carrier, worker: WorkerId) {
        self.tuples.insert(carrier, Entry::Confirmed(worker));
    }

    /// The owner gave this tuple up; what another has confirmed since stays.
    pub fn withdraw(&mut self, carrier: Carrier, worker: WorkerId) {
        if matches!(self.tuples.get(&carrier), Some(Entry::Confirmed(w) | Entry::Provisional { worker: w, .. }) if *w == worker) {
            self.tuples.remove(&carrier);
        }
    }

    pub fn received_by(&mut self, carrier: Carrier, worker: WorkerId) {
        self.received_by.insert(carrier, worker);
    }

    /// Who must be told when this carrier is given up.
    pub fn take_receiver(&mut self, carrier: Carrier) -> Option<WorkerId> {
        self.received_by.remove(&carrier)
    }

    pub fn redirects(&self) -> usize {
        self.provisional.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::{ClientAddr, SocketId};

    fn carrier(port: u16) -> Carrier {
        Carrier::Udp { socket: SocketId(0), local: [192, 0, 2, 9].into(), remote: ClientAddr(([192, 0, 2, 1], port).into()) }
    }

    #[test]
    fn a_ufrag_names_its_owner() {
        for worker in [0, 1, 63, 64, 200, 255] {
            assert_eq!(owner_of(ufrag(WorkerId(worker), "0123456789").as_bytes(), 255), Some(WorkerId(worker % 255)));
        }
        assert_eq!(owner_of(ufrag(WorkerId(3), "x").as_bytes(), 2), Some(WorkerId(1)));
        assert_eq!(owner_of(b"A", 2), None);
        assert_eq!(owner_of(b"\x00\x00", 2), None);
    }

    #[test]
    fn a_redirect_is_provisional_then_confirmed_then_withdrawn() {
        let (now, later) = (Instant::from_millis(0), Instant::from_millis(2_000));
        let mut table = Table::default();
        let elsewhere = |w| Some(Owner::Elsewhere(WorkerId(w)));
        assert!(table.provisional(now, carrier(1), WorkerId(1)));
        assert_eq!(table.by_carrier(now, carrier(1)), elsewhere(1));
        assert_eq!(table.by_carrier(later, carrier(1)), None, "it ends by itself");
        table.confirm(carrier(1), WorkerId(1));
        assert_eq!(table.by_carrier(later, carrier(1)), elsewhere(1));
        assert!(table.provisional(later, carrier(1), WorkerId(2)));
        assert_eq!(table.by_carrier(later, carrier(1)), elsewhere(1), "a stranger's check replaces nothing");
        table.withdraw(carrier(1), WorkerId(2));
        assert_eq!(table.by_carrier(later, carrier(1)), elsewhere(1));
        table.withdraw(carrier(1), WorkerId(1));
        assert_eq!(table.by_carrier(later, carrier(1)), None);
    }

    #[test]
    fn provisional_entries_are_bounded() {
        let mut table = Table::default();
        let granted = (0..5_000).filter(|p| table.provisional(Instant::from_millis(0), carrier(*p), WorkerId(1))).count();
        assert_eq!(granted, PROVISIONAL_MAX);
        assert!(table.provisional(Instant::from_millis(2_001), carrier(6_000), WorkerId(1)), "room again after their end");
        assert_eq!(table.redirects(), 1);
    }
}
