//! What the worker asks of a model, and the architectures.

pub(crate) mod linear;
mod llama;

use candle_core::{Result, Tensor};

use crate::error::EngineError;
use crate::kv_cache::{CacheShape, KvCache};
use crate::weights::WeightFile;

/// A decoder, without any sequence's state.
pub(crate) trait Model: Send {
    /// Tokens of prompt and answer together that it was made for.
    fn context_tokens(&self) -> usize;

    /// What a sequence's cache is made of.
    fn cache_shape(&self) -> CacheShape;

    /// Works through the tokens of all segments, appends them to the segments' caches, and gives the logits
    /// (`[vocabulary]`) that follow the last token of each segment that wants them, in order.
    ///
    /// A segment's result does not depend on the other segments.
    fn forward(&self, batch: &mut [Segment<'_>]) -> Result<Vec<Vec<f32>>>;
}

/// Consecutive tokens of one sequence.
pub(crate) struct Segment<'a> {
    /// One or more.
    pub(crate) tokens: &'a [u32],
    /// The tokens before them; they are at its end afterwards.
    pub(crate) cache: &'a mut KvCache,
    pub(crate) wants_logits: bool,
}

/// Reads the model of a file. `progress` gets the share that is read, 0 to 1.
pub(crate) fn load(
    file: &WeightFile,
    progress: &mut dyn FnMut(f64),
) -> std::result::Result<Box<dyn Model>, EngineError> {
    match file.header().text("general.architecture") {
        Some("llama") => Ok(Box::new(llama::Llama::load(file, progress)?)),
        Some(other) => Err(EngineError::Unsupported(format!("the architecture `{other}`"))),
        None => Err(file.damaged("it does not name an architecture")),
    }
}

/// Root mean square layer normalisation over the last dimension. Source: Zhang and Sennrich, 2019.
fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
    x.broadcast_div(&(mean + epsilon)?.sqrt()?)?.broadcast_mul(weight)
}
