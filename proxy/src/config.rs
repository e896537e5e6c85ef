//! The configuration: [`file`] is what a person writes, [`Config`] is what the program runs on.
//!
//! A [`Config`] is valid by construction: every name in it exists, every label is known, every unit is resolved. It is
//! made without binding a port or reading a key, so that `postern check` and the tests need neither.

mod answers;
pub mod audit;
pub mod file;
pub mod policies;
pub mod read;
mod resolve;
pub mod sections;
mod semantic;
pub mod shared;
pub mod trust;
pub mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postern_certs::{PathPrefix, RootPlace, SpiffeId, spiffe};

use crate::classify::label::{Label, Labels};
pub use answers::{AnswerPart, Tools};
pub use audit::Audit;
pub use file::{Balance, Continues, OnFailure, Placement, Secret};
pub use policies::{Policy, PolicyPart, Weights};
pub use resolve::{load, parse};
use sections::Sections;
pub use semantic::Semantic;
pub use shared::{Redis, Replicas};

/// Why a configuration is not accepted; says file, line, column and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not YAML, an unknown key, a wrong type or unit.
    #[error("{file}: {message}")]
    Parse {
        /// The file's name.
        file: String,
        /// Place and cause.
        message: String,
    },
    /// The folder of keys and records cannot be used.
    #[error("state_dir {}: {what}", path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// Why not, and what to do.
        what: String,
    },
    /// Well-formed, but it does not fit together.
    #[error("{file}{}: {message}", place(*line, *column))]
    Invalid {
        /// The file's name.
        file: String,
        /// From 1; 0 if unknown.
        line: u64,
        /// From 1; 0 if unknown.
        column: u64,
        /// What was expected.
        message: String,
    },
}

fn place(line: u64, column: u64) -> String {
    if line == 0 { String::new() } else { format!(":{line}:{column}") }
}

/// All settings of one gateway.
#[derive(Debug)]
pub struct Config {
    /// Where applications connect.
    pub listen: SocketAddr,
    /// DNS names and addresses in the gateway's leaf, beside its SPIFFE ID.
    pub names: Vec<String>,
    /// Where workstations enrol.
    pub enrol: Option<SocketAddr>,
    /// Dashboard and API.
    pub admin: SocketAddr,
    /// Health and metrics only.
    pub probe: Option<SocketAddr>,
    /// Keys, sockets, records.
    pub state_dir: PathBuf,
    /// Trust domain of the embedded authority.
    pub trust_domain: String,
    /// Below which path this gateway names workloads.
    pub prefix: PathPrefix,
    /// Where the root's key is.
    pub root: RootPlace,
    /// Who issues the gateway's certificate.
    pub issuer: trust::Issuer,
    /// Life of a leaf.
    pub leaf_ttl: Duration,
    /// The lattice.
    pub labels: Labels,
    /// Who may ask for what.
    pub identities: Vec<IdentityRule>,
    /// What all of a tenant may use together.
    pub tenants: std::collections::BTreeMap<String, file::IdentityLimits>,
    /// Who may use the admin address over mTLS.
    pub operators: Vec<(spiffe::Pattern, crate::admin::guard::Role)>,
    /// Remote targets, in the order of preference.
    pub targets: Vec<Arc<Target>>,
    /// Hard bounds of one attempt and of a request.
    pub timeouts: Timeouts,
    /// Soft targets and cost.
    pub placements: file::Placements,
    /// What a reload applies.
    pub policy_part: PolicyPart,
    /// Where compiled components are kept.
    pub compiled_dir: PathBuf,
    /// What the host recognises by itself.
    pub classification: Classification,
    /// The response cache; `None`: off.
    pub cache: Option<Cache>,
    /// This gateway is one of several; `None`: it is the only one.
    pub replicas: Option<Replicas>,
    /// Answers to questions that were asked in other words.
    pub semantic: Option<Semantic>,
    /// The engine on this machine; `None`: there is none.
    pub engine: Option<Engine>,
    /// The records.
    pub audit: Audit,
    /// Sealed payloads.
    pub payload: Payload,
    /// Bounds on what a client sends.
    pub limits: file::Limits,
    /// Refuse every target but the engine.
    pub offline: bool,
    /// As it was written, to tell later what has changed.
    pub sections: Sections,
}

/// Sealed payloads.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    /// Those in clear are refused.
    pub required: bool,
    /// Over whose connections those of others may come.
    pub relays: Vec<spiffe::Pattern>,
}

/// One entry of `identities`.
#[derive(Debug, Clone)]
pub struct IdentityRule {
    /// Which SPIFFE IDs.
    pub pattern: spiffe::Pattern,
    /// Their tenant; `None`: each its own.
    pub tenant: Option<String>,
    /// Nothing from them is below this.
    pub floor: Label,
    /// Nothing above this is accepted from them.
    pub ceiling: Label,
    /// Rates.
    pub limits: file::IdentityLimits,
}

/// One remote target.
#[derive(Debug)]
pub struct Target {
    /// Its name in records, metrics and headers.
    pub name: String,
    /// `cloud` or `edge`.
    pub kind: file::TargetKind,
    /// The highest label it may see.
    pub clearance: Label,
    /// Where its API is.
    pub base_url: http::Uri,
    /// Where its key comes from.
    pub api_key: Option<Secret>,
    /// A private authority to trust instead of the machine's; of a node of our own, that of a middlebox before it.
    pub ca: Option<PathBuf>,
    /// A node of our own: whom it must prove to be, and the gateway shows it its own certificate. `None`: a service of others.
    pub node: Option<SpiffeId>,
    /// What such a node is asked is sealed.
    pub sealed: bool,
    /// Our name → theirs; empty: names pass through.
    pub models: std::collections::BTreeMap<String, String>,
    /// Requests that we may send in any minute.
    pub requests_per_minute: Option<std::num::NonZeroU32>,
    /// Tokens likewise.
    pub tokens_per_minute: Option<std::num::NonZeroU32>,
    /// What it costs.
    pub price: Option<file::Price>,
    /// How it goes on with an answer that another began; `None`: it cannot.
    pub continues: Option<Continues>,
    /// Where its load is looked at.
    pub health: Option<Health>,
}

/// A page of metrics of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Its path.
    pub metrics: String,
    /// How often it is looked at.
    pub every: Duration,
}

impl Target {
    /// Their name for `model`, if they serve it.
    #[must_use]
    pub fn model<'a>(&'a self, model: &'a str) -> Option<&'a str> {
        if self.models.is_empty() { Some(model) } else { self.models.get(model).map(String::as_str) }
    }
}

/// Hard bounds.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// TCP and TLS.
    pub connect: Duration,
    /// From sending the request to the first token.
    pub first_token: Duration,
    /// Between two events of a stream.
    pub idle: Duration,
    /// Until headers of a stream go out.
    pub headers: Duration,
    /// The whole request.
    pub total: Duration,
    /// Waiting for a target that may be asked.
    pub queue: Duration,
}

/// What the host recognises by itself.
#[derive(Debug, Clone, Default)]
pub struct Classification {
    /// A detector's kind → the label that its find means.
    pub detect: Vec<(postern_plugins::detectors::Kind, Label)>,
    /// A marking in the text → its label.
    pub markings: Vec<(String, Label)>,
    /// What is looked into.
    pub decode: postern_text::encoded::Encodings,
    /// All that a user says in a row is one text, here and for policies.
    pub join_messages: bool,
    /// For what cannot be read as text.
    pub opaque: Label,
    /// What models and endpoints call for.
    pub routes: crate::classify::route::Routes,
    /// What is remembered.
    pub taint: Taint,
}

/// What is remembered of labelled texts.
#[derive(Debug, Clone)]
pub struct Taint {
    /// Marks of one identity.
    pub per_identity: usize,
    /// After they were last seen.
    pub keep: Duration,
    /// No passage of these is remembered.
    pub common: Vec<String>,
    /// Goes on without what other gateways know.
    pub unavailable: file::Unavailable,
}

impl Default for Taint {
    fn default() -> Self {
        file::Taint::default().into()
    }
}

impl From<file::Taint> for Taint {
    fn from(written: file::Taint) -> Self {
        let file::Taint { per_identity, keep, common, unavailable } = written;
        let per_identity = usize::try_from(per_identity.get()).unwrap_or(usize::MAX);
        Self { per_identity, keep: keep.0, common, unavailable }
    }
}

/// The response cache.
#[derive(Debug, Clone)]
pub struct Cache {
    /// Bytes of all entries.
    pub memory: u64,
    /// Life of an entry, if a plugin does not say less.
    pub ttl: Duration,
    /// The second tier.
    pub redis: Option<Redis>,
    /// What is asked at the start.
    pub warm: Option<PathBuf>,
}

/// The engine on this machine.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Name in the catalogue, or a file.
    pub model: String,
    /// Our names that it answers to; empty: every one.
    pub models: Vec<String>,
    /// What it costs.
    pub price: Option<file::Price>,
    /// Where it computes.
    pub device: file::Device,
    /// Sequences at a time.
    pub max_batch_size: usize,
    /// Wait for more when idle.
    pub max_wait: Duration,
    /// Requests that may wait.
    pub max_queue: u16,
    /// Bytes of keys and values.
    pub kv_memory: u64,
    /// How those are kept.
    pub kv_format: file::KvFormat,
    /// Silent, or at one step, for so long: it hangs.
    pub hung_after: Duration,
    /// The user that its process is; `None`: as the others.
    pub user: Option<String>,
}

impl Engine {
    /// What its process calls the model: its name in the catalogue, or that of the file or folder, without `.gguf`.
    #[must_use]
    pub fn own_name(model: &str) -> String {
        if postern_engine::catalog::known(model).is_some() {
            return model.to_owned();
        }
        let name = Path::new(model).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = name.strip_suffix(".gguf").unwrap_or(&name);
        if name.is_empty() { "model".to_owned() } else { name.to_owned() }
    }

    /// Does it answer to `model`?
    #[must_use]
    pub fn serves(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|name| name == model)
    }
}

impl Config {
    /// The exact SPIFFE ID of the gateway.
    #[must_use]
    pub fn gateway_id(&self) -> String {
        format!("spiffe://{}{}/gateway", self.trust_domain, self.prefix)
    }

    /// May sealed requests of others come over connections of `id`?
    #[must_use]
    pub fn carries(&self, id: &SpiffeId) -> bool {
        self.payload.relays.iter().any(|relay| relay.matches(id))
    }

    /// Keys and certificates of the embedded authority.
    #[must_use]
    pub fn authority_dir(&self) -> PathBuf {
        self.state_dir.join("authority")
    }

    /// The UNIX socket that the engine dials.
    #[must_use]
    pub fn engine_socket(&self) -> PathBuf {
        self.state_dir.join("engine.sock")
    }

    /// Where the process dials that makes vectors of questions.
    #[must_use]
    pub fn encoder_socket(&self) -> PathBuf {
        // As long as the engine's: `postern check` measures that.
        self.state_dir.join("vector.sock")
    }

    /// May any remote target see `label`? As configured, whether it answers at present or not.
    #[must_use]
    pub fn is_cleared(&self, label: Label) -> bool {
        self.targets.iter().any(|target| label <= target.clearance)
    }

    /// May anything leave at all, of any label?
    #[must_use]
    pub fn clears_anything(&self) -> bool {
        self.is_cleared(self.labels.lowest())
    }

    /// Is `model` a name that some target or the engine answers to?
    #[must_use]
    pub fn knows_model(&self, model: &str) -> bool {
        self.targets.iter().any(|target| target.model(model).is_some())
            || self.engine.as_ref().is_some_and(|engine| engine.serves(model))
    }

    /// Names for `GET /v1/models`: those that the configuration spells out, and that are answered while `offline`, if it is.
    #[must_use]
    pub fn model_names(&self, offline: bool) -> std::collections::BTreeSet<&str> {
        let is_answered = |name: &&String| !offline || self.engine.as_ref().is_some_and(|engine| engine.serves(name));
        let remote = self.targets.iter().flat_map(|target| target.models.keys()).filter(is_answered);
        let local = self.engine.iter().flat_map(|engine| engine.models.iter());
        remote.chain(local).map(String::as_str).collect()
    }
}

/// Where the components that come with Postern are: `$POSTERN_PLUGINS`, else `plugins/` beside the folder of the
/// executable, else the place where packages put them.
#[must_use]
pub fn builtin_component(name: &str) -> PathBuf {
    let file = format!("{name}.wasm");
    if let Some(folder) = std::env::var_os("POSTERN_PLUGINS") {
        return Path::new(&folder).join(file);
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("plugins").join(&file)));
    match beside {
        Some(path) if path.exists() => path,
        _ => Path::new("/usr/lib/postern/plugins").join(file),
    }
}
