//! WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep): one offer by POST, one answer, a URL for the session.
//!
//! ```text
//! POST   /whip/v1                          offer -> 201, answer, Location, ETag, Link with our ICE servers
//! POST   /whep/v1[?participant=identity]   the same for who watches: everybody, or one participant
//! PATCH  <session>                         application/trickle-ice-sdpfrag: candidates (204), or ICE restart (200)
//! DELETE <session>                         the end (200)
//! ```
//! Tokens are those of the room protocol, as `Authorization: Bearer`, for the session too: its URL alone opens nothing.

use super::auth::{Claims, Denied};
use super::door::Peer;
use super::rooms::{Caller, JoinError, Opened, Purpose, Restarted};
use super::service::{Unread, bearer, read};
use super::signal::{Front, host_of, query_fault};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use livekit_protocol as proto;
use serde::Deserialize;
use std::fmt::Write;
use std::sync::Arc;

/// Longest body, bytes.
pub const BODY_MAX: usize = 256 * 1024;
const SDP: &str = "application/sdp";
const FRAGMENT: &str = "application/trickle-ice-sdpfrag";

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("too many requests; try again in a second")]
    TooMany,
    #[error("the query is not understood: {}", query_fault(.0))]
    BadQuery(#[from] QueryRejection),
    #[error("the body is longer than {BODY_MAX} bytes")]
    TooLong,
    #[error("the body did not come in time")]
    TooSlow,
    #[error("Content-Type must be {0}")]
    WrongType(&'static str),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("the body is no text")]
    NoText,
    #[error("no such session")]
    NoSession,
    #[error("If-Match is missing: it must hold the session's ETag (RFC 9725 §4.3)")]
    NoMatch,
    #[error("If-Match names another ICE generation than the session's")]
    OtherGeneration,
    #[error("the fragment has no ice-ufrag and ice-pwd")]
    BadFragment,
}

impl Refused {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Denied(denied) => denied.outcome(),
            Self::Join(error) => error.outcome(),
            Self::TooMany => "rationed",
            Self::BadQuery(_)
            | Self::TooLong
            | Self::TooSlow
            | Self::WrongType(_)
            | Self::NoText
            | Self::NoSession
            | Self::NoMatch
            | Self::OtherGeneration
            | Self::BadFragment => "bad_request",
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Denied(denied) => StatusCode::from_u16(denied.status()).unwrap_or(StatusCode::UNAUTHORIZED),
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Join(JoinError::Revoked | JoinError::NotAllowed) => StatusCode::FORBIDDEN,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::WrongType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Join(JoinError::RoomMissing) | Self::NoSession => StatusCode::NOT_FOUND,
            Self::Join(JoinError::RoomFull | JoinError::Draining) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Join(JoinError::Offer(crate::wire::sdp::SdpError::NoUsable(_))) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Join(JoinError::Offer(_) | JoinError::TooLong) | Self::BadQuery(_) | Self::NoText | Self::BadFragment => {
                StatusCode::BAD_REQUEST
            }
            Self::NoMatch => StatusCode::PRECONDITION_REQUIRED,
            Self::OtherGeneration => StatusCode::PRECONDITION_FAILED,
        };
        let mut response = (status, self.to_string()).into_response();
        let headers = response.headers_mut();
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

#[derive(Deserialize)]
pub struct Wanted {
    /// Whom to watch; absent is everybody.
    participant: Option<String>,
}

pub async fn publish(State(front): State<Arc<Front>>, request: Request) -> Response {
    open(&front, "/whip/v1/", Ok(Purpose::Publish), request).await
}

pub async fn play(State(front): State<Arc<Front>>, wanted: Result<Query<Wanted>, QueryRejection>, request: Request) -> Response {
    let purpose = wanted.map(|Query(Wanted { participant })| Purpose::Play { of: participant });
    open(&front, "/whep/v1/", purpose.map_err(Refused::from), request).await
}

async fn open(front: &Front, base: &str, purpose: Result<Purpose, Refused>, request: Request) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    let opened = try_open(front, purpose, request).await;
    match opened.map(|whole| created(base, whole)) {
        Ok(response) => {
            front.gauges.entrance.join("joined");
            response
        }
        Err(refused) => {
            front.gauges.entrance.join(refused.outcome());
            if front.notes(peer.as_ref()) {
                tracing::info!(at = base, reason = %refused, "an offer over HTTP was refused");
            }
            refused.into_response()
        }
    }
}

async fn try_open(front: &Front, purpose: Result<Purpose, Refused>, request: Request) -> Result<Opened, Refused> {
    // Nothing is told of a request, and no body read, before its token was verified.
    let claims = front.keys.verify_join(bearer(request.headers())?)?;
    let purpose = purpose?;
    if !front.admits_joiner(&claims) {
        return Err(Refused::TooMany);
    }
    expect_type(request.headers(), SDP)?;
    let host = front.host.clone().unwrap_or_else(|| host_of(request.headers()));
    let address = request.extensions().get::<Peer>().map(|Peer(peer)| peer.ip());
    let program = request.headers().get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let offer = text(request).await?;
    let opened = front.rooms().open(claims, purpose, Caller { host, address }, &program, &offer)?;
    tracing::info!(session = opened.session.0, "an offer over HTTP was answered");
    Ok(opened)
}

/// The body of a request as text.
async fn text(request: Request) -> Result<String, Refused> {
    let body = read(request.into_body(), BODY_MAX).await.map_err(|e| match e {
        Unread::TooLong => Refused::TooLong,
        Unread::TooSlow => Refused::TooSlow,
    })?;
    String::from_utf8(body.into()).map_err(|_| Refused::NoText)
}

fn expect_type(headers: &HeaderMap, kind: &'static str) -> Result<(), Refused> {
    let found = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).and_then(|v| v.split(';').next());
    if found.is_some_and(|f| f.trim().eq_ignore_ascii_case(kind)) { Ok(()) } else { Err(Refused::WrongType(kind)) }
}

fn created(base: &str, opened: Opened) -> Response {
    let mut response = (StatusCode::CREATED, opened.sdp).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(SDP));
    set(headers, header::LOCATION, &format!("{base}{}", opened.resource));
    set(headers, header::ETAG, &etag(&opened.ufrag));
    headers.insert(HeaderName::from_static("accept-patch"), HeaderValue::from_static(FRAGMENT));
    for link in links(&opened.ice_servers) {
        if let Ok(link) = HeaderValue::from_str(&link) {
            headers.append(header::LINK, link);
        }
    }
    response
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn etag(ufrag: &str) -> String {
    format!("\"{ufrag}\"")
}

/// ICE servers as `Link` headers (RFC 9725 §4.6).
fn links(servers: &[proto::IceServer]) -> Vec<String> {
    let with = |server: &proto::IceServer, url: &String| {
        let mut link = format!("<{url}>; rel=\"ice-server\"");
        if !server.username.is_empty() {
            let (username, credential) = (&server.username, &server.credential);
            let _ = write!(link, "; username=\"{username}\"; credential=\"{credential}\"; credential-type=\"password\"");
        }
        link
    };
    servers.iter().flat_map(|s| s.urls.iter().map(move |url| with(s, url))).collect()
}

/// Says what is taken here to whoever asks by OPTIONS (RFC 9725 §4.2); the rest of that answer is CORS.
pub async fn describe(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let asks = request.method() == Method::OPTIONS && (path.starts_with("/whip/") || path.starts_with("/whep/"));
    let (name, value) = if path.ends_with("/v1") { ("accept-post", SDP) } else { ("accept-patch", FRAGMENT) };
    let mut response = next.run(request).await;
    if asks {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// The session that a request is about: it needs the token that opened it, or another of the same participant.
fn session_of(front: &Front, headers: &HeaderMap, resource: &str) -> Result<(Claims, crate::base::id::SessionId), Refused> {
    let claims = front.keys.verify_join(bearer(headers)?)?;
    let session = front.rooms().one_shot(&claims, resource).ok_or(Refused::NoSession)?;
    Ok((claims, session))
}

pub async fn end(State(front): State<Arc<Front>>, Path(resource): Path<String>, headers: HeaderMap) -> Response {
    match session_of(&front, &headers, &resource) {
        Ok((_, session)) => {
            front.rooms().remove(session, proto::DisconnectReason::ClientInitiated);
            StatusCode::OK.into_response()
        }
        Err(refused) => refused.into_response(),
    }
}

pub async fn patch(State(front): State<Arc<Front>>, Path(resource): Path<String>, request: Request) -> Response {
    match try_patch(&front, &resource, request).await {
        Ok(response) => response,
        Err(refused) => refused.into_response(),
    }
}

async fn try_patch(front: &Front, resource: &str, request: Request) -> Result<Response, Refused> {
    let headers = request.headers().clone();
    let (_, session) = session_of(front, &headers, resource)?;
    expect_type(&headers, FRAGMENT)?;
    let fragment = text(request).await?;
    let fragment = fragment.as_str();
    let condition = headers.get(header::IF_MATCH).and_then(|v| v.to_str().ok()).ok_or(Refused::NoMatch)?;
    let mut rooms = front.rooms();
    let (ours, theirs) = rooms.generation(session).ok_or(Refused::NoSession)?;
    let ufrag = value(fragment, "a=ice-ufrag:").ok_or(Refused::BadFragment)?;
    let is_restart = ufrag != theirs;
    // A restart names any generation; candidates name the one that they are for.
    if condition.trim() != etag(&ours) && !(is_restart && condition.trim() == "*") {
        return Err(Refused::OtherGeneration);
    }
    if !is_restart {
        // A lite agent learns addresses from checks, not from candidates.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let pwd = value(fragment, "a=ice-pwd:").ok_or(Refused::BadFragment)?;
    let restarted = rooms.restart_ice(session, ufrag, pwd).ok_or(Refused::NoSession)?;
    drop(rooms);
    let mut response = (StatusCode::OK, answer_fragment(&restarted)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(FRAGMENT));
    set(response.headers_mut(), header::ETAG, &etag(&restarted.credentials.ufrag));
    Ok(response)
}

/// A value of an SDP fragment; credentials are the same wherever they stand in a bundle.
fn value<'a>(fragment: &'a str, name: &str) -> Option<&'a str> {
    fragment.lines().find_map(|line| line.trim_end().strip_prefix(name)).filter(|v| (4..=256).contains(&v.len()))
}

/// Our new credentials and addresses (RFC 8840 §9).
fn answer_fragment(restarted: &Restarted) -> String {
    let mut out = format!("a=ice-lite\r\na=ice-ufrag:{}\r\na=ice-pwd:{}\r\n", restarted.credentials.ufrag, restarted.credentials.pwd);
    for candidate in &restarted.candidates {
        let _ = write!(out, "a={candidate}\r\n");
    }
    out.push_str("a=end-of-candidates\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ice_servers_as_links() {
        let server = proto::IceServer {
            urls: vec!["turn:a:443?transport=tcp".into(), "turns:a:443?transport=tcp".into()],
            username: "17:p1".into(),
            credential: "x+/=".into(),
        };
        let stun = proto::IceServer { urls: vec!["stun:a:3478".into()], ..Default::default() };
        let tail = "; username=\"17:p1\"; credential=\"x+/=\"; credential-type=\"password\"";
        let want = [
            "<stun:a:3478>; rel=\"ice-server\"".to_owned(),
            format!("<turn:a:443?transport=tcp>; rel=\"ice-server\"{tail}"),
            format!("<turns:a:443?transport=tcp>; rel=\"ice-server\"{tail}"),
        ];
        assert_eq!(links(&[stun, server]), want);
    }

    #[test]
    fn credentials_of_a_fragment() {
        let fragment = "a=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n";
        assert_eq!(value(fragment, "a=ice-ufrag:"), Some("EsAw"));
        assert_eq!(value(fragment, "a=ice-pwd:"), Some("P2uYro0UCOQ4zxjKXaWCBui1"));
        assert_eq!(value("a=ice-ufrag:\r\n", "a=ice-ufrag:"), None);
        assert_eq!(value("", "a=ice-ufrag:"), None);
    }
}
