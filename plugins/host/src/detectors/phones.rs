//! Telephone numbers.

use std::sync::LazyLock;

use regex::Regex;

use super::digits::digits;
use super::work::Work;
use super::{Bytes, pattern};

/// No number is written longer than this, in bytes.
const MAX_WRITTEN: usize = 64;

/// The pattern begins where the text does, so that what it costs is bounded by the length of a number.
static PHONE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"^(?:",
        // A Chinese mobile number, with or without its country.
        r"(?:(?:\+|00)?86(?: ?[-./] ?| )?)?1[3-9][0-9](?: ?[-./] ?| )?[0-9]{4}(?: ?[-./] ?| )?[0-9]{4}",
        // E.164; digits are counted below.
        r"|\+[1-9][0-9]{0,2}(?:[-. /]?\(?[0-9]{1,4}\)?){2,6}",
        // A Chinese area code, set off from the number.
        r"|(?:\(0[1-9][0-9]{1,2}\)[-. /]?|0[1-9][0-9]{1,2}(?: ?[-./] ?| ))[2-9][0-9]{2,3}[-. /]?[0-9]{4}",
        // North America.
        r"|(?:\([2-9][0-9]{2}\)[-. /]?|[2-9][0-9]{2}[-. /])[2-9][0-9]{2}[-. /][0-9]{4}",
        r")",
    ))
});

/// The number that begins here, free of other digits.
pub(super) fn phone_at(text: &str, start: usize, work: &mut Work<'_>) -> Option<Bytes> {
    work.spend(1);
    if !could_be(text.as_bytes().get(start..)?) {
        return None;
    }
    let end = text.ceil_char_boundary(start.saturating_add(MAX_WRITTEN).min(text.len()));
    let candidate = text.get(start..end).and_then(|here| PHONE.find(here));
    work.spend(candidate.map_or(MAX_WRITTEN, |candidate| candidate.len()));
    let candidate = candidate?;
    let span = start..start + candidate.len();
    (is_free(text, &span) && is_number(text, start, candidate.as_str())).then_some(span)
}

/// Are there as many digits as the pattern needs at least? Most numbers in most texts are shorter.
fn could_be(bytes: &[u8]) -> bool {
    let written = bytes.iter().take(MAX_WRITTEN).take_while(|byte| byte.is_ascii_digit() || b" -./+()".contains(byte));
    let least = if bytes.first() == Some(&b'+') { 8 } else { 10 };
    written.filter(|byte| byte.is_ascii_digit()).nth(least - 1).is_some()
}

fn is_free(text: &str, span: &Bytes) -> bool {
    let digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    !digit(span.start.checked_sub(1).and_then(|before| bytes.get(before))) && !digit(bytes.get(span.end))
}

fn is_number(text: &str, start: usize, written: &str) -> bool {
    if !written.starts_with('+') {
        return true;
    }
    // A slash after a plus may also be a sum: `a+100/2000`.
    let operand = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b')' | b']' | b'_');
    let before = start.checked_sub(1).and_then(|before| text.as_bytes().get(before));
    // E.164 allows 15 digits; below 8 it is more likely arithmetic.
    (8..=15).contains(&digits(written).count()) && !(written.contains('/') && before.is_some_and(operand))
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::{NONE, found};

    #[test]
    fn telephones_are_found() {
        for number in [
            "13800138000",
            "138-0013-8000",
            "138 0013 8000",
            "138.0013.8000",
            "138/0013/8000",
            "138·0013·8000",
            "138 – 0013 – 8000",
            "138\u{a0}0013\u{a0}8000",
            "138\u{2009}0013\u{2009}8000",
            "138\u{2013}0013\u{2013}8000",
            "+8613800138000",
            "+86 138 0013 8000",
            "+86/138/0013/8000",
            "0086-13800138000",
            "8613800138000",
            "+1 (212) 555-0123",
            "+1\u{202f}212\u{202f}555\u{202f}0123",
            "+442079460958",
            "+49 30 901820",
            "+49 30/901820",
            "(010) 8888 6666",
            "010-88886666",
            "010/88886666",
            "0755-2345678",
            "0755 – 2345678",
            "212-555-0123",
            "212/555/0123",
            "(212) 555-0123",
            "(212)/555/0123",
        ] {
            assert_eq!(found(Kind::Phone, &format!("电话{number}，谢谢")), [number], "{number}");
        }
        assert_eq!(found(Kind::Phone, "13800138000 13900139000"), ["13800138000", "13900139000"]);
        assert_eq!(found(Kind::Phone, "1.13800138000\n2.13900139000"), ["13800138000", "13900139000"]);
        assert_eq!(found(Kind::Phone, "1+13800138000"), ["13800138000"]);
    }

    #[test]
    fn other_numbers_are_no_telephones() {
        for text in [
            "12800138000",
            "138001380001",
            "913800138000",
            "2026-11-24 12:30:59",
            "2026/11/24 12:30",
            "24/11/2026 - 28/11/2026",
            "192.168.10.1000",
            "192.168.100.200/24",
            "1 + 12345",
            "3.14159265358979",
            "+1234",
            "invoice 20261124-0007",
            "1380013800",
            "10.0.0.1:8443",
            "300 - 400 - 5000",
            "a+100/2000/3000",
            "(x)+1024/2048/4096",
            "1/2/3/4/5/6/7/8/9",
            "ratio 16/9, 4/3, 1.85/1",
            "138  0013  8000",
            "v1.13.0 (138 0013)",
        ] {
            assert_eq!(found(Kind::Phone, text), NONE, "{text}");
        }
    }
}
