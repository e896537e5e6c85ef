use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::manifest::Asked;
use crate::pack::pack;
use crate::signature::{SIGNATURE_SECTION, SigningKey};

/// A signed policy, byte for byte: what is signed today can be verified by every later Postern.
const GOLDEN: &str = include_str!("../../tests/golden/signed.hex");
/// The secret and the public key of RFC 8032, section 7.1, test 1.
const RFC_8032_SECRET: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const RFC_8032_PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

const MANIFEST: &str = r#"
name: golden
version: 1.2.3
description: For tests.
interfaces: [routing]
grants: {headers: [x-department]}
metrics: [kept]
config_schema: {type: object, properties: {limit: {type: integer}}, additionalProperties: false}
"#;

fn pem(label: &str, der_head: &str, key: &str) -> Vec<u8> {
    let der = HEXLOWER.decode(format!("{der_head}{key}").as_bytes()).unwrap();
    let base64 = data_encoding::BASE64.encode(&der);
    format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n").into_bytes()
}

fn golden_key() -> SigningKey {
    SigningKey::from_pem(&pem("PRIVATE KEY", "302e020100300506032b657004220420", RFC_8032_SECRET)).unwrap()
}

fn golden_public() -> PublicKey {
    PublicKey::from_pem(&pem("PUBLIC KEY", "302a300506032b6570032100", RFC_8032_PUBLIC)).unwrap()
}

fn component() -> Vec<u8> {
    let text = r#"(component (instance $routing) (export "postern:policy/routing@1.0.0" (instance $routing)))"#;
    wat::parse_str(text).unwrap()
}

fn golden() -> Vec<u8> {
    HEXLOWER.decode(GOLDEN.replace('\n', "").as_bytes()).unwrap()
}

fn verified(file: Vec<u8>) -> Result<KeyId, PluginError> {
    Package::read(file)?.verify(&[golden_public()])
}

fn said(file: Vec<u8>) -> String {
    verified(file).unwrap_err().to_string()
}

#[test]
fn a_signed_file_is_the_same_byte_for_byte() {
    let file = golden_key().sign(&pack(&component(), MANIFEST, None).unwrap()).unwrap();
    assert_eq!(HEXLOWER.encode(&file), HEXLOWER.encode(&golden()));
    let package = Package::read(golden()).unwrap();
    let id = package.verify(&[golden_public()]).unwrap();
    assert_eq!((&id, package.claimed_signer()), (golden_public().id(), Some(golden_public().id())));
    assert_eq!(id.as_str().len(), 32);
    assert_eq!((package.version().as_str(), package.short_digest().len()), ("1.2.3", 16));
    assert!(package.digest().starts_with(package.short_digest()));
    assert_eq!(package.metrics().collect::<Vec<_>>(), ["kept"]);
    let given = Grants { headers: ["x-department".to_owned()].into(), text: true };
    assert_eq!(package.grants(&given), Grants { text: false, ..given });
    package.check_config(&json!({"limit": 3})).unwrap();
    assert!(package.check_config(&json!({"limit": "three"})).unwrap_err().to_string().contains("/limit"));
}

#[test]
fn no_bit_can_be_changed() {
    let file = golden();
    verified(file.clone()).unwrap();
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut changed = file.clone();
            changed[at] ^= 1 << bit;
            assert!(verified(changed).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn no_byte_can_be_left_out_or_added() {
    let file = golden();
    for at in 0..file.len() {
        let mut cut = file.clone();
        cut.remove(at);
        assert!(verified(cut).is_err(), "without byte {at}");
        assert!(verified(file[..at].to_vec()).is_err(), "only {at} bytes");
        let mut longer = file.clone();
        longer.insert(at, 0);
        assert!(verified(longer).is_err(), "one more at {at}");
    }
}

/// Beginning of the signature section.
fn signature_at(file: &[u8]) -> usize {
    let mut sections = section::sections(file).unwrap().map(|section| section.unwrap());
    sections.find(|section| section.is(SIGNATURE_SECTION)).unwrap().start
}

#[test]
fn a_signature_stands_at_the_end_and_once() {
    let file = golden();
    let (signed, signature) = file.split_at(signature_at(&file));
    let note = section::encode("note", b"x");
    let together = |parts: &[&[u8]]| parts.concat();
    let (head, rest) = signed.split_at(8);
    for (changed, words) in [
        (signed.to_vec(), "is not signed"),
        (together(&[signed, &note]), "is not signed"),
        (together(&[&file, &note]), "was added behind it"),
        (together(&[&file, &[0]]), "is the file cut"),
        (together(&[&file, signature]), "two sections"),
        (together(&[head, signature, rest]), "was added behind it"),
        (together(&[head, signature, rest, signature]), "two sections"),
        (together(&[signed, &note, signature]), "was changed after"),
        (together(&[head, &note, rest, signature]), "was changed after"),
    ] {
        let said = said(changed);
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_signature_is_written_in_one_way_only() {
    let file = golden();
    let at = signature_at(&file);
    let text = section::sections(&file).unwrap().last().unwrap().unwrap().custom.unwrap().1.to_vec();
    let text = String::from_utf8(text).unwrap();
    let with = |text: String| [&file[..at], &section::encode(SIGNATURE_SECTION, text.as_bytes())].concat();
    assert!(verified(with(text.clone())).is_ok());
    for other in [
        text.replacen(':', ": ", 1),
        format!("{text} "),
        text.replacen("key_id", "key\\u005fid", 1),
        text.replacen("{", "{\"more\":1,", 1),
        text.replace(golden_public().id().as_str(), &golden_public().id().as_str().to_uppercase()),
        text.replace("==", ""),
        String::new(),
        "x".repeat(10_000),
    ] {
        let said = said(with(other));
        assert!(said.contains("cannot be read"), "{said}");
    }
    // The length of the section in one byte more than it needs.
    let mut longer = file.clone();
    let length = at + 1;
    assert!(longer[length] & 0x80 != 0 && longer[length + 1] & 0x80 == 0);
    longer[length + 1] |= 0x80;
    longer.insert(length + 2, 0);
    assert!(said(longer).contains("cannot be read"));
}

#[test]
fn only_a_trusted_key_counts() {
    let other = SigningKey::generate().unwrap();
    let by_other = other.sign(&golden()).unwrap();
    let package = Package::read(by_other).unwrap();
    let said = package.verify(&[golden_public()]).unwrap_err();
    assert!(matches!(&said, PluginError::UnknownSigner(id) if id == other.public().id()), "{said}");
    assert!(package.verify(&[]).is_err());
    assert_eq!(&package.verify(&[golden_public(), other.public().clone()]).unwrap(), other.public().id());
    // A signature that names another key than made it.
    let forged = String::from_utf8_lossy(package.bytes()).contains(other.public().id().as_str());
    assert!(forged);
    let renamed = replaced(package.bytes(), other.public().id().as_str(), golden_public().id().as_str());
    assert!(self::said(renamed).contains("was changed after"));
}

fn replaced(file: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = file.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    [&file[..at], to.as_bytes(), &file[at + from.len()..]].concat()
}

#[test]
fn a_new_manifest_takes_the_signature_away() {
    let package = Package::read(golden()).unwrap();
    let changed = Manifest { grants: Asked { text: true, ..Asked::default() }, ..package.manifest().unwrap().clone() };
    let file = changed.add_to(package.bytes()).unwrap();
    assert!(said(file.clone()).contains("is not signed"));
    assert_eq!(Package::read(file).unwrap().manifest(), Some(&changed));
}

#[test]
fn a_manifest_stands_once_and_fits() {
    let packed = pack(&component(), MANIFEST, None).unwrap();
    let twice = [packed.clone(), section::encode(MANIFEST_SECTION, b"{}")].concat();
    let said = Package::read(twice).unwrap_err().to_string();
    assert!(said.contains("two sections `postern:manifest`"), "{said}");
    let said = pack(&component(), &MANIFEST.replace("[routing]", "[routing, caching]"), None).unwrap_err().to_string();
    assert!(said.contains("says [caching, routing], but the component exports [routing]"), "{said}");
    let unsaid = pack(&component(), &MANIFEST.replace("interfaces: [routing]\n", ""), None).unwrap();
    assert_eq!(unsaid, packed);
    let said = pack(&component(), &MANIFEST.replace("metrics:", "metrix:"), None).unwrap_err().to_string();
    assert!(said.contains("metrix") && said.contains("line 7"), "{said}");
    let said = pack(&component(), MANIFEST, Some("routing-policy")).unwrap_err().to_string();
    assert!(said.contains("which has it already"), "{said}");
    let plain = Package::read(component()).unwrap();
    assert!(plain.manifest().is_none() && plain.version().is_empty());
    let everything = Grants { headers: ["x-department".to_owned()].into(), text: true };
    assert_eq!(plain.grants(&everything), Grants::default());
}

#[test]
fn keys_are_read_as_openssl_writes_them_and_nothing_else_is() {
    let key = SigningKey::generate().unwrap();
    let (private, public) = (key.to_pem().unwrap(), key.public().to_pem());
    assert_eq!(SigningKey::from_pem(private.as_bytes()).unwrap().public(), key.public());
    assert_eq!(&PublicKey::from_pem(public.as_bytes()).unwrap(), key.public());
    assert!(private.len() < 150 && private.lines().count() == 3, "the key alone: PKCS #8, version 1");
    let wrong = |text: &str| PublicKey::from_pem(text.as_bytes()).unwrap_err().to_string();
    assert!(wrong(&private).contains("private key") && !wrong(&private).contains(private.lines().nth(1).unwrap()));
    assert!(wrong("").contains("no PEM section"));
    assert!(wrong(&(public.clone() + &public)).contains("more than one"));
    assert!(wrong(&"x".repeat(20_000)).contains("too long"));
    let p256 = pem("PUBLIC KEY", "3059301306072a8648ce3d020106082a8648ce3d030107034200", &"04".repeat(65));
    assert!(PublicKey::from_pem(&p256).unwrap_err().to_string().contains("not an Ed25519"));
    assert!(SigningKey::from_pem(public.as_bytes()).unwrap_err().to_string().contains("PRIVATE KEY"));
    let short = pem("PRIVATE KEY", "302e020100300506032b657004220420", "00");
    assert!(SigningKey::from_pem(&short).is_err());
    assert!(!format!("{key:?}").contains(private.lines().nth(1).unwrap().get(..20).unwrap()));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..600) {
        let mut file = golden();
        file.truncate(cut);
        file.extend(bytes);
        let _whatever = Package::read(file).map(|package| package.verify(&[golden_public()]));
    }
}
