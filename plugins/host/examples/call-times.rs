//! Prints how long a call of each first-party policy takes: `cargo run --release -p postern-plugins --example call-times`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_plugins::{
    CallContext, Counters, FleetFacts, Grants, HostOptions, MessageFacts, Policy, PolicyHost, PolicyMetrics,
    PolicySpec, RequestFacts, TargetFacts, TargetPlacement, TextSegment,
};

const CALLS: usize = 20_000;
const CONTEXT: CallContext<'static> = CallContext { tenant: "clerks", label: "internal", seed: 7, time_ms: None };

type Done = Result<(), Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Done {
    let host = PolicyHost::new(HostOptions::default())?;
    let (request, fleet, segments) = (request(), fleet(), segments());
    let (routing, caching, redaction) = (load(&host, "routing")?, load(&host, "caching")?, load(&host, "redaction")?);
    let mut times: [Vec<Duration>; 3] = Default::default();
    let [route, plan, find] = &mut times;
    for _ in 0..CALLS {
        let started = Instant::now();
        routing.route(&CONTEXT, &request, &fleet).await.answer?;
        let routed = Instant::now();
        caching.plan(&CONTEXT, &request).await.answer?;
        let planned = Instant::now();
        redaction.find(&CONTEXT, &segments).await.answer?;
        let found = Instant::now();
        route.push(routed - started);
        plan.push(planned - routed);
        find.push(found - planned);
    }
    for (policy, mut times) in ["routing", "caching", "redaction (2 KB)"].into_iter().zip(times) {
        times.sort_unstable();
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
        eprintln!("{policy:18} p50 {:>8.1?}   p99 {:>8.1?}", at(50), at(99));
    }
    Ok(())
}

fn load(host: &PolicyHost, policy: &str) -> Result<Policy, Box<dyn std::error::Error>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugins").join(policy).with_extension("wasm");
    let component =
        std::fs::read(&file).map_err(|error| format!("{}: {error}; run plugins/build.sh", file.display()))?;
    let (config, deadline) = (serde_json::Value::Null, Duration::from_millis(20));
    let started = Instant::now();
    let policy = host.load(PolicySpec {
        name: policy.into(),
        component,
        config,
        deadline,
        memory_bytes: 32 << 20,
        grants: Grants::default(),
        counters: Arc::new(Counters::new()),
        metrics: Arc::new(PolicyMetrics::new([])),
    })?;
    eprintln!("{:18} compiled in {:?}", policy.name(), started.elapsed());
    Ok(policy)
}

fn request() -> RequestFacts {
    RequestFacts {
        identity: "spiffe://branch-17.example.org/clerk/li".into(),
        tenant: "clerks".into(),
        label: "internal".into(),
        label_sources: vec!["identity".into()],
        model: "chat".into(),
        stream: true,
        prompt_tokens: 500,
        messages: ["system", "user"].map(|role| MessageFacts { role: role.into(), bytes: 1000, text: None }).into(),
        tools: false,
        images: false,
        temperature: None,
        placement_asked: None,
        conversation: "7f3a".into(),
        time: 1_795_000_000,
        ..RequestFacts::default()
    }
}

fn fleet() -> FleetFacts {
    let target = |name: &str, placement| TargetFacts {
        name: name.into(),
        placement,
        clearance: "internal".into(),
        healthy: true,
        predicted_ttft_ms: Some(300),
        queue_depth: 1,
        price: None,
        requests_left: None,
    };
    let targets = [("a", TargetPlacement::Cloud), ("b", TargetPlacement::Edge), ("engine", TargetPlacement::Local)];
    FleetFacts { targets: targets.map(|(name, placement)| target(name, placement)).into() }
}

fn segments() -> Vec<TextSegment> {
    let prose =
        "The quarterly report is due on 2026-11-30; please summarise the main points in five lines. ".repeat(11);
    let texts = [prose.clone(), format!("{prose}Send it to li@example.com or call 13800138000.")];
    texts.into_iter().zip(0..).map(|(text, id)| TextSegment { id, role: "user".into(), text }).collect()
}
