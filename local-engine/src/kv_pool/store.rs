//! Where blocks lie: in this process's memory, or on a device as tensors.

use candle_core::{DType, Device, Result, Tensor};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::{BLOCK_TOKENS, BlockId, KvShape};
use crate::attention::Route;
use crate::batch::{Batch, Segment};

/// How a number of the cache is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum KvFormat {
    /// Half precision.
    #[default]
    F16,
    /// Eight bits, with one scale for each token's key and value of each head: half the memory, a little less exact.
    Q8,
}

pub(crate) enum Store {
    Host(HostStore),
    Device(DeviceStore),
}

impl Store {
    pub(super) fn new(shape: KvShape, format: KvFormat, blocks: usize, device: &Device) -> Result<Self> {
        if device.is_cpu() {
            return Ok(Self::Host(HostStore::new(shape, format, blocks)));
        }
        if format != KvFormat::F16 {
            candle_core::bail!("on this device the KV cache is f16 only")
        }
        Ok(Self::Device(DeviceStore::new(shape, blocks, device)?))
    }

    /// Makes a block ready for its first owner: all zeros.
    pub(super) fn prepare(&mut self, block: BlockId) -> Result<()> {
        match self {
            Self::Host(host) => host.put(block, Some(HostBlock::new(host.shape, host.format))),
            Self::Device(device) => device.zero(block),
        }
    }

    pub(super) fn copy(&mut self, from: BlockId, to: BlockId) -> Result<()> {
        match self {
            Self::Host(host) => {
                let copy = host.block(from)?.clone();
                host.put(to, Some(copy))
            }
            Self::Device(device) => device.copy(from, to),
        }
    }

    /// Gives a block's memory back, where that is possible.
    pub(super) fn clear(&mut self, block: BlockId) {
        if let Self::Host(host) = self
            && let Some(place) = host.blocks.get_mut(block as usize)
        {
            *place = None;
        }
    }
}

/// Blocks in memory; one that nobody owns takes none.
pub(crate) struct HostStore {
    shape: KvShape,
    format: KvFormat,
    blocks: Vec<Option<HostBlock>>,
}

/// Keys and values of [`BLOCK_TOKENS`] tokens. For each layer and head first the keys, `[head_width, tokens]`, so that
/// all tokens' scores can be computed side by side; then the values, `[tokens, head_width]`.
#[derive(Clone)]
enum HostBlock {
    /// Bits of half-precision numbers.
    F16(Box<[u16]>),
    /// Numbers; and for each layer and head a scale for each token's key, then for each token's value.
    Q8 { codes: Box<[i8]>, scales: Box<[f32]> },
}

impl HostStore {
    fn new(shape: KvShape, format: KvFormat, blocks: usize) -> Self {
        let blocks = std::iter::repeat_with(|| None).take(blocks).collect();
        Self { shape, format, blocks }
    }

    /// Writes a token's key and value, `[kv_heads × head_width]` each, into a slot of a block.
    pub(crate) fn write(
        &mut self,
        layer: usize,
        block: BlockId,
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) -> Result<()> {
        let KvShape { kv_heads, head_width, .. } = self.shape;
        let block = self.blocks.get_mut(block as usize).and_then(Option::as_mut);
        let Some(block) = block.filter(|_| slot < BLOCK_TOKENS) else { return Err(no_such_block()) };
        let heads = key.chunks_exact(head_width).zip(value.chunks_exact(head_width));
        for (head, (key, value)) in heads.enumerate() {
            block.write(layer * kv_heads + head, slot, key, value).ok_or_else(no_such_block)?;
        }
        Ok(())
    }

    /// Reads all of a block's keys, `[head_width, tokens]`, and values, `[tokens, head_width]`, of one head.
    pub(crate) fn read(
        &self,
        layer: usize,
        head: usize,
        block: BlockId,
        keys: &mut [f32],
        values: &mut [f32],
    ) -> Result<()> {
        let at = layer * self.shape.kv_heads + head;
        self.block(block)?.read(at, keys, values).ok_or_else(no_such_block)
    }

    fn block(&self, block: BlockId) -> Result<&HostBlock> {
        self.blocks.get(block as usize).and_then(Option::as_ref).ok_or_else(no_such_block)
    }

    fn put(&mut self, block: BlockId, content: Option<HostBlock>) -> Result<()> {
        *self.blocks.get_mut(block as usize).ok_or_else(no_such_block)? = content;
        Ok(())
    }
}

impl HostBlock {
    fn new(shape: KvShape, format: KvFormat) -> Self {
        let numbers = shape.block_numbers();
        match format {
            KvFormat::F16 => Self::F16(vec![0; numbers].into()),
            KvFormat::Q8 => Self::Q8 {
                codes: vec![0; numbers].into(),
                scales: vec![0.0; shape.layers * shape.kv_heads * 2 * BLOCK_TOKENS].into(),
            },
        }
    }

    fn write(&mut self, at: usize, slot: usize, key: &[f32], value: &[f32]) -> Option<()> {
        let half = key.len() * BLOCK_TOKENS;
        match self {
            Self::F16(bits) => {
                let (keys, values) = bits.get_mut(at * 2 * half..(at + 1) * 2 * half)?.split_at_mut(half);
                for (places, number) in keys.chunks_exact_mut(BLOCK_TOKENS).zip(key) {
                    *places.get_mut(slot)? = f16::from_f32(*number).to_bits();
                }
                let place = values.chunks_exact_mut(value.len()).nth(slot)?;
                place.reinterpret_cast_mut::<f16>().convert_from_f32_slice(value);
            }
            Self::Q8 { codes, scales } => {
                let scales = scales.get_mut(at * 2 * BLOCK_TOKENS..(at + 1) * 2 * BLOCK_TOKENS)?;
                let (of_keys, of_values) = scales.split_at_mut(BLOCK_TOKENS);
                let (keys, values) = codes.get_mut(at * 2 * half..(at + 1) * 2 * half)?.split_at_mut(half);
                let scale = eight_bit_scale(key);
                *of_keys.get_mut(slot)? = scale;
                for (places, number) in keys.chunks_exact_mut(BLOCK_TOKENS).zip(key) {
                    *places.get_mut(slot)? = eight_bits(*number, scale);
                }
                let scale = eight_bit_scale(value);
                *of_values.get_mut(slot)? = scale;
                for (place, number) in values.chunks_exact_mut(value.len()).nth(slot)?.iter_mut().zip(value) {
                    *place = eight_bits(*number, scale);
                }
            }
        }
        Some(())
    }

    fn read(&self, at: usize, keys: &mut [f32], values: &mut [f32]) -> Option<()> {
        let half = keys.len();
        match self {
            Self::F16(bits) => {
                let (k, v) = bits.get(at * 2 * half..(at + 1) * 2 * half)?.split_at(half);
                k.reinterpret_cast::<f16>().convert_to_f32_slice(keys);
                v.reinterpret_cast::<f16>().convert_to_f32_slice(values);
            }
            Self::Q8 { codes, scales } => {
                let scales = scales.get(at * 2 * BLOCK_TOKENS..(at + 1) * 2 * BLOCK_TOKENS)?;
                let (of_keys, of_values) = scales.split_at(BLOCK_TOKENS);
                let (k, v) = codes.get(at * 2 * half..(at + 1) * 2 * half)?.split_at(half);
                for (out, codes) in keys.chunks_exact_mut(BLOCK_TOKENS).zip(k.chunks_exact(BLOCK_TOKENS)) {
                    for ((out, code), scale) in out.iter_mut().zip(codes).zip(of_keys) {
                        *out = f32::from(*code) * scale;
                    }
                }
                let width = half / BLOCK_TOKENS;
                let rows = values.chunks_exact_mut(width).zip(v.chunks_exact(width));
                for ((out, codes), scale) in rows.zip(of_values) {
                    for (out, code) in out.iter_mut().zip(codes) {
                        *out = f32::from(*code) * scale;
                    }
                }
            }
        }
        Some(())
    }
}

/// For each layer keys and values of all slots, `[blocks × tokens, kv_heads × head_width]`, half precision.
pub(crate) struct DeviceStore {
    layers: Vec<(Tensor, Tensor)>,
    zeros: Tensor,
    /// The way of the step that was computed last: all its layers go it.
    route: Option<Route>,
}

impl DeviceStore {
    pub(crate) fn new(shape: KvShape, blocks: usize, device: &Device) -> Result<Self> {
        let KvShape { layers, kv_heads, head_width } = shape;
        let all = |slots: usize| Tensor::zeros((slots, kv_heads * head_width), DType::F16, device);
        let slots = blocks * BLOCK_TOKENS;
        let layers = (0..layers).map(|_| Ok((all(slots)?, all(slots)?))).collect::<Result<_>>()?;
        Ok(Self { layers, zeros: all(BLOCK_TOKENS)?, route: None })
    }

    /// Keys and values of one layer.
    pub(crate) fn layer(&self, layer: usize) -> Result<&(Tensor, Tensor)> {
        self.layers.get(layer).ok_or_else(no_such_block)
    }

    /// The way of a batch, made by `make` unless it is the last one's.
    pub(crate) fn route(
        &mut self,
        batch: &Batch,
        make: impl FnOnce(&[Segment]) -> Result<Route>,
    ) -> Result<&mut Route> {
        if !self.route.as_ref().is_some_and(|route| route.is_of(batch.segments())) {
            self.route = None;
        }
        match &mut self.route {
            Some(route) => Ok(route),
            none => Ok(none.insert(make(batch.segments())?)),
        }
    }

    fn zero(&self, block: BlockId) -> Result<()> {
        for (keys, values) in &self.layers {
            keys.slice_set(&self.zeros, 0, block as usize * BLOCK_TOKENS)?;
            values.slice_set(&self.zeros, 0, block as usize * BLOCK_TOKENS)?;
        }
        Ok(())
    }

    fn copy(&self, from: BlockId, to: BlockId) -> Result<()> {
        for tensor in self.layers.iter().flat_map(|(keys, values)| [keys, values]) {
            let block = tensor.narrow(0, from as usize * BLOCK_TOKENS, BLOCK_TOKENS)?.copy()?;
            tensor.slice_set(&block, 0, to as usize * BLOCK_TOKENS)?;
        }
        Ok(())
    }
}

fn eight_bit_scale(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0f32, |greatest, number| greatest.max(number.abs())) / 127.0
}

fn eight_bits(number: f32, scale: f32) -> i8 {
    // A cast saturates, and takes what is not a number for zero.
    if scale > 0.0 { (number / scale).round() as i8 } else { 0 }
}

fn no_such_block() -> candle_core::Error {
    candle_core::Error::Msg("a KV block, layer or slot that is not there".to_owned())
}
