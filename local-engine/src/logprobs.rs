//! How likely the model thought a token, and what else it thought likely.

/// The least that is told: JSON has no infinity. The OpenAI API tells the same number.
const LEAST: f32 = -9999.0;

/// A drawn token's probability beside the likeliest ones.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    pub(crate) token: u32,
    /// Natural logarithm of its probability.
    pub(crate) logprob: f32,
    /// The likeliest tokens, likeliest first, ties in order of token.
    pub(crate) top: Vec<(u32, f32)>,
}

/// A token as an answer tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// What it stands for in the answer: perhaps a part of a character only.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// A token of the answer, and the likeliest ones in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// The token that was drawn.
    pub drawn: ScoredToken,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<ScoredToken>,
}

impl Score {
    /// With the bytes of each token.
    pub(crate) fn told<'a>(&self, bytes: impl Fn(u32) -> &'a [u8]) -> TokenScore {
        let told = |token: u32, logprob: f32| ScoredToken { bytes: bytes(token).to_vec(), logprob };
        let top = self.top.iter().map(|(token, logprob)| told(*token, *logprob)).collect();
        TokenScore { drawn: told(self.token, self.logprob), top }
    }
}

/// The score of `token` among `logits`, with the `top` likeliest tokens.
pub(crate) fn score(logits: &[f32], token: u32, top: usize) -> Score {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // In f64: a sum of a hundred thousand small numbers loses digits otherwise.
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - greatest).exp()).sum();
    let logprob = |logit: f32| ((f64::from(logit - greatest) - sum.ln()) as f32).max(LEAST);
    let mut numbered: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
    let likelier = |(a, x): &(u32, f32), (b, y): &(u32, f32)| y.total_cmp(x).then(a.cmp(b));
    if top < numbered.len() {
        if top > 0 {
            numbered.select_nth_unstable_by(top - 1, likelier);
        }
        numbered.truncate(top);
    }
    numbered.sort_unstable_by(likelier);
    let top = numbered.into_iter().map(|(token, logit)| (token, logprob(logit))).collect();
    Score { token, logprob: logits.get(token as usize).map_or(LEAST, |logit| logprob(*logit)), top }
}

/// Scores of tokens whose text is held back: they are told when their text is shown.
#[derive(Debug, Default)]
pub(crate) struct HeldScores {
    /// (bytes of the answer up to this token's end, its score)
    held: std::collections::VecDeque<(usize, TokenScore)>,
    bytes: usize,
}

impl HeldScores {
    pub(crate) fn push(&mut self, score: TokenScore) {
        self.bytes += score.drawn.bytes.len();
        self.held.push_back((self.bytes, score));
    }

    /// Those of the tokens that end within the first `shown` bytes.
    pub(crate) fn release(&mut self, shown: usize) -> Vec<TokenScore> {
        let count = self.held.iter().take_while(|(end, _)| *end <= shown).count();
        self.held.drain(..count).map(|(_, score)| score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_score_is_the_logarithm_of_the_softmax() {
        let logits = [3.0f32, 1.0, 2.0, f32::NEG_INFINITY];
        let total: f32 = [3.0f32, 1.0, 2.0].iter().map(|logit| logit.exp()).sum();
        let found = score(&logits, 1, 2);
        assert!((found.logprob - (1.0f32.exp() / total).ln()).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(score(&logits, 3, 0).logprob, LEAST);
        assert!(score(&logits, 3, 0).top.is_empty());
        assert_eq!(score(&logits, 0, 9).top.len(), 4);
    }

    #[test]
    fn equally_likely_tokens_are_told_in_their_order() {
        assert_eq!(score(&[1.0; 5], 4, 3).top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn scores_wait_for_their_text() {
        let token = |bytes: &[u8]| {
            let drawn = ScoredToken { bytes: bytes.to_vec(), logprob: 0.0 };
            TokenScore { drawn, top: Vec::new() }
        };
        let mut held = HeldScores::default();
        held.push(token(b"a\xe2"));
        held.push(token(b"\x82\xac"));
        assert!(held.release(1).is_empty(), "its last character is not whole yet");
        assert_eq!(held.release(4).len(), 2);
        held.push(token(b"END"));
        assert!(held.release(4).is_empty());
    }

    proptest! {
        #[test]
        fn probabilities_of_all_tokens_sum_to_one(logits in proptest::collection::vec(-30.0f32..30.0, 1..80)) {
            let told = score(&logits, 0, logits.len());
            let sum: f32 = told.top.iter().map(|(_, logprob)| logprob.exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-4);
            prop_assert!(told.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            prop_assert!(told.top.iter().any(|(token, logprob)| *token == 0 && *logprob == told.logprob));
        }
    }
}
