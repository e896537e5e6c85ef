//! Arguments of a tool: JSON that arrives in pieces.
//!
//! Each string in it is a text, whose escapes are resolved before it is looked at; a mark stands inside of the string. What is no string,
//! such as a number, becomes one if something is found in it. What is not JSON is read as text.

use super::rules::Rules;
use super::text::Text;
use super::{Own, Seen};
use crate::answer::escape::{self, Escape};

/// A number or a word outside of strings, at most. What is longer is not JSON that anybody reads.
const MAX_BARE: usize = 512;
/// The state of reading one call's arguments.
#[derive(Debug)]
pub(super) struct Arguments {
    at: At,
    text: Text,
    /// A character that is not all there: an escape, or the first half of a pair of them.
    escape: String,
    bare: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    Between,
    Bare,
    String,
    /// Not JSON.
    Text,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { at: At::Start, text: Text::escaped(), escape: String::new(), bare: String::new() }
    }
}

impl Arguments {
    /// Takes the next piece, and gives out what is decided by now.
    pub(super) fn push(&mut self, rules: &Rules, own: Own<'_>, piece: &str, out: &mut String, seen: &mut Seen) {
        let mut rest = piece.chars();
        while let Some(c) = rest.next() {
            if seen.stopped.is_some() {
                return;
            }
            match self.at {
                At::Start if c.is_whitespace() => out.push(c),
                At::Start if matches!(c, '{' | '[' | '"') || c == '-' || c.is_ascii_digit() => {
                    self.at = At::Between;
                    self.between(rules, own, c, out, seen);
                }
                At::Start => {
                    self.at = At::Text;
                    self.text = Text::default();
                    let mut first = c.to_string();
                    first.push_str(rest.as_str());
                    return self.text.push(rules, own, &first, out, seen);
                }
                At::Text => {
                    let mut first = c.to_string();
                    first.push_str(rest.as_str());
                    return self.text.push(rules, own, &first, out, seen);
                }
                At::Between => self.between(rules, own, c, out, seen),
                At::Bare if is_bare(c) && self.bare.len() < MAX_BARE => self.bare.push(c),
                At::Bare => {
                    self.bare_ends(rules, own, out, seen);
                    self.between(rules, own, c, out, seen);
                }
                At::String => self.within(rules, own, c, out, seen),
            }
        }
        if self.at == At::String {
            self.text.look(rules, own, out, seen);
        }
    }

    /// They have ended.
    pub(super) fn finish(&mut self, rules: &Rules, own: Own<'_>, out: &mut String, seen: &mut Seen) {
        match self.at {
            At::Bare => self.bare_ends(rules, own, out, seen),
            At::String | At::Text => {
                self.text.finish(rules, own, out, seen);
                // It was cut: that it is not JSON is what the client must see.
                if seen.stopped.is_none() {
                    out.push_str(&std::mem::take(&mut self.escape));
                }
            }
            At::Start | At::Between => {}
        }
    }

    fn between(&mut self, rules: &Rules, own: Own<'_>, c: char, out: &mut String, seen: &mut Seen) {
        if seen.stopped.is_some() {
            return;
        }
        match c {
            '"' => {
                self.at = At::String;
                self.stands(c, out);
            }
            c if is_bare(c) => {
                self.at = At::Bare;
                self.bare.push(c);
                if self.bare.len() >= MAX_BARE {
                    self.bare_ends(rules, own, out, seen);
                }
            }
            c => self.stands(c, out),
        }
    }

    /// What holds the values together, and is none.
    fn stands(&mut self, c: char, out: &mut String) {
        out.push(c);
        self.text.stands_behind(c.encode_utf8(&mut [0; 4]));
    }

    fn bare_ends(&mut self, rules: &Rules, own: Own<'_>, out: &mut String, seen: &mut Seen) {
        self.at = At::Between;
        let bare = std::mem::take(&mut self.bare);
        let (mut looked, before) = (String::new(), seen.count());
        for c in bare.chars() {
            self.text.push_written(rules, own, (c, c.encode_utf8(&mut [0; 4])), &mut looked, seen);
        }
        self.text.finish(rules, own, &mut looked, seen);
        if seen.stopped.is_some() {
            return;
        }
        if seen.count() > before {
            out.push_str(&serde_json::Value::String(looked).to_string());
        } else {
            out.push_str(&looked);
        }
    }

    fn within(&mut self, rules: &Rules, own: Own<'_>, c: char, out: &mut String, seen: &mut Seen) {
        if self.escape.is_empty() {
            match c {
                '"' => {
                    self.text.finish(rules, own, out, seen);
                    if seen.stopped.is_none() {
                        self.at = At::Between;
                        self.stands(c, out);
                    }
                }
                '\\' => self.escape.push(c),
                c => self.text.push_written(rules, own, (c, c.encode_utf8(&mut [0; 4])), out, seen),
            }
            return;
        }
        self.escape.push(c);
        let Some(read) = escape::read(&self.escape) else { return };
        let escape = std::mem::take(&mut self.escape);
        match read {
            Escape::One(c) => self.text.push_written(rules, own, (c, &escape), out, seen),
            // The second half did not come: the first stands for nothing, and what came begins anew.
            Escape::Lone(first) => {
                let (lone, rest) = escape.split_at_checked(first).unwrap_or((&escape, ""));
                self.text.push_written(rules, own, (char::REPLACEMENT_CHARACTER, lone), out, seen);
                for c in rest.chars() {
                    self.within(rules, own, c, out, seen);
                }
            }
        }
    }
}

/// Of a number, or of a word such as `true`.
fn is_bare(c: char) -> bool {
    !c.is_whitespace() && !matches!(c, '{' | '}' | '[' | ']' | ',' | ':' | '"')
}
