//! The busy cloud does what its switches say, and sees what happens to it.

use std::time::Duration;

use http::{Method, Version};
use postern_tests::client::{Client, Event, Reply, chat_body, text};
use postern_tests::tls::Identity;
use postern_tests::{BusyCloud, config::CLOUD_KEY};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);

fn client(cloud: &BusyCloud) -> Client {
    let address = cloud.base_url().strip_prefix("https://").unwrap().strip_suffix("/v1").unwrap();
    let client = Client::new(address.parse().unwrap(), cloud.ca(), None);
    client.with_header("authorization", &format!("Bearer {}", CLOUD_KEY.1))
}

async fn switched(switches: Value) -> (BusyCloud, Client) {
    let cloud = BusyCloud::start().await.unwrap();
    cloud.switch(switches).await.unwrap();
    let client = client(&cloud);
    (cloud, client)
}

async fn events(client: &Client, prompt: &str) -> Vec<Event> {
    client.stream(&chat_body(prompt)).await.unwrap().rest().await.unwrap()
}

fn statuses(replies: &[Reply]) -> Vec<u16> {
    replies.iter().map(|reply| reply.status).collect()
}

#[tokio::test]
async fn answers_over_both_versions_of_http_and_counts() {
    let (cloud, client) = switched(json!({})).await;
    for (client, version) in [(client.clone(), Version::HTTP_11), (client.http2(), Version::HTTP_2)] {
        let reply = client.chat("what is a postern?").await.unwrap();
        assert_eq!((reply.status, reply.version), (200, version));
        assert_eq!(reply.answer(), "You asked: what is a postern?");
        let events = events(&client, "and a door?").await;
        assert_eq!(text(&events), "You asked: and a door?");
        assert!(events.last().unwrap().is_done());
        assert!(events.iter().all(|event| event.delta().chars().count() <= 3));
    }
    let models = client.get("/v1/models").await.unwrap();
    assert_eq!(models.json().unwrap()["data"][0]["id"], "busy-large");
    let stats = cloud.stats_when(SOON, |stats| stats.open == 0).await.unwrap();
    assert_eq!((stats.requests, stats.completed, stats.refused, stats.cancelled), (4, 4, 0, 0));
    assert_eq!((stats.other_requests, stats.connections), (1, 5));
    assert_eq!(stats.bodies[0]["messages"][0]["content"], "what is a postern?");
    assert_eq!(stats.headers[0]["authorization"], format!("Bearer {}", CLOUD_KEY.1));
    cloud.reset().await.unwrap();
    assert_eq!(cloud.stats().await.unwrap().requests, 0);
}

#[tokio::test]
async fn asks_for_a_key_and_if_told_for_a_certificate() {
    let cloud = BusyCloud::start_with(&["--client-certificates"]).await.unwrap();
    let without = client(&cloud).chat("x").await.unwrap_err();
    assert!(format!("{without:#}").to_lowercase().contains("certificate"), "{without:#}");
    let dir = cloud.dir();
    let identity = Identity::read(&dir.join("client-cert.pem"), &dir.join("client-key.pem")).unwrap();
    let address = cloud.base_url().strip_prefix("https://").unwrap().strip_suffix("/v1").unwrap().parse().unwrap();
    let client = Client::new(address, cloud.ca(), Some(identity));
    let reply = client.chat("x").await.unwrap();
    assert_eq!((reply.status, reply.error_code().as_str()), (401, "invalid_api_key"));
    let reply = client.with_header("authorization", "Bearer any").chat("x").await.unwrap();
    assert_eq!(reply.status, 200);
    let stats = cloud.stats().await.unwrap();
    assert_eq!((stats.requests, stats.refused, stats.completed), (2, 1, 1));
}

#[tokio::test]
async fn is_unavailable_for_a_share_and_limits_the_rate() {
    let (cloud, client) = switched(json!({"unavailable_share": 0.5})).await;
    let mut replies = Vec::new();
    for _ in 0..4 {
        replies.push(client.chat("x").await.unwrap());
    }
    assert_eq!(statuses(&replies), [200, 503, 200, 503]);
    cloud.switch(json!({"requests_per_minute": 2})).await.unwrap();
    replies.clear();
    for _ in 0..3 {
        replies.push(client.chat("x").await.unwrap());
    }
    assert_eq!(statuses(&replies), [200, 200, 429]);
    let after: u64 = replies[2].header("retry-after").parse().unwrap();
    assert!((58..=60).contains(&after), "{after}");
    let stats = cloud.stats().await.unwrap();
    assert_eq!((stats.requests, stats.completed, stats.refused), (7, 4, 3));
    assert_eq!(stats.statuses, [(200, 4), (429, 1), (503, 2)].into());
    let error = cloud.switch(json!({"unavailable_shares": 1})).await.unwrap_err();
    assert!(format!("{error:#}").contains("unavailable_shares"), "{error:#}");
}

#[tokio::test]
async fn takes_its_time() {
    let (_cloud, client) = switched(json!({"latency_ms": 150, "token_ms": 20, "answer": "abcdefghi"})).await;
    let mut stream = client.stream(&chat_body("x")).await.unwrap();
    assert!(stream.headers_at >= Duration::from_millis(150), "{:?}", stream.headers_at);
    let events = stream.rest().await.unwrap();
    let at: Vec<_> = events.iter().filter(|event| !event.delta().is_empty()).map(|event| event.at).collect();
    assert_eq!(at.len(), 3);
    assert!(at[2] - at[0] >= Duration::from_millis(38), "{at:?}");
    let plain = client.chat("x").await.unwrap();
    assert!(plain.elapsed >= Duration::from_millis(150 + 3 * 20), "{:?}", plain.elapsed);
}

#[tokio::test]
async fn dies_in_mid_stream_and_in_mid_body() {
    for client_of in [Client::clone as fn(&Client) -> Client, Client::http2] {
        let (cloud, client) = switched(json!({"die_after_chunks": 2})).await;
        let client = client_of(&client);
        let mut stream = client.stream(&chat_body("x")).await.unwrap();
        let mut said = String::new();
        let error = loop {
            match stream.next().await {
                Ok(Some(event)) => said += &event.delta(),
                Ok(None) => panic!("a clean end after {said:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(said, "You as", "{error:#}");
        client.chat("x").await.unwrap_err();
        let stats = cloud.stats_when(SOON, |stats| stats.open == 0).await.unwrap();
        assert_eq!((stats.requests, stats.cut, stats.completed, stats.cancelled), (2, 2, 0, 0));
    }
}

#[tokio::test]
async fn notices_that_a_client_went_away() {
    for switches in [json!({"hang_before_headers": true}), json!({"hang_after_chunks": 1}), json!({"token_ms": 60_000})]
    {
        for client_of in [Client::clone as fn(&Client) -> Client, Client::http2] {
            let (cloud, client) = switched(switches.clone()).await;
            let client = client_of(&client);
            let asking = tokio::spawn(async move {
                let mut stream = client.stream(&chat_body("x")).await.unwrap();
                while stream.next().await.unwrap().is_some() {}
            });
            cloud.stats_when(SOON, |stats| stats.open == 1).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let gone = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
            asking.abort();
            let stats = cloud.stats_when(SOON, |stats| stats.open == 0).await.unwrap();
            assert_eq!((stats.cancelled, stats.completed), (1, 0), "{switches}");
            let noticed_after = stats.last_cancel_unix_ms.unwrap().saturating_sub(gone);
            // About 1 ms on an idle machine; the bound is for one that is busy with something else.
            assert!(noticed_after < 2000, "{switches}: {noticed_after} ms");
            assert!(stats.last_cancel_ms_after_start.unwrap() >= 50, "{switches}");
        }
    }
}

#[tokio::test]
async fn answers_wrongly_when_told_to() {
    let (cloud, client) = switched(json!({"malformed": "status"})).await;
    assert_eq!(client.chat("x").await.unwrap().status, 999);
    cloud.switch(json!({"malformed": "content_type"})).await.unwrap();
    let page = client.chat("x").await.unwrap();
    assert!(page.header("content-type").starts_with("text/html") && page.text().starts_with("<html>"));
    cloud.switch(json!({"malformed": "json"})).await.unwrap();
    assert!(client.chat("x").await.unwrap().json().is_err());
    assert_eq!(events(&client, "x").await.iter().filter(|event| event.json().is_null()).count(), 2);
    cloud.switch(json!({"malformed": "sse"})).await.unwrap();
    let mut stream = client.stream(&chat_body("x")).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().delta(), "Well");
    assert!(stream.next().await.unwrap_err().to_string().contains("within an event"));
    cloud.switch(json!({"malformed": "huge"})).await.unwrap();
    assert!(client.chat("x").await.unwrap().body.len() > 64 << 20);
}

#[tokio::test]
async fn redirects_sets_cookies_and_fails_with_a_text() {
    let (cloud, client) = switched(json!({"redirect": "https://elsewhere.test/", "set_cookie": true})).await;
    let reply = client.chat("x").await.unwrap();
    assert_eq!((reply.status, reply.header("location")), (307, "https://elsewhere.test/"));
    assert!(!reply.header("set-cookie").is_empty() && !reply.header("alt-svc").is_empty());
    cloud.switch(json!({"error_text": "the disk of host 17 is full"})).await.unwrap();
    let reply = client.chat("x").await.unwrap();
    assert_eq!((reply.status, reply.error_message().as_str()), (500, "the disk of host 17 is full"));
    let stats = cloud.stats().await.unwrap();
    assert_eq!((stats.requests, stats.refused), (2, 2));
}

#[tokio::test]
async fn keeps_the_last_64_bodies() {
    let (cloud, client) = switched(json!({})).await;
    let pooled = client.http2().pooled().unwrap();
    for number in 0..70 {
        assert_eq!(pooled.chat(&number.to_string()).await.unwrap().status, 200);
    }
    client.post_bytes("/v1/chat/completions", "not JSON".into()).await.unwrap();
    let stats = cloud.stats().await.unwrap();
    assert_eq!((stats.requests, stats.bodies.len(), stats.connections), (71, 64, 2));
    assert_eq!(stats.bodies[0]["messages"][0]["content"], "7");
    assert_eq!(stats.bodies[63], "not JSON");
    let unknown = client.send(client.request(Method::DELETE, "/v1/files", "".into()).unwrap()).await.unwrap();
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn raw_bytes_reach_it_as_they_are_sent() {
    let (cloud, client) = switched(json!({})).await;
    let mut raw = client.raw().await.unwrap();
    raw.send_slowly(b"GET /v1/models HTTP/1.1\r\n", Duration::from_millis(1)).await.unwrap();
    raw.send(b"Host: x\r\nAuthorization: Bearer k\r\nConnection: close\r\n\r\n").await.unwrap();
    let head = raw.read_until("\r\n\r\n", SOON).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(raw.read_to_end(SOON).await.unwrap().contains("busy-small"));
    assert_eq!(cloud.stats().await.unwrap().other_requests, 1);
}
