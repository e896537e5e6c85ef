//! `/api/policies` and `/api/reload`: which policies are in force and how they do, and what is done about it by hand.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Admin;
use super::actions::Subject;
use super::guard::{Access, Needs, allowed};
use crate::route::health::Step;
use crate::route::loaded::Loaded;
use crate::route::reload::{Cause, Report};

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/api/policies", get(show))
        .route("/api/policies/{name}/release", post(release))
        .route("/api/reload", post(reload))
}

async fn show(State(admin): State<Admin>) -> Json<Value> {
    let live = &admin.gateway.live;
    let policies: Vec<Value> = live.policies().all().iter().map(|loaded| described(loaded)).collect();
    Json(json!({"policies": policies, "last_reload": reported(&live.last())}))
}

async fn release(
    State(admin): State<Admin>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
) -> Response {
    if let Err(refusal) = allowed(access, Needs::Operating) {
        return refusal.into_response();
    }
    let policies = admin.gateway.live.policies();
    let Some(loaded) = policies.named(&name) else {
        return (StatusCode::NOT_FOUND, "There is no policy of that name.\n").into_response();
    };
    let released = loaded.health.release();
    if released {
        tracing::warn!(policy = loaded.name(), "a policy was released: it is called again");
    }
    let subject = Extension(Subject(loaded.name().to_owned()));
    (subject, Json(json!({"policy": loaded.name(), "released": released}))).into_response()
}

async fn reload(State(admin): State<Admin>, Extension(access): Extension<Access>) -> Response {
    if let Err(refusal) = allowed(access, Needs::Operating) {
        return refusal.into_response();
    }
    let Some(report) = ask_for_reload(&admin).await else {
        return (StatusCode::CONFLICT, "A reload is under way; ask again when it has ended.\n").into_response();
    };
    let status = if report.result.is_ok() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    let subject = Extension(Subject(admin.gateway.live.digest().await));
    (status, subject, Json(reported(&report))).into_response()
}

/// In a task of its own: who asked may go, and must not leave half a reload behind. One at a time, so that nobody who asks and goes
/// can pile them up; `None`: there is one.
async fn ask_for_reload(admin: &Admin) -> Option<Arc<Report>> {
    let gateway = admin.gateway.clone();
    let mine = gateway.live.asked.clone().try_acquire_owned().ok()?;
    let reload = tokio::spawn(async move {
        let _mine = mine;
        gateway.live.reload(&gateway.config, Cause::Operator).await
    });
    reload.await.ok()
}

fn described(loaded: &Loaded) -> Value {
    let (health, version, grants) = (&loaded.health, &loaded.version, loaded.policy.grants());
    let state = match (health.is_quarantined(), loaded.settings.shadow) {
        (true, _) => "quarantined",
        (false, true) => "shadow",
        (false, false) => "live",
    };
    let last_failure = health
        .last_failure()
        .map(|failure| json!({"step": failure.step.name(), "kind": failure.kind.name(), "at": at(failure.at)}));
    let steps: Vec<_> = Step::ALL.into_iter().filter(|step| loaded.takes_part_at(*step)).map(Step::name).collect();
    let ms = |share| loaded.times.quantile(share).map(milliseconds);
    json!({
        "name": loaded.name(),
        "manifest": version.manifest,
        "version": version.version,
        "digest": version.digest,
        "signer": version.signer,
        "builtin": loaded.settings.builtin,
        "steps": steps,
        "grants": {"headers": grants.headers, "text": grants.text},
        "state": state,
        "replaces": loaded.settings.replaces,
        "failing": health.failing(),
        "last_failure": last_failure,
        "calls": loaded.times.count(),
        "p50_ms": ms(0.5),
        "p99_ms": ms(0.99),
    })
}

fn reported(report: &Report) -> Value {
    json!({
        "at": at(report.at),
        "successful": report.result.is_ok(),
        "changes": report.result.as_ref().ok(),
        "error": report.result.as_ref().err(),
        "needs_restart": report.needs_restart,
    })
}

fn at(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

fn milliseconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}
