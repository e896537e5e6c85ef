//! The vectors of RFC 9180 for our suite: every encryption and every export, in all modes, both ways. `rfc9180.json` has those of the RFC's own
//! list (`cfrg/draft-irtf-cfrg-hpke`, commit 5f503c5); the additional data of encryption n is `Count-n` there.

use std::convert::Infallible;

use data_encoding::HEXLOWER;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem, X25519HkdfSha256};
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, OpModeR, OpModeS, PskBundle, Serializable, setup_receiver, setup_sender_with_rng};
use serde_json::Value;

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type Encapped = <X25519HkdfSha256 as Kem>::EncappedKey;

/// Draws what the sender of a vector drew.
struct Drawn(Vec<u8>);

impl TryRng for Drawn {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("keys are drawn as bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("keys are drawn as bytes")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

impl TryCryptoRng for Drawn {}

#[expect(clippy::unwrap_used, reason = "a test: the file is ours")]
fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap_or_default().as_bytes()).unwrap()
}

#[test]
fn every_vector_of_rfc_9180_for_this_suite() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("rfc9180.json")).unwrap();
    let mut modes = Vec::new();
    for vector in &vectors {
        let part = |name: &str| hex(&vector[name]);
        let secret = |name: &str| PrivateKey::from_bytes(&part(name)).unwrap();
        let public = |name: &str| PublicKey::from_bytes(&part(name)).unwrap();
        let (psk, psk_id) = (part("psk"), part("psk_id"));
        let psk = || PskBundle::new(&psk, &psk_id).unwrap();
        let (sends, receives) = match vector["mode"].as_u64().unwrap() {
            0 => (OpModeS::Base, OpModeR::Base),
            1 => (OpModeS::Psk(psk()), OpModeR::Psk(psk())),
            2 => (OpModeS::Auth((secret("skSm"), public("pkSm"))), OpModeR::Auth(public("pkSm"))),
            3 => (OpModeS::AuthPsk((secret("skSm"), public("pkSm")), psk()), OpModeR::AuthPsk(public("pkSm"), psk())),
            other => panic!("mode {other}"),
        };
        let (enc, mut sender) = setup_sender_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &sends,
            &public("pkRm"),
            &part("info"),
            &mut Drawn(part("ikmE")),
        )
        .unwrap();
        assert_eq!(enc.to_bytes().to_vec(), part("enc"));
        let mut receiver = setup_receiver::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &receives,
            &secret("skRm"),
            &Encapped::from_bytes(&part("enc")).unwrap(),
            &part("info"),
        )
        .unwrap();
        let encryptions = vector["ct"].as_array().unwrap();
        for (n, sealed) in encryptions.iter().enumerate() {
            let (aad, sealed) = (format!("Count-{n}"), hex(sealed));
            assert_eq!(sender.seal(&part("pt"), aad.as_bytes()).unwrap(), sealed, "encryption {n}");
            assert_eq!(receiver.open(&sealed, aad.as_bytes()).unwrap(), part("pt"), "encryption {n}");
        }
        let exports = vector["exports"].as_array().unwrap();
        for export in exports {
            let mut out = vec![0; usize::try_from(export["L"].as_u64().unwrap()).unwrap()];
            receiver.export(&hex(&export["exporter_context"]), &mut out).unwrap();
            assert_eq!(out, hex(&export["exported_value"]));
        }
        modes.push((vector["mode"].as_u64().unwrap(), encryptions.len(), exports.len()));
    }
    assert_eq!(modes, [(0, 257, 3), (1, 257, 3), (2, 257, 3), (3, 257, 3)]);
}
