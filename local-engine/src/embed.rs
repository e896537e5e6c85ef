//! Texts to vectors: an encoder and its tokenizer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;
use tokio::sync::Semaphore;

use crate::device;
use crate::error::EngineError;
use crate::model::bert::Bert;
use crate::options::DeviceChoice;
use crate::tokenizer::{Tokenizer, Unencoded};
use crate::weights::WeightFile;

/// Texts of one request at most, and their tokens together. Source: the OpenAI API reference, "Create embeddings".
pub(crate) const TEXTS_MAX: usize = 2048;
const TOKENS_MAX: usize = 300_000;
/// Tokens that are worked on at a time: more would only take more memory.
const PIECE_TOKENS: usize = 2048;
/// Requests that may wait or be worked on.
const REQUESTS_MAX: usize = 64;
/// Whom there was no place for is told to come back after so long at most.
const RETRY_AFTER_SECONDS_MAX: u64 = 60;
/// Tokens around every text.
const BEGIN: &str = "[CLS]";
const END: &str = "[SEP]";
/// How many those are.
const AROUND: usize = 2;

/// An embedding model that is ready. Each request is computed by itself, in the order in which they came.
pub struct Embedder {
    name: String,
    bert: Bert,
    tokenizer: Tokenizer,
    /// Around every text.
    begin: u32,
    end: u32,
    /// Tokens of a text at most, with those around it.
    tokens_max: usize,
    /// One request computes at a time.
    turn: Arc<Semaphore>,
    places: Arc<Semaphore>,
    /// What a request takes, smoothed; 0 before the first one.
    took_ms: AtomicU64,
}

/// The vectors of a request's texts, and how many tokens the texts have.
#[derive(Debug, PartialEq)]
pub(crate) struct Embedded {
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) tokens: usize,
}

/// Whether the model of a file or folder makes vectors of texts. Reads its header.
///
/// # Errors
/// [`EngineError::Io`] or [`EngineError::Damaged`].
pub fn makes_embeddings(path: &Path) -> Result<bool, EngineError> {
    Ok(is_encoder(&WeightFile::open(path, &Device::Cpu)?))
}

fn is_encoder(file: &WeightFile) -> bool {
    file.header().text("general.architecture") == Some("bert")
}

impl Embedder {
    /// Reads a model, which is served as `name`. Takes a moment: not for an async task.
    ///
    /// # Errors
    /// [`EngineError::Io`], [`EngineError::Damaged`] or [`EngineError::Unsupported`] say what is wrong with its files.
    pub fn load(path: &Path, name: &str, choice: DeviceChoice) -> Result<Self, EngineError> {
        let (device, begun) = (device::choose(choice), Instant::now());
        let file = WeightFile::open(path, &device)?;
        if !is_encoder(&file) {
            return Err(EngineError::Unsupported("embeddings by a model that is not an encoder".to_owned()));
        }
        let bert = Bert::load(&file)?;
        let tokenizer = Tokenizer::load(&file)?;
        let special = |name: &str| {
            tokenizer.control(name).ok_or_else(|| file.damaged(&format!("its tokenizer has no token `{name}`")))
        };
        let (begin, end) = (special(BEGIN)?, special(END)?);
        let tokens_max = file.sentence_tokens_max().unwrap_or(usize::MAX).min(bert.positions());
        let took_ms = begun.elapsed().as_millis();
        tracing::info!(model = name, device = device::describe(&device), bytes = file.bytes(), took_ms, "model loaded");
        Ok(Self {
            name: name.to_owned(),
            bert,
            begin,
            end,
            tokens_max,
            tokenizer,
            turn: Arc::new(Semaphore::new(1)),
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
            took_ms: AtomicU64::new(0),
        })
    }

    /// The name that the model is served under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The vectors of a few texts, computed on this thread.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: a text is longer than the model takes.
    pub fn vectors(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EngineError> {
        Ok(self.compute(texts)?.vectors)
    }

    /// Numbers of a vector.
    pub(crate) fn width(&self) -> usize {
        self.bert.width()
    }

    /// Requests that are computed, and that wait.
    pub(crate) fn load_now(&self) -> (usize, usize) {
        let running = 1 - self.turn.available_permits().min(1);
        let all = REQUESTS_MAX - self.places.available_permits().min(REQUESTS_MAX);
        (running, all.saturating_sub(running))
    }

    /// The vectors of texts; each has length 1.
    pub(crate) async fn embed(self: &Arc<Self>, texts: Vec<String>) -> Result<Embedded, EngineError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| self.full())?;
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|_| EngineError::Stopped)?;
        let embedder = Arc::clone(self);
        let computing = tokio::task::spawn_blocking(move || {
            // Kept until the computing ends, even if the client goes away meanwhile.
            let _held = (place, turn);
            let begun = Instant::now();
            let embedded = embedder.compute(&texts);
            let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let before = embedder.took_ms.load(Ordering::Relaxed);
            let smoothed = if before == 0 { took_ms } else { (before / 4 * 3).saturating_add(took_ms / 4) };
            embedder.took_ms.store(smoothed, Ordering::Relaxed);
            embedded
        });
        computing.await.map_err(|_| EngineError::Stopped)?
    }

    fn full(&self) -> EngineError {
        let each = Duration::from_millis(self.took_ms.load(Ordering::Relaxed));
        let seconds = each.as_secs().clamp(1, RETRY_AFTER_SECONDS_MAX);
        EngineError::QueueFull { retry_after: Duration::from_secs(seconds), wait: each * REQUESTS_MAX as u32 }
    }

    fn compute(&self, texts: &[String]) -> Result<Embedded, EngineError> {
        let ids = self.tokenize(texts)?;
        let tokens = ids.iter().map(Vec::len).sum();
        let mut vectors = Vec::with_capacity(ids.len());
        let mut piece: Vec<Vec<u32>> = Vec::new();
        for text in ids {
            let piece_tokens: usize = piece.iter().map(Vec::len).sum();
            if !piece.is_empty() && piece_tokens + text.len() > PIECE_TOKENS {
                vectors.extend(self.bert.embed(&std::mem::take(&mut piece))?);
            }
            piece.push(text);
        }
        vectors.extend(self.bert.embed(&piece)?);
        Ok(Embedded { vectors, tokens })
    }

    fn tokenize(&self, texts: &[String]) -> Result<Vec<Vec<u32>>, EngineError> {
        let mut all = 0;
        let mut ids = Vec::with_capacity(texts.len());
        for (at, text) in texts.iter().enumerate() {
            let mut of_text = vec![self.begin];
            // A text that spells a special token does not become one.
            let own_max = self.tokens_max.saturating_sub(AROUND);
            let found = self.tokenizer.encode_without_begin(&self.tokenizer.guard(text), own_max);
            of_text.extend(found.map_err(|unencoded| self.refusal(at, &unencoded))?);
            of_text.push(self.end);
            all += of_text.len();
            if all > TOKENS_MAX {
                let message = format!("The texts have more than {TOKENS_MAX} tokens together.");
                return Err(EngineError::invalid("input", message));
            }
            ids.push(of_text);
        }
        Ok(ids)
    }

    fn refusal(&self, at: usize, unencoded: &Unencoded) -> EngineError {
        let Unencoded::TooMany { tokens } = unencoded else {
            return EngineError::invalid("input", format!("Text {at}: {}", unencoded.in_words()));
        };
        let (tokens, tokens_max) = (tokens + AROUND, self.tokens_max);
        let message = format!(
            "Text {at} has {tokens} tokens or more, and this model takes {tokens_max} at most. Please shorten it."
        );
        let param = Some("input".to_owned());
        EngineError::Invalid { message, param, code: Some("context_length_exceeded") }
    }
}

#[cfg(test)]
mod tests;
