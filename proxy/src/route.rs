//! Asks the policy plugins, and merges what they say.
//!
//! | what plugins say | merged |
//! | --- | --- |
//! | placement | the strictest (`cloud` < `edge-first` < `local`) |
//! | targets | the intersection |
//! | model | the first that is named |
//! | label | the join |
//! | deny | one is enough |
//! | cache mode | `bypass` if one says so; the shortest TTL; all key parts |
//! | spans | all of them |
//! | failure | `on_failure: local`: the strictest vote; `reject`: the request is refused |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use postern_plugins::{
    CacheMode, CallContext, Counters, FleetFacts, Grants, Policy, PolicyFailure, PolicyHost, PolicyMetrics, PolicySpec,
    RequestFacts, Span, TextSegment, Verdict,
};
use serde::Serialize;

use crate::classify::label::Label;
use crate::config::{self, Config, OnFailure, Placement};
use crate::error::Error;
use crate::telemetry::metrics::Metrics;

/// A failing policy is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The configured plugins, in their order.
#[derive(Debug)]
pub struct Policies {
    all: Vec<Loaded>,
    metrics: Arc<Metrics>,
    started: Instant,
}

#[derive(Debug)]
struct Loaded {
    policy: Policy,
    on_failure: OnFailure,
    /// Seconds since start, plus one, of the last log line about a failure; 0: none yet.
    logged_at: AtomicU64,
    /// A bit for each of [`STEPS`]: its last call failed.
    failing: AtomicU8,
}

/// What a plugin can be asked.
const STEPS: [&str; 3] = ["redaction", "routing", "caching"];

/// What one plugin said at one step; goes into the record.
#[derive(Debug, Clone, Serialize)]
pub struct Said {
    /// Its name.
    pub policy: String,
    /// `routing`, `redaction` or `caching`.
    pub step: &'static str,
    /// A placement, `deny`, `pass`, or `failed:` and the kind of failure.
    pub said: String,
}

/// Merged votes on where a request may go.
#[derive(Debug, Default)]
pub struct Votes {
    /// The strictest placement that was voted for.
    pub placement: Option<Placement>,
    /// Targets that every plugin which named any has named.
    pub targets: Option<BTreeSet<String>>,
    /// The first model that was named.
    pub model: Option<String>,
    /// The join of labels, and who raised.
    pub raised: Option<(Label, String)>,
    /// Who denied.
    pub denied: Option<String>,
    /// A plugin failed, which counts as the strictest vote.
    pub strictest: bool,
    /// What each said.
    pub said: Vec<Said>,
}

/// Merged finds.
#[derive(Debug)]
pub struct Found {
    /// From all plugins, in no order.
    pub spans: Vec<Span>,
    /// False if one failed, so that something may have been missed.
    pub complete: bool,
    /// What each said.
    pub said: Vec<Said>,
}

/// Merged cache plan.
#[derive(Debug, Default)]
pub struct CacheChoice {
    /// Use the cache at all?
    pub exact: bool,
    /// Shorter life than the configured one.
    pub ttl: Option<Duration>,
    /// To be added to the key.
    pub key_parts: Vec<String>,
    /// What each said.
    pub said: Vec<Said>,
}

impl Policies {
    /// Loads and compiles all components; takes a while, so never on a worker thread of the runtime.
    ///
    /// # Errors
    /// A component cannot be read, compiled or linked.
    pub fn load(host: &PolicyHost, configured: &[config::Policy], metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let load = |policy: &config::Policy| {
            use anyhow::Context as _;
            let name = || format!("policy `{}` ({})", policy.name, policy.component.display());
            let spec = PolicySpec {
                name: policy.name.clone(),
                component: std::fs::read(&policy.component).with_context(name)?,
                config: policy.config.clone(),
                deadline: policy.deadline,
                memory_bytes: policy.memory,
                grants: Grants::default(),
                counters: Arc::new(Counters::new()),
                metrics: Arc::new(PolicyMetrics::new([])),
            };
            let loaded = host.load(spec).with_context(name)?;
            Ok(Loaded {
                policy: loaded,
                on_failure: policy.on_failure,
                logged_at: AtomicU64::new(0),
                failing: AtomicU8::new(0),
            })
        };
        let all = configured.iter().map(load).collect::<anyhow::Result<_>>()?;
        Ok(Self { all, metrics, started: Instant::now() })
    }

    /// Calls every policy once with an empty request, and says which failed: what fails now will fail for every prompt, and the
    /// operator should not learn it from the first user. Also makes the first real call as quick as the others.
    pub async fn probe(&self) -> Vec<(&str, PolicyFailure)> {
        let (request, fleet) =
            (RequestFacts { model: "probe".to_owned(), ..RequestFacts::default() }, FleetFacts::default());
        let context = CallContext { tenant: "", label: "", seed: 0, time_ms: None };
        let mut failed = Vec::new();
        for loaded in &self.all {
            let steps = loaded.policy.steps();
            let mut failures = Vec::new();
            let mut note = |step, failure: Option<PolicyFailure>| {
                loaded.note(step, failure.is_none());
                failures.extend(failure);
            };
            if steps.redaction {
                note("redaction", loaded.policy.try_find().await.err());
            }
            if steps.routing {
                note("routing", loaded.policy.route(&context, &request, &fleet).await.answer.err());
            }
            if steps.caching {
                note("caching", loaded.policy.plan(&context, &request).await.answer.err());
            }
            failed.extend(failures.into_iter().map(|failure| (loaded.policy.name(), failure)));
        }
        failed
    }

    /// Their names, in the order in which they are asked.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.all.iter().map(|loaded| loaded.policy.name()).collect()
    }

    /// Those whose last call failed, and at which steps. A call that goes well takes a policy off the list.
    #[must_use]
    pub fn failing(&self) -> Vec<(&str, Vec<&'static str>)> {
        let all = self.all.iter().map(|loaded| (loaded.policy.name(), loaded.failing()));
        all.filter(|(_, steps)| !steps.is_empty()).collect()
    }

    /// Is there a redaction policy?
    #[must_use]
    pub fn redact(&self) -> bool {
        self.all.iter().any(|loaded| loaded.policy.steps().redaction)
    }

    /// Asks every redaction policy what it finds.
    ///
    /// # Errors
    /// One failed whose configuration says `reject`.
    pub async fn find(&self, context: &CallContext<'_>, segments: &[TextSegment]) -> Result<Found, Error> {
        let mut found = Found { spans: Vec::new(), complete: true, said: Vec::new() };
        for loaded in self.all.iter().filter(|loaded| loaded.policy.steps().redaction) {
            let started = Instant::now();
            let result = loaded.policy.find(context, segments).await.answer;
            self.metrics.policy_call(loaded.policy.name(), "redaction", started.elapsed());
            loaded.note("redaction", result.is_ok());
            match result {
                Ok(spans) => {
                    found.said.push(loaded.said("redaction", format!("{} spans", spans.len())));
                    found.spans.extend(spans);
                }
                Err(failure) => {
                    self.failed(loaded, &failure)?;
                    found.said.push(loaded.said("redaction", format!("failed:{}", failure.kind.name())));
                    found.complete = false;
                }
            }
        }
        Ok(found)
    }

    /// Asks every routing policy where a request may go.
    ///
    /// # Errors
    /// One failed whose configuration says `reject`.
    pub async fn route(
        &self,
        config: &Config,
        context: &CallContext<'_>,
        request: &RequestFacts,
        fleet: &FleetFacts,
    ) -> Result<Votes, Error> {
        let mut votes = Votes::default();
        for loaded in self.all.iter().filter(|loaded| loaded.policy.steps().routing) {
            let started = Instant::now();
            let result = loaded.policy.route(context, request, fleet).await.answer;
            self.metrics.policy_call(loaded.policy.name(), "routing", started.elapsed());
            let result = result.and_then(|verdict| Vote::read(verdict, config, fleet));
            loaded.note("routing", result.is_ok());
            match result {
                Ok(vote) => votes.add(loaded, vote),
                Err(failure) => {
                    self.failed(loaded, &failure)?;
                    votes.said.push(loaded.said("routing", format!("failed:{}", failure.kind.name())));
                    votes.strictest = true;
                }
            }
        }
        Ok(votes)
    }

    /// Asks every caching policy whether an answer may be kept. A failure means: do not use the cache.
    pub async fn cache(&self, context: &CallContext<'_>, request: &RequestFacts) -> CacheChoice {
        let mut choice = CacheChoice { exact: true, ..CacheChoice::default() };
        for loaded in self.all.iter().filter(|loaded| loaded.policy.steps().caching) {
            let started = Instant::now();
            let result = loaded.policy.plan(context, request).await.answer;
            self.metrics.policy_call(loaded.policy.name(), "caching", started.elapsed());
            loaded.note("caching", result.is_ok());
            match result {
                Ok(plan) => {
                    let exact = matches!(plan.mode, CacheMode::Exact | CacheMode::Semantic);
                    choice.said.push(loaded.said("caching", if exact { "exact" } else { "bypass" }.to_owned()));
                    choice.exact &= exact;
                    let ttl = plan.ttl_seconds.map(|seconds| Duration::from_secs(u64::from(seconds)));
                    choice.ttl = match (choice.ttl, ttl) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        (a, b) => a.or(b),
                    };
                    choice.key_parts.extend(plan.key_parts);
                }
                Err(failure) => {
                    // Not caching is always safe, so even `reject` does not refuse the request here.
                    let _bypassed = self.failed(loaded, &failure);
                    choice.said.push(loaded.said("caching", format!("failed:{}", failure.kind.name())));
                    choice.exact = false;
                }
            }
        }
        choice
    }

    fn failed(&self, loaded: &Loaded, failure: &PolicyFailure) -> Result<(), Error> {
        let policy = loaded.policy.name();
        self.metrics.policy_failed(policy, failure.kind.name());
        let now = self.started.elapsed().as_secs() + 1;
        let last = loaded.logged_at.load(Ordering::Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= LOG_EVERY.as_secs();
        if due && loaded.logged_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let kind = failure.kind.name();
            let consequence = match loaded.on_failure {
                OnFailure::Local => "counts as the strictest vote",
                OnFailure::Reject => "the request is refused",
            };
            tracing::warn!(policy, kind, detail = %failure.detail, consequence, "a policy failed; mend or remove it (logged once a minute)");
        }
        match loaded.on_failure {
            OnFailure::Local => Ok(()),
            OnFailure::Reject => Err(Error::PolicyFailed { policy: policy.to_owned() }),
        }
    }
}

impl Loaded {
    fn note(&self, step: &str, went_well: bool) {
        let bit = STEPS.iter().position(|known| *known == step).map_or(0, |at| 1_u8 << at);
        if went_well {
            self.failing.fetch_and(!bit, Ordering::Relaxed);
        } else {
            self.failing.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn failing(&self) -> Vec<&'static str> {
        let bits = self.failing.load(Ordering::Relaxed);
        STEPS.into_iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0).map(|(_, step)| step).collect()
    }

    fn said(&self, step: &'static str, said: String) -> Said {
        Said { policy: self.policy.name().to_owned(), step, said }
    }
}

/// One verdict, checked against what exists.
struct Vote {
    placement: Option<Placement>,
    targets: Option<BTreeSet<String>>,
    model: Option<String>,
    raised: Option<Label>,
    denied: bool,
}

impl Vote {
    fn read(verdict: Verdict, config: &Config, fleet: &FleetFacts) -> Result<Self, PolicyFailure> {
        let wrong = |what: &str| PolicyFailure::output(what);
        let raised = match verdict.label {
            Some(name) => {
                Some(config.labels.by_name(&name).ok_or_else(|| wrong("raised to a label that does not exist"))?)
            }
            None => None,
        };
        let known = |name: &String| fleet.targets.iter().any(|target| target.name == *name);
        if !verdict.targets.iter().all(known) {
            return Err(wrong("named a target that does not exist"));
        }
        let targets = (!verdict.targets.is_empty()).then(|| verdict.targets.into_iter().collect());
        let placement = verdict.placement.map(|placement| match placement {
            postern_plugins::Placement::Cloud => Placement::Cloud,
            postern_plugins::Placement::EdgeFirst => Placement::EdgeFirst,
            postern_plugins::Placement::Local => Placement::Local,
        });
        if verdict.model.as_ref().is_some_and(|model| !config.knows_model(model)) {
            return Err(wrong("named a model that does not exist"));
        }
        Ok(Self { placement, targets, model: verdict.model, raised, denied: verdict.deny.is_some() })
    }
}

impl Votes {
    fn add(&mut self, loaded: &Loaded, vote: Vote) {
        let said = match (vote.denied, vote.placement) {
            (true, _) => "deny",
            (false, Some(placement)) => placement.as_str(),
            (false, None) => "pass",
        };
        self.said.push(loaded.said("routing", said.to_owned()));
        self.placement = self.placement.max(vote.placement);
        self.targets = match (self.targets.take(), vote.targets) {
            (Some(ours), Some(theirs)) => Some(ours.intersection(&theirs).cloned().collect()),
            (ours, theirs) => ours.or(theirs),
        };
        self.model = self.model.take().or(vote.model);
        if let Some(label) = vote.raised {
            let before = self.raised.take();
            let by = loaded.policy.name().to_owned();
            self.raised = Some(match before {
                Some((other, name)) if other >= label => (other, name),
                _ => (label, by),
            });
        }
        if vote.denied && self.denied.is_none() {
            self.denied = Some(loaded.policy.name().to_owned());
        }
    }
}
