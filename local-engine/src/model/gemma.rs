//! Gemma 3. Source: Gemma Team, "Gemma 3 Technical Report", 2025.

use super::plan::{Activation, LayerPlan, Metadata, Plan};
use super::rope::{Pairing, Rope};
use crate::error::EngineError;

/// One layer in so many sees everything, the others a window.
const PATTERN: usize = 6;
/// The base of rotation in layers with a window.
const LOCAL_ROPE_BASE: f64 = 10_000.0;
/// The one size, known by its layers, whose scores are scaled by the width for each head instead of the head's own.
const LAYERS_OF_27B: usize = 62;

/// Layers with a window turn faster than the ones that see everything; norms before and after each part; GELU, not
/// SiLU; and embeddings scaled by the root of the width.
pub(super) fn plan(metadata: &Metadata<'_>) -> Result<Plan, EngineError> {
    let mut plan = Plan::read(metadata, Pairing::Halves)?;
    let shape = plan.shape;
    let local_base = metadata.rope_base("rope.freq_base_swa", LOCAL_ROPE_BASE)?;
    plan.ropes.push(Rope::new(Pairing::Halves, shape.head_width, local_base));
    let window = metadata.number("attention.sliding_window", 1 << 24)?;
    let pattern = metadata.optional("attention.sliding_window_pattern", 1024)?.unwrap_or(PATTERN);
    for (at, layer) in plan.layers.iter_mut().enumerate() {
        if at % pattern != pattern - 1 {
            *layer = LayerPlan { rope: 1, window: Some(window) };
        }
    }
    plan.activation = Activation::GeluTanh;
    plan.has_head_norms = true;
    plan.has_post_norms = true;
    plan.embedding_scale = Some((shape.width as f64).sqrt());
    let scaled_by = match metadata.float("attention.query_scalar") {
        Some(scalar) => scalar,
        None if shape.layers == LAYERS_OF_27B => shape.width as f64 / shape.heads as f64,
        None => shape.head_width as f64,
    };
    plan.attention_scale = scaled_by.sqrt().recip() as f32;
    plan.attention_cap = metadata.float("attn_logit_softcapping").filter(|cap| *cap > 0.0).map(|cap| cap as f32);
    plan.logit_cap = metadata.float("final_logit_softcapping").filter(|cap| *cap > 0.0);
    Ok(plan)
}
