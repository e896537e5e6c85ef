use postern_policy_sdk::routing::{Header, Placement, Price, TargetFacts, TargetPlacement};

use super::*;

fn request() -> RequestFacts {
    RequestFacts {
        identity: "spiffe://td/clerk/li".into(),
        tenant: "clerks".into(),
        label: "internal".into(),
        labels: ["public", "internal", "confidential"].map(str::to_owned).into(),
        model: "chat".into(),
        stream: true,
        prompt_tokens: 100,
        // Thursday 2026-11-26, 11:00 UTC.
        time: 20_783 * 86_400 + 11 * 3600,
        ..RequestFacts::default()
    }
}

fn fleet() -> FleetFacts {
    let target = |name: &str, healthy, predicted_ttft_ms, price: Option<f64>| TargetFacts {
        name: name.into(),
        placement: TargetPlacement::Cloud,
        clearance: "internal".into(),
        healthy,
        predicted_ttft_ms,
        queue_depth: 0,
        price: price.map(|price| Price { input_per_million: price, output_per_million: 9.0 }),
        requests_left: None,
    };
    let targets = [
        target("dear", true, Some(100), Some(10.0)),
        target("slow", true, Some(900), Some(1.0)),
        target("ill", false, Some(50), Some(1.0)),
        target("free", true, None, None),
    ];
    FleetFacts { targets: targets.into() }
}

fn read(config: &str) -> Result<Config, String> {
    postern_policy_sdk::parse::<Config>(config)?.complete()
}

fn vote(config: &str, request: &RequestFacts) -> Verdict {
    read(config).unwrap().vote(request, &fleet()).unwrap()
}

fn placed(config: &str, request: &RequestFacts) -> Option<Placement> {
    vote(config, request).placement
}

#[test]
fn what_was_asked_widens_no_vote() {
    let asked = RequestFacts { placement_asked: Some(Placement::EdgeFirst), ..request() };
    assert_eq!(vote("{}", &request()), Verdict::default());
    assert_eq!(vote("{}", &asked), Verdict::default());
    assert_eq!(placed(r#"{"default": "cloud"}"#, &request()), Some(Placement::Cloud));
    assert_eq!(placed(r#"{"default": "local"}"#, &asked), Some(Placement::Local));
}

#[test]
fn the_first_rule_that_matches_counts() {
    let rules = r#"{"rules": [{"stream": false, "placement": "cloud"}, {"model": "ch*", "placement": "local"}, {"placement": "cloud"}]}"#;
    assert_eq!(placed(rules, &request()), Some(Placement::Local));
    assert_eq!(placed(rules, &RequestFacts { model: "other".into(), ..request() }), Some(Placement::Cloud));
}

#[test]
fn every_condition_must_hold() {
    let header = |value: &str| vec![Header { name: "x-desk".into(), value: value.into() }];
    let all = r#"{"rules": [{"model": "chat", "identity": "spiffe://td/clerk/*", "tenant": "clerks", "label": "internal",
        "min_label": "internal", "highest_label": false, "min_prompt_tokens": 100, "max_prompt_tokens": 100, "stream": true,
        "tools": false, "images": false, "placement_asked": "cloud", "headers": {"x-desk": "tra*"}, "hours": "11:00-12:30",
        "days": ["thu", "fri"], "max_tokens_left": 50, "placement": "local"}]}"#;
    let fits = || RequestFacts {
        placement_asked: Some(Placement::Cloud),
        headers: header("trading"),
        tokens_left: Some(50),
        ..request()
    };
    assert_eq!(placed(all, &fits()), Some(Placement::Local));
    for other in [
        RequestFacts { model: "chat2".into(), ..fits() },
        RequestFacts { identity: "spiffe://td/guest/li".into(), ..fits() },
        RequestFacts { tenant: "guests".into(), ..fits() },
        RequestFacts { label: "public".into(), ..fits() },
        RequestFacts { prompt_tokens: 101, ..fits() },
        RequestFacts { prompt_tokens: 99, ..fits() },
        RequestFacts { stream: false, ..fits() },
        RequestFacts { tools: true, ..fits() },
        RequestFacts { images: true, ..fits() },
        RequestFacts { placement_asked: None, ..fits() },
        RequestFacts { headers: header("post"), ..fits() },
        RequestFacts { headers: Vec::new(), ..fits() },
        RequestFacts { time: fits().time - 1, ..fits() },
        RequestFacts { utc_offset_minutes: 90, ..fits() },
        RequestFacts { time: fits().time + 2 * 86_400, ..fits() },
        RequestFacts { tokens_left: Some(51), ..fits() },
        RequestFacts { tokens_left: None, ..fits() },
    ] {
        assert_eq!(vote(all, &other), Verdict::default(), "{other:?}");
    }
}

#[test]
fn labels_are_compared_by_their_order() {
    let rules = r#"{"rules": [{"min_label": "internal", "placement": "local"}]}"#;
    let labelled = |label: &str| placed(rules, &RequestFacts { label: label.into(), ..request() });
    assert_eq!(labelled("public"), None);
    assert_eq!(labelled("internal"), Some(Placement::Local));
    assert_eq!(labelled("confidential"), Some(Placement::Local));
    let unknown = read(r#"{"rules": [{"min_label": "secret", "placement": "local"}]}"#).unwrap();
    assert!(unknown.vote(&request(), &fleet()).unwrap_err().contains("secret"));
}

#[test]
fn a_rule_says_all_that_a_verdict_can() {
    let rule = r#"{"rules": [{"name": "kiosks", "placement": "edge-first", "targets": ["free", "dear", "gone"], "use_model": "small",
        "weight": "canary", "raise_label": "confidential", "deny": "not here"}]}"#;
    let verdict = vote(rule, &request());
    assert_eq!(verdict.placement, Some(Placement::EdgeFirst));
    assert_eq!(verdict.targets, ["free", "dear"]);
    assert_eq!(verdict.model.as_deref(), Some("small"));
    assert_eq!(verdict.weight.as_deref(), Some("canary"));
    assert_eq!(verdict.label.as_deref(), Some("confidential"));
    assert_eq!(verdict.deny.as_deref(), Some("not here"));
    assert_eq!((verdict.annotations[0].key.as_str(), verdict.annotations[0].value.as_str()), ("rule", "kiosks"));
}

#[test]
fn targets_are_narrowed_by_time_and_cost() {
    let left = |rule: &str, prompt_tokens| {
        let rules = format!(r#"{{"rules": [{{{rule}}}, {{"targets": ["ill"]}}]}}"#);
        vote(&rules, &RequestFacts { prompt_tokens, ..request() }).targets
    };
    assert_eq!(left(r#""max_ttft_ms": 100"#, 1), ["dear"]);
    assert_eq!(left(r#""max_ttft_ms": 900"#, 1), ["dear", "slow"]);
    assert_eq!(left(r#""max_ttft_ms": 900, "targets": ["slow", "dear"]"#, 1), ["slow", "dear"]);
    // 1,000 tokens cost 0.01 at the dear one, and 0.001 at the others that have a price.
    assert_eq!(left(r#""max_cost": 0.01"#, 1000), ["dear", "slow", "ill", "free"]);
    assert_eq!(left(r#""max_cost": 0.009"#, 1000), ["slow", "ill", "free"]);
    // Where none is left, the next rule is asked.
    assert_eq!(left(r#""max_ttft_ms": 99"#, 1), ["ill"]);
    assert_eq!(left(r#""max_cost": 0.009, "targets": ["dear"]"#, 1000), ["ill"]);
}

#[test]
fn presets_are_the_three_uses() {
    let placed = |preset: &str, label: &str, stream| {
        let request = RequestFacts { label: label.into(), stream, ..request() };
        placed(&format!(r#"{{"preset": "{preset}"}}"#), &request).unwrap()
    };
    assert_eq!(placed("general", "internal", true), Placement::Cloud);
    assert_eq!(placed("general", "confidential", true), Placement::Local);
    assert_eq!(placed("interactive", "internal", true), Placement::EdgeFirst);
    assert_eq!(placed("interactive", "internal", false), Placement::Cloud);
    assert_eq!(placed("interactive", "confidential", true), Placement::Local);
    assert_eq!(placed("classified", "public", true), Placement::Local);
}

#[test]
fn own_rules_go_before_a_preset() {
    let config = r#"{"rules": [{"tools": true, "placement": "local"}], "preset": "general"}"#;
    assert_eq!(placed(config, &RequestFacts { tools: true, ..request() }), Some(Placement::Local));
    assert_eq!(placed(config, &request()), Some(Placement::Cloud));
}

#[test]
fn what_cannot_be_meant_is_an_error() {
    for (config, why) in [
        (r#"{"rules": [{"modle": "x"}]}"#, "modle"),
        (r#"{"preset": "general", "default": "cloud"}"#, "exclude"),
        (r#"{"preset": "fast"}"#, "fast"),
        (r#"{"rules": [{"hours": "8-18"}]}"#, "08:00-18:30"),
        (r#"{"rules": [{"days": ["monday"]}]}"#, "monday"),
    ] {
        let error = read(config).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
