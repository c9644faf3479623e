//! The room protocol's front: `/rtc/v1` (one peer connection), `/rtc` (two), and their `validate`; one WebSocket a participant.
//!
//! Nothing before the token is verified costs more than a hash; everything that can be refused is refused before the
//! upgrade, with a status and a sentence, because afterwards a browser cannot see either.

use super::auth::{Claims, Denied};
use super::door::Peer;
use super::limits::Rate;
use super::metrics::Gauges;
use super::rooms::{Arrival, Caller, JoinError, Rooms, SIGNAL_QUEUE, Signal};
use crate::base::net::source_of;
use crate::config::Config;
use arc_swap::ArcSwap;
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use flate2::read::GzDecoder;
use futures_util::SinkExt;
use livekit_protocol as proto;
use livekit_protocol::signal_request::Message as Up;
use livekit_protocol::signal_response::Message as Down;
use prost::Message as _;
use serde::Deserialize;
use std::collections::HashMap;
use std::error::Error as _;
use std::io::Read;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// Silence after which a client's connection is given up; it pings every 5 s.
const SILENCE: Duration = Duration::from_secs(30);
/// Messages of one client that are heard in a second.
const MESSAGES_A_SECOND: u32 = 200;
/// How long one message may take to leave.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// Messages that are written together.
const TOLD_TOGETHER: usize = 16;
/// Read and written at a time: the default would hold 128 KiB for each participant.
const SOCKET_BUFFER: usize = 4 * 1024;

/// What clients may do; it changes when the config is read again.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Web origins whose pages may use the server; empty is every one.
    pub origins: Vec<String>,
    /// Longest signalling message, and longest join request after inflation, bytes.
    pub message_max: usize,
    pub join_request_max: usize,
}

impl Policy {
    pub fn of(config: &Config) -> Self {
        Self {
            origins: config.server.allowed_origins.clone(),
            message_max: config.limits.message_bytes,
            join_request_max: config.limits.join_request_bytes,
        }
    }
}

/// What the handlers share.
pub struct Front {
    pub rooms: Mutex<Rooms>,
    pub keys: super::auth::Keys,
    /// Name in ICE URLs; `None` takes it from the Host header.
    pub host: Option<String>,
    pub policy: ArcSwap<Policy>,
    pub by_address: Rate<IpAddr>,
    pub by_identity: Rate<(String, String)>,
    /// Lines of the log that somebody at an address can cause.
    pub noted: Rate<IpAddr>,
    pub gauges: Arc<Gauges>,
}

/// Refusals of one address that are logged in a second: strangers do not fill the disk.
pub const NOTED_PER_SECOND: u32 = 5;

impl Front {
    /// Whether a refusal is to be logged.
    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    pub fn notes(&self, peer: Option<&Peer>) -> bool {
        peer.is_none_or(|peer| self.noted.admits(Instant::now(), source_of(peer.0.ip())))
    }

    /// A request was refused before anything of it was looked at, by this setting.
    pub fn turned_away(&self, peer: Peer, reason: &'static str, setting: &'static str) {
        self.gauges.entrance.refused(reason);
        if self.notes(Some(&peer)) {
            tracing::info!(reason, setting, "a request was refused");
        }
    }

    pub fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a page may use the server: those of the origins that are named, and its own. What is no page has no origin.
    pub fn admits_origin(&self, headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).and_then(|v: &header::HeaderValue| v.to_str().ok());
        let policy = self.policy.load();
        let Some(origin) = text(header::ORIGIN).filter(|_| !policy.origins.is_empty()) else { return true };
        let host = origin.split_once("://").map(|(_, host)| host);
        policy.origins.iter().any(|o| o.eq_ignore_ascii_case(origin)) || (host.is_some() && host == text(header::HOST))
    }

    /// Whether an address may ask once more.
    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    pub fn admits_address(&self, ip: IpAddr) -> bool {
        self.by_address.admits(Instant::now(), source_of(ip))
    }

    /// Addresses and names are not kept for longer than their limits need them.
    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    pub fn forget_askers(&self) {
        let now = Instant::now();
        self.by_address.sweep(now);
        self.by_identity.sweep(now);
        self.noted.sweep(now);
    }

    /// Whether somebody may join once more.
    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    pub fn admits_joiner(&self, claims: &Claims) -> bool {
        self.by_identity.admits(Instant::now(), (claims.video.room.clone(), claims.identity().to_owned()))
    }
}

/// What a client says in the URL. With one peer connection nearly all of it is in `join_request`; with two it is here.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct JoinQuery {
    access_token: Option<String>,
    join_request: Option<String>,
    reconnect: Option<String>,
    sid: Option<String>,
    reconnect_reason: Option<i32>,
    auto_subscribe: Option<String>,
    adaptive_stream: Option<String>,
    sdk: Option<String>,
    version: Option<String>,
    protocol: Option<i32>,
    client_protocol: Option<i32>,
    os: Option<String>,
    os_version: Option<String>,
    device_model: Option<String>,
    browser: Option<String>,
    browser_version: Option<String>,
    network: Option<String>,
    /// base64url of a JSON map.
    attributes: Option<String>,
}

impl JoinQuery {
    fn is_true(value: Option<&String>) -> bool {
        value.is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true"))
    }

    /// The same as a client with one peer connection would say it.
    fn request(&self) -> Result<proto::JoinRequest, Refused> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let participant_attributes = match &self.attributes {
            Some(encoded) => {
                let bytes = URL_SAFE.decode(encoded).or_else(|_| URL_SAFE_NO_PAD.decode(encoded));
                serde_json::from_slice(&bytes.map_err(|_| Refused::BadAttributes)?).map_err(|_| Refused::BadAttributes)?
            }
            None => HashMap::new(),
        };
        let sdk = self.sdk.as_deref().unwrap_or_default().to_ascii_uppercase();
        let client_info = proto::ClientInfo {
            sdk: proto::client_info::Sdk::from_str_name(&sdk).unwrap_or(proto::client_info::Sdk::Unknown) as i32,
            version: text(&self.version),
            protocol: self.protocol.unwrap_or_default(),
            client_protocol: self.client_protocol.unwrap_or_default(),
            os: text(&self.os),
            os_version: text(&self.os_version),
            device_model: text(&self.device_model),
            browser: text(&self.browser),
            browser_version: text(&self.browser_version),
            network: text(&self.network),
            ..Default::default()
        };
        let settings = proto::ConnectionSettings {
            auto_subscribe: self.auto_subscribe.is_none() || Self::is_true(self.auto_subscribe.as_ref()),
            adaptive_stream: Self::is_true(self.adaptive_stream.as_ref()),
            ..Default::default()
        };
        Ok(proto::JoinRequest {
            client_info: Some(client_info),
            connection_settings: Some(settings),
            participant_attributes,
            reconnect: Self::is_true(self.reconnect.as_ref()),
            reconnect_reason: self.reconnect_reason.unwrap_or_default(),
            participant_sid: text(&self.sid),
            ..Default::default()
        })
    }
}

/// Whether a client asks for one peer connection or lets us offer the second one: the route says it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V0,
    V1,
}

/// Why a request did not become a connection.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("join_request is missing")]
    NoJoinRequest,
    #[error("join_request does not decode: {0}")]
    BadJoinRequest(&'static str),
    #[error("the query is not understood: {}", query_fault(.0))]
    BadQuery(#[from] QueryRejection),
    #[error("attributes are no base64url of a JSON map of texts")]
    BadAttributes,
    #[error("too many joins; try again in a second")]
    TooMany,
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("not found")]
    NoWebSocket,
}

impl Refused {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Denied(denied) => denied.outcome(),
            Self::Join(error) => error.outcome(),
            Self::TooMany => "rationed",
            Self::NoJoinRequest | Self::BadJoinRequest(_) | Self::BadQuery(_) | Self::BadAttributes | Self::NoWebSocket => "bad_request",
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Denied(denied) => StatusCode::from_u16(denied.status()).unwrap_or(StatusCode::UNAUTHORIZED),
            Self::NoJoinRequest
            | Self::BadJoinRequest(_)
            | Self::BadQuery(_)
            | Self::BadAttributes
            | Self::Join(JoinError::Offer(_) | JoinError::TooLong) => StatusCode::BAD_REQUEST,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Join(JoinError::Revoked | JoinError::NotAllowed) => StatusCode::FORBIDDEN,
            Self::Join(JoinError::RoomMissing) | Self::NoWebSocket => StatusCode::NOT_FOUND,
            Self::Join(JoinError::RoomFull | JoinError::Draining) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut response = (status, self.to_string()).into_response();
        if matches!(self, Self::TooMany | Self::Join(JoinError::Draining)) {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

/// Which field, and what is wrong with it: never what stood there, which may be a token.
pub fn query_fault(rejection: &QueryRejection) -> String {
    rejection.source().map_or_else(|| rejection.body_text(), ToString::to_string)
}

/// The token: from the Authorization header (native SDKs), else from the query (browsers).
fn token<'a>(headers: &'a HeaderMap, query: &'a JoinQuery) -> Result<&'a str, Denied> {
    match headers.get(header::AUTHORIZATION) {
        Some(value) => value.to_str().ok().and_then(|v| v.strip_prefix("Bearer ")).ok_or(Denied::Malformed),
        None => query.access_token.as_deref().ok_or(Denied::Missing),
    }
}

/// Who joins with what, and whether over two peer connections.
fn check(front: &Front, version: Version, headers: &HeaderMap, query: &JoinQuery) -> Result<(Claims, proto::JoinRequest, bool), Refused> {
    let claims = front.keys.verify_join(token(headers, query)?)?;
    let (mut request, is_dual) = match (&query.join_request, version) {
        // Whoever sends one knows how to go on with one peer connection.
        (Some(request), _) => (decode_join_request(request, front.policy.load().join_request_max)?, false),
        (None, Version::V0) => (query.request()?, true),
        (None, Version::V1) => return Err(Refused::NoJoinRequest),
    };
    let client = request.client_info.get_or_insert_default();
    if client.browser.is_empty() {
        let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        client.browser = if agent.contains("Firefox/") { "firefox" } else { "" }.to_owned();
    }
    let rooms = front.rooms();
    if !rooms.may_join(&claims) {
        return Err(Denied::RoomMissing.into());
    }
    if rooms.refuses_room(&claims.video.room) {
        return Err(JoinError::Draining.into());
    }
    drop(rooms);
    Ok((claims, request, is_dual))
}

/// base64url of `WrappedJoinRequest`, gzip inside where the client could; at most `max` bytes when inflated.
fn decode_join_request(text: &str, max: usize) -> Result<proto::JoinRequest, Refused> {
    let bytes = URL_SAFE.decode(text).or_else(|_| URL_SAFE_NO_PAD.decode(text)).map_err(|_| Refused::BadJoinRequest("no base64url"))?;
    let wrapped = proto::WrappedJoinRequest::decode(&*bytes).map_err(|_| Refused::BadJoinRequest("no WrappedJoinRequest"))?;
    let inner = if wrapped.compression == proto::wrapped_join_request::Compression::Gzip as i32 {
        let mut inflated = Vec::new();
        let mut limited = GzDecoder::new(&*wrapped.join_request).take(max as u64 + 1);
        limited.read_to_end(&mut inflated).map_err(|_| Refused::BadJoinRequest("no gzip"))?;
        inflated
    } else {
        wrapped.join_request
    };
    if inner.len() > max {
        return Err(Refused::BadJoinRequest("too long when inflated"));
    }
    proto::JoinRequest::decode(&*inner).map_err(|_| Refused::BadJoinRequest("no JoinRequest"))
}

/// What a browser asks after a failed WebSocket, to learn why.
pub async fn validate(
    State(front): State<Arc<Front>>,
    Extension(version): Extension<Version>,
    headers: HeaderMap,
    query: Asked,
) -> Response {
    match query.map_err(Refused::from).and_then(|Query(query)| check(&front, version, &headers, &query)) {
        Ok(_) => "success".into_response(),
        Err(refused) => refused.into_response(),
    }
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;
type Asked = Result<Query<JoinQuery>, QueryRejection>;

pub async fn connect(
    State(front): State<Arc<Front>>,
    Extension(version): Extension<Version>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    query: Asked,
    upgrade: Upgrade,
) -> Response {
    match admit(&front, version, peer, &headers, query, upgrade) {
        Ok(response) => response,
        Err(refused) => {
            front.gauges.entrance.join(refused.outcome());
            if front.notes(Some(&peer)) {
                tracing::info!(reason = %refused, "a join was refused");
            }
            refused.into_response()
        }
    }
}

fn admit(
    front: &Arc<Front>,
    version: Version,
    Peer(peer): Peer,
    headers: &HeaderMap,
    query: Asked,
    upgrade: Upgrade,
) -> Result<Response, Refused> {
    let upgrade = upgrade.map_err(|_| Refused::NoWebSocket)?;
    let Query(query) = query?;
    let (claims, request, is_dual) = check(front, version, headers, &query)?;
    if !front.admits_joiner(&claims) {
        return Err(Refused::TooMany);
    }
    let host = front.host.clone().unwrap_or_else(|| host_of(headers));
    let caller = Caller { host, address: Some(peer.ip()) };
    let (signal, queue) = mpsc::channel(SIGNAL_QUEUE);
    let (session, outcome) = if request.reconnect && !request.participant_sid.is_empty() {
        let reason = proto::ReconnectReason::try_from(request.reconnect_reason).unwrap_or_default();
        tracing::info!(reason = reason.as_str_name(), "a client is back");
        let session = front.rooms().resume(&claims, &request.participant_sid, &caller, signal.clone());
        (session, if session.is_some() { "resumed" } else { "told_to_rejoin" })
    } else {
        (Some(front.rooms().join(Arrival { claims, request, caller, is_dual }, signal.clone())?), "joined")
    };
    front.gauges.entrance.join(outcome);
    let Some(session) = session else {
        // A participant that is no longer here joins anew; this answer makes the SDK do so by itself.
        let leave = proto::LeaveRequest {
            can_reconnect: true,
            reason: proto::DisconnectReason::StateMismatch as i32,
            action: proto::leave_request::Action::Reconnect as i32,
            ..Default::default()
        };
        return Ok(upgrade.on_upgrade(|mut socket| async move {
            let _ = socket.send(Message::Binary(encode(Down::Leave(leave)).into())).await;
            let _ = socket.send(Message::Close(None)).await;
        }));
    };
    let (front, on_failure) = (Arc::clone(front), (Arc::clone(front), signal.clone()));
    let message_max = front.policy.load().message_max;
    let upgrade = upgrade.max_message_size(message_max).max_frame_size(message_max);
    let upgrade = upgrade.read_buffer_size(SOCKET_BUFFER).write_buffer_size(SOCKET_BUFFER);
    Ok(upgrade
        .on_failed_upgrade(move |_| on_failure.0.rooms().signal_lost(session, &on_failure.1))
        .on_upgrade(move |socket| converse(front, socket, session, signal, queue)))
}

/// The name by which the client reached us, without its port.
pub fn host_of(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost");
    match host.rfind(']') {
        Some(end) => host[..=end].to_owned(),
        None => host.split(':').next().unwrap_or(host).to_owned(),
    }
}

fn encode(message: Down) -> Vec<u8> {
    proto::SignalResponse { message: Some(message) }.encode_to_vec()
}

/// How messages are written: protobuf, or protojson once the client has sent text.
fn frame(message: Down, is_text: bool) -> Message {
    if is_text && let Ok(json) = serde_json::to_string(&proto::SignalResponse { message: Some(message.clone()) }) {
        return Message::Text(json.into());
    }
    Message::Binary(encode(message).into())
}

/// Writes one message; `false` when the client does not take it in time.
async fn write(socket: &mut WebSocket, message: Message) -> bool {
    matches!(tokio::time::timeout(WRITE_WITHIN, socket.send(message)).await, Ok(Ok(())))
}

/// Writes what waits as one: a participant that comes is told five things at once.
async fn write_all(socket: &mut WebSocket, messages: impl Iterator<Item = Message>) -> bool {
    for message in messages {
        if !matches!(tokio::time::timeout(WRITE_WITHIN, socket.feed(message)).await, Ok(Ok(()))) {
            return false;
        }
    }
    matches!(tokio::time::timeout(WRITE_WITHIN, socket.flush()).await, Ok(Ok(())))
}

/// How much a client has said in the current second.
struct Pace {
    since: tokio::time::Instant,
    count: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: tokio::time::Instant::now(), count: 0 }
    }
}

impl Pace {
    fn next(&self) -> tokio::time::Instant {
        self.since + Duration::from_secs(1)
    }

    fn count(&mut self) {
        if tokio::time::Instant::now() >= self.next() {
            *self = Self::default();
        }
        self.count += 1;
    }

    fn is_full(&self) -> bool {
        self.count >= MESSAGES_A_SECOND && tokio::time::Instant::now() < self.next()
    }
}

/// One client's conversation, until either side ends it.
async fn converse(
    front: Arc<Front>,
    mut socket: WebSocket,
    session: crate::base::id::SessionId,
    signal: Signal,
    mut queue: mpsc::Receiver<Box<Down>>,
) {
    let mut is_text = false;
    let mut told = Vec::new();
    // The rooms hold the only other sender: when they let go, the queue ends.
    let weak = signal.downgrade();
    drop(signal);
    let mut said_goodbye = false;
    let mut silent_at = tokio::time::Instant::now() + SILENCE;
    let mut pace = Pace::default();
    let why = loop {
        tokio::select! {
            count = queue.recv_many(&mut told, TOLD_TOGETHER) => {
                if count == 0 {
                    break "the room let go";
                }
                let is_leave = told.iter().any(|m| matches!(**m, Down::Leave(_)));
                if !write_all(&mut socket, told.drain(..).map(|m| frame(*m, is_text))).await {
                    break "it does not take what is written";
                }
                if is_leave {
                    said_goodbye = true;
                    write(&mut socket, Message::Close(Some(CloseFrame { code: 1000, reason: "".into() }))).await;
                    break "it was told to leave";
                }
            }
            () = tokio::time::sleep_until(silent_at), if !pace.is_full() => break "it is silent",
            // Whoever says too much is heard more slowly: what waits fills its connection, not our memory.
            () = tokio::time::sleep_until(pace.next()), if pace.is_full() => pace = Pace::default(),
            up = socket.recv(), if !pace.is_full() => {
                pace.count();
                let message = match up {
                    Some(Ok(message)) => message,
                    Some(Err(error)) => {
                        tracing::debug!(session = session.0, %error, "signalling fails");
                        break "it failed";
                    }
                    None => break "it ended",
                };
                silent_at = tokio::time::Instant::now() + SILENCE;
                let request = match &message {
                    Message::Binary(bytes) => proto::SignalRequest::decode(&**bytes).ok(),
                    Message::Text(text) => {
                        is_text = true;
                        serde_json::from_str(text).ok()
                    }
                    Message::Close(_) => break "it was closed by the client",
                    Message::Ping(_) | Message::Pong(_) => continue,
                };
                let Some(request) = request else {
                    tracing::info!(session = session.0, "a signalling message does not decode; the connection is closed");
                    write(&mut socket, Message::Close(Some(CloseFrame { code: 1003, reason: "not a SignalRequest".into() }))).await;
                    break "it does not decode";
                };
                let Some(message) = request.message else { continue };
                // Pongs come straight from here, so that they measure the connection and not the room.
                if let Some(pongs) = pongs(&message) {
                    for pong in pongs {
                        write(&mut socket, frame(pong, is_text)).await;
                    }
                    continue;
                }
                let is_leave = matches!(message, Up::Leave(_));
                handle(&front, session, message);
                if is_leave {
                    said_goodbye = true;
                    write(&mut socket, Message::Close(Some(CloseFrame { code: 1000, reason: "".into() }))).await;
                    break "the participant left";
                }
            }
        }
    };
    tracing::debug!(session = session.0, why, "signalling ended");
    if !said_goodbye && let Some(signal) = weak.upgrade() {
        front.rooms().signal_lost(session, &signal);
    }
}

#[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
fn pongs(message: &Up) -> Option<Vec<Down>> {
    let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    match message {
        Up::Ping(_) => Some(vec![Down::Pong(now_ms)]),
        Up::PingReq(ping) => Some(vec![Down::PongResp(proto::Pong { last_ping_timestamp: ping.timestamp, timestamp: now_ms })]),
        _ => None,
    }
}

fn handle(front: &Front, session: crate::base::id::SessionId, message: Up) {
    let mut rooms = front.rooms();
    match message {
        Up::Offer(offer) => rooms.offer(session, &offer),
        Up::AddTrack(request) => rooms.add_track(session, request),
        Up::Answer(answer) => rooms.answered(session, &answer),
        Up::Mute(request) => rooms.mute(session, request),
        Up::Subscription(request) => rooms.update_subscription(session, &request),
        Up::TrackSetting(request) => rooms.track_settings(session, &request),
        Up::UpdateMetadata(request) => rooms.update_metadata(session, request),
        Up::Leave(_) => rooms.remove(session, proto::DisconnectReason::ClientInitiated),
        // A lite agent learns addresses from checks, not from candidates.
        Up::Trickle(_) => {}
        Up::SubscriptionPermission(permission) => rooms.set_listeners(session, permission),
        Up::SyncState(state) => rooms.sync_state(session, &state),
        Up::UpdateAudioTrack(update) => rooms.update_track(session, &update.track_sid, |info| {
            info.audio_features.clone_from(&update.features);
        }),
        Up::UpdateVideoTrack(update) => rooms.update_track(session, &update.track_sid, |info| {
            (info.width, info.height) = (update.width, update.height);
        }),
        Up::PublishDataTrackRequest(request) => rooms.publish_data_track(session, request),
        Up::UnpublishDataTrackRequest(request) => rooms.unpublish_data_track(session, request),
        Up::UpdateDataSubscription(request) => rooms.update_data_subscription(session, &request),
        Up::Simulate(request) => rooms.simulate(session, &request),
        other => {
            tracing::debug!(session = session.0, kind = ?std::mem::discriminant(&other), "a request that this version does not act on")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn wrapped(request: &proto::JoinRequest, gzip: bool) -> String {
        let plain = request.encode_to_vec();
        let (compression, join_request) = if gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&plain).expect("to memory");
            (proto::wrapped_join_request::Compression::Gzip, encoder.finish().expect("to memory"))
        } else {
            (proto::wrapped_join_request::Compression::None, plain)
        };
        URL_SAFE.encode(proto::WrappedJoinRequest { compression: compression as i32, join_request }.encode_to_vec())
    }

    #[test]
    fn join_requests_of_all_kinds() {
        let request = proto::JoinRequest { metadata: "m".repeat(3_000), ..Default::default() };
        for gzip in [false, true] {
            let text = wrapped(&request, gzip);
            assert_eq!(decode_join_request(&text, 1 << 20).expect("good").metadata.len(), 3_000);
            assert!(decode_join_request(text.trim_end_matches('='), 1 << 20).is_ok(), "without padding");
            assert!(matches!(decode_join_request(&text, 1_000), Err(Refused::BadJoinRequest("too long when inflated"))));
        }
        for rubbish in ["", "!", "AAAA", "CAESBGFiY2Q="] {
            let refused = decode_join_request(rubbish, 1 << 20);
            assert!(rubbish.is_empty() || refused.is_err(), "{rubbish}");
        }
    }

    #[test]
    fn the_host_is_taken_without_its_port() {
        for (host, want) in [("localhost:7880", "localhost"), ("[::1]:7880", "[::1]"), ("meet.example.eu", "meet.example.eu")] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a value"));
            assert_eq!(host_of(&headers), want);
        }
    }
}
