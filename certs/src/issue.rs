//! Leaves: who gets one, and what stands in it (X.509-SVID specification, sections 2 to 4).

mod files;

use std::{fmt, net::IpAddr, time::Duration as StdDuration};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData, SanType};
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroize;

pub use self::files::write_beside;
use crate::{
    CertsError, PathPrefix, SpiffeId, refusal,
    signer::{Signer, new_key, serial_number, subject},
};

/// A certificate is valid from this long before it was made, since a peer's clock may be behind. A leaf of less than
/// an hour: a twelfth of its life, so that half of its life still lies ahead.
pub const BACKDATE: Duration = Duration::minutes(5);
/// The most DNS names and IP addresses in a gateway's leaf, without the three that are always there.
pub const MAX_NAMES: usize = 64;
/// The least life of a leaf: certificates count in seconds, and a renewal takes one or two.
pub const MIN_LEAF_TTL: StdDuration = StdDuration::from_secs(10);
/// The longest life of a leaf. Half of an intermediate's life is left when it is renewed; this is well within.
pub const MAX_LEAF_TTL: StdDuration = StdDuration::from_secs(7 * 24 * 3600);

/// Names that every gateway has, for clients on its own machine.
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Five minutes of backdating would make a leaf of ten seconds overdue when it is made.
pub(crate) const BACKDATE_PER_LIFE: i32 = 12;

/// What is asked of the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafRequest {
    /// Whom the leaf is for.
    pub id: SpiffeId,
    /// What it may be used for.
    pub role: Role,
}

/// What a leaf may be used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// To serve, and to call other gateways. Only the gateway's own ID may.
    Gateway {
        /// DNS names and IP addresses for clients that know no SPIFFE; `localhost`, `127.0.0.1` and `::1` are added.
        names: Vec<String>,
    },
    /// To serve the gateway, and to renew itself there: an engine on another machine. Only IDs below `/node` may. Such a
    /// leaf has no name but its SPIFFE ID: a client that checks host names only would take it for the gateway otherwise.
    Node,
    /// To call a gateway, and nothing else: such a leaf cannot serve.
    Workload,
}

impl LeafRequest {
    /// For whoever is not a gateway: what a leaf may be used for stands in its ID, so that a renewal cannot change it.
    #[must_use]
    pub fn below(prefix: &PathPrefix, id: SpiffeId) -> Self {
        let role = if id.is_node_below(prefix) { Role::Node } else { Role::Workload };
        Self { id, role }
    }
}

/// A leaf with its chain and its key. The key is wiped from memory when this is dropped, and never shown by `Debug`.
pub struct IssuedLeaf {
    /// Whom it is for.
    pub id: SpiffeId,
    /// The leaf, then the intermediate. The root is not sent: peers have it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key, PKCS #8.
    pub key: PrivateKeyDer<'static>,
    /// The first moment at which it is valid.
    pub not_before: OffsetDateTime,
    /// The last moment at which it is valid.
    pub not_after: OffsetDateTime,
}

impl Drop for IssuedLeaf {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for IssuedLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("IssuedLeaf");
        shown.field("id", &self.id).field("not_before", &self.not_before).field("not_after", &self.not_after);
        shown.finish_non_exhaustive()
    }
}

/// Refuses a request that an authority for this part of a trust domain must not fulfil, whoever asks.
pub(crate) fn check(request: &LeafRequest, trust_domain: &SpiffeId, prefix: &PathPrefix) -> Result<(), CertsError> {
    let refuse = |why| Err(CertsError::NotIssuable { id: request.id.clone(), why });
    if request.id.trust_domain() != trust_domain.trust_domain() {
        return refuse("this authority speaks for another trust domain");
    }
    if request.id.path().is_empty() {
        return refuse("it names a trust domain, not a workload");
    }
    if !prefix.covers(&request.id) {
        return refuse("its path is not below the prefix of this authority");
    }
    match &request.role {
        Role::Gateway { .. } if request.id != SpiffeId::gateway_below(trust_domain.trust_domain(), prefix)? => {
            refuse("only the ID of the gateway itself may serve")
        }
        Role::Workload | Role::Node if request.id.is_reserved_for_gateway() => {
            refuse("the path segment `gateway` is reserved for gateways")
        }
        Role::Node if !request.id.is_node_below(prefix) => refuse("only an ID below `/node` may serve the gateway"),
        Role::Workload if request.id.is_node_below(prefix) => refuse("an ID below `/node` is a node's"),
        Role::Gateway { .. } | Role::Node | Role::Workload => Ok(()),
    }
}

/// Makes a key and signs a leaf for it. The request has been checked.
pub(crate) fn issue(
    request: LeafRequest,
    intermediate: &Signer,
    now: OffsetDateTime,
    leaf_ttl: Duration,
) -> Result<IssuedLeaf, CertsError> {
    let key = new_key()?;
    let chain = sign(&request, &key, intermediate, now, leaf_ttl)?;
    let (not_before, not_after) = crate::verify::validity(refusal::split(&chain)?.0)?;
    Ok(IssuedLeaf {
        id: request.id,
        chain,
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        not_before,
        not_after,
    })
}

/// Signs a leaf for the holder of a key: the leaf, then the intermediate. The request has been checked.
pub(crate) fn sign(
    request: &LeafRequest,
    key: &impl PublicKeyData,
    intermediate: &Signer,
    now: OffsetDateTime,
    leaf_ttl: Duration,
) -> Result<Vec<CertificateDer<'static>>, CertsError> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial_number());
    params.not_before = now.saturating_sub(BACKDATE.min(leaf_ttl / BACKDATE_PER_LIFE));
    // A leaf that outlives its issuer looks valid in every log and is refused by every peer.
    params.not_after = now.saturating_add(leaf_ttl).min(intermediate.not_after);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![SanType::URI(request.id.to_string().try_into()?)];
    match &request.role {
        Role::Gateway { names } => {
            params.distinguished_name = subject("Postern gateway");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.subject_alt_names.extend(server_names(names)?);
        }
        Role::Node => {
            params.distinguished_name = subject("Postern node");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        }
        Role::Workload => {
            params.distinguished_name = subject("Postern workload");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }
    }
    Ok(vec![intermediate.sign(&params, key)?, intermediate.certificate.clone()])
}

/// The configured names and the loopback ones, each once.
fn server_names(names: &[String]) -> Result<Vec<SanType>, CertsError> {
    if names.len() > MAX_NAMES {
        let name = format!("name number {}", names.len());
        return Err(CertsError::Name { name, why: "there are more than 64 names" });
    }
    let mut sans = Vec::with_capacity(names.len() + LOOPBACK_NAMES.len());
    for name in names.iter().map(String::as_str).chain(LOOPBACK_NAMES) {
        let san = server_name(name)?;
        if !sans.contains(&san) {
            sans.push(san);
        }
    }
    Ok(sans)
}

fn server_name(name: &str) -> Result<SanType, CertsError> {
    let refuse = |why| CertsError::Name { name: name.to_owned(), why };
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    if name.ends_with('.') {
        return Err(refuse("a DNS name in a certificate has no dot at its end"));
    }
    let dns = DnsName::try_from(name.to_ascii_lowercase());
    let dns = dns.map_err(|_| refuse("it is neither a DNS name (without wildcards) nor an IP address"))?;
    Ok(SanType::DnsName(dns.as_ref().try_into()?))
}

#[cfg(test)]
mod tests;
