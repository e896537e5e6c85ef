//! Messages to the text that the model was trained on, by the template in its file.
//!
//! Templates are written for Python's Jinja2 as Hugging Face transformers sets it up: blocks trimmed, and a few functions.

mod functions;

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};

use crate::error::EngineError;

const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) role: &'static str,
    pub(crate) content: String,
}

impl Message {
    fn to_value(&self) -> Value {
        let fields = [("role", Value::from(self.role)), ("content", Value::from(self.content.as_str()))];
        Value::from(BTreeMap::from(fields))
    }
}

/// A compiled template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
}

impl ChatTemplate {
    /// `begin` and `end` are the texts of the model's first and last token, which templates may use.
    pub(crate) fn new(source: &str, begin: &str, end: &str) -> Result<Self, EngineError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| EngineError::Unsupported(error.to_string()))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        functions::add_to(&mut environment);
        let added = environment.add_template_owned(NAME, source.to_owned());
        added.map_err(|error| EngineError::Unsupported(format!("a chat template of this kind ({})", error.kind())))?;
        Ok(Self { environment, begin: begin.to_owned(), end: end.to_owned() })
    }

    /// The prompt of a conversation, up to where the answer begins.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, EngineError> {
        let messages: Vec<Value> = messages.iter().map(Message::to_value).collect();
        let values = context! {
            messages, add_generation_prompt => true, bos_token => self.begin.as_str(), eos_token => self.end.as_str(),
        };
        let template = self.environment.get_template(NAME).and_then(|template| template.render(values));
        // The template's own error may quote a message: it is not passed on.
        template.map_err(|_| {
            EngineError::invalid("messages", "The model does not take messages of these roles or in this order.")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: &str) -> Message {
        Message { role: "user", content: content.to_owned() }
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_work() {
        let source = "{% for m in messages %}\n  {% if m['role'].startswith('u') %}\n[{{ m.content.strip() | trim }}]\n  {% endif %}\n{% endfor %}\n{{ bos_token }}{% if add_generation_prompt %}>{% endif %}";
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        assert_eq!(template.render(&[user(" a "), user("<b>")]).unwrap(), "[a]\n[<b>]\n<s>>");
    }

    #[test]
    fn a_refusal_by_the_template_is_the_clients_fault_and_quotes_nothing() {
        let template = ChatTemplate::new("{{ raise_exception('no: ' + messages[0].content) }}", "", "").unwrap();
        let error = template.render(&[user("secret")]).unwrap_err();
        assert!(matches!(error, EngineError::Invalid { .. }));
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn a_template_that_is_no_template_is_refused() {
        assert!(matches!(ChatTemplate::new("{% for %}", "", ""), Err(EngineError::Unsupported(_))));
    }
}
