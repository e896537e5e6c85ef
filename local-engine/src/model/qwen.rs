//! Qwen 2 and 3. Sources: Qwen Team, "Qwen2 Technical Report", 2024, and "Qwen3 Technical Report", 2025.

use super::plan::{Metadata, Plan};
use super::rope::Pairing;
use crate::error::EngineError;

/// Qwen 2: queries, keys and values have biases. The distilled DeepSeek-R1 models are of this kind.
pub(super) fn plan_2(metadata: &Metadata<'_>) -> Result<Plan, EngineError> {
    Ok(Plan { has_biases: true, ..Plan::read(metadata, Pairing::Halves)? })
}

/// Qwen 3: no biases, but each head's query and key is normalised.
pub(super) fn plan_3(metadata: &Metadata<'_>) -> Result<Plan, EngineError> {
    Ok(Plan { has_head_norms: true, ..Plan::read(metadata, Pairing::Halves)? })
}
