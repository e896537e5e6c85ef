//! From logits to a token.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::sequence::Sampling;

/// Draws the tokens of one sequence. The same seed and the same logits give the same tokens.
pub(crate) struct Sampler {
    sampling: Sampling,
    random: StdRng,
    /// (token, how often it was drawn), for the penalties; in order of token.
    drawn: Vec<(u32, u32)>,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        Self { sampling, random: StdRng::seed_from_u64(seed), drawn: Vec::new() }
    }

    /// The next token, or `None` if the logits are not numbers: the model is broken.
    pub(crate) fn draw(&mut self, logits: &mut [f32]) -> Option<u32> {
        self.penalise(logits);
        let token = if self.sampling.temperature <= 0.0 {
            greatest(logits)
        } else {
            let candidates = nucleus(logits, self.sampling.temperature, self.sampling.top_p);
            pick(&candidates, self.random.random::<f32>())
        }?;
        self.count(token);
        Some(token)
    }

    /// Frequency and presence penalties as the OpenAI API defines them: over the tokens generated so far.
    fn penalise(&self, logits: &mut [f32]) {
        let (frequency, presence) = (self.sampling.frequency_penalty, self.sampling.presence_penalty);
        for (token, count) in &self.drawn {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= frequency * *count as f32 + presence;
            }
        }
    }

    fn count(&mut self, token: u32) {
        if self.sampling.frequency_penalty == 0.0 && self.sampling.presence_penalty == 0.0 {
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

/// The first token with the greatest logit.
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
    best.and_then(|(token, _)| u32::try_from(token).ok())
}

/// The smallest set of likeliest tokens whose probabilities reach `top_p`, with their weights, likeliest first;
/// ties in order of token. All tokens, in their own order, if `top_p` is 1. Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
fn nucleus(logits: &[f32], temperature: f32, top_p: f32) -> Vec<(u32, f32)> {
    let Some(greatest) = greatest(logits).and_then(|token| logits.get(token as usize).copied()) else {
        return Vec::new();
    };
    let weights: Vec<f32> = logits.iter().map(|logit| ((logit - greatest) / temperature).exp()).collect();
    if top_p >= 1.0 {
        return (0u32..).zip(weights).collect();
    }
    let total: f32 = weights.iter().sum();
    // A token below this bound cannot be in the nucleus: all such tokens together have less than 1 - top_p.
    let floor = total * (1.0 - top_p) / weights.len() as f32;
    let numbered = (0u32..).zip(weights).filter(|(_, weight)| *weight >= floor && *weight > 0.0);
    let mut candidates: Vec<(u32, f32)> = numbered.collect();
    candidates.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
    let mut reached = 0.0;
    let within = candidates.iter().take_while(|(_, weight)| {
        let short = reached < top_p * total;
        reached += weight;
        short
    });
    let count = within.count().max(1);
    candidates.truncate(count);
    candidates
}

/// The candidate at `point` (0..1) of the sum of weights.
fn pick(candidates: &[(u32, f32)], point: f32) -> Option<u32> {
    let total: f32 = candidates.iter().map(|(_, weight)| weight).sum();
    let mut left = point * total;
    for (token, weight) in candidates {
        left -= weight;
        if left < 0.0 {
            return Some(*token);
        }
    }
    // Rounding may leave a rest: it belongs to the last.
    candidates.last().map(|(token, _)| *token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draws(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..count).map(|_| sampler.draw(&mut logits.to_vec()).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_greatest() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(draws(greedy, &[0.5, 3.0, 3.0, -1.0], 3), [1, 1, 1]);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.1).collect();
        let with = |seed| draws(Sampling { seed: Some(seed), ..Sampling::default() }, &logits, 40);
        assert_eq!(with(7), with(7));
        assert_ne!(with(7), with(8));
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let tokens = draws(Sampling { seed: Some(1), ..Sampling::default() }, &logits, 20_000);
        let total: f32 = logits.iter().map(|l| l.exp()).sum();
        for (token, logit) in logits.iter().enumerate() {
            let share = tokens.iter().filter(|t| **t as usize == token).count() as f32 / 20_000.0;
            assert!((share - logit.exp() / total).abs() < 0.02, "{token}: {share}");
        }
    }

    #[test]
    fn top_p_leaves_out_the_tail() {
        // Probabilities 0.64, 0.24, 0.09, 0.03.
        let logits = [3.0f32, 2.0, 1.0, 0.0];
        let kept = |top_p| nucleus(&logits, 1.0, top_p).iter().map(|(token, _)| *token).collect::<Vec<_>>();
        assert_eq!(kept(0.5), [0]);
        assert_eq!(kept(0.7), [0, 1]);
        assert_eq!(kept(0.9), [0, 1, 2]);
        assert_eq!(kept(1.0), [0, 1, 2, 3]);
    }

    #[test]
    fn penalties_turn_away_from_what_was_said() {
        let sampling = Sampling { temperature: 0.0, frequency_penalty: 1.0, ..Sampling::default() };
        assert_eq!(draws(sampling, &[1.0, 0.5, -9.0], 4), [0, 1, 0, 1]);
        let sampling = Sampling { temperature: 0.0, presence_penalty: 0.6, ..Sampling::default() };
        assert_eq!(draws(sampling, &[1.0, 0.5, -9.0], 3), [0, 1, 0]);
    }

    #[test]
    fn what_is_not_a_number_is_no_token() {
        assert_eq!(Sampler::new(Sampling::default()).draw(&mut [0.0, f32::NAN]), None);
        assert_eq!(Sampler::new(Sampling::default()).draw(&mut []), None);
    }

    proptest! {
        #[test]
        fn a_drawn_token_is_always_in_the_nucleus(
            logits in proptest::collection::vec(-20.0f32..20.0, 1..60),
            temperature in 0.05f32..2.0, top_p in 0.01f32..1.0, seed: u64,
        ) {
            let mut sampler = Sampler::new(Sampling { temperature, top_p, seed: Some(seed), ..Sampling::default() });
            let token = sampler.draw(&mut logits.clone()).unwrap();
            let likelier: f32 = {
                let max = logits.iter().copied().fold(f32::MIN, f32::max);
                let weights: Vec<f32> = logits.iter().map(|l| ((l - max) / temperature).exp()).collect();
                let own = weights[token as usize];
                weights.iter().filter(|w| **w > own).sum::<f32>() / weights.iter().sum::<f32>()
            };
            prop_assert!(likelier < top_p + 1e-4);
        }
    }
}
