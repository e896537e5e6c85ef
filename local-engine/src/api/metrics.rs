//! Prometheus metrics. The two without a prefix have the names that every node of the fleet gives them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::refuse;
use crate::embed::Embedder;
use crate::engine::{Engine, Load};
use crate::error::EngineError;
use crate::meters::Meters;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn scrape(State(engine): State<Arc<Engine>>) -> Response {
    written(&registry(&engine.load_now(), engine.meters()))
}

/// Of an engine that makes vectors: what every node of the fleet says of its queue.
pub(super) async fn scrape_embedder(State(embedder): State<Arc<Embedder>>) -> Response {
    let (running, queue_depth) = embedder.load_now();
    let mut registry = Registry::default();
    for (name, help, value) in [
        ("queue_depth", "Requests that wait", queue_depth),
        ("postern_engine_running", "Requests being worked on", running),
    ] {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value as f64);
        registry.register(name, help, gauge);
    }
    written(&registry)
}

fn written(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => refuse(&EngineError::Stopped),
    }
}

/// A registry of the present numbers. They live in the worker; a scrape is rare.
fn registry(load: &Load, meters: &Meters) -> Registry {
    let status = &load.status;
    let mut registry = Registry::default();
    let mut gauge = |name: &str, help: &str, value: f64| {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    gauge(
        "inference_latency",
        "Milliseconds from a request's arrival to its first token, smoothed",
        status.first_token_ms,
    );
    gauge("queue_depth", "Requests that wait", load.queue_depth as f64);
    gauge("postern_engine_running", "Sequences being worked on", status.running as f64);
    gauge(
        "postern_engine_queued_prompt_tokens",
        "Prompt tokens still to be prefilled",
        load.queued_prompt_tokens as f64,
    );
    gauge("postern_engine_waiting", "Sequences that wait for a slot", load.queue_depth as f64);
    gauge(
        "postern_engine_kv_blocks_used",
        "KV blocks in use, those of kept beginnings too",
        status.kv_blocks_used as f64,
    );
    gauge("postern_engine_kv_blocks_max", "KV blocks that there may be", status.kv_blocks_max as f64);
    gauge("postern_engine_prefix_blocks", "KV blocks of beginnings that are kept", status.prefix_blocks as f64);
    gauge("postern_engine_prefill_tokens_per_second", "Speed of prompts at the present load", status.prefill_rate);
    gauge("postern_engine_decode_tokens_per_second", "Speed of all answers together, smoothed", status.decode_rate);
    let totals = &status.totals;
    let mut counter = |name: &str, help: &str, value: u64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    };
    counter("postern_engine_prompt_tokens", "Prompt tokens prefilled", totals.prompt_tokens);
    counter("postern_engine_generated_tokens", "Tokens generated", totals.generated_tokens);
    counter("postern_engine_prefix_hit_tokens", "Prompt tokens that were computed before", totals.prefix_hit_tokens);
    counter("postern_engine_prefix_lookup_tokens", "Prompt tokens looked up", totals.prefix_lookup_tokens);
    counter("postern_engine_guessed_tokens", "Tokens guessed from what was said before", totals.guessed_tokens);
    counter("postern_engine_guessed_right_tokens", "Guessed tokens that were right", totals.guessed_right_tokens);
    counter("postern_engine_preemptions", "Sequences that had to give way and begin anew", totals.preemptions);
    registry.register(
        "postern_engine_time_to_first_token_seconds",
        "From a request's arrival to its first token",
        meters.first_token_seconds.clone(),
    );
    registry.register(
        "postern_engine_time_per_token_seconds",
        "From a token of an answer to the next",
        meters.token_seconds.clone(),
    );
    let requests = Family::<[(&'static str, &'static str); 1], Counter>::default();
    for (outcome, value) in [
        ("stop", totals.stopped),
        ("length", totals.at_length),
        ("cancelled", totals.cancelled),
        ("failed", totals.failed),
    ] {
        requests.get_or_create(&[("outcome", outcome)]).inc_by(value);
    }
    registry.register("postern_engine_requests", "Requests that have ended", requests);
    registry
}
