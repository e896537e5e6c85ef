//! The ways in which a text can be read.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::IgnoredAny;

use crate::escapes::resolved;
use crate::runs::{MAX_BYTES, Runs};

/// JSON in a string in JSON in a string: escapes are resolved so often at most.
const MAX_DEPTH: usize = 4;

/// A text as it is written, and as it reads when its escapes are resolved, once and as often as there are any.
///
/// `{"to": "li\u0040example.com\nGlobex"}` in a string has no `@`, and no word `Globex`, until it is read as JSON. Program
/// text and logs hold such escapes without being JSON, so they are resolved everywhere; and since a backslash need not be an
/// escape (`C:\new`), such a text is also read as it stands.
#[derive(Debug)]
pub struct Readings<'a> {
    written: Cow<'a, str>,
    deeper: Vec<Level>,
    is_json: bool,
}

/// What the level above it reads as.
#[derive(Debug)]
struct Level {
    text: String,
    runs: Runs,
}

impl<'a> Readings<'a> {
    /// Copies only what has escapes.
    #[must_use]
    pub fn of(written: impl Into<Cow<'a, str>>) -> Self {
        let written = written.into();
        let mut deeper: Vec<Level> = Vec::new();
        while deeper.len() < MAX_DEPTH && written.len() <= MAX_BYTES {
            let above = deeper.last().map_or(&*written, |level| &level.text);
            let Some((text, runs)) = resolved(above) else { break };
            deeper.push(Level { text, runs });
        }
        let is_json = !deeper.is_empty() && is_json(&written);
        Self { written, deeper, is_json }
    }

    /// Each reading, named by how often escapes were resolved; at most three, none longer than the text. JSON is not read as
    /// it stands: that would only say less exactly where something is.
    pub fn texts(&self) -> impl Iterator<Item = (usize, &str)> {
        self.all_texts().skip(usize::from(self.is_json))
    }

    /// As [`texts`](Self::texts), with JSON as it stands as well: of a text that is not over, nobody knows yet whether it is JSON.
    pub fn all_texts(&self) -> impl Iterator<Item = (usize, &str)> {
        let written = Some((0, &*self.written));
        let last = self.deeper.len();
        let first = self.deeper.first().map(|level| (1, level.text.as_str()));
        let all = self.deeper.last().filter(|_| last > 1).map(|level| (last, level.text.as_str()));
        written.into_iter().chain(first).chain(all)
    }

    /// The bytes of the written text that a span (not empty, on character boundaries) of a reading came from. No escape is cut.
    #[must_use]
    pub fn original(&self, depth: usize, span: Range<usize>) -> Range<usize> {
        let span = self.deeper.get(depth).map_or(span.clone(), |deeper| deeper.runs.widened(span));
        let above = self.deeper.get(..depth).unwrap_or_default();
        above.iter().rev().fold(span, |span, level| level.runs.original(&level.text, span))
    }
}

/// An object or array, whole. (serde_json bounds the depth.)
fn is_json(text: &str) -> bool {
    text.trim_start().starts_with(['{', '[']) && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Where `what` is in any reading, as it is written.
    fn written<'a>(text: &'a str, what: &str) -> Vec<&'a str> {
        let readings = Readings::of(text);
        let mut all = Vec::new();
        for (depth, reading) in readings.texts() {
            let found = reading.match_indices(what).map(|(at, what)| readings.original(depth, at..at + what.len()));
            all.extend(found.map(|span| text.get(span).unwrap()));
        }
        all.dedup();
        all
    }

    #[test]
    fn escapes_lead_back_to_where_they_stand() {
        assert_eq!(written(r#"{"to": "li\u0040x.cn"}"#, "li@x.cn"), [r"li\u0040x.cn"]);
        assert_eq!(written(r#"{"a": "one\nGlobex two"}"#, "Globex"), ["Globex"]);
        assert_eq!(written(r#"["\u4f60\u597d"]"#, "你好"), [r"\u4f60\u597d"]);
        assert_eq!(written(r#"["\ud83d\ude00!"]"#, "😀"), [r"\ud83d\ude00"]);
        assert_eq!(written("nothing special", "special"), ["special"]);
    }

    #[test]
    fn json_in_json_is_read_to_the_bottom() {
        let inner = r#"{"to": "li\u0040x.cn\nGlobex"}"#;
        let text = json!({"arguments": json!({"call": inner}).to_string()}).to_string();
        assert_eq!(written(&text, "li@x.cn"), [r"li\\\\u0040x.cn"]);
        assert_eq!(written(&text, "\nGlobex\"").len(), 1);
        let masked = text.replace(written(&text, "li@x.cn")[0], "[EMAIL]");
        let parsed: Value = serde_json::from_str(&masked).unwrap();
        let parsed: Value = serde_json::from_str(parsed["arguments"].as_str().unwrap()).unwrap();
        let parsed: Value = serde_json::from_str(parsed["call"].as_str().unwrap()).unwrap();
        assert_eq!(parsed["to"], "[EMAIL]\nGlobex");
    }

    #[test]
    fn program_text_is_read_both_ways() {
        let text = r"print('\nGlobex') # C:\new";
        assert_eq!(written(text, "Globex"), ["Globex"]);
        assert_eq!(written(text, r"C:\new"), [r"C:\new"]);
        // A find that begins inside of an escape takes all of it along.
        assert_eq!(written(r"'\nab'", "nab"), [r"\nab"]);
    }

    #[test]
    fn json_is_not_read_as_it_stands() {
        assert!(written(r#"{"a": "\nbob@x.cn"}"#, "nbob").is_empty());
        assert_eq!(written(r#"{"a": "\nbob@x.cn"}"#, "bob@x.cn"), ["bob@x.cn"]);
    }

    #[test]
    fn readings_are_bounded() {
        let text = "\\".repeat(100_000) + "n";
        let readings = Readings::of(&text);
        assert_eq!(readings.deeper.len(), MAX_DEPTH);
        assert!(readings.texts().count() <= 3);
        assert!(readings.texts().all(|(_, reading)| reading.len() <= text.len()));
    }

    proptest! {
        #[test]
        fn spans_are_always_text(text in r#"[\\\\\\nu0041d83de00"{}é中😀 ]{0,60}"#) {
            let readings = Readings::of(&text);
            for (depth, reading) in readings.texts() {
                let places: Vec<usize> = reading.char_indices().map(|(at, _)| at).chain([reading.len()]).collect();
                for pair in places.windows(2) {
                    let span = readings.original(depth, pair[0]..pair[1]);
                    prop_assert!(!span.is_empty() && text.get(span.clone()).is_some(), "{depth} {pair:?} {span:?}");
                }
            }
        }
    }
}
