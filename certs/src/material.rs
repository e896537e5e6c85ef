//! Certificates and keys that somebody else issued: read strictly, and checked before a gateway uses them.
//!
//! Sources: RFC 5280; the X.509-SVID specification (SPIFFE). Nothing here reads a file or a socket.

use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use x509_parser::{parse_x509_certificate, parse_x509_crl};
use zeroize::Zeroize;

use crate::{
    CertsError, IssuedLeaf, SpiffeId, Trust, tls,
    verify::{self, Purpose},
};

/// The most certificates in a chain, the leaf among them. Peers refuse far shorter ones already.
pub const MAX_CHAIN: usize = 16;
/// The most roots in a trust bundle.
pub const MAX_ROOTS: usize = 256;
/// The most revocation lists.
pub const MAX_CRLS: usize = 256;

/// A leaf from its chain and its key; who it is for, and how long, is read from the certificate. Whether the key
/// belongs to it is [`check_key`]'s question, since that is another file's fault.
///
/// # Errors
/// [`CertsError::Certificate`], [`CertsError::SpiffeId`]: the chain is empty or too long, one of its certificates is
/// none, or the leaf does not name exactly one workload.
pub fn leaf(chain: Vec<CertificateDer<'static>>, mut key: PrivateKeyDer<'static>) -> Result<IssuedLeaf, CertsError> {
    match holder(&chain) {
        Ok((id, not_before, not_after)) => Ok(IssuedLeaf { id, chain, key, not_before, not_after }),
        Err(error) => {
            key.zeroize();
            Err(error)
        }
    }
}

/// Whom a chain is for, and from when to when.
fn holder(chain: &[CertificateDer<'static>]) -> Result<(SpiffeId, OffsetDateTime, OffsetDateTime), CertsError> {
    if chain.len() > MAX_CHAIN {
        return Err(CertsError::certificate(format!("its chain is longer than {MAX_CHAIN}")));
    }
    for certificate in chain {
        verify::validity(certificate)?;
    }
    let own = first(chain)?;
    let (not_before, not_after) = verify::validity(own)?;
    Ok((verify::peer_id(own)?, not_before, not_after))
}

/// Refuses a key that TLS cannot use, or that is not the one in the certificate: what is seen while the two are
/// being replaced one after the other.
///
/// # Errors
/// [`CertsError::Tls`]; it never repeats anything of the key.
pub fn check_key(leaf: &IssuedLeaf) -> Result<(), CertsError> {
    let key = any_supported_type(&leaf.key)?;
    Ok(CertifiedKey::new(leaf.chain.clone(), key).keys_match()?)
}

/// Refuses a leaf that is not valid at `now`.
///
/// # Errors
/// [`CertsError::Certificate`], with the time at which it begins or ended.
pub fn check_validity(leaf: &IssuedLeaf, now: OffsetDateTime) -> Result<(), CertsError> {
    if now > leaf.not_after {
        return Err(CertsError::certificate(format!("it expired at {}", leaf.not_after)));
    }
    if now < leaf.not_before {
        return Err(CertsError::certificate(format!("it is valid only from {}", leaf.not_before)));
    }
    Ok(())
}

/// Refuses a leaf that a gateway could not use at `now`: another ID than `gateway`, a key that does not belong to it,
/// not for servers and clients both, not valid, or without a chain to one of `roots`. What this accepts,
/// [`crate::server_config`] accepts, and peers that trust `roots`.
///
/// # Errors
/// - [`CertsError::Certificate`], [`CertsError::SpiffeId`]: the leaf, or a root is not a certificate.
/// - [`CertsError::EmptyBundle`]: no root is valid now.
/// - [`CertsError::Tls`]: the key or the chain.
pub fn check_gateway(
    leaf: &IssuedLeaf,
    roots: &[CertificateDer<'_>],
    gateway: &SpiffeId,
    now: OffsetDateTime,
) -> Result<(), CertsError> {
    let own = first(&leaf.chain)?;
    // Read from the certificate again: the field beside it is public, and peers read the certificate.
    let id = verify::peer_id(own)?;
    if id != *gateway {
        return Err(CertsError::certificate(format!("it is for {id}, and the gateway is {gateway}")));
    }
    check_key(leaf)?;
    verify::leaf_for(own, Purpose::Server)?;
    verify::leaf_for(own, Purpose::Client)?;
    check_validity(leaf, now)?;
    tls::check_chain(&leaf.chain, &Trust::from_roots(roots)?, gateway.trust_domain(), now)
}

/// Refuses a leaf that a node could not use at `now`: another ID than `own`, a key that does not belong to it, not for
/// servers, not valid, or without a chain to one of `roots`.
///
/// # Errors
/// Those of [`check_gateway`].
pub fn check_node(
    leaf: &IssuedLeaf,
    roots: &[CertificateDer<'_>],
    own: &SpiffeId,
    now: OffsetDateTime,
) -> Result<(), CertsError> {
    let certificate = first(&leaf.chain)?;
    let id = verify::peer_id(certificate)?;
    if id != *own {
        return Err(CertsError::certificate(format!("it is for {id}, and this node is {own}")));
    }
    check_key(leaf)?;
    verify::leaf_for(certificate, Purpose::Server)?;
    check_validity(leaf, now)?;
    tls::check_chain(&leaf.chain, &Trust::from_roots(roots)?, own.trust_domain(), now)
}

/// The certificates that stand one behind the other in `der`, as the SPIFFE Workload API sends chains and bundles.
///
/// # Errors
/// [`CertsError::Certificate`]: bytes that are no certificate, or more than `most` of them.
pub fn split_certificates(mut der: &[u8], most: usize) -> Result<Vec<CertificateDer<'static>>, CertsError> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        if certificates.len() == most {
            return Err(CertsError::certificate(format!("more than {most} of them are sent together")));
        }
        let (rest, _) =
            parse_x509_certificate(der).map_err(|_| CertsError::certificate("it is not an X.509 certificate"))?;
        let (one, _) = der.split_at(der.len() - rest.len());
        certificates.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(certificates)
}

/// A revocation list, if `der` is one and nothing else. Who signed it, and whether it is fresh, is asked when it is
/// used.
///
/// # Errors
/// [`CertsError::Certificate`]: it is none.
pub fn revocation_list(der: Vec<u8>) -> Result<CertificateRevocationListDer<'static>, CertsError> {
    match parse_x509_crl(&der) {
        Ok(([], _)) => Ok(CertificateRevocationListDer::from(der)),
        _ => Err(CertsError::certificate("it is not a certificate revocation list")),
    }
}

fn first<'a>(chain: &'a [CertificateDer<'static>]) -> Result<&'a CertificateDer<'static>, CertsError> {
    chain.first().ok_or_else(|| CertsError::certificate("the chain is empty"))
}

#[cfg(test)]
mod tests;
