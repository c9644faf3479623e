//! The life of the process as a value that everyone can look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Booting,
    Ready,
    /// Asked to end: nobody new gets in.
    Stopping,
}

#[derive(Clone, Default)]
pub struct Lifecycle(Arc<AtomicU8>);

impl Lifecycle {
    pub fn phase(&self) -> Phase {
        match self.0.load(Relaxed) {
            0 => Phase::Booting,
            1 => Phase::Ready,
            _ => Phase::Stopping,
        }
    }

    pub fn enter(&self, phase: Phase) {
        self.0.store(phase as u8, Relaxed);
    }
}
