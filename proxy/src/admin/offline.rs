//! `POST /api/offline`: from now on, and until Postern is started again, nothing leaves. See [`crate::confine`].

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::Admin;
use super::guard::{Access, Needs, allowed};
use crate::config::trust::Issuer;
use crate::confine::kernel;
use crate::gateway::Gateway;
use crate::supervise::Control;

/// For the answer and its record.
const ANSWERED_WITHIN: Duration = Duration::from_millis(250);

pub(super) fn routes() -> Router<Admin> {
    Router::new().route("/api/offline", post(go))
}

/// True when the kernel confines this process, `ending` while it gives way to one that is, else false.
pub(super) fn shown(gateway: &Gateway) -> Value {
    match (gateway.confined, gateway.dispatcher.offline().is_cancelled()) {
        (Some(_), _) => json!(true),
        (None, true) => json!("ending"),
        (None, false) => json!(false),
    }
}

/// For `/readyz?verbose`, unless there is nothing to say.
pub(super) fn line(gateway: &Gateway) -> Option<String> {
    let words = match (gateway.confined, gateway.dispatcher.offline().is_cancelled()) {
        (Some(confined), _) if confined.files => "confined by the kernel",
        (Some(_), _) => "confined by the kernel, but for files (no Landlock)",
        (None, true) => "ending; the next gateway is confined",
        (None, false) => return None,
    };
    Some(format!("offline: {words}\n"))
}

async fn go(State(admin): State<Admin>, Extension(access): Extension<Access>) -> Response {
    if let Err(refusal) = allowed(access, Needs::Operating) {
        return refusal.into_response();
    }
    let gateway = &admin.gateway;
    if gateway.confined.is_some() {
        return Json(json!({"offline": true})).into_response();
    }
    if matches!(gateway.config.issuer, Issuer::Spiffe { .. }) {
        let words = "The certificates of this gateway come from a SPIFFE agent, which one that is offline cannot ask. Use `issuer: files`.\n";
        return (StatusCode::CONFLICT, words).into_response();
    }
    if gateway.dispatcher.engine().control().is_none() {
        return (StatusCode::SERVICE_UNAVAILABLE, "The supervisor is not known yet.\n").into_response();
    }
    // Before anything is cut off: a gateway that could not be confined must not end for it.
    let able = tokio::task::spawn_blocking(kernel::filter).await;
    if let Ok(Err(why)) = able {
        let words = format!("Nothing was changed: {why}. `postern doctor` says more.\n");
        return (StatusCode::UNPROCESSABLE_ENTITY, words).into_response();
    }
    gateway.dispatcher.offline().cancel();
    tracing::warn!("an operator takes this gateway offline");
    tokio::spawn(give_way(admin.gateway.clone()));
    (StatusCode::ACCEPTED, Json(json!({"offline": shown(gateway)}))).into_response()
}

/// Asks the supervisor for the successor, when whoever asked has had the answer: this process ends for it.
async fn give_way(gateway: Arc<Gateway>) {
    tokio::time::sleep(ANSWERED_WITHIN).await;
    let asked = gateway.dispatcher.engine().control().map(Control::go_offline);
    if let Some(Err(error)) = asked {
        tracing::error!(%error, "targets elsewhere are cut off, but the supervisor does not hear of it: restart Postern with `offline: true`");
    }
}
