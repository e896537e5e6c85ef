//! Who answers: one interface, whether it is the engine on this machine or a service elsewhere.

mod asks;
pub mod health;
pub mod local;
pub mod openai;

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::classify::clearance::EgressPermit;
pub use asks::Asks;
use local::EngineRefusal;
pub use openai::EventStream;

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
    Stream(EventStream),
}

/// Why an attempt did not succeed. Holds no text of the upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttemptError {
    /// No permit.
    #[error("not permitted: {0}")]
    Refused(#[from] crate::classify::clearance::Refusal),
    /// Our own limit for this target.
    #[error("our limit for this target is reached")]
    Limited,
    /// The engine is not connected.
    #[error("the engine is not connected")]
    EngineDown,
    /// No connection.
    #[error("no connection")]
    Connect,
    /// The connection broke before the answer began.
    #[error("the connection broke")]
    Broken,
    /// It is overloaded, or has an error of its own (5xx).
    #[error("status {0}")]
    Status(u16),
    /// It wants us to wait (429).
    #[error("rate limited")]
    RateLimited,
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
    /// The engine on this machine does not take the request, and says why.
    #[error("the engine does not take it: {}", .0.code())]
    Engine(Box<EngineRefusal>),
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
            Self::Limited => "limited",
            Self::EngineDown => "engine_down",
            Self::Connect => "connect",
            Self::Broken => "broken",
            Self::Status(503) => "busy",
            Self::Status(_) => "status",
            Self::RateLimited => "rate_limited",
            Self::Credentials(_) => "credentials",
            Self::NotFound => "not_found",
            Self::Rejected { .. } => "rejected",
            Self::Engine(refusal) => refusal.code(),
            Self::FirstToken(_) => "first_token_timeout",
            Self::Idle(_) => "idle_timeout",
            Self::Malformed(_) => "malformed",
            Self::Died => "died",
        }
    }

    /// Does it say that the target is not well?
    #[must_use]
    pub fn is_of_the_target(&self) -> bool {
        match self {
            Self::Connect | Self::Broken | Self::Status(_) | Self::Credentials(_) | Self::FirstToken(_) => true,
            Self::Idle(_) | Self::Malformed(_) | Self::Died => true,
            Self::Refused(_) | Self::Limited | Self::EngineDown | Self::RateLimited => false,
            Self::NotFound | Self::Rejected { .. } | Self::Engine(_) => false,
        }
    }

    /// Would another target do better? What is too much for the engine may not be for others.
    #[must_use]
    pub fn is_worth_another_target(&self) -> bool {
        !matches!(self, Self::Rejected { .. })
    }
}
