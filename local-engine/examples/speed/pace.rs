//! How evenly tokens come, alone and while a long prompt is read.

use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use postern_engine::{Engine, GenerationEvent, Origin, Sampling};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{Done, SHORT_PROMPT_TOKENS, begin, milliseconds, prompt, rounded, submit, submit_as};

const STREAMS: usize = 8;
const LONG_PROMPT_TOKENS: usize = 4000;
/// Until all go at their pace.
const SETTLE: Duration = Duration::from_secs(1);
const ALONE: Duration = Duration::from_secs(10);
/// Answers follow each other, so that none has much more before it at the end of the measurement than at its beginning: by that
/// alone its tokens would come later.
const ANSWER_TOKENS: usize = 100;

pub(crate) async fn measured(engine: &Engine) -> Done<Value> {
    let enough = CancellationToken::new();
    let streams = join_all((0..STREAMS).map(|stream| answers(engine, stream, &enough)));
    let measuring = async {
        tokio::time::sleep(SETTLE).await;
        let begun = Instant::now();
        tokio::time::sleep(ALONE).await;
        let alone = begun..Instant::now();
        let begun = Instant::now();
        // On behalf of nobody, so nothing of it was kept before.
        let mut long = submit(engine, prompt(LONG_PROMPT_TOKENS, 9000), 1, Origin::default())?;
        begin(&mut long).await?;
        enough.cancel();
        Done::<_>::Ok((alone, begun..Instant::now()))
    };
    let (streams, measured) = tokio::join!(streams, measuring);
    let (alone, beside) = measured?;
    let all = streams.into_iter().collect::<Done<Vec<_>>>()?.concat();
    let took = beside.end - beside.start;
    Ok(json!({
        "streams": STREAMS, "prompt_tokens": LONG_PROMPT_TOKENS, "alone": percentiles(gaps(&all, &alone)),
        "beside_prompt": percentiles(gaps(&all, &beside)), "prompt_seconds": rounded(took.as_secs_f64()),
    }))
}

/// One answer after the other until it is enough; of each, when its tokens came.
async fn answers(engine: &Engine, stream: usize, enough: &CancellationToken) -> Done<Vec<Vec<Instant>>> {
    let mut all = Vec::new();
    for number in 0.. {
        if enough.is_cancelled() {
            break;
        }
        // With probabilities each token is told by itself, also one that ends within a character.
        let scored = Sampling { logprobs: Some(0), ..Sampling::default() };
        let prompt = prompt(SHORT_PROMPT_TOKENS, 8000 + 100 * number + stream);
        // The first ones are of different lengths, so that they do not all end at the same time.
        let tokens = if number == 0 { ANSWER_TOKENS * (stream + 1) / STREAMS } else { ANSWER_TOKENS };
        let mut answer = submit_as(engine, prompt, tokens, Origin::default(), scored)?;
        let mut times = Vec::new();
        while let Some(Some(event)) = enough.run_until_cancelled(answer.recv()).await {
            if let GenerationEvent::Scored { .. } = event {
                times.push(Instant::now());
            }
        }
        all.push(times);
    }
    Ok(all)
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
