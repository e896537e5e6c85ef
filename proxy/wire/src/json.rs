//! Bytes → one JSON tree, strictly.
//!
//! A key that stands twice in one object is refused: two parsers may read two different requests out of the same
//! bytes, so what one of them inspected need not be what the other acts on (RFC 8259 §4 leaves the behaviour open).
//! Depth and number of values are bounded before memory is.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

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
    let state = State { limits: *limits, values: Cell::new(0), fault: Cell::new(Fault::Syntax) };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = Tree { state: &state, depth: 0 }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    read.map_err(|error| match state.fault.get() {
        Fault::Syntax => JsonError::Syntax { line: error.line(), column: error.column() },
        Fault::Duplicate => JsonError::DuplicateKey { line: error.line(), column: error.column() },
        Fault::Deep => JsonError::TooDeep(limits.depth),
        Fault::Many => JsonError::TooMany(limits.values),
    })
}

#[derive(Clone, Copy)]
enum Fault {
    Syntax,
    Duplicate,
    Deep,
    Many,
}

struct State {
    limits: Limits,
    values: Cell<usize>,
    fault: Cell<Fault>,
}

#[derive(Clone, Copy)]
struct Tree<'a> {
    state: &'a State,
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

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
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
        while let Some(key) = map.next_key::<String>()? {
            self.count()?;
            if members.contains_key(&key) {
                return self.fail(Fault::Duplicate);
            }
            let value = map.next_value_seed(inner)?;
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

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
        for text in ["", "{}{}", "{\"a\":1,}", "nul", "\"\u{0}\"", "1e999", "[1 2]"] {
            assert!(matches!(read(text), Err(JsonError::Syntax { .. })), "{text}");
        }
        assert!(matches!(parse(b"\"\xff\"", &Limits::default()), Err(JsonError::Syntax { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let ours = parse(&bytes, &Limits::default());
            if let Ok(value) = ours {
                prop_assert_eq!(Some(value), serde_json::from_slice::<Value>(&bytes).ok());
            }
        }
    }
}
