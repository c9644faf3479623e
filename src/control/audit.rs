//! The audit log: who was in which room, when, for how long, from where, over which way, with how much media, and who
//! moderated whom. One JSON object a line, one file a day (UTC), appended to and never changed but by [`erase`].
//!
//! ```text
//! <audit.dir>/audit-2026-11-26.jsonl
//! {"time":"2026-11-26T09:30:00.125Z","event":"left","room":"lobby","identity":"ada","seconds":61,"bytes_up":5200341,…}
//! ```
//! Entries are written by a thread of their own: no call waits for a disk. What a full queue or a full disk loses is counted and
//! told. A file's lock is held for every write, so that another process may erase somebody's entries meanwhile.

use super::metrics::Gauges;
use crate::config;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime};

/// Entries that wait for the disk.
const WAITING_MAX: usize = 8_192;
/// How often old files are looked for, and how often at most a failure is told.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";

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

    /// Whether anybody reads what is put here.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Whether an attribute of participants belongs into the log.
    pub fn keeps(&self, attribute: &str) -> bool {
        self.is_on() && self.attributes.iter().any(|kept| kept == attribute)
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
    now.replace_millisecond(now.millisecond()).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}

#[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
fn now() -> OffsetDateTime {
    OffsetDateTime::from(SystemTime::now())
}

/// Opens the log, if the config names one. Entries go in at one end; the thread ends once that end is dropped.
pub fn start(config: &config::Audit, gauges: &Arc<Gauges>) -> Result<(Audit, Option<JoinHandle<()>>), String> {
    let Some(dir) = config.dir() else { return Ok((Audit::none(Arc::clone(gauges)), None)) };
    DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(|e| cannot("make", dir, &e))?;
    let mut log = Log { dir: dir.to_owned(), today: None };
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
                        tracing::error!("{}; entries of the audit log are lost", cannot("write into", &self.log.dir, &error));
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

/// The directory, and the file of the day.
struct Log {
    dir: PathBuf,
    today: Option<(Date, File)>,
}

impl Log {
    fn path(&self, day: Date) -> PathBuf {
        self.dir.join(format!("{PREFIX}{day}{SUFFIX}"))
    }

    fn open(&mut self, day: Date) -> io::Result<&mut File> {
        let path = self.path(day);
        let file = match self.today.take() {
            Some((of, file)) if of == day => file,
            _ => {
                let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
                // One that root has made, to note an erasure, is the server's all the same.
                let (owner, own) = (fs::metadata(&self.dir)?, file.metadata()?);
                if own.uid() != owner.uid() {
                    let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
                }
                file
            }
        };
        Ok(&mut self.today.insert((day, file)).1)
    }

    /// Writes whole lines or none of them.
    fn append(&mut self, day: Date, lines: &[u8]) -> io::Result<()> {
        let path = self.path(day);
        loop {
            let file = self.open(day)?;
            file.lock()?;
            // Whoever erased something in between has put another file in its place; whoever removed it, none.
            let is_current = fs::metadata(&path).is_ok_and(|m| file.metadata().is_ok_and(|own| own.ino() == m.ino()));
            if !is_current {
                self.today = None;
                continue;
            }
            let before = file.metadata()?.len();
            let outcome = file.write_all(lines).and_then(|()| file.sync_data());
            if outcome.is_err() {
                let _ = file.set_len(before);
            }
            file.unlock()?;
            return outcome;
        }
    }

    /// Deletes files of days that are longer ago than that; 0 keeps them for ever.
    fn forget_before(&self, today: Date, days: u32) {
        let Some(oldest) = today.checked_sub(time::Duration::days(days.into())).filter(|_| days > 0) else { return };
        for (path, _) in files(&self.dir).unwrap_or_default().into_iter().filter(|(_, day)| *day < oldest) {
            match fs::remove_file(&path) {
                Ok(()) => tracing::info!(file = %path.display(), "an audit file is older than audit.retention_days and was deleted"),
                Err(error) => tracing::error!(file = %path.display(), %error, "an old audit file cannot be deleted"),
            }
        }
    }
}

/// All files of a log, oldest first.
fn files(dir: &Path) -> io::Result<Vec<(PathBuf, Date)>> {
    let day = |path: &Path| {
        let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let mut parts = name.splitn(3, '-').map(str::parse::<u16>);
        let (year, month, day) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        let month = time::Month::try_from(u8::try_from(month).ok()?).ok()?;
        Date::from_calendar_date(year.into(), month, u8::try_from(day).ok()?).ok()
    };
    let paths = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<(PathBuf, Date)> = paths.filter_map(|path| day(&path).map(|day| (path, day))).collect();
    files.sort();
    Ok(files)
}

/// Whom entries are looked for: one person, in one room or in all.
pub struct Subject<'a> {
    pub identity: &'a str,
    pub room: Option<&'a str>,
}

impl Subject<'_> {
    fn is_of(&self, line: &[u8]) -> bool {
        let Ok(entry) = serde_json::from_slice::<serde_json::Value>(line) else { return false };
        let is = |key: &str, wanted: &str| entry.get(key).and_then(serde_json::Value::as_str) == Some(wanted);
        is("identity", self.identity) && self.room.is_none_or(|room| is("room", room))
    }
}

/// A person's entries, oldest first, as they stand there.
pub fn show(dir: &Path, subject: &Subject<'_>, out: &mut dyn Write) -> Result<(), String> {
    for (path, _) in files(dir).map_err(|e| cannot("read", dir, &e))? {
        let file = File::open(&path).map_err(|e| cannot("read", &path, &e))?;
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(|e| cannot("read", &path, &e))?;
            if subject.is_of(&line) {
                out.write_all(&line).and_then(|()| out.write_all(b"\n")).map_err(|e| e.to_string())?;
            }
        }
    }
    Ok(())
}

/// Erases a person's entries, and notes how many without saying whose. The server may go on writing meanwhile.
pub fn erase(dir: &Path, subject: &Subject<'_>) -> Result<u64, String> {
    let mut erased = 0;
    for (path, _) in files(dir).map_err(|e| cannot("read", dir, &e))? {
        erased += erase_in(&path, subject).map_err(|e| cannot("change", &path, &e))?;
    }
    let mut log = Log { dir: dir.to_owned(), today: None };
    let entry = Entry { time: stamp(), event: "erased", entries: Some(erased), ..Entry::default() };
    log.append(now().date(), &line(&entry)).map_err(|e| cannot("write into", dir, &e))?;
    Ok(erased)
}

fn erase_in(path: &Path, subject: &Subject<'_>) -> io::Result<u64> {
    let file = File::open(path)?;
    file.lock()?;
    let (mut kept, mut erased) = (Vec::new(), 0);
    for line in BufReader::new(&file).split(b'\n') {
        let line = line?;
        if subject.is_of(&line) {
            erased += 1;
        } else {
            kept.extend_from_slice(&line);
            kept.push(b'\n');
        }
    }
    if erased > 0 {
        let beside = path.with_extension("new");
        let owner = file.metadata()?;
        let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(owner.mode() & 0o777).open(&beside)?;
        fchown(&new, Some(owner.uid()), Some(owner.gid()))?;
        new.write_all(&kept)?;
        new.sync_all()?;
        fs::rename(&beside, path)?;
    }
    file.unlock()?;
    Ok(erased)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("postern-audit-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).expect("a directory");
            Self(dir)
        }

        fn lines(&self) -> Vec<serde_json::Value> {
            let files = files(&self.0).expect("files");
            let text: String = files.iter().map(|(path, _)| fs::read_to_string(path).expect("a file")).collect();
            text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn entry(event: &'static str, identity: &str) -> Entry {
        Entry { time: stamp(), event, room: "lobby".into(), identity: Some(identity.into()), ..Entry::default() }
    }

    #[test]
    fn entries_are_lines_without_what_does_not_apply() {
        let dir = Dir::new("lines");
        let config = config::Audit { dir: dir.0.clone(), addresses: false, ..config::Audit::default() };
        let gauges = Arc::new(Gauges::default());
        let (audit, thread) = start(&config, &gauges).expect("starts");
        audit.push(Entry { address: Some([192, 0, 2, 7].into()), ..entry("joined", "ada") });
        assert!(audit.keeps("consent") && !audit.keeps("postern.path"));
        drop(audit);
        thread.expect("a thread").join().expect("ends when nobody writes any more");
        let lines = dir.lines();
        let keys: Vec<&String> = lines[0].as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["event", "identity", "room", "time"], "no address: audit.addresses is off");
        assert!(lines[0]["time"].as_str().is_some_and(|t| t.len() == 24 && t.ends_with('Z')), "{lines:?}");
        assert_eq!(gauges.audit_written.load(Relaxed), 1);
    }

    #[test]
    fn a_person_is_erased_while_the_log_is_written() {
        let dir = Dir::new("erase");
        let mut log = Log { dir: dir.0.clone(), today: None };
        let today = now().date();
        let old = today - time::Duration::days(3);
        log.append(old, &line(&entry("joined", "ada"))).expect("written");
        log.append(today, &line(&entry("joined", "ada"))).expect("written");
        log.append(today, &line(&entry("joined", "bob"))).expect("written");
        let mut shown = Vec::new();
        let ada = Subject { identity: "ada", room: None };
        show(&dir.0, &ada, &mut shown).expect("readable");
        assert_eq!(String::from_utf8_lossy(&shown).lines().count(), 2);
        assert_eq!(erase(&dir.0, &Subject { identity: "ada", room: Some("another") }), Ok(0));
        assert_eq!(erase(&dir.0, &ada), Ok(2));
        // The log's file was put in place anew: what is written from now on goes there.
        log.append(today, &line(&entry("left", "bob"))).expect("written");
        let lines = dir.lines();
        assert!(!lines.iter().any(|l| l["identity"] == "ada"), "{lines:?}");
        assert_eq!(lines.iter().filter(|l| l["identity"] == "bob").count(), 2, "{lines:?}");
        assert_eq!(lines.iter().filter(|l| l["event"] == "erased").map(|l| l["entries"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(2)]);
    }

    #[test]
    fn files_go_when_their_time_is_over() {
        let dir = Dir::new("retention");
        let mut log = Log { dir: dir.0.clone(), today: None };
        let today = now().date();
        for ago in [0, 1, 2, 3, 400] {
            log.append(today - time::Duration::days(ago), b"{}\n").expect("written");
        }
        fs::write(dir.0.join("audit-notes.txt"), "mine").expect("written");
        log.forget_before(today, 0);
        assert_eq!(files(&dir.0).expect("files").len(), 5, "0 keeps all");
        log.forget_before(today, 2);
        assert_eq!(files(&dir.0).expect("files").len(), 3, "today and two days before");
        assert!(dir.0.join("audit-notes.txt").exists(), "what is not ours stays");
    }
}
