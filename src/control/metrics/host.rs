//! What the host and this process have to do: read when it is asked for, at most once a second.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use sysinfo::{MemoryRefreshKind, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// How old figures may be: shares of processor time need a while to be measured.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// Where the kernel lists UDP sockets: their ports and what they dropped.
const UDP_SOCKETS: [&str; 2] = ["/proc/self/net/udp", "/proc/self/net/udp6"];
const OPEN_FILES: &str = "/proc/self/fd";

/// Figures of one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Share of all processors' time, 0 to 1.
    pub cpu_ratio: f64,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    pub process_cpu_seconds: f64,
    pub process_memory_bytes: u64,
    pub open_files: u64,
    pub open_files_max: u64,
    /// Datagrams that found the buffers of our sockets full.
    pub udp_socket_drops: u64,
    pub interfaces: Vec<Interface>,
}

/// Totals of a network interface.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Interface {
    pub name: String,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub received_errors: u64,
    pub sent_errors: u64,
}

/// The host that this process runs on.
#[derive(Clone, Debug)]
pub struct Host {
    /// UDP ports that are ours.
    ports: Arc<[u16]>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    system: System,
    networks: Networks,
    figures: Figures,
    read_at: Option<Instant>,
}

impl Host {
    pub fn new(ports: &[u16]) -> Self {
        let state = State { system: System::new(), networks: Networks::new(), figures: Figures::default(), read_at: None };
        Self { ports: ports.into(), state: Arc::new(Mutex::new(state)) }
    }

    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    pub fn figures(&self) -> Figures {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.read_at.is_none_or(|at| now.duration_since(at) >= FRESH_FOR) {
            state.read_at = Some(now);
            state.read(&self.ports);
        }
        state.figures.clone()
    }
}

impl State {
    fn read(&mut self, ports: &[u16]) {
        let own = Pid::from_u32(std::process::id());
        self.system.refresh_cpu_usage();
        self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
        self.networks.refresh(true);
        let process = self.system.process(own);
        let mut interfaces: Vec<Interface> = self
            .networks
            .iter()
            .map(|(name, data)| Interface {
                name: name.clone(),
                received_bytes: data.total_received(),
                sent_bytes: data.total_transmitted(),
                received_errors: data.total_errors_on_received(),
                sent_errors: data.total_errors_on_transmitted(),
            })
            .collect();
        interfaces.sort_by(|a, b| a.name.cmp(&b.name));
        self.figures = Figures {
            cpu_ratio: f64::from(self.system.global_cpu_usage()) / 100.0,
            memory_used_bytes: self.system.used_memory(),
            memory_total_bytes: self.system.total_memory(),
            process_cpu_seconds: process.map_or(0.0, |p| p.accumulated_cpu_time() as f64 / 1_000.0),
            process_memory_bytes: process.map_or(0, sysinfo::Process::memory),
            open_files: std::fs::read_dir(OPEN_FILES).map_or(0, |files| files.count() as u64),
            open_files_max: nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            udp_socket_drops: UDP_SOCKETS.iter().filter_map(|path| std::fs::read_to_string(path).ok()).map(|t| drops(&t, ports)).sum(),
            interfaces,
        };
    }
}

/// What sockets on these ports dropped, as the kernel lists it (proc(5)): the second column is `address:port` in hex, the last
/// one the drops.
fn drops(table: &str, ports: &[u16]) -> u64 {
    let of_line = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let port = columns.nth(1)?.rsplit(':').next()?;
        let is_ours = ports.contains(&u16::from_str_radix(port, 16).ok()?);
        columns.last().filter(|_| is_ours)?.parse::<u64>().ok()
    };
    table.lines().skip(1).filter_map(of_line).sum()
}

impl Collector for Host {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let f = self.figures();
        let gauges = [
            ("postern_host_cpu_ratio", "share of all processors' time that is used, 0 to 1", f.cpu_ratio),
            ("postern_host_memory_used_bytes", "memory of the host that is used", f.memory_used_bytes as f64),
            ("postern_host_memory_total_bytes", "memory of the host", f.memory_total_bytes as f64),
            ("postern_process_memory_bytes", "memory of this process (resident)", f.process_memory_bytes as f64),
            ("postern_process_open_files", "file descriptors that this process has open", f.open_files as f64),
            ("postern_process_open_files_max", "file descriptors that it may have open", f.open_files_max as f64),
        ];
        for (name, text, value) in gauges {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, text, None, MetricType::Gauge)?)?;
        }
        let text = "processor time of this process";
        let metric = encoder.encode_descriptor("postern_process_cpu_seconds", text, None, MetricType::Counter)?;
        ConstCounter::new(f.process_cpu_seconds).encode(metric)?;
        let text = "datagrams that the kernel dropped because the buffers of our sockets were full";
        ConstCounter::new(f.udp_socket_drops).encode(encoder.encode_descriptor(
            "postern_udp_socket_drops",
            text,
            None,
            MetricType::Counter,
        )?)?;
        let bytes = |i: &Interface| [("received", i.received_bytes), ("sent", i.sent_bytes)];
        let errors = |i: &Interface| [("received", i.received_errors), ("sent", i.sent_errors)];
        let families: [(&str, &str, &dyn Fn(&Interface) -> [(&'static str, u64); 2]); 2] = [
            ("postern_host_network_bytes", "bytes that passed an interface of the host", &bytes),
            ("postern_host_network_errors", "errors of an interface of the host", &errors),
        ];
        for (name, text, values) in families {
            let mut metric = encoder.encode_descriptor(name, text, None, MetricType::Counter)?;
            for interface in &f.interfaces {
                for (direction, value) in values(interface) {
                    let labels = [("interface", interface.name.as_str()), ("direction", direction)];
                    ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_our_sockets_are_counted() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 00000000:01BB 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 17
  101: 00000000:01BB 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 4
  102: 0100007F:0D96 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 1
  103: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 900
nonsense
";
        assert_eq!(drops(table, &[443, 3478]), 22);
    }

    #[test]
    fn figures_are_of_this_machine() {
        let figures = Host::new(&[443]).figures();
        assert!(figures.memory_total_bytes > figures.memory_used_bytes && figures.memory_used_bytes > 0, "{figures:?}");
        assert!(figures.process_memory_bytes > 0 && figures.open_files > 0 && figures.open_files_max >= figures.open_files, "{figures:?}");
        assert!(figures.interfaces.iter().any(|i| i.name == "lo"), "{figures:?}");
    }
}
