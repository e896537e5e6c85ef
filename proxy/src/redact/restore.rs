//! Placeholders → values, in an answer that arrives in pieces.
//!
//! A placeholder may be split over any number of pieces, so text from a `[` on is held back for as long as it can still
//! become one: at most some 50 bytes, and nothing else ever waits. Models write it in other cases, with spaces, dashes or
//! escapes instead of underscores, and in brackets of other scripts; it is understood all the same ([`shape`]).
//!
//! Not restored inside a URL, a link target or an HTML tag: a model could be talked into writing an address that carries
//! the value to somebody else as soon as a client shows it.

use std::ops::Range;

use super::vault::{Entry, KIND_LEN, NUMBER_LEN, SUFFIX_LEN, Suffix, Vault};

/// What a placeholder may begin and end with: ours, full-width, and those that Chinese texts have.
const BRACKETS: [(char, char); 3] = [('[', ']'), ('［', '］'), ('【', '】')];

/// What became of one piece.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// For the client: with values.
    pub restored: String,
    /// For the cache: with the placeholders of the cache.
    pub cacheable: String,
}

impl Piece {
    /// Adds what comes after it.
    pub fn append(&mut self, more: Self) {
        self.restored.push_str(&more.restored);
        self.cacheable.push_str(&more.cacheable);
    }

    /// The same for everybody.
    pub(super) fn push(&mut self, text: &str) {
        self.restored.push_str(text);
        self.cacheable.push_str(text);
    }
}

/// Where a text goes that is being restored.
pub(super) trait Out {
    /// What is no placeholder.
    fn give(&mut self, text: &str);

    /// What stands for `entry`, as it was written.
    fn put(&mut self, written: &str, entry: &Entry, what: Put);
}

/// What takes the place of a placeholder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// Its value.
    Value,
    /// It stays as it was written.
    Itself,
    /// What a model is shown: the form of the cache is for nobody to see.
    Shown,
}

impl Out for Piece {
    fn give(&mut self, text: &str) {
        self.push(text);
    }

    fn put(&mut self, written: &str, entry: &Entry, what: Put) {
        self.cacheable.push_str(entry.placeholder(Suffix::Cache));
        self.restored.push_str(match what {
            Put::Value => entry.value(),
            Put::Itself => written,
            Put::Shown => entry.placeholder(Suffix::Wire),
        });
    }
}

/// Restores one text, such as the content of one choice.
#[derive(Debug)]
pub struct Restorer {
    from: Suffix,
    /// Values are put in at all.
    values: bool,
    held: String,
    place: Place,
    restored: u64,
    foreign: bool,
}

impl Restorer {
    /// `from` says whose placeholders the text has.
    #[must_use]
    pub fn new(from: Suffix) -> Self {
        Self { from, values: true, held: String::new(), place: Place::default(), restored: 0, foreign: false }
    }

    /// Puts no value in: for texts that are not meant for a person, which still must have the right placeholders.
    #[must_use]
    pub fn without_values(from: Suffix) -> Self {
        Self { values: false, ..Self::new(from) }
    }

    /// For an argument of a tool.
    #[must_use]
    pub fn argument(from: Suffix) -> Self {
        let mut restorer = Self::new(from);
        restorer.begin(true, Kind::Argument);
        restorer
    }

    /// No value is put in from here on.
    pub fn no_more_values(&mut self) {
        self.values = false;
    }

    /// For the rest of a text that had no placeholder so far.
    #[must_use]
    pub fn after(from: Suffix, text: &str) -> Self {
        let mut restorer = Self::new(from);
        restorer.place.pass(text);
        restorer
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
        self.push_to(vault, text, &mut out);
        out
    }

    pub(super) fn push_to(&mut self, vault: &Vault, text: &str, out: &mut impl Out) {
        let input = std::mem::take(&mut self.held) + text;
        let mut rest = input.as_str();
        while let Some((before, from_bracket)) = rest.find(is_bracket).and_then(|at| rest.split_at_checked(at)) {
            self.give(before, out);
            match shape(vault, from_bracket) {
                Shape::Beginning => {
                    self.held = from_bracket.to_owned();
                    return;
                }
                Shape::Whole(len, placeholder) => {
                    let (candidate, after) = from_bracket.split_at_checked(len).unwrap_or((from_bracket, ""));
                    self.replace(vault, candidate, &placeholder, out);
                    rest = after;
                }
                Shape::Other => {
                    let width = from_bracket.chars().next().map_or(1, char::len_utf8);
                    let (bracket, after) = from_bracket.split_at_checked(width).unwrap_or((from_bracket, ""));
                    self.give(bracket, out);
                    rest = after;
                }
            }
        }
        self.give(rest, out);
    }

    /// The text has ended: what was held back was no placeholder.
    pub fn finish(&mut self) -> Piece {
        let mut out = Piece::default();
        self.finish_to(&mut out);
        out
    }

    pub(super) fn finish_to(&mut self, out: &mut impl Out) {
        let held = std::mem::take(&mut self.held);
        self.give(&held, out);
    }

    /// Another text begins, with values or without, of this kind.
    pub(super) fn begin(&mut self, values: bool, kind: Kind) {
        self.values = values;
        self.place = match kind {
            Kind::Argument => Place { is_argument: true, ..Place::default() },
            Kind::Part => {
                // A link, or a tag, may go on in what is shown as one text.
                let Place { link_depth, in_tag, quote, .. } = self.place;
                Place { link_depth, in_tag, quote, ..Place::default() }
            }
        };
    }

    /// Nothing is held back.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What is held back will not go on: another text comes in its place. Says how many bytes it had.
    pub fn forget_held(&mut self) -> usize {
        std::mem::take(&mut self.held).len()
    }

    /// How many placeholders were restored.
    #[must_use]
    pub fn restored(&self) -> u64 {
        self.restored
    }

    /// True if the text has a placeholder that is not of this request: such an answer is not cached.
    #[must_use]
    pub fn saw_foreign(&self) -> bool {
        self.foreign
    }

    fn give(&mut self, text: &str, out: &mut impl Out) {
        self.place.pass(text);
        out.give(text);
    }

    /// `candidate`, as it was written, stands for `placeholder`.
    fn replace(&mut self, vault: &Vault, candidate: &str, placeholder: &str, out: &mut impl Out) {
        let Some(entry) = vault.look_up(placeholder, self.from) else {
            self.foreign = true;
            return self.give(candidate, out);
        };
        let what = match self.from {
            _ if self.values && !self.place.is_address() => Put::Value,
            Suffix::Wire => Put::Itself,
            Suffix::Cache => Put::Shown,
        };
        self.place.pass(if what == Put::Value { entry.value() } else { candidate });
        self.restored += u64::from(what == Put::Value);
        out.put(candidate, entry, what);
    }
}

/// Where placeholders of this request stand in a text, in that form.
pub(crate) fn placeholders(vault: &Vault, form: Suffix, text: &str) -> Vec<Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(start) = text.get(at..).and_then(|rest| rest.find(is_bracket)).map(|before| at + before) {
        let from_bracket = text.get(start..).unwrap_or_default();
        at = match shape(vault, from_bracket) {
            Shape::Whole(len, placeholder) => {
                found.extend(vault.look_up(&placeholder, form).map(|_| start..start + len));
                start + len
            }
            Shape::Beginning => break,
            Shape::Other => start + from_bracket.chars().next().map_or(1, char::len_utf8),
        };
    }
    found
}

/// What a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An argument of a tool, which may be an address as a whole.
    Argument,
    /// One of those that stand together in what a person reads.
    Part,
}

fn is_bracket(c: char) -> bool {
    BRACKETS.iter().any(|(open, _)| *open == c)
}

enum Shape {
    /// A placeholder of this many bytes, and how we write it.
    Whole(usize, String),
    /// Could become one.
    Beginning,
    /// Is none, and cannot become one.
    Other,
}

/// Reads a text of which more may come.
struct Reader<'a> {
    rest: std::str::Chars<'a>,
    /// Nothing is left: whatever comes next may be what is looked for.
    ended: bool,
}

impl Reader<'_> {
    /// The next character, if it is one of those; `None`: it is another, or there is none yet.
    fn one(&mut self, wanted: impl Fn(char) -> bool) -> Option<char> {
        let next = self.rest.clone().next();
        self.ended |= next.is_none();
        let next = next.filter(|c| wanted(*c))?;
        self.rest.next();
        Some(next)
    }

    /// So many of them, at most.
    fn run(&mut self, most: usize, wanted: impl Fn(char) -> bool) -> String {
        std::iter::from_fn(|| self.one(&wanted)).take(most).collect()
    }

    /// What stands between two parts: an underscore or a dash, which may be escaped and have a space on each side; or a space.
    fn gap(&mut self) -> bool {
        let before = self.one(|c| c == ' ');
        self.one(|c| c == '\\');
        let mark = self.one(|c| matches!(c, '_' | '-' | '＿')).is_some();
        if mark {
            self.one(|c| c == ' ');
        }
        mark || before.is_some()
    }
}

/// Does `text`, which begins with a bracket, begin with `[KIND_NUMBER_SUFFIX]`, as we write it or as a model may?
///
/// Only kinds that the vault has are looked for in other cases, and after a space: so nearly nothing else is held back.
fn shape(vault: &Vault, text: &str) -> Shape {
    let mut reader = Reader { rest: text.chars(), ended: false };
    let close = reader.rest.next().and_then(|first| BRACKETS.iter().find(|(open, _)| *open == first));
    let Some((_, close)) = close else { return Shape::Other };
    let space = reader.one(|c| c == ' ').is_some();
    let kind = reader.run(KIND_LEN, |c| c.is_ascii_alphabetic());
    let is_ours = kind.chars().all(|c| c.is_ascii_uppercase()) && !space;
    let other_or_beginning = |reader: &Reader<'_>| if reader.ended { Shape::Beginning } else { Shape::Other };
    if reader.ended {
        let may_be = is_ours || vault.kinds().any(|known| begins_with(known, &kind));
        return if may_be { Shape::Beginning } else { Shape::Other };
    }
    if kind.is_empty() || !(is_ours || vault.kinds().any(|known| known.eq_ignore_ascii_case(&kind))) {
        return Shape::Other;
    }
    if !reader.gap() {
        return other_or_beginning(&reader);
    }
    let number = reader.run(NUMBER_LEN, |c| c.is_ascii_digit());
    if number.is_empty() || reader.ended || !reader.gap() {
        return other_or_beginning(&reader);
    }
    let suffix = reader.run(SUFFIX_LEN, |c| c.is_ascii_alphabetic() || matches!(c, '2'..='7'));
    if suffix.len() < SUFFIX_LEN {
        return other_or_beginning(&reader);
    }
    reader.one(|c| c == ' ');
    reader.one(|c| c == '\\');
    if reader.one(|c| c == *close).is_none() {
        return other_or_beginning(&reader);
    }
    let placeholder = format!("[{}_{number}_{}]", kind.to_ascii_uppercase(), suffix.to_ascii_lowercase());
    Shape::Whole(text.len() - reader.rest.as_str().len(), placeholder)
}

fn begins_with(known: &str, beginning: &str) -> bool {
    known.get(..beginning.len()).is_some_and(|start| start.eq_ignore_ascii_case(beginning))
}

/// Where in the text we are, as far as it matters: inside something that a client may follow or load by itself? In doubt, yes:
/// a value that is not restored costs little, one that is loaded from somebody's server is lost.
#[derive(Debug, Default)]
struct Place {
    tail: [char; TAIL],
    in_url: bool,
    /// Open parentheses of a Markdown link; a reference definition counts as one that only an empty line closes.
    link_depth: u32,
    in_tag: bool,
    quote: Option<char>,
    /// See [`Kind::Argument`].
    is_argument: bool,
    word: Word,
    /// Of an argument, without what such a program leaves out.
    read: [char; TAIL],
}

/// The word of an argument that is being read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Word {
    /// There was one before it.
    is_later: bool,
    /// As far as it may be a host.
    text: String,
}

/// Characters that are looked back at.
const TAIL: usize = 7;
/// What makes a word an address, in lower case.
const ADDRESSES: [&str; 9] = ["//", ":/", ":\\", "\\\\", "www.", "mailto:", "data:", "http:", "https:"];
/// What does at the beginning of a word.
const SCHEMES: [&str; 6] = ["http", "https", "ftp", "ws", "wss", "file"];
/// The longest host that is looked at.
const MAX_HOST: usize = 260;
/// What makes one of an argument's an address besides: it may be JSON, with escapes of its own.
const ESCAPED: &str = "\\u";

impl Place {
    fn is_address(&self) -> bool {
        self.in_url || self.link_depth > 0 || self.in_tag
    }

    fn pass(&mut self, text: &str) {
        for c in text.chars() {
            let [.., before, last] = self.tail;
            if self.in_tag {
                match self.quote {
                    Some(quote) if c == quote => self.quote = None,
                    None if c == '"' || c == '\'' => self.quote = Some(c),
                    None if c == '>' => self.in_tag = false,
                    _ => {}
                }
            } else if last == '<' && (c.is_alphabetic() || c == '/' || c == '!' || c == '?') {
                (self.in_tag, self.quote) = (true, None);
            }
            match c {
                '(' if last == ']' || (self.link_depth > 0 && last != '\\') => {
                    self.link_depth = self.link_depth.saturating_add(1)
                }
                ':' if last == ']' => self.link_depth = self.link_depth.saturating_add(1),
                ')' if last != '\\' => self.link_depth = self.link_depth.saturating_sub(1),
                '\n' if last == '\n' || (last == '\r' && before == '\n') => self.link_depth = 0,
                _ => {}
            }
            add(&mut self.tail, c);
            if self.is_argument {
                self.pass_argument(c);
            } else if c.is_ascii_whitespace() {
                self.in_url = false;
            } else if ADDRESSES.iter().any(|mark| ends_with(&self.tail, mark)) {
                self.in_url = true;
            }
        }
    }

    /// A string by itself, which some program takes for an address. Such a program leaves tabs and ends of lines out, and may take spaces for a
    /// part of it (the WHATWG's URL standard, 4.4); and it needs no scheme.
    fn pass_argument(&mut self, c: char) {
        if matches!(c, '\t' | '\n' | '\r') {
            return;
        }
        add(&mut self.read, c);
        if c == ' ' {
            if self.in_url && !self.word.is_later {
                return;
            }
            self.in_url = false;
            self.word.is_later |= !self.word.text.is_empty();
            self.word.text.clear();
            return;
        }
        self.in_url = self.in_url
            || ADDRESSES.iter().chain([&ESCAPED]).any(|mark| ends_with(&self.read, mark))
            || match c {
                '/' | '?' | '#' | '\\' => is_host(&self.word.text),
                ':' => SCHEMES.iter().any(|scheme| scheme.eq_ignore_ascii_case(&self.word.text)),
                _ => false,
            };
        if self.word.text.len() < MAX_HOST {
            self.word.text.push(c);
        }
    }
}

/// May a program take this for the host of an address that has no scheme? Source: the WHATWG's URL standard, 3.5.
fn is_host(text: &str) -> bool {
    let is_dot = |c: char| matches!(c, '.' | '。' | '．' | '｡');
    if !text.chars().all(|c| c.is_alphanumeric() || is_dot(c) || matches!(c, '-' | '_' | ':' | '%' | '@' | '[' | ']')) {
        return false;
    }
    let lower = text.to_ascii_lowercase();
    let dotted = lower.replace("%2e", ".");
    let mut labels = dotted.split(is_dot);
    let has_labels = dotted.contains(is_dot) && labels.by_ref().next().is_some_and(|label| !label.is_empty());
    let has_port =
        lower.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let is_number = lower.len() > 7 && lower.bytes().all(|b| b.is_ascii_digit()) || lower.starts_with("0x");
    let is_ipv6 = lower.starts_with('[') && lower.contains(':');
    (has_labels && !dotted.contains("..")) || has_port || is_number || lower == "localhost" || is_ipv6
}

fn add(tail: &mut [char; TAIL], c: char) {
    tail.rotate_left(1);
    if let Some(newest) = tail.last_mut() {
        *newest = c.to_ascii_lowercase();
    }
}

fn ends_with(tail: &[char; TAIL], mark: &str) -> bool {
    mark.chars().rev().zip(tail.iter().rev()).all(|(wanted, have)| wanted == *have)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::classify::Conversation;
    use crate::keys::Keys;

    /// The longest placeholder, however it is written: brackets of three bytes, a space on each side of everything, escapes.
    const MAX_PLACEHOLDER: usize = (3 + 1) + 2 * (1 + 1 + 3 + 1) + (1 + 1 + 3) + KIND_LEN + NUMBER_LEN + SUFFIX_LEN;

    fn vault() -> Vault {
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        vault.keep("email", "ann@example.org");
        vault.keep("phone", "+86 138 0013 8000");
        vault
    }

    fn restore(vault: &Vault, pieces: &[&str]) -> (Piece, bool) {
        let mut restorer = Restorer::new(Suffix::Wire);
        let mut all = Piece::default();
        for piece in pieces {
            all.append(restorer.push(vault, piece));
        }
        all.append(restorer.finish());
        (all, restorer.saw_foreign())
    }

    #[test]
    fn nothing_waits_that_cannot_become_a_placeholder() {
        let (vault, mut restorer) = (vault(), Restorer::new(Suffix::Wire));
        for text in ["plain ", "a[0] ", "[x", "[EMAIL.", "[EMAIL_1_AB1", "]"] {
            assert_eq!(restorer.push(&vault, text).restored, text);
        }
        assert_eq!(restorer.push(&vault, "see [EMAI").restored, "see ");
        assert_eq!(restorer.push(&vault, "L!").restored, "[EMAIL!");
        assert_eq!(restorer.push(&vault, "[PHONE_1").restored, "");
        assert_eq!(restorer.finish().restored, "[PHONE_1");
    }

    #[test]
    fn however_a_model_writes_it() {
        let vault = vault();
        let p = vault.placeholder("email", "ann@example.org", Suffix::Wire);
        let inner = p.trim_matches(['[', ']']);
        let [kind, number, suffix]: [&str; 3] = inner.split('_').collect::<Vec<_>>().try_into().unwrap();
        let title = kind.replace("MAIL", "mail");
        for written in [
            p.to_lowercase(),
            p.to_uppercase(),
            format!("[{title}_{number}_{suffix}]"),
            format!("[ {inner} ]"),
            format!("[{kind} {number} {suffix}]"),
            format!("[{kind}-{number}-{suffix}]"),
            format!("[{kind}\\_{number}\\_{suffix}]"),
            format!("[{kind} _ {number} _ {suffix}\\]"),
            format!("［{inner}］"),
            format!("【{inner}】"),
        ] {
            for cut in written.char_indices().map(|(at, _)| at) {
                let (start, end) = written.split_at(cut);
                let (piece, foreign) = restore(&vault, &["a ", start, end, " b"]);
                assert_eq!((piece.restored.as_str(), foreign), ("a ann@example.org b", false), "{written} at {cut}");
            }
        }
        for other in [
            format!("[{kind}_{number}_{suffix}"),
            format!("[{kind}{number}{suffix}]"),
            format!("[{kind}_{number}_{suffix}】"),
            format!("[{kind}__{number}_{suffix}]"),
            format!("[{kind}\n{number} {suffix}]"),
            format!("[ {kind}X_{number}_{suffix}]"),
            format!("({inner})"),
        ] {
            assert_eq!(restore(&vault, &[&other]).0.restored, other);
        }
    }

    #[test]
    fn nothing_waits_for_a_kind_that_is_not_in_the_vault() {
        let (vault, mut restorer) = (vault(), Restorer::new(Suffix::Wire));
        for text in ["[see", "[1]", "[ s", "[Secret", "[x] [y", "【注", "[]"] {
            assert_eq!(restorer.push(&vault, text).restored, text);
        }
        assert_eq!(restorer.push(&vault, "[pho").restored, "");
        assert_eq!(restorer.push(&vault, "to](a.png)").restored, "[photo](a.png)");
    }

    #[test]
    fn what_looks_like_a_placeholder_but_is_not_ours_stays_and_is_noticed() {
        let (piece, foreign) = restore(&vault(), &["[EMAIL_1_aaaaaaaa] [EMAIL_9_"]);
        assert_eq!((piece.restored.as_str(), foreign), ("[EMAIL_1_aaaaaaaa] [EMAIL_9_", true));
    }

    #[test]
    fn addresses_keep_the_placeholder() {
        let vault = vault();
        let p = vault.placeholder("email", "ann@example.org", Suffix::Wire);
        for before in [
            "https://x.org/?q=",
            "![i](",
            "[a](/b?",
            "<img src=\"",
            "<a href='",
            "[r]: x",
            "![a](//e.com/()?q=",
            "![a](\\)//e/",
            "![a](\n//e/?q=",
            "[r]:\n//e/?q=",
            "<img alt=\">\" src=\"//e/?q=",
            "<img title='a>b' src=",
            "www.e.com/?q=",
            "https:/e.com/",
            "https:\\\\e.com\\",
            "//e.com/?q=",
            "mailto:x@e.com?body=",
            "https://e.com/?a=\u{a0}",
            "HTTPS://e/",
        ] {
            let (piece, _) = restore(&vault, &[before, &p]);
            assert_eq!(piece.restored, format!("{before}{p}"));
            let piece = Restorer::after(Suffix::Wire, before).whole(&vault, &p);
            assert_eq!(piece.restored, p, "also if it was passed on by somebody else");
        }
        for before in ["https://x.org/ ", "[a](/b) ", "<b>", "1 < 2 and ", "mail: "] {
            let (piece, _) = restore(&vault, &[before, &p]);
            assert_eq!(piece.restored, format!("{before}ann@example.org"));
        }
    }

    #[test]
    fn the_form_of_the_cache_is_never_shown() {
        let vault = vault();
        let [cached, wire] =
            [Suffix::Cache, Suffix::Wire].map(|form| vault.placeholder("email", "ann@example.org", form));
        let link = Restorer::new(Suffix::Cache).whole(&vault, &format!("[a](//e/?q={cached}) {cached}"));
        assert_eq!(link.restored, format!("[a](//e/?q={wire}) ann@example.org"));
        let mut plain = Restorer::without_values(Suffix::Wire);
        let arguments = plain.whole(&vault, &format!("{{\"to\": [\"{wire}\"]}}"));
        assert_eq!(arguments.restored, format!("{{\"to\": [\"{wire}\"]}}"));
        assert_eq!(arguments.cacheable, format!("{{\"to\": [\"{cached}\"]}}"));
        assert_eq!((plain.restored(), plain.saw_foreign()), (0, false));
    }

    proptest! {
        #[test]
        fn where_the_answer_is_cut_does_not_matter(
            words in proptest::collection::vec(0usize..9, 0..12),
            cuts in proptest::collection::vec(0usize..400, 0..40),
        ) {
            let vault = vault();
            let mail = vault.placeholder("email", "ann@example.org", Suffix::Wire);
            let phone = vault.placeholder("phone", "+86 138 0013 8000", Suffix::Wire);
            let words: Vec<&str> = words
                .into_iter()
                .map(|word| ["[", "四[EM", " and ", "]", "[EMAIL_1_", mail.as_str(), phone.as_str(), "[ email", "【"][word])
                .collect();
            let text = words.concat();
            let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| text.is_char_boundary(*cut)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| text.get(pair[0]..pair[1]).unwrap()).collect();
            let (whole, _) = restore(&vault, &[&text]);
            prop_assert_eq!(&restore(&vault, &pieces).0, &whole);
            let expected = text.replace(&mail, "ann@example.org").replace(&phone, "+86 138 0013 8000");
            prop_assert_eq!(whole.restored, expected);
        }

        #[test]
        fn little_is_ever_held_back(text in "([\\[A-Z_0-9a-z\\]]{0,300}|(【 ?(PHONE|email)[ _][0-9]{1,8} ?[_-][a-z2-7]{0,9}){0,9})") {
            let mut restorer = Restorer::new(Suffix::Wire);
            let given = restorer.push(&vault(), &text).restored.len();
            prop_assert!(text.len() - given <= MAX_PLACEHOLDER);
        }
    }
}
