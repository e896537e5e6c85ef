//! Policies that crash, hang, grow, lie and pry. None of them may harm the host, or any other call.

use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postern_plugins::{FailureKind, HostOptions, MAX_FUNCTION_BYTES, PluginError, Policy, PolicyHost, PolicySpec};

use super::text::{says, with_instances};
use super::{CONTEXT, built, fixture, fleet, found_text, host, hostile, load, request, segment, spec};

fn finder(name: &str) -> Policy {
    load(fixture(name, "redaction-policy")).unwrap()
}

fn impatient(host: &PolicyHost, name: &str, deadline: Duration) -> Policy {
    host.load(PolicySpec { deadline, ..spec(fixture(name, "full-policy")) }).unwrap()
}

#[tokio::test]
async fn a_crash_is_an_answer_at_every_step_and_at_every_time() {
    let policy = hostile("trap");
    for _ in 0..3 {
        assert_eq!(policy.route(&CONTEXT, &request(), &fleet()).await.answer.unwrap_err().kind, FailureKind::Trap);
        assert_eq!(policy.plan(&CONTEXT, &request()).await.answer.unwrap_err().kind, FailureKind::Trap);
        assert_eq!(policy.find(&CONTEXT, &[segment(0, "text")]).await.answer.unwrap_err().kind, FailureKind::Trap);
    }
}

#[tokio::test]
async fn a_loop_ends_at_the_deadline() {
    let policy = impatient(&host(), "loop", Duration::from_millis(50));
    let started = Instant::now();
    let failure = policy.route(&CONTEXT, &request(), &fleet()).await.answer.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Deadline);
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(50), "{took:?}");
    // A loaded machine may add to it, but not without bound.
    assert!(took < Duration::from_millis(1000), "{took:?}");
}

/// What the host does for a guest counts like what the guest does.
#[tokio::test]
async fn searches_end_at_the_deadline() {
    let host = host();
    let load =
        |name: &str, deadline| host.load(PolicySpec { deadline, ..spec(fixture(name, "redaction-policy")) }).unwrap();
    let slow = segment(0, &"4 ".repeat(4 << 20));
    for (policy, text) in [
        (load("searches-once", Duration::from_millis(30)), slow.clone()),
        (load("searches", Duration::from_millis(30)), slow.clone()),
        (load("searches", Duration::from_millis(30)), segment(0, "short")),
        (load("searches", Duration::from_millis(30)), segment(0, &"4 ".repeat(16 << 10))),
    ] {
        let started = Instant::now();
        let failure = policy.find(&CONTEXT, std::slice::from_ref(&text)).await.answer.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Deadline, "{failure}");
        let took = started.elapsed();
        assert!(took < Duration::from_millis(300), "{took:?} for {} bytes", text.text.len());
    }
    // With time enough, the same search has an answer.
    assert_eq!(load("searches-once", Duration::from_secs(10)).find(&CONTEXT, &[slow]).await.answer, Ok(vec![]));
}

/// However long the deadline is.
#[tokio::test]
async fn what_is_searched_in_a_call_is_bounded() {
    let deadline = Duration::from_secs(10);
    let policy = host().load(PolicySpec { deadline, ..spec(fixture("searches", "redaction-policy")) }).unwrap();
    let started = Instant::now();
    let failure = policy.find(&CONTEXT, &[segment(0, &"x".repeat(8 << 20))]).await.answer.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Deadline);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// One thread for everything: if a loop held it, the other task could not count.
#[tokio::test(flavor = "current_thread")]
async fn others_go_on_while_a_policy_loops() {
    let policy = impatient(&host(), "loop", Duration::from_millis(300));
    let turns = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&turns);
    let other = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_eq!(policy.plan(&CONTEXT, &request()).await.answer.unwrap_err().kind, FailureKind::Deadline);
    other.abort();
    let turns = turns.load(Ordering::Relaxed);
    assert!(turns >= 10, "{turns} turns in 300 ms");
}

#[tokio::test]
async fn a_memory_bomb_meets_its_limit() {
    let failure = hostile("memory").route(&CONTEXT, &request(), &fleet()).await.answer.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Memory);
}

#[tokio::test]
async fn a_table_bomb_meets_its_limit() {
    let parts = r#"(table $t 1 funcref)
      (func $grow (loop $again
        (br_if $again (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1)))))"#;
    let bomb = |then: &str| says("caching-policy", "", parts, &format!("(block (result i32) (call $grow) {then})"));
    let failure = load(bomb("unreachable")).unwrap().plan(&CONTEXT, &request()).await.answer.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Memory);
    // A guest that is content with what it got may go on.
    let plan = load(bomb("(table.size $t)")).unwrap().plan(&CONTEXT, &request()).await.answer.unwrap();
    assert!(plan.ttl_seconds.is_some_and(|elements| (19_000..=20_000).contains(&elements)), "{plan:?}");
}

#[test]
fn what_is_off_and_what_would_take_too_long_to_compile_does_not_load() {
    let with = |module: &str| load(with_instances(says("caching-policy", "", "", "(i32.const 1)"), module, 1));
    assert!(with("(module (memory 1))").is_ok());
    for off in ["(module (memory i64 1))", "(module (memory 1 1 shared))", "(module (type (struct)))"] {
        let error = with(off).err();
        assert!(matches!(error, Some(PluginError::NotAComponent(_))), "{off}: {error:?}");
    }
    let long = format!("(module (func {}))", "nop ".repeat(MAX_FUNCTION_BYTES));
    let error = with(&long).err();
    assert!(matches!(error, Some(PluginError::LongFunction(bytes)) if bytes > MAX_FUNCTION_BYTES), "{error:?}");
}

/// On whatever thread it runs.
#[tokio::test]
async fn a_stack_overflow_is_a_crash_of_the_guest() {
    let parts = "(func $deep (param i64 i64 i64) (result i32)
      (i32.add (call $deep (local.get 1) (local.get 2) (i64.add (local.get 0) (i64.const 1))) (i32.const 1)))";
    let number = "(call $deep (i64.const 1) (i64.const 2) (i64.const 3))";
    let policy = load(says("caching-policy", "", parts, number)).unwrap();
    for _ in 0..3 {
        let failure = policy.plan(&CONTEXT, &request()).await.answer.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Trap);
        assert!(failure.detail.contains("stack"), "{failure}");
    }
}

/// It remembers through the one thing that outlives a call.
#[tokio::test]
async fn a_crash_at_the_third_call_is_one_failure() {
    let imports = r#"(import "postern:policy/counters@1.0.0" "add" (func $add (param i32 i32 i64 i32 i32)))"#;
    let number = "(block (result i32)
      (call $add (i32.const 0) (i32.const 3) (i64.const 1) (i32.const 60) (i32.const 128))
      (if (i64.eq (i64.load (i32.const 136)) (i64.const 3)) (then unreachable))
      (i32.wrap_i64 (i64.load (i32.const 136))))";
    let policy = load(says("caching-policy", imports, "", number)).unwrap();
    for call in 1..=5 {
        let reply = policy.plan(&CONTEXT, &request()).await;
        match reply.answer {
            Ok(plan) => assert_eq!((plan.ttl_seconds, call == 3), (Some(call), false)),
            Err(failure) => assert_eq!((failure.kind, call), (FailureKind::Trap, 3)),
        }
        reply.effects.unwrap().commit(CONTEXT.label);
    }
}

/// A global, the memory behind its start, and a table.
#[tokio::test]
async fn nothing_of_an_instance_is_left_to_the_next() {
    let parts = "(global $calls (mut i32) (i32.const 0))
      (table $t 1 funcref) (elem declare func $f) (func $f)
      (func $count (result i32)
        (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (i32.store (i32.const 900000) (i32.add (i32.load (i32.const 900000)) (i32.const 10)))
        (drop (memory.grow (i32.const 1)))
        (drop (table.grow $t (ref.func $f) (i32.const 1)))
        (i32.add (i32.add (global.get $calls) (i32.load (i32.const 900000)))
          (i32.add (i32.mul (memory.size) (i32.const 100)) (i32.mul (table.size $t) (i32.const 10000)))))";
    let policy = load(says("caching-policy", "", parts, "(call $count)")).unwrap();
    for _ in 0..100 {
        assert_eq!(policy.plan(&CONTEXT, &request()).await.answer.unwrap().ttl_seconds, Some(21_711));
    }
}

#[test]
fn a_component_that_starts_with_more_than_its_limit_is_refused() {
    let small = PolicySpec { memory_bytes: 512 << 10, ..spec(fixture("trap", "full-policy")) };
    let error = host().load(small).unwrap_err();
    assert!(matches!(&error, PluginError::Mismatch(why) if why.contains("memory")), "{error}");
}

#[test]
fn a_component_that_loops_at_its_start_is_refused() {
    let slow = PolicySpec { deadline: Duration::from_millis(20), ..spec(fixture("starts-badly", "redaction-policy")) };
    let error = host().load(slow).unwrap_err();
    assert!(matches!(&error, PluginError::Mismatch(why) if why.contains("deadline")), "{error}");
}

#[tokio::test]
async fn wrong_spans_are_no_spans() {
    let behind = finder("span-behind-end").find(&CONTEXT, &[segment(0, "short")]).await.answer.unwrap_err();
    assert_eq!(behind.kind, FailureKind::Output);
    assert!(behind.detail.contains("behind"), "{behind}");

    let first_byte = finder("span-first-byte");
    let right = first_byte.find(&CONTEXT, &[segment(5, "a")]).await.answer.unwrap();
    assert_eq!((right[0].segment, right[0].start, right[0].end), (5, 0, 1));
    let cut = first_byte.find(&CONTEXT, &[segment(0, "é")]).await.answer.unwrap_err();
    assert_eq!(cut.kind, FailureKind::Output);
    assert!(cut.detail.contains("character"), "{cut}");
}

/// It has seen the text, so the letters of a kind could spell it.
#[tokio::test]
async fn a_kind_is_a_name_only_if_the_operator_gave_it() {
    let config = |config| PolicySpec { config, ..spec(fixture("span-first-byte", "redaction-policy")) };
    for (config, kind) in [
        (config(serde_json::Value::Null), "data"),
        (config(serde_json::json!({"kinds": ["word"]})), "word"),
        (config(serde_json::json!({"words": {"word": ["x"]}})), "word"),
        (config(serde_json::json!({"words": {"other": ["word"]}})), "data"),
    ] {
        let found = host().load(config).unwrap().find(&CONTEXT, &[segment(5, "a")]).await.answer.unwrap();
        assert_eq!(found[0].kind, kind);
    }
}

#[tokio::test]
async fn an_answer_is_bounded_before_it_is_copied() {
    let flood = finder("span-flood").find(&CONTEXT, &[segment(0, "text")]).await.answer.unwrap_err();
    assert_eq!(flood.kind, FailureKind::Output);
    assert!(flood.detail.contains("40000"), "{flood}");

    let policy = load(fixture("big-strings", "caching-policy")).unwrap();
    let started = Instant::now();
    assert_eq!(policy.plan(&CONTEXT, &request()).await.answer.unwrap_err().kind, FailureKind::Output);
    assert!(started.elapsed() < Duration::from_secs(2), "100,000 strings of a megabyte were copied");
}

#[tokio::test]
async fn nothing_is_remembered() {
    let policy = finder("span-count");
    for _ in 0..50 {
        let found = policy
            .find(&CONTEXT, &[segment(0, "some text that is long enough for fifty calls, in case one remembers")])
            .await
            .answer
            .unwrap();
        assert_eq!(found[0].end, 1);
    }
}

#[tokio::test]
async fn an_error_text_of_a_policy_that_saw_prompts_goes_nowhere() {
    let failure = finder("refuses").find(&CONTEXT, &[segment(0, "my secret")]).await.answer.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(!failure.detail.contains("my secret"), "{failure}");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_policy_that_sees_prompts_cannot_log() {
    let policy = hostile("talkative");
    let lines = Lines::default();
    let to = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let logged = || std::mem::take(&mut *lines.0.lock().unwrap());

    policy.find(&CONTEXT, &[segment(0, "text")]).await.effects.unwrap().log_only();
    assert_eq!(String::from_utf8(logged()).unwrap(), "");
    let trapped = policy.route(&CONTEXT, &request(), &fleet()).await;
    assert_eq!(String::from_utf8(logged()).unwrap(), "", "before it is known whether it may be written");
    trapped.effects.unwrap().log_only();
    let line = String::from_utf8(logged()).unwrap();
    assert!(line.contains("SEEN") && line.contains("policy=\"tested\""), "{line}");
}

#[test]
fn what_it_may_not_import_is_named() {
    for (import, ty) in [
        ("open", "(func)"),
        ("code", "(core module)"),
        ("more", "(component)"),
        ("postern:policy/files@1.0.0", "(instance)"),
        ("postern:policy/routing@1.0.0", "(instance)"),
        ("postern:other/log@1.0.0", "(instance)"),
        ("wasi:http/proxy@0.3.0", "(instance)"),
    ] {
        let error = load(wat::parse_str(format!("(component (import \"{import}\" {ty}))")).unwrap()).unwrap_err();
        assert!(matches!(&error, PluginError::UnknownImport(name) if name == import), "{error}");
    }
}

#[test]
fn what_is_no_policy_is_refused() {
    let refused = |wat: &str| load(wat::parse_str(wat).unwrap()).unwrap_err();
    assert!(matches!(refused("(component)"), PluginError::NoSteps));
    assert!(matches!(refused("(module)"), PluginError::NotAComponent(_)));
    assert!(matches!(load(b"#!/bin/sh".to_vec()).unwrap_err(), PluginError::NotAComponent(_)));
    assert!(matches!(load(Vec::new()).unwrap_err(), PluginError::NotAComponent(_)));
    let other_types = r#"(component
        (core module $m (func (export "f") (result i32) i32.const 0))
        (core instance $i (instantiate $m))
        (func $route (result u32) (canon lift (core func $i "f")))
        (instance $routing (export "route" (func $route)))
        (export "postern:policy/routing@1.0.0" (instance $routing)))"#;
    assert!(matches!(refused(other_types), PluginError::Mismatch(_)));
}

#[test]
fn limits_without_sense_are_refused() {
    let refused = |spec: PolicySpec| matches!(host().load(spec), Err(PluginError::Limits(_)));
    let spec = || spec(built("routing"));
    assert!(refused(PolicySpec { deadline: Duration::ZERO, ..spec() }));
    assert!(refused(PolicySpec { deadline: Duration::from_secs(11), ..spec() }));
    assert!(refused(PolicySpec { memory_bytes: 0, ..spec() }));
    assert!(refused(PolicySpec { memory_bytes: 257 << 20, ..spec() }));
    assert!(refused(PolicySpec { config: "x".repeat(1 << 20).into(), ..spec() }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_calls_at_once_all_have_their_own_answer() {
    // Fewer places than calls, so that most of them wait; and among them some that crash.
    let host = PolicyHost::new(HostOptions { max_calls: 8, ..HostOptions::default() }).unwrap();
    let redaction = host.load(spec(built("redaction"))).unwrap();
    let trap = host.load(spec(fixture("trap", "full-policy"))).unwrap();
    let calls: Vec<_> = (0..100_usize)
        .map(|i| {
            let (redaction, trap) = (redaction.clone(), trap.clone());
            tokio::spawn(async move {
                if i % 10 == 0 {
                    assert_eq!(trap.plan(&CONTEXT, &request()).await.answer.unwrap_err().kind, FailureKind::Trap);
                }
                let text = format!("{} li{i}@example.com", "x".repeat(i));
                let found = redaction.find(&CONTEXT, &[segment(0, &text)]).await.answer.unwrap();
                assert_eq!(found_text(&text, &found[0]), format!("li{i}@example.com"));
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_waits_for_a_place_no_longer_than_its_deadline() {
    let host = PolicyHost::new(HostOptions { max_calls: 1, ..HostOptions::default() }).unwrap();
    let looping = impatient(&host, "loop", Duration::from_secs(5));
    let waiting = impatient(&host, "trap", Duration::from_millis(30));
    let holder = tokio::spawn({
        let looping = looping.clone();
        async move { looping.plan(&CONTEXT, &request()).await.answer }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let failure = waiting.plan(&CONTEXT, &request()).await.answer.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Deadline);
    assert!(failure.detail.contains("place"), "{failure}");

    // A request that is given up gives its place back, although its policy never ends.
    holder.abort();
    assert!(holder.await.unwrap_err().is_cancelled());
    assert_eq!(waiting.plan(&CONTEXT, &request()).await.answer.unwrap_err().kind, FailureKind::Trap);
}

#[tokio::test]
async fn compiled_code_is_kept_where_nobody_else_can_write() {
    let dir = tempfile::tempdir().unwrap();
    let cache_dir = dir.path().join("state/compiled");
    let options = || HostOptions { cache_dir: Some(cache_dir.clone()), ..HostOptions::default() };
    for _ in 0..2 {
        let policy = PolicyHost::new(options()).unwrap().load(spec(built("caching"))).unwrap();
        assert!(policy.plan(&CONTEXT, &request()).await.answer.is_ok());
        assert_eq!(std::fs::metadata(&cache_dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(std::fs::read_dir(&cache_dir).unwrap().next().is_some());
    }
    // Whoever owns a folder may write there whatever its mode says. (Only the superuser can give one away.)
    if std::os::unix::fs::chown(&cache_dir, Some(1), None).is_ok() {
        let error = PolicyHost::new(options()).unwrap_err();
        assert!(matches!(&error, PluginError::Sandbox(why) if why.contains("somebody else")), "{error}");
    }
}
