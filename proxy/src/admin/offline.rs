//! `POST /api/offline`: from now on, and until Postern is started again, nothing leaves. See [`crate::confine`].

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
    let Some(control) = gateway.dispatcher.engine().control() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "The supervisor is not known yet.\n").into_response();
    };
    // Before anything is cut off: a gateway that could not be confined must not end for it.
    let able = tokio::task::spawn_blocking(kernel::filter).await;
    if let Ok(Err(why)) = able {
        let words = format!("Nothing was changed: {why}. `postern doctor` says more.\n");
        return (StatusCode::UNPROCESSABLE_ENTITY, words).into_response();
    }
    // The one place where this is done by hand: whoever records what operators do records it here.
    gateway.dispatcher.offline().cancel();
    if let Err(error) = control.go_offline() {
        let words = format!("Targets elsewhere are cut off, but {error}: restart Postern with `offline: true`.\n");
        return (StatusCode::SERVICE_UNAVAILABLE, words).into_response();
    }
    tracing::warn!("an operator takes this gateway offline");
    (StatusCode::ACCEPTED, Json(json!({"offline": shown(gateway)}))).into_response()
}
