//! What a policy writes counts when the label of its request is final, and only if some remote target may see that label. So what
//! it learnt from a request that must stay here shows in nothing that leaves afterwards.

use anyhow::Result;
use postern_tests::{BusyCloud, Client, Config, Postern, chat_body};
use serde_json::json;

use super::{Puppet, ask, config, record, said, with};

/// Classified by a marking in its text.
const CLASSIFIED: &str = "TOP SECRET: the secret is 4711-heron";

/// A hostile policy at every step, a cache, and models by which it can show what it knows.
fn hostile(cloud: &BusyCloud, puppet: &Puppet) -> Result<Config> {
    puppet.first(&[("metrics", json!(["leaks", "number"]))])?;
    // It crashes when it reads a secret, which would end in quarantine, and so show in what happens to others.
    let trap = json!({"trap_on_text": "4711-trap", "leak": true});
    let policy = with(puppet.policy(trap), &[("quarantine_after", json!(2)), ("on_failure", json!("local"))]);
    let models = json!({"chat": "upstream", "odd": "upstream-odd", "even": "upstream-even"});
    Ok(config(cloud, policy)
        .cache()
        .set("/targets/0/models", models)
        .set("/classification", json!({"markings": {"TOP SECRET": "classified"}})))
}

/// What leaves for the cloud, byte for byte, when these are asked after what `before` did.
async fn egress<F: Future<Output = Result<()>>>(
    config: impl Fn(&BusyCloud) -> Result<Config>,
    before: impl FnOnce(Client) -> F,
) -> Result<(Vec<String>, Postern)> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)?).await?;
    let client = postern.client("clerk/amy")?;
    before(client.clone()).await?;
    cloud.reset().await?;
    for prompt in ["What is the weather?", "What is the time?", "What is the weather?"] {
        assert_eq!(ask(&client, "chat", prompt).await?.status, 200);
    }
    let report = cloud.stats().await?;
    let heads = report.headers.iter().map(|headers| format!("{headers:?}"));
    Ok((
        report.raw_bodies.iter().cloned().zip(heads).map(|(body, head)| without_host(&head) + &body).collect(),
        postern,
    ))
}

/// Two clouds have two ports.
fn without_host(head: &str) -> String {
    head.split("127.0.0.1:").map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())).collect()
}

#[tokio::test]
async fn nothing_of_a_classified_prompt_shows_in_what_leaves_later() -> Result<()> {
    let puppet = Puppet::new()?;
    let hostile = |cloud: &BusyCloud| hostile(cloud, &puppet);
    let (clean, _) = egress(hostile, async |_| Ok(())).await?;
    // It does what it can: a public prompt before changes what leaves later. Otherwise this would show nothing.
    let public = CLASSIFIED.trim_start_matches("TOP SECRET: ").to_owned();
    let (changed, postern) = egress(hostile, async move |client| {
        assert_eq!(ask(&client, "chat", &public).await?.status, 200);
        Ok(())
    })
    .await?;
    assert_ne!(changed, clean, "the hostile policy is not hostile");
    assert!(postern.log().contains("puppet") && postern.metrics().await?.sum("postern_policy_events_total", &[]) > 0.0);

    let (after, postern) = egress(hostile, async |client| {
        let other = client.with_header("postern-conversation", "another");
        for client in [&client, &other] {
            assert_eq!(ask(client, "chat", CLASSIFIED).await?.error_code(), "policy_denied");
        }
        // Classified by header, which no text has to say.
        let marked = client.with_header("postern-label", "classified");
        assert_eq!(ask(&marked, "chat", "the secret is 4711-heron").await?.status, 403);
        // Crashes, more of them than a policy may have.
        for n in 0..4 {
            let crash = ask(&client, "chat", &format!("TOP SECRET {n}: 4711-trap")).await?;
            assert_eq!(crash.error_code(), "policy_denied");
        }
        Ok(())
    })
    .await?;
    assert_eq!(after, clean);
    // Digits alone are in digests as well.
    let tells = |text: &str| ["4711-heron", "4711-trap", "because "].into_iter().find(|&secret| text.contains(secret));
    assert_eq!(
        (tells(&postern.log()), tells(&postern.records().text()?)),
        (None, None),
        "a reason is a way out as well"
    );
    Ok(())
}

/// Public requests, and before each of them classified ones, of which those with the same number differ in everything that they say.
async fn mixed(config: impl Fn(&BusyCloud) -> Result<Config>, classified: &[&str]) -> Result<(Vec<String>, u64)> {
    let cloud = BusyCloud::start().await?;
    // One key, so that placeholders are the same.
    let replicas = json!({"count": 1, "key": {"env": "REPLICAS_KEY"}});
    let config = config(&cloud)?.engine();
    let config = config.set("/replicas", replicas).env("REPLICAS_KEY", &"5a".repeat(32));
    let postern = Postern::start(&config).await?;
    postern.engine_ready().await?;
    let amy = postern.client("clerk/amy")?;
    let (others, marked) = ([&amy, &postern.client("clerk/bo")?, &postern.client("clerk/cy")?], "postern-label");
    let officer = postern.client("officer/pat")?;
    let mut answered = 0;
    for (number, public) in
        ["Greet ann@example.org", "What is the time?", "Greet bob@example.net, 13812345678", "What is the time?"]
            .into_iter()
            .enumerate()
    {
        for (at, text) in classified.iter().enumerate() {
            let client = others[(number + at) % 3].with_header(marked, "classified");
            let client = client.with_header("postern-conversation", &format!("{number}{at}"));
            let body = |text: &str| {
                let mut body = chat_body(text);
                body["max_tokens"] = json!(3);
                body
            };
            // Asked, asked again without saying what it is, left in the middle, and wrong.
            answered += u64::from(client.post_json("/v1/chat/completions", &body(text)).await?.status == 200);
            let again = others[at % 3].with_header("postern-conversation", &format!("{number}{at}"));
            let again = again.post_json("/v1/chat/completions", &body(&format!("And {}?", &text[..90]))).await?;
            assert_eq!(again.header(marked), "classified");
            officer.post_json("/v1/chat/completions", &body(text)).await?;
            let mut stream = body(text);
            stream["max_tokens"] = json!(60);
            let _first = client.stream(&stream).await?.next().await;
            let mut wrong = body(text);
            wrong["temperature"] = json!("hot");
            assert_eq!(client.post_json("/v1/chat/completions", &wrong).await?.status, 400);
        }
        let mut streamed = chat_body(public);
        streamed["stream"] = json!(true);
        assert_eq!(ask(&amy, "chat", public).await?.status, 200);
        amy.stream(&streamed).await?.rest().await?;
    }
    let report = cloud.stats().await?;
    let heads = report.headers.iter().map(|headers| without_host(&format!("{headers:?}")));
    let sent = report.paths.iter().zip(heads).zip(&report.raw_bodies);
    Ok((sent.map(|((path, head), body)| format!("{path} {head} {body}")).collect(), answered))
}

#[tokio::test]
async fn runs_that_differ_in_what_is_classified_leave_the_same_bytes() -> Result<()> {
    let puppet = Puppet::new()?;
    let one = [
        "The heron project moves its second site to the harbour in spring, write to pat@heron.example before the board meets.",
        "the secret is 4711-heron, and the harbour master has been told of it by somebody who should not have known it at all",
    ];
    let other = [
        "Last year's ledger of the northern branch is short of 400000; call 13987654321 or ask kim@ledger.example what to do now.",
        "the secret is 2222-ledger: nobody in the north may see the books until the auditors have left the building for good.",
        "TOP SECRET: whoever counted the money in the north has to be moved to the south before the end of the week, quietly.",
    ];
    // With a policy that tells what it can, which refuses what is classified; and with none, where the engine answers it.
    let none_of_its_own = |cloud: &BusyCloud| -> Result<Config> {
        let markings = json!({"markings": {"TOP SECRET": "classified"}});
        Ok(crate::config(cloud).set("/classification", markings))
    };
    let kinds = json!({"kinds": ["email", "phone"]});
    let with_it = |cloud: &BusyCloud| Ok(hostile(cloud, &puppet)?.policy("redact", "builtin:redaction", kinds.clone()));
    let (told, _) = mixed(with_it, &[]).await?;
    let (none, _) = mixed(none_of_its_own, &[]).await?;
    assert!(none.len() >= 4 && told.len() >= 4, "{} {}", none.len(), told.len());
    for classified in [&one[..], &other[..]] {
        assert_eq!(mixed(with_it, classified).await?.0, told);
        let (left, answered) = mixed(none_of_its_own, classified).await?;
        assert!(answered > 0, "none was answered here");
        assert_eq!(left, none);
    }
    Ok(())
}

#[tokio::test]
async fn a_label_that_rises_after_the_text_was_read_counts() -> Result<()> {
    let puppet = Puppet::new()?;
    // Nothing in the request says so, but another policy raises the label of one model: what was written before must not stay.
    let raise = |cloud: &BusyCloud| -> Result<Config> {
        let raises = with(
            puppet.policy_at(&puppet.version(2, &[])?, json!({"vote": {"only_model": "odd", "label": "classified"}})),
            &[("name", json!("raises"))],
        );
        Ok(hostile(cloud, &puppet)?.push("/policies", raises))
    };
    let (clean, _) = egress(raise, async |_| Ok(())).await?;
    let (after, _) = egress(raise, async |client| {
        for n in 0..3 {
            let raised = ask(&client, "odd", &format!("{n}: the secret is 4711-heron")).await?;
            assert_eq!((raised.status, raised.header("postern-label")), (403, "classified"));
        }
        Ok(())
    })
    .await?;
    assert_eq!(after, clean);
    Ok(())
}

#[tokio::test]
async fn what_is_left_of_a_budget_does_not_tell_how_a_classified_request_ended() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let denies = puppet.policy(json!({"tell_facts": true, "vote": {"only_model": "odd", "deny": "odd"}}));
    let config = config(&cloud, denies).set("/identities/0/limits", json!({"tokens_per_minute": 60_000}));
    for (label, spent) in [("classified", true), ("public", false)] {
        let postern = Postern::start(&config).await?;
        let client = postern.client("clerk/amy")?;
        let mut body = chat_body("One thing");
        (body["model"], body["max_tokens"]) = (json!("odd"), json!(50_000));
        let marked = client.with_header("postern-label", label);
        assert_eq!(marked.post_json("/v1/chat/completions", &body).await?.error_code(), "policy_denied");
        let told = said(&postern, &ask(&client, "chat", "Another thing").await?).await?;
        let told = told["annotations"]["tokens"].as_str().unwrap().to_owned();
        let left: u64 = told.split_once(" left Some(").unwrap().1.trim_end_matches(')').parse()?;
        // A thousand a second come back.
        assert_eq!(left < 40_000, spent, "{label}: {told}");
    }
    Ok(())
}

#[tokio::test]
async fn counters_are_shared_kept_and_apart() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[("metrics", json!(["requests", "last"]))])?;
    let postern = Postern::start(&config(&cloud, puppet.policy(json!({"at_most": 2})))).await?;
    let (amy, bo, guest) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?, postern.client("guest/x")?);
    let mut denied = None;
    for (client, status) in [(&amy, 200), (&bo, 200), (&amy, 403), (&bo, 403)] {
        let reply = ask(client, "chat", "Hello").await?;
        assert_eq!(reply.status, status, "{}", reply.text());
        denied = Some(reply);
    }
    let outcome = record(&postern, &denied.unwrap()).await?.outcome;
    assert_eq!(outcome["policies"][1]["reason"], "request 4 of 2", "{outcome}");
    assert_eq!(ask(&guest, "chat", "Hello").await?.status, 200, "another tenant");
    let internal = amy.with_header("postern-label", "internal");
    assert_eq!(ask(&internal, "chat", "Hello").await?.status, 200, "another label");
    let metrics = postern.metrics().await?;
    let of = |name| metrics.sum(name, &[("policy", "puppet")]);
    assert_eq!((of("postern_policy_events_total"), of("postern_policy_value")), (6.0, 1.0));
    // Of a request that must stay here, nothing is counted.
    assert_eq!(ask(&amy.with_header("postern-label", "classified"), "chat", "Hello").await?.status, 403);
    assert_eq!(postern.metrics().await?.sum("postern_policy_events_total", &[]), 6.0);
    Ok(())
}
