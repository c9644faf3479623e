//! What a run came to: joins, continuity, latencies, and what the server needed for it.

use super::Plan;
use super::ear::{Ear, Spread, Sums};
use super::usage::Usage;
use crate::base::time::Instant;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Samples that are kept: beyond it, every other is left out.
const SAMPLES_MAX: usize = 2_000;

/// Figures at a moment, since the beginning.
#[derive(Clone, Copy, Default)]
pub(super) struct Mark {
    pub at: Instant,
    pub sent: u64,
    pub received: u64,
    pub bytes: u64,
    pub server: Option<Usage>,
    pub own: Usage,
}

impl Mark {
    /// What lies between two.
    pub fn until(&self, end: &Mark) -> Window {
        Window {
            took: end.at.since(self.at),
            sent: end.sent - self.sent,
            received: end.received - self.received,
            bytes: end.bytes - self.bytes,
            server: end.server.zip(self.server).map(|(to, from)| to.since(&from)),
            own: end.own.since(&self.own),
        }
    }
}

/// A stretch of time: what passed, and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    pub took: Duration,
    pub sent: u64,
    pub received: u64,
    /// Payload received.
    pub bytes: u64,
    pub server: Option<Usage>,
    pub own: Usage,
}

impl Window {
    pub fn seconds(&self) -> f64 {
        self.took.as_secs_f64().max(1e-9)
    }

    /// Processor time of the server for each packet that came out of it, us.
    pub fn server_us_per_packet(&self) -> Option<f64> {
        self.server.filter(|_| self.received > 0).map(|u| u.cpu_s * 1e6 / self.received as f64)
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "seconds": self.took.as_secs_f64(),
            "packets_sent": self.sent,
            "packets_received": self.received,
            "packets_received_per_second": self.received as f64 / self.seconds(),
            "bits_received_per_second": self.bytes as f64 * 8.0 / self.seconds(),
            "server": self.server.map(|u| json!({
                "cpu_seconds": u.cpu_s,
                "cpu_ratio": u.cpu_s / self.seconds(),
                "cpu_seconds_per_million_packets": u.cpu_s * 1e6 / (self.sent + self.received).max(1) as f64,
                "cpu_us_per_packet_received": self.server_us_per_packet(),
                "memory_bytes": u.memory_bytes,
                "open_files": u.open_files,
            })),
            "own_cpu_seconds": self.own.cpu_s,
            "own_cpu_ratio": self.own.cpu_s / self.seconds(),
        })
    }

    pub(super) fn line(&self) -> String {
        let mut line = format!(
            "{:.1} s: {} packets sent, {} received ({:.0} a second, {:.1} Mbit/s)",
            self.took.as_secs_f64(),
            self.sent,
            self.received,
            self.received as f64 / self.seconds(),
            self.bytes as f64 * 8.0 / self.seconds() / 1e6
        );
        if let Some(u) = self.server {
            let per_packet = self.server_us_per_packet().map_or_else(String::new, |us| format!(" ({us:.2} us a packet received)"));
            let _ = write!(
                line,
                "; server: {:.1} % of a core{per_packet}, {} MiB, {} files",
                u.cpu_s * 100.0 / self.seconds(),
                u.memory_bytes >> 20,
                u.open_files
            );
        }
        let _ = write!(line, "; this tool: {:.1} % of a core", self.own.cpu_s * 100.0 / self.seconds());
        line
    }
}

/// Figures of one second.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub at_s: f64,
    pub participants: u64,
    pub received_per_s: f64,
    pub bits_per_s: f64,
    /// Since the beginning.
    pub lost: u64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Cores in use.
    pub server_cpu: Option<f64>,
    pub server_memory: Option<u64>,
    pub own_cpu: f64,
}

impl Sample {
    pub fn line(&self) -> String {
        let p99 = self.p99_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms"));
        let server = self.server_cpu.map_or_else(String::new, |cpu| format!(", server {:.0} %", cpu * 100.0));
        format!(
            "{:.0} packets/s, {:.1} Mbit/s, lost {}, one way p99 {p99}{server}, this tool {:.0} %",
            self.received_per_s,
            self.bits_per_s / 1e6,
            self.lost,
            self.own_cpu * 100.0
        )
    }
}

/// Samples of a run, however long: thinned out evenly.
#[derive(Default)]
pub struct Samples {
    kept: Vec<Sample>,
    /// Every so many samples one is kept.
    every: usize,
    seen: usize,
}

impl Samples {
    pub fn push(&mut self, sample: Sample) {
        let every = self.every.max(1);
        if self.seen.is_multiple_of(every) {
            self.kept.push(sample);
        }
        self.seen += 1;
        if self.kept.len() >= SAMPLES_MAX {
            let mut nth = 0;
            self.kept.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
            self.every = every * 2;
        }
    }

    pub fn all(&self) -> &[Sample] {
        &self.kept
    }
}

#[derive(Default)]
pub struct Report {
    pub took: Duration,
    /// From the signalling connection to keys, and to the first packet.
    pub joins: Spread,
    pub first_media: Spread,
    /// In the steady state; of the whole run, if there was none.
    pub latency: Spread,
    pub(super) latency_of_second: Spread,
    pub heard: Sums,
    /// Streams that should have come and did not.
    pub missing_streams: u64,
    /// Datagrams that did not come through SRTP or STUN, that were nobody's, and that the kernel did not take.
    pub refused: u64,
    pub strays: u64,
    pub unsent: u64,
    /// Packets that `--loss` threw away.
    pub thrown_away: u64,
    pub failures: BTreeMap<String, u64>,
    pub samples: Samples,
    /// Until everybody had come; from then until the first went; and all of it.
    pub joining: Option<Window>,
    pub steady: Option<Window>,
    pub whole: Option<Window>,
    /// Somebody has gone already.
    pub(super) is_disturbed: bool,
}

impl Report {
    /// A participant has left: what it heard.
    pub(super) fn left(&mut self, ear: &Ear, plan: &Plan, publishes: bool, was_live: bool) {
        let sums = ear.sums();
        self.heard = self.heard.plus(sums);
        let others = plan.rooms.publishers as usize - usize::from(publishes);
        let expected = (others * plan.media.tracks()) as u64;
        if was_live {
            self.missing_streams += expected.saturating_sub(sums.streams);
        }
    }

    pub fn has_failed(&self) -> bool {
        !self.failures.is_empty() || self.missing_streams > 0
    }

    pub fn json(&self) -> Value {
        let whole = self.whole.unwrap_or_default();
        let joins = self.joins.count.max(1) as f64;
        let server_cpu_ms = |w: Window| w.server.map(|u| u.cpu_s * 1e3 / joins);
        json!({
            "seconds": self.took.as_secs_f64(),
            "joins": spread_json(&self.joins),
            "server_cpu_ms_per_join": self.joining.and_then(server_cpu_ms),
            "first_media": spread_json(&self.first_media),
            "latency": spread_json(&self.latency),
            "packets_sent": whole.sent,
            "packets_received": whole.received,
            "packets_lost": self.heard.lost,
            "packets_repaired": self.heard.repaired,
            "packets_thrown_away": self.thrown_away,
            "pictures": self.heard.frames,
            "pictures_broken": self.heard.broken,
            "streams": self.heard.streams,
            "streams_missing": self.missing_streams,
            "refused": self.refused,
            "strays": self.strays,
            "unsent": self.unsent,
            "failures": self.failures,
            "joining": self.joining.as_ref().map(Window::json),
            "steady": self.steady.as_ref().map(Window::json),
            "whole": whole.json(),
        })
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "{} joins: {}", self.joins.count, spread_text(&self.joins));
        let _ = writeln!(text, "first media: {}", spread_text(&self.first_media));
        for (name, window) in [("joining", self.joining), ("steady", self.steady), ("whole", self.whole)] {
            if let Some(window) = window {
                let _ = writeln!(text, "{name}, {}", window.line());
            }
        }
        let _ = writeln!(text, "one way: {}", spread_text(&self.latency));
        let _ = writeln!(
            text,
            "packets lost: {}, repaired: {}, thrown away by this tool: {}, not taken by the kernel: {}",
            self.heard.lost, self.heard.repaired, self.thrown_away, self.unsent
        );
        let _ = writeln!(
            text,
            "pictures: {} in {} streams, {} broken; streams that never came: {}",
            self.heard.frames, self.heard.streams, self.heard.broken, self.missing_streams
        );
        for (why, count) in &self.failures {
            let _ = writeln!(text, "failed, {count}: {why}");
        }
        text
    }

    /// A page with the same figures and plots over time, which needs no server.
    pub fn html(&self, title: &str) -> String {
        super::page::write(title, &self.text(), self.samples.all())
    }
}

/// Quantiles as JSON, ms.
pub(super) fn spread_json(spread: &Spread) -> Value {
    let ms = |q: f64| spread.quantile(q).map(|d| d.as_secs_f64() * 1e3);
    json!({ "count": spread.count, "p50_ms": ms(0.5), "p90_ms": ms(0.9), "p99_ms": ms(0.99), "p999_ms": ms(0.999), "max_ms": ms(1.0) })
}

pub(super) fn spread_text(spread: &Spread) -> String {
    let ms = |q: f64| spread.quantile(q).map_or_else(|| "-".to_owned(), |d| format!("{:.2}", d.as_secs_f64() * 1e3));
    format!("p50 {} ms, p99 {} ms, p99.9 {} ms, longest {} ms", ms(0.5), ms(0.99), ms(0.999), ms(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_long_run_are_thinned_evenly() {
        let mut samples = Samples::default();
        for at in 0..10_000 {
            samples.push(Sample { at_s: f64::from(at), ..Sample::default() });
        }
        let kept = samples.all();
        assert!((SAMPLES_MAX / 2..SAMPLES_MAX).contains(&kept.len()), "{}", kept.len());
        let steps: Vec<f64> = kept.windows(2).map(|w| w[1].at_s - w[0].at_s).collect();
        assert!(steps.iter().all(|s| *s == steps[0]), "{steps:?}");
    }
}
