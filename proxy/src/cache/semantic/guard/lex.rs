//! A text as words, numbers and what is taken as it stands.

use super::{chinese, numbers, words};

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Letters; in lower case.
    Word,
    /// A number; its digits.
    Number,
    /// Taken as it is written: identifiers, quoted text, placeholders, symbols.
    Exact,
    /// Chinese, as [`chinese`] reads it.
    Chinese,
    /// `'s`, as in "France's capital".
    Possessive,
    /// A comma, or the like.
    Break,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) kind: Kind,
    /// Written with a capital, and not at the beginning of a sentence.
    pub(super) name: bool,
}

#[derive(Debug, Default)]
pub(super) struct Sentence {
    pub(super) tokens: Vec<Token>,
    /// It has a question mark, or its words ask.
    pub(super) asks: bool,
}

impl Token {
    pub(super) fn new(text: impl Into<String>, kind: Kind) -> Self {
        Self { text: text.into(), kind, name: false }
    }

    pub(super) fn is(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text == word && !self.name
    }
}

/// `None`: what it holds is not for reading. Spaces at the beginning of a line have a meaning in code.
pub(super) fn sentences(text: &str) -> Option<Vec<Sentence>> {
    let text = text.trim();
    if text.contains("```") || text.contains("\n ") || text.contains("\n\t") {
        return None;
    }
    let chars: Vec<char> = text.chars().map(plain).collect();
    let mut lexer = Lexer { chars: &chars, at: 0, done: Vec::new(), now: Sentence::default() };
    while lexer.step() {}
    lexer.end(false);
    Some(lexer.done)
}

/// Kind, number and bytes of a placeholder `[KIND_1_abcdefgh]` at the beginning of `text`.
pub(super) fn placeholder(text: &str) -> Option<(&str, &str, usize)> {
    let (inner, _) = text.strip_prefix('[')?.split_once(']')?;
    let mut parts = inner.split('_');
    let (kind, number, suffix) = (parts.next()?, parts.next()?, parts.next()?);
    let good = parts.next().is_none()
        && !kind.is_empty()
        && kind.bytes().all(|b| b.is_ascii_uppercase())
        && !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
        && suffix.len() == 8
        && suffix.bytes().all(|b| b.is_ascii_alphanumeric());
    good.then_some((kind, number, inner.len() + 2))
}

/// One way to write what is written in several.
fn plain(c: char) -> char {
    match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        '’' | '‘' => '\'',
        '“' | '”' | '„' | '«' | '»' | '「' | '」' | '『' | '』' | '《' | '》' => '"',
        '‐' | '‑' | '–' | '—' | '−' => '-',
        '。' => '.',
        '、' => ',',
        '\u{a0}' | '\u{3000}' => ' ',
        c => c,
    }
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    done: Vec<Sentence>,
    now: Sentence,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn before(&self) -> Option<char> {
        self.at.checked_sub(1).and_then(|at| self.chars.get(at)).copied()
    }

    fn push(&mut self, text: impl Into<String>, kind: Kind) {
        self.now.tokens.push(Token::new(text, kind));
    }

    fn end(&mut self, asks: bool) {
        let mut sentence = std::mem::take(&mut self.now);
        sentence.asks |= asks;
        if !sentence.tokens.is_empty() {
            self.done.push(sentence);
        } else if let (true, Some(last)) = (asks, self.done.last_mut()) {
            last.asks = true;
        }
    }

    /// Takes the next piece; false at the end.
    fn step(&mut self) -> bool {
        let Some(c) = self.peek(0) else { return false };
        if c == '\n' || c == '\t' {
            // Rows and columns of a table, say.
            self.at += 1;
            self.push(if c == '\n' { "\u{23ce}" } else { "\u{21e5}" }, Kind::Exact);
        } else if c.is_whitespace() {
            self.at += 1;
        } else if chinese::is_han(c) {
            let run: String = self.run(|_, c, _| chinese::is_han(c));
            let (text, asks) = chinese::read(&run);
            self.now.asks |= asks;
            if !text.is_empty() {
                self.push(text, Kind::Chinese);
            }
        } else if (c == '[' && self.take_placeholder()) || ("\"`'".contains(c) && self.take_quoted(c)) {
            // Taken as it is written.
        } else if c.is_alphanumeric() || c == '_' || self.begins_signed() {
            self.take_run();
        } else {
            self.take_symbol(c);
        }
        true
    }

    fn run(&mut self, goes_on: impl Fn(Option<char>, char, Option<char>) -> bool) -> String {
        let begin = self.at;
        while let Some(c) = self.peek(0) {
            let before = if self.at > begin { self.before() } else { None };
            if !goes_on(before, c, self.peek(1)) {
                break;
            }
            self.at += 1;
        }
        self.chars.get(begin..self.at).unwrap_or_default().iter().collect()
    }

    fn begins_signed(&self) -> bool {
        let signed = matches!(self.peek(0), Some('-' | '+' | '.')) && self.peek(1).is_some_and(|c| c.is_ascii_digit());
        signed && self.before().is_none_or(char::is_whitespace)
    }

    fn take_placeholder(&mut self) -> bool {
        let ahead: String = self.chars.get(self.at..).unwrap_or_default().iter().take(48).collect();
        let Some((kind, number, bytes)) = placeholder(&ahead) else { return false };
        let text = format!("[{kind}_{number}]");
        self.at += bytes;
        self.push(text, Kind::Exact);
        true
    }

    /// Quoted text counts as it is written; an identifier in quotes is the identifier.
    fn take_quoted(&mut self, quote: char) -> bool {
        // An apostrophe is none.
        if quote == '\'' && self.before().is_some_and(char::is_alphanumeric) {
            return false;
        }
        let rest = self.chars.get(self.at + 1..).unwrap_or_default();
        let closes = |(n, c): (usize, &char)| {
            *c == quote && (quote != '\'' || !rest.get(n + 1).is_some_and(|next| next.is_alphanumeric()))
        };
        let Some(length) = rest.iter().enumerate().position(closes) else { return false };
        let inner: String = rest.get(..length).unwrap_or_default().iter().collect();
        self.at += length + 2;
        let is_identifier =
            !inner.contains(char::is_whitespace) && inner.contains(|c: char| c.is_ascii_digit() || c == '_');
        let text = if is_identifier { inner } else { format!("\"{inner}\"") };
        self.push(text, Kind::Exact);
        true
    }

    /// Letters and digits with what joins them.
    fn take_run(&mut self) {
        let is_inside = |c: char| (c.is_alphanumeric() && !chinese::is_han(c)) || c == '_';
        let run = self.run(|before, c, next| {
            let digits = before.is_some_and(|b| b.is_ascii_digit()) && next.is_some_and(|n| n.is_ascii_digit());
            is_inside(c)
                || (before.is_none() && "+-.".contains(c))
                || (c == ',' && digits)
                || ("._:/@#&+-=~'\\".contains(c) && before.is_some_and(is_inside) && next.is_some_and(is_inside))
                || ("+#".contains(c)
                    && before.is_some_and(|b| b.is_alphabetic() || b == '+')
                    && !next.is_some_and(is_inside))
        });
        let starts = self.now.tokens.is_empty();
        let from = self.now.tokens.len();
        self.classify(&run);
        let capital = run.chars().next().is_some_and(char::is_uppercase) && run != "I";
        let is_acronym = run.chars().filter(|c| c.is_uppercase()).count() > 1;
        if (capital && !starts) || is_acronym {
            let added = self.now.tokens.get_mut(from..).unwrap_or_default();
            added.iter_mut().take(1).for_each(|token| token.name = token.kind == Kind::Word);
        }
    }

    fn classify(&mut self, run: &str) {
        let is_number = run.bytes().all(|b| b.is_ascii_digit() || b".,+-".contains(&b));
        if is_number && run.contains(|c: char| c.is_ascii_digit()) {
            return self.push(run, Kind::Number);
        }
        if let Some(number) = numbers::hyphenated(&run.to_lowercase()) {
            return self.push(number.to_string(), Kind::Number);
        }
        if let Some(number) = ordinal(run) {
            return self.push(format!("#{number}th"), Kind::Exact);
        }
        // "2-factor" is "two-factor".
        if let Some((number, word)) = run.split_once('-')
            && number.len() < 4
            && !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
            && word.chars().count() > 2
            && word.chars().all(char::is_lowercase)
        {
            self.push(number, Kind::Number);
            return self.take_word(word);
        }
        let is_plain = |c: char| c.is_alphabetic() || c == '-' || c == '\'';
        if !run.chars().all(is_plain) {
            return self.push(run, Kind::Exact);
        }
        for part in run.to_lowercase().replace("e-mail", "email").split('-').filter(|part| !part.is_empty()) {
            self.take_word(part);
        }
    }

    /// A word, or two that were drawn together.
    fn take_word(&mut self, word: &str) {
        let Some((stem, end)) = word.rsplit_once('\'') else { return self.push(word, Kind::Word) };
        let whole = match (stem.strip_suffix('n'), end) {
            (Some("wo"), "t") => Some(("will", "not")),
            (Some("ca"), "t") => Some(("can", "not")),
            (Some("sha"), "t") => Some(("shall", "not")),
            (Some(verb), "t") => Some((verb, "not")),
            (_, "m") => Some((stem, "am")),
            (_, "re") => Some((stem, "are")),
            (_, "ve") => Some((stem, "have")),
            (_, "ll") => Some((stem, "will")),
            (_, "d") => Some((stem, "would")),
            (_, "s") if words::DRAWN_TO_IS.contains(&stem) => Some((stem, "is")),
            _ => None,
        };
        match (whole, end) {
            (Some((one, two)), _) => {
                self.push(one, Kind::Word);
                self.push(two, Kind::Word);
            }
            (None, "s") => {
                self.push(stem, Kind::Word);
                self.push("'s", Kind::Possessive);
            }
            (None, _) => self.push(word, Kind::Exact),
        }
    }

    fn take_symbol(&mut self, c: char) {
        let alone = self.before().is_none_or(char::is_whitespace);
        self.at += 1;
        let rest = self.chars.get(self.at..).unwrap_or_default();
        let last = rest.iter().all(|c| c.is_whitespace() || ".?!".contains(*c));
        match c {
            '.' | '?' | '!' if !alone || last => self.end(c == '?'),
            ',' | ';' | ':' | '(' | ')' if !alone || c == '(' => self.push("", Kind::Break),
            '\'' if !alone => self.push("'s", Kind::Possessive),
            '%' => self.push("percent", Kind::Word),
            '$' => self.push("dollar", Kind::Word),
            '€' => self.push("euro", Kind::Word),
            '£' => self.push("pound", Kind::Word),
            c => self.push(c, Kind::Exact),
        }
    }
}

fn ordinal(run: &str) -> Option<&str> {
    let lower = ["st", "nd", "rd", "th"].iter().find_map(|end| run.strip_suffix(end))?;
    (!lower.is_empty() && lower.bytes().all(|b| b.is_ascii_digit())).then_some(lower)
}
