//! A middlebox that breaks TLS open between the gateway and a node: what it carries, and what it can do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http::Method;
use postern_tests::client::text;
use postern_tests::sealed::PLACE;
use postern_tests::{
    BusyCloud, Client, Draft, Event, Metrics, Middlebox, Node, Postern, Reply, Trick, Workstation, chat_body,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::SOON;
use crate::nodes::{NODE, Office, cached, identity, is_whole, long_story, short, until};

const RELAY: &str = "spiffe://branch.test/relay/box";

/// A gateway, a node, and a middlebox between them. The cloud may not see what is asked here.
struct Scene {
    office: Office,
    cloud: BusyCloud,
    node: Node,
    middlebox: Middlebox,
    /// Of its certificate.
    end: Option<OffsetDateTime>,
}

impl Scene {
    /// With a node that is told of the relay, or of another.
    async fn new(relay: &str, end: Option<Duration>) -> Result<Self> {
        let cloud = BusyCloud::start().await?;
        let office = Office::new(&cloud)?;
        let node = Node::start(&office.issue(NODE, "gpu-1")?, &["--relay", relay]).await?;
        let own = identity(&office.issue(RELAY, "box")?)?;
        let end = end.map(|end| OffsetDateTime::now_utc() + end);
        let middlebox = Middlebox::before_node(node.address, &own, end).await?;
        Ok(Self { office, cloud, node, middlebox, end })
    }

    async fn gateway(&self, knows_of_it: bool) -> Result<Postern> {
        let mut openai = json!({"base_url": format!("https://{}/v1", self.middlebox.address), "identity": NODE});
        if knows_of_it {
            openai["ca"] = json!(self.middlebox.ca());
        }
        let target = json!({
            "name": "gpu", "placement": "edge", "clearance": "confidential", "openai": openai, "models": {"chat": "engine"},
        });
        Postern::start(&self.office.config.clone().push("/targets", target)).await
    }

    /// The relay, when it speaks for itself.
    fn relay(&self) -> Result<Client> {
        Ok(self.node.client(Some(identity(&self.office.issue(RELAY, "itself")?)?)))
    }

    /// Requests that the node has worked on.
    async fn acted_on(&self) -> Result<f64> {
        let page = self.relay()?.get("/metrics").await?;
        ensure!(page.status == 200, "{}", page.text());
        Ok(Metrics::parse(&page.text())?.sum("postern_engine_requests_total", &[]))
    }

    /// Asks until the trick has been played on a request: a target that fails is left alone for a while.
    async fn played(&self, client: &Client, trick: Trick) -> Result<Reply> {
        self.middlebox.plays(trick.clone());
        let (began, before) = (Instant::now(), self.middlebox.sealed().len());
        loop {
            let reply = client.post_json("/v1/chat/completions", &short(SECRET)).await?;
            if self.middlebox.sealed().len() > before {
                return Ok(reply);
            }
            ensure!(began.elapsed() < SOON * 6, "nothing was sent for {trick:?}: {}", reply.text());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

const SECRET: &str = "Where do the grey herons of the second kind nest?";

fn officer(postern: &Postern) -> Result<Client> {
    Ok(postern.client("officer/cy")?.with_header("cache-control", "no-store"))
}

/// Asks until it is answered.
async fn answered(client: &Client, body: &Value) -> Result<Reply> {
    let began = Instant::now();
    loop {
        let reply = client.post_json("/v1/chat/completions", body).await?;
        if reply.status == 200 {
            return Ok(reply);
        }
        ensure!(began.elapsed() < SOON * 6, "{}: {}", reply.status, reply.text());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test]
async fn a_middlebox_carries_what_a_node_is_asked_and_learns_nothing() -> Result<()> {
    let scene = Scene::new(RELAY, None).await?;
    let postern = scene.gateway(true).await?;
    let officer = officer(&postern)?;
    let mut body = chat_body(SECRET);
    body["max_tokens"] = json!(24);
    let reply = officer.post_json("/v1/chat/completions", &body).await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "gpu"), "{} {}", reply.text(), postern.log());
    let mut stream = officer.stream(&body).await?;
    assert_eq!((stream.status, stream.header("postern-target")), (200, "gpu"));
    let events = stream.rest().await?;
    assert!(is_whole(&events), "{events:?}");
    for answer in [reply.answer(), text(&events)] {
        let part: String = answer.trim().chars().take(20).collect();
        assert!(part.len() > 10 && !scene.middlebox.has_read(&part), "{answer}");
    }
    assert!(scene.middlebox.has_read("POST") && scene.middlebox.has_read(PLACE), "it was on the way");
    for word in ["heron", "officer", "confidential", "postern-tenant", "chat/completions", "delta", "choices"] {
        assert!(!scene.middlebox.has_read(word), "{word}");
    }
    assert_eq!(scene.cloud.stats().await?.requests, 0);
    // The node takes it as the gateway's: it believes on whose behalf it is asked, which the relay could not say.
    let long = "the quick river runs past the old stone bridge and the winter garden ".repeat(20);
    let question = |number: usize| {
        let asked = format!("Question {number}: what runs?");
        let messages = json!([{"role": "system", "content": long}, {"role": "user", "content": asked}]);
        json!({"model": "chat", "max_tokens": 1, "temperature": 0, "messages": messages})
    };
    let ask = async |who: &str, number| {
        cached(&postern.client(who)?.post_json("/v1/chat/completions", &question(number)).await?)
    };
    assert_eq!(ask("officer/cy", 1).await?, 0);
    assert!(ask("officer/dan", 2).await? > 100);
    // Its load is looked at through the middlebox as well.
    let seen = || Ok(scene.middlebox.has_read("GET") && scene.middlebox.has_read("queue_depth"));
    until("its page is looked at", async || seen()).await?;
    // Who was not told of the middlebox refuses it.
    drop(postern);
    let postern = scene.gateway(false).await?;
    let reply = self::officer(&postern)?.chat("Hello").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"), "{}", reply.text());
    postern.logged("Name its authority as `openai.ca`").await?;
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_not_named_as_one_is_not_asked_in_clear_without_a_word() -> Result<()> {
    let scene = Scene::new(RELAY, None).await?;
    let target = json!({
        "name": "gpu", "placement": "edge", "clearance": "confidential", "models": {"chat": "engine"},
        "openai": {"base_url": format!("https://{}/v1", scene.middlebox.address), "ca": scene.middlebox.ca()},
    });
    let postern = Postern::start(&scene.office.config.clone().push("/targets", target)).await?;
    postern.logged("reads prompts in clear").await?;
    // Nothing is wrong with the request, so the next target is asked.
    let amy = postern.client("clerk/amy")?.with_header("postern-placement", "edge-first");
    let reply = amy.chat("Hello").await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_ne!(reply.header("postern-target"), "gpu");
    let outcome = scene.office.records().of(reply.header("postern-record"), SOON).await?.outcome;
    assert_eq!(outcome["attempts"][0]["result"], "not_sealed", "{outcome}");
    postern.logged("code payload_not_sealed").await?;
    let reply = officer(&postern)?.chat("Hello").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_refuses_us"), "{}", reply.text());
    Ok(())
}

#[tokio::test]
async fn no_trick_of_a_middlebox_before_a_node_is_more_than_an_error() -> Result<()> {
    let scene = Scene::new(RELAY, None).await?;
    let postern = scene.gateway(true).await?;
    let officer = officer(&postern)?;
    // Keys of its own: nothing is sealed for them.
    scene.middlebox.plays(Trick::SwapKeys);
    assert_eq!(officer.chat(SECRET).await?.status, 503);
    assert!(postern.log().contains("the signature of its keys is refused"), "{}", postern.log());
    assert!(scene.middlebox.sealed().is_empty());
    scene.middlebox.plays(Trick::None);
    answered(&officer, &short("Hello")).await?;

    let refused = async |trick: Trick| -> Result<()> {
        let reply = scene.played(&officer, trick.clone()).await?;
        assert!([502, 503].contains(&reply.status), "{trick:?}: {} {}", reply.status, reply.text());
        assert!(!reply.text().contains("forged") && !reply.text().contains("heron"), "{trick:?}: {}", reply.text());
        Ok(())
    };
    let acted_on = scene.acted_on().await?;
    let forged = json!({"choices": [{"message": {"role": "assistant", "content": "forged"}, "finish_reason": "stop"}]});
    let error = |code| json!({"error": {"message": "forged", "type": "x", "param": null, "code": code}}).to_string();
    for trick in [
        Trick::FlipRequest(3),
        Trick::Elsewhere(Method::POST, "/v1/chat/completions".into()),
        Trick::Elsewhere(Method::PUT, PLACE.into()),
        Trick::StripSeal,
        Trick::Answer(200, forged.to_string()),
        Trick::Answer(400, error("context_length_exceeded")),
        Trick::Answer(413, error("context_length_exceeded")),
        Trick::Answer(422, error("forged")),
        Trick::Answer(500, error("forged")),
    ] {
        refused(trick).await?;
    }
    assert_eq!(scene.acted_on().await?.to_bits(), acted_on.to_bits(), "nothing of all that was acted on");
    // It says that the node knows the key no more: the node would have to sign another one.
    let before = scene.middlebox.sealed().len();
    scene.middlebox.plays(Trick::Answer(400, error("payload_key_unknown")));
    let reply = scene.played(&officer, Trick::Answer(400, error("payload_key_unknown"))).await?;
    let outcome = scene.office.records().of(reply.header("postern-record"), SOON).await?.outcome;
    let attempts = outcome["attempts"].as_array().map_or(0, Vec::len);
    assert_eq!(scene.middlebox.sealed().len() - before, attempts, "each was sealed once: {outcome}");
    // Each request is worked on once, whatever comes back.
    let (before, acted_on) = (scene.middlebox.sealed().len(), scene.acted_on().await?);
    refused(Trick::Repeat).await?;
    let sent = scene.middlebox.sealed().len() - before;
    assert!(scene.acted_on().await? - acted_on <= sent as f64);
    assert!(postern.log().contains("payload_replayed"), "{}", postern.log());
    for trick in [Trick::FlipAnswer(10), Trick::FlipAnswer(70), Trick::CutAnswer(40), Trick::OldAnswer] {
        refused(trick).await?;
    }
    scene.middlebox.plays(Trick::None);
    answered(&officer, &short("Hello again")).await?;
    let mut body = long_story();
    body["max_tokens"] = json!(60);
    let mut begun = 0;
    for trick in [Trick::CutAnswer(1200), Trick::DoubleAnswer, Trick::FlipAnswer(1200)] {
        scene.middlebox.plays(Trick::None);
        answered(&officer, &short("Once more")).await?;
        scene.middlebox.plays(trick.clone());
        let mut stream = officer.stream(&body).await?;
        if stream.status == 200 {
            begun += 1;
            let events = stream.rest().await?;
            assert!(!events.iter().any(Event::is_done), "{trick:?}: {events:?}");
            assert!(events.last().is_some_and(|last| !last.error_code().is_empty()), "{trick:?}: {events:?}");
        }
    }
    // The second frame may come before the first token.
    assert!(begun >= 2, "{begun} streams had begun");
    Ok(())
}

#[tokio::test]
async fn a_relay_before_a_node_asks_nothing_itself_and_repeats_nothing() -> Result<()> {
    let scene = Scene::new(RELAY, None).await?;
    let postern = scene.gateway(true).await?;
    let officer = officer(&postern)?;
    answered(&officer, &short(SECRET)).await?;
    let (relay, acted_on) = (scene.relay()?, scene.acted_on().await?);
    let mut plain = short("Hello");
    plain["model"] = json!("engine");
    for client in [relay.clone(), relay.http2()] {
        let reply = client.post_json("/v1/chat/completions", &plain).await?;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, "payload_not_sealed"), "{}", reply.text());
        assert_eq!(client.get("/state").await?.error_code(), "payload_not_sealed");
        assert_eq!((client.get("/livez").await?.status, client.get(PLACE).await?.status), (200, 200));
    }
    // Signed by somebody who may not ask this node: a workstation, the relay itself, nobody.
    for (id, name, is_signed) in
        [("spiffe://branch.test/clerk/eve", "eve", true), (RELAY, "itself", true), (RELAY, "itself", false)]
    {
        let who = Workstation::of(&relay, &scene.office.issue(id, name)?)?;
        let draft = Draft { gateway: NODE.into(), is_signed, body: plain.to_string().into(), ..Draft::chat("") };
        let reply = who.ask(&draft).await?;
        assert_eq!((reply.status, reply.error_code().as_str()), (403, "payload_sender_refused"), "{id}");
    }
    // What it has recorded is good for nothing, here or at another node of the same name.
    let other = Node::start(&scene.office.issue(NODE, "gpu-1")?, &["--relay", RELAY]).await?;
    let own = scene.office.issue(RELAY, "itself")?;
    for address in [&scene.node, &other] {
        let resend = Workstation::of(&address.client(Some(identity(&own)?)), &own)?;
        for bytes in scene.middlebox.sealed() {
            let reply = resend.send(bytes).await?;
            assert!(reply.status >= 400 && reply.error_code().starts_with("payload_"), "{}", reply.text());
        }
    }
    assert_eq!(scene.acted_on().await?.to_bits(), acted_on.to_bits());
    answered(&officer, &short("And this?")).await?;
    Ok(())
}

#[tokio::test]
async fn a_relay_that_a_node_was_not_told_of_does_not_come_in() -> Result<()> {
    let scene = Scene::new("spiffe://branch.test/relay/other", None).await?;
    let postern = scene.gateway(true).await?;
    let reply = officer(&postern)?.chat("Hello").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"), "{}", reply.text());
    until("it is said", async || Ok(scene.node.log().contains("not_allowed"))).await?;
    assert!(scene.node.log().contains("a middlebox is named with `--relay`"), "{}", scene.node.log());
    postern.logged("`--relay`?").await?;
    assert!(scene.relay()?.get("/livez").await.is_err());
    let both = ["--relay", "spiffe://branch.test/gateway"];
    let refused = Node::start(&scene.office.issue(NODE, "gpu-1")?, &both).await.unwrap_err();
    assert!(format!("{refused:?}").contains("cannot be its --relay too"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_node_behind_a_middlebox_that_is_revoked_is_asked_nothing_any_more() -> Result<()> {
    let scene = Scene::new(RELAY, None).await?;
    let postern = scene.gateway(true).await?;
    let officer = officer(&postern)?;
    let mut stream = officer.stream(&long_story()).await?;
    assert_eq!((stream.status, stream.header("postern-target")), (200, "gpu"), "{}", postern.log());
    stream.next().await?.context("no event")?;
    postern.certs(&["revoke", "--id", NODE])?;
    let events = stream.rest().await?;
    assert_eq!(events.last().map(Event::error_code).as_deref(), Some("stream_broken"), "{events:?}");
    let sent = scene.middlebox.sealed().len();
    for _ in 0..3 {
        let reply = officer.post_json("/v1/chat/completions", &short("Hello")).await?;
        assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"), "{}", reply.text());
    }
    assert_eq!(scene.middlebox.sealed().len(), sent, "nothing was sealed for it");
    until("it is said", async || Ok(postern.log().to_lowercase().contains("revoked"))).await?;
    Ok(())
}

#[tokio::test]
async fn nothing_goes_on_after_the_end_of_the_middlebox_s_certificate() -> Result<()> {
    let scene = Scene::new(RELAY, Some(Duration::from_secs(45))).await?;
    let postern = scene.gateway(true).await?;
    let mut stream = officer(&postern)?.stream(&long_story()).await?;
    assert_eq!((stream.status, stream.header("postern-target")), (200, "gpu"), "{}", postern.log());
    let events = stream.rest().await?;
    assert_eq!(events.last().map(Event::error_code).as_deref(), Some("stream_broken"), "{events:?}");
    let (now, end) = (OffsetDateTime::now_utc(), scene.end.context("it ends")?);
    assert!(now > end - Duration::from_secs(2), "it was broken off before: {now}, not {end}");
    Ok(())
}
