//! The real binary on loopback, with ports and state of its own.
#![allow(dead_code, reason = "each file of tests uses its part")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Under `[turn]`: a relay that is open to this host.
pub const OPEN: &str = "peers = [\"127.0.0.0/8\", \"::1/128\"]\n";

static STARTED: AtomicU32 = AtomicU32::new(0);

pub struct Server {
    child: Child,
    pub http: SocketAddr,
    pub edge: SocketAddr,
    pub turn: SocketAddr,
    pub media: SocketAddr,
    pub admin: SocketAddr,
    pub state: PathBuf,
}

/// Ports for one server. Below those that the kernel gives to clients, and none twice: between looking and binding, somebody
/// else's connection or another test's server would take one of the kernel's.
pub fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = || (std::process::id().wrapping_mul(200) + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000 + 10_000;
    let is_free = |port: u16| {
        let at = (Ipv4Addr::LOCALHOST, port);
        TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok()
    };
    std::array::from_fn(|_| {
        loop {
            if let Some(port) = u16::try_from(next()).ok().filter(|p| is_free(*p)) {
                break port;
            }
        }
    })
}

impl Server {
    /// Starts `postern dev` and waits until it is ready.
    pub fn start(workers: u8) -> Self {
        let [http, edge, media, turn, admin] = free_ports();
        let nth = STARTED.fetch_add(1, Ordering::Relaxed);
        let state = std::env::temp_dir().join(format!("postern-test-{}-{nth}", std::process::id()));
        let flags = [("--port", http), ("--edge-port", edge), ("--media-port", media), ("--turn-port", turn), ("--admin-port", admin)];
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command.arg("dev").args(["--workers", &workers.to_string()]);
        for (flag, port) in flags {
            command.args([flag, &port.to_string()]);
        }
        let child = command.env("XDG_STATE_HOME", &state).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts");
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let server = Self { child, http: at(http), edge: at(edge), turn: at(turn), media: at(media), admin: at(admin), state };
        server.once_ready()
    }

    /// Starts `postern run` with a relay that is open to this host, and users alice (a) and bob (b).
    pub fn open(workers: u8) -> Self {
        Self::run(workers, "peers = [\"127.0.0.0/8\", \"::1/128\"]\ndenied_peers = [\"127.0.9.0/24\"]\nallocations_per_user = 120")
    }

    /// `postern run` with these lines under `[turn]`, and perhaps sections behind them.
    pub fn run(workers: u8, turn_lines: &str) -> Self {
        let [edge, media, turn, admin] = free_ports();
        let nth = STARTED.fetch_add(1, Ordering::Relaxed);
        let state = std::env::temp_dir().join(format!("postern-test-{}-{nth}", std::process::id()));
        std::fs::create_dir_all(&state).expect("a folder");
        let file = state.join("postern.toml");
        let text = format!(
            "[server]\ndomain = \"localhost\"\nworkers = {workers}\nruntime_dir = \"{0}\"\n\
             [network]\nbind_addresses = [\"127.0.0.1\", \"::1\"]\nedge_tcp_ports = [{edge}]\nmedia_udp_port = {media}\nturn_ports = [{turn}]\n\
             trusted_proxies = [\"127.0.0.7/32\"]\n[tls]\nmode = \"self-signed\"\nstate_dir = \"{0}/postern\"\n[keys]\ndevkey = \"secret\"\n\
             [admin]\nlisten = \"127.0.0.1:{admin}\"\n[turn]\nrealm = \"realm\"\nusers = {{ alice = \"a\", bob = \"b\" }}\n{turn_lines}\n",
            state.display(),
        );
        std::fs::write(&file, text).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command.args(["run", "--config"]).arg(&file);
        let log = std::fs::File::create(state.join("log")).expect("a file");
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("the binary starts");
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { child, http: at(edge), edge: at(edge), turn: at(turn), media: at(media), admin: at(admin), state }.once_ready()
    }

    fn once_ready(self) -> Self {
        within(Duration::from_secs(20), "the server is ready", || {
            TcpStream::connect(self.admin).is_ok() && self.get(self.admin, "/readyz", "").starts_with("HTTP/1.1 200")
        });
        self
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written, of one that was started by [`Server::run`].
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.join("log")).unwrap_or_default()
    }

    /// One HTTP request; the whole answer as text.
    pub fn get(&self, to: SocketAddr, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(to).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let connection = if headers.starts_with("Connection: ") { "" } else { "Connection: close\r\n" };
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {to}\r\n{connection}{headers}\r\n").expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    }

    /// One number of /metrics, by its name with labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get(self.admin, "/metrics", "");
        let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name} is not in\n{text}"));
        line.trim().parse().expect("a number")
    }

    /// Packets that were dropped for this reason.
    pub fn drops(&self, reason: &str) -> u64 {
        self.metric(&format!("postern_drops_total{{reason=\"{reason}\"}}"))
    }

    /// Runs a command of one that was started by [`Server::run`]; what it says.
    pub fn command(&self, args: &[&str]) -> String {
        let file = self.state.join("postern.toml");
        let output = Command::new(env!("CARGO_BIN_EXE_postern")).args(args).arg("--config").arg(&file).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Resident memory, bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a process");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a figure");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// A TLS client that trusts the server's own authority.
    pub fn tls(&self, alpn: &[&[u8]]) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        let name = "localhost".try_into().expect("a name");
        let session = rustls::ClientConnection::new(self.tls_config(alpn), name).expect("a session");
        let tcp = TcpStream::connect(self.edge).expect("a connection");
        tcp.set_read_timeout(Some(patient())).expect("a timeout");
        rustls::StreamOwned::new(session, tcp)
    }

    pub fn tls_config(&self, alpn: &[&[u8]]) -> std::sync::Arc<rustls::ClientConfig> {
        use rustls::pki_types::pem::PemObject;
        let ca = rustls::pki_types::CertificateDer::from_pem_file(self.state.join("postern/ca.pem")).expect("the authority");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).expect("a certificate");
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        std::sync::Arc::new(config)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

/// A connection that comes from this address of the host.
pub fn connect_from(ip: &str, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(ip.parse().expect("an address"), 0).into()).expect("bound");
    socket.connect(&to.into()).expect("connected");
    let tcp = TcpStream::from(socket);
    tcp.set_read_timeout(Some(patient())).expect("a timeout");
    tcp
}

/// How long anything is waited for that must come.
pub fn patient() -> Duration {
    Duration::from_secs(10)
}

/// Looks again and again until `condition` holds.
pub fn within(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < deadline, "did not happen within {deadline:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
