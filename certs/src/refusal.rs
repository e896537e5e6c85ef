//! Why a certificate was refused, in a fixed word: for counters and for the one line in a log that an operator greps.

use std::sync::Arc;

use rustls::{CertificateError, OtherError, pki_types::CertificateDer};

use crate::CertsError;

/// Why a certificate was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Its last moment, or that of a certificate above it, has passed.
    Expired,
    /// Its first moment, or that of a certificate above it, is to come. Usually a clock that is wrong.
    NotYetValid,
    /// It stands on its issuer's revocation list.
    Revoked,
    /// There is no revocation list of its issuer, or only an outdated one, and one is required.
    RevocationUnknown,
    /// Its chain does not lead to a root that is trusted and valid now.
    UnknownAuthority,
    /// Its issuer may not name workloads with such a path.
    Prefix,
    /// Its identity is of another trust domain.
    TrustDomain,
    /// It has no SPIFFE ID, several, or a malformed one.
    NoIdentity,
    /// It may not be used so: a workload's by a server, an authority's by either side.
    Purpose,
    /// A client that this node does not serve, whoever vouches for it.
    NotAllowed,
    /// A server that is not the gateway, or the node, asked for.
    Gateway,
    /// It, or its chain, is not what the standards say.
    Malformed,
}

impl Reason {
    /// The word: a label of a metric, never changed.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::RevocationUnknown => "revocation_unknown",
            Self::UnknownAuthority => "unknown_authority",
            Self::Prefix => "wrong_prefix",
            Self::TrustDomain => "wrong_trust_domain",
            Self::NoIdentity => "no_identity",
            Self::Purpose => "purpose",
            Self::NotAllowed => "not_allowed",
            Self::Gateway => "wrong_gateway",
            Self::Malformed => "malformed",
        }
    }

    /// Why a handshake failed, if it failed for the peer's certificate. The error is that of this side.
    #[must_use]
    pub fn of_handshake(error: &rustls::Error) -> Option<Self> {
        let rustls::Error::InvalidCertificate(error) = error else { return None };
        use CertificateError as C;
        Some(match error {
            C::Expired | C::ExpiredContext { .. } => Self::Expired,
            C::NotValidYet | C::NotValidYetContext { .. } => Self::NotYetValid,
            C::Revoked => Self::Revoked,
            C::UnknownRevocationStatus | C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. } => {
                Self::RevocationUnknown
            }
            C::UnknownIssuer => Self::UnknownAuthority,
            C::InvalidPurpose | C::InvalidPurposeContext { .. } => Self::Purpose,
            C::Other(OtherError(inner)) => inner.downcast_ref().and_then(CertsError::reason).unwrap_or(Self::Malformed),
            _ => Self::Malformed,
        })
    }
}

/// What went wrong in a handshake, in words for this side's log: those of this crate, where it was this crate that refused.
#[must_use]
pub fn in_words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.to_string(),
        rustls::Error::InvalidMessage(_) => "what answers there does not speak TLS".to_owned(),
        error => error.to_string(),
    }
}

/// A refusal of ours in the words of rustls. The peer sees an alert; the text is for this side's log.
pub(crate) fn to_rustls(error: CertsError) -> rustls::Error {
    match error {
        CertsError::Tls(error) => error,
        error => CertificateError::Other(OtherError(Arc::new(error))).into(),
    }
}

/// What webpki says, in the words of rustls, so that the peer gets the alert that fits (RFC 8446, section 6.2).
pub(crate) fn from_webpki(error: webpki::Error) -> CertsError {
    use CertificateError as C;
    use webpki::Error as E;
    let error = match error {
        E::CertExpired { time, not_after } => C::ExpiredContext { time, not_after },
        E::CertNotValidYet { time, not_before } => C::NotValidYetContext { time, not_before },
        E::CertRevoked => C::Revoked,
        E::UnknownRevocationStatus => C::UnknownRevocationStatus,
        E::CrlExpired { time, next_update } => C::ExpiredRevocationListContext { time, next_update },
        E::UnknownIssuer => C::UnknownIssuer,
        E::InvalidSignatureForPublicKey => C::BadSignature,
        E::RequiredEkuNotFoundContext(_) | E::CaUsedAsEndEntity | E::EndEntityUsedAsCa => C::InvalidPurpose,
        E::BadDer | E::BadDerTime | E::TrailingData(_) => C::BadEncoding,
        other => C::Other(OtherError(Arc::new(other))),
    };
    CertsError::Tls(error.into())
}

/// The leaf of a chain and what is above it.
pub(crate) fn split<'a, 'b>(
    chain: &'a [CertificateDer<'b>],
) -> Result<(&'a CertificateDer<'b>, &'a [CertificateDer<'b>]), CertsError> {
    chain.split_first().ok_or_else(|| CertsError::certificate("the chain is empty"))
}
