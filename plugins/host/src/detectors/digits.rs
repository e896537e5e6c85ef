//! Digits, and what stands between them.

pub(super) fn digits(text: &str) -> impl DoubleEndedIterator<Item = u32> {
    text.chars().filter_map(|c| c.to_digit(10))
}

/// What may stand between two digits of one number: `-`, `.`, `/` or `_`, with a space on each side or none; or one space.
/// Two spaces are columns of a table.
pub(super) fn gap(text: &[u8]) -> Option<&[u8]> {
    let is_mark = |at: usize| text.get(at).is_some_and(|byte| b"-./_".contains(byte));
    let is_space = |at: usize| text.get(at) == Some(&b' ');
    let len = match (is_space(0), is_mark(0)) {
        (true, _) if is_mark(1) => 2 + usize::from(is_space(2)),
        (true, _) => 1,
        (_, true) => 1 + usize::from(is_space(1)),
        _ => return None,
    };
    text.get(..len).filter(|_| text.get(len).is_some_and(u8::is_ascii_digit))
}
