//! The one TCP port of the real binary: what speaks what, who is closed, who is redirected; and the relay by the `turn` crate
//! as an independent client over UDP, TCP and TLS.
#![allow(clippy::disallowed_methods, reason = "tests at the rim look at the clock")]

mod common;

use async_trait::async_trait;
use common::{Server, within};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Mutex;
use webrtc_util::conn::Conn;

#[test]
fn http_is_served_however_tls_was_opened() {
    let server = Server::start(2);
    // With ALPN the control plane handshakes; without it a worker does and hands the open session over.
    for alpn in [&[b"http/1.1".as_slice()][..], &[]] {
        for _ in 0..4 {
            let mut stream = server.tls(alpn);
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("written");
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            assert!(text.starts_with("HTTP/1.1 200"), "{alpn:?}: {text}");
        }
    }
    let plain = server.get(server.edge, "/x?y=1", "");
    assert!(plain.starts_with("HTTP/1.1 308"), "{plain}");
    assert!(plain.contains(&format!("location: https://127.0.0.1:{}/x?y=1", server.edge.port())), "{plain}");
}

#[test]
fn more_than_a_tls_record_at_once_is_read() {
    let server = Server::start(1);
    const REQUESTS: usize = 1_000;
    for alpn in [&[b"http/1.1".as_slice()][..], &[]] {
        let mut stream = server.tls(alpn);
        let mut requests = "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(REQUESTS);
        requests.push_str("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.conn.set_buffer_limit(None);
        // A full record and small ones behind it, in one write: the server reads across their ends.
        let mut rest = requests.as_bytes();
        for length in [16_384, 100, 100, 100].into_iter().cycle() {
            let (record, after) = rest.split_at(length.min(rest.len()));
            stream.conn.writer().write_all(record).expect("to memory");
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let mut ciphertext = Vec::new();
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut ciphertext).expect("to memory");
        }
        stream.sock.write_all(&ciphertext).expect("written");
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        assert_eq!(text.matches("HTTP/1.1 404").count(), REQUESTS, "{alpn:?}");
        assert_eq!(text.matches("HTTP/1.1 200").count(), 1, "{alpn:?}");
    }
}

#[test]
fn what_comes_behind_a_tls_goodbye_is_not_waited_for() {
    let server = Server::start(1);
    for alpn in [&[b"http/1.1".as_slice()][..], &[b"stun.turn"], &[]] {
        for _ in 0..3 {
            let mut stream = server.tls(alpn);
            stream.write_all(b"GET / HTTP/1.1\r\n").expect("written");
            stream.conn.send_close_notify();
            let mut bytes = Vec::new();
            while stream.conn.wants_write() {
                stream.conn.write_tls(&mut bytes).expect("to memory");
            }
            bytes.resize(bytes.len() + 20_000, 0x17);
            let _ = stream.sock.write_all(&bytes);
            // The one worker goes on.
            assert!(server.get(server.http, "/", "").starts_with("HTTP/1.1 200"), "{alpn:?}");
            let mut next = server.tls(&[b"http/1.1"]);
            next.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("written");
            next.sock.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            let mut text = String::new();
            let _ = next.read_to_string(&mut text);
            assert!(text.starts_with("HTTP/1.1 200"), "{alpn:?}: {text}");
        }
    }
}

#[test]
fn slow_and_silent_openers_are_closed_and_bounded() {
    let server = Server::start(1);
    let start = Instant::now();
    let mut silent = TcpStream::connect(server.edge).expect("a connection");
    let mut slow = TcpStream::connect(server.edge).expect("a connection");
    slow.write_all(&[0x16]).expect("written");
    let mut hello = TcpStream::connect(server.edge).expect("a connection");
    hello.write_all(&[0x16, 3, 1, 2, 0, 1]).expect("written");
    let mut wrong = TcpStream::connect(server.turn).expect("a connection");
    wrong.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("written");
    for (name, stream) in
        [("silent", &mut silent), ("slow", &mut slow), ("half a hello", &mut hello), ("HTTP on the TURN port", &mut wrong)]
    {
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
        let end = stream.read(&mut [0; 16]);
        assert!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{name}");
    }
    assert!(start.elapsed() < Duration::from_secs(12));
    assert_eq!(server.metric("postern_connection_refusals_total{reason=\"slow_opening\"}"), 3);
    // One address may have 64 that have not told what they are.
    let crowd: Vec<TcpStream> = (0..80).map(|_| TcpStream::connect(server.edge).expect("a connection")).collect();
    within(Duration::from_secs(4), "the crowd is cut", || {
        server.metric("postern_connection_refusals_total{reason=\"half_open_per_address\"}") == 16
    });
    drop(crowd);
    within(Duration::from_secs(5), "others get in again", || server.get(server.http, "/", "").starts_with("HTTP/1.1 200"));
}

#[test]
fn refusals_have_a_status_a_sentence_and_cors() {
    let server = Server::start(1);
    let rows = [
        ("/", "", 200, "Postern"),
        ("/rtc", "", 404, "not found"),
        ("/rtc/validate", "", 401, "no token"),
        ("/rtc/v1", "", 404, "not found"),
        ("/rtc/v1/validate", "", 401, "no token"),
        ("/rtc/v1/validate?access_token=a.b.c", "", 401, "no JWT"),
        ("/rtc/validate?protocol=x", "", 400, "the query is not understood"),
        ("/nowhere", "", 404, "not found"),
    ];
    for (path, headers, status, words) in rows {
        let answer = server.get(server.http, path, &format!("Origin: https://app.example\r\n{headers}"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        assert!(answer.contains(words), "{path}: {answer}");
        assert!(answer.to_lowercase().contains("access-control-allow-origin: *"), "{path}: {answer}");
    }
    let token = String::from_utf8(
        std::process::Command::new(env!("CARGO_BIN_EXE_postern"))
            .args(["token", "--room", "r", "--identity", "i"])
            .output()
            .expect("it runs")
            .stdout,
    )
    .expect("text");
    let answer = server.get(server.http, &format!("/rtc/v1/validate?access_token={}", token.trim()), "");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("join_request is missing"), "{answer}");
    let answer = server.get(server.http, &format!("/rtc/v1/validate?access_token={}&join_request=CAASAA==", token.trim()), "");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("success"), "{answer}");
    let upgrade =
        "Connection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let answer = server.get(server.http, "/rtc?protocol=x", upgrade);
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.ends_with("the query is not understood: protocol: invalid digit found in string"),
        "{answer}"
    );
    let answer = server.get(server.http, &format!("/rtc/validate?access_token={}&attributes=e30x", token.trim()), "");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("attributes are no base64url of a JSON map of texts"), "{answer}");
    // Whoever only validates does not join.
    assert_eq!(server.metric("postern_joins_total{outcome=\"bad_request\"}"), 3);
    assert_eq!(server.metric("postern_joins_total{outcome=\"token_malformed\"}"), 0);
}

#[test]
fn who_is_turned_away_at_once_is_counted_by_reason() {
    let server = Server::run(1, "[limits]\njoins_per_second_per_address = 1\n");
    let ask = |headers: &str| {
        let mut stream = server.tls(&[b"http/1.1"]);
        let request = format!("GET /rtc/validate HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("written");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let counts = || {
        ["address_rationed", "foreign_origin"].map(|reason| server.metric(&format!("postern_http_refusals_total{{reason=\"{reason}\"}}")))
    };
    let mut refused = 0;
    within(Duration::from_secs(20), "an address has had its ration", || {
        let answer = ask("");
        refused += u64::from(answer.starts_with("HTTP/1.1 429") && answer.contains("too many requests from this address"));
        refused > 0 || !answer.starts_with("HTTP/1.1 401")
    });
    assert_eq!((refused, counts()), (1, [1, 0]));
    assert!(server.log().contains("limits.joins_per_second_per_address"), "{}", server.log());

    let file = server.state.join("postern.toml");
    let text = std::fs::read_to_string(&file).expect("the config");
    let named = text.replace("[server]\n", "[server]\nallowed_origins = [\"https://app.example\"]\n");
    let both = named.replace("joins_per_second_per_address = 1\n", "joins_per_second_per_address = 1000\n");
    assert!(named != text && both != named, "{text}");
    std::fs::write(&file, both).expect("written");
    server.command(&["reload"]);
    let [own, foreign] = ["app", "elsewhere"].map(|name| ask(&format!("Origin: https://{name}.example\r\n")));
    assert!(own.starts_with("HTTP/1.1 401"), "{own}");
    assert!(foreign.starts_with("HTTP/1.1 403") && foreign.contains("server.allowed_origins"), "{foreign}");
    assert_eq!(counts(), [1, 1]);
    assert!(server.log().contains("foreign_origin"), "{}", server.log());
}

#[test]
fn a_query_that_is_not_understood_is_counted_and_its_words_stay_out_of_the_log() {
    let server = Server::run(1, "");
    let ask = |first: &str, headers: &str| {
        let mut stream = server.tls(&[b"http/1.1"]);
        write!(stream, "{first} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").expect("written");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let count = |outcome: &str| server.metric(&format!("postern_joins_total{{outcome=\"{outcome}\"}}"));
    let upgrade =
        "Connection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    for (query, field) in [("access_token=hidden&protocol=hidden", "protocol"), ("access_token=hidden&access_token=hidden", "access_token")]
    {
        let answer = ask(&format!("GET /rtc?{query}"), upgrade);
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(field) && !answer.contains("hidden"), "{answer}");
    }
    assert_eq!(count("bad_request"), 2);
    // What watches says who it is first.
    let twice = "POST /whep/v1?participant=hidden&participant=hidden";
    let rest = "Connection: close\r\nContent-Type: application/sdp\r\nContent-Length: 0\r\n";
    assert!(ask(twice, rest).starts_with("HTTP/1.1 401"));
    assert_eq!((count("token_missing"), count("bad_request")), (1, 2));
    let token = server.command(&["token", "--room", "r", "--identity", "i"]);
    let answer = ask(twice, &format!("Authorization: Bearer {}\r\n{rest}", token.trim()));
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("participant") && !answer.contains("hidden"), "{answer}");
    assert_eq!(count("bad_request"), 3);
    let log = server.log();
    assert!(log.contains("the query is not understood: protocol") && !log.contains("hidden"), "{log}");
}

#[test]
fn over_http_2_too_a_refusal_is_an_answer() {
    let server = Server::start(1);
    let body = std::env::temp_dir().join(format!("postern-body-{}", std::process::id()));
    std::fs::write(&body, vec![b'x'; 30_000]).expect("written");
    let data = format!("@{}", body.display());
    for path in ["whip/v1", "twirp/livekit.RoomService/ListRooms"] {
        for nth in 0..20 {
            let url = format!("https://{}/{path}", server.edge);
            let args = ["--http2", "-skS", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", "-H", "Authorization: Bearer a.b.c"];
            let curl = std::process::Command::new("curl")
                .args(args)
                .args(["-H", "Content-Type: application/sdp", "--data-binary", &data, &url])
                .output();
            let curl = curl.expect("curl runs");
            let said = String::from_utf8_lossy(&curl.stdout).into_owned() + &String::from_utf8_lossy(&curl.stderr);
            assert_eq!(said, "2 401", "{path} {nth}");
        }
    }
    assert_eq!(server.metric("postern_joins_total{outcome=\"token_malformed\"}"), 20);
    let _ = std::fs::remove_file(body);
}

#[test]
fn the_binary_is_static() {
    let elf = std::fs::read(env!("CARGO_BIN_EXE_postern")).expect("the binary");
    let u16_at = |at: usize| u16::from_le_bytes([elf[at], elf[at + 1]]);
    let headers_at = u64::from_le_bytes(elf[32..40].try_into().expect("eight bytes")) as usize;
    let (size, count) = (usize::from(u16_at(54)), usize::from(u16_at(56)));
    const PT_INTERP: u32 = 3;
    for i in 0..count {
        let at = headers_at + i * size;
        let kind = u32::from_le_bytes(elf[at..at + 4].try_into().expect("four bytes"));
        assert_ne!(kind, PT_INTERP, "it asks for a dynamic loader");
    }
}

// ---- the relay, by somebody else's client ------------------------------------------------------------------------------

/// A stream as the `turn` crate's client wants it: whole messages in and out.
struct Framed<S> {
    reader: Mutex<ReadHalf<S>>,
    writer: Mutex<WriteHalf<S>>,
    remote: SocketAddr,
}

impl<S: AsyncRead + AsyncWrite> Framed<S> {
    fn new(stream: S, remote: SocketAddr) -> Arc<Self> {
        let (reader, writer) = tokio::io::split(stream);
        Arc::new(Self { reader: Mutex::new(reader), writer: Mutex::new(writer), remote })
    }
}

#[async_trait]
impl<S: AsyncRead + AsyncWrite + Send + 'static> Conn for Framed<S> {
    async fn connect(&self, _: SocketAddr) -> Result<(), webrtc_util::Error> {
        Ok(())
    }
    async fn recv(&self, buf: &mut [u8]) -> Result<usize, webrtc_util::Error> {
        self.recv_from(buf).await.map(|(n, _)| n)
    }
    async fn recv_from(&self, buf: &mut [u8]) -> Result<(usize, SocketAddr), webrtc_util::Error> {
        let mut reader = self.reader.lock().await;
        reader.read_exact(&mut buf[..4]).await?;
        let len = usize::from(u16::from_be_bytes([buf[2], buf[3]]));
        let (whole, padded) = if buf[0] < 4 { (20 + len, 20 + len) } else { (4 + len, 4 + len.next_multiple_of(4)) };
        reader.read_exact(&mut buf[4..padded]).await?;
        Ok((whole, self.remote))
    }
    async fn send(&self, buf: &[u8]) -> Result<usize, webrtc_util::Error> {
        self.send_to(buf, self.remote).await
    }
    async fn send_to(&self, buf: &[u8], _: SocketAddr) -> Result<usize, webrtc_util::Error> {
        let mut writer = self.writer.lock().await;
        writer.write_all(buf).await?;
        writer.flush().await?;
        Ok(buf.len())
    }
    fn local_addr(&self) -> Result<SocketAddr, webrtc_util::Error> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
    }
    fn remote_addr(&self) -> Option<SocketAddr> {
        Some(self.remote)
    }
    async fn close(&self) -> Result<(), webrtc_util::Error> {
        Ok(())
    }
    fn as_any(&self) -> &(dyn std::any::Any + Send + Sync) {
        self
    }
}

/// REST credentials of the development server: secret "secret".
fn credentials() -> (String, String) {
    use base64::Engine as _;
    let expires = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() + 600;
    let username = format!("{expires}:tester");
    let tag = postern::crypto::HmacSha1::new(b"secret").sign(&[username.as_bytes()]);
    (username, base64::engine::general_purpose::STANDARD.encode(tag))
}

async fn allocate_and_be_refused(name: &str, server: SocketAddr, conn: Arc<dyn Conn + Send + Sync>) {
    let (username, password) = credentials();
    let config = turn::client::ClientConfig {
        stun_serv_addr: server.to_string(),
        turn_serv_addr: server.to_string(),
        username,
        password,
        realm: String::new(),
        software: String::new(),
        rto_in_ms: 500,
        conn,
        vnet: None,
    };
    let client = turn::client::Client::new(config).await.expect(name);
    client.listen().await.expect(name);
    let mapped = client.send_binding_request().await.unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(mapped.ip().to_string(), "127.0.0.1", "{name}");
    let relay = client.allocate().await.unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!((49152..=65535).contains(&relay.local_addr().expect("relayed").port()), "{name}");
    // The relay talks to the SFU alone: another peer is refused when the client asks for its permission.
    let refused = relay.send_to(b"x", "198.51.100.7:9".parse().expect("a literal")).await;
    assert!(refused.is_err_and(|e| e.to_string().contains("403")), "{name}");
    relay.close().await.expect(name);
    client.close().await.expect(name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_turn_crate_allocates_over_udp_tcp_and_tls() {
    let server = Server::start(2);
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    allocate_and_be_refused("udp", server.turn, Arc::new(udp)).await;
    for port in [server.turn, server.edge] {
        let tcp = tokio::net::TcpStream::connect(port).await.expect("a connection");
        allocate_and_be_refused("tcp", port, Framed::new(tcp, port)).await;
    }
    let tcp = tokio::net::TcpStream::connect(server.edge).await.expect("a connection");
    let name = "localhost".try_into().expect("a name");
    let tls = tokio_rustls::TlsConnector::from(server.tls_config(&[])).connect(name, tcp).await.expect("a session");
    allocate_and_be_refused("tls", server.edge, Framed::new(tls, server.edge)).await;
    assert_eq!(server.metric("postern_turn_allocations_total{event=\"opened\"}"), 4);
    within(Duration::from_secs(5), "all allocations end", || server.metric("postern_turn_allocations_total{event=\"closed\"}") == 4);
    assert!(server.metric("postern_turn_refusals_total{reason=\"403_peer_forbidden\"}") >= 4);
}
