//! What a certificate says about its holder, read strictly: what is doubtful is an error, never a guess.
//!
//! Source: the X.509-SVID specification, sections 2 to 5 (SPIFFE), over RFC 5280. None of these functions checks a
//! signature: that the chain leads to a trusted root is the work of [`crate::trust`].

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS,
    parse_x509_certificate,
    prelude::X509Error,
};

use crate::{CertsError, PathPrefix, Reason, Serial, SpiffeId};

/// Who is at the other end, as its leaf says; read it after the handshake, which checks the chain and the signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Its identity.
    pub id: SpiffeId,
    /// The number of its leaf, unique for the issuer.
    pub serial: Serial,
    /// The key identifier of the issuer; empty if the leaf does not name it.
    pub issuer_key_id: Vec<u8>,
    /// The last moment at which the leaf is valid.
    pub not_after: OffsetDateTime,
    /// The first one.
    pub(crate) not_before: OffsetDateTime,
    /// The issuer's name, DER.
    pub(crate) issuer: Vec<u8>,
}

impl Peer {
    /// Of what a process asks itself: there is no leaf, and so none that could be revoked.
    #[must_use]
    pub fn inside(id: SpiffeId, not_after: OffsetDateTime) -> Self {
        let not_before = OffsetDateTime::now_utc();
        Self { id, serial: Serial::from_der(&[]), issuer_key_id: Vec::new(), not_after, not_before, issuer: Vec::new() }
    }
}

/// Who the holder of a leaf is, and which leaf it is.
///
/// # Errors
/// Those of [`peer_id`].
pub fn peer(leaf: &CertificateDer<'_>) -> Result<Peer, CertsError> {
    read_peer(&parse(leaf)?)
}

/// Who the holder of a leaf is: its one URI SAN.
///
/// # Errors
/// [`CertsError::Certificate`] or [`CertsError::SpiffeId`], saying what is wrong: no URI SAN or several, not a SPIFFE
/// ID, an ID without a path (it names a trust domain, not a workload), or a certificate that may sign others
/// (X.509-SVID, sections 4.1 and 4.3).
pub fn peer_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, CertsError> {
    workload_id(&parse(leaf)?)
}

/// The first and the last moment at which a certificate is valid, both included.
///
/// # Errors
/// [`CertsError::Certificate`] if it is not an X.509 certificate.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(OffsetDateTime, OffsetDateTime), CertsError> {
    let certificate = parse(certificate)?;
    let validity = certificate.validity();
    Ok((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}

/// What a leaf is presented for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Client,
    Server,
}

/// Everything that a leaf has to say for this purpose.
pub(crate) fn leaf_for(leaf: &CertificateDer<'_>, purpose: Purpose) -> Result<Peer, CertsError> {
    let certificate = parse(leaf)?;
    check_purpose(&certificate, purpose)?;
    read_peer(&certificate)
}

fn read_peer(certificate: &X509Certificate<'_>) -> Result<Peer, CertsError> {
    Ok(Peer {
        id: workload_id(certificate)?,
        serial: Serial::from_der(certificate.raw_serial()),
        issuer_key_id: key_ids(certificate).1.unwrap_or_default(),
        not_after: certificate.validity().not_after.to_datetime(),
        not_before: certificate.validity().not_before.to_datetime(),
        issuer: certificate.issuer().as_raw().to_vec(),
    })
}

fn workload_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, CertsError> {
    let id = uri_san(certificate)?;
    if id.path().is_empty() {
        let why = "its SPIFFE ID names a trust domain, not a workload";
        return Err(CertsError::refused(Reason::NoIdentity, why));
    }
    if is_authority(certificate)? {
        return Err(CertsError::refused(Reason::Purpose, "it belongs to an authority, not to a workload"));
    }
    Ok(id)
}

/// Refuses a leaf that does not name this purpose: webpki takes a leaf without any extended key usage for
/// all-purpose, here it is for none. And one whose key may not sign, which is all that TLS 1.3 does with it
/// (X.509-SVID, section 4.3).
fn check_purpose(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), CertsError> {
    let refuse = |why| Err(CertsError::refused(Reason::Purpose, why));
    let usage = certificate.extended_key_usage().map_err(unreadable)?;
    let named = usage.is_some_and(|usage| match purpose {
        Purpose::Client => usage.value.client_auth,
        Purpose::Server => usage.value.server_auth,
    });
    match (named, purpose) {
        (true, _) => {}
        (false, Purpose::Client) => return refuse("it may not be used by a client"),
        (false, Purpose::Server) => return refuse("it may not be used by a server"),
    }
    let key_usage = certificate.key_usage().map_err(unreadable)?;
    if key_usage.is_some_and(|usage| !usage.value.digital_signature()) {
        return refuse("its key may not sign");
    }
    Ok(())
}

/// What ties a signing certificate to its key, its trust domain and its issuer.
#[derive(Debug)]
pub(crate) struct Authority {
    pub(crate) trust_domain: SpiffeId,
    pub(crate) prefix: PathPrefix,
    /// The key as it stands in the certificate, without its algorithm.
    pub(crate) public_key: Vec<u8>,
    pub(crate) key_id: Vec<u8>,
    /// Key ID of the issuer; a root may leave it out.
    pub(crate) issuer_key_id: Option<Vec<u8>>,
    /// How many authorities may stand below it.
    pub(crate) path_length: Option<u32>,
}

/// Reads a signing certificate: one that names a trust domain and may sign others.
pub(crate) fn authority(certificate: &CertificateDer<'_>) -> Result<Authority, CertsError> {
    let certificate = parse(certificate)?;
    let trust_domain = uri_san(&certificate)?;
    if !trust_domain.path().is_empty() || !is_authority(&certificate)? {
        return Err(CertsError::certificate("it does not belong to an authority"));
    }
    let (key_id, issuer_key_id) = key_ids(&certificate);
    Ok(Authority {
        prefix: PathPrefix::of(&certificate)?,
        trust_domain,
        public_key: certificate.public_key().subject_public_key.data.to_vec(),
        key_id: key_id.ok_or_else(|| CertsError::certificate("it has no subject key identifier"))?,
        issuer_key_id,
        path_length: certificate.basic_constraints().map_err(unreadable)?.and_then(|it| it.value.path_len_constraint),
    })
}

/// The key identifiers of the holder and of the issuer, where they are named.
fn key_ids(certificate: &X509Certificate<'_>) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let (mut own, mut issuer) = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                issuer = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    (own, issuer)
}

pub(crate) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertsError> {
    match parse_x509_certificate(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(CertsError::certificate("bytes follow after its end")),
        Err(_) => Err(CertsError::certificate("it is not an X.509 certificate")),
    }
}

fn uri_san(certificate: &X509Certificate<'_>) -> Result<SpiffeId, CertsError> {
    let names = certificate.subject_alternative_name().map_err(unreadable)?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(CertsError::refused(Reason::NoIdentity, "one of its alternative names is malformed"));
    }
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let refuse = |why| Err(CertsError::refused(Reason::NoIdentity, why));
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse(),
        (None, _) => refuse("it has no URI among its alternative names, so no SPIFFE ID"),
        // Which of two identities is meant is not ours to choose (X.509-SVID, section 2).
        (Some(_), Some(_)) => refuse("it has more than one URI among its alternative names"),
    }
}

fn is_authority(certificate: &X509Certificate<'_>) -> Result<bool, CertsError> {
    let constraints = certificate.get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS).map_err(unreadable)?;
    let authority = match constraints.map(|extension| extension.parsed_extension()) {
        None => false,
        Some(ParsedExtension::BasicConstraints(constraints)) => constraints.ca,
        Some(_) => return Err(CertsError::certificate("its basic constraints are malformed")),
    };
    let usage = certificate.key_usage().map_err(unreadable)?;
    Ok(authority || usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()))
}

/// Whether the key usage of an authority allows what it does (RFC 5280, section 6.1.4 (n)): webpki does not ask.
pub(crate) fn may_sign_certificates(certificate: &X509Certificate<'_>) -> Result<bool, CertsError> {
    let usage = certificate.key_usage().map_err(unreadable)?;
    Ok(usage.is_none_or(|usage| usage.value.key_cert_sign()))
}

fn unreadable(error: X509Error) -> CertsError {
    CertsError::certificate(format!("one of its extensions is malformed or repeated: {error}"))
}

#[cfg(test)]
mod tests;
