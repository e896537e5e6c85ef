//! What a target that goes on with an answer may see of its beginning: it is judged like the text of a request.

use anyhow::Result;
use postern_tests::client::text;
use postern_tests::{BusyCloud, Client, Config, Event, Postern, chat_body};
use serde_json::{Value, json};

use super::{attempts, pair};
use crate::policies::Puppet;
use crate::{SOON, config};

/// `sun` begins; `moon` may see what is internal, and `oak`, a node, what is confidential.
struct Office {
    sun: BusyCloud,
    moon: BusyCloud,
    oak: BusyCloud,
}

impl Office {
    async fn open() -> Result<Self> {
        Ok(Self { sun: BusyCloud::start().await?, moon: BusyCloud::start().await?, oak: BusyCloud::start().await? })
    }

    fn config(&self) -> Config {
        let markings = json!({"COMPANY SECRET": "classified", "FOR OFFICERS": "confidential"});
        let config = config(&self.sun).cloud("moon", &self.moon, "internal").edge("oak", &self.oak, "confidential");
        let config = config.set("/targets/0/clearance", json!("confidential"));
        let config = (0..3).fold(config, |config, target| {
            config.set(&format!("/targets/{target}/openai/continues"), json!("message"))
        });
        config.set("/classification", json!({"markings": markings}))
    }

    /// `sun` says this, and its connection breaks.
    async fn breaks_after(&self, beginning: &str) -> Result<()> {
        let answer = format!("{beginning} and more");
        let die_after = beginning.chars().count();
        self.sun.switch(json!({"answer": answer, "chunk_chars": 1, "die_after_chunks": die_after})).await
    }

    async fn asked(&self) -> Result<[u64; 3]> {
        let [sun, moon, oak] = [&self.sun, &self.moon, &self.oak];
        Ok([sun.stats().await?.requests, moon.stats().await?.requests, oak.stats().await?.requests])
    }
}

async fn answer(postern: &Postern, client: &Client, prompt: &str) -> Result<(Vec<Event>, Value)> {
    let mut events = client.stream(&chat_body(prompt)).await?;
    let record = events.header("postern-record").to_owned();
    let events = events.rest().await?;
    Ok((events, postern.records().of(&record, SOON).await?.outcome))
}

fn is_broken(events: &[Event]) -> bool {
    events.last().unwrap().error_code() == "stream_broken" && !events.iter().any(Event::is_done)
}

/// What the cloud was told last as the beginning of its answer.
async fn beginning(cloud: &BusyCloud) -> Result<String> {
    let stats = cloud.stats().await?;
    let last = stats.bodies.back().unwrap()["messages"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["role"], "assistant");
    Ok(last["content"].as_str().unwrap().to_owned())
}

/// The placeholders of a text, in its order.
fn placeholders(text: &str) -> Vec<&str> {
    let begins = text.match_indices('[').map(|(at, _)| at);
    begins.map(|at| text[at..].split_inclusive(']').next().unwrap()).collect()
}

#[tokio::test]
async fn what_nobody_may_see_is_not_gone_on_with() -> Result<()> {
    let office = Office::open().await?;
    let postern = Postern::start(&office.config()).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-conversation", "harbour");
    office.breaks_after("It is a company\u{a0}secret that the harbour").await?;
    let (events, outcome) = answer(&postern, &client, "What of the harbour?").await?;
    assert!(is_broken(&events) && text(&events).ends_with("that the harbour"), "{events:?}");
    assert_eq!(office.asked().await?, [1, 0, 0], "nor is the one that said it");
    assert_eq!(attempts(&outcome), [pair("sun", "died")]);
    assert_eq!((&outcome["code"], &outcome["result"]), (&json!("stream_broken"), &json!("broken")));
    assert_eq!((&outcome["label"], &outcome["not_continued"]), (&json!("classified"), &json!("no_permitted_target")));
    assert_eq!(outcome["label_sources"], json!([{"source": "marking", "label": "classified"}]));
    assert!(outcome.get("continued").is_none());
    let refused = [("label", "classified"), ("reason", "label")];
    assert_eq!(postern.metrics().await?.value("postern_egress_refused_total", &refused), Some(1.0));
    // The conversation has it now, whatever the client leaves out of it.
    let reply = client.chat("And the bridge?").await?;
    assert_eq!((reply.status, reply.header("postern-label")), (403, "classified"), "{}", reply.text());
    // Who may not handle it at all gets no more of it either, and the record says so.
    let (events, outcome) = answer(&postern, &postern.client("guest/gil")?, "What of the harbour?").await?;
    assert!(is_broken(&events), "{events:?}");
    assert_eq!((&outcome["label"], &outcome["not_continued"]), (&json!("classified"), &json!("label_refused")));
    assert_eq!(office.asked().await?, [2, 0, 0]);
    Ok(())
}

/// A target says what was labelled elsewhere: to the next one that is a text like any other.
#[tokio::test]
async fn what_is_known_of_a_beginning_is_not_gone_on_with_where_it_may_not_be() -> Result<()> {
    let office = Office::open().await?;
    let postern = Postern::start(&office.config()).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    let text = "The heron project moves its second site to the harbour in spring, and nobody outside of the board knows it yet.";
    assert_eq!(amy.with_header("postern-label", "confidential").chat(text).await?.status, 200);
    office.breaks_after(text).await?;
    let before = office.asked().await?;
    let (events, outcome) = answer(&postern, &bo, "What is new?").await?;
    let after = office.asked().await?;
    assert_eq!(after[1], before[1], "moon may not see it");
    assert!(is_broken(&events) || after[2] > before[2], "{outcome}");
    assert_eq!(outcome["label"], "confidential", "{outcome}");
    Ok(())
}

#[tokio::test]
async fn whoever_may_see_it_goes_on() -> Result<()> {
    let office = Office::open().await?;
    let postern = Postern::start(&office.config()).await?;
    let client = postern.client("clerk/amy")?;
    let begun = "For officers: the harbour";
    office.breaks_after(begun).await?;
    office.oak.switch(json!({"answer": format!("{begun} is closed.")})).await?;
    let (events, outcome) = answer(&postern, &client, "What of the harbour?").await?;
    assert!(events.last().unwrap().is_done());
    assert_eq!(text(&events), "For officers: the harbour is closed.");
    assert_eq!(office.asked().await?, [1, 0, 1], "moon is not cleared for it");
    assert_eq!(attempts(&outcome), [pair("sun", "died"), pair("oak", "ok")]);
    assert_eq!((&outcome["label"], &outcome["continued"]), (&json!("confidential"), &json!(1)));
    assert!(outcome.get("not_continued").is_none());
    Ok(())
}

#[tokio::test]
async fn values_in_a_beginning_are_masked_and_restored_when_they_are_repeated() -> Result<()> {
    let office = Office::open().await?;
    let postern = Postern::start(&office.config()).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-conversation", "mail");
    // What the two are called in this conversation.
    let (ann, bob) = ("ann.smith@example.org", "bob.stone@example.org");
    client.chat(&format!("{ann} and {bob}")).await?;
    let seen = office.sun.stats().await?.bodies.back().unwrap()["messages"][0]["content"].as_str().unwrap().to_owned();
    let [ann_masked, bob_masked] = placeholders(&seen)[..] else { panic!("{seen}") };
    // One was in the prompt, where a model would see its placeholder; the others are the model's own.
    let begun = format!("The password: {ann_masked} and the card 4111 1111 1111 1111 of {bob}");
    office.breaks_after(&begun).await?;
    office.moon.switch(json!({"answer": format!(", once more {bob_masked} and {ann_masked}.")})).await?;
    let (events, outcome) = answer(&postern, &client, &format!("Tell {ann}")).await?;
    let whole = format!("The password: {ann} and the card 4111 1111 1111 1111 of {bob}, once more {bob} and {ann}.");
    assert_eq!((text(&events), events.last().unwrap().is_done()), (whole, true));
    let sent = beginning(&office.moon).await?;
    let card = placeholders(&sent)[1];
    assert!(card.starts_with("[BANKCARD_"), "{sent}");
    assert_eq!(sent, format!("The password: {ann_masked} and the card {card} of {bob_masked}"));
    assert_eq!(attempts(&outcome), [pair("sun", "died"), pair("moon", "ok")]);
    assert!(outcome.get("label").is_none(), "{outcome}");
    let said = outcome["policies"].as_array().unwrap();
    assert_eq!((said.len(), &said[0]["policy"], &said[0]["step"]), (1, &json!("redact"), &json!("redaction")));
    let metrics = postern.metrics().await?;
    assert_eq!(metrics.value("postern_redactions_total", &[("kind", "bank-card")]), Some(1.0));
    let records = postern.records().text()?;
    assert!(!records.contains("bob.stone") && !records.contains("4111"), "{records}");
    Ok(())
}

#[tokio::test]
async fn a_value_that_was_masked_in_a_beginning_gets_into_no_address() -> Result<()> {
    let office = Office::open().await?;
    let postern = Postern::start(&office.config()).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-conversation", "address");
    client.chat("bob.stone@example.org").await?;
    let seen = office.sun.stats().await?.bodies.back().unwrap()["messages"][0]["content"].as_str().unwrap().to_owned();
    let begun = "Bob is bob.stone@example.org, see https://evil.example/?to=";
    office.breaks_after(begun).await?;
    office.moon.switch(json!({"answer": format!("{seen} or {seen}")})).await?;
    let (events, _) = answer(&postern, &client, "Who is Bob?").await?;
    assert_eq!(text(&events), format!("{begun}{seen} or bob.stone@example.org"));
    Ok(())
}

#[tokio::test]
async fn a_policy_that_fails_on_a_beginning_keeps_it_here() -> Result<()> {
    let puppet = Puppet::new()?;
    puppet.first(&[])?;
    for (on_failure, why) in [("local", "no_permitted_target"), ("reject", "policy_denied")] {
        let office = Office::open().await?;
        let mut policy = puppet.policy(json!({"trap_on_text": "swordfish"}));
        policy["on_failure"] = json!(on_failure);
        let postern = Postern::start(&office.config().push("/policies", policy)).await?;
        let client = postern.client("clerk/amy")?;
        office.breaks_after("Ask for swordfish").await?;
        let (events, outcome) = answer(&postern, &client, "What of the harbour?").await?;
        assert!(is_broken(&events), "{events:?}");
        assert_eq!((office.asked().await?, &outcome["not_continued"]), ([1, 0, 0], &json!(why)), "{outcome}");
        let said: Vec<_> = outcome["policies"].as_array().unwrap().iter().map(|said| said["said"].clone()).collect();
        assert!(said.iter().any(|said| said.as_str().unwrap().starts_with("failed:")), "{said:?}");
        // It is no fault of other answers.
        office.breaks_after("Ask for haddock").await?;
        let (events, _) = answer(&postern, &client, "What of the bridge?").await?;
        assert!(events.last().unwrap().is_done(), "{events:?}");
    }
    Ok(())
}
