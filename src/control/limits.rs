//! How often somebody may ask: token buckets by address and by identity.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Askers that are counted at a time.
const ASKERS_MAX: usize = 65_536;

/// Whoever has asked nothing for so long has a full bucket, and is as good as unknown.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(1);

/// A token bucket for each asker: so many requests a second, as many at once.
pub struct Rate<Asker> {
    per_second: AtomicU32,
    /// What each has left, and when it asked last.
    buckets: Mutex<HashMap<Asker, (f64, Instant)>>,
}

impl<Asker: Eq + Hash> Rate<Asker> {
    pub fn new(per_second: u32) -> Self {
        Self { per_second: AtomicU32::new(per_second), buckets: Mutex::default() }
    }

    /// From now on so many.
    pub fn set(&self, per_second: u32) {
        self.per_second.store(per_second, Relaxed);
    }

    /// Forgets who has asked nothing for a while.
    pub fn sweep(&self, now: Instant) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|_, (_, at)| now.duration_since(*at) < FORGOTTEN_AFTER);
        let len = buckets.len();
        buckets.shrink_to(2 * len);
    }

    pub fn admits(&self, now: Instant, asker: Asker) -> bool {
        let rate = f64::from(self.per_second.load(Relaxed));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= ASKERS_MAX {
            buckets.retain(|_, (_, at)| now.duration_since(*at) < FORGOTTEN_AFTER);
            if buckets.len() >= ASKERS_MAX && !buckets.contains_key(&asker) {
                return false;
            }
        }
        let (tokens, at) = buckets.entry(asker).or_insert((rate, now));
        *tokens = (*tokens + now.duration_since(*at).as_secs_f64() * rate).min(rate);
        *at = now;
        let admitted = *tokens >= 1.0;
        if admitted {
            *tokens -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test of time")]
    fn each_asker_has_a_bucket_of_its_own() {
        let (rate, start) = (Rate::new(10), Instant::now());
        assert_eq!((0..50).filter(|_| rate.admits(start, "a")).count(), 10);
        assert!(rate.admits(start, "b"), "another one is not held up");
        assert!(rate.admits(start + Duration::from_millis(110), "a"), "a tenth of a second gives one more");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test of time")]
    fn a_flood_of_askers_is_bounded() {
        let (rate, start) = (Rate::new(10), Instant::now());
        assert_eq!((0..ASKERS_MAX + 100).filter(|n| rate.admits(start, *n)).count(), ASKERS_MAX);
        assert!(rate.admits(start + Duration::from_secs(2), ASKERS_MAX + 1), "and over soon");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test of time")]
    fn who_has_not_asked_for_a_while_is_forgotten() {
        let (rate, start) = (Rate::new(10), Instant::now());
        (0..100).for_each(|n| assert!(rate.admits(start, n)));
        let later = start + FORGOTTEN_AFTER;
        assert!(rate.admits(later, 7));
        rate.sweep(later);
        assert_eq!(rate.buckets.lock().expect("alone").len(), 1);
    }
}
