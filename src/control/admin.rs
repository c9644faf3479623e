//! The administrator's listener: /metrics, /healthz, /readyz. Meant for loopback.

use super::lifecycle::{Lifecycle, Phase};
use super::metrics::Metrics;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::sync::Arc;

#[derive(Clone)]
struct Admin {
    metrics: Arc<Metrics>,
    lifecycle: Lifecycle,
}

pub fn router(metrics: Metrics, lifecycle: Lifecycle) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Admin { metrics: Arc::new(metrics), lifecycle })
}

async fn scrape(State(admin): State<Admin>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], admin.metrics.scrape())
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    match admin.lifecycle.phase() {
        Phase::Ready => (StatusCode::OK, "ready\n"),
        Phase::Booting => (StatusCode::SERVICE_UNAVAILABLE, "booting\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        Phase::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}
