//! Numbers for Prometheus: per-worker counters summed at scrape, every drop by its name, no label per user.

use crate::shard::counters::{Counter, Counters};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Numbers of the control plane.
#[derive(Debug, Default)]
pub struct Gauges {
    pub rooms: AtomicI64,
    pub participants: AtomicI64,
    pub tracks: AtomicI64,
    pub webhooks_delivered: AtomicI64,
    pub webhooks_dropped: AtomicI64,
    /// Seconds since 1970.
    pub certificate_expires: AtomicI64,
}

pub struct Metrics {
    registry: Registry,
}

struct Shards(Vec<Counters>);

impl std::fmt::Debug for Shards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shards({})", self.0.len())
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
        "media_packets_forwarded" => ("", "media packets written for a hearer"),
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
            let sum = |counter: &Counter| ConstCounter::new(self.0.iter().map(|c| c.get(*counter)).sum::<u64>());
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
        ];
        for (name, text, value) in rows {
            let metric = encoder.encode_descriptor(name, text, None, MetricType::Gauge)?;
            ConstGauge::new(value.load(Relaxed)).encode(metric)?;
        }
        let text = "webhook events by what became of them, each counted for every address";
        let mut metric = encoder.encode_descriptor("postern_webhook_events", text, None, MetricType::Counter)?;
        for (outcome, value) in [("delivered", &self.0.webhooks_delivered), ("dropped", &self.0.webhooks_dropped)] {
            let count = ConstCounter::new(value.load(Relaxed).unsigned_abs());
            count.encode(metric.encode_family(&[("outcome", outcome)])?)?;
        }
        Ok(())
    }
}

impl Metrics {
    pub fn new(shards: Vec<Counters>, gauges: Arc<Gauges>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Shards(shards)));
        registry.register_collector(Box::new(Room(gauges)));
        Self { registry }
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
        let text = Metrics::new(vec![a, b], Arc::default()).scrape();
        assert!(text.contains("postern_drops_total{reason=\"unknown_ufrag\"} 5"), "{text}");
        for counter in Counter::ALL {
            let line = format!("# TYPE postern_{} counter", counter.family());
            assert_eq!(text.matches(&line).count(), 1, "{line}");
            assert_ne!(help(counter.family()).0, "name", "{}", counter.family());
        }
    }
}
