//! What is written about policies: everything here is applied by a reload, apart from `plugins.compiled`.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::super::units::{Size, Span};
use super::{Placed, Placement, unplaced};

/// How nodes share requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Each as often as its weight's share: 1 / (0.7·base + 0.2·latency + 0.1·queue), each divided by the highest of all nodes.
    #[default]
    Federated,
    /// Of two by chance, the one with the smaller latency × (queue + 1).
    PeakEwma,
    /// The one with the shortest queue.
    LeastQueue,
}

/// How a placement is chosen when no policy says otherwise, and what policies may choose from.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// The placement.
    #[serde(default)]
    pub default: Placement,
    /// How nodes (edges, and the engine among those that meet the goal of edge-first) share requests. Clouds are tried as configured.
    #[serde(default)]
    pub balance: Balance,
    /// Shares of targets, by a name that policies vote for: {canary: {new: 1, old: 9}}. A conversation stays at its target. A
    /// target with the weight 0, or without one, is asked after the others.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, BTreeMap<String, u32>>")]
    pub weights: BTreeMap<String, Spanned<BTreeMap<String, u32>>>,
    /// Models that policies may choose, beside those in `targets[].models` and `engine.models`. A name that is written nowhere
    /// would be a way to carry words out.
    #[serde(default)]
    pub models: Vec<String>,
}

/// Which components may be loaded, and what is kept of what they are told.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plugins {
    /// PEM files of the Ed25519 public keys whose signatures count.
    #[serde(default)]
    #[schemars(with = "Vec<PathBuf>")]
    pub keys: Vec<Placed>,
    /// What to do with a component without a signature by one of `keys`. Built-in ones are trusted as they come.
    #[serde(default)]
    pub unsigned: Unsigned,
    /// Where compiled components are kept, below state_dir unless absolute. Whoever can write there runs code here. A change
    /// takes a restart.
    #[serde(default = "default_compiled")]
    pub compiled: PathBuf,
    /// What policies are told is kept in a file, for `postern plugin replay`; absent: it is not. Never text.
    #[serde(default)]
    pub record: Option<Record>,
}

impl Default for Plugins {
    fn default() -> Self {
        Self { keys: Vec::new(), unsigned: Unsigned::default(), compiled: default_compiled(), record: None }
    }
}

/// A file of requests as policies were told them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The file, below state_dir unless absolute; the one before it ends in `.1`.
    pub file: PathBuf,
    /// Bytes of both together.
    #[serde(default = "default_record_max")]
    #[schemars(with = "Size")]
    pub max: Spanned<Size>,
}

/// What to do with a component without a signature that counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unsigned {
    /// It is not loaded.
    #[default]
    Refuse,
    /// It is loaded; for development. A signature that is there must be right all the same.
    Allow,
}

/// One policy plugin.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its name in records, metrics and logs: 1 to 64 of the characters a-z A-Z 0-9 - _ .
    #[schemars(with = "String")]
    pub name: Placed,
    /// `builtin:routing`, `builtin:redaction`, `builtin:caching`, or a file.
    #[schemars(with = "String")]
    pub component: Placed,
    /// What its manifest must say, since a signature vouches for every policy of its author, and for old versions.
    #[serde(default)]
    pub expect: Option<Expect>,
    /// Its own section, handed over as JSON.
    #[serde(default = "no_config")]
    #[schemars(with = "serde_json::Value")]
    pub config: Spanned<serde_json::Value>,
    /// What it may see of the content of requests, of what its manifest asks for.
    #[serde(default)]
    pub grants: Grants,
    /// What it means when it fails.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Time for one call.
    #[serde(default = "default_deadline")]
    pub deadline: Span,
    /// Memory of one instance.
    #[serde(default = "default_memory")]
    #[schemars(with = "Size")]
    pub memory: Spanned<Size>,
    /// After so many failures in a row it is not called any more, and counts as failing, until it is changed or released.
    #[serde(default = "default_quarantine_after", deserialize_with = "crate::config::units::count")]
    pub quarantine_after: NonZeroU32,
    /// Ask it in the background and only record what it would change.
    #[serde(default)]
    pub shadow: bool,
    /// With `shadow`: the policy in whose place it is imagined. Absent: beside all others.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub replaces: Option<Placed>,
}

/// Which policy, and which versions of it, a file may hold.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The name in its manifest.
    pub name: String,
    /// Versions that will do, such as `>=1.2, <2`. Absent: any.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub version: Option<Placed>,
}

/// What a policy may see of the content of requests.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Headers by their names. Never those with credentials, and never Postern's own.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub headers: Vec<Placed>,
    /// The text of messages, masked.
    #[serde(default)]
    pub text: bool,
}

/// What the failure of a plugin means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The strictest vote: answered by the engine on this machine, or not at all.
    #[default]
    Local,
    /// The request is refused.
    Reject,
}

fn no_config() -> Spanned<serde_json::Value> {
    unplaced(serde_json::Value::Null)
}

fn default_deadline() -> Span {
    Span(Duration::from_millis(20))
}

fn default_memory() -> Spanned<Size> {
    unplaced(Size(32 << 20))
}

fn default_quarantine_after() -> NonZeroU32 {
    const { NonZeroU32::new(10).unwrap() }
}

fn default_compiled() -> PathBuf {
    "compiled".into()
}

fn default_record_max() -> Spanned<Size> {
    unplaced(Size(64 << 20))
}
