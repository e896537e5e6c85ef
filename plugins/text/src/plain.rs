//! Characters as the patterns see them: full-width forms and digits of other scripts as ASCII, dashes, spaces and dots of
//! one kind, invisible characters gone.

use std::borrow::Cow;
use std::ops::Range;

use crate::runs::{MAX_BYTES, Runs};

/// A text in plain form, and the way back to its original.
#[derive(Debug)]
pub struct Plain<'a> {
    text: Cow<'a, str>,
    runs: Runs,
}

impl<'a> Plain<'a> {
    /// Copies only what is not plain.
    #[must_use]
    pub fn of(original: &'a str) -> Self {
        if original.len() > MAX_BYTES || original.is_ascii() || next_change(original, 0).is_none() {
            return Self { text: Cow::Borrowed(original), runs: Runs::default() };
        }
        let mut made = Made { text: String::with_capacity(original.len()), runs: Runs::default() };
        let mut at = 0;
        while let Some((change, c)) = next_change(original, at) {
            made.same(original, at..change);
            at = change
                + if latin(c).is_some() { made.word(original, change) } else { made.character(change, c, plain(c)) };
        }
        made.same(original, at..original.len());
        Self { text: Cow::Owned(made.text), runs: made.runs }
    }

    /// The plain form.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The bytes of the original that a span (not empty, on character boundaries) of the plain text came from.
    #[must_use]
    pub fn original(&self, span: Range<usize>) -> Range<usize> {
        self.runs.original(&self.text, span)
    }
}

/// A plain text that is being made.
struct Made {
    text: String,
    runs: Runs,
}

impl Made {
    /// Bytes that stay as they are.
    fn same(&mut self, original: &str, span: Range<usize>) {
        if let Some(same) = original.get(span.clone()).filter(|same| !same.is_empty()) {
            self.runs.push((self.text.len(), 1), (span.start, 1));
            self.text.push_str(same);
        }
    }

    /// A character that becomes another one, or none. Its length in the original.
    fn character(&mut self, at: usize, c: char, plain: Option<char>) -> usize {
        let made_at = self.text.len();
        self.text.extend(plain);
        self.runs.push((made_at, self.text.len() - made_at), (at, c.len_utf8()));
        c.len_utf8()
    }

    /// The rest of a word, from its first letter that looks like a Latin one. If everything in the word is Latin, a digit, or
    /// looks so, it is read as Latin: nobody writes a word in two alphabets but who wants it to look like another. Words in an
    /// alphabet of their own stay what they are. Its length in the original.
    fn word(&mut self, original: &str, from: usize) -> usize {
        let rest = original.get(from..).unwrap_or_default();
        let (mut is_latin, mut is_mixed, mut len) = (true, self.text.ends_with(|c: char| c.is_ascii_alphanumeric()), 0);
        for c in rest.chars() {
            match plain(c) {
                Some(c) if c.is_ascii_alphanumeric() => is_mixed = true,
                Some(c) if c < '\u{590}' && c.is_alphabetic() => is_latin &= latin(c).is_some(),
                Some(_) => break,
                None => {}
            }
            len += c.len_utf8();
        }
        for (at, c) in rest.get(..len).unwrap_or_default().char_indices() {
            let looks_like = latin(c).filter(|_| is_latin && is_mixed);
            self.character(from + at, c, looks_like.or_else(|| plain(c)));
        }
        len
    }
}

/// The next character, from a byte on, that is not plain or may be read as another one.
fn next_change(text: &str, mut from: usize) -> Option<(usize, char)> {
    loop {
        let rest = text.as_bytes().get(from..)?;
        let at = from + rest.iter().position(|byte| MAY_CHANGE.get(usize::from(*byte)) == Some(&true))?;
        let c = text.get(at..)?.chars().next()?;
        if plain(c) != Some(c) || latin(c).is_some() {
            return Some((at, c));
        }
        from = at + c.len_utf8();
    }
}

/// First bytes (of UTF-8) of characters that may change. Most of most texts is passed over by that.
#[expect(clippy::indexing_slicing, reason = "computed by the compiler, for which a wrong index is an error")]
static MAY_CHANGE: [bool; 256] = {
    let mut may = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        may[byte] = matches!(byte, 0xc2 | 0xcd..=0xd1 | 0xd2..=0xd6 | 0xd8 | 0xd9 | 0xdb | 0xdf..=0xe3 | 0xea | 0xef | 0xf0 | 0xf3);
        byte += 1;
    }
    may
};

/// The plain form of a character; `None`: it is invisible.
#[must_use]
pub fn plain(c: char) -> Option<char> {
    match c {
        '\0'..='\u{7f}' | '\u{3400}'..='\u{9fff}' => Some(c),
        // Soft hyphen, joiners, fillers, marks of direction, invisible operators, variation selectors, byte order mark, tags.
        '\u{ad}'
        | '\u{34f}'
        | '\u{61c}'
        | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{e0000}'..='\u{e01ef}' => None,
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0),
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => Some(' '),
        '\u{2010}'..='\u{2015}' | '\u{2043}' | '\u{2212}' | '\u{fe58}' | '\u{fe63}' => Some('-'),
        // Dots in the middle and of all sizes, but not the full stop of Chinese and Japanese (`。`), which ends sentences.
        '\u{b7}' | '\u{2022}' | '\u{2024}' | '\u{2027}' | '\u{2219}' | '\u{22c5}' | '\u{30fb}' | '\u{fe52}'
        | '\u{ff65}' => Some('.'),
        '\u{2044}' | '\u{2215}' | '\u{29f8}' => Some('/'),
        '\u{2236}' | '\u{a789}' | '\u{fe13}' | '\u{fe55}' => Some(':'),
        '\u{fe62}' => Some('+'),
        '\u{fe6b}' => Some('@'),
        // Letters as mathematics sets them: bold, italic, script and so on, each alphabet A to Z and a to z.
        '\u{1d400}'..='\u{1d6a3}' => letter((u32::from(c) - 0x1d400) % 52),
        '\u{1d7ce}'..='\u{1d7ff}' => digit((u32::from(c) - 0x1d7ce) % 10),
        '\u{660}'..='\u{1fffe}' => other_digit(c).or(Some(c)),
        _ => Some(c),
    }
}

fn letter(place: u32) -> Option<char> {
    let (first, place) = if place < 26 { (b'A', place) } else { (b'a', place - 26) };
    u8::try_from(place).ok().map(|place| char::from(first + place))
}

fn digit(value: u32) -> Option<char> {
    char::from_digit(value, 10)
}

/// Decimal digits of scripts in use (Unicode's class Nd), by their zero. Not those that are set high, low or in circles: they
/// stand against numbers as the signs of notes and lists.
fn other_digit(c: char) -> Option<char> {
    const ZEROS: [u32; 20] = [
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xe50, 0xed0, 0xf20,
        0x1040, 0x17e0, 0x1810, 0x1a80, 0x1fbf0,
    ];
    let c = u32::from(c);
    ZEROS.iter().find_map(|zero| c.checked_sub(*zero).filter(|value| *value < 10)).and_then(digit)
}

/// The Latin letter that a Cyrillic, Greek or Armenian one looks like. (Unicode's confusables, those that most fonts draw alike.)
#[must_use]
pub fn latin(c: char) -> Option<char> {
    const ALIKE: [(char, &str); 44] = [
        ('a', "аα"),
        ('c', "сϲ"),
        ('d', "ԁ"),
        ('e', "е"),
        ('h', "һհ"),
        ('i', "іι"),
        ('j', "јϳ"),
        ('k', "кκ"),
        ('l', "ӏ"),
        ('n', "ո"),
        ('o', "оοօ"),
        ('p', "рρ"),
        ('q', "ԛ"),
        ('s', "ѕ"),
        ('u', "υս"),
        ('v', "ѵν"),
        ('w', "ԝ"),
        ('x', "хχ"),
        ('y', "уү"),
        ('A', "АΑ"),
        ('B', "ВΒ"),
        ('C', "СϹ"),
        ('D', "Ԁ"),
        ('E', "ЕΕ"),
        ('G', "Ԍ"),
        ('H', "НΗ"),
        ('I', "ІΙӀ"),
        ('J', "ЈͿ"),
        ('K', "КΚ"),
        ('M', "МΜ"),
        ('N', "Ν"),
        ('O', "ОΟՕ"),
        ('P', "РΡ"),
        ('Q', "Ԛ"),
        ('S', "ЅՏ"),
        ('T', "ТΤ"),
        ('U', "Ս"),
        ('V', "Ѵ"),
        ('W', "Ԝ"),
        ('X', "ХΧ"),
        ('Y', "УΥҮ"),
        ('Z', "Ζ"),
        ('b', "Ь"),
        ('f', "ғ"),
    ];
    const FIRST: u32 = 0x370;
    // By the place in Greek, Cyrillic and Armenian; 0: none.
    #[expect(clippy::indexing_slicing, reason = "computed by the compiler, for which a wrong index is an error")]
    const TABLE: [u8; 0x220] = {
        let mut table = [0; 0x220];
        let mut letter = 0;
        while letter < ALIKE.len() {
            let (latin, others) = ALIKE[letter];
            let others = others.as_bytes();
            let mut at = 0;
            // All of them are two bytes long.
            while at + 1 < others.len() {
                let code = ((others[at] as u32 & 0x1f) << 6) | (others[at + 1] as u32 & 0x3f);
                table[(code - FIRST) as usize] = latin as u8;
                at += 2;
            }
            letter += 1;
        }
        table
    };
    let place = usize::try_from(u32::from(c).checked_sub(FIRST)?).ok()?;
    TABLE.get(place).filter(|latin| **latin != 0).map(|latin| char::from(*latin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_not_copied() {
        assert!(matches!(Plain::of("héllo 中文").text, Cow::Borrowed(_)));
    }

    #[test]
    fn every_form_of_a_character_has_its_place() {
        let original = "a\u{200b}１中—b\u{feff}\u{200d}٣";
        let plain = Plain::of(original);
        assert_eq!(plain.text(), "a1中-b3");
        let back = |start, end| original.get(plain.original(start..end)).unwrap();
        assert_eq!(back(0, 1), "a");
        assert_eq!(back(1, 2), "１");
        assert_eq!(back(0, 2), "a\u{200b}１");
        assert_eq!(back(2, 5), "中");
        assert_eq!(back(5, 7), "—b");
        assert_eq!(back(7, 8), "٣");
        assert_eq!(back(0, 8), original);
    }

    #[test]
    fn words_in_two_alphabets_are_latin() {
        let plain = |text: &str| Plain::of(text).text().to_owned();
        for (written, read) in [
            ("аdmin@exаmple.соm", "admin@example.com"),
            ("DЕ89 Е12345678 京А12345", "DE89 E12345678 京A12345"),
            ("gh\u{200b}р_Ab", "ghp_Ab"),
            ("ＡＫІＡ", "AKIA"),
            ("почта иван 5 м", "почта иван 5 м"),
            ("5см, 12кг, 3β", "5см, 12кг, 3β"),
            ("с а о", "с а о"),
            ("𝐛𝐨𝐛@𝚎𝚡.org", "bob@ex.org"),
            ("১২৩ ๔๕", "123 45"),
        ] {
            assert_eq!(plain(written), read, "{written}");
        }
        let text = "给аdmin@exаmple.соm吧";
        let plain = Plain::of(text);
        let at = plain.text().find("admin@example.com").unwrap();
        assert_eq!(text.get(plain.original(at..at + 17)), Some("аdmin@exаmple.соm"));
    }

    /// Every character whose plain form is another one is found by its first byte.
    #[test]
    fn no_change_is_passed_over() {
        for c in '\0'..=char::MAX {
            if plain(c) != Some(c) || latin(c).is_some() {
                let text = c.to_string();
                assert_eq!(next_change(&text, 0), Some((0, c)), "{c:?}");
            }
            assert!(plain(c).is_none_or(|made| made.len_utf8() <= c.len_utf8()), "{c:?}");
        }
    }

    #[test]
    fn digits_of_mathematics_count_from_zero() {
        let all: String = ('\u{1d7ce}'..='\u{1d7ff}').filter_map(plain).collect();
        assert_eq!(all, "0123456789".repeat(5));
    }
}
