//! `postern audit verify`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use postern_tlog::{Files, Finding, Key, Report, Trusted, WitnessKey};
use serde::Deserialize;
use serde_json::json;

use super::{Place, key, own_key, roster};
use crate::cli::say;
use crate::config;

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
    /// The public key of a witness that must have signed the newest checkpoint, one of --later, or the one in `witnessed` beside the
    /// log. Repeat for more.
    #[arg(long, value_name = "KEY")]
    witness: Vec<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let witnesses: Vec<WitnessKey> = (arguments.witness.iter())
        .map(|text| WitnessKey::parse(text).with_context(|| text.clone()))
        .collect::<Result<_, _>>()?;
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
    let later: Vec<Vec<u8>> = (arguments.later.iter())
        .map(|path| std::fs::read(path).with_context(|| path.display().to_string()))
        .collect::<Result<_, _>>()?;
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
    Ok((report, seen))
}

/// What the records say by themselves.
#[derive(Debug, Default)]
pub(super) struct Seen {
    kinds: BTreeMap<String, u64>,
    /// Requests that have an intent, and no outcome so far.
    open: BTreeSet<String>,
    /// By which record the gateway said that it deletes those before which.
    past: Vec<(u64, u64)>,
    /// Records that were taken from a journal without a signature: from which on, and how many.
    unsigned: Vec<(u64, u64)>,
    /// By which record the gateway said that the roster is of which generation.
    rosters: Vec<(u64, u64)>,
    unreadable: u64,
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
        }
        let Ok(read) = serde_json::from_slice::<Read>(record) else {
            self.unreadable += 1;
            return;
        };
        match read.kind.as_str() {
            "intent" => drop(self.open.insert(read.record)),
            "outcome" => drop(self.open.remove(&read.record)),
            "notice" if read.what == "retention" => self.past.push((number, read.before)),
            "notice" if read.what == "roster" => self.rosters.push((number, read.generation)),
            "notice" if read.what == "unsigned" => self.unsigned.push((read.from, read.records)),
            _ => {}
        }
        *self.kinds.entry(read.kind).or_default() += 1;
    }
}

impl Seen {
    /// Records with lower numbers were deleted by the gateway itself.
    fn past(&self, size: u64) -> u64 {
        self.newest(&self.past, size)
    }

    /// The newest generation of a roster that the gateway told of.
    pub(super) fn newest_roster(&self, size: u64) -> u64 {
        self.newest(&self.rosters, size)
    }

    /// The largest that was told. Of what is not signed yet, of the `size` that are, and of what had no signature when a gateway took it
    /// over, nobody knows who wrote it.
    fn newest(&self, told: &[(u64, u64)], size: u64) -> u64 {
        let is_known = |number: u64| {
            number < size
                && !self.unsigned.iter().any(|(from, records)| (*from..from.saturating_add(*records)).contains(&number))
        };
        told.iter().filter(|(number, _)| is_known(*number)).map(|(_, what)| *what).max().unwrap_or(0)
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
        (true, Some(size)) => format!("good: consistent, and nothing is missing up to record number {size}"),
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
