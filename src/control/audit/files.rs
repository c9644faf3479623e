//! The files of an audit log: appended to under a lock, deleted when their time is over, searched and thinned for one person.

use super::{Entry, cannot, line, now, stamp};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::Date;

const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";
/// What is written anew stands beside its file until it is whole.
const BESIDE: &str = "new";
/// How long somebody may hold a file's lock, and how often it is tried meanwhile.
const LOCKED_WITHIN: Duration = Duration::from_secs(5);
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// The directory, and the file of the day.
pub(super) struct Log {
    dir: PathBuf,
    today: Option<(Date, File)>,
}

impl Log {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), today: None }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, day: Date) -> PathBuf {
        self.dir.join(format!("{PREFIX}{day}{SUFFIX}"))
    }

    pub(super) fn open(&mut self, day: Date) -> io::Result<&mut File> {
        let path = self.path(day);
        let file = match self.today.take() {
            Some((of, file)) if of == day => file,
            _ => OpenOptions::new().read(true).append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path)?,
        };
        Ok(&mut self.today.insert((day, file)).1)
    }

    /// Writes whole lines or none of them.
    pub(super) fn append(&mut self, day: Date, lines: &[u8]) -> io::Result<()> {
        let path = self.path(day);
        loop {
            let file = self.open(day)?;
            lock(file)?;
            if !is_at(file, &path) {
                self.today = None;
                continue;
            }
            let before = file.metadata()?.len();
            // A line that a sudden end has cut off must not swallow the next one.
            let outcome = if ends_whole(file, before)? { Ok(()) } else { file.write_all(b"\n") };
            let outcome = outcome.and_then(|()| file.write_all(lines)).and_then(|()| file.sync_data());
            if outcome.is_err() {
                let _ = file.set_len(before);
            }
            file.unlock()?;
            return outcome;
        }
    }

    /// Deletes files of days that are longer ago than that; 0 keeps them for ever.
    pub(super) fn forget_before(&self, today: Date, days: u32) {
        let Some(oldest) = today.checked_sub(time::Duration::days(days.into())).filter(|_| days > 0) else { return };
        for (path, _) in files(&self.dir).unwrap_or_default().into_iter().filter(|(_, day)| *day < oldest) {
            let _ = fs::remove_file(path.with_extension(BESIDE));
            match fs::remove_file(&path) {
                Ok(()) => tracing::info!(file = %path.display(), "an audit file is older than audit.retention_days and was deleted"),
                Err(error) => tracing::error!(file = %path.display(), %error, "an old audit file cannot be deleted"),
            }
        }
    }
}

/// Takes a file's lock, but does not wait for ever: whoever may read the file may hold it.
fn lock(file: &File) -> io::Result<()> {
    for _ in 0..LOCKED_WITHIN.as_millis() / TRY_AGAIN.as_millis() {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(TRY_AGAIN),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds its lock"))
}

/// Whether an open file is still the one of that name: whoever erases something puts another in its place.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    fs::symlink_metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|own| same(own, there)))
}

fn ends_whole(file: &mut File, len: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if len > 0 {
        file.seek(SeekFrom::Start(len - 1))?;
        file.read_exact(&mut last)?;
    }
    Ok(last == [b'\n'])
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
        let Ok(entry) = serde_json::from_slice::<serde_json::Value>(line) else {
            // What a sudden end has cut off: it is nobody's any more, but for the name in it.
            let name = serde_json::to_string(self.identity).unwrap_or_default();
            return String::from_utf8_lossy(line).contains(name.trim_end_matches('"'));
        };
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
    let entry = Entry { time: stamp(), event: "erased", entries: Some(erased), ..Entry::default() };
    Log::new(dir).append(now().date(), &line(&entry)).map_err(|e| cannot("write into", dir, &e))?;
    Ok(erased)
}

fn erase_in(path: &Path, subject: &Subject<'_>) -> io::Result<u64> {
    let file = loop {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
        lock(&file)?;
        if is_at(&file, path) {
            break file;
        }
    };
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
        let beside = path.with_extension(BESIDE);
        // One that an erasure before has left behind.
        let _ = fs::remove_file(&beside);
        let outcome = write_anew(&beside, file.metadata()?.mode() & 0o777, &kept).and_then(|()| fs::rename(&beside, path));
        if outcome.is_err() {
            let _ = fs::remove_file(&beside);
        }
        outcome?;
    }
    file.unlock()?;
    Ok(erased)
}

fn write_anew(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::control::audit::start;
    use crate::control::metrics::Gauges;
    use std::sync::Arc;
    use std::sync::atomic::Ordering::Relaxed;

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
        let said = ["consent", "postern.path"].map(|key| (key.to_owned(), "x".to_owned())).into();
        assert_eq!(audit.kept(&said).into_keys().collect::<Vec<_>>(), ["consent"]);
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
        let mut log = Log::new(&dir.0);
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
        let mut log = Log::new(&dir.0);
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

    #[test]
    fn two_erasures_at_once_and_a_server_that_writes_lose_nothing_else() {
        let dir = Dir::new("both");
        let (names, today) = (["ada", "bob", "eve"], now().date());
        let mut log = Log::new(&dir.0);
        for n in 0..300 {
            log.append(today, &line(&entry("joined", names[n % 3]))).expect("written");
        }
        std::thread::scope(|scope| {
            for gone in ["ada", "bob"] {
                let dir = &dir.0;
                scope.spawn(move || assert_eq!(erase(dir, &Subject { identity: gone, room: None }), Ok(100)));
            }
            for _ in 0..50 {
                log.append(today, &line(&entry("left", "eve"))).expect("written");
            }
        });
        let lines = dir.lines();
        let of = |name: &str| lines.iter().filter(|l| l["identity"] == name).count();
        assert_eq!((of("ada"), of("bob"), of("eve")), (0, 0, 150));
    }

    #[test]
    fn what_a_sudden_end_has_cut_off_swallows_nothing_and_is_erased_with_its_name() {
        let dir = Dir::new("torn");
        let (mut log, today) = (Log::new(&dir.0), now().date());
        let whole = line(&entry("joined", "ada"));
        fs::write(log.path(today), &whole[..whole.len() - 3]).expect("written");
        log.append(today, &line(&entry("joined", "bob"))).expect("written");
        assert_eq!(erase(&dir.0, &Subject { identity: "ada", room: None }), Ok(1));
        assert_eq!(dir.lines().iter().filter(|l| l["identity"] == "bob").count(), 1);
    }

    #[test]
    fn links_are_not_followed() {
        let dir = Dir::new("links");
        let (today, target) = (now().date(), dir.0.join("target"));
        fs::write(&target, "mine\n").expect("written");
        let mut log = Log::new(&dir.0);
        std::os::unix::fs::symlink(&target, log.path(today)).expect("a link");
        assert!(log.append(today, b"{}\n").is_err());
        assert!(erase(&dir.0, &Subject { identity: "ada", room: None }).is_err());
        assert_eq!(fs::read_to_string(&target).expect("readable"), "mine\n");
    }
}
