//! On a tiny model with random weights: company and cuts change nothing, and damaged files are refused.

use candle_core::quantized::gguf_file::Value;
use proptest::prelude::*;

use super::*;
use crate::kv_cache::KvCache;
use crate::testing::TinyFile;

fn model_of(file: &TinyFile) -> std::result::Result<Llama, EngineError> {
    Llama::load(&WeightFile::open(&file.path, &Device::Cpu)?, &mut |_| {})
}

fn cache(model: &Llama) -> KvCache {
    KvCache::new(model.cache_shape(), 400, &Device::Cpu)
}

/// Logits after each cut of a sequence that runs alone.
fn alone(model: &Llama, tokens: &[u32], cuts: &[usize]) -> Vec<Vec<f32>> {
    let mut cache = cache(model);
    let mut begin = 0;
    let mut all = Vec::new();
    for end in cuts {
        let segment = Segment { tokens: &tokens[begin..*end], cache: &mut cache, wants_logits: true };
        all.extend(model.forward(&mut [segment]).unwrap());
        begin = *end;
    }
    all
}

fn greatest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_step_of_many_sequences_computes_what_each_gets_alone() {
    let model = model_of(&TinyFile::new(&[])).unwrap();
    let (a, b, c): (Vec<u32>, Vec<u32>, Vec<u32>) = ((3..40).collect(), (50..53).collect(), (100..164).collect());
    let mut caches = [cache(&model), cache(&model), cache(&model)];
    let mut together = |parts: [&[u32]; 3], wants: [bool; 3]| {
        let segments = caches.iter_mut().zip(parts).zip(wants);
        let mut batch: Vec<_> =
            segments.map(|((cache, tokens), wants_logits)| Segment { tokens, cache, wants_logits }).collect();
        model.forward(&mut batch).unwrap()
    };
    assert!(together([&a[..30], &b[..1], &c[..33]], [false; 3]).is_empty());
    let logits = together([&a[30..31], &b[1..3], &c[33..64]], [true, false, true]);
    assert_eq!(logits.len(), 2);
    assert_eq!(logits[0], alone(&model, &a, &[30, 31])[1]);
    assert_eq!(logits[1], alone(&model, &c, &[33, 64])[1]);
}

#[test]
fn cutting_a_prompt_changes_only_the_last_bits() {
    let model = model_of(&TinyFile::new(&[])).unwrap();
    let tokens: Vec<u32> = (3..103).collect();
    let whole = alone(&model, &tokens, &[100]);
    let cut = alone(&model, &tokens, &[1, 2, 66, 99, 100]);
    assert!(greatest_difference(&whole[0], &cut[4]) < 1e-3);
    assert!(greatest_difference(&cut[4], &cut[3]) > 0.1, "positions and tokens matter");
}

#[test]
fn a_later_token_does_not_change_an_earlier_one() {
    let model = model_of(&TinyFile::new(&[])).unwrap();
    let mut positions_cache = cache(&model);
    let segment = Segment { tokens: &[5, 6, 7], cache: &mut positions_cache, wants_logits: true };
    let mask = model.positions(&[segment]).unwrap().masks.remove(0).unwrap().to_vec2::<f32>().unwrap();
    let hidden = f32::NEG_INFINITY;
    assert_eq!(mask, [[0.0, hidden, hidden], [0.0, 0.0, hidden], [0.0, 0.0, 0.0]]);
}

#[test]
fn a_token_beyond_the_vocabulary_is_an_error() {
    let model = model_of(&TinyFile::new(&[])).unwrap();
    let mut cache = cache(&model);
    let segment = Segment { tokens: &[1_000_000], cache: &mut cache, wants_logits: true };
    assert!(model.forward(&mut [segment]).is_err());
}

#[test]
fn variants_that_would_compute_something_else_are_refused() {
    let text = |text: &str| Value::String(text.to_owned());
    for (key, value, said) in [
        ("general.architecture", text("gemma3"), "the architecture `gemma3`"),
        ("llama.rope.scaling.type", text("yarn"), "scaled rotary positions"),
        ("llama.expert_count", Value::U32(8), "a mixture of experts"),
        ("llama.attention.key_length", Value::U32(128), "key_length"),
    ] {
        let file = TinyFile::with(&[], |metadata| {
            metadata.retain(|(name, _)| name != key);
            metadata.push((key.to_owned(), value));
        });
        let weights = WeightFile::open(&file.path, &Device::Cpu).unwrap();
        let error = crate::model::load(&weights, &mut |_| {}).err().unwrap();
        assert!(matches!(error, EngineError::Unsupported(_)) && error.to_string().contains(said), "{error}");
    }
}

#[test]
fn impossible_numbers_are_refused() {
    for (key, number) in [
        ("llama.embedding_length", u32::MAX),
        ("llama.embedding_length", 31),
        ("llama.block_count", 0),
        ("llama.block_count", 1_000_000),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count_kv", 3),
        ("llama.context_length", 0),
        ("llama.feed_forward_length", 128),
        ("llama.block_count", 3),
    ] {
        let file = TinyFile::with(&[], |metadata| {
            metadata.retain(|(name, _)| name != key);
            metadata.push((key.to_owned(), Value::U32(number)));
        });
        let error = model_of(&file).err().unwrap_or_else(|| panic!("{key} = {number} was accepted"));
        assert!(matches!(error, EngineError::Damaged { .. } | EngineError::Unsupported(_)), "{error}");
        assert!(error.to_string().len() < 400, "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused_with_its_name() {
    let file = TinyFile::new(&[]);
    let bytes = std::fs::read(&file.path).unwrap();
    for end in (0..bytes.len() - 32).step_by(997).chain([0, 3, 4, 24]) {
        std::fs::write(&file.path, &bytes[..end]).unwrap();
        let error = model_of(&file).err().unwrap_or_else(|| panic!("cut at {end} of {}", bytes.len()));
        assert!(matches!(error, EngineError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("tiny.gguf"), "{error}");
    }
}

#[test]
fn what_is_no_model_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = WeightFile::open(folder.path(), &Device::Cpu).err().unwrap();
    assert!(error.to_string().contains("not a file"), "{error}");
    let page = folder.path().join("page.gguf");
    std::fs::write(&page, "<!doctype html><title>404</title>").unwrap();
    let error = WeightFile::open(&page, &Device::Cpu).err().unwrap();
    assert!(error.to_string().contains("does not begin with the letters GGUF"), "{error}");
    let missing = WeightFile::open(&folder.path().join("none"), &Device::Cpu).err().unwrap();
    assert!(matches!(missing, EngineError::Io { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn garbled_files_load_or_are_refused_but_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let file = TinyFile::new(&[]);
        let mut bytes = std::fs::read(&file.path).unwrap();
        // The header is what directs reading; weights may be any numbers.
        let header_bytes = WeightFile::open(&file.path, &Device::Cpu).unwrap().header().data_offset() as usize;
        for (at, byte) in changes {
            let at = at.index(header_bytes);
            bytes[at] = byte;
        }
        std::fs::write(&file.path, &bytes).unwrap();
        if let Ok(weights) = WeightFile::open(&file.path, &Device::Cpu) {
            let _ = crate::tokenizer::Tokenizer::load(&weights);
            if let Ok(model) = crate::model::load(&weights, &mut |_| {}) {
                let mut cache = KvCache::new(model.cache_shape(), 8, &Device::Cpu);
                let _ = model.forward(&mut [Segment { tokens: &[3, 4], cache: &mut cache, wants_logits: true }]);
            }
        }
    }
}
