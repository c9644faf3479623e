//! The servers that are measured: child processes on core 0, with ports and state of their own.

use super::host;
use postern::load::Usage;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub const EDGE: u16 = 17_443;
pub const TURN: u16 = 13_478;
const ADMIN: u16 = 17_881;
/// What relays and tokens are signed with.
pub const SECRET: &str = "bench-secret";

/// A child that ends with its owner.
pub struct Process {
    child: Child,
    pub state: PathBuf,
}

impl Process {
    /// Starts a program on the given cores, in the network namespace of the calling thread.
    pub fn start(program: &Path, args: &[&str], cores: &str, name: &str) -> Result<Self, String> {
        let state = std::env::temp_dir().join(format!("postern-bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&state).map_err(|e| format!("{}: {e}", state.display()))?;
        let log = fs::File::create(state.join("log")).map_err(|e| e.to_string())?;
        let mut command = Command::new("taskset");
        command.args(["-c", cores]).arg(program).args(args).current_dir(&state).env("RUNTIME_DIRECTORY", &state);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log);
        let child = command.spawn().map_err(|e| format!("{name}: {e}"))?;
        Ok(Self { child, state })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn cpu_s(&self) -> f64 {
        Usage::of(self.pid()).map_or(f64::NAN, |u| u.cpu_s)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.state.join("log")).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.state);
    }
}

pub struct Server {
    pub process: Process,
    pub ip: IpAddr,
    pub authority: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(state) = self.authority.parent() {
            let _ = fs::remove_dir_all(state);
        }
    }
}

impl Server {
    /// Postern with so many workers, pinned to so many cores, at this address.
    pub fn start(ip: IpAddr, workers: usize) -> Result<Self, String> {
        Self::with_turn(ip, workers, "")
    }

    /// One whose relay is open to this host. The sockets of those who use it are on this host too: relays have ports below theirs.
    pub fn open(ip: IpAddr) -> Result<Self, String> {
        Self::with_turn(ip, 1, &format!("peers = [\"{ip}/32\"]\nrelay_ports = [20000, 26000]\n"))
    }

    fn with_turn(ip: IpAddr, workers: usize, turn_lines: &str) -> Result<Self, String> {
        let state = std::env::temp_dir().join(format!("postern-bench-{}-config-{ip}", std::process::id()));
        fs::create_dir_all(&state).map_err(|e| e.to_string())?;
        let config = state.join("postern.toml");
        let text = format!(
            "[server]\ndomain = \"{ip}\"\nworkers = {workers}\n\
             [network]\nbind_addresses = [\"{ip}\"]\nedge_tcp_ports = [{EDGE}]\nmedia_udp_port = {EDGE}\nturn_ports = [{TURN}]\n\
             [tls]\nmode = \"self-signed\"\nstate_dir = \"{0}\"\n[keys]\ndevkey = \"{SECRET}\"\n\
             [turn]\n{turn_lines}shared_secrets = [\"{SECRET}\"]\nallocations_per_user = 1000000\n\
             [rooms]\nparticipants_max = 5000\nstreams_together = {1}\n[admin]\nlisten = \"{2}\"\n\
             [limits]\njoins_per_second_per_address = 100000\nallocations_per_worker = 1000000\nhalf_open_per_address = 10000\n\
             [log]\nlevel = \"warn\"\n",
            state.display(),
            if workers > 1 { 1 } else { 100_000 },
            admin(ip),
        );
        fs::write(&config, text).map_err(|e| e.to_string())?;
        let program = Path::new(env!("CARGO_BIN_EXE_postern"));
        let config = config.to_string_lossy().into_owned();
        let process =
            Process::start(program, &["run", "--config", &config], if workers > 1 { "0,1" } else { "0" }, &format!("server-{ip}"))?;
        let server = Self { process, ip, authority: state.join("ca.pem") };
        host::until(Duration::from_secs(20), "the server is ready", || get(ip, "/readyz").is_some_and(|a| a.starts_with("HTTP/1.1 200")))
            .map_err(|e| format!("{e}\n{}", server.process.log()))?;
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("wss://{}:{EDGE}", self.ip)
    }

    pub fn media(&self) -> SocketAddr {
        SocketAddr::new(self.ip, EDGE)
    }

    /// A counter of `/metrics`, by its whole name.
    pub fn counter(&self, name: &str) -> u64 {
        let metrics = get(self.ip, "/metrics").unwrap_or_default();
        metrics.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap_or(0.0) as u64
    }
}

/// Where a server tells of itself, which it does on loopback only.
fn admin(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(if ip.is_loopback() { ip } else { IpAddr::V4(Ipv4Addr::LOCALHOST) }, ADMIN)
}

fn get(ip: IpAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(admin(ip)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A program of the path, if it is installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder: PathBuf| Path::new(&folder).join(name)).find(|file| file.is_file())
}
