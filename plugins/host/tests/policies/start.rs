//! Policies that make themselves ready.

use std::time::{Duration, Instant};

use postern_plugins::{HostOptions, PluginError, Policy, PolicyHost, PolicySpec, Readiness};
use serde_json::json;

use super::text::{says, with_instances};
use super::{CONTEXT, host, request, spec};

const WORLD: &str = "prepared-caching-policy";
const LOG: &str = r#"(import "postern:policy/log@1.0.0" "write" (func $log (param i32 i32 i32)))"#;

/// Its start takes a good while, counts itself in a global and in memory, and says so in the log; its plan counts calls in
/// memory, and says 100 for each start in the global, 10 for each in memory, and 1 for each call.
fn counting(more: &str) -> Vec<u8> {
    let parts = r#"
      (global $starts (mut i32) (i32.const 0))
      (data (i32.const 0) "STARTED")
      (func $increment (param i32)
        (i32.store (local.get 0) (i32.add (i32.load (local.get 0)) (i32.const 1))))
      (func (export "postern:policy/startup@1.0.0#start") (result i32)
        (local $left i32)
        (local.set $left (i32.const 100000000))
        (loop $again
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (br_if $again (local.get $left)))
        (call $log (i32.const 1) (i32.const 0) (i32.const 7))
        (global.set $starts (i32.add (global.get $starts) (i32.const 1)))
        (call $increment (i32.const 1024))
        (i32.const 196608))"#;
    let number = r"(call $increment (i32.const 1028))
      (i32.add (i32.load (i32.const 1028))
        (i32.add (i32.mul (i32.load (i32.const 1024)) (i32.const 10)) (i32.mul (global.get $starts) (i32.const 100))))";
    let number = format!("(block (result i32) {number})");
    says(WORLD, LOG, &format!("{parts} {more}"), &number)
}

fn fast(component: Vec<u8>) -> PolicySpec {
    PolicySpec { deadline: Duration::from_millis(10), ..spec(component) }
}

async fn said(policy: &Policy) -> Option<u32> {
    policy.plan(&CONTEXT, &request()).await.answer.unwrap().ttl_seconds
}

/// The start takes longer than the deadline of a call, so a call could not answer if it ran there.
#[tokio::test]
async fn an_instance_begins_where_the_start_ended_and_is_fresh_all_the_same() {
    let host = host();
    let policy = host.load(fast(counting(""))).unwrap();
    assert_eq!(*policy.readiness(), Readiness::Kept);
    let started = Instant::now();
    for _ in 0..100 {
        let reply = policy.plan(&CONTEXT, &request()).await;
        assert_eq!(reply.answer.unwrap().ttl_seconds, Some(111));
        assert_eq!(reply.effects.unwrap().written().log, [], "the start runs once");
    }
    let took = started.elapsed();
    assert!(took < Duration::from_millis(1000), "{took:?} for 100 calls: some of them started again");
}

/// Wizer cannot keep tables, so it refuses whatever could change one.
#[tokio::test]
async fn where_it_cannot_be_kept_each_instance_starts() {
    let table = "(table 1 funcref) (func (param i32) (table.set (local.get 0) (ref.null func)))";
    let error = host().load(fast(counting(table))).unwrap_err();
    assert!(matches!(&error, PluginError::Mismatch(why) if why.contains("deadline")), "{error}");

    let policy = host().load(spec(counting(table))).unwrap();
    assert!(
        matches!(policy.readiness(), Readiness::EachCall(why) if why.contains("table.set")),
        "{:?}",
        policy.readiness()
    );
    for _ in 0..3 {
        let reply = policy.plan(&CONTEXT, &request()).await;
        assert_eq!(reply.answer.unwrap().ttl_seconds, Some(111));
        assert_eq!(reply.effects.unwrap().written().log, [], "what it logs at its start is about no request");
    }
}

#[tokio::test]
async fn the_configuration_is_read_at_the_start() {
    let imports = r#"(import "postern:policy/config@1.0.0" "get" (func $config (param i32)))"#;
    let parts = r#"(func (export "postern:policy/startup@1.0.0#start") (result i32)
      (call $config (i32.const 1024))
      (i32.const 196608))"#;
    let component = says(WORLD, imports, parts, "(i32.load (i32.const 1028))");
    let host = host();
    for config in [json!(null), json!({"some": "thing"})] {
        let bytes = u32::try_from(config.to_string().len()).unwrap();
        let policy = host.load(PolicySpec { config, ..spec(component.clone()) }).unwrap();
        assert_eq!(said(&policy).await, Some(bytes));
    }
}

/// The configuration is most often at fault, so its author's words must reach who wrote it.
#[test]
fn an_error_of_a_start_is_shown() {
    let parts = r#"(data (i32.const 0) "no rule named `night`")
      (func (export "postern:policy/startup@1.0.0#start") (result i32)
        (i32.store8 (i32.const 64) (i32.const 1))
        (i32.store (i32.const 72) (i32.const 21))
        (i32.const 64))"#;
    for more in ["", "(table 1 funcref) (func (param i32) (table.set (local.get 0) (ref.null func)))"] {
        let component = says(WORLD, "", &format!("{parts} {more}"), "(i32.const 1)");
        let error = host().load(spec(component)).unwrap_err();
        assert_eq!(error.to_string(), "does not start: no rule named `night`");
    }
}

#[test]
fn a_start_that_crashes_or_takes_all_memory_is_refused() {
    let start = |code: &str| {
        let parts = format!(r#"(func (export "postern:policy/startup@1.0.0#start") (result i32) {code})"#);
        host().load(spec(says(WORLD, "", &parts, "(i32.const 1)"))).unwrap_err()
    };
    let error = start("unreachable");
    assert!(matches!(&error, PluginError::Start(why) if why.contains("(trap)")), "{error}");
    let error = start("(loop $again (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable");
    assert!(matches!(&error, PluginError::Start(why) if why.contains("(memory)")), "{error}");
}

/// Longer than any call may take, but not without end.
#[test]
fn a_start_has_ten_seconds() {
    let parts = r#"(func (export "postern:policy/startup@1.0.0#start") (result i32)
      (loop $again (br $again)) unreachable)"#;
    let started = Instant::now();
    let error = host().load(spec(says(WORLD, "", parts, "(i32.const 1)"))).unwrap_err();
    assert!(matches!(&error, PluginError::Start(why) if why.contains("(deadline)")), "{error}");
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(30), "{took:?}");
}

/// Wizer ends its thread where it meets what it does not expect: here, a memory in a module without any exports.
#[tokio::test]
async fn a_component_that_cannot_be_read_does_not_take_the_host_with_it() {
    let host = host();
    let error = host.load(spec(with_instances(counting(""), "(module (memory 1))", 1))).unwrap_err();
    assert!(matches!(&error, PluginError::Start(why) if why.contains("not supported")), "{error}");
    assert_eq!(said(&host.load(spec(counting(""))).unwrap()).await, Some(111));
}

/// Whoever loads the same twice finds it in the cache; and nothing but memory may remain of a start.
#[tokio::test]
async fn every_start_is_the_same_and_leaves_nothing_outside() {
    let imports = r#"
      (import "postern:policy/random@1.0.0" "next" (func $random (result i64)))
      (import "postern:policy/clock@1.0.0" "now" (func $now (result i64)))
      (import "postern:policy/counters@1.0.0" "add" (func $add (param i32 i32 i64 i32 i32)))
      (import "postern:policy/counters@1.0.0" "get" (func $get (param i32 i32) (result i64)))"#;
    let parts = r#"(data (i32.const 0) "key")
      (func (export "postern:policy/startup@1.0.0#start") (result i32)
        (i32.store (i32.const 1024) (i32.or (i32.wrap_i64 (call $random)) (i32.const 1)))
        (call $add (i32.const 0) (i32.const 3) (i64.const 5) (i32.const 60) (i32.const 128))
        (if (i64.ne (call $now) (i64.const 0)) (then unreachable))
        (i32.const 196608))"#;
    for more in ["", "(table 1 funcref) (func (param i32) (table.set (local.get 0) (ref.null func)))"] {
        let chance = says(WORLD, imports, &format!("{parts} {more}"), "(i32.load (i32.const 1024))");
        let (one, other) = (host().load(spec(chance.clone())).unwrap(), host().load(spec(chance)).unwrap());
        assert_eq!(said(&one).await, said(&other).await);

        let number = "(i32.wrap_i64 (call $get (i32.const 0) (i32.const 3)))";
        let counted = says(WORLD, imports, &format!("{parts} {more}"), number);
        let reply = host().load(spec(counted)).unwrap().plan(&CONTEXT, &request()).await;
        assert_eq!(reply.answer.unwrap().ttl_seconds, Some(0));
        assert_eq!(reply.effects.unwrap().written().counters, []);
    }
}

#[tokio::test]
async fn what_was_kept_is_compiled_once() {
    let dir = tempfile::tempdir().unwrap();
    let files = || {
        let modules = dir.path().join("modules");
        let folders = std::fs::read_dir(modules).unwrap().map(|folder| folder.unwrap().path());
        let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap());
        files.filter(|file| file.as_ref().unwrap().path().extension().is_none()).count()
    };
    for _ in 0..2 {
        let options = HostOptions { cache_dir: Some(dir.path().to_owned()), ..HostOptions::default() };
        let policy = PolicyHost::new(options).unwrap().load(spec(counting(""))).unwrap();
        assert_eq!(said(&policy).await, Some(111));
        assert_eq!(files(), 2, "the one that is read, and what it left");
    }
    let options =
        HostOptions { cache_dir: Some(dir.path().to_owned()), count_instructions: true, ..HostOptions::default() };
    let counted = PolicyHost::new(options).unwrap().load(spec(counting(""))).unwrap();
    assert_eq!(said(&counted).await, Some(111));
    assert_eq!(files(), 4, "another engine makes other code of the same bytes");
}
