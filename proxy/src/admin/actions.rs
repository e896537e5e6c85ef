//! Everything that somebody does over the admin address is a record: that it was asked for before it is done, and how it ended.
//! What cannot be recorded is not done.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::Admin;
use crate::audit::{Action, RecordId};

/// Actions that may come at once, and how many more in a second: each is two records, which are kept for months.
const AT_ONCE: f64 = 1_000.0;
const PER_SECOND: f64 = 2.0;

/// How many more actions may be asked for: by somebody on this machine, who need not be an operator, and by those with a certificate.
#[derive(Debug, Default)]
pub struct Pace([Mutex<Option<(f64, Instant)>>; 2]);

impl Pace {
    fn has_room(&self, by: &By, now: Instant) -> bool {
        let [local, remote] = &self.0;
        let bucket = if *by.0 == *THIS_MACHINE { local } else { remote };
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, at) = bucket.unwrap_or((AT_ONCE, now));
        let left = (left + now.saturating_duration_since(at).as_secs_f64() * PER_SECOND).min(AT_ONCE);
        let has_room = left >= 1.0;
        *bucket = Some((if has_room { left - 1.0 } else { left }, now));
        has_room
    }
}

const THIS_MACHINE: &str = "loopback";

/// Who asks: a SPIFFE ID, or `loopback`: somebody on this machine.
#[derive(Debug, Clone)]
pub(super) struct By(pub(super) Arc<str>);

impl By {
    pub(super) fn this_machine() -> Self {
        Self(THIS_MACHINE.into())
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
    if !admin.pace.has_room(&by, Instant::now()) {
        let why = "Too many actions in too short a time: each is on record. Try again in a second.\n";
        return (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "1")], why).into_response();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_asks_too_often_waits_and_nobody_else_does() {
        let (pace, now) = (Pace::default(), Instant::now());
        let (here, operator) = (By::this_machine(), By("spiffe://b.example/operator".into()));
        let granted = (0..3_000).filter(|_| pace.has_room(&here, now)).count();
        assert_eq!(granted, AT_ONCE as usize);
        assert!(pace.has_room(&operator, now));
        assert!(!pace.has_room(&here, now) && pace.has_room(&here, now + Duration::from_secs(1)));
    }
}
