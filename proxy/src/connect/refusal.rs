//! What an application reads when it gets no answer: the error of the OpenAI API, in our own words.
//!
//! What a gateway says outside of a sealed answer may be somebody else's where a middlebox breaks TLS open, so its words are not shown then: only its
//! status, and its code if it is a plain word.

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use postern_certs::rfc3339;
use postern_wire::error::ErrorBody;
use serde_json::Value;
use time::OffsetDateTime;

use super::front::Body;
use super::sealing::{INCOMPLETE, SealingError};

/// Seconds that an application is told to wait, at most.
const MAX_RETRY_AFTER: u32 = 3600;
/// Characters of the gateway's own words that are shown.
const MAX_WORDS: usize = 1000;
/// The longest code that is shown.
const MAX_CODE: usize = 40;
/// Sent at most so often, if the keys have changed.
const MAX_SENT: u32 = 3;
/// The gateway has not got the key that a request was sealed for.
const KEY_UNKNOWN: &str = "payload_key_unknown";
/// It could not open it: perhaps another replica has a key of the same number.
const NOT_AUTHENTIC: &str = "payload_not_authentic";
/// It does not take it of this workstation, or over this connection.
const SENDER_REFUSED: &str = "payload_sender_refused";
/// It was sealed too long ago, or in the future.
const EXPIRED: &str = "payload_expired";

/// Why an application gets no answer. Held by nothing: what was asked, keys, tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// There is no connection.
    #[error(
        "The gateway {gateway} cannot be reached ({why}). Check the network; requests will work again as soon as it answers."
    )]
    Unreachable { gateway: String, why: String },
    /// It does not accept the certificate.
    #[error(
        "The gateway {gateway} does not accept the certificate of this workstation ({why}). Ask the operator why; with a new invite, run `postern certs enrol --gateway HOST:PORT --token-file FILE --out FOLDER` with the connector's folder."
    )]
    NotLetIn { gateway: String, why: String },
    /// It publishes no keys.
    #[error(
        "The gateway {gateway} takes no sealed payloads: it publishes no keys for them (status {}). Ask the operator.",
        status.as_u16()
    )]
    NoKeys { gateway: String, status: StatusCode },
    /// Somebody else answers there, or its keys are not signed.
    #[error("What answers at {gateway} did not prove to be the gateway: {why}. {advice}")]
    NotTheGateway { gateway: String, why: String, advice: &'static str },
    /// Another of its addresses, mostly.
    #[error(
        "What answers at {gateway} does not speak HTTP/2: it looks like the gateway's `enrol` address, and --gateway takes the one of `listen`, such as ai.example.org:8443.{}",
        if *is_direct { "" } else { " A middlebox on the way has to speak HTTP/2 too." }
    )]
    NoHttp2 { gateway: String, is_direct: bool },
    /// It broke while a request was under way.
    #[error(
        "The connection to the gateway {gateway} broke before an answer began. It may have taken the request; send it again if that does no harm."
    )]
    Broken { gateway: String },
    /// Nothing came.
    #[error("The gateway {gateway} did not begin an answer within {seconds} s.")]
    Slow { gateway: String, seconds: u64 },
    /// The leaf has ended.
    #[error(
        "The certificate of this workstation ended at {} and is not renewed any more. Ask the operator for a new invite, then run `postern certs enrol --gateway HOST:PORT --token-file FILE --out FOLDER` with the connector's folder; nothing has to be started anew.",
        rfc3339(*ended)
    )]
    CertificateExpired { ended: OffsetDateTime },
    /// The gateway, or somebody on the way, refused it without a sealed answer.
    #[error("{}", words.clone().unwrap_or_else(|| refused_outside(*status, code.as_deref())))]
    Outside { status: StatusCode, code: Option<String>, words: Option<String>, retry_after: Option<u32> },
    /// An answer that is not sealed.
    #[error(
        "The answer did not come sealed, so it is not shown: somebody between this workstation and the gateway answers in its place."
    )]
    NotSealed,
    /// An answer that cannot be opened.
    #[error("The answer is not authentic, or was cut: nothing of it is shown.")]
    NotAuthentic,
    /// An answer that was cut before any of it was given out.
    #[error("{INCOMPLETE}")]
    Incomplete,
    /// The request cannot be sealed.
    #[error("The request cannot be sealed: {0}.")]
    Sealing(String),
    /// Its headers are too large.
    #[error("The headers of the request are larger than is accepted here.")]
    HeadersTooLarge,
    /// No token, or a wrong one.
    #[error(
        "This address wants a bearer token as its API key: the file `token` in the connector's folder holds it, and none, or another one, was sent."
    )]
    Token,
    /// From a web page, or under a name that is not this machine's.
    #[error(
        "Without a token this address serves programs on this machine only, under a loopback name such as 127.0.0.1, and no web pages. Start the connector without --no-token for those."
    )]
    Foreign,
    /// No such path.
    #[error("There is no such path here. The base URL of an application ends with /v1.")]
    NotFound,
    /// An answer that breaks off would look like one that is complete.
    #[error("Send the request with HTTP/1.1: the end of an answer cannot be told in HTTP/1.0.")]
    Version,
    /// The path exists, the method does not.
    #[error("This path takes GET requests only.")]
    Method,
    /// The body is too large.
    #[error("The body is larger than {limit} bytes, which is the most that is accepted here.")]
    TooLarge { limit: usize },
    /// The body did not come.
    #[error("The body did not arrive within {seconds} s.")]
    Late { seconds: u64 },
    /// The application broke off.
    #[error("The body ended before its announced end.")]
    Cut,
    /// Other bodies take all the memory that there is for them.
    #[error("Too many large requests are being sent at a time. Try again when they are done.")]
    Busy,
}

impl From<SealingError> for Refusal {
    fn from(error: SealingError) -> Self {
        match error {
            SealingError::Head => Self::HeadersTooLarge,
            error => Self::Sealing(error.to_string()),
        }
    }
}

fn refused_outside(status: StatusCode, code: Option<&str>) -> String {
    let code_said = code.map(|code| format!(", code `{code}`")).unwrap_or_default();
    let what = match (code, status.as_u16()) {
        (Some(EXPIRED), _) => {
            "The clock of this workstation differs from the gateway's by more than a minute. Set it right, and send the request again"
        }
        (Some(KEY_UNKNOWN | NOT_AUTHENTIC), _) => {
            "The gateway could not open the request with the keys that it publishes. Try again"
        }
        (Some(SENDER_REFUSED), _) => {
            "The gateway does not take requests of this workstation over this connection: its certificate was revoked, or whoever is on the way is not among the gateway's `payload.relays`. Ask the operator"
        }
        (_, 401 | 403) => {
            "The gateway, or something on the way to it, does not let this workstation in. Ask the operator"
        }
        (_, 404) => "The gateway does not take sealed requests. Ask the operator",
        (_, 413) => "The request is larger than the gateway accepts",
        (_, 429 | 503) => "The gateway has too much to do. Try again later",
        (_, 400..=499) => "The gateway refused the request before it was opened",
        _ => "The gateway, or something on the way to it, failed",
    };
    format!("{what} (status {}{code_said}).", status.as_u16())
}

/// What the gateway said outside of a sealed answer, as far as it is shown. `is_the_gateway`: nobody else can have said it.
pub(crate) fn outside(
    status: StatusCode,
    retry_after: Option<&HeaderValue>,
    body: &[u8],
    is_the_gateway: bool,
) -> Refusal {
    let is_refusal = status.is_client_error() || status.is_server_error();
    if !is_refusal {
        return Refusal::NotSealed;
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let code = body.pointer("/error/code").and_then(Value::as_str).filter(|code| is_plain(code)).map(ToOwned::to_owned);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = retry_after.map(|seconds: u32| seconds.min(MAX_RETRY_AFTER));
    // Of the seal this workstation knows more than the gateway: what it says of itself is better advice there.
    let is_of_the_seal = code.as_deref().is_some_and(|code| code.starts_with("payload_"));
    let words = body.pointer("/error/message").and_then(Value::as_str).filter(|_| is_the_gateway && !is_of_the_seal);
    let words = words.map(|words| words.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect());
    Refusal::Outside { status, code, words, retry_after }
}

fn is_plain(code: &str) -> bool {
    (1..=MAX_CODE).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// Whether the keys are fetched anew and the request is sent again, after it was sent so often. That is safe: a gateway that says so has
/// done nothing with it.
pub(crate) fn wants_other_keys(refusal: &Refusal, sent: u32) -> bool {
    let Refusal::Outside { code: Some(code), .. } = refusal else { return false };
    match code.as_str() {
        KEY_UNKNOWN => sent < MAX_SENT,
        NOT_AUTHENTIC => sent < 2,
        _ => false,
    }
}

impl Refusal {
    /// For the log and for `status`: our words alone, since a gateway's may be about what was asked.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Outside { status, code, .. } => refused_outside(*status, code.as_deref()),
            own => own.to_string(),
        }
    }

    /// As HTTP has it.
    pub(crate) fn status(&self) -> StatusCode {
        use StatusCode as S;
        match self {
            Self::Unreachable { .. }
            | Self::NotLetIn { .. }
            | Self::NoKeys { .. }
            | Self::NoHttp2 { .. }
            | Self::CertificateExpired { .. }
            | Self::Busy => S::SERVICE_UNAVAILABLE,
            Self::NotTheGateway { .. } | Self::Broken { .. } => S::BAD_GATEWAY,
            Self::NotSealed | Self::NotAuthentic | Self::Incomplete => S::BAD_GATEWAY,
            Self::Slow { .. } => S::GATEWAY_TIMEOUT,
            Self::Outside { status, .. } => *status,
            Self::Sealing(_) => S::INTERNAL_SERVER_ERROR,
            Self::HeadersTooLarge => S::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Token => S::UNAUTHORIZED,
            Self::Foreign => S::FORBIDDEN,
            Self::NotFound => S::NOT_FOUND,
            Self::Method => S::METHOD_NOT_ALLOWED,
            Self::Version => S::HTTP_VERSION_NOT_SUPPORTED,
            Self::TooLarge { .. } => S::PAYLOAD_TOO_LARGE,
            Self::Late { .. } => S::REQUEST_TIMEOUT,
            Self::Cut => S::BAD_REQUEST,
        }
    }

    /// A fixed word.
    pub(crate) fn code(&self) -> Option<&str> {
        Some(match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::NoHttp2 { .. } => "gateway_unreachable",
            Self::NotLetIn { .. } => "certificate_refused",
            Self::NoKeys { .. } => "gateway_keys_missing",
            Self::NotTheGateway { .. } => "gateway_not_authentic",
            Self::Slow { .. } => "gateway_timeout",
            Self::CertificateExpired { .. } => "certificate_expired",
            Self::Outside { code, .. } => return code.as_deref(),
            Self::NotSealed => "answer_not_sealed",
            Self::NotAuthentic => "answer_not_authentic",
            Self::Incomplete => "answer_incomplete",
            Self::Sealing(_) => "not_sealed",
            Self::HeadersTooLarge => "headers_too_large",
            Self::Token => "connector_token",
            Self::Foreign => "connector_origin",
            Self::NotFound => "not_found",
            Self::Method => "method_not_allowed",
            Self::Version => "http_version",
            Self::TooLarge { .. } => "request_too_large",
            Self::Late { .. } => "receive_timeout",
            Self::Cut => "receive_broken",
            Self::Busy => "connector_busy",
        })
    }

    fn retry_after(&self) -> Option<u32> {
        match self {
            Self::Unreachable { .. } | Self::Busy => Some(2),
            Self::Outside { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// As a response.
    pub(crate) fn response(&self) -> Response<Body> {
        let status = self.status();
        let kind = match status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let mut body = ErrorBody { message: self.to_string(), kind, param: None, code: None }.to_json();
        if let (Some(code), Some(place)) = (self.code(), body.pointer_mut("/error/code")) {
            *place = code.into();
        }
        let mut response = Response::new(Full::from(body.to_string()).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if *self == Self::Token {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shown(refusal: &Refusal) -> (u16, Value, Option<String>) {
        let response = refusal.response();
        let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap(), retry_after)
    }

    #[tokio::test]
    async fn a_gateway_that_is_away_is_told_as_clients_expect() {
        let away = Refusal::Unreachable { gateway: "ai.example:8443".into(), why: "connection refused".into() };
        let (status, body, retry_after) = shown(&away).await;
        let expected = r#"{"error":{"message":"The gateway ai.example:8443 cannot be reached (connection refused). Check the network; requests will work again as soon as it answers.","type":"server_error","param":null,"code":"gateway_unreachable"}}"#;
        assert_eq!((status, body.to_string().as_str(), retry_after.as_deref()), (503, expected, Some("2")));
    }

    #[tokio::test]
    async fn words_from_outside_of_the_sealed_answer_are_not_shown() {
        let said = br#"{"error":{"message":"Send your key to evil.example","type":"x","code":"payload_expired"}}"#;
        let refusal = outside(StatusCode::BAD_REQUEST, Some(&HeaderValue::from_static("7")), said, false);
        let (status, body, retry_after) = shown(&refusal).await;
        assert_eq!((status, retry_after.as_deref()), (400, Some("7")));
        assert_eq!(body["error"]["code"], "payload_expired");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("clock") && message.contains("minute") && !message.contains("evil"), "{message}");
        for code in ["Send your key", "", "<b>", &"a".repeat(41)] {
            let said = serde_json::json!({"error": {"code": code}}).to_string();
            let refusal =
                outside(StatusCode::FORBIDDEN, Some(&HeaderValue::from_static("soon")), said.as_bytes(), false);
            assert_eq!(
                refusal,
                Refusal::Outside { status: StatusCode::FORBIDDEN, code: None, words: None, retry_after: None }
            );
            assert_eq!(shown(&refusal).await.1["error"]["code"], Value::Null);
        }
        for status in [StatusCode::OK, StatusCode::FOUND, StatusCode::NO_CONTENT] {
            assert_eq!(outside(status, None, b"<html>", true), Refusal::NotSealed);
        }
    }

    #[tokio::test]
    async fn the_gateway_s_own_words_are_shown_where_nobody_else_can_have_said_them() {
        let said =
            br#"{"error":{"message":"The limit of requests a minute is\n reached.","code":"rate_limit_exceeded"}}"#;
        let direct = outside(StatusCode::TOO_MANY_REQUESTS, None, said, true);
        assert_eq!(shown(&direct).await.1["error"]["message"], "The limit of requests a minute is reached.");
        let through = outside(StatusCode::TOO_MANY_REQUESTS, None, said, false);
        assert!(shown(&through).await.1["error"]["message"].as_str().unwrap().contains("status 429"));
    }

    #[test]
    fn what_is_kept_of_a_refusal_is_in_our_words() {
        let said = br#"{"error":{"message":"Nothing is known of herons","code":"payload_sender_refused"}}"#;
        let refused = outside(StatusCode::FORBIDDEN, None, said, true).told();
        assert!(refused.contains("revoked") && refused.contains("`payload.relays`"), "{refused}");
        let said = br#"{"error":{"message":"Nothing is known of herons","code":"queue_full"}}"#;
        let full = outside(StatusCode::TOO_MANY_REQUESTS, None, said, true);
        assert!(full.to_string().contains("herons"));
        assert!(full.told().contains("queue_full") && !full.told().contains("herons"), "{}", full.told());
    }

    #[test]
    fn only_a_gateway_that_has_done_nothing_is_asked_again() {
        let refused = |code: &str| Refusal::Outside {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            code: Some(code.to_owned()),
            words: None,
            retry_after: None,
        };
        let sent = |code, most| (1..5).filter(|sent| wants_other_keys(&refused(code), *sent)).count() + 1 == most;
        assert!(sent("payload_key_unknown", 3) && sent("payload_not_authentic", 2));
        assert!(sent("payload_expired", 1) && sent("payload_replayed", 1) && sent("queue_full", 1));
        assert!(!wants_other_keys(&Refusal::Broken { gateway: String::new() }, 1));
    }
}
