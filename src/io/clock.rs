//! The only place of the data path that reads a clock.

use crate::base::time::{Anchor, Instant, Now, UnixTime};
use std::time::SystemTime;

/// Reads both clocks. One per process; copies agree.
#[derive(Clone, Copy)]
pub struct Clock {
    zero: std::time::Instant,
}

impl Clock {
    #[allow(clippy::disallowed_methods, reason = "this is where time comes from")]
    pub fn start() -> Self {
        Self { zero: std::time::Instant::now() }
    }

    pub fn anchor(&self) -> Anchor {
        Anchor::new(self.zero)
    }

    #[allow(clippy::disallowed_methods, reason = "this is where time comes from")]
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { mono: Instant::from_nanos(self.zero.elapsed().as_nanos() as u64), wall: UnixTime::from_nanos(wall.as_nanos() as u64) }
    }
}
