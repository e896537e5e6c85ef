//! `postern audit verify`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use postern_tlog::{Files, Finding, Key, Report, Trusted, WitnessKey, read_file};
use serde::Deserialize;
use serde_json::json;

use super::{Place, key, own_key, roster, say, witness};
use crate::config;

/// Bytes of a checkpoint at most.
const MAX_CHECKPOINT: u64 = 64 << 10;
/// Requests without an outcome that are named.
const NAMED: usize = 5;

/// What to check, and against what.
#[derive(Debug, Args)]
#[group(id = "place")]
pub(in crate::cli) struct Arguments {
    /// The configuration of its gateway.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["log", "logs"])]
    config: Option<PathBuf>,
    /// Its folder: `audit.dir`, or a copy of it. With --roster, repeat for more.
    #[arg(long, value_name = "FOLDER")]
    log: Vec<PathBuf>,
    /// With --roster: a folder with folders of logs in it.
    #[arg(long, value_name = "FOLDER", requires = "roster")]
    logs: Option<PathBuf>,
    /// The roster (`postern audit roster`): check every log that it names, say which are missing, and who has not signed it.
    #[arg(long, value_name = "FILE", conflicts_with = "later")]
    roster: Option<PathBuf>,
    /// The log's public key, or a file that has it; with --roster, that of one of its logs. Absent: the one in the folder, which whoever changed the folder may have changed with it.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// A checkpoint of this log that came another way: from a witness, a copy, a safe. Shows whether the log was set back. Repeat for more.
    #[arg(long, value_name = "FILE")]
    later: Vec<PathBuf>,
    /// The public key of a witness, or a file that has it, which must have signed the newest checkpoint, one of --later, or the one in `witnessed` beside the
    /// log. Repeat for more.
    #[arg(long, value_name = "KEY")]
    witness: Vec<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let witnesses: Vec<WitnessKey> =
        arguments.witness.iter().map(|written| witness(written)).collect::<Result<_, _>>()?;
    if let Some(roster) = &arguments.roster {
        let mut folders = arguments.log.clone();
        if let Some(file) = &arguments.config {
            folders.push(config::load(file)?.audit.dir);
        }
        if let Some(dir) = &arguments.logs {
            folders.extend(roster::folders_in(dir)?);
        }
        let key = arguments.key.as_deref().map(key).transpose()?;
        return roster::verify(&roster::Wanted { roster, folders, key, witnesses, json: arguments.json });
    }
    let folder = match (arguments.log.as_slice(), &arguments.config) {
        ([folder], _) => Place::at(folder),
        ([], Some(file)) => Place::of(file),
        ([], None) => anyhow::bail!("--config or --log is needed"),
        _ => anyhow::bail!("one log at a time, or --roster FILE, which names them all"),
    };
    let folder = folder.folder()?;
    let key = arguments.key.as_deref().map_or_else(|| own_key(&folder), key)?;
    let later: Vec<(String, Vec<u8>)> = (arguments.later.iter())
        .map(|path| {
            let bytes = read_file(path, MAX_CHECKPOINT)?;
            let bytes = bytes.with_context(|| format!("{}: there is no such file", path.display()))?;
            Ok((path.display().to_string(), bytes))
        })
        .collect::<anyhow::Result<_>>()?;
    let files = Files::new(&folder);
    let trusted = Trusted { key: &key, later: &later, witnesses: &witnesses };
    let before = files.checkpoint()?;
    let (mut report, mut seen) = check(&files, &trusted)?;
    // Days turn and records are deleted while it is read: what is not good then is looked at once more.
    if !report.is_good() && files.checkpoint()? != before {
        (report, seen) = check(&files, &trusted)?;
    }
    if arguments.json {
        say(&told(&key, &report, &seen).to_string());
    } else {
        tell(&key, arguments.key.is_none(), &report, &seen);
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn check(files: &Files, trusted: &Trusted<'_>) -> anyhow::Result<(Report, Seen)> {
    let mut seen = Seen::default();
    let mut report = postern_tlog::verify(files, trusted, |number, record| seen.note(number, record))?;
    if report.first > 0 && seen.past(report.size) < report.first {
        let what = "they are not there, and no record says that they were past their time".to_owned();
        report.findings.push(Finding { place: format!("records 0 to {}", report.first - 1), what });
    }
    if seen.is_too_much {
        let what = format!(
            "there are more than {MOST} notices of a kind, or requests without an outcome, and no gateway writes so many"
        );
        report.findings.push(Finding { place: "records".to_owned(), what });
    }
    Ok((report, seen))
}

/// The kinds of records that there are.
const KINDS: [&str; 7] = ["intent", "outcome", "shadow", "action", "start", "stop", "notice"];
/// Of all others.
const OTHER: &str = "other";
/// Digits of the ID of a record.
const ID: usize = 32;
/// Requests without an outcome that are held at a time, and notices of a kind: far more than a gateway writes.
const MOST: usize = 200_000;

/// What the records say by themselves.
#[derive(Debug, Default)]
pub(super) struct Seen {
    kinds: BTreeMap<&'static str, u64>,
    /// Requests that have an intent, and no outcome so far.
    open: BTreeSet<String>,
    /// By which record the gateway said that it deletes those before which.
    past: Vec<(u64, u64)>,
    /// Records that were taken from a journal without a signature: from which on, up to and without which. Ascending, none in another.
    unsigned: BTreeMap<u64, u64>,
    /// By which record the gateway said that the roster is which.
    rosters: Vec<(u64, Told)>,
    unreadable: u64,
    /// There is more than is held.
    is_too_much: bool,
}

/// What a gateway has on record of a roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) generation: u64,
    pub(super) logs: u64,
    /// Of its text; gateways did not always say it.
    pub(super) sha256: Option<String>,
}

impl Seen {
    fn note(&mut self, number: u64, record: &[u8]) {
        #[derive(Deserialize)]
        struct Read {
            record: String,
            kind: String,
            #[serde(default)]
            what: String,
            #[serde(default)]
            before: u64,
            #[serde(default)]
            from: u64,
            #[serde(default)]
            records: u64,
            #[serde(default)]
            generation: u64,
            #[serde(default)]
            logs: u64,
            #[serde(default)]
            sha256: Option<String>,
        }
        let Ok(read) = serde_json::from_slice::<Read>(record) else {
            self.unreadable += 1;
            return;
        };
        let kind = KINDS.into_iter().find(|kind| *kind == read.kind).unwrap_or(OTHER);
        *self.kinds.entry(kind).or_default() += 1;
        let held = self.open.len().max(self.past.len()).max(self.unsigned.len()).max(self.rosters.len());
        self.is_too_much |= held >= MOST;
        match (kind, read.what.as_str()) {
            ("outcome", _) => drop(self.open.remove(&read.record)),
            _ if held >= MOST => {}
            ("intent", _) if read.record.len() == ID => drop(self.open.insert(read.record)),
            ("notice", "retention") => self.past.push((number, read.before)),
            ("notice", "roster") => {
                let sha256 = read.sha256.filter(|hash| hash.len() == 64);
                self.rosters.push((number, Told { generation: read.generation, logs: read.logs, sha256 }));
            }
            ("notice", "unsigned") => self.take_over(read.from, read.from.saturating_add(read.records)),
            _ => {}
        }
    }

    /// Adds a range, in one with those that it meets.
    fn take_over(&mut self, mut from: u64, mut to: u64) {
        while let Some((start, end)) = self.unsigned.range(..=to).next_back().map(|(start, end)| (*start, *end)) {
            if end < from {
                break;
            }
            (from, to) = (from.min(start), to.max(end));
            self.unsigned.remove(&start);
        }
        self.unsigned.insert(from, to);
    }
}

impl Seen {
    /// Records with lower numbers were deleted by the gateway itself.
    fn past(&self, size: u64) -> u64 {
        let known = self.past.iter().filter(|(number, _)| self.is_known(*number, size));
        known.map(|(_, before)| *before).max().unwrap_or(0)
    }

    /// The rosters that the gateway told of.
    pub(super) fn rosters(&self, size: u64) -> Vec<Told> {
        let known = self.rosters.iter().filter(|(number, _)| self.is_known(*number, size));
        known.map(|(_, told)| told.clone()).collect()
    }

    /// Of what is not signed yet, of the `size` that are, and of what had no signature when a gateway took it over, nobody knows who wrote it.
    fn is_known(&self, number: u64, size: u64) -> bool {
        let taken = self.unsigned.range(..=number).next_back();
        number < size && taken.is_none_or(|(_, end)| *end <= number)
    }
}

fn told(key: &Key, report: &Report, seen: &Seen) -> serde_json::Value {
    let findings = report.findings.iter().map(|finding| json!({"place": finding.place, "what": finding.what}));
    let witnessed = report.witnessed.iter();
    json!({
        "log": key.name(), "good": report.is_good(), "records": report.size,
        "root": report.root.map(|root| root.to_string()), "first": report.first, "checked": report.checked, "unsigned": report.unsigned,
        "kept_checkpoints": report.kept, "complete_to": report.vouched,
        "cosigned": report.cosigned.iter().map(|(name, size)| json!({"file": format!("witnessed/{name}"), "records": size})).collect::<Vec<_>>(),
        "witnessed": witnessed.map(|(name, size, time)| json!({"witness": name, "records": size, "time": time})).collect::<Vec<_>>(),
        "kinds": seen.kinds, "without_outcome": seen.open.len(), "unreadable": seen.unreadable,
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn tell(key: &Key, is_own_key: bool, report: &Report, seen: &Seen) {
    say(&format!("log          {}", key.name()));
    if is_own_key {
        say(
            "key          the folder's own: it shows that the log is of one piece, not whose it is. Give --key as you have it from elsewhere",
        );
    }
    let root = report.root.map(|root| root.to_string()).unwrap_or_default();
    say(&format!("checkpoint   {} records, root {root}", report.size));
    let kinds: Vec<String> = seen.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    say(&format!("records      {} read from number {} on: {}", report.checked, report.first, kinds.join(", ")));
    if report.unsigned > 0 {
        say(&format!("             {} of them came after the checkpoint, and are not signed yet", report.unsigned));
    }
    if !seen.open.is_empty() {
        let some: Vec<&str> = seen.open.iter().take(NAMED).map(String::as_str).collect();
        say(&format!("             {} requests have no outcome yet, such as {}", seen.open.len(), some.join(", ")));
    }
    say(&format!("days         {} checkpoints of past days, all compared", report.kept));
    for (name, size, time) in &report.witnessed {
        say(&format!("witness      {name} has signed the first {size} records, on {}", moment(*time)));
    }
    if report.witnessed.is_empty() {
        for (name, size) in &report.cosigned {
            say(&format!(
                "witness      witnessed/{name} is of {size} records; --witness KEY says whether a witness has signed it"
            ));
        }
    }
    for finding in &report.findings {
        say(&format!("NOT GOOD     {}: {}", finding.place, finding.what));
    }
    say(&match (report.is_good(), report.vouched) {
        (true, Some(size)) => format!("good: consistent, and nothing of the first {size} records is missing"),
        (true, None) => {
            "good: consistent, completeness unproven (a log that was set back to an older state looks the same: give --later or --witness)".into()
        }
        (false, _) => "not good: this is not the log that was signed".into(),
    });
}

/// Seconds since 1970 as a date; whoever signed may have written any number.
fn moment(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok());
    let time = time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
    time.unwrap_or_else(|| format!("second {seconds} since 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_over_without_a_signature_is_known_as_one_range_and_other_kinds_are_no_words() {
        let mut seen = Seen::default();
        for (from, records) in [(10, 5), (30, 5), (12, 10), (22, 8), (50, 1)] {
            let record = format!(
                "{{\"record\":\"1\",\"kind\":\"notice\",\"what\":\"unsigned\",\"from\":{from},\"records\":{records}}}"
            );
            seen.note(60, record.as_bytes());
        }
        assert_eq!(seen.unsigned, [(10, 35), (50, 51)].into());
        let known: Vec<u64> = (0..60).filter(|number| seen.is_known(*number, 55)).collect();
        let expected: Vec<u64> = (0..10).chain(35..50).chain(51..55).collect();
        assert_eq!(known, expected);
        seen.note(61, b"{\"record\":\"1\",\"kind\":\"\\u001b[2Jgood\"}");
        assert_eq!(seen.kinds, [("notice", 5), ("other", 1)].into());
    }
}
