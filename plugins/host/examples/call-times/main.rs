//! How long a call of a policy takes, each in a fresh instance and told 2 KB: the first-party ones, the three in a row, and the
//! example policy in every language that was built.
//!
//! ```text
//! target/release/examples/call-times [CALLS] [--json]
//! target/release/examples/call-times CALLS --only routing,caching,redaction
//! ```
//! Prints a table, or JSON. Instructions are counted in calls of their own, since counting takes time: they are the guest's alone.
//! With `--only` these policies are asked in a row, so often, and nothing is printed: what callgrind counts in `asked_so_often` is all
//! that such calls take.
#![allow(clippy::print_stdout, reason = "it is run by a person, or by `make bench`")]

mod facts;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_plugins::{CallContext, Counters, Grants, HostOptions, Policy, PolicyHost, PolicyMetrics, PolicySpec};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const DEFAULT_CALLS: usize = 20_000;
/// Calls before the first that is measured.
const WARM_UP: usize = 200;
const CONTEXT: CallContext<'static> = CallContext { tenant: "clerks", label: "internal", seed: 7, time_ms: None };
const FIRST_PARTY: [&str; 3] = ["routing", "caching", "redaction"];
const LANGUAGES: [&str; 5] = ["rust", "c", "zig", "js", "python"];

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// What was measured of one policy, or of several in a row.
#[derive(Debug, Serialize)]
struct Row {
    policy: String,
    p50_us: f64,
    p99_us: f64,
    instructions: u64,
    memory_kib: usize,
    component_kib: usize,
}

/// The policies of one sandbox.
struct Loaded {
    policies: Vec<(Policy, usize)>,
}

fn main() -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let calls = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(DEFAULT_CALLS).max(100);
    // Compiling Python takes a while, and this is not about that.
    let cache_dir = Some([env!("CARGO_MANIFEST_DIR"), "../../target/examples/compiled"].iter().collect());
    let options = HostOptions { cache_dir, ..HostOptions::default() };
    if let Some(names) = arguments.iter().skip_while(|argument| *argument != "--only").nth(1) {
        // Valgrind has no room for more.
        let options = HostOptions { max_calls: 1, max_large_calls: 1, ..options };
        let host = PolicyHost::new(options)?;
        let load = |name| load(&host, name, file("plugins", name), configuration(name));
        let policies: Vec<_> = names.split(',').map(load).collect::<Done<_>>()?;
        let (policies, facts) = (policies.iter().collect::<Vec<_>>(), facts::Facts::new());
        runtime.block_on(ask(&policies, &facts))?;
        return asked_so_often(&runtime, &policies, &facts, calls);
    }
    runtime.block_on(table(options, calls, arguments.iter().any(|argument| argument == "--json")))
}

async fn table(options: HostOptions, calls: usize, as_json: bool) -> Done {
    let counted = Loaded::new(&HostOptions { count_instructions: true, ..options.clone() })?;
    let timed = Loaded::new(&options)?;
    let mut rows = Vec::new();
    for (at, (policy, _)) in timed.policies.iter().enumerate() {
        rows.push(measure(policy.name().to_owned(), &timed.only(at), &counted.only(at), calls).await?);
    }
    rows.push(measure("the first three".into(), &timed.first_party(), &counted.first_party(), calls).await?);
    if as_json {
        println!("{}", serde_json::to_string(&rows)?);
    } else {
        print(&rows);
    }
    Ok(())
}

/// By its name, callgrind begins and ends to count.
#[inline(never)]
fn asked_so_often(runtime: &Runtime, policies: &[&(Policy, usize)], facts: &facts::Facts, calls: usize) -> Done {
    for _ in 0..calls {
        runtime.block_on(ask(policies, facts))?;
    }
    Ok(())
}

impl Loaded {
    fn new(options: &HostOptions) -> Done<Self> {
        let host = PolicyHost::new(options.clone())?;
        let mut policies = Vec::new();
        for name in FIRST_PARTY {
            policies.push(load(&host, name, file("plugins", name), configuration(name))?);
        }
        for language in LANGUAGES {
            let file = file("examples", language);
            if file.exists() {
                policies.push(load(&host, &format!("example in {language}"), file, Value::Null)?);
            } else {
                eprintln!("the example in {language} is not built: plugins/examples/build.sh {language}");
            }
        }
        Ok(Self { policies })
    }

    fn only(&self, at: usize) -> Vec<&(Policy, usize)> {
        self.policies.get(at).into_iter().collect()
    }

    fn first_party(&self) -> Vec<&(Policy, usize)> {
        self.policies.iter().take(FIRST_PARTY.len()).collect()
    }
}

async fn measure(name: String, timed: &[&(Policy, usize)], counted: &[&(Policy, usize)], calls: usize) -> Done<Row> {
    let facts = facts::Facts::new();
    for _ in 0..WARM_UP {
        ask(timed, &facts).await?;
    }
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let started = Instant::now();
        ask(timed, &facts).await?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).map_or(0.0, |time| as_us(*time));
    let (instructions, memory_bytes) = ask(counted, &facts).await?;
    let component_bytes: usize = timed.iter().map(|(_, bytes)| bytes).sum();
    Ok(Row {
        policy: name,
        p50_us: at(50),
        p99_us: at(99),
        instructions,
        memory_kib: memory_bytes >> 10,
        component_kib: component_bytes >> 10,
    })
}

/// One call of each: its step, in the order of the request path. Instructions and bytes of memory, where they are counted.
async fn ask(policies: &[&(Policy, usize)], facts: &facts::Facts) -> Done<(u64, usize)> {
    let (mut instructions, mut memory_bytes) = (0, 0);
    for (policy, _) in policies {
        let steps = policy.steps();
        let usage = if steps.redaction {
            let reply = policy.find(&CONTEXT, &facts.segments).await;
            reply.answer?;
            reply.usage
        } else if steps.routing {
            let reply = policy.route(&CONTEXT, &facts.request, &facts.fleet).await;
            reply.answer?;
            reply.usage
        } else {
            let reply = policy.plan(&CONTEXT, &facts.request).await;
            reply.answer?;
            reply.usage
        };
        instructions += usage.instructions.unwrap_or(0);
        memory_bytes += usage.memory_bytes;
    }
    Ok((instructions, memory_bytes))
}

fn load(host: &PolicyHost, name: &str, file: PathBuf, config: Value) -> Done<(Policy, usize)> {
    let component =
        std::fs::read(&file).map_err(|error| format!("{}: {error}; run plugins/build.sh", file.display()))?;
    eprintln!("loading {name}");
    let bytes = component.len();
    let policy = host.load(PolicySpec {
        name: name.into(),
        component,
        config,
        deadline: Duration::from_secs(1),
        memory_bytes: 128 << 20,
        grants: Grants { headers: facts::HEADERS.map(str::to_owned).into(), text: false },
        counters: Arc::new(Counters::new()),
        metrics: Arc::new(PolicyMetrics::new([])),
    })?;
    Ok((policy, bytes))
}

fn file(folder: &str, name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../target", folder, name].iter().collect::<PathBuf>().with_extension("wasm")
}

/// Such as an office would write.
fn configuration(policy: &str) -> Value {
    match policy {
        "routing" => json!({"preset": "interactive", "rules": [
            {"identity": "spiffe://branch-17.example.org/kiosk/*", "model": "gpt-*", "deny": "kiosks use small models"},
            {"hours": "20:00-07:00", "days": ["sat", "sun"], "placement": "local"},
            {"headers": {"x-desk": "night"}, "placement": "edge-first"},
            {"min_prompt_tokens": 8000, "max_cost": 0.02, "max_ttft_ms": 500},
        ]}),
        "caching" => json!({"never": [{"model": "live-*"}, {"label": "confidential"}], "key_by": ["identity"]}),
        _ => json!({"words": {"project": ["Blue Heron", "北风计划"], "customer": ["Globex"]}, "flag": ["customer"],
            "allow": ["*@office.example"]}),
    }
}

fn as_us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn print(rows: &[Row]) {
    println!(
        "{:20} {:>9} {:>9} {:>13} {:>11} {:>14}",
        "policy", "p50 µs", "p99 µs", "instructions", "memory KiB", "component KiB"
    );
    for Row { policy, p50_us, p99_us, instructions, memory_kib, component_kib } in rows {
        println!("{policy:20} {p50_us:9.1} {p99_us:9.1} {instructions:13} {memory_kib:11} {component_kib:14}");
    }
}
