//! Where in a text something may begin: four bytes in a row say so, of which the second is the place.
//!
//! One look at each byte, for all kinds together: a table says for each of the four which searches a byte may belong to, and the
//! few searches that all four agree on are tried there.

use std::sync::LazyLock;

use super::issuers::{self, Issuer};
use super::runs::{begins, is_base64url};
use super::words::{self, Word};

/// Searches, a bit for each.
pub(super) type Searches = u32;

/// Digits after something else: cards, telephones, IPv4.
pub(super) const DIGITS: Searches = 1;
/// `+` or `(`: telephones.
pub(super) const SIGN: Searches = 1 << 1;
/// `@`.
pub(super) const AT: Searches = 1 << 2;
/// `://`.
pub(super) const URL: Searches = 1 << 3;
/// `:` within IPv6.
pub(super) const COLON: Searches = 1 << 4;
/// `:`, `-` or `.` between hexadecimal digits: MAC.
pub(super) const HEX: Searches = 1 << 5;
/// Two letters and a digit: IBAN.
pub(super) const IBAN: Searches = 1 << 6;
/// A letter, then another character and a digit: passports.
pub(super) const PASSPORT: Searches = 1 << 7;
/// A province of China.
pub(super) const PLATE: Searches = 1 << 8;
/// `-BE` of a private key's first line.
pub(super) const KEY: Searches = 1 << 9;
/// `:AA` of Telegram.
pub(super) const TELEGRAM: Searches = 1 << 10;
/// `Q~` of Azure.
pub(super) const AZURE: Searches = 1 << 11;
/// A dot between the characters of tokens: Discord.
pub(super) const DISCORD: Searches = 1 << 12;
/// Words that announce a value.
pub(super) const WORD: Searches = 0xff << 13;
/// Tokens, by how their issuers begin them.
pub(super) const TOKEN: Searches = 0x7ff << 21;

/// By byte: the searches that it fits as the byte before, at the place, and as the first and second behind it.
pub(super) static TRIGGERS: LazyLock<Triggers> = LazyLock::new(Triggers::new);

pub(super) struct Triggers {
    by_byte: [[Searches; 4]; 256],
    words: Literals<Word>,
    tokens: Literals<Issuer>,
}

/// Texts and what they belong to, in as many groups as there are bits for them. Those of a group are much alike, so that few other
/// texts fit the group.
struct Literals<T: 'static> {
    bits: Searches,
    sorted: Vec<(&'static str, &'static T)>,
    group: usize,
}

impl<T> Literals<T> {
    fn new(bits: Searches, texts: impl Iterator<Item = (&'static str, &'static T)>) -> Self {
        let mut sorted: Vec<_> = texts.collect();
        sorted.sort_by_key(|(text, _)| *text);
        let group = sorted.len().div_ceil(bits.count_ones() as usize).max(1);
        Self { bits, sorted, group }
    }

    /// Each group, and its bit.
    fn groups(&self) -> impl Iterator<Item = (Searches, &[(&'static str, &'static T)])> {
        let bits = (0..Searches::BITS).map(|bit| 1 << bit).filter(|bit| self.bits & bit != 0);
        bits.zip(self.sorted.chunks(self.group))
    }

    fn sorted_by_bit(&self, before: Class) -> Vec<(Searches, Class, &'static str)> {
        self.groups().flat_map(|(bit, group)| group.iter().map(move |(text, _)| (bit, before, *text))).collect()
    }

    /// Those of the groups that fit.
    fn fitting(&self, searches: Searches) -> impl Iterator<Item = &(&'static str, &'static T)> {
        let groups = self.groups().filter(move |(bit, _)| searches & bit != 0);
        groups.flat_map(|(_, group)| group)
    }
}

/// A look at four bytes in a row, of which the last was the one given last.
#[derive(Default)]
pub(super) struct Window {
    first: Searches,
    second: Searches,
    third: Searches,
}

impl Window {
    /// Before the text.
    pub(super) fn new(triggers: &Triggers) -> Self {
        let mut window = Self::default();
        window.push(triggers, b' ');
        window
    }

    /// The searches that fit the place two bytes before this one.
    pub(super) fn push(&mut self, triggers: &Triggers, byte: u8) -> Searches {
        let [before, at, next, after] = triggers.by_byte.get(usize::from(byte)).copied().unwrap_or_default();
        let found = self.third & after;
        (self.third, self.second, self.first) = (self.second & next, self.first & at, before);
        found
    }
}

type Class = fn(u8) -> bool;

impl Triggers {
    fn new() -> Self {
        let any: Class = |_| true;
        let free: Class = |byte| !byte.is_ascii_alphanumeric();
        let digit: Class = |byte| byte.is_ascii_digit();
        let letter: Class = |byte| byte.is_ascii_alphabetic();
        let alphanumeric: Class = |byte| byte.is_ascii_alphanumeric();
        let hex: Class = |byte| byte.is_ascii_hexdigit();
        let slash: Class = |byte| byte == b'/';
        let colon: Class = |byte| byte == b':';
        let words = words::WORDS.iter().map(|word| (word.text, word));
        let tokens =
            issuers::ISSUERS.iter().flat_map(|issuer| issuer.prefixes.iter().map(move |prefix| (*prefix, issuer)));
        let mut triggers =
            Self { by_byte: [[0; 4]; 256], words: Literals::new(WORD, words), tokens: Literals::new(TOKEN, tokens) };
        let all: [(Searches, [Class; 4]); 12] = [
            (DIGITS, [|byte| !byte.is_ascii_digit(), digit, any, any]),
            (SIGN, [any, |byte| matches!(byte, b'+' | b'('), any, any]),
            (AT, [any, |byte| byte == b'@', any, any]),
            (URL, [alphanumeric, colon, slash, slash]),
            (COLON, [any, colon, |byte| byte.is_ascii_hexdigit() || byte == b':', any]),
            (HEX, [hex, |byte| matches!(byte, b':' | b'-' | b'.'), hex, hex]),
            (IBAN, [free, letter, letter, digit]),
            (PASSPORT, [free, |byte| b"EGSDP".contains(&byte), alphanumeric, digit]),
            (KEY, [|byte| byte == b'-', |byte| matches!(byte, b'-' | b' '), |byte| byte == b'B', |byte| byte == b'E']),
            (TELEGRAM, [digit, colon, |byte| byte == b'A', |byte| byte == b'A']),
            (AZURE, [digit, |byte| byte == b'Q', |byte| byte == b'~', any]),
            (DISCORD, [is_base64url, |byte| byte == b'.', is_base64url, is_base64url]),
        ];
        for (searches, classes) in all {
            triggers.add(searches, classes);
        }
        for province in words::PROVINCES.chars() {
            triggers.add_literal(PLATE, any, province.to_string().as_bytes());
        }
        let outside: Class = |byte| !byte.is_ascii_alphanumeric() && byte != b'_';
        let words: Vec<_> = triggers.words.sorted_by_bit(any);
        let tokens: Vec<_> = triggers.tokens.sorted_by_bit(outside);
        for (bit, before, text) in words.into_iter().chain(tokens) {
            triggers.add_literal(bit, before, text.as_bytes());
        }
        triggers
    }

    /// The word that `text` begins with, of those that these searches stand for.
    pub(super) fn word(&self, searches: Searches, text: &[u8]) -> Option<&'static Word> {
        self.words.fitting(searches).find(|(word, _)| begins(text, word)).map(|(_, word)| *word)
    }

    /// As [`word`](Self::word): how a token begins, and whose it is. The longest counts, since `xoxe.xoxp-` begins like others.
    pub(super) fn token(&self, searches: Searches, text: &[u8]) -> Option<(&'static str, &'static Issuer)> {
        let fitting = self.tokens.fitting(searches).filter(|(prefix, _)| text.starts_with(prefix.as_bytes()));
        fitting.max_by_key(|(prefix, _)| prefix.len()).copied()
    }

    /// How tokens begin, all of them.
    pub(super) fn tokens(&self) -> impl Iterator<Item = &(&'static str, &'static Issuer)> {
        self.tokens.sorted.iter()
    }

    fn add(&mut self, searches: Searches, classes: [Class; 4]) {
        for (fits, byte) in self.by_byte.iter_mut().zip(0..=u8::MAX) {
            for (fits, class) in fits.iter_mut().zip(classes) {
                if class(byte) {
                    *fits |= searches;
                }
            }
        }
    }

    /// What begins with these three bytes; words do in either case.
    fn add_literal(&mut self, searches: Searches, before: Class, text: &[u8]) {
        self.add(searches, [before, |_| false, |_| false, |_| false]);
        let either = searches & WORD != 0;
        for place in 0..3 {
            let wanted = text.get(place).copied();
            for (fits, byte) in self.by_byte.iter_mut().zip(0..=u8::MAX) {
                let fit = |wanted: u8| byte == wanted || (either && byte.eq_ignore_ascii_case(&wanted));
                if wanted.is_none_or(fit) {
                    fits.iter_mut().skip(place + 1).take(1).for_each(|fits| *fits |= searches);
                }
            }
        }
    }
}
