//! On a tiny model with random weights: company and cuts change nothing, and damaged files are refused.

use candle_core::quantized::gguf_file::Value;
use proptest::prelude::*;

use super::*;
use crate::kv_pool::{BlockTable, KvFormat};
use crate::model::logits;
use crate::model::plan::Metadata;
use crate::testing::TinyFile;

fn model_of(file: &TinyFile) -> std::result::Result<Decoder, EngineError> {
    let file = WeightFile::open(&file.path, &Device::Cpu)?;
    let plan = crate::model::llama::plan(&Metadata { file: &file, architecture: "llama" })?;
    Decoder::load(&file, plan, &mut |_| {})
}

fn pool(model: &Decoder) -> KvPool {
    KvPool::new(model.kv_shape(), KvFormat::F16, 40, &Device::Cpu).unwrap()
}

/// One step: for each sequence its tokens, its table, and how many logits it wants.
fn step(model: &Decoder, kv: &mut KvPool, parts: &mut [(&[u32], &mut BlockTable, usize)]) -> Vec<Vec<f32>> {
    let mut batch = Batch::default();
    for (tokens, table, wanted) in parts.iter_mut() {
        assert!(kv.reserve(table, tokens.len()).unwrap());
        batch.push(tokens, table, *wanted);
    }
    let result = logits(model, &batch, kv).unwrap();
    for (tokens, table, _) in parts {
        table.advance(tokens.len());
    }
    result
}

/// Logits after each cut of a sequence that runs alone.
fn alone(model: &Decoder, tokens: &[u32], cuts: &[usize]) -> Vec<Vec<f32>> {
    let (mut kv, mut table) = (pool(model), BlockTable::default());
    let mut begin = 0;
    let mut all = Vec::new();
    for end in cuts {
        all.extend(step(model, &mut kv, &mut [(&tokens[begin..*end], &mut table, 1)]));
        begin = *end;
    }
    all
}

#[test]
fn a_step_of_many_sequences_computes_what_each_gets_alone() {
    let model = model_of(&TinyFile::new(&[])).unwrap();
    let (a, b, c): (Vec<u32>, Vec<u32>, Vec<u32>) = ((3..40).collect(), (50..53).collect(), (100..164).collect());
    let mut kv = pool(&model);
    let mut tables = [BlockTable::default(), BlockTable::default(), BlockTable::default()];
    let mut together = |parts: [&[u32]; 3], wants: [usize; 3]| {
        let parts =
            parts.into_iter().zip(&mut tables).zip(wants).map(|((tokens, table), wanted)| (tokens, table, wanted));
        step(&model, &mut kv, &mut parts.collect::<Vec<_>>())
    };
    assert!(together([&a[..30], &b[..1], &c[..33]], [0; 3]).is_empty());
    let logits = together([&a[30..31], &b[1..3], &c[33..64]], [1, 0, 2]);
    assert_eq!(logits.len(), 3);
    assert_eq!(logits[0], alone(&model, &a, &[30, 31])[1]);
    assert_eq!(logits[1..], alone(&model, &c, &[33, 63, 64])[1..]);
}

#[test]
fn cutting_a_prompt_changes_nothing() {
    let model = model_of(&TinyFile::new(&[])).unwrap();
    let tokens: Vec<u32> = (3..103).collect();
    let whole = alone(&model, &tokens, &[100]);
    let cut = alone(&model, &tokens, &[1, 2, 66, 99, 100]);
    assert_eq!(whole[0], cut[4]);
    assert_ne!(cut[4], cut[3], "positions and tokens matter");
}

#[test]
fn a_pass_in_two_stages_is_the_same_pass() {
    let model = model_of(&TinyFile::new(&[])).unwrap();
    let tokens: Vec<u32> = (3..40).collect();
    let (mut kv, mut table) = (pool(&model), BlockTable::default());
    assert!(kv.reserve(&mut table, tokens.len()).unwrap());
    let mut batch = Batch::default();
    batch.push(&tokens, &table, 1);
    let Ok(Output::Hidden(between)) = model.forward(0..1, &batch, Input::Tokens(batch.tokens()), &mut kv) else {
        panic!("the first of two layers gives no logits");
    };
    assert_eq!(between.dims(), [tokens.len(), 32]);
    let Ok(Output::Logits(logits)) = model.forward(1..2, &batch, Input::Hidden(between), &mut kv) else {
        panic!("the last layer gives logits");
    };
    assert_eq!(logits.to_vec2::<f32>().unwrap(), alone(&model, &tokens, &[tokens.len()]));
}

#[test]
fn a_token_beyond_the_vocabulary_is_an_error() {
    let model = model_of(&TinyFile::new(&[])).unwrap();
    let (mut kv, mut table) = (pool(&model), BlockTable::default());
    assert!(kv.reserve(&mut table, 1).unwrap());
    let mut batch = Batch::default();
    batch.push(&[1_000_000], &table, 1);
    assert!(logits(&model, &batch, &mut kv).is_err());
}

#[test]
fn variants_that_would_compute_something_else_are_refused() {
    let text = |text: &str| Value::String(text.to_owned());
    for (key, value, said) in [
        ("general.architecture", text("mamba"), "the architecture `mamba`"),
        ("llama.rope.scaling.type", text("yarn"), "rotary positions scaled by `yarn`"),
        ("llama.expert_count", Value::U32(8), "a mixture of experts"),
        ("llama.attention.key_length", Value::U32(128), "`rope.dimension_count` other than 128"),
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
    assert!(error.to_string().contains("neither a GGUF file nor a folder"), "{error}");
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
                let mut kv = KvPool::new(model.kv_shape(), KvFormat::F16, 1, &Device::Cpu).unwrap();
                let mut table = BlockTable::default();
                assert!(kv.reserve(&mut table, 2).unwrap());
                let mut batch = Batch::default();
                batch.push(&[3, 4], &table, 1);
                let _ = logits(model.as_ref(), &batch, &mut kv);
            }
        }
    }
}
