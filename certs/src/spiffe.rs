//! SPIFFE IDs, and the patterns that configuration writes about them.
//!
//! Source: the SPIFFE-ID specification, sections 2.1 to 2.3. A name is read strictly or refused: nothing is folded to
//! lower case, decoded or normalised, so two texts are the same identity exactly when their bytes are the same.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{CertsError, PathPrefix};

/// The longest SPIFFE ID, bytes (SPIFFE-ID, section 2.3).
pub const MAX_ID_BYTES: usize = 2048;
/// The longest trust domain name, bytes (SPIFFE-ID, section 2.1: that of a host, RFC 3986).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// The path of a gateway's own ID, behind the prefix of its branch if there is one.
pub const GATEWAY_PATH: &str = "/gateway";

/// Below which path nodes are: engines on other machines, which serve the gateway.
pub const NODE_PATH: &str = "/node";

/// The segment that makes an ID a gateway's.
pub(crate) const GATEWAY_SEGMENT: &str = "gateway";

const SCHEME: &str = "spiffe://";

/// Who a workload is: `spiffe://trust-domain/path`.
///
/// The trust domain is of lower-case letters, digits, `.`, `-` and `_`; each segment of the path is of letters,
/// digits, `.`, `-` and `_`, is not empty, and is not `.` or `..`. No user, port, query, fragment or
/// percent-encoding; no trailing slash. The path may be absent: that ID names the trust domain itself, so an
/// authority may carry it and a leaf may not.
///
/// Ordered by trust domain, then path. In JSON and YAML it is its text.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    /// The whole of it, which is asked for with each request.
    text: String,
    /// Bytes before the path, which is empty, or has a slash before each segment.
    path_at: usize,
}

impl SpiffeId {
    /// The ID that names a trust domain itself: no path.
    ///
    /// # Errors
    /// [`CertsError::SpiffeId`] if `trust_domain` is not a trust domain name.
    pub fn of_trust_domain(trust_domain: &str) -> Result<Self, CertsError> {
        check_trust_domain(trust_domain)?;
        Ok(Self::of(trust_domain, ""))
    }

    /// The ID of the gateway of a trust domain: `spiffe://<trust domain>/gateway`.
    ///
    /// # Errors
    /// [`CertsError::SpiffeId`] if `trust_domain` is not a trust domain name.
    pub fn gateway(trust_domain: &str) -> Result<Self, CertsError> {
        check_trust_domain(trust_domain)?;
        Ok(Self::of(trust_domain, GATEWAY_PATH))
    }

    /// The ID of the gateway of a branch: `spiffe://<trust domain>/<prefix>/gateway`.
    ///
    /// # Errors
    /// [`CertsError::SpiffeId`] if `trust_domain` is not a trust domain name.
    pub fn gateway_below(trust_domain: &str, prefix: &PathPrefix) -> Result<Self, CertsError> {
        check_trust_domain(trust_domain)?;
        Ok(Self::of(trust_domain, &format!("{prefix}{GATEWAY_PATH}")))
    }

    /// Of parts that were checked.
    fn of(trust_domain: &str, path: &str) -> Self {
        Self { text: [SCHEME, trust_domain, path].concat(), path_at: SCHEME.len() + trust_domain.len() }
    }

    /// The whole ID: `spiffe://branch-17.example.org/clerk/ada`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name, without scheme: `branch-17.example.org`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.path_at).unwrap_or_default()
    }

    /// The path with its leading slash: `/clerk/ada`; empty for the ID of a trust domain.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..).unwrap_or_default()
    }

    /// Whether this is the ID of a node, `<prefix>/node/…`, in the part of a trust domain that an authority speaks for.
    #[must_use]
    pub fn is_node_below(&self, prefix: &PathPrefix) -> bool {
        let below = self.path().strip_prefix(prefix.as_str()).and_then(|path| path.strip_prefix(NODE_PATH));
        below.is_some_and(|name| name.starts_with('/'))
    }

    /// Whether this is the ID of a gateway itself, with whatever prefix.
    #[must_use]
    pub fn is_gateway(&self) -> bool {
        self.path().ends_with(GATEWAY_PATH)
    }

    /// Whether this is a gateway's ID, with whatever prefix, or one below it: reserved, so that no workload is
    /// mistaken for a gateway.
    #[must_use]
    pub fn is_reserved_for_gateway(&self) -> bool {
        self.path().split('/').any(|segment| segment == GATEWAY_SEGMENT)
    }
}

impl FromStr for SpiffeId {
    type Err = CertsError;

    fn from_str(text: &str) -> Result<Self, CertsError> {
        // First of all, so that a hostile megabyte costs nothing.
        if text.len() > MAX_ID_BYTES {
            return Err(CertsError::SpiffeId("longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(CertsError::SpiffeId("it must begin with `spiffe://`"))?;
        let (trust_domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_trust_domain(trust_domain)?;
        if let Some(path) = path.strip_prefix('/') {
            path.split('/').try_for_each(check_segment)?;
        }
        Ok(Self::of(trust_domain, path))
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = CertsError;

    fn try_from(text: String) -> Result<Self, CertsError> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.text
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.trust_domain(), self.path()).cmp(&(other.trust_domain(), other.path()))
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of SPIFFE IDs, as written in configuration.
///
/// - `spiffe://branch.example/clerk/ada` matches that ID only.
/// - `spiffe://branch.example/clerk/*` matches every ID with one or more whole segments below `/clerk`: `/clerk/ada`
///   and `/clerk/ada/laptop`, but neither `/clerk` nor `/clerks/ada`.
/// - `spiffe://branch.example/*` matches every workload of the trust domain.
///
/// `*` stands only as the whole last segment. The trust domain is always written out: no pattern spans two of them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    id: SpiffeId,
    /// `/*` was written behind `id`.
    below: bool,
}

impl Pattern {
    /// Whether `id` is one of the set.
    #[must_use]
    pub fn matches(&self, id: &SpiffeId) -> bool {
        if !self.below {
            return self.id == *id;
        }
        self.id.trust_domain() == id.trust_domain() && is_below(id.path(), self.id.path())
    }

    /// Whether there is an ID that both match.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self.below, other.below) {
            (_, false) => self.matches(&other.id),
            (false, true) => other.matches(&self.id),
            (true, true) => self.id == other.id || self.matches(&other.id) || other.matches(&self.id),
        }
    }
}

impl FromStr for Pattern {
    type Err = CertsError;

    fn from_str(text: &str) -> Result<Self, CertsError> {
        if let Some(base) = text.strip_suffix("/*") {
            let id = base.parse().map_err(as_pattern_error)?;
            return Ok(Self { id, below: true });
        }
        let id: SpiffeId = text.parse().map_err(as_pattern_error)?;
        if id.path().is_empty() {
            // No leaf has such an ID, so the rule would silently never match.
            return Err(CertsError::Pattern("it names a trust domain only; add `/*` to mean everything in it"));
        }
        Ok(Self { id, below: false })
    }
}

impl TryFrom<String> for Pattern {
    type Error = CertsError;

    fn try_from(text: String) -> Result<Self, CertsError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.id, if self.below { "/*" } else { "" })
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn check_trust_domain(name: &str) -> Result<(), CertsError> {
    if name.is_empty() {
        return Err(CertsError::SpiffeId("the trust domain is empty"));
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(CertsError::SpiffeId("the trust domain is longer than 255 bytes"));
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if !name.bytes().all(allowed) {
        return Err(CertsError::SpiffeId(
            "the trust domain may hold only lower-case letters, digits, `.`, `-` and `_`",
        ));
    }
    Ok(())
}

pub(crate) fn check_segment(segment: &str) -> Result<(), CertsError> {
    if segment.is_empty() {
        return Err(CertsError::SpiffeId("the path has an empty segment or ends with a slash"));
    }
    if matches!(segment, "." | "..") {
        return Err(CertsError::SpiffeId("`.` and `..` are not path segments"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if !segment.bytes().all(allowed) {
        return Err(CertsError::SpiffeId("the path may hold only letters, digits, `.`, `-`, `_` and `/`"));
    }
    Ok(())
}

/// Whether `path` is `base` with one or more whole segments added.
pub(crate) fn is_below(path: &str, base: &str) -> bool {
    path.strip_prefix(base).is_some_and(|rest| rest.starts_with('/'))
}

fn as_pattern_error(error: CertsError) -> CertsError {
    match error {
        CertsError::SpiffeId(why) => CertsError::Pattern(why),
        other => other,
    }
}

#[cfg(test)]
mod tests;
