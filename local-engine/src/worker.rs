//! The one thread that owns the model: takes requests, works step by step, gives out text.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::batch::Batch;
use crate::engine::Shared;
use crate::error::EngineError;
use crate::kv_pool::{BLOCK_TOKENS, BlockTable, KvPool};
use crate::model::{self, Model};
use crate::rates::{Average, Rates};
use crate::sampler::Sampler;
use crate::scheduler::{Bounds, PREFILL_CHUNK_TOKENS, Scheduler, SequenceId, Step, Work};
use crate::sequence::{FinishReason, GenerationEvent, Submission, Usage};
use crate::text_stream::TextStream;
use crate::tokenizer::Tokenizer;

/// Tokens generated to measure the speed before the first request.
const WARM_UP_TOKENS: usize = 4;
/// How often the worker looks whether an arriving request is there, while it waits for one.
const GATHER_POLL: Duration = Duration::from_millis(1);

/// What the worker tells of itself after every step.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Status {
    pub(crate) running: usize,
    pub(crate) queued_prompt_tokens: usize,
    pub(crate) cache_tokens_reserved: usize,
    pub(crate) cache_tokens_max: usize,
    /// Tokens a second.
    pub(crate) prefill_rate: f64,
    /// Tokens a second, all sequences together.
    pub(crate) decode_rate: f64,
    /// From submission to the first token, smoothed, in milliseconds.
    pub(crate) first_token_ms: f64,
    pub(crate) totals: Totals,
}

/// Sums since the engine began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) stopped: u64,
    pub(crate) at_length: u64,
    pub(crate) cancelled: u64,
    pub(crate) failed: u64,
}

pub(crate) struct Worker {
    model: Box<dyn Model>,
    tokenizer: Arc<Tokenizer>,
    kv: KvPool,
    bounds: Bounds,
    max_wait: Duration,
    scheduler: Scheduler,
    sequences: HashMap<SequenceId, Sequence>,
    next_id: SequenceId,
    rates: Rates,
    first_token_ms: Average,
    totals: Totals,
}

struct Sequence {
    submission: Submission,
    table: BlockTable,
    sampler: Sampler,
    text: TextStream,
    /// The token drawn last, which the next step works on.
    last: u32,
    generated: usize,
}

impl Worker {
    pub(crate) fn new(
        model: Box<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        kv: KvPool,
        bounds: Bounds,
        max_wait: Duration,
    ) -> Self {
        Self {
            model,
            tokenizer,
            kv,
            bounds,
            max_wait,
            scheduler: Scheduler::new(bounds),
            sequences: HashMap::new(),
            next_id: 0,
            rates: Rates::default(),
            first_token_ms: Average::default(),
            totals: Totals::default(),
        }
    }

    /// One chunk of prefill and a few tokens: brings the weights into memory and measures the speed, so that the
    /// gateway can predict from the first request on.
    pub(crate) fn warm_up(&mut self, context_tokens: usize) -> Result<(), EngineError> {
        let chunk = PREFILL_CHUNK_TOKENS.min(context_tokens - 1);
        let decode = WARM_UP_TOKENS.min(context_tokens - chunk);
        let prompt = vec![0; chunk];
        // The first run pays for memory that is touched first; the second one measures.
        let mut once = BlockTable::default();
        self.forward_alone(&mut once, &[0])?;
        self.kv.clear(&mut once);
        let mut table = BlockTable::default();
        for (tokens, is_prefill) in
            std::iter::once((prompt.as_slice(), true)).chain((0..decode).map(|_| (&[0][..], false)))
        {
            let begun = Instant::now();
            self.forward_alone(&mut table, tokens)?;
            let (prefill, decode) = if is_prefill { (tokens.len(), 0) } else { (0, tokens.len()) };
            self.rates.add_step(prefill, decode, begun.elapsed());
        }
        self.kv.clear(&mut table);
        Ok(())
    }

    fn forward_alone(&mut self, table: &mut BlockTable, tokens: &[u32]) -> Result<(), EngineError> {
        let mut batch = Batch::default();
        if !self.kv.reserve(table, tokens.len())? {
            return Err(EngineError::Unsupported("more memory than there is for the KV cache".to_owned()));
        }
        batch.push(tokens, table, 1);
        model::logits(self.model.as_ref(), &batch, &mut self.kv)?;
        table.advance(tokens.len());
        Ok(())
    }

    /// Works until the engine is dropped.
    pub(crate) fn run(mut self, inbox: &Receiver<Submission>, shared: &Shared, publish: &watch::Sender<Status>) {
        // Also when a panic ends this thread: then nobody waits for answers that never come.
        let _stopped = shared.stopped.clone().drop_guard();
        self.publish(publish);
        while self.receive(inbox, shared) {
            self.drop_abandoned();
            let step = self.scheduler.next_step();
            self.publish(publish);
            self.perform(step);
            self.publish(publish);
        }
    }

    /// Takes what has come, and waits if there is nothing else to do; false when the engine is gone.
    fn receive(&mut self, inbox: &Receiver<Submission>, shared: &Shared) -> bool {
        if self.scheduler.is_idle() {
            let Ok(submission) = inbox.recv() else { return false };
            self.enqueue(submission, shared);
            self.gather(inbox, shared);
        }
        loop {
            match inbox.try_recv() {
                Ok(submission) => self.enqueue(submission, shared),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// From idle: waits for requests that are being tokenised, so that they share the first step.
    fn gather(&mut self, inbox: &Receiver<Submission>, shared: &Shared) {
        let begun = Instant::now();
        while shared.arriving.load(Ordering::Relaxed) > 0
            && self.scheduler.waiting() < self.bounds.running
            && begun.elapsed() < self.max_wait
        {
            match inbox.recv_timeout(GATHER_POLL.min(self.max_wait)) {
                Ok(submission) => self.enqueue(submission, shared),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn enqueue(&mut self, submission: Submission, shared: &Shared) {
        let prompt_tokens = submission.generation.prompt.len();
        shared.inbox_tokens.fetch_sub(prompt_tokens, Ordering::Relaxed);
        let reserved = (prompt_tokens + submission.generation.max_new_tokens).next_multiple_of(BLOCK_TOKENS);
        let id = self.next_id;
        self.next_id += 1;
        if self.scheduler.enqueue(id, prompt_tokens, reserved).is_err() {
            // The engine's places are as many as the scheduler's: a defect, but not one to end the process for.
            self.fail(&submission);
            return;
        }
        let generation = &submission.generation;
        let sequence = Sequence {
            table: BlockTable::default(),
            sampler: Sampler::new(generation.sampling.clone()),
            text: TextStream::new(generation.stop.clone()),
            last: 0,
            generated: 0,
            submission,
        };
        self.sequences.insert(id, sequence);
    }

    /// Ends sequences for whose answer nobody waits any more.
    fn drop_abandoned(&mut self) {
        let (scheduler, totals, kv) = (&mut self.scheduler, &mut self.totals, &mut self.kv);
        self.sequences.retain(|id, sequence| {
            let abandoned = sequence.submission.events.is_closed();
            if abandoned {
                scheduler.remove(*id);
                kv.clear(&mut sequence.table);
                totals.cancelled += 1;
            }
            !abandoned
        });
    }

    fn perform(&mut self, step: Step) {
        let active = step.work.into_iter();
        let mut active: Vec<(SequenceId, Work, Sequence)> =
            active.filter_map(|(id, work)| Some((id, work, self.sequences.remove(&id)?))).collect();
        if active.is_empty() {
            return;
        }
        let begun = Instant::now();
        let logits = self.forward(&mut active);
        self.count(&active, begun.elapsed());
        let mut logits = match logits {
            Ok(logits) => logits.into_iter(),
            Err(error) => {
                tracing::error!(%error, sequences = active.len(), "a step failed");
                for (id, _, mut sequence) in active {
                    self.scheduler.remove(id);
                    self.kv.clear(&mut sequence.table);
                    self.fail(&sequence.submission);
                }
                return;
            }
        };
        for (id, work, mut sequence) in active {
            if !sequence.wants_logits(&work) || self.next_token(&mut sequence, logits.next()) {
                self.sequences.insert(id, sequence);
            } else {
                self.scheduler.remove(id);
                self.kv.clear(&mut sequence.table);
            }
        }
    }

    fn forward(&mut self, active: &mut [(SequenceId, Work, Sequence)]) -> candle_core::Result<Vec<Vec<f32>>> {
        let mut batch = Batch::default();
        for (_, work, sequence) in active.iter_mut() {
            let count = sequence.tokens(work).len();
            if !self.kv.reserve(&mut sequence.table, count)? {
                candle_core::bail!("no KV block is free")
            }
            batch.push(sequence.tokens(work), &sequence.table, usize::from(sequence.wants_logits(work)));
        }
        let logits = model::logits(self.model.as_ref(), &batch, &mut self.kv)?;
        for (_, work, sequence) in active.iter_mut() {
            let count = sequence.tokens(work).len();
            sequence.table.advance(count);
        }
        Ok(logits)
    }

    /// Draws and gives out one token; false if the sequence ends with it.
    fn next_token(&mut self, sequence: &mut Sequence, logits: Option<Vec<f32>>) -> bool {
        let Some(token) = logits.and_then(|mut logits| sequence.sampler.draw(&mut logits)) else {
            tracing::error!("the model's output is not a number");
            self.fail(&sequence.submission);
            return false;
        };
        sequence.generated += 1;
        self.totals.generated_tokens += 1;
        if sequence.generated == 1 {
            self.first_token_ms.add(sequence.submission.submitted.elapsed().as_secs_f64() * 1000.0);
            sequence.send(GenerationEvent::Started);
        }
        if self.tokenizer.is_end(token) {
            self.finish(sequence, FinishReason::Stop);
            return false;
        }
        let shown = sequence.text.push(self.tokenizer.bytes(token));
        sequence.send_text(shown.text);
        if shown.stopped {
            self.end(sequence, FinishReason::Stop);
            return false;
        }
        if sequence.generated >= sequence.submission.generation.max_new_tokens {
            self.finish(sequence, FinishReason::Length);
            return false;
        }
        sequence.last = token;
        true
    }

    /// Ends a sequence with the text that was held back.
    fn finish(&mut self, sequence: &mut Sequence, reason: FinishReason) {
        let rest = sequence.text.finish();
        sequence.send_text(rest);
        self.end(sequence, reason);
    }

    fn end(&mut self, sequence: &Sequence, reason: FinishReason) {
        let usage =
            Usage { prompt_tokens: sequence.submission.generation.prompt.len(), completion_tokens: sequence.generated };
        sequence.send(GenerationEvent::Finished { reason, usage });
        match reason {
            FinishReason::Stop => self.totals.stopped += 1,
            FinishReason::Length => self.totals.at_length += 1,
        }
    }

    fn fail(&mut self, submission: &Submission) {
        self.totals.failed += 1;
        // If nobody listens any more, nobody needs to know.
        let _ = submission.events.try_send(GenerationEvent::Failed);
    }

    fn count(&mut self, active: &[(SequenceId, Work, Sequence)], took: Duration) {
        let (mut prefill, mut decode) = (0, 0);
        for (_, work, _) in active {
            match work {
                Work::Prefill(range) => prefill += range.len(),
                Work::Decode => decode += 1,
            }
        }
        self.totals.prompt_tokens += prefill as u64;
        self.rates.add_step(prefill, decode, took);
    }

    fn publish(&self, publish: &watch::Sender<Status>) {
        publish.send_replace(Status {
            running: self.scheduler.running(),
            queued_prompt_tokens: self.scheduler.queued_prompt_tokens(),
            cache_tokens_reserved: self.scheduler.reserved_tokens(),
            cache_tokens_max: self.bounds.cache_tokens,
            prefill_rate: self.rates.prefill.value(),
            decode_rate: self.rates.decode.value(),
            first_token_ms: self.first_token_ms.value(),
            totals: self.totals,
        });
    }
}

impl Sequence {
    fn tokens(&self, work: &Work) -> &[u32] {
        match work {
            Work::Prefill(range) => self.submission.generation.prompt.get(range.clone()).unwrap_or_default(),
            Work::Decode => std::slice::from_ref(&self.last),
        }
    }

    fn wants_logits(&self, work: &Work) -> bool {
        match work {
            Work::Prefill(range) => range.end == self.submission.generation.prompt.len(),
            Work::Decode => true,
        }
    }

    fn send_text(&self, text: String) {
        if !text.is_empty() {
            self.send(GenerationEvent::Text(text));
        }
    }

    /// There is room for every event; if the receiver is gone, the next step finds out.
    fn send(&self, event: GenerationEvent) {
        let _ = self.submission.events.try_send(event);
    }
}
