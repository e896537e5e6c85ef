//! Measures the engine on the real model: `cargo bench -p postern-engine --bench speed`. Fetches the model if it must.
#![allow(clippy::print_stdout, reason = "its output is the result")]

use std::time::{Duration, Instant};

use postern_engine::{Engine, EngineError, EngineOptions, Generation, GenerationEvent, Origin, Sampling, catalog};
use tokio::sync::mpsc::Receiver;

/// Rounds; the median counts.
const ROUNDS: usize = 3;
const PROMPT_TOKENS: u32 = 256;
const ANSWER_TOKENS: usize = 32;

fn main() -> Result<(), EngineError> {
    let begun = Instant::now();
    let path = catalog::pull("smollm2-135m-instruct", &mut |_| {})?;
    println!("model at hand: {:.1} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let options = EngineOptions::new(path, "smollm2-135m-instruct");
    let engine = Engine::load(&options, &mut |_| {})?;
    println!("load and warm-up: {:.2} s", begun.elapsed().as_secs_f64());
    println!("resident memory: {} MB", resident_megabytes());
    let prefill = median(|| {
        let answer = submit(&engine, PROMPT_TOKENS, 1)?;
        Ok(f64::from(PROMPT_TOKENS) / took(vec![answer]).as_secs_f64())
    })?;
    println!("prompt of {PROMPT_TOKENS} tokens: {prefill:.1} tokens/s");
    for streams in [1, 8, 32] {
        let decode = median(|| {
            let answers = (0..streams).map(|_| submit(&engine, 8, ANSWER_TOKENS)).collect::<Result<_, _>>()?;
            Ok((streams * ANSWER_TOKENS) as f64 / took(answers).as_secs_f64())
        })?;
        println!("answers of {ANSWER_TOKENS} tokens, {streams} at a time: {decode:.1} tokens/s");
    }
    println!("resident memory: {} MB", resident_megabytes());
    Ok(())
}

fn submit(engine: &Engine, prompt_tokens: u32, answer_tokens: usize) -> Result<Receiver<GenerationEvent>, EngineError> {
    let prompt = (0..prompt_tokens).map(|at| 100 + at * 7919 % 40_000).collect();
    // Nothing is likely to be an end token at this temperature, so that all answers are of one length.
    let sampling = Sampling { temperature: 2.0, seed: Some(1), ..Sampling::default() };
    engine.submit(Generation {
        prompt,
        max_new_tokens: answer_tokens,
        stop: Vec::new(),
        sampling,
        origin: Origin::default(),
    })
}

fn took(answers: Vec<Receiver<GenerationEvent>>) -> Duration {
    let begun = Instant::now();
    for mut answer in answers {
        while answer.blocking_recv().is_some() {}
    }
    begun.elapsed()
}

fn median(mut round: impl FnMut() -> Result<f64, EngineError>) -> Result<f64, EngineError> {
    let mut rounds = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<_>, _>>()?;
    rounds.sort_by(f64::total_cmp);
    Ok(rounds.get(ROUNDS / 2).copied().unwrap_or_default())
}

fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() / 1024
}
