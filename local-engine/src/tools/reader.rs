//! An answer's text as it comes, cut at any place, taken apart into what is said and what is called.

use super::BEGIN;

const NAME_BEGIN: &str = "\n{\"name\": \"";
const ARGUMENTS_BEGIN: &str = "\", \"arguments\": ";

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// Text for people.
    Text(String),
    /// A call begins.
    Call {
        /// 0 for the first of the answer.
        index: usize,
        /// The function.
        name: String,
    },
    /// JSON to append to the arguments of a call.
    Arguments {
        /// Of which call.
        index: usize,
        /// Possibly a part of a token's text, never of a character.
        text: String,
    },
}

/// Reads what the grammar of [`super::Tools::constraint`] spells. What is read depends only on the whole text, not on how
/// it was cut.
#[derive(Debug, Default)]
pub(crate) struct CallReader {
    place: Place,
    /// Text that may yet turn out to be a mark, or the beginning of a call.
    held: String,
    calls: usize,
    /// Something was said before the first call.
    spoken: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Place {
    #[default]
    Text,
    /// After the mark, before the arguments.
    Head,
    Arguments(Json),
    /// After the arguments, up to another call.
    Tail,
}

/// Where in a JSON value.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Json {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl CallReader {
    /// Takes the next text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        while self.step(&mut said) {}
        said
    }

    /// No more text follows: gives out what was held back for people. A call that was cut stays cut.
    pub(crate) fn finish(&mut self) -> Vec<Said> {
        let rest = std::mem::take(&mut self.held);
        match self.place {
            Place::Text => self.speak(rest).into_iter().collect(),
            Place::Head | Place::Arguments(_) | Place::Tail => Vec::new(),
        }
    }

    /// Calls that have begun.
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    /// One part; false if more text is needed.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        match self.place {
            Place::Text => self.read_text(said),
            Place::Head => self.read_head(said),
            Place::Arguments(json) => self.read_arguments(json, said),
            Place::Tail => {
                let Some(at) = self.held.find(BEGIN) else { return false };
                self.held.drain(..at + BEGIN.len());
                self.place = Place::Head;
                true
            }
        }
    }

    fn read_text(&mut self, said: &mut Vec<Said>) -> bool {
        if let Some(at) = self.held.find(BEGIN) {
            let rest = self.held.split_off(at + BEGIN.len());
            self.held.truncate(at);
            // The white space before a call is the call's.
            let text = self.held.trim_end().to_owned();
            self.held = rest;
            self.place = Place::Head;
            said.extend(self.speak(text));
            return true;
        }
        let keep = self.held.split_off(safe_length(&self.held));
        let text = std::mem::replace(&mut self.held, keep);
        said.extend(self.speak(text));
        false
    }

    fn read_head(&mut self, said: &mut Vec<Said>) -> bool {
        let Some(end) = self.held.find(ARGUMENTS_BEGIN) else { return false };
        let rest = self.held.split_off(end + ARGUMENTS_BEGIN.len());
        self.held.truncate(end);
        let name = self.held.strip_prefix(NAME_BEGIN).unwrap_or(&self.held).to_owned();
        self.held = rest;
        said.push(Said::Call { index: self.calls, name });
        self.calls += 1;
        self.place = Place::Arguments(Json::default());
        true
    }

    fn read_arguments(&mut self, mut json: Json, said: &mut Vec<Said>) -> bool {
        let end = self.held.bytes().position(|byte| json.ends_with(byte));
        let rest = end.map_or_else(String::new, |end| self.held.split_off(end + 1));
        let text = std::mem::replace(&mut self.held, rest);
        if !text.is_empty() {
            said.push(Said::Arguments { index: self.calls.saturating_sub(1), text });
        }
        self.place = if end.is_some() { Place::Tail } else { Place::Arguments(json) };
        end.is_some()
    }

    /// Text for people; white space before the first word is left out, as it is when an answer is nothing but calls.
    fn speak(&mut self, text: String) -> Option<Said> {
        if !self.spoken && text.trim_start().is_empty() {
            return None;
        }
        self.spoken = true;
        (!text.is_empty()).then_some(Said::Text(text))
    }
}

impl Json {
    /// Goes on by a byte; true if it is the last of an object.
    fn ends_with(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// Bytes of text that cannot belong to a mark, nor to the white space before one.
fn safe_length(text: &str) -> usize {
    let begun = (1..BEGIN.len()).rev().find(|length| BEGIN.get(..*length).is_some_and(|begin| text.ends_with(begin)));
    let before = text.get(..text.len() - begun.unwrap_or(0)).unwrap_or(text);
    before.trim_end().len()
}

/// For a test of the marks' own shape.
#[cfg(test)]
pub(super) fn marks() -> (&'static str, &'static str) {
    (BEGIN, super::END)
}
