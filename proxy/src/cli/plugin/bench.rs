//! `postern plugin bench`: what a policy costs, call by call, each in a fresh instance as in the gateway.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use postern_plugins::{PolicyFailure, Reply, Usage};
use serde::Serialize;

use super::case::Case;
use super::load::{self, Loaded, Settings, Source};
use super::table::table;
use crate::cli::say;

/// Calls before anything is measured: the first ones fault memory in.
const WARM_UP: u32 = 50;
/// The most calls, since the time of each is kept.
const MAX_CALLS: u32 = 1_000_000;

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// A file, or builtin:routing, builtin:caching, builtin:redaction.
    #[arg(value_name = "FILE|builtin:NAME")]
    policy: Source,
    #[command(flatten)]
    settings: Settings,
    /// The request, as for `run`; absent: one of some 2 KB.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// Calls that are measured.
    #[arg(long, value_name = "COUNT", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CALLS)))]
    calls: u32,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// What a policy costs.
#[derive(Debug, Serialize)]
struct Cost {
    policy: String,
    version: String,
    digest: String,
    calls: u32,
    /// Until it could be asked; from the cache of compiled policies if it is there.
    load_ms: u128,
    /// Kept in memory when it was loaded, or run in each call.
    start: String,
    steps: Vec<Step>,
}

/// One step: times of a call with its instance, and what a call takes of the sandbox.
#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    p50_us: f64,
    p99_us: f64,
    mean_us: f64,
    /// WebAssembly instructions of a call, as wasmtime's fuel counts them; measured apart, since counting takes time.
    instructions: u64,
    memory_bytes: usize,
}

pub(super) fn run(command: &Bench) -> anyhow::Result<ExitCode> {
    let case = command.request.as_deref().map_or_else(|| Ok(Case::usual()), Case::read)?;
    let host = load::host()?;
    let loaded = load::load(&host, &command.policy, command.policy.read()?, &command.settings)?;
    let counting = load::counting_host()?;
    let counted = load::load(&counting, &command.policy, command.policy.read()?, &command.settings)?;
    let steps = load::block_on(measure(command, &loaded, &counted, &case))??;
    let cost = Cost {
        policy: loaded.name.clone(),
        version: loaded.version.clone(),
        digest: loaded.digest.clone(),
        calls: command.calls,
        load_ms: loaded.took.as_millis(),
        start: load::start(&loaded.policy),
        steps,
    };
    say(&if command.json { serde_json::to_string(&cost)? } else { text(&cost) });
    Ok(ExitCode::SUCCESS)
}

async fn measure(command: &Bench, loaded: &Loaded, counted: &Loaded, case: &Case) -> anyhow::Result<Vec<Step>> {
    let steps = loaded.policy.steps();
    let asked = [("redaction", steps.redaction), ("routing", steps.routing), ("caching", steps.caching)];
    let mut measured = Vec::new();
    for (step, _) in asked.into_iter().filter(|(_, exported)| *exported) {
        let failed = |failure: PolicyFailure| anyhow!("{}: {step}: {failure}", command.policy.as_str());
        for _ in 0..WARM_UP {
            ask(loaded, step, case).await.answer.map_err(failed)?;
        }
        let mut times = Vec::with_capacity(command.calls as usize);
        for _ in 0..command.calls {
            let started = Instant::now();
            let reply = ask(loaded, step, case).await;
            times.push(started.elapsed());
            reply.answer.map_err(failed)?;
        }
        let Reply { answer, usage: Usage { memory_bytes, instructions, .. }, .. } = ask(counted, step, case).await;
        answer.map_err(failed)?;
        times.sort_unstable();
        let mean = times.iter().sum::<Duration>() / command.calls;
        measured.push(Step {
            step,
            p50_us: us(at(&times, 50)),
            p99_us: us(at(&times, 99)),
            mean_us: us(mean),
            instructions: instructions.unwrap_or_default(),
            memory_bytes,
        });
    }
    Ok(measured)
}

/// The answer itself is of no interest here.
async fn ask(loaded: &Loaded, step: &str, case: &Case) -> Reply<()> {
    let (policy, context) = (&loaded.policy, load::context(&case.request, case.seed));
    match step {
        "redaction" => forget(policy.find(&context, &case.segments).await),
        "routing" => forget(policy.route(&context, &case.request, &case.fleet).await),
        _ => forget(policy.plan(&context, &case.request).await),
    }
}

fn forget<T>(reply: Reply<T>) -> Reply<()> {
    Reply { answer: reply.answer.map(drop), effects: reply.effects, usage: reply.usage }
}

/// A percentile of sorted times, by the nearest rank.
fn at(times: &[Duration], percent: usize) -> Duration {
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).copied().unwrap_or_default()
}

/// Microseconds, to a tenth.
fn us(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

fn text(cost: &Cost) -> String {
    let Cost { policy, version, digest, calls, load_ms, start, steps } = cost;
    let row = |step: &Step| {
        vec![
            step.step.to_owned(),
            format!("{:.1} µs", step.p50_us),
            format!("{:.1} µs", step.p99_us),
            format!("{:.1} µs", step.mean_us),
            step.instructions.to_string(),
            format!("{} KiB", step.memory_bytes >> 10),
        ]
    };
    let rows: Vec<_> = steps.iter().map(row).collect();
    let head = format!("{policy} {version} ({digest}): loaded in {load_ms} ms; start: {start}; {calls} calls a step");
    format!("{head}\n{}", table(&["step", "p50", "p99", "mean", "instructions", "memory"], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_the_nearest_rank() {
        let times: Vec<_> = (1..=100).map(Duration::from_micros).collect();
        assert_eq!([50, 99, 100].map(|percent| us(at(&times, percent))), [50.0, 99.0, 100.0]);
        assert_eq!(us(at(&times[..1], 99)), 1.0);
        assert_eq!(at(&[], 50), Duration::ZERO);
    }
}
