//! The operators' side: health, metrics, status. On a loopback address, and with a check of the `Host` header, so that a
//! web page in an operator's browser cannot reach it under a name of its own.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use postern_certs::rotate::Health;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::gateway::Gateway;
use crate::tls::Certificate;

/// Connections at a time on one address, and how long each may live.
const MAX_CONNECTIONS: usize = 256;
const MAX_AGE: Duration = Duration::from_secs(300);
/// For the headers of a request.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// After an error of accept.
const PAUSE: Duration = Duration::from_millis(50);

/// What is where.
const ADMIN_PAGES: &str = "\
Postern, for operators.
/livez           it runs
/readyz          it can answer; /readyz?verbose says what is there
/metrics         for Prometheus
/api/status      version, targets, policies, certificate, as JSON
";
const PROBE_PAGES: &str = "\
Postern, for probes.
/livez           it runs
/readyz          it can answer; /readyz?verbose says what is there
/metrics         for Prometheus
";

/// What the pages show.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// Its certificate.
    pub certificate: Arc<Certificate>,
}

/// Everything, for the admin address.
pub fn admin(admin: Admin) -> Router {
    let routes = probe_routes().route("/", get(async || ADMIN_PAGES)).route("/api/status", get(status));
    routes.layer(middleware::from_fn(check_host)).with_state(admin)
}

/// Health and metrics only, for the probe address.
pub fn probe(admin: Admin) -> Router {
    probe_routes().route("/", get(async || PROBE_PAGES)).with_state(admin)
}

/// Answers on one listener for as long as the gateway runs. Bounded like the gateway's own: the probe address may be open to
/// more than friends.
pub async fn serve(listener: TcpListener, routes: Router) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            // Ends with an error if the client breaks off, which is nobody's concern here.
            let _ended = tokio::time::timeout(MAX_AGE, connection).await;
            drop(place);
        });
    }
}

fn probe_routes() -> Router<Admin> {
    Router::new().route("/livez", get(async || "ok\n")).route("/readyz", get(readyz)).route("/metrics", get(metrics))
}

async fn check_host(request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    // A second one could say something else; so could a whole URL in the request line, where a host may stand as well.
    let named = request.uri().authority().map(http::uri::Authority::as_str);
    if host.is_some_and(is_this_machine) && hosts.next().is_none() && named.is_none_or(is_this_machine) {
        return next.run(request).await;
    }
    (StatusCode::MISDIRECTED_REQUEST, "The admin address answers to localhost and loopback addresses only.\n")
        .into_response()
}

/// `localhost`, or a loopback address as RFC 3986 §3.2.2 writes it; with a port or without.
fn is_this_machine(host: &str) -> bool {
    let (is_loopback, port) = if let Some(bracketed) = host.strip_prefix('[') {
        let Some((address, port)) = bracketed.split_once(']') else { return false };
        (address.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback()), port)
    } else {
        let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
        let is_loopback = name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
        (is_loopback || name.eq_ignore_ascii_case("localhost"), port)
    };
    let digits = port.strip_prefix(':').unwrap_or("");
    is_loopback && digits.bytes().all(|b| b.is_ascii_digit()) && (port.is_empty() || !digits.is_empty())
}

#[derive(Debug, serde::Deserialize)]
struct Readyz {
    verbose: Option<String>,
}

async fn readyz(State(admin): State<Admin>, Query(query): Query<Readyz>) -> Response {
    let checks = checks(&admin);
    let ready = checks.iter().all(|(_, good, needed)| *good || !needed);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if query.verbose.is_none() {
        return (status, if ready { "ok\n" } else { "not ready\n" }).into_response();
    }
    let lines = checks.iter().map(|(name, good, needed)| {
        let word = match (good, needed) {
            (true, _) => "ok",
            (false, true) => "failed",
            (false, false) => "not there (not needed)",
        };
        format!("{name}: {word}\n")
    });
    // Not a matter of readiness: what a policy cannot decide is answered on this machine, or refused.
    let failing = admin.gateway.policies.failing().into_iter();
    let failing = failing.map(|(policy, steps)| format!("policy {policy}: failing ({})\n", steps.join(", ")));
    (status, lines.chain(failing).collect::<String>()).into_response()
}

/// Name, is it good, and is it needed to be ready.
fn checks(admin: &Admin) -> [(&'static str, bool, bool); 3] {
    let gateway = &admin.gateway;
    let engine = gateway.dispatcher.engine().is_ready();
    // With a remote target the gateway can answer something; without one everything depends on the engine.
    let engine_needed = gateway.config.offline || gateway.config.targets.is_empty();
    [
        ("records", gateway.audit.is_healthy(), true),
        ("certificate", admin.certificate.health() != Health::Expired, true),
        ("engine", engine, engine_needed),
    ]
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.gateway.metrics.text()).into_response()
}

async fn status(State(admin): State<Admin>) -> Json<Value> {
    let gateway = &admin.gateway;
    let targets: Vec<Value> = gateway
        .dispatcher
        .predictions()
        .iter()
        .map(|(target, ttft)| {
            json!({
                "name": target.name, "clearance": gateway.config.labels.name(target.clearance),
                "predicted_ttft_ms": ttft.map(|span| span.as_millis() as u64),
            })
        })
        .collect();
    let failing = gateway.policies.failing().into_iter();
    let failing: Vec<Value> = failing.map(|(name, steps)| json!({"name": name, "steps": steps})).collect();
    let current = admin.certificate.current();
    let until = current.not_after.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "offline": gateway.config.offline,
        "engine": {"configured": gateway.config.engine.is_some(), "connected": gateway.dispatcher.engine().is_ready()},
        "certificate": {"id": gateway.config.gateway_id(), "not_after": until},
        "targets": targets,
        "policies": gateway.policies.names(),
        "policies_failing": failing,
        "records_healthy": gateway.audit.is_healthy(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_this_machine_or_it_is_not() {
        for host in ["localhost", "LocalHost:9443", "127.0.0.1", "127.0.0.1:9443", "127.9.9.9:1", "[::1]", "[::1]:9443"]
        {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "localhost:",
            "localhost:80:80",
            "localhost:x",
            "]127.0.0.1[",
            "[127.0.0.1]",
            "[127.0.0.1",
            "[[::1]]",
            "[::1]evil",
            "::1",
            "[::1]:",
            "[fe80::1]",
            "10.0.0.1",
            "127.0.0.1@evil.example",
            " 127.0.0.1",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
