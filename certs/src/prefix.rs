//! Which part of a trust domain an authority speaks for.
//!
//! A head office has one root and gives each branch an intermediate of its own. Whoever steals the intermediate of
//! branch 1 must not become a clerk of branch 17, so each intermediate says below which path its identities lie, and
//! every verifier here holds it to that. The prefix cannot be in the SPIFFE ID of the intermediate (X.509-SVID,
//! section 4.1: a signing certificate names a trust domain only), and URI name constraints see the host of a URI and
//! never its path (RFC 5280, section 4.2.1.10). Hence an extension of our own, which the root signs with the rest.

use std::{fmt, str::FromStr};

use rcgen::CustomExtension;
use serde::{Deserialize, Serialize};
use x509_parser::{certificate::X509Certificate, der_parser::oid::Oid};

use crate::{CertsError, SpiffeId, spiffe};

/// The longest prefix, bytes: its length then fits into one byte of DER or two.
pub const MAX_PREFIX_BYTES: usize = 255;

/// The extension that carries the prefix: `2.25.2610302852024547961.1`, not critical, its value a DER UTF8String such
/// as `/branch-1`. Absent: the whole trust domain, as cert-manager and SPIRE issue.
///
/// Below `2.25` everybody may pick a random number (ITU-T X.667); this one was drawn for Postern.
pub const PREFIX_EXTENSION_OID: [u64; 4] = [2, 25, 2_610_302_852_024_547_961, 1];

/// DER (X.690): the tag of a UTF8String, and the mark of a length in one further byte.
const UTF8_STRING: u8 = 0x0c;
const LONG_LENGTH: u8 = 0x81;
const SHORT_LENGTHS: usize = 0x80;

/// A path below which an authority may name workloads: `/branch-1`, `/europe/branch-1`, or nothing for the whole trust
/// domain. Segments are those of a SPIFFE ID; `gateway` is none of them, since that word is reserved.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPrefix(String);

impl PathPrefix {
    /// The prefix that covers everything.
    #[must_use]
    pub fn whole_domain() -> Self {
        Self::default()
    }

    /// Whether this is the prefix that covers everything.
    #[must_use]
    pub fn is_whole_domain(&self) -> bool {
        self.0.is_empty()
    }

    /// The prefix with its leading slash; empty for the whole trust domain.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the path of `id` lies below, by one or more whole segments: `/branch-1` covers `/branch-1/x`, and
    /// neither `/branch-17/x` nor `/branch-1` itself.
    #[must_use]
    pub fn covers(&self, id: &SpiffeId) -> bool {
        spiffe::is_below(id.path(), &self.0)
    }

    /// What goes into an intermediate; nothing for the whole trust domain.
    pub(crate) fn extension(&self) -> Option<CustomExtension> {
        (!self.is_whole_domain()).then(|| CustomExtension::from_oid_content(&PREFIX_EXTENSION_OID, encode(&self.0)))
    }

    /// What a signing certificate says. Twice, malformed or not a prefix: an error, since the issuer meant a limit.
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Result<Self, CertsError> {
        let malformed = || CertsError::certificate("its path prefix is malformed");
        let oid = Oid::from(&PREFIX_EXTENSION_OID).map_err(|_| malformed())?;
        let Some(extension) = certificate.get_extension_unique(&oid).map_err(|_| malformed())? else {
            return Ok(Self::whole_domain());
        };
        let prefix: Self = decode(extension.value).and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
        if prefix.is_whole_domain() { Err(malformed()) } else { Ok(prefix) }
    }
}

impl FromStr for PathPrefix {
    type Err = CertsError;

    fn from_str(text: &str) -> Result<Self, CertsError> {
        if text.is_empty() {
            return Ok(Self::whole_domain());
        }
        if text.len() > MAX_PREFIX_BYTES {
            return Err(CertsError::Prefix("longer than 255 bytes"));
        }
        let rest = text.strip_prefix('/').ok_or(CertsError::Prefix("it must begin with a slash"))?;
        for segment in rest.split('/') {
            spiffe::check_segment(segment).map_err(|error| match error {
                CertsError::SpiffeId(why) => CertsError::Prefix(why),
                other => other,
            })?;
            if segment == spiffe::GATEWAY_SEGMENT {
                return Err(CertsError::Prefix("the segment `gateway` is reserved for gateways"));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for PathPrefix {
    type Error = CertsError;

    fn try_from(text: String) -> Result<Self, CertsError> {
        text.parse()
    }
}

impl From<PathPrefix> for String {
    fn from(prefix: PathPrefix) -> Self {
        prefix.0
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

fn encode(text: &str) -> Vec<u8> {
    // At most 255 bytes, see `MAX_PREFIX_BYTES`.
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    let mut der = vec![UTF8_STRING];
    if text.len() >= SHORT_LENGTHS {
        der.push(LONG_LENGTH);
    }
    der.push(length);
    der.extend_from_slice(text.as_bytes());
    der
}

/// Only what [`encode`] writes: DER has one encoding for each value.
fn decode(der: &[u8]) -> Option<&str> {
    let content = match der {
        [UTF8_STRING, LONG_LENGTH, _, content @ ..] => content,
        [UTF8_STRING, _, content @ ..] => content,
        _ => return None,
    };
    let text = std::str::from_utf8(content).ok().filter(|text| text.len() <= MAX_PREFIX_BYTES)?;
    (encode(text) == der).then_some(text)
}

#[cfg(test)]
mod tests;
