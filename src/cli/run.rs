//! `postern run`: everything put together. Workers first, then the control plane; SIGTERM or SIGINT ends it cleanly.

use postern::base::id::WorkerId;
use postern::base::rng::Rng;
use postern::config::{Config, LogFormat, PublicAddress};
use postern::control::auth::Keys;
use postern::control::lifecycle::{Lifecycle, Phase};
use postern::control::limits::Rate;
use postern::control::metrics::{Gauges, Metrics};
use postern::control::rooms::{Ports, Rooms, Surroundings};
use postern::control::signal::Front;
use postern::control::{self, certs, door, webhook};
use postern::crypto::SecretRng;
use postern::engine::dtls::Identity;
use postern::engine::turn::TurnConfig;
use postern::engine::turn_auth::Secrets;
use postern::io::clock::Clock;
use postern::io::{self, Inbox, ListenerRole, Visitor, WorkerSetup};
use postern::session::negotiate::Candidates;
use postern::shard::counters::Counters;
use postern::shard::mail::Report;
use postern::shard::{PortRole, Shard, ShardConfig};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};

/// Visitors that wait for the control plane.
const VISITORS: usize = 1024;
/// How long goodbyes may take at the end.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
const CONTROL_THREADS: usize = 2;
/// HTTP connections served at a time; one more is closed at once.
const HTTP_CONNECTIONS: usize = 8192;

#[derive(clap::Args)]
pub struct Args {
    /// The TOML file.
    #[arg(long, default_value = "/etc/postern/postern.toml")]
    config: PathBuf,
}

/// What `postern dev` adds.
#[derive(Default)]
pub struct Extras {
    pub plain_http: Option<SocketAddr>,
    pub is_dev: bool,
}

pub fn execute(args: &Args) -> Result<(), String> {
    serve(&read_config(&args.config)?, Extras::default())
}

pub fn read_config(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Config::parse(&text).map_err(|e| format!("{}: {e}", path.display()))
}

fn start_log(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("warn,postern={}", config.log.level)));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Runs the server until it is told to stop.
pub fn serve(config: &Config, extras: Extras) -> Result<(), String> {
    start_log(config);
    rustls::crypto::aws_lc_rs::default_provider().install_default().map_err(|_| "TLS provider is set twice")?;
    let addresses = advertised(config)?;
    let layout = Layout::of(config);
    let workers = match config.server.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(255),
        n => usize::from(n),
    };
    let sockets = io::bind(workers, &layout.udp_addresses(), &layout.tcp)?;
    let certificates = certs::load(&config.tls, &names(config, &addresses))?;
    let identity = Identity::generate()?;
    let keys = Keys::new(&config.keys);
    let secrets = Secrets::new(config.realm(), &keys.master(), &config.turn.shared_secrets, &config.turn.users);
    let candidates = candidates(config, &addresses);
    let [first_port, last_port] = config.turn.relay_ports;
    let turn = Arc::new(TurnConfig {
        secrets: secrets.clone(),
        sfu: candidates.udp.clone(),
        relay_ports: first_port..=last_port,
        allocations_per_user_max: config.turn.allocations_per_user,
        allocations_max: config.limits.allocations_per_worker,
        lifetime_s: 600..=3600,
        workers: workers as u8,
    });
    let clock = Clock::start();
    let store_bytes = config.limits.packet_store_bytes;
    let shard = |worker: usize| {
        let config = ShardConfig {
            worker: WorkerId(worker as u8),
            workers: workers as u8,
            sockets: layout.udp.iter().map(|(_, role)| *role).collect(),
            turn: Arc::clone(&turn),
            identity: identity.clone(),
            anchor: clock.anchor(),
            buffers: config.limits.packet_buffers_per_worker,
            store_bytes: store_bytes / workers,
        };
        let seed = SecretRng::system().u64();
        Shard::new(config, SecretRng::system(), Rng::new(seed))
    };
    let shards: Vec<Shard> = (0..workers).map(shard).collect();
    let counters: Vec<Counters> = shards.iter().map(|s| s.counters.clone()).collect();
    let buffer_bytes: usize = shards.iter().map(|s| s.pool.bytes_max()).sum();
    let mib = |bytes: usize| bytes / (1024 * 1024);
    tracing::info!(workers, packet_buffers_mib = mib(buffer_bytes), packet_store_mib_max = mib(store_bytes), "memory that is set aside");

    let (visitors_in, visitors) = mpsc::channel(VISITORS);
    let (reports_in, reports) = mpsc::unbounded_channel();
    let inboxes: Vec<Arc<Inbox>> = (0..workers).map(|_| Arc::default()).collect();
    let threads = start_workers(config, shards, sockets, &certificates, &inboxes, clock, &visitors_in, &reports_in)?;

    let gauges = Arc::new(Gauges::default());
    let signing_key = if config.webhooks.api_key.is_empty() { config.keys.keys().next() } else { Some(&config.webhooks.api_key) };
    let signing_key = signing_key.cloned().unwrap_or_default();
    let (events, deliverer) = webhook::start(&config.webhooks.urls, &signing_key, &keys, &gauges)?;
    let mail_to = inboxes.clone();
    let rooms = Rooms::new(Surroundings {
        workers: workers as u8,
        mail: Arc::new(move |worker, command| {
            if let Some(inbox) = mail_to.get(usize::from(worker.0)) {
                inbox.command(command);
            }
        }),
        keys: keys.clone(),
        turn: secrets,
        fingerprint: identity.fingerprint().to_owned(),
        candidates,
        ports: Ports { turn: config.network.turn_ports.first().copied(), edge: config.network.edge_tcp_ports[0] },
        rooms: config.rooms.clone(),
        tracks_per_participant: config.limits.tracks_per_participant,
        node: format!("ND_{}", SecretRng::system().id_chars(8)),
        gauges: Arc::clone(&gauges),
        events,
    });
    let front = Arc::new(Front {
        rooms: Mutex::new(rooms),
        keys: keys.clone(),
        host: (!extras.is_dev).then(|| config.server.domain.clone()),
        origins: config.server.allowed_origins.clone(),
        message_max: config.limits.message_bytes,
        join_request_max: config.limits.join_request_bytes,
        by_address: Rate::new(config.limits.joins_per_second_per_address),
        by_identity: Rate::new(config.limits.joins_per_second_per_identity),
    });
    let plane = Plane { deliverer, config, extras, certificates, front, keys, metrics: Metrics::new(counters, gauges) };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|e| format!("control runtime: {e}"))?;
    let outcome = runtime.block_on(plane.run(visitors, reports));
    for inbox in &inboxes {
        inbox.stop();
    }
    for thread in threads {
        thread.join().map_err(|_| "a worker panicked")??;
    }
    outcome
}

#[allow(clippy::too_many_arguments, reason = "the parts that every worker shares")]
fn start_workers(
    config: &Config,
    shards: Vec<Shard>,
    sockets: Vec<io::Sockets>,
    certificates: &certs::Certificates,
    inboxes: &[Arc<Inbox>],
    clock: Clock,
    visitors: &mpsc::Sender<door::Visitor>,
    reports: &mpsc::UnboundedSender<Report>,
) -> Result<Vec<std::thread::JoinHandle<Result<(), String>>>, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut threads = Vec::new();
    for (at, (shard, sockets)) in shards.into_iter().zip(sockets).enumerate() {
        let (visitors, reports) = (visitors.clone(), reports.clone());
        let setup = WorkerSetup {
            id: WorkerId(at as u8),
            core: (at < cores).then_some(at),
            sockets,
            tls: Arc::clone(&certificates.media),
            inboxes: inboxes.to_vec(),
            clock,
            http: Arc::new(move |v: Visitor| {
                let Visitor { tcp, remote, received, tls, wants_tls } = v;
                visitors.try_send(door::Visitor { tcp, remote, received, tls, wants_tls }).is_ok()
            }),
            reports: Arc::new(move |_, report| drop(reports.send(report))),
            connections_max: config.limits.connections_per_worker,
            half_open_per_address_max: config.limits.half_open_per_address,
        };
        let body = move || {
            // A worker that is lost takes its clients with it: end the process, so that the supervisor starts it anew.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| io::run(setup, shard)));
            match outcome {
                Ok(outcome) => outcome,
                Err(_) => {
                    tracing::error!(worker = at, "a worker panicked; the process ends");
                    std::process::exit(70);
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("worker-{at}")).spawn(body);
        threads.push(thread.map_err(|e| format!("cannot start worker {at}: {e}"))?);
    }
    Ok(threads)
}

struct Plane<'a> {
    config: &'a Config,
    extras: Extras,
    certificates: certs::Certificates,
    front: Arc<Front>,
    keys: Keys,
    metrics: Metrics,
    deliverer: Option<webhook::Deliverer>,
}

impl Plane<'_> {
    async fn run(self, mut visitors: mpsc::Receiver<door::Visitor>, mut reports: mpsc::UnboundedReceiver<Report>) -> Result<(), String> {
        let lifecycle = Lifecycle::default();
        let edge = self.config.network.edge_tcp_ports[0];
        let secure = control::router(Arc::clone(&self.front), self.extras.is_dev.then(|| self.keys.clone()));
        let plain = control::redirect_router(edge);
        let admin = control::admin::router(self.metrics, lifecycle.clone());
        let admin_listener = listener("admin.listen", self.config.admin.listen).await?;
        let http_listener = match self.extras.plain_http {
            Some(address) => Some(listener("--port", address).await?),
            None => None,
        };
        tokio::spawn(async move { axum::serve(admin_listener, admin).await });
        let telling = self.deliverer.map(|deliverer| tokio::spawn(deliverer.run()));
        if let Some(listener) = http_listener {
            let router = secure.clone();
            tokio::spawn(async move {
                loop {
                    // Out of descriptors: what waits stays in the backlog.
                    let Ok((tcp, remote)) = listener.accept().await else { continue };
                    tokio::spawn(door::serve_plain(tcp, remote, router.clone()));
                }
            });
        }
        let mut terminate = signal(SignalKind::terminate()).map_err(|e| format!("SIGTERM: {e}"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| format!("SIGINT: {e}"))?;
        lifecycle.enter(Phase::Ready);
        greet(self.config, &self.extras, &self.certificates);
        let places = Arc::new(Semaphore::new(HTTP_CONNECTIONS));
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                Some(visitor) = visitors.recv() => {
                    if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                        let (tls, secure, plain) = (Arc::clone(&self.certificates.http), secure.clone(), plain.clone());
                        tokio::spawn(async move {
                            door::serve(visitor, tls, secure, plain).await;
                            drop(place);
                        });
                    }
                }
                Some(report) = reports.recv() => self.front.rooms().report(report),
                _ = tick.tick() => self.front.rooms().tick(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        tracing::info!("stopping: everybody is told to come back");
        lifecycle.enter(Phase::Stopping);
        self.front.rooms().close_all();
        if let Some(telling) = telling {
            let _ = tokio::time::timeout(GOODBYE_WITHIN, telling).await;
        }
        // The goodbyes are in the clients' queues; their connections close once they are written.
        let _ = tokio::time::timeout(GOODBYE_WITHIN, async {
            while Arc::strong_count(&self.front) > 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        Ok(())
    }
}

async fn listener(key: &str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|e| format!("{key}: cannot listen on {address}: {e}"))
}

/// Which UDP sockets and TCP listeners every worker has, in the order of `SocketId`.
struct Layout {
    udp: Vec<(SocketAddr, PortRole)>,
    tcp: Vec<(SocketAddr, ListenerRole)>,
}

impl Layout {
    fn of(config: &Config) -> Self {
        let network = &config.network;
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for ip in network.bind_addresses.iter().filter(|ip| is_available(**ip)) {
            udp.push((SocketAddr::new(*ip, network.media_udp_port), PortRole::Media));
            udp.extend(network.turn_ports.iter().map(|port| (SocketAddr::new(*ip, *port), PortRole::Turn)));
            tcp.extend(network.edge_tcp_ports.iter().map(|port| (SocketAddr::new(*ip, *port), ListenerRole::Edge)));
            let turn_only = network.turn_ports.iter().filter(|port| !network.edge_tcp_ports.contains(port));
            tcp.extend(turn_only.map(|port| (SocketAddr::new(*ip, *port), ListenerRole::Turn)));
        }
        Self { udp, tcp }
    }

    fn udp_addresses(&self) -> Vec<SocketAddr> {
        self.udp.iter().map(|(address, _)| *address).collect()
    }
}

/// A host without IPv6 has no `::` to bind; every other address must be there.
fn is_available(ip: IpAddr) -> bool {
    let is_wildcard_v6 = ip.is_ipv6() && ip.is_unspecified();
    !is_wildcard_v6 || std::net::UdpSocket::bind((ip, 0)).is_ok()
}

/// Addresses that clients are told: configured ones, else those of the bound interfaces.
fn advertised(config: &Config) -> Result<Vec<IpAddr>, String> {
    let configured: Vec<IpAddr> = config.network.public_addresses.iter().map(|a: &PublicAddress| a.public()).collect();
    let addresses = if configured.is_empty() { interface_addresses(&config.network.bind_addresses)? } else { configured };
    if addresses.iter().all(is_private) && !config.network.bind_addresses.iter().all(IpAddr::is_loopback) {
        tracing::warn!(
            ?addresses,
            "only private addresses are advertised: clients elsewhere will not reach media; set network.public_addresses"
        );
    }
    let media = config.network.media_udp_port;
    if media < 1024 && addresses.iter().any(is_private) {
        tracing::warn!(
            media_udp_port = media,
            "Chromium refuses media candidates below port 1024 on private addresses: set network.media_udp_port to one from 1024 on, such as 7443"
        );
    }
    Ok(addresses)
}

fn interface_addresses(bind: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
    let fixed: Vec<IpAddr> = bind.iter().copied().filter(|ip| !ip.is_unspecified()).collect();
    let (v4, v6) = (bind.iter().any(|ip| ip.is_unspecified() && ip.is_ipv4()), bind.iter().any(|ip| ip.is_unspecified() && ip.is_ipv6()));
    let interfaces = nix::ifaddrs::getifaddrs().map_err(|e| format!("network interfaces: {e}"))?;
    let mut found: Vec<IpAddr> = interfaces
        .filter_map(|i| {
            let address = i.address?;
            let v4_address = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4_address.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(|ip| match ip {
            IpAddr::V4(ip) => v4 && !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => v6 && !ip.is_loopback() && ip.segments()[0] & 0xFFC0 != 0xFE80,
        })
        .collect();
    found.extend(fixed);
    if found.is_empty() {
        // A machine without a network still serves itself.
        found.extend(
            bind.iter().map(|ip| if ip.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from(std::net::Ipv6Addr::LOCALHOST) }),
        );
    }
    found.sort_by_key(|ip| (ip.is_ipv6(), is_private(ip)));
    found.dedup();
    Ok(found)
}

fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.segments()[0] & 0xFE00 == 0xFC00,
    }
}

fn candidates(config: &Config, addresses: &[IpAddr]) -> Candidates {
    let at = |port: u16| addresses.iter().map(move |ip| SocketAddr::new(*ip, port));
    Candidates {
        udp: at(config.network.media_udp_port).collect(),
        tcp: config.network.edge_tcp_ports.iter().flat_map(|port| at(*port)).collect(),
    }
}

/// Names that a self-signed certificate is good for.
fn names(config: &Config, addresses: &[IpAddr]) -> Vec<String> {
    let mut names = vec![config.server.domain.clone(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
    names.extend(addresses.iter().map(IpAddr::to_string));
    names.sort();
    names.dedup();
    names
}

fn greet(config: &Config, extras: &Extras, certificates: &certs::Certificates) {
    let edge = config.network.edge_tcp_ports[0];
    let port = if edge == 443 { String::new() } else { format!(":{edge}") };
    tracing::info!(url = %format!("https://{}{port}", config.server.domain), admin = %config.admin.listen, "Postern is ready");
    if let Some(http) = extras.plain_http {
        let host = if http.ip().is_unspecified() { "localhost".to_owned() } else { http.ip().to_string() };
        println!("Postern is ready.\n");
        println!("  page      http://{host}:{}   (open it in two tabs)", http.port());
        println!("  SDKs      ws://{host}:{}   key \"devkey\", secret \"secret\"", http.port());
        println!("  over TLS  https://localhost{port}   (cameras work on localhost and over https only)");
        println!("  metrics   http://{}/metrics", config.admin.listen);
        if let Some(authority) = &certificates.authority {
            println!("\nBrowsers use TURN over TLS and https only when they trust the development authority:");
            println!("  {}", authority.display());
            println!("  Linux, Chromium: certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n postern -i {}", authority.display());
        }
    }
}
