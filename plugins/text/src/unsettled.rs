//! The end of a text of which more will come: what of it may still read as something else.

use crate::plain::{latin, plain};

/// No word that is written in two alphabets is longer, in bytes.
const MAX_WORD: usize = 256;
/// Backslashes before one character: JSON in JSON in JSON.
const MAX_BACKSLASHES: usize = 32;

/// Where that begins: an escape that is not over, or a word whose letters may be Latin ones in disguise. `None`: nothing may.
#[must_use]
pub fn unsettled(text: &str) -> Option<usize> {
    let word = word(text);
    let escape = escape(text);
    word.into_iter().chain(escape).min()
}

/// A word at the end that has letters that look like Latin ones, and none that do not: the next letter says what they are.
fn word(text: &str) -> Option<usize> {
    if text.is_ascii() {
        return None;
    }
    let mut start = None;
    for (at, c) in text.char_indices().rev().take_while(|(at, _)| text.len() - at <= MAX_WORD) {
        match plain(c) {
            Some(c) if c.is_ascii_alphanumeric() => {}
            Some(c) if c < '\u{590}' && c.is_alphabetic() => {
                latin(c)?;
                start = Some(at);
            }
            Some(_) => break,
            None => {}
        }
    }
    start
}

/// An escape at the end that more text could complete, with all the backslashes before it.
fn escape(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let one = |end: usize| {
        let back = |end: usize, most: usize, is_in: fn(&u8) -> bool| {
            let before = bytes.get(..end).unwrap_or_default();
            end - before.iter().rev().take(most).take_while(|byte| is_in(byte)).count()
        };
        let digits = back(end, 4, u8::is_ascii_hexdigit);
        let letter = digits.checked_sub(1).filter(|at| matches!(bytes.get(*at), Some(b'u' | b'x')));
        // Without its letter, digits are no part of an escape.
        let slashes_end = letter.unwrap_or(end);
        let start = back(slashes_end, MAX_BACKSLASHES, |byte| *byte == b'\\');
        (start < slashes_end).then_some(start)
    };
    let last = one(text.len())?;
    // The first half of a pair of surrogates may stand before it.
    Some(one(last).unwrap_or(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_more_text_may_change_is_known() {
        for (text, from) in [
            ("plain", None),
            (r"a \", Some(2)),
            (r"a \u00", Some(2)),
            (r"a \x4", Some(2)),
            (r"a \ud83d\ude", Some(2)),
            (r"a \\\u00", Some(2)),
            (r"a \n b", None),
            ("beef", None),
            ("a р", Some(2)),
            ("a рass", Some(2)),
            ("a рaж", None),
            ("мир", None),
            ("", None),
        ] {
            assert_eq!(unsettled(text), from, "{text}");
        }
    }
}
