//! What a simulated participant receives: whether all of it came, in which order, and how long each packet took.

use super::camera::stamped;
use super::offer::VP8;
use crate::base::time::{Duration, Instant};
use crate::wire::rtp;
use crate::wire::vp8::Descriptor;
use std::collections::HashMap;

/// Times by size: each bucket ends a quarter above the one before, from 10 us on.
#[derive(Clone, Default)]
pub struct Spread {
    buckets: Vec<u64>,
    pub count: u64,
    longest: Duration,
}

const FIRST_NS: f64 = 10_000.0;
const STEP: f64 = 1.25;

impl Spread {
    pub fn add(&mut self, time: Duration) {
        let bucket = (time.as_nanos() as f64 / FIRST_NS).max(1.0).log(STEP) as usize;
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
        self.longest = self.longest.max(time);
    }

    pub fn merge(&mut self, other: &Spread) {
        self.buckets.resize(self.buckets.len().max(other.buckets.len()), 0);
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(ours, theirs)| *ours += theirs);
        self.count += other.count;
        self.longest = self.longest.max(other.longest);
    }

    /// The upper end of the bucket that the quantile lies in.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let rank = (q * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_nanos((FIRST_NS * STEP.powi(at as i32 + 1)) as u64).min(self.longest))
    }
}

#[derive(Default)]
struct Stream {
    first: u64,
    highest: u64,
    received: u64,
    /// Pictures can be decoded: a key frame has come.
    has_started: bool,
    frames: u64,
    picture_id: Option<u16>,
    gaps: u64,
}

/// All streams of one participant.
#[derive(Default)]
pub struct Ear {
    streams: HashMap<u32, Stream>,
    pub bytes: u64,
    pub latency: Spread,
}

impl Ear {
    pub fn heard(&mut self, now: Instant, header: &rtp::Header, payload: &[u8], index: u64) {
        let stream = self.streams.entry(header.ssrc).or_insert_with(|| Stream { first: index, highest: index, ..Stream::default() });
        stream.highest = stream.highest.max(index);
        stream.first = stream.first.min(index);
        stream.received += 1;
        self.bytes += payload.len() as u64;
        if let Some(sent) = stamped(payload) {
            self.latency.add(now.since(sent));
        }
        if header.payload_type == VP8 {
            stream.look(payload);
        }
    }

    /// Streams that have begun, packets that came, and packets that did not.
    pub fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for stream in self.streams.values() {
            sums.streams += 1;
            sums.received += stream.received;
            sums.lost += (stream.highest - stream.first + 1).saturating_sub(stream.received);
            sums.frames += stream.frames;
            sums.broken += stream.gaps;
        }
        sums
    }
}

/// What came of all streams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    pub streams: u64,
    pub received: u64,
    pub lost: u64,
    pub frames: u64,
    /// Pictures whose predecessor did not come.
    pub broken: u64,
}

impl Sums {
    pub fn plus(self, other: Self) -> Self {
        Self {
            streams: self.streams + other.streams,
            received: self.received + other.received,
            lost: self.lost + other.lost,
            frames: self.frames + other.frames,
            broken: self.broken + other.broken,
        }
    }
}

impl Stream {
    fn look(&mut self, payload: &[u8]) {
        let Some(descriptor) = Descriptor::read(payload).filter(|d| d.starts_frame) else { return };
        let is_key = payload.get(descriptor.len).is_some_and(|tag| tag & 1 == 0);
        self.has_started |= is_key;
        if !self.has_started {
            return;
        }
        self.frames += 1;
        let id = descriptor.picture_id.map(|id| id.value);
        let follows = self.picture_id.zip(id).is_none_or(|(before, now)| now == (before + 1) & 0x7FFF);
        self.gaps += u64::from(!follows && !is_key);
        self.picture_id = id;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_the_truth() {
        let mut spread = Spread::default();
        for us in 1..=1_000 {
            spread.add(Duration::from_micros(us));
        }
        for (q, us) in [(0.5, 500), (0.99, 990), (1.0, 1_000)] {
            let found = spread.quantile(q).expect("some").as_micros() as u64;
            assert!((us..=us * 5 / 4 + 1).contains(&found), "{q}: {found}");
        }
        assert_eq!(Spread::default().quantile(0.5), None);
    }
}
