//! Placeholders → values in JSON that arrives in pieces: arguments of tools, and answers that must be JSON.
//!
//! What a string says is read with its escapes resolved, since a placeholder may be written with some; what is put into it is escaped, so that JSON
//! stays JSON. Everything else comes out as it was written, byte for byte. A string is a text of its own: an address in one says nothing
//! of the next.

use std::collections::VecDeque;

use super::restore::{Kind, Out, Piece, Put, Restorer};
use super::vault::{Entry, Suffix, Vault};
use crate::answer::escape::{self, Escape};
use crate::classify::Conversation;
use crate::keys::Keys;

/// Where values are put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Nowhere: only the form of the placeholders changes.
    Nowhere,
    /// In strings of JSON alone.
    Strings,
    /// In strings, and in what is no JSON: for a text that a person may read as a whole.
    Everywhere,
}

/// What is read in one go.
const RUN: usize = 4 << 10;

/// Restores one text that should be an object of JSON.
#[derive(Debug)]
pub struct JsonRestorer {
    values: Values,
    at: At,
    restorer: Restorer,
    /// An escape that is not all there.
    escape: String,
    string: AsWritten,
    /// Nothing stands on this line yet.
    is_new_line: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    /// Outside of strings, with so many brackets open.
    Between(u32),
    String(u32),
    /// Behind it.
    Done,
    /// It is none.
    Text,
}

impl JsonRestorer {
    /// `from` says whose placeholders the text has.
    #[must_use]
    pub fn new(from: Suffix, values: Values) -> Self {
        let mut restorer = Restorer::new(from);
        restorer.begin(values == Values::Everywhere, Kind::Part);
        let (escape, string) = (String::new(), AsWritten::default());
        Self { values, at: At::Start, restorer, escape, string, is_new_line: true }
    }

    /// One text as a whole.
    #[must_use]
    pub fn whole(&mut self, vault: &Vault, text: &str) -> Piece {
        let mut piece = self.push(vault, text);
        piece.append(self.finish());
        piece
    }

    /// Takes the next piece, and gives out what is certain by now.
    pub fn push(&mut self, vault: &Vault, text: &str) -> Piece {
        let mut out = Piece::default();
        // What is read in one go, escapes resolved.
        let mut run = String::with_capacity(text.len());
        for c in text.chars() {
            self.read(vault, c, &mut run, &mut out);
            if run.len() >= RUN {
                self.pass(vault, &mut run, &mut out);
            }
        }
        self.pass(vault, &mut run, &mut out);
        out
    }

    /// The text has ended: what was held back was no placeholder.
    pub fn finish(&mut self) -> Piece {
        let mut out = Piece::default();
        self.end(&mut out);
        // It was cut: that it is not JSON is what the client must see.
        out.push(&std::mem::take(&mut self.escape));
        out
    }

    /// No value is put in from here on.
    pub fn no_more_values(&mut self) {
        self.values = Values::Nowhere;
        self.restorer.begin(false, Kind::Part);
    }

    /// Has an object of JSON been read to its end, and nothing else?
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.at == At::Done && self.restorer.is_empty()
    }

    /// How many placeholders were restored.
    #[must_use]
    pub fn restored(&self) -> u64 {
        self.restorer.restored()
    }

    /// True if the text has a placeholder that is not of this request.
    #[must_use]
    pub fn saw_foreign(&self) -> bool {
        self.restorer.saw_foreign()
    }

    fn read(&mut self, vault: &Vault, c: char, run: &mut String, out: &mut Piece) {
        self.read_as(vault, c, run, out);
        self.is_new_line = c == '\n' || (self.is_new_line && c.is_whitespace());
    }

    fn read_as(&mut self, vault: &Vault, c: char, run: &mut String, out: &mut Piece) {
        match (self.at, c) {
            (At::String(_), _) => self.within(vault, c, run, out),
            (At::Start, '{') if self.values != Values::Everywhere || self.is_new_line => {
                self.at = At::Between(1);
                run.push(c);
            }
            // An answer may be a list, and stand in a fence or behind some words; an object of arguments does neither.
            (At::Start | At::Done | At::Text, '{' | '[') if self.values == Values::Everywhere && self.is_new_line => {
                self.at = At::Between(1);
                run.push(c);
            }
            (At::Start | At::Done, _) if self.values == Values::Everywhere => run.push(c),
            (At::Between(open), '"') => {
                run.push(c);
                self.change(vault, At::String(open), run, out);
            }
            (At::Between(open), '{' | '[') => {
                self.at = At::Between(open.saturating_add(1));
                run.push(c);
            }
            (At::Between(open), '}' | ']') => {
                run.push(c);
                match open {
                    0 | 1 => self.change(vault, At::Done, run, out),
                    more => self.at = At::Between(more - 1),
                }
            }
            (At::Start | At::Done, c) if !c.is_whitespace() => {
                self.at = At::Text;
                run.push(c);
            }
            _ => run.push(c),
        }
    }

    /// In a string.
    fn within(&mut self, vault: &Vault, c: char, run: &mut String, out: &mut Piece) {
        match (self.escape.is_empty(), c, self.at) {
            (true, '"', At::String(open)) => {
                self.change(vault, At::Between(open), run, out);
                run.push(c);
            }
            (true, '\\', _) => self.escape.push(c),
            (true, c, _) => {
                self.string.behind += c.len_utf8();
                run.push(c);
            }
            (false, c, _) => {
                self.escape.push(c);
                let Some(read) = escape::read(&self.escape) else { return };
                let escape = std::mem::take(&mut self.escape);
                let (meant, len) = match read {
                    Escape::One(meant) => (meant, escape.len()),
                    Escape::Lone(len) => (char::REPLACEMENT_CHARACTER, len),
                };
                let (written, rest) = escape.split_at_checked(len).unwrap_or((&escape, ""));
                self.string.note(meant, written);
                run.push(meant);
                rest.chars().for_each(|c| self.read(vault, c, run, out));
            }
        }
    }

    /// The text that was read so far ends, and another one begins.
    fn change(&mut self, vault: &Vault, to: At, run: &mut String, out: &mut Piece) {
        self.pass(vault, run, out);
        self.end(out);
        self.at = to;
        self.string = AsWritten::default();
        match (to, self.values) {
            (_, Values::Everywhere) => self.restorer.begin(true, Kind::Part),
            (At::String(_), Values::Strings) => self.restorer.begin(true, Kind::Argument),
            (_, Values::Strings | Values::Nowhere) => self.restorer.begin(false, Kind::Part),
        }
    }

    fn pass(&mut self, vault: &Vault, run: &mut String, out: &mut Piece) {
        match self.at {
            At::String(_) => self.restorer.push_to(vault, run, &mut InString { string: &mut self.string, out }),
            At::Start | At::Between(_) | At::Done | At::Text => self.restorer.push_to(vault, run, out),
        }
        run.clear();
    }

    fn end(&mut self, out: &mut Piece) {
        match self.at {
            At::String(_) => self.restorer.finish_to(&mut InString { string: &mut self.string, out }),
            At::Start | At::Between(_) | At::Done | At::Text => self.restorer.finish_to(out),
        }
    }
}

/// A string whose escapes were resolved, going back to how it was written.
struct InString<'a> {
    string: &'a mut AsWritten,
    out: &'a mut Piece,
}

impl Out for InString<'_> {
    fn give(&mut self, text: &str) {
        self.string.nested.pass(text);
        self.string.take(text, |written| self.out.push(written));
    }

    fn put(&mut self, written: &str, entry: &Entry, what: Put) {
        let Self { string, out } = self;
        match what {
            Put::Itself => string.take(written, |written| out.restored.push_str(written)),
            Put::Value | Put::Shown => string.take(written, |_| {}),
        }
        out.cacheable.push_str(entry.placeholder(Suffix::Cache));
        match what {
            Put::Value => out.restored.push_str(&entry.in_json(if string.nested == Nested::String { 2 } else { 1 })),
            Put::Shown => out.restored.push_str(entry.placeholder(Suffix::Wire)),
            Put::Itself => {}
        }
        string.nested.put();
    }
}

/// How a string was written, as far as it is not given out yet.
#[derive(Debug, Default)]
struct AsWritten {
    escapes: VecDeque<Escaped>,
    /// Bytes that stand for themselves, behind the last escape.
    behind: usize,
    nested: Nested,
}

/// A character that was not written as itself.
#[derive(Debug)]
struct Escaped {
    /// Bytes before it that stand for themselves.
    before: usize,
    /// Bytes of the character.
    len: usize,
    written: String,
}

impl AsWritten {
    fn note(&mut self, meant: char, written: &str) {
        let before = std::mem::take(&mut self.behind);
        self.escapes.push_back(Escaped { before, len: meant.len_utf8(), written: written.to_owned() });
    }

    /// The next `text` is given out: calls `each` with how it was written, in pieces.
    fn take(&mut self, text: &str, mut each: impl FnMut(&str)) {
        let mut rest = text;
        while let Some(next) = self.escapes.front_mut() {
            let Some((plain, from)) = rest.split_at_checked(next.before).filter(|(_, from)| !from.is_empty()) else {
                next.before = next.before.saturating_sub(rest.len());
                return each(rest);
            };
            each(plain);
            each(&next.written);
            rest = from.get(next.len..).unwrap_or_default();
            self.escapes.pop_front();
        }
        self.behind = self.behind.saturating_sub(rest.len());
        each(rest);
    }
}

/// How deep in JSON the places of a text are, which come in their order.
#[derive(Debug)]
pub struct Depths<'a> {
    text: &'a str,
    read: usize,
    json: JsonRestorer,
    /// Nothing is restored.
    vault: Vault,
}

impl<'a> Depths<'a> {
    /// Of that text.
    #[must_use]
    pub fn of(text: &'a str, keys: &Keys) -> Self {
        let vault = Vault::new(keys, "", Conversation([0; 32]));
        // It is looked for wherever it may stand; there is nothing to put in.
        Self { text, read: 0, json: JsonRestorer::new(Suffix::Wire, Values::Everywhere), vault }
    }

    /// In how many strings of JSON the byte at `place` stands, one inside the other: what is there was escaped so many times.
    pub fn at(&mut self, place: usize) -> u8 {
        if let Some(more) = self.text.get(self.read..place) {
            let _as_it_was = self.json.push(&self.vault, more);
            self.read = place;
        }
        match self.json.at {
            At::String(_) if self.json.string.nested == Nested::String => 2,
            At::String(_) => 1,
            At::Start | At::Between(_) | At::Done | At::Text => 0,
        }
    }
}

/// A string that is JSON itself, as far as it takes to know where its strings are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Nested {
    #[default]
    Start,
    /// Brackets alone so far.
    Opened,
    /// And a number, or a word, behind them.
    Bare,
    Between,
    String,
    Escape,
    /// It is none.
    Not,
}

impl Nested {
    fn pass(&mut self, text: &str) {
        if *self != Self::Not {
            text.chars().for_each(|c| *self = self.next(c));
        }
    }

    /// A placeholder stands here.
    fn put(&mut self) {
        if matches!(self, Self::Start | Self::Opened | Self::Bare) {
            *self = Self::Not;
        }
    }

    fn next(self, c: char) -> Self {
        match (self, c) {
            (Self::Start | Self::Opened, '{' | '[') => Self::Opened,
            (Self::Start | Self::Opened, c) if c.is_whitespace() => self,
            (Self::Opened | Self::Between, '"') => Self::String,
            (Self::Opened | Self::Bare, c) if c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.') => Self::Bare,
            (Self::Bare, c) if c.is_whitespace() => Self::Bare,
            (Self::Bare, ',') => Self::Between,
            (Self::Start | Self::Opened | Self::Bare, _) => Self::Not,
            (Self::String, '"') => Self::Between,
            (Self::String, '\\') => Self::Escape,
            (Self::Escape, _) => Self::String,
            (same, _) => same,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Values that would break JSON if they were put in as they are.
    const VALUES: [(&str, &str); 4] =
        [("email", "ann@example.org"), ("secret", "a\"b\\c"), ("words", "two\nlines\u{1}"), ("phone", "张 😀 12")];

    fn vault() -> (Vault, Vec<String>) {
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        VALUES.iter().for_each(|(kind, value)| vault.keep(kind, value));
        let placeholders = VALUES.iter().map(|(kind, value)| vault.placeholder(kind, value, Suffix::Wire)).collect();
        (vault, placeholders)
    }

    fn restore(vault: &Vault, values: Values, pieces: &[&str]) -> Piece {
        let mut restorer = JsonRestorer::new(Suffix::Wire, values);
        let mut all = Piece::default();
        pieces.iter().for_each(|piece| all.append(restorer.push(vault, piece)));
        all.append(restorer.finish());
        all
    }

    fn in_strings(vault: &Vault, text: &str) -> String {
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let by_char = restore(vault, Values::Strings, &chars.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(by_char, restore(vault, Values::Strings, &[text]), "{text}");
        by_char.restored
    }

    /// Every character beyond ASCII, and every bracket, as an escape.
    fn in_ascii(json: &str) -> String {
        let mut out = String::new();
        let mut is_string = false;
        let mut before = ' ';
        for c in json.chars() {
            is_string ^= c == '"' && before != '\\';
            if c.is_ascii() && !(is_string && matches!(c, '[' | ']' | '_')) {
                out.push(c);
            } else {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out += &format!("\\u{unit:04X}"));
            }
            before = if before == '\\' && c == '\\' { ' ' } else { c };
        }
        out
    }

    #[test]
    fn json_stays_json_and_the_rest_stays_as_it_was_written() {
        let (vault, p) = vault();
        let text = format!(
            "{{ \"a\\/b\\u00e9\\ud800x\" : [\"{}\", \"\\uD83D\\uDE00 \\\"{}\\\"\", 1.50e3, true],\n\"{}\":\"x\\\\\"}}",
            p[1], p[2], p[0]
        );
        let wanted =
            text.replace(&p[1], r#"a\"b\\c"#).replace(&p[2], r"two\nlines\u0001").replace(&p[0], "ann@example.org");
        assert_eq!(in_strings(&vault, &text), wanted);
        assert_eq!(restore(&vault, Values::Nowhere, &[&text]).restored, text);
        let cached = restore(&vault, Values::Strings, &[&text]).cacheable;
        assert!(cached.contains(&vault.placeholder("email", VALUES[0].1, Suffix::Cache)) && !cached.contains(&p[0]));
        assert_eq!(in_strings(&vault, &in_ascii(&format!("{{\"a\":\"x {}\"}}", p[0]))), r#"{"a":"x ann@example.org"}"#);
        let escaped = p[0].replace('_', "\\\\_");
        assert_eq!(in_strings(&vault, &format!("{{\"a\":\"{escaped}\"}}")), r#"{"a":"ann@example.org"}"#);
    }

    #[test]
    fn only_strings_of_an_object_get_values() {
        let (vault, p) = vault();
        for text in [p[0].clone(), format!("{{\"a\": {}}}", p[0]), format!("{{}} {}", p[0]), format!("to=\"{}\"", p[0])]
        {
            assert_eq!(in_strings(&vault, &text), text);
            let everywhere = restore(&vault, Values::Everywhere, &[&text]).restored;
            assert_eq!(everywhere, text.replace(&p[0], VALUES[0].1));
        }
        let text =
            |url: &str, to: &str| format!("{{\"url\":\"{}\",\"to\":\"{to}\",\"{to}\":1}}", url.replace('P', &p[0]));
        for url in [
            "https://e.com/?q=P",
            r"https://e.com/?q=\tP",
            r"  Http\n:\r//e.com/?q=P",
            "https://e.com/?q= P and P",
            "https:e.com/?q=P",
            "e.com/?q=P",
            "see e.com?P",
            "2130706433/?q=P",
            "ftp:2130706433/?q=P",
            "evil:8080/?q=P",
            "[::1]/?q=P",
            "localhost/?q=P",
            "evil%2ecom/?q=P",
            "evil。com/?q=P",
            "![x](P)",
            "<img src='P",
            r#"{\"url\":\"https\\u003a\\u002f\\u002fe.com?q=P\"}"#,
        ] {
            assert_eq!(in_strings(&vault, &text(url, &p[0])), text(url, VALUES[0].1), "{url}");
        }
        for mail in [
            r"See https://e.com/a\n\nRegards, P. Version 1.2, P",
            "您好，价格是3.5元/月，请联系P 谢谢 P",
            "Wait...what? please write to P",
            "24/7: P and/or P?",
            "[1] see P",
        ] {
            let restored = in_strings(&vault, &text(mail, &p[0]));
            assert_eq!(restored, text(&mail.replace('P', VALUES[0].1), VALUES[0].1));
        }
    }

    #[test]
    fn json_in_a_string_stays_json_as_well() {
        let (vault, p) = vault();
        let nested = |inner: &Value| json!({"body": inner.to_string()}).to_string();
        let masked = json!({"pw": p[1], "list": [{"of": p[2]}]});
        let restored: Value = serde_json::from_str(&in_strings(&vault, &nested(&masked))).unwrap();
        let inner: Value = serde_json::from_str(restored["body"].as_str().unwrap()).unwrap();
        assert_eq!(inner, json!({"pw": VALUES[1].1, "list": [{"of": VALUES[2].1}]}));
        for (open, close) in [("[1, ", "]"), ("[true,{\"x\":", "}]"), ("[-1.5, [", "]]")] {
            let inner = |value: &str| format!("{open}{}{close}", Value::from(value));
            let restored: Value =
                serde_json::from_str(&in_strings(&vault, &json!({"b": inner(&p[1])}).to_string())).unwrap();
            assert_eq!(restored["b"], inner(VALUES[1].1));
        }
        let prose = |secret: &str| json!({"note": format!("[{secret} is \"{secret}\"")}).to_string();
        assert_eq!(in_strings(&vault, &prose(&p[1])), prose(VALUES[1].1));
    }

    #[test]
    fn what_was_cut_out_of_json_goes_back_as_it_was() {
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        let (flat, deep) = (r#"M\u00fcller \"GmbH\""#, r#"Blue \\\"Heron\\\" \\\\ Sons"#);
        vault.keep_as("words", flat, 1);
        vault.keep_as("words", deep, 2);
        // Not what it would look like there.
        vault.keep_as("words", r"a\", 1);
        let all = [flat, deep, r"a\"].map(|value| (value, vault.placeholder("words", value, Suffix::Wire)));
        let meant = ["Müller \"GmbH\"", r#"Blue "Heron" \ Sons"#, r"a\"];
        for ((value, p), meant) in all.iter().zip(meant) {
            let in_one = in_strings(&vault, &format!("{{\"to\":\"{p}\"}}"));
            assert_eq!(serde_json::from_str::<Value>(&in_one).unwrap()["to"], meant);
            let nested = json!({"body": format!("{{\"to\":\"{p}\"}}")}).to_string();
            let in_two: Value = serde_json::from_str(&in_strings(&vault, &nested)).unwrap();
            assert_eq!(serde_json::from_str::<Value>(in_two["body"].as_str().unwrap()).unwrap()["to"], meant);
            assert!(*value != deep || in_strings(&vault, &nested).contains(deep), "as it was written");
            assert!(*value != flat || in_one.contains(flat));
        }
        let text = json!({"a": flat, "b": json!({"c": deep}).to_string()}).to_string();
        let mut depths = Depths::of(&text, &Keys::random());
        let at = |part: &str| text.find(part).unwrap();
        assert_eq!([at("M"), at("Blue"), at("}")].map(|place| depths.at(place)), [1, 2, 1]);
        let of = |text: &str| Depths::of(text, &Keys::random()).at(text.find('V').unwrap());
        for text in [r#"[{"a":"V"}]"#, "{\"a\":1}\n{\"b\":\"V\"}", "```json\n[\"V\"]\n```", "See:\n  {\"a\":\"V\"}"] {
            assert_eq!(of(text), 1, "{text}");
        }
        for text in ["V", "\"V\"", "as in \"a{\"V\"", "{} V", "{\"a\":1}\n\"V\""] {
            assert_eq!(of(text), 0, "{text}");
        }
    }

    #[test]
    fn nothing_waits_but_a_beginning_of_a_placeholder() {
        let (vault, _) = vault();
        let mut restorer = JsonRestorer::new(Suffix::Wire, Values::Strings);
        for (piece, given) in [
            ("{\"a", "{\"a"),
            ("\": [", "\": "),
            ("\"b [EM", "[\"b "),
            ("AIL.", "[EMAIL."),
            ("\\", ""),
            ("n\"]}", "\\n\"]}"),
        ] {
            assert_eq!(restorer.push(&vault, piece).restored, given);
        }
        assert!(restorer.is_complete());
        let mut cut = JsonRestorer::new(Suffix::Wire, Values::Strings);
        assert_eq!(cut.whole(&vault, "{\"a [EM\\u00").restored, "{\"a [EM\\u00");
    }

    /// What a string of an answer is made of; numbers stand for values.
    fn string() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            "[a-z\"\\\\/ \\[\\]{}:,\n四😀]{0,6}",
            (0..VALUES.len()).prop_map(|value| format!("\u{e000}{value}")),
            Just("[EMAIL_1_".to_owned()),
        ];
        prop::collection::vec(part, 0..4).prop_map(|parts| parts.concat())
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![string().prop_map(Value::from), any::<i32>().prop_map(Value::from), Just(Value::Null)];
        let tree = leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((string(), inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        });
        prop::collection::vec((string(), tree), 0..4).prop_map(|members| Value::Object(members.into_iter().collect()))
    }

    /// With these texts where numbers stand.
    fn with(value: &Value, texts: &[String]) -> Value {
        let fill = |text: &str| {
            (0..texts.len()).fold(text.to_owned(), |text, at| text.replace(&format!("\u{e000}{at}"), &texts[at]))
        };
        match value {
            Value::String(text) => fill(text).into(),
            Value::Array(items) => items.iter().map(|item| with(item, texts)).collect(),
            Value::Object(members) => members
                .iter()
                .map(|(key, value)| (fill(key), with(value, texts)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other.clone(),
        }
    }

    fn pieces(text: &str, cuts: &[usize]) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (chars.len() + 1)).collect();
        at.extend([0, chars.len()]);
        at.sort_unstable();
        at.windows(2).map(|pair| chars[pair[0]..pair[1]].iter().collect()).collect()
    }

    proptest! {
        /// restore(mask(x)) = x, for JSON, wherever it is cut and however it is written; no address, no JSON in a string.
        #[test]
        fn what_is_restored_is_what_was_masked(
            value in json(),
            cuts in prop::collection::vec(0usize..5000, 0..30),
            spaced in any::<bool>(),
            ascii in any::<bool>(),
        ) {
            let (vault, placeholders) = vault();
            let values: Vec<String> = VALUES.map(|(_, value)| value.to_owned()).into();
            let masked = with(&value, &placeholders);
            let text = if spaced { serde_json::to_string_pretty(&masked) } else { serde_json::to_string(&masked) }.unwrap();
            let text = if ascii { in_ascii(&text) } else { text };
            prop_assume!(!strings(&with(&value, &values)).iter().any(|text| may_be_address(text)) && !has_nested(&masked));
            let pieces = pieces(&text, &cuts);
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let restored = restore(&vault, Values::Strings, &pieces);
            prop_assert_eq!(&restored, &restore(&vault, Values::Strings, &[&text]));
            prop_assert_eq!(serde_json::from_str::<Value>(&restored.restored).unwrap(), with(&value, &values));
            prop_assert!(values.iter().all(|value| !restored.cacheable.contains(value.as_str())));
        }

        #[test]
        fn without_values_and_placeholders_nothing_changes(text in ".{0,60}", cuts in prop::collection::vec(0usize..99, 0..9)) {
            let (vault, _) = vault();
            for text in [text.clone(), format!("{{\"a\":\"{text}")] {
                let pieces = pieces(&text, &cuts);
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                for values in [Values::Nowhere, Values::Strings, Values::Everywhere] {
                    let piece = restore(&vault, values, &pieces);
                    prop_assert_eq!((&piece.restored, &piece.cacheable), (&text, &text));
                }
            }
        }
    }

    fn strings(value: &Value) -> Vec<String> {
        match value {
            Value::String(text) => vec![text.clone()],
            Value::Array(items) => items.iter().flat_map(strings).collect(),
            Value::Object(members) => {
                members.iter().flat_map(|(key, value)| [vec![key.clone()], strings(value)].concat()).collect()
            }
            _ => Vec::new(),
        }
    }

    fn may_be_address(text: &str) -> bool {
        let text = text.replace('\n', "");
        let dotted = |word: &str| word.split_once('.').is_some_and(|(_, rest)| rest.contains(['/', '?', '#', '\\']));
        ["//", ":/", ":\\", "\\\\", "\\u", "](", "]:", "<"].iter().any(|mark| text.contains(mark))
            || text.split(' ').any(|word| dotted(word) || (word.starts_with('[') && word.contains(':')))
    }

    fn has_nested(value: &Value) -> bool {
        strings(value).iter().any(|text| text.trim_start().starts_with(['{', '[']) && text.contains('"'))
    }
}
