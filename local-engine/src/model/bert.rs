//! Encoders of the BERT family, which turn a text into one vector.
//!
//! Sources: Devlin et al., "BERT", 2019; Reimers and Gurevych, "Sentence-BERT", 2019 (the mean of all tokens, scaled to
//! length 1). Rows of all texts lie in one flat batch, `[rows, width]`; only attention looks at texts.

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::{layer_norm, softmax_last_dim};

use super::linear::{Features, Linear};
use super::plan::Metadata;
use crate::error::EngineError;
use crate::weights::WeightFile;

/// An encoder.
pub(crate) struct Bert {
    shape: Shape,
    device: Device,
    /// `[vocabulary, width]`.
    words: Arc<QTensor>,
    /// `[positions, width]`, with what every token of a first sentence gets.
    positions: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    vocabulary: usize,
    positions: usize,
    layers: usize,
    width: usize,
    hidden_width: usize,
    heads: usize,
    epsilon: f64,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    mlp_norm: Norm,
}

/// Whether the header is one of a model that can be run.
pub(super) fn check(file: &WeightFile) -> std::result::Result<(), EngineError> {
    Shape::read(file).map(|_| ())
}

/// Layer normalisation with a bias.
struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl Bert {
    pub(crate) fn load(file: &WeightFile) -> std::result::Result<Self, EngineError> {
        let shape = Shape::read(file)?;
        let Shape { vocabulary, positions, width, .. } = shape;
        let place = |name: &str, rows| Ok::<_, EngineError>(file.matrix(name, rows, width)?.dequantize(file.device())?);
        let first_sentence = place("token_types.weight", 2)?.narrow(0, 0, 1)?;
        Ok(Self {
            device: file.device().clone(),
            words: file.matrix("token_embd.weight", vocabulary, width)?,
            positions: place("position_embd.weight", positions)?.broadcast_add(&first_sentence)?,
            norm: Norm::load(file, "token_embd_norm", &shape)?,
            layers: (0..shape.layers).map(|at| Layer::load(file, &shape, at)).collect::<std::result::Result<_, _>>()?,
            shape,
        })
    }

    /// Tokens of a text at most, those around it among them.
    pub(crate) fn positions(&self) -> usize {
        self.shape.positions
    }

    /// Numbers of a text's vector.
    pub(crate) fn width(&self) -> usize {
        self.shape.width
    }

    /// The vectors of texts, given as token ids; each has length 1. A text's vector does not depend on the others.
    pub(crate) fn embed(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let (mut ids, mut places, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        for text in texts {
            if text.is_empty() || text.len() > self.shape.positions {
                candle_core::bail!("a text of {} tokens, where 1 to {} are possible", text.len(), self.shape.positions)
            }
            spans.push(ids.len()..ids.len() + text.len());
            ids.extend_from_slice(text);
            places.extend(0..text.len() as u32);
        }
        if ids.iter().any(|id| *id as usize >= self.shape.vocabulary) {
            candle_core::bail!("a token that is not in the vocabulary")
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let words = self.words.embedding(&Tensor::new(ids, &self.device)?)?;
        let positions = self.positions.index_select(&Tensor::new(places, &self.device)?, 0)?;
        let mut x = self.norm.forward(&(words + positions)?)?;
        for layer in &self.layers {
            x = layer.forward(&x, &spans, self.shape.heads)?;
        }
        spans.into_iter().map(|span| unit_mean(&x.narrow(0, span.start, span.len())?)).collect()
    }
}

impl Layer {
    fn load(file: &WeightFile, shape: &Shape, at: usize) -> std::result::Result<Self, EngineError> {
        let Shape { width, hidden_width, .. } = *shape;
        let name = |part: &str| format!("blk.{at}.{part}");
        let biased = |part: &str, rows, columns| {
            let projection = file.projection(&name(&format!("{part}.weight")), rows, columns)?;
            Ok::<_, EngineError>(projection.with_bias(file.vector(&name(&format!("{part}.bias")), rows)?))
        };
        Ok(Self {
            query: biased("attn_q", width, width)?,
            key: biased("attn_k", width, width)?,
            value: biased("attn_v", width, width)?,
            output: biased("attn_output", width, width)?,
            attention_norm: Norm::load(file, &name("attn_output_norm"), shape)?,
            up: biased("ffn_up", hidden_width, width)?,
            down: biased("ffn_down", width, hidden_width)?,
            mlp_norm: Norm::load(file, &name("layer_output_norm"), shape)?,
        })
    }

    fn forward(&self, x: &Tensor, spans: &[Range<usize>], heads: usize) -> Result<Tensor> {
        let features = Features::new(x.clone());
        let (query, key) = (self.query.forward(&features)?, self.key.forward(&features)?);
        let value = self.value.forward(&features)?;
        let mut seen = Vec::with_capacity(spans.len());
        for span in spans {
            let own = |all: &Tensor| all.narrow(0, span.start, span.len());
            seen.push(attend(&own(&query)?, &own(&key)?, &own(&value)?, heads)?);
        }
        let seen = self.output.forward(&Features::new(Tensor::cat(&seen, 0)?))?;
        let x = self.attention_norm.forward(&(x + seen)?)?;
        let hidden = self.up.forward(&Features::new(x.clone()))?.gelu_erf()?;
        self.mlp_norm.forward(&(&x + self.down.forward(&Features::new(hidden))?)?)
    }
}

impl Norm {
    fn load(file: &WeightFile, name: &str, shape: &Shape) -> std::result::Result<Self, EngineError> {
        let part = |kind: &str| file.vector(&format!("{name}.{kind}"), shape.width);
        Ok(Self { weight: part("weight")?, bias: part("bias")?, epsilon: shape.epsilon as f32 })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(&x.contiguous()?, &self.weight, &self.bias, self.epsilon)
    }
}

impl Shape {
    fn read(file: &WeightFile) -> std::result::Result<Self, EngineError> {
        let metadata = Metadata { file, architecture: "bert" };
        let epsilon = metadata.float("attention.layer_norm_epsilon").filter(|e| *e > 0.0 && *e < 1.0);
        let shape = Self {
            vocabulary: metadata.vocabulary()?,
            positions: metadata.number("context_length", 1 << 16)?,
            layers: metadata.number("block_count", 1024)?,
            width: metadata.number("embedding_length", 1 << 16)?,
            hidden_width: metadata.number("feed_forward_length", 1 << 20)?,
            heads: metadata.number("attention.head_count", 1024)?,
            epsilon: epsilon.ok_or_else(|| file.damaged("its normalisation constant is missing or impossible"))?,
        };
        if !shape.width.is_multiple_of(shape.heads) {
            return Err(file.damaged(&format!("{} features do not fit {} heads", shape.width, shape.heads)));
        }
        Ok(shape)
    }
}

/// Every token looks at all tokens of its text: all are `[tokens, width]`.
fn attend(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize) -> Result<Tensor> {
    let (tokens, width) = query.dims2()?;
    let of_heads = |x: &Tensor| x.reshape((tokens, heads, width / heads))?.transpose(0, 1)?.contiguous();
    let scale = ((width / heads) as f64).sqrt().recip();
    let scores = (of_heads(query)?.matmul(&of_heads(key)?.t()?)? * scale)?;
    let seen = softmax_last_dim(&scores)?.matmul(&of_heads(value)?)?;
    seen.transpose(0, 1)?.contiguous()?.reshape((tokens, width))
}

/// The mean of rows, scaled to length 1.
fn unit_mean(rows: &Tensor) -> Result<Vec<f32>> {
    let mean = rows.mean(0)?;
    let length = mean.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    mean.broadcast_div(&length)?.to_vec1()
}
