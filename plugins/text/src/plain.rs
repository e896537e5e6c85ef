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
        let is_plain = original.is_ascii() || original.chars().all(|c| plain(c) == Some(c));
        if is_plain || original.len() > MAX_BYTES {
            return Self { text: Cow::Borrowed(original), runs: Runs::default() };
        }
        let mut runs = Runs::default();
        let mut text = String::with_capacity(original.len());
        for (at, c) in original.char_indices() {
            let made_at = text.len();
            text.extend(plain(c));
            runs.push((made_at, text.len() - made_at), (at, c.len_utf8()));
        }
        Self { text: Cow::Owned(text), runs }
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

/// The plain form of a character; `None`: it is invisible.
#[must_use]
pub fn plain(c: char) -> Option<char> {
    let digit = |zero: u32| char::from_digit((u32::from(c) - zero) % 10, 10);
    match c {
        '\0'..='\u{7f}' => Some(c),
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
        '\u{b7}' | '\u{2024}' | '\u{2027}' | '\u{2219}' | '\u{22c5}' | '\u{30fb}' | '\u{fe52}' | '\u{ff65}' => {
            Some('.')
        }
        '\u{2044}' | '\u{2215}' | '\u{29f8}' => Some('/'),
        '\u{fe6b}' => Some('@'),
        '\u{660}'..='\u{669}' => digit(0x660),
        '\u{6f0}'..='\u{6f9}' => digit(0x6f0),
        '\u{966}'..='\u{96f}' => digit(0x966),
        '\u{1d7ce}'..='\u{1d7ff}' => digit(0x1d7ce),
        _ => Some(c),
    }
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
    fn digits_of_mathematics_count_from_zero() {
        let all: String = ('\u{1d7ce}'..='\u{1d7ff}').filter_map(plain).collect();
        assert_eq!(all, "0123456789".repeat(5));
    }
}
