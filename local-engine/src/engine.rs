//! A loaded model and the thread that works on it, as the rest of the process sees them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admission::{Facts, Places, Refused};
use crate::chat_template::{ChatTemplate, Message};
use crate::error::EngineError;
use crate::grammar::{Constraint, Grammar, Grammars};
use crate::kv_pool::{BLOCK_TOKENS, KvFormat, KvPool};
use crate::meters::Meters;
use crate::model::{self, Model};
use crate::options::EngineOptions;
use crate::origin::Origin;
use crate::sequence::{Generation, GenerationEvent, Submission};
use crate::tokenizer::{Tokenizer, Unencoded};
use crate::turns::{Turn, Turns};
use crate::weights::WeightFile;
use crate::worker::{Status, Worker};
use crate::{device, options::thread_environment};

/// Events of a request beside one for each token: it began, the text held back, it ended.
const EXTRA_EVENTS: usize = 3;
/// Enough for references behind references, as many as a schema may have. Only what is used becomes memory.
const GRAMMAR_STACK_BYTES: usize = 256 << 20;
/// How often it is looked whether the worker hangs.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Progress {
    /// Weights are being read; the share that is there, 0 to 1.
    Weights(f64),
    /// A first computation, which also measures the speed.
    WarmUp,
}

/// A loaded model, ready for requests. Dropping it ends its thread after the present step.
pub struct Engine {
    name: String,
    context_tokens: usize,
    tokenizer: Arc<Tokenizer>,
    grammars: Grammars,
    template: ChatTemplate,
    submissions: SyncSender<Submission>,
    places: Places,
    turns: Turns,
    slots: usize,
    hung_after: Duration,
    shared: Arc<Shared>,
    status: watch::Receiver<Status>,
}

/// What the engine and its worker tell each other beside submissions.
#[derive(Default)]
pub(crate) struct Shared {
    /// Requests that are here but not submitted yet.
    pub(crate) arriving: AtomicUsize,
    /// Prompt tokens of submissions that the worker has not taken yet.
    pub(crate) inbox_tokens: AtomicUsize,
    /// When the step began that the worker is at; `None` while it waits for work.
    pub(crate) step_began: Mutex<Option<Instant>>,
    pub(crate) meters: Meters,
    /// The worker has ended.
    pub(crate) stopped: CancellationToken,
}

/// Counts a request as arriving for as long as it lives.
pub(crate) struct Arrival(Arc<Shared>);

/// The present state of an engine, for the gateway's predictions and for metrics.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Load {
    pub(crate) status: Status,
    /// Requests that wait for a free sequence.
    pub(crate) queue_depth: usize,
    /// Prompt tokens before a new request's own.
    pub(crate) queued_prompt_tokens: usize,
    /// How long a new request would wait for a free sequence, before its prompt is read.
    pub(crate) slot_wait: Duration,
}

impl Engine {
    /// Reads a model and starts its thread. Takes seconds: not for an async task.
    ///
    /// # Errors
    /// [`EngineError::Options`], [`EngineError::Io`], [`EngineError::Damaged`] or [`EngineError::Unsupported`] say what
    /// is wrong with the options or the file; [`EngineError::Compute`] if the first computation fails.
    pub fn load(options: &EngineOptions, progress: &mut dyn FnMut(Progress)) -> Result<Self, EngineError> {
        options.check()?;
        warn_about_threads(options);
        let begun = Instant::now();
        let device = device::choose(options.device);
        let file = WeightFile::open(&options.model, &device)?;
        let tokenizer = Tokenizer::load(&file)?;
        let source = file.chat_template();
        let source = source.ok_or_else(|| {
            EngineError::Options(format!(
                "the model in {} has no chat template, so it answers no chats",
                options.model.display()
            ))
        })?;
        let template = tokenizer.chat_template(&file, &source)?;
        let model = model::load(&file, &mut |share| progress(Progress::Weights(share)))?;
        progress(Progress::WarmUp);
        let engine = Self::start(options, tokenizer, template, model, &device)?;
        tracing::info!(
            model = options.name,
            device = device::describe(&device),
            bytes = file.bytes(),
            context_tokens = engine.context_tokens,
            took_ms = begun.elapsed().as_millis(),
            "model loaded"
        );
        Ok(engine)
    }

    /// Starts the worker on a model that is in memory.
    pub(crate) fn start(
        options: &EngineOptions,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        model: Box<dyn Model>,
        device: &candle_core::Device,
    ) -> Result<Self, EngineError> {
        let format = if options.kv_eight_bit { KvFormat::Q8 } else { KvFormat::F16 };
        let blocks = options.kv_bytes / model.kv_shape().block_bytes(format).max(1);
        let context_tokens = context_tokens(options, model.context_tokens(), blocks * BLOCK_TOKENS)?;
        let bounds = options.bounds();
        // On a device all blocks are there from the beginning, so no more than all sequences could ever fill.
        let blocks = blocks.min(options.max_batch_size * (context_tokens.div_ceil(BLOCK_TOKENS) + 1));
        let kv = KvPool::new(model.kv_shape(), format, blocks, device)?;
        let (submissions, inbox) = std::sync::mpsc::sync_channel(bounds.running + bounds.waiting);
        let (tokenizer, shared) = (Arc::new(tokenizer), Arc::new(Shared::default()));
        let meters = shared.meters.clone();
        let mut worker = Worker::new(model, Arc::clone(&tokenizer), kv, options, meters);
        worker.warm_up(context_tokens)?;
        let (publish, status) = watch::channel(worker.status());
        let their_shared = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("engine-worker".to_owned());
        let spawned = thread.spawn(move || worker.run(&inbox, &their_shared, &publish));
        spawned.map_err(|source| EngineError::Io {
            what: "cannot start a thread for",
            path: options.model.clone(),
            source,
        })?;
        let places = Places::new(bounds.running, bounds.waiting);
        let (name, slots, hung_after) = (options.name.clone(), bounds.running, options.hung_after);
        let grammars = Grammars::new(Arc::clone(&tokenizer));
        Ok(Self {
            name,
            context_tokens,
            tokenizer,
            grammars,
            template,
            submissions,
            places,
            turns: Turns::default(),
            slots,
            hung_after,
            shared,
            status,
        })
    }

    /// The name that the model is served under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tokens of prompt and answer together, at most.
    #[must_use]
    pub fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    /// Puts a request in the queue. Its events come out of the receiver; dropping that ends the request within a step.
    ///
    /// # Errors
    /// [`EngineError::ContextLength`], [`EngineError::QueueFull`], [`EngineError::ShareTaken`], or
    /// [`EngineError::Stopped`].
    pub fn submit(&self, generation: Generation) -> Result<mpsc::Receiver<GenerationEvent>, EngineError> {
        self.submit_choices(generation, 1)?.pop().ok_or(EngineError::Stopped)
    }

    /// Asks for several answers to the same prompt, which is computed once if its origin lets it be kept. Each has a place
    /// and a seed of its own; either all get a place, or none.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_choices(
        &self,
        mut generation: Generation,
        choices: usize,
    ) -> Result<Vec<mpsc::Receiver<GenerationEvent>>, EngineError> {
        let prompt_tokens = generation.prompt.len();
        if prompt_tokens == 0 {
            return Err(EngineError::invalid("messages", "The prompt is empty."));
        }
        if prompt_tokens >= self.context_tokens {
            return Err(EngineError::ContextLength { context_tokens: self.context_tokens, prompt_tokens });
        }
        generation.max_new_tokens = generation.max_new_tokens.clamp(1, self.context_tokens - prompt_tokens);
        let place = |_| self.places.take(&generation.origin.identity);
        let places: Result<Vec<_>, _> = (0..choices).map(place).collect();
        let places = places.map_err(|refused| self.refusal(refused, prompt_tokens))?;
        let submitted = Instant::now();
        let prepared = places.into_iter().enumerate().map(|(choice, place)| {
            let (events, receiver) = mpsc::channel(generation.max_new_tokens + EXTRA_EVENTS);
            let sampling = generation.sampling.for_choice(choice);
            let generation = Generation { sampling, ..generation.clone() };
            (Submission { generation, events, submitted, followers: Vec::new(), _place: place }, receiver)
        });
        let (mut submissions, receivers): (Vec<_>, Vec<_>) = prepared.unzip();
        if submissions.is_empty() {
            return Ok(receivers);
        }
        let mut first = submissions.remove(0);
        first.followers = submissions;
        self.shared.inbox_tokens.fetch_add(prompt_tokens, Ordering::Relaxed);
        self.submissions.try_send(first).map_err(|_| EngineError::Stopped)?;
        Ok(receivers)
    }

    /// What an answer must spell, ready for use. Takes milliseconds: not for an async task.
    pub(crate) fn grammar(&self, constraint: &Constraint) -> Result<Grammar, EngineError> {
        // References within references are followed by recursion.
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(GRAMMAR_STACK_BYTES);
        std::thread::scope(|scope| {
            let compiling = thread.spawn_scoped(scope, || self.grammars.compile(constraint));
            compiling.map_err(|_| EngineError::Stopped)?.join().map_err(|_| EngineError::Stopped)?
        })
    }

    /// Waits for a turn to tokenise a prompt and to compile what an answer must spell: few do that at a time, and one of each
    /// identity, so that whoever asks for much waits by himself. Whoever goes away meanwhile costs nothing.
    pub(crate) async fn turn(&self, origin: &Origin) -> Result<Turn, EngineError> {
        self.turns.take(&origin.identity).await.ok_or(EngineError::Stopped)
    }

    /// The prompt of a conversation as token ids, as far as one fits. Takes milliseconds for a long one: not for an async task.
    /// `begun`: what the answer begins with.
    pub(crate) fn tokenize(&self, messages: &[Message], begun: Option<&str>) -> Result<Vec<u32>, EngineError> {
        let guarded = messages.iter().map(|m| Message { role: m.role, content: self.tokenizer.guard(&m.content) });
        let mut rendered = self.template.render(&guarded.collect::<Vec<_>>())?;
        // What the model saw when it had said so much itself.
        rendered.push_str(&begun.map(|begun| self.tokenizer.guard(begun)).unwrap_or_default());
        self.encode(&rendered, "messages")
    }

    /// The tokens of a text that is gone on with as it stands. None of them is a control token but the first, where the model has one.
    pub(crate) fn tokenize_text(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        self.encode(&self.tokenizer.guard(text), "prompt")
    }

    fn encode(&self, rendered: &str, field: &str) -> Result<Vec<u32>, EngineError> {
        let context_tokens = self.context_tokens;
        self.tokenizer.encode(rendered, context_tokens - 1).map_err(|unencoded| match unencoded {
            Unencoded::TooMany { tokens } => EngineError::ContextLength { context_tokens, prompt_tokens: tokens },
            other => EngineError::invalid(field, other.in_words()),
        })
    }

    /// Says that a request is being read: see [`EngineOptions::max_wait`].
    pub(crate) fn arrival(&self) -> Arrival {
        self.shared.arriving.fetch_add(1, Ordering::Relaxed);
        Arrival(Arc::clone(&self.shared))
    }

    /// The present load.
    pub(crate) fn load_now(&self) -> Load {
        let status = self.status.borrow().clone();
        let queue_depth = self.places.taken().saturating_sub(status.running);
        let facts = self.facts(&status);
        let (queued_prompt_tokens, slot_wait) = (facts.queued_prompt_tokens, facts.slot_wait());
        Load { status, queue_depth, queued_prompt_tokens, slot_wait }
    }

    pub(crate) fn meters(&self) -> &Meters {
        &self.shared.meters
    }

    fn facts(&self, status: &Status) -> Facts {
        Facts {
            slots: self.slots,
            taken: self.places.taken(),
            slot_seconds: status.slot_seconds,
            queued_prompt_tokens: status.queued_prompt_tokens + self.shared.inbox_tokens.load(Ordering::Relaxed),
            prefill_rate: status.prefill_rate,
        }
    }

    fn refusal(&self, refused: Refused, prompt_tokens: usize) -> EngineError {
        let facts = self.facts(&self.status.borrow());
        let retry_after = facts.retry_after();
        match refused {
            Refused::Full => EngineError::QueueFull { retry_after, wait: facts.first_token(prompt_tokens) },
            Refused::Share => EngineError::ShareTaken { retry_after },
        }
    }

    /// Resolves when the worker has ended, or hangs (see [`EngineOptions::hung_after`]); it does both only by a defect.
    pub(crate) async fn stopped(&self) {
        tokio::select! {
            () = self.shared.stopped.cancelled() => {}
            () = self.hung() => tracing::error!(after_ms = self.hung_after.as_millis(), "a step of the model does not end"),
        }
    }

    async fn hung(&self) {
        while self.shared.step_took() < self.hung_after {
            tokio::time::sleep(LOOK_EVERY.min(self.hung_after)).await;
        }
    }
}

impl Shared {
    /// Says that the worker begins a step, or has ended one.
    pub(crate) fn at_step(&self, began: Option<Instant>) {
        *self.step_began.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }

    /// How long the worker has been at its present step; zero if it is at none.
    fn step_took(&self) -> Duration {
        let began = *self.step_began.lock().unwrap_or_else(PoisonError::into_inner);
        began.map_or(Duration::ZERO, |began| began.elapsed())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::Relaxed);
    }
}

fn context_tokens(options: &EngineOptions, of_model: usize, cache_tokens: usize) -> Result<usize, EngineError> {
    if let Some(wanted) = options.context.filter(|wanted| *wanted > of_model) {
        let what = format!("a context of {wanted} tokens was asked for, and this model has {of_model}");
        return Err(EngineError::Options(what));
    }
    let context = options.context.unwrap_or(of_model).min(cache_tokens);
    if context < 2 {
        return Err(EngineError::Unsupported("more memory for one token than there is for all".to_owned()));
    }
    Ok(context)
}

fn warn_about_threads(options: &EngineOptions) {
    let Some(threads) = options.threads else { return };
    let missing =
        thread_environment(Some(threads)).iter().any(|(name, value)| std::env::var(name).as_ref() != Ok(value));
    if missing {
        tracing::warn!(
            threads,
            "the number of threads was not set before the process began; candle's own choice is used"
        );
    }
}

#[cfg(test)]
pub(crate) mod tests;
