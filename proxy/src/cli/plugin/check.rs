//! `postern plugin check`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use postern_plugins::{Asked, FleetFacts, Package, PluginError, Policy, RequestFacts};
use serde::Serialize;

use super::load::{self, Loaded, Settings, Source};
use super::{Wrong, keys};
use crate::cli::say;
use crate::supervise::EXIT_CONFIG;

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// A file, or builtin:routing, builtin:caching, builtin:redaction.
    #[arg(value_name = "FILE|builtin:NAME")]
    policy: Source,
    #[command(flatten)]
    settings: Settings,
    /// A public key that is trusted; may be said several times.
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// What can be said of a policy.
#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    name: Option<String>,
    version: Option<String>,
    description: Option<String>,
    digest: String,
    size_bytes: usize,
    exports: Vec<String>,
    imports: Vec<String>,
    grants: Asked,
    metrics: Vec<String>,
    config: ConfigSaid,
    memory_bytes: u64,
    table_elements: u64,
    signature: SignatureSaid,
    loads: bool,
    /// Why it does not load.
    fault: Option<String>,
    load_ms: Option<u128>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ConfigSaid {
    /// The manifest says nothing of it.
    NoSchema,
    /// Nothing was given, and that fits.
    Fits,
    /// The fault, with its place.
    Wrong(String),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
enum SignatureSaid {
    /// It came along with Postern.
    Builtin,
    None,
    /// The file is not as it was when it was signed, or the signature is damaged.
    Bad {
        fault: String,
    },
    /// By a key that was not named: nothing is proven.
    Unknown {
        key: String,
    },
    Good {
        key: String,
        file: String,
    },
}

pub(super) fn run(command: &Check) -> anyhow::Result<ExitCode> {
    let keys = keys::read_keys(&command.keys)?;
    let package = command.policy.read()?;
    let section = command.settings.section()?;
    let manifest = package.manifest().cloned();
    let has_schema = manifest.as_ref().is_some_and(|manifest| manifest.config_schema.is_some());
    let config = match package.check_config(&section) {
        Err(error) => ConfigSaid::Wrong(error.to_string()),
        Ok(()) if has_schema => ConfigSaid::Fits,
        Ok(()) => ConfigSaid::NoSchema,
    };
    let contents = package.contents().clone();
    let mut checked = Checked {
        file: command.policy.as_str().to_owned(),
        name: manifest.as_ref().map(|manifest| manifest.name.clone()),
        version: manifest.as_ref().map(|manifest| manifest.version.to_string()),
        description: manifest.as_ref().and_then(|manifest| manifest.description.clone()),
        digest: package.digest().to_owned(),
        size_bytes: package.bytes().len(),
        exports: contents.exports,
        imports: contents.imports,
        grants: manifest.as_ref().map(|manifest| manifest.grants.clone()).unwrap_or_default(),
        metrics: package.metrics().map(str::to_owned).collect(),
        config,
        memory_bytes: contents.needs.memory_bytes,
        table_elements: contents.needs.table_elements,
        signature: signature(&package, command.policy.is_builtin(), &keys),
        loads: false,
        fault: None,
        load_ms: None,
    };
    match try_out(command, package) {
        Ok(loaded) => (checked.loads, checked.load_ms) = (true, Some(loaded.took.as_millis())),
        Err(error) => checked.fault = Some(format!("{error:#}")),
    }
    let bad = matches!(checked.signature, SignatureSaid::Bad { .. });
    let trusted = matches!(checked.signature, SignatureSaid::Good { .. } | SignatureSaid::Builtin);
    if checked.loads && (bad || !(keys.is_empty() || trusted)) {
        checked.loads = false;
        checked.fault = Some("not where these keys count: none of them vouches for it".to_owned());
    }
    say(&if command.json { serde_json::to_string(&checked)? } else { text(&checked) });
    Ok(if checked.loads { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CONFIG) })
}

fn signature(package: &Package, builtin: bool, keys: &[(PathBuf, postern_plugins::PublicKey)]) -> SignatureSaid {
    let trusted: Vec<_> = keys.iter().map(|(_, key)| key.clone()).collect();
    match package.verify(&trusted) {
        Ok(key) => SignatureSaid::Good { file: keys::file_of(keys, &key), key: key.to_string() },
        Err(PluginError::Unsigned) if builtin => SignatureSaid::Builtin,
        Err(PluginError::Unsigned) => SignatureSaid::None,
        Err(PluginError::UnknownSigner(key)) => SignatureSaid::Unknown { key: key.to_string() },
        Err(error) => SignatureSaid::Bad { fault: error.to_string() },
    }
}

/// Loads it and asks it once about nothing, as the gateway does.
fn try_out(command: &Check, package: Package) -> anyhow::Result<Loaded> {
    let host = load::host()?;
    let loaded = load::load(&host, &command.policy, package, &command.settings)?;
    match load::block_on(probe(&loaded.policy))? {
        Some(fault) => Err(Wrong::because(fault)),
        None => Ok(loaded),
    }
}

async fn probe(policy: &Policy) -> Option<String> {
    let request = RequestFacts { model: "probe".to_owned(), ..RequestFacts::default() };
    let context = load::context(&request, 0);
    let steps = policy.steps();
    let mut failures = Vec::new();
    if steps.redaction {
        failures.extend(policy.try_find().await.err());
    }
    if steps.routing {
        failures.extend(policy.route(&context, &request, &FleetFacts::default()).await.answer.err());
    }
    if steps.caching {
        failures.extend(policy.plan(&context, &request).await.answer.err());
    }
    failures.first().map(|failure| format!("it loads, but fails when it is asked about an empty request: {failure}"))
}

fn text(checked: &Checked) -> String {
    let list = |names: &[String]| if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    let head = match (&checked.name, &checked.version) {
        (Some(name), Some(version)) => format!("{}: {name} {version}", checked.file),
        _ => format!("{}: without a manifest (`postern plugin pack` adds one)", checked.file),
    };
    let asked = match (&checked.grants, list(&Vec::from_iter(checked.grants.headers.iter().cloned()))) {
        (grants, _) if grants.is_nothing() => "nothing".to_owned(),
        (Asked { text: true, headers }, _) if headers.is_empty() => "the text of messages".to_owned(),
        (Asked { text: true, .. }, headers) => format!("the text of messages; the headers {headers}"),
        (_, headers) => format!("the headers {headers}"),
    };
    let config = match &checked.config {
        ConfigSaid::NoSchema => "any (the manifest has no schema)".to_owned(),
        ConfigSaid::Fits => "fits the schema of the manifest".to_owned(),
        ConfigSaid::Wrong(fault) => fault.clone(),
    };
    let signature = match &checked.signature {
        SignatureSaid::Builtin => "none; comes along with Postern, which trusts it".to_owned(),
        SignatureSaid::None => "none".to_owned(),
        SignatureSaid::Bad { fault } => fault.clone(),
        SignatureSaid::Unknown { key } => {
            format!("says it is by the key {key}, which no --key names: nothing is proven")
        }
        SignatureSaid::Good { key, file } => format!("good, by the key {key} ({file})"),
    };
    let loads = match (&checked.fault, checked.load_ms) {
        (Some(fault), _) => format!("no: {fault}"),
        (None, ms) => {
            let ms = ms.unwrap_or_default();
            match &checked.signature {
                SignatureSaid::None | SignatureSaid::Unknown { .. } => {
                    format!("yes, in {ms} ms; a gateway also asks for a signature by a key of its `plugins.keys`")
                }
                _ => format!("yes, in {ms} ms"),
            }
        }
    };
    let mut lines = vec![head];
    lines.extend(checked.description.as_ref().map(|description| format!("  {description}")));
    for (what, said) in [
        ("digest", checked.digest.clone()),
        ("size", format!("{} bytes", checked.size_bytes)),
        ("exports", list(&checked.exports)),
        ("imports", list(&checked.imports)),
        ("asks to see", asked),
        ("metrics", list(&checked.metrics)),
        ("configuration", config),
        ("needs", format!("{} KiB of memory, {} table elements", checked.memory_bytes >> 10, checked.table_elements)),
        ("signature", signature),
        ("loads here", loads),
    ] {
        lines.push(format!("  {what:14}{said}"));
    }
    lines.join("\n")
}
