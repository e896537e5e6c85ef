//! Policies through the real gateway: what they are told, what their votes do, what becomes of what they write, and how they are
//! exchanged. The policy is a puppet (`tests/guests/puppet`): it does what its configuration says.

mod effects;
mod exchange;
mod facts;
mod failures;
mod load;
mod shadow;
mod signatures;
mod votes;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use postern_tests::postern::run;
use postern_tests::{BusyCloud, Client, Config, Postern, Record, Reply, chat_body};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::SOON;

/// Stands in the puppet's file; scenarios write a number over the digits.
const MARK: &[u8] = b"puppet-version-000000";

/// Versions of the puppet, each a file, and a place where one of them is installed.
pub(super) struct Puppet {
    dir: TempDir,
    wasm: Vec<u8>,
}

impl Puppet {
    pub(super) fn new() -> Result<Self> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-plugins/puppet.wasm");
        let wasm = std::fs::read(&file).with_context(|| format!("{}: `make plugins` builds it", file.display()))?;
        Ok(Self { dir: tempfile::tempdir()?, wasm })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The file of a version, which is in its manifest and in its code; `more` is added to the manifest.
    fn version(&self, number: u32, more: &[(&str, Value)]) -> Result<PathBuf> {
        let mut wasm = self.wasm.clone();
        let at = wasm.windows(MARK.len()).position(|bytes| bytes == MARK).context("the mark in the puppet")?;
        wasm[at..at + MARK.len()].copy_from_slice(format!("puppet-version-{number:06}").as_bytes());
        let mut manifest = json!({"name": "puppet", "version": format!("1.{number}.0")});
        for (key, value) in more {
            manifest[*key] = value.clone();
        }
        let (core, text, out) = (self.at("core.wasm"), self.at("manifest.yaml"), self.at(&format!("{number}.wasm")));
        std::fs::write(&core, wasm)?;
        std::fs::write(&text, manifest.to_string())?;
        let arguments = ["plugin", "pack", path(&core), "--manifest", path(&text), "--out", path(&out)];
        postern_plugin(&arguments)?;
        Ok(out)
    }

    /// The file that gateways are pointed at.
    fn installed(&self) -> PathBuf {
        self.at("installed.wasm")
    }

    /// Puts a file in that place, as whole as a package does it.
    fn install(&self, file: &Path) -> Result<()> {
        let beside = self.at("beside.wasm");
        std::fs::copy(file, &beside)?;
        std::fs::rename(beside, self.installed())?;
        Ok(())
    }

    /// Version 1, installed.
    pub(super) fn first(&self, more: &[(&str, Value)]) -> Result<()> {
        self.install(&self.version(1, more)?)
    }

    /// An entry of `policies` for the installed file.
    pub(super) fn policy(&self, config: Value) -> Value {
        self.policy_at(&self.installed(), config)
    }

    fn policy_at(&self, file: &Path, config: Value) -> Value {
        json!({"name": "puppet", "component": file, "config": config, "deadline": "5s"})
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn postern_plugin(arguments: &[&str]) -> Result<String> {
    let output = run(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "postern {arguments:?}: {}: {said}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// A gateway with one cloud, `sun` (clearance `internal`), and this policy.
fn config(cloud: &BusyCloud, policy: Value) -> Config {
    // Compiled policies are shared by all scenarios: compiling takes seconds.
    let compiled = concat!(env!("CARGO_TARGET_TMPDIR"), "/compiled");
    let plugins = json!({"unsigned": "allow", "compiled": compiled});
    Config::new().cloud("sun", cloud, "internal").set("/plugins", plugins).push("/policies", policy)
}

/// The same entry of a configuration with more in it.
fn with(mut policy: Value, more: &[(&str, Value)]) -> Value {
    for (key, value) in more {
        policy[*key] = value.clone();
    }
    policy
}

async fn ask(client: &Client, model: &str, prompt: &str) -> Result<Reply> {
    let mut body = chat_body(prompt);
    body["model"] = json!(model);
    client.post_json("/v1/chat/completions", &body).await
}

async fn record(postern: &Postern, reply: &Reply) -> Result<Record> {
    postern.records().of(reply.header("postern-record"), SOON).await
}

/// What the record has of the policy `puppet`, at the routing step.
async fn said(postern: &Postern, reply: &Reply) -> Result<Value> {
    let record = record(postern, reply).await?;
    let of = |side: &Value| side["policies"].as_array().cloned().unwrap_or_default();
    let mut all = of(&record.intent).into_iter().chain(of(&record.outcome));
    let wanted = |said: &Value| said["policy"] == "puppet" && said["step"] == "routing";
    all.find(wanted).with_context(|| format!("no word of the puppet in {record:?}"))
}

async fn described(postern: &Postern, name: &str) -> Result<Value> {
    let all = postern.admin("/api/policies").await?.json()?;
    let policies = all["policies"].as_array().context("policies")?;
    policies.iter().find(|policy| policy["name"] == name).cloned().with_context(|| format!("{name} in {all}"))
}

/// Waits until something of the gateway is as it should be.
async fn until<T, F: Future<Output = Result<Option<T>>>>(mut look: impl FnMut() -> F) -> Result<T> {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(std::time::Instant::now() < deadline, "it did not happen within {SOON:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
