//! How fast a model is on this machine: the model alone, without HTTP and sampling.

use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::device;
use crate::error::EngineError;
use crate::kv_pool::{BLOCK_TOKENS, BlockTable, KvFormat, KvPool};
use crate::model::{self, Model};
use crate::options::DeviceChoice;
use crate::sampler::greatest;
use crate::weights::WeightFile;

/// Rounds; the median counts.
const ROUNDS: usize = 3;
/// Tokens of a prompt that are worked on in one step.
const CHUNK_TOKENS: usize = 256;
/// Tokens of the prompt that is measured.
const PROMPT_TOKENS: usize = 512;
/// Tokens of the prompts that answers follow.
const SHORT_PROMPT_TOKENS: usize = 128;
/// Tokens of each answer.
const ANSWER_TOKENS: usize = 32;
/// Streams at a time.
const STREAMS: [usize; 3] = [1, 8, 32];

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// From opening the files to the first answer.
    pub load: Duration,
    /// Tokens of the prompt that was measured.
    pub prompt_tokens: usize,
    /// Tokens of a prompt worked on, a second.
    pub prefill_rate: f64,
    /// For each number of streams at a time: tokens of answers, a second, all streams together.
    pub decode_rates: Vec<(usize, f64)>,
}

/// Loads a model and measures it. `told` gets a line for every part as soon as it is known. Takes minutes on a slow machine.
///
/// # Errors
/// If the model cannot be loaded or computed.
pub fn measure(
    path: &std::path::Path,
    choice: DeviceChoice,
    told: &mut dyn FnMut(String),
) -> Result<Measurement, EngineError> {
    let begun = Instant::now();
    let device = device::choose(choice);
    let file = WeightFile::open(path, &device)?;
    let model = model::load(&file, &mut |_| {})?;
    let bytes = file.bytes();
    drop(file);
    let mut measured = Measured { model: model.as_ref(), device: &device };
    measured.prompted(1, 1)?;
    let load = begun.elapsed();
    let name = device::describe(&device);
    told(format!("{} MB on {name}, ready after {:.2} s", bytes / 1_000_000, load.as_secs_f64()));
    let prompt_tokens = PROMPT_TOKENS.min(model.context_tokens().saturating_sub(1));
    // The first time pays for memory that is touched first.
    measured.prompted(1, prompt_tokens)?;
    let took = median(|| {
        let begun = Instant::now();
        measured.prompted(1, prompt_tokens).map(|_| begun.elapsed())
    })?;
    let prefill_rate = prompt_tokens as f64 / took.as_secs_f64();
    told(format!("prompt of {prompt_tokens} tokens: {prefill_rate:.0} tokens/s"));
    let mut decode_rates = Vec::new();
    for streams in STREAMS {
        let took = median(|| measured.answers(streams))?;
        let rate = (streams * ANSWER_TOKENS) as f64 / took.as_secs_f64();
        told(format!("answers, {streams} at a time: {rate:.0} tokens/s"));
        decode_rates.push((streams, rate));
    }
    Ok(Measurement { device: name, load, prompt_tokens, prefill_rate, decode_rates })
}

struct Measured<'a> {
    model: &'a dyn Model,
    device: &'a candle_core::Device,
}

/// Sequences that are worked on side by side.
struct Sequences {
    pool: KvPool,
    tables: Vec<BlockTable>,
}

impl Measured<'_> {
    /// Sequences whose prompts, of so many tokens, were worked on.
    fn prompted(&mut self, count: usize, tokens: usize) -> Result<Sequences, EngineError> {
        let blocks = count * ((tokens + ANSWER_TOKENS).div_ceil(BLOCK_TOKENS) + 1);
        let pool = KvPool::new(self.model.kv_shape(), KvFormat::F16, blocks, self.device)?;
        let mut sequences = Sequences { pool, tables: (0..count).map(|_| BlockTable::default()).collect() };
        // Small numbers are tokens of every model.
        let prompt: Vec<u32> = (0..tokens).map(|at| 3 + (at * 7919 % 250) as u32).collect();
        for chunk in prompt.chunks(CHUNK_TOKENS) {
            self.step(&mut sequences, &vec![chunk; count])?;
        }
        Ok(sequences)
    }

    fn answers(&mut self, streams: usize) -> Result<Duration, EngineError> {
        let tokens = SHORT_PROMPT_TOKENS.min(self.model.context_tokens().saturating_sub(ANSWER_TOKENS));
        let mut sequences = self.prompted(streams, tokens)?;
        let mut said = vec![5u32; streams];
        let begun = Instant::now();
        for _ in 0..ANSWER_TOKENS {
            let tokens: Vec<&[u32]> = said.iter().map(std::slice::from_ref).collect();
            let logits = self.step(&mut sequences, &tokens)?;
            said = logits.iter().filter_map(|logits| greatest(logits)).collect();
        }
        Ok(begun.elapsed())
    }

    /// The logits after each sequence's tokens.
    fn step(&mut self, sequences: &mut Sequences, tokens: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut batch = Batch::default();
        for (table, tokens) in sequences.tables.iter_mut().zip(tokens) {
            if !sequences.pool.reserve(table, tokens.len())? {
                return Err(EngineError::Options("the model's memory for sequences is too small".to_owned()));
            }
            batch.push(tokens, table, 1);
        }
        let logits = model::logits(self.model, &batch, &mut sequences.pool)?;
        sequences.tables.iter_mut().zip(tokens).for_each(|(table, tokens)| table.advance(tokens.len()));
        Ok(logits)
    }
}

fn median(mut round: impl FnMut() -> Result<Duration, EngineError>) -> Result<Duration, EngineError> {
    let mut rounds = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<_>, _>>()?;
    rounds.sort();
    // Never zero, since it is divided by.
    Ok(rounds.get(ROUNDS / 2).copied().unwrap_or_default().max(Duration::from_nanos(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TinyFile;

    #[test]
    fn a_small_model_is_measured_whole() {
        let file = TinyFile::new(&[]);
        let mut lines = Vec::new();
        let measured = measure(&file.path, DeviceChoice::Cpu, &mut |line| lines.push(line)).unwrap();
        assert_eq!((measured.device, measured.prompt_tokens, lines.len()), ("cpu", 511, 5));
        assert_eq!(measured.decode_rates.iter().map(|(streams, _)| *streams).collect::<Vec<_>>(), STREAMS);
        assert!(measured.prefill_rate > 0.0 && measured.decode_rates.iter().all(|(_, rate)| *rate > 0.0));
    }
}
