//! What a model made, looked at before anybody gets it: secrets and markings that it wrote itself are masked, or end the answer, as
//! `answers` of the configuration says.
//!
//! It sees the masked text: placeholders of the request's own values pass, and are restored behind it. What it lets through is what the
//! cache keeps, and what those who follow an answer read. In a stream it holds back only what may still become a find
//! ([`text`]); of tools' arguments it reads the strings, so that JSON stays JSON ([`arguments`]).

mod arguments;
mod rules;
mod text;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use postern_wire::json::{Map, Value, json};

use crate::answer::{At, MAX_TEXTS, Malformed, Place, append, each, each_whole};
use crate::redact::vault::{Suffix, Vault};
use crate::upstream::openai;
use arguments::Arguments;
pub use rules::{Action, MARKING, PRIVATE_KEY, Rules};
use text::Text;

/// The placeholders of a request, which are no finds.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// Whose.
    pub vault: &'a Vault,
    /// In which form.
    pub form: Suffix,
}

/// What one look came to.
#[derive(Debug, Default)]
pub struct Seen {
    /// How many were masked, by kind.
    pub masked: BTreeMap<Arc<str>, u64>,
    /// What ends the answer.
    pub stopped: Option<Arc<str>>,
}

impl Seen {
    fn masked(&mut self, kind: &Arc<str>) {
        *self.masked.entry(kind.clone()).or_insert(0) += 1;
    }

    fn count(&self) -> u64 {
        self.masked.values().sum()
    }
}

/// Looks at one answer.
#[derive(Debug)]
pub struct Screen {
    rules: Arc<Rules>,
    texts: BTreeMap<(u64, Place), Reading>,
}

#[derive(Debug)]
enum Reading {
    Text(Text),
    Arguments(Arguments),
}

impl Reading {
    fn new(place: Place) -> Self {
        match place {
            Place::Field(_) | Place::Input(_) => Self::Text(Text::default()),
            Place::Call(_) | Place::Function => Self::Arguments(Arguments::default()),
        }
    }

    fn push(&mut self, rules: &Rules, own: Own<'_>, text: &str, seen: &mut Seen) -> String {
        let mut out = String::with_capacity(text.len());
        match self {
            Self::Text(reading) => reading.push(rules, own, text, &mut out, seen),
            Self::Arguments(reading) => reading.push(rules, own, text, &mut out, seen),
        }
        out
    }

    fn finish(&mut self, rules: &Rules, own: Own<'_>, seen: &mut Seen) -> String {
        let mut out = String::new();
        match self {
            Self::Text(reading) => reading.finish(rules, own, &mut out, seen),
            Self::Arguments(reading) => reading.finish(rules, own, &mut out, seen),
        }
        out
    }
}

impl Screen {
    /// By these rules.
    #[must_use]
    pub fn new(rules: Arc<Rules>) -> Self {
        Self { rules, texts: BTreeMap::new() }
    }

    /// Looks at one event of a stream, of an answer of so many choices. Where something ends the answer, what came before is left of it.
    ///
    /// # Errors
    /// It has not the shape of the API.
    pub fn chunk(&mut self, own: Own<'_>, choices: u64, event: &mut Value) -> Result<Seen, Malformed> {
        let mut seen = Seen::default();
        let list = event.get_mut("choices").and_then(Value::as_array_mut).ok_or(Malformed)?;
        for (position, choice) in list.iter_mut().enumerate() {
            let index = openai::choice_index(position, choice, choices).ok_or(Malformed)?;
            without_repeats(choice);
            let ended = choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
            if let Some(delta) = choice.get_mut("delta").and_then(Value::as_object_mut) {
                self.delta(own, index, delta, &mut seen)?;
                if ended && seen.stopped.is_none() {
                    self.ended(own, index, delta, &mut seen);
                }
            }
            if seen.stopped.is_some() {
                choice.as_object_mut().and_then(|choice| choice.insert("finish_reason".to_owned(), Value::Null));
                list.truncate(position + 1);
                break;
            }
        }
        Ok(seen)
    }

    /// Looks at a whole answer.
    pub fn message(&mut self, own: Own<'_>, answer: &mut Value) -> Seen {
        let mut seen = Seen::default();
        for choice in answer.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
            without_repeats(choice);
            let Some(message) = choice.get_mut("message").and_then(Value::as_object_mut) else { continue };
            let rules = &self.rules;
            each_whole(message, &mut |found| {
                let (mut reading, text) = (Reading::new(found.place), found.text);
                let mut looked = reading.push(rules, own, text, &mut seen);
                looked += &reading.finish(rules, own, &mut seen);
                *text = looked;
                Ok(())
            })
            .unwrap_or(());
            others(message, &mut |text| whole(rules, own, text, &mut seen));
        }
        seen
    }

    /// The stream has ended, and choices did not say that they have: the event with what of them is held back.
    pub fn rest(&mut self, own: Own<'_>) -> (Option<Value>, Seen) {
        let mut seen = Seen::default();
        let mut deltas: BTreeMap<u64, Map> = BTreeMap::new();
        for ((index, place), reading) in &mut self.texts {
            let text = if seen.stopped.is_none() { reading.finish(&self.rules, own, &mut seen) } else { String::new() };
            if !text.is_empty() {
                append(deltas.entry(*index).or_default(), *place, &text);
            }
        }
        let choice = |(index, delta)| json!({"index": index, "delta": delta, "finish_reason": null});
        let choices: Vec<Value> = deltas.into_iter().map(choice).collect();
        ((!choices.is_empty()).then(|| json!({"object": "chat.completion.chunk", "choices": choices})), seen)
    }

    /// What is held back of the only choice's content will not go on: another text comes in its place. False: that cannot be, since
    /// something is being left out that has not ended.
    pub fn forget_held(&mut self) -> bool {
        match self.texts.get_mut(&(0, Place::Field("content"))) {
            Some(Reading::Text(text)) => text.forget_held(),
            _ => true,
        }
    }

    fn delta(&mut self, own: Own<'_>, index: u64, delta: &mut Map, seen: &mut Seen) -> Result<(), Malformed> {
        let (rules, texts) = (&self.rules, &mut self.texts);
        each(delta, &mut |found| {
            let (place, text) = (found.place, found.text);
            let full = texts.len() >= MAX_TEXTS;
            let reading = match texts.entry((index, place)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(_) if full => return Err(Malformed),
                Entry::Vacant(new) => new.insert(Reading::new(place)),
            };
            *text = reading.push(rules, own, text, seen);
            Ok(())
        })?;
        others(delta, &mut |text| whole(rules, own, text, seen));
        Ok(())
    }

    /// What of a choice is held back comes with its end.
    fn ended(&mut self, own: Own<'_>, index: u64, delta: &mut Map, seen: &mut Seen) {
        let of_choice = self.texts.iter_mut().filter(|((of, _), _)| *of == index);
        for ((_, place), reading) in of_choice {
            if seen.stopped.is_some() {
                return;
            }
            let text = reading.finish(&self.rules, own, seen);
            if !text.is_empty() {
                append(delta, *place, &text);
            }
        }
    }
}

/// A text of which no more will come.
fn whole(rules: &Rules, own: Own<'_>, text: &mut String, seen: &mut Seen) {
    let (mut reading, mut out) = (Text::default(), String::new());
    reading.push(rules, own, text, &mut out, seen);
    reading.finish(rules, own, &mut out, seen);
    *text = out;
}

/// Log probabilities and numbers of tokens say the text once more, in pieces.
fn without_repeats(choice: &mut Value) {
    if let Some(choice) = choice.as_object_mut() {
        choice.remove("token_ids");
        if let Some(logprobs) = choice.get_mut("logprobs") {
            *logprobs = Value::Null;
        }
    }
}

/// Calls `look` with every other string of a message or delta, such as names and annotations: each for itself.
fn others(message: &mut Map, look: &mut dyn FnMut(&mut String)) {
    others_at(At::Message, message, look);
}

fn others_at(at: At, members: &mut Map, look: &mut dyn FnMut(&mut String)) {
    for (key, value) in members.iter_mut() {
        if !(value.is_string() && (at.is_text(key) || at.is_no_text(key))) {
            others_below(at.below(key), value, look);
        }
    }
}

fn others_below(at: At, value: &mut Value, look: &mut dyn FnMut(&mut String)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter_mut().for_each(|item| others_below(at.item(), item, look)),
        Value::Object(members) => others_at(at, members, look),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
