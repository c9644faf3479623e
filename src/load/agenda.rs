//! When each of many is due next.

use crate::base::time::{Duration, Instant};
use std::collections::{BTreeSet, HashMap};

#[derive(Default)]
pub struct Agenda {
    due: BTreeSet<(Instant, u64)>,
    armed: HashMap<u64, Instant>,
}

impl Agenda {
    /// Replaces when it was due before.
    pub fn arm(&mut self, id: u64, at: Instant) {
        self.forget(id);
        self.armed.insert(id, at);
        self.due.insert((at, id));
    }

    pub fn forget(&mut self, id: u64) {
        if let Some(at) = self.armed.remove(&id) {
            self.due.remove(&(at, id));
        }
    }

    /// Who is due: each once, and off the list.
    pub fn take(&mut self, now: Instant) -> Vec<u64> {
        let later = self.due.split_off(&(now + Duration::from_nanos(1), 0));
        let due: Vec<u64> = std::mem::replace(&mut self.due, later).into_iter().map(|(_, id)| id).collect();
        for id in &due {
            self.armed.remove(id);
        }
        due
    }
}
