//! Attention of the rows of a batch over the blocks of their sequences.
//!
//! Scaled dot-product attention with grouped queries (Ainslie et al., "GQA", 2023), optionally over a sliding window and
//! with capped scores (Gemma). The new rows' keys and values are written into the pool first, then every row looks at all
//! positions up to its own.

mod device;
mod host;

use candle_core::{Result, Tensor};

pub(crate) use device::Route;

use crate::batch::Batch;
use crate::kv_pool::{KvPool, Store};

/// What a layer's attention is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Attention {
    /// Queries' heads; a multiple of the pool's KV heads. Consecutive ones share keys and values.
    pub(crate) heads: usize,
    /// Scores are multiplied with it.
    pub(crate) scale: f32,
    /// A row looks at so many positions at most, its own among them.
    pub(crate) window: Option<usize>,
    /// Scores are bent below it: `cap · tanh(score / cap)`.
    pub(crate) softcap: Option<f32>,
}

impl Attention {
    /// Writes `key` and `value` (`[rows, kv_heads × head_width]`, f32) into the pool's `layer`, and gives what the rows of
    /// `query` (`[rows, heads × head_width]`, f32) see: `[rows, heads × head_width]`.
    pub(crate) fn forward(
        &self,
        layer: usize,
        batch: &Batch,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        kv: &mut KvPool,
    ) -> Result<Tensor> {
        let shape = kv.shape();
        let (rows, width) = query.dims2()?;
        let kv_width = shape.kv_heads * shape.head_width;
        let fits = width == self.heads * shape.head_width
            && self.heads.is_multiple_of(shape.kv_heads.max(1))
            && rows == batch.tokens().len()
            && [key, value].iter().all(|x| x.dims() == [rows, kv_width]);
        if !fits {
            candle_core::bail!("{rows} rows of {width} features do not fit the attention of {} heads", self.heads)
        }
        match kv.store_mut() {
            Store::Host(store) => {
                host::write(layer, batch, key, value, kv_width, store)?;
                host::attend(self, layer, batch, query, shape, store)
            }
            Store::Device(store) => {
                device::write(layer, batch, key, value, shape, store)?;
                device::attend(self, layer, batch, query, shape, store)
            }
        }
    }
}

#[cfg(test)]
mod tests;
