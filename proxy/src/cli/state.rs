//! `postern state`: what a gateway keeps.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};

use super::{say, warn};
use crate::config;
use crate::erase::Wish;

/// How long the command waits for the gateway.
const WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a gateway keeps.
#[derive(Debug, Subcommand)]
pub(super) enum StateCommand {
    /// Destroy the keys of what is kept of a tenant: its cached answers, and what its hashes in the records are of.
    Erase(Erase),
}

/// Whose.
#[derive(Debug, Args)]
pub(super) struct Erase {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The tenant that a rule of `identities` names; where none does, the SPIFFE ID.
    #[arg(long, value_name = "TENANT")]
    tenant: String,
}

pub(super) fn run(command: &StateCommand) -> anyhow::Result<ExitCode> {
    let StateCommand::Erase(Erase { config: file, tenant }) = command;
    let config = config::load(file)?;
    ensure!(!tenant.is_empty() && tenant.len() <= 2048, "--tenant: a name of 1 to 2048 bytes");
    let done = Wish { tenant: tenant.clone() }.leave(&config.audit.state_dir).context("state_dir")?;
    let until = Instant::now() + WITHIN;
    while !done.exists() {
        if Instant::now() > until {
            warn(&format!(
                "not done yet: no gateway runs with this state_dir, or its Redis is away (its log says which). It is done as soon as it can be; {} is there then",
                done.display()
            ));
            return Ok(ExitCode::FAILURE);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    say(&format!(
        "the keys of {tenant} are destroyed. Run this on each replica: what another holds in memory, and its own keys of hashes, stay until then. A copy of the Redis from before holds keys and answers still"
    ));
    Ok(ExitCode::SUCCESS)
}
