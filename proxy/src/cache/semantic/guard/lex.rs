//! A text as words, numbers and what is taken as it stands.

use super::{chinese, numbers, words};

/// What joins two words. Nobody writes it so: [`plain`] reads it as another one.
const HYPHEN: &str = "\u{2010}";

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
    /// A comma, or the like; as it is written.
    Break,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) kind: Kind,
    /// Not in lower case: a name, a unit; how it is written.
    pub(super) written: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Sentence {
    pub(super) tokens: Vec<Token>,
    /// It has a question mark, or its words ask.
    pub(super) asks: bool,
}

impl Token {
    pub(super) fn new(text: impl Into<String>, kind: Kind) -> Self {
        Self { text: text.into(), kind, written: None }
    }

    pub(super) fn is(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text == word && self.written.is_none()
    }
}

/// `None`: what it holds is not for reading. Spaces at the beginning of a line have a meaning in code.
pub(super) fn sentences(text: &str) -> Option<Vec<Sentence>> {
    let text = text.trim();
    let is_control = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains("```") || text.contains("\n ") || text.contains("\n\t") || text.contains(is_control) {
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
pub(super) fn plain(c: char) -> char {
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
            let begins = self.at == 0;
            let run: String = self.run(|_, c, _| chinese::is_han(c));
            let (text, asks) = chinese::read(&run, begins);
            self.now.asks |= asks;
            if !text.is_empty() {
                self.push(text, Kind::Chinese);
            }
        } else if "'\"".contains(c) && self.is_prime() {
            self.at += 1;
            self.push(c, Kind::Exact);
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

    /// Minutes, inches, a derivative: not after a word, nor after `rock 'n'`.
    fn is_prime(&self) -> bool {
        let ago = |n: usize| self.at.checked_sub(n).and_then(|at| self.chars.get(at)).copied();
        let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        self.before().is_some_and(char::is_numeric) || (is_letter(self.before()) && !is_letter(ago(2)))
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
        // Without signs: what is in quotes must not look like what is made of a number or a name here.
        let is_identifier = inner.chars().all(|c| c.is_alphanumeric() || "_.-/:".contains(c))
            && inner.contains(|c: char| c.is_ascii_digit() || c == '_');
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
        self.classify(&run);
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
            self.push(HYPHEN, Kind::Exact);
            return self.take_word(word);
        }
        let is_plain = |c: char| c.is_alphabetic() || c == '-' || c == '\'';
        if !run.chars().all(is_plain) {
            return self.push(run, Kind::Exact);
        }
        for (n, part) in run.replace("e-mail", "email").split('-').enumerate() {
            if n > 0 {
                self.push(HYPHEN, Kind::Exact);
            }
            self.take_word(part);
        }
    }

    /// A word, or two that were drawn together. `'d` is left as it is: it may be "had" or "would".
    fn take_word(&mut self, word: &str) {
        let Some((stem, end)) = word.rsplit_once('\'') else { return self.push_word(word) };
        let (verb, end) = (stem.strip_suffix('n'), end);
        let whole = match (verb.map(str::to_lowercase).as_deref(), end) {
            (Some("wo"), "t") => Some(("will", "not")),
            (Some("ca"), "t") => Some(("can", "not")),
            (Some("sha"), "t") => Some(("shall", "not")),
            (Some(_), "t") => Some((verb.unwrap_or_default(), "not")),
            (_, "m") => Some((stem, "am")),
            (_, "re") => Some((stem, "are")),
            (_, "ve") => Some((stem, "have")),
            (_, "ll") => Some((stem, "will")),
            (_, "s") if words::DRAWN_TO_IS.contains(&stem.to_lowercase().as_str()) && self.is_is() => {
                Some((stem, "is"))
            }
            _ => None,
        };
        match (whole, end) {
            (Some((one, two)), _) => {
                self.push_word(one);
                self.push(two, Kind::Word);
            }
            (None, "s") => {
                self.push_word(stem);
                self.push("'s", Kind::Possessive);
            }
            (None, _) => self.push(word, Kind::Exact),
        }
    }

    /// "What's the plan" is what it is; "what's changed" is what has.
    fn is_is(&self) -> bool {
        let rest = self.chars.get(self.at..).unwrap_or_default().iter().skip_while(|c| **c == ' ');
        let next: String = rest.take_while(|c| c.is_alphanumeric()).collect();
        words::AFTER_IS.contains(&next.as_str()) || next.starts_with(|c: char| c.is_ascii_digit())
    }

    /// A capital counts, but of "I", and of a first word that is no name.
    fn push_word(&mut self, word: &str) {
        let lower = word.to_lowercase();
        let first = self.now.tokens.is_empty() && word.chars().filter(|c| c.is_uppercase()).count() == 1;
        let follows = || {
            let rest: String = self.chars.get(self.at..).unwrap_or_default().iter().take(6).collect();
            words::SUBJECTS.iter().any(|subject| rest.starts_with(subject))
        };
        let is_plain = lower == word || word == "I" || (first && may_begin(&lower, follows));
        let mut token = Token::new(lower, Kind::Word);
        token.written = (!is_plain).then(|| word.to_owned());
        self.now.tokens.push(token);
    }

    fn take_symbol(&mut self, c: char) {
        let alone = self.before().is_none_or(char::is_whitespace);
        self.at += 1;
        let rest = self.chars.get(self.at..).unwrap_or_default();
        let last = rest.iter().all(|c| c.is_whitespace() || ".?!".contains(*c));
        let near = |c: Option<&char>| c.is_some_and(char::is_ascii_digit);
        let begin = self.chars.get(..self.at.saturating_sub(1)).unwrap_or_default();
        let of_amount = near(rest.iter().find(|c| **c != ' ')) || near(begin.iter().rfind(|c| **c != ' '));
        let of_percent = near(begin.last()) && !rest.first().is_some_and(|c| c.is_alphanumeric());
        match c {
            '!' if self.is_factorial(rest, last) => self.push(c, Kind::Exact),
            '.' | '?' | '!' if !alone || last => self.end(c == '?'),
            ',' | ';' | ':' if !alone => self.push(c, Kind::Break),
            '\'' if !alone => self.push("'", Kind::Possessive),
            '%' if of_percent => self.push("percent", Kind::Word),
            '$' if of_amount => self.push("dollars", Kind::Exact),
            '€' if of_amount => self.push("euros", Kind::Exact),
            '£' if of_amount => self.push("pounds", Kind::Exact),
            c => self.push(c, Kind::Exact),
        }
    }

    /// An exclamation mark that ends no sentence: not after a word, or before what begins none.
    fn is_factorial(&self, rest: &[char], last: bool) -> bool {
        let ago = |n: usize| self.at.checked_sub(n).and_then(|at| self.chars.get(at)).copied();
        let after_word = ago(2)
            .zip(ago(3))
            .is_some_and(|(a, b)| chinese::is_han(a) || (a.is_alphabetic() && b.is_alphabetic()) || "?!.".contains(a));
        let begins = rest.first().is_some_and(|c| c.is_whitespace()) && rest.get(1).is_some_and(|c| c.is_uppercase());
        !after_word || !(last || begins)
    }
}

/// Is a first word none that could be a name?
fn may_begin(word: &str, subject_follows: impl Fn() -> bool) -> bool {
    if words::PERHAPS_NAMES.contains(&word) {
        return subject_follows();
    }
    [&words::NO_NAMES[..], &words::QUESTIONS, &words::AUXILIARIES, &words::ARTICLES, &words::BOUNDARIES]
        .iter()
        .any(|list| list.contains(&word))
}

fn ordinal(run: &str) -> Option<&str> {
    let lower = ["st", "nd", "rd", "th"].iter().find_map(|end| run.strip_suffix(end))?;
    (!lower.is_empty() && lower.bytes().all(|b| b.is_ascii_digit())).then_some(lower)
}
