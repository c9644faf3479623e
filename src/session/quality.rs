//! What a transport was like lately: the figures that a participant's connection quality is judged by.

use crate::base::time::{Duration, Instant};
use crate::wire::rtcp::ReportBlock;

/// How often a sample is taken.
const INTERVAL: Duration = Duration::from_secs(5);

/// The worst of the streams of a transport, over some seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Share of packets lost on their way to us, and on their way to the client, 0 to 1.
    pub lost_up: f32,
    pub lost_down: f32,
    pub rtt: Duration,
    pub jitter: Duration,
}

/// Gathers reports until a sample is due.
#[derive(Default)]
pub(super) struct Meter {
    next: Sample,
    reports: (u32, u32),
    due: Option<Instant>,
}

impl Meter {
    /// What we report about a stream of the client.
    pub(super) fn up(&mut self, block: &ReportBlock, clock_rate: u32) {
        self.reports.0 += 1;
        self.next.lost_up += f32::from(block.fraction_lost) / 256.0;
        self.jitter(block, clock_rate);
    }

    /// What the client reports about a stream of ours.
    pub(super) fn down(&mut self, block: &ReportBlock, clock_rate: u32) {
        self.reports.1 += 1;
        self.next.lost_down += f32::from(block.fraction_lost) / 256.0;
        self.jitter(block, clock_rate);
    }

    fn jitter(&mut self, block: &ReportBlock, clock_rate: u32) {
        let jitter = Duration::from_micros(u64::from(block.jitter) * 1_000_000 / u64::from(clock_rate.max(1)));
        self.next.jitter = self.next.jitter.max(jitter);
    }

    pub(super) fn take(&mut self, now: Instant, rtt: Duration) -> Option<Sample> {
        let due = *self.due.get_or_insert(now + INTERVAL);
        if now < due {
            return None;
        }
        self.due = Some(now + INTERVAL);
        let (up, down) = std::mem::take(&mut self.reports);
        let sample = std::mem::take(&mut self.next);
        let mean = |sum: f32, of: u32| if of == 0 { 0.0 } else { sum / of as f32 };
        Some(Sample { lost_up: mean(sample.lost_up, up), lost_down: mean(sample.lost_down, down), rtt, ..sample })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_mean_of_the_losses_and_the_worst_jitter() {
        let block = |fraction_lost: u8, jitter: u32| ReportBlock {
            ssrc: 1,
            fraction_lost,
            cumulative_lost: 0,
            highest_sequence: 0,
            jitter,
            last_sr: 0,
            delay_since_last_sr: 0,
        };
        let (mut meter, at) = (Meter::default(), Instant::from_millis);
        assert_eq!(meter.take(at(0), Duration::ZERO), None);
        meter.up(&block(64, 480), 48_000);
        meter.up(&block(0, 90), 90_000);
        meter.down(&block(128, 0), 90_000);
        assert_eq!(meter.take(at(4_999), Duration::ZERO), None);
        let rtt = Duration::from_millis(40);
        let want = Sample { lost_up: 0.125, lost_down: 0.5, rtt, jitter: Duration::from_millis(10) };
        assert_eq!(meter.take(at(5_000), rtt), Some(want));
        assert_eq!(meter.take(at(10_000), rtt), Some(Sample { rtt, ..Sample::default() }), "each is counted once");
    }
}
