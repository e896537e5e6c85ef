use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::*;
use crate::AuthorityOptions;

fn root(algorithm: &'static SignatureAlgorithm) -> (CertificateDer<'static>, KeyPair) {
    let key = KeyPair::generate_for(algorithm).unwrap();
    (CertificateParams::default().self_signed(&key).unwrap().into(), key)
}

fn only_key(root: &CertificateDer<'_>) -> Value {
    let document: Value = serde_json::from_str(&document(std::slice::from_ref(root), 7).unwrap()).unwrap();
    assert_eq!((&document["spiffe_sequence"], &document["spiffe_refresh_hint"]), (&7.into(), &300.into()));
    document["keys"][0].clone()
}

fn bytes(key: &Value, name: &str) -> Vec<u8> {
    BASE64URL_NOPAD.decode(key[name].as_str().unwrap().as_bytes()).unwrap()
}

#[test]
fn each_root_is_a_key_with_its_certificate() {
    for (algorithm, curve, coordinate) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "P-256", 32),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "P-384", 48),
        (&rcgen::PKCS_ECDSA_P521_SHA512, "P-521", 66),
    ] {
        let (root, key) = root(algorithm);
        let jwk = only_key(&root);
        assert_eq!((&jwk["kty"], &jwk["crv"], &jwk["use"]), (&"EC".into(), &curve.into(), &"x509-svid".into()));
        assert_eq!([&[4], &bytes(&jwk, "x")[..], &bytes(&jwk, "y")].concat(), key.der_bytes());
        assert_eq!(bytes(&jwk, "x").len(), coordinate);
        assert_eq!(jwk["x5c"].as_array().unwrap().len(), 1);
        assert_eq!(BASE64.decode(jwk["x5c"][0].as_str().unwrap().as_bytes()).unwrap(), root.to_vec());
        assert!(jwk.get("kid").is_none() && jwk.get("alg").is_none());
    }
    let (ed25519, key) = root(&rcgen::PKCS_ED25519);
    let jwk = only_key(&ed25519);
    assert_eq!(
        (&jwk["kty"], &jwk["crv"], bytes(&jwk, "x")),
        (&"OKP".into(), &"Ed25519".into(), key.der_bytes().to_vec())
    );
    let (rsa, _) = root(&rcgen::PKCS_RSA_SHA256);
    let jwk = only_key(&rsa);
    assert_eq!((&jwk["kty"], &jwk["e"], bytes(&jwk, "n").len()), (&"RSA".into(), &"AQAB".into(), 256));
}

#[test]
fn an_authority_exports_what_it_trusts_and_counts_changes() {
    let folder = tempfile::tempdir().unwrap();
    let options = AuthorityOptions::new("td", Duration::from_secs(3600));
    let authority = Authority::open_or_create(folder.path(), options).unwrap();
    let read = || -> Value { serde_json::from_str(&authority.bundle_document().unwrap()).unwrap() };
    let before = read();
    authority.refresh().unwrap();
    assert_eq!(read(), before, "the number stays while nothing changes");
    authority.begin_root_switch().unwrap();
    let after = read();
    assert_eq!(after["keys"].as_array().unwrap().len(), 2);
    assert!(after["spiffe_sequence"].as_u64() > before["spiffe_sequence"].as_u64());
    let pem: Vec<_> = CertificateDer::pem_slice_iter(authority.bundle_pem().as_bytes()).map(Result::unwrap).collect();
    assert_eq!(pem, authority.trust_bundle());
}
