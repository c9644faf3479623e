//! How mail reaches a worker: commands of the control plane, parcels and connections of other workers.
//!
//! Between two workers runs a ring of its own, made at its first use. A sender wakes the receiver only if that has
//! published that it sleeps, and then once: a wake costs the waker ten times what the parcel does.

use super::stream::Stream;
use crate::base::id::{StreamId, TrackId, WorkerId};
use crate::session::Media;
use crate::shard::counters::Counter;
use crate::shard::mail::{Command, Parcel, StreamCargo};
use atomic_waker::AtomicWaker;
use rtrb::{Consumer, Producer, PushError, RingBuffer};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

/// Parcels that wait between one pair of workers.
pub const RING: usize = 1024;

/// What crosses a ring.
pub enum Freight {
    Parcel(Parcel),
    Stream(Box<MovedStream>),
}

/// A connection on its way to its owner, with the shard's part of it.
pub struct MovedStream {
    pub id: StreamId,
    pub stream: Stream,
    pub cargo: StreamCargo,
}

#[derive(Default)]
struct Slow {
    commands: Vec<Command>,
    rings: Vec<(WorkerId, Consumer<Freight>)>,
    stop: bool,
}

/// The receiving side of one worker; shared with everybody who writes to it.
#[derive(Default)]
pub struct Inbox {
    slow: Mutex<Slow>,
    has_slow: AtomicBool,
    sleeping: AtomicBool,
    waker: AtomicWaker,
    turns: AtomicU64,
}

/// Mail of the slow kind, taken out in one go.
pub struct Taken {
    pub commands: Vec<Command>,
    pub rings: Vec<(WorkerId, Consumer<Freight>)>,
    pub stop: bool,
}

impl Inbox {
    pub fn command(&self, command: Command) {
        self.put(|slow| slow.commands.push(command));
    }

    /// Asks the worker to end.
    pub fn stop(&self) {
        self.put(|slow| slow.stop = true);
    }

    fn connect(&self, from: WorkerId) -> Producer<Freight> {
        let (producer, consumer) = RingBuffer::new(RING);
        self.put(|slow| slow.rings.push((from, consumer)));
        producer
    }

    fn put(&self, write: impl FnOnce(&mut Slow)) {
        write(&mut self.slow.lock().unwrap_or_else(PoisonError::into_inner));
        self.has_slow.store(true, SeqCst);
        self.wake();
    }

    /// Wakes the worker if it sleeps.
    pub fn wake(&self) {
        if self.sleeping.swap(false, SeqCst) {
            self.waker.wake();
        }
    }

    pub fn take(&self) -> Option<Taken> {
        if !self.has_slow.load(SeqCst) || !self.has_slow.swap(false, SeqCst) {
            return None;
        }
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        let Slow { commands, rings, stop } = std::mem::take(&mut *slow);
        Some(Taken { commands, rings, stop })
    }

    /// Publishes that the worker is about to sleep. Look at every ring once more afterwards.
    pub fn falls_asleep(&self, waker: &Waker) {
        self.waker.register(waker);
        self.sleeping.store(true, SeqCst);
    }

    pub fn is_awake(&self) {
        self.sleeping.store(false, SeqCst);
    }

    /// The worker begins a turn. It does at least once a second, for its sweep.
    pub fn turns(&self) {
        self.turns.fetch_add(1, Relaxed);
    }

    /// How many turns the worker has begun: one that stands still is stuck.
    pub fn turns_begun(&self) -> u64 {
        self.turns.load(Relaxed)
    }

    pub fn has_mail(&self) -> bool {
        self.has_slow.load(SeqCst)
    }
}

/// The sending side of one worker towards all others.
pub struct Outbox {
    own: WorkerId,
    inboxes: Vec<Arc<Inbox>>,
    rings: Vec<Option<Producer<Freight>>>,
    to_wake: Vec<bool>,
    /// What must not be lost although a ring is full: moves and words about ownership.
    waiting: VecDeque<(WorkerId, Freight)>,
    /// Frames that lost a packet to a full ring, by their timestamp: the rest of them is of no use.
    broken: HashMap<(WorkerId, TrackId, u8), u32>,
}

/// Room messages that may wait for full rings, and frames that are remembered as broken.
const WAITING_MAX: usize = 1024;
const BROKEN_MAX: usize = 1024;
/// Free places of a ring below which it takes no enhancement layers, and no pictures; what is left is for sound and words.
const FREE_FOR_ENHANCEMENT: usize = RING / 2;
const FREE_FOR_VIDEO: usize = RING / 4;

impl Outbox {
    pub fn new(own: WorkerId, inboxes: Vec<Arc<Inbox>>) -> Self {
        let (rings, to_wake) = (inboxes.iter().map(|_| None).collect(), vec![false; inboxes.len()]);
        Self { own, inboxes, rings, to_wake, waiting: VecDeque::new(), broken: HashMap::new() }
    }

    /// Says what was dropped when the ring has no place: datagrams, media and data tracks; anything else waits for its turn.
    pub fn send(&mut self, to: WorkerId, freight: Freight) -> Result<(), Counter> {
        if let Freight::Parcel(Parcel::Media { media, .. }) = &freight {
            self.may_pass(to, media)?;
        }
        let is_loose = matches!(
            freight,
            Freight::Parcel(Parcel::Datagram { .. } | Parcel::Loop { .. } | Parcel::Media { .. } | Parcel::DataTrack { .. })
        );
        // What must arrive arrives in order: it never overtakes what waits.
        let overtakes = !is_loose && self.waiting.iter().any(|(other, _)| *other == to);
        let refused = if overtakes { Err(freight) } else { self.push(to, freight) };
        match refused {
            Ok(()) => Ok(()),
            Err(Freight::Parcel(Parcel::Datagram { .. } | Parcel::Loop { .. })) => Err(Counter::DropRingFull),
            Err(Freight::Parcel(Parcel::Media { .. })) => Err(Counter::RingDropSound),
            Err(Freight::Parcel(Parcel::DataTrack { .. })) => Err(Counter::DropDataQueue),
            Err(Freight::Parcel(Parcel::Data { .. })) if self.waiting.len() >= WAITING_MAX => Err(Counter::DropDataQueue),
            Err(freight) => {
                self.waiting.push_back((to, freight));
                Ok(())
            }
        }
    }

    /// Under pressure enhancement layers go first, then whole frames; sound keeps its place.
    fn may_pass(&mut self, to: WorkerId, media: &Media) -> Result<(), Counter> {
        if !media.format.codec.is_video() {
            return Ok(());
        }
        let key = (to, media.track, media.layer);
        if self.broken.get(&key).is_some_and(|frame| *frame == media.header.timestamp) {
            return Err(Counter::RingDropFrame);
        }
        let free = self.rings.get(usize::from(to.0)).and_then(Option::as_ref).map_or(RING, Producer::slots);
        let is_enhancement = media.frame.temporal_id > 0 || media.frame.spatial_id.is_some_and(|s| s > 0);
        let drop = match is_enhancement {
            true if free < FREE_FOR_ENHANCEMENT => Counter::RingDropEnhancement,
            _ if free < FREE_FOR_VIDEO => Counter::RingDropFrame,
            _ => {
                self.broken.remove(&key);
                return Ok(());
            }
        };
        if self.broken.len() >= BROKEN_MAX {
            self.broken.clear();
        }
        self.broken.insert(key, media.header.timestamp);
        Err(drop)
    }

    fn push(&mut self, to: WorkerId, freight: Freight) -> Result<(), Freight> {
        let at = usize::from(to.0);
        let (Some(inbox), Some(slot)) = (self.inboxes.get(at), self.rings.get_mut(at)) else { return Ok(()) };
        let ring = slot.get_or_insert_with(|| inbox.connect(self.own));
        self.to_wake[at] = true;
        ring.push(freight).map_err(|PushError::Full(freight)| freight)
    }

    /// Tries again what waits; whether anything still does.
    pub fn retry(&mut self) -> bool {
        let mut full: Vec<WorkerId> = Vec::new();
        for _ in 0..self.waiting.len() {
            let Some((to, freight)) = self.waiting.pop_front() else { break };
            let refused = if full.contains(&to) { Err(freight) } else { self.push(to, freight) };
            if let Err(freight) = refused {
                full.push(to);
                self.waiting.push_back((to, freight));
            }
        }
        !self.waiting.is_empty()
    }

    /// Wakes every receiver of this turn, once.
    pub fn flush(&mut self) {
        for (inbox, wake) in self.inboxes.iter().zip(&mut self.to_wake) {
            if std::mem::take(wake) {
                inbox.wake();
            }
        }
    }
}
