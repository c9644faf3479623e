//! What a process has used so far: processor time, memory, files.

use std::fs;

const PAGE: u64 = 4_096;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu_s: f64,
    pub memory_bytes: u64,
    pub open_files: u64,
}

impl Usage {
    /// `None` when there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        let pages = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let resident: u64 = pages.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let open_files = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count() as u64);
        Some(Self { cpu_s: cpu_s(pid)?, memory_bytes: resident * PAGE, open_files })
    }

    pub fn own() -> Self {
        Self::of(std::process::id()).unwrap_or_default()
    }

    /// Growth of what is counted; memory and files as they are now.
    pub fn since(self, before: &Self) -> Self {
        Self { cpu_s: self.cpu_s - before.cpu_s, ..self }
    }
}

/// Run time of all threads, exact to the nanosecond (proc(5): schedstat); threads that have ended are in `stat` alone, which
/// counts hundredths of a second. The larger of both is nearer to the truth.
fn cpu_s(pid: u32) -> Option<f64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let run_ns = |path: std::path::PathBuf| fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok();
    let exact = threads.flatten().filter_map(|t| run_ns(t.path())).sum::<u64>() as f64 / 1e9;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let counted = (user + system) / 100.0;
    Some(if counted > exact + 1.0 { counted } else { exact })
}
