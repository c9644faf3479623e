//! One incoming RTP stream: what arrived, what is missing, when the sender said it was (RFC 3550 §6.4, A.3, A.8).
//! And [`Arrivals`]: all packets of a transport in the order of its transport-wide numbers, for feedback to the sender.

use crate::base::time::{Duration, Instant};
use crate::wire::rtcp::{ReportBlock, SenderInfo};
use crate::wire::twcc;
use std::collections::VecDeque;

/// Statistics of one SSRC.
pub struct RtpIn {
    ssrc: u32,
    clock_rate: u32,
    first: u64,
    highest: u64,
    received: u64,
    expected_before: u64,
    received_before: u64,
    jitter: f64,
    transit: Option<i64>,
    sender_report: Option<(SenderInfo, Instant)>,
    last_arrival: Instant,
}

/// Extends 16 bits to 64 by what came before (RFC 3550 A.1).
pub fn unwrap_sequence(newest: u64, sequence: u16) -> u64 {
    let step = sequence.wrapping_sub(newest as u16) as i16;
    newest.saturating_add_signed(i64::from(step))
}

impl RtpIn {
    pub fn new(ssrc: u32, clock_rate: u32, first_sequence: u16, now: Instant) -> Self {
        // One turn of the sequence space ahead of zero, so that reordering around the start never goes below it.
        let first = 0x1_0000 + u64::from(first_sequence);
        Self {
            ssrc,
            clock_rate,
            first,
            highest: first,
            received: 0,
            expected_before: 0,
            received_before: 0,
            jitter: 0.0,
            transit: None,
            sender_report: None,
            last_arrival: now,
        }
    }

    /// Takes note of a packet; its extended sequence number.
    pub fn arrived(&mut self, now: Instant, sequence: u16, timestamp: u32) -> u64 {
        let extended = unwrap_sequence(self.highest, sequence);
        self.highest = self.highest.max(extended);
        self.first = self.first.min(extended);
        self.received += 1;
        self.last_arrival = now;
        let arrival = (u128::from(now.as_micros()) * u128::from(self.clock_rate) / 1_000_000) as u32;
        let transit = i64::from(arrival.wrapping_sub(timestamp) as i32);
        if let Some(before) = self.transit.replace(transit) {
            let d = (transit as i32).wrapping_sub(before as i32).unsigned_abs();
            self.jitter += (f64::from(d) - self.jitter) / 16.0;
        }
        extended
    }

    pub fn last_arrival(&self) -> Instant {
        self.last_arrival
    }

    pub fn sender_report(&mut self, now: Instant, info: SenderInfo) {
        self.sender_report = Some((info, now));
    }

    /// The sender's clock at an RTP timestamp, NTP format; `None` before its first report.
    pub fn ntp_at(&self, timestamp: u32) -> Option<u64> {
        let (info, _) = self.sender_report?;
        let ticks = i64::from(timestamp.wrapping_sub(info.rtp) as i32);
        let ntp = (i128::from(ticks) << 32) / i128::from(self.clock_rate);
        Some(info.ntp.wrapping_add(ntp as u64))
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
        let mut stream = RtpIn::new(1, 90_000, 65_534, Instant::from_millis(0));
        for (i, sequence) in [65_534u16, 65_535, 1, 2, 0, 5].into_iter().enumerate() {
            stream.arrived(Instant::from_millis(i as u64 * 10), sequence, i as u32 * 900);
        }
        let report = stream.report(Instant::from_millis(100));
        assert_eq!((report.cumulative_lost, report.fraction_lost, report.highest_sequence), (2, 64, 0x1_0005));
        assert_eq!(report.jitter, 0);
        assert_eq!(stream.report(Instant::from_millis(200)).fraction_lost, 0, "counted once");
    }

    #[test]
    fn a_sender_report_ties_timestamps_to_a_clock() {
        let mut stream = RtpIn::new(1, 90_000, 0, Instant::from_millis(0));
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
