//! Client libraries as they are published, against the real gateway: `tests/clients` has what they do. `make test` installs them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use postern_tests::{BusyCloud, Config, Postern};
use serde_json::json;

use crate::config;

pub(crate) const SCENES: [&str; 8] =
    ["plain", "streamed", "tools", "structured", "embeddings", "completions", "models", "errors"];

pub(crate) fn target(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")).join(path)
}

/// Node, with this as a module. What it imports is found from the folder that it runs in.
pub(crate) fn node(script: &str) -> Command {
    let installed = target("node/bin/node");
    let mut node = if installed.is_file() { Command::new(installed) } else { Command::new("node") };
    node.current_dir(target("node")).args(["--input-type=module", "--eval", script]);
    node
}

/// A gateway with a cloud and the real model.
async fn office(cloud: &BusyCloud) -> Result<Postern> {
    let postern = Postern::start(&office_config(cloud)).await?;
    postern.engine_ready().await?;
    Ok(postern)
}

pub(crate) fn office_config(cloud: &BusyCloud) -> Config {
    config(cloud)
        .engine()
        .set("/engine/models", json!(["chat"]))
        .set("/targets/0/models", json!({"chat": "busy-large", "embed": "busy-embed"}))
}

fn run(postern: &Postern, mut command: Command) -> Result<String> {
    let identity = postern.issue("clerk/amy")?;
    command.env("POSTERN_URL", format!("https://{}/v1", postern.gateway));
    for (name, file) in [("POSTERN_CA", "ca.pem"), ("POSTERN_CERT", "cert.pem"), ("POSTERN_KEY", "key.pem")] {
        command.env(name, identity.join(file));
    }
    let output = command.output().with_context(|| format!("{:?}; `make test` installs it", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{said}{}\n{}", String::from_utf8_lossy(&output.stderr), postern.log());
    Ok(said)
}

#[tokio::test]
async fn the_sdk_for_python_does_what_it_does_elsewhere() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = office(&cloud).await?;
    let mut python = Command::new(target("venv/bin/python"));
    python.args(["-c", include_str!("../clients/client.py")]);
    let said = run(&postern, python)?;
    for scene in SCENES.into_iter().chain(["asynchronous"]) {
        assert!(said.contains(&format!("ok {scene}\n")), "{scene}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn the_sdk_for_node_does_what_it_does_elsewhere() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = office(&cloud).await?;
    let said = run(&postern, node(include_str!("../clients/client.mjs")))?;
    for scene in SCENES {
        assert!(said.contains(&format!("ok {scene}\n")), "{scene}: {said}");
    }
    // As the documentation shows it.
    let page = include_str!("../../docs/clients.md");
    let (_, shown) = page.split_once("```js\n").context("a snippet")?;
    let (shown, _) = shown.split_once("```").context("its end")?;
    assert!(run(&postern, node(shown))?.contains("harbour"));
    Ok(())
}
