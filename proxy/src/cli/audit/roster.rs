//! `postern audit roster`, and `postern audit verify --roster`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use postern_tlog::{Files, Key, Roster, SignedRoster, Trusted, WitnessKey, read_roster};
use serde_json::json;

use super::verify::check;
use super::{Place, own_key};
use crate::cli::say;

/// Prints it.
pub(super) fn print(place: &Place) -> anyhow::Result<()> {
    let folder = place.folder()?;
    let bytes = read_roster(&Files::new(&folder))?;
    let bytes = bytes.with_context(|| format!("{}: there is no roster; a gateway writes it", folder.display()))?;
    let roster = SignedRoster::parse(&bytes).context("roster")?;
    for name in roster.unsigned() {
        eprintln!("{name} has not signed this roster (yet)");
    }
    say(String::from_utf8_lossy(&bytes).trim_end());
    Ok(())
}

/// What to check.
pub(super) struct Wanted<'a> {
    pub(super) roster: &'a Path,
    pub(super) folders: Vec<PathBuf>,
    /// A log's key that is known from elsewhere.
    pub(super) key: Option<Key>,
    pub(super) witnesses: Vec<WitnessKey>,
    pub(super) json: bool,
}

/// The folders below one that are logs.
pub(super) fn folders_in(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let logs = entries.flatten().map(|entry| entry.path());
    let mut logs: Vec<PathBuf> =
        logs.filter(|path| path.join("key.pub").exists() || path.join("checkpoint").exists()).collect();
    logs.sort();
    Ok(logs)
}

/// What is known of one log.
struct Line {
    name: String,
    folder: Option<PathBuf>,
    records: u64,
    findings: Vec<String>,
}

/// Checks each log that the roster names.
pub(super) fn verify(wanted: &Wanted<'_>) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::read(wanted.roster).with_context(|| wanted.roster.display().to_string())?;
    let roster = SignedRoster::parse(&bytes).with_context(|| wanted.roster.display().to_string())?;
    ensure!(
        !wanted.folders.is_empty(),
        "no log is given: name their folders with --log, or the one they are all in with --logs"
    );
    let mut findings = of_roster(&roster, wanted.key.as_ref());
    let (mut lines, mut shown, mut newest) = (Vec::new(), BTreeSet::new(), 0);
    for folder in &wanted.folders {
        let (line, generation) = of_folder(folder, &roster, &wanted.witnesses);
        newest = newest.max(generation);
        shown.insert(line.name.clone());
        lines.push(line);
    }
    if newest > roster.roster.generation {
        findings.push(format!(
            "it is of generation {}, and a log says that there is one of generation {newest}: this one was replaced by an older one",
            roster.roster.generation
        ));
    }
    for key in roster.roster.logs.values().filter(|key| !shown.contains(key.name())) {
        let is_retired = roster.roster.retired.contains(key.name());
        let findings =
            if is_retired { Vec::new() } else { vec!["the roster names this log, and it is not there".to_owned()] };
        lines.push(Line { name: key.name().to_owned(), folder: None, records: 0, findings });
    }
    let is_good = findings.is_empty() && lines.iter().all(|line| line.findings.is_empty());
    if wanted.json {
        say(&told(&roster, &findings, &lines, is_good).to_string());
    } else {
        tell(&roster, wanted.key.is_some(), &findings, &lines, is_good);
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn of_roster(roster: &SignedRoster, key: Option<&Key>) -> Vec<String> {
    let unsigned =
        roster.unsigned().into_iter().map(|name| format!("{name} has not signed it, or it was changed since"));
    let mut findings: Vec<String> = unsigned.collect();
    match key {
        Some(key) if !roster.roster.logs.contains_key(&key.to_string()) => {
            findings.push(format!("it does not name {key}"));
        }
        Some(key) if !roster.is_signed_by(key) => findings.push(format!("it is not signed by {key}")),
        _ => {}
    }
    findings
}

/// What there is in a folder, and the newest generation of a roster that its records tell of.
fn of_folder(folder: &Path, roster: &SignedRoster, witnesses: &[WitnessKey]) -> (Line, u64) {
    let mut line =
        Line { name: folder.display().to_string(), folder: Some(folder.to_owned()), records: 0, findings: Vec::new() };
    let key = match own_key(folder) {
        Ok(key) => key,
        Err(error) => {
            line.findings.push(format!("{error:#}"));
            return (line, 0);
        }
    };
    line.name = key.name().to_owned();
    let Some(key) = roster.roster.logs.get(&key.to_string()) else {
        line.findings.push("the roster does not name this log, or by another key".to_owned());
        return (line, 0);
    };
    let checked = check(&Files::new(folder), &Trusted { key, later: &[], witnesses });
    match checked {
        Ok((report, seen)) => {
            line.records = report.size;
            line.findings.extend(report.findings.iter().map(|finding| format!("{}: {}", finding.place, finding.what)));
            let generation = seen.newest_roster(report.size);
            (line, generation)
        }
        Err(error) => {
            line.findings.push(format!("{error:#}"));
            (line, 0)
        }
    }
}

fn told(roster: &SignedRoster, findings: &[String], lines: &[Line], is_good: bool) -> serde_json::Value {
    let logs = lines.iter().map(|line| {
        json!({
            "log": line.name, "folder": line.folder, "records": line.records, "good": line.findings.is_empty(),
            "retired": roster.roster.retired.contains(&line.name), "findings": line.findings,
        })
    });
    json!({
        "domain": roster.roster.domain, "generation": roster.roster.generation, "good": is_good,
        "unsigned": roster.unsigned(), "findings": findings, "logs": logs.collect::<Vec<_>>(),
    })
}

fn tell(roster: &SignedRoster, has_key: bool, findings: &[String], lines: &[Line], is_good: bool) {
    let Roster { domain, generation, .. } = &roster.roster;
    say(&format!("roster       {domain}, generation {generation}, {} logs", roster.roster.logs.len()));
    if !has_key {
        say("key          only the roster's own: give --key as you have it from elsewhere, of one of its logs");
    }
    for finding in findings {
        say(&format!("NOT GOOD     the roster: {finding}"));
    }
    for line in lines {
        let place = line.folder.as_ref().map_or_else(|| "not given".to_owned(), |folder| folder.display().to_string());
        let is_retired = roster.roster.retired.contains(&line.name);
        let what = match (&line.folder, is_retired) {
            (None, true) => "retired, and not given".to_owned(),
            _ => format!("{} records, {place}", line.records),
        };
        say(&format!("log          {}: {what}", line.name));
        for finding in &line.findings {
            say(&format!("NOT GOOD     {}: {finding}", line.name));
        }
    }
    say(if is_good {
        "good: every log that the roster names is there, of one piece, and has signed the roster"
    } else {
        "not good: see above"
    });
}
