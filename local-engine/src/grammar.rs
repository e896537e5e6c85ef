//! What an answer must spell: a JSON value under a schema, or a call of a function. At each step the grammar says which
//! tokens may come next; all others become impossible.
//!
//! The grammars themselves are llguidance's (an Earley parser over a lexer of derivatives). Schemas come from clients, so
//! what one may cost is bounded here: its size, its compilation, its states, the work of one step.

mod schema;

use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::error::EngineError;
use crate::tokenizer::Tokenizer;
pub(crate) use schema::{check, with_white_space};

/// Bytes of one token, and of all tokens together, that the trie of tokens has room for.
const TOKEN_BYTES_MAX: usize = 1000;
const VOCABULARY_BYTES_MAX: usize = 1 << 22;
/// Before a control token's name: no text can spell it.
const CONTROL_MARK: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
/// Bytes of a grammar at most, schemas included.
pub(crate) const GRAMMAR_BYTES_MAX: usize = 256 << 10;
/// States of a lexer, about 1.5 kB each.
const STATES_MAX: usize = 10_000;
/// Work on one token: the other sequences wait for it. About 5 ms each at llguidance's own rates.
const STEP_LEXER_FUEL: u64 = 70_000;
const STEP_ITEMS_MAX: usize = 50_000;

/// What an answer must spell, as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Constraint {
    /// In llguidance's dialect of Lark.
    pub(crate) lark: String,
    /// The field of the request that it comes from.
    pub(crate) param: &'static str,
    /// With this text a call begins.
    pub(crate) call_mark: Option<&'static str>,
}

impl Constraint {
    /// A JSON value under a schema that was checked.
    pub(crate) fn json(schema: &Value) -> Self {
        let lark = format!("start: %json {}\n", with_white_space(schema));
        Self { lark, param: "response_format", call_mark: None }
    }
}

/// Makes grammars for one model's tokens.
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Made when the first grammar is asked for: it takes a few megabytes. `None`: this vocabulary does not fit.
    factory: OnceLock<Option<ParserFactory>>,
}

impl Grammars {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, factory: OnceLock::new() }
    }

    /// Takes milliseconds.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: the grammar is larger, or asks for more, than this engine does.
    pub(crate) fn compile(&self, constraint: &Constraint) -> Result<Grammar, EngineError> {
        let param = constraint.param;
        let refuse = |why: &str| Err(EngineError::unsupported(param, format!("`{param}` {why}")));
        if constraint.lark.len() > GRAMMAR_BYTES_MAX {
            return refuse(&format!("has schemas of more than the {GRAMMAR_BYTES_MAX} bytes that are accepted."));
        }
        let Some(factory) = self.factory.get_or_init(|| factory(&self.tokenizer)) else {
            return refuse("cannot be had from this model: its vocabulary is too large.");
        };
        let parser = factory.create_parser(TopLevelGrammar::from_lark(constraint.lark.clone()));
        let mut matcher = Matcher::new(parser);
        // Its own words may quote the schema.
        if matcher.is_error() || matcher.compute_mask().is_err() {
            return refuse(
                "asks for something that the local engine cannot enforce: a schema that nothing can match, that is too \
                 large, or whose parts contradict each other.",
            );
        }
        Ok(Grammar { matcher, param, call_mark: constraint.call_mark })
    }
}

/// How far an answer has come in its grammar.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    /// The field of the request that it comes from.
    param: &'static str,
    call_mark: Option<&'static str>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Grammar(…)")
    }
}

impl Grammar {
    /// The same for another answer: what they use up of their bounds is not shared.
    pub(crate) fn separate(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), param: self.param, call_mark: self.call_mark }
    }

    /// The field of the request that it comes from.
    pub(crate) fn param(&self) -> &'static str {
        self.param
    }

    /// With this text a call begins.
    pub(crate) fn call_mark(&self) -> Option<&'static str> {
        self.call_mark
    }

    /// Makes every token impossible that may not come next; `None` if the grammar cannot go on.
    pub(crate) fn constrain(&mut self, logits: &mut [f32]) -> Option<()> {
        let allowed = self.matcher.compute_mask_or_eos().ok()?;
        // A model may have more logits than its tokenizer has tokens.
        for (token, logit) in logits.iter_mut().enumerate() {
            if token >= allowed.len() || !allowed.get(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Some(())
    }

    /// Goes on by a token; `None` if it may not come next.
    pub(crate) fn advance(&mut self, token: u32) -> Option<()> {
        // After the end only an end token is possible, and it changes nothing.
        if self.matcher.is_stopped() && !self.matcher.is_error() {
            return Some(());
        }
        self.matcher.consume_token(token).ok()
    }

    /// Nothing may follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

fn factory(tokenizer: &Tokenizer) -> Option<ParserFactory> {
    let count = u32::try_from(tokenizer.vocabulary()).ok()?;
    let ends = tokenizer.ends();
    let words: Vec<Vec<u8>> = (0..count).map(|id| word(tokenizer, id)).collect();
    let fits = words.iter().all(|word| word.len() <= TOKEN_BYTES_MAX)
        && words.iter().map(Vec::len).sum::<usize>() <= VOCABULARY_BYTES_MAX;
    let end = *ends.first()?;
    if !fits || ends.iter().any(|end| *end >= count) {
        return None;
    }
    let trie = TokTrie::from(&TokRxInfo::new(count, end), &words).with_eos_tokens(&ends);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).ok()?;
    // It writes to standard error otherwise, and its words may quote a schema or an answer.
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        max_lexer_states: STATES_MAX,
        step_lexer_fuel: STEP_LEXER_FUEL,
        step_max_items: STEP_ITEMS_MAX,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Some(factory)
}

fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    match tokenizer.bytes(id) {
        [] => [&[CONTROL_MARK], tokenizer.name(id).as_bytes()].concat(),
        bytes => bytes.to_vec(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
