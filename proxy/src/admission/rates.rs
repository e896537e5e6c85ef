//! What a client reads of its limits: the headers that OpenAI's API has.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use super::account::{Measure, Moment, Standing};
use super::books::{Books, Payers};

/// The limits of one client, to be asked when an answer begins.
#[derive(Debug, Clone)]
pub struct Rates {
    books: Arc<Books>,
    payers: Payers,
}

impl Rates {
    pub(super) fn new(books: Arc<Books>, payers: Payers) -> Self {
        Self { books, payers }
    }

    /// `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`: of the limit that leaves fewest, of whatever period and whomever. Where
    /// there is no limit there is no header.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        if self.payers.is_empty() {
            return;
        }
        let standings = self.books.standings(&self.payers, Moment::now());
        let least = |measure| standings.iter().filter(|each| each.rule.measure == measure).min_by_key(|each| each.left);
        let names = [
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
        ];
        for (measure, [limit, remaining, reset]) in [Measure::Requests, Measure::Tokens].into_iter().zip(names) {
            let Some(Standing { rule, left, whole_in }) = least(measure) else { continue };
            headers.insert(limit, HeaderValue::from(rule.most));
            headers.insert(remaining, HeaderValue::from(*left));
            if let Ok(span) = HeaderValue::from_str(&in_words(*whole_in)) {
                headers.insert(reset, span);
            }
        }
    }
}

/// As OpenAI writes it: `12ms`, `7.5s`, `1m30s`, `5h0m12s`.
fn in_words(span: Duration) -> String {
    let (seconds, ms) = (span.as_secs(), span.subsec_millis());
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) if seconds == 0 => format!("{ms}ms"),
        (0, 0) if ms == 0 => format!("{rest}s"),
        (0, 0) => format!("{}s", (span.as_secs_f64() * 1e3).round() / 1e3),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_openai_does() {
        let texts =
            [(0, "0ms"), (12, "12ms"), (6000, "6s"), (7500, "7.5s"), (90_000, "1m30s"), (18_012_000, "5h0m12s")];
        for (ms, text) in texts {
            assert_eq!(in_words(Duration::from_millis(ms)), text);
        }
    }
}
