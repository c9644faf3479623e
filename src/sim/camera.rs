//! A simulated camera: VP8 frames in three simulcast layers with three temporal ones, whose content says what they are; and
//! the eyes that look at what a hearer got of it.
//!
//! ```text
//! | VP8 descriptor: picture id 15, TL0PICIDX, TID, Y | frame tag | layer(8) | frame(32) | part(8) | parts(8) | when(64, us) | filling
//! ```

use crate::wire::vp8::Descriptor;
use std::collections::BTreeMap;

pub const LAYERS: usize = 3;
/// Packets of a frame in each layer; of a key frame three times as many.
const PARTS: [u8; LAYERS] = [1, 2, 4];
/// Temporal layers of four frames.
const PATTERN: [u8; 4] = [0, 2, 1, 2];
/// Frames that a switch may take to catch up: half a second.
const CATCH_UP_FRAMES: u32 = 16;
/// RTP ticks between two frames.
const TICKS: u32 = 3_000;

#[derive(Default)]
struct Layer {
    sequence: u64,
    frame: u32,
    tl0: u8,
    wants_key: bool,
}

/// One packet to send.
pub struct Shot {
    pub layer: usize,
    pub sequence: u64,
    pub time: u32,
    pub marker: bool,
    pub payload: Vec<u8>,
}

pub struct Camera {
    layers: [Layer; LAYERS],
}

impl Default for Camera {
    fn default() -> Self {
        let layer = |n: u64| Layer { sequence: 2_000 + 500 * n, frame: 0, tl0: 40 * n as u8, wants_key: true };
        Self { layers: [layer(0), layer(1), layer(2)] }
    }
}

impl Camera {
    pub fn wants_key(&mut self, layer: usize) {
        self.layers[layer].wants_key = true;
    }

    /// The next frame of every layer, taken at `us`.
    pub fn shoot(&mut self, us: u64) -> Vec<Shot> {
        let mut shots = Vec::new();
        for (layer, state) in self.layers.iter_mut().enumerate() {
            let is_key = std::mem::take(&mut state.wants_key);
            state.frame += 1;
            let temporal = if is_key { 0 } else { PATTERN[state.frame as usize % 4] };
            if temporal == 0 {
                state.tl0 = state.tl0.wrapping_add(1);
            }
            let parts = PARTS[layer] * if is_key { 3 } else { 1 };
            // Each layer's clock and picture ids start somewhere else, as an encoder's do.
            let time = state.frame.wrapping_mul(TICKS).wrapping_add(900_000_000 * layer as u32);
            let picture = (state.frame + 10_000 * layer as u32) as u16 | 0x8000;
            for part in 0..parts {
                state.sequence += 1;
                let start = if part == 0 { 0x90 } else { 0x80 };
                let [high, low] = picture.to_be_bytes();
                // Where the first enhancement frame behind a base frame refers to nothing but that.
                let sync = if temporal > 0 && state.frame % 4 != 3 { 0x20 } else { 0 };
                let mut payload = vec![start, 0xE0, high, low, state.tl0, temporal << 6 | sync, u8::from(!is_key), layer as u8];
                payload.extend(state.frame.to_be_bytes());
                payload.extend([part, parts]);
                payload.extend(us.to_be_bytes());
                payload.resize(300 + 40 * usize::from(part), 0xAA);
                shots.push(Shot { layer, sequence: state.sequence, time, marker: part + 1 == parts, payload });
            }
        }
        shots
    }
}

/// When the frame of a packet was taken, us.
pub fn taken_at(payload: &[u8]) -> Option<u64> {
    let descriptor = Descriptor::read(payload)?;
    Some(u64::from_be_bytes(payload.get(descriptor.len + 8..descriptor.len + 16)?.try_into().ok()?))
}

/// A received packet, as far as the eyes look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    layer: u8,
    frame: u32,
    part: u8,
    parts: u8,
    picture: u16,
    tl0: u8,
    temporal: u8,
    time: u32,
    is_key: bool,
}

/// What a hearer got of one stream, by sequence number; empty packets too.
#[derive(Default)]
pub struct Eyes {
    packets: BTreeMap<u64, Option<Seen>>,
    /// How far from the truth the sender report before it makes each packet's time, us.
    clock_errors: BTreeMap<u64, i64>,
}

/// What the eyes found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    pub packets: usize,
    pub missing: usize,
    pub frames: usize,
    pub switches: usize,
}

impl Eyes {
    pub fn see(&mut self, sequence: u64, time: u32, payload: &[u8]) {
        let seen = Descriptor::read(payload).filter(|d| payload.len() > d.len + 7).map(|d| {
            let body = &payload[d.len..];
            let frame = u32::from_be_bytes([body[2], body[3], body[4], body[5]]);
            let picture = d.picture_id.map_or(0, |id| id.value);
            let (tl0, temporal) = (d.tl0_pic_idx.unwrap_or(0), d.temporal_id);
            Seen { layer: body[1], frame, part: body[6], parts: body[7], picture, tl0, temporal, time, is_key: body[0] & 1 == 0 }
        });
        let before = self.packets.insert(sequence, seen.clone());
        assert!(before.is_none_or(|b| b == seen), "number {sequence} came with two contents");
    }

    /// Looks at everything up to `until`: whatever went in, what came out is continuous. Panics where it is not.
    pub fn look(&self, who: &str, until: u64) -> Sight {
        let mut sight = Sight::default();
        let Some(first) = self.packets.keys().next() else { return sight };
        let in_time = self.packets.range(..=until);
        sight.packets = in_time.clone().count();
        let last = in_time.clone().next_back().map_or(*first, |(n, _)| *n);
        sight.missing = (last - first + 1) as usize - sight.packets;
        let mut before: Option<(u64, &Seen)> = None;
        for (sequence, seen) in in_time.filter_map(|(n, s)| Some((*n, s.as_ref()?))) {
            // Packets before the first one are nothing that a receiver could know to miss.
            let Some((number, old)) = before.replace((sequence, seen)) else { continue };
            let place = format!("{who}: {number} {old:?} -> {sequence} {seen:?}");
            let is_next = sequence == number + 1;
            let same_frame = (old.layer, old.frame) == (seen.layer, seen.frame);
            assert_eq!(same_frame, old.picture == seen.picture, "one picture id a frame: {place}");
            assert_eq!(same_frame, old.time == seen.time, "one timestamp a frame: {place}");
            if same_frame {
                assert!(!is_next || seen.part == old.part + 1, "the parts of a frame in order: {place}");
                continue;
            }
            sight.frames += 1;
            let ahead = seen.picture.wrapping_sub(old.picture) & 0x7FFF;
            assert!((1..2_000).contains(&ahead), "picture ids grow: {place}");
            assert!((seen.time.wrapping_sub(old.time) as i32) > 0, "time goes on: {place}");
            if is_next {
                assert_eq!(ahead, 1, "no picture id is left out: {place}");
                assert_eq!(seen.part, 0, "a frame begins with its first part: {place}");
                assert!(seen.tl0.wrapping_sub(old.tl0) <= 1, "base layers are counted: {place}");
            }
            if seen.layer != old.layer {
                sight.switches += 1;
                assert!(!is_next || seen.is_key, "another layer starts with a key frame: {place}");
            } else if is_next {
                assert_eq!(old.part + 1, old.parts, "a frame ends with its last part: {place}");
            }
        }
        sight
    }

    pub fn see_clock(&mut self, sequence: u64, error_us: i64) {
        self.clock_errors.insert(sequence, error_us);
    }

    /// Those errors, frame by frame, with whether the frame is right behind a switch: a key frame that came late may be
    /// older than what was shown, and those behind it catch up.
    pub fn clock_errors(&self) -> impl Iterator<Item = (i64, bool)> + '_ {
        let (mut layer, mut frame, mut settled_at) = (None, None, 0);
        self.packets.iter().filter_map(move |(number, seen)| {
            let seen = seen.as_ref()?;
            if layer.replace(seen.layer) != Some(seen.layer) {
                settled_at = seen.frame + CATCH_UP_FRAMES;
            }
            let is_new = frame.replace(seen.frame) != Some(seen.frame);
            let error = self.clock_errors.get(number).copied().filter(|_| is_new)?;
            Some((error, seen.frame < settled_at))
        })
    }

    /// The newest number seen.
    pub fn newest(&self) -> u64 {
        self.packets.keys().next_back().copied().unwrap_or(0)
    }
}
