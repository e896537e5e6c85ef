//! Guesses at what an answer says next, from what it or its prompt said before: who summarises, quotes or edits a text
//! repeats it. The model checks a guess in one step, token by token, and what it would not have drawn itself is dropped:
//! so a text is the same with guesses and without. Source: Saxena, "Prompt Lookup Decoding", 2023.

/// Tokens of a guess at most.
pub(crate) const GUESS_TOKENS_MAX: usize = 8;
/// A guess follows the last place that has the same so many tokens as the end; as many of them as can be had.
const MATCH_TOKENS: std::ops::RangeInclusive<usize> = 2..=4;
/// How often the first guesses are taken to be right.
const RIGHT_AT_FIRST: f64 = 0.6;
/// Weight of the newest guess.
const NEWEST: f64 = 0.15;
/// Others in the step wait for the rows of a guess too: at most so many times as long as without any.
const SLOWER_FOR_OTHERS: f64 = 1.5;

/// How often the guesses of one sequence were right, smoothed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Luck(f64);

impl Default for Luck {
    fn default() -> Self {
        Self(RIGHT_AT_FIRST)
    }
}

impl Luck {
    /// One guessed token was right, or wrong; known also of guesses that nothing was computed for.
    pub(crate) fn add(&mut self, right: bool) {
        self.0 += NEWEST * (f64::from(u8::from(right)) - self.0);
    }

    /// Tokens that a guess of `count` brings on the average: each one only if all before it were right.
    fn tokens(self, count: usize) -> f64 {
        (1..=count as i32).map(|at| self.0.powi(at)).sum()
    }
}

/// What may follow a sequence's last token.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guess {
    /// Likely tokens; may be empty.
    pub(crate) tokens: Vec<u32>,
    /// Of those, how many a step computes.
    pub(crate) computed: usize,
}

impl Guess {
    /// Those that a step computes.
    pub(crate) fn computed(&self) -> &[u32] {
        self.tokens.get(..self.computed).unwrap_or_default()
    }
}

/// What may follow: what followed the last time that the text was like its end. At most `most` tokens; empty if it never
/// was.
pub(crate) fn guess(tokens: &[u32], most: usize) -> &[u32] {
    let mut best = (0, tokens.len());
    for end in (*MATCH_TOKENS.start()..tokens.len()).rev() {
        let before = tokens.get(..end).unwrap_or_default();
        let pairs = before.iter().rev().zip(tokens.iter().rev());
        let alike = pairs.take(*MATCH_TOKENS.end()).take_while(|(a, b)| a == b).count();
        if alike > best.0 && MATCH_TOKENS.contains(&alike) {
            best = (alike, end);
        }
        if alike == *MATCH_TOKENS.end() {
            break;
        }
    }
    let follows = tokens.get(best.1..).unwrap_or_default();
    follows.get(..most.min(follows.len())).unwrap_or_default()
}

/// How many tokens of a guess are worth computing in a step that has `rows` rows without it, which bring one token each.
/// `seconds` gives the time of a step with so many rows. The most tokens a second count; nobody else's next token may
/// come much later.
pub(crate) fn worth(luck: Luck, guessed: usize, rows: usize, seconds: impl Fn(usize) -> f64) -> usize {
    let alone = seconds(rows);
    let rate = |count: usize| (rows as f64 + luck.tokens(count)) / seconds(rows + count);
    let bearable = |count: &usize| rows <= 1 || seconds(rows + count) <= SLOWER_FOR_OTHERS * alone;
    let counts = (1..=guessed.min(GUESS_TOKENS_MAX)).take_while(bearable);
    counts.fold(0, |best, count| if rate(count) > rate(best) { count } else { best })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lucky(times: usize) -> Luck {
        let mut luck = Luck::default();
        (0..times).for_each(|_| luck.add(true));
        luck
    }

    #[test]
    fn what_followed_the_last_time_is_guessed() {
        assert_eq!(guess(&[1, 2, 3, 4, 9, 1, 2], 8), [3, 4, 9, 1, 2]);
        assert_eq!(guess(&[1, 2, 3, 4, 9, 1, 2], 2), [3, 4]);
        assert_eq!(guess(&[1, 2, 3, 1, 2, 4, 1, 2], 1), [4], "the last of equals");
        assert_eq!(guess(&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1), [3], "the longest match");
        assert_eq!(guess(&[1, 2, 3, 2], 8), [] as [u32; 0], "one token alike is none");
        assert_eq!(guess(&[5, 5, 5], 8), [5]);
        assert_eq!(guess(&[5], 8), [] as [u32; 0]);
        assert_eq!(guess(&[], 8), [] as [u32; 0]);
    }

    #[test]
    fn guesses_are_made_where_rows_cost_little_or_are_often_right() {
        let free = |_| 1.0;
        assert_eq!(worth(Luck::default(), 5, 1, free), 5);
        assert_eq!(worth(Luck::default(), 50, 1, free), GUESS_TOKENS_MAX);
        // Each row costs as much as a step: never.
        let dear = |rows: usize| rows as f64;
        assert_eq!(worth(lucky(100), 8, 1, dear), 0);
        // Half of a step is for the weights: only if guesses are good.
        let half = |rows: usize| 1.0 + rows as f64;
        assert_eq!(worth(lucky(100), 8, 1, half), 8);
        let mut unlucky = Luck::default();
        (0..10).for_each(|_| unlucky.add(false));
        assert_eq!(worth(unlucky, 8, 1, half), 0);
        assert_eq!(worth(lucky(100), 0, 1, free), 0);
    }

    #[test]
    fn others_do_not_wait_long_for_the_guesses_of_one() {
        let steep = |rows: usize| if rows <= 4 { 1.0 } else { 1.2 * (rows - 4) as f64 };
        assert_eq!(worth(lucky(100), 8, 4, steep), 1);
        assert_eq!(worth(lucky(100), 8, 1, steep), 4);
    }

    proptest! {
        #[test]
        fn a_guess_is_a_part_of_the_text_after_what_is_like_its_end(
            tokens in proptest::collection::vec(0u32..4, 0..60), most in 0usize..10,
        ) {
            let found = guess(&tokens, most);
            prop_assert!(found.len() <= most);
            if let (Some(_), [.., a, b]) = (found.first(), tokens.as_slice()) {
                let text = [&[*a, *b], found].concat();
                prop_assert!(tokens.windows(text.len()).any(|window| window == text));
            }
        }
    }
}
