//! Ports that relayed addresses are lent from, and who has which (RFC 8656 §7.2).
//!
//! Each worker lends from pairs of its own, so that no two lend the same; it tells the others what it holds. A port that is
//! reserved for a token (EVEN-PORT with its R bit) waits half a minute for whoever brings that.

use crate::base::id::{AllocationId, IdMap, WorkerId};
use crate::base::rng::Rng;
use crate::base::time::{Duration, Instant};
use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// How long a reserved port waits: RFC 8656 §7.2 asks for 30 s at least.
pub const RESERVED_FOR: Duration = Duration::from_secs(35);

/// Who has a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    Here(AllocationId),
    /// An allocation of another worker.
    At(WorkerId),
    Reserved,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Any,
    Even,
    /// An even one, and the next kept back.
    Pair,
}

pub struct RelayPorts {
    range: RangeInclusive<u16>,
    /// Parts of the range in which no other program's sockets come to lie by chance; then all of it.
    parts: Vec<RangeInclusive<u16>>,
    worker: u16,
    workers: u16,
    held: IdMap<u16, Holder>,
    /// Until when, and by which user.
    reserved: VecDeque<(Instant, u16, u64)>,
}

impl RelayPorts {
    /// `ephemeral` are the ports that the system gives to sockets that ask for none (RFC 6056): they are lent last.
    pub fn new(range: RangeInclusive<u16>, ephemeral: Option<&RangeInclusive<u16>>, worker: WorkerId, workers: u8) -> Self {
        let workers = u16::from(workers.max(1));
        let (first, last) = (*range.start(), *range.end());
        let mut parts: Vec<RangeInclusive<u16>> = Vec::new();
        if let Some(ephemeral) = ephemeral {
            parts.extend(ephemeral.end().checked_add(1).map(|behind| behind.max(first)..=last));
            parts.extend(ephemeral.start().checked_sub(1).map(|before| first..=before.min(last)));
            parts.retain(|part| !part.is_empty());
        }
        parts.push(range.clone());
        Self { range, parts, worker: u16::from(worker.0) % workers, workers, held: IdMap::default(), reserved: VecDeque::new() }
    }

    /// A port of ours that is free, from a random place on; one that is reserved besides, for a [`Wish::Pair`].
    pub fn choose(&mut self, now: Instant, wish: Wish, user: u64, dice: &mut Rng) -> Option<u16> {
        self.expire(now);
        let port = self.parts.iter().find_map(|part| self.choose_in(part, wish, dice))?;
        if wish == Wish::Pair {
            self.held.insert(port + 1, Holder::Reserved);
            self.reserved.push_back((now + RESERVED_FOR, port + 1, user));
        }
        Some(port)
    }

    fn choose_in(&self, part: &RangeInclusive<u16>, wish: Wish, dice: &mut Rng) -> Option<u16> {
        let (first, last) = (*part.start() / 2, *part.end() / 2);
        let pairs = (usize::from(last - first) + 1).div_ceil(usize::from(self.workers));
        let start = dice.below(pairs as u64) as usize;
        // The first pair of ours in the range.
        let offset = (self.worker + self.workers - first % self.workers) % self.workers;
        let odd_first = wish == Wish::Any && dice.one_in(2);
        for n in 0..pairs {
            let nth = (start + n) % pairs;
            let Some(pair) = u16::try_from(nth).ok().and_then(|nth| nth.checked_mul(self.workers)?.checked_add(first + offset)) else {
                continue;
            };
            if pair > last {
                continue;
            }
            let (even, odd) = (pair * 2, pair * 2 + 1);
            let is_free = |port: &u16| part.contains(port) && !self.held.contains_key(port);
            let found = match wish {
                Wish::Pair => (is_free(&even) && is_free(&odd)).then_some(even),
                Wish::Even => is_free(&even).then_some(even),
                Wish::Any if odd_first => [odd, even].into_iter().find(is_free),
                Wish::Any => [even, odd].into_iter().find(is_free),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Takes a reserved port; `false` when it is not reserved here, or no longer. Those of other workers are taken on trust:
    /// the token was of their making.
    pub fn redeem(&mut self, now: Instant, port: u16) -> bool {
        self.expire(now);
        let is_ours = (port / 2) % self.workers == self.worker;
        match self.held.get(&port) {
            Some(Holder::Reserved) => {
                self.held.remove(&port);
                true
            }
            None => !is_ours && self.range.contains(&port),
            Some(Holder::Here(_) | Holder::At(_)) => false,
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some((_, port, _)) = self.reserved.pop_front_if(|(until, ..)| *until <= now) {
            if self.held.get(&port) == Some(&Holder::Reserved) {
                self.held.remove(&port);
            }
        }
    }

    /// How many ports are kept back for a user here.
    pub fn reserved_for(&mut self, now: Instant, user: u64) -> usize {
        self.expire(now);
        self.reserved.iter().filter(|(_, port, of)| *of == user && self.held.get(port) == Some(&Holder::Reserved)).count()
    }

    pub fn hold(&mut self, port: u16, holder: Holder) {
        self.held.insert(port, holder);
    }

    /// Gives a port back, if that is who has it.
    pub fn free(&mut self, port: u16, holder: Holder) {
        if self.held.get(&port) == Some(&holder) {
            self.held.remove(&port);
        }
    }

    pub fn holder(&self, port: u16) -> Option<Holder> {
        self.held.get(&port).copied()
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Holder = Holder::Here(AllocationId(1));

    fn all(ports: &mut RelayPorts, wish: Wish) -> Vec<u16> {
        let mut dice = Rng::new(7);
        let mut found: Vec<u16> = std::iter::from_fn(|| {
            let port = ports.choose(Instant::default(), wish, 7, &mut dice)?;
            ports.hold(port, HERE);
            Some(port)
        })
        .collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn each_port_is_lent_once_by_one_worker() {
        for range in [49152..=49171, 50001..=50008, 65500..=65535, 1..=5, 7..=7] {
            for workers in [1, 2, 3, 7] {
                let mut found = Vec::new();
                for worker in 0..workers {
                    found.extend(all(&mut RelayPorts::new(range.clone(), None, WorkerId(worker), workers), Wish::Any));
                }
                found.sort_unstable();
                assert_eq!(found, range.clone().collect::<Vec<u16>>(), "{range:?} {workers}");
            }
        }
    }

    #[test]
    fn even_ports_and_pairs() {
        let mut ports = RelayPorts::new(50001..=50008, None, WorkerId(0), 1);
        assert_eq!(all(&mut ports, Wish::Even), [50002, 50004, 50006, 50008]);
        let mut ports = RelayPorts::new(50001..=50008, None, WorkerId(0), 1);
        assert_eq!(all(&mut ports, Wish::Pair), [50002, 50004, 50006], "the range ends before the last's neighbour");
        assert_eq!(all(&mut ports, Wish::Any), [50001, 50008], "the neighbours are kept back");
        assert_eq!((ports.reserved_for(Instant::default(), 7), ports.reserved_for(Instant::default(), 8)), (3, 0));
        assert!(ports.redeem(Instant::from_millis(34_999), 50003));
        assert_eq!(ports.reserved_for(Instant::default(), 7), 2);
        assert!(!ports.redeem(Instant::from_millis(34_999), 50003), "once");
        assert!(!ports.redeem(Instant::from_millis(34_999), 50002), "it was never reserved");
        assert!(!ports.redeem(Instant::from_millis(35_000), 50005), "too late");
        ports.hold(50003, HERE);
        ports.free(50003, Holder::At(WorkerId(1)));
        assert_eq!(ports.holder(50003), Some(HERE), "only by who has it");
        ports.free(50003, HERE);
        assert_eq!(ports.holder(50003), None);
    }

    #[test]
    fn ports_that_the_system_gives_to_others_are_lent_last() {
        for (ephemeral, first) in [(50000..=50099, 50100..=50119), (50020..=60000, 50000..=50019), (40000..=60000, 50000..=50119)] {
            let mut ports = RelayPorts::new(50000..=50119, Some(&ephemeral), WorkerId(0), 1);
            let mut dice = Rng::new(3);
            for n in 0..120 {
                let port = ports.choose(Instant::default(), Wish::Any, 7, &mut dice).expect("one is free");
                assert!(n >= first.len() || first.contains(&port), "{port} as the {n}th of {ephemeral:?}");
                ports.hold(port, HERE);
            }
            assert_eq!(ports.choose(Instant::default(), Wish::Any, 7, &mut dice), None);
        }
    }

    #[test]
    fn what_others_hold_is_not_lent() {
        let mut ports = RelayPorts::new(50000..=50007, None, WorkerId(1), 2);
        assert!(ports.redeem(Instant::default(), 50001), "another worker's reservation");
        assert!(!ports.redeem(Instant::default(), 50003), "not reserved of ours");
        ports.hold(50002, Holder::At(WorkerId(0)));
        assert_eq!(all(&mut ports, Wish::Any), [50003, 50006, 50007]);
    }
}
