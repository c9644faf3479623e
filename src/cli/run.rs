//! `postern run`: everything put together. Workers first, then the control plane. SIGHUP reads the config again; SIGTERM,
//! SIGINT and SIGUSR1 let calls end first, and the second of them does not wait.

use super::addresses::{Layout, advertised, candidates, names};
use super::host;
use super::own_addresses;
use super::relay;
use super::runtime_dir::RuntimeDir;
use super::sandbox;
use arc_swap::ArcSwap;
use postern::base::id::WorkerId;
use postern::base::rng::Rng;
use postern::config::{Config, LogFormat, TlsMode};
use postern::control::admin::Admin;
use postern::control::auth::Keys;
use postern::control::certs::acme::Acme;
use postern::control::lifecycle::{Lifecycle, Phase, Watch};
use postern::control::limits::Rate;
use postern::control::metrics::host::Host;
use postern::control::metrics::{Gauges, Metrics, WorkerNumbers};
use postern::control::reload::{Running, SetLevel};
use postern::control::rooms::{Ports, Rooms, Surroundings};
use postern::control::signal::{Front, NOTED_PER_SECOND, Policy};
use postern::control::{self, audit, certs, door, webhook};
use postern::crypto::SecretRng;
use postern::engine::dtls::Identity;
use postern::io::clock::Clock;
use postern::io::{self, Inbox, Visitor, WorkerSetup};
use postern::shard::counters::{Counter, Counters};
use postern::shard::mail::{Command, Report};
use postern::shard::{Shard, ShardConfig};
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Visitors that wait for the control plane.
const VISITORS: usize = 1024;
/// How long goodbyes may take at the end.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
/// How long the workers may take to tell the last figures of those who were in calls.
const LAST_FIGURES_WITHIN: Duration = Duration::from_millis(500);
/// Threads that serve HTTP. A second one is woken for each message and mostly finds nothing to do: a tenth of all system calls.
const CONTROL_THREADS: usize = 1;
/// How often an old certificate is told of, seconds.
const A_DAY_S: u64 = 86_400;
/// The exit status when a worker is lost (EX_SOFTWARE): service managers start the server anew.
const EXIT_WORKER_LOST: i32 = 70;
/// HTTP connections served at a time; one more is closed at once.
const HTTP_CONNECTIONS: usize = 8192;

#[derive(clap::Args)]
pub struct Args {
    /// The TOML file.
    #[arg(long, default_value = "/etc/postern/postern.toml")]
    config: PathBuf,
    /// Look at the config and the certificate, and do not start.
    #[arg(long)]
    check: bool,
}

/// What `postern dev` adds.
#[derive(Default)]
pub struct Extras {
    /// The file that a reload reads; without one only the certificate is read again.
    pub config_file: Option<PathBuf>,
    pub plain_http: Option<SocketAddr>,
    pub is_dev: bool,
}

pub fn execute(args: &Args) -> Result<(), String> {
    let config = read_config(&args.config)?;
    if args.check {
        return check(&args.config, &config);
    }
    serve(config, Extras { config_file: Some(args.config.clone()), ..Extras::default() })
}

/// Says what is wrong, or that nothing is.
#[allow(clippy::disallowed_methods, reason = "certificates are compared with this machine's clock")]
fn check(path: &Path, config: &Config) -> Result<(), String> {
    if config.tls.mode != TlsMode::SelfSigned {
        let domain = [config.server.domain.clone()];
        let found = certs::load(&config.tls, &domain)?.findings(&config.server.domain, SystemTime::now());
        found.warnings.iter().for_each(|warning| println!("warning: {warning}"));
        if config.tls.mode == TlsMode::Acme {
            found.problems.iter().for_each(|problem| println!("warning: {problem}"));
        } else if !found.problems.is_empty() {
            return Err(found.problems.join("\n"));
        }
    }
    println!("{} is fine", path.display());
    Ok(())
}

pub fn read_config(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        format!("cannot read {}: {e}; name the file by --config (config.example.toml shows what stands in one)", path.display())
    })?;
    let environment: Vec<(String, String)> =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
    Config::read(&text, &environment).map_err(|e| format!("{}: {e}", path.display()))
}

/// Starts logging; what sets its level later. `RUST_LOG` beats the config for as long as the process lives.
fn start_log(config: &Config) -> SetLevel {
    let of = |level: &str| EnvFilter::new(format!("warn,postern={level}"));
    let from_environment = EnvFilter::try_from_default_env().ok();
    let is_fixed = from_environment.is_some();
    let (filter, handle) = tracing_subscriber::reload::Layer::new(from_environment.unwrap_or_else(|| of(&config.log.level)));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match config.log.format {
        // The journal has a clock of its own, and priorities.
        LogFormat::Text if writes_to_journal() => registry.with(layer.event_format(ForJournal)).init(),
        LogFormat::Text => registry.with(layer.with_target(false)).init(),
        LogFormat::Json => registry.with(layer.json()).init(),
    }
    Box::new(move |level| {
        if !is_fixed && let Err(error) = handle.reload(of(level)) {
            tracing::warn!(%error, "the log's level stays as it is");
        }
    })
}

/// Whether standard error is the journal's (systemd.exec(5)): the variable alone is inherited by whatever is started later.
fn writes_to_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let there = std::fs::metadata("/proc/self/fd/2").ok();
    named.zip(there).is_some_and(|(named, there)| named == format!("{}:{}", there.dev(), there.ino()))
}

/// A line for the journal: its priority in front (sd-daemon(3)), and no time.
struct ForJournal;

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut line = String::new();
        let format = tracing_subscriber::fmt::format().without_time().with_target(false).with_ansi(false);
        format.format_event(context, Writer::new(&mut line), event)?;
        // One event, one line: names come from strangers, and a line of theirs would have a priority of its own.
        writeln!(writer, "<{priority}>{}", line.trim_end().replace(['\n', '\r'], " "))
    }
}

/// Runs the server until it is told to stop.
pub fn serve(given: Config, extras: Extras) -> Result<(), String> {
    let config = &given;
    sandbox::forbid_cores();
    let set_level = start_log(config);
    // A session that panics is ended, and the log has to say where.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    rustls::crypto::aws_lc_rs::default_provider().install_default().map_err(|_| "TLS provider is set twice")?;
    let addresses = advertised(config)?;
    let layout = Layout::of(config);
    let workers = match config.server.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(255),
        n => usize::from(n),
    };
    host::look(config, workers);
    let sockets = io::bind(workers, &layout.udp_addresses(), &layout.tcp)?;
    let listeners = Listeners {
        admin: listener("admin.listen", config.admin.listen)?,
        http: extras.plain_http.map(|address| listener("--port", address)).transpose()?,
    };
    let certificate_names = names(config, &addresses);
    let certificates = Arc::new(certs::load(&config.tls, &certificate_names)?);
    sandbox::enter(&sandbox::folders(config));
    let identity = Identity::generate()?;
    let keys = Keys::new(&config.keys);
    let secrets = relay::secrets(config, &keys.master());
    let candidates = candidates(config, &addresses);
    // Listened to first: what changes from here on is heard of.
    let address_changes = own_addresses::Changes::watch();
    let turn = relay::turn_config(config, secrets.clone(), &candidates.udp, &layout, extras.plain_http, workers as u8)?;
    let turn = Arc::new(turn);
    let relays_bound_to = relay::bound_to(config, &addresses);
    let udp_candidates = candidates.udp.clone();
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
    let numbers = shards.iter().map(|s| WorkerNumbers { counters: s.counters.clone(), load: s.load.clone() }).collect();
    let buffer_bytes: usize = shards.iter().map(|s| s.pool.bytes_max()).sum();
    let mib = |bytes: usize| bytes / (1024 * 1024);
    tracing::info!(workers, packet_buffers_mib = mib(buffer_bytes), packet_store_mib_max = mib(store_bytes), "memory that is set aside");

    let (visitors_in, visitors) = mpsc::channel(VISITORS);
    let (reports_in, reports) = mpsc::unbounded_channel();
    let inboxes: Vec<Arc<Inbox>> = (0..workers).map(|_| Arc::default()).collect();
    let threads = start_workers(config, shards, sockets, &certificates, &inboxes, clock, &visitors_in, &reports_in, &relays_bound_to)?;

    let gauges = Arc::new(Gauges::default());
    gauges.started.store(seconds_since_1970(), Relaxed);
    let (audit, auditor) = audit::start(&config.audit, &gauges)?;
    let signer = Arc::new(ArcSwap::from_pointee(config.webhooks.api_key.clone()));
    let (events, deliverer) = webhook::start(&config.webhooks.urls, &signer, &keys, &gauges)?;
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
        audit,
    });
    let front = Arc::new(Front {
        rooms: Mutex::new(rooms),
        keys: keys.clone(),
        host: (!extras.is_dev).then(|| config.server.domain.clone()),
        policy: ArcSwap::from_pointee(Policy::of(config)),
        by_address: Rate::new(config.limits.joins_per_second_per_address),
        by_identity: Rate::new(config.limits.joins_per_second_per_identity),
        noted: Rate::new(NOTED_PER_SECOND),
        gauges: Arc::clone(&gauges),
    });
    let set_relay = {
        // What the deployment's secret is made from stays that of the start: nonces and credentials that are out remain good.
        let (inboxes, master, udp, plain_http) = (inboxes.clone(), keys.master(), udp_candidates, extras.plain_http);
        Box::new(move |config: &Config| {
            let (secrets, layout) = (relay::secrets(config, &master), Layout::of(config));
            let turn = Arc::new(relay::turn_config(config, secrets, &udp, &layout, plain_http, workers as u8)?);
            inboxes.iter().for_each(|inbox| inbox.command(Command::Relay(Arc::clone(&turn))));
            Ok(())
        })
    };
    let running = Arc::new(Running {
        front: Arc::clone(&front),
        keys: keys.clone(),
        certificates: Arc::clone(&certificates),
        set_level,
        set_relay,
        gauges: Arc::clone(&gauges),
        hurry: Arc::default(),
        signer,
        admin_token: Arc::new(ArcSwap::from_pointee(config.admin.token.clone())),
        config: Mutex::new(config.clone()),
    });
    let runtime_dir = RuntimeDir::new(&config.server.runtime_dir);
    let udp_ports: Vec<u16> = layout.udp_addresses().iter().map(SocketAddr::port).collect();
    let metrics = Metrics::new(numbers, gauges, Host::new(&udp_ports));
    let plane = Plane { counters, extras, certificates, front, keys, running, runtime_dir, inboxes: inboxes.clone() };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|e| format!("control runtime: {e}"))?;
    // What a reload replaces is nowhere else.
    drop(given);
    let outcome = runtime.block_on(plane.run(listeners, address_changes, metrics, deliverer, visitors, reports));
    for inbox in &inboxes {
        inbox.stop();
    }
    let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().map_err(|_| "a worker panicked")).collect();
    // Whatever became of them, what is to be kept is written.
    if let Some(auditor) = auditor {
        let _ = auditor.join();
    }
    for worker in ended {
        worker??;
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
    relays_bound_to: &[(IpAddr, IpAddr)],
) -> Result<Vec<std::thread::JoinHandle<Result<(), String>>>, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let places = door::Places::new(HTTP_CONNECTIONS, config.limits.connections_per_address);
    let mut threads = Vec::new();
    for (at, (shard, sockets)) in shards.into_iter().zip(sockets).enumerate() {
        let (visitors, reports, places) = (visitors.clone(), reports.clone(), Arc::clone(&places));
        let setup = WorkerSetup {
            id: WorkerId(at as u8),
            core: (at < cores).then_some(at),
            sockets,
            tls: Arc::clone(&certificates.media),
            inboxes: inboxes.to_vec(),
            clock,
            http: Arc::new(move |v: Visitor| {
                let Visitor { tcp, remote, received, tls, wants_tls } = v;
                let place = places.take(remote.ip());
                place.is_some_and(|place| visitors.try_send(door::Visitor { place, tcp, remote, received, tls, wants_tls }).is_ok())
            }),
            reports: Arc::new(move |_, report| drop(reports.send(report))),
            connections_max: config.limits.connections_per_worker,
            connections_per_address_max: config.limits.connections_per_address,
            half_open_per_address_max: config.limits.half_open_per_address,
            relays_bound_to: relays_bound_to.to_vec(),
            trusted_proxies: config.network.trusted_proxies.iter().filter_map(|net| net.parse().ok()).collect(),
        };
        let body = move || {
            // A worker that is lost takes its clients with it: end the process, so that the supervisor starts it anew.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| io::run(setup, shard)));
            match outcome {
                Ok(outcome) => outcome,
                Err(_) => {
                    tracing::error!(worker = at, "a worker panicked; the process ends");
                    std::process::exit(EXIT_WORKER_LOST);
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("worker-{at}")).spawn(body);
        threads.push(thread.map_err(|e| format!("cannot start worker {at}: {e}"))?);
    }
    Ok(threads)
}

struct Plane {
    counters: Vec<Counters>,
    extras: Extras,
    certificates: Arc<certs::Certificates>,
    front: Arc<Front>,
    keys: Keys,
    running: Arc<Running>,
    runtime_dir: RuntimeDir,
    inboxes: Vec<Arc<Inbox>>,
}

/// What the control plane accepts connections on by itself.
struct Listeners {
    admin: std::net::TcpListener,
    http: Option<std::net::TcpListener>,
}

impl Plane {
    /// Allocations that others than our own participants may need. A closed relay has none: they end with their participants.
    fn allocations(&self) -> u64 {
        if !self.running.is_relay_open() {
            return 0;
        }
        let of = |counter: Counter| self.counters.iter().map(|c| c.get(counter)).sum::<u64>();
        of(Counter::AllocationsOpened).saturating_sub(of(Counter::AllocationsClosed))
    }

    async fn run(
        self,
        listeners: Listeners,
        mut address_changes: nix::Result<own_addresses::Changes>,
        metrics: Metrics,
        deliverer: Option<webhook::Deliverer>,
        mut visitors: mpsc::Receiver<door::Visitor>,
        mut reports: mpsc::UnboundedReceiver<Report>,
    ) -> Result<(), String> {
        let lifecycle = Lifecycle::default();
        let config = self.running.config();
        let edge = config.network.edge_tcp_ports[0];
        let secure = control::router(Arc::clone(&self.front), self.extras.is_dev.then(|| self.keys.clone()));
        let plain = control::plain_router(edge, Arc::clone(&self.certificates.shown));
        let admin = control::admin::router(Arc::new(Admin {
            front: Arc::downgrade(&self.front),
            metrics,
            lifecycle: lifecycle.clone(),
            listen: config.admin.listen,
            token: Arc::clone(&self.running.admin_token),
            domain: config.server.domain.clone(),
        }));
        let adopt = |listener| TcpListener::from_std(listener).map_err(|e| format!("listeners: {e}"));
        let (admin_listener, http_listener) = (adopt(listeners.admin)?, listeners.http.map(adopt).transpose()?);
        tokio::spawn(async move { axum::serve(admin_listener, admin).await });
        let ordering = (config.tls.mode == TlsMode::Acme).then(|| {
            let acme = Acme::new(&config.tls, &config.server.domain, Arc::clone(&self.running.hurry));
            let running = Arc::clone(&self.running);
            tokio::spawn(acme.keep(Arc::clone(&self.certificates), move || running.report_certificate()))
        });
        let telling = deliverer.map(|deliverer| tokio::spawn(deliverer.run()));
        let plain_http = http_listener.map(|listener| {
            let router = secure.clone();
            tokio::spawn(async move {
                loop {
                    let Ok((tcp, remote)) = listener.accept().await else {
                        // Out of descriptors: what waits stays in the backlog.
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue;
                    };
                    tokio::spawn(door::serve_plain(tcp, remote, router.clone()));
                }
            })
        });
        let mut signals = Signals::new()?;
        // Whoever reads it may signal.
        let _announced = self.runtime_dir.announce();
        lifecycle.enter(Phase::Ready);
        greet(&config, &self.extras, &self.certificates);
        drop(config);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        // When the whole machine stood still, what was missed is not made up for: workers would seem to be stuck.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seconds: u64 = 0;
        let mut watch = Watch::default();
        if let Err(error) = &address_changes {
            tracing::warn!(%error, "changes of this host's addresses are not heard of: reload after one");
        }
        let mut has_moved = false;
        // Until when calls may go on, once the server was told to end.
        let mut deadline: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(visitor) = visitors.recv() => {
                    tokio::spawn(door::serve(visitor, Arc::clone(&self.certificates.http), secure.clone(), plain.clone()));
                }
                Some(report) = reports.recv() => self.front.rooms().report(report),
                now = tick.tick() => {
                    self.front.rooms().tick();
                    self.running.follow_files();
                    has_moved |= address_changes.as_mut().is_ok_and(|changes| changes.came());
                    // Until it succeeds: with what is known the relay stays as closed as it was.
                    has_moved = has_moved && !self.running.readdress();
                    self.front.forget_askers();
                    if seconds.is_multiple_of(A_DAY_S) {
                        self.running.report_certificate();
                    }
                    seconds += 1;
                    self.look_after_workers(&mut watch, &lifecycle);
                    if let Some(deadline) = deadline
                        && ((self.front.rooms().send_on_idle() == 0 && self.allocations() == 0) || now.into_std() >= deadline)
                    {
                        break;
                    }
                }
                wish = signals.next() => match wish {
                    Wish::Reload => {
                        lifecycle.reloading();
                        self.reload();
                        lifecycle.enter(lifecycle.phase());
                    }
                    Wish::End if deadline.is_some() => {
                        tracing::warn!("told a second time: calls are not waited for");
                        break;
                    }
                    Wish::End | Wish::Drain => {
                        let asked = if wish == Wish::Drain { self.runtime_dir.drain_within() } else { None };
                        let within = asked.unwrap_or(Duration::from_secs(self.running.drain_deadline_s().into()));
                        deadline = Some(tokio::time::Instant::now().into_std() + within);
                        lifecycle.enter(Phase::Draining);
                        self.front.rooms().drain();
                        self.inboxes.iter().for_each(|inbox| inbox.command(Command::Drain));
                        let (left, allocations) = (self.front.rooms().send_on_idle(), self.allocations());
                        tracing::info!(
                            participants = left,
                            allocations,
                            within_s = within.as_secs(),
                            "draining: no room is opened and no relay lent, calls may go on"
                        );
                        if (left == 0 && allocations == 0) || within.is_zero() {
                            break;
                        }
                    }
                },
            }
        }
        tracing::info!("stopping: everybody is told to come back");
        lifecycle.enter(Phase::Stopping);
        for task in plain_http.into_iter().chain(ordering) {
            task.abort();
        }
        self.front.rooms().close_all();
        // Transports that end now tell what passed over them last.
        let _ = tokio::time::timeout(LAST_FIGURES_WITHIN, async {
            while self.front.rooms().awaits_figures() {
                let Some(report) = reports.recv().await else { break };
                self.front.rooms().report(report);
            }
        })
        .await;
        self.front.rooms().let_go();
        if let Some(telling) = telling {
            let _ = tokio::time::timeout(GOODBYE_WITHIN, telling).await;
        }
        let front = self.front;
        drop((secure, self.running));
        // The goodbyes are in the clients' queues; their connections close once they are written.
        let _ = tokio::time::timeout(GOODBYE_WITHIN, async {
            while Arc::strong_count(&front) > 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        Ok(())
    }

    /// Reads the config again and says what became of it; what does not fit changes nothing.
    fn reload(&self) {
        let read = match &self.extras.config_file {
            Some(file) => read_config(file),
            None => Ok(self.running.config()),
        };
        let outcome = match read {
            Ok(config) => self.running.reload(&config).to_string(),
            Err(error) => format!("failed, all stays as it was: {}\n", error.trim_end().replace('\n', "\n  ")),
        };
        for line in outcome.lines() {
            if line.starts_with("failed") { tracing::warn!("reload: {line}") } else { tracing::info!("reload: {line}") }
        }
        self.runtime_dir.tell_reloaded(&outcome);
    }

    /// A worker that is stuck takes its clients with it: the process ends, so that the service manager starts it anew.
    fn look_after_workers(&self, watch: &mut Watch, lifecycle: &Lifecycle) {
        match watch.look(self.inboxes.iter().map(|inbox| inbox.turns_begun())) {
            None => lifecycle.alive(),
            Some(worker) => {
                tracing::error!(worker, "a worker is stuck; the process ends");
                std::process::exit(EXIT_WORKER_LOST);
            }
        }
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Reload,
    /// As soon as `server.drain_deadline_s` allows, or at once when it was asked for before.
    End,
    /// By `postern drain`, which may say by when.
    Drain,
}

struct Signals([(Signal, Wish); 4]);

impl Signals {
    fn new() -> Result<Self, String> {
        let of = |kind: SignalKind, wish| Ok::<_, String>((signal(kind).map_err(|e| format!("signals: {e}"))?, wish));
        Ok(Self([
            of(SignalKind::hangup(), Wish::Reload)?,
            of(SignalKind::terminate(), Wish::End)?,
            of(SignalKind::interrupt(), Wish::End)?,
            of(SignalKind::user_defined1(), Wish::Drain)?,
        ]))
    }

    async fn next(&mut self) -> Wish {
        std::future::poll_fn(|cx| {
            let found = self.0.iter_mut().find_map(|(signal, wish)| signal.poll_recv(cx).is_ready().then_some(*wish));
            found.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

#[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
fn seconds_since_1970() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64
}

fn listener(key: &str, address: SocketAddr) -> Result<std::net::TcpListener, String> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    bound.map_err(|e| format!("{key}: cannot listen on {address}: {e}"))
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
