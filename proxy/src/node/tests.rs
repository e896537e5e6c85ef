use std::sync::atomic::{AtomicUsize, Ordering};

use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_certs::{Authority, AuthorityOptions, LeafRequest, Role, SpiffeId};
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::*;
use crate::cli::workstation;
use crate::egress;

/// For whatever should have happened by now.
const SOON: Duration = Duration::from_secs(60);
const NODE: &str = "spiffe://td/node/gpu-1";

type Requests = SendRequest<Full<Bytes>>;

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
        Identity::open(&self.dir.path().join("node"), Vec::new()).await.unwrap().0
    }

    /// A node that answers with `router`, and a connection of the gateway to it.
    async fn gateway_of(&self, router: Router, places: usize) -> Requests {
        let node = Node::new(Arc::new(self.identity().await), router, places);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(node.serve(listener, CancellationToken::new()));
        let role = Role::Gateway { names: Vec::new() };
        let leaf = self.authority.issue(LeafRequest { id: self.authority.gateway_id().clone(), role }).unwrap();
        let tls = postern_certs::client_config(&leaf, &self.authority.trust(), NODE.parse().unwrap()).unwrap();
        let stream = egress::dial(address).await.unwrap();
        let name = ServerName::try_from("gpu-1").unwrap();
        let stream = TlsConnector::from(tls).connect(name, stream).await.unwrap();
        let (requests, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        requests
    }
}

fn request(method: Method, path: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    *request.method_mut() = method;
    *request.uri_mut() = format!("https://gpu-1{path}").parse().unwrap();
    request
}

async fn ask(requests: &Requests, request: Request<Full<Bytes>>) -> hyper::Result<StatusCode> {
    let mut requests = requests.clone();
    requests.ready().await?;
    let response = requests.send_request(request).await?;
    let status = response.status();
    response.into_body().collect().await?;
    Ok(status)
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
