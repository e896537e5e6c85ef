//! Licence plates.

use super::Bytes;
use super::runs::{ends, is_alphanumeric, is_digit, is_upper, joins, run};
use super::words::value;

/// What a Chinese plate may end with in place of its last digit: trailers, learners, police, Hong Kong, Macao, embassies, consulates.
const ENDS: [&str; 7] = ["挂", "学", "警", "港", "澳", "使", "领"];

/// A plate of the People's Republic of China whose province stands here (GA 36): a letter, then five letters and digits (six for new
/// energy: the first or the last a letter), at most two letters among them, no `I` and no `O`; a dot, dash or space may set them off.
pub(super) fn plate_at(text: &str, start: usize) -> Option<Bytes> {
    let bytes = text.as_bytes();
    let province = text.get(start..)?.chars().next()?.len_utf8();
    let letter = start + province;
    if !bytes.get(letter).is_some_and(|byte| byte.is_ascii_alphabetic() && !byte.eq_ignore_ascii_case(&b'i')) {
        return None;
    }
    let mut from = letter + 1;
    while from < letter + 4 && bytes.get(from).is_some_and(|byte| b" .-".contains(byte)) {
        from += 1;
    }
    let end = run(bytes.get(..bytes.len().min(from + 7)).unwrap_or_default(), from, is_alphanumeric);
    let serial = bytes.get(from..end)?;
    let last = ENDS.iter().find(|last| bytes.get(end..).is_some_and(|rest| rest.starts_with(last.as_bytes())));
    let is_serial = match (serial.len(), last) {
        (5, _) => letters(serial) <= 2,
        (4, Some(_)) => letters(serial) <= 1,
        (6, _) => is_new_energy(serial),
        _ => false,
    };
    let end = end + last.filter(|_| serial.len() == 4).map_or(0, |last| last.len());
    let has_wrong = serial.iter().any(|byte| matches!(byte.to_ascii_uppercase(), b'I' | b'O'));
    (is_serial && !has_wrong && !joins(bytes.get(end).copied())).then_some(start..end)
}

fn letters(serial: &[u8]) -> usize {
    serial.iter().filter(|byte| byte.is_ascii_alphabetic()).count()
}

/// Small cars: a letter, a letter or digit, four digits. Large ones: five digits and a letter.
fn is_new_energy(serial: &[u8]) -> bool {
    let kind = |byte: u8| (b'A'..=b'K').contains(&byte.to_ascii_uppercase());
    match serial {
        [first, _, rest @ ..] if kind(*first) => rest.iter().all(u8::is_ascii_digit),
        [rest @ .., last] if kind(*last) => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// A plate of any country behind `licence plate`, `plate number`, `车牌` and the like: up to three pieces of capitals and digits, four
/// to nine characters, a digit among them.
pub(super) fn plate_behind(bytes: &[u8], word: Bytes) -> Option<Bytes> {
    let word_end = word.end;
    if bytes.get(word.clone()).is_some_and(|word| word.eq_ignore_ascii_case(b"plate")) && !is_of_a_car(bytes, word) {
        return None;
    }
    let start = value(bytes, word_end);
    let (mut end, mut characters, mut digits) = (start, 0, 0);
    for piece in 0..3 {
        let from = if piece > 0 && bytes.get(end).is_some_and(|gap| b" -.".contains(gap)) { end + 1 } else { end };
        let piece_end = run(bytes.get(..bytes.len().min(from + 10)).unwrap_or_default(), from, is_upper);
        let written = bytes.get(from..piece_end).unwrap_or_default();
        if written.is_empty() || (piece > 0 && from == end) || joins(bytes.get(piece_end).copied()) {
            break;
        }
        characters += written.len();
        digits += written.iter().filter(|byte| is_digit(**byte)).count();
        end = piece_end;
    }
    ((4..=9).contains(&characters) && digits > 0 && start > word_end).then_some(start..end)
}

/// There are plates of other kinds, and templates.
fn is_of_a_car(bytes: &[u8], plate: Bytes) -> bool {
    const BEFORE: [&str; 5] = ["license", "licence", "number", "registration", "vehicle"];
    let read = bytes.get(..plate.start).unwrap_or_default();
    let read =
        read.strip_suffix(b" ").or_else(|| read.strip_suffix(b"_")).or_else(|| read.strip_suffix(b"-")).unwrap_or(read);
    let rest = bytes.get(plate.end..).unwrap_or_default();
    BEFORE.iter().any(|word| ends(read, word))
        || [" number", " no", "_number", "_no"].iter().any(|next| super::runs::begins(rest, next))
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::{NONE, found};

    #[test]
    fn chinese_plates_are_found() {
        for plate in [
            "京A12345",
            "京A·12345",
            "粤B 1234X",
            "沪C-A1B23",
            "粤BD12345",
            "粤B12345D",
            "粤Z1234港",
            "京A1234警",
            "浙a12345",
            "京Ａ１２３４５",
            "京А12345",
            "京A\u{200b}12345",
        ] {
            assert_eq!(found(Kind::Plate, &format!("我的车{plate}，")), [plate], "{plate}");
        }
        for text in [
            "新Windows10",
            "京A1234",
            "川A1B2C3D",
            "吉I12345",
            "新A123456789",
            "贵ABCD12",
            "云B端2026",
            "京AO1234",
            "新RTX4090",
        ] {
            assert_eq!(found(Kind::Plate, text), NONE, "{text}");
        }
    }

    #[test]
    fn a_word_announces_those_of_all_countries() {
        for (text, plate) in [
            ("license plate: 7ABC123", "7ABC123"),
            ("the number plate AB12 CDE was", "AB12 CDE"),
            ("plate number is ABC-1234.", "ABC-1234"),
            ("Kennzeichen B-MW 1234", "B-MW 1234"),
            ("车牌号：AB1234", "AB1234"),
            ("\"license_plate\": \"XYZ 987\"", "XYZ 987"),
        ] {
            assert_eq!(found(Kind::Plate, text), [plate], "{text}");
        }
        for text in [
            "template: A1234",
            "a plate of 12345 noodles",
            "license plate readers",
            "number plate OK",
            "车牌识别2026年",
        ] {
            assert_eq!(found(Kind::Plate, text), NONE, "{text}");
        }
    }
}
