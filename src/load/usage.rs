//! What a process has used so far: processor time, memory, files.

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
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

/// Run time of all its threads, those that have ended included, in nanoseconds, where `/proc/PID/stat` counts hundredths of a second; of a
/// thread that runs just now, as of its last tick (clock_getcpuclockid(3)).
fn cpu_s(pid: u32) -> Option<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid).ok()?)).ok()?;
    Some(std::time::Duration::from(clock.now().ok()?).as_secs_f64())
}
