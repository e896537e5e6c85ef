//! Against what PyTorch computes: with a tiny random model always, with the real one where it is here.

use candle_core::safetensors::load;

use super::*;
use crate::catalog;

fn oracles() -> std::path::PathBuf {
    crate::testing::manifest_folder().join("tests/oracles")
}

fn compare(embedder: &Embedder, expected: &std::path::Path) {
    let expected: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(expected).unwrap()).unwrap();
    let cases = expected.as_array().unwrap();
    let texts: Vec<String> = cases.iter().map(|case| case["text"].as_str().unwrap().to_owned()).collect();
    let ids = embedder.tokenize(&texts).unwrap();
    for (ids, case) in ids.iter().zip(cases) {
        assert_eq!(serde_json::json!(ids), case["ids"], "{}", case["text"]);
    }
    let embedded = embedder.compute(&texts).unwrap();
    for (vector, case) in embedded.vectors.iter().zip(cases) {
        let theirs: Vec<f32> = case["vector"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        let difference = vector.iter().zip(&theirs).fold(0.0f32, |largest, (a, b)| largest.max((a - b).abs()));
        assert!(vector.len() == theirs.len() && difference < 2e-3, "{}: {difference}", case["text"]);
        let alone = embedder.compute(&[case["text"].as_str().unwrap().to_owned()]).unwrap();
        assert_eq!(&alone.vectors[0], vector, "company changes nothing");
    }
}

#[test]
fn a_tiny_encoder_gives_the_vectors_of_transformers() {
    let tensors = load(oracles().join("bert.expected.safetensors"), &Device::Cpu).unwrap();
    let ids = tensors["ids"].to_vec1::<u32>().unwrap();
    for device in std::iter::once(Device::Cpu).chain(device::gpu()) {
        let bert = Bert::load(&WeightFile::open(&oracles().join("bert"), &device).unwrap()).unwrap();
        let ours = bert.embed(&[ids[..5].to_vec(), ids.clone()]).unwrap();
        for (name, ours) in ["short", "long"].into_iter().zip(ours) {
            let theirs = tensors[name].to_vec1::<f32>().unwrap();
            let difference = ours.iter().zip(&theirs).fold(0.0f32, |largest, (a, b)| largest.max((a - b).abs()));
            eprintln!("{name} on {}: {difference:.1e}", device::describe(&device));
            assert!(difference < 2e-3, "{name}: {difference}");
        }
    }
}

#[test]
fn the_real_model_gives_the_vectors_of_transformers() {
    let Ok(path) = catalog::locate("all-minilm-l6-v2") else {
        eprintln!("skipped: `postern model pull all-minilm-l6-v2` fetches the model");
        return;
    };
    let embedder = Embedder::load(&path, "all-minilm-l6-v2", DeviceChoice::Cpu).unwrap();
    assert_eq!((embedder.width(), embedder.tokens_max), (384, 256));
    compare(&embedder, &crate::testing::manifest_folder().join("tests/golden/all-minilm-l6-v2.json"));
    let long = "word ".repeat(300);
    assert!(embedder.compute(&[long]).unwrap_err().to_string().contains("256 at most"));
}
