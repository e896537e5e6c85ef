//! What the worker asks of a model, and the architectures.
//!
//! A model keeps no sequence's state: keys and values are in the [`KvPool`], positions in the [`Batch`]. A pass may go
//! over some of the layers only, so that a part of a model on another machine runs the same code.

pub(crate) mod bert;
mod decoder;
mod gemma;
pub(crate) mod linear;
mod llama;
mod plan;
mod qwen;
mod rope;

use std::ops::Range;

use candle_core::{Result, Tensor};
use candle_nn::ops::rms_norm;

use decoder::Decoder;
use plan::{Metadata, Plan};

use crate::batch::Batch;
use crate::error::EngineError;
use crate::kv_pool::{KvPool, KvShape};
use crate::weights::WeightFile;

/// A decoder, without any sequence's state.
///
/// On the CPU, what is computed for a row depends on its own sequence only: not on the other rows of the batch, nor on
/// how the sequence was cut into steps. So every sum over features or tokens has one fixed order.
pub(crate) trait Model: Send {
    /// Tokens of prompt and answer together that it was made for.
    fn context_tokens(&self) -> usize;

    /// Layers in all.
    fn layers(&self) -> usize;

    /// What keys and values are made of.
    fn kv_shape(&self) -> KvShape;

    /// Takes all rows of the batch through the layers of `stage`, and writes their keys and values into the pool. The
    /// first layer takes tokens, any other one the output of the layer before it; the last one gives logits.
    fn forward(&self, stage: Range<usize>, batch: &Batch, input: Input<'_>, kv: &mut KvPool) -> Result<Output>;
}

/// What goes into a stage.
pub(crate) enum Input<'a> {
    /// Token ids of all rows.
    Tokens(&'a [u32]),
    /// `[rows, width]`.
    #[cfg_attr(not(test), expect(dead_code, reason = "what a machine that has a part of the layers gets"))]
    Hidden(Tensor),
}

/// What comes out of a stage.
pub(crate) enum Output {
    /// `[rows, width]`.
    #[cfg_attr(not(test), expect(dead_code, reason = "what a machine that has a part of the layers sends on"))]
    Hidden(Tensor),
    /// `[wanted rows, vocabulary]`, f32.
    Logits(Tensor),
}

/// A pass through all layers: the logits (`[vocabulary]`) of each row that wants them, in order.
pub(crate) fn logits(model: &dyn Model, batch: &Batch, kv: &mut KvPool) -> Result<Vec<Vec<f32>>> {
    match model.forward(0..model.layers(), batch, Input::Tokens(batch.tokens()), kv)? {
        Output::Logits(logits) if batch.wanted().is_empty() => {
            drop(logits);
            Ok(Vec::new())
        }
        Output::Logits(logits) => logits.to_vec2(),
        Output::Hidden(_) => candle_core::bail!("the last layer gave no logits"),
    }
}

/// Reads the model of a file. `progress` gets the share that is read, 0 to 1.
pub(crate) fn load(
    file: &WeightFile,
    progress: &mut dyn FnMut(f64),
) -> std::result::Result<Box<dyn Model>, EngineError> {
    Ok(Box::new(Decoder::load(file, plan(file)?, progress)?))
}

/// Whether this engine can run the model: its header, and that its tensors are all there. Reads no weights.
pub(crate) fn check(file: &WeightFile) -> std::result::Result<(), EngineError> {
    if file.header().text("general.architecture") == Some("bert") {
        bert::check(file)?;
    } else {
        plan(file)?;
    }
    file.check_tensors()
}

fn plan(file: &WeightFile) -> std::result::Result<Plan, EngineError> {
    let architecture = file.header().text("general.architecture");
    let architecture = architecture.ok_or_else(|| file.damaged("it does not name an architecture"))?;
    let metadata = Metadata { file, architecture };
    match architecture {
        "llama" => llama::plan(&metadata),
        "qwen2" => qwen::plan_2(&metadata),
        "qwen3" => qwen::plan_3(&metadata),
        "gemma3" => gemma::plan(&metadata),
        other => Err(EngineError::Unsupported(format!("the architecture `{other}`"))),
    }
}

/// Root mean square layer normalisation over the last dimension. Source: Zhang and Sennrich, 2019.
struct RmsNorm {
    weight: Tensor,
    epsilon: f32,
}

impl RmsNorm {
    fn load(file: &WeightFile, name: &str, width: usize, epsilon: f64) -> std::result::Result<Self, EngineError> {
        Ok(Self { weight: file.vector(&format!("{name}.weight"), width)?, epsilon: epsilon as f32 })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(&x.contiguous()?, &self.weight, self.epsilon)
    }

    /// Normalises each head of `[rows, heads × head_width]` by itself.
    fn forward_heads(&self, x: &Tensor) -> Result<Tensor> {
        let ((rows, width), head_width) = (x.dims2()?, self.weight.dim(0)?);
        self.forward(&x.reshape((rows * width / head_width, head_width))?)?.reshape((rows, width))
    }
}

#[cfg(test)]
mod gpu;
#[cfg(test)]
mod greedy;
#[cfg(test)]
mod oracles;
