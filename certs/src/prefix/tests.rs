use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};
use x509_parser::parse_x509_certificate;

use super::*;

fn prefix(text: &str) -> PathPrefix {
    text.parse().unwrap()
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

#[test]
fn covers_whole_segments_below_it() {
    let branch = prefix("/branch-1");
    for covered in ["spiffe://td/branch-1/x", "spiffe://td/branch-1/x/y", "spiffe://td/branch-1/gateway"] {
        assert!(branch.covers(&id(covered)), "{covered}");
    }
    for foreign in ["spiffe://td/branch-17/x", "spiffe://td/branch-1", "spiffe://td", "spiffe://td/x/branch-1/x"] {
        assert!(!branch.covers(&id(foreign)), "{foreign}");
    }
    assert!(PathPrefix::whole_domain().covers(&id("spiffe://td/branch-17/x")));
    assert!(!PathPrefix::whole_domain().covers(&id("spiffe://td")));
}

#[test]
fn refuses_what_is_no_prefix() {
    let long = format!("/{}", "a".repeat(MAX_PREFIX_BYTES));
    for text in ["branch-1", "/", "/a/", "//a", "/a//b", "/.", "/..", "/a b", "/a*", "/gateway", "/a/gateway", &long] {
        assert!(matches!(text.parse::<PathPrefix>(), Err(CertsError::Prefix(_))), "{text}");
    }
}

/// What a verifier reads from a certificate with these extensions of ours.
fn read(contents: &[&[u8]]) -> Result<PathPrefix, CertsError> {
    let mut params = CertificateParams::default();
    for content in contents {
        let extension = CustomExtension::from_oid_content(&PREFIX_EXTENSION_OID, content.to_vec());
        params.custom_extensions.push(extension);
    }
    let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    PathPrefix::of(&parse_x509_certificate(der.der()).unwrap().1)
}

#[test]
fn is_read_back_from_a_certificate_or_refused() {
    assert_eq!(read(&[]).unwrap(), PathPrefix::whole_domain());
    for text in ["/branch-1", "/europe/branch-1", &format!("/{}", "a".repeat(126)), &format!("/{}", "a".repeat(254))] {
        assert_eq!(read(&[&encode(text)]).unwrap(), prefix(text));
    }
    let good = encode("/branch-1");
    let malformed: [&[&[u8]]; 9] = [
        &[&good, &good],
        &[b""],
        &[b"/branch-1"],
        &[&good[..5]],
        &[&[&good[..], b"x"].concat()],
        &[b"\x0c\x81\x09/branch-1"],
        &[b"\x16\x09/branch-1"],
        &[b"\x0c\x00"],
        &[b"\x0c\x02/\xff"],
    ];
    for contents in malformed {
        assert!(read(contents).unwrap_err().to_string().contains("prefix is malformed"), "{contents:?}");
    }
}

proptest! {
    #[test]
    fn covers_exactly_what_has_its_segments_and_more(
        own in prop::collection::vec("[a-c]{1,2}", 0..4),
        other in prop::collection::vec("[a-c]{1,2}", 0..6),
    ) {
        let text: String = own.iter().map(|segment| format!("/{segment}")).collect();
        let path: String = other.iter().map(|segment| format!("/{segment}")).collect();
        let expected = other.len() > own.len() && other.starts_with(&own);
        prop_assert_eq!(prefix(&text).covers(&id(&format!("spiffe://td{path}"))), expected);
    }

    #[test]
    fn any_text_is_a_prefix_or_an_error_and_round_trips(text in ".{0,300}", der in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(prefix) = text.parse::<PathPrefix>() {
            prop_assert_eq!(prefix.as_str(), text.as_str());
            let encoded = encode(&text);
            prop_assert_eq!(decode(&encoded), Some(text.as_str()));
        }
        let _ = decode(&der);
    }
}
