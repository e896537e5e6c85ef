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

/// Where llama.cpp prefers a token by less than this, in logits, another order of rounding may choose another one: both
/// round activations to eight bits, which moves a margin of these small models by half a unit.
const NEAR_TIE: f64 = 0.8;

fn golden(name: &str) -> Value {
    let file = crate::testing::manifest_folder().join("tests/golden").join(format!("greedy-{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn greedy(model: &dyn Model, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut pool = KvPool::new(model.kv_shape(), KvFormat::F16, 8, &Device::Cpu).unwrap();
    let mut table = BlockTable::default();
    let (mut next, mut said) = (prompt.to_vec(), Vec::new());
    while said.len() < tokens {
        assert!(pool.reserve(&mut table, next.len()).unwrap());
        let mut batch = Batch::default();
        batch.push(&next, &table, 1);
        let token = greatest(&logits(model, &batch, &mut pool).unwrap()[0]).unwrap();
        table.advance(next.len());
        said.push(token);
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
        let encoded = tokenizer.encode_without_begin(&tokenizer.guard(text)).unwrap();
        assert_eq!(encoded, ids(&pair[1]), "{name}: {text:?}");
    }
    let model = super::load(&file, &mut |_| {}).unwrap();
    let mut equal = 0;
    for answer in golden["greedy"].as_array().unwrap() {
        let prompt = answer["prompt"].as_str().unwrap();
        assert_eq!(tokenizer.encode(prompt).unwrap(), ids(&answer["ids"]), "{name}: {prompt:?}");
        let theirs = answer["answer"].as_array().unwrap();
        let ours = greedy(model.as_ref(), &ids(&answer["ids"]), theirs.len());
        let different =
            ours.iter().zip(theirs).position(|(ours, theirs)| u64::from(*ours) != theirs[0].as_u64().unwrap());
        let Some(at) = different else {
            equal += 1;
            continue;
        };
        let margin = theirs[at][2].as_f64().unwrap();
        println!("{name}: {prompt:?} is equal for {at} tokens; there llama.cpp's choice is {margin:.3} ahead");
        assert!(margin < NEAR_TIE, "{name}: {prompt:?} differs at token {at}, where the margin is {margin}");
        assert_eq!(u64::from(ours[at]), theirs[at][1].as_u64().unwrap(), "the runner-up, not just anything");
    }
    println!("{name}: {equal} of {} answers are equal to the end", golden["greedy"].as_array().unwrap().len());
}

#[test]
fn smollm2_says_what_llama_cpp_says() {
    compare("smollm2-135m-instruct", &crate::engine::tests::model_file());
}

#[test]
fn gemma_says_what_llama_cpp_says() {
    match catalog::locate("gemma-3-270m") {
        Ok(path) => compare("gemma-3-270m", &path),
        Err(_) => println!("skipped: `postern model pull gemma-3-270m` fetches the model"),
    }
}
