//! What can be done to the ports of the real binary, by the numbers of the list of attacks (S…): slow and stuck connections, too
//! many of them, and what the process itself can be made to give away.
#![allow(clippy::disallowed_methods, reason = "tests at the rim look at the clock")]

mod common;
#[allow(dead_code, reason = "each file of tests uses its part")]
#[path = "conformance/lab.rs"]
mod lab;
#[allow(dead_code, reason = "each file of tests uses its part")]
#[path = "conformance/real.rs"]
mod real;

use common::{OPEN, Server, connect_from, patient, within};
use lab::{ALICE, BOB, Client, Lab, Transport, set};
use nix::sched::{CloneFlags, setns};
use postern::wire::stun::{Class, Method, TransactionId, Writer, attr};
use real::lab;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

fn refusals(server: &Server, reason: &str) -> u64 {
    server.metric(&format!("postern_connection_refusals_total{{reason=\"{reason}\"}}"))
}

fn binding() -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Method::Binding, Class::Request, TransactionId([3; 12]));
    bytes
}

/// Whether the server answers on a connection; it may have been closed at once. Used for nothing, it ends after ten seconds.
fn is_served(tcp: &mut TcpStream) -> bool {
    let mut answer = [0; 32];
    tcp.write_all(&binding()).is_ok() && tcp.read_exact(&mut answer).is_ok() && answer[..2] == [1, 1]
}

fn is_over(outcome: std::io::Result<usize>) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(outcome, Ok(0)) || outcome.is_err_and(|e| matches!(e.kind(), ConnectionReset | BrokenPipe))
}

#[test]
fn s18_one_address_has_its_part_of_the_connections_and_others_theirs() {
    let server = Server::run(1, &format!("{OPEN}[limits]\nconnections_per_worker = 20\nconnections_per_address = 10\n"));
    let connected = |from: &str, count: usize| -> Vec<TcpStream> {
        let mut all: Vec<TcpStream> = (0..count).map(|_| connect_from(from, server.turn)).collect();
        all.retain_mut(is_served);
        all
    };
    let greedy = connected("127.0.0.1", 15);
    assert_eq!((greedy.len(), refusals(&server, "connections_per_address")), (10, 5));
    let others = [connected("127.0.0.2", 8), connected("127.0.0.3", 8)];
    assert_eq!(others.each_ref().map(Vec::len), [8, 2]);
    assert_eq!(refusals(&server, "connections_per_worker"), 6);
    drop(greedy);
    within(patient(), "its places are free again", || connected("127.0.0.1", 1).len() == 1);
}

#[test]
fn s18_one_address_has_its_part_of_the_http_connections() {
    let server = Server::run(2, &format!("{OPEN}[limits]\nconnections_per_address = 5\n"));
    let is_heard = |tcp: &mut TcpStream| {
        let mut answer = [0; 12];
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").is_ok() && tcp.read_exact(&mut answer).is_ok()
    };
    // One after the other: while they have not told what they are, they count among a worker's connections.
    let all: Vec<TcpStream> =
        (0..9).map(|_| connect_from("127.0.0.1", server.edge)).filter_map(|mut tcp| is_heard(&mut tcp).then_some(tcp)).collect();
    assert_eq!(all.len(), 5);
    within(patient(), "the others are counted", || refusals(&server, "http_busy") == 4);
    assert!(is_heard(&mut connect_from("127.0.0.2", server.edge)));
    drop(all);
    within(patient(), "its places are free again", || is_heard(&mut connect_from("127.0.0.1", server.edge)));
}

#[test]
fn s18_without_descriptors_the_server_waits_goes_on_and_says_so() {
    let server = Server::run(1, OPEN);
    let pid = server.pid().to_string();
    let limit = |soft: &str| {
        let prlimit = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:")]).status().expect("prlimit runs");
        assert!(prlimit.success());
    };
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count();
    limit(&(open + 10).to_string());
    let crowd: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(server.turn).expect("in the backlog")).collect();
    let started = processor_time(&server);
    // Those that are in are closed after 5 s, others come in after them: all the while UDP is served.
    let udp = UdpSocket::bind("127.0.0.1:0").expect("bound");
    udp.set_read_timeout(Some(patient())).expect("a timeout");
    for _ in 0..30 {
        udp.send_to(&binding(), server.turn).expect("sent");
        udp.recv(&mut [0; 64]).expect("an answer");
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let busy = processor_time(&server) - started;
    assert!(busy < Duration::from_millis(500), "{busy:?} of 3 s");
    drop(crowd);
    limit("1024");
    assert!(is_served(&mut TcpStream::connect(server.turn).expect("a connection")));
    assert!(refusals(&server, "out_of_files") > 0);
}

fn processor_time(server: &Server) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("a process");
    let after_name = stat.rsplit(')').next().expect("a name in brackets");
    let fields: Vec<u64> = after_name.split_whitespace().skip(11).take(2).map(|n| n.parse().expect("a number")).collect();
    Duration::from_millis((fields[0] + fields[1]) * 10)
}

#[test]
fn s19_whoever_is_slow_meets_the_deadline_of_what_it_is_slow_with() {
    let server = Server::run(2, OPEN);
    let mut allocate = Vec::new();
    Writer::new(&mut allocate, Method::Allocate, Class::Request, TransactionId([3; 12]));
    allocate[2..4].copy_from_slice(&100_u16.to_be_bytes());
    let header = binding();
    // What comes at once, what comes a byte a second, from whom.
    let rows: [(&str, SocketAddr, &str, &[u8], &[u8]); 7] = [
        ("nothing", server.edge, "127.0.0.1", b"", b""),
        ("a ClientHello", server.edge, "127.0.0.1", &[0x16, 3, 1, 2, 0, 1], &[0; 60]),
        ("a PROXY header", server.turn, "127.0.0.7", b"PROXY TCP4 19", &[b'8'; 60]),
        ("a STUN header", server.turn, "127.0.0.1", &header[..1], &header[1..]),
        ("a STUN body", server.turn, "127.0.0.1", &allocate, &[0; 60]),
        ("a line of HTTP", server.edge, "127.0.0.1", b"GET /", &[b'x'; 60]),
        ("the preface of HTTP/2", server.edge, "127.0.0.1", b"PRI * HTTP/2.0\r\n", b"\r\nS"),
    ];
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (name, to, from, first, then) in rows {
            scope.spawn(move || {
                let mut tcp = connect_from(from, to);
                tcp.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
                tcp.write_all(first).expect("written");
                let mut then = then.iter();
                loop {
                    let ended = match tcp.read(&mut [0; 512]) {
                        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => false,
                        // HTTP says what is wrong before it closes.
                        Ok(1..) => false,
                        outcome => is_over(outcome),
                    };
                    if ended {
                        break;
                    }
                    assert!(start.elapsed() < Duration::from_secs(25), "{name} is still heard");
                    if let Some(byte) = then.next() {
                        let _ = tcp.write_all(&[*byte]);
                    }
                }
            });
        }
        // Inside TLS, where the name of the protocol is known and nothing of it comes.
        scope.spawn(|| {
            let mut tls = server.tls(&[b"h2"]);
            tls.write_all(b"P").expect("written");
            tls.sock.set_read_timeout(Some(Duration::from_secs(25))).expect("a timeout");
            let outcome = std::io::copy(&mut tls, &mut std::io::sink());
            assert!(!outcome.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "the preface of HTTP/2 in TLS is still awaited");
        });
    });
    assert_eq!((refusals(&server, "slow_opening"), refusals(&server, "unused")), (4, 1));
}

#[test]
fn s20_framing_that_is_lost_is_the_end_and_what_is_only_odd_is_not() {
    let server = Server::open(1);
    for transport in [Transport::Tcp, Transport::EdgeTls] {
        let mut lab = lab(&server, transport);
        for (nth, odd) in [&[0x80, 0, 0, 0][..], &[0xc0, 0, 0, 0], &[0, 1, 0, 3, 0x21, 0x12, 0xa4, 0x42]].into_iter().enumerate() {
            let (client, _) = lab.allocated();
            let closed = || server.metric("postern_turn_allocations_total{event=\"closed\"}");
            let (before, lost) = (closed(), refusals(&server, "framing_lost"));
            lab.send(&client, odd);
            assert_eq!(lab.receive(&client), None, "{transport:?} {nth}");
            within(patient(), "its allocation ends with it", || closed() == before + 1);
            assert_eq!(refusals(&server, "framing_lost"), lost + 1);
        }
        // Longer than any packet, and on a channel that is nobody's: dropped, and what follows is read.
        let (client, _) = lab.allocated();
        let peer = lab.peer("127.0.0.1");
        assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
        let long = server.drops("packet_too_long");
        for len in [3_000, 65_535] {
            lab.channel(&client, 0x4000, &vec![7; len]);
        }
        lab.channel(&client, 0x4fff, b"unbound");
        lab.channel(&client, 0x4000, b"in step");
        assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"in step"[..]));
        assert_eq!(server.drops("packet_too_long"), long + 2);
    }
    // Over UDP what no buffer holds has a name too.
    let mut lab = lab(&server, Transport::Udp);
    let (client, _) = lab.allocated();
    let (long, received) = (server.drops("packet_too_long"), server.metric("postern_datagrams_received_total"));
    lab.send(&client, &[0x40; 3_000]);
    assert!(lab.is_silent(&client));
    assert_eq!(server.drops("packet_too_long"), long + 1);
    assert_eq!(server.metric("postern_datagrams_received_total"), received + 2);
}

#[test]
fn s21_whoever_does_not_read_costs_a_queue_and_nobody_else_notices() {
    let server = Server::open(1);
    for transport in [Transport::Tcp, Transport::EdgeTls] {
        let (mut slow, mut other) = (lab(&server, transport), lab(&server, Transport::Udp));
        let (deaf, relayed) = slow.allocated();
        let peer = slow.peer("127.0.0.1");
        assert_eq!(slow.permit(&deaf, &[peer.address]), 0);
        let (hearing, at) = other.allocated();
        let echo = other.peer("127.0.0.1");
        assert_eq!(other.permit(&hearing, &[echo.address]), 0);
        let (before, dropped) = (server.resident(), server.drops("stream_queue_full"));
        let start = Instant::now();
        // The other's answer paces it, and shows that it is served all the while.
        while server.drops("stream_queue_full") - dropped < 20_000 {
            assert!(start.elapsed() < Duration::from_secs(60), "{transport:?}: nothing is dropped");
            for _ in 0..20 {
                (0..50).for_each(|_| slow.peer_send(peer, relayed, &[7; 1_200]));
                other.peer_send(echo, at, b"is it there?");
                assert_eq!(other.data(&hearing).1, b"is it there?");
            }
        }
        let grown = server.resident().saturating_sub(before);
        assert!(grown < 4 << 20, "{transport:?}: it has grown by {grown} bytes");
    }
}

#[test]
fn s22_tls_is_resumed_and_nothing_is_believed_before_its_handshake() {
    let server = Server::open(2);
    for alpn in [&[b"http/1.1".as_slice()][..], &[]] {
        let mut config = server.tls_config(alpn);
        std::sync::Arc::get_mut(&mut config).expect("ours alone").enable_early_data = true;
        let kinds: Vec<_> = (0..2)
            .map(|_| {
                let session = rustls::ClientConnection::new(config.clone(), "localhost".try_into().expect("a name")).expect("a session");
                let tcp = TcpStream::connect(server.edge).expect("a connection");
                let mut tls = rustls::StreamOwned::new(session, tcp);
                assert!(tls.conn.early_data().is_none(), "the server's tickets allow no data before the handshake (RFC 8446 §4.2.10)");
                tls.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("written");
                assert!(tls.read(&mut [0; 4]).expect("an answer") > 0);
                tls.conn.handshake_kind()
            })
            .collect();
        assert_eq!(kinds, [Some(rustls::HandshakeKind::Full), Some(rustls::HandshakeKind::Resumed)]);
    }
    // A second handshake in a connection of TLS 1.2 is refused, and a protocol that is too old is told so.
    let openssl = |args: &[&str], input: &str| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &server.edge.to_string()]).args(args);
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("openssl runs");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("it ends");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let said = openssl(&["-tls1_2"], "R\n");
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    let said = openssl(&["-tls1", "-cipher", "ALL@SECLEVEL=0"], "");
    assert!(said.contains("SSL alert number"), "{said}");
}

#[test]
fn s29_secrets_rotate_and_whoever_is_there_stays() {
    use base64::Engine as _;
    let server = Server::run(2, &format!("{OPEN}shared_secrets = [\"new\", \"old\"]\n"));
    let expires = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() + 600;
    let rest = |name: &str, secret: &str| -> (&'static str, &'static str) {
        let user = format!("{expires}:{name}");
        let tag = postern::crypto::HmacSha1::new(secret.as_bytes()).sign(&[user.as_bytes()]);
        (user.leak(), base64::engine::general_purpose::STANDARD.encode(tag).leak())
    };
    let mut lab = lab(&server, Transport::Udp);
    let (carol, dave) = (lab.client(rest("carol", "old")), lab.client(rest("dave", "new")));
    assert_eq!((lab.allocate(&carol).code, lab.allocate(&dave).code), (0, 0));
    let file = server.state.join("postern.toml");
    let text = std::fs::read_to_string(&file).expect("the config");
    std::fs::write(&file, text.replace("\"new\", \"old\"", "\"newer\", \"new\"")).expect("written");
    server.command(&["reload"]);
    let allocates = |lab: &mut Lab, name: &str, secret: &str| {
        let client = lab.client(rest(name, secret));
        lab.allocate(&client).code
    };
    // Workers take it over a moment later, each for itself: whoever comes to one that has not yet, asks again.
    let mut nth = 0;
    let mut all = |lab: &mut Lab, secret: &str, code: u16| {
        nth += 1;
        (0..8).all(|_| allocates(lab, &format!("erin-{nth}"), secret) == code)
    };
    within(patient(), "the new secret is good", || all(&mut lab, "newer", 0));
    within(patient(), "the old one is not", || all(&mut lab, "old", 401));
    assert_eq!(allocates(&mut lab, "dave", "new"), 0);
    assert_eq!((lab.refresh(&carol, 600).code, lab.refresh(&dave, 600).code), (0, 0));
}

#[test]
fn s30_and_s35_neither_log_nor_metrics_name_anybody_and_no_stranger_fills_them() {
    let server = Server::run(2, &format!("{OPEN}[log]\nlevel = \"trace\"\n"));
    let mut lab = lab(&server, Transport::Tcp);
    let (client, _) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
    lab.channel(&client, 0x4000, b"data");
    assert!(lab.peer_receive(peer).is_some());
    let stranger = Client { user: "mallory\r\n\u{1b}[31m%s", password: "guess", ..client.clone() };
    assert_eq!(lab.refresh(&stranger, 0).code, 401);
    let text = server.get(server.admin, "/metrics", "");
    let known = ["cause", "core", "direction", "event", "how", "interface", "le", "outcome", "reason", "version", "way", "what", "worker"];
    for line in text.lines().filter(|line| line.starts_with("postern_")) {
        let Some((_, labels)) = line.split_once('{') else { continue };
        for label in labels.split("\",").filter_map(|label| label.split_once('=')) {
            assert!(known.contains(&label.0.trim_start_matches(',')), "{line}");
        }
    }
    for name in ["alice", "mallory", &client.address.to_string(), &peer.address.to_string()] {
        assert!(!text.contains(name), "{name} is in the metrics");
        assert!(!server.log().contains(name), "{name} is in the log");
    }
    assert!(!server.log().contains('\u{1b}'));

    // At the level that is usual, what one address is refused fills a few lines, whatever it asks for.
    let server = Server::run(1, &format!("{OPEN}[limits]\njoins_per_second_per_address = 100000\n"));
    let before = server.log().lines().count();
    let mut tls = server.tls(&[b"http/1.1"]);
    let (mut asks, start) = (String::new(), Instant::now());
    const ASKS: usize = 500;
    for n in 0..ASKS {
        let path = ["/rtc?access_token=x", "/rtc/v1/validate", "/twirp/livekit.RoomService/ListRooms", "/whip/v1"][n % 4];
        let method = if n % 4 < 2 { "GET" } else { "POST" };
        let headers = "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nContent-Length: 0";
        asks += &format!("{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n");
    }
    let mut writer = asks.as_bytes();
    let mut answers = String::new();
    while answers.matches("HTTP/1.1 4").count() < ASKS {
        let take = writer.len().min(8_000);
        tls.write_all(&writer[..take]).expect("written");
        writer = &writer[take..];
        let mut bytes = [0; 16_384];
        let len = tls.read(&mut bytes).expect("answers");
        assert!(len > 0, "it was closed after {}", answers.matches("HTTP/1.1 4").count());
        answers += &String::from_utf8_lossy(&bytes[..len]);
    }
    let lines = server.log().lines().count() - before;
    let most = 5 * (start.elapsed().as_secs() as usize + 2);
    assert!(lines <= most && most < ASKS / 2, "{ASKS} refusals filled {lines} lines:\n{}", server.log());
}

#[test]
fn s36_what_the_memory_holds_stays_in_the_process() {
    let server = Server::run(1, &format!("{OPEN}shared_secrets = [\"a-secret-that-is-to-be-forgotten\"]\n"));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).expect("a process");
    let core = limits.lines().find_map(|l| l.strip_prefix("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().take(2).collect::<Vec<_>>(), ["1", "1"], "no core, whoever asks");
    let file = server.state.join("postern.toml");
    let mut lab = lab(&server, Transport::Udp);
    let (client, _) = lab.allocated();
    let text = std::fs::read_to_string(&file).expect("the config");
    assert!(memory_has(&server, b"a-secret-that-is-to-be-forgotten"), "this test would see it");
    std::fs::write(&file, text.replace("a-secret-that-is-to-be-forgotten", "another")).expect("written");
    server.command(&["reload"]);
    within(Duration::from_secs(60), "the old secret is wiped", || {
        // Workers let go of the old settings in their next turn.
        assert_eq!(lab.refresh(&client, 600).code, 0);
        !memory_has(&server, b"a-secret-that-is-to-be-forgotten")
    });
}

/// Whether the writable memory of the server contains these bytes.
fn memory_has(server: &Server, needle: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.pid())).expect("a process");
    let memory = std::fs::File::open(format!("/proc/{}/mem", server.pid())).expect("root may");
    maps.lines().filter(|line| line.contains(" rw")).any(|line| {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).expect("an address"));
        let mut bytes = vec![0; (to - from) as usize];
        memory.read_exact_at(&mut bytes, from).is_ok() && memchr::memmem::find(&bytes, needle).is_some()
    })
}

#[test]
fn s40_once_its_ports_are_open_the_server_may_nothing_that_it_does_not_need() {
    let server = Server::start(2);
    let of = |status: &str, key: &str| status.lines().find_map(|l| l.strip_prefix(key)).expect("a line").trim().to_owned();
    let threads = || -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("a process");
        tasks.map(|task| std::fs::read_to_string(task.expect("a thread").path().join("status")).expect("readable")).collect()
    };
    // A thread names itself when it first runs.
    within(patient(), "all threads run", || {
        let names: Vec<String> = threads().iter().map(|status| of(status, "Name:")).collect();
        ["control", "postern", "worker-0", "worker-1"].iter().all(|name| names.iter().any(|n| n == name))
    });
    for status in threads() {
        let bounding = nix::unistd::geteuid().is_root().then_some("CapBnd:");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"].into_iter().chain(bounding) {
            assert_eq!(of(&status, set), "0000000000000000", "{set} of {status}");
        }
        assert_eq!((of(&status, "NoNewPrivs:"), of(&status, "Seccomp:")), ("1".into(), "2".into()), "{status}");
    }
}

/// Runs in a network of its own, which goes with it.
fn in_a_network(name: &str, test: impl FnOnce() + Send + 'static) {
    struct Network(String);
    impl Drop for Network {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
    let network = Network(format!("postern-{name}-{}", std::process::id()));
    ip(&["netns", "add", &network.0]);
    let file = std::fs::File::open(format!("/run/netns/{}", network.0)).expect("a namespace");
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("root may");
        ip(&["link", "set", "lo", "up"]);
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().expect("ip runs").success(), "{args:?}");
}

#[test]
fn s5_an_address_that_the_host_gets_later_is_closed_as_its_others_are_seen_by_root_alone() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("left out: a network of one's own takes root");
    }
    in_a_network("own", || {
        ip(&["link", "add", "own0", "type", "veth", "peer", "name", "own1"]);
        ip(&["link", "set", "own1", "up"]);
        ip(&["link", "set", "own0", "up"]);
        ip(&["route", "add", "11.0.0.0/8", "dev", "own0"]);
        let server = Server::run(2, "peers = \"public\"\n");
        let mut lab = lab(&server, Transport::Udp);
        let client = lab.client(ALICE);
        assert_eq!(lab.allocate(&client).code, 0);
        let later: SocketAddr = "11.3.0.1:9".parse().expect("an address");
        assert_eq!(lab.permit(&client, &[later]), 0, "it is somebody's on the internet");
        ip(&["addr", "add", "11.3.0.1/24", "dev", "own0"]);
        within(patient(), "it is our own", || lab.permit(&client, &[later]) == 403);
        let broadcast: SocketAddr = "11.3.0.255:9".parse().expect("an address");
        assert_eq!(lab.permit(&client, &[broadcast]), 403, "and its network hears nothing");
        // What was permitted before is not any more.
        let before = server.drops("turn_no_permission");
        lab.indicate(&client, later, b"x");
        assert!(lab.is_silent(&client));
        assert_eq!(server.drops("turn_no_permission"), before + 1);
        ip(&["addr", "del", "11.3.0.1/24", "dev", "own0"]);
        within(patient(), "it is gone", || lab.permit(&client, &[later]) == 0);
        let bob = lab.client(BOB);
        let fill: lab::Fill<'_> = &|w| set(w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]));
        assert_eq!(lab.allocate_with(&bob, fill).code, 0);
    });
}
