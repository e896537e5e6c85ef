//! The records: checked, proved and read, with the files and a public key. Nothing here needs the gateway, or writes anything.

mod export;
mod proof;
mod roster;
mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use postern_tlog::Key;
use time::Date;

use super::say;
use crate::audit::{LogKeys, Records};
use crate::config;

/// The records of what happened.
#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Read the whole log and check it: every record, tile and checkpoint. Exit code 1: something is not as it was written.
    Verify(verify::Arguments),
    /// A proof that a record is in the log, for somebody who has neither the log nor this program.
    Prove(proof::Prove),
    /// Check such a proof.
    CheckProof(proof::Check),
    /// Print records, for some days or all.
    Export(export::Export),
    /// Print the newest records, and with --follow those that come.
    Tail(export::Tail),
    /// Print the roster: the keys of all logs that belong together, signed by each. What of them is missing, `verify --roster` says.
    Roster(Place),
    /// Print the public key of the log, which whoever checks it should have from elsewhere than its folder.
    Key(Place),
}

/// Where a log is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false, id = "place")]
pub(super) struct Place {
    /// The configuration of its gateway.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Its folder: `audit.dir`, or a copy of it.
    #[arg(long, value_name = "FOLDER")]
    log: Option<PathBuf>,
}

impl Place {
    fn at(folder: &Path) -> Self {
        Self { config: None, log: Some(folder.to_owned()) }
    }

    fn of(file: &Path) -> Self {
        Self { config: Some(file.to_owned()), log: None }
    }

    fn folder(&self) -> anyhow::Result<PathBuf> {
        let folder = match (&self.log, &self.config) {
            (Some(folder), _) => folder.clone(),
            (None, Some(file)) => config::load(file)?.audit.dir,
            (None, None) => anyhow::bail!("--config or --log is needed"),
        };
        anyhow::ensure!(folder.is_dir(), "{}: there is no such folder", folder.display());
        Ok(folder)
    }

    fn records(&self) -> anyhow::Result<Records> {
        Ok(Records::in_folder(&self.folder()?))
    }
}

pub(super) fn run(command: AuditCommand) -> anyhow::Result<ExitCode> {
    let done = match command {
        AuditCommand::Verify(arguments) => return verify::run(&arguments),
        AuditCommand::Prove(arguments) => proof::prove(&arguments),
        AuditCommand::CheckProof(arguments) => proof::check(&arguments),
        AuditCommand::Export(arguments) => export::export(&arguments),
        AuditCommand::Tail(arguments) => export::tail(&arguments),
        AuditCommand::Roster(place) => roster::print(&place),
        AuditCommand::Key(place) => place.folder().and_then(|folder| own_key(&folder)).map(|key| say(&key.to_string())),
    };
    match done {
        // Whoever read had enough.
        Err(error)
            if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            Ok(ExitCode::SUCCESS)
        }
        done => done.map(|()| ExitCode::SUCCESS),
    }
}

/// The key that lies beside the log.
fn own_key(folder: &Path) -> anyhow::Result<Key> {
    let key = LogKeys::of(folder, folder).public()?;
    key.with_context(|| format!("{}: there is no log, at least no key.pub", folder.display()))
}

/// A public key, or a file that has one.
fn key(written: &str) -> anyhow::Result<Key> {
    if let Ok(key) = Key::parse(written) {
        return Ok(key);
    }
    let path = Path::new(written);
    match std::fs::read_to_string(path) {
        Ok(text) => Key::parse(&text).with_context(|| path.display().to_string()),
        Err(_) => Ok(Key::parse(written).with_context(|| format!("{written}: neither a file nor a key"))?),
    }
}

/// A day, such as 2026-11-26.
fn day(written: &str) -> Result<Date, &'static str> {
    let format = time::macros::format_description!("[year]-[month]-[day]");
    Date::parse(written, &format).map_err(|_| "expected a day such as 2026-11-26; days are those of UTC")
}
