//! Points in time as numbers. Nothing here can read a clock: `io/clock.rs` and the simulator write the number.

use std::ops::{Add, Sub};
pub use std::time::Duration;

/// Nanoseconds since the process (or the simulation) began. Monotonic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    pub const fn from_millis(ms: u64) -> Self {
        Self(ms * 1_000_000)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }

    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// This clock as an NTP timestamp (RFC 3550 §4: any clock will do that all streams share). It begins in
    /// 1970: zero has a meaning in reports, and some receivers know no time before.
    pub const fn as_ntp(self) -> u64 {
        let secs = self.0 / 1_000_000_000 + NTP_BASE_S;
        (secs << 32) | (((self.0 % 1_000_000_000) << 32) / 1_000_000_000)
    }

    /// Time since `earlier`; zero when `earlier` lies ahead.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

const NTP_BASE_S: u64 = 2_208_988_800;

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant(self.0.saturating_add(d.as_nanos() as u64))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, d: Duration) -> Instant {
        Instant(self.0.saturating_sub(d.as_nanos() as u64))
    }
}

/// Wall time, nanoseconds since 1970-01-01 UTC. For credential expiry and NTP stamps only; never for timers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(u64);

impl UnixTime {
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000_000
    }
}

/// What a shard is told about time with every input: one reading for the whole batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    pub mono: Instant,
    pub wall: UnixTime,
}

/// Ties our clock to std's, which foreign sans-IO crates speak. Made once per process.
#[derive(Clone, Copy, Debug)]
pub struct Anchor(std::time::Instant);

impl Anchor {
    /// `zero` is std's reading at our `Instant` zero.
    pub fn new(zero: std::time::Instant) -> Self {
        Self(zero)
    }

    pub fn to_std(self, at: Instant) -> std::time::Instant {
        self.0 + Duration::from_nanos(at.0)
    }

    pub fn from_std(self, at: std::time::Instant) -> Instant {
        Instant(at.saturating_duration_since(self.0).as_nanos() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ntp_counts_seconds_above_and_fractions_below() {
        let zero = Instant::from_nanos(0).as_ntp();
        assert_ne!(zero >> 32, 0);
        assert_eq!(Instant::from_millis(2_500).as_ntp() - zero, 2 << 32 | 1 << 31);
    }

    #[test]
    fn an_instant_never_wraps() {
        let t = Instant::from_millis(5);
        assert_eq!(t.since(Instant::from_millis(9)), Duration::ZERO);
        assert_eq!(t - Duration::from_secs(9), Instant::from_nanos(0));
    }
}
