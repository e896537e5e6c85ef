use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::pki_types::CertificateDer;
use time::{Duration, macros::datetime};

use super::*;
use crate::{
    LeafRequest, Role, Serial, SpiffeId, issue,
    signer::{Signer, new_key},
};

const NOW: OffsetDateTime = datetime!(2026-11-01 08:00 UTC);
fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn root() -> Signer {
    Signer::create_root(&id("spiffe://td"), NOW).unwrap()
}

fn below(root: &Signer, prefix: &str) -> Signer {
    root.create_intermediate(&prefix.parse().unwrap(), crate::signer::INTERMEDIATE_LIFE, NOW).unwrap()
}

fn chain_for(issuer: &Signer, who: &str) -> Vec<CertificateDer<'static>> {
    let request = LeafRequest { id: id(who), role: Role::Workload };
    issue::issue(request, issuer, NOW, Duration::hours(72)).unwrap().chain.clone()
}

fn judge(trust: &Trust, chain: &[CertificateDer<'_>], at: OffsetDateTime) -> Result<Peer, Reason> {
    let verdict = trust.verify(&chain[0], &chain[1..], Purpose::Client, "td", unix_time(at));
    verdict.map_err(|error| error.reason().unwrap())
}

fn crl(signer: &Signer, serials: &[Serial], next_update: OffsetDateTime) -> CertificateRevocationListDer<'static> {
    signer.sign_crl(serials.iter().map(|serial| (serial, NOW)), NOW, next_update, 1).unwrap()
}

#[test]
fn an_intermediate_speaks_below_its_prefix_only() {
    let root = root();
    let trust = Trust::from_roots(std::slice::from_ref(&root.certificate)).unwrap();
    let branch = below(&root, "/branch-1");
    assert_eq!(
        judge(&trust, &chain_for(&branch, "spiffe://td/branch-1/x"), NOW).unwrap().id,
        id("spiffe://td/branch-1/x")
    );
    for foreign in ["spiffe://td/branch-17/x", "spiffe://td/branch-1", "spiffe://td/clerk/ada"] {
        assert_eq!(judge(&trust, &chain_for(&branch, foreign), NOW), Err(Reason::Prefix), "{foreign}");
    }
    let whole = below(&root, "");
    assert!(judge(&trust, &chain_for(&whole, "spiffe://td/branch-17/x"), NOW).is_ok(), "no extension: no limit");
}

#[test]
fn a_prefix_in_a_root_counts_too() {
    let root = root();
    let branch = below(&root, "/branch-1");
    let trust = Trust::from_roots(std::slice::from_ref(&branch.certificate)).unwrap();
    assert!(judge(&trust, &chain_for(&branch, "spiffe://td/branch-1/x")[..1], NOW).is_ok());
    assert_eq!(judge(&trust, &chain_for(&branch, "spiffe://td/branch-2/x")[..1], NOW), Err(Reason::Prefix));
}

#[test]
fn a_malformed_prefix_is_refused() {
    let root = root();
    let trust = Trust::from_roots(std::slice::from_ref(&root.certificate)).unwrap();
    let odd = root.create_odd_intermediate(NOW, |params| {
        let oid = crate::prefix::PREFIX_EXTENSION_OID;
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&oid, b"\x0c\x01/".to_vec())];
    });
    assert_eq!(judge(&trust, &chain_for(&odd, "spiffe://td/x"), NOW), Err(Reason::Malformed));
    assert!(Trust::from_roots(std::slice::from_ref(&odd.certificate)).is_err());
}

#[test]
fn an_authority_whose_key_may_not_sign_certificates_signs_none() {
    let root = root();
    let trust = Trust::from_roots(std::slice::from_ref(&root.certificate)).unwrap();
    let with = |usages: &[KeyUsagePurpose]| root.create_odd_intermediate(NOW, |it| it.key_usages = usages.to_vec());
    let verdict = |usages| judge(&trust, &chain_for(&with(usages), "spiffe://td/x"), NOW).map(|peer| peer.id);
    assert_eq!(verdict(&[KeyUsagePurpose::KeyCertSign]), Ok(id("spiffe://td/x")));
    for usages in [&[KeyUsagePurpose::CrlSign][..], &[KeyUsagePurpose::DigitalSignature]] {
        assert_eq!(verdict(usages), Err(Reason::Purpose), "{usages:?}");
    }
}

#[test]
fn roots_count_within_their_own_life_at_the_time_of_each_chain() {
    let (root, other) = (root(), Signer::create_root(&id("spiffe://td"), NOW + Duration::days(3600)).unwrap());
    let trust = Trust::from_roots(&[root.certificate.clone(), other.certificate.clone()]).unwrap();
    // One that outlives its root, as no authority of ours issues.
    let chain = {
        let intermediate = root.create_odd_intermediate(NOW, |params| params.not_after = NOW + Duration::days(5000));
        let key = new_key().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.not_after = NOW + Duration::days(5000);
        params.subject_alt_names = vec![SanType::URI("spiffe://td/x".try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        vec![intermediate.sign(&params, &key).unwrap(), intermediate.certificate.clone()]
    };
    assert!(judge(&trust, &chain, root.not_after).is_ok());
    assert_eq!(judge(&trust, &chain, root.not_after + Duration::SECOND), Err(Reason::UnknownAuthority));
    assert!(trust.check_not_empty(root.not_after + Duration::SECOND).is_ok(), "the other one is valid then");
    assert_eq!(judge(&trust, &chain, NOW - Duration::HOUR), Err(Reason::UnknownAuthority));
    assert!(matches!(trust.check_not_empty(NOW - Duration::HOUR), Err(CertsError::EmptyBundle)));
}

#[test]
fn says_expired_not_yet_valid_and_unknown_authority() {
    let root = root();
    let trust = Trust::from_roots(std::slice::from_ref(&root.certificate)).unwrap();
    let chain = chain_for(&below(&root, ""), "spiffe://td/x");
    assert_eq!(judge(&trust, &chain, NOW + Duration::hours(73)), Err(Reason::Expired));
    assert_eq!(judge(&trust, &chain[..1], NOW), Err(Reason::UnknownAuthority));
    let stranger = Trust::from_roots(&[self::root().certificate.clone()]).unwrap();
    assert_eq!(judge(&stranger, &chain, NOW), Err(Reason::UnknownAuthority));
    let td2 = Signer::create_root(&id("spiffe://td2"), NOW).unwrap();
    let unvouched = judge(&trust, &chain_for(&below(&td2, ""), "spiffe://td2/x"), NOW);
    assert_eq!(unvouched, Err(Reason::UnknownAuthority), "nobody vouches for this name, so nothing is said of it");
    let other = trust.verify(&chain[0], &chain[1..], Purpose::Client, "td2", unix_time(NOW));
    assert_eq!(other.unwrap_err().reason(), Some(Reason::TrustDomain));
    let serving = trust.verify(&chain[0], &chain[1..], Purpose::Server, "td", unix_time(NOW));
    assert_eq!(serving.unwrap_err().reason(), Some(Reason::Purpose));
}

#[test]
fn a_revoked_leaf_is_refused_and_its_connection_is_known() {
    let root = root();
    let (ours, theirs) = (below(&root, ""), below(&root, ""));
    let (ada, eve) = (chain_for(&ours, "spiffe://td/ada"), chain_for(&ours, "spiffe://td/eve"));
    let roots = std::slice::from_ref(&root.certificate);
    let before = Trust::from_roots(roots).unwrap().with_crls(&[crl(&ours, &[], NOW + Duration::DAY)]).unwrap();
    let peer = judge(&before, &eve, NOW).unwrap();
    assert!(!before.is_revoked(&peer));

    let list = crl(&ours, std::slice::from_ref(&peer.serial), NOW + Duration::DAY);
    let after = Trust::from_roots(roots).unwrap().with_crls(std::slice::from_ref(&list)).unwrap();
    assert_eq!(judge(&after, &eve, NOW), Err(Reason::Revoked));
    assert!(after.is_revoked(&peer));
    assert_eq!(after.next_update(), Some(NOW + Duration::DAY));
    let ada = judge(&after, &ada, NOW).unwrap();
    assert!(!after.is_revoked(&ada), "only the one whose number it is");
    let elsewhere =
        Peer { serial: peer.serial.clone(), ..verify::peer(&chain_for(&theirs, "spiffe://td/bob")[0]).unwrap() };
    assert!(!after.is_revoked(&elsewhere), "the same number of another issuer");
}

#[test]
fn issuers_of_one_name_are_told_apart_by_their_keys() {
    let root = root();
    let namesake =
        || root.create_odd_intermediate(NOW, |params| params.distinguished_name = crate::signer::subject("same"));
    let (ours, theirs) = (namesake(), namesake());
    let peer = verify::peer(&chain_for(&ours, "spiffe://td/ada")[0]).unwrap();
    let listing = |signer: &Signer| {
        let list = crl(signer, std::slice::from_ref(&peer.serial), NOW + Duration::DAY);
        Trust::from_roots(std::slice::from_ref(&root.certificate)).unwrap().with_crls(&[list]).unwrap()
    };
    assert!(listing(&ours).is_revoked(&peer));
    assert!(!listing(&theirs).is_revoked(&peer));
}

#[test]
fn where_lists_are_required_there_must_be_a_fresh_one_of_the_right_issuer() {
    let root = root();
    let (ours, theirs) = (below(&root, ""), below(&root, ""));
    let chain = chain_for(&ours, "spiffe://td/ada");
    let with = |lists: &[CertificateRevocationListDer<'_>]| {
        Trust::from_roots(std::slice::from_ref(&root.certificate)).unwrap().with_crls(lists).unwrap()
    };
    let fresh = crl(&ours, &[], NOW + Duration::HOUR);
    assert!(judge(&with(std::slice::from_ref(&fresh)), &chain, NOW).is_ok(), "the root needs none");
    let late = NOW + Duration::HOUR + Duration::SECOND;
    assert_eq!(judge(&with(&[fresh]), &chain, late), Err(Reason::RevocationUnknown));
    assert_eq!(judge(&with(&[]), &chain, NOW), Err(Reason::RevocationUnknown));
    let foreign = crl(&theirs, &[], NOW + Duration::DAY);
    assert_eq!(judge(&with(&[foreign]), &chain, NOW), Err(Reason::RevocationUnknown));
    let forged = ours.forge_crl(&theirs, NOW, NOW + Duration::DAY);
    assert_eq!(judge(&with(&[forged]), &chain, NOW), Err(Reason::Malformed), "signed with another key");
}

#[test]
fn a_wrong_prefix_is_named_before_a_missing_list() {
    let root = root();
    let branch = below(&root, "/branch-1");
    let trust = Trust::from_roots(std::slice::from_ref(&root.certificate)).unwrap().with_crls(&[]).unwrap();
    assert_eq!(judge(&trust, &chain_for(&branch, "spiffe://td/branch-2/x"), NOW), Err(Reason::Prefix));
}

#[test]
fn bundles_and_lists_have_bounds() {
    let root = root();
    let many = vec![root.certificate.clone(); MAX_ROOTS + 1];
    assert!(Trust::from_roots(&many[1..]).is_ok());
    assert!(Trust::from_roots(&many).is_err());
    let lists = vec![crl(&below(&root, ""), &[], NOW + Duration::DAY); MAX_CRLS + 1];
    let trust = || Trust::from_roots(&many[..1]).unwrap();
    assert!(trust().with_crls(&lists[1..]).is_ok());
    assert!(matches!(trust().with_crls(&lists), Err(CertsError::RevocationList(_))));
    assert!(matches!(trust().with_crls(&[vec![1, 2, 3].into()]), Err(CertsError::RevocationList(_))));
}
