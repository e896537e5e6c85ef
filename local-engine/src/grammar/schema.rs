//! JSON Schemas of clients: what cannot be enforced is named before it is tried.
//!
//! Source: JSON Schema, draft 2020-12.

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

/// Checks that a schema can be enforced, as far as its words tell. `param` names its field.
///
/// # Errors
/// [`EngineError::Invalid`] names the keyword.
pub(crate) fn check(schema: &Value, param: &str) -> Result<(), EngineError> {
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
    if schema.is_object() { check(schema, param) } else { Ok(()) }
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
    fn an_applications_own_names_are_not_taken_for_keywords() {
        let schema = json!({
            "properties": {"not": {"type": "string"}, "if": {"enum": [{"not": 1}]}, "d": {"default": {"contains": 1}}},
            "$defs": {"contains": {"$ref": "#/properties/not"}}, "uniqueItems": false,
        });
        assert!(check(&schema, "p").is_ok());
    }
}
