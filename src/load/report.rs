//! What a run came to: joins, continuity, latencies, and what the server needed for it.

use super::Plan;
use super::ear::{Ear, Spread, Sums};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Ticks of a processor's clock in a second, as the kernel counts a process's time (USER_HZ).
const TICKS_A_SECOND: f64 = 100.0;
const PAGE: u64 = 4_096;

#[derive(Default)]
pub struct Report {
    pub took: Duration,
    /// From the signalling connection to keys, and to the first packet.
    pub joins: Spread,
    pub first_media: Spread,
    pub latency: Spread,
    pub heard: Sums,
    pub sent: u64,
    pub bytes: u64,
    /// Streams that should have come and did not.
    pub missing_streams: u64,
    /// Datagrams that did not come through SRTP or STUN, that were nobody's, and that the kernel did not take.
    pub refused: u64,
    pub strays: u64,
    pub unsent: u64,
    pub failures: BTreeMap<String, u64>,
    pub usage: Option<Usage>,
}

/// What a process used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_s: f64,
    pub memory_bytes: u64,
    pub open_files: u64,
    pub own_cpu_s: f64,
}

impl Usage {
    pub fn of(pid: Option<u32>) -> Option<Self> {
        let pid = pid?;
        let own_cpu_s = cpu_s("self")?;
        let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let resident: u64 = pages.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let open_files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count() as u64);
        Some(Self { cpu_s: cpu_s(&pid.to_string())?, memory_bytes: resident * PAGE, open_files, own_cpu_s })
    }

    /// Growth of what is counted; memory and files as they are now.
    pub fn since(self, before: &Self) -> Self {
        Self { cpu_s: self.cpu_s - before.cpu_s, own_cpu_s: self.own_cpu_s - before.own_cpu_s, ..self }
    }
}

/// Processor time of a process so far (proc(5): utime and stime of stat).
fn cpu_s(pid: &str) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS_A_SECOND)
}

impl Report {
    /// A participant has left: what it sent and heard.
    pub(super) fn left(&mut self, sent: u64, ear: &Ear, plan: &Plan, publishes: bool, was_live: bool) {
        let sums = ear.sums();
        self.heard = self.heard.plus(sums);
        self.sent += sent;
        self.bytes += ear.bytes;
        self.latency.merge(&ear.latency);
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
        let spread = |s: &Spread| {
            let ms = |q: f64| s.quantile(q).map(|d| d.as_secs_f64() * 1e3);
            json!({ "count": s.count, "p50_ms": ms(0.5), "p90_ms": ms(0.9), "p99_ms": ms(0.99), "p999_ms": ms(0.999), "max_ms": ms(1.0) })
        };
        let seconds = self.took.as_secs_f64();
        json!({
            "seconds": seconds,
            "joins": spread(&self.joins),
            "first_media": spread(&self.first_media),
            "latency": spread(&self.latency),
            "packets_sent": self.sent,
            "packets_received": self.heard.received,
            "packets_lost": self.heard.lost,
            "pictures": self.heard.frames,
            "pictures_broken": self.heard.broken,
            "streams": self.heard.streams,
            "streams_missing": self.missing_streams,
            "bits_received_per_second": self.bytes as f64 * 8.0 / seconds.max(1e-9),
            "refused": self.refused,
            "strays": self.strays,
            "unsent": self.unsent,
            "failures": self.failures,
            "server": self.usage.map(|u| json!({
                "cpu_seconds": u.cpu_s,
                "cpu_seconds_per_million_packets": u.cpu_s * 1e6 / (self.sent + self.heard.received).max(1) as f64,
                "memory_bytes": u.memory_bytes,
                "open_files": u.open_files,
            })),
            "own_cpu_seconds": self.usage.map(|u| u.own_cpu_s),
        })
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let spread = |s: &Spread| {
            let ms = |q: f64| s.quantile(q).map_or_else(|| "-".to_owned(), |d| format!("{:.2}", d.as_secs_f64() * 1e3));
            format!("{} ms half, {} ms of 100 99, {} ms longest", ms(0.5), ms(0.99), ms(1.0))
        };
        let seconds = self.took.as_secs_f64().max(1e-9);
        let _ = writeln!(text, "{} joins in {seconds:.1} s: {}", self.joins.count, spread(&self.joins));
        let _ = writeln!(text, "first media: {}", spread(&self.first_media));
        let _ = writeln!(
            text,
            "packets: {} sent, {} received ({:.0} a second, {:.1} Mbit/s), {} lost",
            self.sent,
            self.heard.received,
            self.heard.received as f64 / seconds,
            self.bytes as f64 * 8.0 / seconds / 1e6,
            self.heard.lost
        );
        let _ = writeln!(
            text,
            "pictures: {} in {} streams, {} broken; streams that never came: {}",
            self.heard.frames, self.heard.streams, self.heard.broken, self.missing_streams
        );
        let _ = writeln!(text, "one way: {}", spread(&self.latency));
        if let Some(u) = self.usage {
            let _ = writeln!(
                text,
                "server: {:.1} s of processor ({:.2} s a million packets in and out), {} MiB, {} files open; this tool: {:.1} s",
                u.cpu_s,
                u.cpu_s * 1e6 / (self.sent + self.heard.received).max(1) as f64,
                u.memory_bytes >> 20,
                u.open_files,
                u.own_cpu_s
            );
        }
        for (why, count) in &self.failures {
            let _ = writeln!(text, "failed, {count}: {why}");
        }
        text
    }
}
