//! What can go wrong with a request: who is at fault, what the client reads, what the log may hold.
//!
//! No variant holds a prompt, a key or text of an upstream, so neither a log line nor a response can. The one exception is
//! what our own engine says to the client who asked it, which no log line shows.

use std::time::Duration;

use http::StatusCode;
use postern_certs::CertsError;
use postern_sealed::{SealError, ehbp};
use postern_wire::chat::Invalid;
use postern_wire::error::ErrorBody;
use postern_wire::json::JsonError;

use crate::audit::CopyRefusal;
use crate::classify::Source;
use crate::upstream::local::EngineRefusal;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such path.
    #[error(
        "There is no such endpoint here. Postern serves POST /v1/chat/completions, /v1/completions and /v1/embeddings, GET /v1/models and GET /v1/models/{{id}}."
    )]
    NotFound,
    /// The path exists, the method does not.
    #[error("This endpoint takes {0} requests only.")]
    Method(&'static str),
    /// The body is not announced as JSON.
    #[error("Send the body as `Content-Type: application/json`.")]
    MediaType,
    /// Where Oblivious HTTP is spoken came something else.
    #[error(
        "Only sealed requests are taken here: message/ohttp-chunked-req, or message/ohttp-req. Plain ones go to their own endpoint."
    )]
    SealedMediaType,
    /// This gateway takes sealed payloads only.
    #[error(
        "This gateway takes sealed payloads only. Send it through `postern connect`, or with another client that seals (see docs/sealed.md)."
    )]
    PayloadNotSealed,
    /// A relay has no requests of its own.
    #[error(
        "This connection carries requests of others, which come sealed and signed; in clear it is answered `GET /livez` and `GET /metrics` only."
    )]
    CarriedInClear,
    /// A sealed payload that cannot be opened.
    #[error("{}", sealed_in_words(*.0))]
    Payload(SealError),
    /// It was sealed too long ago, or does not say when.
    #[error(
        "The sealed request must say in `Date` when it was sealed, and that must be within 60 s of this gateway's clock. Set the workstation's clock, and seal it anew."
    )]
    PayloadDate,
    /// It was accepted before.
    #[error("This sealed request was sent before. Seal each request anew.")]
    PayloadReplayed,
    /// Its answer does not fit into one piece.
    #[error(
        "The answer is larger than 16 MiB, the most that is sealed in one piece. Ask for it in pieces: `message/ohttp-chunked-req`."
    )]
    SealedAnswerTooLarge,
    /// Its sender is not known.
    #[error("The sender of the sealed request is not accepted: {0}.")]
    PayloadSender(&'static str),
    /// The body is larger than the bound.
    #[error("The body is larger than {limit} bytes, which is the most that is accepted here.")]
    TooLarge {
        /// The bound, in bytes.
        limit: u64,
    },
    /// The client sent too slowly.
    #[error("The body did not arrive within {} s. Send it faster, or in a smaller request.", .0.as_secs())]
    ReceiveTimeout(Duration),
    /// The client broke off while sending.
    #[error("The body ended before its announced end.")]
    ReceiveBroken,
    /// Not a document that we accept.
    #[error("{0}.")]
    Json(#[from] JsonError),
    /// Not a request that we accept.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A `Postern-*` header is not understood.
    #[error("The header {name} must be {expected}.")]
    Header {
        /// Its name.
        name: &'static str,
        /// What it may be.
        expected: String,
    },
    /// A `Postern-*` header that does not exist.
    #[error(
        "Only Postern-Label, Postern-Placement, Postern-Conversation and Postern-Priority may be sent; another Postern-* header came."
    )]
    UnknownHeader,
    /// No rule matches the client's SPIFFE ID.
    #[error(
        "No rule of this gateway allows the identity of your client certificate. Ask the operator to add it under `identities`."
    )]
    IdentityUnknown,
    /// Another path on the enrol address.
    #[error(
        "This address serves POST /enrol only. Applications connect to the gateway's own address, with a certificate."
    )]
    EnrolOnly,
    /// An enrolment that is not understood.
    #[error(
        "The body must be JSON with `csr`, a certificate request in PEM, and for an enrolment `token`, as `postern certs invite` printed it."
    )]
    EnrolBody,
    /// A certificate request that cannot be signed.
    #[error("The certificate request is refused: {0}.")]
    Csr(&'static str),
    /// An invite that is not good.
    #[error("The join token is unknown, used or too old. Ask the operator for a new one.")]
    InviteRefused,
    /// A certificate that is not renewed.
    #[error("This certificate is not renewed: {0}. Ask the operator for an invite.")]
    NotRenewable(&'static str),
    /// Certificates come from elsewhere.
    #[error("This gateway does not issue certificates itself.")]
    NoAuthority,
    /// The authority cannot sign now.
    #[error("The authority of this gateway cannot sign now; the operator sees why in its log. Try again later.")]
    AuthorityUnavailable,
    /// The certificate of one side ended while the connection was open.
    #[error("The certificate of this connection has ended. Open a new one with your current certificate.")]
    ConnectionExpired,
    /// The label is above what is accepted from this identity.
    #[error(
        "This request is labelled `{label}`, above the ceiling `{ceiling}` of your identity. Send it from a workstation that may handle `{label}`."
    )]
    LabelRefused {
        /// The request's.
        label: String,
        /// The identity's.
        ceiling: String,
        /// What called for it: for the record, and for nobody else.
        sources: Vec<Source>,
    },
    /// Which label a request has cannot be known.
    #[error(
        "What gateways remember of labels together cannot be read just now, so nothing but the model on this machine may answer. Try again in a moment."
    )]
    LabelsUnavailable,
    /// Nobody serves the model.
    #[error("This model is not served here; GET /v1/models lists those that are.")]
    ModelUnknown,
    /// A limit of the identity.
    #[error("The limit of {what} for {whose} is reached. Try again in {}.", in_words(*retry_after))]
    RateLimited {
        /// Which limit.
        what: &'static str,
        /// Whose limit.
        whose: &'static str,
        /// When it helps to come again.
        retry_after: Duration,
    },
    /// More than a limit ever allows.
    #[error(
        "This request may use more than the limit of {what} for {whose} ever allows: {wanted}, and {most} is the most. Ask for a shorter answer (`max_tokens`), or send less."
    )]
    OverLimit {
        /// Which limit.
        what: &'static str,
        /// Whose limit.
        whose: &'static str,
        /// What it may use; of money, in millionths.
        wanted: u64,
        /// The limit.
        most: u64,
    },
    /// A limit of the gateway.
    #[error("As many requests are under way here as there may be. Try again in a second.")]
    Busy,
    /// A policy said no.
    #[error("The policy `{policy}` of this office does not allow this request.")]
    PolicyDenied {
        /// Its name.
        policy: String,
    },
    /// A policy with `on_failure: reject` failed.
    #[error(
        "The policy `{policy}` could not be evaluated, and the request is refused for safety. The operator sees why in the gateway's log."
    )]
    PolicyFailed {
        /// Its name.
        policy: String,
    },
    /// No target may, or can, see the request.
    #[error("No target here may answer a request labelled `{label}` for this model{}.", if *asked_local { " on this machine" } else { "" })]
    NoPermittedTarget {
        /// The request's label.
        label: String,
        /// Only the engine was allowed.
        asked_local: bool,
    },
    /// The gateway is offline.
    #[error(
        "This gateway is offline: only the engine on its own machine may answer, and it does not serve this model."
    )]
    Offline,
    /// The gateway went offline while another target answered.
    #[error(
        "This gateway went offline while a target elsewhere was answering. Ask again: its own engine answers what it serves."
    )]
    WentOffline,
    /// The engine is not up yet.
    #[error("The engine on this machine is starting. Try again in a few seconds.")]
    EngineStarting,
    /// Every permitted target was tried.
    #[error("No permitted target could answer ({tried} asked). Try again in {} s.", come_again(*retry_after))]
    UpstreamUnavailable {
        /// How many were asked; others may be at a limit, or rest after failures.
        tried: usize,
        /// When it may help to come again.
        retry_after: Duration,
    },
    /// Every permitted target was tried, and none knows our key, or the model.
    #[error(
        "No permitted target accepts this gateway's key, or none knows the model there. That does not get better by itself: the operator sees why in the gateway's log."
    )]
    UpstreamRefusesUs,
    /// No permitted target could be asked in time.
    #[error(
        "Every permitted target is at its limit, or rests after failures. Try again in {} s.",
        come_again(*retry_after)
    )]
    TargetsBusy {
        /// When it may help to come again.
        retry_after: Duration,
    },
    /// A hard bound on time.
    #[error("No answer within {} s.", .0.as_secs_f64())]
    DeadlineExceeded(Duration),
    /// The target said that the prompt is too long.
    #[error(
        "The prompt and the tokens asked for do not fit into the model's context. Shorten the conversation or lower `max_tokens`."
    )]
    ContextLength,
    /// The target said that the request is not valid.
    #[error("The model's server refused the request as not valid for this model. Check its parameters.")]
    UpstreamRejected,
    /// More vectors than are read of anybody.
    #[error(
        "The vectors asked for are more than 64 MiB as they are sent. Ask with fewer texts at a time, or for `encoding_format` base64."
    )]
    AnswerTooLarge,
    /// The engine on this machine does not take the request; the client reads the engine's own words.
    #[error("the engine does not take the request: {}", .0.code())]
    EngineRefused(Box<EngineRefusal>),
    /// The stream broke after its beginning.
    #[error("The answer broke off before its end, and it could not be continued. What you have is not complete.")]
    StreamBroken,
    /// What the model made ends its answer, by the configuration.
    #[error(
        "This office does not let pass what the model wrote here, so the answer ends. Ask for it without secrets and markings."
    )]
    AnswerStopped,
    /// The connection was asked to end, and the answer took longer.
    #[error(
        "This connection was asked to end, and the answer was not complete in time. What you have is not all of it."
    )]
    Drained,
    /// A copy of a log is not taken.
    #[error(transparent)]
    Copy(CopyRefusal),
    /// The record could not be written.
    #[error("The gateway cannot write its records at the moment, and without a record nothing is answered.")]
    RecordUnavailable,
}

/// One error as HTTP.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: ErrorBody,
    /// For the header of that name.
    pub retry_after: Option<Duration>,
    /// The type of the problem for clients that look for one (RFC 9457); the body says it as well.
    pub problem: Option<&'static str>,
}

impl Error {
    /// The fixed word for this error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.class().1
    }

    /// Is it what the request asks for that is at fault, whoever sends it and whenever?
    #[must_use]
    pub fn is_of_the_request(&self) -> bool {
        match self {
            Self::ContextLength | Self::UpstreamRejected | Self::AnswerTooLarge | Self::ModelUnknown => true,
            // Who waits for the same answer would get what must not pass.
            Self::AnswerStopped => true,
            Self::EngineRefused(refusal) => refusal.is_final(),
            _ => false,
        }
    }

    /// The same for somebody else who waits for the same answer, if it says something about whom was asked for it.
    #[must_use]
    pub fn repeated(&self) -> Option<Self> {
        Some(match self {
            Self::ContextLength => Self::ContextLength,
            Self::UpstreamRejected => Self::UpstreamRejected,
            Self::AnswerTooLarge => Self::AnswerTooLarge,
            Self::ModelUnknown => Self::ModelUnknown,
            Self::EngineStarting => Self::EngineStarting,
            Self::EngineRefused(refusal) => Self::EngineRefused(refusal.clone()),
            Self::UpstreamUnavailable { tried, retry_after } => {
                Self::UpstreamUnavailable { tried: *tried, retry_after: *retry_after }
            }
            Self::UpstreamRefusesUs => Self::UpstreamRefusesUs,
            Self::TargetsBusy { retry_after } => Self::TargetsBusy { retry_after: *retry_after },
            Self::DeadlineExceeded(bound) => Self::DeadlineExceeded(*bound),
            Self::AnswerStopped => Self::AnswerStopped,
            _ => return None,
        })
    }

    /// The one place where errors become HTTP.
    #[must_use]
    pub fn reply(&self) -> Reply {
        if let Self::EngineRefused(refusal) = self {
            return refusal.reply();
        }
        let (status, code, kind) = self.class();
        let param = match self {
            Self::Invalid(invalid) => invalid.param.clone(),
            Self::ModelUnknown => Some("model".to_owned()),
            _ => None,
        };
        let retry_after = match self {
            Self::RateLimited { retry_after, .. } => Some((*retry_after).max(Duration::from_secs(1))),
            Self::Busy | Self::RecordUnavailable | Self::LabelsUnavailable => Some(Duration::from_secs(1)),
            Self::AuthorityUnavailable => Some(Duration::from_secs(60)),
            Self::EngineStarting => Some(Duration::from_secs(3)),
            Self::UpstreamUnavailable { retry_after, .. } | Self::TargetsBusy { retry_after } => {
                Some(Duration::from_secs(come_again(*retry_after)))
            }
            _ => None,
        };
        Reply {
            status,
            body: ErrorBody { message: self.to_string(), kind, param, code: Some(code) },
            retry_after,
            problem: self.problem(),
        }
    }

    /// A client whose key is not in use asks for the keys anew when it reads this: RFC 9458, 5.3; EHBP, 5.
    fn problem(&self) -> Option<&'static str> {
        match self {
            Self::Payload(SealError::UnknownKey(_)) => {
                Some("https://iana.org/assignments/http-problem-types#ohttp-key")
            }
            Self::Payload(SealError::NoKey) => Some(ehbp::UNKNOWN_KEY),
            _ => None,
        }
    }

    fn class(&self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        const INVALID: &str = "invalid_request_error";
        const DENIED: &str = "permission_error";
        const SERVER: &str = "server_error";
        match self {
            Self::NotFound => (S::NOT_FOUND, "unknown_endpoint", INVALID),
            Self::Method(_) => (S::METHOD_NOT_ALLOWED, "method_not_allowed", INVALID),
            Self::MediaType => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", INVALID),
            Self::SealedMediaType => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", INVALID),
            Self::PayloadNotSealed | Self::CarriedInClear => (S::BAD_REQUEST, "payload_not_sealed", INVALID),
            Self::Payload(why) => (sealed_status(*why), sealed_code(*why), INVALID),
            Self::PayloadDate => (S::BAD_REQUEST, "payload_expired", INVALID),
            Self::PayloadReplayed => (S::BAD_REQUEST, "payload_replayed", INVALID),
            Self::SealedAnswerTooLarge => (S::BAD_REQUEST, "payload_answer_too_large", INVALID),
            Self::PayloadSender(_) => (S::FORBIDDEN, "payload_sender_refused", DENIED),
            Self::TooLarge { .. } => (S::PAYLOAD_TOO_LARGE, "request_too_large", INVALID),
            Self::ReceiveTimeout(_) => (S::REQUEST_TIMEOUT, "request_timeout", INVALID),
            Self::ReceiveBroken => (S::BAD_REQUEST, "request_incomplete", INVALID),
            Self::Json(JsonError::Syntax { .. }) => (S::BAD_REQUEST, "invalid_json", INVALID),
            Self::Json(JsonError::DuplicateKey { .. }) => (S::BAD_REQUEST, "duplicate_key", INVALID),
            Self::Json(JsonError::Number { .. }) => (S::BAD_REQUEST, "number_out_of_range", INVALID),
            Self::Json(JsonError::TooDeep(_)) => (S::BAD_REQUEST, "json_too_deep", INVALID),
            Self::Json(JsonError::TooMany(_)) => (S::BAD_REQUEST, "json_too_large", INVALID),
            Self::Invalid(invalid) => (S::BAD_REQUEST, invalid.code, INVALID),
            Self::Header { .. } | Self::UnknownHeader => (S::BAD_REQUEST, "invalid_header", INVALID),
            Self::IdentityUnknown => (S::FORBIDDEN, "identity_unknown", DENIED),
            Self::LabelRefused { .. } => (S::BAD_REQUEST, "label_refused", INVALID),
            Self::ModelUnknown => (S::NOT_FOUND, "model_not_found", INVALID),
            Self::RateLimited { .. } => (S::TOO_MANY_REQUESTS, "rate_limit_exceeded", "rate_limit_error"),
            Self::OverLimit { .. } => (S::BAD_REQUEST, "over_limit", INVALID),
            Self::EnrolOnly => (S::NOT_FOUND, "unknown_endpoint", INVALID),
            Self::EnrolBody => (S::BAD_REQUEST, "invalid_enrolment", INVALID),
            Self::Csr(_) => (S::BAD_REQUEST, "invalid_csr", INVALID),
            Self::InviteRefused => (S::FORBIDDEN, "invite_refused", DENIED),
            Self::NotRenewable(_) => (S::FORBIDDEN, "not_renewable", DENIED),
            Self::NoAuthority => (S::NOT_FOUND, "no_authority", INVALID),
            Self::AuthorityUnavailable => (S::SERVICE_UNAVAILABLE, "authority_unavailable", SERVER),
            Self::ConnectionExpired => (S::SERVICE_UNAVAILABLE, "connection_expired", SERVER),
            Self::Busy => (S::SERVICE_UNAVAILABLE, "gateway_busy", SERVER),
            Self::PolicyDenied { .. } | Self::PolicyFailed { .. } => (S::FORBIDDEN, "policy_denied", DENIED),
            Self::NoPermittedTarget { .. } => (S::FORBIDDEN, "no_permitted_target", DENIED),
            Self::Offline | Self::WentOffline => (S::SERVICE_UNAVAILABLE, "offline", SERVER),
            Self::EngineStarting => (S::SERVICE_UNAVAILABLE, "engine_starting", SERVER),
            Self::UpstreamUnavailable { .. } | Self::TargetsBusy { .. } => {
                (S::SERVICE_UNAVAILABLE, "upstream_unavailable", SERVER)
            }
            Self::UpstreamRefusesUs => (S::BAD_GATEWAY, "upstream_refuses_us", SERVER),
            Self::DeadlineExceeded(_) => (S::GATEWAY_TIMEOUT, "deadline_exceeded", SERVER),
            Self::ContextLength => (S::BAD_REQUEST, "context_length_exceeded", INVALID),
            Self::AnswerTooLarge => (S::BAD_REQUEST, "answer_too_large", INVALID),
            Self::UpstreamRejected => (S::BAD_REQUEST, "upstream_rejected", INVALID),
            Self::EngineRefused(refusal) => (refusal.status(), refusal.code(), SERVER),
            Self::StreamBroken => (S::BAD_GATEWAY, "stream_broken", SERVER),
            Self::AnswerStopped => (S::FORBIDDEN, "answer_stopped", DENIED),
            Self::Drained => (S::SERVICE_UNAVAILABLE, "drain_timeout", SERVER),
            Self::LabelsUnavailable => (S::SERVICE_UNAVAILABLE, "labels_unavailable", SERVER),
            Self::Copy(refusal) => {
                let (status, code) = refusal.class();
                (status, code, if status.is_client_error() { INVALID } else { SERVER })
            }
            Self::RecordUnavailable => (S::SERVICE_UNAVAILABLE, "record_unavailable", SERVER),
        }
    }
}

/// As somebody would say it.
fn in_words(span: Duration) -> String {
    match span.as_secs_f64().ceil() as u64 {
        seconds @ 0..=120 => format!("{} s", seconds.max(1)),
        seconds @ 121..=7200 => format!("{} minutes", seconds.div_ceil(60)),
        seconds @ 7201..=172_800 => format!("{} hours", seconds.div_ceil(3600)),
        seconds => format!("{} days", seconds.div_ceil(86_400)),
    }
}

fn sealed_in_words(error: SealError) -> &'static str {
    match error {
        SealError::UnknownKey(_) | SealError::NoKey => {
            "The request is sealed for a key that is not in use here. Ask for the gateway's keys anew, and seal it again."
        }
        SealError::NotAuthentic | SealError::Ended => {
            "The sealed request is not authentic: it was changed on the way, or sealed for another gateway. Seal it again; if this stays so, somebody on the way changes it."
        }
        SealError::Cut => "The sealed request ended before its end. Send it again.",
        SealError::Algorithms => {
            "The request is sealed with other algorithms than this gateway's: X25519, HKDF-SHA256 and AES-256-GCM."
        }
        SealError::TooLarge => "A piece of the sealed message is larger than pieces may be. Seal it in smaller ones.",
        SealError::Message | SealError::Config => {
            "What was sealed is not an HTTP request in binary form (RFC 9292), or its head is too long."
        }
    }
}

fn sealed_code(error: SealError) -> &'static str {
    match error {
        SealError::UnknownKey(_) | SealError::NoKey => "payload_key_unknown",
        SealError::NotAuthentic | SealError::Ended => "payload_not_authentic",
        SealError::Cut => "payload_cut",
        SealError::Algorithms => "payload_algorithms",
        SealError::TooLarge => "payload_piece_too_large",
        SealError::Message | SealError::Config => "payload_malformed",
    }
}

/// Of EHBP the clients look for 422; the rest as RFC 9458, 5.2 and 5.3, has it.
fn sealed_status(error: SealError) -> StatusCode {
    match error {
        SealError::NoKey => StatusCode::UNPROCESSABLE_ENTITY,
        SealError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// Seconds until it may help to come again: some at least, since nothing gets better at once.
fn come_again(after: Duration) -> u64 {
    after.as_millis().div_ceil(1000).clamp(3, 3600) as u64
}

impl From<&CertsError> for Error {
    /// What a workstation reads. Whatever is not its own fault is the operator's concern only.
    fn from(error: &CertsError) -> Self {
        match error {
            CertsError::Csr(why) => Self::Csr(why),
            CertsError::JoinToken(_) => Self::EnrolBody,
            CertsError::InviteRefused => Self::InviteRefused,
            CertsError::NotRenewable { why, .. } => Self::NotRenewable(why),
            _ => Self::AuthorityUnavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_an_openai_error_and_says_when_to_come_again() {
        let reply = Error::RateLimited {
            what: "requests a minute",
            whose: "your identity",
            retry_after: Duration::from_millis(1),
        }
        .reply();
        assert_eq!((reply.status.as_u16(), reply.body.code), (429, Some("rate_limit_exceeded")));
        assert_eq!(reply.retry_after, Some(Duration::from_secs(1)));
        let invalid = Invalid { message: "m".into(), param: Some("n".into()), code: "invalid_value" };
        let reply = Error::from(invalid).reply();
        assert_eq!((reply.status.as_u16(), reply.body.param.as_deref()), (400, Some("n")));
    }
}
