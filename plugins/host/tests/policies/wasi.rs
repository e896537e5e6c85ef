//! Guests of toolchains that import WASI: what they ask at their start is answered by nothing, and the rest ends the call.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use postern_plugins::{CallContext, FailureKind, PluginError, PolicySpec, inspect};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::text::core;
use super::{CONTEXT, host, load, request, segment, spec};

/// Of WASI 0.2.3, what is used below.
const WASI: &str = r"
package wasi:io@0.2.3 {
  interface error { resource error { to-debug-string: func() -> string; } }
  interface poll {
    resource pollable { ready: func() -> bool; block: func(); }
    poll: func(in: list<borrow<pollable>>) -> list<u32>;
  }
  interface streams {
    use error.{error};
    use poll.{pollable};
    variant stream-error { last-operation-failed(error), closed }
    resource input-stream {
      blocking-read: func(len: u64) -> result<list<u8>, stream-error>;
    }
    resource output-stream {
      check-write: func() -> result<u64, stream-error>;
      blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
      subscribe: func() -> pollable;
    }
  }
}
package wasi:clocks@0.2.3 {
  interface monotonic-clock { now: func() -> u64; }
  interface wall-clock { record datetime { seconds: u64, nanoseconds: u32 } now: func() -> datetime; }
}
package wasi:random@0.2.3 {
  interface random { get-random-bytes: func(len: u64) -> list<u8>; get-random-u64: func() -> u64; }
}
package wasi:filesystem@0.2.3 {
  interface types {
    enum error-code { access, not-permitted }
    resource descriptor { stat: func() -> result<_, error-code>; }
  }
  interface preopens { use types.{descriptor}; get-directories: func() -> list<tuple<descriptor, string>>; }
}
package wasi:sockets@0.2.3 {
  interface tcp-create-socket {
    enum error-code { unknown, access-denied }
    enum ip-address-family { ipv4, ipv6 }
    create-tcp-socket: func(family: ip-address-family) -> result<u32, error-code>;
  }
}
package wasi:cli@0.2.3 {
  interface environment {
    get-environment: func() -> list<tuple<string, string>>;
    get-arguments: func() -> list<string>;
    initial-cwd: func() -> option<string>;
  }
  interface stdin { use wasi:io/streams@0.2.3.{input-stream}; get-stdin: func() -> input-stream; }
  interface stdout { use wasi:io/streams@0.2.3.{output-stream}; get-stdout: func() -> output-stream; }
  interface stderr { use wasi:io/streams@0.2.3.{output-stream}; get-stderr: func() -> output-stream; }
  interface exit { exit: func(status: result); }
}
package test:guests {
  world imports {
    import wasi:io/error@0.2.3;
    import wasi:io/poll@0.2.3;
    import wasi:io/streams@0.2.3;
    import wasi:clocks/monotonic-clock@0.2.3;
    import wasi:clocks/wall-clock@0.2.3;
    import wasi:random/random@0.2.3;
    import wasi:filesystem/types@0.2.3;
    import wasi:filesystem/preopens@0.2.3;
    import wasi:sockets/tcp-create-socket@0.2.3;
    import wasi:cli/environment@0.2.3;
    import wasi:cli/stdin@0.2.3;
    import wasi:cli/stdout@0.2.3;
    import wasi:cli/stderr@0.2.3;
    import wasi:cli/exit@0.2.3;
  }
  world asks { include imports; include postern:policy/prepared-caching-policy@1.0.0; }
  world plain { include imports; include postern:policy/caching-policy@1.0.0; }
  world finds { include imports; include postern:policy/redaction-policy@1.0.0; }
}
";

/// All functions above, by short names.
const IMPORTS: &str = r#"
  (import "wasi:cli/environment@0.2.3" "get-environment" (func $environment (param i32)))
  (import "wasi:cli/environment@0.2.3" "get-arguments" (func $arguments (param i32)))
  (import "wasi:cli/environment@0.2.3" "initial-cwd" (func $cwd (param i32)))
  (import "wasi:cli/stdin@0.2.3" "get-stdin" (func $stdin (result i32)))
  (import "wasi:cli/stdout@0.2.3" "get-stdout" (func $stdout (result i32)))
  (import "wasi:cli/stderr@0.2.3" "get-stderr" (func $stderr (result i32)))
  (import "wasi:cli/exit@0.2.3" "exit" (func $exit (param i32)))
  (import "wasi:io/streams@0.2.3" "[method]input-stream.blocking-read" (func $read (param i32 i64 i32)))
  (import "wasi:io/streams@0.2.3" "[method]output-stream.check-write" (func $check-write (param i32 i32)))
  (import "wasi:io/streams@0.2.3" "[method]output-stream.blocking-write-and-flush" (func $write (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.3" "[method]output-stream.subscribe" (func $subscribe (param i32) (result i32)))
  (import "wasi:io/streams@0.2.3" "[resource-drop]output-stream" (func $drop-output (param i32)))
  (import "wasi:io/poll@0.2.3" "poll" (func $poll (param i32 i32 i32)))
  (import "wasi:io/poll@0.2.3" "[resource-drop]pollable" (func $drop-pollable (param i32)))
  (import "wasi:clocks/monotonic-clock@0.2.3" "now" (func $monotonic (result i64)))
  (import "wasi:clocks/wall-clock@0.2.3" "now" (func $wall (param i32)))
  (import "wasi:random/random@0.2.3" "get-random-u64" (func $random (result i64)))
  (import "wasi:random/random@0.2.3" "get-random-bytes" (func $random-bytes (param i64 i32)))
  (import "wasi:filesystem/preopens@0.2.3" "get-directories" (func $directories (param i32)))
  (import "wasi:sockets/tcp-create-socket@0.2.3" "create-tcp-socket" (func $socket (param i32 i32)))"#;

fn wasi_guest(world: &str, parts: &str) -> Vec<u8> {
    let mut module = core(IMPORTS, parts);
    let mut resolve = Resolve::default();
    resolve.push_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit")).unwrap();
    let package = resolve.push_str("wasi.wit", &format!("package test:all;\n{WASI}")).unwrap();
    let world = resolve.select_world(&[package], Some(&format!("test:guests/{world}"))).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

/// A caching policy that says a number in its `ttl-seconds`.
fn says(world: &str, parts: &str, number: &str) -> Vec<u8> {
    let plan = format!(
        r#"{parts}
          (func (export "postern:policy/caching@1.0.0#plan") (param i32) (result i32)
            (i32.store8 (i32.const 131080) (i32.const 1))
            (i32.store (i32.const 131084) {number})
            (i32.const 131072))"#
    );
    wasi_guest(world, &plan)
}

async fn said(component: Vec<u8>) -> (Option<u32>, Vec<(String, String)>) {
    let reply = load(component).unwrap().plan(&CONTEXT, &request()).await;
    (reply.answer.unwrap().ttl_seconds, reply.effects.unwrap().written().log)
}

/// Each test is a bit of the answer.
#[tokio::test]
async fn what_a_runtime_asks_at_its_start_is_answered_by_nothing() {
    let parts = r#"
      (data (i32.const 0) "one line\nanother without an end")
      (func $is-empty (param i32) (result i32)
        (i32.eqz (i32.load offset=4 (local.get 0))))
      (func $bit (param i32 i32) (result i32) (i32.shl (i32.ne (local.get 0) (i32.const 0)) (local.get 1)))
      (func $asked (result i32)
        (local $out i32) (local $ready i32) (local $bits i32)
        ;; No environment, no arguments, no folder, no files. What is asked is written over ones.
        (memory.fill (i32.const 1024) (i32.const 255) (i32.const 1024))
        (call $environment (i32.const 1024))
        (call $arguments (i32.const 1040))
        (call $cwd (i32.const 1056))
        (call $directories (i32.const 1072))
        (local.set $bits (call $bit (call $is-empty (i32.const 1024)) (i32.const 0)))
        (local.set $bits (i32.or (local.get $bits) (call $bit (call $is-empty (i32.const 1040)) (i32.const 1))))
        (local.set $bits (i32.or (local.get $bits) (call $bit (i32.eqz (i32.load8_u (i32.const 1056))) (i32.const 2))))
        (local.set $bits (i32.or (local.get $bits) (call $bit (call $is-empty (i32.const 1072)) (i32.const 3))))
        ;; An input that is at its end: error, closed.
        (call $read (call $stdin) (i64.const 10) (i32.const 1088))
        (local.set $bits (i32.or (local.get $bits) (call $bit (i32.and (i32.eq (i32.load8_u (i32.const 1088)) (i32.const 1))
          (i32.eq (i32.load8_u (i32.const 1092)) (i32.const 1))) (i32.const 4))))
        ;; An output that takes something, at once.
        (local.set $out (call $stdout))
        (call $check-write (local.get $out) (i32.const 1104))
        (local.set $bits (i32.or (local.get $bits) (call $bit (i64.ge_u (i64.load (i32.const 1112)) (i64.const 31)) (i32.const 5))))
        (call $write (local.get $out) (i32.const 0) (i32.const 31) (i32.const 1120))
        (local.set $bits (i32.or (local.get $bits) (call $bit (i32.eqz (i32.load8_u (i32.const 1120))) (i32.const 6))))
        (i32.store (i32.const 1136) (call $subscribe (local.get $out)))
        (call $poll (i32.const 1136) (i32.const 1) (i32.const 1140))
        (local.set $bits (i32.or (local.get $bits) (call $bit (i32.eq (i32.load (i32.const 1144)) (i32.const 1)) (i32.const 7))))
        (call $drop-pollable (i32.load (i32.const 1136)))
        (call $drop-output (local.get $out))
        (call $write (call $stderr) (i32.const 0) (i32.const 9) (i32.const 1120))
        ;; The clocks stand still, and agree.
        (call $wall (i32.const 1152))
        (local.set $bits (i32.or (local.get $bits) (call $bit (i64.eq (call $monotonic)
          (i64.add (i64.mul (i64.load (i32.const 1152)) (i64.const 1000000000)) (i64.load32_u (i32.const 1160))))
          (i32.const 8))))
        ;; Chance brings as much as was asked for.
        (call $random-bytes (i64.const 13) (i32.const 1168))
        (local.set $bits (i32.or (local.get $bits) (call $bit (i32.eq (i32.load (i32.const 1172)) (i32.const 13)) (i32.const 9))))
        ;; A socket is refused with an error that the guest can read: access-denied.
        (call $socket (i32.const 0) (i32.const 1184))
        (local.set $bits (i32.or (local.get $bits) (call $bit (i32.and (i32.eq (i32.load8_u (i32.const 1184)) (i32.const 1))
          (i32.eq (i32.load8_u (i32.const 1188)) (i32.const 1))) (i32.const 10))))
        (local.get $bits))"#;
    let component = says("plain", parts, "(call $asked)");
    assert!(inspect(&component).unwrap().stubs.contains(&"wasi:cli/environment@0.2.3".to_owned()));
    let (bits, log) = said(component).await;
    assert_eq!(bits, Some(0b111_1111_1111), "{:b}", bits.unwrap_or_default());
    let line = |level: &str, text: &str| (level.to_owned(), text.to_owned());
    assert_eq!(log, [line("info", "one line"), line("warn", "one line"), line("info", "another without an end")]);
}

#[tokio::test]
async fn time_and_chance_are_those_of_the_call() {
    let wall = "(call $wall (i32.const 1024))";
    let number = format!("(block (result i32) {wall} (i32.wrap_i64 (i64.load (i32.const 1024))))");
    let policy = load(says("plain", "", &number)).unwrap();
    let ttl = async |context: &CallContext<'_>| policy.plan(context, &request()).await.answer.unwrap().ttl_seconds;
    let told = CallContext { time_ms: Some(1_234_567), ..CONTEXT };
    assert_eq!(ttl(&told).await, Some(1_234));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(u64::from(ttl(&CONTEXT).await.unwrap()).abs_diff(now) < 60);

    let policy = load(says("plain", "", "(i32.wrap_i64 (call $random))")).unwrap();
    let ttl = async |seed| policy.plan(&CallContext { seed, ..CONTEXT }, &request()).await.answer.unwrap().ttl_seconds;
    assert_eq!(ttl(1).await, ttl(1).await);
    assert_ne!(ttl(1).await, ttl(2).await);
}

#[tokio::test]
async fn what_has_no_harmless_answer_ends_the_call_by_name() {
    let imports = r#"(import "wasi:cli/exit@0.2.3" "exit" (func $exit (param i32)))"#;
    assert!(IMPORTS.contains(imports));
    let exits = load(says("plain", "", "(block (result i32) (call $exit (i32.const 0)) (i32.const 1))")).unwrap();
    let failure = exits.plan(&CONTEXT, &request()).await.answer.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Trap);
    assert!(failure.detail.contains("wasi:cli/exit@0.2.3#exit"), "{failure}");

    let much = "(block (result i32) (call $random-bytes (i64.const 100000000) (i32.const 1024)) (i32.const 1))";
    let failure = load(says("plain", "", much)).unwrap().plan(&CONTEXT, &request()).await.answer.unwrap_err();
    assert!(failure.detail.contains("random bytes"), "{failure}");
}

/// Each handle takes memory of the host.
#[tokio::test]
async fn handles_are_bounded() {
    let many = |count: u32| {
        let code = format!(
            "(local $left i32) (local.set $left (i32.const {count}))
             (loop $again (drop (call $stdout)) (local.set $left (i32.sub (local.get $left) (i32.const 1)))
               (br_if $again (local.get $left)))"
        );
        says("plain", &format!("(func $take {code})"), "(block (result i32) (call $take) (i32.const 1))")
    };
    assert_eq!(said(many(900)).await.0, Some(1));
    let failure = load(many(1_100)).unwrap().plan(&CONTEXT, &request()).await.answer.unwrap_err();
    assert!(failure.detail.contains("handle"), "{failure}");
}

/// What it prints could quote a prompt, like what it logs.
#[tokio::test]
async fn what_sees_text_prints_nothing() {
    let parts = r#"(data (i32.const 0) "my secret\n")
      (func (export "postern:policy/redaction@1.0.0#find") (param i32 i32) (result i32)
        (call $write (call $stdout) (i32.const 0) (i32.const 10) (i32.const 64))
        (i32.const 196608))"#;
    let reply = load(wasi_guest("finds", parts)).unwrap().find(&CONTEXT, &[segment(0, "my secret")]).await;
    assert_eq!(reply.answer, Ok(vec![]));
    assert_eq!(reply.effects.unwrap().written().log, []);
}

/// A handle that is kept over a start would stand for nothing in the instances that follow.
#[tokio::test]
async fn a_start_that_holds_a_handle_runs_in_each_instance() {
    let start = |code: &str| {
        let start = format!(
            r#"(global $out (mut i32) (i32.const 0)) (data (i32.const 0) "text\n")
               (func (export "postern:policy/startup@1.0.0#start") (result i32) {code} (i32.const 196608))
               (func $print (call $write (global.get $out) (i32.const 0) (i32.const 5) (i32.const 64)))"#
        );
        says("asks", &start, "(block (result i32) (call $print) (i32.const 1))")
    };
    let holds = start("(global.set $out (call $stdout))");
    assert!(format!("{:?}", load(holds.clone()).unwrap().readiness()).contains("handles"));
    let (answer, log) = said(holds).await;
    assert_eq!((answer, log.len()), (Some(1), 1));

    // One that gave its handle back begins with memory only, and a handle that it made up is no handle.
    let gave_back = load(start("(global.set $out (call $stdout)) (call $drop-output (global.get $out))")).unwrap();
    assert_eq!(format!("{:?}", gave_back.readiness()), "Kept");
    assert!(gave_back.plan(&CONTEXT, &request()).await.answer.is_err());
}

#[test]
fn other_versions_and_other_packages_are_refused_by_name() {
    let wants = |import: &str| {
        let text = format!(r#"(component (import "{import}" (instance (export "f" (func)))))"#);
        host().load(PolicySpec { ..spec(wat::parse_str(text).unwrap()) }).unwrap_err()
    };
    for import in ["wasi:cli/environment@0.3.0", "wasi:keyvalue/store@0.2.0", "other:files/all@1.0.0"] {
        let error = wants(import);
        assert!(matches!(&error, PluginError::UnknownImport(name) if name == import), "{error}");
    }
    // One that is known is no reason for a refusal, but this is no policy.
    assert!(matches!(wants("wasi:cli/environment@0.2.9"), PluginError::NoSteps));
}
