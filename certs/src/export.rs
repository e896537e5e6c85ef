//! The trust bundle in the forms that others read.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::{oid_registry::OID_SIG_ED25519, public_key::PublicKey, x509::SubjectPublicKeyInfo};

use crate::{Authority, CertsError, pem, verify};

/// How often a reader of the bundle document should come back, seconds: what the specification advises for a bundle
/// that may change at short notice (SPIFFE Trust Domain and Bundle, section 6.2).
pub const REFRESH_HINT_S: u64 = 300;

/// A JWK set (RFC 7517) with the two parameters of SPIFFE.
#[derive(Serialize)]
struct Document {
    keys: Vec<Jwk>,
    spiffe_sequence: u64,
    spiffe_refresh_hint: u64,
}

/// One root. `kid` must not be there, and `x5c` holds exactly the one certificate (X.509-SVID, section 6.1).
#[derive(Serialize)]
struct Jwk {
    #[serde(rename = "use")]
    usage: &'static str,
    #[serde(flatten)]
    key: Key,
    x5c: [String; 1],
}

/// The public key (RFC 7518, section 6; RFC 8037, section 2).
#[derive(Serialize)]
#[serde(tag = "kty")]
enum Key {
    #[serde(rename = "EC")]
    Ec { crv: &'static str, x: String, y: String },
    #[serde(rename = "RSA")]
    Rsa { n: String, e: String },
    #[serde(rename = "OKP")]
    Okp { crv: &'static str, x: String },
}

impl Authority {
    /// The roots as PEM, for programs that read files.
    #[must_use]
    pub fn bundle_pem(&self) -> String {
        pem::certificates(&self.trust_bundle())
    }

    /// The roots as a SPIFFE bundle document, for other trust domains (`application/json`).
    ///
    /// # Errors
    /// [`CertsError::Certificate`] if a root that was installed has a kind of key that no JWK can hold.
    pub fn bundle_document(&self) -> Result<String, CertsError> {
        document(&self.trust_bundle(), self.status().bundle_sequence)
    }
}

fn document(roots: &[CertificateDer<'_>], sequence: u64) -> Result<String, CertsError> {
    let keys = roots.iter().map(jwk).collect::<Result<_, _>>()?;
    let document = Document { keys, spiffe_sequence: sequence, spiffe_refresh_hint: REFRESH_HINT_S };
    serde_json::to_string(&document).map_err(|error| CertsError::certificate(error.to_string()))
}

fn jwk(root: &CertificateDer<'_>) -> Result<Jwk, CertsError> {
    let certificate = verify::parse(root)?;
    let key = key(certificate.public_key())?;
    Ok(Jwk { usage: "x509-svid", key, x5c: [BASE64.encode(root)] })
}

fn key(public_key: &SubjectPublicKeyInfo<'_>) -> Result<Key, CertsError> {
    let unknown = || CertsError::certificate("the key of a root is of a kind that a bundle document cannot hold");
    let text = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    if public_key.algorithm.algorithm == OID_SIG_ED25519 {
        return Ok(Key::Okp { crv: "Ed25519", x: text(&public_key.subject_public_key.data) });
    }
    match public_key.parsed().map_err(|_| unknown())? {
        PublicKey::EC(point) => {
            let coordinates = point.data().strip_prefix(&[4]).ok_or_else(unknown)?;
            let crv = match coordinates.len() {
                64 => "P-256",
                96 => "P-384",
                132 => "P-521",
                _ => return Err(unknown()),
            };
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            Ok(Key::Ec { crv, x: text(x), y: text(y) })
        }
        PublicKey::RSA(key) => {
            let number = |bytes: &[u8]| text(bytes.strip_prefix(&[0]).unwrap_or(bytes));
            Ok(Key::Rsa { n: number(key.modulus), e: number(key.exponent) })
        }
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests;
