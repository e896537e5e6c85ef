//! What templates may call, beside what Jinja2 has: as Hugging Face's transformers sets it up.

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize as _;
use time::OffsetDateTime;

/// Characters of a format for dates at most.
const FORMAT_MAX: usize = 128;
/// Spaces of a level of JSON at most.
const INDENT_MAX: usize = 16;

pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| strftime(OffsetDateTime::now_utc(), &format));
    // The one of minijinja writes `<` as `\u003c`, for web pages; models were not trained on that.
    environment.add_filter("tojson", to_json);
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it: a space after `,` and `:`, or lines with an indent.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Given by some templates with the value that it has here anyway.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let wrong = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent.min(INDENT_MAX));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(wrong)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(wrong)?,
    }
    String::from_utf8(out)
        .map(Value::from_safe_string)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
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
