//! The operators' side: health, metrics, status. Plain on a loopback address, else over mTLS and with roles: see [`guard`].

mod actions;
mod certificates;
mod engine;
pub mod guard;
mod offline;
mod policies;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use postern_certs::rotate::Health;
use postern_certs::{SpiffeId, rfc3339};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::actions::By;
pub use self::actions::Pace;
use self::guard::{Access, Refusal};
use crate::config::Config;
use crate::gateway::Gateway;
use crate::listener::places::Places;
use crate::listener::shake_hands;
use crate::telemetry::metrics::PolicyNumbers;
use crate::tls::Certificate;
use crate::upstream::standing::Claim;

/// Connections at a time on one of the addresses.
const MAX_CONNECTIONS: usize = 256;
/// Of them from one address: nobody else is locked out by one that only opens connections.
const MAX_PER_ADDRESS: usize = 64;
/// Requests at a time on one of them.
const MAX_STREAMS: u32 = 32;
/// How long each may live.
const MAX_AGE: Duration = Duration::from_secs(300);
/// For the headers of a request.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// After an error of accept.
const PAUSE: Duration = Duration::from_millis(50);

/// How a text of metrics ends (OpenMetrics 1.0).
const END: &str = "# EOF\n";

/// What is where.
const ADMIN_PAGES: &str = "\
Postern, for operators.
/livez           it runs
/readyz          it can answer; /readyz?verbose says what is there
/metrics         for Prometheus
/api/status      version, targets, policies, certificate, as JSON
/api/certificates                 how trust stands, as JSON
POST /api/certificates/rotate     renew the gateway's certificate now
POST /api/certificates/revoke     {\"id\": …} or {\"serial\": …}; over mTLS, for the role `security`
/api/policies                     which policies are in force and how they do, as JSON
POST /api/policies/NAME/release   call a policy again that was quarantined
POST /api/reload                  read the configuration again, and exchange the policies
POST /api/offline                 for good: cut off targets elsewhere, and let the kernel confine the gateway
POST /api/engine/model            {\"model\": …}: answers when the engine of that model has taken over
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
    /// How often something may be done.
    pub pace: Arc<Pace>,
}

/// Everything, for the admin address.
pub fn admin(admin: Admin) -> Router {
    let guard = middleware::from_fn_with_state(admin.clone(), guarded);
    probe_routes()
        .merge(certificates::routes())
        .merge(policies::routes())
        .merge(engine::routes())
        .merge(offline::routes())
        .route("/", get(async || ADMIN_PAGES))
        .route("/api/status", get(status))
        .route_layer(middleware::from_fn_with_state(admin.clone(), actions::recorded))
        .layer(guard)
        .with_state(admin)
}

/// What somebody may do who came over mTLS; `None`: nothing.
#[must_use]
pub fn access(config: &Config, id: &SpiffeId) -> Option<Access> {
    let roles = config.operators.iter().filter(|(pattern, _)| pattern.matches(id)).map(|(_, role)| *role);
    roles.max().map(Access::Role)
}

/// Health and metrics only, for the probe address.
pub fn probe(admin: Admin) -> Router {
    probe_routes().route("/", get(async || PROBE_PAGES)).with_state(admin)
}

/// Answers on one listener for as long as the gateway runs. Bounded like the gateway's own: the probe address may be open to
/// more than friends.
pub async fn serve(listener: TcpListener, routes: Router) {
    let routes = routes.layer(Extension(Access::Loopback)).layer(Extension(By::this_machine()));
    let places = Places::new(MAX_CONNECTIONS, MAX_PER_ADDRESS);
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Some(place) = places.take(address.ip()) else { continue };
        let routes = routes.clone();
        tokio::spawn(async move {
            connection(stream, routes, false).await;
            drop(place);
        });
    }
}

/// Answers over mTLS, to those who have a role, until `drain`.
pub async fn serve_tls(listener: TcpListener, admin: Admin, routes: Router, drain: CancellationToken) {
    let places = Places::new(MAX_CONNECTIONS, MAX_PER_ADDRESS);
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Some(place) = places.take(address.ip()) else { continue };
        let (admin, routes, drain) = (admin.clone(), routes.clone(), drain.clone());
        tokio::spawn(async move {
            let mut trust = admin.certificate.trust();
            let (metrics, current) = (&admin.gateway.metrics, admin.certificate.current());
            let Some((stream, session)) = shake_hands(metrics, &current, stream).await else { return };
            let Some(access) = access(&admin.gateway.config, &session.peer.id) else {
                metrics.handshake_failed("no_role");
                return tracing::warn!(id = %session.peer.id, "somebody without a role came to the admin address");
            };
            let by = By(session.peer.id.to_string().into());
            let routes = routes.layer(Extension(access)).layer(Extension(by));
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let serving = connection(stream, routes, is_http2);
            tokio::select! {
                () = serving => {}
                _ = session.end(&mut trust, &drain) => {}
            }
            drop(place);
        });
    }
}

/// Answers on one connection, in the version that the handshake agreed on.
async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, routes: Router, is_http2: bool) {
    let http = auto::Builder::new(TokioExecutor::new());
    let mut http = if is_http2 { http.http2_only() } else { http.http1_only() };
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    http.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // Ends with an error if the client breaks off, which is nobody's concern here.
    let _ended = tokio::time::timeout(MAX_AGE, connection).await;
}

fn probe_routes() -> Router<Admin> {
    Router::new().route("/livez", get(async || "ok\n")).route("/readyz", get(readyz)).route("/metrics", get(metrics))
}

async fn guarded(
    State(admin): State<Admin>,
    Extension(access): Extension<Access>,
    request: Request,
    next: Next,
) -> Response {
    let authority = request.uri().authority().map(axum::http::uri::Authority::as_str);
    let names = &admin.gateway.config.names;
    match guard::check_origin(access, request.method(), request.headers(), authority, names) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, self.message).into_response()
    }
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
        let nobody = *name == "engine" && admin.gateway.config.engine.is_none();
        let word = match (good, needed) {
            (true, _) => "ok",
            (false, true) if nobody => "not configured, and no target may be asked: nobody can answer",
            (false, true) => "failed",
            (false, false) => "not there (not needed)",
        };
        format!("{name}: {word}\n")
    });
    // Not a matter of readiness: what a policy cannot decide is answered on this machine, or refused.
    let policies = admin.gateway.live.policies();
    let unwell = policies.all().iter().filter_map(|loaded| {
        let (name, failing) = (loaded.name(), loaded.health.failing());
        match (loaded.health.is_quarantined(), failing.is_empty()) {
            (true, _) => Some(format!("policy {name}: quarantined ({})\n", failing.join(", "))),
            (false, false) => Some(format!("policy {name}: failing ({})\n", failing.join(", "))),
            (false, true) => None,
        }
    });
    let line = offline::line(&admin.gateway);
    (status, lines.chain(line).chain(unwell).collect::<String>()).into_response()
}

/// Name, is it good, and is it needed to be ready.
fn checks(admin: &Admin) -> [(&'static str, bool, bool); 3] {
    let gateway = &admin.gateway;
    let engine = gateway.dispatcher.engine().is_ready();
    // With a remote target the gateway can answer something; without one everything depends on the engine.
    let engine_needed = gateway.dispatcher.offline().is_cancelled() || gateway.config.targets.is_empty();
    [
        ("records", gateway.audit.is_healthy(), !gateway.audit.spares_lowest()),
        ("certificate", admin.certificate.health() != Health::Expired, true),
        ("engine", engine, engine_needed),
    ]
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let policies = admin.gateway.live.policies();
    let numbers = policies.all().iter().map(|loaded| PolicyNumbers {
        name: loaded.name(),
        quarantined: loaded.health.is_quarantined(),
        numbers: loaded.numbers.read(),
    });
    for (target, now) in admin.gateway.dispatcher.standings(Claim::default()) {
        admin.gateway.metrics.breaker(&target.name, now.breaker);
    }
    let own = admin.gateway.metrics.text(numbers);
    let engine = admin.gateway.dispatcher.engine().metrics().await.unwrap_or_default();
    let own = own.strip_suffix(END).unwrap_or(&own);
    ([(header::CONTENT_TYPE, kind)], format!("{own}{engine}{END}")).into_response()
}

async fn status(State(admin): State<Admin>) -> Json<Value> {
    let gateway = &admin.gateway;
    let targets: Vec<Value> = gateway
        .dispatcher
        .standings(Claim::default())
        .iter()
        .map(|(target, now)| {
            json!({
                "name": target.name, "clearance": gateway.config.labels.name(target.clearance),
                "breaker": now.breaker.as_str(), "available": now.available,
                "predicted_ttft_ms": now.ttft.map(|span| span.as_millis() as u64),
                "queue": now.queue, "requests_left": now.requests_left, "tokens_left": now.tokens_left,
                "identities_kept_out": now.kept_out, "rests_ms": now.rests_for.map(|span| span.as_millis() as u64),
            })
        })
        .collect();
    let policies = gateway.live.policies();
    let failing = policies.all().iter().map(|loaded| (loaded, loaded.health.failing()));
    let failing = failing.filter(|(_, steps)| !steps.is_empty());
    let failing: Vec<Value> = failing.map(|(loaded, steps)| json!({"name": loaded.name(), "steps": steps})).collect();
    let current = admin.certificate.current();
    let until = rfc3339(current.not_after);
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "offline": offline::shown(gateway),
        "engine": {"configured": gateway.config.engine.is_some(), "connected": gateway.dispatcher.engine().is_ready(), "model": gateway.dispatcher.engine().model()},
        "certificate": {"id": admin.certificate.gateway_id().to_string(), "not_after": until},
        "targets": targets,
        "policies": policies.all().iter().map(|loaded| loaded.name()).collect::<Vec<_>>(),
        "policies_failing": failing,
        "records_healthy": gateway.audit.is_healthy(),
    }))
}
