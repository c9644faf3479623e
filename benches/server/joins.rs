//! Rows of joining: what a participant costs until its media flows. The floor serves as many with the least there is to say, by
//! the same libraries and through the same kernel.

use super::Context;
use super::host::{self, own_cpu_s, pin};
use super::net::Place;
use super::rooms::{Cast, Crowd, PAIRS, SILENT, in_turns};
use super::server::Server;
use super::summary::Row;
use postern::base::time::{Anchor, Instant as Moment};
use postern::config::{Tls, TlsMode};
use postern::control::certs;
use postern::engine::dtls::{Dtls, Effect, Identity, Role};
use postern::load;
use postern::wire::sdp::Fingerprint;
use rustls::pki_types::ServerName;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const ROOMS: u32 = 150;
const JOINS_A_SECOND: f64 = 200.0;
/// What a participant of a room of two says and hears, bytes: its request with a token, the room; an offer, its answer.
const SAID: [usize; 2] = [1_400, 2_600];
const HEARD: [usize; 2] = [1_600, 1_900];
/// Nothing is lost on loopback, so nothing is sent again.
const JOINED_WITHIN: Duration = Duration::from_secs(20);
/// Bytes of a check.
const CHECK: usize = 100;

/// Joins in rooms of two, and the handshake that is a part of each; its floor is the public-key arithmetic.
pub fn join(_: &Context) -> Result<Vec<Row>, String> {
    let place = Place::loopback();
    let mut cast = Cast::new(ROOMS, 2, 0, SILENT);
    cast.joins_a_second = JOINS_A_SECOND;
    let floor = JoinFloor::start()?;
    let mut joins = Vec::new();
    for _ in 0..PAIRS {
        let server = Server::start(place.server, 1)?;
        let report = Crowd::to(&place, &server, &cast)?.leave()?;
        drop(server);
        let used = report.joining.and_then(|w| w.server).ok_or("no figures of joining")?;
        joins.push((used.cpu_s * 1e3 / cast.people() as f64, floor.join_s(cast.people())? * 1e3));
    }
    drop(floor);
    // By themselves: while the kernel closes what others leave behind, that time is whoever's is running.
    let handshakes = in_turns(PAIRS, || Ok(handshake_s()? * 1e3), || Ok(arithmetic_s() * 1e3))?;
    Ok(vec![
        Row::of_pairs("server processor time per join", "ms", &joins),
        Row::of_pairs("server's half of a DTLS handshake", "ms", &handshakes),
    ])
}

/// Serves what every join must have: TLS, two messages each way, a check that is answered, DTLS.
struct JoinFloor {
    order: Option<mpsc::Sender<(u64, mpsc::Sender<Result<f64, String>>)>>,
    clients: Option<JoinHandle<()>>,
    server: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
    state: PathBuf,
}

impl JoinFloor {
    fn start() -> Result<Self, String> {
        let state = std::env::temp_dir().join(format!("postern-bench-{}-joins", std::process::id()));
        std::fs::create_dir_all(&state).map_err(|e| format!("{}: {e}", state.display()))?;
        let tls = Tls { mode: TlsMode::SelfSigned, state_dir: state.clone(), ..Tls::default() };
        let certificates = certs::load(&tls, &["127.0.0.1".to_owned()])?;
        let strangers = load::strangers(certificates.authority.as_deref())?;
        let [ours, theirs] = [Identity::generate()?, Identity::generate()?];
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let acceptor = TlsAcceptor::from(certificates.http);
        let (identity, print) = (ours.clone(), fingerprint(&theirs));
        let server = std::thread::spawn(move || {
            let run = async {
                let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|e| e.to_string())?;
                let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|e| e.to_string())?;
                let address = |of: std::io::Result<SocketAddr>| of.map_err(|e| e.to_string());
                tell.send((address(tcp.local_addr())?, address(udp.local_addr())?, host::thread_id())).map_err(|e| e.to_string())?;
                tokio::select! {
                    outcome = serve(tcp, &acceptor) => outcome,
                    outcome = shake(udp, identity, print) => outcome,
                    _ = stopped => Ok(()),
                }
            };
            tell_of(pin(0).and_then(|()| local(run)));
        });
        let (tcp, udp, served_by) = told.recv().map_err(|_| "the floor did not start".to_owned())?;
        let visit = Visit { tcp, udp, tls: strangers, identity: theirs, print: fingerprint(&ours) };
        let (order, orders) = mpsc::channel::<(u64, mpsc::Sender<_>)>();
        let clients = std::thread::spawn(move || {
            tell_of(pin(1));
            for (people, done) in orders {
                let visit = visit.clone();
                let _ = done.send(local(async move {
                    let before = host::thread_cpu_s(served_by);
                    let here = visit.all(people).await?;
                    let used = host::thread_cpu_s(served_by) - before;
                    // To see them off is no part of it.
                    drop(here);
                    Ok(used / people as f64)
                }));
            }
        });
        Ok(Self { order: Some(order), clients: Some(clients), server: Some(server), stop: Some(stop), state })
    }

    /// Lets so many join: processor time for each, s.
    fn join_s(&self, people: u64) -> Result<f64, String> {
        let (done, outcome) = mpsc::channel();
        self.order.as_ref().and_then(|order| order.send((people, done)).ok()).ok_or("the floor's clients are gone")?;
        outcome.recv().map_err(|e| e.to_string())?
    }
}

impl Drop for JoinFloor {
    fn drop(&mut self) {
        drop((self.order.take(), self.stop.take()));
        for thread in [self.clients.take(), self.server.take()].into_iter().flatten() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

fn tell_of(outcome: Result<(), String>) {
    if let Err(error) = outcome {
        eprintln!("  floor: {error}");
    }
}

/// Runs on this thread alone.
fn local<T>(run: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    tokio::task::LocalSet::new().block_on(&runtime, run)
}

async fn serve(listener: TcpListener, acceptor: &TlsAcceptor) -> Result<(), String> {
    loop {
        let (tcp, _) = listener.accept().await.map_err(|e| e.to_string())?;
        let acceptor = acceptor.clone();
        tokio::task::spawn_local(async move {
            tcp.set_nodelay(true)?;
            let mut stream = acceptor.accept(tcp).await?;
            for (said, heard) in SAID.into_iter().zip(HEARD) {
                stream.read_exact(&mut vec![0; said]).await?;
                stream.write_all(&vec![1; heard]).await?;
                stream.flush().await?;
            }
            // Until the client goes, as signalling does.
            stream.read(&mut [0]).await
        });
    }
}

/// Answers checks and handshakes.
async fn shake(udp: UdpSocket, identity: Identity, print: Fingerprint) -> Result<(), String> {
    let anchor = Anchor::new(Instant::now());
    let mut sessions: HashMap<SocketAddr, Dtls> = HashMap::new();
    let (mut datagram, mut effects) = ([0; 2_048], Vec::new());
    loop {
        let (len, from) = udp.recv_from(&mut datagram).await.map_err(|e| e.to_string())?;
        // A message of STUN; records of DTLS begin with a number from 20 on (RFC 7983).
        if datagram[0] < 4 {
            sessions.insert(from, Dtls::new(identity.clone(), anchor, Role::Server, print.clone()));
            udp.send_to(&datagram[..len], from).await.map_err(|e| e.to_string())?;
            continue;
        }
        let Some(session) = sessions.get_mut(&from) else { continue };
        if let Err(error) = session.handle(anchor.from_std(Instant::now()), &datagram[..len], &mut effects) {
            eprintln!("  floor: {error}");
            sessions.remove(&from);
        }
        for effect in effects.drain(..) {
            if let Effect::Send(bytes) = effect {
                udp.send_to(&bytes, from).await.map_err(|e| e.to_string())?;
            }
        }
    }
}

/// One who joins.
#[derive(Clone)]
struct Visit {
    tcp: SocketAddr,
    udp: SocketAddr,
    tls: TlsConnector,
    identity: Identity,
    print: Fingerprint,
}

impl Visit {
    /// All of them, when the last has come.
    async fn all(self, people: u64) -> Result<Vec<impl Sized>, String> {
        let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / JOINS_A_SECOND));
        let mut joins = Vec::new();
        for _ in 0..people {
            pace.tick().await;
            joins.push(tokio::task::spawn_local(tokio::time::timeout(JOINED_WITHIN, self.clone().join())));
        }
        let mut here = Vec::new();
        for join in joins {
            here.push(join.await.map_err(|e| e.to_string())?.map_err(|_| "a join that does not end".to_owned())??);
        }
        Ok(here)
    }

    /// What is there while it stays.
    async fn join(self) -> Result<impl Sized, String> {
        let failed = |e: std::io::Error| e.to_string();
        let tcp = TcpStream::connect(self.tcp).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let mut stream = self.tls.connect(ServerName::from(self.tcp.ip()), tcp).await.map_err(failed)?;
        for (said, heard) in SAID.into_iter().zip(HEARD) {
            stream.write_all(&vec![2; said]).await.map_err(failed)?;
            stream.flush().await.map_err(failed)?;
            stream.read_exact(&mut vec![0; heard]).await.map_err(failed)?;
        }
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        udp.connect(self.udp).await.map_err(failed)?;
        let mut datagram = [0; 2_048];
        udp.send(&[0; CHECK]).await.map_err(failed)?;
        udp.recv(&mut datagram).await.map_err(failed)?;
        let anchor = Anchor::new(Instant::now());
        let mut session = Dtls::new(self.identity, anchor, Role::Client, self.print);
        let mut effects = Vec::new();
        session.start(anchor.from_std(Instant::now()), &mut effects).map_err(|e| e.to_string())?;
        loop {
            for effect in effects.drain(..) {
                if let Effect::Send(bytes) = effect {
                    udp.send(&bytes).await.map_err(failed)?;
                }
            }
            if session.is_established() {
                return Ok((stream, udp, session));
            }
            let len = udp.recv(&mut datagram).await.map_err(failed)?;
            session.handle(anchor.from_std(Instant::now()), &datagram[..len], &mut effects).map_err(|e| e.to_string())?;
        }
    }
}

fn fingerprint(of: &Identity) -> Fingerprint {
    let digest = of.fingerprint().split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok());
    Fingerprint { hash: "sha-256".into(), digest: digest.collect() }
}

/// Processor time of a handshake's operations on P-256: to agree, to sign, and to look at the client's signature, s.
fn arithmetic_s() -> f64 {
    use aws_lc_rs::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey as Theirs, agree_ephemeral};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey};
    const TIMES: u32 = 2_000;
    let random = SystemRandom::new();
    let timed = |f: &dyn Fn()| {
        let before = own_cpu_s();
        (0..TIMES).for_each(|_| f());
        (own_cpu_s() - before) / f64::from(TIMES)
    };
    let theirs = EphemeralPrivateKey::generate(&ECDH_P256, &random).and_then(|k| k.compute_public_key()).expect("a key");
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key");
    let signature = pair.sign(&random, b"hello").expect("a signature");
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref().to_vec());
    timed(&|| {
        let ours = EphemeralPrivateKey::generate(&ECDH_P256, &random).expect("a key");
        let _public = ours.compute_public_key().expect("a key");
        agree_ephemeral(ours, Theirs::new(&ECDH_P256, theirs.as_ref()), (), |_| Ok(())).expect("agreed");
        pair.sign(&random, b"hello").expect("a signature");
        public.verify(b"hello", signature.as_ref()).expect("authentic");
    })
}

/// Processor time of the server's half of a handshake, over a wire that loses nothing.
fn handshake_s() -> Result<f64, String> {
    const TIMES: u32 = 1_000;
    let anchor = Anchor::new(Instant::now());
    let (ours, theirs) = (Identity::generate()?, Identity::generate()?);
    let mut spent = 0.0;
    for _ in 0..TIMES {
        let mut client = Dtls::new(theirs.clone(), anchor, Role::Client, fingerprint(&ours));
        let mut server = Dtls::new(ours.clone(), anchor, Role::Server, fingerprint(&theirs));
        let (mut up, mut down) = (Vec::new(), Vec::new());
        client.start(Moment::from_millis(1), &mut up).map_err(|e| e.to_string())?;
        let mut turns = 0;
        while !(client.is_established() && server.is_established()) {
            turns += 1;
            if turns > 20 {
                return Err("a handshake that does not end".into());
            }
            let at = Moment::from_millis(1 + turns);
            for effect in up.drain(..) {
                if let Effect::Send(bytes) = effect {
                    let before = own_cpu_s();
                    server.handle(at, &bytes, &mut down).map_err(|e| e.to_string())?;
                    spent += own_cpu_s() - before;
                }
            }
            for effect in down.drain(..) {
                if let Effect::Send(bytes) = effect {
                    client.handle(at, &bytes, &mut up).map_err(|e| e.to_string())?;
                }
            }
        }
    }
    Ok(spent / f64::from(TIMES))
}
