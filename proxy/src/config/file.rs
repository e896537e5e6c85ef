//! The configuration as it is written: one YAML file, in which an unknown key is an error.
//!
//! The doc comments here are the descriptions in the JSON Schema that `postern config schema` prints.

mod audit;
mod policies;
mod secret;
pub mod shared;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use postern_certs::PathPrefix;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use super::semantic::SemanticPart;
use super::units::{self, Size, Span};
use crate::admin::guard::Role;
pub use audit::{Audit, CopyFrom, CopyTo, Sync, Unwritable, Witness};
pub use policies::{Balance, Expect, Grants, OnFailure, Plugins, Policy, Record, Routing, Unsigned};
pub use secret::Secret;

/// A value that remembers its place in the file, for errors found later.
pub type Placed = Spanned<String>;

/// Postern's configuration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where applications connect: TLS 1.3 with client certificates. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// DNS names and IP addresses in the gateway's certificate, beside its SPIFFE ID; localhost, 127.0.0.1 and ::1 always.
    #[serde(default)]
    pub names: Vec<String>,
    /// Where workstations enrol with an invite. Clients need no certificate there, and get nothing else. Absent: nobody
    /// enrols.
    #[serde(default)]
    pub enrol: Option<SocketAddr>,
    /// Health, metrics, status and certificates for operators. Off a loopback address it needs mTLS and a role.
    #[schemars(with = "String")]
    pub admin: Spanned<SocketAddr>,
    /// /livez, /readyz and /metrics only, for kubelet and Prometheus.
    #[serde(default)]
    pub probe: Option<SocketAddr>,
    /// Keys, sockets and records; made with mode 0700.
    pub state_dir: PathBuf,
    /// Who issues certificates.
    pub trust: Trust,
    /// The lattice of labels, the lowest first. The last one never leaves this machine.
    #[serde(default = "default_labels")]
    #[schemars(with = "Vec<String>")]
    pub labels: Spanned<Vec<String>>,
    /// Who may ask for what: every rule that matches applies; none: refused.
    pub identities: Vec<Identity>,
    /// Who may use the admin address over mTLS, and for what.
    #[serde(default)]
    pub operators: Vec<Operator>,
    /// What all identities of a tenant may use together, by the tenant's name.
    #[serde(default)]
    pub tenants: BTreeMap<String, Tenant>,
    /// Remote targets, in the order of preference.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// Hard bounds.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Soft targets and cost of each placement.
    #[serde(default)]
    pub placements: Placements,
    /// How a placement is chosen when no policy says otherwise, and what policies may choose from.
    #[serde(default)]
    pub routing: Routing,
    /// Which components may be loaded, and what is kept of what they are told.
    #[serde(default)]
    pub plugins: Plugins,
    /// Policy plugins, in the order in which they are asked.
    #[serde(default)]
    pub policies: Vec<Policy>,
    /// What the host recognises by itself, whatever plugins do.
    #[serde(default)]
    pub classification: Classification,
    /// What of what a model made itself is masked, or ends its answer; absent: answers are not looked at.
    #[serde(default)]
    pub answers: Option<Answers>,
    /// The response cache; absent: none.
    #[serde(default)]
    pub cache: Option<Cache>,
    /// This gateway is one of several that stand in for each other; absent: it is the only one.
    #[serde(default)]
    pub replicas: Option<shared::Replicas>,
    /// The language model on this machine; absent: none.
    #[serde(default)]
    pub engine: Option<Engine>,
    /// The records of what happened.
    #[serde(default)]
    pub audit: Audit,
    /// Sealed payloads.
    #[serde(default)]
    pub payload: Payload,
    /// Bounds on what a client may send.
    #[serde(default)]
    pub limits: Limits,
    /// Refuse every target but the engine on this machine.
    #[serde(default)]
    pub offline: bool,
}

/// Sealed payloads: what leaves a workstation is for the gateway alone, also where somebody breaks TLS open on the way.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Payload {
    /// Requests in clear are refused.
    pub required: bool,
    /// SPIFFE IDs, `*` at the end allowed, of those over whose connections sealed requests of others may come: middleboxes that break TLS open.
    /// Each request has to be signed then by whoever sent it.
    #[schemars(with = "Vec<String>")]
    pub relays: Vec<Placed>,
}

/// Who issues certificates.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// SPIFFE trust domain, such as branch-17.example.org.
    #[schemars(with = "String")]
    pub domain: Placed,
    /// `embedded`: an authority under state_dir, made at first start. `files`, `spiffe`: somebody else.
    #[serde(default = "default_issuer")]
    #[schemars(with = "Issuer")]
    pub issuer: Spanned<Issuer>,
    /// For `issuer: files`.
    #[serde(default)]
    #[schemars(with = "Option<super::trust::Files>")]
    pub files: Option<Spanned<super::trust::Files>>,
    /// For `issuer: spiffe`.
    #[serde(default)]
    #[schemars(with = "Option<super::trust::Spiffe>")]
    pub spiffe: Option<Spanned<super::trust::Spiffe>>,
    /// Below which path this gateway and everybody that it vouches for are named, such as /branch-17; absent: the whole trust
    /// domain.
    #[serde(default)]
    #[schemars(with = "String")]
    pub prefix: PathPrefix,
    /// Where the key of the embedded authority's root is.
    #[serde(default)]
    pub root: RootKey,
    /// Life of a leaf of the embedded authority; renewed at half of it.
    #[serde(default = "default_leaf_ttl")]
    #[schemars(with = "Span")]
    pub leaf_ttl: Spanned<Span>,
}

/// Where the key of a root is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RootKey {
    /// In state_dir: intermediates renew by themselves.
    #[default]
    Here,
    /// On a machine that is kept off line: see `postern certs root`.
    Offline,
}

/// Kinds of issuers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Issuer {
    /// The gateway's own authority.
    #[default]
    Embedded,
    /// PEM files that somebody else writes, such as cert-manager or a Vault agent.
    Files,
    /// A SPIFFE agent, over the SPIFFE Workload API.
    Spiffe,
}

/// Somebody who works on the gateway itself.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// A SPIFFE ID; a last segment `*` stands for one or more segments.
    #[serde(rename = "match")]
    #[schemars(with = "String")]
    pub pattern: Placed,
    /// What for. Who matches several entries has all their roles.
    pub role: Role,
}

/// One rule about who may ask for what.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// A SPIFFE ID; a last segment `*` stands for one or more segments.
    #[serde(rename = "match")]
    #[schemars(with = "String")]
    pub pattern: Placed,
    /// Whose cache, vault and budgets; absent: the SPIFFE ID itself.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Nothing from here is below this label; absent: the lowest.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub floor: Option<Placed>,
    /// Nothing above this label is accepted from here; absent: the highest.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub ceiling: Option<Placed>,
    /// Rates; absent: none.
    #[serde(default)]
    pub limits: IdentityLimits,
}

/// What one identity, or all of one tenant together, may use. A day and a month are those of the calendar, in UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityLimits {
    /// Requests a minute.
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub requests_per_minute: Option<std::num::NonZeroU32>,
    /// Requests a day.
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub requests_per_day: Option<std::num::NonZeroU32>,
    /// Tokens a minute: those of the prompt, estimated until the target has counted them, and those of the answer.
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub tokens_per_minute: Option<std::num::NonZeroU32>,
    /// Tokens a day.
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub tokens_per_day: Option<std::num::NonZeroU32>,
    /// Tokens of prompts a minute.
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub input_tokens_per_minute: Option<std::num::NonZeroU32>,
    /// Tokens of prompts a day.
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub input_tokens_per_day: Option<std::num::NonZeroU32>,
    /// Tokens of answers a minute.
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub output_tokens_per_minute: Option<std::num::NonZeroU32>,
    /// Tokens of answers a day.
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub output_tokens_per_day: Option<std::num::NonZeroU32>,
    /// Money a month, in the currency of the targets' `price`.
    #[serde(default)]
    pub cost_per_month: Option<units::Money>,
    /// Requests at a time.
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub concurrency: Option<std::num::NonZeroU32>,
}

impl IdentityLimits {
    /// The tighter of both, limit by limit.
    #[must_use]
    pub fn tighter(self, other: Self) -> Self {
        fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            one.into_iter().chain(other).min()
        }
        Self {
            requests_per_minute: least(self.requests_per_minute, other.requests_per_minute),
            requests_per_day: least(self.requests_per_day, other.requests_per_day),
            tokens_per_minute: least(self.tokens_per_minute, other.tokens_per_minute),
            tokens_per_day: least(self.tokens_per_day, other.tokens_per_day),
            input_tokens_per_minute: least(self.input_tokens_per_minute, other.input_tokens_per_minute),
            input_tokens_per_day: least(self.input_tokens_per_day, other.input_tokens_per_day),
            output_tokens_per_minute: least(self.output_tokens_per_minute, other.output_tokens_per_minute),
            output_tokens_per_day: least(self.output_tokens_per_day, other.output_tokens_per_day),
            cost_per_month: least(self.cost_per_month, other.cost_per_month),
            concurrency: least(self.concurrency, other.concurrency),
        }
    }

    /// Is there any?
    #[must_use]
    pub fn count_something(self) -> bool {
        self != Self::default()
    }
}

/// All identities of one tenant together.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// What they may use.
    pub limits: IdentityLimits,
}

/// One remote target.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its name in records, metrics and response headers.
    #[schemars(with = "String")]
    pub name: Placed,
    /// Where it is.
    pub placement: TargetKind,
    /// The highest label that it may see. Never the last label of the lattice.
    #[schemars(with = "String")]
    pub clearance: Placed,
    /// An API of the OpenAI kind.
    pub openai: OpenAi,
    /// Our model name → theirs; absent: names pass through.
    #[serde(default)]
    pub models: BTreeMap<String, String>,
    /// What we may send there.
    #[serde(default)]
    pub limits: TargetLimits,
    /// What it costs, for policies; absent: they are told nothing.
    #[serde(default)]
    #[schemars(with = "Option<Price>")]
    pub price: Option<Spanned<Price>>,
    /// How its load is learned, beside what our own requests show; absent: a node of ours is looked at, others are not.
    #[serde(default)]
    #[schemars(with = "Option<Health>")]
    pub health: Option<Spanned<Health>>,
}

/// A page of Prometheus metrics of a target's server: its queue and latency balance nodes, and a server that does not send it is not well.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Its path, at the host and port of `base_url`.
    pub metrics: String,
    /// How often it is looked at.
    pub every: Span,
}

impl Default for Health {
    fn default() -> Self {
        Self { metrics: "/metrics".to_owned(), every: Span(Duration::from_secs(2)) }
    }
}

/// What a million tokens cost, in a currency of your own.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Those of the prompt.
    pub input_per_million: f64,
    /// Those of the answer.
    pub output_per_million: f64,
}

/// Where a remote target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// A hosted service.
    Cloud,
    /// A node close by.
    Edge,
}

/// An API of the OpenAI kind.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenAi {
    /// Up to and with the version, such as https://api.example.com/v1. http:// on a loopback address only.
    #[schemars(with = "String")]
    pub base_url: Placed,
    /// The key sent as a bearer token; absent: none is sent.
    #[serde(default)]
    pub api_key: Option<Secret>,
    /// PEM file of a private authority to trust instead of the machine's own. With `identity`: of a middlebox that breaks TLS open before
    /// the node, which proves itself by what it signs and seals then.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The SPIFFE ID that it must have, if it is one of our own engines (`postern engine --listen`): then the gateway shows its
    /// own certificate there, and trusts the roots of the office alone (for TLS, with `ca`, a middlebox too).
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub identity: Option<Placed>,
    /// With `identity`: what it is asked, and its answers, are sealed inside of TLS; true unless it is said. It cannot be false with `ca`.
    #[serde(default)]
    #[schemars(with = "Option<bool>")]
    pub sealed: Option<Spanned<bool>>,
    /// How it is asked to go on with an answer that another target began and broke off; absent: a node of ours can, others cannot.
    #[serde(default)]
    pub continues: Option<Continues>,
}

/// How a server is told that the last message is the beginning of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Continues {
    /// By that message alone, of the role `assistant`.
    Message,
    /// By `prefix: true` in that message (DeepSeek's beta, Mistral).
    Prefix,
    /// By `continue_final_message: true` and `add_generation_prompt: false` (vLLM, SGLang, Postern's own engine).
    FinalMessage,
}

/// What we may send to a target.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetLimits {
    /// Requests in any minute, attempts that fail among them. Beyond it another target is asked, or they wait.
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub requests_per_minute: Option<std::num::NonZeroU32>,
    /// Tokens in any minute: those of prompts, estimated, and of the longest answers asked for (512 where none is).
    #[serde(default, deserialize_with = "units::maybe_count")]
    pub tokens_per_minute: Option<std::num::NonZeroU32>,
}

/// Hard bounds.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// TCP and TLS towards a target.
    pub connect: Span,
    /// From sending a request to its first token. An answer that is not streamed may take this and `idle` together.
    pub first_token: Span,
    /// Between two events of a stream.
    pub idle: Span,
    /// Until the headers of a streamed answer go out, if it has not begun; comments keep the connection open from then on.
    pub headers: Span,
    /// A whole request.
    pub total: Span,
    /// For a target that may be asked: while all are at their limits, rest after failures, or are to be asked again.
    pub queue: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = |s| Span(Duration::from_secs(s));
        Self {
            connect: seconds(2),
            first_token: seconds(30),
            idle: seconds(60),
            total: seconds(600),
            queue: seconds(30),
            headers: seconds(10),
        }
    }
}

/// Where a prompt may be answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// A cloud, then the edge, then the engine.
    #[default]
    Cloud,
    /// The edge (the engine among it) if it is quick enough, else the cloud.
    EdgeFirst,
    /// The engine on this machine, nothing else.
    Local,
}

impl Placement {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::EdgeFirst => "edge-first",
            Self::Local => "local",
        }
    }
}

/// Soft targets and cost of each placement.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Placements {
    /// General use.
    pub cloud: PlacementGoal,
    /// Interactive use.
    pub edge_first: PlacementGoal,
    /// Classified data, or no network.
    pub local: PlacementGoal,
}

impl Default for Placements {
    fn default() -> Self {
        let goal =
            |ttft: Option<u64>| PlacementGoal { ttft: ttft.map(|ms| Span(Duration::from_millis(ms))), cost: None };
        Self { cloud: goal(Some(500)), edge_first: goal(Some(150)), local: goal(None) }
    }
}

/// Soft target and cost of one placement.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementGoal {
    /// Time to first token; it decides where, it does not kill. Used for edge-first.
    #[serde(default)]
    pub ttft: Option<Span>,
    /// What the price of targets there is multiplied by: 1.0 in the cloud, 1.8 at the edge, 3.5 on this machine, if nothing is said.
    #[serde(default)]
    pub cost: Option<f64>,
}

/// What the host recognises by itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Classification {
    /// Detector (email, phone, id-card, bank-card, iban, passport, plate, ip, mac, url-credentials, secret) →
    /// the label that a find means.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub detect: BTreeMap<String, Placed>,
    /// Marking in the text, such as "TOP SECRET" → its label. Case, width, spaces and invisible
    /// characters do not matter.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub markings: BTreeMap<String, Placed>,
    /// Encodings that are looked into: base64, url. What is found in there counts as if it were written plainly.
    #[serde(default)]
    pub decode: Vec<Encoding>,
    /// Messages of a user that follow each other are looked at as one text as well, here and by redaction policies, so that a value that
    /// is split over them is found. The parts of one message always are.
    #[serde(default)]
    pub join_messages: bool,
    /// Model, as it is asked for → the label that a request for it has. With a * at the end: all that begin so. Case does not matter.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub models: BTreeMap<String, Placed>,
    /// Endpoint (/v1/chat/completions, /v1/completions, /v1/embeddings) → the label that a request to it has.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub endpoints: BTreeMap<String, Placed>,
    /// Label of what cannot be read as text (images, files); absent: the second highest.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub opaque: Option<Placed>,
    /// Texts and conversations that have had a label keep it.
    #[serde(default)]
    pub taint: Taint,
}

/// What is remembered of labelled texts: keyed hashes of them, of passages of them and of their conversations.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Taint {
    /// How many of one identity. A passage is remembered for about each thirteen letters. Whoever needs more loses the oldest, and nothing of theirs is
    /// below those labels any more, for `keep` after their last request.
    #[serde(deserialize_with = "super::units::count")]
    pub per_identity: NonZeroU32,
    /// For how long after it was last seen.
    pub keep: Span,
    /// Texts that stand in many requests and say nothing, such as the frame of a prompt: no passage of them is remembered.
    pub common: Vec<String>,
    /// What is done while the Redis of `replicas` is away, where gateways remember together.
    pub unavailable: Unavailable,
}

/// What is done while nobody can say what other gateways know of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unavailable {
    /// Every request may have the highest label: only the engine on this machine answers.
    #[default]
    Refuse,
    /// This gateway goes by what it knows itself.
    Own,
}

impl Default for Taint {
    fn default() -> Self {
        Self {
            per_identity: NonZeroU32::MIN.saturating_add(49_999),
            keep: Span(Duration::from_secs(7 * 86_400)),
            common: Vec::new(),
            unavailable: Unavailable::default(),
        }
    }
}

/// How text may be written in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// Runs of base64, of 16 characters or more.
    Base64,
    /// Percent-encoding.
    Url,
}

/// What becomes of what a model made itself: a kind of the recognisers (such as secret), `private-key`, `marking` (those under
/// `classification.markings`), or a kind of the `words` of a policy `builtin:redaction`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// A mark such as [SECRET] stands in its place.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub mask: Vec<Placed>,
    /// The answer ends there, with an error.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub stop: Vec<Placed>,
    /// Tools whose arguments get the values back that were masked; a name that ends with `*` stands for all that begin so. Absent: none.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub restore_arguments: Vec<Placed>,
}

/// The response cache.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Bytes of all entries.
    #[serde(default = "default_cache_memory")]
    pub memory: Size,
    /// Life of an entry, if a plugin does not say less.
    #[serde(default = "default_cache_ttl")]
    pub ttl: Span,
    /// Where answers are kept as well, encrypted: for other replicas, and over a restart. Absent: in memory only.
    #[serde(default)]
    #[schemars(with = "Option<shared::Redis>")]
    pub redis: Option<Spanned<shared::Redis>>,
    /// What the gateway asks by itself when it starts: JSON lines `{"as": "spiffe://…", "body": {…}}`. Absent: nothing.
    #[serde(default)]
    pub warm: Option<PathBuf>,
    /// Answer also questions that were asked in other words; absent: no.
    #[serde(default)]
    pub semantic: Option<SemanticPart>,
}

/// The language model on this machine.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Name in the catalogue (`postern model list`), or a GGUF file.
    pub model: String,
    /// Our model names that it answers to; absent: every one.
    #[serde(default)]
    pub models: Vec<String>,
    /// What it costs; absent: nothing.
    #[serde(default)]
    #[schemars(with = "Option<Price>")]
    pub price: Option<Spanned<Price>>,
    /// Where it computes.
    #[serde(default)]
    pub device: Device,
    /// Sequences at a time.
    #[serde(default = "default_batch", deserialize_with = "units::count")]
    pub max_batch_size: std::num::NonZeroU16,
    /// How long an idle engine waits for more requests.
    #[serde(default = "default_wait")]
    pub max_wait: Span,
    /// Requests that may wait for a sequence; one more is refused.
    #[serde(default = "default_queue", deserialize_with = "units::count")]
    pub max_queue: std::num::NonZeroU16,
    /// Memory for the keys and values of all sequences, and of beginnings that are kept. On the processor it is taken as it
    /// is needed.
    #[serde(default = "default_kv_memory")]
    #[schemars(with = "Size")]
    pub kv_memory: Spanned<Size>,
    /// How keys and values are kept.
    #[serde(default)]
    pub kv_format: KvFormat,
    /// An engine that says nothing for so long, or works so long on one step, hangs: it is ended and started again.
    #[serde(default = "default_hung_after")]
    #[schemars(with = "Span")]
    pub hung_after: Spanned<Span>,
    /// The user of this machine that the engine is, where `postern run` is started by root; absent: as whom Postern runs. It must be
    /// able to read the model.
    #[serde(default)]
    pub user: Option<String>,
}

/// How the engine keeps keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KvFormat {
    /// Half precision.
    #[default]
    F16,
    /// Eight bits: half the memory, a little less exact; on the processor only.
    Q8,
}

/// Where the engine computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The best there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
}

/// Bounds on what a client may send.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a body.
    pub body: Size,
    /// Bytes of all bodies at a time; one identity may hold a quarter. While it is worked on, a body costs about five times
    /// its size; each of its values counts for 60 bytes more.
    pub bodies: Size,
    /// Messages of one request.
    pub messages: usize,
    /// Objects and arrays inside each other, 100 at most.
    pub json_depth: usize,
    /// Connections at a time.
    pub connections: usize,
    /// Requests at a time, over all identities.
    pub requests: usize,
    /// For a client to send headers, and again for its body.
    pub receive: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: Size(8 << 20),
            bodies: Size(128 << 20),
            messages: 2048,
            json_depth: 64,
            connections: 20_000,
            requests: 4096,
            receive: Span(Duration::from_secs(20)),
        }
    }
}

fn default_labels() -> Spanned<Vec<String>> {
    let names = ["public", "internal", "confidential", "classified"];
    unplaced(names.map(str::to_owned).to_vec())
}

fn default_issuer() -> Spanned<Issuer> {
    unplaced(Issuer::default())
}

fn default_leaf_ttl() -> Spanned<Span> {
    unplaced(Span(Duration::from_secs(72 * 3600)))
}

fn default_cache_memory() -> Size {
    Size(256 << 20)
}

fn default_cache_ttl() -> Span {
    Span(Duration::from_secs(3600))
}

fn default_batch() -> std::num::NonZeroU16 {
    const { std::num::NonZeroU16::new(32).unwrap() }
}

fn default_wait() -> Span {
    Span(Duration::from_millis(50))
}

fn default_queue() -> std::num::NonZeroU16 {
    const { std::num::NonZeroU16::new(256).unwrap() }
}

fn default_kv_memory() -> Spanned<Size> {
    unplaced(Size(2 << 30))
}

fn default_hung_after() -> Spanned<Span> {
    unplaced(Span(Duration::from_secs(120)))
}

pub(super) fn unplaced<T>(value: T) -> Spanned<T> {
    let nowhere = serde_saphyr::Location::UNKNOWN;
    Spanned { value, referenced: nowhere, defined: nowhere }
}
