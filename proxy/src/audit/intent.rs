//! What is about to happen, and why.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::classify::Source;
use crate::route::Said;

/// Written before anything leaves.
#[derive(Debug, Serialize)]
pub struct Intent<'a> {
    /// SPIFFE ID.
    pub identity: &'a str,
    /// Tenant.
    pub tenant: &'a str,
    /// The final label.
    pub label: &'a str,
    /// What raised it.
    pub label_sources: &'a [Source],
    /// Our name of the model.
    pub model: &'a str,
    /// The placement.
    pub placement: &'a str,
    /// What will be tried, in this order.
    pub targets: Vec<&'a str>,
    /// Why, as a fixed word.
    pub reason: &'a str,
    /// `masked`, or `plain`: as it was written, because nothing had to be masked or because it stays on this machine.
    pub form: &'a str,
    /// What each policy said.
    pub policies: &'a [Said],
    /// Values masked, by kind.
    pub redactions: &'a BTreeMap<String, u64>,
    /// Values that a policy only flagged, by kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub flagged: &'a BTreeMap<String, u64>,
    /// Estimated tokens of the prompt.
    pub prompt_tokens_estimated: u64,
    /// Keyed hash of the request as it was written.
    pub request_hash: String,
}
