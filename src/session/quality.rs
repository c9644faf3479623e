//! What a transport was like lately: the figures that a participant's connection quality is judged by.

use crate::base::time::{Duration, Instant};
use crate::wire::rtcp::ReportBlock;

/// How often a sample is taken.
const INTERVAL: Duration = Duration::from_secs(5);

/// One of a transport's two ways: up to us or down to the client.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Way {
    /// Media, with its headers, bytes.
    pub bytes: u64,
    /// Mean share of packets lost, 0 to 1, of the streams that were reported about; `None` without a report.
    pub lost: Option<f32>,
    /// Packets that whoever receives asked for again.
    pub nacks: u32,
    /// Pictures to start from that it asked for.
    pub key_frames: u32,
}

/// What a transport was like over some seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    pub over: Duration,
    pub up: Way,
    pub down: Way,
    /// `None` until the client has told.
    pub rtt: Option<Duration>,
    /// The worst of all streams.
    pub jitter: Duration,
}

/// Gathers what happens until a sample is due.
#[derive(Default)]
pub(super) struct Meter {
    pub(super) up: Way,
    pub(super) down: Way,
    jitter: Duration,
    lost_up: Mean,
    lost_down: Mean,
    since: Option<Instant>,
}

/// Losses that were reported, and how many.
#[derive(Default)]
struct Mean(f32, u32);

impl Mean {
    fn add(&mut self, block: &ReportBlock) {
        self.0 += f32::from(block.fraction_lost) / 256.0;
        self.1 += 1;
    }

    fn get(self) -> Option<f32> {
        (self.1 > 0).then(|| self.0 / self.1 as f32)
    }
}

impl Meter {
    /// What we report about a stream of the client.
    pub(super) fn report_up(&mut self, block: &ReportBlock, clock_rate: u32) {
        self.lost_up.add(block);
        self.jitter = self.jitter.max(jitter(block, clock_rate));
    }

    /// What the client reports about a stream of ours.
    pub(super) fn report_down(&mut self, block: &ReportBlock, clock_rate: u32) {
        self.lost_down.add(block);
        self.jitter = self.jitter.max(jitter(block, clock_rate));
    }

    /// The sample, when it is due.
    pub(super) fn take(&mut self, now: Instant, rtt: Option<Duration>) -> Option<Sample> {
        let since = *self.since.get_or_insert(now);
        (now.since(since) >= INTERVAL).then(|| self.rest(now, rtt))
    }

    /// What came since the last sample.
    pub(super) fn rest(&mut self, now: Instant, rtt: Option<Duration>) -> Sample {
        let Self { up, down, jitter, lost_up, lost_down, since } = std::mem::take(self);
        self.since = Some(now);
        let (up, down) = (Way { lost: lost_up.get(), ..up }, Way { lost: lost_down.get(), ..down });
        Sample { over: now.since(since.unwrap_or(now)), up, down, rtt, jitter }
    }
}

fn jitter(block: &ReportBlock, clock_rate: u32) -> Duration {
    Duration::from_micros(u64::from(block.jitter) * 1_000_000 / u64::from(clock_rate.max(1)))
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
        assert_eq!(meter.take(at(0), None), None);
        meter.report_up(&block(64, 480), 48_000);
        meter.report_up(&block(0, 90), 90_000);
        meter.report_down(&block(128, 0), 90_000);
        meter.up.bytes += 1_200;
        assert_eq!(meter.take(at(4_999), None), None);
        let (over, rtt) = (Duration::from_secs(5), Some(Duration::from_millis(40)));
        let (up, down) = (Way { bytes: 1_200, lost: Some(0.125), ..Way::default() }, Way { lost: Some(0.5), ..Way::default() });
        let want = Sample { over, up, down, rtt, jitter: Duration::from_millis(10) };
        assert_eq!(meter.take(at(5_000), rtt), Some(want));
        assert_eq!(meter.take(at(10_000), rtt), Some(Sample { over, rtt, ..Sample::default() }), "each is counted once");
        meter.down.nacks += 1;
        let rest = meter.rest(at(12_000), None);
        assert_eq!((rest.over, rest.down.nacks), (Duration::from_secs(2), 1));
    }
}
