use std::{sync::Arc, time::Duration as StdDuration};

use proptest::prelude::*;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, KeyIdMethod, KeyPair, SanType,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use time::{Duration, macros::datetime};

use super::*;
use crate::{Authority, AuthorityOptions, LeafRequest, Role, clock::fake::FakeClock, issue, signer::Signer, tls};

const NOW: OffsetDateTime = datetime!(2026-11-24 08:00 UTC);

struct Branch {
    _scratch: tempfile::TempDir,
    authority: Authority,
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

impl Branch {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let clock = Arc::new(FakeClock::at(NOW));
        let options = AuthorityOptions { clock, ..AuthorityOptions::new("td", StdDuration::from_secs(3600)) };
        let authority = Authority::open_or_create(scratch.path(), options).unwrap();
        Self { _scratch: scratch, authority }
    }

    fn leaf(&self, text: &str, role: Role) -> IssuedLeaf {
        self.authority.issue(LeafRequest { id: id(text), role }).unwrap()
    }

    fn gateway(&self) -> IssuedLeaf {
        self.leaf("spiffe://td/gateway", Role::Gateway { names: vec![] })
    }
}

/// As somebody else would hand it over.
fn foreign(issued: &IssuedLeaf) -> IssuedLeaf {
    leaf(issued.chain.clone(), issued.key.clone_key()).unwrap()
}

fn refused(leaf: &IssuedLeaf, roots: &[CertificateDer<'_>], now: OffsetDateTime) -> String {
    check_gateway(leaf, roots, &id("spiffe://td/gateway"), now).unwrap_err().to_string()
}

#[test]
fn what_another_authority_issued_is_taken_as_it_is() {
    let branch = Branch::new();
    let issued = branch.gateway();
    let read = foreign(&issued);
    assert_eq!(read.id, issued.id);
    assert_eq!((read.not_before, read.not_after), (issued.not_before, issued.not_after));
    check_gateway(&read, &branch.authority.trust_bundle(), &issued.id, NOW).unwrap();
}

#[test]
fn what_a_gateway_cannot_use_is_refused_in_words() {
    let branch = Branch::new();
    let roots = branch.authority.trust_bundle();
    let gateway = branch.gateway();

    let clerk = foreign(&branch.leaf("spiffe://td/clerk/ada", Role::Workload));
    assert!(refused(&clerk, &roots, NOW).contains("it is for spiffe://td/clerk/ada, and the gateway is"));

    let torn = leaf(gateway.chain.clone(), branch.gateway().key.clone_key()).unwrap();
    assert!(check_key(&torn).is_err());
    assert!(refused(&torn, &roots, NOW).contains("TLS"), "{}", refused(&torn, &roots, NOW));

    let late = refused(&gateway, &roots, gateway.not_after + Duration::SECOND);
    assert!(late.contains("it expired at 2026-11-24 9:00"), "{late}");
    let early = refused(&gateway, &roots, gateway.not_before - Duration::SECOND);
    assert!(early.contains("it is valid only from"), "{early}");

    let others = Branch::new();
    assert!(refused(&gateway, &others.authority.trust_bundle(), NOW).contains("TLS"));
    assert!(refused(&gateway, &[], NOW).contains("no root"));
    let orphan = leaf(gateway.chain[..1].to_vec(), gateway.key.clone_key()).unwrap();
    assert!(refused(&orphan, &roots, NOW).contains("TLS"), "its intermediate is missing");
}

/// The field is public: what counts is the certificate.
#[test]
fn the_id_is_that_of_the_certificate() {
    let branch = Branch::new();
    let mut clerk = branch.leaf("spiffe://td/clerk/ada", Role::Workload);
    clerk.id = id("spiffe://td/gateway");
    assert!(refused(&clerk, &branch.authority.trust_bundle(), NOW).contains("clerk/ada"));
}

#[test]
fn a_gateway_serves_and_calls() {
    let root = Signer::create_root(&id("spiffe://td"), NOW).unwrap();
    let bundle = [root.certificate.clone()];
    for (usages, expected) in [
        (vec![ExtendedKeyUsagePurpose::ServerAuth], Some("by a client")),
        (vec![ExtendedKeyUsagePurpose::ClientAuth], Some("by a server")),
        (vec![], Some("by a server")),
        (vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth], None),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://td/gateway".try_into().unwrap())];
        params.not_before = NOW - issue::BACKDATE;
        params.not_after = NOW + Duration::HOUR;
        params.extended_key_usages = usages;
        let key_der = PrivatePkcs8KeyDer::from(key.serialize_der());
        let leaf = leaf(vec![root.sign(&params, &key).unwrap()], key_der.into()).unwrap();
        match expected {
            Some(why) => assert!(refused(&leaf, &bundle, NOW).contains(why), "{}", refused(&leaf, &bundle, NOW)),
            None => check_gateway(&leaf, &bundle, &id("spiffe://td/gateway"), NOW).unwrap(),
        }
    }
}

#[test]
fn chains_are_bounded_and_not_empty() {
    let gateway = Branch::new().gateway();
    let long = vec![gateway.chain[0].clone(); MAX_CHAIN + 1];
    assert!(leaf(long, gateway.key.clone_key()).unwrap_err().to_string().contains("longer than 16"));
    assert!(leaf(vec![], gateway.key.clone_key()).is_err());
    let garbage = vec![gateway.chain[0].clone(), CertificateDer::from(vec![0x30, 0x00])];
    assert!(leaf(garbage, gateway.key.clone_key()).is_err());
    let authority = vec![gateway.chain[1].clone()];
    assert!(leaf(authority, gateway.key.clone_key()).is_err(), "an intermediate names no workload");
}

#[test]
fn certificates_that_stand_one_behind_the_other_are_told_apart() {
    let chain = Branch::new().gateway().chain.clone();
    let together: Vec<u8> = chain.iter().flat_map(|der| der.to_vec()).collect();
    assert_eq!(split_certificates(&together, MAX_CHAIN).unwrap(), chain);
    assert_eq!(split_certificates(&[], MAX_CHAIN).unwrap(), vec![]);
    assert!(split_certificates(&together, 1).unwrap_err().to_string().contains("more than 1"));
    assert!(split_certificates(&together[..together.len() - 1], MAX_CHAIN).is_err(), "the last one is cut off");
}

proptest! {
    #[test]
    fn foreign_bytes_are_refused_or_read_and_nothing_else(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(certificates) = split_certificates(&bytes, MAX_CHAIN) {
            let lengths: usize = certificates.iter().map(|der| der.len()).sum();
            prop_assert_eq!(lengths, bytes.len());
        }
        let _ = revocation_list(bytes);
    }
}

#[test]
fn revocation_lists_are_told_from_other_things() {
    let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
    params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let list = CertificateRevocationListParams {
        this_update: NOW,
        next_update: NOW + Duration::HOUR,
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let mut der = list.signed_by(&rcgen::Issuer::new(params, key)).unwrap().der().to_vec();
    assert_eq!(revocation_list(der.clone()).unwrap().as_ref(), der);
    der.push(0);
    assert!(revocation_list(der).is_err(), "a byte follows");
    assert!(revocation_list(Branch::new().gateway().chain[0].to_vec()).is_err(), "it is a certificate");
}

/// What is accepted here must not fail in the next step.
#[test]
fn what_is_accepted_makes_a_server() {
    let scratch = tempfile::tempdir().unwrap();
    let options = AuthorityOptions::new("td", StdDuration::from_secs(3600));
    let authority = Authority::open_or_create(scratch.path(), options).unwrap();
    let request = LeafRequest { id: id("spiffe://td/gateway"), role: Role::Gateway { names: vec![] } };
    let read = foreign(&authority.issue(request).unwrap());
    let roots = authority.trust_bundle();
    check_gateway(&read, &roots, authority.gateway_id(), OffsetDateTime::now_utc()).unwrap();
    tls::server_config(&read, &Arc::new(Trust::from_roots(&roots).unwrap())).unwrap();
}

#[test]
fn what_a_node_cannot_use_is_refused_in_words() {
    let branch = Branch::new();
    let (roots, own) = (branch.authority.trust_bundle(), id("spiffe://td/node/gpu-1"));
    let node = foreign(&branch.leaf("spiffe://td/node/gpu-1", Role::Node));
    check_node(&node, &roots, &own, NOW).unwrap();
    let refused = |leaf: &IssuedLeaf, own: &SpiffeId, now| check_node(leaf, &roots, own, now).unwrap_err().to_string();
    let clerk = foreign(&branch.leaf("spiffe://td/clerk/ada", Role::Workload));
    assert!(refused(&clerk, &clerk.id, NOW).contains("may not be used by a server"));
    assert!(refused(&clerk, &own, NOW).contains("it is for spiffe://td/clerk/ada, and this node is"));
    assert!(refused(&node, &own, node.not_after + Duration::SECOND).contains("it expired at"));
    assert!(check_node(&node, &Branch::new().authority.trust_bundle(), &own, NOW).is_err());
    let torn = leaf(node.chain.clone(), clerk.key.clone_key()).unwrap();
    assert!(refused(&torn, &own, NOW).contains("TLS"));
}
