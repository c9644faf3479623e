//! The audit log: who was in which room, when, for how long, from where, over which way, with how much media, and who
//! moderated whom. One JSON object a line, one file a day (UTC), appended to and never changed but by [`erase`].
//!
//! ```text
//! <audit.dir>/audit-2026-11-26.jsonl
//! {"time":"2026-11-26T09:30:00.125Z","event":"left","room":"lobby","identity":"ada","seconds":61,"bytes_up":5200341,…}
//! ```
//! Entries are written by a thread of their own: no call waits for a disk. What a full queue or a full disk loses is counted and
//! told. A file's lock is held for every write, so that another process may erase somebody's entries meanwhile.

mod files;

pub use files::{Subject, erase, show};

use super::metrics::Gauges;
use crate::config;
use files::Log;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fs::DirBuilder;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use time::OffsetDateTime;

/// Entries that wait for the disk.
const WAITING_MAX: usize = 8_192;
/// How often old files are looked for, and how often at most a failure is told.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Longest value of an attribute that is kept, characters: an entry is no place for more.
pub const VALUE_MAX: usize = 256;

/// What happened; what does not apply is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Entry {
    /// RFC 3339, UTC; set when it is noted.
    pub time: String,
    pub event: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub room: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Names this stay: who comes again has another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Which way media takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<&'static str>,
    /// Those that `audit.attributes` names, such as consent.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// What was published: camera, microphone, screen_share, screen_share_audio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<&'static str>,
    /// Who moderated: an API key, or the dashboard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Media from and to the participant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_up: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_down: Option<u64>,
    /// Entries that were erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
}

/// Where entries are put. Without an audit log it swallows them.
#[derive(Clone)]
pub struct Audit {
    queue: Option<SyncSender<Entry>>,
    gauges: Arc<Gauges>,
    has_addresses: bool,
    attributes: Arc<[String]>,
}

impl Audit {
    pub fn none(gauges: Arc<Gauges>) -> Self {
        Self { queue: None, gauges, has_addresses: false, attributes: Arc::default() }
    }

    /// One whose entries are read by a test.
    #[cfg(test)]
    pub fn tap(attributes: &[&str]) -> (Self, Receiver<Entry>) {
        let (queue, entries) = sync_channel(WAITING_MAX);
        let attributes = attributes.iter().map(|a| (*a).to_owned()).collect();
        (Self { queue: Some(queue), gauges: Arc::default(), has_addresses: true, attributes }, entries)
    }

    /// Those of a participant's attributes that belong into the log.
    pub fn kept<'a>(&self, attributes: &'a HashMap<String, String>) -> BTreeMap<&'a str, &'a str> {
        let is_kept = |key: &str| self.queue.is_some() && self.attributes.iter().any(|kept| kept == key);
        attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).filter(|(key, _)| is_kept(key)).collect()
    }

    pub fn push(&self, mut entry: Entry) {
        let Some(queue) = &self.queue else { return };
        if !self.has_addresses {
            entry.address = None;
        }
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(entry) {
            self.gauges.audit_dropped.fetch_add(1, Relaxed);
        }
    }
}

/// This moment as entries say it.
pub fn stamp() -> String {
    let now = now();
    let (hour, minute, second, ms) = now.to_hms_milli();
    format!("{}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z", now.date())
}

#[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
fn now() -> OffsetDateTime {
    OffsetDateTime::from(SystemTime::now())
}

/// Opens the log, if the config names one. Entries go in at one end; the thread ends once that end is dropped.
pub fn start(config: &config::Audit, gauges: &Arc<Gauges>) -> Result<(Audit, Option<JoinHandle<()>>), String> {
    let Some(dir) = config.dir() else { return Ok((Audit::none(Arc::clone(gauges)), None)) };
    DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(|e| cannot("make", dir, &e))?;
    let mut log = Log::new(dir);
    log.open(now().date()).map_err(|e| cannot("write into", dir, &e))?;
    let (queue, entries) = sync_channel(WAITING_MAX);
    let writer = Writer { log, entries, gauges: Arc::clone(gauges), retention_days: config.retention_days, told_at: None };
    let thread = std::thread::Builder::new().name("audit".into()).spawn(move || writer.run()).map_err(|e| format!("audit: {e}"))?;
    let attributes = config.attributes.clone().into();
    let audit = Audit { queue: Some(queue), gauges: Arc::clone(gauges), has_addresses: config.addresses, attributes };
    Ok((audit, Some(thread)))
}

fn cannot(what: &str, dir: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "the user that runs the server has to own it (and the unit's LogsDirectory or ReadWritePaths has to name it)"
        }
        io::ErrorKind::StorageFull => "the disk is full: make room, or shorten audit.retention_days",
        _ => "name another directory",
    };
    format!("audit.dir: cannot {what} {}: {error}; {remedy}", dir.display())
}

struct Writer {
    log: Log,
    entries: Receiver<Entry>,
    gauges: Arc<Gauges>,
    retention_days: u32,
    /// When a failure was told.
    told_at: Option<Instant>,
}

impl Writer {
    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    fn run(mut self) {
        let mut looked_at: Option<Instant> = None;
        loop {
            if looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                looked_at = Some(Instant::now());
                self.log.forget_before(now().date(), self.retention_days);
            }
            let first = match self.entries.recv_timeout(LOOK_EVERY) {
                Ok(entry) => entry,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut lines = Vec::new();
            let mut count = 0;
            for entry in std::iter::once(first).chain(self.entries.try_iter().take(WAITING_MAX)) {
                lines.extend(line(&entry));
                count += 1;
            }
            match self.log.append(now().date(), &lines) {
                Ok(()) => self.gauges.audit_written.fetch_add(count, Relaxed),
                Err(error) => {
                    if self.told_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                        self.told_at = Some(Instant::now());
                        tracing::error!("{}; entries of the audit log are lost", cannot("write into", self.log.dir(), &error));
                    }
                    self.gauges.audit_dropped.fetch_add(count, Relaxed)
                }
            };
        }
    }
}

fn line(entry: &Entry) -> Vec<u8> {
    let mut line = serde_json::to_vec(entry).unwrap_or_default();
    line.push(b'\n');
    line
}
