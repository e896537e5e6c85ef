//! From a configuration to policies that can be asked: reads the files, sees who vouches for them, compiles what has changed.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use postern_plugins::{
    Counters, MAX_COMPONENT_BYTES, MAX_KEY_BYTES, MAX_KEYS, Package, PluginError, PolicyHost, PolicyMetrics,
    PolicySpec, PublicKey,
};

use super::Policies;
use super::loaded::{LoadError, Loaded, Version};
use super::recorder::Recorder;
use crate::config::file::Unsigned;
use crate::config::policies::{KeyFile, Place};
use crate::config::read::bounded;
use crate::config::{self, ConfigError, PolicyPart};
use crate::telemetry::metrics::Metrics;

/// What all policies of a gateway need.
#[derive(Debug, Clone)]
pub struct Loader {
    host: Arc<PolicyHost>,
    metrics: Arc<Metrics>,
}

impl Loader {
    /// Compiles in `host`.
    #[must_use]
    pub fn new(host: PolicyHost, metrics: Arc<Metrics>) -> Self {
        Self { host: Arc::new(host), metrics }
    }

    /// Loads all policies of a configuration. Those of `old` that are the same are taken over as they are; of those that are not, the
    /// counters are. Compiling takes seconds, so never on a worker thread of the runtime. `file` is the configuration, for errors.
    ///
    /// # Errors
    /// A component or key cannot be read, is not signed as it must be, does not fit its configuration, or cannot be compiled.
    /// Always with the place in the configuration.
    pub fn load(&self, file: &Path, part: &PolicyPart, old: Option<&Policies>) -> Result<Policies, ConfigError> {
        let keys = keys(file, &part.keys)?;
        let mut all = Vec::with_capacity(part.policies.len());
        for policy in &part.policies {
            let before = old.and_then(|old| old.named(&policy.name));
            all.push(self.policy(file, policy, &keys, part.unsigned, before)?);
        }
        let recorder = match (&part.record, old.and_then(Policies::recorder)) {
            (Some(settings), Some(recorder)) if recorder.settings() == settings => Some(recorder.clone()),
            (Some(settings), _) => Some(Arc::new(Recorder::start(settings.clone()).map_err(|error| {
                let message = format!("`plugins.record.file` {}: {error}", settings.file.display());
                invalid(file, Place::default(), message)
            })?)),
            (None, _) => None,
        };
        Ok(Policies::new(all, part.routing.clone(), recorder).and_answers(part.answers.clone()))
    }

    fn policy(
        &self,
        file: &Path,
        policy: &config::Policy,
        keys: &[PublicKey],
        unsigned: Unsigned,
        before: Option<&Arc<Loaded>>,
    ) -> Result<Arc<Loaded>, ConfigError> {
        let fault = |place: Place, error: &dyn std::fmt::Display| {
            invalid(file, place, format!("policy `{}`: {error}", policy.name))
        };
        let at = policy.places.component;
        let package = read(policy).map_err(|error| fault(at, &error))?;
        let signer = signer(policy, &package, keys, unsigned).map_err(|error| fault(at, &error))?;
        expected(policy, &package).map_err(|error| fault(at, &error))?;
        package.check_config(&policy.config).map_err(|error| fault(policy.places.config, &error))?;
        let manifest = package.manifest().map(|manifest| manifest.name.clone()).unwrap_or_default();
        let digest = package.short_digest().to_owned();
        let version = Version { version: package.version(), manifest, digest, signer };
        if let Some(before) = before.filter(|before| before.version == version && before.settings == *policy) {
            return Ok(before.clone());
        }
        let (counters, numbers) = kept(&package, before);
        let spec = PolicySpec {
            name: policy.name.clone(),
            config: policy.config.clone(),
            deadline: policy.deadline,
            memory_bytes: policy.memory,
            grants: package.grants(&policy.grants),
            counters: counters.clone(),
            metrics: numbers.clone(),
            component: package.into_bytes(),
        };
        let compiled = self.host.load(spec).map_err(|error| fault(at, &error))?;
        Ok(Arc::new(Loaded::new(compiled, version, policy.clone(), (counters, numbers), self.metrics.clone())))
    }
}

/// The file of a component, if it is there and of a size that may be.
fn read(policy: &config::Policy) -> Result<Package, LoadError> {
    let (path, builtin) = (&policy.component, policy.builtin);
    let bytes = bounded(path, MAX_COMPONENT_BYTES).map_err(|error| match error.kind() {
        ErrorKind::NotFound => LoadError::Missing { path: path.clone(), builtin },
        _ => LoadError::Read(path.clone(), error),
    })?;
    Ok(Package::read(bytes)?)
}

/// Who vouches for it; nobody need for what came with Postern.
fn signer(
    policy: &config::Policy,
    package: &Package,
    keys: &[PublicKey],
    unsigned: Unsigned,
) -> Result<Option<String>, PluginError> {
    if policy.builtin {
        return Ok(None);
    }
    match package.verify(keys) {
        Ok(key) => Ok(Some(key.to_string())),
        Err(PluginError::Unsigned | PluginError::UnknownSigner(_)) if unsigned == Unsigned::Allow => Ok(None),
        Err(error) => Err(error),
    }
}

/// Is it what the operator wrote that it is? A signature says who made a file, not which of theirs it is.
fn expected(policy: &config::Policy, package: &Package) -> Result<(), LoadError> {
    let Some(expect) = &policy.expect else { return Ok(()) };
    let manifest = package.manifest();
    let will_do = |version| expect.version.as_ref().is_none_or(|wanted| wanted.matches(version));
    if manifest.is_some_and(|manifest| manifest.name == expect.name && will_do(&manifest.version)) {
        return Ok(());
    }
    let is =
        manifest.map_or("without a manifest".to_owned(), |manifest| format!("{} {}", manifest.name, manifest.version));
    let wanted = expect.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
    Err(LoadError::Unexpected(format!("{}{wanted}", expect.name), is))
}

/// What outlives a version: the counters; the numbers, if they have the same names.
fn kept(package: &Package, before: Option<&Arc<Loaded>>) -> (Arc<Counters>, Arc<PolicyMetrics>) {
    let counters = before.map_or_else(Default::default, |before| before.counters.clone());
    let names: BTreeSet<String> = package.metrics().map(str::to_owned).collect();
    let same = before
        .map(|before| &before.numbers)
        .filter(|numbers| numbers.read().into_keys().collect::<BTreeSet<_>>() == names);
    let numbers = same.cloned().unwrap_or_else(|| Arc::new(PolicyMetrics::new(names.iter().map(String::as_str))));
    (counters, numbers)
}

fn keys(file: &Path, files: &[KeyFile]) -> Result<Vec<PublicKey>, ConfigError> {
    if files.len() > MAX_KEYS {
        return Err(invalid(file, Place::default(), format!("`plugins.keys` has more than {MAX_KEYS} keys")));
    }
    let key = |key: &KeyFile| {
        let fault = |error: &dyn std::fmt::Display| {
            invalid(file, key.place, format!("`plugins.keys` {}: {error}", key.path.display()))
        };
        let text = bounded(&key.path, MAX_KEY_BYTES).map_err(|error| fault(&error))?;
        PublicKey::from_pem(&text).map_err(|error| fault(&error))
    };
    files.iter().map(key).collect()
}

fn invalid(file: &Path, place: Place, message: String) -> ConfigError {
    let Place { line, column } = place;
    ConfigError::Invalid { file: file.display().to_string(), line, column, message }
}
