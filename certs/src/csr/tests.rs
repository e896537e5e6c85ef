use proptest::prelude::*;
use rcgen::{CustomExtension, DnType, KeyPair, SignatureAlgorithm};

use super::*;

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn request(algorithm: &'static SignatureAlgorithm, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(&KeyPair::generate_for(algorithm).unwrap()).unwrap().der().to_vec()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn reads_its_own() {
    let csr = Csr::generate(&id("spiffe://td/ada")).unwrap();
    let request = Request::from_der(&csr.der).unwrap();
    request.check_name(&id("spiffe://td/ada")).unwrap();
    assert!(matches!(request.check_name(&id("spiffe://td/eve")), Err(CertsError::Csr(_))));
    assert!(!format!("{csr:?}").contains("key"));
}

#[test]
fn takes_the_kinds_of_keys_that_it_says() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        Request::from_der(&request(algorithm, |_| {})).unwrap();
    }
    for algorithm in [&rcgen::PKCS_ECDSA_P521_SHA512, &rcgen::PKCS_RSA_SHA256] {
        let error = Request::from_der(&request(algorithm, |_| {})).unwrap_err().to_string();
        assert!(error.contains("P-256, P-384 and Ed25519"), "{error}");
    }
}

#[test]
fn a_wish_for_another_name_is_refused_and_other_wishes_are_ignored() {
    let read = |change: &dyn Fn(&mut CertificateParams)| Request::from_der(&request(&PKCS_ED25519, change));
    let ada = id("spiffe://td/ada");
    let wishes = read(&|params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "root");
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    });
    wishes.unwrap().check_name(&ada).unwrap();
    let two = read(&|params| params.subject_alt_names = vec![uri("spiffe://td/ada"), uri("spiffe://td/eve")]);
    let twice = read(&|params| params.subject_alt_names = vec![uri("spiffe://td/ada"), uri("spiffe://td/ada")]);
    let dns = read(&|params| params.subject_alt_names = vec![SanType::DnsName("ada".try_into().unwrap())]);
    for bad in [two, twice, dns] {
        assert!(bad.unwrap_err().to_string().contains("other names"));
    }
    let malformed = read(&|params| {
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x05, 0x86])];
    });
    assert!(malformed.unwrap_err().to_string().contains("malformed"));
    let again = read(&|params| {
        params.subject_alt_names = vec![uri("spiffe://td/ada")];
        let san = [&[0x30, 17, 0x86, 15][..], b"spiffe://td/eve"].concat();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], san)];
    });
    assert!(again.unwrap_err().to_string().contains("twice"));
}

#[test]
fn the_sender_has_to_have_the_key() {
    let (ours, theirs) = (Csr::generate(&id("spiffe://td/a")).unwrap(), Csr::generate(&id("spiffe://td/a")).unwrap());
    // The signature of another request about another key, in place of its own.
    let signature = theirs.der.len() - 70;
    let mixed = [&ours.der[..ours.der.len() - 70], &theirs.der[signature..]].concat();
    assert!(Request::from_der(&mixed).is_err());
    let long = [ours.der.clone(), vec![0; MAX_CSR_BYTES]].concat();
    assert!(Request::from_der(&long).unwrap_err().to_string().contains("longer than"));
    assert!(Request::from_der(&[&ours.der[..], &[0]].concat()).is_err(), "bytes behind its end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_changed_request_is_refused_and_never_crashes(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let good = Csr::generate(&id("spiffe://td/clerk/ada")).unwrap().der.clone();
        let mut bad = good.clone();
        for (position, change) in changes {
            bad[position.index(good.len())] ^= change;
        }
        if bad != good {
            prop_assert!(Request::from_der(&bad).is_err());
        }
        prop_assert!(Request::from_der(&good[..cut.index(good.len())]).is_err());
    }

    #[test]
    fn foreign_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Request::from_der(&bytes).is_err());
    }
}

#[test]
fn every_byte_counts() {
    let good = Csr::generate(&id("spiffe://td/clerk/ada")).unwrap().der.clone();
    for position in 0..good.len() {
        for change in [0x01, 0x20, 0x40] {
            let mut bad = good.clone();
            bad[position] ^= change;
            assert!(Request::from_der(&bad).is_err(), "byte {position} of {good:02x?}");
        }
    }
}
