//! The life of the process as a value that everyone can look at; what the service manager is told of it (sd_notify(3)); and
//! the watch over workers.

use sd_notify::NotifyState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Booting,
    Ready,
    /// Asked to end: no room is opened, calls may go on for a while.
    Draining,
    Stopping,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }
}

#[derive(Clone, Default)]
pub struct Lifecycle(Arc<AtomicU8>);

impl Lifecycle {
    pub fn phase(&self) -> Phase {
        match self.0.load(Relaxed) {
            0 => Phase::Booting,
            1 => Phase::Ready,
            2 => Phase::Draining,
            _ => Phase::Stopping,
        }
    }

    pub fn enter(&self, phase: Phase) {
        self.0.store(phase as u8, Relaxed);
        match phase {
            Phase::Booting => {}
            Phase::Ready => tell(&[NotifyState::Ready, NotifyState::Status("ready")]),
            // Told with how long it may take: to the service manager this is the end already.
            Phase::Draining => tell(&[NotifyState::Stopping, NotifyState::Status("draining: calls may go on, no room is opened")]),
            Phase::Stopping => tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]),
        }
    }

    /// The config is read again, until [`Phase::Ready`] is entered once more.
    pub fn reloading(&self) {
        let now = NotifyState::monotonic_usec_now();
        tell(&[NotifyState::Reloading].into_iter().chain(now.ok()).collect::<Vec<_>>());
    }

    /// All is well. While it drains, the service manager is asked for patience too.
    pub fn alive(&self) {
        match self.phase() {
            Phase::Draining => tell(&[NotifyState::Watchdog, NotifyState::ExtendTimeoutUsec(30_000_000)]),
            _ => tell(&[NotifyState::Watchdog]),
        }
    }
}

/// Without a service manager nobody listens.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told (NOTIFY_SOCKET)");
    }
}

/// Looks in a row that find a worker where it was, before it counts as stuck: seconds, and more than any turn takes.
const STUCK_AFTER: u32 = 10;

/// Watches over workers, which begin a turn at least once a second. It counts its own looks, not time: when the whole machine
/// stood still, nobody is to blame.
#[derive(Default)]
pub struct Watch(Vec<(u64, u32)>);

impl Watch {
    /// One look, once a second, at how many turns each worker has begun. The first one that is stuck.
    pub fn look(&mut self, turns: impl Iterator<Item = u64>) -> Option<usize> {
        let mut stuck = None;
        for (worker, turns) in turns.enumerate() {
            if self.0.len() <= worker {
                self.0.push((turns, 0));
            }
            let (before, in_vain) = &mut self.0[worker];
            *in_vain = if *before == turns { *in_vain + 1 } else { 0 };
            *before = turns;
            if *in_vain >= STUCK_AFTER {
                stuck = stuck.or(Some(worker));
            }
        }
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_stands_still_is_noticed() {
        let mut watch = Watch::default();
        for second in 0..100 {
            assert_eq!(watch.look([second, 2 * second].into_iter()), None);
        }
        let stuck = (0..=u64::from(STUCK_AFTER)).map(|second| watch.look([100 + second, 200].into_iter())).collect::<Vec<_>>();
        assert_eq!(stuck.iter().position(Option::is_some), Some(STUCK_AFTER as usize));
        assert_eq!(stuck.last(), Some(&Some(1)));
        assert_eq!(watch.look([200, 201].into_iter()), None, "and forgiven when it goes on");
    }
}
