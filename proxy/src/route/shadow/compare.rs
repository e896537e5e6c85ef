//! What would have been different. Pure.

use std::collections::BTreeMap;

use postern_plugins::Span;
use serde_json::{Map, Value, json};

use crate::classify::clearance::Destination;
use crate::config::Config;
use crate::decide;
use crate::route::Votes;
use crate::route::answers::{CacheChoice, Finds, Planned, joined, merged_plans};
use crate::route::scene::Scene;

/// What differs: as it was, and as it would have been.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Change {
    pub(super) now: Map<String, Value>,
    pub(super) would: Map<String, Value>,
}

/// The fields of two descriptions that are not the same.
fn change(now: Value, would: Value) -> Option<Change> {
    let fields = |value: Value, other: &Value| match value {
        Value::Object(fields) => fields.into_iter().filter(|(key, value)| other.get(key) != Some(value)).collect(),
        _ => Map::new(),
    };
    let change = Change { now: fields(now.clone(), &would), would: fields(would, &now) };
    (change != Change::default()).then_some(change)
}

pub(super) fn finds<'a>(would: Vec<&'a Finds>, now: &'a [Finds]) -> Option<Change> {
    let (now, would) = (joined(now).into_spans(), joined(would).into_spans());
    if now == would {
        return None;
    }
    let without = |all: &[Span], others: &[Span]| all.iter().filter(|span| !others.contains(span)).count();
    let mut change = Change::default();
    change.now.insert("masked".into(), by_kind(&now));
    change.would.insert("masked".into(), by_kind(&would));
    change.would.insert("spans_added".into(), json!(without(&would, &now)));
    change.would.insert("spans_missing".into(), json!(without(&now, &would)));
    Some(change)
}

fn by_kind(spans: &[Span]) -> Value {
    let mut counts = BTreeMap::new();
    for span in spans {
        *counts.entry(span.kind.as_str()).or_insert(0) += 1;
    }
    json!(counts)
}

pub(super) fn plans<'a>(would: Vec<&'a Planned>, now: &'a [Planned]) -> Option<Change> {
    let (now, would) = (merged_plans(now), merged_plans(would));
    // Key parts are words of a plugin, so they are counted and not told.
    let described = |choice: &CacheChoice| {
        json!({
            "mode": if choice.exact { "exact" } else { "bypass" },
            "ttl_s": choice.ttl.map(|ttl| ttl.as_secs()),
            "key_parts": choice.key_parts.len(),
        })
    };
    let told = change(described(&now), described(&would));
    if told.is_none() && now.key_parts != would.key_parts {
        return change(json!({}), json!({"key_parts": "others"}));
    }
    told
}

pub(super) fn decisions(config: &Config, scene: &Scene, now: &Votes, would: &Votes) -> Option<Change> {
    change(decided(config, scene, now), decided(config, scene, would))
}

/// What these votes lead to, with everything else as it was.
fn decided(config: &Config, scene: &Scene, votes: &Votes) -> Value {
    let label = scene.label_by(config, votes);
    let (name, model) = (config.labels.name(label), scene.model(votes));
    let refused = |code: &str| json!({"label": name, "model": model, "refused": code});
    if votes.denied.is_some() {
        return refused("policy_denied");
    }
    if label > scene.ceiling {
        return refused("label_refused");
    }
    match decide::decide(&scene.facts(config, votes), label, scene.asked, model, scene.complete) {
        Err(error) => refused(error.code()),
        Ok(plan) => json!({
            "label": name,
            "model": plan.model,
            "placement": plan.placement.as_str(),
            "targets": plan.targets.iter().map(Destination::name).collect::<Vec<_>>(),
            "reason": plan.reason.as_str(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use postern_plugins::{CacheMode, CachePlan, SpanAction};

    use super::*;

    fn found(policy: &str, spans: &[(u32, u32, &str)]) -> Finds {
        let span = |(start, end, kind): &(u32, u32, &str)| Span {
            segment: 0,
            start: *start,
            end: *end,
            kind: (*kind).to_owned(),
            action: SpanAction::Mask,
        };
        Finds { policy: policy.into(), spans: Some(spans.iter().map(span).collect()) }
    }

    #[test]
    fn only_what_differs_is_told() {
        assert_eq!(change(json!({"a": 1, "b": 2}), json!({"a": 1, "b": 2})), None);
        let told = change(json!({"a": 1, "b": 2}), json!({"a": 1, "b": 3, "c": 4})).unwrap();
        assert_eq!((Value::Object(told.now), Value::Object(told.would)), (json!({"b": 2}), json!({"b": 3, "c": 4})));
    }

    #[test]
    fn finds_are_told_by_number_and_kind() {
        let now = [found("a", &[(0, 4, "email"), (6, 9, "phone")])];
        let same = found("b", &[(0, 4, "email")]);
        assert_eq!(finds(vec![&now[0], &same], &now), None);
        let other = found("b", &[(0, 4, "email"), (10, 12, "email")]);
        let told = finds(vec![&other], &now).unwrap();
        assert_eq!(Value::Object(told.now), json!({"masked": {"email": 1, "phone": 1}}));
        let would = json!({"masked": {"email": 2}, "spans_added": 1, "spans_missing": 1});
        assert_eq!(Value::Object(told.would), would);
    }

    #[test]
    fn plans_are_told_without_their_words() {
        let plan = |parts: &[&str], ttl_seconds| Planned {
            policy: "p".into(),
            plan: Some(CachePlan {
                mode: CacheMode::Exact,
                ttl_seconds,
                key_parts: parts.iter().map(ToString::to_string).collect(),
            }),
        };
        let now = [plan(&["secret"], Some(5))];
        assert_eq!(plans(vec![&plan(&["secret"], Some(5))], &now), None);
        let told = plans(vec![&plan(&["heron"], Some(5))], &now).unwrap();
        assert_eq!(Value::Object(told.would), json!({"key_parts": "others"}));
        let told = plans(vec![&plan(&["secret"], Some(3))], &now).unwrap();
        assert_eq!((Value::Object(told.now), Value::Object(told.would)), (json!({"ttl_s": 5}), json!({"ttl_s": 3})));
        let failed = Planned { policy: "p".into(), plan: None };
        assert_eq!(plans(vec![&failed], &now).unwrap().would["mode"], "bypass");
    }
}
