//! `postern cache`: asks a running gateway for what will be asked often, through its own port, so that the answers are there when people
//! come to work.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use futures_util::StreamExt as _;
use serde_json::Value;

use super::{say, warn};
use crate::demo::client::{Answer, Client};

/// Bytes of one line.
const MAX_LINE: u64 = 8 << 20;
/// Bytes of all lines.
const MAX_FILE: u64 = 256 << 20;
/// How often a request that is over a limit is sent again, and how long is waited for it at most.
const TRIES: u32 = 20;
const MAX_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(super) enum CacheCommand {
    /// Send requests to the gateway on this machine, so that it has their answers.
    Warm(Warm),
}

/// Arguments of `postern cache warm`.
#[derive(Debug, Args)]
pub(super) struct Warm {
    /// JSON lines: each is the body of a request for a chat, a completion or vectors.
    file: PathBuf,
    /// The gateway's address on this machine, such as 127.0.0.1:8443.
    #[arg(long, value_name = "ADDRESS")]
    gateway: SocketAddr,
    /// Whose answers they are: a folder with cert.pem, key.pem and ca.pem, as `postern certs issue` writes it.
    #[arg(long, value_name = "FOLDER")]
    cert: PathBuf,
    /// The label of the requests, if it is above what the gateway finds by itself.
    #[arg(long)]
    label: Option<String>,
    /// Requests at a time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
}

/// One line.
struct Line {
    number: usize,
    path: &'static str,
    body: String,
}

#[derive(Default)]
struct Counts {
    kept: usize,
    there: usize,
    bypassed: usize,
    failed: usize,
}

pub(super) fn run(command: CacheCommand) -> anyhow::Result<ExitCode> {
    let CacheCommand::Warm(arguments) = command;
    // All of them are read first: a mistake in the last line is told before the first one is paid for.
    let lines = read(&arguments.file)?;
    let client = Client::new(arguments.gateway, &arguments.cert)
        .with_context(|| format!("the certificate in {}", arguments.cert.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counts = runtime.block_on(warm(&client, &arguments, lines))?;
    let Counts { kept, there, bypassed, failed } = counts;
    say(&format!("{kept} asked, {there} there already, {bypassed} not for the cache, {failed} failed"));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn warm(client: &Client, arguments: &Warm, lines: Vec<Line>) -> anyhow::Result<Counts> {
    let asked = futures_util::stream::iter(lines).map(|line| async move {
        let answer = ask(client, &line, arguments.label.as_deref()).await;
        (line.number, answer)
    });
    let mut asked = asked.buffer_unordered(usize::from(arguments.parallel));
    let mut counts = Counts::default();
    while let Some((number, answer)) = asked.next().await {
        // Nobody is there, or does not take the certificate: the other lines would not do better.
        let answer = answer.with_context(|| format!("line {number}: the gateway at {}", arguments.gateway))?;
        match (answer.status, answer.header("postern-cache")) {
            (200, _) if !answer.complete => {
                warn(&format!("line {number}: the answer broke off"));
                counts.failed += 1;
            }
            (200, "exact" | "semantic" | "shared") => counts.there += 1,
            (200, "miss") => counts.kept += 1,
            (200, _) => counts.bypassed += 1,
            (status, _) => {
                let error: Value = serde_json::from_str(&answer.text).unwrap_or_default();
                let message = error.pointer("/error/message").and_then(Value::as_str).unwrap_or("no reason was given");
                warn(&format!("line {number}: status {status}: {message}"));
                counts.failed += 1;
            }
        }
    }
    Ok(counts)
}

/// Asks, and again where a limit wants it later.
async fn ask(client: &Client, line: &Line, label: Option<&str>) -> anyhow::Result<Answer> {
    let headers: Vec<(&'static str, &str)> = label.map(|label| ("postern-label", label)).into_iter().collect();
    let mut tries = 0;
    loop {
        let answer = client.post(line.path, line.body.clone(), &headers).await?;
        let later = answer.header("retry-after").parse().ok().map(Duration::from_secs);
        tries += 1;
        match later.filter(|_| answer.status == 429 && tries < TRIES) {
            Some(later) => tokio::time::sleep(later.min(MAX_WAIT)).await,
            None => return Ok(answer),
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<Line>> {
    let name = file.display();
    let opened = std::fs::File::open(file).with_context(|| format!("{name}"))?;
    let mut reader = BufReader::new(opened);
    let (mut lines, mut bytes) = (Vec::new(), 0);
    for number in 1.. {
        let mut text = String::new();
        let read = reader.by_ref().take(MAX_LINE + 1).read_line(&mut text);
        let read = read.with_context(|| format!("{name}: line {number}"))? as u64;
        bytes += read;
        if read > MAX_LINE || bytes > MAX_FILE {
            bail!("{name}: line {number}: a line has at most 8 MiB, and all of them 256 MiB");
        }
        if read == 0 {
            break;
        }
        if !text.trim().is_empty() {
            lines.push(line(number, text.trim()).with_context(|| format!("{name}: line {number}"))?);
        }
    }
    if lines.is_empty() {
        bail!("{name} has no requests");
    }
    Ok(lines)
}

/// What it asks for shows by its fields, as in the API.
fn line(number: usize, text: &str) -> anyhow::Result<Line> {
    let body: Value =
        serde_json::from_str(text).map_err(|error| anyhow::anyhow!("not JSON, at column {}", error.column()))?;
    let paths = [("messages", "/v1/chat/completions"), ("prompt", "/v1/completions"), ("input", "/v1/embeddings")];
    let path = paths.iter().find(|(field, _)| body.get(field).is_some());
    let (_, path) = path.context("not a request: it has neither `messages`, nor `prompt`, nor `input`")?;
    Ok(Line { number, path, body: text.to_owned() })
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_line_is_a_request_or_it_is_said_which_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("warm.jsonl");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            super::read(&file).map_err(|error| format!("{error:#}"))
        };
        let lines = read("{\"messages\": []}\n\n {\"prompt\": \"a\"}\r\n{\"input\": \"a\"}").unwrap();
        let told: Vec<_> = lines.iter().map(|line| (line.number, line.path)).collect();
        assert_eq!(told, [(1, "/v1/chat/completions"), (3, "/v1/completions"), (4, "/v1/embeddings")]);
        for (text, wanted) in [
            ("{\"messages\": []}\n{\"message\": []}", "line 2: not a request"),
            ("{\"messages\": [}", "line 1: not JSON, at column 15"),
            ("\n\n", "has no requests"),
        ] {
            let error = read(text).err().unwrap();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(super::read(&dir.path().join("other")).is_err());
    }
}
