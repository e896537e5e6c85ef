//! What can go wrong, who is at fault, and what a client may read of it.

use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;
use postern_wire::error::ErrorBody;

/// Seconds after which a client may ask again when the engine has stopped.
const RESTART_SECONDS: u64 = 2;

/// An error of the engine. No message holds text of a prompt or an answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file or socket could not be used: a wrong path, a missing right, a full disk.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The model file is cut short, damaged, or not a GGUF file at all.
    #[error("{} is not a usable model file: {detail}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where reading stopped, and why.
        detail: String,
    },
    /// The model file is sound, but this engine does not know how to run it.
    #[error("the model file asks for {0}, which this engine does not support yet")]
    Unsupported(String),
    /// The model is known, but not on this machine.
    #[error("model `{name}` is not in {}; fetch it with `postern model pull {name}`", cache.display())]
    NotPulled {
        /// Its name in the catalog.
        name: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The model is known, but its file is not whole.
    #[error(
        "the file of model `{name}` is damaged ({} has {bytes} bytes instead of {expected}); `postern model pull {name}` fetches it again",
        path.display()
    )]
    Cut {
        /// Its name in the catalog.
        name: String,
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The size that it should have.
        expected: u64,
    },
    /// Neither a known name nor a file.
    #[error("`{0}` is neither a file nor a known model; `postern model list` shows the known ones")]
    UnknownModel(String),
    /// Fetching a model failed: no network, no Python, or not the expected bytes.
    #[error("model `{name}` could not be fetched: {detail}")]
    Pull {
        /// Its name in the catalog.
        name: String,
        /// What failed.
        detail: String,
    },
    /// The engine's own options contradict each other or the model.
    #[error("{0}")]
    Options(String),
    /// The computation failed; a defect of the engine or the model file.
    #[error("the model failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// The client's request is wrong.
    #[error("{message}")]
    Invalid {
        /// What to do, for the client.
        message: String,
        /// The field at fault.
        param: Option<String>,
        /// A fixed word, if one fits.
        code: Option<&'static str>,
    },
    /// The body is larger than any prompt this model could take.
    #[error("The request is larger than the {limit_bytes} bytes that the local engine accepts.")]
    TooLarge {
        /// The bound.
        limit_bytes: usize,
    },
    /// The request names a model that this engine does not serve.
    #[error("The local engine does not serve that model; GET /v1/models names the one it does.")]
    ModelNotServed,
    /// No such path.
    #[error("The local engine has no such path.")]
    NoSuchPath,
    /// The path is known, the method is not.
    #[error("That method does not apply to this path.")]
    WrongMethod,
    /// The prompt does not fit.
    #[error(
        "This model's context length is {context_tokens} tokens, and one of them is for the answer. \
         Your messages have {prompt_tokens} tokens or more. Please shorten them."
    )]
    ContextLength {
        /// The model's context length.
        context_tokens: usize,
        /// Tokens of the prompt, or a lower bound of them.
        prompt_tokens: usize,
    },
    /// As many requests wait as may wait.
    #[error(
        "The local engine's queue is full; a request would wait {} seconds for its first token. \
         Please try again in {} seconds.", wait.as_secs(), retry_after.as_secs()
    )]
    QueueFull {
        /// When the next place should be free, in whole seconds.
        retry_after: Duration,
        /// How long a new request would wait if there were a place.
        wait: Duration,
    },
    /// One identity has as many requests here as one may have.
    #[error(
        "You have as many requests at the local engine as one may have. Please try again in {} seconds.",
        retry_after.as_secs()
    )]
    ShareTaken {
        /// When the next place should be free, in whole seconds.
        retry_after: Duration,
    },
    /// The engine is ending, or its worker thread has died.
    #[error("The local engine has stopped.")]
    Stopped,
    /// The gateway has gone, and this process cannot dial another one.
    #[error("the gateway has gone, and its engine ends with it")]
    GatewayGone,
}

impl EngineError {
    /// The HTTP status that a client sees.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } | Self::ContextLength { .. } => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ModelNotServed | Self::NoSuchPath => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::ShareTaken { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::QueueFull { .. } | Self::Stopped => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// When the same request may succeed; `None`: never as it is.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. } | Self::ShareTaken { retry_after } => Some(*retry_after),
            Self::Stopped => Some(Duration::from_secs(RESTART_SECONDS)),
            _ => None,
        }
    }

    /// The OpenAI error object for a client. Faults of the engine itself are not described: they are for the log.
    #[must_use]
    pub fn to_body(&self) -> ErrorBody {
        let (kind, param, code) = match self {
            Self::Invalid { param, code, .. } => ("invalid_request_error", param.clone(), *code),
            Self::ContextLength { .. } => {
                ("invalid_request_error", Some("messages".to_owned()), Some("context_length_exceeded"))
            }
            Self::TooLarge { .. } => ("invalid_request_error", None, Some("request_too_large")),
            Self::ModelNotServed => ("invalid_request_error", Some("model".to_owned()), Some("model_not_found")),
            Self::NoSuchPath | Self::WrongMethod => ("invalid_request_error", None, None),
            Self::QueueFull { .. } => ("server_error", None, Some("queue_full")),
            Self::ShareTaken { .. } => ("rate_limit_error", None, Some("rate_limit_exceeded")),
            Self::Stopped => ("server_error", None, Some("engine_stopped")),
            _ => {
                let message = "The local engine failed on this request.".to_owned();
                return ErrorBody { message, kind: "server_error", param: None, code: Some("engine_failed") };
            }
        };
        ErrorBody { message: self.to_string(), kind, param, code }
    }

    /// The API has it, this engine does not.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), param: Some(param.into()), code: Some("unsupported_parameter") }
    }

    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), param: Some(param.into()), code: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_the_engine_are_not_described_to_clients() {
        let error = EngineError::Compute(candle_core::Error::Msg("secret detail".into()));
        assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!error.to_body().to_json().to_string().contains("secret"));
        assert!(error.to_string().contains("secret detail"));
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let (retry_after, wait) = (Duration::from_secs(3), Duration::from_secs(40));
        let full = EngineError::QueueFull { retry_after, wait };
        assert_eq!((full.retry_after(), full.status()), (Some(retry_after), StatusCode::SERVICE_UNAVAILABLE));
        assert!(full.to_string().contains("40 seconds") && full.to_string().contains("in 3 seconds"));
        assert_eq!(EngineError::ShareTaken { retry_after }.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(EngineError::ModelNotServed.retry_after(), None);
    }
}
