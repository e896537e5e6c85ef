//! `/api/certificates`: how trust stands, and what is done about it by hand.

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use postern_certs::{CertsError, Serial, SpiffeId, rfc3339};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Admin;
use super::actions::Subject;
use super::guard::{Access, Needs, allowed};

/// What is revoked: one of the two.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    id: Option<String>,
    serial: Option<String>,
}

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/api/certificates", get(show))
        .route("/api/certificates/rotate", post(rotate))
        .route("/api/certificates/revoke", post(revoke))
}

async fn show(State(admin): State<Admin>) -> Json<Value> {
    let current = admin.certificate.current();
    // May wait for the command line, which shares the authority's lock: not on a worker thread.
    let certificate = admin.certificate.clone();
    let status = tokio::task::spawn_blocking(move || certificate.authority().map(postern_certs::Authority::status));
    let authority = status.await.ok().flatten();
    Json(json!({
        "gateway": admin.certificate.gateway_id().to_string(),
        "serial": current.serial().map(|serial| serial.to_string()),
        "not_after": rfc3339(current.not_after),
        "health": format!("{:?}", admin.certificate.health()).to_lowercase(),
        "authority": authority,
    }))
}

async fn rotate(State(admin): State<Admin>, Extension(access): Extension<Access>) -> Response {
    if let Err(refusal) = allowed(access, Needs::Operating) {
        return refusal.into_response();
    }
    // Of its own: whoever hangs up does not take the bookkeeping along.
    let rotated = tokio::spawn(async move { admin.certificate.rotate(&admin.gateway.metrics).await });
    match rotated.await {
        Ok(Ok(until)) => Json(json!({"not_after": rfc3339(until)})).into_response(),
        Ok(Err(_)) | Err(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "The certificate could not be renewed; the log says why.\n")
                .into_response()
        }
    }
}

async fn revoke(
    State(admin): State<Admin>,
    Extension(access): Extension<Access>,
    Json(what): Json<Revocation>,
) -> Response {
    if let Err(refusal) = allowed(access, Needs::Securing) {
        return refusal.into_response();
    }
    let certificate = admin.certificate.clone();
    let subject = what.id.clone().or_else(|| what.serial.clone());
    let revoked = tokio::task::spawn_blocking(move || {
        let authority = certificate.authority()?;
        Some(match (what.id.map(|id| id.parse::<SpiffeId>()), what.serial.map(|serial| serial.parse::<Serial>())) {
            (Some(Ok(id)), None) => authority.revoke_id(&id),
            (None, Some(Ok(serial))) => authority.revoke_serial(&serial),
            (Some(Err(error)), None) | (None, Some(Err(error))) => Err(error),
            _ => Err(CertsError::SpiffeId("send `id` or `serial`")),
        })
    });
    match revoked.await {
        Ok(Some(Ok(serials))) => {
            let serials: Vec<_> = serials.iter().map(ToString::to_string).collect();
            let subject = Extension(Subject(subject.unwrap_or_default()));
            (subject, Json(json!({"revoked": serials}))).into_response()
        }
        Ok(Some(Err(error @ CertsError::SpiffeId(_)))) => {
            (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response()
        }
        Ok(None) => (StatusCode::NOT_FOUND, "This gateway does not issue certificates itself.\n").into_response(),
        Ok(Some(Err(error))) => {
            tracing::error!(%error, "nothing could be revoked");
            (StatusCode::SERVICE_UNAVAILABLE, "Nothing was revoked; the log says why.\n").into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
