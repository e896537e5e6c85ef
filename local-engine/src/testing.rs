//! For tests: a tiny model file, and a model that says what it is told to, in its own time.

use std::ops::Range;
pub(crate) mod random_model;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use tempfile::TempDir;

use crate::batch::Batch;
use crate::chat_template::ChatTemplate;
use crate::engine::Engine;
use crate::kv_pool::{KvPool, KvShape};
use crate::model::{Input, Model, Output};
use crate::options::EngineOptions;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightFile;

pub(crate) const CONTEXT_TOKENS: usize = 512;
/// What the scripted model could take, if the options let it: a prompt of bytes that tells of functions is long.
pub(crate) const SCRIPTED_CONTEXT_TOKENS: usize = 4 * CONTEXT_TOKENS;
/// A message with this breaks the scripted model: its byte is the first one after the control tokens.
pub(crate) const POISON: &str = "\0";
/// A message with this keeps the scripted model busy for longer than any test waits.
pub(crate) const TRAP: &str = "\u{1}";
const TRAPPED_FOR: Duration = Duration::from_secs(600);
/// Control tokens, 256 bytes, and `ab`; pieces follow.
pub(crate) const FIRST_PIECE: u32 = 3 + 256 + 1;
const END: u32 = 2;
const WIDTH: usize = 32;
const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}\
                        {% endfor %}{{ '<|im_start|>assistant\n' }}";

/// Says its pieces one after the other, whatever it is asked, then ends. Panics at [`POISON`], hangs at [`TRAP`].
struct Scripted {
    pieces: u32,
    step_takes: Duration,
}

impl Model for Scripted {
    fn context_tokens(&self) -> usize {
        SCRIPTED_CONTEXT_TOKENS
    }

    fn layers(&self) -> usize {
        1
    }

    fn kv_shape(&self) -> KvShape {
        KvShape { layers: 1, kv_heads: 1, head_width: 2 }
    }

    fn forward(&self, _: Range<usize>, batch: &Batch, _: Input<'_>, _: &mut KvPool) -> candle_core::Result<Output> {
        std::thread::sleep(self.step_takes);
        assert!(!batch.tokens().contains(&3), "poisoned");
        if batch.tokens().contains(&4) {
            std::thread::sleep(TRAPPED_FOR);
        }
        let vocabulary = FIRST_PIECE + self.pieces;
        let mut logits = Vec::new();
        for row in batch.wanted() {
            let next = match batch.tokens()[*row as usize] {
                last if last + 1 == vocabulary => END,
                last if last >= FIRST_PIECE => last + 1,
                _ => FIRST_PIECE,
            };
            logits.extend((0..vocabulary).map(|id| if id == next { 50.0f32 } else { 0.0 }));
        }
        Ok(Output::Logits(Tensor::from_vec(logits, (batch.wanted().len(), vocabulary as usize), &Device::Cpu)?))
    }
}

/// An engine that answers with these pieces; each step takes `step_takes`.
pub(crate) fn scripted_engine(
    pieces: &[&[u8]],
    step_takes: Duration,
    change: impl FnOnce(&mut EngineOptions),
) -> Arc<Engine> {
    let file = TinyFile::new(pieces);
    let mut options = EngineOptions::new(file.path.clone(), "tiny");
    options.context = Some(CONTEXT_TOKENS);
    change(&mut options);
    let weights = WeightFile::open(&file.path, &Device::Cpu).unwrap();
    let tokenizer = Tokenizer::load(&weights).unwrap();
    let template = ChatTemplate::new(TEMPLATE, "", "").unwrap();
    let model = Scripted { pieces: pieces.len() as u32, step_takes };
    Arc::new(Engine::start(&options, tokenizer, template, Box::new(model), &Device::Cpu).unwrap())
}

/// The package's folder. Where this is run from counts, not where it was built: so tests can be carried elsewhere.
pub(crate) fn manifest_folder() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    here.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
}

/// A whole model file with random weights, a few kilobytes large.
pub(crate) struct TinyFile {
    pub(crate) path: PathBuf,
    _folder: TempDir,
}

impl TinyFile {
    pub(crate) fn new(pieces: &[&[u8]]) -> Self {
        Self::with(pieces, |_| {})
    }

    /// With changed metadata.
    pub(crate) fn with(pieces: &[&[u8]], change: impl FnOnce(&mut Vec<(String, Value)>)) -> Self {
        let mut metadata = metadata(pieces);
        change(&mut metadata);
        let tensors = tensors(3 + 256 + 1 + pieces.len());
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        gguf_file::write(&mut std::fs::File::create(&path).unwrap(), &metadata, &tensors).unwrap();
        Self { path, _folder: folder }
    }
}

/// Any byte as GPT-2 shows it.
fn shown(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..byte).filter(|byte| !printable(*byte)).count() as u32;
    if printable(byte) { char::from(byte) } else { char::from_u32(256 + others).unwrap() }
}

fn metadata(pieces: &[&[u8]]) -> Vec<(String, Value)> {
    let text = |text: &str| Value::String(text.to_owned());
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).into();
    tokens.extend((0..=255).map(|byte| shown(byte).to_string()));
    tokens.push("ab".to_owned());
    tokens.extend(pieces.iter().map(|piece| piece.iter().map(|byte| shown(*byte)).collect()));
    let kinds = (0..tokens.len()).map(|id| Value::I32(if id < 3 { 3 } else { 1 })).collect();
    let numbers = [
        ("block_count", 2),
        ("context_length", CONTEXT_TOKENS),
        ("embedding_length", WIDTH),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 8),
    ];
    let mut metadata = vec![
        ("general.architecture".to_owned(), text("llama")),
        ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(1e-5)),
        ("llama.rope.freq_base".to_owned(), Value::F32(10_000.0)),
        ("tokenizer.ggml.model".to_owned(), text("gpt2")),
        ("tokenizer.ggml.pre".to_owned(), text("smollm")),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(END)),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens.into_iter().map(Value::String).collect())),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(kinds)),
        ("tokenizer.ggml.merges".to_owned(), Value::Array(vec![text("a b")])),
        ("tokenizer.chat_template".to_owned(), text(TEMPLATE)),
    ];
    metadata.extend(numbers.map(|(key, number)| (format!("llama.{key}"), Value::U32(number as u32))));
    metadata
}

fn tensors(vocabulary: usize) -> Vec<(String, QTensor)> {
    let mut random = 1u64;
    let mut tensor = |name: String, shape: &[usize]| {
        let numbers: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        let dtype = match (shape.len(), name.as_str()) {
            (1, _) => GgmlDType::F32,
            (_, "token_embd.weight") => GgmlDType::Q8_0,
            _ => GgmlDType::Q4_1,
        };
        let dense = Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
        (name, QTensor::quantize(&dense, dtype).unwrap())
    };
    let mut tensors = vec![
        tensor("token_embd.weight".to_owned(), &[vocabulary, WIDTH]),
        tensor("output_norm.weight".to_owned(), &[WIDTH]),
    ];
    for layer in 0..2 {
        let parts: [(&str, &[usize]); 9] = [
            ("attn_norm", &[WIDTH]),
            ("attn_q", &[WIDTH, WIDTH]),
            ("attn_k", &[16, WIDTH]),
            ("attn_v", &[16, WIDTH]),
            ("attn_output", &[WIDTH, WIDTH]),
            ("ffn_norm", &[WIDTH]),
            ("ffn_gate", &[64, WIDTH]),
            ("ffn_up", &[64, WIDTH]),
            ("ffn_down", &[WIDTH, 64]),
        ];
        tensors.extend(parts.map(|(part, shape)| tensor(format!("blk.{layer}.{part}.weight"), shape)));
    }
    tensors
}
