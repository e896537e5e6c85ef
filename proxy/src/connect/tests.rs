//! The connector against a gateway in this process: real TLS, real HTTP/2, real signatures.

mod gateway;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use postern_certs::{Authority, AuthorityOptions, Clock, LeafRequest, Role, SpiffeId};
use serde_json::Value;
use tempfile::TempDir;
use time::OffsetDateTime;

use self::gateway::{Gateway, Plan};
use super::*;

const CHAT: &str = "/v1/chat/completions";
const AMY: &str = "spiffe://b.example/clerk/amy";

/// An office, and the folder of a workstation that was enrolled there.
struct Office {
    authority: Arc<Authority>,
    workstation: PathBuf,
    _folder: TempDir,
}

impl Office {
    fn new() -> Self {
        Self::with(AuthorityOptions::new("b.example", Duration::from_secs(3600)))
    }

    fn with(options: AuthorityOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(&folder.path().join("authority"), options).unwrap();
        let leaf = authority.issue(LeafRequest { id: AMY.parse().unwrap(), role: Role::Workload }).unwrap();
        let workstation = folder.path().join("amy");
        leaf.write(&workstation, &authority.trust_bundle()).unwrap();
        workstation::write_gateway(&workstation, authority.gateway_id()).unwrap();
        Self { authority: Arc::new(authority), workstation, _folder: folder }
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        self.authority.trust_bundle().iter().for_each(|root| roots.add(root.clone()).unwrap());
        Arc::new(roots)
    }
}

/// A running connector.
struct Connector {
    front: Arc<Front>,
    address: SocketAddr,
    token: String,
}

impl Connector {
    async fn of(office: &Office, gateway: SocketAddr) -> Self {
        Self::with(office, gateway, None).await
    }

    async fn with(office: &Office, gateway: SocketAddr, middlebox: Option<Arc<rustls::RootCertStore>>) -> Self {
        let dir = office.workstation.as_path();
        let identity = Arc::new(Identity::open(dir, middlebox).unwrap());
        let token = Token::open(dir).unwrap();
        let link = Arc::new(Link::new(gateway.to_string(), identity.clone()).unwrap());
        let front = Arc::new(Front::new(link, identity, Some(token)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = front.clone();
        tokio::spawn(async move {
            serving.serve(&listener, CancellationToken::new(), TaskTracker::new()).await;
        });
        let token = std::fs::read_to_string(dir.join("token")).unwrap().trim().to_owned();
        Self { front, address, token }
    }

    /// With a connection of its own, which ends when the response is dropped.
    async fn send(&self, request: Request<Full<Bytes>>) -> (http::Response<Incoming>, tokio::task::JoinHandle<()>) {
        let stream = egress::dial(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(async move { drop(connection.await) });
        (sender.send_request(request).await.unwrap(), driver)
    }

    fn request(&self, method: &str, path: &str, body: &'static str) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method).uri(path).header("host", self.address.to_string());
        let request = request.header("authorization", format!("Bearer {}", self.token));
        request.header("content-type", "application/json").body(Full::from(body)).unwrap()
    }

    async fn post(&self, body: &'static str) -> http::Response<Incoming> {
        self.send(self.request("POST", CHAT, body)).await.0
    }

    async fn ask(&self, body: &'static str) -> (StatusCode, HeaderMap, Value) {
        whole(self.post(body).await).await
    }
}

async fn whole(response: http::Response<Incoming>) -> (StatusCode, HeaderMap, Value) {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn code(answer: &(StatusCode, HeaderMap, Value)) -> (u16, &str) {
    (answer.0.as_u16(), answer.2["error"]["code"].as_str().unwrap_or("none"))
}

async fn next(response: &mut http::Response<Incoming>) -> Option<String> {
    let frame = tokio::time::timeout(Duration::from_secs(5), response.frame()).await.unwrap()?;
    Some(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
}

#[tokio::test]
async fn a_request_goes_sealed_and_signed_and_its_answer_comes_back() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let mut request = connector.request("POST", "/v1/chat/completions?a=1", r#"{"model":"m"}"#);
    for (name, value) in [("postern-label", "internal"), ("x-mine", "1"), ("postern-sender", "eve"), ("cookie", "c")] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = whole(connector.send(request).await.0).await;
    assert_eq!((answer.0, &answer.2["echo"]), (StatusCode::OK, &Value::from(r#"{"model":"m"}"#)));
    assert_eq!(answer.1["x-inner"], "of the gateway");
    assert_eq!(answer.1["access-control-allow-origin"], "*");
    let seen = gateway.seen();
    let [seen] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(seen.line, "POST /v1/chat/completions?a=1");
    assert_eq!(seen.sender, AMY);
    assert_eq!(
        (&seen.headers["postern-label"], &seen.headers["x-mine"]),
        (&"internal".parse().unwrap(), &"1".parse().unwrap())
    );
    for gone in ["authorization", "cookie", "host"] {
        assert!(!seen.headers.contains_key(gone), "{gone}");
    }
    // Another one goes over the same connection, and with the same keys.
    let models = whole(connector.send(connector.request("GET", "/v1/models", "")).await.0).await;
    assert_eq!(models.0, StatusCode::OK);
    assert_eq!((gateway.connections(), gateway.fetches()), (1, 1));
}

#[tokio::test]
async fn without_the_token_nobody_gets_anything() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    for token in ["Bearer wrong", ""] {
        let mut request = connector.request("POST", CHAT, "{}");
        request.headers_mut().insert("authorization", token.parse().unwrap());
        let answer = whole(connector.send(request).await.0).await;
        assert_eq!(code(&answer), (401, "connector_token"));
        assert!(!answer.2.to_string().contains(&connector.token));
    }
    let mut status = connector.request("GET", status::PATH, "");
    status.headers_mut().remove("authorization");
    assert_eq!(whole(connector.send(status).await.0).await.0, StatusCode::UNAUTHORIZED);
    for path in ["/", "/v1", "/v2/models", "/.well-known/postern/renew"] {
        let answer = whole(connector.send(connector.request("POST", path, "")).await.0).await;
        assert_eq!(code(&answer), (404, "not_found"), "{path}");
    }
    let mut preflight = connector.request("OPTIONS", CHAT, "");
    preflight.headers_mut().remove("authorization");
    preflight.headers_mut().insert("access-control-request-method", "POST".parse().unwrap());
    let (status, headers, _) = whole(connector.send(preflight).await.0).await;
    assert_eq!((status, &headers["access-control-allow-origin"]), (StatusCode::NO_CONTENT, &"*".parse().unwrap()));
    assert!(headers["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    assert!(gateway.seen().is_empty());
}

#[tokio::test]
async fn tokens_come_one_by_one() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let events = gateway.stream("text/event-stream");
    let mut response = connector.post(r#"{"stream":true}"#).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for token in 0..5 {
        let event = format!("data: {{\"token\":{token}}}\n\n");
        events.send(Some(event.clone())).await.unwrap();
        // Nothing else is sent until it is here.
        assert_eq!(next(&mut response).await, Some(event));
    }
    events.send(Some("data: [DONE]\n\n".into())).await.unwrap();
    events.send(None).await.unwrap();
    assert_eq!(next(&mut response).await.as_deref(), Some("data: [DONE]\n\n"));
    assert_eq!(next(&mut response).await, None);
}

#[tokio::test]
async fn an_answer_that_is_cut_is_told_as_such() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let events = gateway.stream("text/event-stream");
    let mut response = connector.post(r#"{"stream":true}"#).await;
    events.send(Some("data: 1\n\n".into())).await.unwrap();
    assert_eq!(next(&mut response).await.as_deref(), Some("data: 1\n\n"));
    // Somebody on the way ends the stream cleanly, but for what only the gateway can write.
    drop(events);
    let last = next(&mut response).await.unwrap();
    let error: Value = serde_json::from_str(last.trim().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "answer_incomplete");
    assert_eq!(next(&mut response).await, None);
    // Of an answer that is no stream nothing was given out yet, so it is an error in words.
    for half in [None, Some("{\"half\":")] {
        let pieces = gateway.stream("application/json");
        let sending = async {
            if let Some(half) = half {
                pieces.send(Some(half.into())).await.unwrap();
            }
            drop(pieces);
        };
        let (answer, ()) = tokio::join!(connector.ask("{}"), sending);
        assert_eq!(code(&answer), (502, "answer_incomplete"), "{half:?}");
        assert!(answer.2["error"]["message"].as_str().unwrap().contains("cut"), "{}", answer.2);
    }
    // But of a large one something was.
    let pieces = gateway.stream("application/json");
    let sending = async {
        for _ in 0..9 {
            pieces.send(Some("x".repeat(32 << 10))).await.unwrap();
        }
        drop(pieces);
    };
    let (response, ()) = tokio::join!(connector.post("{}"), sending);
    assert!(response.status() == StatusCode::OK && response.into_body().collect().await.is_err(), "no clean end");
    let failed = &connector.front.counts.failed;
    assert_eq!(failed.load(std::sync::atomic::Ordering::Relaxed), 4);
    let status = whole(connector.send(connector.request("GET", status::PATH, "")).await.0).await.2;
    assert_eq!(
        (&status["last_failure"]["status"], &status["last_failure"]["code"]),
        (&502.into(), &"answer_incomplete".into())
    );
}

#[tokio::test]
async fn keys_that_are_not_known_any_more_are_fetched_anew() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK);
    gateway.new_keys();
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK);
    assert_eq!((gateway.fetches(), gateway.posts()), (2, 3));
    gateway.plan(Plan::NeverKnowsKeys);
    let answer = connector.ask("{}").await;
    assert_eq!(code(&answer), (422, "payload_key_unknown"));
    assert_eq!((gateway.fetches(), gateway.posts()), (4, 6));
    assert!(!answer.2.to_string().contains("secret words"));
}

#[tokio::test]
async fn keys_that_somebody_else_put_there_are_refused() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    gateway.plan(Plan::SwapsKeys);
    let connector = Connector::of(&office, gateway.address).await;
    assert_eq!(code(&connector.ask("{}").await), (502, "gateway_not_authentic"));
    assert_eq!(gateway.posts(), 0, "nothing was sent");
    gateway.plan(Plan::Answers);
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_answer_that_is_not_sealed_is_not_shown() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    gateway.plan(Plan::AnswersInClear);
    assert_eq!(code(&connector.ask("{}").await), (502, "answer_not_sealed"));
    gateway.plan(Plan::AnswersWithAnothersSeal);
    assert_eq!(code(&connector.ask("{}").await), (502, "answer_not_authentic"));
}

#[tokio::test]
async fn a_gateway_that_is_away_is_told_and_found_again() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK);
    let address = gateway.stop().await;
    let answer = connector.ask("{}").await;
    assert_eq!(code(&answer), (503, "gateway_unreachable"));
    assert_eq!(answer.1["retry-after"], "2");
    let expected = format!(
        "The gateway {address} cannot be reached (connection refused). Check the network; requests will work again as soon as it answers."
    );
    assert_eq!(answer.2["error"]["message"], expected);
    let again = Gateway::at(&office.authority, address).await;
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK, "the next request connects at once");
    drop(again);
}

#[tokio::test]
async fn a_request_is_sent_again_only_if_nobody_has_looked_at_it() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK);
    gateway.plan(Plan::Resets(h2::Reason::REFUSED_STREAM));
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK);
    assert_eq!((gateway.posts(), gateway.connections()), (3, 2));
    for reason in [h2::Reason::INTERNAL_ERROR, h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
        let before = gateway.posts();
        gateway.plan(Plan::Resets(reason));
        assert_eq!(code(&connector.ask("{}").await), (502, "gateway_unreachable"), "{reason:?}");
        assert_eq!(gateway.posts(), before + 1, "{reason:?}");
    }
}

#[tokio::test]
async fn the_connection_is_made_again_without_being_asked_for() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let link = connector.front.link.clone();
    let keeping = tokio::spawn(link.clone().keep());
    let becomes = async |connected: bool| {
        let waited = async {
            while link.present().is_some() != connected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap();
    };
    becomes(true).await;
    let address = gateway.stop().await;
    becomes(false).await;
    let again = Gateway::at(&office.authority, address).await;
    becomes(true).await;
    assert_eq!(again.posts(), 0);
    keeping.abort();
}

#[tokio::test]
async fn without_a_token_programs_are_served_and_pages_are_not() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let mut connector = Connector::of(&office, gateway.address).await;
    let front = Front::new(connector.front.link.clone(), connector.front.identity.clone(), None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    connector.address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        Arc::new(front).serve(&listener, CancellationToken::new(), TaskTracker::new()).await;
    });
    let answer = connector.ask("{}").await;
    assert_eq!((answer.0, answer.1.get("access-control-allow-origin")), (StatusCode::OK, None));
    for (name, value) in [("origin", "https://evil.example"), ("host", "evil.example")] {
        let mut request = connector.request("POST", CHAT, "{}");
        request.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(code(&whole(connector.send(request).await.0).await), (403, "connector_origin"));
    }
    assert_eq!(gateway.posts(), 1);
}

#[tokio::test]
async fn a_certificate_is_renewed_by_itself_when_it_is_due() {
    // Due after four to five of its ten seconds.
    let office = Office::with(AuthorityOptions::new("b.example", Duration::from_secs(10)));
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let identity = connector.front.identity.clone();
    let before = identity.current();
    let keeping = tokio::spawn(identity.clone().keep(connector.front.link.clone()));
    tokio::time::timeout(Duration::from_secs(9), before.replaced.cancelled()).await.unwrap();
    assert!(identity.current().not_after > before.not_after && identity.last_error().is_none());
    assert_eq!(gateway.seen().last().unwrap().line, "POST /.well-known/postern/renew");
    keeping.abort();
}

#[tokio::test]
async fn a_stream_whose_gateway_goes_away_ends_with_an_error() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let events = gateway.stream("text/event-stream");
    let mut response = connector.post(r#"{"stream":true}"#).await;
    events.send(Some("data: 1\n\n".into())).await.unwrap();
    assert!(next(&mut response).await.is_some());
    gateway.stop().await;
    assert!(next(&mut response).await.unwrap().contains("answer_incomplete"));
    assert_eq!(next(&mut response).await, None);
}

#[tokio::test]
async fn many_requests_share_one_connection_and_one_failed_attempt() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let asks = (0..32).map(|_| connector.ask("{}"));
    for answer in futures_util::future::join_all(asks).await {
        assert_eq!(answer.0, StatusCode::OK);
    }
    assert_eq!((gateway.connections(), gateway.fetches()), (1, 1));
    // Somebody takes connections and says nothing: one after the other would take half a minute.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = Connector::of(&office, silent.local_addr().unwrap()).await;
    let begun = std::time::Instant::now();
    let asks = (0..6).map(|_| connector.ask("{}"));
    for answer in futures_util::future::join_all(asks).await {
        assert_eq!(code(&answer), (503, "gateway_unreachable"));
        assert!(answer.2.to_string().contains("no answer within 5 s"));
    }
    assert!(begun.elapsed() < Duration::from_secs(9));
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_the_gateway_and_streams_go_on() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let events = gateway.stream("text/event-stream");
    let mut response = connector.post(r#"{"stream":true}"#).await;
    let before = gateway.seen().last().unwrap().serial.clone();
    events.send(Some("data: 1\n\n".into())).await.unwrap();
    assert!(next(&mut response).await.is_some());
    let identity = connector.front.identity.clone();
    identity.renew(&connector.front.link).await.unwrap();
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK);
    let after = gateway.seen().last().unwrap().serial.clone();
    assert_ne!(before, after, "signed with the new key");
    assert_eq!(gateway.connections(), 2);
    events.send(Some("data: 2\n\n".into())).await.unwrap();
    assert_eq!(next(&mut response).await.as_deref(), Some("data: 2\n\n"), "what was under way goes on");
    let on_disk = workstation::read_leaf(&office.workstation).unwrap();
    assert_eq!(on_disk.chain, identity.current().signatory.chain());
}

#[tokio::test]
async fn files_that_somebody_else_replaced_are_taken_up() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let front = connector.front.clone();
    tokio::spawn(front.identity.clone().keep(front.link.clone()));
    let leaf = office.authority.issue(LeafRequest { id: AMY.parse().unwrap(), role: Role::Workload }).unwrap();
    leaf.write(&office.workstation, &office.authority.trust_bundle()).unwrap();
    let taken = async {
        while front.identity.current().signatory.chain() != leaf.chain {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken).await.unwrap();
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK);
}

#[derive(Debug)]
struct Late(time::Duration);

impl Clock for Late {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() - self.0
    }
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_told_with_what_to_do() {
    let clock = Arc::new(Late(time::Duration::days(5)));
    let office =
        Office::with(AuthorityOptions { clock, ..AuthorityOptions::new("b.example", Duration::from_secs(3600)) });
    let connector = Connector::of(&office, "127.0.0.1:9".parse().unwrap()).await;
    let answer = connector.ask("{}").await;
    assert_eq!(code(&answer), (503, "certificate_expired"));
    let message = answer.2["error"]["message"].as_str().unwrap();
    assert!(message.contains("invite") && message.contains("postern certs enrol"), "{message}");
}

#[tokio::test]
async fn a_middlebox_is_refused_unless_its_authority_is_named_and_sees_nothing_then() {
    let (office, theirs) = (Office::new(), Office::new());
    let middlebox = Gateway::behind_middlebox(&office.authority, &theirs.authority).await;
    let plain = Connector::of(&office, middlebox.address).await;
    let answer = plain.ask("{}").await;
    assert_eq!(code(&answer), (502, "gateway_not_authentic"));
    assert!(answer.2.to_string().contains("name its authority with --middlebox-ca"), "{}", answer.2);
    let through = Connector::with(&office, middlebox.address, Some(theirs.roots())).await;
    assert_eq!(through.ask("{}").await.0, StatusCode::OK);
    through.front.identity.renew(&through.front.link).await.unwrap();
    middlebox.plan(Plan::SwapsKeys);
    middlebox.new_keys();
    let answer = through.ask("{}").await;
    assert_eq!(code(&answer), (502, "gateway_not_authentic"));
    let said = answer.2.to_string();
    assert!(said.contains("put other keys in place of the gateway's") && !said.contains("--middlebox-ca"), "{said}");
    let stranger = Gateway::behind_middlebox(&office.authority, &Office::new().authority).await;
    let refused = Connector::with(&office, stranger.address, Some(theirs.roots())).await;
    assert_eq!(code(&refused.ask("{}").await), (502, "gateway_not_authentic"));
}

#[tokio::test]
async fn a_workstation_that_is_not_let_in_reads_why() {
    let (office, other) = (Office::new(), Office::new());
    let gateway = Gateway::asking_for(&office.authority, &other.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    // However often: the alert is not lost to the end of the connection.
    for _ in 0..20 {
        let answer = connector.ask("{}").await;
        assert_eq!(code(&answer), (503, "certificate_refused"), "{}", answer.2);
        let message = answer.2["error"]["message"].as_str().unwrap();
        assert!(message.contains("alert") && message.contains("invite"), "{message}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_answer_at_the_gateway() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let events = gateway.stream("text/event-stream");
    let (mut response, driver) = connector.send(connector.request("POST", CHAT, "{}")).await;
    events.send(Some("data: 1\n\n".into())).await.unwrap();
    assert!(next(&mut response).await.is_some());
    driver.abort();
    drop(response);
    tokio::time::timeout(Duration::from_secs(5), events.closed()).await.unwrap();
    // Also before it began.
    let events = gateway.stream_without_head();
    let asking = connector.send(connector.request("POST", CHAT, "{}"));
    assert!(tokio::time::timeout(Duration::from_millis(200), asking).await.is_err());
    tokio::time::timeout(Duration::from_secs(5), events.closed()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_stops_reading_stops_the_gateway() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let events = gateway.stream("text/event-stream");
    let response = connector.post("{}").await;
    let piece = "x".repeat(64 << 10);
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_millis(500), events.send(Some(piece.clone()))).await.is_ok() {
        sent += piece.len();
        assert!(sent < 64 << 20, "nothing stops it");
    }
    // Others are not held up by it.
    gateway.plan(Plan::Answers);
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK);
    drop(response);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let office = Office::new();
    let connector = Connector::of(&office, "127.0.0.1:9".parse().unwrap()).await;
    let mut request = connector.request("POST", CHAT, "");
    *request.body_mut() = Full::from(vec![b'x'; (32 << 20) + 1]);
    assert_eq!(code(&whole(connector.send(request).await.0).await), (413, "request_too_large"));
}

#[tokio::test]
async fn what_it_says_of_itself_has_no_secret() {
    let office = Office::new();
    let gateway = Gateway::of(&office.authority).await;
    let connector = Connector::of(&office, gateway.address).await;
    let status = || async { whole(connector.send(connector.request("GET", status::PATH, "")).await.0).await.2 };
    let before = status().await;
    assert_eq!((&before["connected"], &before["keys"]), (&Value::Bool(false), &Value::Null));
    assert_eq!(before["last_failure"], Value::Null);
    assert_eq!(connector.ask("{}").await.0, StatusCode::OK);
    let after = status().await;
    assert_eq!(after["connected"], true);
    assert_eq!(after["identity"], AMY);
    assert_eq!(after["requests"], serde_json::json!({"total": 1, "under_way": 0, "failed": 0}));
    assert!(!after.to_string().contains(&connector.token));
}

#[test]
fn only_a_loopback_address_is_listened_on() {
    assert!(loopback("127.0.0.1:4141").is_ok() && loopback("[::1]:0").is_ok());
    for wrong in ["0.0.0.0:4141", "192.0.2.1:80", "[::]:1", "localhost:4141", "4141"] {
        assert!(loopback(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_folder_has_one_connector() {
    let folder = tempfile::tempdir().unwrap();
    let first = lock(folder.path()).unwrap();
    assert!(lock(folder.path()).unwrap_err().to_string().contains("another `postern connect`"));
    drop(first);
    assert!(lock(folder.path()).is_ok());
}

#[tokio::test]
async fn a_socket_is_for_this_user_and_only_a_stale_one_is_replaced() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let first = bind(&path).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(bind(&path).await.unwrap_err().to_string().contains("already"));
    drop(first);
    assert!(bind(&path).await.is_ok(), "nobody serves it");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "mine").unwrap();
    assert!(bind(&path).await.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[test]
fn an_identity_is_read_by_its_own_gateway_alone() {
    let office = Office::new();
    let identity = Identity::open(&office.workstation, None).unwrap();
    assert_eq!(identity.own(), &AMY.parse::<SpiffeId>().unwrap());
    assert_eq!(identity.gateway(), office.authority.gateway_id());
}
