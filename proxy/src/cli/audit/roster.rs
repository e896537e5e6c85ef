//! `postern audit roster`, and `postern audit verify --roster`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use postern_tlog::{Files, Key, Roster, SignedRoster, Trusted, WitnessKey, read_file, read_roster};
use serde_json::json;

use super::verify::{Told, check};
use super::{Place, own_key, plain, say, say_lines};

/// Bytes of a roster at most.
const MAX_ROSTER: u64 = 64 << 10;

/// Prints it.
pub(super) fn print(place: &Place) -> anyhow::Result<()> {
    let folder = place.folder()?;
    let bytes = read_roster(&Files::new(&folder))?;
    let bytes = bytes.with_context(|| format!("{}: there is no roster; a gateway writes it", folder.display()))?;
    let roster = SignedRoster::parse(&bytes).context("roster")?;
    for name in roster.unsigned() {
        let name = plain(&name);
        eprintln!("{name} has not signed this roster (yet)");
    }
    say_lines(String::from_utf8_lossy(&bytes).trim_end());
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
    /// Its key, if it is one of the roster's: others may take its name.
    key: Option<String>,
    folder: Option<PathBuf>,
    records: u64,
    findings: Vec<String>,
}

impl Line {
    fn is_retired(&self, roster: &SignedRoster) -> bool {
        self.key.is_some() && roster.roster.retired.contains(&self.name)
    }
}

/// Checks each log that the roster names.
pub(super) fn verify(wanted: &Wanted<'_>) -> anyhow::Result<ExitCode> {
    let bytes = read_file(wanted.roster, MAX_ROSTER)?;
    let bytes = bytes.with_context(|| format!("{}: there is no such file", wanted.roster.display()))?;
    let roster = SignedRoster::parse(&bytes).with_context(|| wanted.roster.display().to_string())?;
    ensure!(
        !wanted.folders.is_empty(),
        "no log is given: name their folders with --log, or the one they are all in with --logs"
    );
    let mut findings = of_roster(&roster, wanted.key.as_ref());
    let (mut lines, mut shown, mut said, mut all_whole) = (Vec::new(), BTreeSet::new(), Vec::new(), true);
    for folder in &wanted.folders {
        let (line, told, is_whole) = of_folder(folder, &roster, &wanted.witnesses);
        shown.extend(line.key.clone());
        said.extend(told.into_iter().map(|told| (line.name.clone(), told)));
        all_whole &= is_whole;
        lines.push(line);
    }
    findings.extend(contradictions(&roster, &said, all_whole));
    for (text, key) in roster.roster.logs.iter().filter(|(text, _)| !shown.contains(*text)) {
        let is_retired = roster.roster.retired.contains(key.name());
        let findings =
            if is_retired { Vec::new() } else { vec!["the roster names this log, and it is not there".to_owned()] };
        lines.push(Line { name: key.name().to_owned(), key: Some(text.clone()), folder: None, records: 0, findings });
    }
    let is_good = findings.is_empty() && lines.iter().all(|line| line.findings.is_empty());
    if wanted.json {
        say(&told(&roster, &findings, &lines, is_good).to_string());
    } else {
        tell(&roster, wanted.key.is_some(), &findings, &lines, is_good);
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What signed records of the logs say of the roster, and it is not so. `all_whole`: each of them has all of its records, none is past its time.
fn contradictions(roster: &SignedRoster, said: &[(String, Told)], all_whole: bool) -> Vec<String> {
    let (generation, logs) = (roster.roster.generation, roster.roster.logs.len() as u64);
    let mut findings = BTreeSet::new();
    let newest = said.iter().map(|(_, told)| told.generation).max().unwrap_or(0);
    if newest > generation {
        findings.insert(format!(
            "it is of generation {generation}, and a log says that there is one of generation {newest}: this one was replaced by an older one"
        ));
    }
    for (name, told) in said.iter().filter(|(_, told)| told.generation <= generation) {
        let (at, then) = (told.generation, told.logs);
        let is_other =
            at == generation && (then != logs || told.sha256.as_ref().is_some_and(|hash| *hash != roster.digest()));
        // Names are only added.
        if then > logs {
            findings.insert(format!(
                "it names {logs} logs, and {name} has on record that there were {then} in generation {at}: some were taken out of it"
            ));
        } else if is_other {
            findings.insert(format!("{name} has on record that generation {at} was another roster than this one"));
        }
    }
    // A log that has ended tells of none that came after it, so one is enough.
    if all_whole && !said.iter().any(|(_, told)| told.generation == generation) {
        findings.insert(format!(
            "none of the logs that are shown has a signed record of a roster of generation {generation} (a gateway signs within a second)"
        ));
    }
    findings.into_iter().collect()
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

/// What there is in a folder, the rosters that its records tell of, and whether it has all of its records.
fn of_folder(folder: &Path, roster: &SignedRoster, witnesses: &[WitnessKey]) -> (Line, Vec<Told>, bool) {
    let (name, at) = (folder.display().to_string(), Some(folder.to_owned()));
    let mut line = Line { name, key: None, folder: at, records: 0, findings: Vec::new() };
    let key = match own_key(folder) {
        Ok(key) => key,
        Err(error) => {
            line.findings.push(format!("{error:#}"));
            return (line, Vec::new(), false);
        }
    };
    line.name = key.name().to_owned();
    let Some(key) = roster.roster.logs.get(&key.to_string()) else {
        line.findings.push("the roster does not name this log, or by another key".to_owned());
        return (line, Vec::new(), false);
    };
    line.key = Some(key.to_string());
    let checked = check(&Files::new(folder), &Trusted { key, later: &[], witnesses });
    match checked {
        Ok((report, seen)) => {
            line.records = report.size;
            line.findings.extend(report.findings.iter().map(|finding| format!("{}: {}", finding.place, finding.what)));
            (line, seen.rosters(report.size), report.first == 0)
        }
        Err(error) => {
            line.findings.push(format!("{error:#}"));
            (line, Vec::new(), false)
        }
    }
}

fn told(roster: &SignedRoster, findings: &[String], lines: &[Line], is_good: bool) -> serde_json::Value {
    let logs = lines.iter().map(|line| {
        json!({
            "log": line.name, "folder": line.folder, "records": line.records, "good": line.findings.is_empty(),
            "retired": line.is_retired(roster), "findings": line.findings,
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
        let is_retired = line.is_retired(roster);
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

#[cfg(test)]
mod tests {
    use postern_tlog::{Log, SecretKey, agree};

    use super::*;

    const DOMAIN: &str = "branch.example.org";

    fn key(id: &str) -> SecretKey {
        SecretKey::parse(&SecretKey::generate(&format!("{DOMAIN}/audit/{id}")).unwrap()).unwrap()
    }

    /// A log in a folder, which has this on record.
    fn log(dir: &Path, key: &SecretKey, records: &[String]) {
        let mut log = Log::open(dir, key.clone(), |_| false).unwrap();
        log.append(records, false).unwrap();
        log.checkpoint().unwrap();
        std::fs::write(dir.join("key.pub"), format!("{}\n", key.public())).unwrap();
    }

    fn notice(roster: &SignedRoster) -> String {
        let (generation, logs) = (roster.roster.generation, roster.roster.logs.len());
        format!(
            "{{\"record\":\"1\",\"kind\":\"notice\",\"what\":\"roster\",\"generation\":{generation},\"logs\":{logs},\"sha256\":\"{}\"}}",
            roster.digest()
        )
    }

    fn verified(dir: &Path, roster: &SignedRoster, folders: &[&str]) -> ExitCode {
        let at = dir.join("roster");
        std::fs::write(&at, &roster.bytes).unwrap();
        let folders = folders.iter().map(|name| dir.join(name)).collect();
        verify(&Wanted { roster: &at, folders, key: None, witnesses: vec![], json: true }).unwrap()
    }

    #[test]
    fn a_roster_from_which_a_log_was_taken_is_contradicted_by_the_records_of_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["00000001", "00000002"].map(key);
        let first = agree(DOMAIN, &[], std::slice::from_ref(&one), &[]).unwrap();
        let both = agree(DOMAIN, std::slice::from_ref(&first), &[one.clone(), two.clone()], &[]).unwrap();
        // Of the same generation, by the key of the one that is shown.
        let cut = String::from_utf8(first.bytes.clone()).unwrap().replace("generation 1", "generation 2");
        let text = cut.split("\n\n").next().unwrap().to_owned() + "\n";
        let cut = SignedRoster::parse(&one.sign(text.as_bytes()).unwrap()).unwrap();
        assert_eq!(cut.unsigned().len(), 0);
        log(&dir.path().join("one"), &one, &[notice(&first), notice(&both)]);
        log(&dir.path().join("two"), &two, &[notice(&both)]);
        let is_good = |roster, folders: &[&str]| verified(dir.path(), roster, folders) == ExitCode::SUCCESS;
        assert!(is_good(&both, &["one", "two"]) && !is_good(&both, &["one"]));
        assert!(!is_good(&cut, &["one"]));

        let told = |roster: &SignedRoster| {
            let (generation, logs) = (roster.roster.generation, roster.roster.logs.len() as u64);
            ("one".to_owned(), Told { generation, logs, sha256: Some(roster.digest()) })
        };
        assert_eq!(contradictions(&both, &[told(&first), told(&both)], true), [""; 0]);
        assert!(contradictions(&cut, &[told(&first), told(&both)], true)[0].contains("taken out"));
        // As many, and others.
        let other = agree(DOMAIN, std::slice::from_ref(&first), &[one.clone(), key("00000003")], &[]).unwrap();
        assert!(contradictions(&other, &[told(&both)], true)[0].contains("another roster"));
        // A later one that nobody tells of.
        assert!(contradictions(&both, &[told(&first)], true)[0].contains("none of the logs"));
        assert_eq!(contradictions(&both, &[told(&first)], false), [""; 0], "what told of it is past its time");
    }

    #[test]
    fn somebody_elses_log_of_the_same_name_does_not_stand_for_the_one_that_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (named, other) = (key("00000001"), key("00000001"));
        let (one, two) = (key("00000002"), key("00000003"));
        let roster = agree(DOMAIN, &[], &[named.clone(), one.clone(), two], &[]).unwrap();
        log(&dir.path().join("named"), &other, &[notice(&roster)]);
        let (line, told, _) = of_folder(&dir.path().join("named"), &roster, &[]);
        assert_eq!((line.name.as_str(), line.key.as_deref(), told.len()), (named.public().name(), None, 0));
        assert_eq!(verified(dir.path(), &roster, &["named"]), ExitCode::FAILURE);
    }
}
