//! `postern audit prove` and `check-proof`.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use postern_tlog::{Files, Proof};

use super::{Place, key, own_key, say, say_lines};
use crate::audit::Records;

/// Which record.
#[derive(Debug, Args)]
pub(in crate::cli) struct Prove {
    /// Its number, or the ID that `Postern-Record` gave the client: then all that there is of that request is proved.
    #[arg(value_name = "NUMBER or ID")]
    which: String,
    #[command(flatten)]
    place: Place,
    /// Write here: for an ID, one file for each of its records, with the number before the ending. Absent: to the output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A proof.
#[derive(Debug, Args)]
pub(in crate::cli) struct Check {
    /// The file.
    #[arg(value_name = "FILE")]
    proof: PathBuf,
    /// The log's public key, or a file that has it.
    #[arg(long, value_name = "KEY")]
    key: String,
}

pub(super) fn prove(arguments: &Prove) -> anyhow::Result<()> {
    let folder = arguments.place.folder()?;
    let files = Files::new(&folder);
    let checkpoint = files.checkpoint()?.with_context(|| format!("{}: there is no checkpoint", folder.display()))?;
    let signed = own_key(&folder)?.checkpoint(&checkpoint)?;
    let numbers = numbers(&arguments.place.records()?, &arguments.which, signed.head.size)?;
    for number in &numbers {
        let text = Proof::of(&files, &signed.bytes, &signed.head, *number)?.to_text();
        match &arguments.out {
            None => say_lines(String::from_utf8_lossy(&text).trim_end()),
            Some(path) => {
                let path = if numbers.len() == 1 { path.clone() } else { numbered(path, *number) };
                std::fs::write(&path, text).with_context(|| path.display().to_string())?;
                say(&format!("{}: record {number} of {}", path.display(), signed.head.origin));
            }
        }
    }
    Ok(())
}

/// `proof.txt` → `proof.17.txt`.
fn numbered(path: &std::path::Path, number: u64) -> PathBuf {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some(ending) => path.with_extension(format!("{number}.{ending}")),
        None => path.with_extension(number.to_string()),
    }
}

/// The records of that name.
fn numbers(records: &Records, which: &str, size: u64) -> anyhow::Result<Vec<u64>> {
    const ID: usize = 32;
    if which.len() != ID {
        let number = which.parse().ok().with_context(|| {
            format!("{which} is neither the number of a record nor an ID, which has {ID} hexadecimal digits")
        })?;
        return Ok(vec![number]);
    }
    let named = format!("{{\"record\":\"{which}\"");
    let mut found = Vec::new();
    for record in records.of_days(None, None)? {
        let record = record?;
        if record.bytes.starts_with(named.as_bytes()) {
            if record.index >= size {
                bail!("record {} is written, and signed within a second: try again", record.index);
            }
            found.push(record.index);
        }
    }
    ensure!(!found.is_empty(), "there is no record of the request {which}");
    Ok(found)
}

pub(super) fn check(arguments: &Check) -> anyhow::Result<()> {
    let path = &arguments.proof;
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let proof = Proof::parse(&bytes).with_context(|| path.display().to_string())?;
    let head = proof.check(&key(&arguments.key)?)?;
    say(&String::from_utf8_lossy(&proof.entry));
    say(&format!(
        "good: this is record {} of {}, as it was when the log had {} records",
        proof.index, head.origin, head.size
    ));
    Ok(())
}
