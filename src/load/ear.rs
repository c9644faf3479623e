//! What a simulated participant receives: whether all of it came, in which order, and how long each packet took; what it
//! reports of that (RFC 3550 §6.4.2), and what it asks for again (RFC 4585 §6.2.1).

use super::camera::stamped;
use super::offer::VP8;
use crate::base::time::{Duration, Instant};
use crate::wire::rtcp::{self, ReportBlock};
use crate::wire::rtp;
use crate::wire::vp8::Descriptor;
use std::collections::{BTreeMap, HashMap};

/// Times by size: each bucket ends a hundredth above the one before, from 5 us on.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    buckets: Vec<u64>,
    pub count: u64,
    longest: Duration,
}

const FIRST_NS: f64 = 5_000.0;
const STEP: f64 = 1.01;

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

const REPORT_EVERY: Duration = Duration::from_secs(1);
/// A packet that others have overtaken is asked for at once, and so often again.
const ASK_EVERY: Duration = Duration::from_millis(100);
const ASKS_MAX: u8 = 5;
/// Longest compound, bytes, and numbers of one NACK: what passes on every path.
const COMPOUND_MAX: usize = 1_100;
const NACK_MAX: usize = 128;
/// Packets of a stream that are waited for.
const MISSING_MAX: usize = 256;

/// A packet that has not come.
struct Missing {
    due: Instant,
    asks: u8,
}

#[derive(Default)]
struct Stream {
    is_video: bool,
    first: u64,
    highest: u64,
    received: u64,
    /// Pictures can be decoded: a key frame has come.
    has_started: bool,
    frames: u64,
    picture_id: Option<u16>,
    gaps: u64,
    missing: BTreeMap<u64, Missing>,
    repaired: u64,
    /// Transit of the packet before, and its mean change (RFC 3550 §6.4.1), us.
    transit_us: Option<i64>,
    jitter_us: f64,
    /// Packets expected and received when it was reported last.
    reported: (u64, u64),
    /// Middle of the NTP time of the last sender report, and when it came.
    sender_report: Option<(u32, Instant)>,
}

/// All streams of one participant.
#[derive(Default)]
pub struct Ear {
    streams: HashMap<u32, Stream>,
    pub bytes: u64,
    report_due: Instant,
    ask_due: Option<Instant>,
}

impl Ear {
    /// A packet came; how long it took, if it tells.
    pub fn heard(&mut self, now: Instant, header: &rtp::Header, payload: &[u8], index: u64) -> Option<Duration> {
        let stream = self.streams.entry(header.ssrc).or_insert_with(|| Stream {
            is_video: header.payload_type == VP8,
            first: index,
            highest: index,
            ..Stream::default()
        });
        if stream.note(now, index) {
            self.ask_due = Some(now);
        }
        self.bytes += payload.len() as u64;
        if stream.is_video {
            stream.look(payload);
        }
        let took = now.since(stamped(payload)?);
        stream.jitter(took);
        Some(took)
    }

    /// A sender report came.
    pub fn told(&mut self, now: Instant, compound: &[u8]) {
        for packet in rtcp::packets(compound).flatten() {
            if let rtcp::Packet::SenderReport(info, _) = packet
                && let Some(stream) = self.streams.get_mut(&info.ssrc)
            {
                stream.sender_report = Some(((info.ntp >> 16) as u32, now));
            }
        }
    }

    pub fn deadline(&self) -> Instant {
        self.ask_due.map_or(self.report_due, |at| at.min(self.report_due))
    }

    /// Reports and requests that are due, as compounds from the source `own`: each begins with a report, be it empty (RFC 3550 §6.1).
    pub fn wake(&mut self, now: Instant, own: u32) -> Vec<Vec<u8>> {
        if now < self.deadline() {
            return Vec::new();
        }
        let mut blocks = Vec::new();
        if now >= self.report_due {
            self.report_due = now + REPORT_EVERY;
            blocks.extend(self.streams.iter_mut().map(|(ssrc, stream)| stream.report(now, *ssrc)));
        }
        let mut compounds: Vec<Vec<u8>> = Vec::new();
        let begin = |blocks: &[ReportBlock]| {
            let mut compound = Vec::with_capacity(COMPOUND_MAX);
            rtcp::write_receiver_report(&mut compound, own, blocks);
            compound
        };
        compounds.extend(blocks.chunks(31).map(begin));
        self.ask_due = None;
        for (ssrc, stream) in &mut self.streams {
            for lost in stream.ask(now).chunks(NACK_MAX) {
                if compounds.last().is_none_or(|c| c.len() + 12 + 4 * lost.len() > COMPOUND_MAX) {
                    compounds.push(begin(&[]));
                }
                if let Some(compound) = compounds.last_mut() {
                    rtcp::write_nack(compound, own, *ssrc, lost);
                }
            }
            let next = stream.missing.values().map(|m| m.due).min();
            self.ask_due = [self.ask_due, next].into_iter().flatten().min();
        }
        compounds
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
            sums.repaired += stream.repaired;
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
    /// Packets that came after they had been asked for.
    pub repaired: u64,
}

impl Sums {
    pub fn plus(self, other: Self) -> Self {
        Self {
            streams: self.streams + other.streams,
            received: self.received + other.received,
            lost: self.lost + other.lost,
            frames: self.frames + other.frames,
            broken: self.broken + other.broken,
            repaired: self.repaired + other.repaired,
        }
    }
}

impl Stream {
    /// Whether others have been overtaken that are worth asking for: sound is not repeated.
    fn note(&mut self, now: Instant, index: u64) -> bool {
        self.received += 1;
        self.first = self.first.min(index);
        if index > self.highest {
            let gap = (self.highest + 1).max(index.saturating_sub(MISSING_MAX as u64))..index;
            let is_asked_for = self.is_video && !gap.is_empty();
            if is_asked_for {
                self.missing.extend(gap.map(|missing| (missing, Missing { due: now, asks: 0 })));
            }
            self.highest = index;
            return is_asked_for;
        } else if let Some(missing) = self.missing.remove(&index) {
            self.repaired += u64::from(missing.asks > 0);
        }
        false
    }

    /// Numbers to be asked for now. What was asked for often enough is not waited for any more.
    fn ask(&mut self, now: Instant) -> Vec<u16> {
        self.missing.retain(|_, m| m.asks < ASKS_MAX || m.due > now);
        while self.missing.len() > MISSING_MAX {
            self.missing.pop_first();
        }
        let due = self.missing.iter_mut().filter(|(_, m)| m.due <= now);
        due.map(|(index, missing)| {
            (missing.due, missing.asks) = (now + ASK_EVERY, missing.asks + 1);
            *index as u16
        })
        .collect()
    }

    fn jitter(&mut self, took: Duration) {
        let transit = took.as_micros() as i64;
        if let Some(before) = self.transit_us.replace(transit) {
            self.jitter_us += ((transit - before).abs() as f64 - self.jitter_us) / 16.0;
        }
    }

    fn report(&mut self, now: Instant, ssrc: u32) -> ReportBlock {
        let expected = self.highest - self.first + 1;
        let lost = expected.saturating_sub(self.received);
        let (expected_before, received_before) = std::mem::replace(&mut self.reported, (expected, self.received));
        let (expected_since, received_since) = (expected - expected_before, self.received - received_before);
        let clock_rate = if self.is_video { 90_000.0 } else { 48_000.0 };
        let (last_sr, came) = self.sender_report.unzip();
        ReportBlock {
            ssrc,
            fraction_lost: (expected_since.saturating_sub(received_since) * 256 / expected_since.max(1)).min(255) as u8,
            cumulative_lost: lost as i32,
            highest_sequence: self.highest as u32,
            jitter: (self.jitter_us * clock_rate / 1e6) as u32,
            last_sr: last_sr.unwrap_or(0),
            delay_since_last_sr: came.map_or(0, |at| (now.since(at).as_micros() * 65_536 / 1_000_000) as u32),
        }
    }

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
    fn what_is_missing_is_asked_for_and_reported() {
        let at = Instant::from_millis;
        let mut ear = Ear::default();
        let header = |sequence: u16| {
            let bytes = [&[0x80, VP8][..], &sequence.to_be_bytes(), &[0; 4], &7u32.to_be_bytes()].concat();
            rtp::Header::read(&bytes).expect("a header")
        };
        let hear = |ear: &mut Ear, ms, index: u64| ear.heard(at(ms), &header(index as u16), b"", index);
        for index in [10, 11, 14] {
            hear(&mut ear, 5_000, index);
        }
        let compounds = ear.wake(at(5_000), 1);
        let told: Vec<_> = rtcp::packets(&compounds[0]).flatten().collect();
        let rtcp::Packet::ReceiverReport(blocks) = told[0] else { panic!("{told:?}") };
        let block = blocks.into_iter().next().expect("a block");
        assert_eq!((block.ssrc, block.cumulative_lost, block.highest_sequence, block.fraction_lost), (7, 2, 14, 102));
        assert!(matches!(told[1], rtcp::Packet::Nack { ssrc: 7, lost } if lost.sequences().eq([12, 13])), "{told:?}");
        hear(&mut ear, 5_020, 12);
        assert!(ear.wake(at(5_050), 1).is_empty());
        let again = ear.wake(at(5_100), 1);
        assert!(rtcp::packets(&again[0]).flatten().any(|p| matches!(p, rtcp::Packet::Nack { lost, .. } if lost.sequences().eq([13]))));
        for ms in (5_100..7_000).step_by(10) {
            ear.wake(at(ms), 1);
        }
        assert_eq!(ear.ask_due, None, "nobody waits for ever");
        let sums = ear.sums();
        assert_eq!((sums.received, sums.lost, sums.repaired), (4, 1, 1));
    }

    #[test]
    fn quantiles_are_near_the_truth() {
        let mut spread = Spread::default();
        for us in 1..=1_000 {
            spread.add(Duration::from_micros(us));
        }
        for (q, us) in [(0.5, 500), (0.99, 990), (1.0, 1_000)] {
            let found = spread.quantile(q).expect("some").as_micros() as u64;
            assert!((us..=us * 101 / 100 + 1).contains(&found), "{q}: {found}");
        }
        assert_eq!(Spread::default().quantile(0.5), None);
    }
}
