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
    worker: u16,
    workers: u16,
    held: IdMap<u16, Holder>,
    reserved: VecDeque<(Instant, u16)>,
}

impl RelayPorts {
    pub fn new(range: RangeInclusive<u16>, worker: WorkerId, workers: u8) -> Self {
        let workers = u16::from(workers.max(1));
        Self { range, worker: u16::from(worker.0) % workers, workers, held: IdMap::default(), reserved: VecDeque::new() }
    }

    /// A port of ours that is free, from a random place on; one that is reserved besides, for a [`Wish::Pair`].
    pub fn choose(&mut self, now: Instant, wish: Wish, dice: &mut Rng) -> Option<u16> {
        self.expire(now);
        let (first, last) = (*self.range.start() / 2, *self.range.end() / 2);
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
            let found = match wish {
                Wish::Pair => (self.is_free(even) && self.is_free(odd)).then_some(even),
                Wish::Even => self.is_free(even).then_some(even),
                Wish::Any if odd_first => [odd, even].into_iter().find(|port| self.is_free(*port)),
                Wish::Any => [even, odd].into_iter().find(|port| self.is_free(*port)),
            };
            if let Some(port) = found {
                if wish == Wish::Pair {
                    self.held.insert(odd, Holder::Reserved);
                    self.reserved.push_back((now + RESERVED_FOR, odd));
                }
                return Some(port);
            }
        }
        None
    }

    fn is_free(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.held.contains_key(&port)
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
        while let Some((_, port)) = self.reserved.pop_front_if(|(until, _)| *until <= now) {
            if self.held.get(&port) == Some(&Holder::Reserved) {
                self.held.remove(&port);
            }
        }
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
            let port = ports.choose(Instant::default(), wish, &mut dice)?;
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
                    found.extend(all(&mut RelayPorts::new(range.clone(), WorkerId(worker), workers), Wish::Any));
                }
                found.sort_unstable();
                assert_eq!(found, range.clone().collect::<Vec<u16>>(), "{range:?} {workers}");
            }
        }
    }

    #[test]
    fn even_ports_and_pairs() {
        let mut ports = RelayPorts::new(50001..=50008, WorkerId(0), 1);
        assert_eq!(all(&mut ports, Wish::Even), [50002, 50004, 50006, 50008]);
        let mut ports = RelayPorts::new(50001..=50008, WorkerId(0), 1);
        assert_eq!(all(&mut ports, Wish::Pair), [50002, 50004, 50006], "the range ends before the last's neighbour");
        assert_eq!(all(&mut ports, Wish::Any), [50001, 50008], "the neighbours are kept back");
        assert!(ports.redeem(Instant::from_millis(34_999), 50003));
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
    fn what_others_hold_is_not_lent() {
        let mut ports = RelayPorts::new(50000..=50007, WorkerId(1), 2);
        assert!(ports.redeem(Instant::default(), 50001), "another worker's reservation");
        assert!(!ports.redeem(Instant::default(), 50003), "not reserved of ours");
        ports.hold(50002, Holder::At(WorkerId(0)));
        assert_eq!(all(&mut ports, Wish::Any), [50003, 50006, 50007]);
    }
}
