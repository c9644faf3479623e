//! A panic in one session ends that session and nothing else: every step of a shard runs under guard.
//!
//! Whoever is about to work for a session notes it in `at_work`; that one is to blame. What the step had in hand is lost. Each
//! hearer is given its packets under a guard of its own: what the others get and what is kept for repair does not depend on it.
//! Without a session to blame the shard itself is broken: the panic goes on and ends the process.

use super::Shard;
use super::counters::Counter;
use super::mail::{Effect, Report};
use crate::base::id::PathId;
use crate::session::End;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

impl Shard {
    /// Runs one step. Whether it came to its end.
    pub(super) fn guarded(&mut self, step: impl FnOnce(&mut Self)) -> bool {
        self.at_work = None;
        let outcome = catch_unwind(AssertUnwindSafe(|| step(self)));
        let blamed = self.at_work.take();
        let Err(panic) = outcome else { return true };
        let Some(session) = blamed else { resume_unwind(panic) };
        self.counters.count(Counter::SessionsPanicked);
        self.egress.abandon();
        let report = Report::Ended { session, end: End::Panicked, detail: words(panic.as_ref()) };
        self.effects.push(Effect::Report(report));
        // It may have been on its way out already.
        let broken = self.sessions.remove(&session);
        let paths: Vec<PathId> = broken.map(|broken| broken.paths().collect()).unwrap_or_default();
        self.forget_session(session, &paths);
        false
    }

    /// A step that began with a packet: how that ended is to be named, too.
    pub(super) fn guarded_packet(&mut self, step: impl FnOnce(&mut Self)) {
        if !self.guarded(step) {
            self.counters.count(Counter::DropSessionPanicked);
        }
    }

    /// A session fails at its next packet, as one with a bug would.
    #[cfg(any(test, feature = "sim"))]
    pub fn break_session(&mut self, id: crate::base::id::SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.is_broken = true;
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
