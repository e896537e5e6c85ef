//! Guests that bring a language's runtime: many modules, memories and tables.

use postern_plugins::{Needs, PluginError, PolicySpec, inspect};

use super::text::{says, with_instances};
use super::{CONTEXT, MEMORY_BYTES, host, request, spec};

const PART: &str = "(module (memory 1) (table 6000 funcref))";
const PLAN: &str = "(i32.const 7)";

fn needs(component: &[u8]) -> Needs {
    inspect(component).unwrap().needs
}

#[tokio::test]
async fn a_large_guest_runs_beside_small_ones() {
    let small = says("caching-policy", "", "", PLAN);
    let large = with_instances(small.clone(), PART, 9);
    assert_eq!(needs(&large).instances, needs(&small).instances + 9);

    let host = host();
    let policies = [small, large].map(|component| host.load(spec(component)).unwrap());
    for policy in &policies {
        for _ in 0..50 {
            assert_eq!(policy.plan(&CONTEXT, &request()).await.answer.unwrap().ttl_seconds, Some(7));
        }
    }
    // Its memories count together: a mebibyte of its own, and nine of 64 KiB.
    let usage = policies.each_ref().map(async |policy| policy.plan(&CONTEXT, &request()).await.usage.memory_bytes);
    let [small, large] = usage;
    assert_eq!((small.await, large.await), (1 << 20, (1 << 20) + 9 * (64 << 10)));
}

#[test]
fn what_is_too_large_is_refused() {
    let small = says("caching-policy", "", "", PLAN);
    let refused = |component| host().load(spec(component)).unwrap_err();
    let error = refused(with_instances(small.clone(), PART, 44));
    assert!(matches!(&error, PluginError::TooLarge(needs) if needs.instances > 43), "{error}");
    // What is the same module several times is counted by the sandbox.
    let error = refused(with_instances(small.clone(), PART, 11));
    assert!(matches!(&error, PluginError::NotAComponent(why) if why.contains("memories")), "{error}");
    // All tables together have a bound, whatever the pool would hold.
    let error = refused(with_instances(small, "(module (table 20000 funcref))", 8));
    assert!(matches!(&error, PluginError::Mismatch(why) if why.contains("memory")), "{error}");
}

#[test]
fn all_memories_share_the_limit() {
    let component = with_instances(says("caching-policy", "", "", PLAN), "(module (memory 160))", 3);
    assert!(host().load(PolicySpec { memory_bytes: 2 * MEMORY_BYTES, ..spec(component.clone()) }).is_ok());
    let error = host().load(PolicySpec { memory_bytes: 30 << 20, ..spec(component) }).unwrap_err();
    assert!(matches!(&error, PluginError::Mismatch(why) if why.contains("memory")), "{error}");
}

/// Sums as initial values are how a dynamic linker for WebAssembly places libraries.
#[test]
fn only_a_large_guest_may_have_sums_as_initial_values() {
    let sum = "(module (global i32 (i32.add (i32.const 1) (i32.const 2))))";
    let small = says("caching-policy", "", "", PLAN);
    assert!(matches!(host().load(spec(with_instances(small.clone(), sum, 1))), Err(PluginError::NotAComponent(_))));
    assert!(host().load(spec(with_instances(small, sum, 8))).is_ok());
}
