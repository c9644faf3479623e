//! The signalling connection of one simulated participant: a task that joins and passes messages on, both ways.

use super::stream::{self, Stream, Target};
use super::turn::Login;
use super::way::Relay;
use super::{Path, Plan};
use crate::control::outbound;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use futures_util::{SinkExt, StreamExt};
use livekit_protocol as proto;
use livekit_protocol::signal_request::Message as Up;
use livekit_protocol::signal_response::Message as Down;
use prost::Message as _;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{CipherSuite, ClientConfig};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(5);
const SOCKET_BUFFER: usize = 4 * 1024;

/// What a connection tells.
pub enum News {
    Down(Box<Down>),
    /// Relays that may be used.
    Relays(Vec<Relay>),
    /// It is over, and why.
    Ended(String),
}

/// The server's front, looked up once for everybody.
#[derive(Clone)]
pub struct Front {
    host: String,
    address: SocketAddr,
    is_secure: bool,
    tls: TlsConnector,
}

impl Front {
    pub async fn find(plan: &Plan) -> Result<Self, String> {
        let (scheme, rest) = plan.url.split_once("://").ok_or_else(|| format!("{}: write ws://host:port or wss://host", plan.url))?;
        let is_secure = match scheme {
            "ws" | "http" => false,
            "wss" | "https" => true,
            other => return Err(format!("{other}: accepted are ws, wss, http, https")),
        };
        let host = rest.split('/').next().unwrap_or_default().to_owned();
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port.parse().map_err(|_| format!("{port} is no port"))?),
            _ => (host.as_str(), if is_secure { 443 } else { 80 }),
        };
        let name = name.trim_matches(['[', ']']).to_owned();
        let address = match plan.address {
            Some(address) => address,
            None => SocketAddr::new(outbound::look_up(&name).await?, port),
        };
        let tls = strangers(plan.authority.as_deref())?;
        Ok(Self { host, address, is_secure, tls })
    }

    /// A TURN server without a front, and the relay that it is.
    pub async fn find_relay(
        url: &str,
        address: Option<SocketAddr>,
        authority: Option<&std::path::Path>,
        login: &Login,
    ) -> Result<(Self, Relay), String> {
        let Some((path, name, port)) = relay_url(url) else {
            return Err(format!("{url}: write turn:host:port?transport=udp, turn:host:port?transport=tcp or turns:host:port"));
        };
        let address = match address {
            Some(address) => address,
            None => SocketAddr::new(outbound::look_up(name).await?, port),
        };
        let tls = strangers(authority)?;
        let tls_name = (path == Path::TurnTls).then(|| name.to_owned());
        let front = Self { host: name.to_owned(), address, is_secure: false, tls };
        Ok((front, Relay { path, target: Target { address, tls_name }, login: login.clone() }))
    }

    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    pub fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback() && self.address.is_ipv4()
    }

    /// A name for the certificate.
    fn name(&self) -> &str {
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name);
        name.trim_matches(['[', ']'])
    }

    /// TLS over a connection, to whoever has a certificate for this name.
    pub async fn secure(&self, tcp: TcpStream, name: &str) -> Result<TlsStream<TcpStream>, String> {
        let server = ServerName::try_from(name.to_owned()).map_err(|e| format!("{name}: {e}"))?;
        self.tls.connect(server, tcp).await.map_err(|e| format!("TLS to {name}: {e}"))
    }

    /// A relay of a list for clients (RFC 7065); `None` for what is none: `stun:`.
    async fn relay(&self, url: &str, login: &Login) -> Result<Option<Relay>, String> {
        let Some((path, name, port)) = relay_url(url) else { return Ok(None) };
        // What is reached at another address by `--address` is reached there for relays as well.
        let ip = if name == self.name() { self.address.ip() } else { outbound::look_up(name).await? };
        let tls_name = (path == Path::TurnTls).then(|| name.to_owned());
        Ok(Some(Relay { path, target: Target { address: SocketAddr::new(ip, port), tls_name }, login: login.clone() }))
    }

    async fn relays(&self, servers: &[proto::IceServer]) -> Result<Vec<Relay>, String> {
        let mut relays = Vec::new();
        for server in servers {
            let login = Login { username: server.username.clone(), password: server.credential.clone() };
            for url in &server.urls {
                relays.extend(self.relay(url, &login).await?);
            }
        }
        Ok(relays)
    }
}

/// TLS as browsers speak it: AES-128 stands first in what they offer, and servers go by that. None has been there before, so that
/// none has a ticket (RFC 8446 §2.2).
pub fn strangers(authority: Option<&std::path::Path>) -> Result<TlsConnector, String> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let config = ClientConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions();
    let config = config.map_err(|e| format!("TLS: {e}"))?.with_root_certificates(outbound::trusted(authority)?);
    let mut config = config.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Transport, name and port of `turn:name:port?transport=…` or `turns:…`.
pub fn relay_url(url: &str) -> Option<(Path, &str, u16)> {
    let (scheme, rest) = url.split_once(':')?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (path, default_port) = match (scheme, query) {
        ("turn", "transport=tcp") => (Path::TurnTcp, 3478),
        ("turn", _) => (Path::TurnUdp, 3478),
        ("turns", "" | "transport=tcp") => (Path::TurnTls, 5349),
        _ => return None,
    };
    let (name, port) = match place.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()?),
        _ => (place, default_port),
    };
    Some((path, name.trim_matches(['[', ']']), port))
}

/// Joins, and then carries messages until either side is through. Dropping `requests` says goodbye.
pub async fn converse(
    front: Front,
    token: String,
    join: proto::JoinRequest,
    mut requests: mpsc::UnboundedReceiver<Up>,
    tell: impl Fn(News) + Send + 'static,
) {
    let why = match tokio::time::timeout(CONNECT_WITHIN, connect(&front, &token, &join)).await {
        Ok(Ok(socket)) => carry(&front, socket, &mut requests, &tell).await,
        Ok(Err(error)) => error,
        Err(_) => format!("no answer within {} s", CONNECT_WITHIN.as_secs()),
    };
    tell(News::Ended(why));
}

type Socket = WebSocketStream<Box<dyn Stream>>;

async fn connect(front: &Front, token: &str, join: &proto::JoinRequest) -> Result<Socket, String> {
    let target = Target { address: front.address, tls_name: front.is_secure.then(|| front.name().to_owned()) };
    let stream = stream::connect(front, &target).await?;
    let wrapped = proto::WrappedJoinRequest { join_request: join.encode_to_vec(), ..Default::default() };
    let scheme = if front.is_secure { "wss" } else { "ws" };
    let url = format!("{scheme}://{}/rtc/v1?access_token={token}&join_request={}", front.host, URL_SAFE.encode(wrapped.encode_to_vec()));
    // The default is 128 KiB for each of thousands.
    let config = WebSocketConfig::default().read_buffer_size(SOCKET_BUFFER).write_buffer_size(SOCKET_BUFFER);
    let (socket, _) = client_async_with_config(url, stream, Some(config)).await.map_err(|e| match e {
        tungstenite::Error::Http(response) => {
            let said = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            format!("signalling: {} {said}", response.status())
        }
        other => format!("signalling: {other}"),
    })?;
    Ok(socket)
}

/// Why it ended.
async fn carry(front: &Front, mut socket: Socket, requests: &mut mpsc::UnboundedReceiver<Up>, tell: &impl Fn(News)) -> String {
    let mut ping = tokio::time::interval(PING_EVERY);
    loop {
        tokio::select! {
            down = socket.next() => match down {
                Some(Ok(Message::Binary(bytes))) => match proto::SignalResponse::decode(bytes) {
                    Ok(proto::SignalResponse { message: Some(message) }) => {
                        if let Down::Join(join) = &message {
                            match front.relays(&join.ice_servers).await {
                                Ok(relays) => tell(News::Relays(relays)),
                                Err(error) => return format!("relays: {error}"),
                            }
                        }
                        tell(News::Down(Box::new(message)));
                    }
                    Ok(_) => {}
                    Err(error) => return format!("a message that does not decode: {error}"),
                },
                Some(Ok(Message::Close(_))) | None => return "the server closed the signalling connection".into(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return format!("signalling: {error}"),
            },
            up = requests.recv() => {
                let is_last = up.is_none();
                let goodbye = proto::LeaveRequest { reason: proto::DisconnectReason::ClientInitiated as i32, ..Default::default() };
                if let Err(error) = send(&mut socket, up.unwrap_or(Up::Leave(goodbye))).await {
                    return error;
                }
                if is_last {
                    let _ = socket.close(None).await;
                    return String::new();
                }
            }
            _ = ping.tick() => {
                if let Err(error) = send(&mut socket, Up::PingReq(proto::Ping::default())).await {
                    return error;
                }
            }
        }
    }
}

async fn send(socket: &mut Socket, message: Up) -> Result<(), String> {
    let bytes = proto::SignalRequest { message: Some(message) }.encode_to_vec();
    socket.send(Message::Binary(bytes.into())).await.map_err(|e| format!("signalling: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_relays() {
        let rows = [
            ("turn:meet.example.eu:3478?transport=udp", Some((Path::TurnUdp, "meet.example.eu", 3478))),
            ("turn:192.0.2.1", Some((Path::TurnUdp, "192.0.2.1", 3478))),
            ("turn:[2001:db8::1]:443?transport=tcp", Some((Path::TurnTcp, "2001:db8::1", 443))),
            ("turns:meet.example.eu:443?transport=tcp", Some((Path::TurnTls, "meet.example.eu", 443))),
            ("turns:[::1]", Some((Path::TurnTls, "::1", 5349))),
            ("stun:meet.example.eu:3478", None),
            ("turn:meet.example.eu:many", None),
        ];
        for (url, want) in rows {
            assert_eq!(relay_url(url), want, "{url}");
        }
    }
}
