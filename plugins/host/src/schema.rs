//! The schema of a policy's configuration: a wrong option is found when the policy is loaded, with its place, and not by the
//! first prompt.
//!
//! A schema comes with a plugin, so it is judged before it is used: it must not be able to fetch anything, to go round in
//! circles, or to multiply itself.

use std::collections::HashMap;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

use crate::error::{MAX_DETAIL_BYTES, PluginError, printable};

/// The longest schema, as JSON text.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// JSON values in a schema, each reference counted as what it refers to.
const MAX_SIZE: usize = 10_000;
/// Levels of nesting in a schema, counted in the same way.
const MAX_DEPTH: usize = 64;
/// A regular expression counts as so many values.
const PATTERN_SIZE: usize = 100;
/// Bytes that a compiled regular expression may take.
const MAX_PATTERN_BYTES: usize = 256 << 10;
/// Faults that are told at once.
const MAX_FAULTS: usize = 3;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Keywords that give other meanings to a reference or to a schema.
const REFUSED: [&str; 7] =
    ["$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary"];
const DEFINITIONS: &str = "#/$defs/";

/// JSON Schema, draft 2020-12, in 64 KiB. `$ref` may name an element of `$defs` at the top and nothing else, not in a circle;
/// `$id` and anchors are refused. Patterns are regular expressions without look-around, in time linear in the text.
#[derive(Debug)]
pub struct ConfigSchema(Validator);

impl ConfigSchema {
    /// Judges and compiles a schema.
    ///
    /// # Errors
    /// [`PluginError::Manifest`]: it is not a schema, or goes beyond the bounds.
    pub fn new(schema: &Value) -> Result<Self, PluginError> {
        if !schema.is_object() {
            return Err(wrong("must be an object"));
        }
        if schema.to_string().len() > MAX_SCHEMA_BYTES {
            return Err(wrong(format!("is longer than {} KiB", MAX_SCHEMA_BYTES >> 10)));
        }
        Survey { definitions: schema.get("$defs"), known: HashMap::new() }.extent(schema, 0)?.check()?;
        let patterns = PatternOptions::regex().size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES);
        let options = jsonschema::options().with_draft(Draft::Draft202012).with_pattern_options(patterns);
        let validator = options.build(schema).map_err(|error| {
            let at = error.instance_path();
            wrong(printable(&format!("at `{at}`: {error}"), MAX_DETAIL_BYTES))
        })?;
        Ok(Self(validator))
    }

    /// Does a configuration fit? Nothing (`null`) is judged as `{}`, since that is what a policy without a section reads.
    ///
    /// # Errors
    /// [`PluginError::Config`], with the place of up to three faults, and without the values that are there.
    pub fn check(&self, config: &Value) -> Result<(), PluginError> {
        let nothing = Value::Object(serde_json::Map::new());
        let config = if config.is_null() { &nothing } else { config };
        let mut faults = self.0.iter_errors(config).take(MAX_FAULTS).map(|error| {
            let at = error.instance_path().to_string();
            let at = if at.is_empty() { "the whole".to_owned() } else { format!("`{at}`") };
            let what = match error.kind() {
                ValidationErrorKind::FalseSchema => "nothing may be written there".to_owned(),
                _ => error.masked().to_string(),
            };
            printable(&format!("{at}: {what}"), MAX_DETAIL_BYTES)
        });
        match faults.next() {
            None => Ok(()),
            Some(first) => Err(PluginError::Config(faults.fold(first, |all, fault| all + "; " + &fault))),
        }
    }
}

/// How large a schema is when all references are written out.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    size: usize,
    depth: usize,
}

impl Extent {
    fn check(self) -> Result<Self, PluginError> {
        if self.size > MAX_SIZE {
            return Err(wrong(format!("has more than {MAX_SIZE} parts (a pattern counts as {PATTERN_SIZE})")));
        }
        if self.depth > MAX_DEPTH {
            return Err(wrong(format!("is nested more than {MAX_DEPTH} deep")));
        }
        Ok(self)
    }
}

/// Looks through a schema before anything is done with it. It takes every object for a schema, also one that is the value of
/// `const`: that can refuse too much, never too little.
struct Survey<'a> {
    definitions: Option<&'a Value>,
    /// Of definitions; nothing while one is being looked through.
    known: HashMap<&'a str, Option<Extent>>,
}

impl<'a> Survey<'a> {
    fn extent(&mut self, value: &'a Value, level: usize) -> Result<Extent, PluginError> {
        // What is too deep is not looked into, since this function calls itself.
        Extent { size: 0, depth: level }.check()?;
        let mut whole = Extent { size: 1, depth: 0 };
        let mut add = |part: Extent| {
            whole.size = whole.size.saturating_add(part.size);
            whole.depth = whole.depth.max(part.depth.saturating_add(1));
            whole.check().map(drop)
        };
        match value {
            Value::Array(elements) => {
                for element in elements {
                    add(self.extent(element, level + 1)?)?;
                }
            }
            Value::Object(members) => {
                for (key, value) in members {
                    add(self.member(key, value, level)?)?;
                }
            }
            _ => {}
        }
        Ok(whole)
    }

    fn member(&mut self, key: &'a str, value: &'a Value, level: usize) -> Result<Extent, PluginError> {
        match (key, value) {
            ("$ref", Value::String(to)) => self.definition(to, level),
            ("$schema", Value::String(dialect)) if dialect.trim_end_matches('#') != DIALECT => {
                Err(wrong(format!("`$schema` must be {DIALECT}, or left out")))
            }
            (key, Value::String(_) | Value::Bool(_)) if REFUSED.contains(&key) => {
                Err(wrong(format!("`{key}` cannot be used here; refer to `{DEFINITIONS}NAME`")))
            }
            ("pattern", Value::String(_)) => Ok(Extent { size: PATTERN_SIZE, depth: 0 }),
            ("patternProperties", Value::Object(patterns)) => {
                let mut extent = self.extent(value, level + 1)?;
                extent.size = extent.size.saturating_add(patterns.len().saturating_mul(PATTERN_SIZE));
                Ok(extent)
            }
            _ => self.extent(value, level + 1),
        }
    }

    fn definition(&mut self, to: &'a str, level: usize) -> Result<Extent, PluginError> {
        let name = to.strip_prefix(DEFINITIONS).filter(|name| !name.is_empty() && name.bytes().all(is_plain));
        let name = name.ok_or_else(|| wrong(format!("`$ref` may be `{DEFINITIONS}NAME` only")))?;
        match self.known.get(name) {
            Some(Some(extent)) => return Ok(*extent),
            Some(None) => return Err(wrong(format!("`{DEFINITIONS}{name}` refers to itself"))),
            None => {}
        }
        let definition = self.definitions.and_then(|all| all.get(name));
        let definition = definition.ok_or_else(|| wrong(format!("there is no `{DEFINITIONS}{name}`")))?;
        self.known.insert(name, None);
        let extent = self.extent(definition, level + 1)?;
        self.known.insert(name, Some(extent));
        Ok(extent)
    }
}

/// Nothing that a JSON Pointer or a URI would read in another way.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn wrong(what: impl std::fmt::Display) -> PluginError {
    PluginError::Manifest(format!("`config_schema` {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const WORDS: [&str; 12] =
        ["object", "array", "string", "integer", "number", "null", "^a+$", "(", "#/$defs/a", "email", "base64", ""];
    const WITH_NUMBER: [&str; 13] = [
        "maximum",
        "minimum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "multipleOf",
        "maxLength",
        "minLength",
        "maxItems",
        "minItems",
        "maxProperties",
        "minProperties",
        "maxContains",
        "minContains",
    ];
    const WITH_WORD: [&str; 6] = ["type", "pattern", "$ref", "format", "contentEncoding", "title"];
    const WITH_SCHEMA: [&str; 11] = [
        "additionalProperties",
        "contains",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "contentSchema",
    ];
    const WITH_LIST: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
    const WITH_MAP: [&str; 4] = ["properties", "patternProperties", "dependentSchemas", "$defs"];

    fn number() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::from),
            (0..9_u32).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
        ]
    }

    fn word() -> impl Strategy<Value = &'static str> {
        prop::sample::select(&WORDS[..])
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), number(), word().prop_map(Value::from)];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(word(), inner, 0..4).prop_map(|members| json!(members)),
            ]
        })
    }

    /// Mostly schemas; some values are of the wrong kind.
    fn any_schema() -> impl Strategy<Value = Value> {
        let keyword = |names: &'static [&'static str]| prop::sample::select(names);
        let plain = prop_oneof![
            8 => (keyword(&WITH_NUMBER), number()),
            8 => (keyword(&WITH_WORD), word().prop_map(Value::from)),
            2 => (Just("const"), any_json()),
            2 => (keyword(&["enum", "required"]), prop::collection::vec(any_json(), 1..4).prop_map(Value::from)),
            1 => (Just("uniqueItems"), Just(json!(true))),
            1 => (keyword(&WITH_SCHEMA), any_json()),
        ];
        let leaf = prop::collection::vec(plain, 0..3).prop_map(object);
        leaf.prop_recursive(4, 30, 4, move |inner| {
            let part = prop_oneof![
                (keyword(&WITH_SCHEMA), inner.clone()),
                (keyword(&WITH_LIST), prop::collection::vec(inner.clone(), 1..3).prop_map(Value::from)),
                (keyword(&WITH_MAP), prop::collection::hash_map("[a^$]?", inner, 0..3).prop_map(|all| json!(all))),
            ];
            prop::collection::vec(part, 1..4).prop_map(object)
        })
    }

    fn object(members: Vec<(&'static str, Value)>) -> Value {
        members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    proptest! {
        #[test]
        fn whatever_is_called_a_schema_is_used_or_refused(schema in any_schema(), config in any_json()) {
            // What it says does not matter, only that it says something.
            let _whatever = ConfigSchema::new(&schema).map(|schema| schema.check(&config).is_ok());
        }
    }

    fn refused(schema: Value) -> String {
        ConfigSchema::new(&schema).map(drop).unwrap_err().to_string()
    }

    fn rules() -> ConfigSchema {
        let schema = json!({
            "$schema": DIALECT,
            "type": "object",
            "properties": {"rules": {"type": "array", "items": {"$ref": "#/$defs/rule"}}, "token": {"type": "integer"}},
            "additionalProperties": false,
            "$defs": {
                "rule": {"type": "object", "required": ["placement"], "properties": {"placement": {"$ref": "#/$defs/placement"}}},
                "placement": {"enum": ["cloud", "local"]},
            },
        });
        ConfigSchema::new(&schema).unwrap()
    }

    #[test]
    fn a_fault_is_told_with_its_place_and_without_what_stands_there() {
        let schema = rules();
        schema.check(&json!({"rules": [{"placement": "local"}]})).unwrap();
        schema.check(&Value::Null).unwrap();
        let said =
            schema.check(&json!({"rules": [{"placement": "my-secret"}], "token": "s3cret"})).unwrap_err().to_string();
        assert!(said.contains("`/rules/0/placement`") && said.contains("`/token`"), "{said}");
        assert!(!said.contains("my-secret") && !said.contains("s3cret"), "{said}");
        let said = schema.check(&json!({"ruels": []})).unwrap_err().to_string();
        assert!(said.contains("the whole") && said.contains("ruels"), "{said}");
        let none = ConfigSchema::new(&json!({"additionalProperties": false})).unwrap();
        let said = none.check(&json!({"limit": 5})).unwrap_err().to_string();
        assert!(said.contains("nothing may be written there"), "{said}");
        let many: Vec<_> = (0..100).map(|_| json!({})).collect();
        let said = schema.check(&json!({"rules": many})).unwrap_err().to_string();
        assert_eq!(said.matches("placement").count(), 3, "{said}");
    }

    #[test]
    fn a_schema_cannot_reach_out_or_rename_itself() {
        assert!(refused(json!({"$ref": "https://example.org/schema.json"})).contains("`$ref`"));
        assert!(refused(json!({"properties": {"a": {"$ref": "file:///etc/passwd"}}})).contains("`$ref`"));
        assert!(refused(json!({"$id": "https://example.org/"})).contains("`$id`"));
        assert!(refused(json!({"$schema": "http://json-schema.org/draft-07/schema#"})).contains("`$schema`"));
        assert!(refused(json!({"$dynamicRef": "#x"})).contains("`$dynamicRef`"));
        assert!(refused(json!({"$ref": "#/$defs/none"})).contains("there is no"));
        assert!(refused(json!({"type": "objekt"})).contains("/type"));
        assert!(refused(json!(true)).contains("an object"));
    }

    #[test]
    fn a_schema_cannot_go_round_or_multiply_itself() {
        assert!(refused(json!({"$ref": "#"})).contains("`$ref`"));
        assert!(refused(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})).contains("itself"));
        let ring = json!({"$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}});
        assert!(refused(ring).contains("itself"));
        let mut laughs = json!({"$ref": "#/$defs/d0", "$defs": {"d5": {}}});
        for i in 0..5 {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            laughs["$defs"][format!("d{i}")] = json!({"allOf": vec![next; 10]});
        }
        assert!(refused(laughs).contains("parts"));
        let mut chain = json!({"$ref": "#/$defs/d0", "$defs": {"d500": {}}});
        for i in 0..500 {
            chain["$defs"][format!("d{i}")] = json!({"not": {"$ref": format!("#/$defs/d{}", i + 1)}});
        }
        assert!(refused(chain).contains("nested"));
    }

    #[test]
    fn patterns_are_linear_and_few() {
        let one = |pattern: &str| json!({"properties": {"a": {"pattern": pattern}}});
        let schema = ConfigSchema::new(&one("^(a+)+$")).unwrap();
        let started = std::time::Instant::now();
        assert!(schema.check(&json!({"a": "a".repeat(100_000) + "!"})).is_err());
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
        assert!(refused(one("(?=a)b")).contains("pattern"));
        assert!(refused(one(r"(\w{1000}){1000}")).contains("pattern"));
        let many: serde_json::Map<_, _> = (0..101).map(|i| (format!("^{i}"), json!({}))).collect();
        assert!(refused(json!({"patternProperties": many})).contains("parts"));
    }
}
