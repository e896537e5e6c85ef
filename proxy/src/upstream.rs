//! Who answers: one interface, whether it is the engine on this machine or a service elsewhere.

mod asks;
pub mod breaker;
pub mod limiter;
mod line;
pub mod local;
mod members;
pub mod openai;
pub(crate) mod progress;
pub mod scrape;
pub mod standing;

use std::time::Duration;

use futures_util::future::BoxFuture;
use postern_wire::json::Value;
use tokio_util::sync::CancellationToken;

use crate::classify::clearance::EgressPermit;
pub use asks::Asks;
use breaker::Health;
use local::EngineRefusal;
pub use openai::EventStream;
use standing::Turn;

/// How long a target that wants us to send less, and does not say for how long, is left alone.
const WITHOUT_WORDS: Duration = Duration::from_secs(1);

/// Answers a request once.
pub trait Upstream: Send + Sync {
    /// Sends what the permit holds. Dropping the future, or the stream in the reply, cancels the request.
    fn send(&self, permit: EgressPermit) -> BoxFuture<'_, Result<Reply, AttemptError>>;
}

/// The beginning of an answer, or all of it.
#[derive(Debug)]
pub enum Reply {
    /// A chat completion, also where a legacy one was asked for; or vectors as [`postern_wire::vectors`] reads them.
    Whole(Value),
    /// Chat completion chunks.
    Stream(Box<EventStream>),
}

impl Reply {
    /// Keeps the turn for as long as the answer lasts: the target has that much to do.
    #[must_use]
    pub fn holding(mut self, mut turn: Turn) -> Self {
        match &mut self {
            Self::Whole(answer) => {
                if let Some(tokens) = tokens_used(answer) {
                    turn.used(tokens);
                }
            }
            Self::Stream(events) => events.hold(turn),
        }
        self
    }
}

impl Reply {
    /// Breaks off when `offline` is cancelled.
    #[must_use]
    pub(crate) fn until(mut self, offline: &CancellationToken) -> Self {
        if let Self::Stream(events) = &mut self {
            events.end_with(offline.clone());
        }
        self
    }
}

/// What a target counted for an answer, if it says so.
fn tokens_used(answer: &Value) -> Option<u64> {
    let usage = answer.get("usage")?;
    let count = |field| usage.get(field).and_then(Value::as_u64);
    Some(count("prompt_tokens")?.saturating_add(count("completion_tokens").unwrap_or_default()))
}

/// Why an attempt did not succeed. Holds no text of the upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttemptError {
    /// No permit.
    #[error("not permitted: {0}")]
    Refused(#[from] crate::classify::clearance::Refusal),
    /// The engine is not connected.
    #[error("the engine is not connected")]
    EngineDown,
    /// No connection.
    #[error("no connection")]
    Connect,
    /// The connection broke before the answer began.
    #[error("the connection broke")]
    Broken,
    /// It has not looked at the request: it has too many already, or is about to end.
    #[error("the target did not take the request")]
    NotTaken,
    /// It has an error of its own (5xx), or a status that makes no sense here.
    #[error("status {0}")]
    Status(u16),
    /// It is overloaded (503), and may say for how long.
    #[error("overloaded")]
    Busy(Option<Duration>),
    /// It wants us to send less (429), and may say for how long.
    #[error("rate limited")]
    RateLimited(Option<Duration>),
    /// Our key is not accepted (401, 403).
    #[error("our credentials were refused with status {0}")]
    Credentials(u16),
    /// It does not know the model (404).
    #[error("the model or path is not known there")]
    NotFound,
    /// The request itself is at fault, for every target (400, 413, 422).
    #[error("the request was refused")]
    Rejected {
        /// It said that the context is too short.
        context_length: bool,
    },
    /// It takes only what is sealed, and what it was asked is not: how it is configured is at fault.
    #[error("the target takes only what is sealed")]
    NotSealed,
    /// The engine on this machine does not take the request, and says why.
    #[error("the engine does not take it: {}", .0.code())]
    Engine(Box<EngineRefusal>),
    /// More vectors than are read of anybody.
    #[error("the answer is too large")]
    TooLarge,
    /// No first token in time.
    #[error("no first token in time")]
    FirstToken(Duration),
    /// The stream fell silent.
    #[error("no event in time")]
    Idle(Duration),
    /// Not an answer of the OpenAI API.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
    /// The stream ended before its end.
    #[error("the stream broke off")]
    Died,
}

impl AttemptError {
    /// A fixed word for records and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::EngineDown => "engine_down",
            Self::Connect => "connect",
            Self::Broken => "broken",
            Self::NotTaken => "not_taken",
            Self::Status(_) => "status",
            Self::Busy(_) => "busy",
            Self::RateLimited(_) => "rate_limited",
            Self::Credentials(_) => "credentials",
            Self::NotFound => "not_found",
            Self::Rejected { .. } => "rejected",
            Self::NotSealed => "not_sealed",
            Self::Engine(refusal) => refusal.code(),
            Self::TooLarge => "too_large",
            Self::FirstToken(_) => "first_token_timeout",
            Self::Idle(_) => "idle_timeout",
            Self::Malformed(_) => "malformed",
            Self::Died => "died",
        }
    }

    /// What it says of the target.
    #[must_use]
    pub fn health(&self) -> Health {
        match self {
            Self::Connect | Self::Broken | Self::FirstToken(_) | Self::Idle(_) | Self::Died => Health::Dead,
            Self::Status(_) | Self::Busy(_) | Self::NotTaken => Health::Busy,
            Self::Credentials(401) | Self::Malformed(_) => Health::Busy,
            // Our key is good, but not for this model, or what was asked is not allowed.
            Self::Credentials(_) => Health::Unknown,
            Self::Refused(_) | Self::EngineDown | Self::RateLimited(_) => Health::Unknown,
            Self::NotFound | Self::Rejected { .. } | Self::NotSealed => Health::Unknown,
            Self::Engine(_) | Self::TooLarge => Health::Unknown,
        }
    }

    /// Would another target do better? What is too much for the engine may not be for others.
    #[must_use]
    pub fn is_worth_another_target(&self) -> bool {
        !matches!(self, Self::Rejected { .. } | Self::TooLarge)
    }

    /// Does it say what is wrong with the request, for whomever it is asked of?
    #[must_use]
    pub fn is_of_the_request(&self) -> bool {
        match self {
            Self::Engine(refusal) => refusal.is_final(),
            Self::Rejected { .. } | Self::TooLarge => true,
            _ => false,
        }
    }

    /// May the same target take the same request a little later?
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect | Self::Broken | Self::NotTaken | Self::Died => true,
            Self::Busy(_) | Self::RateLimited(_) | Self::EngineDown => true,
            Self::Status(code) => matches!(code, 408 | 500 | 502 | 504 | 529),
            Self::Engine(refusal) => refusal.is_temporary(),
            Self::Refused(_) | Self::Credentials(_) | Self::NotFound | Self::Rejected { .. } => false,
            Self::TooLarge | Self::NotSealed => false,
            Self::FirstToken(_) | Self::Idle(_) | Self::Malformed(_) => false,
        }
    }

    /// For how long it asked us to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy(after) => *after,
            // Who does not say how long means some time.
            Self::RateLimited(after) => Some(after.unwrap_or(WITHOUT_WORDS)),
            Self::Engine(refusal) => refusal.retry_after(),
            _ => None,
        }
    }

    /// There was a connection, and it was lost with the request on it.
    #[must_use]
    pub fn lost_connection(&self) -> bool {
        matches!(self, Self::Broken | Self::Died)
    }
}
