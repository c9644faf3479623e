//! The administrator's listener: the dashboard with its JSON, /metrics, /healthz, /readyz. Meant for loopback.
//!
//! ```text
//! GET  /                  the dashboard; /dashboard.css and /dashboard.js belong to it
//! GET  /api/v1/state      all that it shows, JSON
//! POST /api/v1/remove     {"room","identity"}                    takes somebody out
//! POST /api/v1/mute       {"room","identity","track","muted"}    mutes a track, or lets it go on
//! GET  /metrics           OpenMetrics text
//! GET  /healthz /readyz
//! ```
//! With `admin.token` everything but /healthz, /readyz and the page itself (which asks for it, and shows nothing before) wants `Authorization: Bearer <token>`.
//! Without one the JSON is for loopback alone: for connections to a loopback address, and requests that name one in `Host`, so
//! that no page that a browser is shown elsewhere gets at it by a name of its own (DNS rebinding).

use super::lifecycle::{Lifecycle, Phase};
use super::metrics::Metrics;
use super::rooms::{Failure, RoomService};
use super::signal::Front;
use crate::shard::counters::Counter;
use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use livekit_protocol as proto;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// Longest request, bytes.
const REQUEST_MAX: usize = 16 * 1024;
/// Nothing but what comes from here, and nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the listener shows.
pub struct Admin {
    /// Gone once the server stops.
    pub front: Weak<Front>,
    pub metrics: Metrics,
    pub lifecycle: Lifecycle,
    pub listen: SocketAddr,
    /// Empty asks for none.
    pub token: Arc<ArcSwap<String>>,
    pub domain: String,
}

pub fn router(admin: Arc<Admin>) -> Router {
    let api = Router::new()
        .route("/api/v1/state", get(state))
        .route("/api/v1/remove", post(remove))
        .route("/api/v1/mute", post(mute))
        .layer(axum::extract::DefaultBodyLimit::max(REQUEST_MAX))
        .layer(from_fn_with_state(Arc::clone(&admin), only_here));
    let guarded = Router::new().route("/metrics", get(scrape)).merge(api).layer(from_fn_with_state(Arc::clone(&admin), authorized));
    Router::new()
        .route("/", get(|| page("text/html; charset=utf-8", include_str!("../../web/dashboard/index.html"))))
        .route("/dashboard.css", get(|| page("text/css; charset=utf-8", include_str!("../../web/dashboard/dashboard.css"))))
        .route("/dashboard.js", get(|| page("text/javascript; charset=utf-8", include_str!("../../web/dashboard/dashboard.js"))))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .merge(guarded)
        .layer(from_fn(hardened))
        .with_state(admin)
}

async fn page(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text)
}

async fn hardened(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn refused(status: StatusCode, why: &str) -> Response {
    let asks = [(header::WWW_AUTHENTICATE, "Bearer")];
    let body = Json(json!({ "error": why }));
    if status == StatusCode::UNAUTHORIZED { (status, asks, body).into_response() } else { (status, body).into_response() }
}

/// Whoever wants more than to know whether the server lives shows the token, where there is one.
async fn authorized(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let token = admin.token.load();
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    let fits = |shown: &str| crate::crypto::equal(shown.as_bytes(), token.as_bytes());
    if token.is_empty() || shown.is_some_and(fits) {
        return next.run(request).await;
    }
    let why =
        if shown.is_some() { "this is not the token (admin.token)" } else { "admin.token is asked for: Authorization: Bearer <token>" };
    refused(StatusCode::UNAUTHORIZED, why)
}

/// What proxies add: who stands behind one need not be on this machine.
const PASSED_ON: [&str; 5] = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"];

/// Without a token, only who is on this machine.
async fn only_here(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_passed_on = PASSED_ON.iter().any(|name| headers.contains_key(*name));
    if admin.token.load().is_empty() && (!admin.listen.ip().is_loopback() || !names_loopback(headers) || is_passed_on) {
        let why = "without admin.token the dashboard is for loopback alone: set it, or reach http://127.0.0.1 through an SSH tunnel";
        return refused(StatusCode::FORBIDDEN, why);
    }
    next.run(request).await
}

fn names_loopback(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let name = match host.rfind(']') {
        Some(end) => host[..end].trim_start_matches('['),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn scrape(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    if let Some(front) = admin.front.upgrade() {
        front.rooms().count();
    }
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], admin.metrics.scrape())
}

async fn ready(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    let phase = admin.lifecycle.phase();
    let status = if phase == Phase::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}\n", phase.name()))
}

/// All that the dashboard shows.
#[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
async fn state(State(admin): State<Arc<Admin>>) -> Response {
    let Some(front) = admin.front.upgrade() else { return stopping() };
    let overview = front.rooms().overview();
    drop(front);
    let (metrics, gauges) = (&admin.metrics, &admin.metrics.gauges);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let everybody = || overview.rooms.iter().flat_map(|r| &r.participants).filter(|p| !p.is_away());
    let count = |family: &str| -> Vec<Value> {
        let of_family = Counter::ALL.iter().filter(|c| c.family() == family).map(|c| (c.label(), metrics.total(*c)));
        of_family
            .filter(|(_, total)| *total > 0)
            .map(|(reason, total)| json!({ "what": family, "reason": reason, "total": total }))
            .collect()
    };
    let drops: u64 = Counter::ALL.iter().filter(|c| c.family() == "drops").map(|c| metrics.total(*c)).sum();
    let expires = gauges.certificate_expires.load(Relaxed);
    let refusals = [count("turn_refusals"), count("connection_refusals")].concat();
    let (latency, phase) = (metrics.latency(), admin.lifecycle.phase().name());
    let ms = |quantile: f64| latency.quantile(quantile).map(|seconds| seconds * 1_000.0);
    let workers = metrics.loads().enumerate();
    let workers = workers.map(|(id, l)| json!({ "id": id, "busy_seconds": l.busy().as_secs_f64(), "participants": l.sessions() }));
    let all = json!({
        "server": {
            "version": env!("CARGO_PKG_VERSION"),
            "domain": admin.domain,
            "phase": phase,
            "started_at": gauges.started.load(Relaxed),
            "now_ms": now.as_millis() as u64,
            "certificate_expires_at": (expires > 0).then_some(expires),
        },
        "totals": {
            "rooms": overview.rooms.len(),
            "participants": everybody().count(),
            "tracks": everybody().map(|p| p.publishes.len()).sum::<usize>(),
            "bits_in": everybody().map(|p| p.bits_in).sum::<f64>(),
            "bits_out": everybody().map(|p| p.bits_out).sum::<f64>(),
            "media_packets_forwarded": metrics.total(Counter::Forwarded),
            "drops": drops,
        },
        "host": metrics.host.figures(),
        "workers": workers.collect::<Vec<_>>(),
        "forwarding_latency": { "p50_ms": ms(0.5), "p99_ms": ms(0.99) },
        "rooms": overview.rooms,
        "drops": count("drops"),
        "refusals": refusals,
        "events": overview.events,
    });
    Json(all).into_response()
}

fn stopping() -> Response {
    refused(StatusCode::SERVICE_UNAVAILABLE, "the server stops")
}

#[derive(Deserialize)]
struct Whom {
    room: String,
    identity: String,
}

#[derive(Deserialize)]
struct Mute {
    room: String,
    identity: String,
    track: String,
    muted: bool,
}

/// What moderation from here is called in the audit log.
const BY: &str = "dashboard";

async fn remove(State(admin): State<Arc<Admin>>, Json(Whom { room, identity }): Json<Whom>) -> Response {
    let Some(front) = admin.front.upgrade() else { return stopping() };
    let mut rooms = front.rooms();
    let request = proto::RoomParticipantIdentity { room: room.clone(), identity: identity.clone(), ..Default::default() };
    let outcome = RoomService(&mut rooms).remove_participant(&request);
    if outcome.is_ok() {
        rooms.note_moderated(BY, "RemoveParticipant", &room, &identity);
    }
    answered(outcome)
}

async fn mute(State(admin): State<Arc<Admin>>, Json(Mute { room, identity, track, muted }): Json<Mute>) -> Response {
    let Some(front) = admin.front.upgrade() else { return stopping() };
    let mut rooms = front.rooms();
    let request = proto::MuteRoomTrackRequest { room: room.clone(), identity: identity.clone(), track_sid: track, muted };
    let outcome = RoomService(&mut rooms).mute_track(&request).map(|_| ());
    if outcome.is_ok() {
        rooms.note_moderated(BY, if muted { "MutePublishedTrack" } else { "UnmutePublishedTrack" }, &room, &identity);
    }
    answered(outcome)
}

fn answered(outcome: Result<(), Failure>) -> Response {
    match outcome {
        Ok(()) => Json(json!({})).into_response(),
        Err(failure @ Failure::NotFound(_)) => refused(StatusCode::NOT_FOUND, &failure.to_string()),
        Err(failure) => refused(StatusCode::CONFLICT, &failure.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_loopback_pass_without_a_token() {
        for (host, want) in [
            ("127.0.0.1:7881", true),
            ("localhost:7881", true),
            ("LOCALHOST", true),
            ("[::1]:7881", true),
            ("127.8.8.8", true),
            ("rebound.example", false),
            ("127.0.0.1.example", false),
            ("192.0.2.1:7881", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            assert_eq!(names_loopback(&headers), want, "{host}");
        }
    }
}
