//! What policies find in the text is masked before anything leaves, and kept in a vault for the way back.
//!
//! Every JSON string of the request is looked at, keys as well: tool descriptions, names, schemas, unknown fields. So is every long
//! number (of a card, of a telephone) but for parameters of the request itself, such as `seed`; a masked one becomes a string.

pub mod beginning;
pub mod joints;
pub mod json;
pub mod restore;
pub mod vault;

use std::borrow::Cow;
use std::collections::BTreeMap;

use postern_plugins::{CallContext, Joined, Span, TextSegment};
use postern_wire::call::Call;
use postern_wire::json::{Key, Map, Number, Value};

use crate::classify::ClassifiedRequest;
use crate::classify::Conversation;
use crate::classify::Source;
use crate::classify::label::{Label, Labels};
use crate::error::Error;
use crate::gateway::Gateway;
use crate::keys::Keys;
use crate::route::Policies;
use crate::route::answers::joined;
use crate::route::health::Step;
use crate::route::heard::Heard;
use crate::route::shadow::Watching;
use json::Depths;
use vault::{Suffix, Vault};

/// Words of the API itself. They say nothing about anybody, and most strings of a request are among them.
const API_WORDS: [&str; 29] = [
    "model",
    "messages",
    "role",
    "content",
    "user",
    "assistant",
    "system",
    "developer",
    "tool",
    "type",
    "text",
    "stream",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "tools",
    "function",
    "name",
    "description",
    "parameters",
    "properties",
    "stream_options",
    "include_usage",
    "prompt",
    "input",
    "encoding_format",
    "float",
    "base64",
];

/// Fields beside messages that hold what a user wrote.
/// Digits that a number has at least to say something about somebody.
const LONG: usize = 7;

const USERS: [&str; 3] = ["prompt", "suffix", "input"];

/// A request whose text may leave, as far as masking goes. Made only by [`mask`].
#[derive(Debug)]
pub struct MaskedRequest {
    classified: ClassifiedRequest,
    masked: Option<Map>,
    spans: Vec<Span>,
    vault: Vault,
    counts: BTreeMap<String, u64>,
    flagged: BTreeMap<String, u64>,
    complete: bool,
}

impl MaskedRequest {
    /// One in which nothing is found.
    #[cfg(test)]
    pub(crate) fn plain(keys: &Keys, classified: ClassifiedRequest) -> Self {
        let vault = Vault::new(keys, &classified.request().peer.tenant, classified.conversation());
        let (counts, flagged) = Default::default();
        Self { classified, masked: None, spans: Vec::new(), vault, counts, flagged, complete: true }
    }

    /// What was classified.
    #[must_use]
    pub fn classified(&self) -> &ClassifiedRequest {
        &self.classified
    }

    /// The request with placeholders.
    #[must_use]
    pub fn body(&self) -> &Map {
        self.masked.as_ref().unwrap_or_else(|| self.classified.request().call.body())
    }

    /// Does [`body`](Self::body) differ from what was written?
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.masked.is_some()
    }

    /// The request with the placeholders of the cache, which are the same in every conversation.
    #[must_use]
    pub fn canonical_body(&self) -> Map {
        let plain = self.classified.request().call.body();
        if self.spans.is_empty() { plain.clone() } else { replaced(plain, &self.spans, &self.vault, Suffix::Cache) }
    }

    /// Placeholder → value.
    #[must_use]
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// How many values of each kind were masked.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// How many values of each kind were flagged: counted, and left as they are.
    #[must_use]
    pub fn flagged(&self) -> &BTreeMap<String, u64> {
        &self.flagged
    }

    /// False if a policy failed that should have looked: then the text stays on this machine.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Joins `label` to the request's.
    pub(crate) fn raise(&mut self, label: Label, source: Source) {
        self.classified.raise(label, source);
    }

    /// See [`ClassifiedRequest::doubt`].
    pub(crate) fn doubt(&mut self, labels: &Labels) {
        self.classified.doubt(labels);
    }

    /// Keeps one more value, for the way back.
    pub(crate) fn keep(&mut self, kind: &str, value: &str) {
        self.vault.keep(kind, value);
    }
}

/// One string, or number, of a request.
#[derive(Debug, Clone)]
pub struct Segment<'a> {
    /// Its number in the order of the walk.
    pub id: u32,
    /// The role of the message that it is in; empty elsewhere.
    pub role: &'a str,
    /// The text.
    pub text: Cow<'a, str>,
}

/// Every string that could say something about somebody.
#[must_use]
pub fn segments(body: &Map) -> Vec<Segment<'_>> {
    let mut found = Vec::new();
    let mut id = 0;
    walk(body, "", &mut |role, text| {
        if !API_WORDS.contains(&&*text) {
            found.push(Segment { id, role, text });
        }
        id += 1;
    });
    found
}

/// Lets every redaction policy look at the request, and masks what they find. What they say and write goes to `heard`.
///
/// # Errors
/// A policy failed whose configuration says `on_failure: reject`.
pub async fn mask(
    gateway: &Gateway,
    policies: &Policies,
    context: &CallContext<'_>,
    classified: ClassifiedRequest,
    heard: &mut Heard,
    watching: Option<&mut Watching>,
) -> Result<MaskedRequest, Error> {
    let tenant = classified.request().peer.tenant.clone();
    let mut vault = Vault::new(&gateway.keys, &tenant, placeholders_of(&gateway.keys, &classified));
    let mut counts = BTreeMap::new();
    let wanted = watching.as_ref().is_some_and(|watching| watching.wants_text());
    if !policies.count_at(Step::Redaction) && !wanted {
        return Ok(MaskedRequest {
            classified,
            masked: None,
            spans: Vec::new(),
            vault,
            counts,
            flagged: BTreeMap::new(),
            complete: true,
        });
    }
    let body = classified.request().call.body();
    let segments = segments(body);
    let joints = joints::joints(body, &segments, gateway.config.classification.join_messages);
    let mut segments: Vec<TextSegment> = segments
        .into_iter()
        .map(|segment| TextSegment { id: segment.id, role: segment.role.to_owned(), text: segment.text.into_owned() })
        .collect();
    let own = segments.len();
    segments.extend(joints.iter().enumerate().map(|(number, joint)| {
        // What is split is what users wrote, nearly always; a policy is told so.
        TextSegment { id: joints::id(number), role: "user".to_owned(), text: joint.text().to_owned() }
    }));
    let mut found = policies.find(&gateway.config, classified.label(), context, &segments, heard).await?;
    segments.truncate(own);
    for find in &mut found.finds {
        find.spans = find.spans.take().map(|spans| joints::in_pieces(spans, &joints));
    }
    let Joined { masked: spans, flagged } = joined(&found.finds);
    let texts: BTreeMap<u32, &str> = segments.iter().map(|segment| (segment.id, segment.text.as_str())).collect();
    let mut within: Option<(u32, Depths<'_>)> = None;
    for span in &spans {
        let Some(text) = texts.get(&span.segment) else { continue };
        let (start, end) = (span.start as usize, span.end as usize);
        let Some(value) = text.get(start..end) else { continue };
        // Arguments of tools, mostly: what is cut out of their strings has their escapes.
        let depth = if value.contains('\\') {
            match &mut within {
                Some((of, depths)) if *of == span.segment => depths.at(start),
                other => other.insert((span.segment, Depths::of(text, &gateway.keys))).1.at(start),
            }
        } else {
            0
        };
        vault.keep_as(&span.kind, value, depth);
        *counts.entry(span.kind.clone()).or_insert(0) += 1;
    }
    let flagged = flagged.into_iter().fold(BTreeMap::new(), |mut flagged, span| {
        *flagged.entry(span.kind).or_insert(0) += 1;
        flagged
    });
    let masked = (!spans.is_empty()).then(|| replaced(body, &spans, &vault, Suffix::Wire));
    // The name of the model is sent as it is, so what a policy would mask must not be in it.
    if masked.as_ref().is_some_and(|masked| masked.get("model") != body.get("model")) {
        return Err(Error::ModelUnknown);
    }
    if let Some(watching) = watching {
        watching.note_texts(segments, found.finds);
    }
    Ok(MaskedRequest { classified, masked, spans, vault, counts, flagged, complete: found.complete })
}

/// Where a value has the same placeholder: in its conversation. Vectors are compared with each other, also those of a question with
/// those of documents that others sent, so there it is in all that a tenant has, unless the client names a conversation.
fn placeholders_of(keys: &Keys, classified: &ClassifiedRequest) -> Conversation {
    let request = classified.request();
    match request.call {
        Call::Embeddings(_) if request.marks.conversation.is_none() => {
            Conversation(keys.hash("conversation:vectors", &[request.peer.tenant.as_bytes()]))
        }
        _ => classified.conversation(),
    }
}

/// Calls `visit` with the role in force and each string and long number, keys before their values. [`rewrite`] goes the same way.
fn walk<'a>(body: &'a Map, role: &'a str, visit: &mut impl FnMut(&'a str, Cow<'a, str>)) {
    let role = body.get("role").and_then(Value::as_str).unwrap_or(role);
    for (key, value) in body {
        visit(role, key.into());
        // Of completions and vectors: what a user wrote, though nothing there says so.
        let role = if role.is_empty() && USERS.contains(&key) { "user" } else { role };
        match value {
            Value::Number(_) => {}
            value => walk_value(value, role, visit),
        }
    }
}

fn walk_value<'a>(value: &'a Value, role: &'a str, visit: &mut impl FnMut(&'a str, Cow<'a, str>)) {
    match value {
        Value::String(text) => visit(role, text.into()),
        Value::Number(number) => {
            if let Some(text) = long(number) {
                visit(role, text.into());
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk_value(item, role, visit)),
        Value::Object(members) => {
            let role = members.get("role").and_then(Value::as_str).unwrap_or(role);
            for (key, value) in members {
                visit(role, key.into());
                walk_value(value, role, visit);
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

/// The text of a number that could say something about somebody.
fn long(number: &Number) -> Option<String> {
    let is_short = number.as_u64().is_some_and(|number| number < 10_u64.pow(LONG as u32 - 1));
    let text = (!is_short).then(|| number.to_string())?;
    (text.bytes().filter(u8::is_ascii_digit).count() >= LONG).then_some(text)
}

/// A copy of `body` in which every span is a placeholder.
fn replaced(body: &Map, spans: &[Span], vault: &Vault, suffix: Suffix) -> Map {
    let mut id = 0;
    let mut rest = spans;
    rewrite(body, &mut |text| {
        let here = rest.iter().take_while(|span| span.segment == id).count();
        let (mine, others) = rest.split_at_checked(here).unwrap_or((rest, &[]));
        rest = others;
        id += 1;
        (!mine.is_empty()).then(|| mask_text(text, mine, vault, suffix))
    })
}

fn mask_text(text: &str, spans: &[Span], vault: &Vault, suffix: Suffix) -> String {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for span in spans {
        let (start, end) = (span.start as usize, span.end as usize);
        let (Some(before), Some(value)) = (text.get(done..start), text.get(start..end)) else { continue };
        out.push_str(before);
        out.push_str(&vault.placeholder(&span.kind, value, suffix));
        done = end;
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out
}

/// A copy of `body`; `each` says what is to stand in the place of a text, if anything else is.
fn rewrite(body: &Map, each: &mut impl FnMut(&str) -> Option<String>) -> Map {
    let mut out = Map::new();
    for (key, value) in body {
        let key = each(key).map_or_else(|| Key::from(key), Key::from);
        let value = match value {
            Value::Number(_) => value.clone(),
            value => rewrite_value(value, each),
        };
        out.insert(key, value);
    }
    out
}

fn rewrite_value(value: &Value, each: &mut impl FnMut(&str) -> Option<String>) -> Value {
    match value {
        Value::String(text) => Value::String(each(text).unwrap_or_else(|| text.clone())),
        Value::Number(number) => {
            let masked = long(number).and_then(|text| each(&text));
            masked.map_or_else(|| value.clone(), Value::String)
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| rewrite_value(item, each)).collect()),
        Value::Object(members) => {
            let rewritten = members.iter().map(|(key, value)| {
                let key = each(key).map_or_else(|| Key::from(key), Key::from);
                (key, rewrite_value(value, each))
            });
            Value::Object(rewritten.collect())
        }
        Value::Null | Value::Bool(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use postern_plugins::SpanAction;
    use postern_wire::json::json;

    use super::*;
    use crate::route::answers::Finds;

    fn span(segment: u32, start: u32, end: u32) -> Span {
        Span { segment, start, end, kind: "email".into(), action: SpanAction::Mask }
    }

    #[test]
    fn every_string_is_a_segment_but_the_words_of_the_api() {
        let body = json!({
            "model": "m", "messages": [{"role": "user", "name": "Ann", "content": [{"type": "text", "text": "Hi"}]}],
            "tools": [{"function": {"description": "Call Bob", "parameters": {"properties": {"bob@x.org": {}}}}}],
            "new_field": ["Carl", 13_800_138_000_u64, 1234, true, {"card": 4_111_111_111_111_111_u64}, 1234567.5],
            "seed": 13_800_138_000_u64, "temperature": 0.7,
        });
        let body = body.as_object().unwrap();
        let segments = segments(body);
        let texts: Vec<_> = segments.iter().map(|s| (s.role, &*s.text)).collect();
        let wanted = [
            ("", "m"),
            ("user", "Ann"),
            ("user", "Hi"),
            ("", "Call Bob"),
            ("", "bob@x.org"),
            ("", "new_field"),
            ("", "Carl"),
            ("", "13800138000"),
            ("", "card"),
            ("", "4111111111111111"),
            ("", "1234567.5"),
            ("", "seed"),
        ];
        assert_eq!(texts, wanted);
    }

    #[test]
    fn spans_are_masked_where_they_stand_in_keys_and_values() {
        let body = json!({"messages": [{"role": "user", "content": "to a@b.c and d@e.f, a@b.c"}], "a@b.c": 1});
        let body = body.as_object().unwrap();
        let segments = segments(body);
        let (content, key) = (segments[0].id, segments[1].id);
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        let found = vec![
            span(key, 0, 5),
            span(content, 20, 25),
            span(content, 3, 8),
            span(content, 13, 18),
            span(content, 4, 6),
        ];
        let Joined { masked: spans, .. } = joined(&[Finds { policy: "p".into(), spans: Some(found) }]);
        for value in ["a@b.c", "d@e.f"] {
            vault.keep("email", value);
        }
        let masked = replaced(body, &spans, &vault, Suffix::Wire);
        let [first, second] = ["a@b.c", "d@e.f"].map(|value| vault.placeholder("email", value, Suffix::Wire));
        assert_eq!(masked.get("messages").unwrap()[0]["content"], format!("to {first} and {second}, {first}"));
        assert_eq!(masked.get(&first), Some(&Value::from(1)));
        assert!(!Value::Object(masked).to_string().contains('@'));
    }

    #[test]
    fn a_number_is_masked_as_a_string_and_its_neighbours_stay_what_they_are() {
        let body = json!({"messages": [{"content": [{"phone": 13_800_138_000_u64, "n": 7, "x": 12_345_678}]}], "seed": 13_800_138_000_u64});
        let body = body.as_object().unwrap();
        let id = segments(body).iter().find(|segment| segment.text == "13800138000").unwrap().id;
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        vault.keep("phone", "13800138000");
        let masked = replaced(body, &[Span { kind: "phone".into(), ..span(id, 0, 11) }], &vault, Suffix::Wire);
        let placeholder = vault.placeholder("phone", "13800138000", Suffix::Wire);
        let wanted = json!({"messages": [{"content": [{"phone": placeholder, "n": 7, "x": 12_345_678}]}], "seed": 13_800_138_000_u64});
        assert_eq!(Value::Object(masked), wanted);
    }
}
