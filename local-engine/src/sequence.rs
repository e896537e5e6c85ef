//! One request on its way through the engine, and what comes out of it.

use std::time::Instant;

use tokio::sync::mpsc;

use crate::admission::Place;
use crate::grammar::Grammar;
use crate::logprobs::TokenScore;
use crate::origin::Origin;

/// How tokens are drawn. Names and ranges as in the OpenAI API; those that it does not have as other servers have them.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// 0 to 2; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Above 0, to 1: draw from the likeliest tokens that together have this probability.
    pub top_p: f32,
    /// Draw from so many of the likeliest tokens; 0: from all.
    pub top_k: u32,
    /// 0 to 1: draw from tokens with at least this share of the likeliest one's probability.
    pub min_p: f32,
    /// −2 to 2: against a token, for each time it was generated.
    pub frequency_penalty: f32,
    /// −2 to 2: against a token that was generated at all.
    pub presence_penalty: f32,
    /// Above 0; divides the logits of tokens of the prompt and the answer. 1: none.
    pub repetition_penalty: f32,
    /// (token, −100 to 100): added to the token's logit.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text; `None`: another one each time.
    pub seed: Option<u64>,
    /// Tell each token's probability, and so many of the likeliest ones.
    pub logprobs: Option<usize>,
    /// What the answer must spell.
    pub grammar: Option<Grammar>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: None,
            logprobs: None,
            grammar: None,
        }
    }
}

impl Sampling {
    /// For one of several answers to the same request: each has its own seed, which follows from the request's. The
    /// first one's is that itself.
    #[must_use]
    pub fn for_choice(&self, choice: usize) -> Self {
        let seed = self.seed.map(|seed| if choice == 0 { seed } else { mixed(seed, choice as u64) });
        Self { seed, grammar: self.grammar.as_ref().map(Grammar::separate), ..self.clone() }
    }
}

/// SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014): far apart also for neighbours.
fn mixed(seed: u64, step: u64) -> u64 {
    let mut z = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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
    /// The model ended it, a stop string came, or the grammar is complete.
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

/// What comes out of the engine for one request: at most one `Started`, then `Text`s (or `Scored`s, if probabilities were
/// asked for), then one `Finished`, `Failed` or `Unspellable`.
#[derive(Debug, Clone, PartialEq)]
pub enum GenerationEvent {
    /// The first token was drawn.
    Started,
    /// Text to append: whole characters, no part of a stop string.
    Text(String),
    /// Text to append, and the tokens that ended within it.
    Scored {
        /// As in `Text`; may be empty where a token ends within a character.
        text: String,
        /// In order.
        tokens: Vec<TokenScore>,
    },
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Tokens.
        usage: Usage,
    },
    /// The computation failed; the log says why.
    Failed,
    /// What the answer must spell needs more work than one request may cost.
    Unspellable {
        /// The field that asks for it.
        param: &'static str,
    },
}

impl GenerationEvent {
    /// Nothing follows.
    pub(crate) fn is_last(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Failed | Self::Unspellable { .. })
    }
}

/// A request as the worker gets it.
pub(crate) struct Submission {
    pub(crate) generation: Generation,
    /// As long as the receiver lives, somebody waits for the answer. It has room for every event of the request.
    pub(crate) events: mpsc::Sender<GenerationEvent>,
    pub(crate) submitted: Instant,
    /// Other answers to the same prompt: they join when it is computed, so that it is computed once.
    pub(crate) followers: Vec<Submission>,
    /// Its place among the sequences that may run or wait; free again when the request ends.
    pub(crate) _place: Place,
}
