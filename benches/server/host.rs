//! The machine: cores, processor time, memory.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// Pins the calling thread.
pub fn pin(core: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).map_err(|e| format!("core {core}: {e}"))
}

/// Id of the calling thread, for [`thread_cpu_s`].
pub fn thread_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// Run time of the calling thread, to the nanosecond: what /proc and getrusage(2) say of it is as old as its last tick.
pub fn own_cpu_s() -> f64 {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().map_or(f64::NAN, |time| Duration::from(time).as_secs_f64())
}

/// Run time of another thread of this process (proc(5): schedstat).
pub fn thread_cpu_s(thread: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// Memory of a process that is its own and no file's, bytes: what it has allocated.
pub fn anonymous_bytes(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0
}

pub fn load_average() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" ")
}

pub fn describe() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("an unknown processor", |(_, m)| m);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = cpu.lines().filter(|l| l.starts_with("processor")).count();
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

/// Waits until something holds; the error says what did not.
pub fn until(within: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
    let end = std::time::Instant::now() + within;
    while !holds() {
        if std::time::Instant::now() > end {
            return Err(format!("{what}: not within {} s", within.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}
