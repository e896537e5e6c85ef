//! `postern plugin run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use postern_plugins::{CacheMode, CachePlan, Effects, PolicyFailure, Span, TextSegment, Verdict, Written};
use serde::Serialize;
use serde_json::{Value, json};

use super::Wrong;
use super::case::{self, Case};
use super::load::{self, Loaded, Settings, Source};
use crate::cli::say;

/// Found text is shown up to here.
const MAX_SHOWN_CHARS: usize = 60;

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// A file, or builtin:routing, builtin:caching, builtin:redaction.
    #[arg(value_name = "FILE|builtin:NAME")]
    policy: Source,
    /// The request (YAML, or JSON if its name ends so): `request`, `fleet`, and `segments` for redaction; what is left out is as
    /// usual.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// What a policy said at one step.
struct Said {
    step: &'static str,
    answer: Result<(Value, String), PolicyFailure>,
    wrote: Written,
    took: Duration,
}

pub(super) fn run(command: &Run) -> anyhow::Result<ExitCode> {
    let case = Case::read(&command.request)?;
    let host = load::host()?;
    let loaded = load::load(&host, &command.policy, command.policy.read()?, &command.settings)?;
    let steps = loaded.policy.steps();
    if case.segments.is_empty() && !steps.routing && !steps.caching {
        let what = "this is a redaction policy: write texts for it under `segments`";
        return Err(Wrong::because(format!("{}: {what}", command.request.display())));
    }
    let all = load::block_on(ask(&loaded, &case))?;
    let failed = all.iter().any(|said| said.answer.is_err());
    say(&if command.json { as_json(&loaded, &all).to_string() } else { as_text(&all) });
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn ask(loaded: &Loaded, case: &Case) -> Vec<Said> {
    let (policy, steps) = (&loaded.policy, loaded.policy.steps());
    let context = load::context(&case.request, case.seed);
    let mut all = Vec::new();
    if steps.redaction && !case.segments.is_empty() {
        let started = Instant::now();
        let reply = policy.find(&context, &case.segments).await;
        let took = started.elapsed();
        let answer = reply.answer.map(|spans| (as_value(&spans), found(&spans, &case.segments)));
        all.push(Said { step: "redaction", answer, wrote: written(reply.effects.as_ref()), took });
    }
    if steps.routing {
        let started = Instant::now();
        let reply = policy.route(&context, &case.request, &case.fleet).await;
        let took = started.elapsed();
        let answer = reply.answer.map(|verdict| (as_value(&verdict), voted(&verdict)));
        all.push(Said { step: "routing", answer, wrote: written(reply.effects.as_ref()), took });
    }
    if steps.caching {
        let started = Instant::now();
        let reply = policy.plan(&context, &case.request).await;
        let took = started.elapsed();
        let answer = reply.answer.map(|plan| (as_value(&plan), planned(&plan)));
        all.push(Said { step: "caching", answer, wrote: written(reply.effects.as_ref()), took });
    }
    all
}

fn as_value(answer: &impl Serialize) -> Value {
    serde_json::to_value(answer).unwrap_or_default()
}

fn written(effects: Option<&Effects>) -> Written {
    effects.map(Effects::written).unwrap_or_default()
}

fn lines(wrote: &Written) -> impl Iterator<Item = String> + '_ {
    let counter = |(key, by, ttl): &(String, i64, u64)| format!("counter {key} {by:+}, for {ttl} s");
    let log = wrote.log.iter().map(|(level, line)| format!("log {level}: {line}"));
    let counts = wrote.counts.iter().map(|(name, by)| format!("metric {name} +{by}"));
    let values = wrote.values.iter().map(|(name, value)| format!("metric {name} = {value}"));
    log.chain(wrote.counters.iter().map(counter)).chain(counts).chain(values)
}

fn as_text(all: &[Said]) -> String {
    let mut shown = Vec::new();
    for Said { step, answer, wrote, took } in all {
        let said = match answer {
            Ok((_, text)) => text.clone(),
            Err(failure) => format!("{failure}"),
        };
        shown.push(format!("{step}: {said}  ({} µs)", took.as_micros()));
        shown.extend(lines(wrote).map(|line| format!("  {line}")));
    }
    shown.join("\n")
}

fn as_json(loaded: &Loaded, all: &[Said]) -> Value {
    let step = |said: &Said| {
        let (answer, failure) = match &said.answer {
            Ok((answer, _)) => (answer.clone(), Value::Null),
            Err(failure) => (Value::Null, json!({"kind": failure.kind.name(), "detail": failure.detail})),
        };
        let took_us = u64::try_from(said.took.as_micros()).unwrap_or(u64::MAX);
        (said.step.to_owned(), json!({"answer": answer, "failure": failure, "wrote": said.wrote, "took_us": took_us}))
    };
    let steps: serde_json::Map<_, _> = all.iter().map(step).collect();
    json!({"policy": loaded.name, "version": loaded.version, "digest": loaded.digest, "steps": steps})
}

/// A verdict on one line; `pass` if it votes for nothing.
pub(super) fn voted(verdict: &Verdict) -> String {
    let Verdict { placement, targets, model, label, deny, weight, annotations } = verdict;
    let mut parts = Vec::new();
    parts.extend(deny.as_ref().map(|reason| format!("deny ({reason})")));
    parts.extend(placement.map(|placement| as_value(&placement).as_str().unwrap_or_default().to_owned()));
    parts.extend((!targets.is_empty()).then(|| format!("targets {}", targets.join(" "))));
    parts.extend(model.as_ref().map(|model| format!("model {model}")));
    parts.extend(label.as_ref().map(|label| format!("label {label}")));
    parts.extend(weight.as_ref().map(|weight| format!("weight {weight}")));
    parts.extend(annotations.iter().map(|note| format!("{}={}", note.key, note.value)));
    if parts.is_empty() { "pass".to_owned() } else { parts.join(", ") }
}

/// A plan on one line.
pub(super) fn planned(plan: &CachePlan) -> String {
    let mode = match plan.mode {
        CacheMode::Exact => "exact",
        CacheMode::Semantic => "semantic",
        CacheMode::Bypass => "bypass",
    };
    let mut parts = vec![mode.to_owned()];
    parts.extend(plan.ttl_seconds.map(|seconds| format!("ttl {seconds} s")));
    parts.extend(plan.key_parts.iter().map(|part| format!("key part {part}")));
    parts.join(", ")
}

/// One find a line, with its text: it is the author's own.
fn found(spans: &[Span], segments: &[TextSegment]) -> String {
    let text = |span: &Span| {
        let segment = segments.iter().find(|segment| segment.id == span.segment)?;
        segment.text.get(span.start as usize..span.end as usize)
    };
    let line = |span: &Span| {
        let shown: String = text(span).unwrap_or_default().chars().take(MAX_SHOWN_CHARS).collect();
        let Span { segment, start, end, kind, .. } = span;
        format!("\n  segment {segment}, bytes {start}..{end}: {kind} {shown:?}, {}", case::action(span.action))
    };
    let finds: String = spans.iter().map(line).collect();
    format!("{} finds{finds}", spans.len())
}
