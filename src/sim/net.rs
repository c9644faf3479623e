//! A seeded link: loss, duplication and uneven delay for datagrams; order and delay for connections.

use crate::base::rng::Rng;
use crate::base::time::{Duration, Instant};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Who a packet is for: the server from this seat, or the peer on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum To {
    Server(usize),
    Peer(usize),
}

/// Packets of a burst of losses, on average.
const BURST: u64 = 5;

pub struct Net {
    dice: Rng,
    loss_per_mille: u64,
    duplicates_per_mille: u64,
    delay_ms: std::ops::Range<u64>,
    burst_per_mille: u64,
    burst_left: u64,
    in_flight: BinaryHeap<Reverse<(Instant, u64, To, Vec<u8>)>>,
    sent: u64,
    pub lost: u64,
}

impl Net {
    pub fn new(seed: u64, loss_per_mille: u64, duplicates_per_mille: u64, delay_ms: std::ops::Range<u64>) -> Self {
        let (dice, in_flight) = (Rng::new(seed), BinaryHeap::new());
        Self { dice, loss_per_mille, duplicates_per_mille, delay_ms, burst_per_mille: 0, burst_left: 0, in_flight, sent: 0, lost: 0 }
    }

    /// From now on losses come in bursts of about five: `per_mille` of all packets.
    pub fn storm(&mut self, per_mille: u64) {
        self.burst_per_mille = per_mille / BURST;
    }

    pub fn calm(&mut self) {
        self.burst_per_mille = 0;
        self.loss_per_mille = 0;
        self.duplicates_per_mille = 0;
    }

    pub fn send(&mut self, now: Instant, to: To, bytes: Vec<u8>, is_stream: bool) {
        if is_stream {
            // One delay for all keeps the order.
            return self.put(now + Duration::from_millis(self.delay_ms.start), to, bytes);
        }
        if self.burst_left == 0 && self.dice.below(1000) < self.burst_per_mille {
            self.burst_left = 1 + self.dice.below(2 * BURST - 1);
        }
        if self.burst_left > 0 {
            self.burst_left -= 1;
            self.lost += 1;
            return;
        }
        if self.dice.below(1000) < self.loss_per_mille {
            self.lost += 1;
            return;
        }
        let copies = if self.dice.below(1000) < self.duplicates_per_mille { 2 } else { 1 };
        for _ in 0..copies {
            let spread = self.delay_ms.end - self.delay_ms.start;
            let delay = self.delay_ms.start + self.dice.below(spread);
            self.put(now + Duration::from_millis(delay), to, bytes.clone());
        }
    }

    fn put(&mut self, at: Instant, to: To, bytes: Vec<u8>) {
        self.sent += 1;
        self.in_flight.push(Reverse((at, self.sent, to, bytes)));
    }

    pub fn next_arrival(&self) -> Option<Instant> {
        self.in_flight.peek().map(|Reverse((at, ..))| *at)
    }

    /// The earliest packet that has arrived.
    pub fn pop(&mut self, now: Instant) -> Option<(To, Vec<u8>)> {
        if self.next_arrival()? > now {
            return None;
        }
        self.in_flight.pop().map(|Reverse((_, _, to, bytes))| (to, bytes))
    }
}
