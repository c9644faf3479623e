//! What a running server leaves in `server.runtime_dir`, and what `postern reload` and `postern drain` find there: its process
//! id, and one small file each for what they tell each other.

use super::owner::become_owner;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern::config::Server;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PID: &str = "postern.pid";
/// What became of the last reload.
const RELOADED: &str = "reloaded";
/// How long calls may go on, seconds.
const DRAIN_WITHIN: &str = "drain-within";
/// A week.
pub const WITHIN_MAX_S: u64 = 604_800;

pub struct RuntimeDir(PathBuf);

/// Takes the process id away when the server ends.
pub struct Announced(PathBuf);

impl Drop for Announced {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl RuntimeDir {
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The one of a config file, whatever else that says: a command has to reach its server although an administrator is just
    /// writing the file, and without the environment that the server has.
    pub fn of(config: &Path) -> Self {
        let table = fs::read_to_string(config).ok().and_then(|text| text.parse::<toml::Table>().ok());
        let of_file = table.as_ref().and_then(|t| t.get("server")?.get("runtime_dir")?.as_str()).map(PathBuf::from);
        let of_environment = std::env::var_os("POSTERN_SERVER_RUNTIME_DIR").map(PathBuf::from);
        Self(of_environment.or(of_file).unwrap_or_else(|| Server::default().runtime_dir))
    }

    // ---- the server's side ----------------------------------------------------------------------------------------

    /// Leaves this process's id. A server runs without, too.
    pub fn announce(&self) -> Option<Announced> {
        if let Ok(other) = self.running()
            && other != Pid::this()
        {
            tracing::warn!(%other, dir = %self.0.display(), "another Postern has this server.runtime_dir: reload and drain go to that one");
            return None;
        }
        let file = self.0.join(PID);
        let written = fs::create_dir_all(&self.0).and_then(|()| fs::write(&file, format!("{}\n", Pid::this())));
        match written {
            Ok(()) => Some(Announced(file)),
            Err(error) => {
                tracing::warn!(
                    file = %file.display(), %error,
                    "cannot write the process id: `postern reload` and `postern drain` will not find this server; set server.runtime_dir"
                );
                None
            }
        }
    }

    pub fn tell_reloaded(&self, outcome: &str) {
        // Whole or not at all: somebody is waiting for it.
        let part = self.0.join("reloaded.part");
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part);
        let written = file.and_then(|mut file| file.write_all(outcome.as_bytes()));
        if let Err(error) = written.and_then(|()| fs::rename(&part, self.0.join(RELOADED))) {
            tracing::warn!(%error, "cannot write what became of the reload");
        }
    }

    pub fn drain_within(&self) -> Option<Duration> {
        let file = self.0.join(DRAIN_WITHIN);
        let unread = |e: &std::io::Error| tracing::error!(error = %e, file = %file.display(), "how long calls may go on cannot be read");
        let text = fs::read_to_string(&file)
            .inspect_err(|e| {
                if e.kind() != ErrorKind::NotFound {
                    unread(e)
                }
            })
            .ok()?;
        text.trim().parse().ok().map(|seconds: u64| Duration::from_secs(seconds.min(WITHIN_MAX_S)))
    }

    // ---- the commands' side ---------------------------------------------------------------------------------------

    /// The running server's process id.
    pub fn running(&self) -> Result<Pid, String> {
        let file = self.0.join(PID);
        let text = fs::read_to_string(&file).map_err(|e| {
            format!("no running server: cannot read {}: {e}; is it started, and server.runtime_dir the one of its config?", file.display())
        })?;
        let pid: i32 = text.trim().parse().map_err(|_| format!("{} holds no process id: delete it", file.display()))?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if !name.trim().starts_with("postern") {
            return Err(format!("no running server: process {pid} of {} is gone", file.display()));
        }
        Ok(Pid::from_raw(pid))
    }

    /// Has the running server read its config again; waits for what becomes of it.
    pub fn reload(&self) -> Result<String, String> {
        let server = self.running()?;
        become_owner("server.runtime_dir", &self.0)?;
        let file = self.0.join(RELOADED);
        if let Err(error) = fs::remove_file(&file)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(format!("cannot remove {}: {error}; be root or the server's own user", file.display()));
        }
        kill(server, Signal::SIGHUP).map_err(|e| refused(server, e))?;
        for _ in 0..200 {
            if let Ok(outcome) = fs::read_to_string(&file) {
                return Ok(outcome);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(format!("process {server} does not say what became of it within 10 s: look into its log"))
    }

    /// Has the running server end once calls have, or after so long.
    pub fn drain(&self, within: Option<Duration>) -> Result<Pid, String> {
        let server = self.running()?;
        become_owner("server.runtime_dir", &self.0)?;
        let file = self.0.join(DRAIN_WITHIN);
        match within {
            // The server's user reads it, whatever the umask of whoever writes.
            Some(within) => fs::write(&file, within.as_secs().to_string())
                .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o644)))
                .map_err(|e| format!("cannot write {}: {e}", file.display()))?,
            None => drop(fs::remove_file(&file)),
        }
        kill(server, Signal::SIGUSR1).map_err(|e| refused(server, e))?;
        Ok(server)
    }
}

fn refused(server: Pid, error: nix::errno::Errno) -> String {
    format!("cannot signal process {server}: {error}; be root or the server's own user")
}
