//! What a request and its answer are known by: keyed hashes, of which nobody can tell the text, and which are different for each tenant.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use postern_wire::json;
use postern_wire::json::Value;

use super::Mark;
use super::passages::{Passages, Reading};
use crate::classify::Conversation;
use crate::keys::{Hasher, Keys};
use crate::redact::joints::joints;
use crate::redact::{Segment, segments};
use crate::request::ParsedRequest;

/// Characters from which a text is remembered by itself.
pub(super) const LONG_TEXT: usize = 80;
/// The last links of a request that are looked at: the next request still has them, and a long one cannot push out what is known
/// of others.
pub(super) const LINKS: usize = 64;
/// Texts of an answer that are read at a time; beyond them it is known by those that began first.
const MAX_READINGS: usize = 1_024;

/// What a request is known by.
#[derive(Debug, Default)]
pub(in crate::classify) struct Traces {
    /// Of texts and passages in it, whoever wrote them.
    pub(super) all: Vec<Mark>,
    /// Of those that somebody put into it: users, and tools. What a program says to the model in each request is not among them.
    pub(super) own: Vec<Mark>,
    /// Of the conversation and its links.
    pub(super) talk: Vec<Mark>,
}

/// Whose marks.
#[derive(Debug, Clone)]
pub(in crate::classify) struct Who {
    pub(super) tenant: Arc<str>,
    pub(super) identity: Arc<str>,
    hasher: Hasher,
}

impl Who {
    pub(in crate::classify) fn of(keys: &Keys, request: &ParsedRequest) -> Self {
        let tenant = request.peer.tenant.clone();
        let hasher = keys.derive("taint", &[tenant.as_bytes()]).hasher();
        Self { tenant, identity: request.peer.id.as_str().into(), hasher }
    }

    fn mark(&self, kind: &str, parts: &[&[u8]]) -> Mark {
        Mark::of(self.hasher.hash(kind, parts))
    }
}

impl Traces {
    /// Of large requests it takes milliseconds.
    pub(super) fn of(who: &Who, passages: &Passages, request: &ParsedRequest, conversation: Conversation) -> Self {
        let mut traces = Self::default();
        let body = request.call.body();
        let segments = segments(body);
        let joints = joints(body, &segments, true);
        let mut seen = HashSet::new();
        let mut read = |text: &str, is_own: bool| {
            marks_of(who, passages, text, |mark| {
                if seen.insert(mark) {
                    traces.all.push(mark);
                }
                if is_own {
                    traces.own.push(mark);
                }
            });
        };
        let is_own = |segment: &Segment<'_>| matches!(segment.role, "user" | "tool" | "function");
        for segment in &segments {
            read(&segment.text, is_own(segment));
        }
        // What is split over several texts; each is of one role.
        let own: HashSet<u32> = segments.iter().filter(|segment| is_own(segment)).map(|segment| segment.id).collect();
        for joint in &joints {
            read(joint.text(), joint.parts().any(|part| own.contains(&part)));
        }
        traces.own.sort_unstable();
        traces.own.dedup();
        traces.talk = links(who, request);
        traces.talk.push(who.mark("conversation", &[&conversation.0]));
        traces.talk.extend(beginning(who, request));
        traces
    }
}

/// What a text is known by.
pub(super) fn marks_of(who: &Who, passages: &Passages, text: &str, mut note: impl FnMut(Mark)) {
    if text.chars().nth(LONG_TEXT - 1).is_some() {
        note(who.mark("text", &[text.trim().as_bytes()]));
    }
    Reading::default().read(passages, text, |passage| note(who.mark("passage", &[passage.as_bytes()])));
}

/// Each two turns that follow each other, for this identity. Instructions are no turn: they are the same in many conversations.
fn links(who: &Who, request: &ParsedRequest) -> Vec<Mark> {
    let turn = |message: &&Value| !matches!(message.get("role").and_then(Value::as_str), Some("system" | "developer"));
    let messages = request.call.body().get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let turns: Vec<&Value> = messages.iter().rev().filter(turn).take(LINKS + 1).collect();
    if turns.len() < 2 {
        return Vec::new();
    }
    let turns: Vec<Vec<u8>> = turns.into_iter().rev().map(json::written).collect();
    let link = |(one, next): (&Vec<u8>, &Vec<u8>)| who.mark("link", &[who.identity.as_bytes(), one, next]);
    turns.iter().zip(turns.iter().skip(1)).map(link).collect()
}

/// The turns up to the first of a user, without what a program says to the model: that has the time of day in it, say. Not of a conversation that has a name.
fn beginning(who: &Who, request: &ParsedRequest) -> Option<Mark> {
    if request.marks.conversation.is_some() {
        return None;
    }
    let messages = request.call.body().get("messages").and_then(Value::as_array)?;
    let role = |message: &Value| message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
    let end = messages.iter().position(|message| role(message) == "user")?;
    let turns = messages.iter().take(end + 1).filter(|message| !matches!(&*role(message), "system" | "developer"));
    let said: Vec<String> = turns.map(|turn| format!("{}:{}", role(turn), said(turn))).collect();
    let mut parts = vec![who.identity.as_bytes()];
    parts.extend(said.iter().map(String::as_bytes));
    Some(who.mark("beginning", &parts))
}

/// The text of a turn, however it is written; what is no text is as it stands.
fn said(turn: &Value) -> String {
    match turn.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let part =
                |part: &Value| part.get("text").and_then(Value::as_str).map_or_else(|| part.to_string(), str::to_owned);
            parts.iter().map(part).collect()
        }
        other => other.map(Value::to_string).unwrap_or_default(),
    }
}

/// What an answer is known by, as it comes.
#[derive(Debug)]
pub(in crate::classify) struct AnswerReading {
    pub(in crate::classify) who: Who,
    /// Of each place in it, by the hash of that.
    readings: BTreeMap<u64, Reading>,
}

impl AnswerReading {
    pub(in crate::classify) fn new(who: Who) -> Self {
        Self { who, readings: BTreeMap::new() }
    }

    /// The marks that the next piece of a text brings.
    pub(super) fn read(&mut self, passages: &Passages, place: u64, text: &str, marks: &mut Vec<Mark>) {
        if self.readings.len() >= MAX_READINGS && !self.readings.contains_key(&place) {
            return;
        }
        let Self { who, readings } = self;
        let reading = readings.entry(place).or_default();
        reading.read(passages, text, |passage| marks.push(who.mark("passage", &[passage.as_bytes()])));
    }
}
