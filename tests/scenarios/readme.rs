//! The README's snippets, as they stand there, against what `make run` leaves serving.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postern_tests::postern::binary;
use postern_tests::process::Process;
use serde_json::Value;

const README: &str = include_str!("../../README.md");
const UP_WITHIN: Duration = Duration::from_secs(180);
const END_WITHIN: Duration = Duration::from_secs(60);

/// The first block of `language` that has `word` in it.
fn snippet(language: &str, word: &str) -> Result<&'static str> {
    let begin = format!("```{language}\n");
    let blocks = README.split(begin.as_str()).skip(1);
    let mut blocks = blocks.filter_map(|rest| rest.split_once("\n```")).map(|(block, _)| block);
    blocks.find(|block| block.contains(word)).with_context(|| format!("a {language} snippet with {word}"))
}

fn run(mut command: Command, kept: &Value) -> Result<String> {
    for (name, field) in [("POSTERN_CA", "ca"), ("POSTERN_CERT", "cert"), ("POSTERN_KEY", "key")] {
        command.env(name, kept[field].as_str().context("a field of the line")?);
    }
    command.env("POSTERN_URL", format!("{}/v1", kept["gateway"].as_str().context("gateway")?));
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}: {said} {}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

#[tokio::test]
async fn the_snippets_of_the_readme_work() -> Result<()> {
    let mut command = Command::new(binary()?);
    command.args(["demo", "--keep", "--json"]);
    let mut demo = Process::start("postern demo", command)?;
    let kept: Value = demo.line(UP_WITHIN, |line| serde_json::from_str(line).ok()).await?;

    let mut curl = Command::new("bash");
    curl.args(["-c", &format!("curl -s {}", snippet("sh", "curl --cacert")?.trim_start_matches("curl "))]);
    let answer: Value = serde_json::from_str(&run(curl, &kept)?)?;
    let text = answer["choices"][0]["message"]["content"].as_str().context("an answer")?;
    assert!(text.contains("ann.lee@example.org"), "{text}");

    // `make test` installs the SDK there.
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/venv/bin/python");
    let mut sdk = Command::new(python);
    sdk.args(["-c", snippet("python", "openai.OpenAI")?]);
    let said = run(sdk, &kept)?;
    assert!(said.contains("ann.lee@example.org"), "{said}");

    // What is sealed for applications without certificates; docs/connect.md has the line.
    let field = |name: &str| kept[name].as_str().context("a field of the line");
    let (connect, token) = (field("connect")?, std::fs::read_to_string(field("connect_token")?)?);
    let mut curl = Command::new("curl");
    curl.args(["-s", "-H", "Content-Type: application/json", "-H", &format!("Authorization: Bearer {}", token.trim())]);
    curl.args(["-d", r#"{"model": "chat", "messages": [{"role": "user", "content": "Good morning"}]}"#]);
    curl.arg(format!("{connect}/chat/completions"));
    assert!(run(curl, &kept)?.contains("Good morning"));

    let folder = kept["config"].as_str().context("config")?.to_owned();
    assert_eq!(demo.stop(END_WITHIN).await?.code(), Some(0), "{}", demo.log());
    assert!(!std::path::Path::new(&folder).exists(), "the scratch folder is removed");
    Ok(())
}
