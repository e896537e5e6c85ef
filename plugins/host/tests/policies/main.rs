//! Policies through the sandbox: the first-party ones as built, and hostile ones from `tests/fixtures`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy knows test functions, but not what they call"
)]

mod answers;
mod examples;
mod facts;
mod guests;
mod hostile;
mod large;
mod start;
mod text;
mod usage;
mod versions;
mod wasi;
mod writes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postern_plugins::{
    CallContext, Counters, FleetFacts, Grants, HostOptions, MessageFacts, PluginError, Policy, PolicyHost,
    PolicyMetrics, PolicySpec, RequestFacts, Span, TextSegment, componentize,
};

/// Generous, since tests share the machine; the ones about time say their own.
const DEADLINE: Duration = Duration::from_secs(5);
const MEMORY_BYTES: usize = 32 << 20;
const CONTEXT: CallContext<'static> = CallContext { tenant: "clerks", label: "internal", seed: 7, time_ms: None };

fn host() -> PolicyHost {
    PolicyHost::new(HostOptions { max_calls: 32, ..HostOptions::default() }).unwrap()
}

fn spec(component: Vec<u8>) -> PolicySpec {
    PolicySpec {
        name: "tested".into(),
        component,
        config: serde_json::Value::Null,
        deadline: DEADLINE,
        memory_bytes: MEMORY_BYTES,
        grants: Grants::default(),
        counters: Arc::new(Counters::new()),
        metrics: Arc::new(PolicyMetrics::new([])),
    }
}

/// A first-party policy, as `plugins/build.sh` left it.
fn built(policy: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugins").join(policy).with_extension("wasm");
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}; run plugins/build.sh first", file.display()))
}

/// A hostile policy, from text.
fn fixture(name: &str, world: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).with_extension("wat");
    componentize(&wat::parse_file(file).unwrap(), Some(world)).unwrap()
}

fn load(component: Vec<u8>) -> Result<Policy, PluginError> {
    host().load(spec(component))
}

fn hostile(name: &str) -> Policy {
    load(fixture(name, "full-policy")).unwrap()
}

fn request() -> RequestFacts {
    RequestFacts {
        identity: "spiffe://td/clerk/li".into(),
        tenant: "clerks".into(),
        label: "internal".into(),
        label_sources: vec!["identity".into(), "detector:email".into()],
        model: "chat".into(),
        stream: true,
        prompt_tokens: 500,
        messages: [("system", 200), ("user", 1800)]
            .map(|(role, bytes)| MessageFacts { role: role.into(), bytes, text: None })
            .into(),
        tools: false,
        images: false,
        temperature: Some(0.5),
        placement_asked: None,
        conversation: "c0ffee".into(),
        time: 1_795_000_000,
        labels: ["public", "internal", "confidential", "classified"].map(str::to_owned).into(),
        ..RequestFacts::default()
    }
}

fn fleet() -> FleetFacts {
    serde_json::from_value(serde_json::json!({"targets": [
        {"name": "siliconflow", "placement": "cloud", "clearance": "internal", "healthy": true, "predicted_ttft_ms": 400,
         "queue_depth": 2, "price": {"input_per_million": 0.27, "output_per_million": 1.1}},
        {"name": "engine", "placement": "local", "clearance": "classified", "healthy": true, "predicted_ttft_ms": null,
         "queue_depth": 0, "price": null},
    ]}))
    .unwrap()
}

fn segment(id: u32, text: &str) -> TextSegment {
    TextSegment { id, role: "user".into(), text: text.into() }
}

fn found_text<'a>(text: &'a str, span: &Span) -> &'a str {
    text.get(span.start as usize..span.end as usize).unwrap()
}
