//! The last second of every track and layer that somebody hears: one byte ring each, plaintext, and the table that finds
//! a packet in it by its sequence number. It is the retransmission store of all hearers; none of them keeps packets.
//!
//! ```text
//! bytes   | 1201 | 1203 |  free  | 1199 | 1200 |      written round and round, each packet in one piece
//! slots   1199 -> media, position    by sequence number modulo their count; valid while the bytes are
//! ```
//! A ring grows when it would overwrite a packet that is younger than the horizon, as long as all rings together stay
//! below the limit; then it remembers less and counts that.

use crate::base::id::{IdMap, TrackId};
use crate::base::time::{Duration, Instant};
use crate::session::Media;
use std::collections::VecDeque;

/// How long a packet is kept at least, memory permitting.
const KEPT: Duration = Duration::from_millis(1200);
/// However far away somebody says to be.
const KEPT_MAX: Duration = Duration::from_secs(2);
const RING_MIN: usize = 16 * 1024;
const RING_MAX: usize = 8 * 1024 * 1024;
const SLOTS_MIN: usize = 64;
const SLOTS_MAX: usize = 4096;

struct Slot {
    media: Media,
    /// Where its bytes begin, counted since the ring began.
    at: u64,
    len: usize,
    arrived: Instant,
}

/// What a ring has too little of.
enum Short {
    Bytes,
    Slots,
}

#[derive(Default)]
struct Ring {
    bytes: Vec<u8>,
    /// Bytes written since the ring began, those left out at its end included.
    written: u64,
    newest: u64,
    slots: Vec<Option<Slot>>,
    /// Sequence numbers in the order they were written: the front is overwritten next.
    order: VecDeque<u64>,
}

impl Ring {
    fn slot(&self, sequence: u64) -> Option<&Slot> {
        let slot = self.slots.get(sequence as usize % self.slots.len().max(1))?.as_ref()?;
        (slot.media.sequence == sequence && self.written <= slot.at + self.bytes.len() as u64).then_some(slot)
    }

    fn get(&self, sequence: u64) -> Option<(&Media, &[u8])> {
        let slot = self.slot(sequence)?;
        let start = (slot.at % self.bytes.len() as u64) as usize;
        Some((&slot.media, &self.bytes[start..start + slot.len]))
    }

    /// Position of the next packet: it stays in one piece, so the rest of a lap may be left out.
    fn place(&self, len: usize) -> u64 {
        let capacity = self.bytes.len() as u64;
        let rest = capacity - self.written % capacity;
        if (len as u64) <= rest { self.written } else { self.written + rest }
    }

    /// What a write of `len` bytes for `sequence` would destroy that is younger than `horizon`.
    fn is_short_of(&mut self, now: Instant, horizon: Duration, sequence: u64, len: usize) -> Option<Short> {
        while self.order.front().is_some_and(|s| self.slot(*s).is_none()) {
            self.order.pop_front();
        }
        let is_young = |slot: &&Slot| now.since(slot.arrived) < horizon;
        let end = self.place(len) + len as u64;
        let oldest = self.order.front().and_then(|s| self.slot(*s)).filter(is_young);
        if oldest.is_some_and(|oldest| end > oldest.at + self.bytes.len() as u64) {
            return Some(Short::Bytes);
        }
        let in_slot = self.slots[sequence as usize % self.slots.len()].as_ref().map(|s| s.media.sequence).filter(|s| *s != sequence);
        in_slot.and_then(|s| self.slot(s)).filter(is_young).map(|_| Short::Slots)
    }

    fn put(&mut self, now: Instant, media: Media, packet: &[u8]) {
        let at = self.place(packet.len());
        let start = (at % self.bytes.len() as u64) as usize;
        self.bytes[start..start + packet.len()].copy_from_slice(packet);
        self.written = at + packet.len() as u64;
        let sequence = media.sequence;
        self.newest = self.newest.max(sequence);
        let count = self.slots.len();
        self.slots[sequence as usize % count] = Some(Slot { media, at, len: packet.len(), arrived: now });
        self.order.push_back(sequence);
    }

    /// Makes place for more, keeping what is there.
    fn resize(&mut self, bytes: usize, slots: usize) {
        if bytes > self.bytes.len() {
            let mut larger = vec![0; bytes];
            for slot in self.slots.iter().flatten() {
                if let Some((_, packet)) = self.get(slot.media.sequence) {
                    // A piece of a lap is a piece of the double lap too.
                    let start = (slot.at % bytes as u64) as usize;
                    larger[start..start + slot.len].copy_from_slice(packet);
                }
            }
            let before = self.bytes.len() as u64;
            self.slots.iter_mut().filter(|s| s.as_ref().is_some_and(|s| self.written > s.at + before)).for_each(|s| *s = None);
            self.bytes = larger;
        }
        if slots > self.slots.len() {
            let mut more: Vec<Option<Slot>> = Vec::new();
            more.resize_with(slots, || None);
            for slot in std::mem::take(&mut self.slots).into_iter().flatten() {
                let to = slot.media.sequence as usize % slots;
                more[to] = Some(slot);
            }
            self.slots = more;
        }
    }
}

/// All rings of a shard.
pub struct Store {
    rings: IdMap<(TrackId, u8), Ring>,
    held: usize,
    held_max: usize,
    horizon: Duration,
}

impl Store {
    /// `held_max` bounds the memory of all rings together, bytes.
    pub fn new(held_max: usize) -> Self {
        Self { rings: IdMap::default(), held: 0, held_max, horizon: KEPT }
    }

    /// Somebody is `rtt` away: what it misses has to wait for two of them.
    pub fn reach(&mut self, rtt: Duration) {
        self.horizon = self.horizon.max(2 * rtt).min(KEPT_MAX);
    }

    /// Keeps a packet; `false` when the memory limit made it overwrite one that was still young, or left it out.
    pub fn put(&mut self, now: Instant, media: Media, packet: &[u8]) -> bool {
        let ring = self.rings.entry((media.track, media.layer)).or_default();
        let mut is_kept = true;
        if ring.bytes.is_empty() {
            if self.held + cost(RING_MIN, SLOTS_MIN) > self.held_max {
                return false;
            }
            self.held += cost(RING_MIN, SLOTS_MIN);
            ring.resize(RING_MIN, SLOTS_MIN);
        }
        while let Some(short) = ring.is_short_of(now, self.horizon, media.sequence, packet.len()) {
            let (bytes, slots) = match short {
                Short::Bytes => (ring.bytes.len() * 2, ring.slots.len()),
                // Numbers far apart share a slot however many there are: only a full table is worth another.
                Short::Slots if ring.order.len() * 4 < ring.slots.len() => break,
                Short::Slots => (ring.bytes.len(), ring.slots.len() * 2),
            };
            let more = cost(bytes, slots) - cost(ring.bytes.len(), ring.slots.len());
            if bytes > RING_MAX || slots > SLOTS_MAX || self.held + more > self.held_max {
                is_kept = false;
                break;
            }
            self.held += more;
            ring.resize(bytes, slots);
        }
        ring.put(now, media, packet);
        is_kept
    }

    pub fn get(&self, track: TrackId, layer: u8, sequence: u64) -> Option<(&Media, &[u8])> {
        self.rings.get(&(track, layer))?.get(sequence)
    }

    /// The newest packet of a layer.
    pub fn newest(&self, track: TrackId, layer: u8) -> Option<u64> {
        self.rings.get(&(track, layer)).map(|r| r.newest)
    }

    /// The track is gone.
    pub fn forget(&mut self, track: TrackId) {
        self.rings.retain(|(of, _), ring| {
            if *of == track && !ring.bytes.is_empty() {
                self.held -= cost(ring.bytes.len(), ring.slots.len());
            }
            *of != track
        });
    }

    /// Memory in use, bytes.
    pub fn held(&self) -> usize {
        self.held
    }
}

fn cost(bytes: usize, slots: usize) -> usize {
    bytes + slots * (size_of::<Option<Slot>>() + size_of::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use crate::wire::rtp::{Codec, ExtensionMap, FrameInfo, Header};
    use crate::wire::sdp::Format;

    fn media(track: u64, sequence: u64) -> Media {
        let header = Header::read(&[0x80, 96, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]).expect("a header");
        Media {
            track: TrackId(track),
            layer: 0,
            format: Format { codec: Codec::Vp8, variant: 0 },
            header,
            payload: 12..12,
            newest: None,
            may_repeat: false,
            sequence,
            sent_ntp: None,
            ntp: None,
            arrived: Instant::default(),
            frame: FrameInfo::default(),
            picture: None,
            frame_number: None,
            vp9: None,
            extensions: ExtensionMap::default(),
            audio_level: None,
        }
    }

    #[test]
    fn what_is_young_is_found_and_memory_comes_back() {
        let mut store = Store::new(64 * 1024 * 1024);
        let mut dice = Rng::new(1);
        let mut packets: Vec<(u64, u64, Vec<u8>)> = Vec::new();
        for n in 0..3_000u64 {
            let at = n * 4;
            let packet = vec![n as u8; 12 + dice.below(1_200) as usize];
            // Every tenth arrives late.
            let sequence = 70_000 + if n % 10 == 0 { n.saturating_sub(5) * 2 + 1 } else { n * 2 };
            assert!(store.put(Instant::from_millis(at), media(1, sequence), &packet));
            packets.push((at, sequence, packet));
            for (then, sequence, packet) in packets.iter().rev().take_while(|(then, ..)| at - then < 1_200).step_by(37) {
                let found = store.get(TrackId(1), 0, *sequence).map(|(m, bytes)| (m.sequence, bytes.to_vec()));
                assert_eq!(found, Some((*sequence, packet.clone())), "{then} ms, looked for at {at} ms");
            }
        }
        assert!(store.get(TrackId(1), 0, packets[0].1).is_none(), "what is old is overwritten");
        assert!(store.get(TrackId(1), 1, packets[2_999].1).is_none(), "another layer");
        let for_a_second = 1_200 / 4 * 1_212;
        assert!(store.held() < 4 * for_a_second, "{} bytes", store.held());
        store.forget(TrackId(1));
        assert_eq!(store.held(), 0);
    }

    #[test]
    fn the_limit_holds_and_is_told() {
        let mut store = Store::new(100 * 1024);
        let mut refused = 0;
        for n in 0..2_000u64 {
            for track in 0..8 {
                refused += u32::from(!store.put(Instant::from_millis(n), media(track, n), &[7; 1_000]));
                assert!(store.held() <= 100 * 1024);
            }
        }
        assert!(refused > 0);
        assert!(store.get(TrackId(0), 0, 1_999).is_some(), "the newest is there all the same");
    }
}
