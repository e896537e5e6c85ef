//! What makes two requests the same.

use serde_json::Value;

use crate::decide::PlannedRequest;
use crate::keys::Keys;

/// A keyed hash; equal for two requests only if everything that matters is.
pub type CacheKey = [u8; 32];

/// Tenant, label, target with its model, form, every field of the masked request, and what plugins add.
///
/// Plugins cannot take anything out of it, and the parts cannot run into each other.
#[must_use]
pub fn key(
    keys: &Keys,
    labels: &crate::classify::label::Labels,
    request: &PlannedRequest,
    parts: &[String],
) -> CacheKey {
    let (masked, plan) = (request.masked(), request.plan());
    let classified = masked.classified();
    let body = Value::Object(masked.canonical_body()).to_string();
    let target = plan.targets.first().map_or("", |target| target.name());
    let model = match plan.targets.first() {
        Some(crate::classify::clearance::Destination::Remote(target)) => target.model(&plan.model).unwrap_or(""),
        _ => &plan.model,
    };
    let mut fields: Vec<&[u8]> = vec![
        classified.request().peer.tenant.as_bytes(),
        labels.name(classified.label()).as_bytes(),
        target.as_bytes(),
        model.as_bytes(),
        plan.placement.as_str().as_bytes(),
        body.as_bytes(),
    ];
    fields.extend(parts.iter().map(String::as_bytes));
    keys.hash("cache", &fields)
}
