//! With tensors, for devices whose memory is not this process's. Each segment's blocks are gathered, then multiplied.

use candle_core::{D, DType, Result, Tensor};

use super::Attention;
use crate::batch::{Batch, Segment};
use crate::kv_pool::{BLOCK_TOKENS, DeviceStore, KvShape};

pub(super) fn write(
    layer: usize,
    batch: &Batch,
    key: &Tensor,
    value: &Tensor,
    shape: KvShape,
    store: &DeviceStore,
) -> Result<()> {
    let (keys, values) = store.layer(layer)?;
    let (rows, _) = key.dims2()?;
    let places = (rows, shape.kv_heads, shape.head_width);
    let as_stored = |x: &Tensor| x.reshape(places)?.to_dtype(DType::F16)?.contiguous();
    let (key, value) = (as_stored(key)?, as_stored(value)?);
    for segment in batch.segments() {
        let (mut row, mut position) = (segment.rows.start, segment.position);
        // Slots of one block are consecutive.
        while row < segment.rows.end {
            let count = (BLOCK_TOKENS - position % BLOCK_TOKENS).min(segment.rows.end - row);
            let slot = slot(segment, position)?;
            keys.slice_set(&key.narrow(0, row, count)?.contiguous()?, 0, slot)?;
            values.slice_set(&value.narrow(0, row, count)?.contiguous()?, 0, slot)?;
            row += count;
            position += count;
        }
    }
    Ok(())
}

pub(super) fn attend(
    attention: &Attention,
    layer: usize,
    batch: &Batch,
    query: &Tensor,
    shape: KvShape,
    store: &DeviceStore,
) -> Result<Tensor> {
    let (keys, values) = store.layer(layer)?;
    let mut outputs = Vec::with_capacity(batch.segments().len());
    for segment in batch.segments() {
        let all = segment.position + segment.rows.len();
        let first = attention.window.map_or(0, |window| (segment.position + 1).saturating_sub(window));
        let slots = (first..all).map(|position| slot(segment, position).map(|slot| slot as u32));
        let slots = Tensor::from_vec(slots.collect::<Result<Vec<_>>>()?, all - first, query.device())?;
        let gather = |x: &Tensor| x.index_select(&slots, 0)?.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous();
        let query = query.narrow(0, segment.rows.start, segment.rows.len())?;
        let mask = mask(attention, segment, first);
        let mask = Tensor::from_vec(mask, (segment.rows.len(), all - first), query.device())?;
        outputs.push(attend_segment(attention, &query, &gather(keys)?, &gather(values)?, &mask, shape)?);
    }
    Tensor::cat(&outputs, 0)
}

/// `query` `[n, heads × head_width]`, `keys` and `values` `[kv_heads, all, head_width]`, `mask` `[n, all]`.
fn attend_segment(
    attention: &Attention,
    query: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: &Tensor,
    shape: KvShape,
) -> Result<Tensor> {
    let (count, _) = query.dims2()?;
    let KvShape { kv_heads, head_width, .. } = shape;
    let (heads, all) = (attention.heads, keys.dim(1)?);
    // Heads that share keys become rows of one product.
    let grouped = (kv_heads, heads / kv_heads * count, head_width);
    let query = query.reshape((count, heads, head_width))?.transpose(0, 1)?.contiguous()?.reshape(grouped)?;
    let mut scores = (query.matmul(&keys.t()?.contiguous()?)? * f64::from(attention.scale))?;
    if let Some(cap) = attention.softcap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let scores = scores.reshape((heads, count, all))?.broadcast_add(mask)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let output = weights.reshape((kv_heads, heads / kv_heads * count, all))?.matmul(values)?;
    output.reshape((heads, count, head_width))?.transpose(0, 1)?.contiguous()?.reshape((count, heads * head_width))
}

/// 0 where a row may look, and −∞ where not.
fn mask(attention: &Attention, segment: &Segment, first: usize) -> Vec<f32> {
    let all = segment.position + segment.rows.len();
    let rows = (segment.position..all).flat_map(|own| {
        let begin = attention.window.map_or(0, |window| (own + 1).saturating_sub(window));
        (first..all).map(move |at| if at >= begin && at <= own { 0.0 } else { f32::NEG_INFINITY })
    });
    rows.collect()
}

fn slot(segment: &Segment, position: usize) -> Result<usize> {
    match segment.blocks.get(position / BLOCK_TOKENS) {
        Some(block) => Ok(*block as usize * BLOCK_TOKENS + position % BLOCK_TOKENS),
        None => candle_core::bail!("position {position} has no KV block"),
    }
}
