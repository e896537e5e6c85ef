//! Answers made by chance, and components made by chance.

use postern_plugins::{
    CallContext, FailureKind, MAX_NAME_BYTES, MAX_PARTS, MAX_TARGETS, MAX_TEXT_BYTES, PolicyFailure, PolicySpec,
    Verdict,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::text::guest;
use super::{CONTEXT, built, fleet, host, request, segment, spec};

/// Fills its answer with chance: mostly what the canonical ABI allows, and not always.
fn by_chance() -> Vec<u8> {
    let imports = r#"(import "postern:policy/random@1.0.0" "next" (func $next (result i64)))"#;
    let parts = r#"
      (func $chance (result i32) (i32.wrap_i64 (call $next)))
      (func $put (param i32 i32) (i32.store (local.get 0) (local.get 1)))
      ;; A discriminant: of two cases, and one time in 64 of none.
      (func $case (param i32)
        (call $put (local.get 0) (i32.and (call $chance)
          (select (i32.const 1) (i32.const 7) (i32.and (call $chance) (i32.const 63))))))
      ;; A pointer and a length, of any order of magnitude up to a sixteenth of what would be too much.
      (func $text (param i32)
        (call $put (local.get 0) (i32.and (call $chance) (i32.const 0x1ffff)))
        (call $put (i32.add (local.get 0) (i32.const 4))
          (i32.shr_u (i32.and (call $chance) (i32.const 0x7ff)) (i32.and (call $chance) (i32.const 15)))))
      ;; The same, of a list that lies where it could be one.
      (func $list (param i32)
        (call $put (local.get 0) (i32.add (i32.const 65536) (i32.and (call $chance) (i32.const 0x7ff8))))
        (call $put (i32.add (local.get 0) (i32.const 4))
          (i32.shr_u (i32.and (call $chance) (i32.const 0x1ff)) (i32.and (call $chance) (i32.const 15)))))
      ;; 64 KiB of small words, which are text as well as pairs of pointer and length.
      (func $fill (local $at i32)
        (local.set $at (i32.const 65536))
        (loop $again
          (call $put (local.get $at) (i32.and (call $chance) (i32.const 0x7f)))
          (local.set $at (i32.add (local.get $at) (i32.const 4)))
          (br_if $again (i32.lt_u (local.get $at) (i32.const 131072)))))
      (func $option-text (param i32)
        (call $case (local.get 0))
        (call $text (i32.add (local.get 0) (i32.const 4))))
      (func (export "postern:policy/routing@1.0.0#route") (param i32) (result i32)
        (call $fill)
        (call $put (i32.const 1024) (i32.const 0))
        (call $put (i32.const 1028) (i32.and (call $chance) (i32.const 0x0101)))
        (call $list (i32.const 1032))
        (call $option-text (i32.const 1040))
        (call $option-text (i32.const 1052))
        (call $option-text (i32.const 1064))
        (call $option-text (i32.const 1076))
        (call $list (i32.const 1088))
        (i32.const 1024))
      (func (export "postern:policy/caching@1.0.0#plan") (param i32) (result i32)
        (call $fill)
        (call $put (i32.const 1024) (i32.const 0))
        (call $case (i32.const 1028))
        (call $case (i32.const 1032))
        (call $put (i32.const 1036) (call $chance))
        (call $list (i32.const 1040))
        (i32.const 1024))
      (func (export "postern:policy/redaction@1.0.0#find") (param i32 i32) (result i32)
        (call $fill)
        (call $put (i32.const 1024) (i32.const 0))
        (call $list (i32.const 1028))
        (i32.const 1024))"#;
    guest("full-policy", imports, parts)
}

/// Of calls with different chance: how many were answered, and how many answers were nonsense.
#[derive(Default)]
struct Count {
    answered: u32,
    refused: u32,
}

impl Count {
    fn see<T>(&mut self, answer: Result<T, PolicyFailure>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.answered += 1;
                Some(answer)
            }
            Err(failure) => {
                assert!(matches!(failure.kind, FailureKind::Output | FailureKind::Trap), "{failure}");
                self.refused += 1;
                None
            }
        }
    }

    /// Or the test would show nothing.
    fn assert_both(&self) {
        assert!(self.answered > 50 && self.refused > 50, "{} answered, {} refused", self.answered, self.refused);
    }
}

fn assert_bounds(verdict: &Verdict) {
    assert!(verdict.targets.len() <= MAX_TARGETS && verdict.annotations.len() <= MAX_PARTS);
    let names = verdict.targets.iter().chain(&verdict.model).chain(&verdict.label).chain(&verdict.weight);
    assert!(names.chain(verdict.annotations.iter().map(|a| &a.key)).all(|name| name.len() <= MAX_NAME_BYTES));
    let texts = verdict.deny.iter().chain(verdict.annotations.iter().map(|a| &a.value));
    assert!(texts.into_iter().all(|text| text.len() <= MAX_TEXT_BYTES));
}

#[tokio::test]
async fn what_memory_holds_by_chance_is_judged() {
    let policy = host().load(spec(by_chance())).unwrap();
    let (mut routed, mut planned, mut found) = (Count::default(), Count::default(), Count::default());
    let segments =
        [segment(0, "a text that is long enough for something to be found in it by chance, élan"), segment(3, "")];
    for seed in 0..2_000 {
        let context = CallContext { seed, ..CONTEXT };
        if let Some(verdict) = routed.see(policy.route(&context, &request(), &fleet()).await.answer) {
            assert_bounds(&verdict);
        }
        if let Some(plan) = planned.see(policy.plan(&context, &request()).await.answer) {
            assert!(
                plan.key_parts.len() <= MAX_PARTS && plan.key_parts.iter().all(|part| part.len() <= MAX_NAME_BYTES)
            );
        }
        for span in found.see(policy.find(&context, &segments).await.answer).into_iter().flatten() {
            let text = &segments.iter().find(|segment| segment.id == span.segment).unwrap().text;
            assert!(text.get(span.start as usize..span.end as usize).is_some_and(|text| !text.is_empty()));
        }
    }
    routed.assert_both();
    planned.assert_both();
    found.assert_both();
}

/// The process goes on, and the next policy loads and answers.
fn survives(runs: u32, what: impl Strategy<Value = Vec<u8>>, may_load: bool) {
    let host = host();
    let mut runner = TestRunner::new(Config { cases: runs, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&what, |bytes| {
        if host.load(PolicySpec { deadline: std::time::Duration::from_millis(50), ..spec(bytes) }).is_ok() {
            prop_assert!(may_load);
        }
        Ok(())
    });
    ran.unwrap();
    assert!(host.load(spec(built("caching"))).is_ok());
}

#[test]
fn arbitrary_bytes_are_no_policy() {
    let component = b"\0asm\x0d\0\x01\0".to_vec();
    let bytes = proptest::collection::vec(any::<u8>(), 0..2_000);
    let after_header = bytes.clone().prop_map(move |bytes| [component.clone(), bytes].concat());
    survives(2_000, prop_oneof![bytes, after_header], false);
}

/// A policy in which some bytes were changed may still be one, and then it is run like any other.
#[test]
fn damaged_policies_harm_nobody() {
    let start = r#"(func (export "postern:policy/startup@1.0.0#start") (result i32) (i32.const 196608))
      (func (export "postern:policy/caching@1.0.0#plan") (param i32) (result i32) (i32.const 196608))"#;
    let whole = guest("prepared-caching-policy", "", start);
    let len = whole.len();
    let changes = proptest::collection::vec((0..len, any::<u8>()), 1..4);
    let damaged = (changes, 0..len * 4).prop_map(move |(changes, cut)| {
        let mut bytes = whole.clone();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(cut.max(1));
        bytes
    });
    survives(300, damaged, true);
}
