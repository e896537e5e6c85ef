//! One policy as it is loaded: which version of which file, what was configured, how it does.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use postern_plugins::{Counters, PluginError, Policy, PolicyFailure, PolicyMetrics, Reply};
use serde::Serialize;

use super::health::{Health, Step};
use super::times::Times;
use crate::config::{self, OnFailure};
use crate::telemetry::metrics::Metrics;

/// The kind of a failure that must not be told.
pub(super) const WITHHELD: &str = "withheld";

/// Which version of a policy it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Version {
    /// As its manifest says; empty without one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// What its manifest calls it; empty without one.
    #[serde(skip)]
    pub manifest: String,
    /// The first 16 digits of the SHA-256 of its file.
    pub digest: String,
    /// The key that signed it; `None`: it came with Postern, or is unsigned.
    #[serde(skip)]
    pub signer: Option<String>,
}

/// A policy that can be asked.
#[derive(Debug)]
pub struct Loaded {
    /// What is asked.
    pub policy: Policy,
    /// Which it is.
    pub version: Version,
    /// How it is configured.
    pub settings: config::Policy,
    /// How it does.
    pub health: Health,
    /// How long its calls take.
    pub times: Times,
    /// What it counts; the same for all versions.
    pub counters: Arc<Counters>,
    /// Its numbers for operators; the same for all versions that have the same names.
    pub numbers: Arc<PolicyMetrics>,
    metrics: Arc<Metrics>,
}

/// What one policy said at one step; goes into the record.
#[derive(Debug, Clone, Serialize)]
pub struct Said {
    /// Its name.
    pub policy: String,
    /// Which it was.
    #[serde(flatten)]
    pub version: Version,
    /// `routing`, `redaction` or `caching`.
    pub step: &'static str,
    /// A placement, `deny`, `pass`, `quarantined`, or `failed:` and the kind of failure.
    pub said: String,
    /// Why it denied, in its own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its notes.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub annotations: serde_json::Map<String, serde_json::Value>,
}

impl Loaded {
    /// A policy that was compiled just now.
    #[must_use]
    pub fn new(
        policy: Policy,
        version: Version,
        settings: config::Policy,
        kept: (Arc<Counters>, Arc<PolicyMetrics>),
        metrics: Arc<Metrics>,
    ) -> Self {
        let health = Health::new(settings.quarantine_after);
        let (counters, numbers) = kept;
        Self { policy, version, settings, health, times: Times::default(), counters, numbers, metrics }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Is it asked at `step`, and does its answer count?
    #[must_use]
    pub fn counts_at(&self, step: Step) -> bool {
        !self.settings.shadow && self.takes_part_at(step)
    }

    /// Does it export that step?
    #[must_use]
    pub fn takes_part_at(&self, step: Step) -> bool {
        let steps = self.policy.steps();
        match step {
            Step::Redaction => steps.redaction,
            Step::Routing => steps.routing,
            Step::Caching => steps.caching,
        }
    }

    /// Waits for a call and takes its time; a failure is counted for operators.
    pub async fn timed<T>(&self, step: Step, call: Pin<&mut impl Future<Output = Reply<T>>>) -> Reply<T> {
        let started = Instant::now();
        let reply = call.await;
        let took = started.elapsed();
        self.times.note(took);
        self.metrics.policy_call(self.name(), step.name(), took);
        reply
    }

    /// Something to say of it at `step`.
    #[must_use]
    pub fn said(&self, step: Step, said: impl Into<String>) -> Said {
        Said {
            policy: self.name().to_owned(),
            version: self.version.clone(),
            step: step.name(),
            said: said.into(),
            reason: None,
            annotations: serde_json::Map::new(),
        }
    }

    /// Notes how a call of a request ended that may leave this machine. If the request may not (`counts`), nothing is told but that
    /// the call failed: a policy chooses how it fails, so the kind could spell what it has read, as its words could.
    pub fn note(&self, step: Step, failure: Option<&PolicyFailure>, counts: bool) {
        let quarantined = counts && self.health.note(step, failure.map(|failure| failure.kind));
        if let Some(failure) = failure {
            let kind = if counts { failure.kind.name() } else { WITHHELD };
            self.metrics.policy_failed(self.name(), kind);
            self.log(step, kind, if counts { &failure.detail } else { "not shown, since the request must stay here" });
        }
        if quarantined {
            let (policy, failures) = (self.name(), self.settings.quarantine_after);
            tracing::error!(
                policy,
                step = step.name(),
                failures,
                consequence = self.consequence(),
                "a policy failed so often in a row that it is not called any more; mend it, or release it with POST /api/policies/{policy}/release"
            );
        }
    }

    fn log(&self, step: Step, kind: &str, detail: &str) {
        if !self.health.is_log_due() {
            return;
        }
        let (policy, step) = (self.name(), step.name());
        let consequence = self.consequence();
        tracing::warn!(
            policy,
            step,
            kind,
            detail,
            consequence,
            "a policy failed; mend or remove it (logged once a minute)"
        );
    }

    fn consequence(&self) -> &'static str {
        match (self.settings.shadow, self.settings.on_failure) {
            (true, _) => "none, since it is a shadow",
            (false, OnFailure::Local) => "counts as the strictest vote",
            (false, OnFailure::Reject) => "the request is refused",
        }
    }
}

/// Why a policy cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no file.
    #[error("there is no component at {}{}", path.display(), if *builtin { " (POSTERN_PLUGINS says where those are that come with Postern; `make plugins` builds them)" } else { "" })]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// It should have come with Postern.
        builtin: bool,
    },
    /// The file cannot be read.
    #[error("{} cannot be read: {}", .0.display(), .1)]
    Read(PathBuf, std::io::Error),
    /// Another than the operator expects. The place in the configuration follows.
    #[error("`expect` asks for {0}, and the file is {1}")]
    Unexpected(String, String),
    /// It cannot be used.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}
