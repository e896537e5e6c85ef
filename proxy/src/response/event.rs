//! One chunk of a stream, or one whole answer: restored for the client, and in the cache's form beside it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value, json};

use crate::redact::restore::{Piece, Restorer};
use crate::redact::vault::{Suffix, Vault};
use crate::upstream::openai;

/// The fields of a message that are text for a person. Arguments of tools are not restored: a model could be made to
/// send a value to whoever the tool talks to.
const TEXTS: [&str; 4] = ["content", "refusal", "reasoning_content", "reasoning"];

/// A chunk that is not of the API's shape.
#[derive(Debug)]
pub(super) struct Malformed;

/// The state of restoring one answer: one [`Restorer`] for each text of each choice.
#[derive(Debug)]
pub(super) struct Restoration {
    from: Suffix,
    texts: BTreeMap<(u64, &'static str), Restorer>,
    /// `id` and `created` of the answer.
    begun: Option<[Value; 2]>,
    restored: u64,
    foreign: bool,
}

impl Restoration {
    pub(super) fn new(from: Suffix) -> Self {
        Self { from, texts: BTreeMap::new(), begun: None, restored: 0, foreign: false }
    }

    /// Whose placeholders the answer has.
    pub(super) fn form(&self) -> Suffix {
        self.from
    }

    pub(super) fn restored(&self) -> u64 {
        self.restored + self.texts.values().map(Restorer::restored).sum::<u64>()
    }

    pub(super) fn saw_foreign(&self) -> bool {
        self.foreign || self.texts.values().any(Restorer::saw_foreign)
    }

    /// Restores a chunk in place; the texts of `kept` get the cache's form.
    pub(super) fn chunk(
        &mut self,
        vault: &Vault,
        choices: u64,
        event: &mut Value,
        mut kept: Option<&mut Value>,
    ) -> Result<(), Malformed> {
        if self.begun.is_none() {
            self.begun = Some(["id", "created"].map(|field| event.get(field).cloned().unwrap_or_default()));
        }
        let list = event.get_mut("choices").and_then(Value::as_array_mut).ok_or(Malformed)?;
        for (position, choice) in list.iter_mut().enumerate() {
            let index = openai::choice_index(position, choice, choices).ok_or(Malformed)?;
            let ended = choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
            let delta = choice.get_mut("delta").and_then(Value::as_object_mut).ok_or(Malformed)?;
            let mut kept = kept
                .as_mut()
                .and_then(|kept| kept.get_mut("choices")?.get_mut(position)?.get_mut("delta")?.as_object_mut());
            for field in TEXTS {
                let restorer = self.texts.entry((index, field));
                let piece = match delta.get(field).and_then(Value::as_str) {
                    Some(text) if vault.is_empty() && !text.contains('[') && matches!(restorer, Entry::Vacant(_)) => {
                        continue;
                    }
                    Some(text) => {
                        let restorer = restorer.or_insert_with(|| Restorer::new(self.from));
                        let mut piece = restorer.push(vault, text);
                        if ended {
                            piece.append(restorer.finish());
                        }
                        piece
                    }
                    None if ended => match restorer {
                        Entry::Occupied(mut held) => held.get_mut().finish(),
                        Entry::Vacant(_) => continue,
                    },
                    None => continue,
                };
                place(delta, kept.as_deref_mut(), field, piece);
            }
        }
        Ok(())
    }

    /// The stream broke off, and another one goes on from what was given out: how many bytes of the only choice's content were not.
    pub(super) fn forget_held(&mut self) -> usize {
        self.texts.get_mut(&(0, "content")).map_or(0, Restorer::forget_held)
    }

    /// The content so far, which had no placeholder if nobody restores it yet; from here on it may have some, and where they stand must
    /// be known.
    pub(super) fn passed(&mut self, text: &str) {
        self.texts.entry((0, "content")).or_insert_with(|| Restorer::after(self.from, text));
    }

    /// The `id` and `created` of the first chunk, for those of another stream that goes on with it.
    pub(super) fn take_up(&self, event: &mut Value) {
        let (Some(begun), Some(event)) = (&self.begun, event.as_object_mut()) else { return };
        for (field, value) in ["id", "created"].into_iter().zip(begun) {
            event.insert(field.to_owned(), value.clone());
        }
    }

    /// The stream has ended. If a choice did not say that it has, something of it may still be held back: the event that has it.
    pub(super) fn rest(&mut self) -> Option<Value> {
        let held = |((index, field), restorer): (&(u64, &'static str), &mut Restorer)| {
            let text = restorer.finish().restored;
            (!text.is_empty())
                .then(|| json!({"index": index, "delta": {*field: text}, "logprobs": null, "finish_reason": null}))
        };
        let choices: Vec<Value> = self.texts.iter_mut().filter_map(held).collect();
        let [id, created] = self.begun.take().unwrap_or_default();
        let event = json!({"id": id, "object": "chat.completion.chunk", "created": created, "choices": choices});
        (!choices.is_empty()).then_some(event)
    }

    /// Restores a whole answer in place; the texts of `kept` get the cache's form.
    pub(super) fn message(&mut self, vault: &Vault, answer: &mut Value, mut kept: Option<&mut Value>) {
        if self.from == Suffix::Cache {
            bracketed(answer, "message", &mut |text, _| {
                *text = Restorer::without_values(Suffix::Cache).whole(vault, text).restored;
            });
        }
        let Some(list) = answer.get_mut("choices").and_then(Value::as_array_mut) else { return };
        for (position, choice) in list.iter_mut().enumerate() {
            let Some(message) = choice.get_mut("message").and_then(Value::as_object_mut) else { continue };
            let mut kept = kept
                .as_mut()
                .and_then(|kept| kept.get_mut("choices")?.get_mut(position)?.get_mut("message")?.as_object_mut());
            for field in TEXTS {
                let Some(text) = message.get(field).and_then(Value::as_str) else { continue };
                let mut restorer = Restorer::new(self.from);
                let piece = restorer.whole(vault, text);
                self.restored += restorer.restored();
                self.foreign |= restorer.saw_foreign();
                place(message, kept.as_deref_mut(), field, piece);
            }
        }
    }
}

fn place(message: &mut Map<String, Value>, kept: Option<&mut Map<String, Value>>, field: &str, piece: Piece) {
    if piece.restored.is_empty() && !message.contains_key(field) {
        return;
    }
    message.insert(field.to_owned(), Value::String(piece.restored));
    if let Some(kept) = kept {
        kept.insert(field.to_owned(), Value::String(piece.cacheable));
    }
}

/// Calls `each` with every string of an answer that has a `[`, with which every placeholder begins, and says whether it is a key,
/// which stays as it is. Left out are the texts for a person, in the `part` of each choice (`delta` or `message`).
pub(super) fn bracketed(answer: &mut Value, part: &str, each: &mut dyn FnMut(&mut String, bool)) {
    bracketed_below(answer, Place::Answer, part, each);
}

/// Where in an answer.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Answer,
    Choices,
    Choice,
    Part,
    Elsewhere,
}

fn bracketed_below(value: &mut Value, place: Place, part: &str, each: &mut dyn FnMut(&mut String, bool)) {
    match value {
        Value::String(text) if text.contains('[') => each(text, false),
        Value::Array(items) => {
            let below = if place == Place::Choices { Place::Choice } else { Place::Elsewhere };
            items.iter_mut().for_each(|item| bracketed_below(item, below, part, each));
        }
        Value::Object(members) => {
            for (key, value) in members {
                if key.contains('[') {
                    each(&mut key.clone(), true);
                }
                let below = match place {
                    Place::Answer if key == "choices" => Place::Choices,
                    Place::Choice if key == part => Place::Part,
                    Place::Part if value.is_string() && TEXTS.contains(&key.as_str()) => continue,
                    _ => Place::Elsewhere,
                };
                bracketed_below(value, below, part, each);
            }
        }
        _ => {}
    }
}

/// False for a chunk whose text is all held back: it need not be sent.
pub(super) fn shows_anything(event: &Value) -> bool {
    let choices = event.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    choices.iter().any(|choice| {
        let ended = choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
        let delta = choice.get("delta").and_then(Value::as_object);
        ended || delta.is_some_and(|delta| delta.values().any(|value| !value.is_null() && value.as_str() != Some("")))
    })
}

/// The client reads the name that it asked for, not a target's.
pub(super) fn rename_model(answer: &mut Value, model: &str) {
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("model".to_owned(), Value::String(model.to_owned()));
    }
}

/// Bytes of a tree, about.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => 32 + text.len(),
        Value::Array(items) => 32 + items.iter().map(size).sum::<usize>(),
        Value::Object(members) => 32 + members.iter().map(|(key, value)| 32 + key.len() + size(value)).sum::<usize>(),
        _ => 32,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::classify::Conversation;
    use crate::keys::Keys;

    fn vault() -> (Vault, String) {
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        vault.keep("email", "ann@example.org");
        let placeholder = vault.placeholder("email", "ann@example.org", Suffix::Wire);
        (vault, placeholder)
    }

    fn chunk(content: &str, finish: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]})
    }

    #[test]
    fn a_placeholder_in_pieces_comes_out_whole_and_the_cache_sees_none_of_it() {
        let (vault, placeholder) = vault();
        let mut restoration = Restoration::new(Suffix::Wire);
        let text = format!("To {placeholder}, and [EMAIL_");
        let (mut client, mut cached) = (String::new(), String::new());
        let pieces: Vec<char> = text.chars().collect();
        for (at, piece) in pieces.chunks(3).enumerate() {
            let last = (at + 1) * 3 >= pieces.len();
            let mut event = chunk(&piece.iter().collect::<String>(), if last { json!("stop") } else { Value::Null });
            let mut kept = event.clone();
            restoration.chunk(&vault, 1, &mut event, Some(&mut kept)).unwrap();
            client += event["choices"][0]["delta"]["content"].as_str().unwrap();
            cached += kept["choices"][0]["delta"]["content"].as_str().unwrap();
        }
        assert_eq!(client, "To ann@example.org, and [EMAIL_");
        assert_eq!(cached, format!("To {}, and [EMAIL_", vault.placeholder("email", "ann@example.org", Suffix::Cache)));
        assert_eq!((restoration.restored(), restoration.saw_foreign()), (1, false));
        let mut again = Restoration::new(Suffix::Cache);
        let mut hit = json!({"choices": [{"message": {"content": cached}}]});
        again.message(&vault, &mut hit, None);
        assert_eq!(hit["choices"][0]["message"]["content"], "To ann@example.org, and [EMAIL_");
    }

    #[test]
    fn what_is_held_back_comes_with_the_end() {
        let (vault, _) = vault();
        let mut restoration = Restoration::new(Suffix::Wire);
        let mut event = chunk("see [EM", Value::Null);
        restoration.chunk(&vault, 1, &mut event, None).unwrap();
        assert_eq!(event, chunk("see ", Value::Null));
        let mut end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
        restoration.chunk(&vault, 1, &mut end, None).unwrap();
        assert_eq!(end, chunk("[EM", json!("stop")));
    }

    #[test]
    fn what_is_held_back_comes_without_a_word_of_the_end_as_well() {
        let (vault, _) = vault();
        let mut restoration = Restoration::new(Suffix::Wire);
        assert_eq!(restoration.rest(), None);
        for (index, text) in [(1, "b [EM"), (0, "a [")] {
            let mut event = chunk(text, Value::Null);
            event["id"] = json!("answer-7");
            event["choices"][0]["index"] = json!(index);
            restoration.chunk(&vault, 2, &mut event, None).unwrap();
        }
        let rest = restoration.rest().unwrap();
        let texts =
            [0, 1].map(|at| (rest["choices"][at]["index"].as_u64(), rest["choices"][at]["delta"]["content"].as_str()));
        assert_eq!(texts, [(Some(0), Some("[")), (Some(1), Some("[EM"))]);
        assert_eq!((&rest["id"], &rest["object"]), (&json!("answer-7"), &json!("chat.completion.chunk")));
        assert_eq!(restoration.rest(), None);
    }

    #[test]
    fn a_hit_shows_the_placeholders_of_the_conversation_where_no_value_goes() {
        let (vault, wire) = vault();
        let cached = vault.placeholder("email", "ann@example.org", Suffix::Cache);
        let answer = |content: &str, arguments: &str| json!({"choices": [{"message": {"content": content, "tool_calls": [{"function": {"arguments": arguments}}]}}]});
        let mut hit = answer(&cached, &format!("{{\"to\":\"{cached}\"}}"));
        Restoration::new(Suffix::Cache).message(&vault, &mut hit, None);
        assert_eq!(hit, answer("ann@example.org", &format!("{{\"to\":\"{wire}\"}}")));
    }

    #[test]
    fn arguments_of_tools_are_left_alone_and_unasked_choices_are_refused() {
        let (vault, placeholder) = vault();
        let mut restoration = Restoration::new(Suffix::Wire);
        let mut event =
            json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"function": {"arguments": placeholder}}]}}]});
        let before = event.clone();
        restoration.chunk(&vault, 1, &mut event, None).unwrap();
        assert_eq!(event, before);
        let mut event = json!({"choices": [{"index": 1, "delta": {}}]});
        assert!(restoration.chunk(&vault, 1, &mut event, None).is_err());
    }
}
