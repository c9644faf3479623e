//! What of many sockets is ready: a waker puts its name on a list, and wakes the worker once.

use atomic_waker::AtomicWaker;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// Sockets whose readiness changed.
pub struct ReadyList<T> {
    names: Mutex<Vec<T>>,
    pub root: AtomicWaker,
}

impl<T> Default for ReadyList<T> {
    fn default() -> Self {
        Self { names: Mutex::default(), root: AtomicWaker::new() }
    }
}

impl<T> ReadyList<T> {
    fn push(&self, name: T) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        self.root.wake();
    }

    pub fn take(&self, into: &mut Vec<T>) {
        into.append(&mut self.names.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

struct Named<T> {
    name: T,
    list: Arc<ReadyList<T>>,
}

impl<T: Copy + Send + Sync + 'static> Wake for Named<T> {
    fn wake(self: Arc<Self>) {
        self.list.push(self.name);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.list.push(self.name);
    }
}

pub fn waker<T: Copy + Send + Sync + 'static>(name: T, list: &Arc<ReadyList<T>>) -> Waker {
    Waker::from(Arc::new(Named { name, list: Arc::clone(list) }))
}
