//! How figures of calls are spread: histograms over all participants, none of them by name.

use crate::session::quality::{Sample, Way};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

const JOIN_S: [f64; 9] = [0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0];
const DELAY_S: [f64; 11] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0];
const LOSS: [f64; 8] = [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];
const NACKS: [f64; 8] = [0.2, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];
const KEY_FRAMES: [f64; 5] = [0.2, 0.4, 1.0, 2.0, 5.0];

type ByDirection = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

/// What is observed of every participant.
#[derive(Debug)]
pub struct Distributions {
    join_time: Histogram,
    jitter: Histogram,
    round_trip: Histogram,
    loss: ByDirection,
    nacks: ByDirection,
    key_frames: ByDirection,
}

impl Default for Distributions {
    fn default() -> Self {
        Self {
            join_time: Histogram::new(JOIN_S),
            jitter: Histogram::new(DELAY_S),
            round_trip: Histogram::new(DELAY_S),
            loss: Family::new_with_constructor(|| Histogram::new(LOSS)),
            nacks: Family::new_with_constructor(|| Histogram::new(NACKS)),
            key_frames: Family::new_with_constructor(|| Histogram::new(KEY_FRAMES)),
        }
    }
}

impl Distributions {
    pub(super) fn register(&self, registry: &mut Registry) {
        let text = "from a participant's first offer until its media was connected";
        registry.register("postern_join_time_seconds", text, self.join_time.clone());
        let text = "the worst jitter of a participant's streams (RFC 3550), every five seconds";
        registry.register("postern_participant_jitter_seconds", text, self.jitter.clone());
        let text = "round trip to a participant, every five seconds";
        registry.register("postern_participant_round_trip_seconds", text, self.round_trip.clone());
        let text = "share of a participant's packets that were lost, up from the client and down to it, every five seconds";
        registry.register("postern_participant_loss_ratio", text, self.loss.clone());
        let text = "packets that were asked for again, of a participant (up) and by it (down), every five seconds";
        registry.register("postern_participant_nacks_per_second", text, self.nacks.clone());
        let text = "pictures to start from that were asked for, of a participant (up) and by it (down), every five seconds";
        registry.register("postern_participant_key_frame_requests_per_second", text, self.key_frames.clone());
    }

    pub fn joined(&self, took: Duration) {
        self.join_time.observe(took.as_secs_f64());
    }

    pub fn sampled(&self, sample: &Sample) {
        let seconds = sample.over.as_secs_f64();
        if sample.up.bytes + sample.down.bytes == 0 || seconds == 0.0 {
            // Who neither sends nor hears says nothing about the network.
            return;
        }
        if sample.up.lost.or(sample.down.lost).is_some() {
            self.jitter.observe(sample.jitter.as_secs_f64());
        }
        sample.rtt.iter().for_each(|rtt| self.round_trip.observe(rtt.as_secs_f64()));
        for (direction, way) in [("up", &sample.up), ("down", &sample.down)] {
            let observe = |family: &ByDirection, value: f64| family.get_or_create(&[("direction", direction)]).observe(value);
            let Way { bytes, lost, nacks, key_frames } = *way;
            if bytes > 0 {
                // Without a report nothing is known, which is not the same as nothing lost.
                lost.iter().for_each(|lost| observe(&self.loss, f64::from(*lost)));
                observe(&self.nacks, f64::from(nacks) / seconds);
                observe(&self.key_frames, f64::from(key_frames) / seconds);
            }
        }
    }
}
