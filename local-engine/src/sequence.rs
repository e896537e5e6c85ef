//! One request on its way through the engine, and what comes out of it.

use std::time::Instant;

use tokio::sync::mpsc;

use crate::admission::Place;
use crate::origin::Origin;

/// How tokens are drawn. Names and ranges as in the OpenAI API.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 to 2; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Above 0, to 1: draw from the likeliest tokens that together have this probability.
    pub top_p: f32,
    /// −2 to 2: against a token, for each time it was generated.
    pub frequency_penalty: f32,
    /// −2 to 2: against a token that was generated at all.
    pub presence_penalty: f32,
    /// The same seed gives the same text; `None`: another one each time.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, seed: None }
    }
}

/// A tokenised request.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The prompt's token ids, one or more, fewer than the context length.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; cut to what the context leaves.
    pub max_new_tokens: usize,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// On whose behalf.
    pub origin: Origin,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string came.
    Stop,
    /// `max_new_tokens` or the context length was reached.
    Length,
}

impl FinishReason {
    /// The OpenAI API's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, the one that ended the answer among them.
    pub completion_tokens: usize,
    /// Tokens of the prompt that were computed for an earlier request.
    pub cached_tokens: usize,
}

/// What comes out of the engine for one request: at most one `Started`, then `Text`s, then one `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GenerationEvent {
    /// The first token was drawn.
    Started,
    /// Text to append: whole characters, no part of a stop string.
    Text(String),
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Tokens.
        usage: Usage,
    },
    /// The computation failed; the log says why.
    Failed,
}

/// A request as the worker gets it.
pub(crate) struct Submission {
    pub(crate) generation: Generation,
    /// As long as the receiver lives, somebody waits for the answer. It has room for every event of the request.
    pub(crate) events: mpsc::Sender<GenerationEvent>,
    pub(crate) submitted: Instant,
    /// Its place among the sequences that may run or wait; free again when the request ends.
    pub(crate) _place: Place,
}
