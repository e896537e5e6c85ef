//! Distributions that the worker writes and a scrape reads.

use prometheus_client::metrics::histogram::Histogram;

/// Seconds, from a fast GPU's to a busy small machine's.
const FIRST_TOKEN_SECONDS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
const TOKEN_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

/// Clones write into the same numbers.
#[derive(Debug, Clone)]
pub(crate) struct Meters {
    /// From a request's arrival to its first token.
    pub(crate) first_token_seconds: Histogram,
    /// From each token of an answer to its next.
    pub(crate) token_seconds: Histogram,
}

impl Default for Meters {
    fn default() -> Self {
        Self { first_token_seconds: Histogram::new(FIRST_TOKEN_SECONDS), token_seconds: Histogram::new(TOKEN_SECONDS) }
    }
}
