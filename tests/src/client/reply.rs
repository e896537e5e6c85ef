//! A whole answer.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Response, Version};
use hyper::body::Incoming;
use serde_json::Value;

/// An answer of any status.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The version of HTTP that was spoken.
    pub version: Version,
    /// From the beginning of the request (the handshake included) to the last byte.
    pub elapsed: Duration,
}

impl Reply {
    /// A header's value; empty if it is absent or not text.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("status {}, not JSON: {}", self.status, self.text()))
    }

    /// The text of the first choice; empty if there is none.
    #[must_use]
    pub fn answer(&self) -> String {
        self.string("/choices/0/message/content")
    }

    /// `error.code`; empty if there is none.
    #[must_use]
    pub fn error_code(&self) -> String {
        self.string("/error/code")
    }

    /// `error.message`; empty if there is none.
    #[must_use]
    pub fn error_message(&self) -> String {
        self.string("/error/message")
    }

    fn string(&self, pointer: &str) -> String {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned()
    }
}

pub(super) async fn collect(response: Response<Incoming>, started: Instant) -> Result<Reply> {
    let (parts, body) = response.into_parts();
    let body =
        super::whole(body).await.with_context(|| format!("the body of an answer with status {}", parts.status))?;
    let elapsed = started.elapsed();
    Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body, version: parts.version, elapsed })
}
