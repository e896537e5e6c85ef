//! What a decoder's computation depends on beside its weights, as the architecture's file says it.

use super::rope::{Pairing, Rope};
use crate::error::EngineError;
use crate::weights::WeightFile;

/// All decoders here have one skeleton: normalised attention and a gated feed-forward part, each added to what it was
/// computed from. This says what they differ in.
pub(super) struct Plan {
    pub(super) shape: Shape,
    /// One for each layer.
    pub(super) layers: Vec<LayerPlan>,
    /// The rotations that layers choose from.
    pub(super) ropes: Vec<Rope>,
    pub(super) activation: Activation,
    /// Queries, keys and values have biases.
    pub(super) has_biases: bool,
    /// Each head's query and key is normalised before it is turned.
    pub(super) has_head_norms: bool,
    /// Both parts' results are normalised before they are added.
    pub(super) has_post_norms: bool,
    /// Embeddings are multiplied with it.
    pub(super) embedding_scale: Option<f64>,
    /// Attention's scores are multiplied with it.
    pub(super) attention_scale: f32,
    /// Attention's scores are bent below it.
    pub(super) attention_cap: Option<f32>,
    /// Logits are bent below it.
    pub(super) logit_cap: Option<f64>,
}

/// What one layer does otherwise than others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerPlan {
    /// Which of the plan's rotations.
    pub(super) rope: usize,
    /// Positions that a token looks back at, its own among them.
    pub(super) window: Option<usize>,
}

/// What the gate of the feed-forward part goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// The approximation of GELU with a hyperbolic tangent.
    GeluTanh,
}

/// The numbers that all sizes follow from; each is bounded, so products of them cannot overflow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) vocabulary: usize,
    pub(super) context_tokens: usize,
    pub(super) layers: usize,
    pub(super) width: usize,
    pub(super) hidden_width: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_width: usize,
    pub(super) epsilon: f64,
}

impl Plan {
    /// The plan that Llama and Qwen share; the caller changes what is different.
    pub(super) fn read(metadata: &Metadata<'_>, pairing: Pairing) -> Result<Self, EngineError> {
        metadata.refuse_variants()?;
        let shape = Shape::read(metadata)?;
        let rope = metadata.rope(&shape, pairing)?;
        Ok(Self {
            layers: vec![LayerPlan { rope: 0, window: None }; shape.layers],
            ropes: vec![rope],
            activation: Activation::Silu,
            has_biases: false,
            has_head_norms: false,
            has_post_norms: false,
            embedding_scale: None,
            attention_scale: (shape.head_width as f64).sqrt().recip() as f32,
            attention_cap: None,
            logit_cap: None,
            shape,
        })
    }
}

impl Shape {
    fn read(metadata: &Metadata<'_>) -> Result<Self, EngineError> {
        let file = metadata.file;
        let (width, heads) =
            (metadata.number("embedding_length", 1 << 16)?, metadata.number("attention.head_count", 1024)?);
        let kv_heads = metadata.optional("attention.head_count_kv", 1024)?.unwrap_or(heads);
        let head_width = metadata.optional("attention.key_length", 1024)?.unwrap_or(width / heads);
        let fits = head_width * heads <= 1 << 17 && head_width > 0 && head_width % 2 == 0 && heads % kv_heads == 0;
        if !fits {
            return Err(file.damaged(&format!("{width} features do not fit {heads} heads and {kv_heads} KV heads")));
        }
        for key in ["rope.dimension_count", "attention.value_length"] {
            if metadata.optional(key, 1 << 16)?.is_some_and(|given| given != head_width) {
                return Err(EngineError::Unsupported(format!("a `{key}` other than {head_width}")));
            }
        }
        let epsilon = metadata.float("attention.layer_norm_rms_epsilon").filter(|e| *e > 0.0 && *e < 1.0);
        let Some(epsilon) = epsilon else {
            return Err(file.damaged("its normalisation constant is missing or impossible"));
        };
        Ok(Self {
            vocabulary: metadata.vocabulary()?,
            context_tokens: metadata.number("context_length", 1 << 24)?,
            layers: metadata.number("block_count", 1024)?,
            width,
            hidden_width: metadata.number("feed_forward_length", 1 << 20)?,
            heads,
            kv_heads,
            head_width,
            epsilon,
        })
    }
}

/// The header's entries of one architecture.
pub(super) struct Metadata<'a> {
    pub(super) file: &'a WeightFile,
    /// What the keys begin with.
    pub(super) architecture: &'a str,
}

impl Metadata<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        self.file.header().float(&self.key(key))
    }

    /// A number from 1 to `max`, if the file names one.
    pub(super) fn optional(&self, key: &str, max: u64) -> Result<Option<usize>, EngineError> {
        let key = self.key(key);
        let Some(number) = self.file.header().integer(&key) else { return Ok(None) };
        match usize::try_from(number) {
            Ok(small) if (1..=max).contains(&number) => Ok(Some(small)),
            _ => Err(self.file.damaged(&format!("`{key}` is {number}, where 1 to {max} are possible"))),
        }
    }

    pub(super) fn number(&self, key: &str, max: u64) -> Result<usize, EngineError> {
        self.optional(key, max)?.ok_or_else(|| self.file.damaged(&format!("`{}` is missing", self.key(key))))
    }

    pub(super) fn vocabulary(&self) -> Result<usize, EngineError> {
        let named = self.optional("vocab_size", 1 << 21)?;
        let vocabulary = named.or_else(|| Some(self.file.header().texts("tokenizer.ggml.tokens")?.len())).unwrap_or(0);
        if (1..=1 << 21).contains(&vocabulary) {
            return Ok(vocabulary);
        }
        Err(self.file.damaged(&format!("it has {vocabulary} tokens")))
    }

    /// A base of rotation, which must be possible.
    pub(super) fn rope_base(&self, key: &str, default: f64) -> Result<f64, EngineError> {
        let base = self.float(key).unwrap_or(default);
        if (1.0..=1e12).contains(&base) {
            return Ok(base);
        }
        Err(self.file.damaged(&format!("`{}` is {base}, which is not possible", self.key(key))))
    }

    /// The rotation of layers that see everything, slowed down as the file says.
    fn rope(&self, shape: &Shape, pairing: Pairing) -> Result<Rope, EngineError> {
        let base = self.rope_base("rope.freq_base", 10_000.0)?;
        let rope = Rope::new(pairing, shape.head_width, base);
        let pairs = shape.head_width / 2;
        let factors = if self.file.has("rope_freqs.weight") {
            self.file.vector("rope_freqs.weight", pairs)?.to_vec1()?
        } else if let Some(factors) = self.file.header().floats(&self.key("rope.factors")) {
            factors.to_vec()
        } else {
            vec![self.linear_factor()?; pairs]
        };
        if factors.len() != pairs || factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return Err(self.file.damaged("its rotations are slowed down by impossible factors"));
        }
        Ok(rope.slowed(&factors))
    }

    fn linear_factor(&self) -> Result<f32, EngineError> {
        match self.file.header().text(&self.key("rope.scaling.type")) {
            None | Some("none") => Ok(1.0),
            Some("linear") => {
                let factor = self.float("rope.scaling.factor");
                factor.map(|factor| factor as f32).ok_or_else(|| self.file.damaged("its rotations' factor is missing"))
            }
            Some(other) => Err(EngineError::Unsupported(format!("rotary positions scaled by `{other}`"))),
        }
    }

    /// Variants that would compute something else without any error.
    fn refuse_variants(&self) -> Result<(), EngineError> {
        if self.file.header().integer(&self.key("expert_count")).is_some_and(|experts| experts > 0) {
            return Err(EngineError::Unsupported("a mixture of experts".to_owned()));
        }
        Ok(())
    }
}
