//! What a reload applies: policies, who may sign them, and what they may choose from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postern_plugins::{ANY_HEADER, may_be_granted};
use semver::VersionReq;
use serde_saphyr::Location;

use super::answers::{self, AnswerPart};
use super::file::{self, Balance, File, OnFailure, Placed, Placement, Unsigned};
use super::{Target, builtin_component};
use crate::classify::clearance::ENGINE;

/// Every request asks each of them.
const MAX_POLICIES: usize = 64;
/// Names of weights, targets in each, and models.
const MAX_CHOICES: usize = 256;
const MAX_WEIGHT: u32 = 1_000_000;
const MAX_NAME_BYTES: usize = 64;
/// As `policies` are told: more would be left out.
const MAX_HEADERS: usize = 16;

/// What of a configuration a reload applies without a restart. A request sees one of them from its beginning to its end.
#[derive(Debug, Clone, Default)]
pub struct PolicyPart {
    /// Policy plugins in their order, those that are only watched among them.
    pub policies: Vec<Policy>,
    /// Whose signatures count.
    pub keys: Vec<KeyFile>,
    /// What to do with a component without one.
    pub unsigned: Unsigned,
    /// Where requests are kept as policies were told them; `None`: nowhere.
    pub record: Option<Record>,
    /// What they choose from.
    pub routing: Routing,
    /// What becomes of what a model made.
    pub answers: AnswerPart,
}

/// What policies choose from, and what counts when they do not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// Placement when nobody says otherwise.
    pub default: Placement,
    /// How nodes share requests.
    pub balance: Balance,
    /// Name → target → share.
    pub weights: BTreeMap<String, Weights>,
    /// Models that they may choose, wherever the configuration names them.
    pub models: BTreeSet<String>,
}

/// Target → its share of the requests.
pub type Weights = BTreeMap<String, u32>;

/// A file of requests as policies were told them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The file.
    pub file: PathBuf,
    /// Bytes of it and the one before it together.
    pub max: u64,
}

/// One policy plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Its name in records, metrics and logs.
    pub name: String,
    /// File of its component.
    pub component: PathBuf,
    /// What its manifest must say of it.
    pub expect: Option<Expect>,
    /// It came with Postern, so it needs no signature.
    pub builtin: bool,
    /// Its own section.
    pub config: serde_json::Value,
    /// What it may see, if its manifest asks for it.
    pub grants: postern_plugins::Grants,
    /// What its failure means.
    pub on_failure: OnFailure,
    /// Time for one call.
    pub deadline: Duration,
    /// Memory of one instance, in bytes.
    pub memory: usize,
    /// Failures in a row after which it is not called any more.
    pub quarantine_after: u32,
    /// It is only watched.
    pub shadow: bool,
    /// If it is only watched: in whose place.
    pub replaces: Option<String>,
    /// Where it stands.
    pub places: Places,
}

/// Which of its author's policies a file must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// The name in its manifest.
    pub name: String,
    /// The versions that will do; `None`: any, also one that comes before a release.
    pub version: Option<VersionReq>,
}

/// The file of a public key.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The file.
    pub path: PathBuf,
    /// Where it is named.
    pub place: Place,
}

/// A place in the configuration file, for faults that are found later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// From 1; 0 if unknown.
    pub line: u64,
    /// From 1; 0 if unknown.
    pub column: u64,
}

impl From<Location> for Place {
    fn from(at: Location) -> Self {
        Self { line: at.line(), column: at.column() }
    }
}

/// Where a policy stands in the file. Moving it does not change it, so all are equal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places {
    /// `component`.
    pub component: Place,
    /// `config`.
    pub config: Place,
}

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl PolicyPart {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.policies
            .iter()
            .map(|policy| policy.component.as_path())
            .chain(self.keys.iter().map(|key| key.path.as_path()))
    }
}

pub(super) type Fault = (Location, String);

/// Takes the part out of a file; relative paths are relative to `base`, those of records to `state_dir`.
pub(super) fn policy_part(
    file: &mut File,
    base: &Path,
    state_dir: &Path,
    targets: &[Arc<Target>],
) -> Result<PolicyPart, Fault> {
    let (policies, plugins) = (std::mem::take(&mut file.policies), std::mem::take(&mut file.plugins));
    if policies.len() > MAX_POLICIES {
        return Err((Location::UNKNOWN, format!("{} policies, and {MAX_POLICIES} is the most", policies.len())));
    }
    check_replaced(&policies)?;
    let signed = !plugins.keys.is_empty();
    let record = plugins.record.as_ref().map(|record| self::record(record, state_dir)).transpose()?;
    let policies = policies.into_iter().map(|policy| self::policy(policy, base, plugins.unsigned, signed));
    let policies: Vec<Policy> = policies.collect::<Result<_, _>>()?;
    Ok(PolicyPart {
        answers: answers::answers(file, &policies)?,
        policies,
        keys: plugins
            .keys
            .iter()
            .map(|key| KeyFile { path: base.join(&key.value), place: key.referenced.into() })
            .collect(),
        unsigned: plugins.unsigned,
        record,
        routing: routing(file, targets)?,
    })
}

fn policy(policy: file::Policy, base: &Path, unsigned: Unsigned, signed: bool) -> Result<Policy, Fault> {
    let at = policy.component.referenced;
    if !is_plain_name(&policy.name.value) {
        let what = "a policy's name has 1 to 64 of the characters a-z A-Z 0-9 - _ .";
        return Err((policy.name.referenced, what.to_owned()));
    }
    let (component, builtin) = match policy.component.value.strip_prefix("builtin:") {
        Some(name @ ("routing" | "caching" | "redaction")) => (builtin_component(name), true),
        Some(_) => {
            return Err((at, "expected builtin:routing, builtin:caching, builtin:redaction, or a file".to_owned()));
        }
        None if unsigned == Unsigned::Refuse && !signed => {
            let what = "nobody's signature counts: name the keys of those whom you trust under `plugins.keys`; or \
                        `plugins: {unsigned: allow}` loads it all the same (development only)";
            return Err((at, what.to_owned()));
        }
        None => (base.join(&policy.component.value), false),
    };
    let memory = usize::try_from(policy.memory.value.0).unwrap_or(usize::MAX);
    if !((1 << 20)..=(256 << 20)).contains(&memory) {
        return Err((policy.memory.referenced, "the memory of a policy is between 1MiB and 256MiB".to_owned()));
    }
    Ok(Policy {
        name: policy.name.value,
        component,
        expect: policy.expect.map(expect).transpose()?,
        builtin,
        grants: grants(&policy.grants)?,
        on_failure: policy.on_failure,
        deadline: policy.deadline.0,
        memory,
        quarantine_after: policy.quarantine_after.get(),
        shadow: policy.shadow,
        replaces: policy.replaces.map(|name| name.value),
        places: Places { component: at.into(), config: policy.config.referenced.into() },
        config: policy.config.value,
    })
}

fn expect(written: file::Expect) -> Result<Expect, Fault> {
    let version = written.version.map(|version| {
        let wrong = |error| format!("expected versions such as `>=1.2, <2`: {error}");
        VersionReq::parse(&version.value).map_err(|error| (version.referenced, wrong(error)))
    });
    Ok(Expect { name: written.name, version: version.transpose()? })
}

fn grants(written: &file::Grants) -> Result<postern_plugins::Grants, Fault> {
    let mut headers = BTreeSet::new();
    for header in &written.headers {
        let name = header.value.to_ascii_lowercase();
        if http::HeaderName::try_from(&name).is_err() || name == ANY_HEADER {
            return Err((header.referenced, format!("`{}` is no name of a header", header.value)));
        }
        if !may_be_granted(&name) {
            let what = format!("no policy may see `{name}`: it carries credentials, or is Postern's own");
            return Err((header.referenced, what));
        }
        headers.insert(name);
    }
    match written.headers.get(MAX_HEADERS) {
        Some(header) => Err((header.referenced, format!("a policy may see {MAX_HEADERS} headers at most"))),
        None => Ok(postern_plugins::Grants { headers, text: written.text }),
    }
}

/// Every `replaces` names a policy that counts.
fn check_replaced(policies: &[file::Policy]) -> Result<(), Fault> {
    for policy in policies {
        let Some(replaced) = &policy.replaces else { continue };
        if !policy.shadow {
            let what = "`replaces` is read only with `shadow: true`; to replace a policy for good, write this one in its place";
            return Err((replaced.referenced, what.to_owned()));
        }
        if !policies.iter().any(|other| !other.shadow && other.name.value == replaced.value) {
            let what = format!("there is no policy `{}` that counts", replaced.value);
            return Err((replaced.referenced, what));
        }
    }
    Ok(())
}

fn record(written: &file::Record, state_dir: &Path) -> Result<Record, Fault> {
    let max = written.max.value.0;
    if !((1 << 20)..=(64 << 30)).contains(&max) {
        return Err((written.max.referenced, "`record.max` is between 1MiB and 64GiB".to_owned()));
    }
    Ok(Record { file: state_dir.join(&written.file), max })
}

fn routing(file: &File, targets: &[Arc<Target>]) -> Result<Routing, Fault> {
    let written = &file.routing;
    let exists =
        |name: &str| targets.iter().any(|target| target.name == name) || (name == ENGINE && file.engine.is_some());
    if written.weights.len() > MAX_CHOICES || written.models.len() > MAX_CHOICES {
        let what = format!("`routing` has at most {MAX_CHOICES} weights and {MAX_CHOICES} models");
        return Err((Location::UNKNOWN, what));
    }
    for (name, shares) in &written.weights {
        let wrong = |what: String| Err((shares.referenced, format!("`routing.weights.{name}`: {what}")));
        if !is_plain_name(name) {
            return wrong("a name has 1 to 64 of the characters a-z A-Z 0-9 - _ .".to_owned());
        }
        if let Some(unknown) = shares.value.keys().find(|target| !exists(target)) {
            return wrong(format!("there is no target `{unknown}`"));
        }
        if shares.value.values().all(|share| *share == 0) || shares.value.values().any(|share| *share > MAX_WEIGHT) {
            return wrong(format!("a weight is 0 to {MAX_WEIGHT}, and one must be more than 0"));
        }
    }
    let served = |model: &String| {
        targets.iter().any(|target| target.model(model).is_some())
            || file.engine.as_ref().is_some_and(|e| e.models.is_empty() || e.models.contains(model))
    };
    if let Some(unknown) = written.models.iter().find(|model| !served(model)) {
        return Err((Location::UNKNOWN, format!("`routing.models`: nobody serves `{unknown}`")));
    }
    let named = targets.iter().flat_map(|target| target.models.keys());
    let named = named.chain(file.engine.iter().flat_map(|engine| &engine.models)).chain(&written.models);
    Ok(Routing {
        default: written.default,
        balance: written.balance,
        weights: written.weights.iter().map(|(name, shares)| (name.clone(), shares.value.clone())).collect(),
        models: named.cloned().collect(),
    })
}

/// A name in a path of the admin address, and in metrics.
fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain)
}

/// Names what must not stand twice.
pub(super) fn names(policies: &[file::Policy]) -> impl Iterator<Item = &Placed> {
    policies.iter().map(|policy| &policy.name)
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn read(more: &str) -> Result<PolicyPart, String> {
        let text = format!(
            "listen: 127.0.0.1:8443\nadmin: 127.0.0.1:9443\nstate_dir: state\ntrust: {{domain: b.test}}\n\
             identities: [{{match: spiffe://b.test/clerk/*}}]\n\
             targets:\n  - {{name: sun, placement: cloud, clearance: public, openai: {{base_url: 'https://sun.test/v1'}}}}\n\
             {more}"
        );
        let read = parse(&text, Path::new("/etc/postern/postern.yaml"));
        read.map(|config| config.policy_part).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_meant() {
        let part = read(
            "routing: {default: edge-first, weights: {canary: {sun: 3}}, models: [large]}\n\
             plugins: {keys: [ops.pub], record: {file: seen.jsonl}}\n\
             policies:\n  - {name: a, component: a.wasm, grants: {headers: [X-Team], text: true}, quarantine_after: 3}\n\
             \x20 - {name: b, component: b.wasm, shadow: true, replaces: a}\n",
        )
        .unwrap();
        assert_eq!(part.keys[0].path, Path::new("/etc/postern/ops.pub"));
        assert_eq!(part.record.unwrap(), Record { file: "/etc/postern/state/seen.jsonl".into(), max: 64 << 20 });
        assert_eq!((part.routing.default, part.routing.weights["canary"]["sun"]), (Placement::EdgeFirst, 3));
        assert!(part.routing.models.contains("large"));
        let [a, b] = &part.policies[..] else { panic!("{:?}", part.policies) };
        assert!(a.grants.headers.contains("x-team") && a.grants.text && a.quarantine_after == 3 && !a.shadow);
        assert_eq!((b.shadow, b.replaces.as_deref(), b.quarantine_after), (true, Some("a"), 10));
    }

    #[test]
    fn faults_are_named_with_their_place() {
        let policy = |more: &str| format!("policies: [{{name: mine, component: 'builtin:routing', {more}}}]\n");
        for (more, expected) in [
            ("policies: [{name: mine, component: mine.wasm}]\n".to_owned(), "8:36: nobody's signature counts"),
            ("policies: [{name: 'a/b', component: 'builtin:routing'}]\n".to_owned(), "8:19: a policy's name"),
            (policy("grants: {headers: [x, Cookie]}"), "no policy may see `cookie`"),
            (policy("grants: {headers: [postern-label]}"), "no policy may see `postern-label`"),
            (policy("grants: {headers: ['a b']}"), "`a b` is no name of a header"),
            (policy("grants: {headers: ['*']}"), "`*` is no name of a header"),
            (policy("expect: {name: a, version: new}"), "expected versions such as"),
            (policy("replaces: other"), "only with `shadow: true`"),
            (policy("shadow: true, replaces: other"), "no policy `other` that counts"),
            (policy("shadow: true, replaces: mine"), "no policy `mine` that counts"),
            (
                policy("quarantine_after: 0"),
                "integer `0`, expected a whole number from 1 to 4294967295 at line 8, column",
            ),
            (policy("memory: 1KiB"), "between 1MiB and 256MiB"),
            ("routing: {weights: {w: {moon: 1}}}\n".to_owned(), "`routing.weights.w`: there is no target `moon`"),
            ("routing: {weights: {w: {engine: 1}}}\n".to_owned(), "there is no target `engine`"),
            ("routing: {weights: {w: {sun: 0}}}\n".to_owned(), "one must be more than 0"),
            ("routing: {weights: {w: {}}}\n".to_owned(), "one must be more than 0"),
            ("plugins: {record: {file: x, max: 1B}}\n".to_owned(), "between 1MiB and 64GiB"),
        ] {
            let error = read(&more).unwrap_err();
            assert!(error.contains(expected) && error.contains("postern.yaml:"), "{more}: {error}");
        }
    }

    #[test]
    fn a_policy_that_was_only_moved_is_the_same() {
        let policy = "policies: [{name: a, component: 'builtin:routing', config: {default: cloud}}]\n";
        let (here, there) = (read(policy).unwrap(), read(&format!("\n\n{policy}")).unwrap());
        assert_ne!(here.policies[0].places.config, there.policies[0].places.config);
        assert_eq!(here.policies, there.policies);
        assert_ne!(here.policies, read(&policy.replace("cloud", "local")).unwrap().policies);
    }
}
