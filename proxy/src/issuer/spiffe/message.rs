//! What a message of the Workload API means. Field numbers are those of the published `workloadapi.proto`.

use std::path::Path;

use postern_certs::{CertsError, Clock as _, SystemClock, material};
use prost::Message as _;
use rustls::pki_types::{CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroize as _;

use super::super::{IssuerError, Material};

/// `X509SVIDResponse`. Federated bundles (3) and whatever is added later are passed over.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct Response {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    crl: Vec<Vec<u8>>,
}

/// `X509SVID`, without its hint (5).
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

impl Drop for Svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

/// Reads one message, whole or not at all. `socket` is where it came from, for errors.
///
/// # Errors
/// [`IssuerError::Message`]: it is not of the published form, or holds nothing that can be used now.
pub fn material(bytes: &[u8], socket: &Path) -> Result<Material, IssuerError> {
    let unusable = |what: String| IssuerError::Message { socket: socket.to_owned(), what };
    let response = Response::decode(bytes).map_err(|_| unusable("it is not of the published form".to_owned()))?;
    let Response { svids, crl } = response;
    let svid = svids.into_iter().next().ok_or_else(|| unusable("it names no identity".to_owned()))?;
    let of = |what: &str, error: CertsError| unusable(format!("{what}: {error}"));

    let chain = material::split_certificates(&svid.x509_svid, material::MAX_CHAIN);
    let chain = chain.map_err(|error| of("x509_svid", error))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.x509_svid_key.clone()));
    let leaf = material::leaf(chain, key).map_err(|error| of("x509_svid", error))?;
    if leaf.id.to_string() != svid.spiffe_id {
        return Err(unusable("its spiffe_id is not the one in the certificate".to_owned()));
    }
    material::check_key(&leaf).map_err(|_| unusable("x509_svid_key is not the key of the certificate".to_owned()))?;
    material::check_validity(&leaf, SystemClock.now()).map_err(|error| of("x509_svid", error))?;

    let roots = material::split_certificates(&svid.bundle, material::MAX_ROOTS);
    let roots = roots.map_err(|error| of("bundle", error))?;
    if roots.is_empty() {
        return Err(unusable("its bundle is empty, so nobody could be trusted".to_owned()));
    }
    if crl.len() > material::MAX_CRLS {
        return Err(unusable(format!("it holds more than {} revocation lists", material::MAX_CRLS)));
    }
    let crls: Result<Vec<CertificateRevocationListDer<'static>>, _> =
        crl.into_iter().map(material::revocation_list).collect();
    Ok(Material { leaf, roots, crls: crls.map_err(|error| of("crl", error))? })
}
