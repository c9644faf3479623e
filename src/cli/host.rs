//! What the host may be short of: said at start, with the remedy, before it is felt.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use postern::config::Config;
use std::time::SystemTime;

/// What UDP sockets ask for, bytes.
const SOCKET_BUFFER: u64 = 4 * 1024 * 1024;
/// Descriptors beside those of connections: sockets, files, HTTP.
const DESCRIPTORS_BESIDE: u64 = 8_192 + 256;
/// 2026, in which this was written: no right clock says less.
const WRITTEN: u64 = 1_767_225_600;

/// Warns of what is too small, and takes all that the host allows.
pub fn look(config: &Config, workers: usize) {
    for (key, what) in [("rmem_max", "received"), ("wmem_max", "sent")] {
        let path = format!("/proc/sys/net/core/{key}");
        let Some(bytes) = std::fs::read_to_string(&path).ok().and_then(|t| t.trim().parse::<u64>().ok()) else { continue };
        if bytes < SOCKET_BUFFER {
            tracing::warn!(
                "net.core.{key} is {bytes}, {SOCKET_BUFFER} are needed: bursts that are {what} get lost; see /usr/share/postern/99-postern.conf"
            );
        }
    }
    let needed = (workers * config.limits.connections_per_worker) as u64 + DESCRIPTORS_BESIDE;
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        if hard < needed {
            tracing::warn!(
                "{hard} file descriptors are allowed, limits.connections_per_worker for {workers} workers needs {needed}: set LimitNOFILE in the unit, or `ulimit -n`"
            );
        }
    }
    #[allow(clippy::disallowed_methods, reason = "it is the clock that is looked at")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if now < WRITTEN {
        tracing::error!("this machine's clock says {now} s after 1970: tokens and certificates will be refused; set it (timedatectl)");
    }
}
