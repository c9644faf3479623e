//! How much a worker has to do, and how long packets stay in it. One writer, read by whoever scrapes.

use crate::base::time::{Duration, Instant};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper ends of the buckets of the forwarding latency, microseconds; one more bucket takes the rest.
pub const LATENCY_BOUNDS_US: [u64; 11] = [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000];

/// One worker's figures.
#[derive(Clone, Default)]
pub struct Load(Arc<Cells>);

#[derive(Default)]
struct Cells {
    busy_ns: AtomicU64,
    sessions: AtomicU64,
    latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    latency_sum_ns: AtomicU64,
}

/// Written by the worker alone, so a plain load and store is enough.
fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed) + n, Relaxed);
}

impl Load {
    /// The worker was awake for so long.
    pub fn was_busy(&self, time: Duration) {
        add(&self.0.busy_ns, time.as_nanos() as u64);
    }

    /// Time that the worker was awake.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.0.busy_ns.load(Relaxed))
    }

    pub(super) fn set_sessions(&self, sessions: usize) {
        self.0.sessions.store(sessions as u64, Relaxed);
    }

    /// Transports that live here.
    pub fn sessions(&self) -> u64 {
        self.0.sessions.load(Relaxed)
    }

    fn passed(&self, time: Duration, packets: u64) {
        let us = time.as_micros() as u64;
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < us);
        add(&self.0.latency[bucket], packets);
        add(&self.0.latency_sum_ns, time.as_nanos() as u64 * packets);
    }

    /// Packets by how long they took, bucket by bucket, and the sum of all times.
    pub fn latency(&self) -> ([u64; LATENCY_BOUNDS_US.len() + 1], Duration) {
        (self.0.latency.each_ref().map(|cell| cell.load(Relaxed)), Duration::from_nanos(self.0.latency_sum_ns.load(Relaxed)))
    }
}

/// Packets of a turn that were written for a hearer and have not left yet, by when they came.
#[derive(Default)]
pub(super) struct Departures(Vec<(Instant, u64)>);

impl Departures {
    pub(super) fn add(&mut self, arrived: Instant) {
        match self.0.last_mut() {
            Some((at, packets)) if *at == arrived => *packets += 1,
            _ => self.0.push((arrived, 1)),
        }
    }

    /// They have left.
    pub(super) fn left(&mut self, now: Instant, load: &Load) {
        for (arrived, packets) in self.0.drain(..) {
            load.passed(now.since(arrived), packets);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_counted_by_how_long_they_took() {
        let (load, mut departures) = (Load::default(), Departures::default());
        let at = Instant::from_nanos;
        for arrived_us in [900, 900, 950, 0] {
            departures.add(at(arrived_us * 1_000));
        }
        departures.left(at(1_000_000), &load);
        assert!(departures.is_empty());
        let (buckets, sum) = load.latency();
        assert_eq!(buckets, [1, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "a bucket takes its upper end");
        assert_eq!(sum, Duration::from_micros(100 + 100 + 50 + 1_000));
        departures.add(at(0));
        departures.left(at(9_000_000_000), &load);
        assert_eq!(load.latency().0[LATENCY_BOUNDS_US.len()], 1);
    }
}
