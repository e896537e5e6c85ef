//! Bytes → one JSON tree, strictly.
//!
//! A key that stands twice in one object is refused: two parsers may read two different requests out of the same
//! bytes, so what one of them inspected need not be what the other acts on (RFC 8259 §4 leaves the behaviour open).
//! Depth and number of values are bounded before memory is.
//!
//! A number keeps its value on the way through: what is written anew is read as the same number by everybody who reads
//! integers of 64 bits and IEEE doubles, which is what RFC 8259 §6 lets a sender expect. One that would not is refused.

mod tree;
mod write;

use std::cell::Cell;
use std::fmt;
use std::str::Utf8Error;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
#[doc(hidden)]
pub use serde_json;

pub use crate::__json_of as json;
pub use tree::{At, Entry, Iter, Key, Map, Number, Value};
pub use write::{Write, object, written};

/// What one document may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Objects and arrays inside each other. At most 100, which is below the recursion limit of the parser.
    pub depth: usize,
    /// Values of any type, and keys, in all.
    pub values: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { depth: 64, values: 200_000 }
    }
}

/// Why bytes are not a document that we accept. Never holds any of the document's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON (RFC 8259), or not UTF-8.
    #[error("the body is not valid JSON (line {line}, column {column})")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in bytes.
        column: usize,
    },
    /// The same key twice in one object.
    #[error("an object has the same key twice (line {line}, column {column}); send each key once")]
    DuplicateKey {
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in bytes.
        column: usize,
    },
    /// A number that could not be sent on as what it is.
    #[error(
        "a number does not fit into 64 bits (line {line}, column {column}); send it as a string, or with fewer digits"
    )]
    Number {
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in bytes.
        column: usize,
    },
    /// Nested deeper than [`Limits::depth`].
    #[error("the JSON is nested deeper than {0} levels")]
    TooDeep(usize),
    /// More values than [`Limits::values`].
    #[error("the JSON has more than {0} values")]
    TooMany(usize),
}

/// Parses `bytes` as exactly one JSON document.
///
/// # Errors
/// See [`JsonError`].
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Value, JsonError> {
    let (values, fault) = (Cell::new(0), Cell::new(Fault::Syntax));
    let state = State { limits: *limits, values, fault, bytes, at: Cell::new(0), whole: Cell::new(0) };
    let text = std::str::from_utf8(bytes).map_err(|error| not_text(bytes, &error))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = Tree { state: &state, depth: 0 }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    read.map_err(|error| match state.fault.get() {
        // The parser says this before it asks us; its kinds of errors are not public.
        Fault::Syntax if error.to_string().starts_with("number out of range") => {
            JsonError::Number { line: error.line(), column: error.column() }
        }
        Fault::Number => JsonError::Number { line: error.line(), column: error.column() },
        Fault::Syntax => JsonError::Syntax { line: error.line(), column: error.column() },
        Fault::Duplicate => JsonError::DuplicateKey { line: error.line(), column: error.column() },
        Fault::Deep => JsonError::TooDeep(limits.depth),
        Fault::Many => JsonError::TooMany(limits.values),
    })
}

/// Where it is not UTF-8.
fn not_text(bytes: &[u8], error: &Utf8Error) -> JsonError {
    let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
    let line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    JsonError::Syntax { line: lines + 1, column: line.len() + 1 }
}

#[derive(Clone, Copy)]
enum Fault {
    Syntax,
    Duplicate,
    Number,
    Deep,
    Many,
}

struct State<'a> {
    limits: Limits,
    values: Cell<usize>,
    fault: Cell<Fault>,
    bytes: &'a [u8],
    /// Behind the last number of `bytes` that was looked at.
    at: Cell<usize>,
    /// Numbers since then, which were whole: those the parser reads exactly.
    whole: Cell<usize>,
}

impl State<'_> {
    /// The text of the number that the parser has just read. It gives us a value only, and that of a long fraction may be off
    /// by the last bit.
    fn number(&self) -> Option<&str> {
        (0..self.whole.take()).try_for_each(|_| self.next_number().map(drop))?;
        self.next_number()
    }

    fn next_number(&self) -> Option<&str> {
        let mut at = self.at.get();
        let start = loop {
            match self.bytes.get(at)? {
                b'-' | b'0'..=b'9' => break at,
                b'"' => at = self.end_of_string(at + 1)?,
                _ => at += 1,
            }
        };
        let rest = self.bytes.get(start..)?;
        let len = rest.iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count();
        self.at.set(start + len);
        std::str::from_utf8(rest.get(..len)?).ok()
    }

    fn end_of_string(&self, mut at: usize) -> Option<usize> {
        loop {
            match self.bytes.get(at)? {
                b'"' => return Some(at + 1),
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
    }
}

/// `None` if it could not be written anew as the same number.
fn exact(text: &str) -> Option<Number> {
    if !text.contains(['.', 'e', 'E']) && text != "-0" {
        return text.parse::<u64>().map(Number::from).or_else(|_| text.parse::<i64>().map(Number::from)).ok();
    }
    let value: f64 = text.parse().ok()?;
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    // So small that nothing is left of it.
    let vanished = value == 0.0 && mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
    Number::from_f64(value).filter(|_| !vanished)
}

#[derive(Clone, Copy)]
struct Tree<'a> {
    state: &'a State<'a>,
    depth: usize,
}

impl Tree<'_> {
    fn fail<T, E: serde::de::Error>(&self, fault: Fault) -> Result<T, E> {
        self.state.fault.set(fault);
        Err(E::custom("refused"))
    }

    fn count<E: serde::de::Error>(&self) -> Result<(), E> {
        let values = self.state.values.get() + 1;
        self.state.values.set(values);
        if values > self.state.limits.values { self.fail(Fault::Many) } else { Ok(()) }
    }

    fn number<E: serde::de::Error>(&self) -> Result<Value, E> {
        match self.state.number().and_then(exact) {
            Some(number) => Ok(Value::Number(number)),
            None => self.fail(Fault::Number),
        }
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth + 1;
        if depth > self.state.limits.depth { self.fail(Fault::Deep) } else { Ok(Self { depth, ..self }) }
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Value, E> {
        self.state.whole.set(self.state.whole.get() + 1);
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value, E> {
        self.state.whole.set(self.state.whole.get() + 1);
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Value, E> {
        self.number()
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper::<A::Error>()?;
        let mut members = Map::new();
        while let Some(name) = map.next_key_seed(Name)? {
            self.count()?;
            if members.contains_key(&name) {
                return self.fail(Fault::Duplicate);
            }
            let value = map.next_value_seed(inner)?;
            members.push(name, value);
        }
        Ok(Value::Object(members))
    }
}

/// The name of a member.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Key;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Key, E> {
        Ok(Key::new(name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Value, JsonError> {
        parse(text.as_bytes(), &Limits { depth: 4, values: 20 })
    }

    #[test]
    fn reads_what_serde_json_reads() {
        let text = r#"{"a":[1,-2,3.5,true,null,"x\u0041"],"b":{"c":{}}}"#;
        assert_eq!(read(text), Ok(json!({"a": [1, -2, 3.5, true, null, "xA"], "b": {"c": {}}})));
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":2}"#, r#"[{"x":{"a":1,"b":2,"a":3}}]"#, r#"{"a":1,"\u0061":2}"#] {
            assert!(matches!(read(text), Err(JsonError::DuplicateKey { .. })), "{text}");
        }
        assert!(read(r#"{"a":{"a":1},"b":{"a":1}}"#).is_ok());
    }

    #[test]
    fn bounds_hold() {
        assert!(read("[[[[]]]]").is_ok());
        assert_eq!(read("[[[[[]]]]]"), Err(JsonError::TooDeep(4)));
        assert_eq!(read(&format!("[{}0]", "0,".repeat(30))), Err(JsonError::TooMany(20)));
        let deep = "[".repeat(100_000);
        assert_eq!(parse(deep.as_bytes(), &Limits::default()), Err(JsonError::TooDeep(64)));
    }

    #[test]
    fn what_is_not_one_document_is_refused_with_its_place() {
        assert_eq!(read("{\n  \"a\": x}"), Err(JsonError::Syntax { line: 2, column: 8 }));
        for text in ["", "{}{}", "{\"a\":1,}", "nul", "\"\u{0}\"", "[1 2]"] {
            assert!(matches!(read(text), Err(JsonError::Syntax { .. })), "{text}");
        }
        assert_eq!(parse(b"[1,\n\"\xff\"]", &Limits::default()), Err(JsonError::Syntax { line: 2, column: 2 }));
    }

    #[test]
    fn a_number_stays_what_it_is_or_is_refused() {
        for text in
            ["0", "-1", "9007199254740993", "18446744073709551615", "-9223372036854775808", "1.0", "0.7", "5e-324"]
        {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        // Written otherwise, but the same number; the second is one that a quick parser gets wrong by one bit.
        for (text, written) in
            [("1.50e2", "150.0"), ("31.245270191439438", "31.245270191439438"), ("-0", "-0.0"), ("0e99", "0.0")]
        {
            assert_eq!(read(text).unwrap().to_string(), written);
        }
        let line = "{\"a \\\" 7\":[\"8\",-2,true,{\"b\":3e0}]}";
        assert_eq!(read(line).unwrap().to_string(), "{\"a \\\" 7\":[\"8\",-2,true,{\"b\":3.0}]}");
        for text in
            ["1e400", "-1e400", "12345678901234567890123", "18446744073709551616", "-9223372036854775809", "1e-400"]
        {
            assert!(matches!(read(&format!("[1,{text}]")), Err(JsonError::Number { line: 1, .. })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_double_comes_out_as_it_went_in(value in any::<f64>()) {
            let Some(number) = Number::from_f64(value) else { return Ok(()) };
            for text in [number.to_string(), format!("{value:e}"), format!("[\"1\",{value:?}]")] {
                let read = parse(text.as_bytes(), &Limits::default()).unwrap();
                let read = read.get(1).unwrap_or(&read).as_f64().unwrap();
                prop_assert_eq!(read.to_bits(), value.to_bits(), "{}", text);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let ours = parse(&bytes, &Limits::default());
            if let Ok(value) = ours {
                prop_assert_eq!(Some(value), serde_json::from_slice::<Value>(&bytes).ok());
            }
        }
    }
}
