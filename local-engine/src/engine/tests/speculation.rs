//! Tokens that are guessed change when an answer comes, and nothing else of it.

use super::pressure::{all_at_once, settled, text, tiny_engine, usage};
use super::*;
use crate::origin::Priority;
use crate::testing::{FIRST_PIECE, scripted_engine};

/// Of all kinds, and such that few tokens are likely: so they come again and again, now in this order, now in that.
fn requests() -> Vec<Generation> {
    let base = |number: u32| Generation {
        prompt: (0..30).map(|at| 3 + (at % 7 * 31 + number * 17) % 256).collect(),
        max_new_tokens: 60 + number as usize,
        stop: Vec::new(),
        sampling: Sampling {
            temperature: 0.0,
            logit_bias: (0..3 + number % 3).map(|at| (10 + at, 30.0)).collect(),
            ..Sampling::default()
        },
        origin: Origin::new("i", "tenant", "label", Priority::Interactive),
    };
    let change = |number: u32, change: fn(&mut Generation)| {
        let mut request = base(number);
        change(&mut request);
        request
    };
    let mut requests: Vec<Generation> = (0..8).map(base).collect();
    requests.extend((8..12).map(|number| {
        change(number, |request| {
            request.sampling.temperature = 0.7;
            request.sampling.seed = Some(7);
        })
    }));
    requests.push(change(12, |request| request.sampling.frequency_penalty = 0.4));
    requests.push(change(13, |request| request.sampling.repetition_penalty = 1.3));
    requests.push(change(14, |request| request.sampling.logprobs = Some(3)));
    requests.push(change(15, |request| request.max_new_tokens = 1));
    requests.push(change(16, |request| request.max_new_tokens = 1000));
    requests
}

#[test]
fn an_answer_is_the_same_with_guesses_and_without() {
    let (guessing, plain) = (tiny_engine(|_| {}), tiny_engine(|options| options.speculation = false));
    for (number, mut request) in requests().into_iter().enumerate() {
        // Twice: the second time, its beginning is there already. Then with a stop string out of its own middle.
        let mut texts = Vec::new();
        for _ in 0..2 {
            let (with, without) = (events_of(&guessing, request.clone()), events_of(&plain, request.clone()));
            if request.sampling.logprobs.is_some() {
                assert_eq!(scored(&with), scored(&without), "answer {number}");
            }
            assert_eq!((text(&with), usage(&with)), (text(&without), usage(&without)), "answer {number}");
            texts.push(text(&with));
        }
        let middle: String = texts[0].chars().skip(9).take(2).collect();
        if !middle.is_empty() {
            request.stop = vec![middle];
            let (with, without) = (events_of(&guessing, request.clone()), events_of(&plain, request));
            assert_eq!((text(&with), usage(&with)), (text(&without), usage(&without)), "answer {number} stopped");
        }
    }
    let (with, without) = (settled(&guessing), settled(&plain));
    assert!(with.totals.guessed_right_tokens > 100, "{with:?}");
    assert_eq!(without.totals.guessed_tokens, 0);
    assert_eq!(with.totals.generated_tokens, without.totals.generated_tokens);
}

fn scored(events: &[GenerationEvent]) -> Vec<crate::logprobs::TokenScore> {
    let of = |event: &GenerationEvent| match event {
        GenerationEvent::Scored { tokens, .. } => tokens.clone(),
        _ => Vec::new(),
    };
    events.iter().flat_map(of).collect()
}

#[test]
fn guesses_of_one_do_not_reach_another() {
    let (guessing, plain) = (tiny_engine(|_| {}), tiny_engine(|options| options.speculation = false));
    let alone: Vec<_> = requests().into_iter().map(|request| text(&events_of(&plain, request))).collect();
    for round in 0..3 {
        let together = all_at_once(&guessing, requests().into_iter());
        for (number, (together, alone)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(&text(together), alone, "answer {number} in round {round}");
        }
    }
    let totals = settled(&guessing).totals;
    assert!(totals.guessed_right_tokens > 0 && totals.guessed_tokens > totals.guessed_right_tokens, "{totals:?}");
}

#[test]
fn nothing_of_a_wrong_guess_stays_in_memory() {
    let engine = tiny_engine(|_| {});
    for request in requests() {
        events_of(&engine, request);
    }
    let status = settled(&engine);
    assert!(status.totals.guessed_tokens > status.totals.guessed_right_tokens, "{status:?}");
    assert_eq!(status.kv_blocks_used, status.prefix_blocks, "{status:?}");
}

/// On a model for which a step takes as long with guesses as without.
#[test]
fn what_stands_in_the_prompt_is_guessed() {
    let pieces = (0..40u8).map(|at| [b'a' + at / 26, b'a' + at % 26]).collect::<Vec<_>>();
    let pieces: Vec<&[u8]> = pieces.iter().map(<[u8; 2]>::as_slice).collect();
    let engine = scripted_engine(&pieces, Duration::from_millis(2), |_| {});
    let request = Generation {
        prompt: (FIRST_PIECE..FIRST_PIECE + 40).chain([5]).collect(),
        max_new_tokens: 60,
        stop: Vec::new(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        origin: Origin::default(),
    };
    let events = events_of(&engine, request);
    assert_eq!(text(&events), pieces.concat().into_iter().map(char::from).collect::<String>());
    let totals = settled(&engine).totals;
    assert!(totals.guessed_right_tokens > 20 && totals.generated_tokens == 41, "{totals:?}");
}

#[test]
fn a_real_model_says_the_same_of_a_text_that_it_repeats() {
    let engine = real_engine();
    let ask = "Repeat this word for word, twice: The parcel for the harbour office left on Tuesday at nine.";
    let message = Message { role: "user", content: ask.to_owned() };
    let request = Generation {
        prompt: engine.tokenize(&[message], None).unwrap(),
        max_new_tokens: 60,
        stop: Vec::new(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        origin: Origin::default(),
    };
    let mut plain = EngineOptions::new(model_file(), "plain");
    plain.speculation = false;
    let plain = Engine::load(&plain, &mut |_| {}).unwrap();
    let (with, without) = (events_of(&engine, request.clone()), events_of(&plain, request));
    assert_eq!((text(&with), usage(&with)), (text(&without), usage(&without)));
}
