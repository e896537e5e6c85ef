//! Numbers of people: telephones, identity cards, payment cards.

use std::sync::LazyLock;

use regex::Regex;

use super::{Bytes, pattern};

/// Telephone numbers.
pub(super) fn phones(text: &str) -> Vec<Bytes> {
    static PHONE: LazyLock<Regex> = LazyLock::new(|| {
        pattern(concat!(
            // A Chinese mobile number, with or without its country.
            r"(?:(?:\+|00)?86[-. ]?)?1[3-9][0-9][-. ]?[0-9]{4}[-. ]?[0-9]{4}",
            // E.164; digits are counted below.
            r"|\+[1-9][0-9]{0,2}(?:[-. ]?\(?[0-9]{1,4}\)?){2,6}",
            // A Chinese area code, set off from the number.
            r"|(?:\(0[1-9][0-9]{1,2}\)[-. ]?|0[1-9][0-9]{1,2}[-. ])[2-9][0-9]{2,3}[-. ]?[0-9]{4}",
            // North America.
            r"|(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[-. ])[2-9][0-9]{2}[-. ][0-9]{4}",
        ))
    });
    // E.164 allows 15 digits; below 8 it is more likely arithmetic.
    each(&PHONE, text, |found| (8..=15).contains(&digits(found).count()) || !found.starts_with('+'))
}

/// Chinese resident identity numbers.
pub(super) fn id_cards(text: &str) -> Vec<Bytes> {
    static ID_CARD: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"[1-9][0-9]{5}[- ]?(?:18|19|20)[0-9]{6}[- ]?[0-9]{3}[0-9Xx]"));
    each(&ID_CARD, text, |found| {
        let compact: Vec<u8> = found.bytes().filter(u8::is_ascii_alphanumeric).collect();
        let number = |from: usize, len: usize| {
            compact.iter().skip(from).take(len).fold(0, |sum, digit| sum * 10 + u32::from(digit.wrapping_sub(b'0')))
        };
        is_date(number(6, 4), number(10, 2), number(12, 2)) && has_gb_11643_check(&compact)
    })
}

/// Payment cards.
pub(super) fn bank_cards(text: &str) -> Vec<Bytes> {
    // Groups of digits, each one character from the next: a number may be written in groups, and several may follow each other.
    static GROUPS: LazyLock<Regex> = LazyLock::new(|| pattern(r"[0-9]+(?:[- ][0-9]+)*"));
    let mut found = Vec::new();
    for run in GROUPS.find_iter(text).filter(|run| run.len() >= MIN_CARD_DIGITS) {
        let groups: Vec<Bytes> = groups(run.as_str(), run.start());
        let mut first = 0;
        while let Some(start) = groups.get(first).map(|group| group.start) {
            let rest = groups.get(first..).unwrap_or_default();
            // No more than 19 groups can make up 19 digits.
            let longest = rest.iter().take(MAX_CARD_DIGITS).enumerate().rev();
            let card = longest.map(|(i, group)| (i, start..group.end)).find(|(_, span)| is_card(text, span));
            first += card.as_ref().map_or(1, |(i, _)| i + 1);
            found.extend(card.map(|(_, span)| span));
        }
    }
    found
}

const MIN_CARD_DIGITS: usize = 13;
const MAX_CARD_DIGITS: usize = 19;

/// Matches that stand free of other digits and pass a test.
fn each(pattern: &Regex, text: &str, is_right: impl Fn(&str) -> bool) -> Vec<Bytes> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(candidate) = pattern.find_at(text, from) {
        if stands_free(text, &candidate.range()) && is_right(candidate.as_str()) {
            found.push(candidate.range());
            from = candidate.end();
        } else {
            // Another may begin inside of this one. (All of these patterns begin with an ASCII character.)
            from = candidate.start() + 1;
        }
    }
    found
}

fn stands_free(text: &str, span: &Bytes) -> bool {
    let digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    !digit(span.start.checked_sub(1).and_then(|before| bytes.get(before))) && !digit(bytes.get(span.end))
}

fn digits(text: &str) -> impl DoubleEndedIterator<Item = u32> {
    text.chars().filter_map(|c| c.to_digit(10))
}

fn groups(run: &str, offset: usize) -> Vec<Bytes> {
    let mut groups = Vec::new();
    let mut at = offset;
    for group in run.split(['-', ' ']) {
        groups.push(at..at + group.len());
        at += group.len() + 1;
    }
    groups
}

fn is_card(text: &str, span: &Bytes) -> bool {
    let Some(written) = text.get(span.clone()) else { return false };
    // Each digit may have one separator.
    if written.len() > 2 * MAX_CARD_DIGITS {
        return false;
    }
    let count = digits(written).count();
    let prefix = digits(written).take(4).fold(0, |sum, digit| sum * 10 + digit);
    is_issued(prefix, count) && has_luhn_check(written)
}

/// Is there a network with this prefix (four digits) and length? (ISO/IEC 7812-1; ranges as the networks publish them.)
fn is_issued(prefix: u32, count: usize) -> bool {
    match prefix {
        4000..=4999 => matches!(count, 13 | 16 | 19),            // Visa
        5100..=5599 | 2221..=2720 => count == 16,                // Mastercard
        3400..=3499 | 3700..=3799 => count == 15,                // American Express
        6200..=6299 | 8100..=8199 => (16..=19).contains(&count), // UnionPay
        9558 => count == 19,                                     // older cards of ICBC
        3528..=3589 => (16..=19).contains(&count),               // JCB
        6011 | 6440..=6599 => (16..=19).contains(&count),        // Discover
        3000..=3059 | 3600..=3699 | 3800..=3999 => (14..=19).contains(&count), // Diners Club
        5000..=5099 | 5600..=5899 | 6000..=6999 => (13..=19).contains(&count), // Maestro and others
        2200..=2204 => (16..=19).contains(&count),               // Mir
        _ => false,
    }
}

fn has_luhn_check(number: &str) -> bool {
    let sum: u32 = digits(number)
        .rev()
        .enumerate()
        .map(|(i, digit)| match (i % 2, digit) {
            (0, _) => digit,
            (_, 0..=4) => digit * 2,
            (_, _) => digit * 2 - 9,
        })
        .sum();
    sum.is_multiple_of(10) && sum > 0
}

/// ISO 7064 MOD 11-2 over 18 characters.
fn has_gb_11643_check(compact: &[u8]) -> bool {
    let value = |c: u8| if c.eq_ignore_ascii_case(&b'x') { 10 } else { u32::from(c.wrapping_sub(b'0')) };
    compact.len() == 18 && compact.iter().fold(0, |sum, &c| (sum * 2 + value(c)) % 11) == 1
}

fn is_date(year: u32, month: u32, day: u32) -> bool {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::found;
    use super::*;

    const NONE: [&str; 0] = [];

    #[test]
    fn telephones_are_found() {
        for number in [
            "13800138000",
            "138-0013-8000",
            "138 0013 8000",
            "+8613800138000",
            "+86 138 0013 8000",
            "0086-13800138000",
            "8613800138000",
            "+1 (212) 555-0123",
            "+442079460958",
            "+49 30 901820",
            "(010) 8888 6666",
            "010-88886666",
            "0755-2345678",
            "212-555-0123",
            "(212) 555-0123",
        ] {
            assert_eq!(found(Kind::Phone, &format!("电话{number}，谢谢")), [number], "{number}");
        }
        assert_eq!(found(Kind::Phone, "13800138000 13900139000"), ["13800138000", "13900139000"]);
        assert_eq!(found(Kind::Phone, "1.13800138000\n2.13900139000"), ["13800138000", "13900139000"]);
    }

    #[test]
    fn other_numbers_are_no_telephones() {
        for text in [
            "12800138000",
            "138001380001",
            "913800138000",
            "2026-11-24 12:30:59",
            "192.168.10.1000",
            "1 + 12345",
            "3.14159265358979",
            "+1234",
            "invoice 20261124-0007",
            "1380013800",
            "10.0.0.1:8443",
        ] {
            assert_eq!(found(Kind::Phone, text), NONE, "{text}");
        }
    }

    #[test]
    fn identity_numbers_are_found_and_checked() {
        for number in ["11010519491231002X", "11010519491231002x", "440524188001010014", "110105 19491231 002X"] {
            assert_eq!(found(Kind::IdCard, &format!("号码：{number}。")), [number], "{number}");
        }
        // A wrong check character, the 29th of February 1949, month 13, a digit too many, an old number without a check.
        for text in [
            "110105194912310021",
            "110105194902290025",
            "110105194913310024",
            "1110105194912310020",
            "11010519491231002X0",
            "110105491231002",
        ] {
            assert_eq!(found(Kind::IdCard, text), NONE, "{text}");
        }
    }

    #[test]
    fn a_changed_digit_of_an_identity_number_is_noticed() {
        let right = "440524188001010014";
        for at in 0..right.len() {
            let digit = right.as_bytes()[at] - b'0';
            let mut wrong = right.to_owned();
            wrong.replace_range(at..=at, &((digit + 1) % 10).to_string());
            assert_eq!(found(Kind::IdCard, &wrong), NONE, "{wrong}");
        }
    }

    #[test]
    fn cards_are_found_and_checked() {
        for number in [
            "4111111111111111",
            "4111 1111 1111 1111",
            "5500-0000-0000-0004",
            "378282246310005",
            "6222021234567890128",
            "6011111111111117",
            "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        ] {
            assert_eq!(found(Kind::BankCard, &format!("卡号{number}，")), [number], "{number}");
        }
        let two = "4111 1111 1111 1111 5500 0000 0000 0004";
        assert_eq!(found(Kind::BankCard, two), ["4111 1111 1111 1111", "5500 0000 0000 0004"]);
        assert_eq!(found(Kind::BankCard, "12 4111111111111111 7"), ["4111111111111111"]);
    }

    #[test]
    fn other_long_numbers_are_no_cards() {
        // A wrong check digit, zeros, a time in nanoseconds, a digit too many, no such network, two spaces inside.
        for text in [
            "4111111111111112",
            "0000000000000000",
            "1732406400000000000",
            "41111111111111110",
            "9111111111111111",
            "4111  1111  1111  1111",
        ] {
            assert_eq!(found(Kind::BankCard, text), NONE, "{text}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert!(is_date(2000, 2, 29) && is_date(2024, 2, 29) && is_date(1999, 12, 31));
        assert!(
            !is_date(1900, 2, 29)
                && !is_date(2023, 2, 29)
                && !is_date(2023, 4, 31)
                && !is_date(2023, 0, 1)
                && !is_date(2023, 1, 0)
        );
    }
}
