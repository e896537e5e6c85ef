//! `postern cache`: asks a running gateway for what will be asked often, through its own port, so that the answers are there when people
//! come to work.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::{say, warn};
use crate::cache::warm::{Counts, Line, read, warm};
use crate::demo::client::Client;

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

pub(super) fn run(command: CacheCommand) -> anyhow::Result<ExitCode> {
    let CacheCommand::Warm(arguments) = command;
    let lines = read(&arguments.file)?;
    if let Some(line) = lines.iter().find(|line| line.identity.is_some()) {
        bail!(
            "{}: line {}: `as` is for `cache.warm`; here the certificate says who asks",
            arguments.file.display(),
            line.number
        );
    }
    let client = Client::new(arguments.gateway, &arguments.cert)
        .with_context(|| format!("the certificate in {}", arguments.cert.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let headers: Vec<_> = arguments.label.iter().map(|label| ("postern-label", label.as_str())).collect();
    let ask = async |line: Arc<Line>| client.post(line.path, line.body.clone(), &headers).await;
    let tell = |number, what: &str| warn(&format!("line {number}: {what}"));
    let asked = runtime.block_on(warm(lines, usize::from(arguments.parallel), ask, tell));
    let asked = asked.with_context(|| format!("the gateway at {}", arguments.gateway))?;
    let Counts { kept, there, bypassed, failed } = asked;
    say(&format!("{kept} asked, {there} there already, {bypassed} not for the cache, {failed} failed"));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
