use super::*;
use proptest::prelude::*;

fn draws(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling, &[]);
    (0..count).map(|_| sampler.draw(&mut logits.to_vec()).unwrap()).collect()
}

fn greedy() -> Sampling {
    Sampling { temperature: 0.0, ..Sampling::default() }
}

/// Tokens that may be drawn, in order.
fn kept(logits: &[f32], sampling: Sampling) -> Vec<u32> {
    let mut kept: Vec<u32> = candidates(logits, &sampling).iter().map(|(token, _)| *token).collect();
    kept.sort_unstable();
    kept
}

#[test]
fn greedy_takes_the_first_of_the_greatest() {
    assert_eq!(draws(greedy(), &[0.5, 3.0, 3.0, -1.0], 3), [1, 1, 1]);
}

#[test]
fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
    let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.1).collect();
    let with = |seed| draws(Sampling { seed: Some(seed), ..Sampling::default() }, &logits, 40);
    assert_eq!(with(7), with(7));
    assert_ne!(with(7), with(8));
}

#[test]
fn choices_of_one_seed_differ_and_the_first_is_the_seeds_own() {
    let logits = [0.0f32; 64];
    let seeded = Sampling { seed: Some(7), ..Sampling::default() };
    let of = |choice| draws(seeded.for_choice(choice), &logits, 20);
    assert_eq!(of(0), draws(seeded.clone(), &logits, 20));
    assert_eq!(of(3), of(3));
    assert_ne!(of(0), of(1));
    assert_ne!(of(1), of(2));
    let unseeded = Sampling::default().for_choice(1);
    assert_eq!(unseeded.seed, None);
}

#[test]
fn frequencies_follow_the_softmax() {
    let logits = [0.0f32, 1.0, 2.0];
    let tokens = draws(Sampling { seed: Some(1), ..Sampling::default() }, &logits, 20_000);
    let total: f32 = logits.iter().map(|l| l.exp()).sum();
    for (token, logit) in logits.iter().enumerate() {
        let share = tokens.iter().filter(|t| **t as usize == token).count() as f32 / 20_000.0;
        assert!((share - logit.exp() / total).abs() < 0.02, "{token}: {share}");
    }
}

/// Probabilities 0.64, 0.24, 0.09, 0.03.
const FALLING: [f32; 4] = [3.0, 2.0, 1.0, 0.0];

#[test]
fn top_p_leaves_out_the_tail() {
    let with = |top_p| kept(&FALLING, Sampling { top_p, ..Sampling::default() });
    assert_eq!([with(0.0).len(), with(0.5).len(), with(0.7).len(), with(0.9).len(), with(1.0).len()], [1, 1, 2, 3, 4]);
    assert_eq!(with(0.7), [0, 1]);
}

#[test]
fn top_k_keeps_the_likeliest_and_of_equals_the_first() {
    let with = |logits: &[f32], top_k| kept(logits, Sampling { top_k, ..Sampling::default() });
    assert_eq!(with(&[1.0, 3.0, 2.0, 0.0], 2), [1, 2]);
    assert_eq!(with(&[1.0; 6], 3), [0, 1, 2]);
    assert_eq!(with(&FALLING, 0).len(), 4, "0: all");
    assert_eq!(with(&FALLING, 9).len(), 4);
}

#[test]
fn min_p_is_a_share_of_the_likeliest() {
    // Relative to the likeliest: 1, 0.37, 0.14, 0.05.
    let with = |min_p| kept(&FALLING, Sampling { min_p, ..Sampling::default() });
    assert_eq!([with(0.0).len(), with(0.1).len(), with(0.3).len(), with(1.0).len()], [4, 3, 2, 1]);
}

#[test]
fn top_p_is_of_what_top_k_leaves() {
    // Of two tokens the first has 0.73: alone it does not reach 0.74 of all that is left, but 0.73 of all would be two.
    let with = |top_k, top_p| kept(&FALLING, Sampling { top_k, top_p, ..Sampling::default() });
    assert_eq!(with(2, 0.72), [0]);
    assert_eq!(with(0, 0.72), [0, 1]);
}

#[test]
fn penalties_turn_away_from_what_was_said() {
    let sampling = Sampling { frequency_penalty: 1.0, ..greedy() };
    assert_eq!(draws(sampling, &[1.0, 0.5, -9.0], 4), [0, 1, 0, 1]);
    let sampling = Sampling { presence_penalty: 0.6, ..greedy() };
    assert_eq!(draws(sampling, &[1.0, 0.5, -9.0], 3), [0, 1, 0]);
}

#[test]
fn a_repetition_penalty_counts_the_prompt_too_and_each_token_once() {
    let sampling = Sampling { repetition_penalty: 2.0, ..greedy() };
    let draw = |prompt: &[u32], logits: &[f32]| Sampler::new(sampling.clone(), prompt).draw(&mut logits.to_vec());
    assert_eq!(draw(&[], &[4.0, 3.0]), Ok(0));
    assert_eq!(draw(&[0, 0, 0], &[4.0, 3.0]), Ok(1), "halved");
    assert_eq!(draw(&[0, 0, 0], &[4.0, 1.5]), Ok(0), "not divided by eight");
    assert_eq!(draw(&[0], &[-1.0, -1.5]), Ok(1), "a negative logit gets smaller, not greater");
    assert_eq!(draws(sampling.clone(), &[4.0, 3.0], 2), [0, 1], "what was drawn counts as well");
}

#[test]
fn a_bias_bans_or_forces_a_token() {
    let with = |bias| draws(Sampling { logit_bias: bias, ..greedy() }, &[1.0, 0.5, -9.0], 1);
    assert_eq!(with(vec![(0, -100.0)]), [1]);
    assert_eq!(with(vec![(2, 100.0)]), [2]);
    assert_eq!(with(vec![(77, 100.0)]), [0], "a token that the model does not have");
}

#[test]
fn what_is_told_is_the_models_own_probability() {
    let sampling = Sampling { logprobs: Some(1), logit_bias: vec![(2, 100.0)], ..greedy() };
    let mut sampler = Sampler::new(sampling, &[]);
    assert_eq!(sampler.draw(&mut FALLING.to_vec()), Ok(2));
    let score = sampler.take_score().unwrap();
    assert!((score.logprob - 0.0871f32.ln()).abs() < 0.01, "{}", score.logprob);
    assert_eq!((score.token, score.top[0].0), (2, 0));
    assert!(sampler.take_score().is_none());
}

#[test]
fn what_is_not_a_number_is_no_token() {
    assert_eq!(Sampler::new(Sampling::default(), &[]).draw(&mut [0.0, f32::NAN]), Err(Undrawn::Logits));
    assert_eq!(Sampler::new(Sampling::default(), &[]).draw(&mut []), Err(Undrawn::Logits));
    assert_eq!(Sampler::new(Sampling::default(), &[]).draw(&mut [f32::NEG_INFINITY; 3]), Err(Undrawn::Logits));
    assert_eq!(Sampler::new(greedy(), &[]).draw(&mut [f32::NEG_INFINITY; 3]), Err(Undrawn::Logits));
}

proptest! {
    #[test]
    fn a_drawn_token_is_always_in_the_nucleus(
        logits in proptest::collection::vec(-20.0f32..20.0, 1..60),
        temperature in 0.05f32..2.0, top_p in 0.01f32..1.0, seed: u64,
    ) {
        let mut sampler = Sampler::new(Sampling { temperature, top_p, seed: Some(seed), ..Sampling::default() }, &[]);
        let token = sampler.draw(&mut logits.clone()).unwrap();
        let likelier: f32 = {
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let weights: Vec<f32> = logits.iter().map(|l| ((l - max) / temperature).exp()).collect();
            let own = weights[token as usize];
            weights.iter().filter(|w| **w > own).sum::<f32>() / weights.iter().sum::<f32>()
        };
        prop_assert!(likelier < top_p + 1e-4);
    }

    #[test]
    fn no_token_is_drawn_that_was_made_impossible(
        logits in proptest::collection::vec(prop_oneof![Just(f32::NEG_INFINITY), -20.0f32..20.0], 1..60),
        temperature in 0.05f32..2.0, top_k in 0u32..9, top_p in 0.0f32..=1.0, min_p in 0.0f32..=1.0, seed: u64,
    ) {
        let sampling = Sampling { temperature, top_k, top_p, min_p, seed: Some(seed), ..Sampling::default() };
        let drawn = Sampler::new(sampling, &[]).draw(&mut logits.clone());
        let possible = logits.iter().any(|logit| *logit > f32::NEG_INFINITY);
        prop_assert_eq!(drawn.is_ok(), possible);
        prop_assert!(drawn.ok().is_none_or(|token| logits[token as usize] > f32::NEG_INFINITY));
    }

    #[test]
    fn never_more_candidates_than_top_k_and_never_none(
        logits in proptest::collection::vec(-20.0f32..20.0, 1..60),
        top_k in 1u32..9, top_p in 0.0f32..=1.0, min_p in 0.0f32..=1.0,
    ) {
        let found = kept(&logits, Sampling { top_k, top_p, min_p, ..Sampling::default() });
        prop_assert!((1..=top_k as usize).contains(&found.len()));
        let likeliest = greatest(&logits).unwrap();
        prop_assert!(found.contains(&likeliest));
    }
}
