//! The Llama architecture on quantised weights: RMS norm, rotary positions, grouped-query attention, SwiGLU.
//!
//! Source: Touvron et al., "LLaMA", 2023; tensor names and the order of rotated pairs as in GGUF files. All segments'
//! tokens lie in one flat batch, `[tokens, width]`, each with its own position; only attention looks at segments.

use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{D, Device, Result, Tensor};

use super::linear::{Input, Linear};
use super::{Model, Segment, rms_norm};
use crate::error::EngineError;
use crate::kv_cache::CacheShape;
use crate::weights::{Header, WeightFile};

/// A Llama decoder.
pub(super) struct Llama {
    shape: Shape,
    device: Device,
    /// `[vocabulary, width]`, kept quantised.
    embedding: Arc<QTensor>,
    layers: Vec<Layer>,
    output_norm: Tensor,
    head: Linear,
}

/// The numbers that all sizes follow from; each is bounded, so products of them cannot overflow.
#[derive(Debug, Clone, Copy)]
struct Shape {
    vocabulary: usize,
    context_tokens: usize,
    layers: usize,
    width: usize,
    hidden_width: usize,
    heads: usize,
    kv_heads: usize,
    head_width: usize,
    epsilon: f64,
    rope_base: f64,
}

struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    mlp_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What all layers of a step share.
struct Positions {
    /// `[tokens, 1, head_width / 2, 1]` each.
    cos: Tensor,
    sin: Tensor,
    /// For each segment of more than one token: `[n, all]`, 0 where a token may look and −∞ where not.
    masks: Vec<Option<Tensor>>,
}

impl Llama {
    pub(super) fn load(file: &WeightFile, progress: &mut dyn FnMut(f64)) -> std::result::Result<Self, EngineError> {
        let shape = Shape::read(file)?;
        let embedding = file.matrix("token_embd.weight", shape.vocabulary, shape.width)?;
        let mut layers = Vec::with_capacity(shape.layers);
        for at in 0..shape.layers {
            layers.push(Layer::load(file, &shape, at)?);
            progress((at + 1) as f64 / shape.layers as f64);
        }
        let head = if file.has("output.weight") {
            file.projection("output.weight", shape.vocabulary, shape.width)?
        } else {
            Linear::from(QMatMul::from_arc(Arc::clone(&embedding))?)
        };
        let output_norm = file.vector("output_norm.weight", shape.width)?;
        Ok(Self { shape, device: file.device().clone(), embedding, layers, output_norm, head })
    }

    fn positions(&self, batch: &[Segment<'_>]) -> Result<Positions> {
        let half = self.shape.head_width / 2;
        let mut angles = Vec::new();
        let mut masks = Vec::with_capacity(batch.len());
        for segment in batch {
            let (before, count) = (segment.cache.tokens(), segment.tokens.len());
            for position in before..before + count {
                let angle = |pair: usize| {
                    let exponent = 2.0 * pair as f64 / self.shape.head_width as f64;
                    position as f64 / self.shape.rope_base.powf(exponent)
                };
                angles.extend((0..half).map(angle));
            }
            masks.push((count > 1).then(|| causal_mask(before, count, &self.device)).transpose()?);
        }
        let column = |function: fn(f64) -> f64| {
            let numbers: Vec<f32> = angles.iter().map(|angle| function(*angle) as f32).collect();
            let tokens = numbers.len() / half;
            Tensor::from_vec(numbers, (tokens, 1, half, 1), &self.device)
        };
        Ok(Positions { cos: column(f64::cos)?, sin: column(f64::sin)?, masks })
    }

    /// Attention of all segments: `x` and the result are `[tokens, width]`.
    fn attention(
        &self,
        at: usize,
        layer: &Layer,
        x: &Input,
        batch: &[Segment<'_>],
        positions: &Positions,
    ) -> Result<Tensor> {
        let Shape { heads, kv_heads, head_width, .. } = self.shape;
        let tokens: usize = batch.iter().map(|segment| segment.tokens.len()).sum();
        let query = rotate(&layer.query.forward(x)?.reshape((tokens, heads, head_width))?, positions)?;
        let query = (query * (head_width as f64).sqrt().recip())?;
        let key = rotate(&layer.key.forward(x)?.reshape((tokens, kv_heads, head_width))?, positions)?;
        let value = layer.value.forward(x)?.reshape((tokens, kv_heads, head_width))?;
        let mut outputs = Vec::with_capacity(batch.len());
        let mut begin = 0;
        for (segment, mask) in batch.iter().zip(&positions.masks) {
            let count = segment.tokens.len();
            let own = |all: &Tensor| all.narrow(0, begin, count);
            let keys = own(&key)?.transpose(0, 1)?.contiguous()?;
            let values = own(&value)?.transpose(0, 1)?.contiguous()?;
            let (keys, values) = segment.cache.append(at, &keys, &values)?;
            outputs.push(attend(&own(&query)?, &keys, &values, mask.as_ref())?);
            begin += count;
        }
        layer.output.forward(&Input::new(Tensor::cat(&outputs, 0)?))
    }
}

impl Model for Llama {
    fn context_tokens(&self) -> usize {
        self.shape.context_tokens
    }

    fn cache_shape(&self) -> CacheShape {
        let Shape { layers, kv_heads, head_width, .. } = self.shape;
        CacheShape { layers, kv_heads, head_width }
    }

    fn forward(&self, batch: &mut [Segment<'_>]) -> Result<Vec<Vec<f32>>> {
        for segment in batch.iter_mut() {
            segment.cache.reserve(segment.tokens.len())?;
        }
        let positions = self.positions(batch)?;
        let ids: Vec<u32> = batch.iter().flat_map(|segment| segment.tokens).copied().collect();
        let mut x = self.embedding.embedding(&Tensor::new(ids, &self.device)?)?;
        for (at, layer) in self.layers.iter().enumerate() {
            let normed = Input::new(rms_norm(&x, &layer.attention_norm, self.shape.epsilon)?);
            x = (x + self.attention(at, layer, &normed, batch, &positions)?)?;
            let normed = Input::new(rms_norm(&x, &layer.mlp_norm, self.shape.epsilon)?);
            x = (x + layer.mlp(&normed)?)?;
        }
        let mut wanted = Vec::new();
        let mut end = 0u32;
        for segment in batch.iter_mut() {
            segment.cache.advance(segment.tokens.len());
            end += segment.tokens.len() as u32;
            if segment.wants_logits {
                wanted.push(end - 1);
            }
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let last = x.index_select(&Tensor::new(wanted, &self.device)?, 0)?;
        self.head.forward(&Input::new(rms_norm(&last, &self.output_norm, self.shape.epsilon)?))?.to_vec2()
    }
}

impl Layer {
    fn load(file: &WeightFile, shape: &Shape, at: usize) -> std::result::Result<Self, EngineError> {
        let Shape { width, hidden_width, heads, kv_heads, head_width, .. } = *shape;
        let name = |part: &str| format!("blk.{at}.{part}.weight");
        let projection = |part: &str, rows, columns| file.projection(&name(part), rows, columns);
        Ok(Self {
            attention_norm: file.vector(&name("attn_norm"), width)?,
            query: projection("attn_q", heads * head_width, width)?,
            key: projection("attn_k", kv_heads * head_width, width)?,
            value: projection("attn_v", kv_heads * head_width, width)?,
            output: projection("attn_output", width, heads * head_width)?,
            mlp_norm: file.vector(&name("ffn_norm"), width)?,
            gate: projection("ffn_gate", hidden_width, width)?,
            up: projection("ffn_up", hidden_width, width)?,
            down: projection("ffn_down", width, hidden_width)?,
        })
    }

    fn mlp(&self, x: &Input) -> Result<Tensor> {
        self.down.forward(&Input::new((self.gate.forward(x)?.silu()? * self.up.forward(x)?)?))
    }
}

impl Shape {
    fn read(file: &WeightFile) -> std::result::Result<Self, EngineError> {
        let header = file.header();
        refuse_variants(file)?;
        let number = |key: &str, max: u64| {
            let key = format!("llama.{key}");
            let number = header.integer(&key).ok_or_else(|| file.damaged(&format!("`{key}` is missing")))?;
            match usize::try_from(number) {
                Ok(small) if (1..=max).contains(&number) => Ok(small),
                _ => Err(file.damaged(&format!("`{key}` is {number}, where 1 to {max} are possible"))),
            }
        };
        let (width, heads) = (number("embedding_length", 1 << 16)?, number("attention.head_count", 1024)?);
        let kv_heads = match header.integer("llama.attention.head_count_kv") {
            Some(_) => number("attention.head_count_kv", 1024)?,
            None => heads,
        };
        let head_width = width / heads;
        if width % heads != 0 || head_width % 2 != 0 || heads % kv_heads != 0 {
            return Err(file.damaged(&format!("{width} features do not fit {heads} heads and {kv_heads} KV heads")));
        }
        for key in ["llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"] {
            if header.integer(key).is_some_and(|given| given != head_width as u64) {
                return Err(EngineError::Unsupported(format!("a `{key}` other than {head_width}")));
            }
        }
        let epsilon = header.float("llama.attention.layer_norm_rms_epsilon");
        let rope_base = header.float("llama.rope.freq_base").unwrap_or(10_000.0);
        let (Some(epsilon), true) = (epsilon.filter(|e| *e > 0.0 && *e < 1.0), rope_base >= 1.0) else {
            return Err(file.damaged("its normalisation or rotation constants are missing or impossible"));
        };
        let vocabulary = header.texts("tokenizer.ggml.tokens").map_or(0, <[String]>::len);
        if !(1..=1 << 21).contains(&vocabulary) {
            return Err(file.damaged(&format!("it has {vocabulary} tokens")));
        }
        Ok(Self {
            vocabulary,
            context_tokens: number("context_length", 1 << 24)?,
            layers: number("block_count", 1024)?,
            width,
            hidden_width: number("feed_forward_length", 1 << 20)?,
            heads,
            kv_heads,
            head_width,
            epsilon,
            rope_base,
        })
    }
}

/// Variants of the architecture that would compute something else without any error.
fn refuse_variants(file: &WeightFile) -> std::result::Result<(), EngineError> {
    let header: &Header = file.header();
    let unsupported = |what: &str| Err(EngineError::Unsupported(what.to_owned()));
    if header.integer("llama.expert_count").is_some_and(|experts| experts > 0) {
        return unsupported("a mixture of experts");
    }
    let scaled = header.text("llama.rope.scaling.type").is_some_and(|kind| kind != "none");
    if scaled || file.has("rope_freqs.weight") {
        return unsupported("scaled rotary positions");
    }
    if file.has("blk.0.attn_q.bias") {
        return unsupported("attention with biases");
    }
    Ok(())
}

/// Turns each pair (2i, 2i + 1) of `[tokens, heads, head_width]` by its position's angle.
/// Source: Su et al., "RoFormer", 2021; GGUF files of this architecture keep the pairs side by side.
fn rotate(x: &Tensor, positions: &Positions) -> Result<Tensor> {
    let (tokens, heads, head_width) = x.dims3()?;
    let pairs = x.reshape((tokens, heads, head_width / 2, 2))?;
    let (a, b) = (pairs.narrow(D::Minus1, 0, 1)?.contiguous()?, pairs.narrow(D::Minus1, 1, 1)?.contiguous()?);
    let (cos, sin) = (&positions.cos, &positions.sin);
    let turned_a = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let turned_b = (a.broadcast_mul(sin)? + b.broadcast_mul(cos)?)?;
    Tensor::cat(&[turned_a, turned_b], D::Minus1)?.reshape((tokens, heads, head_width))
}

/// Scaled dot-product attention of one segment: `query` `[n, heads, head_width]`, `keys` and `values`
/// `[kv_heads, all, head_width]`; the result is `[n, heads × head_width]`.
fn attend(query: &Tensor, keys: &Tensor, values: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (count, heads, head_width) = query.dims3()?;
    let (kv_heads, all, _) = keys.dims3()?;
    let group = heads / kv_heads;
    // Heads that share keys become rows of one product.
    let query = query.transpose(0, 1)?.reshape((kv_heads, group * count, head_width))?;
    let mut scores = query.matmul(&keys.t()?)?;
    if let Some(mask) = mask {
        scores = scores.reshape((heads, count, all))?.broadcast_add(mask)?.reshape((kv_heads, group * count, all))?;
    }
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let output = weights.matmul(values)?.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    output.reshape((heads, count, head_width))?.transpose(0, 1)?.reshape((count, heads * head_width))
}

/// Token `before + i` may look at tokens `0..=before + i`.
fn causal_mask(before: usize, count: usize, device: &Device) -> Result<Tensor> {
    let all = before + count;
    let rows =
        (0..count).flat_map(|row| (0..all).map(move |at| if at > before + row { f32::NEG_INFINITY } else { 0.0 }));
    Tensor::from_vec(rows.collect(), (count, all), device)
}

#[cfg(test)]
mod tests;
