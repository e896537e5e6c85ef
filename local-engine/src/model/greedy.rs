//! The real models against what llama.cpp says of the same files: `tests/golden/make.py` makes the answers.

use std::path::Path;

use candle_core::Device;
use serde_json::Value;

use super::{Model, logits};
use crate::batch::Batch;
use crate::catalog;
use crate::kv_pool::{BlockTable, KvFormat, KvPool};
use crate::sampler::greatest;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightFile;

/// Where two tokens are this close, in logits, another order of rounding may choose the other one: both programs round
/// activations to eight bits.
const NEAR_TIE: f32 = 0.4;

fn golden(name: &str) -> Value {
    let file = crate::testing::manifest_folder().join("tests/golden").join(format!("greedy-{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// What the model says, and the logits that it chose each token from.
fn greedy(model: &dyn Model, prompt: &[u32], tokens: usize) -> Vec<(u32, Vec<f32>)> {
    let mut pool = KvPool::new(model.kv_shape(), KvFormat::F16, 8, &Device::Cpu).unwrap();
    let mut table = BlockTable::default();
    let (mut next, mut said) = (prompt.to_vec(), Vec::new());
    while said.len() < tokens {
        assert!(pool.reserve(&mut table, next.len()).unwrap());
        let mut batch = Batch::default();
        batch.push(&next, &table, 1);
        let logits = logits(model, &batch, &mut pool).unwrap().remove(0);
        let token = greatest(&logits).unwrap();
        table.advance(next.len());
        said.push((token, logits));
        next = vec![token];
    }
    said
}

fn compare(name: &str, path: &Path) {
    let golden = golden(name);
    let file = WeightFile::open(path, &Device::Cpu).unwrap();
    let tokenizer = Tokenizer::load(&file).unwrap();
    for pair in golden["texts"].as_array().unwrap() {
        let text = pair[0].as_str().unwrap();
        let encoded = tokenizer.encode_without_begin(&tokenizer.guard(text), usize::MAX).unwrap();
        assert_eq!(encoded, ids(&pair[1]), "{name}: {text:?}");
    }
    let model = super::load(&file, &mut |_| {}).unwrap();
    let mut equal = 0;
    for answer in golden["greedy"].as_array().unwrap() {
        let prompt = answer["prompt"].as_str().unwrap();
        assert_eq!(tokenizer.encode(prompt, usize::MAX).unwrap(), ids(&answer["ids"]), "{name}: {prompt:?}");
        let theirs = answer["answer"].as_array().unwrap();
        let ours = greedy(model.as_ref(), &ids(&answer["ids"]), theirs.len());
        let different =
            ours.iter().zip(theirs).position(|((ours, _), theirs)| u64::from(*ours) != theirs[0].as_u64().unwrap());
        let Some(at) = different else {
            equal += 1;
            continue;
        };
        let ((our_choice, logits), their_choice) = (&ours[at], theirs[at][0].as_u64().unwrap() as usize);
        let (our_gap, their_gap) =
            (logits[*our_choice as usize] - logits[their_choice], theirs[at][2].as_f64().unwrap() as f32);
        eprintln!(
            "{name}: {prompt:?} is equal for {at} tokens; there llama.cpp's choice is {their_gap:.3} ahead of the next \
             one there, and {our_gap:.3} behind ours here"
        );
        assert!(our_gap.max(their_gap) < NEAR_TIE, "{name}: {prompt:?} differs at token {at}");
    }
    eprintln!("{name}: {equal} of {} answers are equal to the end", golden["greedy"].as_array().unwrap().len());
}

#[test]
fn smollm2_says_what_llama_cpp_says() {
    compare("smollm2-135m-instruct", &crate::engine::tests::model_file());
}

#[test]
fn gemma_says_what_llama_cpp_says() {
    match catalog::locate("gemma-3-270m") {
        Ok(path) => compare("gemma-3-270m", &path),
        Err(_) => eprintln!("skipped: `postern model pull gemma-3-270m` fetches the model"),
    }
}
