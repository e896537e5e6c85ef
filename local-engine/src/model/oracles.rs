//! Tiny models with random weights, against what PyTorch computes with them: `tests/oracles/make.py` makes the files.
//! On the CPU, and on a GPU where there is one.

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor};

use super::linear::Features;
use super::{Model, logits};
use crate::batch::Batch;
use crate::device::describe;
use crate::kv_pool::{BlockTable, KvFormat, KvPool};
use crate::weights::WeightFile;

const NAMES: [&str; 5] = ["llama", "llama3", "qwen2", "qwen3", "gemma3"];
/// A cut of the tokens into steps: a prompt in two chunks, then one by one.
const CHUNKS: [usize; 3] = [17, 9, 1];

fn oracles() -> PathBuf {
    crate::testing::manifest_folder().join("tests/oracles")
}

/// The CPU, and the first GPU if this build knows GPUs and the machine has one.
fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    match crate::device::gpu() {
        Ok(gpu) => devices.push(gpu),
        Err(reason) => eprintln!("skipped on a GPU: {reason}"),
    }
    devices
}

/// The logits after each of the tokens, worked on in chunks beside another sequence.
fn logits_along(model: &dyn Model, ids: &[u32], device: &Device) -> Vec<Vec<f32>> {
    let mut pool = KvPool::new(model.kv_shape(), KvFormat::F16, 64, device).unwrap();
    let (mut table, mut other) = (BlockTable::default(), BlockTable::default());
    let mut chunks = CHUNKS.to_vec();
    chunks.extend(std::iter::repeat_n(1, ids.len() - CHUNKS.iter().sum::<usize>()));
    let (mut begin, mut all) = (0, Vec::new());
    for (at, count) in chunks.into_iter().enumerate() {
        let mut batch = Batch::default();
        let company = [7, 8, 9 + at as u32];
        assert!(pool.reserve(&mut other, company.len()).unwrap() && pool.reserve(&mut table, count).unwrap());
        batch.push(&company, &other, 1);
        batch.push(&ids[begin..begin + count], &table, count);
        all.extend(logits(model, &batch, &mut pool).unwrap().split_off(1));
        table.advance(count);
        other.advance(company.len());
        begin += count;
    }
    all
}

fn largest_difference(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    pairs
        .map(|(ours, theirs)| (ours - theirs).abs())
        .fold(0.0, |largest, each| if each > largest || each.is_nan() { each } else { largest })
}

/// The standard deviation of all logits.
fn spread(logits: &[Vec<f32>]) -> f32 {
    let all: Vec<f32> = logits.iter().flatten().copied().collect();
    let mean = all.iter().sum::<f32>() / all.len() as f32;
    (all.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / all.len() as f32).sqrt()
}

fn expected(name: &str) -> (Vec<u32>, Vec<Vec<f32>>) {
    let tensors = load(oracles().join(format!("{name}.expected.safetensors")), &Device::Cpu).unwrap();
    let ids = tensors["ids"].to_vec1::<u32>().unwrap();
    (ids, tensors["logits"].to_vec2().unwrap())
}

/// Compares the logits on all devices; the names of the devices where they differ.
fn compare(name: &str, file: &Path) -> Vec<String> {
    let (ids, theirs) = expected(name);
    let mut wrong = Vec::new();
    for device in devices() {
        let weights = WeightFile::open(file, &device).unwrap();
        let model = super::load(&weights, &mut |_| {}).unwrap();
        let ours = logits_along(model.as_ref(), &ids, &device);
        assert_eq!((ours.len(), ours[0].len()), (theirs.len(), theirs[0].len()));
        let (difference, spread) = (largest_difference(&ours, &theirs), spread(&theirs));
        eprintln!(
            "{name} on {}: logits differ by {difference:.1e} at most, their spread is {spread:.2}",
            describe(&device)
        );
        // Keys and values are kept in half precision here, and in full there.
        if difference.is_nan() || difference >= 1e-2 * spread {
            wrong.push(format!("{name} on {}", describe(&device)));
        }
    }
    wrong
}

#[test]
fn gguf_models_give_the_logits_of_transformers() {
    let wrong: Vec<String> =
        NAMES.iter().flat_map(|name| compare(name, &oracles().join(format!("{name}.gguf")))).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn safetensors_models_give_the_logits_of_transformers() {
    let wrong: Vec<String> = NAMES.iter().flat_map(|name| compare(name, &oracles().join(name))).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_wrong_rotation_would_be_seen() {
    // The comparison is not so wide that a mistake fits into it: the tokens one place off.
    let (ids, theirs) = expected("llama");
    let weights = WeightFile::open(&oracles().join("llama.gguf"), &Device::Cpu).unwrap();
    let model = super::load(&weights, &mut |_| {}).unwrap();
    let mut shifted = ids.clone();
    shifted.rotate_left(1);
    assert!(largest_difference(&logits_along(model.as_ref(), &shifted, &Device::Cpu), &theirs) > 1.0);
}

#[test]
fn all_types_of_weights_are_read_as_llama_cpp_reads_them() {
    let expected = load(oracles().join("formats.expected.safetensors"), &Device::Cpu).unwrap();
    let types = [
        ("F16", GgmlDType::F16),
        ("BF16", GgmlDType::BF16),
        ("Q4_0", GgmlDType::Q4_0),
        ("Q4_1", GgmlDType::Q4_1),
        ("Q5_0", GgmlDType::Q5_0),
        ("Q5_1", GgmlDType::Q5_1),
        ("Q8_0", GgmlDType::Q8_0),
        ("Q4_K", GgmlDType::Q4K),
        ("Q5_K", GgmlDType::Q5K),
        ("Q6_K", GgmlDType::Q6K),
    ];
    for device in devices() {
        let weights = WeightFile::open(&oracles().join("formats.gguf"), &device).unwrap();
        // Row `at` of the identity picks column `at` of the weights; its single 1 is not rounded.
        let identity = Features::new(Tensor::eye(256, DType::F32, &device).unwrap());
        for (name, dtype) in types {
            let theirs = expected[name].to_vec2::<f32>().unwrap();
            let table = weights.matrix(name, 8, 256).unwrap();
            assert_eq!(table.dtype(), dtype);
            let ids = Tensor::arange(0u32, 8, &device).unwrap();
            let rows = table.embedding(&ids).unwrap().to_vec2::<f32>().unwrap();
            assert!(largest_difference(&rows, &theirs) < 1e-5, "{name} as a table on {device:?}");
            let linear = weights.projection(name, 8, 256).unwrap();
            let ours = linear.forward(&identity).unwrap().t().unwrap().to_vec2::<f32>().unwrap();
            let largest = theirs.iter().flatten().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let difference = largest_difference(&ours, &theirs);
            eprintln!("{name} on {}: products differ by {difference:.1e} of {largest:.1} at most", describe(&device));
            assert!(difference < 4e-3 * largest, "{name} as a projection on {device:?}: {difference} of {largest}");
        }
    }
}
