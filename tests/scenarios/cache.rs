//! An answer is given again only to the same tenant, for the same request, under the same label.

use anyhow::Result;
use postern_tests::client::text;
use postern_tests::{BusyCloud, Client, Postern, chat_body};
use serde_json::{Value, json};

use crate::{SOON, config};

async fn ask(client: &Client, body: &Value) -> Result<String> {
    let reply = client.post_json("/v1/chat/completions", body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    Ok(reply.header("postern-cache").to_owned())
}

#[tokio::test]
async fn a_repeated_prompt_comes_from_the_cache_for_the_same_tenant_only() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let (amy, bo, guest) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?, postern.client("guest/x")?);
    let body = chat_body("What is our address?");
    assert_eq!(ask(&amy, &body).await?, "miss");
    assert_eq!(ask(&amy, &body).await?, "exact");
    assert_eq!(ask(&bo, &body).await?, "exact", "the same tenant");
    assert_eq!(ask(&guest, &body).await?, "miss", "another tenant");
    assert_eq!(ask(&amy.with_header("postern-label", "internal"), &body).await?, "miss", "another label");
    assert_eq!(cloud.stats().await?.requests, 3);
    let reply = amy.post_json("/v1/chat/completions", &body).await?;
    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert_eq!((&record.outcome["cache"], record.outcome["attempts"].as_array().unwrap().len()), (&json!("exact"), 0));
    Ok(())
}

#[tokio::test]
async fn what_a_file_has_is_asked_at_the_start() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("warm.jsonl");
    let line = |who: &str, question: &str| {
        let mut body = chat_body(question);
        if question.contains("stream") {
            body["stream"] = json!(true);
        }
        json!({"as": format!("spiffe://branch.test/{who}"), "body": body}).to_string()
    };
    let lines =
        [line("clerk/warm", "Canary 1"), line("clerk/warm", "Canary 2, as a stream"), line("nobody/x", "Canary 3")];
    std::fs::write(&file, lines.join("\n"))?;
    let warmed = config(&cloud).set("/cache/warm", json!(file));
    let postern = Postern::start(&warmed).await?;
    postern.logged("no rule of `identities` matches").await?;
    std::fs::write(&file, lines[..2].join("\n"))?;
    let postern = Postern::start(&warmed).await?;
    postern.logged("the cache was warmed").await?;
    let (clerk, guest) = (postern.client("clerk/amy")?, postern.client("guest/x")?);
    assert_eq!(ask(&clerk, &chat_body("Canary 1")).await?, "exact");
    assert_eq!(ask(&guest, &chat_body("Canary 1")).await?, "miss", "another tenant");
    let mut streamed = chat_body("Canary 2, as a stream");
    streamed["stream"] = json!(true);
    assert_eq!(clerk.stream(&streamed).await?.header("postern-cache"), "exact");
    let records = postern.records().all()?;
    let warm = |record: &&postern_tests::Record| record.intent["identity"] == "spiffe://branch.test/clerk/warm";
    assert_eq!(records.iter().filter(warm).count(), 2, "it is recorded like anybody's");
    assert!(!postern.log().contains("Canary"));
    // A file that is wrong keeps nobody from working.
    std::fs::write(&file, "{\"messages\": []}")?;
    let postern = Postern::start(&warmed).await?;
    postern.logged("it does not say whose answer it is").await?;
    assert_eq!(ask(&postern.client("clerk/amy")?, &chat_body("Hello")).await?, "miss");
    Ok(())
}

#[tokio::test]
async fn every_parameter_counts() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let plain = chat_body("Say something");
    assert_eq!(ask(&client, &plain).await?, "miss");
    for (field, value) in [
        ("seed", json!(1)),
        ("max_tokens", json!(50)),
        ("chat_template_kwargs", json!({"thinking": true})),
        ("user", json!("u")),
        ("model", json!("other")),
    ] {
        let mut body = plain.clone();
        body[field] = value;
        assert_eq!(ask(&client, &body).await?, "miss", "{field}");
        assert_eq!(ask(&client, &body).await?, "exact", "{field}");
    }
    let mut longer = plain.clone();
    longer["messages"] =
        json!([{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Say something"}]);
    assert_eq!(ask(&client, &longer).await?, "miss", "not the last question only");
    Ok(())
}

#[tokio::test]
async fn a_policy_adds_to_the_key_and_the_placement_is_in_it() -> Result<()> {
    let (cloud, node) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let by_identity = json!({"key_by": ["identity"]});
    let config = config(&cloud).edge("node", &node, "internal").set("/policies/2/config", by_identity);
    let postern = Postern::start(&config).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    let body = chat_body("What is our address?");
    assert_eq!((ask(&amy, &body).await?, ask(&amy, &body).await?), ("miss".to_owned(), "exact".to_owned()));
    assert_eq!(ask(&bo, &body).await?, "miss", "the same tenant, but the policy keeps people apart");
    let edge = amy.with_header("postern-placement", "edge-first");
    assert_eq!((ask(&edge, &body).await?, ask(&edge, &body).await?), ("miss".to_owned(), "exact".to_owned()));
    assert_eq!((cloud.stats().await?.requests, node.stats().await?.requests), (2, 1));
    Ok(())
}

#[tokio::test]
async fn a_hit_is_mapped_onto_the_values_of_the_request_that_is_answered() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let first = client.chat("Greet ann@example.org and call 13800138000").await?;
    let second = client.chat("Greet zoe@example.net and call 13900139000").await?;
    assert_eq!((first.header("postern-cache"), second.header("postern-cache")), ("miss", "exact"));
    assert!(second.answer().contains("zoe@example.net") && !second.answer().contains("ann@"), "{}", second.answer());
    assert!(second.answer().contains("13900139000"));
    assert_eq!(cloud.stats().await?.requests, 1);
    Ok(())
}

#[tokio::test]
async fn a_stream_is_cached_as_a_stream_and_broken_ones_are_not() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let body = |name: &str| chat_body(&format!("Stream to {name}@example.org"));
    let first = client.stream(&body("ann")).await?.rest().await?;
    let mut again = client.stream(&body("zoe")).await?;
    assert_eq!(again.header("postern-cache"), "exact");
    let again = again.rest().await?;
    assert_eq!(text(&again), text(&first).replace("ann@", "zoe@"));
    assert!(again.last().unwrap().is_done());

    cloud.switch(json!({"die_after_chunks": 5})).await?;
    for _ in 0..2 {
        let mut events = client.stream(&chat_body("This one will break off in the middle")).await?;
        assert_eq!(events.header("postern-cache"), "miss");
        assert_eq!(events.rest().await?.last().unwrap().error_code(), "stream_broken");
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_may_not_be_complete_is_not_cached() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"finish_reason": "content_filter"})).await?;
    for _ in 0..2 {
        let mut events = client.stream(&chat_body("Stream: a[0], [EMAIL_")).await?;
        assert_eq!(events.header("postern-cache"), "miss");
        let events = events.rest().await?;
        // What could have become a placeholder is not lost.
        assert!(text(&events).ends_with(": a[0], [EMAIL_"), "{events:?}");
        assert!(events.last().unwrap().is_done());
        assert_eq!(ask(&client, &chat_body("Whole")).await?, "miss");
    }
    // Without an end, and with one that is none, a stream was cut, whatever it says.
    for reason in ["", "error"] {
        cloud.switch(json!({"finish_reason": reason})).await?;
        for _ in 0..2 {
            let mut events = client.stream(&chat_body(&format!("Stream that ends with {reason:?}"))).await?;
            assert_eq!(events.header("postern-cache"), "miss", "{reason:?}");
            let events = events.rest().await?;
            assert_eq!(events.last().unwrap().error_code(), "stream_broken", "{reason:?}: {events:?}");
            assert!(!events.iter().any(postern_tests::Event::is_done));
        }
    }
    cloud.switch(json!({"finish_reason": ""})).await?;
    for _ in 0..2 {
        assert_eq!(ask(&client, &chat_body("Whole, without an end")).await?, "miss");
    }
    cloud.switch(json!({"finish_reason": "length"})).await?;
    let body = chat_body("This much and no more");
    assert_eq!((ask(&client, &body).await?, ask(&client, &body).await?), ("miss".to_owned(), "exact".to_owned()));
    Ok(())
}

#[tokio::test]
async fn tools_are_not_cached() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let mut body = chat_body("What is the time?");
    body["tools"] = json!([{"type": "function", "function": {"name": "clock", "parameters": {}}}]);
    for _ in 0..2 {
        assert_eq!(ask(&client, &body).await?, "bypass");
    }
    Ok(())
}

/// The result of each, by how the cache was used.
fn count(used: &[String], how: &str) -> usize {
    used.iter().filter(|used| *used == how).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_identical_requests_at_once_are_one_for_the_cloud() -> Result<()> {
    const ALL: usize = 1000;
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud).set("/limits/requests", json!(2 * ALL));
    let postern = Postern::start(&config).await?;
    // A connection takes 256 at a time.
    let amy = postern.client("clerk/amy")?.http2();
    let clients = (0..8).map(|_| amy.pooled()).collect::<Result<Vec<_>>>()?;
    // Each has its one connection before: a thousand handshakes at once are refused.
    for client in &clients {
        assert_eq!(client.chat("Good morning").await?.status, 200);
    }
    cloud.reset().await?;
    cloud.switch(json!({"latency_ms": 8000})).await?;
    let asking: Vec<_> = (0..ALL)
        .map(|n| {
            // The same for the cache, though each has its own values.
            let (client, body) =
                (clients[n % clients.len()].clone(), chat_body(&format!("Greet clerk{n}@example.org")));
            tokio::spawn(async move {
                let reply = client.post_json("/v1/chat/completions", &body).await?;
                anyhow::ensure!(reply.status == 200, "{}", reply.text());
                anyhow::ensure!(reply.answer().contains(&format!("clerk{n}@example.org")), "{}", reply.answer());
                Ok((reply.header("postern-cache").to_owned(), reply.header("postern-record").to_owned()))
            })
        })
        .collect();
    let (mut used, mut records) = (Vec::new(), Vec::new());
    for one in asking {
        let (how, record) = one.await??;
        used.push(how);
        records.push(record);
    }
    assert_eq!(cloud.stats().await?.requests, 1);
    assert_eq!(count(&used, "miss"), 1, "{used:?}");
    assert_eq!(count(&used, "shared") + count(&used, "exact"), ALL - 1);
    assert!(count(&used, "shared") > ALL / 2, "they came too late: {}", count(&used, "shared"));
    // Each has a record of its own.
    let followed = records.iter().zip(&used).find(|(_, how)| *how == "shared").unwrap().0;
    let record = postern.records().of(followed, SOON).await?;
    assert_eq!((&record.outcome["cache"], &record.outcome["result"]), (&json!("shared"), &json!("answered")));
    assert_eq!(record.outcome["attempts"], json!([]));
    assert!(record.outcome["prompt_tokens"].as_u64() > Some(0), "{:?}", record.outcome);
    let metrics = postern.metrics().await?;
    let of = |result| metrics.sum("postern_cache_requests_total", &[("result", result)]);
    // One and seven before.
    assert_eq!((of("miss"), of("shared") + of("hit")), (2.0, ALL as f64 + 6.0));
    let of_amy = [("identity", "spiffe://branch.test/clerk/amy"), ("result", "miss")];
    assert_eq!(metrics.value("postern_cache_identity_requests_total", &of_amy), Some(2.0));
    Ok(())
}

#[tokio::test]
async fn those_who_follow_a_stream_get_it_as_it_comes_with_their_own_values() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    cloud.switch(json!({"token_ms": 60, "chunk_chars": 3})).await?;
    let (amy, bo, guest) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?, postern.client("guest/x")?);
    let body =
        |name: &str| chat_body(&format!("Please write a long greeting to {name}@example.org, with many words in it"));
    let mut first = amy.stream(&body("ann")).await?;
    for _ in 0..5 {
        assert!(first.next().await?.is_some());
    }
    // In the middle of it: what came before comes at once, the rest as it comes.
    let mut follower = bo.stream(&body("zoe")).await?;
    assert_eq!((first.header("postern-cache"), follower.header("postern-cache")), ("miss", "shared"));
    assert_eq!(follower.header("postern-target"), "sun");
    let apart = guest.stream(&body("ann")).await?;
    assert_eq!(apart.header("postern-cache"), "miss", "another tenant");
    let (all, followed) = tokio::try_join!(first.rest(), follower.rest())?;
    let (whole, followed_text) = (text(&all), text(&followed));
    assert!(followed_text.ends_with(&whole.replace("ann@", "zoe@")), "{followed_text} and {whole}");
    assert!(followed_text.contains("zoe@example.org") && !followed_text.contains("ann@"));
    assert!(followed.last().unwrap().is_done());
    // The last events were not held back until the end.
    let spread = followed.last().unwrap().at.saturating_sub(followed[followed.len() / 2].at);
    assert!(spread.as_millis() > 100, "{spread:?}");
    assert_eq!(cloud.stats().await?.requests, 2);
    Ok(())
}

#[tokio::test]
async fn an_answer_goes_on_for_others_when_whoever_asked_first_goes_and_ends_with_the_last() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    for (switches, wait) in [
        // In the middle of the stream, and before it has begun.
        (json!({"token_ms": 100}), true),
        (json!({"latency_ms": 1500}), false),
    ] {
        cloud.switch(switches).await?;
        cloud.reset().await?;
        let body = chat_body(&format!("Write a greeting of a certain length, please: {wait}"));
        let first = tokio::spawn({
            let (client, body) = (client.clone(), body.clone());
            async move {
                let mut events = client.stream(&body).await?;
                events.next().await?;
                anyhow::Ok(events)
            }
        });
        cloud.stats_when(SOON, |stats| stats.requests == 1).await?;
        let first = if wait { Ok(first.await??) } else { Err(first) };
        let follower = tokio::spawn({
            let (client, body) = (client.clone(), body.clone());
            async move { client.stream(&body).await?.rest().await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        match first {
            Ok(events) => drop(events),
            Err(waiting) => waiting.abort(),
        }
        let events = follower.await??;
        assert!(events.last().unwrap().is_done(), "{events:?}");
        let stats = cloud.stats().await?;
        assert_eq!((stats.requests, stats.completed), (1, 1), "{stats:?}");
        assert_eq!(ask_stream(&client, &body).await?, "exact", "what went on to its end is kept");
    }
    let records = postern.records();
    let gone = records.when(SOON, |all| {
        let gone = all.iter().filter(|record| record.outcome["result"] == "client_gone").count();
        (gone == 2).then_some(())
    });
    gone.await?;

    // When the last one goes as well, nobody asks any more.
    cloud.switch(json!({"token_ms": 200})).await?;
    cloud.reset().await?;
    let body = chat_body("Write a greeting that nobody will ever read to its very end, whoever they are");
    let first = client.stream(&body).await?;
    let second = client.stream(&body).await?;
    assert_eq!(second.header("postern-cache"), "shared");
    drop(first);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(cloud.stats().await?.open, 1);
    drop(second);
    let stats = cloud.stats_when(SOON, |stats| stats.cancelled == 1).await?;
    assert_eq!(stats.requests, 1, "{stats:?}");
    Ok(())
}

async fn ask_stream(client: &Client, body: &Value) -> Result<String> {
    let mut events = client.stream(body).await?;
    let how = events.header("postern-cache").to_owned();
    assert!(events.rest().await?.last().unwrap().is_done());
    Ok(how)
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    // Six times as much: more than the gateway and the kernel hold for a client.
    let answer = "word ".repeat(190_000);
    cloud.switch(json!({"latency_ms": 2000, "answer": answer, "chunk_chars": 20_000})).await?;
    let client = postern.client("clerk/amy")?;
    let mut body = chat_body("Write a novel");
    body["n"] = json!(6);
    let (a, b, c) = tokio::try_join!(client.stream(&body), client.stream(&body), client.stream(&body))?;
    let (mut followers, first): (Vec<_>, Vec<_>) =
        [a, b, c].into_iter().partition(|events| events.header("postern-cache") == "shared");
    assert_eq!((followers.len(), first.len()), (2, 1));
    // The first one reads nothing, nor does one of those who follow.
    let started = std::time::Instant::now();
    let events = followers.remove(0).rest().await?;
    assert!(events.last().unwrap().is_done());
    assert!(text(&events).len() >= answer.len());
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    // They are not lost either: what they have not read was held.
    for mut slow in first.into_iter().chain(followers) {
        let late = slow.rest().await?;
        assert_eq!(text(&late), text(&events));
        assert!(late.last().unwrap().is_done());
    }
    assert_eq!(cloud.stats().await?.requests, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_shared_if_it_is_the_requests_else_the_next_one_asks() -> Result<()> {
    const ALL: usize = 50;
    let cloud = BusyCloud::start().await?;
    // Of a whole answer the first token is all of it.
    let config = config(&cloud).set("/timeouts/first_token", json!("2s")).set("/timeouts/idle", json!("1s"));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?.http2().pooled()?;
    let statuses = async |prompt: &str| {
        let asking: Vec<_> = (0..ALL)
            .map(|_| {
                let (client, body) = (client.clone(), chat_body(prompt));
                tokio::spawn(async move { client.post_json("/v1/chat/completions", &body).await })
            })
            .collect();
        let mut statuses = Vec::new();
        for one in asking {
            statuses.push(one.await??.status);
        }
        anyhow::Ok(statuses)
    };
    // No answer: a few try, one after the other, and the others need not.
    cloud.switch(json!({"hang_before_headers": true})).await?;
    let failed = statuses("Nobody answers this").await?;
    assert!(failed.iter().all(|status| *status == 504), "{failed:?}");
    let asked = cloud.stats().await?.requests;
    assert!((1..=6).contains(&asked), "{asked} for {ALL}");

    // It comes back: what failed was not kept.
    cloud.switch(json!({})).await?;
    assert!(statuses("Nobody answers this").await?.iter().all(|status| *status == 200));
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_nobody_elses_is_not_shared() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"latency_ms": 1000, "answer": "Dear [EMAIL_7_abcdefgh], hello"})).await?;
    let body = chat_body("Whom do you greet?");
    let (one, two) = tokio::try_join!(
        client.post_json("/v1/chat/completions", &body),
        client.post_json("/v1/chat/completions", &body)
    )?;
    assert_eq!((one.status, two.status), (200, 200));
    assert_eq!((one.header("postern-cache"), two.header("postern-cache")), ("miss", "miss"));
    assert_eq!(cloud.stats().await?.requests, 2);
    Ok(())
}

#[tokio::test]
async fn a_client_may_refuse_the_cache() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let (store, fresh) =
        (client.with_header("cache-control", "no-store"), client.with_header("cache-control", "no-cache"));
    let body = chat_body("What is our address?");
    for _ in 0..2 {
        assert_eq!(ask(&store, &body).await?, "bypass", "neither kept nor read");
    }
    assert_eq!(ask(&fresh, &body).await?, "miss");
    assert_eq!(ask(&client, &body).await?, "exact", "kept");
    assert_eq!(ask(&fresh, &body).await?, "miss", "not read");
    assert_eq!(ask(&store, &body).await?, "bypass", "not read");
    assert_eq!(cloud.stats().await?.requests, 5);
    cloud.switch(json!({"latency_ms": 700})).await?;
    let body = chat_body("At the same time");
    let both = tokio::try_join!(ask(&store, &body), ask(&store, &body), ask(&fresh, &body))?;
    assert_eq!(both, ("bypass".to_owned(), "bypass".to_owned(), "miss".to_owned()), "nor shared");
    Ok(())
}

#[tokio::test]
async fn a_cache_is_warmed_through_the_port() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let folder = postern.issue("clerk/amy")?;
    let file = folder.join("warm.jsonl");
    let streamed = json!({"model": "chat", "stream": true, "messages": [{"role": "user", "content": "Streamed"}]});
    let vector = json!({"model": "embed", "input": "Text"});
    let lines = [chat_body("Greet ann@example.org"), streamed.clone(), vector, chat_body("Greet zoe@example.org")];
    std::fs::write(&file, lines.map(|line| format!("{line}\n")).concat())?;
    let warm = |file: &std::path::Path| {
        let (file, folder, gateway) = (file.to_owned(), folder.clone(), postern.gateway.to_string());
        tokio::task::spawn_blocking(move || {
            let (file, folder) = (file.display().to_string(), folder.display().to_string());
            postern_tests::postern::run(&[
                "cache",
                "warm",
                &file,
                "--gateway",
                &gateway,
                "--cert",
                &folder,
                "--parallel",
                "1",
            ])
        })
    };
    let output = warm(&file).await??;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(told.trim(), "3 asked, 1 there already, 0 not for the cache, 0 failed", "two differ in values only");
    let bo = postern.client("clerk/bo")?;
    assert_eq!(ask(&bo, &chat_body("Greet bo@example.org")).await?, "exact");
    assert_eq!(ask_stream(&bo, &streamed).await?, "exact");
    assert_eq!(cloud.stats().await?.requests, 3);

    // A mistake in any line is told before one is sent; what is refused is told by its line.
    std::fs::write(&file, format!("{}\n{{}}\n", chat_body("Never sent")))?;
    let output = warm(&file).await??;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("line 2: not a request"), "{told}");
    std::fs::write(&file, "{\"model\": \"chat\", \"messages\": 1}\n")?;
    let output = warm(&file).await??;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("line 1: status 400: "), "{told}");
    assert_eq!(cloud.stats().await?.requests, 3);
    Ok(())
}
