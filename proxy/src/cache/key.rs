//! What makes two requests the same.

use postern_wire::call::Call;
use serde_json::Value;

use crate::decide::PlannedRequest;
use crate::keys::Keys;

/// A keyed hash; equal for two requests only if everything that matters is.
pub type CacheKey = [u8; 32];

/// Tenant, label, target with its model, form, endpoint, every field of the masked request, and what plugins add.
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
    let call = &classified.request().call;
    let body = match call {
        // A vector is one of the text with the placeholders that went out; nothing in it can be mapped onto other values.
        Call::Embeddings(_) => masked.body().clone(),
        Call::Chat(_) | Call::Completion(_) => masked.canonical_body(),
    };
    let body = Value::Object(body).to_string();
    let target = plan.targets.first().map_or("", |target| target.name());
    let model = match plan.targets.first() {
        Some(crate::classify::clearance::Destination::Remote(target)) => target.model(&plan.model).unwrap_or(""),
        // Vectors of another model, which the engine may have had before, are not the same.
        _ => plan.same_model.as_deref().unwrap_or(&plan.model),
    };
    let mut fields: Vec<&[u8]> = vec![
        classified.request().peer.tenant.as_bytes(),
        labels.name(classified.label()).as_bytes(),
        target.as_bytes(),
        model.as_bytes(),
        plan.placement.as_str().as_bytes(),
        call.endpoint().path().as_bytes(),
        body.as_bytes(),
    ];
    fields.extend(parts.iter().map(String::as_bytes));
    keys.hash("cache", &fields)
}
