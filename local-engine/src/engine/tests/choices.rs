//! Several answers to one prompt, and sampling that is the same in any company. On a tiny model with random weights.

use super::pressure::{text, tiny_engine, usage};
use super::*;
use crate::origin::Priority;

fn everything_at_once(number: u32) -> Generation {
    let sampling = Sampling {
        temperature: 1.3,
        top_p: 0.95,
        top_k: 60,
        min_p: 0.01,
        frequency_penalty: 0.4,
        presence_penalty: 0.2,
        repetition_penalty: 1.1,
        logit_bias: vec![(40, 3.0), (41, -100.0)],
        seed: Some(u64::from(number)),
        ..Sampling::default()
    };
    let prompt = (0..30 + number * 3).map(|at| 3 + (at * 29 + number) % 256).collect();
    Generation { prompt, max_new_tokens: 40, stop: Vec::new(), sampling, origin: Origin::default() }
}

#[test]
fn every_way_of_sampling_gives_the_same_text_in_any_company() {
    let engine = tiny_engine(|_| {});
    let alone: Vec<_> = (0..12).map(|number| text(&events_of(&engine, everything_at_once(number)))).collect();
    let receivers: Vec<_> = (0..12).map(|number| engine.submit(everything_at_once(number)).unwrap()).collect();
    for (mut receiver, alone) in receivers.into_iter().zip(&alone) {
        let events: Vec<_> = std::iter::from_fn(|| receiver.blocking_recv()).collect();
        assert_eq!(&text(&events), alone);
    }
    assert!(alone.iter().collect::<std::collections::HashSet<_>>().len() > 10);
}

#[test]
fn choices_share_the_prompt_and_each_says_what_it_says_alone() {
    let engine = tiny_engine(|_| {});
    let origin = || Origin::new("i", "a", "x", Priority::Interactive);
    let generation = || Generation { prompt: (3..203).collect(), origin: origin(), ..everything_at_once(7) };
    let before = engine.load_now().status.totals.prompt_tokens;
    let receivers = engine.submit_choices(generation(), 4).unwrap();
    let choices: Vec<Vec<GenerationEvent>> =
        receivers.into_iter().map(|mut receiver| std::iter::from_fn(|| receiver.blocking_recv()).collect()).collect();
    let texts: Vec<String> = choices.iter().map(|events| text(events)).collect();
    assert_eq!(texts.iter().collect::<std::collections::HashSet<_>>().len(), 4, "{texts:?}");
    assert_eq!(usage(&choices[0]).cached_tokens, 0);
    assert!(choices[1..].iter().all(|events| usage(events).cached_tokens >= 176));
    assert!(engine.load_now().status.totals.prompt_tokens - before < 300, "200 once, and a rest of each");
    for (choice, text_of_choice) in texts.iter().enumerate() {
        let sampling = generation().sampling.for_choice(choice);
        let alone = Generation { sampling, origin: Origin::default(), ..generation() };
        assert_eq!(&text(&events_of(&engine, alone)), text_of_choice, "choice {choice}");
    }
}
