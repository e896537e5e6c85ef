//! The Llama architecture on quantised weights: RMS norm, rotary positions, grouped-query attention, SwiGLU.
//!
//! Source: Touvron et al., "LLaMA", 2023; tensor names and the order of rotated pairs as in GGUF files.

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{Device, Result, Tensor};

use super::linear::{Features, Linear};
use super::rope::{Angles, Pairing, Rope};
use super::{Input, Model, Output, rms_norm};
use crate::attention::Attention;
use crate::batch::Batch;
use crate::error::EngineError;
use crate::kv_pool::{KvPool, KvShape};
use crate::weights::{Header, WeightFile};

/// A Llama decoder.
pub(super) struct Llama {
    shape: Shape,
    device: Device,
    rope: Rope,
    attention: Attention,
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
            Linear::from_matrix(Arc::clone(&embedding), file.device())?
        };
        let output_norm = file.vector("output_norm.weight", shape.width)?;
        let rope = Rope::new(Pairing::Neighbours, shape.head_width, shape.rope_base);
        let scale = (shape.head_width as f64).sqrt().recip() as f32;
        let attention = Attention { heads: shape.heads, scale, window: None, softcap: None };
        Ok(Self { shape, device: file.device().clone(), rope, attention, embedding, layers, output_norm, head })
    }

    fn layer(
        &self,
        at: usize,
        layer: &Layer,
        x: Tensor,
        batch: &Batch,
        angles: &Angles,
        kv: &mut KvPool,
    ) -> Result<Tensor> {
        let normed = Features::new(rms_norm(&x, &layer.attention_norm, self.shape.epsilon)?);
        let query = self.rope.rotate(&layer.query.forward(&normed)?, angles)?;
        let key = self.rope.rotate(&layer.key.forward(&normed)?, angles)?;
        let value = layer.value.forward(&normed)?;
        let seen = self.attention.forward(at, batch, &query, &key, &value, kv)?;
        let x = (x + layer.output.forward(&Features::new(seen))?)?;
        let normed = Features::new(rms_norm(&x, &layer.mlp_norm, self.shape.epsilon)?);
        &x + layer.mlp(&normed)?
    }

    fn logits(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        if batch.wanted().is_empty() {
            return Tensor::zeros((0, self.shape.vocabulary), x.dtype(), &self.device);
        }
        let wanted = x.index_select(&Tensor::new(batch.wanted(), &self.device)?, 0)?;
        self.head.forward(&Features::new(rms_norm(&wanted, &self.output_norm, self.shape.epsilon)?))
    }
}

impl Model for Llama {
    fn context_tokens(&self) -> usize {
        self.shape.context_tokens
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn kv_shape(&self) -> KvShape {
        let Shape { layers, kv_heads, head_width, .. } = self.shape;
        KvShape { layers, kv_heads, head_width }
    }

    fn forward(&self, stage: Range<usize>, batch: &Batch, input: Input<'_>, kv: &mut KvPool) -> Result<Output> {
        let mut x = match input {
            Input::Tokens(tokens) => self.embedding.embedding(&Tensor::new(tokens, &self.device)?)?,
            Input::Hidden(hidden) => hidden,
        };
        let angles = self.rope.angles(batch);
        let is_last = stage.end >= self.layers.len();
        for (at, layer) in self.layers.iter().enumerate().take(stage.end).skip(stage.start) {
            x = self.layer(at, layer, x, batch, &angles, kv)?;
        }
        if is_last { Ok(Output::Logits(self.logits(&x, batch)?)) } else { Ok(Output::Hidden(x)) }
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

    fn mlp(&self, x: &Features) -> Result<Tensor> {
        self.down.forward(&Features::new((self.gate.forward(x)?.silu()? * self.up.forward(x)?)?))
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

#[cfg(test)]
mod tests;
