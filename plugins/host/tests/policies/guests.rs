//! The three first-party policies.

use postern_plugins::{
    CacheMode, FailureKind, FleetFacts, Placement, Policy, RequestFacts, SpanAction, Steps, Verdict,
};
use serde_json::{Value, json};

use super::{CONTEXT, built, fleet, found_text, host, load, request, segment, spec};

fn configured(policy: &str, config: Value) -> Policy {
    let spec = postern_plugins::PolicySpec { config, ..spec(built(policy)) };
    host().load(spec).unwrap()
}

#[test]
fn each_takes_part_at_its_own_step() {
    let steps = |policy| load(built(policy)).unwrap().steps();
    assert_eq!(steps("routing"), Steps { routing: true, ..Steps::default() });
    assert_eq!(steps("caching"), Steps { caching: true, ..Steps::default() });
    assert_eq!(steps("redaction"), Steps { redaction: true, ..Steps::default() });
}

#[tokio::test]
async fn a_step_that_is_not_exported_cannot_be_asked() {
    let failure = load(built("routing")).unwrap().plan(&CONTEXT, &request()).await.answer.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.detail.contains("caching"), "{failure}");
}

#[tokio::test]
async fn routing_follows_the_rules() {
    let rules = json!({"rules": [{"label": "internal", "max_prompt_tokens": 500, "placement": "edge-first"},
                                 {"label": "confidential", "deny": "not from here"}], "default": "cloud"});
    let policy = configured("routing", rules);
    let placed = async |request: RequestFacts| policy.route(&CONTEXT, &request, &fleet()).await.answer.unwrap();
    assert_eq!(placed(request()).await.placement, Some(Placement::EdgeFirst));
    assert_eq!(placed(RequestFacts { prompt_tokens: 501, ..request() }).await.placement, Some(Placement::Cloud));
    let asked = RequestFacts { prompt_tokens: 501, placement_asked: Some(Placement::Local), ..request() };
    assert_eq!(placed(asked).await.placement, Some(Placement::Cloud));
    let denied = placed(RequestFacts { label: "confidential".into(), ..request() }).await;
    assert_eq!(denied.deny.as_deref(), Some("not from here"));
}

#[tokio::test]
async fn routing_narrows_the_targets_and_names_its_rule() {
    let rules = json!({"preset": "general", "rules": [
        {"name": "cheap", "min_prompt_tokens": 400, "max_cost": 0.0001, "use_model": "small"},
        {"name": "quick", "max_ttft_ms": 400, "placement": "edge-first"}]});
    let policy = configured("routing", rules);
    let asked = async |request: RequestFacts| policy.route(&CONTEXT, &request, &fleet()).await.answer.unwrap();
    let named = |verdict: &Verdict| verdict.annotations.iter().map(|note| note.value.clone()).collect::<Vec<_>>();
    // 500 tokens cost 0.000135 at the provider, and nothing on this machine.
    let cheap = asked(request()).await;
    assert_eq!((cheap.targets.as_slice(), cheap.model.as_deref()), (["engine".to_owned()].as_slice(), Some("small")));
    assert_eq!(named(&cheap), ["cheap"]);
    let quick = asked(RequestFacts { prompt_tokens: 300, ..request() }).await;
    assert_eq!((quick.targets, quick.placement), (vec!["siliconflow".to_owned()], Some(Placement::EdgeFirst)));
    let slow = FleetFacts { targets: fleet().targets.into_iter().skip(1).collect() };
    let request = RequestFacts { prompt_tokens: 300, ..request() };
    let rest = policy.route(&CONTEXT, &request, &slow).await.answer.unwrap();
    assert_eq!((rest.targets.len(), rest.placement), (0, Some(Placement::Cloud)));
}

#[test]
fn a_wrong_configuration_does_not_load() {
    for (policy, config, why) in [
        ("routing", json!({"rules": [{"modle": "x"}]}), "modle"),
        ("routing", json!({"preset": "general", "default": "cloud"}), "exclude"),
        ("caching", json!({"never": [{"modle": "x"}]}), "modle"),
        ("redaction", json!({"flag": ["fax"]}), "fax"),
        ("redaction", json!({"allow": ["*"]}), "everything"),
    ] {
        let spec = postern_plugins::PolicySpec { config, ..spec(built(policy)) };
        let error = host().load(spec).unwrap_err().to_string();
        assert!(error.contains(why), "{policy}: {error}");
    }
}

#[tokio::test]
async fn caching_leaves_tools_alone() {
    let policy = configured("caching", json!({"ttl_seconds": 60, "key_by": ["conversation"]}));
    let plan = policy.plan(&CONTEXT, &request()).await.answer.unwrap();
    assert_eq!((plan.mode, plan.ttl_seconds), (CacheMode::Exact, Some(60)));
    assert_eq!(plan.key_parts, ["conversation:c0ffee"]);
    let tools = policy.plan(&CONTEXT, &RequestFacts { tools: true, ..request() }).await.answer.unwrap();
    assert_eq!(tools.mode, CacheMode::Bypass);
}

#[tokio::test]
async fn caching_knows_what_means_the_same_and_what_never_to_keep() {
    let config =
        json!({"never": [{"label": "confidential"}], "semantic": [{"model": "ch*", "max_prompt_tokens": 500}]});
    let policy = configured("caching", config);
    let mode = async |request: RequestFacts| policy.plan(&CONTEXT, &request).await.answer.unwrap().mode;
    assert_eq!(mode(request()).await, CacheMode::Semantic);
    assert_eq!(mode(RequestFacts { prompt_tokens: 501, ..request() }).await, CacheMode::Exact);
    assert_eq!(mode(RequestFacts { label: "confidential".into(), ..request() }).await, CacheMode::Bypass);
}

#[tokio::test]
async fn redaction_flags_and_allows_as_configured() {
    let config = json!({"words": {"customer": ["Globex"]}, "flag": ["customer", "phone"],
        "allow": ["help@office.example", "*@example.org"]});
    let policy = configured("redaction", config);
    let text = "help@office.example, li@example.org or li@example.com at Globex: 13800138000";
    let found = policy.find(&CONTEXT, &[segment(0, text)]).await.answer.unwrap();
    let found: Vec<_> = found.iter().map(|span| (found_text(text, span), span.action)).collect();
    let expected =
        [("li@example.com", SpanAction::Mask), ("Globex", SpanAction::Flag), ("13800138000", SpanAction::Flag)];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn redaction_finds_people_and_words() {
    let policy = configured("redaction", json!({"words": {"project": ["Blue Heron", "li@ex"]}}));
    let texts = ["请联系 li@example.com 或 13800138000", "nothing here", "About BLUE HERON: card 4111 1111 1111 1111."];
    let segments: Vec<_> = texts.iter().zip([7, 9, 8]).map(|(text, id)| segment(id, text)).collect();
    let found = policy.find(&CONTEXT, &segments).await.answer.unwrap();
    let text = |id| segments.iter().find(|segment| segment.id == id).unwrap().text.as_str();
    let found: Vec<_> = found.iter().map(|span| (span.kind.as_str(), found_text(text(span.segment), span))).collect();
    let expected = [
        ("email", "li@example.com"),
        ("phone", "13800138000"),
        ("project", "BLUE HERON"),
        ("bank-card", "4111 1111 1111 1111"),
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn only_the_kinds_of_the_configuration_are_found() {
    let policy = configured("redaction", json!({"kinds": ["phone"]}));
    let found = policy.find(&CONTEXT, &[segment(0, "li@example.com 13800138000")]).await.answer.unwrap();
    assert_eq!(found.iter().map(|span| span.kind.as_str()).collect::<Vec<_>>(), ["phone"]);
    let unknown = configured("redaction", json!({"kinds": ["fax"]}));
    assert_eq!(unknown.find(&CONTEXT, &[segment(0, "x")]).await.answer.unwrap_err().kind, FailureKind::Refused);
}

#[tokio::test]
async fn disguises_are_seen_through() {
    let words = json!({"words": {"project": ["Blue Heron", "北风计划"], "customer": ["Globex"]}});
    let policy = configured("redaction", words);
    for (text, kind, written) in [
        (r#"{"to": "li\u0040example.com"}"#, "email", r"li\u0040example.com"),
        (r#"{"note": "see\nli@example.com"}"#, "email", "li@example.com"),
        (r#"{"note": "see\nGlobex"}"#, "customer", "Globex"),
        (r#"{"note": "\u5317\u98ce\u8ba1\u5212"}"#, "project", r"\u5317\u98ce\u8ba1\u5212"),
        (r#"{"password": "p\u0040ss1234"}"#, "secret", r"p\u0040ss1234"),
        (r#"{"args": "{\"to\": \"li\\u0040example.com\"}"}"#, "email", r"li\\u0040example.com"),
        (r"print('\nGlobex')", "customer", "Globex"),
        ("Blue\u{a0}Heron", "project", "Blue\u{a0}Heron"),
        ("Ｂｌｕｅ  Heron", "project", "Ｂｌｕｅ  Heron"),
        ("北\u{200b}风 计划", "project", "北\u{200b}风 计划"),
        ("发给 li@例え.jp", "email", "li@例え.jp"),
        ("138·0013·8000", "phone", "138·0013·8000"),
        ("4111.1111.1111.1111", "bank-card", "4111.1111.1111.1111"),
    ] {
        let found = policy.find(&CONTEXT, &[segment(9, "nothing"), segment(4, text)]).await.answer.unwrap();
        let found: Vec<_> =
            found.iter().map(|span| (span.segment, span.kind.as_str(), found_text(text, span))).collect();
        assert_eq!(found, [(4, kind, written)], "{text}");
    }
}

#[tokio::test]
async fn many_finds_in_a_text_with_escapes_are_no_more_than_they_are() {
    let policy = configured("redaction", json!({}));
    let text = "print('\\n') ".to_owned() + &"li@example.com ".repeat(9_000);
    assert_eq!(policy.find(&CONTEXT, &[segment(0, &text)]).await.answer.unwrap().len(), 9_000);
}

#[tokio::test]
async fn a_long_text_is_searched_to_its_end() {
    let policy = configured("redaction", json!({}));
    let text = "周报 ".repeat(100_000) + "li@example.com";
    let found = policy.find(&CONTEXT, &[segment(0, &text)]).await.answer.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found_text(&text, &found[0]), "li@example.com");
}

#[tokio::test]
async fn nothing_at_all_is_no_trouble() {
    let policy = configured("redaction", Value::Null);
    assert_eq!(policy.find(&CONTEXT, &[]).await.answer, Ok(vec![]));
    assert_eq!(policy.find(&CONTEXT, &[segment(0, "")]).await.answer, Ok(vec![]));
}
