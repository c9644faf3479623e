//! Floor 5, beside the drivers: HTTP and everything that an app or an administrator talks to. Async, on threads of its own;
//! reaches media only by mail.

pub mod admin;
pub mod audit;
pub mod auth;
pub mod certs;
pub mod door;
pub mod lifecycle;
pub mod limits;
pub mod metrics;
pub mod outbound;
pub mod reload;
pub mod rooms;
pub mod service;
pub mod signal;
mod tracks;
pub mod web;
pub mod webhook;
pub mod whip;

use auth::Keys;
use axum::Router;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, patch, post};
use signal::{Front, Version};
use std::sync::Arc;
use tower_http::cors::{AllowHeaders, CorsLayer};

/// Everything that apps and browsers ask for. `dev_keys` adds the page's own way to a token.
pub fn router(front: Arc<Front>, dev_keys: Option<Keys>) -> Router {
    let offers = Router::new()
        .route("/whip/v1", post(whip::publish))
        .route("/whep/v1", post(whip::play))
        .route("/whip/v1/{resource}", patch(whip::patch).delete(whip::end))
        .route("/whep/v1/{resource}", patch(whip::patch).delete(whip::end));
    // Authorization is never meant by `*`: what a page asks to send is mirrored.
    let cors = CorsLayer::permissive().allow_headers(AllowHeaders::mirror_request());
    let api = Router::new()
        .merge(signalling("/rtc", Version::V0))
        .merge(signalling("/rtc/v1", Version::V1))
        .route("/twirp/{service}/{method}", post(service::call))
        .merge(offers)
        .layer(from_fn_with_state(Arc::clone(&front), admit))
        .with_state(front);
    let description = ([(header::CONTENT_TYPE, "application/yaml")], include_str!("../../docs/openapi.yaml"));
    let mut router = Router::new()
        .route("/openapi.yaml", get(|| async { description }))
        .route("/", get(web::index))
        .route("/assets/{*path}", get(web::asset))
        .merge(api);
    if let Some(keys) = dev_keys {
        router = router.route("/dev/token", get(web::dev_token).with_state(Arc::new(keys)));
    }
    // Without CORS on every answer a browser hides the status, and the SDK cannot tell 401 from a dead server.
    router
        .fallback(|| async { (StatusCode::NOT_FOUND, "not found") })
        .layer(cors)
        .layer(from_fn(whip::describe))
        .layer(from_fn(door::let_bodies_end))
}

fn signalling(path: &str, version: Version) -> Router<Arc<Front>> {
    let router = Router::new().route(path, get(signal::connect)).route(&format!("{path}/validate"), get(signal::validate));
    router.layer(Extension(version))
}

/// Holds up pages of other origins and addresses that ask too often, before anything is looked at.
async fn admit(State(front): State<Arc<Front>>, Extension(peer): Extension<door::Peer>, mut request: Request, next: Next) -> Response {
    // HTTP/2 has the name in a field of its own.
    if let Some(name) = request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        request.headers_mut().entry(header::HOST).or_insert(name);
    }
    if !front.admits_origin(request.headers()) {
        front.turned_away(peer, "foreign_origin", "server.allowed_origins");
        return (StatusCode::FORBIDDEN, "pages of this origin may not use this server; server.allowed_origins names those that may")
            .into_response();
    }
    if front.admits_address(peer.0.ip()) {
        return next.run(request).await;
    }
    front.turned_away(peer, "address_rationed", "limits.joins_per_second_per_address");
    let wait = [(header::RETRY_AFTER, "1")];
    (StatusCode::TOO_MANY_REQUESTS, wait, "too many requests from this address; try again in a second").into_response()
}

/// Plain HTTP on an edge port: go to https; but an authority gets its answer (RFC 8555 §8.3).
pub fn plain_router(edge_port: u16, shown: Arc<certs::Shown>) -> Router {
    let answer = move |Path(token): Path<String>| async move { shown.http_answer(&token).ok_or(StatusCode::NOT_FOUND) };
    Router::new()
        .route("/.well-known/acme-challenge/{token}", get(answer))
        .fallback(move |headers: HeaderMap, uri: Uri| async move { redirect(&headers, &uri, edge_port) })
}

fn redirect(headers: &HeaderMap, uri: &Uri, edge_port: u16) -> Response {
    let Some(host) = headers.get(header::HOST).and_then(|h| h.to_str().ok()) else { return StatusCode::BAD_REQUEST.into_response() };
    let name = match host.rfind(']') {
        Some(end) => &host[..=end],
        None => host.split(':').next().unwrap_or(host),
    };
    let port = if edge_port == 443 { String::new() } else { format!(":{edge_port}") };
    Redirect::permanent(&format!("https://{name}{port}{uri}")).into_response()
}
