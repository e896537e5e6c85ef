//! `POST /api/engine/model`: another model, without losing a request.

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::Admin;
use super::actions::Subject;
use super::guard::{Access, Needs, allowed};
use crate::supervise::ControlError;

/// Which model is wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    model: String,
}

pub(super) fn routes() -> Router<Admin> {
    Router::new().route("/api/engine/model", post(swap))
}

/// Answers when the new engine has what comes; requests under way finish where they began.
async fn swap(
    State(admin): State<Admin>,
    Extension(access): Extension<Access>,
    Json(wanted): Json<Wanted>,
) -> Response {
    if let Err(refusal) = allowed(access, Needs::Operating) {
        return refusal.into_response();
    }
    let engine = admin.gateway.dispatcher.engine();
    let Some(control) = engine.control().filter(|_| admin.gateway.config.engine.is_some()) else {
        return (StatusCode::NOT_FOUND, "No engine is configured.\n").into_response();
    };
    match control.swap(&wanted.model).await {
        Ok(()) => (Extension(Subject(wanted.model)), Json(json!({"model": engine.model()}))).into_response(),
        Err(error @ ControlError::Busy) => (StatusCode::CONFLICT, format!("{error}\n")).into_response(),
        Err(error @ ControlError::Refused(_)) => {
            (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n")).into_response()
        }
        Err(error @ ControlError::Silent) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}
