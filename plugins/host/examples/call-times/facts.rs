//! What policies are told in these calls: 2 KB of texts each.

use postern_plugins::{
    FleetFacts, Header, MessageFacts, Price, RequestFacts, TargetFacts, TargetPlacement, TextSegment,
};

/// Headers of the request, all of them granted.
pub(crate) const HEADERS: [&str; 6] =
    ["x-desk", "x-application", "x-office", "user-agent", "x-ticket", "accept-language"];

pub(crate) struct Facts {
    pub(crate) request: RequestFacts,
    pub(crate) fleet: FleetFacts,
    pub(crate) segments: Vec<TextSegment>,
}

impl Facts {
    pub(crate) fn new() -> Self {
        Self { request: request(), fleet: fleet(), segments: segments() }
    }
}

fn request() -> RequestFacts {
    let message = |role: &str, bytes| MessageFacts { role: role.into(), bytes, text: None };
    let mut messages = vec![message("system", 600)];
    for turn in 0..6 {
        messages.extend([message("user", 200 + turn), message("assistant", 900)]);
    }
    messages.push(message("user", 400));
    let header = |name: &str| Header { name: name.into(), value: format!("{name}/").repeat(230 / (name.len() + 1)) };
    RequestFacts {
        identity: "spiffe://branch-17.example.org/clerk/li".into(),
        tenant: "clerks".into(),
        label: "internal".into(),
        labels: ["public", "internal", "confidential", "classified"].map(str::to_owned).into(),
        label_sources: vec!["identity".into(), "detector:email".into()],
        model: "chat".into(),
        stream: true,
        prompt_tokens: 1900,
        messages,
        tools: false,
        images: false,
        temperature: Some(0.7),
        placement_asked: None,
        conversation: "7f3a52c09be14d66a1b2c3d4e5f60718".into(),
        // A Thursday at eleven.
        time: 20_783 * 86_400 + 11 * 3600,
        utc_offset_minutes: 0,
        tokens_left: Some(120_000),
        headers: HEADERS.map(header).into(),
    }
}

fn fleet() -> FleetFacts {
    let target = |name: &str, placement, price: Option<f64>| TargetFacts {
        name: name.into(),
        placement,
        clearance: "internal".into(),
        healthy: true,
        predicted_ttft_ms: Some(300),
        queue_depth: 1,
        price: price.map(|input| Price { input_per_million: input, output_per_million: input * 4.0 }),
        requests_left: None,
    };
    let targets = [
        target("siliconflow", TargetPlacement::Cloud, Some(0.27)),
        target("second-provider", TargetPlacement::Cloud, Some(0.5)),
        target("node-1", TargetPlacement::Edge, None),
        target("node-2", TargetPlacement::Edge, None),
        target("engine", TargetPlacement::Local, None),
    ];
    FleetFacts { targets: targets.into() }
}

fn segments() -> Vec<TextSegment> {
    let prose =
        "The quarterly report is due on 2026-11-30; please summarise the main points in five lines. ".repeat(11);
    let texts = [prose.clone(), format!("{prose}Send it to li@example.com or call 13800138000.")];
    texts.into_iter().zip(0..).map(|(text, id)| TextSegment { id, role: "user".into(), text }).collect()
}
