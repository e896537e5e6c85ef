//! Characters in a row.

/// Where the characters that begin at `from` end.
pub(super) fn run(bytes: &[u8], from: usize, is_in: fn(u8) -> bool) -> usize {
    from + bytes.get(from..).unwrap_or_default().iter().take_while(|byte| is_in(**byte)).count()
}

/// Where the characters that end at `end` begin, `most` of them at most.
pub(super) fn run_back(bytes: &[u8], end: usize, most: usize, is_in: fn(u8) -> bool) -> usize {
    end - bytes.get(..end).unwrap_or_default().iter().rev().take(most).take_while(|byte| is_in(**byte)).count()
}

/// The byte before this one.
pub(super) fn before(bytes: &[u8], at: usize) -> Option<u8> {
    at.checked_sub(1).and_then(|before| bytes.get(before)).copied()
}

/// Does `text` begin with `word`, in either case?
pub(super) fn begins(text: &[u8], word: &str) -> bool {
    // Nearly always the first byte or the last says no.
    let word = word.as_bytes();
    let same = |a: Option<&u8>, b: Option<&u8>| a.zip(b).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b));
    let likely = same(text.first(), word.first()) && same(text.get(word.len().wrapping_sub(1)), word.last());
    likely && text.get(..word.len()).is_some_and(|text| text.eq_ignore_ascii_case(word))
}

/// Does `text` end with `word`, in either case?
pub(super) fn ends(text: &[u8], word: &str) -> bool {
    text.len()
        .checked_sub(word.len())
        .and_then(|at| text.get(at..))
        .is_some_and(|text| text.eq_ignore_ascii_case(word.as_bytes()))
}

/// Does a group of hexadecimal digits end right before this place, with the separator behind it? Then what begins here goes on from
/// there. (`地址：00:1a:…` and `addr:2001:db8::1` begin at their first digit.)
pub(super) fn goes_on_from_group(bytes: &[u8], start: usize, separator: u8, longest: usize) -> bool {
    if before(bytes, start) != Some(separator) {
        return false;
    }
    let end = start - 1;
    let group = run_back(bytes, end, longest + 1, is_alphanumeric);
    let digits = bytes.get(group..end).unwrap_or_default();
    let is_group = (1..=longest).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    is_group || before(bytes, end) == Some(separator)
}

pub(super) fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

pub(super) fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

pub(super) fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

pub(super) fn is_upper(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

pub(super) fn is_hex(byte: u8) -> bool {
    byte.is_ascii_hexdigit()
}

pub(super) fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit()
}

/// Could it belong to the word or number before or behind it?
pub(super) fn joins(byte: Option<u8>) -> bool {
    byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
