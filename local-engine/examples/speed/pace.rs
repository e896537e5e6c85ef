//! How evenly tokens come, alone and while a long prompt is read.

use std::ops::Range;
use std::time::{Duration, Instant};

use postern_engine::{Engine, GenerationEvent, Origin, Sampling};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use crate::{Done, SHORT_PROMPT_TOKENS, begin, milliseconds, prompt, rounded, submit, submit_as};

const STREAMS: usize = 8;
const LONG_PROMPT_TOKENS: usize = 4000;
/// Until all go at their pace.
const SETTLE: Duration = Duration::from_secs(1);
const ALONE: Duration = Duration::from_secs(5);
/// Longer than the measurement takes.
const ANSWER_TOKENS: usize = 1 << 20;

pub(crate) async fn measured(engine: &Engine) -> Done<Value> {
    let enough = CancellationToken::new();
    let mut answers = Vec::new();
    for at in 0..STREAMS {
        // With probabilities each token is told by itself, also one that ends within a character.
        let scored = Sampling { logprobs: Some(0), ..Sampling::default() };
        let prompt = prompt(SHORT_PROMPT_TOKENS, 8000 + at);
        let answer = submit_as(engine, prompt, ANSWER_TOKENS, Origin::default(), scored)?;
        answers.push(answer);
    }
    let mut streams = Vec::new();
    for mut answer in answers {
        begin(&mut answer).await?;
        streams.push(tokio::spawn(times(answer, enough.clone())));
    }
    tokio::time::sleep(SETTLE).await;
    let begun = Instant::now();
    tokio::time::sleep(ALONE).await;
    let alone = begun..Instant::now();
    let begun = Instant::now();
    // On behalf of nobody, so nothing of it was kept before.
    let mut long = submit(engine, prompt(LONG_PROMPT_TOKENS, 9000), 1, Origin::default())?;
    begin(&mut long).await?;
    let beside = begun..Instant::now();
    enough.cancel();
    let mut all = Vec::new();
    for stream in streams {
        let ended = "an answer ended while the long prompt was read, so what was measured means nothing";
        all.push(stream.await?.ok_or(ended)?);
    }
    let took = beside.end - beside.start;
    Ok(json!({
        "streams": STREAMS, "prompt_tokens": LONG_PROMPT_TOKENS, "alone": percentiles(gaps(&all, &alone)),
        "beside_prompt": percentiles(gaps(&all, &beside)), "prompt_seconds": rounded(took.as_secs_f64()),
    }))
}

/// When each token came; `None` if the answer ended before it was enough.
async fn times(mut answer: Receiver<GenerationEvent>, enough: CancellationToken) -> Option<Vec<Instant>> {
    let mut times = Vec::new();
    while let Some(Some(event)) = enough.run_until_cancelled(answer.recv()).await {
        if let GenerationEvent::Scored { .. } = event {
            times.push(Instant::now());
        }
    }
    enough.is_cancelled().then_some(times)
}

/// Between two tokens of the same answer that both came within `when`.
fn gaps(all: &[Vec<Instant>], when: &Range<Instant>) -> Vec<Duration> {
    let within =
        |times: &Vec<Instant>| -> Vec<Instant> { times.iter().copied().filter(|time| when.contains(time)).collect() };
    let gaps = |times: Vec<Instant>| times.array_windows().map(|[a, b]| *b - *a).collect::<Vec<_>>();
    all.iter().flat_map(|times| gaps(within(times))).collect()
}

fn percentiles(mut gaps: Vec<Duration>) -> Value {
    gaps.sort();
    let at = |percent: usize| gaps.get((gaps.len() * percent / 100).min(gaps.len().saturating_sub(1)));
    let ms = |percent| at(percent).map_or(Value::Null, |gap| milliseconds(*gap));
    json!({"gaps": gaps.len(), "p50_ms": ms(50), "p95_ms": ms(95), "p99_ms": ms(99)})
}
