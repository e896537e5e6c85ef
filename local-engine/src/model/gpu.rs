//! The same models on a GPU: they must say what they say on the CPU. Skipped where there is none.
#![allow(clippy::print_stdout, reason = "measurements are the result")]

use std::path::PathBuf;

use candle_core::Device;
use candle_core::quantized::GgmlDType;

use super::{Model, logits};
use crate::batch::Batch;
use crate::engine::Engine;
use crate::kv_pool::{BLOCK_TOKENS, BlockTable, KvFormat, KvPool};
use crate::measure::measure;
use crate::options::{DeviceChoice, EngineOptions};
use crate::origin::Origin;
use crate::sampler::greatest;
use crate::sequence::{Generation, GenerationEvent, Sampling};
use crate::testing::random_model::RandomModel;
use crate::weights::WeightFile;

const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gemma3"];
const TYPES: [GgmlDType; 9] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
    GgmlDType::F16,
    GgmlDType::BF16,
];
const ANSWER_TOKENS: usize = 16;

fn load(file: &std::path::Path, device: &Device) -> Box<dyn Model> {
    super::load(&WeightFile::open(file, device).unwrap(), &mut |_| {}).unwrap()
}

/// Some sequences that are worked on side by side.
struct Sequences<'a> {
    model: &'a dyn Model,
    pool: KvPool,
    tables: Vec<BlockTable>,
}

impl<'a> Sequences<'a> {
    fn new(model: &'a dyn Model, count: usize, tokens: usize, device: &Device) -> Self {
        let blocks = count * (tokens.div_ceil(BLOCK_TOKENS) + 1);
        let pool = KvPool::new(model.kv_shape(), KvFormat::F16, blocks, device).unwrap();
        Self { model, pool, tables: (0..count).map(|_| BlockTable::default()).collect() }
    }

    /// The logits after each sequence's tokens.
    fn step(&mut self, tokens: &[&[u32]]) -> Vec<Vec<f32>> {
        let mut batch = Batch::default();
        for (table, tokens) in self.tables.iter_mut().zip(tokens) {
            assert!(self.pool.reserve(table, tokens.len()).unwrap());
            batch.push(tokens, table, 1);
        }
        let result = logits(self.model, &batch, &mut self.pool).unwrap();
        self.tables.iter_mut().zip(tokens).for_each(|(table, tokens)| table.advance(tokens.len()));
        result
    }
}

fn prompt(at: usize, tokens: usize, vocabulary: usize) -> Vec<u32> {
    (0..tokens).map(|token| (3 + (token * 7919 + at * 104_729) % (vocabulary - 3)) as u32).collect()
}

/// The logits of three sequences of different lengths, given what they say.
fn along(model: &dyn Model, said: &mut Vec<Vec<u32>>, device: &Device) -> Vec<Vec<f32>> {
    let prompts: Vec<Vec<u32>> = [40, 7, 21].iter().enumerate().map(|(at, tokens)| prompt(at, *tokens, 512)).collect();
    let mut sequences = Sequences::new(model, prompts.len(), 64, device);
    let mut all = sequences.step(&prompts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for step in 0..ANSWER_TOKENS {
        if said.len() == step {
            said.push(all[all.len() - prompts.len()..].iter().map(|logits| greatest(logits).unwrap()).collect());
        }
        let tokens: Vec<&[u32]> = said[step].iter().map(std::slice::from_ref).collect();
        all.extend(sequences.step(&tokens));
    }
    all
}

#[test]
fn quantised_models_say_on_a_gpu_what_they_say_on_the_cpu() {
    let gpu = match crate::device::gpu() {
        Ok(gpu) => gpu,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (architecture, dtype) in ARCHITECTURES.iter().flat_map(|name| TYPES.map(|dtype| (*name, dtype))) {
        let file = folder.path().join("model.gguf");
        RandomModel::small(architecture, dtype).write(&file).unwrap();
        let mut said = Vec::new();
        let on_cpu = along(load(&file, &Device::Cpu).as_ref(), &mut said, &Device::Cpu);
        let on_gpu = along(load(&file, &gpu).as_ref(), &mut said, &gpu);
        let (mut differences, mut squares, mut same, mut explained) = (0.0f64, 0.0f64, 0, true);
        for (cpu, gpu) in on_cpu.iter().zip(&on_gpu) {
            let difference = cpu.iter().zip(gpu).fold(0.0f32, |largest, (a, b)| largest.max((a - b).abs()));
            differences += cpu.iter().zip(gpu).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            squares += cpu.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let (ours, theirs) = (greatest(cpu).unwrap() as usize, greatest(gpu).unwrap() as usize);
            same += usize::from(ours == theirs);
            // Where they choose otherwise, the two were closer than the rounding of inputs to eight bits.
            explained &= cpu[ours] - cpu[theirs] <= 2.0 * difference;
        }
        // Inputs are rounded to eight bits on the CPU, and on the GPU for some types only.
        let share = (differences / squares).sqrt();
        eprintln!(
            "{architecture} {dtype:?}: {same} of {} choices are the same; logits differ by {:.2} % of their size",
            on_cpu.len(),
            share * 100.0
        );
        // Not a number is not below it either.
        if !(explained && share < 0.05 && same * 10 >= on_cpu.len() * 9) {
            wrong.push(format!("{architecture} {dtype:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn an_engine_on_a_gpu_answers_many_at_a_time() {
    if let Err(reason) = crate::device::gpu() {
        return eprintln!("skipped: {reason}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    RandomModel::small("qwen3", GgmlDType::Q8_0).write(&file).unwrap();
    let mut options = EngineOptions::new(file, "random");
    // Far fewer blocks than all sequences need: some must wait for others.
    options.max_batch_size = 8;
    options.kv_bytes = 1 << 20;
    let engine = Engine::load(&options, &mut |_| {}).unwrap();
    let answers: Vec<_> = (0..24)
        .map(|number| {
            let generation = Generation {
                prompt: prompt(number, 20 + number, 512),
                max_new_tokens: 40,
                stop: Vec::new(),
                sampling: Sampling { temperature: 0.0, ..Sampling::default() },
                origin: Origin::default(),
            };
            engine.submit(generation).unwrap()
        })
        .collect();
    let mut tokens = 0;
    for (number, mut events) in answers.into_iter().enumerate() {
        let usage = loop {
            match events.blocking_recv().unwrap() {
                GenerationEvent::Finished { usage, .. } => break usage,
                GenerationEvent::Failed | GenerationEvent::Unspellable { .. } => panic!("answer {number} failed"),
                _ => {}
            }
        };
        assert_eq!(usage.prompt_tokens, 20 + number);
        tokens += usage.completion_tokens;
    }
    eprintln!("{} answers of {tokens} tokens; {:?}", 24, engine.load_now().status);
}

/// Shapes of SmolLM2 135M, Llama 3.2 1B and Llama 3.1 8B.
fn shapes() -> [(&'static str, RandomModel); 3] {
    let llama = RandomModel { vocabulary: 128_256, context: 8192, ..RandomModel::small("llama", GgmlDType::Q4K) };
    [
        (
            "135M Q4_1",
            RandomModel {
                dtype: GgmlDType::Q4_1,
                layers: 30,
                width: 576,
                hidden_width: 1536,
                heads: 9,
                kv_heads: 3,
                head_width: 64,
                vocabulary: 49_152,
                ..llama
            },
        ),
        (
            "1B Q4_K",
            RandomModel {
                layers: 16,
                width: 2048,
                hidden_width: 8192,
                heads: 32,
                kv_heads: 8,
                head_width: 64,
                ..llama
            },
        ),
        (
            "8B Q4_K",
            RandomModel {
                layers: 32,
                width: 4096,
                hidden_width: 14_336,
                heads: 32,
                kv_heads: 8,
                head_width: 128,
                ..llama
            },
        ),
    ]
}

#[test]
#[ignore = "measures, and writes gigabytes: run by hand, by name, where there is a GPU"]
fn measure_on_a_gpu() {
    crate::device::gpu().unwrap();
    let folder = std::env::var_os("POSTERN_MEASURE_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    for (name, shape) in shapes() {
        let file = folder.join("postern-measure.gguf");
        shape.write(&file).unwrap();
        measure(&file, DeviceChoice::Auto, &mut |line| eprintln!("{name}: {line}")).unwrap();
        std::fs::remove_file(&file).unwrap();
    }
}
