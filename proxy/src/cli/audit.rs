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
use postern_tlog::{Key, LogError, WitnessKey, read_file};
use time::Date;

use crate::audit::{LogKeys, Records};
use crate::config;

/// Bytes of a file with a key at most.
const MAX_KEY: u64 = 4096;

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
    done(command).map_err(|error| {
        let (said, shown) = (format!("{error:#}"), plain(&format!("{error:#}")));
        if said == shown { error } else { anyhow::anyhow!(shown) }
    })
}

fn done(command: AuditCommand) -> anyhow::Result<ExitCode> {
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

/// What somebody else wrote, for a terminal: what would move its cursor, change its colours or turn its text round is written as JSON writes it.
fn plain(text: &str) -> String {
    let turns =
        |letter: char| matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    let one = |letter: char| match letter {
        letter if letter.is_control() || turns(letter) => format!("\\u{:04x}", u32::from(letter)),
        letter => letter.to_string(),
    };
    text.chars().map(one).collect()
}

/// Says a line.
fn say(line: &str) {
    super::say(&plain(line));
}

/// Says a text, line by line.
fn say_lines(text: &str) {
    text.lines().for_each(say);
}

/// A public key, or a file that has one.
fn key(written: &str) -> anyhow::Result<Key> {
    key_or_file(written, Key::parse)
}

/// So for a witness.
fn witness(written: &str) -> anyhow::Result<WitnessKey> {
    key_or_file(written, WitnessKey::parse)
}

fn key_or_file<K>(written: &str, parse: impl Fn(&str) -> Result<K, LogError>) -> anyhow::Result<K> {
    let wrong = match parse(written) {
        Ok(key) => return Ok(key),
        Err(wrong) => wrong,
    };
    let path = Path::new(written);
    match read_file(path, MAX_KEY).with_context(|| written.to_owned())? {
        Some(bytes) => parse(&String::from_utf8_lossy(&bytes)).with_context(|| path.display().to_string()),
        None => Err(wrong).with_context(|| format!("{written}: neither a file nor a key")),
    }
}

/// A day, such as 2026-11-26.
fn day(written: &str) -> Result<Date, &'static str> {
    let format = time::macros::format_description!("[year]-[month]-[day]");
    Date::parse(written, &format).map_err(|_| "expected a day such as 2026-11-26; days are those of UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_does_nothing_to_a_terminal() {
        assert_eq!(plain("a\u{1b}[2J\u{9b}b\n\u{202e}c ä"), "a\\u001b[2J\\u009bb\\u000a\\u202ec ä");
    }

    #[test]
    fn a_witness_may_be_named_by_a_file() {
        let key = WitnessKey::named("witness.example.org", [7; 32]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("witness.pub");
        std::fs::write(&file, format!("{key}\n")).unwrap();
        assert_eq!(witness(&file.display().to_string()).unwrap(), key);
        assert_eq!(witness(&key.to_string()).unwrap(), key);
        assert!(witness("/nowhere").unwrap_err().to_string().contains("neither a file nor a key"));
    }
}
