//! The page that is built into the binary, and in development the token that it joins with.

use super::auth::{Claims, Keys, VideoGrants};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::SystemTime;

/// How long a development token is good, seconds.
const DEV_TOKEN_LIFETIME_S: u64 = 6 * 3600;
const MISSING: &str = "<!doctype html><meta charset=utf-8><title>Postern</title><p>Postern is running. The page was not built into this binary: run <code>make web</code> and build again.";

#[derive(rust_embed::RustEmbed)]
#[folder = "web/dist"]
#[allow_missing = true]
struct Pages;

/// `/`: also what clients ask to see whether the server is there.
pub async fn index() -> Response {
    match Pages::get("index.html") {
        Some(page) => Html(page.data.into_owned()).into_response(),
        None => Html(MISSING).into_response(),
    }
}

pub async fn asset(Path(path): Path<String>) -> Response {
    let kind = match path.rsplit('.').next() {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    match Pages::get(&format!("assets/{path}")) {
        Some(file) => {
            let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
            (headers, file.data.into_owned()).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[derive(Deserialize)]
pub struct Wish {
    room: String,
    identity: String,
}

#[derive(Serialize)]
struct Granted {
    token: String,
}

/// A token for whoever asks: routed only by `postern dev`.
#[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
pub async fn dev_token(State(keys): State<Arc<Keys>>, Query(Wish { room, identity }): Query<Wish>) -> Response {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let video = VideoGrants { room_join: true, room, can_update_own_metadata: Some(true), ..VideoGrants::default() };
    let name = identity.clone();
    let claims = Claims { iss: "devkey".into(), sub: identity, name, exp: now + DEV_TOKEN_LIFETIME_S, video, ..Claims::default() };
    match keys.sign(&claims) {
        Some(token) => {
            let json = serde_json::to_string(&Granted { token }).unwrap_or_default();
            ([(header::CONTENT_TYPE, "application/json")], json).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
