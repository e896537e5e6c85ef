//! Model files of any architecture, type and size with random weights, written as fast as the disk takes them.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

use candle_core::quantized::GgmlDType;
use half::f16;

/// Where tensors begin: at a multiple of this.
const ALIGNMENT: u64 = 32;
const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}\
                        {% endfor %}{{ '<|im_start|>assistant\n' }}";

/// What the file is to be like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RandomModel {
    pub(crate) architecture: &'static str,
    /// Of all matrices.
    pub(crate) dtype: GgmlDType,
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) hidden_width: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
}

/// A tensor's name, shape (outermost first) and type.
struct Entry {
    name: String,
    shape: Vec<usize>,
    dtype: GgmlDType,
}

impl RandomModel {
    /// Small enough for a test; wide enough for every type.
    pub(crate) fn small(architecture: &'static str, dtype: GgmlDType) -> Self {
        Self {
            architecture,
            dtype,
            layers: 2,
            width: 256,
            hidden_width: 512,
            heads: 4,
            kv_heads: 2,
            head_width: 64,
            vocabulary: 512,
            context: 256,
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let entries = self.entries();
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((entries.len() as u64).to_le_bytes());
        let (metadata, count) = self.metadata();
        header.extend((count as u64).to_le_bytes());
        header.extend(metadata);
        let mut offset = 0u64;
        for entry in &entries {
            text(&mut header, &entry.name);
            header.extend((entry.shape.len() as u32).to_le_bytes());
            entry.shape.iter().rev().for_each(|dimension| header.extend((*dimension as u64).to_le_bytes()));
            header.extend(number_of(entry.dtype).to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset = (offset + entry.bytes() as u64).next_multiple_of(ALIGNMENT);
        }
        header.resize((header.len() as u64).next_multiple_of(ALIGNMENT) as usize, 0);
        out.write_all(&header)?;
        let mut random = Random(88_172_645_463_325_252);
        for entry in &entries {
            entry.write(&mut out, &mut random)?;
            let padding = (entry.bytes() as u64).next_multiple_of(ALIGNMENT) as usize - entry.bytes();
            out.write_all(&vec![0; padding])?;
        }
        out.flush()
    }

    fn entries(&self) -> Vec<Entry> {
        let Self { width, hidden_width, heads, kv_heads, head_width, vocabulary, dtype, .. } = *self;
        let mut entries = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            let dtype = if shape.len() == 1 { GgmlDType::F32 } else { dtype };
            entries.push(Entry { name, shape: shape.to_vec(), dtype });
        };
        add("token_embd.weight".to_owned(), &[vocabulary, width]);
        add("output_norm.weight".to_owned(), &[width]);
        for layer in 0..self.layers {
            let mut part = |name: &str, shape: &[usize]| add(format!("blk.{layer}.{name}"), shape);
            part("attn_norm.weight", &[width]);
            part("attn_q.weight", &[heads * head_width, width]);
            part("attn_k.weight", &[kv_heads * head_width, width]);
            part("attn_v.weight", &[kv_heads * head_width, width]);
            part("attn_output.weight", &[width, heads * head_width]);
            part("ffn_norm.weight", &[width]);
            part("ffn_gate.weight", &[hidden_width, width]);
            part("ffn_up.weight", &[hidden_width, width]);
            part("ffn_down.weight", &[width, hidden_width]);
            if self.architecture == "qwen2" {
                part("attn_q.bias", &[heads * head_width]);
                part("attn_k.bias", &[kv_heads * head_width]);
                part("attn_v.bias", &[kv_heads * head_width]);
            }
            if matches!(self.architecture, "qwen3" | "gemma3") {
                part("attn_q_norm.weight", &[head_width]);
                part("attn_k_norm.weight", &[head_width]);
            }
            if self.architecture == "gemma3" {
                part("post_attention_norm.weight", &[width]);
                part("post_ffw_norm.weight", &[width]);
            }
        }
        entries
    }

    /// The metadata's bytes, and how many entries they are.
    fn metadata(&self) -> (Vec<u8>, usize) {
        let mut out = Vec::new();
        let mut count = 0;
        let mut add = |key: &str, kind: u32, value: &[u8]| {
            text(&mut out, key);
            out.extend(kind.to_le_bytes());
            out.extend(value);
            count += 1;
        };
        let counted = |value: &str| {
            let mut out = Vec::new();
            text(&mut out, value);
            out
        };
        add("general.architecture", 8, &counted(self.architecture));
        for (key, number) in [
            ("block_count", self.layers),
            ("context_length", self.context),
            ("embedding_length", self.width),
            ("feed_forward_length", self.hidden_width),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_width),
            ("attention.value_length", self.head_width),
            ("attention.sliding_window", 16),
        ] {
            add(&format!("{}.{key}", self.architecture), 4, &(number as u32).to_le_bytes());
        }
        let float = |key: &str| format!("{}.{key}", self.architecture);
        add(&float("attention.layer_norm_rms_epsilon"), 6, &1e-5f32.to_le_bytes());
        add(&float("rope.freq_base"), 6, &10_000f32.to_le_bytes());
        add("tokenizer.ggml.model", 8, &counted("gpt2"));
        add("tokenizer.ggml.pre", 8, &counted("smollm"));
        add("tokenizer.chat_template", 8, &counted(TEMPLATE));
        add("tokenizer.ggml.eos_token_id", 4, &0u32.to_le_bytes());
        let mut tokens = [8u32.to_le_bytes().to_vec(), (self.vocabulary as u64).to_le_bytes().to_vec()].concat();
        let names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).into_iter();
        let bytes = (0..=255).map(|byte| super::shown(byte).to_string());
        let others = (0..).map(|number| format!("token{number}"));
        names.chain(bytes).chain(others).take(self.vocabulary).for_each(|token| text(&mut tokens, &token));
        add("tokenizer.ggml.tokens", 9, &tokens);
        let mut kinds = [5u32.to_le_bytes().to_vec(), (self.vocabulary as u64).to_le_bytes().to_vec()].concat();
        (0..self.vocabulary).for_each(|id| kinds.extend((if id < 3 { 3i32 } else { 1 }).to_le_bytes()));
        add("tokenizer.ggml.token_type", 9, &kinds);
        add("tokenizer.ggml.merges", 9, &[8u32.to_le_bytes().to_vec(), 0u64.to_le_bytes().to_vec()].concat());
        (out, count)
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.dtype.block_size() * self.dtype.type_size()
    }

    fn write(&self, out: &mut impl Write, random: &mut Random) -> Result<()> {
        let numbers = self.shape.iter().product::<usize>();
        if self.shape.len() == 1 {
            let middle = if self.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            return (0..numbers).try_for_each(|_| out.write_all(&(middle + 0.2 * random.unit()).to_le_bytes()));
        }
        // So that a product is as large as what it is made from.
        let columns = self.shape.last().copied().unwrap_or(1) as f32;
        let spread = if self.name == "token_embd.weight" { 1.0 } else { columns.sqrt().recip() };
        let blocks = numbers / self.dtype.block_size();
        (0..blocks).try_for_each(|_| out.write_all(&block(self.dtype, spread, random)))
    }
}

/// A block of numbers between about −1.7 and 1.7 times `spread`. Source of the layouts: ggml's `ggml-common.h`.
fn block(dtype: GgmlDType, spread: f32, random: &mut Random) -> Vec<u8> {
    let half = |number: f32| f16::from_f32(number).to_le_bytes().to_vec();
    let number = random.unit() * 1.7 * spread;
    let mut bits = |count: usize| random.bytes(count);
    match dtype {
        GgmlDType::F16 => half(number),
        GgmlDType::BF16 => half::bf16::from_f32(number).to_le_bytes().to_vec(),
        GgmlDType::Q4_0 => [half(spread / 4.6), bits(16)].concat(),
        GgmlDType::Q4_1 => [half(spread / 4.6), half(-7.5 * spread / 4.6), bits(16)].concat(),
        GgmlDType::Q5_0 => [half(spread / 9.2), bits(20)].concat(),
        GgmlDType::Q8_0 => [half(spread / 74.0), bits(32)].concat(),
        // Eight scales and minima of six bits each, then the numbers; a number's mean is half its greatest.
        GgmlDType::Q4K => [half(spread / 145.0), half(spread / 20.0), bits(12), bits(128)].concat(),
        GgmlDType::Q5K => [half(spread / 290.0), half(spread / 20.0), bits(12), bits(160)].concat(),
        GgmlDType::Q6K => [bits(192), bits(16), half(spread / 1360.0)].concat(),
        other => panic!("random blocks of {other:?}"),
    }
}

/// Marsaglia's xorshift, 2003.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From −1 to 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

fn number_of(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::BF16 => 30,
        other => panic!("{other:?}"),
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
