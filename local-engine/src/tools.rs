//! Functions of the application that an answer may call: how the model hears of them, and how a call is spelled.
//!
//! A call is text between two marks, as many models are trained to write it (Nous Research, "Hermes function calling";
//! Qwen). The grammar spells it, so its name and arguments are always those of a function that was offered. Source of the
//! request's fields: the OpenAI API reference, "Create chat completion".

mod reader;

use serde_json::{Map, Value, json};

use crate::error::EngineError;
use crate::grammar::{self, Constraint};
pub(crate) use reader::{CallReader, Said};

/// Around a call.
const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";
/// Around what a function gave back.
const RESPONSE_BEGIN: &str = "<tool_response>";
const RESPONSE_END: &str = "</tool_response>";
/// Functions of a request at most.
const FUNCTIONS_MAX: usize = 128;
/// Characters of a function's name at most.
const NAME_MAX: usize = 64;
/// Calls of one answer at most.
const CALLS_MAX: usize = 16;

/// One function.
#[derive(Debug, Clone, PartialEq)]
struct Function {
    name: String,
    description: Option<String>,
    /// The schema of its arguments: of an object.
    parameters: Value,
}

/// Whether a function is called.
#[derive(Debug, Clone, PartialEq)]
enum Choice {
    /// The model decides.
    Auto,
    /// One at least is.
    Required,
    /// This one is, once.
    Named(String),
}

/// The functions that an answer may call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tools {
    functions: Vec<Function>,
    choice: Choice,
    /// More than one call in an answer.
    parallel: bool,
}

impl Tools {
    /// From the fields `tools`, `tool_choice` and `parallel_tool_calls`; `None`: nothing may be called.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] names the field.
    pub(crate) fn from_json(
        tools: Option<&Value>,
        choice: Option<&Value>,
        parallel: Option<bool>,
    ) -> Result<Option<Self>, EngineError> {
        let list = match tools {
            None => &[][..],
            Some(Value::Array(list)) if list.len() <= FUNCTIONS_MAX => list,
            Some(_) => {
                let message = format!("`tools` must be an array of {FUNCTIONS_MAX} tools at most.");
                return Err(EngineError::invalid("tools", message));
            }
        };
        let functions: Vec<Function> =
            list.iter().enumerate().map(|(at, tool)| function(at, tool)).collect::<Result<_, _>>()?;
        if let Some(twice) = (1..functions.len()).find(|at| {
            let (before, rest) = functions.split_at(*at);
            rest.first().is_some_and(|function| before.iter().any(|other| other.name == function.name))
        }) {
            let param = format!("tools[{twice}].function.name");
            return Err(EngineError::invalid(param.clone(), format!("`{param}` is the name of an earlier function.")));
        }
        let Some(choice) = read_choice(choice, &functions)? else { return Ok(None) };
        let parallel = parallel.unwrap_or(true);
        Ok((!functions.is_empty()).then_some(Self { functions, choice, parallel }))
    }

    /// What the answer must spell. `answer`: the schema of an answer without a call.
    pub(crate) fn constraint(&self, answer: Option<&Value>) -> Constraint {
        // Whoever names a function wants one call of it.
        let calls = if self.parallel && !matches!(self.choice, Choice::Named(_)) {
            format!("call (\"\\n{BEGIN}\" call){{0,{}}}", CALLS_MAX - 1)
        } else {
            "call".to_owned()
        };
        let mut lark = String::from("%llguidance {}\n");
        match (&self.choice, answer) {
            // A lazy lexeme ends where it first can: so no other text can hold the mark.
            (Choice::Auto, None) => {
                lark += &format!("start: TEXT | begin {calls}\nTEXT: /(.|\\n)*/\nbegin[lazy]: TEXT \"{BEGIN}\"\n");
            }
            (Choice::Auto, Some(schema)) => {
                lark += &format!("start: answer | \"{BEGIN}\" {calls}\n");
                lark += &format!("answer: %json {}\n", grammar::with_white_space(schema));
            }
            (Choice::Required | Choice::Named(_), _) => lark += &format!("start: \"{BEGIN}\" {calls}\n"),
        }
        let callable = self.functions.iter().filter(|function| match &self.choice {
            Choice::Named(name) => *name == function.name,
            Choice::Auto | Choice::Required => true,
        });
        let callable: Vec<&Function> = callable.collect();
        let names: Vec<String> = (0..callable.len()).map(|number| format!("call_{number}")).collect();
        lark += &format!("call: {}\n", names.join(" | "));
        for (number, function) in callable.iter().enumerate() {
            let (name, schema) = (&function.name, grammar::with_white_space(&function.parameters));
            // The name has no character that a string of Lark would read otherwise.
            lark += &format!(
                "call_{number}: \"\\n{{\\\"name\\\": \\\"{name}\\\", \\\"arguments\\\": \" arguments_{number} \"}}\\n{END}\"\n"
            );
            lark += &format!("arguments_{number}: %json {schema}\n");
        }
        Constraint { lark, param: "tools", call_mark: Some(BEGIN) }
    }

    /// What the model is told of the functions, for the system message.
    pub(crate) fn introduction(&self) -> String {
        let mut text = String::from(
            "You can call functions of the application. These are their names, what they do, and the JSON Schemas of \
             their arguments:\n<tools>\n",
        );
        for function in &self.functions {
            let mut told = Map::from_iter([("name".to_owned(), json!(function.name))]);
            if let Some(description) = &function.description {
                told.insert("description".to_owned(), json!(description));
            }
            told.insert("parameters".to_owned(), function.parameters.clone());
            text += &format!("{}\n", json!({"type": "function", "function": told}));
        }
        text += &format!(
            "</tools>\nTo call a function, write its name and its arguments as JSON between {BEGIN} and {END}:\n\
             {BEGIN}\n{{\"name\": \"function\", \"arguments\": {{}}}}\n{END}"
        );
        text
    }
}

/// An earlier call, as the model wrote it.
pub(crate) fn written_call(name: &str, arguments: &str) -> String {
    format!("{BEGIN}\n{{\"name\": {}, \"arguments\": {arguments}}}\n{END}", Value::from(name))
}

/// What a function gave back, as the model reads it.
pub(crate) fn written_response(content: &str) -> String {
    format!("{RESPONSE_BEGIN}\n{content}\n{RESPONSE_END}")
}

fn function(at: usize, tool: &Value) -> Result<Function, EngineError> {
    let at = format!("tools[{at}]");
    let wrong = |field: &str, wanted: &str| {
        let param = format!("{at}{field}");
        EngineError::invalid(param.clone(), format!("`{param}` must be {wanted}."))
    };
    match tool.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(_) => {
            let param = format!("{at}.type");
            let message = format!("`{param}` other than function is not supported by the local engine.");
            return Err(EngineError::unsupported(param, message));
        }
        None => return Err(wrong(".type", "\"function\"")),
    }
    let function = tool.get("function").and_then(Value::as_object);
    let function = function.ok_or_else(|| wrong(".function", "an object with `name` and `parameters`"))?;
    let value = |name: &str| function.get(name).filter(|value| !value.is_null());
    let name = value("name").and_then(Value::as_str).filter(|name| is_name(name));
    let wanted = "1 to 64 of the characters a-z, A-Z, 0-9, _ and -";
    let name = name.ok_or_else(|| wrong(".function.name", wanted))?.to_owned();
    let description = match value("description") {
        None => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(_) => return Err(wrong(".function.description", "a string")),
    };
    let parameters = match value("parameters") {
        // A function without parameters takes none.
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(Value::Object(schema)) => {
            let mut schema = schema.clone();
            if schema.entry("type").or_insert_with(|| json!("object")) != "object" {
                return Err(wrong(".function.parameters.type", "\"object\""));
            }
            Value::Object(schema)
        }
        Some(_) => return Err(wrong(".function.parameters", "a JSON Schema: an object")),
    };
    grammar::check(&parameters, &format!("{at}.function.parameters"))?;
    Ok(Function { name, description, parameters })
}

fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// `None`: nothing is called.
fn read_choice(choice: Option<&Value>, functions: &[Function]) -> Result<Option<Choice>, EngineError> {
    let wrong = |message: &str| Err(EngineError::invalid("tool_choice", message));
    let choice = match choice {
        None => return Ok(Some(Choice::Auto)),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(None),
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            _ => return wrong("`tool_choice` must be none, auto, required, or an object that names a function."),
        },
        Some(Value::Object(object)) if object.get("type").and_then(Value::as_str) == Some("function") => {
            let name = object.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
            match name.filter(|name| functions.iter().any(|function| function.name == *name)) {
                Some(name) => Choice::Named(name.to_owned()),
                None => return wrong("`tool_choice.function.name` must be the name of one of the `tools`."),
            }
        }
        Some(Value::Object(_)) => {
            let message = "`tool_choice.type` other than function is not supported by the local engine.";
            return Err(EngineError::unsupported("tool_choice", message));
        }
        Some(_) => return wrong("`tool_choice` must be none, auto, required, or an object that names a function."),
    };
    if functions.is_empty() && choice != Choice::Auto {
        return wrong("`tool_choice` is only allowed when `tools` are given.");
    }
    Ok(Some(choice))
}

#[cfg(test)]
pub(crate) mod tests;
