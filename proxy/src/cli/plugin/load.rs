//! A policy as the workbench loads it: what its manifest asks for is granted, since its author is the one who asks.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use postern_engine::catalog;
use postern_plugins::{
    CallContext, Counters, Grants, HostOptions, MAX_COMPONENT_BYTES, Package, Policy, PolicyHost, PolicyMetrics,
    PolicySpec, Readiness, RequestFacts,
};
use serde_json::Value;

use super::{Wrong, file};
use crate::config::{self, units};

const BUILTIN: &str = "builtin:";
const BUILTIN_NAMES: [&str; 3] = ["routing", "caching", "redaction"];

/// A file, or a policy that comes along with Postern.
#[derive(Debug, Clone)]
pub(super) struct Source(String);

impl FromStr for Source {
    type Err = Infallible;

    fn from_str(written: &str) -> Result<Self, Infallible> {
        Ok(Self(written.to_owned()))
    }
}

impl Source {
    /// As it was written.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn is_builtin(&self) -> bool {
        self.0.starts_with(BUILTIN)
    }

    fn path(&self) -> anyhow::Result<PathBuf> {
        match self.0.strip_prefix(BUILTIN) {
            Some(name) if BUILTIN_NAMES.contains(&name) => Ok(config::builtin_component(name)),
            Some(name) => {
                let known = BUILTIN_NAMES.join(", builtin:");
                Err(Wrong::because(format!("there is no builtin:{name}; there are builtin:{known}")))
            }
            None => Ok(PathBuf::from(&self.0)),
        }
    }

    /// Looks through the file.
    pub(super) fn read(&self) -> anyhow::Result<Package> {
        let bytes = file::read(&self.path()?, MAX_COMPONENT_BYTES)?;
        Package::read(bytes).with_context(|| self.0.clone())
    }

    /// What it is called where nobody has given it a name: as in the manifest, else as the file.
    fn name(&self, package: &Package) -> String {
        let file = || Path::new(&self.0).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let named = package.manifest().map(|manifest| manifest.name.clone());
        named.or_else(file).unwrap_or_else(|| self.0.clone())
    }
}

/// What a gateway's configuration says of a policy.
#[derive(Debug, Args)]
pub(super) struct Settings {
    /// The policy's own section of the configuration, in a file of its own (YAML, or JSON if its name ends so).
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Its name in the configuration; absent: as in its manifest.
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Time for one call.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = unit::<units::Span>)]
    pub(super) deadline: units::Span,
    /// Memory of one instance.
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = unit::<units::Size>)]
    pub(super) memory: units::Size,
}

/// As in the configuration file.
fn unit<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|error| error.to_string())
}

impl Settings {
    /// The section; nothing if none was named.
    pub(super) fn section(&self) -> anyhow::Result<Value> {
        self.config.as_deref().map_or(Ok(Value::Null), file::read_document)
    }
}

/// A policy that can be asked.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) digest: String,
    pub(super) policy: Policy,
    /// What loading took.
    pub(super) took: Duration,
}

/// A sandbox for the workbench. What it compiles is kept, in a folder that only its user may write to.
pub(super) fn host() -> anyhow::Result<PolicyHost> {
    host_with(false)
}

/// A sandbox that counts the instructions of calls, which makes them slower.
pub(super) fn counting_host() -> anyhow::Result<PolicyHost> {
    host_with(true)
}

fn host_with(count_instructions: bool) -> anyhow::Result<PolicyHost> {
    let cache_dir = catalog::default_cache().parent().map(|cache| cache.join("policies"));
    let options = |cache_dir| HostOptions { cache_dir, max_calls: 2, max_large_calls: 2, count_instructions };
    // Where there is no home, it is compiled each time.
    Ok(PolicyHost::new(options(cache_dir)).or_else(|_| PolicyHost::new(options(None)))?)
}

/// Checks the section against the manifest, compiles and links.
pub(super) fn load(
    host: &PolicyHost,
    source: &Source,
    package: Package,
    settings: &Settings,
) -> anyhow::Result<Loaded> {
    load_with(host, source, package, settings, settings.section()?)
}

/// As [`load`], with another section of the configuration.
pub(super) fn load_with(
    host: &PolicyHost,
    source: &Source,
    package: Package,
    settings: &Settings,
    section: Value,
) -> anyhow::Result<Loaded> {
    let name = settings.name.clone().unwrap_or_else(|| source.name(&package));
    package.check_config(&section).with_context(|| source.0.clone())?;
    let (version, digest) = (package.version(), package.short_digest().to_owned());
    let asked = package.manifest().map(|manifest| manifest.grants.clone()).unwrap_or_default();
    let everything = Grants { headers: asked.headers.clone(), text: asked.text };
    let spec = PolicySpec {
        name: name.clone(),
        grants: asked.granted(&everything),
        counters: Arc::new(Counters::new()),
        metrics: Arc::new(PolicyMetrics::new(package.metrics())),
        component: package.into_bytes(),
        config: section,
        deadline: settings.deadline.0,
        memory_bytes: usize::try_from(settings.memory.0).unwrap_or(usize::MAX),
    };
    let started = Instant::now();
    let policy = host.load(spec).with_context(|| source.0.clone())?;
    Ok(Loaded { name, version, digest, policy, took: started.elapsed() })
}

/// What a call about this request belongs to. Its clock is that of the request, so that a call can be repeated.
pub(super) fn context(request: &RequestFacts, seed: u64) -> CallContext<'_> {
    let time_ms = Some(request.time.saturating_mul(1000));
    CallContext { tenant: &request.tenant, label: &request.label, seed, time_ms }
}

/// When it makes itself ready, in words.
pub(super) fn start(policy: &Policy) -> String {
    match policy.readiness() {
        Readiness::NoStart => "none".to_owned(),
        Readiness::Kept => "once, kept in memory".to_owned(),
        Readiness::EachCall(why) => format!("in each call ({why})"),
    }
}

/// Calls of policies want a runtime with time.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    Ok(runtime.block_on(future))
}
