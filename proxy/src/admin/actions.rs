//! Everything that somebody does over the admin address is a record: that it was asked for before it is done, and how it ended.
//! What cannot be recorded is not done.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::Admin;
use crate::audit::{Action, RecordId};

/// Who asks: a SPIFFE ID, or `loopback`: somebody on this machine.
#[derive(Debug, Clone)]
pub(super) struct By(pub(super) Arc<str>);

impl By {
    pub(super) fn this_machine() -> Self {
        Self("loopback".into())
    }
}

/// With what it was done, as the endpoint read it; an endpoint puts it into its response.
#[derive(Debug, Clone)]
pub(super) struct Subject(pub(super) String);

pub(super) async fn recorded(
    State(admin): State<Admin>,
    Extension(by): Extension<By>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let record = RecordId::new();
    let action = word(request.uri().path());
    let asked = Action { by: by.0.to_string(), action, subject: None, result: "asked" };
    if admin.gateway.audit.action(record, &asked).await.is_err() {
        let why = "This cannot be recorded now, so it is not done: free the disk or mend the folder of the records.\n";
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    }
    // In a task of its own: who asked may go, and what was begun is done and recorded all the same.
    let audit = admin.gateway.audit.clone();
    let done = tokio::spawn(async move {
        let response = next.run(request).await;
        let result = match response.status() {
            status if status.is_success() => "done",
            StatusCode::FORBIDDEN => "refused",
            _ => "failed",
        };
        let subject = response.extensions().get::<Subject>().map(|subject| subject.0.clone());
        if audit.action(record, &Action { subject, result, ..asked }).await.is_err() {
            tracing::error!(action, result, "how it ended could not be recorded");
        }
        response
    });
    done.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// An endpoint, as the records name it.
fn word(path: &str) -> &'static str {
    match path {
        "/api/certificates/rotate" => "rotate",
        "/api/certificates/revoke" => "revoke",
        "/api/reload" => "reload",
        "/api/engine/model" => "engine-model",
        "/api/offline" => "offline",
        other if other.starts_with("/api/policies/") && other.ends_with("/release") => "release",
        _ => "other",
    }
}
