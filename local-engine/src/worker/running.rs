//! A sequence in the worker's hands.

use std::time::Instant;

use crate::grammar::Grammar;
use crate::kv_pool::BlockTable;
use crate::logprobs::HeldScores;
use crate::sampler::Sampler;
use crate::sequence::{GenerationEvent, Submission};
use crate::speculation::{self, GUESS_TOKENS_MAX, Guess, Luck};
use crate::text_stream::TextStream;
use crate::tokenizer::Tokenizer;

pub(super) struct Sequence {
    pub(super) submission: Submission,
    /// The prompt, and what was drawn.
    pub(super) tokens: Vec<u32>,
    /// Those that are computed.
    pub(super) table: BlockTable,
    pub(super) sampler: Sampler,
    pub(super) text: TextStream,
    scores: HeldScores,
    pub(super) generated: usize,
    /// How well its tokens can be guessed.
    pub(super) luck: Luck,
    /// Tokens of the prompt that were there already when it first began.
    pub(super) cached: usize,
    /// When the last token was drawn.
    pub(super) drawn: Instant,
    /// Since when it has a slot.
    began: Option<Instant>,
    has_run: bool,
}

impl Sequence {
    pub(super) fn new(submission: Submission) -> Self {
        let generation = &submission.generation;
        let mut text = TextStream::new(generation.stop.clone());
        if let Some(mark) = generation.sampling.grammar.as_ref().and_then(Grammar::call_mark) {
            text = text.stopping_until(mark);
        }
        Self {
            tokens: generation.prompt.clone(),
            table: BlockTable::default(),
            sampler: Sampler::new(generation.sampling.clone(), &generation.prompt),
            text,
            scores: HeldScores::default(),
            generated: 0,
            luck: Luck::default(),
            cached: 0,
            drawn: submission.submitted,
            began: None,
            has_run: false,
            submission,
        }
    }

    /// It has a slot now; gives the tokens that are there already.
    pub(super) fn begin(&mut self) -> usize {
        let found = self.table.tokens();
        if !self.has_run {
            self.cached = found;
        }
        self.has_run = true;
        self.began = Some(Instant::now());
        found
    }

    /// It has no slot any more; gives the seconds that it had one.
    pub(super) fn stop(&mut self) -> Option<f64> {
        self.began.take().map(|began| began.elapsed().as_secs_f64())
    }

    pub(super) fn is_running(&self) -> bool {
        self.began.is_some()
    }

    /// All its tokens are computed: the next one can be drawn.
    pub(super) fn is_computed(&self) -> bool {
        self.table.tokens() >= self.tokens.len()
    }

    /// The next `count` tokens that are to be computed.
    pub(super) fn next(&self, count: usize) -> &[u32] {
        let begin = self.table.tokens();
        self.tokens.get(begin..begin + count).unwrap_or_default()
    }

    /// What may follow its last token, as far as the answer may go on.
    pub(super) fn guess(&self) -> Guess {
        let left = self.submission.generation.max_new_tokens.saturating_sub(self.generated + 1);
        Guess { tokens: speculation::guess(&self.tokens, left.min(GUESS_TOKENS_MAX)).to_vec(), computed: 0 }
    }

    pub(super) fn add(&mut self, token: u32) {
        self.tokens.push(token);
        self.generated += 1;
        self.drawn = Instant::now();
    }

    /// Keeps the drawn token's probability until its text is shown.
    pub(super) fn keep_score(&mut self, tokenizer: &Tokenizer) {
        if let Some(score) = self.sampler.take_score() {
            self.scores.push(score.told(|token| tokenizer.bytes(token)));
        }
    }

    pub(super) fn send_text(&mut self, text: String) {
        let shown = self.text.shown_bytes();
        self.send_scored(text, shown);
    }

    /// What was held back, when nothing follows.
    pub(super) fn send_rest(&mut self) {
        let rest = self.text.finish();
        self.send_scored(rest, usize::MAX);
    }

    fn send_scored(&mut self, text: String, shown_bytes: usize) {
        let tokens = self.scores.release(shown_bytes);
        if !tokens.is_empty() {
            self.send(GenerationEvent::Scored { text, tokens });
        } else if !text.is_empty() {
            self.send(GenerationEvent::Text(text));
        }
    }

    /// There is room for every event; if the receiver is gone, the next step finds out.
    pub(super) fn send(&self, event: GenerationEvent) {
        let _ = self.submission.events.try_send(event);
    }
}
