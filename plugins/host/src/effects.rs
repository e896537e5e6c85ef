//! What a call writes: log lines, counters, numbers for operators. Nothing of it takes effect before the label of the request
//! is final, and nothing at all where no remote target may see that label. So a plugin cannot carry what it learnt from a
//! request that must stay here over to another one.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

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

/// What a call wrote, to be read by its author.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Written {
    /// Log lines: level and text.
    pub log: Vec<(String, String)>,
    /// Additions to counters: key, number, life in seconds.
    pub counters: Vec<(String, i64, u64)>,
    /// Events that were counted: name and number.
    pub counts: Vec<(String, u32)>,
    /// Values that were set: name and value.
    pub values: Vec<(String, f64)>,
}

impl Effects {
    /// What they are, whether they are committed or not. Not for an operator's eyes: the call may have been about anything.
    #[must_use]
    pub fn written(&self) -> Written {
        let mut written = Written {
            log: self.lines.iter().map(|(level, line)| (level.as_str().to_lowercase(), line.clone())).collect(),
            counters: self.adds.iter().map(|add| (add.key.clone(), add.by, add.ttl.as_secs())).collect(),
            ..Written::default()
        };
        for (name, number) in &self.numbers {
            match *number {
                Number::Count(by) => written.counts.push((name.clone(), by)),
                Number::Value(value) => written.values.push((name.clone(), value)),
            }
        }
        written
    }

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
