//! `postern certs`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use postern_certs::{LeafRequest, Role, SpiffeId};
use time::format_description::well_known::Rfc3339;

use super::say;
use crate::{config, tls};

#[derive(Debug, Subcommand)]
pub(super) enum CertsCommand {
    /// Issue a client certificate, for an operator on this machine.
    Issue {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Whom it is for, such as spiffe://branch.example.org/clerk/amy.
        #[arg(long, value_name = "SPIFFE-ID")]
        id: SpiffeId,
        /// Where to write cert.pem, key.pem and ca.pem.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}

pub(super) fn run(command: CertsCommand) -> anyhow::Result<ExitCode> {
    let CertsCommand::Issue { config, id, out } = command;
    let config = config::load(&config)?;
    let authority = tls::authority(&config)?;
    let leaf = authority.issue(LeafRequest { id: id.clone(), role: Role::Workload })?;
    leaf.write(&out, &authority.trust_bundle()).with_context(|| format!("writing to {}", out.display()))?;
    say(&format!(
        "{}: cert.pem, key.pem and ca.pem for {id}, valid until {}",
        out.display(),
        leaf.not_after.format(&Rfc3339)?
    ));
    if !config.identities.iter().any(|rule| rule.pattern.matches(&id)) {
        say("note: no rule under `identities` matches this ID, so the gateway will refuse it");
    }
    Ok(ExitCode::SUCCESS)
}
