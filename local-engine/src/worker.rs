//! The one thread that owns the model: takes requests, works step by step, gives out text.

mod memory;
mod running;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::batch::Batch;
use crate::engine::Shared;
use crate::error::EngineError;
use crate::kv_pool::{BlockTable, KvPool};
use crate::meters::Meters;
use crate::model::{self, Model};
use crate::options::EngineOptions;
use crate::rates::{Average, PREFILL_TOKENS_MAX, Pace};
use crate::sampler::Undrawn;
use crate::scheduler::{Bounds, Job, Scheduler, SequenceId, Work};
use crate::sequence::{FinishReason, GenerationEvent, Submission, Usage};
use crate::speculation::{self, Guess};
use crate::tokenizer::Tokenizer;
use memory::Memory;
use running::Sequence;

/// Tokens generated to measure the speed before the first request.
const WARM_UP_TOKENS: usize = 4;
/// How often the worker looks whether an arriving request is there, while it waits for one.
const GATHER_POLL: Duration = Duration::from_millis(1);

/// What the worker tells of itself after every step.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Status {
    pub(crate) running: usize,
    pub(crate) queued_prompt_tokens: usize,
    pub(crate) kv_blocks_used: usize,
    pub(crate) kv_blocks_max: usize,
    pub(crate) prefix_blocks: usize,
    /// Prompt tokens a second, beside the answers that are under way.
    pub(crate) prefill_rate: f64,
    /// Tokens a second, all sequences together.
    pub(crate) decode_rate: f64,
    /// Seconds that a sequence keeps its slot, smoothed.
    pub(crate) slot_seconds: f64,
    /// From submission to the first token, smoothed, in milliseconds.
    pub(crate) first_token_ms: f64,
    pub(crate) totals: Totals,
}

/// Sums since the engine began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) prefix_lookup_tokens: u64,
    pub(crate) prefix_hit_tokens: u64,
    pub(crate) preemptions: u64,
    pub(crate) guessed_tokens: u64,
    pub(crate) guessed_right_tokens: u64,
    pub(crate) stopped: u64,
    pub(crate) at_length: u64,
    pub(crate) cancelled: u64,
    pub(crate) failed: u64,
}

pub(crate) struct Worker {
    model: Box<dyn Model>,
    tokenizer: Arc<Tokenizer>,
    memory: Memory,
    bounds: Bounds,
    max_wait: Duration,
    speculation: bool,
    scheduler: Scheduler,
    sequences: HashMap<SequenceId, Sequence>,
    next_id: SequenceId,
    pace: Pace,
    slot_seconds: Average,
    first_token_ms: Average,
    meters: Meters,
    totals: Totals,
}

impl Worker {
    pub(crate) fn new(
        model: Box<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        kv: KvPool,
        options: &EngineOptions,
        meters: Meters,
    ) -> Self {
        let bounds = options.bounds();
        Self {
            model,
            tokenizer,
            memory: Memory::new(kv),
            bounds,
            max_wait: options.max_wait,
            speculation: options.speculation,
            scheduler: Scheduler::new(bounds),
            sequences: HashMap::new(),
            next_id: 0,
            pace: Pace::default(),
            slot_seconds: Average::default(),
            first_token_ms: Average::default(),
            meters,
            totals: Totals::default(),
        }
    }

    /// One chunk of prefill and a few tokens: brings the weights into memory and measures the speed, so that the
    /// gateway can predict from the first request on.
    pub(crate) fn warm_up(&mut self, context_tokens: usize) -> Result<(), EngineError> {
        let chunk = PREFILL_TOKENS_MAX.min(context_tokens - 1);
        let decode = WARM_UP_TOKENS.min(context_tokens - chunk);
        // The first run pays for memory that is touched first; the second one measures.
        let mut once = BlockTable::default();
        self.forward_alone(&mut once, &[0])?;
        self.memory.kv.clear(&mut once);
        let mut table = BlockTable::default();
        let begun = Instant::now();
        self.forward_alone(&mut table, &vec![0; chunk])?;
        self.pace.add_step(chunk, 0, begun.elapsed());
        for _ in 0..decode {
            let begun = Instant::now();
            self.forward_alone(&mut table, &[0])?;
            self.pace.add_step(0, 1, begun.elapsed());
        }
        self.memory.kv.clear(&mut table);
        Ok(())
    }

    fn forward_alone(&mut self, table: &mut BlockTable, tokens: &[u32]) -> Result<(), EngineError> {
        let kv = &mut self.memory.kv;
        if !kv.reserve(table, tokens.len())? {
            return Err(EngineError::Unsupported("more memory than there is for its keys and values".to_owned()));
        }
        let mut batch = Batch::default();
        batch.push(tokens, table, 1);
        model::logits(self.model.as_ref(), &batch, kv)?;
        table.advance(tokens.len());
        Ok(())
    }

    /// Works until the engine is dropped.
    pub(crate) fn run(mut self, inbox: &Receiver<Submission>, shared: &Shared, publish: &watch::Sender<Status>) {
        // Also when a panic ends this thread: then nobody waits for answers that never come.
        let _stopped = shared.stopped.clone().drop_guard();
        while self.receive(inbox, shared) {
            self.drop_abandoned();
            self.admit();
            let budget = self.pace.budget(self.scheduler.decoding());
            let work = self.scheduler.plan(budget);
            self.publish(publish);
            shared.at_step(Some(Instant::now()));
            self.perform(work);
            shared.at_step(None);
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
        shared.inbox_tokens.fetch_sub(submission.generation.prompt.len(), Ordering::Relaxed);
        self.accept(submission);
    }

    fn accept(&mut self, submission: Submission) {
        let generation = &submission.generation;
        let tokens = generation.prompt.len();
        let id = self.next_id;
        self.next_id += 1;
        let origin = &generation.origin;
        let job = Job { id, identity: Arc::clone(&origin.identity), priority: origin.priority, tokens };
        if self.scheduler.enqueue(job).is_err() {
            // The engine's places are as many as the scheduler's: a defect, but not one to end the process for.
            self.fail(&submission);
            return;
        }
        self.sequences.insert(id, Sequence::new(submission));
    }

    /// Ends sequences for whose answer nobody waits any more.
    fn drop_abandoned(&mut self) {
        let abandoned = self.sequences.iter().filter(|(_, sequence)| sequence.submission.events.is_closed());
        for id in abandoned.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.totals.cancelled += 1;
            self.remove(id);
        }
    }

    /// Gives free slots and memory to those that wait, in order, as long as both are there.
    fn admit(&mut self) {
        while let Some(id) = self.scheduler.in_the_way() {
            self.preempt(id);
        }
        while let Some(id) = self.scheduler.candidate() {
            let promised = self.memory.promised(self.sequences.values());
            let Some(sequence) = self.sequences.get_mut(&id) else {
                self.scheduler.remove(id);
                continue;
            };
            if !self.memory.begin(sequence, promised) {
                return;
            }
            let found = sequence.begin();
            self.totals.prefix_lookup_tokens += sequence.tokens.len() as u64;
            self.totals.prefix_hit_tokens += found as u64;
            self.scheduler.admit(id, found);
        }
    }

    /// One step.
    fn perform(&mut self, work: Vec<Work>) {
        let work = self.reserve(work);
        if work.is_empty() {
            return;
        }
        let guesses = self.guesses(&work);
        let begun = Instant::now();
        let logits = self.forward(&work, &guesses);
        let took = begun.elapsed();
        let count = |decode: bool| work.iter().filter(|w| w.is_decode == decode).map(|w| w.count).sum::<usize>();
        let (prefilled, decoding) =
            (count(false), count(true) + guesses.iter().map(|guess| guess.computed).sum::<usize>());
        self.totals.prompt_tokens += prefilled as u64;
        self.pace.add_step(prefilled, decoding, took);
        let generated = self.totals.generated_tokens;
        let mut logits = match logits {
            Ok(logits) => logits.into_iter(),
            Err(error) => {
                tracing::error!(%error, sequences = work.len(), "a step failed");
                return work.iter().for_each(|work| self.fail_running(work.id));
            }
        };
        for (Work { id, count, .. }, guess) in work.into_iter().zip(guesses) {
            let Some(mut sequence) = self.sequences.remove(&id) else { continue };
            sequence.table.advance(count);
            self.scheduler.advance(id, count);
            // All of its rows: what a wrong guess leaves unread is not another sequence's.
            let rows = if sequence.is_computed() { 1 + guess.computed } else { 0 };
            let own: Vec<_> = logits.by_ref().take(rows).collect();
            let goes_on = self.next_tokens(id, &mut sequence, &guess, own);
            self.sequences.insert(id, sequence);
            if !goes_on {
                self.remove(id);
            }
        }
        if prefilled == 0 {
            self.pace.add_answered((self.totals.generated_tokens - generated) as usize, took);
        }
    }

    /// For each sequence that a step works on, the tokens that are guessed to follow, with memory for them. None while a
    /// prompt is read: that takes what time there is.
    fn guesses(&mut self, work: &[Work]) -> Vec<Guess> {
        let mut guesses = vec![Guess::default(); work.len()];
        if !self.speculation || work.iter().any(|work| !work.is_decode) {
            return guesses;
        }
        let mut rows = work.len();
        for (work, guess) in work.iter().zip(&mut guesses) {
            let Some(sequence) = self.sequences.get_mut(&work.id) else { continue };
            *guess = sequence.guess();
            let expected = |rows| self.pace.expected_step(rows);
            let count = speculation::worth(sequence.luck, guess.tokens.len(), rows, expected);
            // Nobody gives way for a guess.
            if count > 0 && matches!(self.memory.reserve(&mut sequence.table, 1 + count), Ok(true)) {
                rows += count;
                guess.computed = count;
            }
        }
        guesses
    }

    /// Makes room for a step. Where there is none, the last in order gives way.
    fn reserve(&mut self, wanted: Vec<Work>) -> Vec<Work> {
        let mut granted: Vec<Work> = Vec::with_capacity(wanted.len());
        for work in wanted {
            while let Some(sequence) = self.sequences.get_mut(&work.id).filter(|sequence| sequence.is_running()) {
                match self.memory.reserve(&mut sequence.table, work.count) {
                    Ok(true) => {
                        granted.push(work);
                        break;
                    }
                    Ok(false) if self.scheduler.running() > 1 => {
                        let last = self.scheduler.last().unwrap_or(work.id);
                        granted.retain(|granted| granted.id != last);
                        self.preempt(last);
                    }
                    Ok(false) => {
                        tracing::error!("a sequence does not fit into the memory for keys and values alone");
                        self.fail_running(work.id);
                    }
                    Err(error) => {
                        tracing::error!(%error, "memory for keys and values cannot be had");
                        self.fail_running(work.id);
                    }
                }
            }
        }
        granted
    }

    fn forward(&mut self, work: &[Work], guesses: &[Guess]) -> candle_core::Result<Vec<Vec<f32>>> {
        let mut batch = Batch::default();
        for (Work { id, count, .. }, guess) in work.iter().zip(guesses) {
            let Some(sequence) = self.sequences.get(id) else { continue };
            let next = [sequence.next(*count), guess.computed()].concat();
            let is_last = sequence.table.tokens() + count == sequence.tokens.len();
            batch.push(&next, &sequence.table, if is_last { 1 + guess.computed } else { 0 });
        }
        model::logits(self.model.as_ref(), &batch, &mut self.memory.kv)
    }

    /// Draws the token that comes next, and for as long as it is the one that was guessed, the one after it; false if the
    /// sequence ends. `logits`: those of the last token and of each guess; none if there are tokens left to compute.
    fn next_tokens(&mut self, id: SequenceId, sequence: &mut Sequence, guess: &Guess, logits: Vec<Vec<f32>>) -> bool {
        if !sequence.is_computed() {
            return true;
        }
        let mut logits = logits.into_iter();
        self.totals.guessed_tokens += guess.computed as u64;
        for at in 0.. {
            if !self.next_token(id, sequence, logits.next()) {
                return false;
            }
            // Whether the first one was right is seen even if nothing was computed for it.
            let Some(guessed) = guess.tokens.get(at).filter(|_| at <= guess.computed) else { break };
            let right = sequence.tokens.last() == Some(guessed);
            sequence.luck.add(right);
            if !right || at >= guess.computed {
                break;
            }
            self.totals.guessed_right_tokens += 1;
            sequence.table.advance(1);
            self.scheduler.advance(id, 1);
        }
        // Room for guesses that were wrong.
        let tokens = sequence.table.tokens();
        self.memory.kv.truncate(&mut sequence.table, tokens);
        true
    }

    /// Draws and gives out one token; false if the sequence ends with it.
    fn next_token(&mut self, id: SequenceId, sequence: &mut Sequence, logits: Option<Vec<f32>>) -> bool {
        let drawn = logits.map_or(Err(Undrawn::Logits), |mut logits| sequence.sampler.draw(&mut logits));
        let token = match drawn {
            Ok(token) => token,
            Err(Undrawn::Logits) => {
                tracing::error!("no token can be drawn: the model's output is not a number");
                // Nor may anybody else begin with it.
                self.memory.kv.clear(&mut sequence.table);
                self.fail(&sequence.submission);
                return false;
            }
            Err(Undrawn::Grammar(param)) => {
                tracing::warn!(param, "an answer ended: what it had to spell needs more work than it may cost");
                self.end_with(&sequence.submission, &GenerationEvent::Unspellable { param });
                return false;
            }
        };
        self.totals.generated_tokens += 1;
        if sequence.generated == 0 {
            self.memory.keep(sequence);
            for follower in std::mem::take(&mut sequence.submission.followers) {
                self.accept(follower);
            }
            let waited = sequence.submission.submitted.elapsed().as_secs_f64();
            self.first_token_ms.add(waited * 1000.0);
            self.meters.first_token_seconds.observe(waited);
            sequence.send(GenerationEvent::Started);
        } else {
            self.meters.token_seconds.observe(sequence.drawn.elapsed().as_secs_f64());
        }
        sequence.add(token);
        self.scheduler.extend(id);
        if self.tokenizer.is_end(token) {
            self.finish(sequence, FinishReason::Stop);
            return false;
        }
        sequence.keep_score(&self.tokenizer);
        let shown = sequence.text.push(self.tokenizer.bytes(token));
        sequence.send_text(shown.text);
        if shown.stopped {
            self.end(sequence, FinishReason::Stop);
            return false;
        }
        if sequence.sampler.is_complete() {
            self.finish(sequence, FinishReason::Stop);
            return false;
        }
        if sequence.generated >= sequence.submission.generation.max_new_tokens {
            self.finish(sequence, FinishReason::Length);
            return false;
        }
        true
    }

    /// Ends a sequence with the text that was held back.
    fn finish(&mut self, sequence: &mut Sequence, reason: FinishReason) {
        sequence.send_rest();
        self.end(sequence, reason);
    }

    fn end(&mut self, sequence: &Sequence, reason: FinishReason) {
        let usage = Usage {
            prompt_tokens: sequence.submission.generation.prompt.len(),
            completion_tokens: sequence.generated,
            cached_tokens: sequence.cached,
        };
        sequence.send(GenerationEvent::Finished { reason, usage });
        match reason {
            FinishReason::Stop => self.totals.stopped += 1,
            FinishReason::Length => self.totals.at_length += 1,
        }
    }

    /// Takes a sequence's slot and memory; it begins anew when there is room.
    fn preempt(&mut self, id: SequenceId) {
        self.totals.preemptions += 1;
        self.scheduler.preempt(id);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            self.memory.end(sequence);
            sequence.stop();
        }
    }

    fn remove(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        if let Some(mut sequence) = self.sequences.remove(&id) {
            self.memory.end(&mut sequence);
            if let Some(seconds) = sequence.stop() {
                self.slot_seconds.add(seconds);
            }
        }
    }

    fn fail_running(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        // What a failed step has computed is not kept for others.
        if let Some(mut sequence) = self.sequences.remove(&id) {
            self.memory.kv.clear(&mut sequence.table);
            self.fail(&sequence.submission);
        }
    }

    fn fail(&mut self, submission: &Submission) {
        self.end_with(submission, &GenerationEvent::Failed);
    }

    /// Ends a request, and those that wait for its prompt.
    fn end_with(&mut self, submission: &Submission, event: &GenerationEvent) {
        for submission in std::iter::once(submission).chain(&submission.followers) {
            self.totals.failed += 1;
            // If nobody listens any more, nobody needs to know.
            let _ = submission.events.try_send(event.clone());
        }
    }

    fn publish(&self, publish: &watch::Sender<Status>) {
        publish.send_replace(self.status());
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            running: self.scheduler.running(),
            queued_prompt_tokens: self.scheduler.queued_prompt_tokens(),
            kv_blocks_used: self.memory.kv.blocks_max() - self.memory.kv.blocks_free(),
            kv_blocks_max: self.memory.kv.blocks_max(),
            prefix_blocks: self.memory.prefix_blocks(),
            prefill_rate: self.pace.prefill_rate(self.scheduler.decoding()),
            decode_rate: self.pace.decode_rate(),
            slot_seconds: self.slot_seconds.value(),
            first_token_ms: self.first_token_ms.value(),
            totals: self.totals,
        }
    }
}
