use std::path::Path;

use bytes::Bytes;
use postern_tests::WorkloadApi;
use postern_tests::pki::Authority;
use postern_tests::pki::gateway::GatewayLeaf;
use postern_tests::workload_api::X509SvidResponse;

use super::*;

const ID: &str = "spiffe://branch.test/gateway";
/// Several attempts and a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Long enough for a change to be seen that must not be.
const A_WHILE: Duration = Duration::from_millis(700);

struct Agent {
    dir: tempfile::TempDir,
    authority: Authority,
    api: WorkloadApi,
}

impl Agent {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let api = WorkloadApi::start(&dir.path().join("agent.sock")).unwrap();
        Self { api, authority: Authority::new("root").unwrap(), dir }
    }

    fn svid(&self) -> X509SvidResponse {
        self.svid_of(ID)
    }

    fn svid_of(&self, id: &str) -> X509SvidResponse {
        let leaf = self.authority.gateway(GatewayLeaf::of(id)).unwrap();
        X509SvidResponse::of(id, &leaf, &[&self.authority]).unwrap()
    }

    fn spiffe(&self) -> Spiffe {
        Spiffe::new(self.socket().to_owned())
    }

    fn socket(&self) -> &Path {
        self.api.socket()
    }
}

async fn soon(spiffe: &mut Spiffe) -> Result<Material, IssuerError> {
    tokio::time::timeout(SOON, spiffe.next()).await.expect("nothing came")
}

async fn nothing_for_a_while(spiffe: &mut Spiffe) {
    assert!(tokio::time::timeout(A_WHILE, spiffe.next()).await.is_err(), "nothing changed");
}

/// Asks until something else comes than faults of connecting.
async fn in_the_end(spiffe: &mut Spiffe) -> Material {
    for _ in 0..50 {
        match soon(spiffe).await {
            Ok(material) => return material,
            Err(IssuerError::Agent { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it never came back");
}

fn is(material: &Material, sent: &X509SvidResponse) -> bool {
    let chain: Vec<u8> = material.leaf.chain.iter().flat_map(|der| der.to_vec()).collect();
    chain == sent.svids[0].x509_svid
}

#[tokio::test]
async fn the_default_identity_and_its_updates_arrive() {
    let agent = Agent::new();
    let next = Authority::new("next root").unwrap();
    let mut first = agent.svid().with_crl(&agent.authority.revocation_list().unwrap()).unwrap();
    first.svids.extend(agent.svid_of("spiffe://branch.test/other").svids);
    first.svids[0].hint = "internal".into();
    first.federated_bundles.insert("spiffe://elsewhere.test".into(), vec![1, 2, 3]);
    agent.api.send(&first);
    let mut spiffe = agent.spiffe();
    let material = soon(&mut spiffe).await.unwrap();
    assert!(is(&material, &first));
    assert_eq!(material.leaf.id.to_string(), ID);
    assert_eq!((material.roots.len(), material.crls.len()), (1, 1), "the foreign bundle is passed over");
    material.check(&ID.parse().unwrap()).unwrap();

    let leaf = agent.authority.gateway(GatewayLeaf::of(ID)).unwrap();
    let second = X509SvidResponse::of(ID, &leaf, &[&agent.authority, &next]).unwrap();
    agent.api.send(&second);
    let material = soon(&mut spiffe).await.unwrap();
    assert!(is(&material, &second));
    assert_eq!((material.roots.len(), material.crls.len()), (2, 0), "what is not sent again is gone");
    assert_eq!(agent.api.calls(), 1, "over one stream");
}

#[tokio::test]
async fn a_change_of_the_bundle_alone_is_a_change_and_a_repetition_is_none() {
    let agent = Agent::new();
    let mut svid = agent.svid();
    agent.api.send(&svid);
    let mut spiffe = agent.spiffe();
    soon(&mut spiffe).await.unwrap();
    svid.federated_bundles.insert("spiffe://elsewhere.test".into(), vec![1]);
    agent.api.send(&svid);
    nothing_for_a_while(&mut spiffe).await;
    let twice = svid.svids[0].bundle.repeat(2);
    svid.svids[0].bundle = twice;
    agent.api.send(&svid);
    assert_eq!(soon(&mut spiffe).await.unwrap().roots.len(), 2);
    agent.api.send(&svid.with_crl(&agent.authority.revocation_list().unwrap()).unwrap());
    assert_eq!(soon(&mut spiffe).await.unwrap().crls.len(), 1, "and so is one of the revocation lists");
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again_without_a_word() {
    let agent = Agent::new();
    let first = agent.svid();
    agent.api.send(&first);
    let mut spiffe = agent.spiffe();
    soon(&mut spiffe).await.unwrap();
    agent.api.drop_connections();
    nothing_for_a_while(&mut spiffe).await;
    assert_eq!(agent.api.calls(), 2, "it called again, and what came was known");
    let second = agent.svid();
    agent.api.send(&second);
    assert!(is(&soon(&mut spiffe).await.unwrap(), &second));
}

#[tokio::test]
async fn an_agent_that_is_gone_is_told_and_its_return_as_well() {
    let mut agent = Agent::new();
    let svid = agent.svid();
    agent.api.send(&svid);
    let mut spiffe = agent.spiffe();
    soon(&mut spiffe).await.unwrap();
    let socket = agent.socket().to_owned();
    agent.api = WorkloadApi::start(&agent.dir.path().join("another.sock")).unwrap();
    let told = soon(&mut spiffe).await.unwrap_err().to_string();
    assert!(told.contains("agent.sock cannot be reached"), "{told}");
    agent.api = WorkloadApi::start(&socket).unwrap();
    agent.api.send(&svid);
    assert!(is(&in_the_end(&mut spiffe).await, &svid), "the same identity, but the fault is over");
}

/// It is thrown away, and the next message on the same stream counts.
#[tokio::test]
async fn a_message_that_cannot_be_used_changes_nothing() {
    let agent = Agent::new();
    let svid = agent.svid();
    agent.api.send(&svid);
    let mut spiffe = agent.spiffe();
    soon(&mut spiffe).await.unwrap();
    let broken = |change: &dyn Fn(&mut X509SvidResponse)| {
        let mut broken = agent.svid();
        change(&mut broken);
        broken
    };
    let other_key = agent.svid().svids[0].x509_svid_key.clone();
    let expired = GatewayLeaf { from_s: -7200, until_s: -60, ..GatewayLeaf::of(ID) };
    let expired = agent.authority.gateway(expired).unwrap();
    for (message, expected) in [
        (X509SvidResponse::default(), "names no identity"),
        (broken(&|sent| sent.svids[0].spiffe_id = "spiffe://branch.test/x".into()), "not the one in the certificate"),
        (broken(&|sent| sent.svids[0].spiffe_id.clear()), "not the one in the certificate"),
        (broken(&|sent| sent.svids[0].x509_svid.clear()), "chain is empty"),
        (broken(&|sent| sent.svids[0].x509_svid.push(0)), "x509_svid"),
        (broken(&|sent| sent.svids[0].x509_svid_key = other_key.clone()), "not the key of the certificate"),
        (broken(&|sent| sent.svids[0].x509_svid_key.clear()), "not the key of the certificate"),
        (broken(&|sent| sent.svids[0].bundle.clear()), "bundle is empty"),
        (broken(&|sent| sent.svids[0].bundle.truncate(40)), "bundle"),
        (broken(&|sent| sent.crl.push(vec![0x30, 0])), "crl"),
        (X509SvidResponse::of(ID, &expired, &[&agent.authority]).unwrap(), "expired at"),
    ] {
        agent.api.send(&message);
        let told = soon(&mut spiffe).await.unwrap_err().to_string();
        assert!(told.contains("sent what cannot be used") && told.contains(expected), "{expected}: {told}");
    }
    agent.api.send_message(b"\xff\xff\xff\xff");
    assert!(soon(&mut spiffe).await.unwrap_err().to_string().contains("published form"));
    let fresh = agent.svid();
    agent.api.send(&fresh);
    assert!(is(&soon(&mut spiffe).await.unwrap(), &fresh));
    assert_eq!(agent.api.calls(), 1, "over one stream");
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_the_stream() {
    let agent = Agent::new();
    let mut spiffe = agent.spiffe();
    agent.api.send_bytes(Bytes::from_static(&[0, 0x7f, 0xff, 0xff, 0xff, 1, 2, 3]));
    let told = soon(&mut spiffe).await.unwrap_err().to_string();
    assert!(told.contains("longer than 4194304"), "{told}");
    let svid = agent.svid();
    agent.api.send(&svid);
    assert!(is(&in_the_end(&mut spiffe).await, &svid));
    assert!(agent.api.calls() >= 2);
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_agent_and_tried_again() {
    let agent = Agent::new();
    agent.api.refuse(7, "no identity issued");
    let mut spiffe = agent.spiffe();
    for _ in 0..3 {
        let error = soon(&mut spiffe).await.unwrap_err();
        assert!(matches!(error, IssuerError::NoIdentity { .. }), "{error}");
        assert!(error.to_string().contains("no identity issued"), "{error}");
    }
    let svid = agent.svid();
    agent.api.send(&svid);
    assert!(is(&soon(&mut spiffe).await.unwrap(), &svid));
    agent.api.refuse(7, "no identity issued");
    assert!(matches!(soon(&mut spiffe).await, Err(IssuerError::NoIdentity { .. })), "it was withdrawn");
}

/// One that takes the call and sends nothing, and one that does not even take it.
#[tokio::test]
async fn an_agent_that_says_nothing_is_given_up() {
    let agent = Agent::new();
    let deaf = tokio::net::UnixListener::bind(agent.dir.path().join("deaf.sock")).unwrap();
    let deaf_socket = agent.dir.path().join("deaf.sock");
    for (socket, expected) in [(agent.socket(), "sent nothing within"), (&deaf_socket, "did not answer within")] {
        let mut spiffe = Spiffe { answer_within: Duration::from_millis(300), ..Spiffe::new(socket.to_owned()) };
        let told = soon(&mut spiffe).await.unwrap_err().to_string();
        assert!(told.contains(expected), "{told}");
    }
    drop(deaf);
    let mut spiffe = agent.spiffe();
    spiffe.answer_within = Duration::from_millis(300);
    agent.api.send(&agent.svid());
    soon(&mut spiffe).await.unwrap();
    agent.api.be_silent();
    nothing_for_a_while(&mut spiffe).await;
    assert_eq!(agent.api.calls(), 2, "once the stream has begun, silence is what is to be expected");
}

/// SPIFFE says not to try again; a caller who asks again is slowed down.
#[tokio::test]
async fn what_is_no_workload_api_is_not_asked_again_soon() {
    let agent = Agent::new();
    agent.api.refuse(12, "unknown method");
    let mut spiffe = agent.spiffe();
    assert!(matches!(soon(&mut spiffe).await, Err(IssuerError::NotWorkloadApi { .. })));
    assert!(spiffe.retry_at - Instant::now() > LAST_RETRY / 3);
    nothing_for_a_while(&mut spiffe).await;
    assert_eq!(agent.api.calls(), 1);
}

/// The server of the tests refuses as the specification says; this shows that it is no pushover.
#[tokio::test]
async fn the_server_refuses_a_call_without_the_header() {
    let agent = Agent::new();
    agent.api.send(&agent.svid());
    let stream = crate::egress::dial_unix(agent.socket()).await.unwrap();
    let http = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    let (mut requests, connection) = http.handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://localhost/SpiffeWorkloadAPI/FetchX509SVID")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(http_body_util::Full::new(Bytes::from_static(&[0; 5])))
        .unwrap();
    let response = requests.send_request(request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "3");
}

#[test]
fn waits_double_up_to_a_bound_and_differ() {
    let seconds = |failures, chance| wait(failures, chance).as_secs_f64();
    assert_eq!((wait(1, 0.0), wait(1, 1.0)), (FIRST_RETRY, FIRST_RETRY / 2));
    assert_eq!((seconds(2, 0.0), seconds(4, 0.0)), (0.2, 0.8));
    assert_eq!((wait(10, 0.0), wait(u32::MAX, 0.0)), (LAST_RETRY, LAST_RETRY));
    assert_eq!(wait(u32::MAX, 1.0), LAST_RETRY / 2);
}
