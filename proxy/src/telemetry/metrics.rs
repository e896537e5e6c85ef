//! Prometheus metrics. Every label has a bounded set of values: names from the configuration and fixed words.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use postern_certs::spiffe::SpiffeId;
use postern_plugins::detectors::Kind;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;

use crate::screen;
use crate::upstream::breaker::State;

type Words<const N: usize> = [(&'static str, String); N];
type Histograms = Family<Words<1>, Histogram, fn() -> Histogram>;
type Histograms2 = Family<Words<2>, Histogram, fn() -> Histogram>;

/// Identities whose use of the cache is told apart.
const IDENTITIES: usize = 256;
/// Weight of the newest request in the moving average that `inference_latency` shows.
const EWMA_WEIGHT: f64 = 0.2;

/// What is shown of one policy. The names of its own numbers are in its manifest, a few for each.
#[derive(Debug)]
pub struct PolicyNumbers<'a> {
    /// Its name.
    pub name: &'a str,
    /// It is not called because it failed too often.
    pub quarantined: bool,
    /// Its own numbers.
    pub numbers: BTreeMap<String, postern_plugins::Value>,
}

/// All metrics of one gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// One reader at a time, since some numbers are set when they are read.
    reading: Mutex<()>,
    inference_latency_ms: Gauge<f64, AtomicU64>,
    queue_depth: Gauge<i64, AtomicI64>,
    requests: Family<Words<3>, Counter>,
    ttft: Histograms,
    duration: Histograms,
    policy_duration: Histograms2,
    policy_failures: Family<Words<2>, Counter>,
    policy_shadow: Family<Words<2>, Counter>,
    policy_quarantined: Family<Words<1>, Gauge>,
    policy_events: Family<Words<2>, Counter>,
    policy_value: Family<Words<2>, Gauge<f64, AtomicU64>>,
    reload_successful: Gauge,
    reloaded_at: Gauge,
    redactions: Family<Words<1>, Counter>,
    answers_masked: Family<Words<1>, Counter>,
    answers_stopped: Family<Words<1>, Counter>,
    cache: Family<Words<1>, Counter>,
    cache_by_identity: Family<Words<2>, Counter>,
    cache_identities: Identities,
    redis: Family<Words<1>, Gauge>,
    egress_refused: Family<Words<2>, Counter>,
    payloads: Family<Words<2>, Counter>,
    costs: Family<Words<1>, Counter<f64, AtomicU64>>,
    fallbacks: Family<Words<3>, Counter>,
    races: Family<Words<2>, Counter>,
    retries: Family<Words<1>, Counter>,
    breakers: Family<Words<1>, Gauge>,
    certificate_expiry: Family<Words<1>, Gauge>,
    certificate_rotations: Family<Words<1>, Counter>,
    trust_changes: Counter,
    certificates_signed: Family<Words<2>, Counter>,
    records: Counter,
    unrecorded: Counter,
    records_writable: Gauge,
    records_changed: Family<Words<1>, Counter>,
    witnessed: Family<Words<1>, Gauge>,
    witnessed_at: Family<Words<1>, Gauge>,
    witness_failures: Family<Words<2>, Counter>,
    witness_contradicts: Family<Words<1>, Gauge>,
    copied: Gauge,
    copied_at: Gauge,
    copied_contradicts: Gauge,
    copy_failures: Family<Words<1>, Counter>,
    copies: Family<Words<1>, Gauge>,
    copies_at: Family<Words<1>, Gauge>,
    copies_refused: Family<Words<2>, Counter>,
    copies_contradict: Family<Words<1>, Gauge>,
    handshakes_failed: Family<Words<1>, Counter>,
    engine_connected: Gauge,
    offline: Gauge,
    encoder_connected: Gauge,
    unknown_vectors: Counter,
    prediction_error: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds: fn() -> Histogram = || {
            Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0])
        };
        let short: fn() -> Histogram = || {
            Histogram::new([0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1])
        };
        let mut metrics = Self {
            registry: Registry::default(),
            reading: Mutex::new(()),
            inference_latency_ms: Gauge::default(),
            queue_depth: Gauge::default(),
            requests: Family::default(),
            ttft: Family::new_with_constructor(seconds),
            duration: Family::new_with_constructor(seconds),
            policy_duration: Family::new_with_constructor(short),
            policy_failures: Family::default(),
            policy_shadow: Family::default(),
            policy_quarantined: Family::default(),
            policy_events: Family::default(),
            policy_value: Family::default(),
            reload_successful: Gauge::default(),
            reloaded_at: Gauge::default(),
            redactions: Family::default(),
            answers_masked: Family::default(),
            answers_stopped: Family::default(),
            cache: Family::default(),
            cache_by_identity: Family::default(),
            redis: Family::default(),
            cache_identities: Identities::default(),
            egress_refused: Family::default(),
            payloads: Family::default(),
            costs: Family::default(),
            fallbacks: Family::default(),
            races: Family::default(),
            retries: Family::default(),
            breakers: Family::default(),
            certificate_expiry: Family::default(),
            certificate_rotations: Family::default(),
            trust_changes: Counter::default(),
            certificates_signed: Family::default(),
            records: Counter::default(),
            unrecorded: Counter::default(),
            records_writable: Gauge::default(),
            records_changed: Family::default(),
            witnessed: Family::default(),
            witnessed_at: Family::default(),
            witness_failures: Family::default(),
            witness_contradicts: Family::default(),
            copied: Gauge::default(),
            copied_at: Gauge::default(),
            copied_contradicts: Gauge::default(),
            copy_failures: Family::default(),
            copies: Family::default(),
            copies_at: Family::default(),
            copies_refused: Family::default(),
            copies_contradict: Family::default(),
            handshakes_failed: Family::default(),
            engine_connected: Gauge::default(),
            offline: Gauge::default(),
            encoder_connected: Gauge::default(),
            unknown_vectors: Counter::default(),
            prediction_error: Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0]),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register(
            "inference_latency",
            "Moving average of the time to a whole answer, in ms",
            self.inference_latency_ms.clone(),
        );
        r.register("queue_depth", "Requests that are being served", self.queue_depth.clone());
        r.register("postern_requests", "Requests by placement, target and outcome", self.requests.clone());
        r.register("postern_time_to_first_token_seconds", "Time to the first token, by target", self.ttft.clone());
        r.register("postern_request_duration_seconds", "Time to the last byte, by target", self.duration.clone());
        r.register("postern_policy_duration_seconds", "Time of one call of a policy", self.policy_duration.clone());
        r.register("postern_policy_failures", "Failed calls of policies", self.policy_failures.clone());
        r.register(
            "postern_policy_shadow",
            "Requests that shadows were asked about, by result",
            self.policy_shadow.clone(),
        );
        r.register(
            "postern_policy_quarantined",
            "1 while a policy is not called because it failed too often",
            self.policy_quarantined.clone(),
        );
        r.register("postern_policy_events", "What policies count, by their own names", self.policy_events.clone());
        r.register("postern_policy_value", "What policies measure, by their own names", self.policy_value.clone());
        r.register(
            "postern_config_last_reload_successful",
            "1 if the last reload of the policies was",
            self.reload_successful.clone(),
        );
        r.register(
            "postern_config_last_reload_success_timestamp_seconds",
            "When the policies were last reloaded",
            self.reloaded_at.clone(),
        );
        r.register("postern_redactions", "Values that were masked, by kind", self.redactions.clone());
        r.register(
            "postern_answers_masked",
            "What models made and was masked in their answers, by kind",
            self.answers_masked.clone(),
        );
        r.register(
            "postern_answers_stopped",
            "Answers that ended at what a model made, by its kind",
            self.answers_stopped.clone(),
        );
        r.register("postern_cache_requests", "Uses of the cache, by result", self.cache.clone());
        r.register(
            "postern_cache_identity_requests",
            "Uses of the cache, by identity (the first so many; then `other`) and result",
            self.cache_by_identity.clone(),
        );
        r.register("postern_redis_connected", "1 while the Redis is there, by what it is for", self.redis.clone());
        r.register(
            "postern_egress_refused",
            "Sends that were refused, by label and reason",
            self.egress_refused.clone(),
        );
        r.register("postern_payloads", "Sealed requests, by form and result: opened, or the code of the refusal; of the form none, those that had to be sealed", self.payloads.clone());
        r.register("postern_cost", "What answers cost, in the currency of the prices", self.costs.clone());
        r.register("postern_fallbacks", "Attempts that failed and went on elsewhere", self.fallbacks.clone());
        r.register("postern_races", "Clouds that were asked beside a slow edge, by result", self.races.clone());
        r.register(
            "postern_retries",
            "Attempts at a target that had failed for the same request",
            self.retries.clone(),
        );
        r.register(
            "postern_target_breaker",
            "Whether a target is asked: 0 closed, 1 half-open (one request is tried), 2 open (not)",
            self.breakers.clone(),
        );
        r.register(
            "postern_certificate_expiry_seconds",
            "Seconds to the end of a certificate",
            self.certificate_expiry.clone(),
        );
        r.register(
            "postern_certificate_rotations",
            "Renewals of the leaf, by result",
            self.certificate_rotations.clone(),
        );
        r.register(
            "postern_certificates_signed",
            "Certificates of workstations, by occasion and result",
            self.certificates_signed.clone(),
        );
        r.register("postern_trust_changes", "Changes of roots and revocation lists", self.trust_changes.clone());
        r.register("postern_audit_records", "Records written", self.records.clone());
        r.register("postern_audit_unrecorded", "Answers of which there is no record", self.unrecorded.clone());
        r.register(
            "postern_handshakes_failed",
            "Clients that could not connect, by reason",
            self.handshakes_failed.clone(),
        );
        r.register("postern_audit_changed", "Changes of the records by somebody else", self.records_changed.clone());
        r.register(
            "postern_audit_witnessed_records",
            "Records of the newest checkpoint that a witness has signed, by witness",
            self.witnessed.clone(),
        );
        r.register(
            "postern_audit_witnessed_timestamp_seconds",
            "When a witness last signed a checkpoint, by witness",
            self.witnessed_at.clone(),
        );
        r.register(
            "postern_audit_witness_failures",
            "Checkpoints that a witness did not sign, by witness and reason",
            self.witness_failures.clone(),
        );
        r.register(
            "postern_audit_witness_contradicts",
            "1 while what a witness has seen is not the beginning of the records, by witness",
            self.witness_contradicts.clone(),
        );
        self.register_copies();
        let r = &mut self.registry;
        r.register("postern_audit_writable", "1 while records can be written", self.records_writable.clone());
        r.register(
            "postern_offline",
            "1 while the gateway is offline: the kernel lets its process reach nothing",
            self.offline.clone(),
        );
        r.register("postern_engine_connected", "1 while the engine is connected", self.engine_connected.clone());
        r.register(
            "postern_cache_encoder_connected",
            "1 while the process that makes vectors of questions is connected",
            self.encoder_connected.clone(),
        );
        r.register(
            "postern_cache_vectors_missed",
            "Questions for which there was no vector in time, so that they were not compared with others",
            self.unknown_vectors.clone(),
        );
        r.register(
            "postern_engine_prediction_error_seconds",
            "By how much the time to the engine's first token was predicted wrongly, either way",
            self.prediction_error.clone(),
        );
    }

    fn register_copies(&mut self) {
        let r = &mut self.registry;
        r.register("postern_audit_copied_records", "Records that the other gateway has a copy of", self.copied.clone());
        r.register(
            "postern_audit_copied_timestamp_seconds",
            "When the other gateway last had all records, or more of them",
            self.copied_at.clone(),
        );
        r.register(
            "postern_audit_copied_contradicts",
            "1 while the copy at the other gateway is not the beginning of the records",
            self.copied_contradicts.clone(),
        );
        r.register("postern_audit_copy_failures", "Steps of a copy that failed, by reason", self.copy_failures.clone());
        r.register("postern_audit_copies_records", "Records of copies that are kept here, by log", self.copies.clone());
        r.register(
            "postern_audit_copies_timestamp_seconds",
            "When a copy that is kept here was last asked about or sent, by log",
            self.copies_at.clone(),
        );
        r.register(
            "postern_audit_copies_refused",
            "Steps that were refused, by log and code",
            self.copies_refused.clone(),
        );
        r.register(
            "postern_audit_copies_contradict",
            "1 if a log of which a copy is kept here has signed another history, by log",
            self.copies_contradict.clone(),
        );
    }

    /// The text that Prometheus reads (OpenMetrics 1.0). `policies` are those in force: what is shown of them is how they are now, and
    /// those that are gone are gone here as well.
    #[must_use]
    pub fn text<'a>(&self, policies: impl IntoIterator<Item = PolicyNumbers<'a>>) -> String {
        let _alone = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.policies_are(policies);
        let mut out = String::new();
        if encode(&mut out, &self.registry).is_err() {
            out.clear();
            let _infallible = out.write_str("# EOF\n");
        }
        out
    }

    /// Counts a request in, and out again when the guard is dropped.
    #[must_use]
    pub fn request_begins(&self) -> InFlight {
        self.queue_depth.inc();
        InFlight { queue_depth: self.queue_depth.clone() }
    }

    /// A request has ended.
    pub fn request_ends(&self, placement: &str, target: &str, outcome: &str, started: Instant) {
        let words =
            [("placement", placement.to_owned()), ("target", target.to_owned()), ("outcome", outcome.to_owned())];
        self.requests.get_or_create(&words).inc();
        if outcome == "answered" {
            let took = started.elapsed();
            self.duration.get_or_create(&[("target", target.to_owned())]).observe(took.as_secs_f64());
            let (ms, before) = (took.as_secs_f64() * 1000.0, self.inference_latency_ms.get());
            let average = if before == 0.0 { ms } else { before + EWMA_WEIGHT * (ms - before) };
            self.inference_latency_ms.set(average);
        }
    }

    /// The first token has come.
    pub fn first_token(&self, target: &str, after: Duration) {
        self.ttft.get_or_create(&[("target", target.to_owned())]).observe(after.as_secs_f64());
    }

    /// A policy was called.
    pub fn policy_call(&self, policy: &str, step: &'static str, took: Duration) {
        let words = [("policy", policy.to_owned()), ("step", step.to_owned())];
        self.policy_duration.get_or_create(&words).observe(took.as_secs_f64());
    }

    /// A policy failed.
    pub fn policy_failed(&self, policy: &str, kind: &'static str) {
        self.policy_failures.get_or_create(&[("policy", policy.to_owned()), ("kind", kind.to_owned())]).inc();
    }

    /// A shadow was asked, or passed over: `same`, `different`, `failed`, `skipped` or `quarantined`.
    pub fn shadowed(&self, policy: &str, result: &'static str) {
        self.policy_shadow.get_or_create(&[("policy", policy.to_owned()), ("result", result.to_owned())]).inc();
    }

    /// The policies were reloaded, or could not be.
    pub fn reloaded(&self, successful: bool) {
        self.reload_successful.set(i64::from(successful));
        if successful {
            self.reloaded_at.set(OffsetDateTime::now_utc().unix_timestamp());
        }
    }

    fn policies_are<'a>(&self, policies: impl IntoIterator<Item = PolicyNumbers<'a>>) {
        self.policy_quarantined.clear();
        self.policy_events.clear();
        self.policy_value.clear();
        for PolicyNumbers { name, quarantined, numbers } in policies {
            let policy = || ("policy", name.to_owned());
            self.policy_quarantined.get_or_create(&[policy()]).set(i64::from(quarantined));
            for (name, number) in numbers {
                let words = [policy(), ("name", name)];
                if let Some(value) = number.value {
                    self.policy_value.get_or_create(&words).set(value);
                }
                if number.count > 0 {
                    self.policy_events.get_or_create(&words).inc_by(number.count);
                }
            }
        }
    }

    /// Values were masked. Kinds beyond the built-in ones are counted as `other`, so that a plugin cannot make labels.
    pub fn redacted(&self, kind: &str, count: u64) {
        let known = Kind::from_name(kind).is_some() || kind == "dictionary";
        let kind = if known { kind } else { "other" };
        self.redactions.get_or_create(&[("kind", kind.to_owned())]).inc_by(count);
    }

    /// What a model made was masked in its answer. Kinds of the office's own words are counted as `other`.
    pub fn answer_masked(&self, kind: &str, count: u64) {
        self.answers_masked.get_or_create(&[("kind", kind_in_answers(kind))]).inc_by(count);
    }

    /// An answer ended at what a model made.
    pub fn answer_stopped(&self, kind: &str) {
        self.answers_stopped.get_or_create(&[("kind", kind_in_answers(kind))]).inc();
    }

    /// The cache was used by `identity`, as its header says: `exact`, `shared`, `miss` or `bypass`. A hit of any kind is a `hit` here.
    pub fn cache_used(&self, identity: &SpiffeId, how: &'static str) {
        let result = if how == "exact" { "hit" } else { how };
        self.cache.get_or_create(&[("result", result.to_owned())]).inc();
        let identity = self.cache_identities.name(identity);
        self.cache_by_identity.get_or_create(&[("identity", identity), ("result", result.to_owned())]).inc();
    }

    /// A Redis came or went; `used_for` is `cache` or `limits`.
    pub fn redis_is(&self, used_for: &'static str, connected: bool) {
        self.redis.get_or_create(&[("for", used_for.to_owned())]).set(i64::from(connected));
    }

    /// A sealed request was opened, or why not: an error's code.
    pub fn payload(&self, form: &'static str, result: &'static str) {
        self.payloads.get_or_create(&[("form", form.to_owned()), ("result", result.to_owned())]).inc();
    }

    /// A send was refused.
    pub fn egress_refused(&self, label: &str, reason: &'static str) {
        self.egress_refused.get_or_create(&[("label", label.to_owned()), ("reason", reason.to_owned())]).inc();
    }

    /// An answer of a target that has a price cost so many millionths.
    pub fn cost(&self, target: &str, millionths: u64) {
        self.costs.get_or_create(&[("target", target.to_owned())]).inc_by(millionths as f64 / 1e6);
    }

    /// An attempt failed and another target is asked.
    pub fn fell_back(&self, from: &str, to: &str, reason: &'static str) {
        let words = [("from", from.to_owned()), ("to", to.to_owned()), ("reason", reason.to_owned())];
        self.fallbacks.get_or_create(&words).inc();
    }

    /// How a target's breaker is now.
    pub fn breaker(&self, target: &str, state: State) {
        let number = match state {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        };
        self.breakers.get_or_create(&[("target", target.to_owned())]).set(number);
    }

    /// A cloud was asked beside the edge: `won`, `lost` or `failed`.
    pub fn raced(&self, target: &str, result: &'static str) {
        self.races.get_or_create(&[("target", target.to_owned()), ("result", result.to_owned())]).inc();
    }

    /// A target is asked again for the same request.
    pub fn retried(&self, target: &str) {
        self.retries.get_or_create(&[("target", target.to_owned())]).inc();
    }

    /// How long a certificate is still good.
    pub fn certificate_expires(&self, kind: &'static str, seconds: i64) {
        self.certificate_expiry.get_or_create(&[("kind", kind.to_owned())]).set(seconds);
    }

    /// The leaf was renewed, or was not.
    pub fn certificate_rotated(&self, result: &'static str) {
        self.certificate_rotations.get_or_create(&[("result", result.to_owned())]).inc();
    }

    /// Somebody enrolled or renewed, or could not.
    pub fn certificate_signed(&self, what: &'static str, result: &'static str) {
        self.certificates_signed.get_or_create(&[("for", what.to_owned()), ("result", result.to_owned())]).inc();
    }

    /// Roots or revocation lists changed.
    pub fn trust_changed(&self) {
        self.trust_changes.inc();
    }

    /// Requests were answered while nothing could be recorded.
    pub fn unrecorded(&self, count: u64) {
        self.unrecorded.inc_by(count);
    }

    /// A record was written.
    pub fn recorded(&self, count: u64) {
        self.records.inc_by(count);
    }

    /// Somebody else changed the records.
    pub fn records_changed(&self, what: &'static str) {
        self.records_changed.get_or_create(&[("what", what.to_owned())]).inc();
    }

    /// A witness has signed so many records, at this time if that is known.
    pub fn witnessed(&self, witness: &str, records: u64, at: Option<i64>) {
        let words = || [("witness", witness.to_owned())];
        self.witnessed.get_or_create(&words()).set(i64::try_from(records).unwrap_or(i64::MAX));
        if let Some(at) = at {
            self.witnessed_at.get_or_create(&words()).set(at);
        }
    }

    /// A witness did not sign.
    pub fn witness_failed(&self, witness: &str, reason: &'static str) {
        let words = [("witness", witness.to_owned()), ("reason", reason.to_owned())];
        self.witness_failures.get_or_create(&words).inc();
    }

    /// What a witness has seen is, or is not, the beginning of the records.
    pub fn witness_contradicts(&self, witness: &str, contradicts: bool) {
        self.witness_contradicts.get_or_create(&[("witness", witness.to_owned())]).set(i64::from(contradicts));
    }

    /// The other gateway has so many records of ours.
    pub fn copied(&self, records: u64, at: i64) {
        self.copied.set(i64::try_from(records).unwrap_or(i64::MAX));
        self.copied_at.set(at);
    }

    /// The copy at the other gateway is, or is not, the beginning of the records.
    pub fn copied_contradicts(&self, contradicts: bool) {
        self.copied_contradicts.set(i64::from(contradicts));
    }

    /// A step of a copy failed.
    pub fn copy_failed(&self, reason: &'static str) {
        self.copy_failures.get_or_create(&[("reason", reason.to_owned())]).inc();
    }

    /// Of a log so many records are kept here.
    pub fn copy_kept(&self, log: &str, records: u64, at: i64) {
        let words = || [("log", log.to_owned())];
        self.copies.get_or_create(&words()).set(i64::try_from(records).unwrap_or(i64::MAX));
        self.copies_at.get_or_create(&words()).set(at);
        let _shown = self.copies_contradict.get_or_create(&words());
    }

    /// What was sent of a log was refused.
    pub fn copy_refused(&self, log: &str, code: &'static str) {
        self.copies_refused.get_or_create(&[("log", log.to_owned()), ("code", code.to_owned())]).inc();
    }

    /// A log has signed another history than the one of which a copy is here. That stays true.
    pub fn copy_contradicts(&self, log: &str) {
        self.copies_contradict.get_or_create(&[("log", log.to_owned())]).set(1);
    }

    /// A client could not connect.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.handshakes_failed.get_or_create(&[("reason", reason.to_owned())]).inc();
    }

    /// Records can, or cannot, be written.
    pub fn records_writable(&self, writable: bool) {
        self.records_writable.set(i64::from(writable));
    }

    /// The engine's first token came `after` so long, when it was expected after `predicted`.
    pub fn engine_predicted(&self, predicted: Duration, after: Duration) {
        self.prediction_error.observe(predicted.abs_diff(after).as_secs_f64());
    }

    /// The process that makes vectors of questions came or went.
    pub fn encoder_connected(&self, connected: bool) {
        self.encoder_connected.set(i64::from(connected));
    }

    /// There was no vector of a question in time.
    pub fn vector_missed(&self) {
        self.unknown_vectors.inc();
    }

    /// The process was confined, or was not.
    pub fn offline(&self, offline: bool) {
        self.offline.set(i64::from(offline));
    }

    /// The engine came or went.
    pub fn engine_connected(&self, connected: bool) {
        self.engine_connected.set(i64::from(connected));
    }
}

/// Identities that have a name of their own in metrics: the first ones that come.
#[derive(Debug, Default)]
struct Identities(Mutex<HashSet<SpiffeId>>);

impl Identities {
    fn name(&self, identity: &SpiffeId) -> String {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < IDENTITIES && !known.contains(identity) {
            known.insert(identity.clone());
        }
        if known.contains(identity) { identity.as_str().to_owned() } else { "other".to_owned() }
    }
}

/// One request that is being served.
#[derive(Debug)]
pub struct InFlight {
    queue_depth: Gauge<i64, AtomicI64>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.queue_depth.dec();
    }
}

fn kind_in_answers(kind: &str) -> String {
    let known = Kind::from_name(kind).is_some() || [screen::MARKING, screen::PRIVATE_KEY].contains(&kind);
    if known { kind.to_owned() } else { "other".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_that_were_promised() {
        let metrics = Metrics::default();
        let in_flight = metrics.request_begins();
        metrics.request_ends("cloud", "sun", "answered", Instant::now());
        metrics.redacted("invented-by-a-plugin", 2);
        let number = |count, value| postern_plugins::Value { count, value };
        let numbers = [("hits".to_owned(), number(3, None)), ("level".to_owned(), number(0, Some(0.5)))].into();
        let policy = |name| PolicyNumbers { name, quarantined: true, numbers: BTreeMap::clone(&numbers) };
        for _ in 0..2 {
            let _read_twice = metrics.text([policy("fair")]);
        }
        let text = metrics.text([policy("fair")]);
        for line in [
            "queue_depth 1",
            "inference_latency ",
            "postern_requests_total{placement=\"cloud\",target=\"sun\",outcome=\"answered\"} 1",
            "postern_redactions_total{kind=\"other\"} 2",
            "postern_policy_quarantined{policy=\"fair\"} 1",
            "postern_policy_events_total{policy=\"fair\",name=\"hits\"} 3",
            "postern_policy_value{policy=\"fair\",name=\"level\"} 0.5",
        ] {
            assert!(text.lines().any(|have| have.starts_with(line)), "{line} in\n{text}");
        }
        for n in 0..=IDENTITIES {
            metrics.cache_used(&format!("spiffe://b.example/clerk/{n}").parse().unwrap(), "exact");
        }
        let text = metrics.text([]);
        assert!(text.contains("postern_cache_requests_total{result=\"hit\"} 257"), "{text}");
        let by = |identity: &str| {
            format!("postern_cache_identity_requests_total{{identity=\"{identity}\",result=\"hit\"}} 1")
        };
        assert!(text.contains(&by("spiffe://b.example/clerk/255")) && text.contains(&by("other")), "{text}");
        assert!(!text.contains("clerk/256"), "{text}");
        drop(in_flight);
        let text = metrics.text([]);
        assert!(text.contains("queue_depth 0") && !text.contains("fair"), "{text}");
    }
}
