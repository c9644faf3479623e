//! Numbers for Prometheus: per-worker counters summed at scrape, every drop by its name, no label per user.

mod distributions;
mod entrance;
pub mod host;

pub use distributions::Distributions;
pub use entrance::Entrance;

use crate::shard::counters::{Counter, Counters};
use crate::shard::load::{LATENCY_BOUNDS_US, Load};
use host::Host;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

/// Numbers of the control plane.
#[derive(Debug, Default)]
pub struct Gauges {
    pub rooms: AtomicI64,
    pub participants: AtomicI64,
    pub tracks: AtomicI64,
    pub webhooks_delivered: AtomicI64,
    pub webhooks_dropped: AtomicI64,
    pub audit_written: AtomicI64,
    pub audit_dropped: AtomicI64,
    /// Seconds since 1970.
    pub certificate_expires: AtomicI64,
    pub started: AtomicI64,
    pub of_participants: Distributions,
    pub entrance: Entrance,
}

/// One worker's numbers.
#[derive(Clone)]
pub struct WorkerNumbers {
    pub counters: Counters,
    pub load: Load,
}

/// What can be read off the whole server.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    workers: Arc<[WorkerNumbers]>,
    pub gauges: Arc<Gauges>,
    pub host: Host,
}

struct Shards(Arc<[WorkerNumbers]>);

impl std::fmt::Debug for Shards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shards({})", self.0.len())
    }
}

struct Loads(Arc<[WorkerNumbers]>);

impl std::fmt::Debug for Loads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loads({})", self.0.len())
    }
}

fn help(family: &str) -> (&'static str, &'static str) {
    match family {
        "datagrams_received" => ("", "UDP datagrams from the network"),
        "udp_messages_received" => {
            ("", "messages in which UDP datagrams came from the kernel; fewer than datagrams where it puts runs together")
        }
        "stream_frames_received" => ("", "messages from TCP and TLS connections"),
        "datagrams_sent" => ("", "UDP datagrams handed to the kernel"),
        "udp_messages_sent" => ("", "messages in which UDP datagrams were handed to the kernel; fewer than datagrams where it segments"),
        "stream_frames_sent" => ("", "messages queued for TCP and TLS connections"),
        "packets_consumed" => ("how", "received packets by what became of them; with drops, the sum of all received"),
        "media_bytes" => (
            "direction",
            "media from publishers (in, repaired packets too) and to hearers (out, without what is sent again), with RTP headers",
        ),
        "media_packets_forwarded" => ("", "media packets written for a hearer"),
        "relay_packets" => ("way", "payloads relayed to and from peers other than the SFU, and between allocations"),
        "relay_packets_in_process" => ("direction", "payloads between the relay and the SFU by a function call"),
        "redirect_table_full" => ("", "checks sent to their owner without noting their tuple"),
        "key_frame_requests" => ("", "picture loss indications sent to publishers"),
        "key_frame_causes" => ("cause", "key frames that hearers here needed, by cause"),
        "thinned_packets" => ("", "packets of whole pictures left out for a connection that was behind"),
        "ring_media_packets" => ("", "media packets given to another worker, once for all its hearers"),
        "ring_media_drops" => ("what", "media packets that a full ring between two workers did not take"),
        "nacks_sent" => ("", "packets asked for again from publishers"),
        "retransmissions" => ("outcome", "packets that receivers asked for again, by what became of it"),
        "transport_feedback_packets" => ("outcome", "packets sent under transport-wide numbers, by what their receivers told"),
        "redundancy_recovered_packets" => ("", "lost packets of sound that came again as redundancy of later ones"),
        "packet_store_full" => ("", "packets that limits.packet_store_bytes kept from being kept long enough"),
        "turn_allocations" => ("event", "TURN allocations by what happened to them"),
        "streams_moved" => ("", "connections handed to their owner's worker"),
        "data_messages_forwarded" => ("", "data channel messages written for a receiver"),
        "sessions" => ("event", "participants' transports by what happened to them"),
        "connection_refusals" => ("reason", "TCP connections refused or closed, by reason"),
        "turn_refusals" => ("reason", "TURN requests refused, by error code"),
        "drops" => ("reason", "packets that came to nothing, by reason"),
        _ => ("name", "see docs/ARCHITECTURE.md"),
    }
}

impl Collector for Shards {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut at = 0;
        while let Some(first) = Counter::ALL.get(at) {
            let family = first.family();
            let of_family = Counter::ALL[at..].iter().take_while(|c| c.family() == family).count();
            let (label, text) = help(family);
            let name = format!("postern_{family}");
            let mut metric = encoder.encode_descriptor(&name, text, None, MetricType::Counter)?;
            let sum = |counter: &Counter| ConstCounter::new(self.0.iter().map(|w| w.counters.get(*counter)).sum::<u64>());
            if label.is_empty() {
                sum(first).encode(metric)?;
            } else {
                for counter in &Counter::ALL[at..at + of_family] {
                    sum(counter).encode(metric.encode_family(&[(label, counter.label())])?)?;
                }
            }
            at += of_family;
        }
        Ok(())
    }
}

/// Packets by how long they were in this process.
pub struct Latency {
    /// Upper end of each bucket, seconds, and packets in it; the last one has no end.
    pub buckets: Vec<(f64, u64)>,
    pub sum: Duration,
}

impl Latency {
    fn of(workers: &[WorkerNumbers]) -> Self {
        let ends = LATENCY_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let mut all = Self { buckets: ends.map(|end| (end, 0)).collect(), sum: Duration::ZERO };
        for (counts, sum) in workers.iter().map(|w| w.load.latency()) {
            all.buckets.iter_mut().zip(counts).for_each(|((_, count), more)| *count += more);
            all.sum += sum;
        }
        all
    }

    fn packets(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The end of the bucket that the quantile lies in, seconds; `None` without packets, or beyond the last end.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = (q * self.packets() as f64).ceil() as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().find(|(_, count)| {
            seen += count;
            seen >= rank.max(1)
        });
        bucket.map(|(end, _)| *end).filter(|end| *end < f64::INFINITY)
    }
}

impl Collector for Loads {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = "time that a worker was awake";
        let mut metric = encoder.encode_descriptor("postern_worker_busy_seconds", text, None, MetricType::Counter)?;
        for (at, worker) in self.0.iter().enumerate() {
            let busy = ConstCounter::new(worker.load.busy().as_secs_f64());
            busy.encode(metric.encode_family(&[("worker", at.to_string())])?)?;
        }
        let text = "participants' transports that live on a worker";
        let mut metric = encoder.encode_descriptor("postern_worker_transports", text, None, MetricType::Gauge)?;
        for (at, worker) in self.0.iter().enumerate() {
            let sessions = ConstGauge::new(worker.load.sessions() as i64);
            sessions.encode(metric.encode_family(&[("worker", at.to_string())])?)?;
        }
        let text = "media packets by how long they were in this process, until the kernel or their connection's queue had them";
        let mut metric = encoder.encode_descriptor("postern_forwarding_latency_seconds", text, None, MetricType::Histogram)?;
        let latency = Latency::of(&self.0);
        metric.encode_histogram::<NoLabelSet>(latency.sum.as_secs_f64(), latency.packets(), &latency.buckets, None)
    }
}

#[derive(Debug)]
struct Room(Arc<Gauges>);

impl Collector for Room {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let rows = [
            ("postern_rooms", "open rooms", &self.0.rooms),
            ("postern_participants", "participants in all rooms", &self.0.participants),
            ("postern_tracks", "published tracks", &self.0.tracks),
            (
                "postern_certificate_expiry_timestamp_seconds",
                "when the TLS certificate ends, seconds since 1970",
                &self.0.certificate_expires,
            ),
            ("postern_start_timestamp_seconds", "when this process started, seconds since 1970", &self.0.started),
        ];
        for (name, text, value) in rows {
            let metric = encoder.encode_descriptor(name, text, None, MetricType::Gauge)?;
            ConstGauge::new(value.load(Relaxed)).encode(metric)?;
        }
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let mut metric = encoder.encode_descriptor("postern_build_info", "which version this is", None, MetricType::Gauge)?;
        ConstGauge::new(1_i64).encode(metric.encode_family(&version)?)?;
        let families = [
            (
                "postern_webhook_events",
                "webhook events by what became of them, each counted for every address",
                [("delivered", &self.0.webhooks_delivered), ("dropped", &self.0.webhooks_dropped)],
            ),
            (
                "postern_audit_entries",
                "entries of the audit log by what became of them",
                [("written", &self.0.audit_written), ("dropped", &self.0.audit_dropped)],
            ),
        ];
        for (name, text, outcomes) in families {
            let mut metric = encoder.encode_descriptor(name, text, None, MetricType::Counter)?;
            for (outcome, value) in outcomes {
                let count = ConstCounter::new(value.load(Relaxed).unsigned_abs());
                count.encode(metric.encode_family(&[("outcome", outcome)])?)?;
            }
        }
        Ok(())
    }
}

impl Metrics {
    pub fn new(workers: Vec<WorkerNumbers>, gauges: Arc<Gauges>, host: Host) -> Self {
        let workers: Arc<[WorkerNumbers]> = workers.into();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Shards(Arc::clone(&workers))));
        registry.register_collector(Box::new(Loads(Arc::clone(&workers))));
        registry.register_collector(Box::new(Room(Arc::clone(&gauges))));
        gauges.of_participants.register(&mut registry);
        gauges.entrance.register(&mut registry);
        registry.register_collector(Box::new(host.clone()));
        Self { registry: Arc::new(registry), workers, gauges, host }
    }

    /// A number of all workers together.
    pub fn total(&self, counter: Counter) -> u64 {
        self.workers.iter().map(|w| w.counters.get(counter)).sum()
    }

    pub fn latency(&self) -> Latency {
        Latency::of(&self.workers)
    }

    pub fn loads(&self) -> impl Iterator<Item = &Load> {
        self.workers.iter().map(|w| &w.load)
    }

    /// The OpenMetrics text.
    pub fn scrape(&self) -> String {
        let mut text = String::new();
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_workers_and_families_are_whole() {
        let (a, b) = (Counters::default(), Counters::default());
        a.add(Counter::DropUnknownUfrag, 2);
        b.add(Counter::DropUnknownUfrag, 3);
        let workers = [a, b].map(|counters| WorkerNumbers { counters, load: Load::default() });
        let text = Metrics::new(workers.into(), Arc::default(), Host::new(&[])).scrape();
        assert!(text.contains("postern_drops_total{reason=\"unknown_ufrag\"} 5"), "{text}");
        for counter in Counter::ALL {
            let line = format!("# TYPE postern_{} counter", counter.family());
            assert_eq!(text.matches(&line).count(), 1, "{line}");
            assert_ne!(help(counter.family()).0, "name", "{}", counter.family());
        }
    }

    #[test]
    fn every_metric_stands_in_the_documentation_with_its_type() {
        let gauges = Arc::new(Gauges::default());
        gauges.of_participants.sampled(&crate::session::quality::Sample {
            over: Duration::from_secs(5),
            up: crate::session::quality::Way { bytes: 1, lost: Some(0.0), ..Default::default() },
            ..Default::default()
        });
        let workers = vec![WorkerNumbers { counters: Counters::default(), load: Load::default() }];
        let text = Metrics::new(workers, gauges, Host::new(&[])).scrape();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let mut told: Vec<(String, String)> = types
            .map(|(name, kind)| (if kind == "counter" { format!("{name}_total") } else { name.to_owned() }, kind.to_owned()))
            .collect();
        told.sort();
        let row = |line: &str| {
            let mut cells = line.strip_prefix("| `postern_")?.split(" | ");
            let name = cells.next()?.trim_end_matches('`').split('{').next()?.to_owned();
            Some((format!("postern_{}", name.trim_end_matches('`')), cells.next()?.to_owned()))
        };
        let mut documented: Vec<(String, String)> = include_str!("../../docs/metrics.md").lines().filter_map(row).collect();
        documented.sort();
        assert_eq!(told, documented);
        let named = ["drops", "turn_refusals", "connection_refusals"];
        for (counter, reason) in Counter::ALL.iter().filter(|c| named.contains(&c.family())).map(|c| (c, format!("`{}`", c.label()))) {
            assert!(include_str!("../../docs/metrics.md").contains(&reason), "{counter:?}: {reason}");
        }
        for (family, words) in [("postern_joins_total", &entrance::JOINS[..]), ("postern_http_refusals_total", &entrance::REFUSALS)] {
            let is_row = |line: &&str| line.starts_with(&format!("| `{family}"));
            let row = include_str!("../../docs/metrics.md").lines().find(is_row).expect("a row");
            words.iter().for_each(|word| assert!(row.contains(&format!("`{word}`")), "{family}: {word}"));
        }
    }

    #[test]
    fn quantiles_are_ends_of_buckets() {
        let of = |counts: &[u64]| Latency {
            buckets: counts.iter().enumerate().map(|(i, n)| (i as f64, *n)).chain([(f64::INFINITY, 1)]).collect(),
            sum: Duration::ZERO,
        };
        let latency = of(&[0, 90, 8, 1]);
        assert_eq!([0.5, 0.9, 0.95, 0.99, 1.0].map(|q| latency.quantile(q)), [Some(1.0), Some(1.0), Some(2.0), Some(3.0), None]);
        assert_eq!(Latency { buckets: vec![(1.0, 0)], sum: Duration::ZERO }.quantile(0.5), None);
    }
}
