//! One incoming RTP stream: what arrived, what is missing, when the sender said it was (RFC 3550 §6.4, A.3, A.8).
//!
//! Missing packets are asked for (RFC 4585 §6.2.1) after a short wait for reordered ones, then at round trips that grow,
//! until they come, are too old, or a newer key frame makes them useless; and only while somebody watches the stream.
//! [`Arrivals`]: all packets of a transport in the order of its transport-wide numbers, for feedback to the sender.
//! [`SenderClock`]: what the sender's wall clock shows, in ours.

use crate::base::time::{Duration, Instant};
use crate::wire::rtcp::{ReportBlock, SenderInfo};
use crate::wire::twcc;
use std::collections::VecDeque;

/// How long a gap may close by itself before it is asked for.
const REORDER_GUARD: Duration = Duration::from_millis(10);
/// First and longest pause between two requests for one packet; in between 1.25 round trips, a quarter more each time.
const NACK_PAUSE_MIN: Duration = Duration::from_millis(20);
const NACK_PAUSE_MAX: Duration = Duration::from_millis(400);
const NACK_TRIES_MAX: u8 = 10;
/// A packet that is later than this is of no use.
const NACK_AGE_MAX: Duration = Duration::from_secs(1);
/// More missing packets than this are not repaired one by one: a key frame is cheaper.
const MISSING_MAX: usize = 500;
/// Packets behind the newest of which is known whether they came.
const SEEN: u64 = 1024;

/// What an arrival is to its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// New, with its extended sequence number.
    New(u64),
    /// It came before: a retransmission of what was only late, or a probe made of old packets.
    Duplicate,
    /// So old that nobody can tell.
    TooOld,
}

struct Missing {
    sequence: u64,
    since: Instant,
    due: Instant,
    tries: u8,
}

/// Statistics of one SSRC.
pub struct RtpIn {
    ssrc: u32,
    clock_rate: u32,
    first: u64,
    highest: u64,
    received: u64,
    repaired: u64,
    expected_before: u64,
    received_before: u64,
    jitter: f64,
    transit: Option<i64>,
    sender_report: Option<(SenderInfo, Instant)>,
    seen: [u64; SEEN as usize / 64],
    is_watched: bool,
    /// In ascending order.
    missing: VecDeque<Missing>,
    /// No later than when the first of them should be asked for.
    due: Option<Instant>,
    has_given_up: bool,
    timestamp: u32,
    /// The newest number when the first packet of the newest frame came: what is missing up to here is of older frames.
    before_frame: u64,
}

/// Extends 16 bits to 64 by what came before (RFC 3550 A.1).
pub fn unwrap_sequence(newest: u64, sequence: u16) -> u64 {
    let step = sequence.wrapping_sub(newest as u16) as i16;
    newest.saturating_add_signed(i64::from(step))
}

impl RtpIn {
    /// `first_index` is the SRTP index of its first packet: a source that comes back never gets its old numbers again.
    pub fn new(ssrc: u32, clock_rate: u32, first_index: u64) -> Self {
        // One turn of the sequence space ahead of zero, so that reordering around the start never goes below it.
        let first = 0x1_0000 + first_index;
        Self {
            ssrc,
            clock_rate,
            first,
            highest: first,
            received: 0,
            repaired: 0,
            expected_before: 0,
            received_before: 0,
            jitter: 0.0,
            transit: None,
            sender_report: None,
            seen: [0; SEEN as usize / 64],
            is_watched: false,
            missing: VecDeque::new(),
            due: None,
            has_given_up: false,
            timestamp: 0,
            before_frame: first - 1,
        }
    }

    /// Takes note of a packet. `is_repaired`: it came as a retransmission, and says nothing about jitter or loss.
    pub fn arrived(&mut self, now: Instant, sequence: u16, timestamp: u32, is_repaired: bool) -> Arrival {
        let extended = unwrap_sequence(self.highest, sequence);
        if extended + SEEN <= self.highest {
            return Arrival::TooOld;
        }
        if extended <= self.highest && self.is_seen(extended) {
            return Arrival::Duplicate;
        }
        if extended > self.highest {
            if timestamp != self.timestamp {
                (self.timestamp, self.before_frame) = (timestamp, self.highest);
            }
            self.skip_to(now, extended);
        } else if let Ok(at) = self.missing.binary_search_by_key(&extended, |m| m.sequence) {
            self.missing.remove(at);
        }
        let (word, bit) = place(extended);
        self.seen[word] |= bit;
        self.first = self.first.min(extended);
        if is_repaired {
            self.repaired += 1;
            return Arrival::New(extended);
        }
        self.received += 1;
        let arrival = (u128::from(now.as_micros()) * u128::from(self.clock_rate) / 1_000_000) as u32;
        let transit = i64::from(arrival.wrapping_sub(timestamp) as i32);
        if let Some(before) = self.transit.replace(transit) {
            let d = (transit as i32).wrapping_sub(before as i32).unsigned_abs();
            self.jitter += (f64::from(d) - self.jitter) / 16.0;
        }
        Arrival::New(extended)
    }

    /// Whether this number lies behind others and has not come.
    pub fn lacks(&self, sequence: u16) -> bool {
        let extended = unwrap_sequence(self.highest, sequence);
        (self.first + 1..self.highest).contains(&extended) && extended + SEEN > self.highest && !self.is_seen(extended)
    }

    fn is_seen(&self, sequence: u64) -> bool {
        let (word, bit) = place(sequence);
        self.seen[word] & bit != 0
    }

    /// A new highest number: what lies between it and the last is missing.
    fn skip_to(&mut self, now: Instant, sequence: u64) {
        let skipped = self.highest + 1..sequence;
        if sequence - self.highest >= SEEN {
            self.seen.fill(0);
        } else {
            for missing in skipped.clone() {
                let (word, bit) = place(missing);
                self.seen[word] &= !bit;
            }
            let (word, bit) = place(sequence);
            self.seen[word] &= !bit;
        }
        self.highest = sequence;
        if !self.is_watched {
            return;
        }
        if self.missing.len() as u64 + (skipped.end - skipped.start) > MISSING_MAX as u64 {
            self.missing.clear();
            self.has_given_up = true;
            return;
        }
        if !skipped.is_empty() {
            let due = now + REORDER_GUARD;
            self.due = Some(self.due.map_or(due, |at| at.min(due)));
            self.missing.extend(skipped.map(|sequence| Missing { sequence, since: now, due, tries: 0 }));
        }
    }

    /// Whether somebody hears or awaits this stream: what is missing from here on is repaired only for those who do. What
    /// they missed before they turned away leaves a gap that they still wait for.
    pub fn set_watched(&mut self, is_watched: bool) {
        self.is_watched = is_watched;
    }

    /// The sender has ended it: nothing more comes.
    pub fn end(&mut self) {
        self.is_watched = false;
        self.missing.clear();
    }

    /// `sequence` begins a key frame: what is missing of older frames is of no use any more. What lies between them and this
    /// packet may be the key frame's own head.
    pub fn key_frame(&mut self, sequence: u64) {
        while self.missing.front().is_some_and(|m| m.sequence < sequence.min(self.before_frame)) {
            self.missing.pop_front();
        }
    }

    /// The newest number.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// Appends the numbers that are to be asked for now. `true` when a key frame should be asked for instead: too much is
    /// missing, or what is missing did not come.
    pub fn nacks(&mut self, now: Instant, rtt: Duration, out: &mut Vec<u16>) -> bool {
        let before = self.missing.len();
        self.missing.retain(|m| m.tries < NACK_TRIES_MAX && now.since(m.since) < NACK_AGE_MAX);
        let has_given_up = std::mem::take(&mut self.has_given_up) || self.missing.len() < before;
        if self.due.is_none_or(|due| due > now) {
            return has_given_up;
        }
        for missing in self.missing.iter_mut().filter(|m| m.due <= now) {
            let pause = (rtt * 5 / 4).mul_f64(1.25f64.powi(i32::from(missing.tries))).clamp(NACK_PAUSE_MIN, NACK_PAUSE_MAX);
            missing.tries += 1;
            missing.due = now + pause;
            out.push(missing.sequence as u16);
        }
        self.due = self.missing.iter().map(|m| m.due).min();
        has_given_up
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.due.filter(|_| !self.missing.is_empty())
    }

    pub fn sender_report(&mut self, now: Instant, info: SenderInfo) {
        self.sender_report = Some((info, now));
    }

    /// The sender's own clock at an RTP timestamp, NTP format; `None` before its first report.
    pub fn ntp_at(&self, timestamp: u32) -> Option<u64> {
        let (info, _) = self.sender_report?;
        let ticks = i64::from(timestamp.wrapping_sub(info.rtp) as i32);
        let ntp = (i128::from(ticks) << 32) / i128::from(self.clock_rate);
        Some(info.ntp.wrapping_add(ntp as u64))
    }

    pub fn clock_rate(&self) -> u32 {
        self.clock_rate
    }

    /// The report block for this source; loss is counted anew from here.
    pub fn report(&mut self, now: Instant) -> ReportBlock {
        let expected = self.highest - self.first + 1;
        let expected_now = expected - self.expected_before;
        let received_now = self.received - self.received_before;
        let lost_now = expected_now.saturating_sub(received_now);
        let fraction_lost = (lost_now * 256).checked_div(expected_now).unwrap_or(0).min(255) as u8;
        self.expected_before = expected;
        self.received_before = self.received;
        let lost = (expected as i64 - self.received as i64).clamp(-0x80_0000, 0x7F_FFFF) as i32;
        let (last_sr, delay) = match self.sender_report {
            Some((info, at)) => ((info.ntp >> 16) as u32, (now.since(at).as_micros() as u64 * 65_536 / 1_000_000) as u32),
            None => (0, 0),
        };
        ReportBlock {
            ssrc: self.ssrc,
            fraction_lost,
            cumulative_lost: lost,
            highest_sequence: (self.highest - 0x1_0000) as u32,
            jitter: self.jitter as u32,
            last_sr,
            delay_since_last_sr: delay,
        }
    }
}

fn place(sequence: u64) -> (usize, u64) {
    ((sequence % SEEN / 64) as usize, 1 << (sequence % 64))
}

/// How far the clock of a publisher is from ours: the least delay between its stamps and our reading over some time. One
/// for all its tracks, so that they stay in sync; all publishers end up on one clock.
#[derive(Default)]
pub struct SenderClock {
    /// Ours minus theirs, NTP units, newest last.
    offsets: VecDeque<i64>,
    least: Option<i64>,
}

/// Reports that the least delay is taken from: some ten seconds of three streams.
const OFFSETS_MAX: usize = 32;

impl SenderClock {
    pub fn report(&mut self, ours: u64, theirs: u64) {
        if self.offsets.len() == OFFSETS_MAX {
            self.offsets.pop_front();
        }
        self.offsets.push_back(ours.wrapping_sub(theirs) as i64);
        self.least = self.offsets.iter().min().copied();
    }

    /// A stamp of theirs on our clock.
    pub fn to_ours(&self, theirs: u64) -> Option<u64> {
        Some(theirs.wrapping_add(self.least? as u64))
    }
}

/// How often feedback leaves while packets come.
pub const FEEDBACK_INTERVAL: Duration = Duration::from_millis(50);
/// Packets remembered between two feedbacks.
const ARRIVALS_MAX: usize = 2 * twcc::COVERED_MAX;

/// Arrival times by transport-wide sequence number.
#[derive(Default)]
pub struct Arrivals {
    base: Option<u64>,
    times_us: VecDeque<Option<u64>>,
    sent: u8,
    due: Option<Instant>,
}

impl Arrivals {
    pub fn arrived(&mut self, now: Instant, sequence: u16) {
        let newest = self.base.map_or(0x1_0000 + u64::from(sequence), |b| b + self.times_us.len() as u64);
        let extended = unwrap_sequence(newest, sequence);
        let base = *self.base.get_or_insert(extended);
        // Reported already, or so far ahead that the sender has started anew.
        let Some(at) = extended.checked_sub(base).map(|at| at as usize) else { return };
        if at >= ARRIVALS_MAX {
            self.base = Some(extended);
            self.times_us.clear();
            self.times_us.push_back(Some(now.as_micros()));
        } else {
            if at >= self.times_us.len() {
                self.times_us.resize(at + 1, None);
            }
            self.times_us[at] = Some(now.as_micros());
        }
        self.due.get_or_insert(now + FEEDBACK_INTERVAL);
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Appends feedback packets for everything that arrived, when it is due.
    pub fn feedback(&mut self, now: Instant, from: u32, media: u32, out: &mut Vec<u8>) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        while let (Some(base), Some(_)) = (self.base, self.times_us.iter().flatten().next()) {
            let times = self.times_us.make_contiguous();
            let covered = twcc::write_feedback(out, from, media, base as u16, self.sent, times);
            if covered == 0 {
                // A whole packet's worth of losses: nothing to say about them but that they are past.
                let lost = self.times_us.iter().take_while(|t| t.is_none()).count();
                self.times_us.drain(..lost);
                self.base = Some(base + lost as u64);
                continue;
            }
            self.sent = self.sent.wrapping_add(1);
            self.times_us.drain(..covered);
            self.base = Some(base + covered as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_counted_over_the_wrap() {
        let mut stream = RtpIn::new(1, 90_000, 65_534);
        for (i, sequence) in [65_534u16, 65_535, 1, 2, 0, 5].into_iter().enumerate() {
            stream.arrived(Instant::from_millis(i as u64 * 10), sequence, i as u32 * 900, false);
        }
        let report = stream.report(Instant::from_millis(100));
        assert_eq!((report.cumulative_lost, report.fraction_lost, report.highest_sequence), (2, 64, 0x1_0005));
        assert_eq!(report.jitter, 0);
        assert_eq!(stream.report(Instant::from_millis(200)).fraction_lost, 0, "counted once");
    }

    #[test]
    fn what_is_missing_is_asked_for_until_it_is_of_no_use() {
        let mut stream = RtpIn::new(1, 90_000, 10);
        let ask = |stream: &mut RtpIn, ms: u64| {
            let mut out = Vec::new();
            let gives_up = stream.nacks(Instant::from_millis(ms), Duration::from_millis(100), &mut out);
            (out, gives_up)
        };
        let arrive = |stream: &mut RtpIn, ms, sequence| stream.arrived(Instant::from_millis(ms), sequence, 0, false);
        arrive(&mut stream, 0, 10);
        arrive(&mut stream, 0, 12);
        assert_eq!(ask(&mut stream, 50), (vec![], false), "nobody watches");
        stream.set_watched(true);
        arrive(&mut stream, 100, 16);
        assert_eq!(ask(&mut stream, 105), (vec![], false), "it may be late only");
        assert_eq!(arrive(&mut stream, 106, 14), Arrival::New(0x1_000E));
        assert_eq!(arrive(&mut stream, 106, 14), Arrival::Duplicate);
        assert_eq!(stream.deadline(), Some(Instant::from_millis(110)));
        assert_eq!(ask(&mut stream, 110), (vec![13, 15], false));
        assert_eq!(ask(&mut stream, 234), (vec![], false), "not before the answer can be there");
        assert_eq!(ask(&mut stream, 235), (vec![13, 15], false));
        assert_eq!(stream.arrived(Instant::from_millis(240), 13, 0, true), Arrival::New(0x1_000D));
        assert_eq!(ask(&mut stream, 400), (vec![15], false));
        assert_eq!(ask(&mut stream, 1_200), (vec![], true), "a second is too long");
        assert_eq!(ask(&mut stream, 1_200), (vec![], false), "said once");
        stream.arrived(Instant::from_millis(1_300), 18, 3_000, false);
        stream.arrived(Instant::from_millis(1_300), 20, 6_000, false);
        stream.arrived(Instant::from_millis(1_300), 22, 6_000, false);
        stream.key_frame(0x1_0016);
        assert_eq!(ask(&mut stream, 1_310), (vec![19, 21], false), "a key frame makes older ones useless, but not its own head");
        arrive(&mut stream, 1_400, 2_000);
        assert_eq!(ask(&mut stream, 1_400), (vec![], true), "too many");
        assert_eq!(arrive(&mut stream, 1_400, 900), Arrival::TooOld);
        assert_eq!(arrive(&mut stream, 1_400, 1_990), Arrival::New(0x1_0000 + 1_990));
    }

    #[test]
    fn a_publisher_has_one_clock() {
        let mut clock = SenderClock::default();
        assert_eq!(clock.to_ours(5), None);
        clock.report(1_000, 400);
        clock.report(2_050, 1_400);
        assert_eq!(clock.to_ours(2_000), Some(2_600), "the least delay counts");
    }

    #[test]
    fn a_sender_report_ties_timestamps_to_a_clock() {
        let mut stream = RtpIn::new(1, 90_000, 0);
        assert_eq!(stream.ntp_at(5), None);
        let info = SenderInfo { ssrc: 1, ntp: 10 << 32, rtp: 1_000, packets: 0, octets: 0 };
        stream.sender_report(Instant::from_millis(0), info);
        assert_eq!(stream.ntp_at(1_000 + 45_000), Some((10 << 32) + (1 << 31)));
        assert_eq!(stream.ntp_at(1_000u32.wrapping_sub(90_000)), Some(9 << 32));
        let report = stream.report(Instant::from_millis(500));
        assert_eq!((report.last_sr, report.delay_since_last_sr), (10 << 16, 32_768));
    }

    #[test]
    fn feedback_covers_each_number_once() {
        let mut arrivals = Arrivals::default();
        let mut out = Vec::new();
        for (ms, sequence) in [(0, 65_534u16), (1, 65_535), (2, 1)] {
            arrivals.arrived(Instant::from_millis(ms), sequence);
        }
        arrivals.feedback(Instant::from_millis(10), 1, 2, &mut out);
        assert!(out.is_empty(), "not due yet");
        arrivals.feedback(Instant::from_millis(50), 1, 2, &mut out);
        assert_eq!((u16::from_be_bytes([out[12], out[13]]), u16::from_be_bytes([out[14], out[15]])), (65_534, 4));
        out.clear();
        arrivals.arrived(Instant::from_millis(60), 0);
        arrivals.feedback(Instant::from_millis(200), 1, 2, &mut out);
        assert!(out.is_empty(), "0 was reported lost and stays so");
        assert_eq!(arrivals.deadline(), None);
    }

    #[test]
    fn a_jump_of_the_numbers_starts_anew() {
        let mut arrivals = Arrivals::default();
        let mut out = Vec::new();
        for (ms, sequence) in [(0, 0u16), (1, 20_000), (2, 20_001)] {
            arrivals.arrived(Instant::from_millis(ms), sequence);
        }
        arrivals.feedback(Instant::from_millis(60), 1, 2, &mut out);
        assert_eq!((u16::from_be_bytes([out[12], out[13]]), u16::from_be_bytes([out[14], out[15]])), (20_000, 2));
    }
}
