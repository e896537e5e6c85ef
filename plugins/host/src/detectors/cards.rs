//! Numbers with a check digit: payment cards, identity cards.

use super::Bytes;
use super::digits::gap;
use super::work::Work;

const MIN_CARD_DIGITS: usize = 13;
const MAX_CARD_DIGITS: usize = 19;

/// What was read of a number that may be a card's: enough to say after each digit whether it could end there, so that each
/// digit is looked at once for each beginning, of which 19 at most are near enough.
#[derive(Default)]
struct Reading {
    digits: usize,
    prefix: u32,
    /// Luhn sums of the digits so far, if the last one is at an even place, and if it is at an odd one.
    sums: [u32; 2],
    /// Digits between gaps, and whether they are as people group them.
    groups: [u8; MAX_CARD_DIGITS],
    group: usize,
    gaps: Gaps,
}

/// What stands between the groups.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Gaps {
    #[default]
    None,
    /// Single spaces or dashes, which may be in any place.
    Plain,
    /// Others, all the same: then the groups must be those of a card, since decimals, dates and addresses look like that too.
    Odd,
    /// Others, and not the same.
    Mixed,
}

/// The payment card that begins here.
pub(super) fn card_at(bytes: &[u8], start: usize, work: &mut Work<'_>) -> Option<Bytes> {
    let mut reading = Reading::default();
    let mut at = start;
    let mut first_gap: Option<&[u8]> = None;
    let mut card = None;
    while let Some(digit) = bytes.get(at).filter(|byte| byte.is_ascii_digit()) {
        if !reading.push(u32::from(*digit - b'0')) {
            break;
        }
        at += 1;
        let rest = bytes.get(at..).unwrap_or_default();
        if rest.first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        if reading.is_card() {
            card = Some(start..at);
        }
        let Some(gap) = gap(rest).filter(|_| reading.digits < MAX_CARD_DIGITS) else { break };
        reading.gap(gap, first_gap.get_or_insert(gap));
        at += gap.len();
    }
    work.spend(at - start);
    card
}

impl Reading {
    /// False: too many, or no card begins like this.
    fn push(&mut self, digit: u32) -> bool {
        let place = self.digits % 2;
        for (ends, sum) in self.sums.iter_mut().enumerate() {
            *sum += match (ends == place, digit) {
                (true, _) => digit,
                (false, 0..=4) => digit * 2,
                (false, _) => digit * 2 - 9,
            };
        }
        if self.digits < 4 {
            self.prefix = self.prefix * 10 + digit;
        }
        self.digits += 1;
        if let Some(group) = self.groups.get_mut(self.group) {
            *group += 1;
        }
        self.digits <= MAX_CARD_DIGITS && (self.digits > 1 || matches!(digit, 2..=6 | 8 | 9))
    }

    fn gap(&mut self, gap: &[u8], first: &[u8]) {
        self.group += 1;
        let is_plain = matches!(gap, b" " | b"-");
        self.gaps = match self.gaps {
            Gaps::None | Gaps::Plain if is_plain => Gaps::Plain,
            Gaps::None | Gaps::Odd if !is_plain && gap == first => Gaps::Odd,
            _ => Gaps::Mixed,
        };
    }

    fn is_card(&self) -> bool {
        if self.digits < MIN_CARD_DIGITS || !is_issued(self.prefix, self.digits) {
            return false;
        }
        let sum = self.sums.get((self.digits - 1) % 2).copied().unwrap_or(1);
        let grouped = match self.gaps {
            Gaps::None | Gaps::Plain => true,
            Gaps::Odd => is_usual(self.groups.get(..=self.group).unwrap_or_default()),
            Gaps::Mixed => false,
        };
        sum.is_multiple_of(10) && sum > 0 && grouped
    }
}

/// As cards are printed, or digit by digit.
fn is_usual(groups: &[u8]) -> bool {
    let (last, others) = groups.split_last().unwrap_or((&0, &[]));
    let same = |len: u8| others.iter().all(|group| *group == len) && *last <= len;
    same(4) || same(1) || matches!(groups, [4, 6, 4 | 5] | [6, 7..=13] | [8, 8])
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

const ID_CHARACTERS: usize = 18;

/// The Chinese resident identity number that begins here.
pub(super) fn id_at(bytes: &[u8], start: usize, work: &mut Work<'_>) -> Option<Bytes> {
    let mut compact = [0; ID_CHARACTERS];
    let mut at = start;
    for (place, slot) in compact.iter_mut().enumerate() {
        // Region, date of birth (also in parts), number.
        if matches!(place, 6 | 10 | 12 | 14) {
            at += gap(bytes.get(at..)?).map_or(0, <[u8]>::len);
        }
        let byte = *bytes.get(at)?;
        let is_check = place + 1 == ID_CHARACTERS && byte.eq_ignore_ascii_case(&b'x');
        let fits = (byte.is_ascii_digit() || is_check) && (place > 0 || byte != b'0');
        work.spend(1);
        *slot = byte;
        at += 1;
        if !fits {
            return None;
        }
    }
    let number = |from: usize, len: usize| {
        compact.iter().skip(from).take(len).fold(0, |sum, digit| sum * 10 + u32::from(digit.wrapping_sub(b'0')))
    };
    let is_right = (1800..2100).contains(&number(6, 4))
        && is_date(number(6, 4), number(10, 2), number(12, 2))
        && has_gb_11643_check(&compact)
        && !bytes.get(at).is_some_and(u8::is_ascii_digit);
    is_right.then_some(start..at)
}

/// ISO 7064 MOD 11-2 over 18 characters.
fn has_gb_11643_check(compact: &[u8]) -> bool {
    let value = |c: u8| if c.eq_ignore_ascii_case(&b'x') { 10 } else { u32::from(c.wrapping_sub(b'0')) };
    compact.iter().fold(0, |sum, &c| (sum * 2 + value(c)) % 11) == 1
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
    use super::super::tests::{NONE, found};
    use super::*;

    #[test]
    fn identity_numbers_are_found_and_checked() {
        for number in [
            "11010519491231002X",
            "11010519491231002x",
            "440524188001010014",
            "110105 19491231 002X",
            "110105.19491231.002X",
            "110105/1949/1231/002X",
            "110105\u{a0}19491231\u{2013}002X",
        ] {
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
            "1101 0519 4912 3100 2X",
            "110105  19491231  002X",
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
            "3782.822463.10005",
            "6222021234567890128",
            "6011111111111117",
            "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
            "4.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1",
            "4111.1111.1111.1111",
            "4111/1111/1111/1111",
            "4111·1111·1111·1111",
            "4111 – 1111 – 1111 – 1111",
            "4111_1111_1111_1111",
            "4111\u{a0}1111\u{a0}1111\u{a0}1111",
            "4111\u{2009}1111\u{202f}1111\u{2007}1111",
            "4111\u{2013}1111\u{2014}1111\u{2212}1111",
        ] {
            assert_eq!(found(Kind::BankCard, &format!("卡号{number}，")), [number], "{number}");
        }
        let two = "4111 1111 1111 1111 5500 0000 0000 0004";
        assert_eq!(found(Kind::BankCard, two), ["4111 1111 1111 1111", "5500 0000 0000 0004"]);
        assert_eq!(found(Kind::BankCard, "12 4111111111111111 7"), ["4111111111111111"]);
    }

    #[test]
    fn other_long_numbers_are_no_cards() {
        // A wrong check digit, zeros, a time in nanoseconds, a digit too many, no such network, columns, decimals, sums.
        for text in [
            "4111111111111112",
            "0000000000000000",
            "1732406400000000000",
            "41111111111111110",
            "9111111111111111",
            "4111  1111  1111  1111",
            "4111.1111 1111.1111",
            "41.11 11.11 11.11 11.11",
            "411.111/1111/111.111",
            "4111/1111.1111/1111",
            "41/11/11 11/11/11 1111",
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
