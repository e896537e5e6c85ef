//! What a call writes: log lines, counters, numbers for operators. Nothing of it takes effect before the label of the request
//! is final, and nothing at all where no remote target may see that label. So a plugin cannot carry what it learnt from a
//! request that must stay here over to another one.

use std::sync::Arc;
use std::time::Duration;

use crate::counters::{Counters, Scope};
use crate::metrics::PolicyMetrics;

/// Log lines of one call.
pub(crate) const MAX_LOG_LINES: usize = 32;
/// Counters that one call may write to.
pub(crate) const MAX_COUNTERS: usize = 32;
/// Numbers for operators that one call may write.
pub(crate) const MAX_NUMBERS: usize = 64;

/// Writes of one call that wait for their request's label. Dropping them discards them.
#[derive(Debug)]
#[must_use = "what is not committed is discarded"]
pub struct Effects {
    pub(crate) policy: Arc<str>,
    pub(crate) lines: Vec<(tracing::Level, String)>,
    pub(crate) adds: Vec<Add>,
    pub(crate) numbers: Vec<(String, Number)>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) metrics: Arc<PolicyMetrics>,
    pub(crate) scope: Scope,
}

/// One addition to a counter.
#[derive(Debug, Clone)]
pub(crate) struct Add {
    pub(crate) key: String,
    pub(crate) by: i64,
    pub(crate) ttl: Duration,
}

/// One number for operators.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Number {
    Count(u32),
    Value(f64),
}

impl Effects {
    /// Lets the writes of the call take effect: its counters are counted under the final label of the request, which may be
    /// higher than the one the call was told. Only for a request whose final label some remote target may see.
    pub fn commit(mut self, label: &str) {
        label.clone_into(&mut self.scope.label);
        self.log();
        self.counters.add(&self.scope, &self.adds);
        self.metrics.write(&self.numbers);
    }

    /// Writes the log lines and nothing else: for a call that failed, whose author needs them.
    pub fn log_only(self) {
        self.log();
    }

    fn log(&self) {
        let policy = &*self.policy;
        for (level, line) in &self.lines {
            match *level {
                tracing::Level::ERROR => tracing::error!(target: "postern::policy", policy, "{line}"),
                tracing::Level::WARN => tracing::warn!(target: "postern::policy", policy, "{line}"),
                tracing::Level::INFO => tracing::info!(target: "postern::policy", policy, "{line}"),
                _ => tracing::debug!(target: "postern::policy", policy, "{line}"),
            }
        }
    }
}
