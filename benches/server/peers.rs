//! Other servers under the same load: coturn from Debian's package, LiveKit's server as a Go module.

use super::host;
use super::server::{Process, SECRET, TURN, installed};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

pub struct Coturn {
    pub process: Process,
}

impl Coturn {
    /// Beside our own server, with which it is measured in turns.
    pub const PORT: u16 = TURN + 10;

    pub fn start() -> Result<Self, String> {
        let program = installed("turnserver").ok_or("coturn is not installed: apt-get install coturn")?;
        let port = Self::PORT.to_string();
        let args = [
            "-n",
            "--no-cli",
            "--no-tls",
            "--no-dtls",
            "-L",
            "127.0.0.1",
            "-p",
            &port,
            "-r",
            "bench",
            "--use-auth-secret",
            "--static-auth-secret",
            SECRET,
            "-m",
            "1",
            "--allow-loopback-peers",
            // As ours: below those that its users' sockets have.
            "--min-port",
            "26001",
            "--max-port",
            "32700",
            "--pidfile",
            "pid",
            "--log-file",
            "stdout",
        ];
        let process = Process::start(&program, &args, "0", "coturn")?;
        host::until(Duration::from_secs(20), "coturn listens", || TcpStream::connect(("127.0.0.1", Self::PORT)).is_ok())
            .map_err(|e| format!("{e}\n{}", process.log()))?;
        Ok(Self { process })
    }
}

const HTTP: u16 = 17_880;

pub struct LiveKit {
    pub process: Process,
}

impl LiveKit {
    pub fn start() -> Result<Self, String> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/livekit/server");
        if !program.is_file() {
            return Err("LiveKit's server is not built: make target/livekit/server (needs Go 1.25)".into());
        }
        // A secret of LiveKit's has 32 characters at least; shorter ones are taken with a warning.
        let config = format!(
            "port: {HTTP}\nbind_addresses: [127.0.0.1]\nkeys: {{devkey: {SECRET}}}\nlogging: {{level: error}}\n\
             rtc: {{udp_port: 17882, tcp_port: 17883, node_ip: 127.0.0.1, use_external_ip: false, enable_loopback_candidate: true}}\n"
        );
        let process = Process::start(&program, &["--config-body", &config], "0", "livekit")?;
        host::until(Duration::from_secs(30), "LiveKit's server listens", || TcpStream::connect(("127.0.0.1", HTTP)).is_ok())
            .map_err(|e| format!("{e}\n{}", process.log()))?;
        Ok(Self { process })
    }

    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{HTTP}")
    }
}
