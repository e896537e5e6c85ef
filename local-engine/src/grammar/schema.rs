//! JSON Schemas of clients: what cannot be enforced is named before it is tried.
//!
//! Source: JSON Schema, draft 2020-12.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::error::EngineError;

/// White space between the parts of a JSON value: none, a space, or a new line with an indentation. Without a bound a small
/// model may write nothing else until its answer is cut.
const WHITE_SPACE: &str = r"\x20|\n\x20{0,16}";
/// Keywords that restrict a value, and that llguidance does not know how to enforce.
const UNENFORCEABLE: [&str; 17] = [
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
    "unevaluatedItems",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "$dynamicRef",
    "$recursiveRef",
    "x-guidance",
];
/// Keywords whose value maps names to schemas.
const MAPS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Keywords whose value is a schema or a list of schemas.
const NESTED: [&str; 7] =
    ["items", "prefixItems", "additionalItems", "additionalProperties", "anyOf", "allOf", "oneOf"];

/// JSON values of a schema: each costs states of the grammar, whatever it says.
const VALUES_MAX: usize = 3000;
/// Places that references name: each may lie behind the one before, and is then followed from within it.
const REFERENCES_MAX: usize = 64;
/// Patterns of a schema; and of one whose parts meet, so that one text must match several patterns at once: those are multiplied
/// with each other.
const PATTERNS_MAX: usize = 64;
const MEETING_PATTERNS_MAX: usize = 2;
/// Keywords under which parts of a schema meet those beside them.
const MEETING: [&str; 4] = ["allOf", "anyOf", "oneOf", "$ref"];
/// What may stand beside such a keyword without meeting it.
const APART: [&str; 10] =
    ["title", "description", "default", "examples", "type", "$schema", "$id", "$comment", "$defs", "definitions"];

/// Checks that a schema can be enforced, as far as its words tell, at a bounded cost. `param` names its field.
///
/// # Errors
/// [`EngineError::Invalid`] names the keyword or the bound.
pub(crate) fn check(schema: &Value, param: &str) -> Result<(), EngineError> {
    let mut size = Size::default();
    size.add(schema);
    let patterns_max = if size.parts_meet { MEETING_PATTERNS_MAX } else { PATTERNS_MAX };
    let too_much = [
        (size.values, VALUES_MAX, "values"),
        (size.references.len(), REFERENCES_MAX, "different places that `$ref` names"),
        (
            size.patterns,
            patterns_max,
            "patterns (where parts meet, as in `allOf` or beside a `$ref`, a text must match several)",
        ),
    ];
    if let Some((has, most, what)) = too_much.into_iter().find(|(has, most, _)| has > most) {
        let message = format!("`{param}` has {has} {what}; the local engine takes {most} at most.");
        return Err(EngineError::unsupported(param, message));
    }
    check_words(schema, param)
}

/// What a schema will cost.
#[derive(Default)]
struct Size<'a> {
    values: usize,
    references: HashSet<&'a str>,
    patterns: usize,
    parts_meet: bool,
}

impl<'a> Size<'a> {
    /// Constants and names count as if they were schemas: that is never too little.
    fn add(&mut self, value: &'a Value) {
        self.values += 1;
        match value {
            Value::Array(list) => list.iter().for_each(|value| self.add(value)),
            Value::Object(object) => {
                self.patterns += usize::from(object.contains_key("pattern"));
                self.patterns += usize::from(object.contains_key("format"));
                self.patterns += object.get("patternProperties").and_then(Value::as_object).map_or(0, Map::len);
                self.references.extend(object.get("$ref").and_then(Value::as_str));
                let meets = |keyword: &&String| MEETING.contains(&keyword.as_str());
                let beside = object.keys().filter(|keyword| !APART.contains(&keyword.as_str())).count();
                self.parts_meet |= object.contains_key("allOf") || (object.keys().any(|key| meets(&key)) && beside > 1);
                object.values().for_each(|value| self.add(value));
            }
            _ => {}
        }
    }
}

fn check_words(schema: &Value, param: &str) -> Result<(), EngineError> {
    let object = match schema {
        Value::Object(object) => object,
        Value::Bool(true) => return Ok(()),
        _ => return Err(EngineError::invalid(param, format!("`{param}` must be a JSON Schema: an object."))),
    };
    if let Some(keyword) = UNENFORCEABLE.into_iter().find(|keyword| restricts(object, keyword)) {
        let message = format!("`{param}` uses `{keyword}`, which the local engine cannot enforce.");
        return Err(EngineError::unsupported(param, message));
    }
    if object.get("$ref").and_then(Value::as_str).is_some_and(|target| !target.starts_with('#')) {
        let message =
            format!("`{param}` has a `$ref` that does not begin with #: only the schema itself is looked at.");
        return Err(EngineError::unsupported(param, message));
    }
    for keyword in MAPS {
        let members = object.get(keyword).and_then(Value::as_object);
        members.into_iter().flatten().try_for_each(|(_, schema)| check_nested(schema, param))?;
    }
    for keyword in NESTED {
        match object.get(keyword) {
            Some(Value::Array(list)) => list.iter().try_for_each(|schema| check_nested(schema, param))?,
            Some(schema) => check_nested(schema, param)?,
            None => {}
        }
    }
    Ok(())
}

fn check_nested(schema: &Value, param: &str) -> Result<(), EngineError> {
    if schema.is_object() { check_words(schema, param) } else { Ok(()) }
}

fn restricts(schema: &Map<String, Value>, keyword: &str) -> bool {
    let harmless = keyword == "uniqueItems" && schema.get(keyword) == Some(&Value::Bool(false));
    schema.contains_key(keyword) && !harmless
}

/// The schema as llguidance takes it, with white space of a bounded length.
pub(crate) fn with_white_space(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(object) => object.clone(),
        // `true`: any value.
        _ => Map::new(),
    };
    schema.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITE_SPACE}));
    Value::Object(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_enforced_is_named_wherever_it_is() {
        for (schema, keyword) in [
            (json!({"not": {"type": "string"}}), "not"),
            (json!({"properties": {"a": {"items": {"uniqueItems": true}}}}), "uniqueItems"),
            (json!({"anyOf": [{"type": "null"}, {"if": {}}]}), "if"),
            (json!({"$defs": {"a": {"contains": {}}}}), "contains"),
            (json!({"additionalProperties": {"propertyNames": {}}}), "propertyNames"),
            (json!({"properties": {"a": {"$ref": "https://example.org/a.json"}}}), "$ref"),
            (json!({"x-guidance": {"lenient": true}}), "x-guidance"),
        ] {
            let error = check(&schema, "p").unwrap_err();
            assert!(error.to_string().contains(&format!("`{keyword}`")), "{error}");
        }
        assert!(check(&json!([]), "p").is_err());
    }

    #[test]
    fn what_would_cost_too_much_is_refused_and_what_applications_ask_for_is_not() {
        let chain: Map<String, Value> = (0..300)
            .map(|at| (format!("a{at}"), json!({"properties": {"p": {"$ref": format!("#/$defs/a{}", at + 1)}}})))
            .collect();
        let letters: Vec<Value> = ('a'..='t').map(|c| json!({"pattern": format!("(.*{c}.*){{1}}")})).collect();
        let deep =
            |depth| (0..depth).fold(json!({"pattern": "a"}), |inner, _| json!({"pattern": "b", "anyOf": [inner]}));
        for (schema, what) in [
            (json!({"$defs": chain, "$ref": "#/$defs/a0"}), "`$ref`"),
            (json!({"allOf": letters}), "patterns"),
            (deep(20), "patterns"),
            (json!({"required": (0..5000).map(|at| at.to_string()).collect::<Vec<_>>()}), "values"),
        ] {
            let error = check(&schema, "p").unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let fields: Map<String, Value> =
            (0..50).map(|at| (format!("f{at}"), json!({"type": "string", "pattern": "^[a-z]+$"}))).collect();
        assert!(check(&json!({"type": "object", "properties": fields}), "p").is_ok());
        let tree = json!({"$defs": {"node": {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"});
        assert!(check(&tree, "p").is_ok());
    }

    #[test]
    fn an_applications_own_names_are_not_taken_for_keywords() {
        let schema = json!({
            "properties": {"not": {"type": "string"}, "if": {"enum": [{"not": 1}]}, "d": {"default": {"contains": 1}}},
            "$defs": {"contains": {"$ref": "#/properties/not"}}, "uniqueItems": false,
        });
        assert!(check(&schema, "p").is_ok());
    }
}
