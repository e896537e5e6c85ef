//! Why the engine does not take a request, in its own words.
//!
//! A stranger's error text is never passed on. The engine is our own process, it names fields and bounds only, and who
//! reads its words is who asked; so they are, within a bound, and under the words for programs that are known here.

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use postern_wire::error::ErrorBody;
use postern_wire::json;
use postern_wire::json::Value;

use crate::error::Reply;

/// The most bytes of a refusal, and of its words.
const MAX_REFUSAL: usize = 16 << 10;
const MAX_WORDS: usize = 600;
/// The engine cannot do what the request asks for; others may.
const UNSUPPORTED: &str = "unsupported_parameter";
/// How long its body may take.
const WITHIN: Duration = Duration::from_secs(2);
/// The longest time after which a client is told to come again.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// What the engine says to a request that it does not take.
#[derive(Clone, PartialEq, Eq)]
pub struct EngineRefusal {
    status: StatusCode,
    code: &'static str,
    kind: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<Duration>,
}

/// Its words may be about what a client sent.
impl std::fmt::Debug for EngineRefusal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "EngineRefusal({})", self.code)
    }
}

impl EngineRefusal {
    /// Reads one; `None` if it is something else: then the engine is at fault, not the request.
    pub(super) async fn read(response: Response<Incoming>) -> Option<Self> {
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(WITHIN, Limited::new(body, MAX_REFUSAL).collect()).await.ok()?.ok()?;
        Self::parse(head.status, &head.headers, &body.to_bytes())
    }

    /// Reads one that comes instead of an answer's next event, where no status says what it is: only what the request asks
    /// for can be at fault then.
    pub(in crate::upstream) fn of_event(data: &[u8]) -> Option<Self> {
        Self::parse(StatusCode::BAD_REQUEST, &HeaderMap::new(), data).filter(|refusal| refusal.code == UNSUPPORTED)
    }

    fn parse(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let body = json::parse(body, &json::Limits::default()).ok()?;
        let error = body.get("error")?;
        let message = error.get("message").and_then(Value::as_str)?;
        let said = error.get("code").and_then(Value::as_str);
        let (code, kind) = match (status.as_u16(), said) {
            (400, Some("context_length_exceeded")) => ("context_length_exceeded", "invalid_request_error"),
            (400, Some(UNSUPPORTED)) => (UNSUPPORTED, "invalid_request_error"),
            (400, _) => ("invalid_value", "invalid_request_error"),
            (413, _) => ("request_too_large", "invalid_request_error"),
            (429, _) => ("rate_limit_exceeded", "rate_limit_error"),
            (503, Some("queue_full")) => ("queue_full", "server_error"),
            _ => return None,
        };
        let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let param = error.get("param").and_then(Value::as_str).map(|param| param.chars().take(MAX_WORDS).collect());
        Some(Self {
            status,
            code,
            kind,
            message: message.chars().take(MAX_WORDS).collect(),
            param,
            retry_after: seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER)),
        })
    }

    /// The same request may be taken a little later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
    }

    /// When it may be taken.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// It is wrong for whoever would be asked.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.code == "invalid_value"
    }

    /// The word for programs, records and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What the client reads.
    #[must_use]
    pub fn reply(&self) -> Reply {
        let Self { status, code, kind, message, param, retry_after } = self.clone();
        Reply { status, body: ErrorBody { message, kind, param, code: Some(code) }, retry_after, problem: None }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn parsed(status: u16, body: &str) -> Option<EngineRefusal> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("7"));
        EngineRefusal::parse(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes())
    }

    #[test]
    fn the_words_of_the_engine_are_kept_and_its_faults_are_not() {
        let full = parsed(503, r#"{"error":{"message":"Full.","type":"x","param":null,"code":"queue_full"}}"#).unwrap();
        let reply = full.reply();
        assert_eq!(
            (full.code(), full.is_temporary(), reply.retry_after),
            ("queue_full", true, Some(Duration::from_secs(7)))
        );
        assert_eq!((reply.status.as_u16(), reply.body.message.as_str()), (503, "Full."));
        let wrong = parsed(400, r#"{"error":{"message":"No.","param":"tools","code":"made up"}}"#).unwrap();
        assert_eq!((wrong.code(), wrong.is_temporary()), ("invalid_value", false));
        assert_eq!(wrong.reply().body.param.as_deref(), Some("tools"));
        assert_eq!(parsed(503, r#"{"error":{"message":"Stopped.","code":"engine_stopped"}}"#), None);
        assert_eq!(parsed(500, r#"{"error":{"message":"Failed."}}"#), None);
        assert_eq!(parsed(400, "no JSON"), None);
    }

    #[test]
    fn within_an_answer_only_what_was_asked_for_is_at_fault() {
        let event = |code: &str| format!(r#"{{"error":{{"message":"Simpler.","param":"tools","code":"{code}"}}}}"#);
        let refusal = EngineRefusal::of_event(event("unsupported_parameter").as_bytes()).unwrap();
        assert_eq!((refusal.status(), refusal.code()), (StatusCode::BAD_REQUEST, "unsupported_parameter"));
        assert_eq!(refusal.reply().body.param.as_deref(), Some("tools"));
        assert_eq!(EngineRefusal::of_event(event("engine_failed").as_bytes()), None);
        assert_eq!(EngineRefusal::of_event(br#"{"choices":[]}"#), None);
    }

    #[test]
    fn it_is_not_shown_whole_and_not_in_logs() {
        let long = parsed(400, &format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(5000))).unwrap();
        assert_eq!(long.reply().body.message.len(), MAX_WORDS);
        assert!(!format!("{long:?}").contains('x'), "{long:?}");
    }
}
