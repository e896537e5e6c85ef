//! Policies that somebody else wrote: their components, and whatever they answer.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::Result;
use data_encoding::HEXLOWER;
use postern_plugins::{
    CallContext, Counters, FleetFacts, Grants, HostOptions, MAX_NAME_BYTES, MAX_PARTS, MAX_SPANS, MAX_TARGETS,
    MAX_TEXT_BYTES, Package, Policy, PolicyHost, PolicyMetrics, PolicySpec, RequestFacts, TextSegment, componentize,
};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

static HOST: LazyLock<PolicyHost> = LazyLock::new(|| {
    PolicyHost::new(HostOptions { max_calls: 4, ..HostOptions::default() }).expect("no sandbox to try policies in")
});

fn spec(component: Vec<u8>) -> PolicySpec {
    let config = json!({"kinds": ["project"]});
    let deadline = Duration::from_secs(5);
    PolicySpec {
        name: "fuzzed".to_owned(),
        component,
        config,
        deadline,
        memory_bytes: 8 << 20,
        grants: Grants::default(),
        counters: Arc::new(Counters::new()),
        metrics: Arc::new(PolicyMetrics::new([])),
    }
}

const CONTEXT: CallContext<'static> = CallContext { tenant: "tenant", label: "internal", seed: 7, time_ms: None };

pub(crate) fn component(bytes: &[u8]) -> bool {
    // Whatever it is, it is looked through first, with its manifest and its signature.
    let _judged = Package::read(bytes.to_vec()).map(|package| package.verify(&[]).is_ok());
    let Ok(policy) = HOST.load(spec(bytes.to_vec())) else { return false };
    let steps = policy.steps();
    assert!(steps.routing || steps.caching || steps.redaction, "a policy for nothing");
    true
}

pub(crate) fn component_seeds() -> Result<Vec<Vec<u8>>> {
    let fixtures = [
        (include_str!("../../../plugins/host/tests/fixtures/span-first-byte.wat"), "redaction-policy"),
        (include_str!("../../../plugins/host/tests/fixtures/big-strings.wat"), "caching-policy"),
    ];
    fixtures.iter().map(|(text, world)| Ok(componentize(&wat::parse_str(text)?, Some(world))?)).collect()
}

/// A policy whose memory is the input: it reads hexadecimal digits (the text of the first segment, or the caller's identity)
/// and answers with the bytes that they spell, as if its code had put them there.
const PUPPET: &str = r#"(module
  (memory (export "memory") 8)
  (global $free (mut i32) (i32.const 65536))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (global.set $free (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.get $free)
    (global.set $free (i32.add (global.get $free) (local.get 3))))
  (func $digit (param $c i32) (result i32)
    (if (result i32) (i32.ge_u (local.get $c) (i32.const 97))
      (then (i32.sub (local.get $c) (i32.const 87)))
      (else (i32.sub (local.get $c) (i32.const 48)))))
  (func $say (param $from i32) (param $length i32) (result i32)
    (local $to i32) (local $end i32)
    (local.set $to (i32.const 64))
    (local.set $end (i32.add (local.get $from) (local.get $length)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $from) (local.get $end)))
        (i32.store8 (local.get $to) (i32.or
          (i32.shl (call $digit (i32.load8_u (local.get $from))) (i32.const 4))
          (call $digit (i32.load8_u offset=1 (local.get $from)))))
        (local.set $from (i32.add (local.get $from) (i32.const 2)))
        (local.set $to (i32.add (local.get $to) (i32.const 1)))
        (br $next)))
    (i32.const 64))
  (func (export "postern:policy/redaction@1.0.0#find") (param $segments i32) (param i32) (result i32)
    (call $say (i32.load offset=12 (local.get $segments)) (i32.load offset=16 (local.get $segments))))
  (func (export "postern:policy/routing@1.0.0#route") (param $request i32) (result i32)
    (call $say (i32.load (local.get $request)) (i32.load offset=4 (local.get $request))))
  (func (export "postern:policy/caching@1.0.0#plan") (param $request i32) (result i32)
    (call $say (i32.load (local.get $request)) (i32.load offset=4 (local.get $request)))))"#;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let core = wat::parse_str(PUPPET).expect("the puppet");
    let component = componentize(&core, Some("full-policy")).expect("a component");
    HOST.load(spec(component)).expect("a policy")
});
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().enable_all().build().unwrap());

/// Bytes of memory that a policy may choose here.
const MAX_BYTES: usize = 8 << 10;

pub(crate) fn answer(bytes: &[u8]) -> bool {
    let Some((step, memory)) = bytes.split_first() else { return false };
    let digits = HEXLOWER.encode(&memory[..memory.len().min(MAX_BYTES)]);
    match step % 3 {
        0 => find(digits),
        1 => RUNTIME.block_on(POLICY.plan(&CONTEXT, &request(digits))).answer.is_ok_and(|plan| {
            assert!(plan.key_parts.len() <= MAX_PARTS);
            assert!(plan.key_parts.iter().all(|part| part.len() <= MAX_NAME_BYTES));
            true
        }),
        _ => RUNTIME.block_on(POLICY.route(&CONTEXT, &request(digits), &FleetFacts::default())).answer.is_ok_and(
            |verdict| {
                assert!(verdict.targets.len() <= MAX_TARGETS && verdict.annotations.len() <= MAX_PARTS);
                assert!(verdict.targets.iter().chain(&verdict.model).all(|name| name.len() <= MAX_NAME_BYTES));
                assert!(verdict.deny.iter().all(|reason| reason.len() <= MAX_TEXT_BYTES));
                true
            },
        ),
    }
}

fn find(digits: String) -> bool {
    let segment = |id, text: &str| TextSegment { id, role: "user".to_owned(), text: text.to_owned() };
    let segments = [segment(0, &digits), segment(1, "Grüße an amy@example.org")];
    let Ok(spans) = RUNTIME.block_on(POLICY.find(&CONTEXT, &segments)).answer else { return false };
    assert!(spans.len() <= MAX_SPANS);
    for span in &spans {
        let text = &segments.iter().find(|one| one.id == span.segment).expect("a segment that was asked about").text;
        let found = text.get(span.start as usize..span.end as usize);
        assert!(found.is_some_and(|found| !found.is_empty()), "{span:?}");
        let known = postern_plugins::detectors::Kind::from_name(&span.kind).is_some();
        assert!(known || ["project", "data"].contains(&span.kind.as_str()), "{span:?} spells something");
    }
    assert!(spans.windows(2).all(|pair| pair[0].segment != pair[1].segment || pair[0].end <= pair[1].start));
    true
}

fn request(identity: String) -> RequestFacts {
    RequestFacts {
        identity,
        tenant: "tenant".to_owned(),
        label: "internal".to_owned(),
        model: "chat".to_owned(),
        prompt_tokens: 5,
        conversation: "c".to_owned(),
        time: 1_795_000_000,
        ..RequestFacts::default()
    }
}

pub(crate) fn answer_seeds() -> Result<Vec<Vec<u8>>> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    // result<list<span>, string> at 64: ok, a list at 80, one span; the kind at 104.
    let span = [words(&[0, 80, 1, 0, 1, 0, 2, 104, 5, 0]), b"email".to_vec()].concat();
    // result<cache-plan, string>: ok, exact, no ttl, a list at 96 of one string at 104.
    let plan = [words(&[0, 0, 0, 0, 96, 1, 0, 0, 104, 3]), b"key".to_vec()].concat();
    // result<verdict, string>: ok, no opinion at all.
    let verdict = words(&[0; 20]);
    let with = |step: u8, memory: Vec<u8>| [vec![step], memory].concat();
    Ok(vec![
        with(0, span),
        with(1, plan),
        with(2, verdict),
        with(0, words(&[1, 80, 3])),
        with(2, words(&[u32::MAX; 9])),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_puppet_says_what_it_is_told() {
        let seeds = answer_seeds().unwrap();
        let verdicts: Vec<_> = seeds.iter().map(|seed| answer(seed)).collect();
        assert_eq!(verdicts, [true, true, true, false, false]);
        let digits = HEXLOWER.encode(&seeds[0][1..]);
        let segment = TextSegment { id: 0, role: "user".to_owned(), text: digits };
        let other = TextSegment { id: 1, text: "0123456789".to_owned(), ..segment.clone() };
        let spans = RUNTIME.block_on(POLICY.find(&CONTEXT, &[segment, other])).answer.unwrap();
        assert_eq!(spans.len(), 1, "the span of its memory is found");
        assert_eq!((spans[0].segment, spans[0].start, spans[0].end, spans[0].kind.as_str()), (1, 0, 2, "email"));
    }
}
