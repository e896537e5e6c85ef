//! With tensors, for devices whose memory is not this process's.
//!
//! A device is slow to be told what to do and fast to do it: so the sequences that have one row each, as all have that
//! generate, are computed together, padded to the longest of them; and what a step needs to find its way through the
//! blocks is sent to the device once, not for every layer.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::Attention;
use crate::batch::{Batch, Segment};
use crate::kv_pool::{BLOCK_TOKENS, DeviceStore, KvShape};

/// Positions that are gathered at a time, at most, over all sequences of a group; a longer sequence is a group of its own.
const GROUP_POSITIONS_MAX: usize = 1 << 17;

/// A step's way through the blocks, on the device.
pub(crate) struct Route {
    /// Whose way this is.
    segments: Vec<Segment>,
    /// The slot of each row, repeated for each of its numbers: `[rows, kv_heads × head_width]`.
    slots: Tensor,
    windows: Vec<(Option<usize>, Arc<Vec<Group>>)>,
}

/// Sequences of equally many rows.
struct Group {
    sequences: usize,
    /// Rows of each sequence.
    rows: usize,
    /// Positions of each sequence, with padding.
    positions: usize,
    /// `[sequences × rows]`: which rows of the batch; `None` if they are all, in order.
    which: Option<Tensor>,
    /// `[sequences × positions]`: where keys and values lie.
    slots: Tensor,
    /// `[sequences, 1, rows, positions]`: 0 where a row may look, −∞ where not.
    mask: Tensor,
}

pub(super) fn write(
    layer: usize,
    batch: &Batch,
    key: &Tensor,
    value: &Tensor,
    shape: KvShape,
    store: &mut DeviceStore,
) -> Result<()> {
    let slots = store.route(batch, |segments| Route::new(segments, shape, key.device()))?.slots.clone();
    let (keys, values) = store.layer(layer)?;
    for (all, new) in [(keys, key), (values, value)] {
        all.scatter_set(&slots, &new.to_dtype(all.dtype())?.contiguous()?, 0)?;
    }
    Ok(())
}

pub(super) fn attend(
    attention: &Attention,
    layer: usize,
    batch: &Batch,
    query: &Tensor,
    shape: KvShape,
    store: &mut DeviceStore,
) -> Result<Tensor> {
    let route = store.route(batch, |segments| Route::new(segments, shape, query.device()))?;
    let groups = route.groups(attention.window, query.device())?;
    let (keys, values) = store.layer(layer)?;
    let mut seen = Vec::with_capacity(groups.len());
    for group in groups.iter() {
        seen.push(group.attend(attention, query, keys, values, shape)?);
    }
    if let ([seen], [Group { which: None, .. }]) = (seen.as_slice(), groups.as_slice()) {
        return Ok(seen.clone());
    }
    let output = query.zeros_like()?;
    for (seen, group) in seen.iter().zip(groups.iter()) {
        let Some(which) = &group.which else { candle_core::bail!("a group of all rows is not alone") };
        let (rows, width) = seen.dims2()?;
        output.scatter_set(&which.reshape((rows, 1))?.broadcast_as((rows, width))?.contiguous()?, seen, 0)?;
    }
    Ok(output)
}

impl Route {
    fn new(segments: &[Segment], shape: KvShape, device: &Device) -> Result<Self> {
        let mut slots = Vec::new();
        for segment in segments {
            for position in segment.position..segment.position + segment.rows.len() {
                slots.push(slot(segment, position)?);
            }
        }
        let (rows, width) = (slots.len(), shape.kv_heads * shape.head_width);
        let slots = Tensor::from_vec(slots, (rows, 1), device)?.broadcast_as((rows, width))?.contiguous()?;
        Ok(Self { segments: segments.to_vec(), slots, windows: Vec::new() })
    }

    /// True if this is the way of these segments.
    pub(crate) fn is_of(&self, segments: &[Segment]) -> bool {
        self.segments == segments
    }

    fn groups(&mut self, window: Option<usize>, device: &Device) -> Result<Arc<Vec<Group>>> {
        if let Some((_, groups)) = self.windows.iter().find(|(of, _)| *of == window) {
            return Ok(Arc::clone(groups));
        }
        let members = members(&self.segments, window);
        let is_whole = members.len() == 1;
        let groups = members.iter().map(|members| Group::new(members, window, is_whole, device));
        let groups = Arc::new(groups.collect::<Result<Vec<_>>>()?);
        self.windows.push((window, Arc::clone(&groups)));
        Ok(groups)
    }
}

/// Which segments are computed together: those of one row, as many as fit; each longer one by itself.
fn members(segments: &[Segment], window: Option<usize>) -> Vec<Vec<&Segment>> {
    let mut groups: Vec<Vec<&Segment>> = Vec::new();
    let (mut single, mut longest) = (Vec::new(), 0);
    for segment in segments {
        if segment.rows.len() != 1 {
            groups.push(vec![segment]);
            continue;
        }
        let positions = segment.position + 1 - first(segment, window);
        longest = longest.max(positions);
        if !single.is_empty() && longest * (single.len() + 1) > GROUP_POSITIONS_MAX {
            groups.push(std::mem::take(&mut single));
            longest = positions;
        }
        single.push(segment);
    }
    if !single.is_empty() {
        groups.push(single);
    }
    groups
}

impl Group {
    fn new(members: &[&Segment], window: Option<usize>, is_whole: bool, device: &Device) -> Result<Self> {
        let (sequences, rows) = (members.len(), members.first().map_or(0, |segment| segment.rows.len()));
        let length = |segment: &Segment| segment.position + rows - first(segment, window);
        let positions = members.iter().map(|segment| length(segment)).max().unwrap_or(0);
        let mut slots = Vec::with_capacity(sequences * positions);
        let mut mask = Vec::with_capacity(sequences * rows * positions);
        for segment in members {
            let first = first(segment, window);
            // Padding looks at the sequence's own first position, and is masked: what others left behind is not touched.
            let padded = (0..positions).map(|at| first + if at < length(segment) { at } else { 0 });
            for position in padded {
                slots.push(slot(segment, position)?);
            }
            for own in segment.position..segment.position + rows {
                let begin = window.map_or(0, |window| (own + 1).saturating_sub(window));
                let may = |at: usize| at >= begin && at <= own;
                mask.extend((first..first + positions).map(|at| if may(at) { 0.0 } else { f32::NEG_INFINITY }));
            }
        }
        let which: Vec<u32> = members.iter().flat_map(|segment| segment.rows.clone()).map(|row| row as u32).collect();
        Ok(Self {
            sequences,
            rows,
            positions,
            which: (!is_whole).then(|| Tensor::new(which, device)).transpose()?,
            slots: Tensor::new(slots, device)?,
            mask: Tensor::from_vec(mask, (sequences, 1, rows, positions), device)?,
        })
    }

    /// What this group's rows see: `[sequences × rows, heads × head_width]`.
    fn attend(
        &self,
        attention: &Attention,
        query: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        shape: KvShape,
    ) -> Result<Tensor> {
        let KvShape { kv_heads, head_width, .. } = shape;
        let (heads, group) = (attention.heads, attention.heads / kv_heads);
        let Self { sequences, rows, positions, .. } = *self;
        let query = match &self.which {
            Some(which) => query.index_select(which, 0)?,
            None => query.clone(),
        };
        // Heads that share keys become rows of one product.
        let query = query.reshape((sequences, rows, kv_heads, group, head_width))?.permute((0, 2, 3, 1, 4))?;
        let query = query.reshape((sequences, kv_heads, group * rows, head_width))?.contiguous()?;
        let gathered = |all: &Tensor| -> Result<Tensor> {
            let own = all.index_select(&self.slots, 0)?.reshape((sequences, positions, kv_heads, head_width))?;
            own.transpose(1, 2)?.contiguous()?.to_dtype(DType::F32)
        };
        let mut scores = (query.matmul(&gathered(keys)?.t()?)? * f64::from(attention.scale))?;
        if let Some(cap) = attention.softcap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let scores = scores.reshape((sequences, heads, rows, positions))?.broadcast_add(&self.mask)?;
        let weights = softmax_last_dim(&scores)?.reshape((sequences, kv_heads, group * rows, positions))?;
        let seen = weights.matmul(&gathered(values)?)?.reshape((sequences, kv_heads, group, rows, head_width))?;
        seen.permute((0, 3, 1, 2, 4))?.contiguous()?.reshape((sequences * rows, heads * head_width))
    }
}

/// The first position that a segment's first row sees.
fn first(segment: &Segment, window: Option<usize>) -> usize {
    window.map_or(0, |window| (segment.position + 1).saturating_sub(window))
}

fn slot(segment: &Segment, position: usize) -> Result<u32> {
    let block = segment.blocks.get(position / BLOCK_TOKENS);
    let slot =
        block.and_then(|block| block.checked_mul(BLOCK_TOKENS as u32)?.checked_add((position % BLOCK_TOKENS) as u32));
    slot.ok_or_else(|| candle_core::Error::Msg(format!("position {position} has no KV block")))
}
