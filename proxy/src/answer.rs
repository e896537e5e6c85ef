//! The texts of an answer: where in a message, or in a delta of one, they stand, and how more of one is put there.

pub mod escape;

use postern_wire::json::{Map, Value, json};

/// The fields of a message that are text for a person.
const TEXTS: [&str; 4] = ["content", "refusal", "reasoning_content", "reasoning"];
/// Fields that hold what the program needs and no text: names by which a client finds things again.
const NO_TEXTS: [&str; 5] = ["id", "type", "role", "call_id", "tool_call_id"];
/// Texts of one answer that are read as they come: more calls of tools than this are not of an answer that anybody asked for.
pub const MAX_TEXTS: usize = 512;

/// An event that is not of the API's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Where a text of a choice stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A field of the message.
    Field(&'static str),
    /// The arguments of the tool's call with this number.
    Call(u64),
    /// The input of such a call that takes text.
    Input(u64),
    /// The older form of one.
    Function,
}

/// A text, or the next piece of one.
#[derive(Debug)]
pub struct Text<'a> {
    /// Where it stands.
    pub place: Place,
    /// Of a tool's call: what says which tool it is, as far as it stands here.
    pub call: Option<Call<'a>>,
    /// What it says.
    pub text: &'a mut String,
}

/// What a call of a tool, or a piece of one, says beside its arguments.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Its own name, by which the tool's result is told; empty: it does not say.
    pub id: &'a str,
    /// The tool's; empty: it does not say.
    pub tool: &'a str,
    /// How it says which call of the answer it is.
    pub number: Numbered,
    /// Its arguments are no text.
    pub is_odd: bool,
}

/// How a piece says which call of an answer it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbered {
    /// By its number; or it is a whole call, in its place.
    Surely,
    /// Not at all: it is the one of its place, perhaps.
    No,
    /// By what is no number, which each client may take for another one.
    Oddly,
}

/// Calls `look` with every text of a delta, in their order; with an empty one for a call that has none here.
///
/// # Errors
/// The first of `look`.
pub fn each(delta: &mut Map, look: &mut dyn FnMut(Text<'_>) -> Result<(), Malformed>) -> Result<(), Malformed> {
    each_of(delta, false, look)
}

/// The same of a whole message.
///
/// # Errors
/// The first of `look`.
pub fn each_whole(message: &mut Map, look: &mut dyn FnMut(Text<'_>) -> Result<(), Malformed>) -> Result<(), Malformed> {
    each_of(message, true, look)
}

fn each_of(
    message: &mut Map,
    is_whole: bool,
    look: &mut dyn FnMut(Text<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    for field in TEXTS {
        if let Some(Value::String(text)) = message.get_mut(field) {
            look(Text { place: Place::Field(field), call: None, text })?;
        }
    }
    if let Some(call) = message.get_mut("function_call") {
        called(("", Numbered::Surely), call, "arguments", Place::Function, look)?;
    }
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten();
    for (position, call) in calls.enumerate() {
        let Some(call) = call.as_object_mut() else { continue };
        let (place, number) = match call.get("index").map(|index| (index, index.as_u64())) {
            _ if is_whole => (position as u64, Numbered::Surely),
            Some((_, Some(index))) => (index, Numbered::Surely),
            None | Some((Value::Null, _)) => (position as u64, Numbered::No),
            Some(_) => (position as u64, Numbered::Oddly),
        };
        let id = call.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(function) = call.get_mut("function") {
            called((&id, number), function, "arguments", Place::Call(place), look)?;
        }
        if let Some(custom) = call.get_mut("custom") {
            called((&id, number), custom, "input", Place::Input(place), look)?;
        }
    }
    Ok(())
}

fn called(
    (id, number): (&str, Numbered),
    tool: &mut Value,
    field: &'static str,
    place: Place,
    look: &mut dyn FnMut(Text<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let (mut text, is_odd) = match tool.get_mut(field) {
        Some(Value::String(text)) => (std::mem::take(text), false),
        None | Some(Value::Null) => (String::new(), false),
        Some(_) => (String::new(), true),
    };
    let name = tool.get("name").and_then(Value::as_str).unwrap_or_default();
    let looked = look(Text { place, call: Some(Call { id, tool: name, number, is_odd }), text: &mut text });
    if (!text.is_empty() && !is_odd) || tool.get(field).is_some_and(Value::is_string) {
        *member(tool, field) = Value::String(text);
    }
    looked
}

/// Where in a message a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The message itself.
    Message,
    /// In its list of calls of tools.
    Calls,
    /// In one of them.
    Call,
    /// In the function of one.
    Function,
    /// In what stands there for a tool that takes text.
    Custom,
    /// Deeper.
    Elsewhere,
}

impl At {
    /// Where the members of the one of that name stand.
    #[must_use]
    pub fn below(self, key: &str) -> Self {
        match (self, key) {
            (Self::Message, "tool_calls") => Self::Calls,
            (Self::Message, "function_call") | (Self::Call, "function") => Self::Function,
            (Self::Call, "custom") => Self::Custom,
            _ => Self::Elsewhere,
        }
    }

    /// Where what is in a list here stands.
    #[must_use]
    pub fn item(self) -> Self {
        if self == Self::Calls { Self::Call } else { Self::Elsewhere }
    }

    /// Is a string of that name here one of [`each`]?
    #[must_use]
    pub fn is_text(self, key: &str) -> bool {
        match self {
            Self::Message => TEXTS.contains(&key),
            Self::Function => key == "arguments",
            Self::Custom => key == "input",
            Self::Calls | Self::Call | Self::Elsewhere => false,
        }
    }

    /// Is it one that holds no text?
    #[must_use]
    pub fn is_no_text(self, key: &str) -> bool {
        matches!(self, Self::Message | Self::Call) && NO_TEXTS.contains(&key)
    }
}

/// Adds more of a text to a delta.
pub fn append(delta: &mut Map, place: Place, text: &str) {
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
fn call(delta: &mut Map, number: u64) -> &mut Value {
    let calls = delta.entry("tool_calls").or_insert_with(|| json!([]));
    if !calls.is_array() {
        *calls = json!([]);
    }
    let Value::Array(list) = calls else { return calls };
    let has = |(position, call): (usize, &Value)| {
        call.is_object() && call.get("index").and_then(Value::as_u64).unwrap_or(position as u64) == number
    };
    // The last one: a server that tells calls apart by their id alone may have several of a number.
    let at = list.iter().enumerate().rposition(has).unwrap_or_else(|| {
        list.push(json!({"index": number}));
        list.len() - 1
    });
    // It is there, or was put there just now.
    #[expect(clippy::indexing_slicing, reason = "the place of an element that was found or pushed")]
    &mut list[at]
}
