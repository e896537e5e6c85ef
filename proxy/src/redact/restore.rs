//! Placeholders → values, in an answer that arrives in pieces.
//!
//! A placeholder may be split over any number of pieces, so text from a `[` on is held back for as long as it can still
//! become one: at most [`MAX_PLACEHOLDER`] bytes, and nothing else ever waits.
//!
//! Not restored inside a URL, a link target or an HTML tag: a model could be talked into writing an address that carries
//! the value to somebody else as soon as a client shows it.

use std::ops::Range;

use super::vault::{KIND_LEN, NUMBER_LEN, SUFFIX_LEN, Suffix, Vault};

/// The longest placeholder: brackets, two underscores, and the parts between.
const MAX_PLACEHOLDER: usize = 4 + KIND_LEN + NUMBER_LEN + SUFFIX_LEN;

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
        let input = std::mem::take(&mut self.held) + text;
        let mut rest = input.as_str();
        while let Some((before, from_bracket)) = rest.find('[').and_then(|at| rest.split_at_checked(at)) {
            self.give(before, &mut out);
            match shape(from_bracket) {
                Shape::Beginning => {
                    self.held = from_bracket.to_owned();
                    return out;
                }
                Shape::Whole(len) => {
                    let (candidate, after) = from_bracket.split_at_checked(len).unwrap_or((from_bracket, ""));
                    self.replace(vault, candidate, &mut out);
                    rest = after;
                }
                Shape::Other => {
                    let (bracket, after) = from_bracket.split_at_checked(1).unwrap_or((from_bracket, ""));
                    self.give(bracket, &mut out);
                    rest = after;
                }
            }
        }
        self.give(rest, &mut out);
        out
    }

    /// The text has ended: what was held back was no placeholder.
    pub fn finish(&mut self) -> Piece {
        let mut out = Piece::default();
        let held = std::mem::take(&mut self.held);
        self.give(&held, &mut out);
        out
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

    fn give(&mut self, text: &str, out: &mut Piece) {
        self.place.pass(text);
        out.restored.push_str(text);
        out.cacheable.push_str(text);
    }

    fn replace(&mut self, vault: &Vault, candidate: &str, out: &mut Piece) {
        let Some(entry) = vault.look_up(candidate, self.from) else {
            self.foreign = true;
            return self.give(candidate, out);
        };
        out.cacheable.push_str(entry.placeholder(Suffix::Cache));
        if self.values && !self.place.is_address() {
            self.place.pass(entry.value());
            out.restored.push_str(entry.value());
            self.restored += 1;
        } else {
            self.place.pass(candidate);
            // Not the candidate itself: the cache's own form is for nobody to see.
            out.restored.push_str(entry.placeholder(Suffix::Wire));
        }
    }
}

/// Where placeholders of this request stand in a text that goes to a model.
pub(super) fn placeholders(vault: &Vault, text: &str) -> Vec<Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(start) = text.get(at..).and_then(|rest| rest.find('[')).map(|before| at + before) {
        at = match shape(text.get(start..).unwrap_or_default()) {
            Shape::Whole(len) => {
                let candidate = text.get(start..start + len).unwrap_or_default();
                found.extend(vault.look_up(candidate, Suffix::Wire).map(|_| start..start + len));
                start + len
            }
            Shape::Beginning => break,
            Shape::Other => start + 1,
        };
    }
    found
}

enum Shape {
    /// A placeholder of this many bytes.
    Whole(usize),
    /// Could become one.
    Beginning,
    /// Is none, and cannot become one.
    Other,
}

/// A run of characters of one class, and what ends it.
struct Part {
    least: usize,
    most: usize,
    class: fn(u8) -> bool,
    end: u8,
}

/// Does `text`, which begins with `[`, begin with `[KIND_NUMBER_SUFFIX]`?
fn shape(text: &str) -> Shape {
    let bytes = text.as_bytes().get(..text.len().min(MAX_PLACEHOLDER + 1)).unwrap_or_default();
    let mut at = 1;
    let run = |at: usize, most: usize, class: fn(u8) -> bool| {
        bytes.iter().skip(at).take(most + 1).take_while(|byte| class(**byte)).count()
    };
    let parts = [
        Part { least: 1, most: KIND_LEN, class: |b| b.is_ascii_uppercase(), end: b'_' },
        Part { least: 1, most: NUMBER_LEN, class: |b| b.is_ascii_digit(), end: b'_' },
        Part { least: SUFFIX_LEN, most: SUFFIX_LEN, class: |b| matches!(b, b'a'..=b'z' | b'2'..=b'7'), end: b']' },
    ];
    for Part { least, most, class, end } in parts {
        let len = run(at, most, class);
        at += len;
        match bytes.get(at) {
            _ if len > most => return Shape::Other,
            None => return Shape::Beginning,
            Some(byte) if *byte == end && len >= least => at += 1,
            Some(_) => return Shape::Other,
        }
    }
    Shape::Whole(at)
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
}

/// Characters that are looked back at.
const TAIL: usize = 7;
/// What makes a word an address, in lower case.
const ADDRESSES: [&str; 7] = ["//", ":/", ":\\", "\\\\", "www.", "mailto:", "data:"];

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
            self.tail.rotate_left(1);
            if let Some(newest) = self.tail.last_mut() {
                *newest = c.to_ascii_lowercase();
            }
            if c.is_ascii_whitespace() {
                self.in_url = false;
            } else if ADDRESSES.iter().any(|mark| self.ends_with(mark)) {
                self.in_url = true;
            }
        }
    }

    fn ends_with(&self, mark: &str) -> bool {
        mark.chars().rev().zip(self.tail.iter().rev()).all(|(wanted, have)| wanted == *have)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::classify::Conversation;
    use crate::keys::Keys;

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
        for text in ["plain ", "a[0] ", "[x", "[EMAIL-", "[EMAIL_1_ABC", "]"] {
            assert_eq!(restorer.push(&vault, text).restored, text);
        }
        assert_eq!(restorer.push(&vault, "see [EMAI").restored, "see ");
        assert_eq!(restorer.push(&vault, "L!").restored, "[EMAIL!");
        assert_eq!(restorer.push(&vault, "[PHONE_1").restored, "");
        assert_eq!(restorer.finish().restored, "[PHONE_1");
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
            words in proptest::collection::vec(0usize..7, 0..12),
            cuts in proptest::collection::vec(0usize..400, 0..40),
        ) {
            let vault = vault();
            let mail = vault.placeholder("email", "ann@example.org", Suffix::Wire);
            let phone = vault.placeholder("phone", "+86 138 0013 8000", Suffix::Wire);
            let words: Vec<&str> = words
                .into_iter()
                .map(|word| ["[", "四[EM", " and ", "]", "[EMAIL_1_", mail.as_str(), phone.as_str()][word])
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
        fn little_is_ever_held_back(text in "[\\[A-Z_0-9a-z\\]]{0,300}") {
            let mut restorer = Restorer::new(Suffix::Wire);
            let given = restorer.push(&vault(), &text).restored.len();
            prop_assert!(text.len() - given <= MAX_PLACEHOLDER);
        }
    }
}
