//! The example policy, in each language that was built: all give the same verdicts.

use std::path::{Path, PathBuf};

use postern_plugins::{
    Annotation, Grants, Header, HostOptions, Placement, Policy, PolicyHost, PolicySpec, RequestFacts, Verdict,
};
use serde_json::{Value, json};
use sha2::Digest as _;

use super::{CONTEXT, fleet, request, spec};

const LANGUAGES: [&str; 5] = ["rust", "js", "python", "c", "zig"];
/// A toolchain that not every machine can get.
const FURTHER: [&str; 1] = ["rust-wasip2"];

/// Where `plugins/examples/build.sh` leaves a language's.
fn component(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/examples").join(language).with_extension("wasm")
}

/// Those that were built. With POSTERN_ALL_EXAMPLES in the environment, all must have been.
fn built() -> Vec<&'static str> {
    let (built, missing): (Vec<_>, Vec<_>) = LANGUAGES.into_iter().partition(|language| component(language).exists());
    if !missing.is_empty() {
        let hint = format!("not tested: {}; plugins/examples/build.sh builds them", missing.join(", "));
        assert!(std::env::var_os("POSTERN_ALL_EXAMPLES").is_none(), "{hint}");
        eprintln!("{hint}");
    }
    built.into_iter().chain(FURTHER.into_iter().filter(|language| component(language).exists())).collect()
}

fn load(language: &str, config: Value) -> Policy {
    let grants = Grants { headers: ["x-desk".to_owned()].into(), ..Grants::default() };
    let bytes = std::fs::read(component(language)).unwrap();
    let spec = PolicySpec { config, grants, ..spec(bytes) };
    // What was compiled is kept: that takes seconds for Python.
    let cache_dir = Some(component(language).with_file_name("compiled"));
    let host = PolicyHost::new(HostOptions { cache_dir, max_calls: 4, ..HostOptions::default() }).unwrap();
    host.load(spec).unwrap_or_else(|error| panic!("{language}: {error}"))
}

/// At this hour of local time.
fn at(hour: u64) -> RequestFacts {
    // UTC is two hours behind.
    let time = 20_783 * 86_400 + hour * 3600 - 2 * 3600;
    RequestFacts { time, utc_offset_minutes: 120, prompt_tokens: 10, ..request() }
}

fn of_desk(desk: &str) -> RequestFacts {
    let header = |name: &str, value: &str| Header { name: name.into(), value: value.into() };
    RequestFacts { headers: vec![header("x-other", "trading"), header("x-desk", desk)], ..at(12) }
}

fn near(why: &str) -> Verdict {
    let annotations = vec![Annotation { key: "near".into(), value: why.into() }];
    Verdict { placement: Some(Placement::EdgeFirst), annotations, ..Verdict::default() }
}

fn closed() -> Verdict {
    Verdict { deny: Some("the office is closed".into()), ..Verdict::default() }
}

#[tokio::test]
async fn all_languages_give_the_same_verdicts() {
    let config =
        json!({"opens": 8, "closes": 18, "long_prompt_tokens": 500, "near_desk": "trading", "requests_an_hour": 2});
    let table = [
        ("before it opens", at(7), closed()),
        ("when it opens", at(8), Verdict::default()),
        ("in its last hour", at(17), Verdict::default()),
        ("when it closes", at(18), closed()),
        ("after midnight", at(25), closed()),
        ("as long as may be", RequestFacts { prompt_tokens: 500, ..at(12) }, Verdict::default()),
        ("too long", RequestFacts { prompt_tokens: 501, ..at(12) }, near("long")),
        ("longer than 32 bits can say", RequestFacts { prompt_tokens: 1 << 33, ..at(12) }, near("long")),
        ("of the desk", of_desk("trading"), near("desk")),
        ("of another desk", of_desk("post"), Verdict::default()),
        ("of the desk, and too long", RequestFacts { prompt_tokens: 501, ..of_desk("trading") }, near("desk")),
        (
            "west of Greenwich",
            RequestFacts { utc_offset_minutes: -300, time: 20_783 * 86_400 + 3600, ..at(0) },
            closed(),
        ),
        ("with a text that is not ASCII", RequestFacts { model: "模型".into(), ..at(12) }, Verdict::default()),
    ];
    for language in built() {
        let policy = load(language, config.clone());
        for (what, request, expected) in &table {
            // Its effects are dropped, so that it counts for nothing below.
            let reply = policy.route(&CONTEXT, request, &fleet()).await;
            let verdict = reply.answer.unwrap_or_else(|failure| panic!("{language}, {what}: {failure}"));
            assert_eq!(verdict, *expected, "{language}, {what}");
        }
        who_asks_often_is_counted(language, &policy).await;
    }
}

async fn who_asks_often_is_counted(language: &str, policy: &Policy) {
    let mut placements = Vec::new();
    // Whoever is denied is not counted.
    for hour in [3, 3, 3, 12, 12, 12, 12] {
        let reply = policy.route(&CONTEXT, &at(hour), &fleet()).await;
        placements.push(reply.answer.unwrap_or_else(|failure| panic!("{language}: {failure}")).placement);
        reply.effects.unwrap().commit(CONTEXT.label);
    }
    let here = Some(Placement::Local);
    assert_eq!(placements, [None, None, None, None, None, here, here], "{language}");
}

#[tokio::test]
async fn without_a_configuration_they_have_the_same_defaults() {
    for language in built() {
        let policy = load(language, Value::Null);
        for (request, expected) in [
            (at(6), closed()),
            (at(7), Verdict::default()),
            (at(19), Verdict::default()),
            (at(20), closed()),
            (RequestFacts { prompt_tokens: 2000, ..at(12) }, Verdict::default()),
            (RequestFacts { prompt_tokens: 2001, ..at(12) }, near("long")),
        ] {
            let verdict = policy.route(&CONTEXT, &request, &fleet()).await.answer;
            assert_eq!(verdict, Ok(expected), "{language}");
        }
    }
}

#[test]
fn bindings_are_those_of_the_interface() {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut hash = sha2::Sha256::new();
    for file in ["types", "imports", "exports", "worlds"] {
        hash.update(std::fs::read(plugins.join("wit").join(file).with_extension("wit")).unwrap());
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let made_from = std::fs::read_to_string(plugins.join("bindings/wit.sha256")).unwrap();
    assert_eq!(made_from.trim(), hash, "plugins/wit has changed: run plugins/bindings/generate.sh");
}
