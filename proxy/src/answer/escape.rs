//! Escapes in the strings of JSON that arrives in pieces. Source: RFC 8259, 7.

/// Surrogates, as JSON writes them.
const HIGH: std::ops::Range<u32> = 0xd800..0xdc00;
const LOW: std::ops::Range<u32> = 0xdc00..0xe000;

/// What an escape is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// A character.
    One(char),
    /// A surrogate without the other, of so many bytes; what follows them is no part of it.
    Lone(usize),
}

/// Reads what begins with a backslash; `None`: it is not all there.
#[must_use]
pub fn read(escape: &str) -> Option<Escape> {
    let mut chars = escape.chars().skip(1);
    let one = match chars.next()? {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'u' => return unicode(escape),
        c => c,
    };
    Some(Escape::One(one))
}

fn unicode(escape: &str) -> Option<Escape> {
    let unit = |from: usize| u32::from_str_radix(escape.get(from..from + 4)?, 16).ok();
    let digits = escape.get(2..).unwrap_or_default();
    let is_wrong = digits.chars().take(4).any(|c| !c.is_ascii_hexdigit());
    if is_wrong {
        return Some(Escape::Lone(2));
    }
    if digits.len() < 4 {
        return None;
    }
    let first = unit(2)?;
    if !HIGH.contains(&first) {
        return Some(char::from_u32(first).map_or(Escape::Lone(6), Escape::One));
    }
    let second = escape.get(6..).unwrap_or_default();
    let may_be = "\\u".starts_with(second)
        || second.strip_prefix("\\u").is_some_and(|digits| digits.chars().all(|c| c.is_ascii_hexdigit()));
    if !may_be {
        return Some(Escape::Lone(6));
    }
    if second.len() < 6 {
        return None;
    }
    let second = unit(8).filter(|second| LOW.contains(second));
    let pair = second.and_then(|second| char::from_u32(0x1_0000 + ((first - HIGH.start) << 10) + (second - LOW.start)));
    Some(pair.map_or(Escape::Lone(6), Escape::One))
}
