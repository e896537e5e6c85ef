//! What templates may call, beside what Jinja2 has: as Hugging Face's transformers sets it up. And what Jinja2 has, where
//! minijinja's own would make much before it counts it.

use std::fmt::Write as _;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat;
use serde::Serialize as _;
use time::OffsetDateTime;

/// Characters of a format for dates at most.
const FORMAT_MAX: usize = 128;
/// Spaces of a level of JSON at most.
const INDENT_MAX: usize = 16;
/// Digits of a width that a format may ask for at most.
const WIDTH_DIGITS_MAX: usize = 3;
/// Bytes that one unit of fuel pays for.
const FUEL_BYTES: usize = 64;
/// Bytes that a list takes for each of its items.
const ITEM_BYTES: usize = 32;

pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| strftime(OffsetDateTime::now_utc(), &format));
    // The one of minijinja writes `<` as `\u003c`, for web pages; models were not trained on that.
    environment.add_filter("tojson", to_json);
    // Those of minijinja count what they give when it is there.
    environment.add_filter("string", |state: &State<'_, '_>, value: &Value| text(state, value));
    environment.add_filter("join", |state: &State<'_, '_>, values: &Value, joiner: Option<&str>, options: Kwargs| {
        let attribute: Option<&str> = options.get("attribute")?;
        let by_name: Option<&str> = options.get("d")?;
        options.assert_all_used()?;
        join(state, values, joiner.or(by_name).unwrap_or_default(), attribute)
    });
    environment.set_formatter(|out, state, value| match value.as_object() {
        Some(_) => out.write_str(text(state, value)?.as_str().unwrap_or_default()).map_err(Error::from),
        None => escape_formatter(out, state, value),
    });
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        if let (Some(joiner), "join", [values]) = (value.as_str(), method, arguments) {
            return join(state, values, joiner, None);
        }
        pay(state, value, method, arguments)?;
        pycompat::unknown_method_callback(state, value, method, arguments)
    });
}

/// Fuel for what Python's methods go through, before they do: minijinja takes it for what they give.
fn pay(state: &State<'_, '_>, value: &Value, method: &str, arguments: &[Value]) -> Result<(), Error> {
    let Some(text) = value.as_str() else { return Ok(()) };
    // Each character of the text is compared with each of those, or its beginning with each of a list.
    let compared = arguments.iter().map(|argument| match argument.as_str() {
        Some(characters) if method.ends_with("strip") => characters.len(),
        Some(_) => 1,
        None => argument.len().unwrap_or(1),
    });
    let bytes = match method {
        "split" | "splitlines" => pieces(text, method, arguments).saturating_mul(ITEM_BYTES).saturating_add(text.len()),
        "format" => formatted_bytes(state, text, arguments)?,
        _ => text.len().saturating_mul(compared.max().unwrap_or(1).max(1)),
    };
    state.consume_fuel((bytes / FUEL_BYTES) as u64)
}

/// How many a text is split into, at most.
fn pieces(text: &str, method: &str, arguments: &[Value]) -> usize {
    let between = match arguments.first().and_then(Value::as_str) {
        _ if method == "splitlines" => text.matches('\n').count(),
        Some("") => text.len(),
        Some(separator) => text.matches(separator).count(),
        None => text.split_whitespace().count(),
    };
    between + 1
}

/// Bytes that `str.format` makes at most.
fn formatted_bytes(state: &State<'_, '_>, format: &str, arguments: &[Value]) -> Result<usize, Error> {
    let digits = format.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if digits > WIDTH_DIGITS_MAX {
        return Err(Error::from(ErrorKind::OutOfFuel));
    }
    let mut longest = 10usize.pow(WIDTH_DIGITS_MAX as u32);
    for argument in arguments {
        longest = longest.max(text(state, argument)?.as_str().map_or(0, str::len));
    }
    Ok(format.matches('{').count().saturating_mul(longest).saturating_add(format.len()))
}

/// A value as it is printed.
fn text(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value.clone());
    }
    let mut text = Paid::new(state);
    text.print(value)?;
    Ok(text.into())
}

fn join(state: &State<'_, '_>, values: &Value, joiner: &str, attribute: Option<&str>) -> Result<Value, Error> {
    let mut joined = Paid::new(state);
    for (at, value) in values.try_iter()?.enumerate() {
        state.consume_fuel(1)?;
        if at > 0 {
            joined.push(joiner)?;
        }
        match attribute {
            Some(attribute) => joined.print(&value.get_attr(attribute)?)?,
            None => joined.print(&value)?,
        }
    }
    Ok(joined.into())
}

/// A text that is paid for before it grows.
struct Paid<'a> {
    state: &'a State<'a, 'a>,
    text: String,
    /// Bytes that less than a unit of fuel was due for.
    unpaid: usize,
}

impl<'a> Paid<'a> {
    fn new(state: &'a State<'_, '_>) -> Self {
        Self { state, text: String::new(), unpaid: 0 }
    }

    fn push(&mut self, more: &str) -> Result<(), Error> {
        let due = self.unpaid + more.len();
        self.state.consume_fuel((due / FUEL_BYTES) as u64)?;
        self.unpaid = due % FUEL_BYTES;
        self.text.push_str(more);
        Ok(())
    }

    fn print(&mut self, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => self.push(text),
            // It fails only where `push` does, and then there is no fuel left.
            None => write!(self, "{value}").map_err(|_| Error::from(ErrorKind::OutOfFuel)),
        }
    }
}

impl From<Paid<'_>> for Value {
    fn from(paid: Paid<'_>) -> Self {
        Self::from(paid.text)
    }
}

impl std::fmt::Write for Paid<'_> {
    fn write_str(&mut self, more: &str) -> std::fmt::Result {
        self.push(more).map_err(|_| std::fmt::Error)
    }
}

impl std::io::Write for Paid<'_> {
    fn write(&mut self, more: &[u8]) -> std::io::Result<usize> {
        let text = std::str::from_utf8(more).map_err(std::io::Error::other)?;
        self.push(text).map_err(std::io::Error::other)?;
        Ok(more.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it: a space after `,` and `:`, or lines with an indent.
fn to_json(state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Given by some templates with the value that it has here anyway.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Paid::new(state);
    let written = match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent.min(INDENT_MAX));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    // The text is written in memory: only fuel can be missing.
    written.map_err(|error| {
        let kind = if error.is_io() { ErrorKind::OutOfFuel } else { ErrorKind::BadSerialization };
        Error::new(kind, error.to_string())
    })?;
    Ok(Value::from_safe_string(out.text))
}

/// One line, with a space after `,` and `:`.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The parts of C's `strftime` that dates in prompts are made of.
fn strftime(now: OffsetDateTime, format: &str) -> Result<String, Error> {
    let wrong = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    if format.len() > FORMAT_MAX {
        return Err(wrong("a date's format is too long".to_owned()));
    }
    let (month, weekday) = (now.month().to_string(), now.weekday().to_string());
    let short = |name: &str| name.chars().take(3).collect::<String>();
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        out += &match characters.next() {
            Some('Y') => format!("{:04}", now.year()),
            Some('y') => format!("{:02}", now.year().rem_euclid(100)),
            Some('m') => format!("{:02}", u8::from(now.month())),
            Some('d') => format!("{:02}", now.day()),
            Some('e') => format!("{:2}", now.day()),
            Some('b' | 'h') => short(&month),
            Some('B') => month.clone(),
            Some('a') => short(&weekday),
            Some('A') => weekday.clone(),
            Some('j') => format!("{:03}", now.ordinal()),
            Some('H') => format!("{:02}", now.hour()),
            Some('I') => format!("{:02}", (now.hour() + 11) % 12 + 1),
            Some('p') => if now.hour() < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => format!("{:02}", now.minute()),
            Some('S') => format!("{:02}", now.second()),
            Some('F') => format!("{:04}-{:02}-{:02}", now.year(), u8::from(now.month()), now.day()),
            Some('%') => "%".to_owned(),
            other => return Err(wrong(format!("a date's format has `%{}`", other.unwrap_or(' ')))),
        };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn dates_are_those_of_strftime() {
        let now = datetime!(2026-03-05 00:07:09 UTC);
        for (format, date) in [
            ("%d %b %Y", "05 Mar 2026"),
            ("%A, %B %e, %Y", "Thursday, March  5, 2026"),
            ("%F %H:%M:%S", "2026-03-05 00:07:09"),
            ("%I %p %j %y 100%%", "12 AM 064 26 100%"),
        ] {
            assert_eq!(strftime(now, format).unwrap(), date);
        }
        assert!(strftime(now, "%Q").is_err() && strftime(now, "%").is_err());
    }

    #[test]
    fn lists_are_joined_and_printed_as_python_does() {
        let mut environment = Environment::new();
        add_to(&mut environment);
        let list = minijinja::context! { v => vec!["a", "é"], n => vec![minijinja::context! { x => 1 }] };
        let render = |source: &str| environment.render_str(source, list.clone()).unwrap();
        assert_eq!(
            render("{{ v | join }}-{{ v | join(', ') }}-{{ ' '.join(v) }}-{{ v | join(d='+') }}"),
            "aé-a, é-a é-a+é"
        );
        assert_eq!(render("{{ n | join('', attribute='x') }}{{ [1, 2.5] | join(';') }}"), "11;2.5");
        assert_eq!(render("{{ 7 | string ~ 'x' }}{{ [1, 'b'] }}{{ [1] | string | length }}"), "7x[1, 'b']3");
        assert_eq!(render("{{ '{} and {:>3}'.format('x', 5) }}"), "x and   5");
    }

    #[test]
    fn json_is_that_of_python() {
        let mut environment = Environment::new();
        add_to(&mut environment);
        let render = |source: &str| environment.render_str(source, minijinja::context! { v => "<é>" }).unwrap();
        assert_eq!(
            render("{{ {'a': [1, 2.5, none, true], 'b': v} | tojson }}"),
            r#"{"a": [1, 2.5, null, true], "b": "<é>"}"#
        );
        assert_eq!(
            render("{{ {'a': [1], 'b': {}} | tojson(indent=2) }}"),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"
        );
        assert_eq!(render("{{ [v] | tojson(ensure_ascii=false) }}"), r#"["<é>"]"#);
    }
}
