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
    Counters, Grants, HostOptions, MAX_COMPONENT_BYTES, Package, Policy, PolicyHost, PolicyMetrics, PolicySpec,
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
                Err(Wrong::new(format!("there is no builtin:{name}; there are builtin:{known}")))
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
    let cache_dir = catalog::default_cache().parent().map(|cache| cache.join("policies"));
    let options = |cache_dir| HostOptions { cache_dir, max_calls: 2 };
    // Where there is no home, it is compiled each time.
    let host = PolicyHost::new(options(cache_dir)).or_else(|_| PolicyHost::new(options(None)));
    Ok(host?)
}

/// Checks the section against the manifest, compiles and links.
pub(super) fn load(host: &PolicyHost, source: &Source, package: Package, settings: &Settings) -> anyhow::Result<Loaded> {
    let name = settings.name.clone().unwrap_or_else(|| source.name(&package));
    let section = settings.section()?;
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

/// Calls of policies want a runtime with time.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    Ok(runtime.block_on(future))
}
