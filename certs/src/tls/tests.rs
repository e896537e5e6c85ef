use std::{io::Write, time::Duration as StdDuration};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, SanType};
use rustls::{
    AlertDescription, CertificateError, ClientConnection, Error, HandshakeKind, NamedGroup, ProtocolVersion,
    RootCertStore, ServerConnection,
    client::WebPkiServerVerifier,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use time::Duration;

use super::*;
use crate::{
    Authority, AuthorityOptions, LeafRequest, Reason, Role, SystemClock,
    clock::fake::FakeClock,
    issue,
    signer::{Signer, new_key},
};

const TRUST_DOMAIN: &str = "td";
const THREE_DAYS: StdDuration = StdDuration::from_secs(72 * 3600);

/// An authority of `spiffe://td`, a gateway's leaf, a node's and a workload's.
struct Branch {
    bundle: Vec<CertificateDer<'static>>,
    gateway: IssuedLeaf,
    node: IssuedLeaf,
    ada: IssuedLeaf,
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn workload(text: &str) -> LeafRequest {
    LeafRequest { id: id(text), role: Role::Workload }
}

fn gateway_request() -> LeafRequest {
    LeafRequest { id: id("spiffe://td/gateway"), role: Role::Gateway { names: vec!["ai.branch.example".into()] } }
}

fn branch_at(clock: Arc<dyn crate::Clock>) -> Branch {
    let scratch = tempfile::tempdir().unwrap();
    let options = AuthorityOptions { clock, ..AuthorityOptions::new(TRUST_DOMAIN, THREE_DAYS) };
    let authority = Authority::open_or_create(scratch.path(), options).unwrap();
    Branch {
        bundle: authority.trust_bundle(),
        gateway: authority.issue(gateway_request()).unwrap(),
        node: authority.issue(LeafRequest::below(authority.prefix(), id("spiffe://td/node/gpu-1"))).unwrap(),
        ada: authority.issue(workload("spiffe://td/clerk/ada")).unwrap(),
    }
}

fn branch() -> Branch {
    branch_at(Arc::new(SystemClock))
}

impl Branch {
    fn server(&self) -> Arc<ServerConfig> {
        server_config(&self.gateway, &self.bundle).unwrap()
    }

    fn client(&self) -> Arc<ClientConfig> {
        client_config(&self.ada, &self.bundle, id("spiffe://td/gateway")).unwrap()
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        self.bundle.iter().for_each(|root| roots.add(root.clone()).unwrap());
        Arc::new(roots)
    }

    /// A client as others write it: trusts the root, checks the host name, remembers sessions.
    fn ordinary_client(&self, leaf: Option<&IssuedLeaf>) -> ClientConfig {
        self.ordinary_client_with(leaf, provider())
    }

    fn ordinary_client_with(&self, leaf: Option<&IssuedLeaf>, provider: Arc<CryptoProvider>) -> ClientConfig {
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots(), provider.clone()).build().unwrap();
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_webpki_verifier(verifier);
        match leaf {
            Some(leaf) => config.with_client_auth_cert(leaf.chain.clone(), leaf.key.clone_key()).unwrap(),
            None => config.with_no_client_auth(),
        }
    }

    /// A server as others write it: any leaf, tickets, no client certificate.
    fn ordinary_server(&self, leaf: &IssuedLeaf) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).unwrap();
        Arc::new(config.with_no_client_auth().with_single_cert(leaf.chain.clone(), leaf.key.clone_key()).unwrap())
    }
}

fn server_config(leaf: &IssuedLeaf, bundle: &[CertificateDer<'_>]) -> Result<Arc<ServerConfig>, CertsError> {
    super::server_config(leaf, &Arc::new(Trust::from_roots(bundle)?))
}

fn client_config(
    leaf: &IssuedLeaf,
    bundle: &[CertificateDer<'_>],
    gateway: SpiffeId,
) -> Result<Arc<ClientConfig>, CertsError> {
    super::client_config(leaf, &Arc::new(Trust::from_roots(bundle)?), gateway)
}

/// A whole handshake in memory, and one byte each way so that tickets and late alerts arrive too. The error is that
/// of the side that refused first.
fn handshake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> Result<(ServerConnection, ClientConnection), Error> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    client.writer().write_all(b"a").unwrap();
    server.writer().write_all(b"b").unwrap();
    for _ in 0..8 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((server, client))
}

fn refused(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Error {
    match handshake(server, client) {
        Ok(_) => panic!("the handshake should have been refused"),
        Err(error) => error,
    }
}

#[test]
fn both_sides_prove_who_they_are() {
    let branch = branch();
    let (server, client) = handshake(&branch.server(), &branch.client()).unwrap();
    for (protocol, group) in [
        (server.protocol_version(), server.negotiated_key_exchange_group()),
        (client.protocol_version(), client.negotiated_key_exchange_group()),
    ] {
        assert_eq!(protocol, Some(ProtocolVersion::TLSv1_3));
        assert_eq!(group.unwrap().name(), NamedGroup::X25519MLKEM768);
    }
    assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(verify::peer_id(&server.peer_certificates().unwrap()[0]).unwrap(), id("spiffe://td/clerk/ada"));
    assert_eq!(verify::peer_id(&client.peer_certificates().unwrap()[0]).unwrap(), id("spiffe://td/gateway"));
}

#[test]
fn clients_without_spiffe_match_the_host_name() {
    let branch = branch();
    let mut config = branch.ordinary_client(Some(&branch.ada));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (server, _) = handshake(&branch.server(), &Arc::new(config)).unwrap();
    assert_eq!(server.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[test]
fn clients_without_ml_kem_are_served() {
    let branch = branch();
    let classic = CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() };
    let config = branch.ordinary_client_with(Some(&branch.ada), Arc::new(classic));
    let (server, _) = handshake(&branch.server(), &Arc::new(config)).unwrap();
    assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);
}

#[test]
fn a_client_certificate_is_required() {
    let branch = branch();
    let anonymous = Arc::new(branch.ordinary_client(None));
    assert_eq!(refused(&branch.server(), &anonymous), Error::NoCertificatesPresented);
}

/// A TLS 1.2 ClientHello (RFC 5246, section 7.4.1.2) for ECDHE-ECDSA-AES128-GCM, with these further extensions.
/// Written by hand, since this build of rustls speaks TLS 1.3 only.
fn old_client_hello(more_extensions: &[u8]) -> Vec<u8> {
    let mut extensions = vec![
        0, 10, 0, 4, 0, 2, 0, 29, // supported_groups: x25519
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
        0, 23, 0, 0, // extended_master_secret
    ];
    extensions.extend_from_slice(more_extensions);
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&extensions);
    let mut message = vec![1, 0];
    message.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend_from_slice(&body);
    let mut record = vec![22, 3, 1];
    record.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend_from_slice(&message);
    record
}

#[test]
fn tls_1_2_is_refused() {
    let branch = branch();
    for supported_versions in [&[][..], &[0, 43, 0, 3, 2, 3, 3]] {
        let mut server = ServerConnection::new(branch.server()).unwrap();
        server.read_tls(&mut &old_client_hello(supported_versions)[..]).unwrap();
        let error = server.process_new_packets().unwrap_err();
        assert!(matches!(error, Error::PeerIncompatible(_)), "{error}");
        let mut answer = Vec::new();
        server.write_tls(&mut answer).unwrap();
        // A fatal alert in a record of its own (RFC 8446, section 6): protocol_version.
        assert_eq!(&answer[..], [21, 3, 3, 0, 2, 2, u8::from(AlertDescription::ProtocolVersion)]);
    }
}

#[test]
fn the_server_gives_nothing_to_resume_with() {
    let branch = branch();
    let remembering = Arc::new(branch.ordinary_client(Some(&branch.ada)));
    let server = branch.server();
    for _ in 0..3 {
        let (_, client) = handshake(&server, &remembering).unwrap();
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
    }
    // The same client does resume where it can: otherwise the above would prove nothing.
    let forgiving = branch.ordinary_server(&branch.gateway);
    handshake(&forgiving, &remembering).unwrap();
    let (_, client) = handshake(&forgiving, &remembering).unwrap();
    assert_eq!(client.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[test]
fn the_client_never_resumes() {
    let branch = branch();
    let (server, client) = (branch.ordinary_server(&branch.gateway), branch.client());
    for _ in 0..3 {
        let (_, connection) = handshake(&server, &client).unwrap();
        assert!(connection.tls13_tickets_received() > 0, "this server does give tickets");
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn a_foreign_root_is_refused_by_both_sides() {
    let (ours, theirs) = (branch(), branch());
    // The stranger trusts our root, so only the server's check stands in the way; and the reverse.
    let stranger = client_config(&theirs.ada, &ours.bundle, id("spiffe://td/gateway")).unwrap();
    assert_eq!(refused(&ours.server(), &stranger), Error::InvalidCertificate(CertificateError::UnknownIssuer));
    let impostor = server_config(&theirs.gateway, &ours.bundle).unwrap();
    assert_eq!(refused(&impostor, &ours.client()), Error::InvalidCertificate(CertificateError::UnknownIssuer));
    let both = [ours.bundle.clone(), theirs.bundle.clone()].concat();
    handshake(&server_config(&ours.gateway, &both).unwrap(), &stranger).unwrap();
}

#[test]
fn a_workloads_leaf_cannot_serve() {
    let branch = branch();
    assert!(matches!(
        server_config(&branch.ada, &branch.bundle),
        Err(CertsError::Certificate { reason: Reason::Purpose, .. })
    ));
    let rogue = branch.ordinary_server(&branch.ada);
    let purpose = |error| Reason::of_handshake(&error) == Some(Reason::Purpose);
    assert!(purpose(refused(&rogue, &branch.client())));
    let expecting_ada = client_config(&branch.ada, &branch.bundle, id("spiffe://td/clerk/ada")).unwrap();
    assert!(purpose(refused(&rogue, &expecting_ada)), "not even for a client that asks for exactly this ID");
    assert!(purpose(refused(&rogue, &Arc::new(branch.ordinary_client(Some(&branch.ada))))));
}

#[test]
fn a_node_serves_its_gateway_and_nobody_else() {
    let (branch, other) = (branch(), branch());
    let trust = Arc::new(Trust::from_roots(&branch.bundle).unwrap());
    let node = |allowed: &[&str]| {
        let allowed: Vec<_> = allowed.iter().map(|text| id(text)).collect();
        node_server_config(&branch.node, &trust, &allowed).unwrap()
    };
    let towards = |leaf: &IssuedLeaf, server: &str| super::client_config(leaf, &trust, id(server)).unwrap();
    let (server, _) =
        handshake(&node(&["spiffe://td/gateway"]), &towards(&branch.gateway, "spiffe://td/node/gpu-1")).unwrap();
    assert_eq!(verify::peer(&server.peer_certificates().unwrap()[0]).unwrap().id, id("spiffe://td/gateway"));
    // A workstation of the same office, unless it is named.
    let ada = towards(&branch.ada, "spiffe://td/node/gpu-1");
    let error = refused(&node(&["spiffe://td/gateway"]), &ada);
    assert_eq!(Reason::of_handshake(&error), Some(Reason::NotAllowed), "{error}");
    assert!(handshake(&node(&["spiffe://td/clerk/ada"]), &ada).is_ok());
    // Nobody without a certificate, nor a gateway of the same name that another root vouches for.
    let anonymous = Arc::new(branch.ordinary_client(None));
    assert!(handshake(&node(&["spiffe://td/gateway"]), &anonymous).is_err());
    let stranger = super::client_config(&other.gateway, &trust, id("spiffe://td/node/gpu-1")).unwrap();
    let error = refused(&node(&["spiffe://td/gateway"]), &stranger);
    assert_eq!(Reason::of_handshake(&error), Some(Reason::UnknownAuthority), "{error}");
    // The gateway asks for this node, and no other.
    let error = refused(&node(&["spiffe://td/gateway"]), &towards(&branch.gateway, "spiffe://td/node/gpu-2"));
    assert_eq!(Reason::of_handshake(&error), Some(Reason::Gateway), "{error}");
    // What a workstation has cannot serve here either.
    assert!(node_server_config(&branch.ada, &trust, &[id("spiffe://td/gateway")]).is_err());
}

#[test]
fn a_node_is_never_taken_for_the_gateway() {
    let branch = branch();
    let node = branch.ordinary_server(&branch.node);
    let error = refused(&node, &branch.client());
    assert_eq!(Reason::of_handshake(&error), Some(Reason::Gateway), "{error}");
    // Clients that know no SPIFFE look for the host name, which the leaf of a node has not.
    assert!(handshake(&node, &Arc::new(branch.ordinary_client(None))).is_err());
}

#[test]
fn only_the_exact_gateway_is_the_gateway() {
    let branch = branch();
    for other in ["spiffe://td/gateway2", "spiffe://td/gateway/a", "spiffe://td2/gateway", "spiffe://td/Gateway"] {
        let client = client_config(&branch.ada, &branch.bundle, id(other)).unwrap();
        let error = refused(&branch.server(), &client);
        let reason = if other.contains("td2") { Reason::TrustDomain } else { Reason::Gateway };
        assert_eq!(Reason::of_handshake(&error), Some(reason), "{error}");
    }
}

/// A leaf that our authority would not issue, below a root that the branch trusts.
#[test]
fn a_middlebox_is_accepted_by_its_host_name_only_where_that_was_asked_for() {
    let (ours, theirs) = (branch(), branch());
    let trust = Arc::new(Trust::from_roots(&ours.bundle).unwrap());
    let gateway = id("spiffe://td/gateway");
    let through = super::client_config_through(&ours.ada, &trust, gateway, theirs.roots()).unwrap();
    let plain = ours.client();
    let middlebox = |leaf: &IssuedLeaf| server_config(leaf, &ours.bundle).unwrap();
    assert!(handshake(&middlebox(&theirs.gateway), &through).is_ok(), "it has a certificate for this host name");
    assert!(handshake(&middlebox(&ours.gateway), &through).is_ok(), "the gateway itself");
    refused(&middlebox(&theirs.gateway), &plain);
    refused(&middlebox(&theirs.node), &through);
    refused(&middlebox(&branch().gateway), &through);
}

fn odd_leaf(change: impl FnOnce(&mut CertificateParams)) -> (IssuedLeaf, Vec<CertificateDer<'static>>) {
    let now = OffsetDateTime::now_utc();
    let root = Signer::create_root(&id("spiffe://td"), now).unwrap();
    let intermediate =
        root.create_intermediate(&crate::PathPrefix::whole_domain(), crate::signer::INTERMEDIATE_LIFE, now).unwrap();
    let key = new_key().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = vec![SanType::URI("spiffe://td/gateway".try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    change(&mut params);
    let leaf = IssuedLeaf {
        id: id("spiffe://td/gateway"),
        chain: vec![intermediate.sign(&params, &key).unwrap(), intermediate.certificate.clone()],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        not_before: now,
        not_after: now,
    };
    (leaf, vec![root.certificate.clone()])
}

/// What a gateway says to a client with this leaf, and what a workstation says to a server with it.
fn verdicts_on(change: impl FnOnce(&mut CertificateParams)) -> [Result<(), Error>; 2] {
    let branch = branch();
    let (leaf, roots) = odd_leaf(change);
    let bundle = [branch.bundle.clone(), roots].concat();
    let as_client = client_config(&leaf, &branch.bundle, id("spiffe://td/gateway")).unwrap();
    let ours = client_config(&branch.ada, &bundle, id("spiffe://td/gateway")).unwrap();
    [
        handshake(&server_config(&branch.gateway, &bundle).unwrap(), &as_client).map(drop),
        handshake(&branch.ordinary_server(&leaf), &ours).map(drop),
    ]
}

fn assert_refused_for(word: &str, change: impl FnOnce(&mut CertificateParams)) {
    for verdict in verdicts_on(change) {
        let error = verdict.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn odd_leaves_below_a_trusted_root_are_refused() {
    assert_eq!(verdicts_on(|_| {}), [Ok(()), Ok(())], "the leaf of these tests is fine unless changed");
    assert_refused_for("may not be used by", |params| params.extended_key_usages.clear());
    assert_refused_for("no URI", |params| {
        params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
    });
    assert_refused_for("more than one URI", |params| {
        params.subject_alt_names.push(SanType::URI("spiffe://td/clerk/eve".try_into().unwrap()));
    });
    assert_refused_for("spiffe://other/gateway", |params| {
        params.subject_alt_names = vec![SanType::URI("spiffe://other/gateway".try_into().unwrap())];
    });
}

#[test]
fn an_intermediate_signs_leaves_only() {
    let branch = branch();
    let now = OffsetDateTime::now_utc();
    let root = Signer::create_root(&id("spiffe://td"), now).unwrap();
    let intermediate =
        root.create_intermediate(&crate::PathPrefix::whole_domain(), crate::signer::INTERMEDIATE_LIFE, now).unwrap();
    // An authority one step lower than the path length of the intermediate allows.
    let lower = intermediate
        .create_intermediate(&crate::PathPrefix::whole_domain(), crate::signer::INTERMEDIATE_LIFE, now)
        .unwrap();
    let mut leaf = issue::issue(workload("spiffe://td/clerk/eve"), &lower, now, Duration::hours(72)).unwrap();
    leaf.chain.push(intermediate.certificate.clone());
    let bundle = [branch.bundle.clone(), vec![root.certificate.clone()]].concat();
    let server = server_config(&branch.gateway, &bundle).unwrap();
    let eve = client_config(&leaf, &branch.bundle, id("spiffe://td/gateway")).unwrap();
    let error = refused(&server, &eve);
    assert!(error.to_string().contains("PathLenConstraintViolated"), "{error}");
}

#[test]
fn expired_leaves_are_refused_by_both_sides() {
    let past = FakeClock::at(OffsetDateTime::now_utc() - Duration::hours(73));
    let old = branch_at(Arc::new(past));
    let expired = |error| matches!(error, Error::InvalidCertificate(CertificateError::ExpiredContext { .. }));
    assert!(expired(refused(&old.server(), &old.client())));
    let (leaf, roots) = odd_leaf(|_| {});
    let bundle = [old.bundle.clone(), roots].concat();
    let fresh_client = client_config(&leaf, &bundle, id("spiffe://td/gateway")).unwrap();
    assert!(expired(refused(&old.server(), &fresh_client)), "the gateway's leaf");
    let fresh_server = server_config(&leaf, &bundle).unwrap();
    assert!(
        expired(refused(&fresh_server, &client_config(&old.ada, &bundle, id("spiffe://td/gateway")).unwrap())),
        "the workstation's leaf"
    );
}

#[test]
fn expired_roots_are_left_out() {
    let branch = branch();
    let now = OffsetDateTime::now_utc();
    let ended = Signer::create_root(&id("spiffe://td"), now - Duration::days(3651)).unwrap();
    let to_come = Signer::create_root(&id("spiffe://td"), now + Duration::DAY).unwrap();
    let unusable = [ended.certificate.clone(), to_come.certificate.clone()];
    assert!(matches!(server_config(&branch.gateway, &unusable), Err(CertsError::EmptyBundle)));
    let gateway = id("spiffe://td/gateway");
    assert!(matches!(client_config(&branch.ada, &unusable, gateway), Err(CertsError::EmptyBundle)));
    let mixed = [branch.bundle.clone(), unusable.to_vec()].concat();
    let both = server_config(&branch.gateway, &mixed).unwrap();
    handshake(&both, &branch.client()).unwrap();
}

#[test]
fn every_configuration_is_a_new_one() {
    let branch = branch();
    assert!(!Arc::ptr_eq(&branch.server(), &branch.server()));
    let config = branch.server();
    assert!(!config.session_storage.can_cache() && !config.ticketer.enabled());
    assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (0, 0));
}
