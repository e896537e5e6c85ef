//! More work than there is memory, slots or time for; and what is kept for later requests. On a tiny model with random
//! weights, so that any number that went astray changes the text.

use super::*;
use crate::kv_pool::KvShape;
use crate::origin::Priority;
use crate::testing::{TinyFile, scripted_engine};

/// Blocks of the tiny model's context: 512 tokens.
const CONTEXT_BLOCKS: usize = 32;

pub(super) fn tiny_engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let file = TinyFile::new(&[]);
    let mut options = EngineOptions::new(file.path.clone(), "tiny");
    change(&mut options);
    Engine::load(&options, &mut |_| {}).unwrap()
}

fn block_bytes() -> usize {
    KvShape { layers: 2, kv_heads: 2, head_width: 8 }.block_bytes(KvFormat::F16)
}

/// Different lengths, half of them greedy, half seeded.
fn request(number: u32, origin: Origin) -> Generation {
    let temperature = if number.is_multiple_of(2) { 0.0 } else { 1.5 };
    Generation {
        prompt: (0..10 + number * 9).map(|at| 3 + (at * 31 + number * 17) % 256).collect(),
        max_new_tokens: 40 + number as usize * 5,
        stop: Vec::new(),
        sampling: Sampling { temperature, seed: Some(u64::from(number)), ..Sampling::default() },
        origin,
    }
}

pub(super) fn text(events: &[GenerationEvent]) -> String {
    let of =
        |event: &GenerationEvent| if let GenerationEvent::Text(text) = event { text.clone() } else { String::new() };
    events.iter().map(of).collect()
}

pub(super) fn usage(events: &[GenerationEvent]) -> crate::sequence::Usage {
    match events.last() {
        Some(GenerationEvent::Finished { usage, .. }) => *usage,
        other => panic!("ended with {other:?}"),
    }
}

/// When the worker has told of its last step.
pub(super) fn settled(engine: &Engine) -> Status {
    loop {
        let load = engine.load_now();
        if load.status.running == 0 && load.queue_depth == 0 {
            return load.status;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn all_at_once(engine: &Engine, requests: impl Iterator<Item = Generation>) -> Vec<Vec<GenerationEvent>> {
    let mut receivers: Vec<_> = requests.map(|request| engine.submit(request).unwrap()).collect();
    receivers.iter_mut().map(|receiver| std::iter::from_fn(|| receiver.blocking_recv()).collect()).collect()
}

#[test]
fn with_more_sequences_than_memory_every_answer_is_the_one_it_gives_alone() {
    let of_two_tenants = |number: u32| Origin::new("i", if number < 8 { "a" } else { "b" }, "x", Priority::Interactive);
    let roomy = tiny_engine(|_| {});
    let alone: Vec<_> = (0..16).map(|number| events_of(&roomy, request(number, Origin::default()))).collect();
    assert_eq!(settled(&roomy).totals.preemptions, 0);
    let tight = tiny_engine(|options| options.kv_bytes = (CONTEXT_BLOCKS + 4) * block_bytes());
    for _ in 0..2 {
        let together = all_at_once(&tight, (0..16).map(|number| request(number, of_two_tenants(number))));
        for (number, (together, alone)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(text(together), text(alone), "answer {number}");
            assert_eq!(usage(together).completion_tokens, usage(alone).completion_tokens);
        }
    }
    let status = settled(&tight);
    assert!(status.totals.preemptions > 0, "{status:?}");
    assert!(status.kv_blocks_max == CONTEXT_BLOCKS + 4 && status.kv_blocks_used <= status.kv_blocks_max, "{status:?}");
    assert_eq!((status.running, status.totals.failed), (0, 0));
}

#[test]
fn eight_bits_hold_twice_as_much() {
    let bytes = 100 * block_bytes();
    let sixteen = tiny_engine(|options| options.kv_bytes = bytes).load_now().status.kv_blocks_max;
    let eight = tiny_engine(|options| {
        options.kv_bytes = bytes;
        options.kv_eight_bit = true;
    });
    let blocks = eight.load_now().status.kv_blocks_max;
    // Eight numbers of a head share a scale of four bytes here.
    assert!((sixteen, blocks) == (100, 133), "{sixteen} {blocks}");
    assert!(usage(&events_of(&eight, request(3, Origin::default()))).completion_tokens > 0);
}

#[test]
fn a_beginning_is_computed_once_for_a_tenant_and_a_label() {
    let engine = tiny_engine(|_| {});
    let prompt: Vec<u32> = (0..200).map(|at| 3 + at * 7 % 256).collect();
    let ask = |tenant: &str, label: &str, last: u32| {
        let mut prompt = prompt.clone();
        prompt.push(last);
        let origin = Origin::new("i", tenant, label, Priority::Interactive);
        let events = events_of(&engine, Generation { prompt, ..request(2, origin) });
        (text(&events), usage(&events).cached_tokens)
    };
    let (first, cached) = ask("a", "internal", 5);
    assert_eq!(cached, 0);
    assert_eq!(ask("a", "internal", 5), (first.clone(), 192), "whole blocks of what came before");
    assert_eq!(ask("b", "internal", 5), (first.clone(), 0), "another tenant");
    assert_eq!(ask("a", "public", 5), (first.clone(), 0), "another label");
    let (other, cached) = ask("a", "internal", 6);
    assert_eq!(cached, 192);
    assert_ne!(other, first);
    let nobody = events_of(&engine, Generation { prompt: prompt.clone(), ..request(2, Origin::default()) });
    assert_eq!(usage(&nobody).cached_tokens, 0, "nothing is kept for those who are not named");
    assert_eq!(settled(&engine).totals.prefix_hit_tokens, 2 * 192);
}

#[test]
fn an_answer_is_part_of_the_next_prompts_beginning() {
    let engine = tiny_engine(|_| {});
    let origin = || Origin::new("i", "a", "x", Priority::Interactive);
    let first = request(4, origin());
    let length = first.prompt.len();
    let events = events_of(&engine, first);
    let answered = usage(&events).completion_tokens;
    // What was said is not known as token ids out here: the prompt and some more blocks must be there.
    let kept = settled(&engine).prefix_blocks;
    assert_eq!(kept, (length + answered - 1) / crate::kv_pool::BLOCK_TOKENS);
}

#[test]
fn interactive_requests_pass_bulk_ones_that_wait_or_run() {
    let engine =
        scripted_engine(&[b"x".as_slice(); 60], Duration::from_millis(2), |options| options.max_batch_size = 2);
    let ask = |priority| {
        let prompt = vec![5; 4];
        let origin = Origin::new("i", "a", "x", priority);
        engine.submit(Generation { prompt, max_new_tokens: 100, ..request(0, origin) }).unwrap()
    };
    let mut bulk: Vec<_> = (0..6).map(|_| ask(Priority::Bulk)).collect();
    while engine.load_now().status.running < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let begun = Instant::now();
    let mut urgent = ask(Priority::Interactive);
    assert_eq!(urgent.blocking_recv(), Some(GenerationEvent::Started));
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    while urgent.blocking_recv().is_some() {}
    for receiver in &mut bulk {
        let events: Vec<_> = std::iter::from_fn(|| receiver.blocking_recv()).collect();
        assert_eq!((text(&events).len(), usage(&events).completion_tokens), (60, 61));
        assert_eq!(events.iter().filter(|event| **event == GenerationEvent::Started).count(), 1);
    }
}

#[test]
fn one_identity_leaves_places_for_others_and_the_refusal_says_how_long() {
    let engine = scripted_engine(&[b"x".as_slice(); 400], Duration::from_millis(1), |options| {
        options.max_batch_size = 1;
        options.max_queue = 4;
    });
    let ask = |identity: &str| {
        let origin = Origin::new(identity, "a", "x", Priority::Interactive);
        engine.submit(Generation { prompt: vec![5; 4], max_new_tokens: 400, ..request(0, origin) })
    };
    let greedy: Vec<_> = (0..3).map(|_| ask("greedy").unwrap()).collect();
    assert!(matches!(ask("greedy"), Err(EngineError::ShareTaken { .. })));
    let others: Vec<_> = (0..2).map(|_| ask("other").unwrap()).collect();
    let Err(error @ EngineError::QueueFull { .. }) = ask("third") else { panic!("a sixth request got a place") };
    assert!(error.retry_after().is_some_and(|after| after >= Duration::from_secs(1)), "{error}");
    drop((greedy, others));
}

#[test]
fn one_identity_does_not_keep_others_out_with_long_answers() {
    let pieces = [b"x".as_slice(); 400];
    let engine = scripted_engine(&pieces, Duration::from_millis(10), |options| options.max_batch_size = 2);
    let ask = |identity: &str, max_new_tokens| {
        let origin = Origin::new(identity, "a", "x", Priority::Interactive);
        engine.submit(Generation { prompt: vec![5; 4], max_new_tokens, ..request(0, origin) }).unwrap()
    };
    let mut greedy: Vec<_> = (0..3).map(|_| ask("greedy", 400)).collect();
    while engine.load_now().status.running < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut other = ask("other", 2);
    let answer: Vec<_> = std::iter::from_fn(|| other.blocking_recv()).collect();
    assert_eq!(usage(&answer).completion_tokens, 2);
    // All of those are still under way, and lose nothing.
    for receiver in &mut greedy {
        let events: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        assert!(!events.iter().any(|event| matches!(event, GenerationEvent::Finished { .. })), "it waited for an end");
        let rest: Vec<_> = std::iter::from_fn(|| receiver.blocking_recv()).collect();
        assert_eq!(text(&[events, rest].concat()).len(), 400);
    }
}
