//! Messages to the text that the model was trained on, by the template in its file.
//!
//! Templates are written for Python's Jinja2 as Hugging Face transformers sets it up: blocks trimmed, and a few functions.
//! They come from strangers, as model files do, so what one may do is bounded: its work and the memory that it makes by
//! minijinja's fuel, and the prompt by what the messages can give. Two things minijinja counts too late: a text made with `~`
//! of a list that holds other lists many times over, and lists within lists so deep that the stack ends. Both end the
//! process; the supervisor renders nothing, and starts the engine again.

mod functions;

use std::collections::BTreeMap;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::error::EngineError;

const NAME: &str = "chat";
/// Bytes of a template at most; known ones have less than 20,000.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;
/// One unit of fuel is one instruction of a template, or 64 bytes that it makes or goes through: so many for any
/// conversation, and more for each of its messages and for each byte in them. Known templates need a part of it.
const FUEL: u64 = 250_000;
const FUEL_OF_A_MESSAGE: u64 = 1000;
const FUEL_OF_A_BYTE: u64 = 1;
/// In all at most: half a gigabyte, or less than a second.
const FUEL_MAX: u64 = 8 << 20;
/// Values are printed and dropped by recursion. Only what is used becomes memory.
const STACK_BYTES: usize = 256 << 20;
/// Bytes that a template may write: so many for any conversation, for each of its messages, and for each byte in them.
const WRITTEN: usize = 64 << 10;
const WRITTEN_OF_A_MESSAGE: usize = 1 << 10;
const WRITTEN_OF_A_BYTE: usize = 2;

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

/// Why there is no prompt.
enum Unrendered {
    /// More work than a conversation of this size may take.
    Work,
    /// A longer prompt than it may give.
    Length,
    /// The template refuses it, or fails: of what kind, and in which line.
    Refused(String),
}

/// A compiled template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
}

impl ChatTemplate {
    /// `begin` and `end` are the texts of the model's first and last token, which templates may use.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`]: it is no template, or one that makes no prompt of a short conversation.
    pub(crate) fn new(source: &str, begin: &str, end: &str) -> Result<Self, EngineError> {
        let template = Self { environment: compiled(source)?, begin: begin.to_owned(), end: end.to_owned() };
        template.try_out()?;
        Ok(template)
    }

    /// Whether it is a template at all. Runs nothing of it.
    pub(crate) fn check(source: &str) -> Result<(), EngineError> {
        compiled(source).map(drop)
    }

    /// The prompt of a conversation, up to where the answer begins.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, EngineError> {
        // The template's own error may quote a message: it is not passed on.
        let message = match self.rendered(messages) {
            Ok(prompt) => return Ok(prompt),
            Err(Unrendered::Refused(_)) => "The model does not take messages of these roles or in this order.",
            Err(Unrendered::Work | Unrendered::Length) => {
                "The model's chat template would make more of these messages than it may. Please send fewer or shorter ones."
            }
        };
        Err(EngineError::invalid("messages", message))
    }

    /// Short conversations, with and without a system message. A template may refuse system messages, but no others.
    fn try_out(&self) -> Result<(), EngineError> {
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        let turns = [message("user", "Hi."), message("assistant", "Hello."), message("user", "How are you?")];
        let with_system = [&[message("system", "Be brief.")], turns.as_slice()].concat();
        match (self.rendered(&turns), self.rendered(&with_system)) {
            (Err(Unrendered::Work), _) | (_, Err(Unrendered::Work)) => {
                Err(unsupported("that does not end within the work that one may take"))
            }
            (Err(Unrendered::Length), _) | (_, Err(Unrendered::Length)) => {
                Err(unsupported("that makes a long prompt of a short conversation"))
            }
            (Err(Unrendered::Refused(why)), _) => {
                Err(unsupported(&format!("that fails on a short conversation ({why})")))
            }
            (Ok(_), Ok(_) | Err(Unrendered::Refused(_))) => Ok(()),
        }
    }

    fn rendered(&self, messages: &[Message]) -> Result<String, Unrendered> {
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        let fuel = FUEL + FUEL_OF_A_MESSAGE * messages.len() as u64 + FUEL_OF_A_BYTE * bytes as u64;
        let written_max = WRITTEN + WRITTEN_OF_A_MESSAGE * messages.len() + WRITTEN_OF_A_BYTE * bytes;
        let values: Vec<Value> = messages.iter().map(Message::to_value).collect();
        let values = context! {
            messages => values, add_generation_prompt => true,
            bos_token => self.begin.as_str(), eos_token => self.end.as_str(),
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES);
            let rendering = thread.spawn_scoped(scope, || self.rendered_here(values, fuel.min(FUEL_MAX), written_max));
            let failed = || Unrendered::Refused("it cannot be run".to_owned());
            rendering.map_err(|_| failed())?.join().map_err(|_| failed())?
        })
    }

    fn rendered_here(&self, values: Value, fuel: u64, bytes_max: usize) -> Result<String, Unrendered> {
        // Fuel belongs to an environment; what is in it is shared, not copied.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let mut prompt = Prompt { bytes: Vec::new(), bytes_max, is_full: false };
        let template = environment.get_template(NAME);
        let rendered = template.and_then(|template| template.render_captured_to(values, &mut prompt).map(drop));
        match rendered {
            Ok(()) => String::from_utf8(prompt.bytes).map_err(|_| Unrendered::Refused("text".to_owned())),
            Err(_) if prompt.is_full => Err(Unrendered::Length),
            Err(error) if is_out_of_fuel(&error) => Err(Unrendered::Work),
            Err(error) => Err(Unrendered::Refused(kind_and_line(&error))),
        }
    }
}

fn compiled(source: &str) -> Result<Environment<'static>, EngineError> {
    if source.len() > TEMPLATE_BYTES_MAX {
        return Err(unsupported(&format!("of more than {TEMPLATE_BYTES_MAX} bytes")));
    }
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| EngineError::Unsupported(error.to_string()))?);
    functions::add_to(&mut environment);
    let added = environment.add_template_owned(NAME, source.to_owned());
    added.map_err(|error| unsupported(&format!("of this kind ({})", kind_and_line(&error))))?;
    Ok(environment)
}

/// What a template writes, up to a bound.
struct Prompt {
    bytes: Vec<u8>,
    bytes_max: usize,
    is_full: bool,
}

impl io::Write for Prompt {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + more.len() > self.bytes_max {
            self.is_full = true;
            return Err(io::Error::other("the prompt is too long"));
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn unsupported(what: &str) -> EngineError {
    EngineError::Unsupported(format!("a chat template {what}"))
}

/// An error of a function or macro that the template called lies within its own.
fn is_out_of_fuel(error: &Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = source {
        if one.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return true;
        }
        source = one.source();
    }
    false
}

/// In fixed words: what it says itself is the template's.
fn kind_and_line(error: &Error) -> String {
    error.line().map_or_else(|| error.kind().to_string(), |line| format!("{} in line {line}", error.kind()))
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
        let source = "{% if messages | length == 1 %}{{ raise_exception('no: ' + messages[0].content) }}{% endif %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let error = template.render(&[user("secret")]).unwrap_err();
        assert!(matches!(error, EngineError::Invalid { .. }));
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn a_template_that_is_no_template_is_refused() {
        for (source, why) in [
            ("{% for %}", "syntax error in line 1"),
            ("\n{{ messages.made_up() }}", "fails on a short conversation"),
            ("{{ raise_exception('never') }}", "fails on a short conversation"),
        ] {
            let error = ChatTemplate::new(source, "", "").err().unwrap();
            assert!(matches!(error, EngineError::Unsupported(_)) && error.to_string().contains(why), "{error}");
        }
        let no_system =
            "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}";
        assert!(ChatTemplate::new(no_system, "", "").is_ok());
    }

    /// Each would take minutes, or gigabytes.
    #[test]
    fn hostile_templates_are_refused_at_once() {
        let work = "does not end within the work";
        let doubled = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
        for (source, why) in [
            ("{{ 'x' * 1000000000 }}", work),
            ("{{ (['x'] * 90000000) | join }}", work),
            ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", work),
            (doubled, work),
            ("{{ '%1000000000s' | format('x') }}", work),
            ("{{ '{:>1000000000}'.format('x') }}", work),
            ("{% set a = 'x' * 5000000 %}{{ ('{0}' * 5000).format(a) | length }}", work),
            ("{% set a = 'x' * 5000000 %}{{ ''.join([a] * 99999) | length }}", work),
            ("{% set a = 'x' * 5000000 %}{{ ([a] * 99999) | join | length }}", work),
            ("{% set a = 'x' * 5000000 %}{{ ([a] * 99999) | tojson | length }}", work),
            ("{% set a = 'x' * 5000000 %}{{ ([a] * 99999) | string | length }}", work),
            ("{% set a = 'x' * 5000000 %}{% set b %}{{ [a] * 99999 }}{% endset %}", work),
            (
                "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
                work,
            ),
            ("{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}", ""),
            ("{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}", work),
            ("{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}", work),
            ("{{ ('y' * 1000000).join(('x' * 1000000).split('')) }}", work),
            ("{% for i in range(99999) %}{{ ('x' * 9000000).split('x') | length }}{% endfor %}", work),
            ("{{ ('x' * 9000000).strip('y' * 5000000 ~ 'x') }}", work),
            ("{% set a = 'x' * 5000000 %}{{ (a ~ 'y').endswith((a, a) * 99999) }}", work),
            ("{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}", ""),
            ("{{ range(100000) | list | tojson(indent=16) }}", "a long prompt of a short"),
            ("{% for i in range(9000) %}{{ '0123456789' * 10 }}{% endfor %}", "a long prompt of a short"),
        ] {
            let error = ChatTemplate::new(source, "", "").err().unwrap_or_else(|| panic!("{source} is taken"));
            assert!(error.to_string().contains(why), "{source}: {error}");
        }
    }

    /// What a template may do grows with the conversation: one that is fine with a short one is not let off with a long one.
    #[test]
    fn long_conversations_are_rendered_and_quadratic_ones_refused() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] | trim }}\n{% endfor %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let many: Vec<Message> = (0..5000).map(|_| user("A short one.")).collect();
        assert_eq!(template.render(&many).unwrap().len(), 5000 * "<user>A short one.\n".len());
        assert!(template.render(&[user(&"word ".repeat(1 << 20))]).is_ok());
        let source = "{% for m in messages %}{% for n in messages %}{% endfor %}{{ m.content }}{% endfor %}";
        let error = ChatTemplate::new(source, "", "").unwrap().render(&many).unwrap_err();
        assert!(error.to_string().contains("fewer or shorter"), "{error}");
        let source = "{% for m in messages %}{{ m.content }}{{ m.content }}{{ m.content }}{% endfor %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let error = template.render(&[user(&"secret".repeat(100_000))]).unwrap_err().to_string();
        assert!(error.contains("fewer or shorter") && !error.contains("secret"), "{error}");
    }
}
