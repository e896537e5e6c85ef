use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use time::macros::datetime;

use super::*;

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// A self-signed certificate with these changes to a well-formed leaf of `spiffe://td/clerk/ada`.
fn certificate(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://td/clerk/ada")];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    change(&mut params);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
}

fn refused(leaf: &CertificateDer<'_>) -> String {
    peer_id(leaf).unwrap_err().to_string()
}

#[test]
fn reads_the_one_identity() {
    let leaf = certificate(|params| params.subject_alt_names.push(SanType::DnsName("td".try_into().unwrap())));
    assert_eq!(peer_id(&leaf).unwrap().to_string(), "spiffe://td/clerk/ada");
    let bare = certificate(|params| {
        params.is_ca = IsCa::NoCa;
        params.key_usages.clear();
    });
    assert!(peer_id(&bare).is_ok(), "both extensions may be absent from a leaf");
}

#[test]
fn says_what_is_wrong_with_an_identity() {
    let none = certificate(|params| params.subject_alt_names.clear());
    assert!(refused(&none).contains("no URI"), "{}", refused(&none));
    let dns_only = certificate(|params| params.subject_alt_names = vec![SanType::DnsName("td".try_into().unwrap())]);
    assert!(refused(&dns_only).contains("no URI"));
    let two = certificate(|params| params.subject_alt_names.push(uri("spiffe://td/clerk/eve")));
    assert!(refused(&two).contains("more than one URI"));
    let twice = certificate(|params| params.subject_alt_names.push(uri("spiffe://td/clerk/ada")));
    assert!(refused(&twice).contains("more than one URI"));
    let one_is_no_spiffe = certificate(|params| params.subject_alt_names.push(uri("https://td/")));
    assert!(refused(&one_is_no_spiffe).contains("more than one URI"));
    let web = certificate(|params| params.subject_alt_names = vec![uri("https://td/clerk/ada")]);
    assert!(refused(&web).contains("spiffe://"));
    let upper = certificate(|params| params.subject_alt_names = vec![uri("spiffe://TD/clerk/ada")]);
    assert!(refused(&upper).contains("lower-case"));
    let domain = certificate(|params| params.subject_alt_names = vec![uri("spiffe://td")]);
    assert!(refused(&domain).contains("trust domain, not a workload"));
}

#[test]
fn a_workload_is_no_authority_and_the_reverse() {
    let by_constraint = certificate(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(refused(&by_constraint).contains("belongs to an authority"));
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let by_usage = certificate(|params| params.key_usages.push(usage));
        assert!(refused(&by_usage).contains("belongs to an authority"), "{usage:?}");
    }
    assert!(authority(&certificate(|_| {})).is_err());
    let real = certificate(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.subject_alt_names = vec![uri("spiffe://td")];
    });
    assert_eq!(authority(&real).unwrap().trust_domain.to_string(), "spiffe://td");
}

#[test]
fn a_purpose_has_to_be_named() {
    let none = certificate(|_| {});
    let client = certificate(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let server = certificate(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let any = certificate(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]);
    let verdicts = |leaf| (leaf_for(leaf, Purpose::Client).is_ok(), leaf_for(leaf, Purpose::Server).is_ok());
    assert_eq!(verdicts(&none), (false, false));
    assert_eq!(verdicts(&client), (true, false));
    assert_eq!(verdicts(&server), (false, true));
    assert_eq!(verdicts(&any), (false, false));
}

#[test]
fn a_key_that_may_not_sign_is_refused() {
    let leaf = |usages: &[KeyUsagePurpose]| {
        certificate(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.key_usages = usages.to_vec();
        })
    };
    let reason = |leaf| leaf_for(&leaf, Purpose::Client).map_err(|error| error.reason());
    assert!(reason(leaf(&[])).is_ok(), "the extension may be absent");
    assert!(reason(leaf(&[KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyAgreement])).is_ok());
    assert_eq!(reason(leaf(&[KeyUsagePurpose::KeyAgreement])), Err(Some(Reason::Purpose)));
}

#[test]
fn reads_the_validity() {
    let (begin, end) = (datetime!(2026-11-01 08:00 UTC), datetime!(2062-01-01 00:00 UTC));
    let leaf = certificate(|params| (params.not_before, params.not_after) = (begin, end));
    assert_eq!(validity(&leaf).unwrap(), (begin, end));
}

#[test]
fn bytes_behind_the_certificate_are_refused() {
    let mut leaf = certificate(|_| {}).to_vec();
    leaf.push(0);
    assert!(refused(&leaf.into()).contains("bytes follow"));
}

/// A leaf whose alternative names are URIs of these bytes.
fn with_raw_uris(uris: &[&[u8]]) -> CertificateDer<'static> {
    let entries: Vec<u8> = uris.iter().flat_map(|uri| [&[0x86, uri.len() as u8], *uri].concat()).collect();
    let content = [&[0x30, entries.len() as u8], &entries[..]].concat();
    certificate(|params| {
        params.subject_alt_names.clear();
        params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], content));
    })
}

#[test]
fn an_identity_of_odd_bytes_is_refused() {
    assert!(peer_id(&with_raw_uris(&[b"spiffe://td/clerk/ada"])).is_ok(), "the test's own encoding is right");
    // A NUL that another reader might take for the end, a line break that splits a log line, and text that is not
    // UTF-8.
    for bytes in [&b"spiffe://td/clerk/ada\0.evil"[..], b"spiffe://td/a\nlevel=info", b"spiffe://td/\xff\xfe"] {
        assert!(peer_id(&with_raw_uris(&[bytes])).is_err(), "{bytes:?}");
        assert!(peer_id(&with_raw_uris(&[b"spiffe://td/clerk/ada", bytes])).is_err(), "beside a good one: {bytes:?}");
    }
}

proptest! {
    #[test]
    fn foreign_bytes_are_answered_not_crashed_on(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(peer_id(&bytes.into()).is_err());
    }

    #[test]
    fn a_damaged_certificate_is_answered_not_crashed_on(position in any::<prop::sample::Index>(), bit in 0_u8..8) {
        // Without a signature check a flipped bit may go unnoticed; inside the ID it gives another valid ID at most,
        // never a crash.
        let mut leaf = certificate(|_| {}).to_vec();
        let position = position.index(leaf.len());
        leaf[position] ^= 1 << bit;
        let leaf = CertificateDer::from(leaf);
        if let Ok(id) = peer_id(&leaf) {
            prop_assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
        }
        let _ = (validity(&leaf), authority(&leaf), leaf_for(&leaf, Purpose::Client));
    }
}
