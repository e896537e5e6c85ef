//! What is labelled stays: header, identity floor, markings, detectors, taint, offline; whatever plugins say.

use anyhow::Result;
use postern_tests::{BusyCloud, Client, Postern, chat_body};
use serde_json::{Value, json};

use crate::{SOON, config};

const LONG: &str =
    "The heron project moves its second site to the harbour in spring, and nobody outside of the board knows it yet.";

#[tokio::test]
async fn a_classified_prompt_never_leaves_whatever_plugins_say() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    // A routing plugin that votes for the cloud, always.
    let config = config(&cloud).engine().policy("to-the-cloud", "builtin:routing", json!({"default": "cloud"}));
    let postern = Postern::start(&config).await?;
    postern.engine_ready().await?;
    let client = postern.client("clerk/amy")?.with_header("postern-label", "classified");
    for client in [client.clone(), client.with_header("postern-placement", "cloud")] {
        let body = json!({"model": "chat", "max_tokens": 4, "messages": [{"role": "user", "content": "Heron?"}]});
        let reply = client.post_json("/v1/chat/completions", &body).await?;
        assert_eq!((reply.status, reply.header("postern-target")), (200, "engine"), "{}", reply.text());
        assert_eq!((reply.header("postern-label"), reply.header("postern-reason")), ("classified", "label"));
        let mut events = client.stream(&body).await?;
        assert_eq!(events.header("postern-target"), "engine");
        assert!(events.rest().await?.last().unwrap().is_done());
    }
    assert_eq!(cloud.stats().await?.requests, 0);
    Ok(())
}

#[tokio::test]
async fn without_an_engine_a_classified_prompt_is_refused() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let refused = postern.client("clerk/amy")?.with_header("postern-label", "classified").chat("Heron").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "no_permitted_target"));
    assert!(refused.error_message().contains("classified"));
    // The same for one label above the clearance of the only target, and for a floor.
    assert_eq!(postern.client("officer/pat")?.chat("Good morning").await?.status, 403);
    assert_eq!(cloud.stats().await?.requests, 0);
    let label = [("label", "classified"), ("reason", "no_permitted_target")];
    assert_eq!(postern.metrics().await?.sum("postern_egress_refused_total", &label), 1.0);
    let record = postern.records().of(refused.header("postern-record"), SOON).await?;
    assert_eq!((record.intent.is_null(), &record.outcome["code"]), (true, &json!("no_permitted_target")));
    Ok(())
}

#[tokio::test]
async fn a_label_above_the_ceiling_or_unknown_is_refused() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let guest = postern.client("guest/x")?;
    let refused = guest.with_header("postern-label", "confidential").chat("Hi").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "label_refused"));
    assert_eq!(refused.header("postern-label"), "confidential", "what is known of it, also on an error");
    let refused = guest.with_header("postern-label", "top-secret").chat("Hi").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "invalid_header"));
    let twice = guest.with_header("postern-label", "public").with_header("postern-label", "internal");
    assert_eq!(twice.chat("Hi").await?.error_code(), "invalid_header");
    assert_eq!(cloud.stats().await?.requests, 0);
    Ok(())
}

#[tokio::test]
async fn markings_and_detectors_raise_and_long_texts_stay_tainted() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let rules = json!({"detect": {"secret": "classified"}, "markings": {"TOP SECRET": "classified"}});
    let postern = Postern::start(&config(&cloud).set("/classification", rules)).await?;
    let client = postern.client("clerk/amy")?;
    for prompt in ["This is Top Secret: Heron.", "my key is sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD"] {
        let refused = client.chat(prompt).await?;
        assert_eq!((refused.status, refused.header("postern-label")), (403, "classified"), "{}", refused.text());
        assert!(refused.error_message().contains("classified"));
    }
    // Once marked, a long text is known wherever it comes again, also from a colleague of the same tenant.
    let marked = client.with_header("postern-label", "classified");
    assert_eq!(marked.chat(LONG).await?.status, 403);
    assert_eq!(postern.client("clerk/bo")?.chat(LONG).await?.error_code(), "no_permitted_target");
    assert_eq!(postern.client("guest/other-tenant")?.chat(LONG).await?.status, 200);
    // A short one taints its conversation only.
    let talk = |id: &str| client.with_header("postern-conversation", id);
    assert_eq!(talk("a").with_header("postern-label", "classified").chat("Yes").await?.status, 403);
    assert_eq!(talk("a").chat("And then?").await?.status, 403);
    assert_eq!(talk("b").chat("Yes").await?.status, 200);
    // A known text taints the conversation that it comes in.
    assert_eq!(talk("c").chat(LONG).await?.status, 403);
    assert_eq!(talk("c").chat("And then?").await?.status, 403);
    assert_eq!(cloud.stats().await?.requests, 2);
    Ok(())
}

#[tokio::test]
async fn what_is_asked_may_call_for_a_label_by_itself() -> Result<()> {
    let (cloud, node) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let routes = json!({"models": {"HR-*": "confidential"}, "endpoints": {"/v1/completions": "confidential"}});
    let config = config(&cloud).edge("node", &node, "confidential").set("/classification", routes);
    let postern = Postern::start(&config.set("/routing", json!({"default": "cloud"}))).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    let ask = async |client: &Client, model: &str, text: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
        client.post_json("/v1/chat/completions", &body).await
    };
    let said =
        "Those who joined before the merger of the two houses keep their days of leave, and seven of them get a raise.";
    node.switch(json!({"answer": said})).await?;
    let talk = amy.with_header("postern-conversation", "a");
    for model in ["hr-letters", "Hr-Letters"] {
        let reply = ask(&talk, model, LONG).await?;
        assert_eq!((reply.status, reply.header("postern-label")), (200, "confidential"), "{model} {}", reply.text());
        assert_eq!(reply.header("postern-target"), "node");
        let record = postern.records().of(reply.header("postern-record"), SOON).await?;
        let route = json!({"source": "route", "label": "confidential"});
        assert!(record.intent["label_sources"].as_array().is_some_and(|all| all.contains(&route)), "{record:?}");
    }
    // What it said may be in what follows, whoever is asked; what was said to it is not marked for that.
    assert_eq!(ask(&talk, "chat", "And then?").await?.header("postern-target"), "node");
    assert_eq!(ask(&bo, "chat", LONG).await?.header("postern-target"), "sun");
    assert_eq!(ask(&bo, "chat", &format!("She wrote: {said}")).await?.header("postern-label"), "confidential");
    let prompt = json!({"model": "chat", "prompt": "Once"});
    assert_eq!(bo.post_json("/v1/completions", &prompt).await?.header("postern-label"), "confidential");
    // Nor does it ask for another model in another way.
    for (field, value, code) in [
        ("Model", json!("hr-letters"), "ambiguous_field"),
        ("extra_body", json!({"model": "hr-letters"}), "ambiguous_field"),
        ("models", json!(["hr-letters"]), "other_model_refused"),
    ] {
        let mut body = chat_body("Hello");
        body[field] = value;
        assert_eq!(bo.post_json("/v1/chat/completions", &body).await?.error_code(), code, "{body}");
    }
    let refused = ask(&postern.client("guest/x")?, "hr-letters", "Hello").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "label_refused"));
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_has_a_label_takes_no_room_from_those_who_use_it() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let rules = json!({"endpoints": {"/v1/embeddings": "internal"}, "taint": {"per_identity": 8}});
    let postern = Postern::start(&config(&cloud).set("/classification", rules)).await?;
    let amy = postern.client("clerk/amy")?;
    for number in 0..24 {
        let body = json!({"model": "embed", "input": format!("Text {number}")});
        assert_eq!(amy.post_json("/v1/embeddings", &body).await?.header("postern-label"), "internal");
    }
    assert_eq!(label(&amy, "Hello").await?, "public");
    Ok(())
}

/// What a request is labelled, whoever answers it.
async fn label(client: &Client, text: &str) -> Result<String> {
    Ok(client.chat(text).await?.header("postern-label").to_owned())
}

#[tokio::test]
async fn a_passage_of_a_labelled_text_is_known_wherever_it_stands() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    assert_eq!(label(&amy.with_header("postern-label", "classified"), LONG).await?, "classified");
    // 72 letters of it, in other lines and another case, between others.
    let passage = &LONG[20..].to_uppercase().replace(' ', "\n> ");
    let around = format!(
        "Dear all, please see below what I have heard from somebody on the train today.\n{passage}\nIs it true?"
    );
    let reply = bo.chat(&around).await?;
    assert_eq!((reply.status, reply.header("postern-label")), (403, "classified"), "{}", reply.text());
    assert!(!reply.text().contains("taint"), "a client is not told why: {}", reply.text());
    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert!(record.intent.is_null() && record.outcome["label"] == "classified");
    // Whatever it is said to be, and in whatever parts.
    let (one, two) = passage.split_at(45);
    let parts = json!([{"type": "text", "text": one}, {"type": "text", "text": two}]);
    for message in [json!({"role": "system", "content": passage}), json!({"role": "user", "content": parts})] {
        let body = json!({"model": "chat", "messages": [message, {"role": "assistant", "content": "?"}, {"role": "user", "content": "Go on"}]});
        assert_eq!(bo.post_json("/v1/chat/completions", &body).await?.header("postern-label"), "classified", "{body}");
    }
    // As JSON in JSON, as programs write it.
    let escaped: String = passage.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    for text in [format!("{{\"text\": \"{escaped}\"}}"), json!({"text": passage}).to_string()] {
        assert_eq!(label(&bo, &text).await?, "classified", "{text}");
    }
    // Marked in parts that are short each.
    let parts = |number: u32| -> Vec<Value> {
        let word = |n: u32| format!("{}", (n + number).wrapping_mul(2_654_435_761));
        (0..3).map(|part| json!({"type": "text", "text": (0..5).map(|n| word(part * 5 + n)).collect::<Vec<_>>().join(" ")})).collect()
    };
    let body = |content: &Value| json!({"model": "chat", "messages": [{"role": "user", "content": content}]});
    let marked = amy.with_header("postern-label", "classified");
    marked.post_json("/v1/chat/completions", &body(&json!(parts(0)))).await?;
    let whole: String =
        parts(0).iter().map(|part| part["text"].as_str().unwrap_or_default().to_owned() + " ").collect();
    assert_eq!(label(&bo, &whole).await?, "classified");
    let vectors = json!({"model": "chat", "input": [passage]});
    assert_eq!(bo.post_json("/v1/embeddings", &vectors).await?.header("postern-label"), "classified");
    // Less of it, another tenant's, and what came along with it are free: a label does not spread from text to text.
    assert_eq!(label(&bo, &LONG[20..90]).await?, "public");
    assert_eq!(label(&postern.client("guest/other-tenant")?, &around).await?, "public");
    let along = "Dear all, please see below what I have heard from somebody on the train today. I would like to know who it was.";
    assert_eq!(label(&bo, along).await?, "public");
    Ok(())
}

#[tokio::test]
async fn what_is_common_to_many_texts_labels_none() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let frame =
        "Summarise the following letter in three sentences, keep all names as they are, and answer in English please:";
    let postern = Postern::start(&config(&cloud).set("/classification/taint", json!({"common": [frame]}))).await?;
    let amy = postern.client("clerk/amy")?;
    let marked = amy.with_header("postern-label", "classified");
    assert_eq!(label(&marked, &format!("{frame} {LONG}")).await?, "classified");
    assert_eq!(label(&amy, &format!("{frame} Roses are red.")).await?, "public");
    assert_eq!(label(&amy, &format!("Well, {LONG}")).await?, "classified");
    Ok(())
}

#[tokio::test]
async fn an_answer_has_the_label_of_its_request_before_anybody_has_read_it() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let (plain, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    let amy = plain.with_header("postern-label", "internal");
    let answer = |number: usize| {
        let words = ["harbour", "spring", "heron", "council", "bridge", "ledger", "north", "quiet", "amber", "seven"];
        (0..40)
            .map(|n| format!("{} {} ", words[(n * 7 + number) % 10], words[(n * n + number) % 10]))
            .collect::<String>()
    };
    // A whole answer.
    cloud.switch(json!({"answer": answer(0)})).await?;
    assert_eq!(amy.chat("One").await?.header("postern-label"), "internal");
    assert_eq!(label(&bo, &answer(0)[100..220]).await?, "internal");
    // One that is still coming: what was read of it is known already, at any moment.
    cloud.switch(json!({"answer": answer(1), "token_ms": 5, "chunk_chars": 7})).await?;
    let mut events = amy.stream(&chat_body("Two")).await?;
    let (mut read, mut looked) = (String::new(), 0);
    while let Some(event) = events.next().await? {
        if event.is_done() {
            break;
        }
        read.push_str(event.json()["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).count();
        let from = read.len().saturating_sub(90);
        if letters(&read[from..]) >= 66 && looked < 12 {
            looked += 1;
            assert_eq!(label(&bo, &read[from..]).await?, "internal", "after {read}");
        }
    }
    assert_eq!(looked, 12);
    // And one that comes from the cache.
    let again = amy.stream(&chat_body("Two")).await?;
    assert_eq!(again.header("postern-cache"), "exact");
    // The label of an answer to somebody with a floor is theirs alone.
    cloud.switch(json!({"answer": answer(2)})).await?;
    assert_eq!(label(&bo, "Three").await?, "public");
    assert_eq!(label(&plain, &answer(2)[100..220]).await?, "public");
    Ok(())
}

#[tokio::test]
async fn who_marks_more_than_there_is_room_for_is_raised_and_nobody_else_is() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/classification/taint", json!({"per_identity": 300}))).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    assert_eq!(label(&amy.with_header("postern-label", "classified"), LONG).await?, "classified");
    assert_eq!(label(&bo.with_header("postern-label", "confidential"), &format!("Well: {LONG}")).await?, "classified");
    let flood: String = (0..500u32).map(|n| format!("{} ", n.wrapping_mul(2_654_435_761))).collect();
    assert_eq!(label(&amy.with_header("postern-label", "internal"), &flood).await?, "internal");
    let reply = amy.chat("Good morning").await?;
    assert_eq!((reply.status, reply.header("postern-label")), (403, "classified"), "{}", reply.text());
    assert_eq!(label(&bo, "Good morning").await?, "public");
    assert_eq!(label(&bo, LONG).await?, "classified", "of bo it is known still");
    let cy = postern.client("clerk/cy")?;
    assert_eq!(label(&cy, &format!("And then, {LONG}")).await?, "classified");
    Ok(())
}

#[tokio::test]
async fn a_conversation_stays_tainted_when_its_beginning_changes() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let says = |role: &str, content: &str| json!({"role": role, "content": content});
    let asks = async |client: &Client, messages: &[Value]| -> Result<u16> {
        let body = json!({"model": "chat", "messages": messages});
        Ok(client.post_json("/v1/chat/completions", &body).await?.status)
    };
    let talk = [says("user", "Where does Heron go?"), says("assistant", "To the harbour."), says("user", "When?")];
    assert_eq!(asks(&client.with_header("postern-label", "classified"), &talk).await?, 403);
    let goes_on = [says("assistant", "In spring."), says("user", "And then?")];
    // The oldest messages are left out, as clients do; another time of day stands in the system prompt; a new ID.
    let trimmed = [&talk[1..], &goes_on].concat();
    let other_prompt = [&[says("system", "It is 12:04.")][..], &talk, &goes_on].concat();
    assert_eq!(asks(&client, &trimmed).await?, 403);
    assert_eq!(asks(&client, &other_prompt).await?, 403);
    assert_eq!(asks(&client.with_header("postern-conversation", "new"), &trimmed).await?, 403);
    // What was said after it belongs to it, without any of the marked turns.
    let later = [goes_on[0].clone(), goes_on[1].clone(), says("assistant", "Nothing."), says("user", "Really?")];
    assert_eq!(asks(&client, &later).await?, 403);
    assert_eq!(cloud.stats().await?.requests, 0);
    // Others, and other conversations with the same words in another order, are free.
    assert_eq!(asks(&postern.client("clerk/bo")?, &talk).await?, 200);
    assert_eq!(asks(&client, &[goes_on[1].clone(), talk[1].clone(), talk[0].clone()]).await?, 200);
    Ok(())
}

#[tokio::test]
async fn who_may_not_handle_a_label_cannot_put_it_on_what_others_write() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let tenant = json!({"match": "spiffe://branch.test/guest/*", "tenant": "clerks", "ceiling": "internal"});
    let postern = Postern::start(&config(&cloud).set("/identities/2", tenant)).await?;
    let guest = postern.client("guest/x")?.with_header("postern-label", "classified");
    assert_eq!(guest.chat(LONG).await?.error_code(), "label_refused");
    assert_eq!(postern.client("clerk/amy")?.chat(LONG).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_read_is_confidential() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let image = json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]);
    let messages = [
        json!({"role": "user", "content": image}),
        json!({"role": "user", "content": "What is this?", "images": ["AAAA"]}),
    ];
    for message in messages {
        let body = json!({"model": "chat", "messages": [message]});
        let refused = postern.client("clerk/amy")?.post_json("/v1/chat/completions", &body).await?;
        assert_eq!(refused.error_code(), "no_permitted_target", "{message}");
        assert!(refused.error_message().contains("confidential"));
    }
    assert_eq!(cloud.stats().await?.requests, 0);
    Ok(())
}

#[tokio::test]
async fn offline_refuses_every_target_but_the_engine() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud).edge("node", &cloud, "confidential").set("/offline", json!(true));
    let config = config.set("/targets/0/models", json!({"large": "their-large"}));
    let postern = Postern::start(&config).await?;
    let refused = postern.client("clerk/amy")?.chat("Hello").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "offline"));
    assert_eq!(postern.admin("/readyz").await?.status, 503);
    drop(postern);
    let postern = Postern::start(&config.engine().set("/engine/models", json!(["chat"]))).await?;
    postern.engine_ready().await?;
    let mut body = chat_body("Hello");
    body["max_tokens"] = json!(3);
    let reply = postern.client("clerk/amy")?.post_json("/v1/chat/completions", &body).await?;
    assert_eq!((reply.status, reply.header("postern-reason")), (200, "offline"));
    // What nobody here answers is not listed.
    let listed = postern.client("clerk/amy")?.get("/v1/models").await?.json()?;
    assert!(
        listed["data"].as_array().is_some_and(|all| all.len() == 1) && listed["data"][0]["id"] == "chat",
        "{listed}"
    );
    let stats = cloud.stats().await?;
    assert_eq!(stats.requests, 0);
    Ok(())
}

#[tokio::test]
async fn what_a_client_asks_for_never_widens() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/routing", json!({"default": "local"}))).await?;
    let client = postern.client("clerk/amy")?;
    for asked in ["cloud", "edge-first", "local"] {
        let refused = client.with_header("postern-placement", asked).chat("Hello").await?;
        assert_eq!(refused.error_code(), "no_permitted_target", "{asked}");
    }
    assert_eq!(cloud.stats().await?.requests, 0);
    Ok(())
}
