//! How often something may happen: the generic cell rate algorithm (ITU-T I.371), a token bucket in one number.

use super::time::{Duration, Instant};

/// How far what was let through reaches ahead of the clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    paid_until: Instant,
}

impl Pace {
    /// Lets `cost` through at `per_second`, and as much at once as that rate gives in `burst`. A rate of 0 is no limit.
    pub fn take(&mut self, now: Instant, cost: u64, per_second: u64, burst: Duration) -> bool {
        if per_second == 0 {
            return true;
        }
        let paid_until = self.paid_until.max(now) + Duration::from_nanos(cost.saturating_mul(1_000_000_000) / per_second);
        let fits = paid_until.since(now) <= burst;
        if fits {
            self.paid_until = paid_until;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut pace = Pace::default();
        let mut let_through = |ms: u64| (0..100).filter(|_| pace.take(Instant::from_millis(ms), 1, 10, Duration::from_secs(2))).count();
        assert_eq!([let_through(5_000), let_through(5_050), let_through(5_300), let_through(60_000)], [20, 0, 3, 20]);
        assert!((0..1_000).all(|_| Pace::default().take(Instant::from_millis(1), 1_000_000, 0, Duration::ZERO)), "no limit");
    }
}
