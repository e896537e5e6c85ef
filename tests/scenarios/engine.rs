//! The engine as a server: many streams, a long prompt beside them, other models, and kills, through the gateway.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use postern_tests::{Client, Config, Postern};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Words of which prompts of any length are made.
const WORDS: [&str; 8] = ["river", "stone", "paper", "winter", "garden", "engine", "letter", "bridge"];

/// An engine, and patience: how fast it is where other scenarios run beside it is not what these are about.
fn config() -> Config {
    let patience = json!({"first_token": "8m", "idle": "8m", "total": "10m"});
    Config::new().engine().set("/timeouts", patience)
}

async fn started() -> Result<Postern> {
    let postern = Postern::start(&config()).await?;
    postern.engine_ready().await?;
    Ok(postern)
}

fn words(count: usize, seed: usize) -> String {
    (0..count).map(|at| WORDS[(at * at + seed * 3 + at / 7) % WORDS.len()]).collect::<Vec<_>>().join(" ")
}

/// Mixed lengths; half of them greedy, half seeded.
fn request(number: usize) -> Value {
    json!({
        "model": "chat",
        "messages": [{"role": "user", "content": format!("Tell me about: {}", words(1 + number * 3 % 60, number))}],
        "max_tokens": 8 + number % 5 * 4,
        "temperature": if number.is_multiple_of(2) { 0.0 } else { 1.0 },
        "seed": number,
    })
}

/// The text of a stream that ended as it should.
async fn answer(client: &Client, body: &Value) -> Result<String> {
    let mut stream = client.stream(body).await?;
    ensure!(stream.status == 200, "status {}", stream.status);
    let events = stream.rest().await?;
    ensure!(events.last().is_some_and(|event| event.is_done()), "no end: {events:?}");
    Ok(postern_tests::client::text(&events))
}

#[tokio::test]
async fn many_streams_at_once_say_what_each_says_alone() -> Result<()> {
    let postern = started().await?;
    let clients: Vec<Client> =
        ["clerk/amy", "clerk/bo", "officer/cy"].iter().map(|id| postern.client(id)).collect::<Result<_>>()?;
    let mut alone = Vec::new();
    for number in 0..32 {
        alone.push(answer(&clients[number % 3], &request(number)).await?);
    }
    let together = join_all((0..32).map(|number| {
        let client = clients[number % 3].clone();
        async move { answer(&client, &request(number)).await }
    }));
    for (number, (together, alone)) in together.await.into_iter().zip(&alone).enumerate() {
        assert_eq!(&together?, alone, "request {number}");
    }
    assert!(alone.iter().collect::<std::collections::HashSet<_>>().len() > 16, "{alone:?}");
    // How wrong the predicted time to the first token was is told of every one of them.
    let metrics = postern.metrics().await?;
    let wrong = |of: &str| metrics.value(&format!("postern_engine_prediction_error_seconds_{of}"), &[]);
    assert_eq!(wrong("count"), Some(64.0));
    eprintln!("predicted wrongly by {:.0} ms on the average", 1000.0 * wrong("sum").unwrap_or_default() / 64.0);
    Ok(())
}

#[tokio::test]
async fn streams_that_do_not_fit_into_memory_together_give_way_and_say_the_same() -> Result<()> {
    let roomy = started().await?;
    // Room for 45 blocks of sixteen tokens.
    let postern = Postern::start(&config().set("/engine/kv_memory", json!("16MiB"))).await?;
    postern.engine_ready().await?;
    let answers = async |postern: &Postern| {
        let client = postern.client("clerk/amy")?;
        let asked = join_all((0..16).map(|number| {
            let client = client.clone();
            // Long enough that what fits at the beginning does not fit to the end.
            let mut body = request(number);
            body["max_tokens"] = json!(192);
            async move { answer(&client, &body).await }
        }));
        asked.await.into_iter().collect::<Result<Vec<_>>>()
    };
    assert_eq!(answers(&postern).await?, answers(&roomy).await?);
    let preemptions = async |postern: &Postern| {
        let metrics = postern.metrics().await?;
        anyhow::Ok(metrics.value("postern_engine_preemptions_total", &[]))
    };
    let seen = preemptions(&postern).await?;
    assert!(seen > Some(0.0), "{seen:?}");
    assert_eq!(preemptions(&roomy).await?, Some(0.0));
    let metrics = postern.metrics().await?;
    let blocks = |name: &str| metrics.value(name, &[]);
    let (used, max) = (blocks("postern_engine_kv_blocks_used"), blocks("postern_engine_kv_blocks_max"));
    assert!(used <= max && max < Some(50.0), "{used:?} {max:?}");
    Ok(())
}

#[tokio::test]
async fn a_long_prompt_does_not_stall_those_who_are_being_answered() -> Result<()> {
    let postern = started().await?;
    let client = postern.client("clerk/amy")?;
    let long = if std::env::var_os("POSTERN_TEST_ALL").is_some() { 3900 } else { 600 };
    let quiet = p50(stories(&client, &CancellationToken::new()).await?);
    let answered = CancellationToken::new();
    let body = json!({
        "model": "chat", "max_tokens": 1, "messages": [{"role": "user", "content": words(long, 0)}],
    });
    let asking = async {
        let reply = client.post_json("/v1/chat/completions", &body).await;
        answered.cancel();
        reply
    };
    let beside = async {
        let mut gaps = Vec::new();
        while !answered.is_cancelled() {
            gaps.extend(stories(&client, &answered).await?);
        }
        anyhow::Ok(gaps)
    };
    let (busy, reply) = tokio::join!(beside, asking);
    let (busy, reply) = (busy?, reply?);
    assert!(reply.json()?["usage"]["prompt_tokens"].as_u64() >= Some(long as u64), "{}", reply.text());
    // In one piece it would let nobody else have a token; what a step takes beside it, `make bench` measures.
    assert!(busy.len() >= 32, "nobody was answered while the prompt was read: {busy:?}");
    eprintln!("between two tokens: {quiet:?} without the long prompt, {:?} with it (p50)", p50(busy));
    Ok(())
}

/// Eight streams at once; the times between two pieces of text of each, as long as nobody says that it is enough.
async fn stories(client: &Client, enough: &CancellationToken) -> Result<Vec<Duration>> {
    let story = async |number: usize| {
        let body = json!({
            "model": "chat", "max_tokens": 60, "temperature": 2.0, "seed": number,
            "messages": [{"role": "user", "content": "Write a long story."}],
        });
        let mut stream = client.stream(&body).await?;
        let (mut gaps, mut last) = (Vec::new(), None);
        while let Some(event) = stream.next().await? {
            if !event.delta().is_empty()
                && let Some(last) = last.replace(Instant::now())
                && !enough.is_cancelled()
            {
                gaps.push(last.elapsed());
            }
        }
        anyhow::Ok(gaps)
    };
    Ok(join_all((0..8).map(story)).await.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

fn p50(mut gaps: Vec<Duration>) -> Duration {
    gaps.sort();
    gaps.get(gaps.len() / 2).copied().unwrap_or_default()
}

#[tokio::test]
async fn a_beginning_is_used_again_within_a_tenant_and_a_label_only() -> Result<()> {
    let postern = started().await?;
    let body = json!({
        "model": "chat", "max_tokens": 1, "temperature": 0,
        "messages": [{"role": "system", "content": words(300, 5)}, {"role": "user", "content": "Which word is first?"}],
    });
    let ask = async |client: &Client| {
        let begun = Instant::now();
        let reply = client.post_json("/v1/chat/completions", &body).await?;
        ensure!(reply.status == 200, "{}", reply.text());
        let cached = reply.json()?["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        Ok((cached.unwrap_or(0), begun.elapsed(), reply.answer()))
    };
    let (amy, bo, cy) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?, postern.client("officer/cy")?);
    let (cached, first, said) = ask(&amy).await?;
    assert_eq!(cached, 0);
    let (cached, again, said_again) = ask(&bo).await?;
    eprintln!("to the first token: {first:?}, with the beginning at hand {again:?}");
    assert!(cached > 250 && said_again == said, "{cached}");
    assert_eq!(ask(&cy).await?.0, 0, "another tenant");
    assert_eq!(ask(&amy.with_header("postern-label", "classified")).await?.0, 0, "another label");
    Ok(())
}

/// Keeps asking until told to end; how many were answered, and the proper errors.
/// Counts answers in `all` as well, as they come.
async fn load(client: Client, ending: CancellationToken, all: Arc<AtomicUsize>) -> Result<(usize, Vec<String>)> {
    let (mut answered, mut errors) = (0, Vec::new());
    for number in 0.. {
        if ending.is_cancelled() {
            break;
        }
        let mut body = request(number);
        body["max_tokens"] = json!(8);
        let mut stream = client.stream(&body).await?;
        if stream.status != 200 {
            let reply = stream.whole().await?;
            let may_come_again = reply.status != 503 || !reply.header("retry-after").is_empty();
            ensure!(!reply.error_code().is_empty() && may_come_again, "{}", reply.text());
            errors.push(reply.error_code());
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let events = stream.rest().await?;
        let last = events.last().expect("a stream has events");
        if last.is_done() {
            answered += 1;
            all.fetch_add(1, Ordering::Relaxed);
        } else {
            ensure!(!last.error_code().is_empty(), "a stream without an end or an error: {events:?}");
            errors.push(last.error_code());
        }
    }
    Ok((answered, errors))
}

#[tokio::test]
async fn another_model_takes_over_under_load_and_nobody_loses_an_answer() -> Result<()> {
    let postern = started().await?;
    let folder = postern.folder("models")?;
    let known = postern_engine::catalog::locate("smollm2-135m-instruct")?;
    let (one, two) = (folder.join("one.gguf"), folder.join("two.gguf"));
    for copy in [&one, &two] {
        std::os::unix::fs::symlink(&known, copy)?;
    }
    let ending = CancellationToken::new();
    let load = |at| Ok(tokio::spawn(load(postern.client(&format!("clerk/{at}"))?, ending.clone(), Arc::default())));
    let users = (0..3).map(load);
    let users = users.collect::<Result<Vec<_>>>()?;
    let swaps = if std::env::var_os("POSTERN_TEST_ALL").is_some() { 20 } else { 2 };
    // Engines that still finish are waited for.
    let exchange = async |model: &Path| loop {
        let reply = postern.admin_post_json("/api/engine/model", &json!({"model": model})).await?;
        if !reply.text().contains("still finish") {
            break anyhow::Ok(reply);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    for swap in 0..swaps {
        let model = if swap % 2 == 0 { &one } else { &two };
        let reply = exchange(model).await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.json()?["model"].as_str(), model.file_stem().and_then(|stem| stem.to_str()));
    }
    // Its template goes by a name that nobody looks for: it could be loaded, and would answer no chat.
    let bare = folder.join("bare.gguf");
    let mut bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../local-engine/tests/oracles/llama.gguf"))?;
    let key = b"tokenizer.chat_template";
    let at = bytes.windows(key.len()).position(|bytes| bytes == key).context("a template")?;
    bytes[at] = b'T';
    std::fs::write(&bare, bytes)?;
    // What this one lacks is seen when its tokenizer is built, which is left to the engine.
    let failing = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../local-engine/tests/oracles/llama.gguf"));
    for (model, why) in [
        (Path::new("no-such-model"), "neither a file nor a known model"),
        (bare.as_path(), "no chat template"),
        (failing, "it has no merges"),
    ] {
        let refused = exchange(model).await?;
        assert!(refused.status == 422 && refused.text().contains(why), "{}", refused.text());
    }
    ending.cancel();
    for user in users {
        let (answered, errors) = user.await??;
        assert!(answered > 0 && errors.is_empty(), "{answered} answers, {errors:?}");
    }
    Ok(())
}

/// The pattern compiles, and needs more work in the middle of an answer than one may cost: the request's fault, not the engine's.
#[tokio::test]
async fn a_schema_that_an_answer_cannot_be_held_to_is_told_in_the_engines_words() -> Result<()> {
    let postern = started().await?;
    let client = postern.client("clerk/amy")?;
    let schema = json!({"type": "string", "pattern": "^.*a.{200}b$"});
    let mut body = json!({
        "model": "chat", "max_tokens": 300, "temperature": 0, "messages": [{"role": "user", "content": "Spell something."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    });
    let reply = client.post_json("/v1/chat/completions", &body).await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (400, "unsupported_parameter"), "{}", reply.text());
    assert!(reply.text().contains("ask for something simpler"), "{}", reply.text());
    body["stream"] = json!(true);
    let mut stream = client.stream(&body).await?;
    assert_eq!(stream.status, 200);
    let events = stream.rest().await?;
    let last = events.last().context("no event")?;
    assert!(last.error_code() == "unsupported_parameter" && events.len() > 2, "{events:?}");
    let short = json!({"model": "chat", "max_tokens": 5, "messages": [{"role": "user", "content": "And now?"}]});
    assert_eq!(client.post_json("/v1/chat/completions", &short).await?.status, 200, "it goes on serving");
    Ok(())
}

#[tokio::test]
async fn a_killed_engine_loses_no_request_without_a_word() -> Result<()> {
    let postern = started().await?;
    let ending = CancellationToken::new();
    let all = Arc::new(AtomicUsize::new(0));
    let load = |at| Ok(tokio::spawn(load(postern.client(&format!("clerk/{at}"))?, ending.clone(), all.clone())));
    let users = (0..32).map(load);
    let users = users.collect::<Result<Vec<_>>>()?;
    let kills = if std::env::var_os("POSTERN_TEST_ALL").is_some() { 20 } else { 2 };
    for _ in 0..kills {
        // In the middle of its work: some were answered, and all the others wait for theirs.
        let (before, deadline) = (all.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(60));
        while all.load(Ordering::Relaxed) == before && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let killed = Instant::now();
        postern.signal_child("engine", Signal::KILL)?;
        postern.engine_lost().await?;
        postern.engine_ready().await?;
        eprintln!("the engine is back after {:?}", killed.elapsed());
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    ending.cancel();
    let (mut all_answered, mut lost) = (0, 0);
    // On a machine that is busy with other things, an answer may also take too long.
    let proper = ["stream_broken", "engine_starting", "upstream_unavailable", "deadline_exceeded"];
    for user in users {
        let (answered, errors) = user.await??;
        assert!(errors.iter().all(|code| proper.contains(&code.as_str())), "{errors:?}");
        all_answered += answered;
        lost += errors.len();
    }
    eprintln!("{all_answered} answers and {lost} errors");
    assert!(all_answered > 0 && lost > 0, "{all_answered} answers, {lost} errors");
    Ok(())
}
