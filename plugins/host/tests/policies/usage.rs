//! What a call took.

use postern_plugins::{HostOptions, PolicyHost};

use super::text::says;
use super::{CONTEXT, host, request, spec};

/// Takes `pages` of 64 KiB more, and goes `turns` times round a loop of four instructions.
fn busy(pages: u32, turns: u32) -> Vec<u8> {
    let parts = format!(
        "(func $busy (local $left i32)
           (drop (memory.grow (i32.const {pages})))
           (local.set $left (i32.const {turns}))
           (loop $again
             (local.set $left (i32.sub (local.get $left) (i32.const 1)))
             (br_if $again (local.get $left))))"
    );
    says("caching-policy", "", &parts, "(block (result i32) (call $busy) (i32.const 1))")
}

#[tokio::test]
async fn instructions_and_memory_are_counted_exactly() {
    let host = PolicyHost::new(HostOptions { count_instructions: true, ..HostOptions::default() }).unwrap();
    let load = |pages, turns| host.load(spec(busy(pages, turns))).unwrap();
    let (few, many) = (load(0, 100), load(3, 10_100));
    let usage = async |policy: &postern_plugins::Policy| policy.plan(&CONTEXT, &request()).await.usage;
    let [one, again] = [usage(&few).await, usage(&few).await];
    assert_eq!(one, again, "the same call takes the same");
    let more = usage(&many).await;
    let [few, many] = [one, more].map(|usage| usage.instructions.unwrap());
    let a_turn = (many - few) / 10_000;
    assert!((4..=7).contains(&a_turn), "{a_turn} instructions a turn: {few}, {many}");
    assert_eq!((one.memory_bytes, more.memory_bytes), (1 << 20, (1 << 20) + 3 * (64 << 10)));
}

#[tokio::test]
async fn instructions_are_not_counted_where_requests_are_served() {
    let usage = host().load(spec(busy(0, 100))).unwrap().plan(&CONTEXT, &request()).await.usage;
    assert_eq!((usage.instructions, usage.memory_bytes), (None, 1 << 20));
}
