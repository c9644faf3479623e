//! The real binary as an administrator and a service manager handle it: mistakes in the config, certificates that are
//! replaced, reload, drain, what systemd is told, and a worker that is stuck.
#![allow(clippy::disallowed_methods, reason = "tests at the rim look at the clock")]

mod common;

use common::{free_ports, within};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", base64::engine::general_purpose::STANDARD.encode(der))
}

/// A host of its own: a folder, ports, an authority.
struct Host {
    dir: PathBuf,
    edge: u16,
    media: u16,
    turn: u16,
    admin: u16,
    authority: (CertificateParams, KeyPair, CertificateDer<'static>),
}

impl Host {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let nth = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("postern-host-{}-{nth}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        let [edge, media, turn, admin] = free_ports();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("an authority").der().clone();
        let host = Self { dir, edge, media, turn, admin, authority: (params, key, cert) };
        host.order("meet.example.eu", [2020, 2100]);
        host.configure("");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("postern.toml")
    }

    /// A certificate for a name, valid over these years, where the config says.
    fn order(&self, name: &str, years: [i32; 2]) {
        let (params, key, authority) = &self.authority;
        let mut leaf = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (leaf.not_before, leaf.not_after) = (rcgen::date_time_ymd(years[0], 1, 1), rcgen::date_time_ymd(years[1], 1, 1));
        let leaf_key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_params(params, key);
        let leaf = leaf.signed_by(&leaf_key, &issuer).expect("a leaf");
        fs::write(self.path("chain.pem"), pem(leaf.der()) + &pem(authority)).expect("written");
        fs::write(self.path("key.pem"), leaf_key.serialize_pem()).expect("written");
    }

    /// The authority, for those who are to trust it.
    fn authority_file(&self) {
        fs::write(self.path("ca.pem"), pem(&self.authority.2)).expect("written");
    }

    /// The config, with more at its end.
    fn configure(&self, more: &str) {
        let dir = self.dir.display();
        let mut text = format!(
            "[server]\ndomain = \"meet.example.eu\"\nworkers = 2\nruntime_dir = \"{dir}\"\n[network]\nbind_addresses = [\"127.0.0.1\"]\n"
        );
        let _ = write!(text, "edge_tcp_ports = [{}]\nmedia_udp_port = {}\nturn_ports = [{}]\n", self.edge, self.media, self.turn);
        let _ = write!(text, "[tls]\ncert_file = \"{dir}/chain.pem\"\nkey_file = \"{dir}/key.pem\"\n");
        let _ = write!(text, "[admin]\nlisten = \"127.0.0.1:{}\"\n[keys]\nfirst = \"{}\"\n{more}", self.admin, "s".repeat(32));
        // As editors do: whoever reads it meanwhile gets the old one or the new one, whole.
        let beside = self.path("postern.toml.new");
        fs::write(&beside, text).expect("written");
        fs::rename(beside, self.config()).expect("in place");
    }

    /// The config with more in a section that it has.
    fn configure_admin(&self, line: &str) {
        self.amend("[admin]", line);
    }

    fn configure_network(&self, line: &str) {
        self.amend("[network]", line);
    }

    fn amend(&self, section: &str, line: &str) {
        self.configure("");
        let text = fs::read_to_string(self.config()).expect("readable");
        fs::write(self.config(), text.replace(section, &format!("{section}\n{line}"))).expect("written");
    }

    /// A command of the binary, with the config.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command.args(args).arg("--config").arg(self.config()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> (bool, String) {
        let Output { status, stdout, stderr } = self.command(args).output().expect("it runs");
        (status.success(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
    }

    fn start(&self, environment: &[(&str, &str)]) -> Server<'_> {
        let log = fs::File::create(self.path("log")).expect("a file");
        let mut command = self.command(&["run"]);
        let child = command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(log).spawn().expect("it starts");
        let server = Server { host: self, child };
        within(Duration::from_secs(20), "the server is ready", || server.ready().starts_with("HTTP/1.1 200"));
        server
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

struct Server<'a> {
    host: &'a Host,
    child: Child,
}

impl Server<'_> {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.host.path("log")).unwrap_or_default()
    }

    /// What /readyz answers; nothing while nobody listens.
    fn ready(&self) -> String {
        self.admin("GET", "/readyz", "Host: localhost", "")
    }

    /// A request to the administrator's listener: head and body of the answer.
    fn admin(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.host.admin))) else { return String::new() };
        let mut text = String::new();
        let length = body.len();
        let _ = write!(stream, "{method} {path} HTTP/1.1\r\n{headers}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        let _ = stream.read_to_string(&mut text);
        text
    }

    /// A TLS connection that trusts the host's authority.
    fn connect(&self) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.host.authority.2.clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let session = rustls::ClientConnection::new(Arc::new(config), "meet.example.eu".try_into().expect("a name")).expect("a session");
        let tcp = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.host.edge))).expect("a connection");
        tcp.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        rustls::StreamOwned::new(session, tcp)
    }

    /// One request on a connection that stays open: status and body.
    fn ask(stream: &mut rustls::StreamOwned<rustls::ClientConnection, TcpStream>, path: &str) -> (u16, String) {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: meet.example.eu\r\n\r\n").expect("written");
        let mut bytes = Vec::new();
        let mut some = [0; 4096];
        loop {
            let n = stream.read(&mut some).expect("an answer");
            bytes.extend_from_slice(&some[..n]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.to_ascii_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if body.len() >= length.expect("a length") {
                return (head[9..12].parse().expect("a status"), body.to_owned());
            }
        }
    }

    /// The certificate that a client is shown now.
    fn shown(&self) -> CertificateDer<'static> {
        let mut stream = self.connect();
        Self::ask(&mut stream, "/nowhere");
        stream.conn.peer_certificates().expect("a certificate")[0].clone().into_owned()
    }

    fn ended(&mut self, why: &str) -> Option<i32> {
        let mut status = None;
        within(Duration::from_secs(30), why, || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        status.and_then(|s| s.code())
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn typical_mistakes_lead_to_their_remedy() {
    let host = Host::new();
    let (is_fine, said) = host.run(&["run", "--check"]);
    assert!(is_fine && said.contains("is fine"), "{said}");

    let rows: &[(&str, &dyn Fn(), &[&str])] = &[
        (
            "no certificate there",
            &|| fs::remove_file(host.path("chain.pem")).expect("gone"),
            &["tls.cert_file: cannot read", "check the path"],
        ),
        ("no PEM", &|| fs::write(host.path("chain.pem"), "hello").expect("written"), &["tls.cert_file", "holds no certificate"]),
        ("an expired one", &|| host.order("meet.example.eu", [2020, 2021]), &["expired on 2021-01-01", "renew it"]),
        (
            "not valid yet: a clock",
            &|| host.order("meet.example.eu", [2099, 2100]),
            &["valid only from 2099", "set the clock (timedatectl)"],
        ),
        (
            "another name",
            &|| host.order("www.example.eu", [2020, 2100]),
            &["is for www.example.eu, not for server.domain \"meet.example.eu\""],
        ),
        (
            "another key",
            &|| {
                host.order("meet.example.eu", [2020, 2100]);
                fs::write(host.path("key.pem"), KeyPair::generate().expect("a key").serialize_pem()).expect("written");
            },
            &["tls.key_file does not belong to tls.cert_file"],
        ),
        (
            "a typo",
            &|| host.configure("[limits]\nmesage_bytes = 5\n"),
            &["postern.toml", "line ", "mesage_bytes", "did you mean `message_bytes`?"],
        ),
        (
            "a key without a secret",
            &|| host.configure("second = \"\"\n"),
            &["line ", "keys: key \"second\" or its secret is empty", "postern keys"],
        ),
        ("a wrong CIDR", &|| host.configure("[turn]\ndenied_peers = [\"10.0.0.0/99\"]\n"), &["line ", "turn.denied_peers", "10.20.0.0/16"]),
        (
            "a port twice",
            &|| host.configure(&format!("[rooms]\n[log]\nlevel = \"info\"\n[turn]\nrelay_ports = [{0}, {0}]\n", 50_000)),
            &["turn.relay_ports", "two ports"],
        ),
        ("a token that can be guessed", &|| host.configure_admin("token = \"secret\""), &["admin.token: 6 characters", "at least 16"]),
        (
            "an address of nobody",
            &|| host.configure_network("public_addresses = [\"0.0.0.0\"]"),
            &["network.public_addresses", "0.0.0.0 is nobody's"],
        ),
        ("a relative folder", &|| host.configure("[audit]\ndir = \"logs\"\n"), &["audit.dir", "/var/log/postern"]),
    ];
    for (name, mistake, wants) in rows {
        host.configure("");
        host.order("meet.example.eu", [2020, 2100]);
        mistake();
        let (is_fine, said) = host.run(&["run", "--check"]);
        assert!(!is_fine, "{name}: {said}");
        for want in *wants {
            assert!(said.contains(want), "{name}: {said:?} does not say {want:?}");
        }
    }
    host.configure("");
    fs::remove_file(host.config()).expect("gone");
    let (is_fine, said) = host.run(&["run", "--check"]);
    assert!(!is_fine && said.contains("cannot read") && said.contains("--config"), "{said}");
}

#[test]
fn a_port_that_is_taken_and_an_address_that_is_not_here_are_named() {
    let host = Host::new();
    let other = std::net::TcpListener::bind(("127.0.0.1", host.edge)).expect("bound");
    let (_, said) = host.run(&["run"]);
    assert!(said.contains(&format!("cannot bind TCP 127.0.0.1:{}", host.edge)) && said.contains("another program"), "{said}");
    drop(other);
    let text = fs::read_to_string(host.config()).expect("read");
    fs::write(host.config(), text.replace("[\"127.0.0.1\"]", "[\"192.0.2.9\"]")).expect("written");
    let (_, said) = host.run(&["run"]);
    assert!(said.contains("no interface has this address: check network.bind_addresses"), "{said}");
}

#[test]
fn certificates_and_settings_change_under_a_running_server() {
    let host = Host::new();
    let server = host.start(&[]);
    let mut early = server.connect();
    assert_eq!(Server::ask(&mut early, "/nowhere").0, 404);
    let first = server.shown();

    // Renewed by whoever does that: seen by itself.
    host.order("meet.example.eu", [2021, 2100]);
    within(Duration::from_secs(10), "the new certificate is shown", || server.shown() != first);
    let second = server.shown();
    // Half of a renewal: the old one stays, and the log says why.
    let complaints = |server: &Server<'_>| server.log().matches("tls.key_file does not belong").count();
    let before = complaints(&server);
    fs::write(host.path("key.pem"), KeyPair::generate().expect("a key").serialize_pem()).expect("written");
    within(Duration::from_secs(10), "the log says what does not fit", || complaints(&server) > before);
    assert_eq!(server.shown(), second);
    let (is_fine, said) = host.run(&["reload"]);
    assert!(!is_fine && said.contains("failed, the old value stays: tls.key_file does not belong"), "{said}");
    host.order("meet.example.eu", [2022, 2100]);

    // Settings: what changes at once, and what does not.
    let token = |key: &str, secret: &str| {
        let args = ["token", "--room", "r", "--identity", "i", "--key", key, "--secret", secret];
        let out = Command::new(env!("CARGO_BIN_EXE_postern")).args(args).output().expect("it runs");
        String::from_utf8(out.stdout).expect("text").trim().to_owned()
    };
    let validate =
        |stream: &mut _, key: &str, secret: &str| Server::ask(stream, &format!("/rtc/validate?access_token={}", token(key, secret))).0;
    let secret = "t".repeat(32);
    assert_eq!(validate(&mut early, "second", &secret), 401);
    host.configure(&format!("second = \"{secret}\"\n[log]\nlevel = \"debug\"\n[limits]\nconnections_per_worker = 99\n"));
    let (is_fine, said) = host.run(&["reload"]);
    assert!(is_fine, "{said}");
    for want in ["applied: keys.second\n", "applied: log.level\n", "waits for a restart: limits.connections_per_worker\n"] {
        assert!(said.contains(want), "{said:?} does not say {want:?}");
    }
    assert!(!said.contains(&secret), "{said}");
    assert_eq!(validate(&mut early, "second", &secret), 200, "on the connection from before all that");
    // What does not fit changes nothing.
    host.configure("[limits]\nmessage_bytes = 0\n");
    let (is_fine, said) = host.run(&["reload"]);
    assert!(!is_fine && said.contains("failed, all stays as it was") && said.contains("limits.message_bytes"), "{said}");
    assert!(server.log().contains("failed, all stays as it was"), "the log says so too");
    // What changes at once may not fit what waits: nothing changes then.
    host.configure("[webhooks]\nurls = [\"http://127.0.0.1:9/\"]\napi_key = \"first\"\n");
    let (is_fine, said) = host.run(&["reload"]);
    assert!(is_fine && said.contains("applied: webhooks.api_key\n") && said.contains("waits for a restart: webhooks.urls\n"), "{said}");
    host.configure(&format!("second = \"{secret}\"\n"));
    assert!(host.run(&["reload"]).0);
    assert_eq!(validate(&mut early, "second", &secret), 200);
    assert!(!server.log().contains(&secret), "secrets are never logged");
}

#[test]
fn without_calls_it_ends_when_it_is_told_to() {
    let host = Host::new();
    let (is_fine, said) = host.run(&["drain"]);
    assert!(!is_fine && said.contains("no running server"), "{said}");
    let mut server = host.start(&[]);
    let (is_fine, said) = host.run(&["drain", "--within", "3600"]);
    assert!(is_fine && said.contains(&format!("process {} drains", server.child.id())), "{said}");
    assert_eq!(server.ended("nobody is there to wait for"), Some(0));
    assert!(!host.path("postern.pid").exists(), "nothing is left behind");
    let (is_fine, said) = host.run(&["reload"]);
    assert!(!is_fine && said.contains("no running server"), "{said}");
}

#[test]
fn the_service_manager_is_told_of_the_servers_life() {
    let host = Host::new();
    let socket = UnixDatagram::bind(host.path("notify")).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let path = host.path("notify").display().to_string();
    let mut server = host.start(&[("NOTIFY_SOCKET", &path)]);
    // The next message that says this.
    let next = |want: &str| {
        loop {
            let mut bytes = [0; 512];
            let n = socket.recv(&mut bytes).unwrap_or_else(|e| panic!("{want}: {e}"));
            let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
            if text.contains(want) {
                return text;
            }
        }
    };
    next("READY=1");
    next("WATCHDOG=1");
    kill(server.pid(), Signal::SIGHUP).expect("signalled");
    assert!(next("RELOADING=1").contains("MONOTONIC_USEC="));
    next("READY=1");
    kill(server.pid(), Signal::SIGTERM).expect("signalled");
    next("STOPPING=1");
    assert_eq!(server.ended("it was told to"), Some(0));
}

#[test]
fn a_machine_that_stands_still_is_nobodys_fault() {
    let host = Host::new();
    let server = host.start(&[]);
    kill(server.pid(), Signal::SIGSTOP).expect("signalled");
    // As long as makes a worker that stands still by itself count as stuck, and some.
    let start = Instant::now();
    within(Duration::from_secs(20), "the time is up", || start.elapsed() > Duration::from_secs(14));
    kill(server.pid(), Signal::SIGCONT).expect("signalled");
    within(Duration::from_secs(10), "it goes on", || server.ready().starts_with("HTTP/1.1 200"));
    // Two looks later.
    let goes_on = Instant::now();
    within(Duration::from_secs(10), "two more seconds", || goes_on.elapsed() > Duration::from_secs(3));
    assert!(server.ready().starts_with("HTTP/1.1 200"), "{}", server.log());
}

#[test]
fn a_stuck_worker_is_named_and_ends_the_process() {
    let host = Host::new();
    let mut server = host.start(&[]);
    // Stopped where it is, as a loop without end would.
    let tasks = fs::read_dir(format!("/proc/{}/task", server.child.id())).expect("threads");
    let worker =
        tasks.filter_map(Result::ok).map(|t| t.path()).find(|t| fs::read_to_string(t.join("comm")).is_ok_and(|c| c.trim() == "worker-1"));
    let tid = worker.and_then(|t| t.file_name()?.to_str()?.parse().ok()).map(Pid::from_raw).expect("a worker");
    ptrace::seize(tid, ptrace::Options::empty()).expect("seized");
    ptrace::interrupt(tid).expect("stopped");
    // A traced thread is its tracer's to bury; until then its process does not end.
    within(Duration::from_secs(30), "the thread ends", || {
        matches!(waitpid(tid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)), Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)))
    });
    assert_eq!(server.ended("a worker is stuck"), Some(70));
    assert!(server.log().contains("a worker is stuck; the process ends") && server.log().contains("worker=1"), "{}", server.log());
}

#[test]
fn the_dashboard_is_for_loopback_or_behind_a_token() {
    let host = Host::new();
    let status = |answer: &str| answer.get(9..12).unwrap_or_default().to_owned();
    let json = "Content-Type: application/json";
    {
        let server = host.start(&[]);
        let page = server.admin("GET", "/", "Host: localhost", "");
        assert!(
            page.starts_with("HTTP/1.1 200") && page.contains("default-src 'none'") && page.contains("frame-ancestors 'none'"),
            "{page}"
        );
        let state = server.admin("GET", "/api/v1/state", "Host: 127.0.0.1", "");
        let body = state.split_once("\r\n\r\n").expect("a body").1;
        let state: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!((state["server"]["phase"].as_str(), state["workers"].as_array().map(Vec::len)), (Some("ready"), Some(2)), "{state}");
        // A page elsewhere that has its name point here (DNS rebinding).
        assert_eq!(status(&server.admin("GET", "/api/v1/state", "Host: rebound.example", "")), "403");
        // Nor does whoever stands behind a proxy on this machine.
        assert_eq!(status(&server.admin("GET", "/api/v1/state", "Host: 127.0.0.1:7881\r\nX-Forwarded-For: 192.0.2.9", "")), "403");
        let whom = r#"{"room":"none","identity":"nobody"}"#;
        assert_eq!(status(&server.admin("POST", "/api/v1/remove", &format!("Host: localhost\r\n{json}"), whom)), "404");
        // Nor may a page post what needs no question before it.
        assert_eq!(status(&server.admin("POST", "/api/v1/remove", "Host: localhost\r\nContent-Type: text/plain", whom)), "415");
    }
    host.configure_admin(&format!("token = \"{}\"", "t".repeat(20)));
    let server = host.start(&[]);
    for (headers, want) in [
        ("Host: localhost".to_owned(), "401"),
        (format!("Host: localhost\r\nAuthorization: Bearer {}", "t".repeat(19)), "401"),
        (format!("Host: meet.example.eu\r\nAuthorization: Bearer {}", "t".repeat(20)), "200"),
    ] {
        for path in ["/api/v1/state", "/metrics"] {
            assert_eq!(status(&server.admin("GET", path, &headers, "")), want, "{path} {headers}");
        }
    }
    assert_eq!(status(&server.admin("GET", "/healthz", "Host: x", "")), "200", "who watches over it needs none");
}

/// A day of short calls in a minute or two: settings and certificates change in between, and neither a call nor a descriptor is lost.
/// `POSTERN_SOAK_CALLS` says how many (`make soak`).
#[test]
fn short_calls_while_settings_and_certificates_change() {
    let calls: u32 = std::env::var("POSTERN_SOAK_CALLS").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    let host = Host::new();
    let limits = "[limits]\njoins_per_second_per_address = 100000\n";
    let rooms = |participants_max: u32| format!("[rooms]\ndeparture_timeout_s = 1\nparticipants_max = {participants_max}\n{limits}");
    host.configure(&rooms(100));
    host.authority_file();
    let server = host.start(&[]);
    let load = |calls: u32, prefix: &str| {
        let mut command = host.command(&[
            "load",
            "--json",
            "--publishers",
            "2",
            "--rooms",
            "60",
            "--duration",
            "1.5",
            "--join-rate",
            "120",
            "--layers",
            "1",
        ]);
        command.args(["--calls", &calls.to_string(), "--room-prefix", prefix, "--pid", &server.pid().to_string()]);
        command.args(["--url", "wss://meet.example.eu", "--address", &format!("127.0.0.1:{}", host.edge)]);
        command.arg("--ca-file").arg(host.path("ca.pem")).stdout(Stdio::piped());
        command.stderr(fs::File::create(host.path("load-log")).expect("a file"));
        command.spawn().expect("it starts")
    };
    let read = |child: Child| {
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let why = fs::read_to_string(host.path("load-log")).unwrap_or_default();
        assert!(output.status.success(), "{said}\n{why}\n{}", server.log());
        serde_json::from_str::<serde_json::Value>(&said).expect("JSON")
    };
    let is_quiet = || {
        let metrics = server.admin("GET", "/metrics", "Host: localhost", "");
        let value = |name: &str| metrics.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok());
        let are_gone =
            ["postern_rooms ", "postern_participants ", "postern_worker_transports{worker=\"0\"} "].iter().all(|n| value(n) == Some(0.0));
        are_gone
            .then(|| (value("postern_process_memory_bytes ").unwrap_or_default(), value("postern_process_open_files ").unwrap_or_default()))
    };
    let settled = || {
        let mut found = None;
        within(Duration::from_secs(60), "nobody is left, and no connection", || {
            let next = is_quiet();
            let is_steady = next.is_some() && next.map(|n| n.1) == found.map(|(_, files)| files);
            found = next;
            is_steady
        });
        found.expect("figures")
    };
    read(load(200 + calls / 10, "warm-"));
    let (memory_before, files_before) = settled();
    let mut child = load(calls, "call-");
    let mut changes = 0;
    within(Duration::from_secs(1_800), "all calls are over", || {
        if child.try_wait().expect("a child").is_some() {
            return true;
        }
        host.configure(&rooms(100 + changes % 2));
        if changes % 4 == 0 {
            host.order("meet.example.eu", [2020, 2100]);
        }
        let (is_fine, said) = host.run(&["reload"]);
        assert!(is_fine, "{said}");
        changes += 1;
        false
    });
    let report = read(child);
    assert_eq!(report["joins"]["count"].as_u64(), Some(u64::from(2 * calls)), "{report:#}");
    // A machine that stands still for a moment loses datagrams in socket buffers of the size that Debian allows.
    let count = |key: &str| report[key].as_u64().expect("a count");
    assert!(count("packets_lost") * 200 < count("packets_received"), "{report:#}");
    assert!(changes > 2, "{changes}");
    let (memory_after, files_after) = settled();
    eprintln!(
        "{calls} calls, {changes} changes: memory {memory_before} -> {memory_after}, files {files_before} -> {files_after}\n{report:#}"
    );
    assert!(memory_after < memory_before * 1.2 + 8e6, "{memory_before} -> {memory_after}");
    assert!((files_after - files_before).abs() < 8.0, "{files_before} -> {files_after}");
}

#[test]
fn a_disk_that_is_full_loses_entries_and_says_so() {
    use std::os::unix::fs::MetadataExt;
    if fs::metadata("/proc/self").expect("a process").uid() != 0 {
        return eprintln!("skipped without root: a disk of its own");
    }
    let host = Host::new();
    let disk = host.path("disk");
    fs::create_dir_all(&disk).expect("a folder");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "postern-test"]).arg(&disk).status().expect("mount");
    assert!(mount.success());
    let _unmounted = Unmounted(disk.clone());
    host.configure(&format!("[audit]\ndir = \"{}\"\n", disk.display()));
    let server = host.start(&[]);
    fs::write(disk.join("ballast"), vec![0; 60 * 1024]).expect("nearly full");
    let _ = fs::write(disk.join("more"), vec![0; 60 * 1024]);
    let token = host.run(&["token", "--room", "a", "--identity", "b"]).1;
    let mut stream = server.connect();
    // A join that nobody answers: it is noted all the same.
    let path = format!("/rtc?access_token={}&protocol=16", token.trim());
    write!(stream, "GET {path} HTTP/1.1\r\nHost: meet.example.eu\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\n\r\n").expect("written");
    let mut some = [0; 64];
    let n = stream.read(&mut some).expect("an answer");
    assert!(some[..n].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&some[..n]));
    within(Duration::from_secs(10), "the log says it", || server.log().contains("entries of the audit log are lost"));
    let log = server.log();
    assert!(log.contains("the disk is full: make room, or shorten audit.retention_days"), "{log}");
    let metrics = server.admin("GET", "/metrics", "Host: localhost", "");
    let lost =
        metrics.lines().find_map(|l| l.strip_prefix("postern_audit_entries_total{outcome=\"dropped\"} ")?.trim().parse::<u32>().ok());
    assert!(lost.is_some_and(|n| n > 0), "{lost:?}");
    // Room again, and the next entry is there, whole.
    fs::remove_file(disk.join("ballast")).expect("gone");
    let _ = fs::remove_file(disk.join("more"));
    drop(stream);
    within(Duration::from_secs(40), "the end of the stay is noted", || {
        host.run(&["audit", "show", "--identity", "b"]).1.lines().any(|line| line.contains("\"event\":\"left\"") && line.ends_with('}'))
    });
}

struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
