use std::os::unix::fs::PermissionsExt;

use rustls::pki_types::pem::PemObject;
use time::macros::datetime;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::*;
use crate::verify::{self, Purpose};

const NOW: OffsetDateTime = datetime!(2026-11-01 08:00 UTC);
const THREE_DAYS: Duration = Duration::hours(72);

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn intermediate() -> Signer {
    Signer::create_root(&id("spiffe://td"), NOW)
        .unwrap()
        .create_intermediate(&crate::PathPrefix::whole_domain(), crate::signer::INTERMEDIATE_LIFE, NOW)
        .unwrap()
}

fn workload() -> LeafRequest {
    LeafRequest { id: id("spiffe://td/clerk/ada"), role: Role::Workload }
}

fn gateway(names: &[&str]) -> LeafRequest {
    let names = names.iter().map(ToString::to_string).collect();
    LeafRequest { id: id("spiffe://td/gateway"), role: Role::Gateway { names } }
}

fn names_in(leaf: &IssuedLeaf) -> Vec<String> {
    let (_, certificate) = parse_x509_certificate(&leaf.chain[0]).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.iter();
    names
        .map(|name| match name {
            GeneralName::URI(uri) => (*uri).to_owned(),
            GeneralName::DNSName(dns) => (*dns).to_owned(),
            GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_workloads_leaf_says_only_who_it_is() {
    let leaf = issue(workload(), &intermediate(), NOW, THREE_DAYS).unwrap();
    assert_eq!(names_in(&leaf), ["spiffe://td/clerk/ada"]);
    assert_eq!(verify::peer_id(&leaf.chain[0]).unwrap(), leaf.id);
    assert!(verify::leaf_for(&leaf.chain[0], Purpose::Client).is_ok());
    assert!(verify::leaf_for(&leaf.chain[0], Purpose::Server).is_err());
    assert_eq!((leaf.not_before, leaf.not_after), (NOW - Duration::minutes(5), NOW + Duration::hours(72)));
    assert_eq!(leaf.chain.len(), 2);
}

#[test]
fn a_gateways_leaf_has_its_names_once_and_the_loopback_ones() {
    let names = ["AI.Branch.example", "ai.branch.example", "localhost", "10.0.0.7", "::1"];
    let leaf = issue(gateway(&names), &intermediate(), NOW, THREE_DAYS).unwrap();
    let loopback6 = format!("{:?}", [0_u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let expected =
        ["spiffe://td/gateway", "ai.branch.example", "localhost", "[10, 0, 0, 7]", &loopback6, "[127, 0, 0, 1]"];
    assert_eq!(names_in(&leaf), expected);
    assert!(verify::leaf_for(&leaf.chain[0], Purpose::Server).is_ok());
    assert!(verify::leaf_for(&leaf.chain[0], Purpose::Client).is_ok());
}

#[test]
fn names_that_no_client_would_match_are_refused() {
    for name in
        ["", "*.example.org", "ai.example.org.", "a b", "https://ai.example.org", "ai.example.org:8443", "é.example"]
    {
        let error = issue(gateway(&[name]), &intermediate(), NOW, THREE_DAYS).unwrap_err();
        assert!(matches!(error, CertsError::Name { .. }), "{name:?}: {error}");
    }
    let many: Vec<String> = (0..=MAX_NAMES).map(|n| format!("n{n}.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(issue(gateway(&many[1..]), &intermediate(), NOW, THREE_DAYS).is_ok());
    assert!(matches!(issue(gateway(&many), &intermediate(), NOW, THREE_DAYS), Err(CertsError::Name { .. })));
}

#[test]
fn refuses_who_must_not_have_a_leaf() {
    let (td, whole) = (id("spiffe://td"), PathPrefix::whole_domain());
    let request = |text: &str, role| LeafRequest { id: id(text), role };
    assert!(check(&workload(), &td, &whole).is_ok());
    assert!(check(&gateway(&[]), &td, &whole).is_ok());
    for (request, word) in [
        (request("spiffe://other/clerk/ada", Role::Workload), "another trust domain"),
        (request("spiffe://td", Role::Workload), "not a workload"),
        (request("spiffe://td/gateway", Role::Workload), "reserved"),
        (request("spiffe://td/gateway/spare", Role::Workload), "reserved"),
        (request("spiffe://td/clerk/ada", Role::Gateway { names: vec![] }), "may serve"),
        (request("spiffe://other/gateway", Role::Gateway { names: vec![] }), "another trust domain"),
        (request("spiffe://td/clerk/ada", Role::Node), "only an ID below `/node`"),
        (request("spiffe://td/node", Role::Node), "only an ID below `/node`"),
        (request("spiffe://td/nodes/gpu-1", Role::Node), "only an ID below `/node`"),
        (request("spiffe://td/gateway", Role::Node), "reserved"),
        (request("spiffe://td/node/gateway", Role::Node), "reserved"),
        (request("spiffe://td/node/gpu-1", Role::Workload), "a node's"),
        (request("spiffe://td/node/gpu-1", Role::Gateway { names: vec![] }), "may serve"),
    ] {
        let error = check(&request, &td, &whole).unwrap_err().to_string();
        assert!(error.contains(word), "{request:?}: {error}");
    }
}

#[test]
fn what_a_leaf_is_for_stands_in_its_id() {
    let (whole, branch): (PathPrefix, PathPrefix) = (PathPrefix::whole_domain(), "/branch-17".parse().unwrap());
    for (prefix, text, role) in [
        (&whole, "spiffe://td/node/gpu-1", Role::Node),
        (&whole, "spiffe://td/clerk/ada", Role::Workload),
        (&whole, "spiffe://td/branch-17/node/gpu-1", Role::Workload),
        (&branch, "spiffe://td/branch-17/node/gpu-1", Role::Node),
        (&branch, "spiffe://td/branch-17/node", Role::Workload),
        (&branch, "spiffe://td/node/gpu-1", Role::Workload),
    ] {
        assert_eq!(LeafRequest::below(prefix, id(text)).role, role, "{text} below {prefix}");
    }
}

#[test]
fn a_nodes_leaf_serves_and_has_no_name_that_a_gateway_could_have() {
    let request = LeafRequest::below(&PathPrefix::whole_domain(), id("spiffe://td/node/gpu-1"));
    let leaf = issue(request, &intermediate(), NOW, THREE_DAYS).unwrap();
    assert_eq!(names_in(&leaf), ["spiffe://td/node/gpu-1"]);
    assert!(verify::leaf_for(&leaf.chain[0], Purpose::Server).is_ok());
    assert!(verify::leaf_for(&leaf.chain[0], Purpose::Client).is_ok(), "it renews itself");
    let workstation = issue(workload(), &intermediate(), NOW, THREE_DAYS).unwrap();
    assert!(verify::leaf_for(&workstation.chain[0], Purpose::Server).is_err());
}

#[test]
fn every_leaf_has_its_own_key_and_number() {
    let intermediate = intermediate();
    let (a, b) = (
        issue(workload(), &intermediate, NOW, THREE_DAYS).unwrap(),
        issue(workload(), &intermediate, NOW, THREE_DAYS).unwrap(),
    );
    assert_ne!(a.key.secret_der(), b.key.secret_der());
    let serial = |leaf: &IssuedLeaf| parse_x509_certificate(&leaf.chain[0]).unwrap().1.raw_serial().to_vec();
    assert_ne!(serial(&a), serial(&b));
    assert_eq!(serial(&a).len(), 16);
    assert!(serial(&a)[0] < 0x80, "the number is positive");
}

#[test]
fn a_leaf_never_outlives_its_issuer() {
    let intermediate = intermediate();
    let late = intermediate.not_after - Duration::HOUR;
    let leaf = issue(workload(), &intermediate, late, THREE_DAYS).unwrap();
    assert_eq!(leaf.not_after, intermediate.not_after);
}

#[test]
fn a_short_leaf_is_backdated_less_so_that_it_is_not_born_due() {
    for seconds in [10, 30, 60, 600, 3600, 72 * 3600] {
        let leaf = issue(workload(), &intermediate(), NOW, Duration::seconds(seconds)).unwrap();
        assert!(leaf.not_before < NOW);
        let schedule = crate::rotate::Schedule::new(leaf.not_before, leaf.not_after, 0.0);
        let ahead = (schedule.due() - NOW).as_seconds_f64();
        assert!(ahead > 0.35 * (seconds as f64), "{seconds} s: due in {ahead} s");
    }
}

#[test]
fn writes_files_that_other_programs_read() {
    let intermediate = intermediate();
    let leaf = issue(workload(), &intermediate, NOW, THREE_DAYS).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("ada");
    let roots = [CertificateDer::from(vec![1, 2, 3]), CertificateDer::from(vec![4, 5])];
    leaf.write(&dir, &roots).unwrap();
    let read = |name: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(dir.join(name)).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(read("cert.pem"), leaf.chain);
    assert_eq!(read("ca.pem"), roots);
    assert_eq!(PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap(), leaf.key);
    let mode = |name: &str| std::fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("key.pem"), 0o600);
    assert_eq!(mode(""), 0o700);

    let again = issue(workload(), &intermediate, NOW, THREE_DAYS).unwrap();
    again.write(&dir, &roots).unwrap();
    assert_eq!(PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap(), again.key, "the next one replaces it");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3, "nothing else is left in the folder");
}

#[test]
fn what_was_written_is_read_back_or_refused() {
    let root = Signer::create_root(&id("spiffe://td"), NOW).unwrap();
    let intermediate =
        root.create_intermediate(&PathPrefix::whole_domain(), crate::signer::INTERMEDIATE_LIFE, NOW).unwrap();
    let leaf = issue(workload(), &intermediate, NOW, THREE_DAYS).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let roots = [root.certificate.clone()];
    leaf.write(scratch.path(), &roots).unwrap();
    let (read, trust) = IssuedLeaf::read(scratch.path(), NOW).unwrap();
    assert_eq!((&read.id, &read.chain, &read.key), (&leaf.id, &leaf.chain, &leaf.key));
    assert_eq!((read.not_before, read.not_after), (leaf.not_before, leaf.not_after));
    assert_eq!(trust.roots(), roots);
    let late = IssuedLeaf::read(scratch.path(), NOW + Duration::hours(73)).unwrap_err();
    assert_eq!(late.reason(), Some(crate::Reason::Expired));

    let other = issue(workload(), &intermediate, NOW, THREE_DAYS).unwrap();
    let mixed = IssuedLeaf::assemble(leaf.chain.clone(), other.key.clone_key(), &trust, NOW);
    assert!(mixed.unwrap_err().to_string().contains("another certificate"));
    let stranger =
        crate::Trust::from_roots(&[Signer::create_root(&id("spiffe://td"), NOW).unwrap().certificate.clone()]);
    let foreign = IssuedLeaf::assemble(leaf.chain.clone(), leaf.key.clone_key(), &stranger.unwrap(), NOW);
    assert_eq!(foreign.unwrap_err().reason(), Some(crate::Reason::UnknownAuthority));
    std::fs::write(scratch.path().join("ca.pem"), "junk").unwrap();
    assert!(matches!(IssuedLeaf::read(scratch.path(), NOW), Err(CertsError::Damaged { .. })));
    leaf.write(&scratch.path().join("b"), &roots).unwrap();
    std::fs::set_permissions(scratch.path().join("b/key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(IssuedLeaf::read(&scratch.path().join("b"), NOW), Err(CertsError::KeyExposed { .. })));
}

#[test]
fn debug_shows_no_key() {
    let leaf = issue(workload(), &intermediate(), NOW, THREE_DAYS).unwrap();
    let shown = format!("{leaf:?}");
    assert!(shown.contains("spiffe://td/clerk/ada"));
    assert!(!shown.contains("key"), "{shown}");
}
