//! candle's own `quantized_llama` on a GGUF file: a prompt of 512 tokens, and one answer of 64 to a prompt of 8, in tokens a
//! second. It has one position for a whole batch, so several answers at a time are not to be had from it.

use std::error::Error;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{D, Device, Result, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

const PROMPT_TOKENS: u32 = 512;
const SHORT_PROMPT_TOKENS: u32 = 8;
const ANSWER_TOKENS: usize = 64;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: stock-candle MODEL.gguf")?;
    let mut file = std::fs::File::open(path)?;
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    // The first time pays for memory that is touched first.
    answer(&mut model, PROMPT_TOKENS, 1)?;
    let begun = Instant::now();
    answer(&mut model, PROMPT_TOKENS, 1)?;
    let prompt = f64::from(PROMPT_TOKENS) / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    answer(&mut model, SHORT_PROMPT_TOKENS, ANSWER_TOKENS)?;
    let one = ANSWER_TOKENS as f64 / begun.elapsed().as_secs_f64();
    println!(r#"{{"prompt_512": {prompt:.2}, "streams_1": {one:.2}, "streams_8": null, "streams_32": null}}"#);
    Ok(())
}

/// The likeliest token each time. Position 0 makes the model forget what was before.
fn answer(model: &mut ModelWeights, prompt_tokens: u32, answer_tokens: usize) -> Result<()> {
    let mut tokens: Vec<u32> = (0..prompt_tokens).map(|at| 100 + at * 7919 % 40_000).collect();
    let mut position = 0;
    for _ in 0..answer_tokens {
        let logits = model.forward(&Tensor::new(tokens.as_slice(), &Device::Cpu)?.unsqueeze(0)?, position)?;
        position += tokens.len();
        tokens = vec![logits.argmax(D::Minus1)?.squeeze(0)?.to_scalar()?];
    }
    Ok(())
}
