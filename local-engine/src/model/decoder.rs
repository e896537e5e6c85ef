//! The decoder that all architectures share: RMS norm, rotary positions, grouped-query attention, a gated feed-forward
//! part. What they differ in is in the [`Plan`]. Tensors have the names of GGUF files.

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{Device, Result, Tensor};

use super::linear::{Features, Linear};
use super::plan::{Activation, Plan, Shape};
use super::rope::Angles;
use super::{Input, Model, Output, RmsNorm};
use crate::attention::Attention;
use crate::batch::Batch;
use crate::error::EngineError;
use crate::kv_pool::{KvPool, KvShape};
use crate::weights::WeightFile;

/// A decoder, without any sequence's state.
pub(super) struct Decoder {
    plan: Plan,
    device: Device,
    /// `[vocabulary, width]`, as in the file.
    embedding: Arc<QTensor>,
    layers: Vec<Layer>,
    output_norm: RmsNorm,
    head: Linear,
}

struct Layer {
    rope: usize,
    attention: Attention,
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    /// Of queries' and keys' heads.
    head_norms: Option<(RmsNorm, RmsNorm)>,
    output: Linear,
    post_attention_norm: Option<RmsNorm>,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    post_mlp_norm: Option<RmsNorm>,
}

impl Decoder {
    pub(super) fn load(
        file: &WeightFile,
        plan: Plan,
        progress: &mut dyn FnMut(f64),
    ) -> std::result::Result<Self, EngineError> {
        let shape = plan.shape;
        let embedding = file.matrix("token_embd.weight", shape.vocabulary, shape.width)?;
        let mut layers = Vec::with_capacity(shape.layers);
        for at in 0..shape.layers {
            layers.push(Layer::load(file, &plan, at)?);
            progress((at + 1) as f64 / shape.layers as f64);
        }
        let head = if file.has("output.weight") {
            file.projection("output.weight", shape.vocabulary, shape.width)?
        } else {
            Linear::from_matrix(Arc::clone(&embedding), file.device())?
        };
        let output_norm = RmsNorm::load(file, "output_norm", shape.width, shape.epsilon)?;
        Ok(Self { plan, device: file.device().clone(), embedding, layers, output_norm, head })
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        // A device would read beyond the table without a word.
        if let Some(wrong) = tokens.iter().find(|id| **id as usize >= self.plan.shape.vocabulary) {
            candle_core::bail!("token {wrong} is not in the vocabulary")
        }
        let x = self.embedding.embedding(&Tensor::new(tokens, &self.device)?)?;
        match self.plan.embedding_scale {
            Some(scale) => x * scale,
            None => Ok(x),
        }
    }

    fn logits(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        if batch.wanted().is_empty() {
            return Tensor::zeros((0, self.plan.shape.vocabulary), x.dtype(), &self.device);
        }
        let wanted = x.index_select(&Tensor::new(batch.wanted(), &self.device)?, 0)?;
        let logits = self.head.forward(&Features::new(self.output_norm.forward(&wanted)?))?;
        match self.plan.logit_cap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }
}

impl Model for Decoder {
    fn context_tokens(&self) -> usize {
        self.plan.shape.context_tokens
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn kv_shape(&self) -> KvShape {
        let Shape { layers, kv_heads, head_width, .. } = self.plan.shape;
        KvShape { layers, kv_heads, head_width }
    }

    fn forward(&self, stage: Range<usize>, batch: &Batch, input: Input<'_>, kv: &mut KvPool) -> Result<Output> {
        let mut x = match input {
            Input::Tokens(tokens) => self.embed(tokens)?,
            Input::Hidden(hidden) => hidden,
        };
        let angles = self.plan.ropes.iter().map(|rope| rope.angles(batch, &self.device)).collect::<Result<Vec<_>>>()?;
        for (at, layer) in self.layers.iter().enumerate().take(stage.end).skip(stage.start) {
            x = layer.forward(at, &self.plan, x, batch, &angles, kv)?;
        }
        let is_last = stage.end >= self.layers.len();
        if is_last { Ok(Output::Logits(self.logits(&x, batch)?)) } else { Ok(Output::Hidden(x)) }
    }
}

impl Layer {
    fn load(file: &WeightFile, plan: &Plan, at: usize) -> std::result::Result<Self, EngineError> {
        let Shape { width, hidden_width, heads, kv_heads, head_width, epsilon, .. } = plan.shape;
        let name = |part: &str| format!("blk.{at}.{part}");
        let projection = |part: &str, rows, columns| file.projection(&name(&format!("{part}.weight")), rows, columns);
        let biased = |part: &str, rows| match plan.has_biases {
            true => Ok(projection(part, rows, width)?.with_bias(file.vector(&name(&format!("{part}.bias")), rows)?)),
            false => projection(part, rows, width),
        };
        let norm = |part: &str, width| RmsNorm::load(file, &name(part), width, epsilon);
        let post_norm = |part: &str| plan.has_post_norms.then(|| norm(part, width)).transpose();
        let head_norms = || Ok::<_, EngineError>((norm("attn_q_norm", head_width)?, norm("attn_k_norm", head_width)?));
        let layer = plan.layers.get(at).ok_or_else(|| file.damaged("it has more layers than its plan"))?;
        let (scale, softcap) = (plan.attention_scale, plan.attention_cap);
        Ok(Self {
            rope: layer.rope,
            attention: Attention { heads, scale, window: layer.window, softcap },
            attention_norm: norm("attn_norm", width)?,
            query: biased("attn_q", heads * head_width)?,
            key: biased("attn_k", kv_heads * head_width)?,
            value: biased("attn_v", kv_heads * head_width)?,
            head_norms: plan.has_head_norms.then(head_norms).transpose()?,
            output: projection("attn_output", width, heads * head_width)?,
            post_attention_norm: post_norm("post_attention_norm")?,
            mlp_norm: norm("ffn_norm", width)?,
            gate: projection("ffn_gate", hidden_width, width)?,
            up: projection("ffn_up", hidden_width, width)?,
            down: projection("ffn_down", width, hidden_width)?,
            post_mlp_norm: post_norm("post_ffw_norm")?,
        })
    }

    fn forward(
        &self,
        at: usize,
        plan: &Plan,
        x: Tensor,
        batch: &Batch,
        angles: &[Angles],
        kv: &mut KvPool,
    ) -> Result<Tensor> {
        let (Some(rope), Some(angles)) = (plan.ropes.get(self.rope), angles.get(self.rope)) else {
            candle_core::bail!("layer {at} has no rotation")
        };
        let normed = Features::new(self.attention_norm.forward(&x)?);
        let (mut query, mut key) = (self.query.forward(&normed)?, self.key.forward(&normed)?);
        if let Some((of_queries, of_keys)) = &self.head_norms {
            (query, key) = (of_queries.forward_heads(&query)?, of_keys.forward_heads(&key)?);
        }
        let (query, key) = (rope.rotate(&query, angles)?, rope.rotate(&key, angles)?);
        let value = self.value.forward(&normed)?;
        let seen = self.attention.forward(at, batch, &query, &key, &value, kv)?;
        let seen = self.output.forward(&Features::new(seen))?;
        let x = (x + normed_by(self.post_attention_norm.as_ref(), seen)?)?;
        let normed = Features::new(self.mlp_norm.forward(&x)?);
        &x + normed_by(self.post_mlp_norm.as_ref(), self.mlp(plan.activation, &normed)?)?
    }

    fn mlp(&self, activation: Activation, x: &Features) -> Result<Tensor> {
        let gate = self.gate.forward(x)?;
        let gate = match activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        self.down.forward(&Features::new((gate * self.up.forward(x)?)?))
    }
}

fn normed_by(norm: Option<&RmsNorm>, x: Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&x),
        None => Ok(x),
    }
}

#[cfg(test)]
mod tests;
