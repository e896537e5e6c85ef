//! Labels that stick. A long text that was once marked stays marked for its tenant, wherever it is sent again, and so do passages of it; a short
//! one marks its conversation only, since “yes” would otherwise taint everybody. What a model answers to it is remembered as well, before
//! anybody has it.
//!
//! A conversation is known by its beginning, and clients change that: they leave out old messages, or give the model another
//! system prompt. So it is also known by its links, which are two turns that follow each other. One that had a single turn so
//! far has none; with another beginning it is another conversation, unless its text is long.
//!
//! Only keyed hashes are kept: here ([`Held`]), and where several gateways stand in for each other in their Redis as well ([`Shared`]).

mod held;
mod passages;
pub(crate) mod shared;
mod traces;

use std::sync::Arc;

use held::{Held, Rooms};
use passages::Passages;
use shared::Shared;
use traces::Traces;
pub(super) use traces::{AnswerReading, Who};

use super::Conversation;
use super::label::Label;
use crate::config::file::Unavailable;
use crate::config::{self, Config};
use crate::keys::Keys;
use crate::request::ParsedRequest;
use crate::store::Store;

/// Bytes of a request from which its passages are looked for while other requests get their thread.
const LARGE: usize = 64 << 10;

/// By what something is known: a keyed hash, cut to 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Mark([u8; 16]);

impl Mark {
    fn of(hash: [u8; 32]) -> Self {
        let mut mark = [0; 16];
        mark.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        Self(mark)
    }
}

#[derive(Debug)]
pub(super) struct Taint {
    passages: Passages,
    held: Held,
    shared: Option<Shared>,
    /// Also while others cannot be asked.
    goes_on: bool,
}

/// What is known of a request.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By its texts and passages.
    pub(super) texts: Option<Label>,
    /// By its conversation.
    pub(super) talk: Option<Label>,
    /// What was forgotten of its identity for want of room.
    pub(super) lost: Option<Label>,
    /// Others may know more, and cannot be asked.
    pub(super) is_incomplete: bool,
    hits: Vec<(Mark, Label)>,
}

/// Something may be forgotten, or others do not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotKept;

impl Taint {
    pub(super) fn new(config: &Config, keys: &Keys, store: Option<Arc<Store>>) -> Self {
        let config::Taint { per_identity, keep, common, unavailable } = &config.classification.taint;
        let rooms = Rooms { of_identity: *per_identity, keep: *keep };
        let are_others = config.replicas.as_ref().is_some_and(|replicas| replicas.count.get() > 1);
        let shared = store.map(|store| Shared::new(store, keys, config.labels.clone(), rooms, are_others));
        let goes_on = *unavailable == Unavailable::Own;
        Self { passages: Passages::new(keys, common), held: Held::new(rooms), shared, goes_on }
    }

    /// Keeps in touch with others that remember, for as long as it is polled.
    pub(super) async fn keep_up(&self) {
        if let Some(shared) = &self.shared {
            shared.keep_up(&self.held).await;
        }
    }

    /// What `request` is known by.
    fn traces(&self, who: &Who, request: &ParsedRequest, conversation: Conversation) -> Traces {
        let traces = || Traces::of(who, &self.passages, request, conversation);
        if request.prompt_tokens > LARGE as u64 / 4 { tokio::task::block_in_place(traces) } else { traces() }
    }

    /// What is known of `request`, and what it is known by; nothing, as long as nothing is remembered of its tenant.
    pub(super) async fn look(&self, who: &Who, request: &ParsedRequest, talk: Conversation) -> (Option<Traces>, Known) {
        let mut known = Known::default();
        if self.shared.is_none() && self.held.is_empty(&who.tenant) {
            return (None, known);
        }
        let traces = self.traces(who, request, talk);
        let ids = (&*who.tenant, &*who.identity);
        let marks = [traces.all.as_slice(), traces.talk.as_slice()].concat();
        (known.hits, known.lost) = self.held.look(ids, marks.iter());
        if let Some(shared) = &self.shared {
            match shared.look(ids, &marks).await {
                Ok((hits, lost)) => {
                    known.hits.extend(hits);
                    known.lost = known.lost.max(lost);
                }
                Err(_) => known.is_incomplete = !self.goes_on,
            }
        }
        for (mark, label) in &known.hits {
            let by = if traces.talk.contains(mark) { &mut known.talk } else { &mut known.texts };
            *by = (*by).max(Some(*label));
        }
        (Some(traces), known)
    }

    /// Remembers what a request was found to be: its own texts with `marked`, which was said or found of it; its conversation with `talk`; and what was known before
    /// was seen again.
    pub(super) async fn keep(
        &self,
        who: &Who,
        (request, conversation): (&ParsedRequest, Conversation),
        (traces, known): (Option<Traces>, &Known),
        (marked, talk): (Option<Label>, Label),
    ) -> Result<(), NotKept> {
        let traces = traces.unwrap_or_else(|| self.traces(who, request, conversation));
        let own = marked.into_iter().flat_map(|label| traces.own.iter().map(move |mark| (*mark, label)));
        let talk = traces.talk.iter().map(|mark| (*mark, talk));
        let marks: Vec<(Mark, Label)> = known.hits.iter().copied().chain(own).chain(talk).collect();
        self.keep_marks(who, &marks).await
    }

    /// Remembers the conversation of a request alone.
    pub(super) async fn keep_talk(
        &self,
        who: &Who,
        (request, conversation): (&ParsedRequest, Conversation),
        label: Label,
    ) -> Result<(), NotKept> {
        let traces = self.traces(who, request, conversation);
        let marks: Vec<(Mark, Label)> = traces.talk.into_iter().map(|mark| (mark, label)).collect();
        self.keep_marks(who, &marks).await
    }

    /// What is known of a text alone; an error: others may know more, and cannot be asked.
    pub(super) async fn of_text(&self, who: &Who, text: &str) -> Result<Option<Label>, NotKept> {
        if self.shared.is_none() && self.held.is_empty(&who.tenant) {
            return Ok(None);
        }
        let mut marks = Vec::new();
        traces::marks_of(who, &self.passages, text, |mark| marks.push(mark));
        let ids = (&*who.tenant, &*who.identity);
        let (mut hits, _) = self.held.look(ids, marks.iter());
        if let Some(shared) = &self.shared {
            match shared.look(ids, &marks).await {
                Ok((others, _)) => hits.extend(others),
                Err(_) if self.goes_on => {}
                Err(_) => return Err(NotKept),
            }
        }
        Ok(hits.into_iter().map(|(_, label)| label).max())
    }

    /// The passages that the next piece of an answer brings.
    pub(super) fn read(&self, reading: &mut AnswerReading, place: u64, text: &str, fresh: &mut Fresh) {
        reading.read(&self.passages, place, text, &mut fresh.0);
    }

    /// Remembers them.
    pub(super) async fn keep_fresh(&self, who: &Who, fresh: &mut Fresh, label: Label) -> Result<(), NotKept> {
        let marks: Vec<(Mark, Label)> = fresh.0.drain(..).map(|mark| (mark, label)).collect();
        if marks.is_empty() { Ok(()) } else { self.keep_marks(who, &marks).await }
    }

    async fn keep_marks(&self, who: &Who, marks: &[(Mark, Label)]) -> Result<(), NotKept> {
        // Of large requests it takes milliseconds.
        let keep = || self.held.keep((&who.tenant, &who.identity), marks.iter().copied());
        let kept = if marks.len() > LARGE / 8 { tokio::task::block_in_place(keep) } else { keep() };
        kept.map_err(|_| NotKept)?;
        let Some(shared) = &self.shared else { return Ok(()) };
        let kept = shared.keep((&who.tenant, &who.identity), marks).await;
        kept.or(if self.goes_on { Ok(()) } else { Err(NotKept) })
    }
}

/// What of an answer is not remembered yet.
#[derive(Debug, Default)]
pub(super) struct Fresh(Vec<Mark>);

#[cfg(test)]
mod tests;
