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

use serde_json::{Map, Value, json};

use crate::redact::vault::{Suffix, Vault};
use crate::upstream::openai;
use arguments::Arguments;
pub use rules::{Action, MARKING, PRIVATE_KEY, Rules};
use text::Text;

/// Texts of one answer that are read as they come: more calls of tools than this are not of an answer that anybody asked for.
const MAX_TEXTS: usize = 512;
/// The fields of a message that are text.
const TEXTS: [&str; 4] = ["content", "refusal", "reasoning_content", "reasoning"];
/// Fields that hold what the program needs and no text: names by which a client finds things again.
const NO_TEXTS: [&str; 5] = ["id", "type", "role", "call_id", "tool_call_id"];

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

/// An event that is not of the API's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Looks at one answer.
#[derive(Debug)]
pub struct Screen {
    rules: Arc<Rules>,
    texts: BTreeMap<(u64, Place), Reading>,
}

/// Where a text of a choice stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Field(&'static str),
    /// The arguments of the tool's call with this number.
    Call(u64),
    /// The input of such a call that takes text.
    Input(u64),
    /// The older form of one.
    Function,
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
            each(message, &mut |place, text| {
                let mut reading = Reading::new(place);
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
        let mut deltas: BTreeMap<u64, Map<String, Value>> = BTreeMap::new();
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

    fn delta(
        &mut self,
        own: Own<'_>,
        index: u64,
        delta: &mut Map<String, Value>,
        seen: &mut Seen,
    ) -> Result<(), Malformed> {
        let (rules, texts) = (&self.rules, &mut self.texts);
        each(delta, &mut |place, text| {
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
    fn ended(&mut self, own: Own<'_>, index: u64, delta: &mut Map<String, Value>, seen: &mut Seen) {
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

/// Calls `look` with every text of a message or delta that may come in pieces.
fn each(
    message: &mut Map<String, Value>,
    look: &mut dyn FnMut(Place, &mut String) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    for field in TEXTS {
        if let Some(Value::String(text)) = message.get_mut(field) {
            look(Place::Field(field), text)?;
        }
    }
    let arguments = |call: &mut Value| match call.get_mut("arguments") {
        Some(Value::String(text)) => Some(std::mem::take(text)),
        _ => None,
    };
    if let Some(call) = message.get_mut("function_call")
        && let Some(mut text) = arguments(call)
    {
        look(Place::Function, &mut text)?;
        *member(call, "arguments") = Value::String(text);
    }
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten();
    for (position, call) in calls.enumerate() {
        let number = call.get("index").and_then(Value::as_u64).unwrap_or(position as u64);
        if let Some(Value::String(text)) = call.pointer_mut("/function/arguments") {
            look(Place::Call(number), text)?;
        }
        if let Some(Value::String(text)) = call.pointer_mut("/custom/input") {
            look(Place::Input(number), text)?;
        }
    }
    Ok(())
}

/// Where in a message a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Message,
    Call,
    Function,
    Custom,
    Elsewhere,
}

impl At {
    fn below(self, key: &str) -> Self {
        match (self, key) {
            (Self::Message, "tool_calls") => Self::Call,
            (Self::Message, "function_call") | (Self::Call, "function") => Self::Function,
            (Self::Call, "custom") => Self::Custom,
            _ => Self::Elsewhere,
        }
    }

    /// Is a string of that name here one of [`each`], or none that holds text?
    fn leaves_out(self, key: &str) -> bool {
        match self {
            Self::Message => TEXTS.contains(&key) || NO_TEXTS.contains(&key),
            Self::Call => NO_TEXTS.contains(&key),
            Self::Function => key == "arguments",
            Self::Custom => key == "input",
            Self::Elsewhere => false,
        }
    }
}

/// Calls `look` with every other string of a message or delta, such as names and annotations: each for itself.
fn others(message: &mut Map<String, Value>, look: &mut dyn FnMut(&mut String)) {
    others_at(At::Message, message, look);
}

fn others_at(at: At, members: &mut Map<String, Value>, look: &mut dyn FnMut(&mut String)) {
    for (key, value) in members {
        if !(value.is_string() && at.leaves_out(key)) {
            others_below(at.below(key), value, look);
        }
    }
}

fn others_below(at: At, value: &mut Value, look: &mut dyn FnMut(&mut String)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter_mut().for_each(|item| others_below(at, item, look)),
        Value::Object(members) => others_at(at, members, look),
        _ => {}
    }
}

/// Adds the end of a text to a delta.
fn append(delta: &mut Map<String, Value>, place: Place, text: &str) {
    let add = |value: &mut Value| match value {
        Value::String(begun) => begun.push_str(text),
        other => *other = Value::from(text),
    };
    match place {
        Place::Field(field) => add(delta.entry(field).or_insert(Value::Null)),
        Place::Function => add(member(delta.entry("function_call").or_insert(Value::Null), "arguments")),
        Place::Call(number) => add(member(member(call(delta, number), "function"), "arguments")),
        Place::Input(number) => add(member(member(call(delta, number), "custom"), "input")),
    }
}

/// A member of an object, which it becomes if it is none.
fn member<'a>(value: &'a mut Value, name: &str) -> &'a mut Value {
    if !value.is_object() {
        *value = json!({});
    }
    // An object has every member that is asked for.
    &mut value[name]
}

/// The call of that number, made if it is not there.
fn call(delta: &mut Map<String, Value>, number: u64) -> &mut Value {
    let calls = delta.entry("tool_calls").or_insert_with(|| json!([]));
    if !calls.is_array() {
        *calls = json!([]);
    }
    let Value::Array(list) = calls else { return calls };
    let has = |(position, call): (usize, &Value)| {
        call.is_object() && call.get("index").and_then(Value::as_u64).unwrap_or(position as u64) == number
    };
    let at = list.iter().enumerate().position(has).unwrap_or_else(|| {
        list.push(json!({"index": number}));
        list.len() - 1
    });
    // It is there, or was put there just now.
    #[expect(clippy::indexing_slicing, reason = "the place of an element that was found or pushed")]
    &mut list[at]
}

#[cfg(test)]
mod tests;
