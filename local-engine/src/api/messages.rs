//! The messages of a request, as plain text for the chat template: what functions there are, what was called and what came
//! back is written into them, so that every template can say it.

use serde_json::Value;

use super::fields::{Fields, missing, unsupported};
use crate::chat_template::Message;
use crate::error::EngineError;
use crate::tools::{self, Tools};

/// Messages of a request at most.
const MESSAGES_MAX: usize = 10_000;

/// What a message says to the template.
enum Read {
    Message(Message),
    /// What a function gave back.
    Response(String),
}

/// The messages, with the functions that may be called in the system message.
pub(super) fn messages(body: &Fields<'_>, tools: Option<&Tools>) -> Result<Vec<Message>, EngineError> {
    let list = body.typed("messages", "an array of messages", Value::as_array)?.ok_or_else(|| missing("messages"))?;
    if list.is_empty() {
        return Err(EngineError::invalid("messages", "`messages` is empty; send at least one message."));
    }
    if list.len() > MESSAGES_MAX {
        let message = format!("`messages` has {} entries; {MESSAGES_MAX} are accepted.", list.len());
        return Err(EngineError::invalid("messages", message));
    }
    let mut messages: Vec<Message> = Vec::with_capacity(list.len() + 1);
    let mut after_response = false;
    for (at, value) in list.iter().enumerate() {
        let (message, is_response) = match read(at, value)? {
            Read::Message(message) => (message, false),
            Read::Response(content) => (Message { role: "user", content }, true),
        };
        match messages.last_mut().filter(|_| is_response && after_response) {
            // Of several calls: many templates take turns of user and assistant only.
            Some(last) => last.content = format!("{}\n{}", last.content, message.content),
            None => messages.push(message),
        }
        after_response = is_response;
    }
    if let Some(tools) = tools {
        introduce(&mut messages, tools);
    }
    Ok(messages)
}

fn introduce(messages: &mut Vec<Message>, tools: &Tools) {
    let introduction = tools.introduction();
    match messages.first_mut().filter(|first| first.role == "system") {
        Some(first) => first.content = format!("{}\n\n{introduction}", first.content),
        None => messages.insert(0, Message { role: "system", content: introduction }),
    }
}

fn read(at: usize, value: &Value) -> Result<Read, EngineError> {
    let param = |field: &str| format!("messages[{at}]{field}");
    let wrong = |field: &str, wanted: &str| {
        let param = param(field);
        EngineError::invalid(param.clone(), format!("`{param}` must be {wanted}."))
    };
    let object = value.as_object().ok_or_else(|| wrong("", "an object with `role` and `content`"))?;
    let fields = Fields(object);
    let role = match fields.value("role").and_then(Value::as_str) {
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool") => "tool",
        Some("function") => return Err(unsupported(&param(".role (function)"))),
        _ => return Err(wrong(".role", "system, developer, user, assistant or tool")),
    };
    if fields.value("function_call").is_some() {
        return Err(unsupported(&param(".function_call")));
    }
    let calls = match fields.value("tool_calls") {
        None => Vec::new(),
        Some(_) if role != "assistant" => return Err(wrong(".tool_calls", "left out but in an assistant's message")),
        Some(calls) => written_calls(calls, &param(".tool_calls"))?,
    };
    let content = match fields.value("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => text_of_parts(parts, &param(".content"))?,
        None if !calls.is_empty() => String::new(),
        _ => return Err(wrong(".content", "a string or an array of text parts")),
    };
    if role == "tool" {
        if !fields.value("tool_call_id").is_some_and(Value::is_string) {
            return Err(wrong(".tool_call_id", "a string"));
        }
        return Ok(Read::Response(tools::written_response(&content)));
    }
    let said = Some(content).filter(|content| !content.is_empty() || calls.is_empty());
    let content = said.into_iter().chain(calls).collect::<Vec<_>>().join("\n");
    Ok(Read::Message(Message { role, content }))
}

fn written_calls(calls: &Value, param: &str) -> Result<Vec<String>, EngineError> {
    let wrong =
        |param: String, wanted: &str| EngineError::invalid(param.clone(), format!("`{param}` must be {wanted}."));
    let list = calls.as_array().ok_or_else(|| wrong(param.to_owned(), "an array of calls"))?;
    let written = list.iter().enumerate().map(|(at, call)| {
        let param = format!("{param}[{at}]");
        match call.get("type").and_then(Value::as_str) {
            Some("function") => {}
            Some(_) => return Err(unsupported(&format!("{param}.type (not function)"))),
            None => return Err(wrong(format!("{param}.type"), "\"function\"")),
        }
        let text = |field: &str| {
            let text = call.get("function").and_then(|function| function.get(field)).and_then(Value::as_str);
            text.ok_or_else(|| wrong(format!("{param}.function.{field}"), "a string"))
        };
        Ok(tools::written_call(text("name")?, text("arguments")?))
    });
    written.collect()
}

fn text_of_parts(parts: &[Value], param: &str) -> Result<String, EngineError> {
    let mut content = String::new();
    for (at, part) in parts.iter().enumerate() {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => content.push_str(text),
            (Some("text"), None) => {
                let param = format!("{param}[{at}].text");
                return Err(EngineError::invalid(param.clone(), format!("`{param}` must be a string.")));
            }
            _ => return Err(unsupported(&format!("{param}[{at}] (not text)"))),
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::tests::two_tools;

    fn read(list: &Value, tools: Option<&Tools>) -> Result<Vec<(&'static str, String)>, EngineError> {
        let body = json!({"messages": list});
        let messages = messages(&Fields(body.as_object().unwrap()), tools)?;
        Ok(messages.into_iter().map(|message| (message.role, message.content)).collect())
    }

    #[test]
    fn calls_and_responses_become_text_that_every_template_takes() {
        let call = |id: &str, arguments: &str| {
            let function = json!({"name": "weather", "arguments": arguments});
            json!({"id": id, "type": "function", "function": function})
        };
        let list = json!([
            {"role": "user", "content": "Rome or Oslo?"},
            {"role": "assistant", "content": null, "tool_calls": [call("1", "{\"city\": \"Rome\"}"), call("2", "{}")]},
            {"role": "tool", "tool_call_id": "1", "content": "warm"},
            {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "cold"}]},
            {"role": "assistant", "content": "Rome."},
        ]);
        let messages = read(&list, None).unwrap();
        let roles: Vec<&str> = messages.iter().map(|(role, _)| *role).collect();
        assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
        assert_eq!(
            messages[1].1,
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>\n\
             <tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>"
        );
        assert_eq!(messages[2].1, "<tool_response>\nwarm\n</tool_response>\n<tool_response>\ncold\n</tool_response>");
    }

    #[test]
    fn functions_are_told_in_the_system_message() {
        let tools = two_tools(json!("auto"), true);
        let without = read(&json!([{"role": "user", "content": "hi"}]), Some(&tools)).unwrap();
        assert_eq!((without[0].0, without.len()), ("system", 2));
        let list = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]);
        let with = read(&list, Some(&tools)).unwrap();
        assert_eq!(with[0].1, format!("Be brief.\n\n{}", without[0].1));
        assert_eq!(with.len(), 2);
    }

    #[test]
    fn wrong_calls_name_their_field() {
        let assistant = |calls: Value| json!([{"role": "assistant", "content": "x", "tool_calls": calls}]);
        for (list, param) in [
            (assistant(json!(7)), "messages[0].tool_calls"),
            (assistant(json!([{}])), "messages[0].tool_calls[0].type"),
            (assistant(json!([{"type": "function"}])), "messages[0].tool_calls[0].function.name"),
            (
                assistant(json!([{"type": "function", "function": {"name": "a", "arguments": {}}}])),
                "messages[0].tool_calls[0].function.arguments",
            ),
            (json!([{"role": "user", "content": "x", "tool_calls": []}]), "messages[0].tool_calls"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
            (json!([{"role": "assistant", "content": null}]), "messages[0].content"),
        ] {
            let error = read(&list, None).unwrap_err();
            assert!(matches!(&error, EngineError::Invalid { param: Some(at), .. } if at == param), "{error:?}");
        }
    }
}
