//! Llama and its kin, such as SmolLM2. Source: Touvron et al., "LLaMA", 2023.

use super::plan::{Metadata, Plan};
use super::rope::Pairing;
use crate::error::EngineError;
use crate::weights::ROTATES_HALVES;

/// Keys and heads as the file says them. GGUF files keep the two features of a rotated pair side by side.
pub(super) fn plan(metadata: &Metadata<'_>) -> Result<Plan, EngineError> {
    let halves = metadata.file.header().bool(ROTATES_HALVES) == Some(true);
    let mut plan = Plan::read(metadata, if halves { Pairing::Halves } else { Pairing::Neighbours })?;
    plan.has_biases = metadata.file.has("blk.0.attn_q.bias");
    Ok(plan)
}
