//! Numbers of passports.

use super::Bytes;
use super::runs::{before, is_alphanumeric, is_digit, joins, run, run_back};
use super::words::value;

/// A Chinese passport by its form alone: `E` and eight digits or a letter and seven, `G` and eight, `DE`, `SE` or `PE` and seven.
/// In capitals, since commits are abbreviated like that in small letters, and no date behind the letter. The older `D`, `S` and `P`
/// with eight digits are also names of parts and files: they need a word, as does every other country's.
pub(super) fn passport_at(bytes: &[u8], start: usize) -> Option<Bytes> {
    let end = start + 9;
    let number = bytes.get(start..end)?;
    let letters = number.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    let digits = number.get(letters..)?;
    let form = match (number, letters) {
        ([b'E' | b'G', ..], 1) => !is_date(digits),
        ([b'D' | b'S' | b'P', b'E', ..], 2) => true,
        // No `I` and no `O`, which would be taken for digits.
        ([b'E', second, ..], 2) => !matches!(second, b'I' | b'O'),
        _ => false,
    };
    let is_free = !joins(before(bytes, start)) && !joins(bytes.get(end).copied()) && before(bytes, start) != Some(b'-');
    (form && is_free && digits.iter().all(u8::is_ascii_digit) && bytes.get(end) != Some(&b'-')).then_some(start..end)
}

/// The number behind a word such as `passport` or `护照`: six to ten letters and digits, at least four of them digits, in one piece or
/// with a gap behind the letters. Every country's look like that.
pub(super) fn passport_behind(bytes: &[u8], word_end: usize) -> Option<Bytes> {
    let start = value(bytes, word_end);
    let near = |from: usize| bytes.get(..bytes.len().min(from + 12)).unwrap_or_default();
    let mut end = run(near(start), start, is_alphanumeric);
    let letters = bytes.get(start..end)?;
    if (1..=3).contains(&letters.len())
        && letters.iter().all(u8::is_ascii_alphabetic)
        && bytes.get(end).is_some_and(|gap| b" -".contains(gap))
    {
        end = run(near(end + 1), end + 1, is_digit);
    }
    // The word must not run into the number: `passports1234567` is a name.
    let behind_word = start > word_end || run_back(bytes, start, 1, is_alphanumeric) == start;
    let number = bytes.get(start..end)?;
    let characters = number.iter().filter(|byte| byte.is_ascii_alphanumeric()).count();
    let digits = number.iter().filter(|byte| byte.is_ascii_digit()).count();
    let is_number = (6..=10).contains(&characters) && digits >= 4 && !(digits == characters && is_date(number));
    (is_number && behind_word && !joins(bytes.get(end).copied())).then_some(start..end)
}

/// `20261124`.
fn is_date(digits: &[u8]) -> bool {
    let number = |from: usize, len: usize| {
        digits.iter().skip(from).take(len).fold(0, |sum, digit| sum * 10 + u32::from(digit.wrapping_sub(b'0')))
    };
    digits.len() == 8
        && (1900..2100).contains(&number(0, 4))
        && (1..=12).contains(&number(4, 2))
        && (1..=31).contains(&number(6, 2))
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::{NONE, found};

    #[test]
    fn chinese_passports_are_known_by_their_form() {
        for number in
            ["E12345678", "EA1234567", "G12345678", "DE1234567", "Ｅ１２３４５６７８", "Е12345678", "E1234\u{200b}5678"]
        {
            assert_eq!(found(Kind::Passport, &format!("证件{number}，")), [number], "{number}");
        }
        for text in [
            "e12345678",
            "E1234567",
            "E123456789",
            "EO1234567",
            "S12345678",
            "G20261124",
            "xE12345678",
            "E12345678-1",
            "E12345678x",
            "0E12345678",
            "PO-E12345678",
        ] {
            assert_eq!(found(Kind::Passport, text), NONE, "{text}");
        }
    }

    #[test]
    fn a_word_announces_those_of_all_countries() {
        for (text, number) in [
            ("护照号码：P12345678。", "P12345678"),
            ("护照 S 12345678", "S 12345678"),
            ("my passport number is 963545637.", "963545637"),
            ("Passport No. C01X00T47", "C01X00T47"),
            ("passport: AB1234567", "AB1234567"),
            ("Reisepass Nr. c01x00t47", "c01x00t47"),
            ("\"passport\": \"K12345678\"", "K12345678"),
        ] {
            assert_eq!(found(Kind::Passport, text), [number], "{text}");
        }
        for text in [
            "passport renewal",
            "passport 20261124",
            "passport photos 2026",
            "passports12345678",
            "护照到期2027年",
            "passport A12",
        ] {
            assert_eq!(found(Kind::Passport, text), NONE, "{text}");
        }
    }
}
