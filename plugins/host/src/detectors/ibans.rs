//! International bank account numbers.

use super::Bytes;
use super::runs::joins;
use super::work::Work;

/// The length by country. (ISO 13616-1 and its registry.)
const LENGTHS: [(&[u8; 2], usize); 89] = [
    (b"AD", 24),
    (b"AE", 23),
    (b"AL", 28),
    (b"AT", 20),
    (b"AZ", 28),
    (b"BA", 20),
    (b"BE", 16),
    (b"BG", 22),
    (b"BH", 22),
    (b"BI", 27),
    (b"BR", 29),
    (b"BY", 28),
    (b"CH", 21),
    (b"CR", 22),
    (b"CY", 28),
    (b"CZ", 24),
    (b"DE", 22),
    (b"DJ", 27),
    (b"DK", 18),
    (b"DO", 28),
    (b"EE", 20),
    (b"EG", 29),
    (b"ES", 24),
    (b"FI", 18),
    (b"FK", 18),
    (b"FO", 18),
    (b"FR", 27),
    (b"GB", 22),
    (b"GE", 22),
    (b"GI", 23),
    (b"GL", 18),
    (b"GR", 27),
    (b"GT", 28),
    (b"HN", 28),
    (b"HR", 21),
    (b"HU", 28),
    (b"IE", 22),
    (b"IL", 23),
    (b"IQ", 23),
    (b"IS", 26),
    (b"IT", 27),
    (b"JO", 30),
    (b"KW", 30),
    (b"KZ", 20),
    (b"LB", 28),
    (b"LC", 32),
    (b"LI", 21),
    (b"LT", 20),
    (b"LU", 20),
    (b"LV", 21),
    (b"LY", 25),
    (b"MC", 27),
    (b"MD", 24),
    (b"ME", 22),
    (b"MK", 19),
    (b"MN", 20),
    (b"MR", 27),
    (b"MT", 31),
    (b"MU", 30),
    (b"NI", 28),
    (b"NL", 18),
    (b"NO", 15),
    (b"OM", 23),
    (b"PK", 24),
    (b"PL", 28),
    (b"PS", 29),
    (b"PT", 25),
    (b"QA", 29),
    (b"RO", 24),
    (b"RS", 22),
    (b"RU", 33),
    (b"SA", 24),
    (b"SC", 31),
    (b"SD", 18),
    (b"SE", 24),
    (b"SI", 19),
    (b"SK", 24),
    (b"SM", 27),
    (b"SO", 23),
    (b"ST", 25),
    (b"SV", 28),
    (b"TL", 23),
    (b"TN", 24),
    (b"TR", 26),
    (b"UA", 29),
    (b"VA", 22),
    (b"VG", 24),
    (b"XK", 20),
    (b"YE", 30),
];

/// The number that begins here: its country's length, remainder 1 of 97 (ISO 7064 MOD 97-10). Single spaces, dashes and dots are
/// passed over.
pub(super) fn iban_at(bytes: &[u8], start: usize, work: &mut Work<'_>) -> Option<Bytes> {
    let country = bytes.get(start..start + 2)?;
    let (_, length) = LENGTHS.iter().find(|(code, _)| code.eq_ignore_ascii_case(country))?;
    let mut remainder = Remainder::default();
    let mut at = start;
    for place in 0..*length {
        if place > 0 && bytes.get(at).is_some_and(|byte| b" -.".contains(byte)) {
            at += 1;
        }
        let byte = bytes.get(at).copied().filter(u8::is_ascii_alphanumeric)?;
        // The check digits; everything behind them is counted first.
        if matches!(place, 2 | 3) && !byte.is_ascii_digit() {
            return None;
        }
        remainder.push(place, byte);
        at += 1;
        work.spend(1);
    }
    (remainder.is_one() && !joins(bytes.get(at).copied())).then_some(start..at)
}

/// Could this, to its last byte, be the beginning of a number, or all of one?
pub(super) fn may_become(bytes: &[u8]) -> bool {
    let Some((first, rest)) = bytes.split_first() else { return false };
    let Some(second) = rest.first() else {
        return LENGTHS.iter().any(|(code, _)| code.first().is_some_and(|letter| letter.eq_ignore_ascii_case(first)));
    };
    let country = [*first, *second];
    let Some((_, length)) = LENGTHS.iter().find(|(code, _)| code.eq_ignore_ascii_case(&country)) else { return false };
    let mut at = 0;
    for place in 0..*length {
        if place > 0 && bytes.get(at).is_some_and(|byte| b" -.".contains(byte)) {
            at += 1;
        }
        match bytes.get(at) {
            None => return true,
            Some(byte) if !byte.is_ascii_alphanumeric() => return false,
            Some(byte) if matches!(place, 2 | 3) && !byte.is_ascii_digit() => return false,
            Some(_) => at += 1,
        }
    }
    at == bytes.len()
}

/// Country and check digits count last, so they are kept apart.
#[derive(Default)]
struct Remainder {
    first: u64,
    /// How many decimal digits the first four characters became.
    scale: u64,
    rest: u64,
}

impl Remainder {
    fn push(&mut self, place: usize, byte: u8) {
        let value = u64::from(if byte.is_ascii_digit() { byte - b'0' } else { byte.to_ascii_uppercase() - b'A' + 10 });
        let scale = if value < 10 { 10 } else { 100 };
        if place < 4 {
            self.first = self.first * scale + value;
            self.scale = self.scale.max(1) * scale;
        } else {
            self.rest = (self.rest * scale + value) % 97;
        }
    }

    fn is_one(&self) -> bool {
        (self.rest * (self.scale % 97) + self.first) % 97 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::{NONE, found};
    use super::*;

    #[test]
    fn account_numbers_are_found_and_checked() {
        // The examples of the registry.
        for number in [
            "DE89 3704 0044 0532 0130 00",
            "DE89370400440532013000",
            "GB29NWBK60161331926819",
            "FR14 2004 1010 0505 0001 3M02 606",
            "MT84 MALT 0110 0001 2345 MTLC AST0 01S",
            "NO93 8601 1117 947",
            "CH93-0076-2011-6238-5295-7",
            "gb29 nwbk 6016 1331 9268 19",
            "ＤＥ８９　３７０４　００４４　０５３２　０１３０　００",
            "DЕ89 3704 0044 0532 0130 00",
            "D\u{200b}E89 3704 0044 0532 0130 00",
        ] {
            assert_eq!(found(Kind::Iban, &format!("账号：{number}，谢谢")), [number], "{number}");
        }
        // A wrong digit, too short, too long, an unknown country, two spaces, within a word.
        for text in [
            "DE89 3704 0044 0532 0130 01",
            "DE89 3704 0044 0532 0130",
            "DE89370400440532013000A",
            "ZZ89370400440532013000",
            "DE89  3704  0044  0532  0130  00",
            "XDE89370400440532013000",
        ] {
            assert_eq!(found(Kind::Iban, text), NONE, "{text}");
        }
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let right = "GB29NWBK60161331926819";
        for at in 0..right.len() {
            let byte = right.as_bytes()[at];
            let other =
                if byte.is_ascii_digit() { (byte - b'0' + 1) % 10 + b'0' } else { (byte - b'A' + 1) % 26 + b'A' };
            let mut wrong = right.to_owned();
            wrong.replace_range(at..=at, &char::from(other).to_string());
            assert_eq!(found(Kind::Iban, &wrong), NONE, "{wrong}");
        }
    }

    #[test]
    fn countries_are_in_order() {
        assert!(LENGTHS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(LENGTHS.iter().all(|(_, length)| (15..=34).contains(length)));
    }
}
