//! Deadlines of everything in a shard: one armed entry a thing, earliest first.
//!
//! A deadline that moves later is left where it is: the thing is woken early once, does nothing, and is armed anew. So a
//! packet that pushes a deadline ahead costs a comparison.

use crate::base::id::{IdMap, RoomId, SessionId};
use crate::base::time::Instant;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    Session(SessionId),
    Speakers(RoomId),
    Turn,
}

#[derive(Default)]
pub struct Timers {
    armed: IdMap<Timer, Instant>,
    queue: BinaryHeap<Reverse<(Instant, Timer)>>,
}

impl Timers {
    /// Wakes `timer` no later than `at`.
    pub fn arm(&mut self, timer: Timer, at: Instant) {
        let is_earlier = self.armed.get(&timer).is_none_or(|armed| at < *armed);
        if is_earlier {
            self.armed.insert(timer, at);
            self.queue.push(Reverse((at, timer)));
        }
    }

    pub fn forget(&mut self, timer: Timer) {
        self.armed.remove(&timer);
    }

    pub fn deadline(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, timer))) = self.queue.peek() {
            if self.armed.get(timer) == Some(at) {
                return Some(*at);
            }
            self.queue.pop();
        }
        None
    }

    /// The next thing that is due. Arm it again after waking it.
    pub fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        if self.deadline()? > now {
            return None;
        }
        let Reverse((_, timer)) = self.queue.pop()?;
        self.armed.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_moves_and_later_waits() {
        let (a, b) = (Timer::Session(SessionId(1)), Timer::Turn);
        let mut timers = Timers::default();
        timers.arm(a, Instant::from_millis(10));
        timers.arm(a, Instant::from_millis(50));
        timers.arm(b, Instant::from_millis(20));
        timers.arm(b, Instant::from_millis(5));
        assert_eq!(timers.deadline(), Some(Instant::from_millis(5)));
        assert_eq!(timers.pop_due(Instant::from_millis(30)), Some(b));
        assert_eq!(timers.pop_due(Instant::from_millis(30)), Some(a));
        assert_eq!(timers.pop_due(Instant::from_millis(30)), None);
        timers.arm(a, Instant::from_millis(40));
        timers.forget(a);
        assert_eq!(timers.deadline(), None);
    }
}
