//! A request that an author writes down to try a policy on: as many of the facts as matter, the rest as usual.

use std::path::Path;

use postern_plugins::{FleetFacts, MessageFacts, RequestFacts, SpanAction, TargetFacts, TargetPlacement, TextSegment};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Wrong, file};

/// Of bytes of text a token, roughly, as the gateway estimates for ASCII.
const BYTES_PER_TOKEN: u64 = 4;

/// One request, with the targets of its moment.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) request: RequestFacts,
    pub(super) fleet: FleetFacts,
    /// Texts for redaction policies.
    pub(super) segments: Vec<TextSegment>,
    /// What `random` follows from.
    pub(super) seed: u64,
}

/// As it is written. A line of a recording fits as well; what it has beyond that is passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    request: Map<String, Value>,
    fleet: WrittenFleet,
    segments: Vec<WrittenSegment>,
    seed: u64,
    #[serde(rename = "version")]
    _version: Value,
    #[serde(rename = "record")]
    _record: Value,
    #[serde(rename = "final_label")]
    _final_label: Value,
    #[serde(rename = "answers")]
    _answers: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenFleet {
    targets: Vec<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WrittenSegment {
    Text(String),
    Segment(Segment),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    id: Option<u32>,
    role: Option<String>,
    text: String,
}

/// A message as it is written: `bytes` follow from `text` where they are left out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    #[serde(default = "user")]
    role: String,
    bytes: Option<u64>,
    text: Option<String>,
}

fn user() -> String {
    "user".to_owned()
}

impl Case {
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let written = file::read_document::<Written>(path)?;
        Self::of(written).map_err(|what| Wrong::because(format!("{}: {what}", path.display())))
    }

    /// About 2 KB of facts, for measurements.
    pub(super) fn usual() -> Self {
        let message = |role: &str| MessageFacts { role: role.to_owned(), bytes: 1000, text: None };
        let target = |name: &str, placement| TargetFacts { name: name.to_owned(), placement, ..usual_target() };
        let prose = "The quarterly report is due on 2026-11-30; please summarise the main points in five lines. ";
        let segment = |id, text| TextSegment { id, role: user(), text };
        Self {
            request: RequestFacts { messages: ["system", "user"].map(message).into(), stream: true, ..usual_request() },
            fleet: FleetFacts {
                targets: vec![
                    target("sun", TargetPlacement::Cloud),
                    target("oak", TargetPlacement::Edge),
                    target("engine", TargetPlacement::Local),
                ],
            },
            segments: vec![
                segment(0, prose.repeat(11)),
                segment(1, prose.repeat(11) + "Send it to li@example.com or call 13800138000."),
            ],
            seed: 7,
        }
    }

    fn of(written: Written) -> Result<Self, String> {
        let Written { mut request, fleet, segments, seed, .. } = written;
        let messages = match request.remove("messages") {
            Some(messages) => messages_of(messages)?,
            None => Vec::new(),
        };
        let says_tokens = request.contains_key("prompt_tokens");
        let mut request = with(&usual_request(), request, "request")?;
        if !says_tokens && !messages.is_empty() {
            let bytes: u64 = messages.iter().map(|message| message.bytes).fold(0, u64::saturating_add);
            request.prompt_tokens = bytes.div_ceil(BYTES_PER_TOKEN);
        }
        request.messages = messages;
        let targets = fleet.targets.into_iter().map(|target| with(&usual_target(), target, "fleet.targets"));
        let segments = segments.into_iter().zip(0_u32..).map(|(segment, at)| match segment {
            WrittenSegment::Text(text) => TextSegment { id: at, role: user(), text },
            WrittenSegment::Segment(Segment { id, role, text }) => {
                TextSegment { id: id.unwrap_or(at), role: role.unwrap_or_else(user), text }
            }
        });
        Ok(Self {
            request,
            fleet: FleetFacts { targets: targets.collect::<Result<_, _>>()? },
            segments: segments.collect(),
            seed,
        })
    }
}

fn messages_of(written: Value) -> Result<Vec<MessageFacts>, String> {
    let written: Vec<Message> =
        serde_json::from_value(written).map_err(|error| format!("request.messages: {error}"))?;
    let message = |Message { role, bytes, text }: Message| {
        let bytes = bytes.unwrap_or_else(|| text.as_ref().map_or(0, |text| text.len() as u64));
        MessageFacts { role, bytes, text }
    };
    Ok(written.into_iter().map(message).collect())
}

/// The usual facts, changed where something is written.
fn with<T: Serialize + DeserializeOwned>(usual: &T, written: Map<String, Value>, place: &str) -> Result<T, String> {
    let Ok(Value::Object(mut facts)) = serde_json::to_value(usual) else {
        return Err(format!("{place} cannot be read"));
    };
    for (key, value) in written {
        let Some(fact) = facts.get_mut(&key) else {
            let known = facts.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(format!("{place}: there is no `{key}`; there are {known}"));
        };
        let before = std::mem::replace(fact, value);
        // One at a time, so that a fault has its place.
        if let Err(error) = serde_json::from_value::<T>(Value::Object(facts.clone())) {
            return Err(format!("{place}.{key}: {error}; such as {before}"));
        }
    }
    serde_json::from_value(Value::Object(facts)).map_err(|error| format!("{place}: {error}"))
}

fn usual_request() -> RequestFacts {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    RequestFacts {
        identity: "spiffe://branch-17.example.org/clerk/li".to_owned(),
        tenant: "clerks".to_owned(),
        label: "internal".to_owned(),
        labels: ["public", "internal", "confidential", "classified"].map(str::to_owned).into(),
        label_sources: vec!["identity".to_owned()],
        model: "chat".to_owned(),
        prompt_tokens: 500,
        conversation: "7f3a".to_owned(),
        time: now.as_secs(),
        ..RequestFacts::default()
    }
}

fn usual_target() -> TargetFacts {
    TargetFacts {
        name: "sun".to_owned(),
        placement: TargetPlacement::Cloud,
        clearance: "internal".to_owned(),
        healthy: true,
        predicted_ttft_ms: Some(300),
        queue_depth: 0,
        price: None,
        requests_left: None,
    }
}

/// May some target that is not on this machine see a label? What a policy writes about a request counts only then.
pub(super) fn may_leave(request: &RequestFacts, label: &str, fleet: &FleetFacts) -> bool {
    let rank = |label: &str| request.labels.iter().position(|known| known == label);
    let Some(needed) = rank(label) else { return false };
    let clears = |target: &TargetFacts| rank(&target.clearance).is_some_and(|clearance| clearance >= needed);
    fleet.targets.iter().any(|target| target.placement != TargetPlacement::Local && clears(target))
}

/// For a terminal.
pub(super) fn action(action: SpanAction) -> &'static str {
    match action {
        SpanAction::Mask => "masked",
        SpanAction::Flag => "flagged",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(yaml: &str) -> Result<Case, String> {
        Case::of(serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?)
    }

    #[test]
    fn what_is_left_out_is_as_usual() {
        let case = of("request: {model: big, messages: [{text: héllo}, {role: system, bytes: 100}]}\n\
                       fleet: {targets: [{name: oak, placement: edge}]}\nsegments: [one, {role: tool, text: two}]")
        .unwrap();
        let request = case.request;
        assert_eq!((request.model.as_str(), request.label.as_str()), ("big", "internal"));
        assert_eq!(request.messages.iter().map(|m| m.bytes).collect::<Vec<_>>(), [6, 100]);
        assert_eq!((request.prompt_tokens, request.messages[0].text.as_deref()), (27, Some("héllo")));
        let oak = &case.fleet.targets[0];
        assert_eq!((oak.name.as_str(), oak.placement, oak.healthy), ("oak", TargetPlacement::Edge, true));
        let segments: Vec<_> = case.segments.iter().map(|s| (s.id, s.role.as_str(), s.text.as_str())).collect();
        assert_eq!(segments, [(0, "user", "one"), (1, "tool", "two")]);
    }

    #[test]
    fn what_is_misspelt_is_named() {
        for (yaml, words) in [
            ("request: {modle: x}", "there is no `modle`"),
            ("request: {prompt_tokens: many}", "request.prompt_tokens"),
            ("request: {messages: [{txt: x}]}", "request.messages"),
            ("fleet: {targets: [{placement: moon}]}", "fleet.targets.placement"),
            ("request: {placement_asked: nowhere}", "request.placement_asked"),
            ("reqest: {}", "reqest"),
        ] {
            let said = of(yaml).map(drop).unwrap_err();
            assert!(said.contains(words), "{yaml}: {said}");
        }
    }

    #[test]
    fn a_line_of_a_recording_fits() {
        let usual = Case::usual();
        let line = serde_json::json!({"version": 1, "record": "r", "seed": 3, "request": usual.request, "fleet": usual.fleet,
            "final_label": "internal", "answers": []});
        let case = Case::of(serde_json::from_value(line).unwrap()).unwrap();
        assert_eq!((case.request, case.fleet, case.seed), (usual.request, usual.fleet, 3));
    }

    #[test]
    fn what_no_target_may_see_does_not_leave() {
        let usual = Case::usual();
        let may = |label| may_leave(&usual.request, label, &usual.fleet);
        assert!(may("public") && may("internal") && !may("confidential") && !may("none"));
    }
}
