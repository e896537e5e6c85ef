//! On whose behalf a request comes, as the gateway says.

use std::sync::Arc;

use http::HeaderMap;

/// Headers between the gateway and its engine. Nothing else can send them: the engine is reached through the gateway's own
/// socket, or they are taken away from whoever has not the certificate of a gateway.
const TENANT: &str = "postern-tenant";
const LABEL: &str = "postern-label";
const IDENTITY: &str = "postern-identity";
const PRIORITY: &str = "postern-priority";
/// All of them: whoever lets others than the gateway speak to the engine takes them away from those.
pub const HEADERS: [&str; 4] = [TENANT, LABEL, IDENTITY, PRIORITY];
/// Bytes of one of them at most; a longer one counts as absent, so nothing is shared under it.
const BYTES_MAX: usize = 1024;

/// Who asks. Compared only, never shown.
pub(crate) type Identity = Arc<str>;

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// Work in bulk: behind all that is interactive, but for a small share.
    Bulk,
}

/// Where computed beginnings may be used again: by one tenant, on one label. Anybody else could tell from the time to the
/// first token what was asked before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Partition {
    tenant: Arc<str>,
    label: Arc<str>,
}

/// On whose behalf a request comes. The default is nobody: such requests share one place in the queue's order, and
/// nothing that is computed for them is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub(crate) identity: Identity,
    pub(crate) priority: Priority,
    pub(crate) partition: Option<Partition>,
}

impl Default for Origin {
    fn default() -> Self {
        Self { identity: Arc::from(""), priority: Priority::Interactive, partition: None }
    }
}

impl Origin {
    /// A request of `identity`, whose computed beginning may be used again for the same tenant and label.
    #[must_use]
    pub fn new(identity: &str, tenant: &str, label: &str, priority: Priority) -> Self {
        let partition = Partition { tenant: Arc::from(tenant), label: Arc::from(label) };
        Self { identity: Arc::from(identity), priority, partition: Some(partition) }
    }

    /// From the gateway's headers.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        let text = |name: &str| {
            let value = headers.get(name)?.to_str().ok()?;
            (!value.is_empty() && value.len() <= BYTES_MAX).then_some(value)
        };
        let partition = text(TENANT).zip(text(LABEL));
        Self {
            identity: Arc::from(text(IDENTITY).unwrap_or_default()),
            priority: if text(PRIORITY) == Some("bulk") { Priority::Bulk } else { Priority::Interactive },
            partition: partition
                .map(|(tenant, label)| Partition { tenant: Arc::from(tenant), label: Arc::from(label) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_the_gateway_says_is_taken() {
        let all = [(TENANT, "clerks"), (LABEL, "internal"), (IDENTITY, "spiffe://x/clerk/1"), (PRIORITY, "bulk")];
        let origin = Origin::from_headers(&headers(&all));
        assert_eq!(origin, Origin::new("spiffe://x/clerk/1", "clerks", "internal", Priority::Bulk));
    }

    #[test]
    fn without_tenant_or_label_nothing_is_shared() {
        let long = "x".repeat(BYTES_MAX + 1);
        for pairs in [
            &[(TENANT, "a")][..],
            &[(LABEL, "a")],
            &[],
            &[(TENANT, ""), (LABEL, "a")],
            &[(TENANT, &long), (LABEL, "a")],
        ] {
            let origin = Origin::from_headers(&headers(pairs));
            assert_eq!((origin.partition, origin.priority), (None, Priority::Interactive));
        }
    }
}
