//! `postern plugin replay`: recorded requests through another version of a policy, and which decisions change.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use postern_plugins::{Answer, MAX_RECORDED_BYTES, Policy, PolicyHost, Recorded, Reply};
use serde::Serialize;
use serde_json::Value;

use super::case::may_leave;
use super::load::{self, Loaded, Settings, Source};
use super::run::{planned, voted};
use super::table::table;
use super::{Wrong, file};
use crate::cli::say;

/// Rows of the table, unless it is said otherwise.
const ROWS: usize = 50;
/// Names that are told where none fits.
const MAX_NAMES: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The policy to try: a file, or builtin:routing, builtin:caching.
    #[arg(value_name = "FILE|builtin:NAME")]
    policy: Source,
    /// Recorded requests: what the gateway writes where `plugins: {record: {file: …}}` says so.
    #[arg(long, value_name = "FILE")]
    records: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// Compare with this policy; absent: with what the policy of this name answered when it was recorded.
    #[arg(long, value_name = "FILE|builtin:NAME")]
    against: Option<Source>,
    /// The section of the configuration for that policy; absent: the same.
    #[arg(long, value_name = "FILE", requires = "against")]
    against_config: Option<PathBuf>,
    /// Changed decisions that are shown.
    #[arg(long, value_name = "COUNT", default_value_t = ROWS)]
    rows: usize,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// What changed.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// Requests of the recording.
    requests: u64,
    /// Decisions that were compared: two a request for a policy that routes and plans.
    compared: u64,
    /// Decisions that are not the same.
    changed: u64,
    /// Calls of the policy that failed.
    failed: u64,
    /// Decisions with nothing to compare with: the policy was not asked when it was recorded.
    unmatched: u64,
    /// The first of those that changed.
    changes: Vec<Change>,
}

/// A decision that is not the same.
#[derive(Debug, Serialize)]
struct Change {
    /// Line of the recording, from 1.
    line: u64,
    /// Its `Postern-Record`.
    record: String,
    identity: String,
    label: String,
    model: String,
    prompt_tokens: u64,
    step: &'static str,
    before: String,
    after: String,
}

pub(super) fn run(command: &Replay) -> anyhow::Result<ExitCode> {
    let host = load::host()?;
    let settings = &command.settings;
    let new = loaded(&host, &command.policy, settings, settings.section()?)?;
    let old_section = match &command.against_config {
        Some(file) => file::read_document(file)?,
        None => settings.section()?,
    };
    let old = command.against.as_ref().map(|source| loaded(&host, source, settings, old_section)).transpose()?;
    let outcome = load::block_on(replay(command, &new, old.as_ref()))??;
    if command.json {
        say(&serde_json::to_string(&outcome)?);
    } else {
        tell(command, &new, old.as_ref(), &outcome);
    }
    Ok(if outcome.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn loaded(host: &PolicyHost, source: &Source, settings: &Settings, section: Value) -> anyhow::Result<Loaded> {
    let loaded = load::load_with(host, source, source.read()?, settings, section)?;
    let steps = loaded.policy.steps();
    if !steps.routing && !steps.caching {
        let what =
            "it only looks for text, and recordings have none; try it with `postern plugin run` on texts of yours";
        return Err(Wrong::because(format!("{}: {what}", source.as_str())));
    }
    Ok(loaded)
}

async fn replay(command: &Replay, new: &Loaded, old: Option<&Loaded>) -> anyhow::Result<Outcome> {
    let path = command.records.display();
    let file = std::fs::File::open(&command.records).map_err(|error| Wrong::because(format!("{path}: {error}")))?;
    let mut lines = BufReader::new(file);
    let mut outcome = Outcome::default();
    let (mut line, mut at, mut others) = (Vec::new(), 0_u64, BTreeSet::new());
    loop {
        line.clear();
        let limit = MAX_RECORDED_BYTES as u64 + 2;
        let bytes = lines.by_ref().take(limit).read_until(b'\n', &mut line).with_context(|| path.to_string())?;
        if bytes == 0 {
            break;
        }
        at += 1;
        let is_whole = line.ends_with(b"\n") || !lines.fill_buf().with_context(|| path.to_string())?.is_empty();
        // A gateway may be about to write the rest of the last line.
        if !is_whole || line.trim_ascii().is_empty() {
            continue;
        }
        let recorded: Recorded = serde_json::from_slice(&line)
            .map_err(|error| Wrong::because(format!("{path}: line {at} is not a recorded request: {error}")))?;
        outcome.requests += 1;
        let room = MAX_NAMES.saturating_sub(others.len());
        others.extend(recorded.answers.iter().map(|answered| answered.policy.clone()).take(room));
        one(at, &recorded, new, old, command.rows, &mut outcome).await;
    }
    if outcome.requests > 0 && outcome.compared == 0 && outcome.failed == 0 {
        let names: Vec<_> = others.into_iter().collect();
        let what = format!(
            "{path}: no answer of a policy `{}` is recorded ({}); say its name in the configuration with --name, or compare \
             with a file by --against",
            new.name,
            if names.is_empty() { "of none".to_owned() } else { format!("there are answers of {}", names.join(", ")) }
        );
        return Err(Wrong::because(what));
    }
    Ok(outcome)
}

async fn one(line: u64, recorded: &Recorded, new: &Loaded, old: Option<&Loaded>, rows: usize, outcome: &mut Outcome) {
    let steps = new.policy.steps();
    for (step, asked) in [("routing", steps.routing), ("caching", steps.caching)] {
        if !asked {
            continue;
        }
        let after = ask(&new.policy, step, recorded).await;
        let before = match old {
            Some(old) => Some(ask(&old.policy, step, recorded).await),
            None => recorded_answer(recorded, &new.name, step),
        };
        outcome.failed += u64::from(after.is_err());
        let Some(before) = before else {
            outcome.unmatched += 1;
            continue;
        };
        outcome.compared += 1;
        let [before, after] = [before, after].map(|answer| answer.unwrap_or_else(|failure| failure));
        if before == after {
            continue;
        }
        outcome.changed += 1;
        if outcome.changes.len() < rows {
            let request = &recorded.request;
            outcome.changes.push(Change {
                line,
                record: recorded.record.clone(),
                identity: request.identity.clone(),
                label: label_at(step, recorded).to_owned(),
                model: request.model.clone(),
                prompt_tokens: request.prompt_tokens,
                step,
                before,
                after,
            });
        }
    }
}

/// Caching policies were told the final label.
fn label_at<'a>(step: &str, recorded: &'a Recorded) -> &'a str {
    if step == "caching" { &recorded.final_label } else { &recorded.request.label }
}

/// What a policy says now; in words, so that both sides are compared as they are shown.
async fn ask(policy: &Policy, step: &str, recorded: &Recorded) -> Result<String, String> {
    let mut request = recorded.request.clone();
    label_at(step, recorded).clone_into(&mut request.label);
    let context = load::context(&request, recorded.seed);
    if step == "caching" {
        let reply = policy.plan(&context, &request).await;
        return said(reply, recorded, |plan| planned(&plan));
    }
    let reply = policy.route(&context, &request, &recorded.fleet).await;
    said(reply, recorded, |verdict| voted(&verdict))
}

/// Its counters count as they did: where the request could leave.
fn said<T>(reply: Reply<T>, recorded: &Recorded, words: impl FnOnce(T) -> String) -> Result<String, String> {
    let Reply { answer, effects, .. } = reply;
    if let Some(effects) = effects.filter(|_| answer.is_ok())
        && may_leave(&recorded.request, &recorded.final_label, &recorded.fleet)
    {
        effects.commit(&recorded.final_label);
    }
    answer.map(words).map_err(|failure| format!("failed: {}", failure.kind.name()))
}

fn recorded_answer(recorded: &Recorded, policy: &str, step: &str) -> Option<Result<String, String>> {
    let answers = recorded.answers.iter().filter(|answered| answered.policy == policy);
    answers.map(|answered| &answered.answer).find_map(|answer| match (answer, step) {
        (Answer::Route(verdict), "routing") => Some(Ok(voted(verdict))),
        (Answer::Plan(plan), "caching") => Some(Ok(planned(plan))),
        (Answer::RouteFailed(kind), "routing") | (Answer::PlanFailed(kind), "caching") => {
            Some(Err(format!("failed: {kind}")))
        }
        _ => None,
    })
}

fn tell(command: &Replay, new: &Loaded, old: Option<&Loaded>, outcome: &Outcome) {
    let title = |loaded: &Loaded| format!("{} {} ({})", loaded.name, loaded.version, loaded.digest);
    let before = old.map_or_else(|| "what was recorded".to_owned(), title);
    say(&format!("{} against {before}", title(new)));
    let row = |change: &Change| {
        let Change { line, identity, label, model, prompt_tokens, step, before, after, .. } = change;
        let tokens = prompt_tokens.to_string();
        [&line.to_string(), identity, label, model, &tokens, *step, before, after].map(str::to_owned).to_vec()
    };
    if !outcome.changes.is_empty() {
        let rows: Vec<_> = outcome.changes.iter().map(row).collect();
        say(&table(&["line", "identity", "label", "model", "tokens", "step", "before", "after"], &rows));
    }
    let more = outcome.changed - outcome.changes.len() as u64;
    if more > 0 {
        say(&format!("… and {more} more (--rows shows more than {})", command.rows));
    }
    let Outcome { requests, compared, changed, failed, unmatched, .. } = outcome;
    let mut summary = format!("{requests} requests, {compared} decisions compared, {changed} changed, {failed} failed");
    if *unmatched > 0 {
        summary.push_str(&format!(", {unmatched} not recorded of this policy"));
    }
    say(&summary);
}
