use std::sync::atomic::{AtomicUsize, Ordering};

use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderValue, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_certs::{Authority, AuthorityOptions, IssuedLeaf, LeafRequest, Role, Signatory, SpiffeId};
use postern_sealed::chunked;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::*;
use crate::cli::workstation;
use crate::connect::sealing::Parties;
use crate::egress;

/// For whatever should have happened by now.
const SOON: Duration = Duration::from_secs(60);
const NODE: &str = "spiffe://td/node/gpu-1";
const RELAY: &str = "spiffe://td/relay/box";

type Sent = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;
type Requests = SendRequest<Sent>;

/// An authority, and a folder with the certificate of a node.
struct Office {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Office {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = AuthorityOptions::new("td", Duration::from_secs(3600));
        let authority = Authority::open_or_create(&dir.path().join("authority"), options).unwrap();
        let leaf = authority.issue(LeafRequest::below(authority.prefix(), NODE.parse().unwrap())).unwrap();
        leaf.write(&dir.path().join("node"), &authority.trust_bundle()).unwrap();
        Self { dir, authority }
    }

    async fn identity(&self) -> Identity {
        Identity::open(&self.dir.path().join("node"), Vec::new(), vec![RELAY.parse().unwrap()]).await.unwrap().0
    }

    /// A node that answers with `router`, and a connection of the gateway to it.
    async fn gateway_of(&self, router: Router, places: usize) -> Requests {
        let address = self.node(router, places).await;
        self.connect(address, &self.gateway()).await
    }

    async fn node(&self, router: Router, places: usize) -> SocketAddr {
        let node = Node::new(Arc::new(self.identity().await), router, places);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(node.serve(listener, CancellationToken::new()));
        address
    }

    fn gateway(&self) -> IssuedLeaf {
        let role = Role::Gateway { names: Vec::new() };
        self.authority.issue(LeafRequest { id: self.authority.gateway_id().clone(), role }).unwrap()
    }

    fn workload(&self, id: &str) -> IssuedLeaf {
        self.authority.issue(LeafRequest::below(self.authority.prefix(), id.parse().unwrap())).unwrap()
    }

    async fn connect(&self, address: SocketAddr, leaf: &IssuedLeaf) -> Requests {
        let tls = postern_certs::client_config(leaf, &self.authority.trust(), NODE.parse().unwrap()).unwrap();
        let stream = egress::dial(address).await.unwrap();
        let name = ServerName::try_from("gpu-1").unwrap();
        let stream = TlsConnector::from(tls).connect(name, stream).await.unwrap();
        let (requests, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        requests
    }
}

fn request(method: Method, path: &str) -> Request<Sent> {
    let mut request = Request::new(Full::default().boxed_unsync());
    *request.method_mut() = method;
    *request.uri_mut() = format!("https://gpu-1{path}").parse().unwrap();
    request
}

async fn ask(requests: &Requests, request: Request<Sent>) -> hyper::Result<StatusCode> {
    Ok(answer(requests, request).await?.0)
}

/// The status, and what is sealed or said.
async fn answer(requests: &Requests, request: Request<Sent>) -> hyper::Result<(StatusCode, Bytes)> {
    let mut requests = requests.clone();
    requests.ready().await?;
    let response = requests.send_request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

fn code(body: &[u8]) -> String {
    let said: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    said.pointer("/error/code").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
}

fn sealed_request(body: Sent) -> Request<Sent> {
    let mut request = request(Method::POST, open::GATEWAY);
    *request.body_mut() = body;
    request.headers_mut().insert("content-type", HeaderValue::from_static(chunked::REQUEST));
    request
}

/// As a gateway asks a node; with headers of whoever it asks for.
async fn sealed_by(leaf: &IssuedLeaf, over: &Requests, path: &str) -> (Bytes, chunked::ResponseOpener) {
    let (_, list) = answer(over, request(Method::GET, open::GATEWAY)).await.unwrap();
    let key = postern_sealed::PublicConfig::from_list(&list).unwrap();
    let (sender, recipient) = (Signatory::new(leaf).unwrap(), NODE.parse().unwrap());
    let parties = Parties { sender: &sender, recipient: &recipient, key: &key, authority: "gpu-1" };
    let mut asked = Request::post(path).body(()).unwrap();
    asked.headers_mut().insert("postern-tenant", HeaderValue::from_static("clerks"));
    let (sealed, opener) = parties.seal(&asked, Bytes::from_static(b"{}"), std::time::SystemTime::now()).unwrap();
    (sealed.whole().unwrap(), opener)
}

fn full(bytes: Bytes) -> Sent {
    Full::new(bytes).boxed_unsync()
}

/// Tells who it believes to be asked for.
fn telling() -> Router {
    let tell = async |headers: HeaderMap| headers.get("postern-tenant").map_or("nobody", |_| "a tenant").to_owned();
    Router::new().route("/ask", post(tell)).route("/state", get(async || "state")).route("/livez", get(async || "ok"))
}

#[tokio::test]
async fn a_relay_brings_what_others_have_sealed_and_asks_nothing_itself() {
    let office = Office::new();
    let address = office.node(telling(), 4).await;
    let (gateway, relay) = (office.gateway(), office.connect(address, &office.workload(RELAY)).await);
    let (sealed, opener) = sealed_by(&gateway, &relay, "/ask").await;
    // Whose it is follows from the signature, also on whose behalf it is asked; what stands outside says nothing.
    let (status, came) = answer(&relay, sealed_request(full(sealed.clone()))).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    let opened = crate::connect::sealing::open(full(came), opener).await.unwrap();
    assert_eq!(opened.into_body().collect().await.unwrap().to_bytes(), "a tenant");
    let refused = async |request| {
        let (status, body) = answer(&relay, request).await.unwrap();
        (status.as_u16(), code(&body))
    };
    assert_eq!(refused(sealed_request(full(sealed))).await, (400, "payload_replayed".to_owned()));
    for (method, path) in [(Method::POST, "/ask"), (Method::GET, "/state"), (Method::POST, "/livez")] {
        assert_eq!(refused(request(method, path)).await, (400, "payload_not_sealed".to_owned()), "{path}");
    }
    assert_eq!(ask(&relay, request(Method::GET, "/livez")).await.unwrap(), StatusCode::OK);
    // What a workstation, or the relay itself, has signed; and what nobody has.
    for id in ["spiffe://td/clerk/amy", RELAY] {
        let (sealed, _) = sealed_by(&office.workload(id), &relay, "/ask").await;
        assert_eq!(refused(sealed_request(full(sealed))).await, (403, "payload_sender_refused".to_owned()), "{id}");
    }
    let (_, list) = answer(&relay, request(Method::GET, open::GATEWAY)).await.unwrap();
    let key = postern_sealed::PublicConfig::from_list(&list).unwrap();
    let (mut unsigned, mut head) = (Vec::new(), Vec::new());
    let (mut sealer, _) = chunked::RequestSealer::begin(&key, &mut rand::rng(), &mut unsigned).unwrap();
    let date = httpdate::fmt_http_date(std::time::SystemTime::now());
    let asked = Request::post("/ask").header("date", date).body(()).unwrap();
    postern_sealed::binary::put_request(&asked, "", 0, &mut head);
    sealer.push(&head, &mut unsigned).unwrap();
    sealer.finish(&mut unsigned).unwrap();
    let own = unsigned.clone();
    assert_eq!(refused(sealed_request(full(unsigned.into()))).await, (403, "payload_sender_refused".to_owned()));
    // On its own connection the gateway need not sign, and what it was refused elsewhere is not used up.
    let direct = office.connect(address, &gateway).await;
    assert_eq!(ask(&direct, sealed_request(full(own.into()))).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn a_relay_that_never_ends_what_it_brings_leaves_most_places_to_others() {
    let office = Office::new();
    let address = office.node(telling(), 4).await;
    let relay = office.connect(address, &office.workload(RELAY)).await;
    let share = (4 + ARRIVING) / CARRIED_SHARE;
    let endless = || http_body_util::StreamBody::new(futures_util::stream::pending()).boxed_unsync();
    let mut under_way: futures_util::stream::FuturesUnordered<_> =
        (0..share + 3).map(|_| ask(&relay, sealed_request(endless()))).collect();
    for _ in 0..3 {
        let beyond = tokio::time::timeout(Duration::from_secs(20), under_way.next()).await;
        assert_eq!(beyond.unwrap().unwrap().unwrap(), StatusCode::SERVICE_UNAVAILABLE, "it takes more than its share");
    }
    let gateway = office.connect(address, &office.gateway()).await;
    assert_eq!(ask(&gateway, request(Method::POST, "/ask")).await.unwrap(), StatusCode::OK);
    let more = tokio::time::timeout(Duration::from_millis(200), under_way.next()).await;
    assert!(more.is_err(), "they are being read all the while");
    // Nor does it take all connections.
    let node = Node::new(Arc::new(office.identity().await), telling(), 1);
    let held: Vec<_> = std::iter::from_fn(|| node.connection_place(true)).collect();
    assert_eq!(held.len(), CONNECTIONS / CARRIED_SHARE);
    assert!(node.connection_place(false).is_some());
}

#[tokio::test]
async fn who_may_ask_itself_is_no_relay() {
    let office = Office::new();
    let gateway = office.authority.gateway_id().clone();
    let refused = Identity::open(&office.dir.path().join("node"), Vec::new(), vec![gateway]).await.unwrap_err();
    assert!(format!("{refused:#}").contains("cannot be its --relay too"), "{refused:#}");
}

#[tokio::test]
async fn more_requests_than_there_are_places_for_are_refused_until_one_is_free() {
    let (gate, came) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let router = {
        let (gate, came) = (gate.clone(), came.clone());
        let wait = async move || {
            came.fetch_add(1, Ordering::Relaxed);
            drop(gate.acquire().await);
            "done"
        };
        Router::new().route("/wait", post(wait)).route("/livez", get(async || "ok"))
    };
    let gateway = Office::new().gateway_of(router, 3).await;
    let all = 3 + ARRIVING;
    let waiting: Vec<_> = (0..all)
        .map(|_| {
            let gateway = gateway.clone();
            tokio::spawn(async move { ask(&gateway, request(Method::POST, "/wait")).await })
        })
        .collect();
    let began = Instant::now();
    while came.load(Ordering::Relaxed) < all {
        assert!(began.elapsed() < SOON, "{} came", came.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&gateway, request(Method::POST, "/wait")).await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        ask(&gateway, request(Method::GET, "/livez")).await.unwrap(),
        StatusCode::OK,
        "health is asked for all the same"
    );
    gate.add_permits(Semaphore::MAX_PERMITS >> 1);
    for waited in waiting {
        assert_eq!(waited.await.unwrap().unwrap(), StatusCode::OK);
    }
    // A place is free when the node has let go of the answer, which may be after the last byte is here.
    while ask(&gateway, request(Method::POST, "/wait")).await.unwrap() != StatusCode::OK {
        assert!(began.elapsed() < SOON, "no place came free");
    }
}

#[tokio::test]
async fn headers_beyond_the_bound_never_reach_the_engine() {
    let router = Router::new().route("/livez", get(async || "ok"));
    let gateway = Office::new().gateway_of(router, 1).await;
    let with = |bytes: usize| {
        let mut request = request(Method::GET, "/livez");
        request.headers_mut().insert("x-long", HeaderValue::from_str(&"x".repeat(bytes)).unwrap());
        request
    };
    assert_eq!(ask(&gateway, with(16 << 10)).await.unwrap(), StatusCode::OK);
    assert_ne!(ask(&gateway, with(40 << 10)).await.ok(), Some(StatusCode::OK));
}

#[tokio::test]
async fn the_gateway_that_the_folder_names_may_come_in_and_no_other() {
    let office = Office::new();
    assert_eq!(office.identity().await.allowed(), [SpiffeId::gateway("td").unwrap()]);
    let branch: SpiffeId = "spiffe://td/branch-17/gateway".parse().unwrap();
    workstation::write_gateway(&office.dir.path().join("node"), &branch).unwrap();
    assert_eq!(office.identity().await.allowed(), [branch]);
}

#[test]
fn what_only_a_gateway_may_say_is_taken_away_and_nothing_else() {
    let mut headers = HeaderMap::new();
    for name in ["postern-tenant", "postern-label", "postern-identity", "postern-priority", "content-type"] {
        headers.append(name, HeaderValue::from_static("x"));
        headers.append(name, HeaderValue::from_static("y"));
    }
    take_away_origin(&mut headers);
    assert_eq!(headers.keys().collect::<Vec<_>>(), ["content-type"]);
}
