//! Text as the patterns see it: full-width forms and digits of other scripts as ASCII, dashes and spaces of one kind,
//! invisible characters gone. Remembers where everything was.

use std::borrow::Cow;

use super::Bytes;

/// A text in plain form, and the way back to its original.
#[derive(Debug)]
pub(super) struct Normalised<'a> {
    original: &'a str,
    plain: Cow<'a, str>,
    /// Places from which on both texts run in parallel again: (byte of the plain text, byte of the original), ascending.
    anchors: Vec<(usize, usize)>,
}

impl<'a> Normalised<'a> {
    pub(super) fn of(original: &'a str) -> Self {
        let mut normalised = Self { original, plain: Cow::Borrowed(original), anchors: Vec::new() };
        if original.is_ascii() || !original.chars().any(|c| plain(c) != Some(c)) {
            return normalised;
        }
        let mut text = String::with_capacity(original.len());
        for (at, c) in original.char_indices() {
            let kept = plain(c);
            text.extend(kept);
            if kept != Some(c) {
                normalised.anchors.push((text.len(), at + c.len_utf8()));
            }
        }
        normalised.plain = Cow::Owned(text);
        normalised
    }

    pub(super) fn text(&self) -> &str {
        &self.plain
    }

    /// The bytes of the original that a span (not empty, on character boundaries) of the plain text came from.
    pub(super) fn original(&self, span: Bytes) -> (usize, usize) {
        let last = self.plain.get(span.clone()).and_then(|text| text.chars().next_back()).map_or(1, char::len_utf8);
        let last_start = self.position(span.end.saturating_sub(last));
        let last_len = self.original.get(last_start..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
        (self.position(span.start), last_start + last_len)
    }

    /// Where the character at this byte of the plain text was.
    fn position(&self, at: usize) -> usize {
        // Several anchors at one byte: characters vanished there, and the last anchor is behind them.
        let behind = self.anchors.partition_point(|(plain, _)| *plain <= at);
        let (plain, original) = behind.checked_sub(1).and_then(|i| self.anchors.get(i)).copied().unwrap_or((0, 0));
        original + (at - plain)
    }
}

/// The plain form of a character; `None`: it is invisible.
fn plain(c: char) -> Option<char> {
    let digit = |zero: u32| char::from_digit((u32::from(c) - zero) % 10, 10);
    match c {
        '\0'..='\u{7f}' => Some(c),
        // Soft hyphen, joiners, marks of direction, invisible operators, variation selectors, byte order mark, tags.
        '\u{ad}'
        | '\u{34f}'
        | '\u{61c}'
        | '\u{180b}'..='\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' => None,
        '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{e0000}'..='\u{e01ef}' => None,
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0),
        '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => Some(' '),
        '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe58}' | '\u{fe63}' => Some('-'),
        '\u{fe52}' | '\u{2024}' => Some('.'),
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
        assert!(matches!(Normalised::of("héllo 中文").plain, Cow::Borrowed(_)));
    }

    #[test]
    fn every_form_of_a_character_has_its_place() {
        let original = "a\u{200b}１中—b\u{feff}\u{200d}٣";
        let normalised = Normalised::of(original);
        assert_eq!(normalised.text(), "a1中-b3");
        let back = |start, end| {
            let (start, end) = normalised.original(start..end);
            original.get(start..end).unwrap()
        };
        assert_eq!(back(0, 1), "a");
        assert_eq!(back(1, 2), "１");
        assert_eq!(back(0, 2), "a\u{200b}１");
        assert_eq!(back(2, 5), "中");
        assert_eq!(back(5, 7), "—b");
        assert_eq!(back(7, 8), "٣");
        assert_eq!(back(0, 8), original);
    }
}
