//! Certificate requests (PKCS #10, RFC 2986): how a workstation asks for a leaf without giving its key away.
//!
//! A request proves that its sender has the key. Everything else in it is a wish: the authority knows whom it invited,
//! and decides itself what stands in the leaf.

use std::fmt;

use rcgen::{
    CertificateParams, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData, SanType,
    SubjectPublicKeyInfo,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension, X509Extension},
    oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME,
    prelude::FromDer,
};
use zeroize::Zeroize;

use crate::{CertsError, SpiffeId, ledger::digest, signer::new_key, signer::subject};

/// The longest request, bytes: one with a key of these kinds is under one KiB, the longest SPIFFE ID two more.
pub const MAX_CSR_BYTES: usize = 8 * 1024;

/// An uncompressed point begins so (SEC 1, section 2.3.3). Everybody writes that; compressed ones are a trap for some.
const UNCOMPRESSED: u8 = 4;

/// DER: the tags of a SEQUENCE and of a BIT STRING.
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
/// How the algorithms of signatures are written: ECDSA with SHA-256 and SHA-384 (RFC 5758), Ed25519 (RFC 8410).
const ALGORITHMS: [&[u8]; 3] = [
    b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02",
    b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03",
    b"\x30\x05\x06\x03\x2b\x65\x70",
];

/// A request with the key it is about. The key is wiped from memory when this is dropped, and never shown by `Debug`.
pub struct Csr {
    /// The request, DER.
    pub der: Vec<u8>,
    /// The private key, PKCS #8.
    pub key: PrivateKeyDer<'static>,
}

impl Csr {
    /// Makes a new key (P-256), and a request for `id`.
    ///
    /// # Errors
    /// [`CertsError::Signing`] if the system has no randomness.
    pub fn generate(id: &SpiffeId) -> Result<Self, CertsError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject("Postern workload");
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        let der = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { der, key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())) })
    }
}

impl Drop for Csr {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for Csr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Csr").field("bytes", &self.der.len()).finish_non_exhaustive()
    }
}

/// A request whose sender has the key.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) key: SubjectPublicKeyInfo,
    /// The URI that it asks for, if it asks for any name at all.
    name: Option<String>,
}

impl Request {
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, CertsError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(CertsError::Csr("it is longer than 8 KiB"));
        }
        let Ok(([], request)) = X509CertificationRequest::from_der(der) else {
            return Err(CertsError::Csr("it is not a PKCS #10 request in DER"));
        };
        let info = &request.certification_request_info;
        let key = read_key(info.subject_pki.raw)?;
        check_envelope(der, info.raw)?;
        request.verify_signature().map_err(|_| CertsError::Csr("its signature does not fit its key"))?;
        let wanted = info.iter_attributes().filter_map(|attribute| match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(wanted) => Some(wanted.extensions.iter()),
            _ => None,
        });
        let mut names = wanted.flatten().filter(|extension| extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
        let name = names.next().map(one_uri).transpose()?;
        if names.next().is_some() {
            return Err(CertsError::Csr("it asks for names twice"));
        }
        Ok(Self { key, name })
    }

    /// Refuses a request that asks for another name than the one that its sender may have.
    pub(crate) fn check_name(&self, id: &SpiffeId) -> Result<(), CertsError> {
        match &self.name {
            Some(name) if *name != id.to_string() => Err(CertsError::Csr("it asks for another name than yours")),
            _ => Ok(()),
        }
    }

    /// The digest by which a key is known in the register.
    pub(crate) fn key_digest(&self) -> String {
        digest(&self.key.subject_public_key_info())
    }
}

/// The parser is generous about the few bytes around what is signed: a request has one form only.
fn check_envelope(der: &[u8], signed: &[u8]) -> Result<(), CertsError> {
    let inside = match der {
        [SEQUENCE, 0..=0x7f, inside @ ..] => inside,
        [SEQUENCE, 0x81, _, inside @ ..] => inside,
        [SEQUENCE, 0x82, _, _, inside @ ..] => inside,
        _ => return Err(CertsError::Csr("it is not a PKCS #10 request in DER")),
    };
    let rest = inside.strip_prefix(signed).unwrap_or_default();
    let signature = ALGORITHMS.iter().find_map(|algorithm| rest.strip_prefix(*algorithm));
    match signature {
        Some([BIT_STRING, _, 0, ..]) => Ok(()),
        _ => Err(CertsError::Csr("its signature is none of ECDSA with SHA-256 or SHA-384, and Ed25519")),
    }
}

fn read_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, CertsError> {
    let refuse = CertsError::Csr("its key is none of P-256, P-384 and Ed25519");
    let Ok(key) = SubjectPublicKeyInfo::from_der(der) else { return Err(refuse) };
    let (algorithm, bytes) = (key.algorithm(), key.der_bytes());
    let point = |coordinate: usize| bytes.len() == 1 + 2 * coordinate && bytes.first() == Some(&UNCOMPRESSED);
    let good = (*algorithm == PKCS_ECDSA_P256_SHA256 && point(32))
        || (*algorithm == PKCS_ECDSA_P384_SHA384 && point(48))
        || (*algorithm == PKCS_ED25519 && bytes.len() == 32);
    // One encoding for each key, so that its digest is its name.
    if good && key.subject_public_key_info() == der { Ok(key) } else { Err(refuse) }
}

fn one_uri(extension: &X509Extension<'_>) -> Result<String, CertsError> {
    match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => match names.general_names.as_slice() {
            [GeneralName::URI(uri)] => Ok((*uri).to_owned()),
            _ => Err(CertsError::Csr("it asks for other names than one SPIFFE ID")),
        },
        _ => Err(CertsError::Csr("the name that it asks for is malformed")),
    }
}

#[cfg(test)]
mod tests;
