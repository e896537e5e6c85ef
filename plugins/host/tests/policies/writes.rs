//! What a call writes: nothing of it lasts before its effects are committed, and nothing crosses a tenant or a label.

use std::sync::Arc;

use postern_plugins::{CallContext, Counters, MAX_COUNTERS_IN_SCOPE, Policy, PolicyMetrics, PolicySpec, Value};

use super::text::{guest, says};
use super::{CONTEXT, fleet, host, request, segment, spec};

const COUNTERS: &str = r#"
  (import "postern:policy/counters@1.0.0" "add" (func $add (param i32 i32 i64 i32 i32)))
  (import "postern:policy/counters@1.0.0" "get" (func $get (param i32 i32) (result i64)))"#;

/// Adds to the counter whose key is the first bytes of memory, and puts result<s64, string> at 128.
fn add(key_bytes: u32, by: &str, ttl: u32) -> String {
    format!("(call $add (i32.const 0) (i32.const {key_bytes}) (i64.const {by}) (i32.const {ttl}) (i32.const 128))")
}

/// A caching policy that adds to counter `aaa` and says its new value.
fn counting() -> Vec<u8> {
    let number = format!("(block (result i32) {} (i32.wrap_i64 (i64.load (i32.const 136))))", add(3, "1", 60));
    says("caching-policy", COUNTERS, r#"(data (i32.const 0) "aaa")"#, &number)
}

async fn plan(policy: &Policy, context: &CallContext<'_>) -> (Option<u32>, postern_plugins::Effects) {
    let reply = policy.plan(context, &request()).await;
    (reply.answer.unwrap().ttl_seconds, reply.effects.unwrap())
}

#[tokio::test]
async fn a_counter_counts_what_was_committed() {
    let policy = host().load(spec(counting())).unwrap();
    for _ in 0..3 {
        let (value, dropped) = plan(&policy, &CONTEXT).await;
        assert_eq!(value, Some(1), "a call sees its own writes");
        drop(dropped);
    }
    plan(&policy, &CONTEXT).await.1.commit(CONTEXT.label);
    let (value, effects) = plan(&policy, &CONTEXT).await;
    assert_eq!(value, Some(2), "and those that were committed");
    effects.log_only();
    assert_eq!(plan(&policy, &CONTEXT).await.0, Some(2), "those whose lines were written only");
}

#[tokio::test]
async fn tenants_and_labels_do_not_see_each_other() {
    let policy = host().load(spec(counting())).unwrap();
    let others = [CallContext { tenant: "nurses", ..CONTEXT }, CallContext { label: "public", ..CONTEXT }];
    plan(&policy, &CONTEXT).await.1.commit(CONTEXT.label);
    for other in &others {
        assert_eq!(plan(&policy, other).await.0, Some(1), "{other:?}");
    }
    // What a request turns out to be counts, not what it was taken for when the call began.
    plan(&policy, &others[1]).await.1.commit("confidential");
    assert_eq!(plan(&policy, &others[1]).await.0, Some(1));
    assert_eq!(plan(&policy, &CallContext { label: "confidential", ..CONTEXT }).await.0, Some(2));
}

/// A new version of a policy goes on where the old one was.
#[tokio::test]
async fn counters_outlive_a_version() {
    let counters = Arc::new(Counters::new());
    let version = || PolicySpec { counters: Arc::clone(&counters), ..spec(counting()) };
    plan(&host().load(version()).unwrap(), &CONTEXT).await.1.commit(CONTEXT.label);
    assert_eq!(plan(&host().load(version()).unwrap(), &CONTEXT).await.0, Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn counting_is_atomic() {
    let policy = host().load(spec(counting())).unwrap();
    let calls: Vec<_> = (0..400)
        .map(|_| {
            let policy = policy.clone();
            tokio::spawn(async move { plan(&policy, &CONTEXT).await.1.commit(CONTEXT.label) })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(plan(&policy, &CONTEXT).await.0, Some(401));
}

#[tokio::test]
async fn counters_keep_their_bounds() {
    // The discriminant of result<s64, string>: 1 for an error.
    let refused = async |key_bytes, ttl| {
        let number = format!("(block (result i32) {} (i32.load8_u (i32.const 128)))", add(key_bytes, "1", ttl));
        plan(&host().load(spec(says("caching-policy", COUNTERS, "", &number))).unwrap(), &CONTEXT).await.0 == Some(1)
    };
    for (key_bytes, ttl, is_refused) in [
        (0, 60, false),
        (256, 60, false),
        (257, 60, true),
        (3, 1, false),
        (3, 0, true),
        (3, 604_800, false),
        (3, 604_801, true),
    ] {
        assert_eq!(refused(key_bytes, ttl).await, is_refused, "{key_bytes} bytes for {ttl} s");
    }

    // More than 32 in a call: counts how many were accepted, each under a key of its own.
    let many = r#"(func $many (result i32)
      (local $i i32) (local $accepted i32)
      (loop $again
        (i32.store (i32.const 0) (local.get $i))
        (call $add (i32.const 0) (i32.const 2) (i64.const 1) (i32.const 60) (i32.const 128))
        (local.set $accepted (i32.add (local.get $accepted) (i32.eqz (i32.load8_u (i32.const 128)))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (i32.const 100))))
      (local.get $accepted))"#;
    let policy = host().load(spec(says("caching-policy", COUNTERS, many, "(call $many)"))).unwrap();
    let (accepted, effects) = plan(&policy, &CONTEXT).await;
    assert_eq!((accepted, effects.written().counters.len()), (Some(32), 32));

    // The ends of the number range hold.
    let extreme = |by: &str| format!("{0} {0}", add(3, by, 60));
    for (by, value) in [(i64::MAX, i64::MAX), (i64::MIN, i64::MIN)] {
        let number = format!(
            "(block (result i32) {} (i64.eq (i64.load (i32.const 136)) (i64.const {value})))",
            extreme(&by.to_string())
        );
        let policy = host().load(spec(says("caching-policy", COUNTERS, "", &number))).unwrap();
        assert_eq!(plan(&policy, &CONTEXT).await.0, Some(1), "{by} twice");
    }
}

/// However many requests it sees.
#[tokio::test]
async fn a_scope_has_room_for_so_many_counters() {
    let random = r#"(import "postern:policy/random@1.0.0" "next" (func $random (result i64)))"#;
    let number = r#"(block (result i32)
      (i64.store (i32.const 0) (i64.and (call $random) (i64.const 0x7f7f7f7f7f7f7f7f)))
      (call $add (i32.const 0) (i32.const 8) (i64.const 1) (i32.const 600) (i32.const 128))
      (i32.load8_u (i32.const 128)))"#;
    let imports = format!("{COUNTERS} {random}");
    let policy = host().load(spec(says("caching-policy", &imports, "", number))).unwrap();
    for seed in 0..MAX_COUNTERS_IN_SCOPE as u64 {
        let (refused, effects) = plan(&policy, &CallContext { seed, ..CONTEXT }).await;
        assert_eq!(refused, Some(0), "after {seed}");
        effects.commit(CONTEXT.label);
    }
    assert_eq!(plan(&policy, &CallContext { seed: u64::MAX, ..CONTEXT }).await.0, Some(1), "it is full");
    let other = CallContext { seed: u64::MAX, tenant: "nurses", ..CONTEXT };
    assert_eq!(plan(&policy, &other).await.0, Some(0), "others have room");
    assert_eq!(plan(&policy, &CallContext { seed: 5, ..CONTEXT }).await.0, Some(0), "and so do those that exist");
}

#[tokio::test]
async fn metrics_are_those_of_the_manifest() {
    let imports = r#"
      (import "postern:policy/metrics@1.0.0" "count" (func $count (param i32 i32 i32)))
      (import "postern:policy/metrics@1.0.0" "set" (func $set (param i32 i32 f64)))"#;
    let number = r#"(block (result i32)
      (call $count (i32.const 0) (i32.const 4) (i32.const 2))
      (call $count (i32.const 0) (i32.const 8) (i32.const 1))
      (call $count (i32.const 0) (i32.const 200000) (i32.const 1))
      (call $set (i32.const 16) (i32.const 5) (f64.const 0.5))
      (i32.const 1))"#;
    let parts = r#"(data (i32.const 0) "hits-4711") (data (i32.const 16) "level")"#;
    let metrics = Arc::new(PolicyMetrics::new(["hits", "level", "unused"]));
    let component = says("caching-policy", imports, parts, number);
    let policy = host().load(PolicySpec { metrics: Arc::clone(&metrics), ..spec(component) }).unwrap();

    let (_, dropped) = plan(&policy, &CONTEXT).await;
    let written = dropped.written();
    assert_eq!((written.counts.len(), written.values.len()), (1, 1), "other names are not even held: {written:?}");
    drop(dropped);
    assert_eq!(metrics.read()["hits"], Value::default(), "what was dropped never was");
    for _ in 0..2 {
        plan(&policy, &CONTEXT).await.1.commit(CONTEXT.label);
    }
    let read = metrics.read();
    assert_eq!(read.keys().collect::<Vec<_>>(), ["hits", "level", "unused"]);
    assert_eq!(read["hits"], Value { count: 4, value: None });
    assert_eq!(read["level"], Value { count: 0, value: Some(0.5) });
}

#[tokio::test]
async fn a_flood_of_writes_is_cut() {
    let imports = r#"
      (import "postern:policy/log@1.0.0" "write" (func $log (param i32 i32 i32)))
      (import "postern:policy/metrics@1.0.0" "count" (func $count (param i32 i32 i32)))"#;
    let parts = r#"(data (i32.const 0) "hits\n\1b[2J")
      (func $flood (local $left i32)
        (local.set $left (i32.const 1000))
        (loop $again
          (call $log (i32.const 3) (i32.const 0) (i32.const 100000))
          (call $count (i32.const 0) (i32.const 4) (i32.const 1))
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (br_if $again (local.get $left))))"#;
    let component = says("caching-policy", imports, parts, "(block (result i32) (call $flood) (i32.const 1))");
    let metrics = Arc::new(PolicyMetrics::new(["hits"]));
    let policy = host().load(PolicySpec { metrics, ..spec(component) }).unwrap();
    let written = plan(&policy, &CONTEXT).await.1.written();
    assert_eq!((written.log.len(), written.counts.len()), (32, 64));
    for (level, line) in &written.log {
        assert_eq!((level.as_str(), line.len()), ("error", 1024));
        assert!(!line.contains(char::is_control), "a line that could forge others");
    }
}

/// Everything that one call can write, at each step; only what does not depend on text may remain.
#[tokio::test]
async fn what_has_seen_text_leaves_counters_only() {
    let imports = format!(
        r#"{COUNTERS}
           (import "postern:policy/log@1.0.0" "write" (func $log (param i32 i32 i32)))
           (import "postern:policy/metrics@1.0.0" "count" (func $count (param i32 i32 i32)))"#
    );
    let do_all = add(4, "1", 60);
    let parts = format!(
        r#"(data (i32.const 0) "hits")
           (func $do (result i32)
             (call $log (i32.const 3) (i32.const 0) (i32.const 4))
             (call $count (i32.const 0) (i32.const 4) (i32.const 1))
             {do_all}
             (i32.const 196608))
           (func (export "postern:policy/routing@1.0.0#route") (param i32) (result i32) (call $do))
           (func (export "postern:policy/caching@1.0.0#plan") (param i32) (result i32) (call $do))
           (func (export "postern:policy/redaction@1.0.0#find") (param i32 i32) (result i32) (call $do))"#
    );
    let component = guest("full-policy", &imports, &parts);
    for text in [false, true] {
        let mut spec = spec(component.clone());
        spec.metrics = Arc::new(PolicyMetrics::new(["hits"]));
        spec.grants.text = text;
        let policy = host().load(spec).unwrap();
        let shown = usize::from(!text);
        let steps = [
            (policy.route(&CONTEXT, &request(), &fleet()).await.effects, shown),
            (policy.plan(&CONTEXT, &request()).await.effects, shown),
            (policy.find(&CONTEXT, &[segment(0, "text")]).await.effects, 0),
        ];
        for (effects, shown) in steps {
            let written = effects.unwrap().written();
            assert_eq!((written.log.len(), written.counts.len(), written.counters.len()), (shown, shown, 1), "{text}");
        }
    }
}

#[tokio::test]
async fn chance_follows_from_the_request() {
    let random = r#"(import "postern:policy/random@1.0.0" "next" (func $random (result i64)))"#;
    let number = "(i32.xor (i32.wrap_i64 (call $random)) (i32.wrap_i64 (call $random)))";
    let component = says("caching-policy", random, "", number);
    let named = |name: &str| PolicySpec { name: name.into(), ..spec(component.clone()) };
    let (one, other) = (host().load(named("one")).unwrap(), host().load(named("other")).unwrap());
    let ask = async |policy: &Policy, seed| plan(policy, &CallContext { seed, ..CONTEXT }).await.0;
    for seed in [0, 1, u64::MAX] {
        assert_eq!(ask(&one, seed).await, ask(&one, seed).await);
        assert_ne!(ask(&one, seed).await, ask(&one, seed ^ 2).await);
        assert_ne!(ask(&one, seed).await, ask(&other, seed).await, "two policies, one request");
    }
}
