//! The signalling connection of one simulated participant: a task that joins and passes messages on, both ways.

use super::Plan;
use crate::control::outbound;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use futures_util::{SinkExt, StreamExt};
use livekit_protocol as proto;
use livekit_protocol::signal_request::Message as Up;
use livekit_protocol::signal_response::Message as Down;
use prost::Message as _;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(5);

/// What a connection tells.
pub enum News {
    Down(Box<Down>),
    /// It is over, and why.
    Ended(String),
}

/// The server's front, looked up once for everybody.
#[derive(Clone)]
pub struct Front {
    host: String,
    address: SocketAddr,
    tls: Option<TlsConnector>,
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
        let tls = if is_secure { Some(TlsConnector::from(outbound::trust(plan.authority.as_deref())?)) } else { None };
        Ok(Self { host, address, tls })
    }

    pub fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback() && self.address.is_ipv4()
    }

    /// A name for the certificate.
    fn name(&self) -> &str {
        self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name)
    }
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
        Ok(Ok(socket)) => carry(socket, &mut requests, &tell).await,
        Ok(Err(error)) => error,
        Err(_) => format!("no answer within {} s", CONNECT_WITHIN.as_secs()),
    };
    tell(News::Ended(why));
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

type Socket = WebSocketStream<Box<dyn Stream>>;

async fn connect(front: &Front, token: &str, join: &proto::JoinRequest) -> Result<Socket, String> {
    let tcp = TcpStream::connect(front.address).await.map_err(|e| format!("{}: {e}", front.address))?;
    let _ = tcp.set_nodelay(true);
    let stream: Box<dyn Stream> = match &front.tls {
        None => Box::new(tcp),
        Some(connector) => {
            let name = ServerName::try_from(front.name().to_owned()).map_err(|e| format!("{}: {e}", front.name()))?;
            Box::new(connector.connect(name, tcp).await.map_err(|e| format!("TLS: {e}"))?)
        }
    };
    let wrapped = proto::WrappedJoinRequest { join_request: join.encode_to_vec(), ..Default::default() };
    let scheme = if front.tls.is_some() { "wss" } else { "ws" };
    let url = format!("{scheme}://{}/rtc/v1?access_token={token}&join_request={}", front.host, URL_SAFE.encode(wrapped.encode_to_vec()));
    let (socket, _) = client_async(url, stream).await.map_err(|e| match e {
        tungstenite::Error::Http(response) => {
            let said = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            format!("signalling: {} {said}", response.status())
        }
        other => format!("signalling: {other}"),
    })?;
    Ok(socket)
}

/// Why it ended.
async fn carry(mut socket: Socket, requests: &mut mpsc::UnboundedReceiver<Up>, tell: &impl Fn(News)) -> String {
    let mut ping = tokio::time::interval(PING_EVERY);
    loop {
        tokio::select! {
            down = socket.next() => match down {
                Some(Ok(Message::Binary(bytes))) => match proto::SignalResponse::decode(bytes) {
                    Ok(proto::SignalResponse { message: Some(message) }) => tell(News::Down(Box::new(message))),
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
