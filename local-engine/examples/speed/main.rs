//! How fast the engine is on this machine, and what memory it takes: with everything that the server does, HTTP where texts are
//! needed. Prints one JSON object.
//!
//! ```text
//! target/release/examples/speed --model FILE [--what streams,memory,quote,pace,grammar,prefix] [--threads N] [--rounds N] [--gpu]
//! ```
//! | part | what |
//! | --- | --- |
//! | `streams` | a prompt of 512 tokens; answers of 64 tokens to prompts of 8, at 1, 8 and 32 at a time, from asking to the end |
//! | `memory` | after loading, and the most while 32 are answered |
//! | `quote` | an answer that repeats its prompt, with and without guesses; the best of the rounds |
//! | `pace` | between two tokens of eight answers, alone, and while a prompt of 4,000 tokens is read |
//! | `grammar` | an answer under a JSON schema, and without one |
//! | `prefix` | to the first token of a prompt of 512, and of the same one again |
//!
//! Prompts that are counted are made of numbers, so the model must have 40,100 tokens or more.
#![allow(clippy::print_stdout, reason = "its output is the result")]
#![allow(clippy::indexing_slicing, reason = "only JSON objects are indexed, by name: what is not there is null")]

mod chat;
mod memory;
mod pace;

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use postern_engine::{
    DeviceChoice, Engine, EngineOptions, Generation, GenerationEvent, Origin, Priority, Sampling, Usage,
    thread_environment,
};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use memory::Memory;

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

const PARTS: &str = "streams,memory,quote,pace,grammar,prefix";
const PROMPT_TOKENS: usize = 512;
const SHORT_PROMPT_TOKENS: usize = 8;
const ANSWER_TOKENS: usize = 64;
const STREAMS: [usize; 3] = [1, 8, 32];
/// Set by this program for itself: see [`threads_set`].
const STARTED_ANEW: &str = "POSTERN_SPEED_STARTED";

struct Arguments {
    model: PathBuf,
    parts: Vec<String>,
    threads: Option<usize>,
    rounds: usize,
    device: DeviceChoice,
}

impl Arguments {
    fn read() -> Done<Self> {
        let mut read = Self {
            model: PathBuf::new(),
            parts: PARTS.split(',').map(str::to_owned).collect(),
            threads: None,
            rounds: 3,
            device: DeviceChoice::Cpu,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--model" => read.model = PathBuf::from(value()?),
                "--what" => read.parts = value()?.split(',').map(str::to_owned).collect(),
                "--threads" => read.threads = Some(value()?.parse()?),
                "--rounds" => read.rounds = value()?.parse::<usize>()?.max(1),
                "--gpu" => read.device = DeviceChoice::Auto,
                _ => return Err(format!("{name} is not an option; the first lines of main.rs have them all").into()),
            }
        }
        if read.model.as_os_str().is_empty() {
            return Err("--model FILE says what is measured".into());
        }
        if let Some(unknown) = read.parts.iter().find(|part| !PARTS.split(',').any(|known| known == *part)) {
            return Err(format!("there is no part `{unknown}`; there are {PARTS}").into());
        }
        Ok(read)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }

    fn options(&self) -> EngineOptions {
        let options = EngineOptions::new(self.model.clone(), chat::MODEL);
        EngineOptions { device: self.device, threads: self.threads, ..options }
    }
}

fn main() -> Done {
    let arguments = Arguments::read()?;
    threads_set(&arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    println!("{}", runtime.block_on(measured(&arguments))?);
    Ok(())
}

/// Starts this program anew, once, with the environment that the server gives its engine: see [`thread_environment`].
fn threads_set(arguments: &Arguments) -> Done {
    if std::env::var_os(STARTED_ANEW).is_some() {
        return Ok(());
    }
    let mut anew = Command::new(std::env::current_exe()?);
    anew.args(std::env::args_os().skip(1)).envs(thread_environment(arguments.threads)).env(STARTED_ANEW, "1");
    Err(anew.exec().into())
}

async fn measured(arguments: &Arguments) -> Done<Value> {
    let begun = Instant::now();
    let engine = std::sync::Arc::new(Engine::load(&arguments.options(), &mut |_| {})?);
    let mut result = json!({
        "model": arguments.model.file_name().unwrap_or_default().to_string_lossy(),
        "file_mb": megabytes(std::fs::metadata(&arguments.model)?.len()),
        "threads": std::env::var("CANDLE_NUM_THREADS").unwrap_or_default(),
        "load_seconds": rounded(begun.elapsed().as_secs_f64()),
    });
    let idle = Memory::now()?;
    if arguments.wants("streams") {
        // The first time pays for memory that is touched first.
        rate(&engine, 1, PROMPT_TOKENS, 1, 0).await?;
        let prompt = median_of(arguments.rounds, async |round| {
            rate(&engine, 1, PROMPT_TOKENS, 1, round).await.map(|rates| rates.0)
        });
        result["prompt_512"] = rounded(prompt.await?);
        for streams in STREAMS {
            let answers = median_of(arguments.rounds, async |round| {
                rate(&engine, streams, SHORT_PROMPT_TOKENS, ANSWER_TOKENS, round).await.map(|rates| rates.1)
            });
            result[format!("streams_{streams}")] = rounded(answers.await?);
        }
    }
    if arguments.wants("memory") {
        let answers = rate(&engine, 32, SHORT_PROMPT_TOKENS, ANSWER_TOKENS, 99);
        result["memory"] = json!({"idle": idle, "streams_32": memory::most_while(answers).await?});
    }
    if arguments.wants("pace") {
        result["pace"] = pace::measured(&engine).await?;
    }
    if arguments.wants("prefix") {
        result["prefix"] = prefix(&engine, arguments.rounds).await?;
    }
    if arguments.wants("quote") || arguments.wants("grammar") {
        let plain = EngineOptions { speculation: false, ..arguments.options() };
        let plain = chat::Server::start(std::sync::Arc::new(Engine::load(&plain, &mut |_| {})?)).await?;
        if arguments.wants("quote") {
            let guessing = chat::Server::start(engine).await?;
            result["quote"] = chat::quote(&guessing, &plain, arguments.rounds).await?;
        }
        if arguments.wants("grammar") {
            result["grammar"] = chat::grammar(&plain, arguments.rounds).await?;
        }
    }
    Ok(result)
}

/// Tokens of prompts, and of answers, a second.
async fn rate(
    engine: &Engine,
    streams: usize,
    prompt_tokens: usize,
    answer_tokens: usize,
    round: usize,
) -> Done<(f64, f64)> {
    let begun = Instant::now();
    let answer = |at| submit(engine, prompt(prompt_tokens, round * 100 + at), answer_tokens, Origin::default());
    let answers = (0..streams).map(answer).collect::<Done<Vec<_>>>()?;
    let ended = try_join_all(answers.into_iter().map(ended)).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let tokens = |of: fn(&Usage) -> usize| ended.iter().map(of).sum::<usize>() as f64;
    Ok((tokens(|usage| usage.prompt_tokens) / seconds, tokens(|usage| usage.completion_tokens) / seconds))
}

/// Times to the first token of a prompt that nobody asked before, and of the same one again.
async fn prefix(engine: &Engine, rounds: usize) -> Done<Value> {
    let (mut first, mut again, mut cached) = (Vec::new(), Vec::new(), 0);
    for round in 0..rounds {
        for times in [&mut first, &mut again] {
            let begun = Instant::now();
            let origin = Origin::new("somebody", "measurers", "internal", Priority::Interactive);
            let mut answer = submit(engine, prompt(PROMPT_TOKENS, 7000 + round), 1, origin)?;
            begin(&mut answer).await?;
            times.push(begun.elapsed().as_secs_f64());
            cached = ended(answer).await?.cached_tokens;
        }
    }
    let (first, again) = (median(first), median(again));
    Ok(json!({
        "prompt_tokens": PROMPT_TOKENS, "cached_tokens": cached, "first_token_ms": rounded(1000.0 * first),
        "again_ms": rounded(1000.0 * again), "times_faster": rounded(first / again),
    }))
}

/// Tokens that no text has in this order, others for each `seed`.
fn prompt(tokens: usize, seed: usize) -> Vec<u32> {
    (0..tokens).map(|at| 100 + ((at * 7919 + seed * 104_729) % 40_000) as u32).collect()
}

fn submit(engine: &Engine, prompt: Vec<u32>, max_new_tokens: usize, origin: Origin) -> Done<Receiver<GenerationEvent>> {
    submit_as(engine, prompt, max_new_tokens, origin, Sampling::default())
}

/// With all that is not said here as in `sampling`.
fn submit_as(
    engine: &Engine,
    prompt: Vec<u32>,
    max_new_tokens: usize,
    origin: Origin,
    sampling: Sampling,
) -> Done<Receiver<GenerationEvent>> {
    let seed = prompt.first().copied().map(u64::from);
    // So hot that nothing repeats itself, which guesses would find; and no end of the answer before its length: most models'
    // end tokens are among the first three.
    let logit_bias = (0..3).map(|token| (token, -100.0)).collect();
    let sampling = Sampling { temperature: 2.0, seed, logit_bias, ..sampling };
    Ok(engine.submit(Generation { prompt, max_new_tokens, stop: Vec::new(), sampling, origin })?)
}

/// Waits for the first token.
async fn begin(answer: &mut Receiver<GenerationEvent>) -> Done {
    match answer.recv().await {
        Some(GenerationEvent::Started) => Ok(()),
        other => Err(format!("an answer began with {other:?}").into()),
    }
}

async fn ended(mut answer: Receiver<GenerationEvent>) -> Done<Usage> {
    while let Some(event) = answer.recv().await {
        match event {
            GenerationEvent::Finished { usage, .. } => return Ok(usage),
            GenerationEvent::Failed | GenerationEvent::Unspellable { .. } => {
                return Err("the computation failed".into());
            }
            _ => {}
        }
    }
    Err("the engine stopped".into())
}

async fn median_of(rounds: usize, mut round: impl AsyncFnMut(usize) -> Done<f64>) -> Done<f64> {
    let mut values = Vec::new();
    for at in 0..rounds {
        values.push(round(at + 1).await?);
    }
    Ok(median(values))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn rounded(number: f64) -> Value {
    json!((number * 100.0).round() / 100.0)
}

fn milliseconds(time: Duration) -> Value {
    rounded(1000.0 * time.as_secs_f64())
}

fn megabytes(bytes: u64) -> Value {
    rounded(bytes as f64 / 1e6)
}
