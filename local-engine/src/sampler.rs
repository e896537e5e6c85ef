//! From logits to a token.

mod candidates;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::logprobs::{self, Score};
use crate::sequence::Sampling;
use candidates::{candidates, pick};

/// Why no token can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undrawn {
    /// The logits are not numbers, or none is possible: the model's fault.
    Logits,
    /// The grammar needs more work than one may cost, or leaves nothing: the fault of what the request asked for, in this
    /// field.
    Grammar(&'static str),
}

/// Draws the tokens of one sequence. The same seed and the same logits give the same tokens: nothing here knows of other
/// sequences, and each draw takes one number of this sequence's own generator.
///
/// The order is: bias, penalties, grammar, temperature, top-k, top-p, min-p.
pub(crate) struct Sampler {
    sampling: Sampling,
    random: StdRng,
    /// The prompt's tokens in order, each once; empty if no penalty asks for them.
    prompt: Vec<u32>,
    /// (token, how often it was drawn), for the penalties; in order of token.
    drawn: Vec<(u32, u32)>,
    score: Option<Score>,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        let mut prompt = if sampling.repetition_penalty == 1.0 { Vec::new() } else { prompt.to_vec() };
        prompt.sort_unstable();
        prompt.dedup();
        Self { sampling, random: StdRng::seed_from_u64(seed), prompt, drawn: Vec::new(), score: None }
    }

    /// The next token.
    pub(crate) fn draw(&mut self, logits: &mut [f32]) -> Result<u32, Undrawn> {
        if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) || logits.iter().any(|logit| logit.is_nan()) {
            return Err(Undrawn::Logits);
        }
        // Probabilities are told as the model gave them, before anything a request asks for changes them.
        let told = self.sampling.logprobs.map(|top| (logits.to_vec(), top));
        self.bias(logits);
        self.penalise(logits);
        let stuck = self.sampling.grammar.as_ref().map_or(Undrawn::Logits, |grammar| Undrawn::Grammar(grammar.param()));
        if let Some(grammar) = &mut self.sampling.grammar {
            grammar.constrain(logits).ok_or(stuck)?;
        }
        let token = if self.sampling.temperature <= 0.0 {
            greatest(logits)
        } else {
            pick(&candidates(logits, &self.sampling), self.random.random::<f32>())
        };
        let token = token.ok_or(stuck)?;
        if let Some(grammar) = &mut self.sampling.grammar {
            grammar.advance(token).ok_or(stuck)?;
        }
        self.score = told.map(|(logits, top)| logprobs::score(&logits, token, top));
        self.count(token);
        Ok(token)
    }

    /// The probability of the token that was drawn last, if it was asked for.
    pub(crate) fn take_score(&mut self) -> Option<Score> {
        self.score.take()
    }

    /// The grammar allows nothing more: the answer is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.sampling.grammar.as_ref().is_some_and(crate::grammar::Grammar::is_complete)
    }

    fn bias(&self, logits: &mut [f32]) {
        for (token, bias) in &self.sampling.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
    }

    /// Frequency and presence penalties as the OpenAI API defines them: over the tokens generated so far. Repetition
    /// penalty over those and the prompt's (Keskar et al., "CTRL", 2019; with a negative logit multiplied, as is usual).
    fn penalise(&self, logits: &mut [f32]) {
        let (frequency, presence) = (self.sampling.frequency_penalty, self.sampling.presence_penalty);
        let repetition = self.sampling.repetition_penalty;
        if repetition != 1.0 {
            let drawn = self.drawn.iter().map(|(token, _)| *token);
            let new = drawn.filter(|token| self.prompt.binary_search(token).is_err());
            for token in self.prompt.iter().copied().chain(new) {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
                }
            }
        }
        for (token, count) in &self.drawn {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= frequency * *count as f32 + presence;
            }
        }
    }

    fn count(&mut self, token: u32) {
        let sampling = &self.sampling;
        if sampling.frequency_penalty == 0.0 && sampling.presence_penalty == 0.0 && sampling.repetition_penalty == 1.0 {
            return;
        }
        match self.drawn.binary_search_by_key(&token, |(token, _)| *token) {
            Ok(at) => {
                if let Some((_, count)) = self.drawn.get_mut(at) {
                    *count += 1;
                }
            }
            Err(at) => self.drawn.insert(at, (token, 1)),
        }
    }
}

/// The first token with the greatest logit; `None` if one is not a number, or none is possible.
pub(crate) fn greatest(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (token, logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, greatest)| *logit > greatest) {
            best = Some((token, *logit));
        }
    }
    best.filter(|(_, logit)| *logit > f32::NEG_INFINITY).and_then(|(token, _)| u32::try_from(token).ok())
}

#[cfg(test)]
mod tests;
