//! Numbers that are written as words, and dates.

use super::lex::{Kind, Token};

const SMALL: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
const LARGE: [(&str, u64); 3] = [("hundred", 100), ("thousand", 1000), ("million", 1_000_000)];
const ORDINALS: [&str; 12] = [
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth",
];
const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const CURRENCIES: [&str; 3] = ["dollars", "euros", "pounds"];

/// Number words become digits, `$ 5` becomes `5 dollars`, and a month with a day one date.
pub(super) fn read(tokens: Vec<Token>) -> Vec<Token> {
    dates(&amounts(tokens))
}

fn amounts(tokens: Vec<Token>) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    for token in tokens {
        let value = value(&token);
        let ordinal = ORDINALS.iter().position(|word| token.is(word));
        match (value, ordinal) {
            (Some(value), _) => match joined(out.last(), &token, value) {
                Some(whole) => {
                    out.pop();
                    out.push(Token::new(whole.to_string(), Kind::Number));
                }
                None => push(&mut out, Token::new(value.to_string(), Kind::Number)),
            },
            (None, Some(n)) => out.push(Token::new(format!("#{}th", n + 1), Kind::Exact)),
            (None, None) if token.kind == Kind::Number => push(&mut out, token),
            (None, None) => out.push(token),
        }
    }
    out
}

/// A currency's sign stands before the number.
fn push(out: &mut Vec<Token>, number: Token) {
    match out.pop_if(|last| last.kind == Kind::Exact && CURRENCIES.contains(&last.text.as_str())) {
        Some(currency) => out.extend([number, Token::new(currency.text, Kind::Word)]),
        None => out.push(number),
    }
}

fn value(token: &Token) -> Option<u64> {
    if token.kind != Kind::Word || token.written.is_some() {
        return None;
    }
    let text = token.text.as_str();
    let small = SMALL.iter().zip(0..).find(|(word, _)| **word == text).map(|(_, value)| value);
    let tens = || TENS.iter().zip(2..).find(|(word, _)| **word == text).map(|(_, value)| value * 10);
    let large = || LARGE.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    small.or_else(tens).or_else(large)
}

/// `twenty-five` is 25. Without the hyphen it may be twenty of five each.
pub(super) fn hyphenated(word: &str) -> Option<u64> {
    let (tens, ones) = word.split_once('-')?;
    let tens = TENS.iter().zip(2..).find(|(word, _)| **word == tens).map(|(_, value)| value * 10)?;
    let ones = SMALL.iter().zip(0..).find(|(word, _)| **word == ones).map(|(_, value)| value)?;
    (1..10).contains(&ones).then_some(tens + ones)
}

/// `two` and `hundred` are 200.
fn joined(last: Option<&Token>, token: &Token, value: u64) -> Option<u64> {
    let last: u64 = last.filter(|last| last.kind == Kind::Number)?.text.parse().ok()?;
    let is_large = LARGE.iter().any(|(word, _)| *word == token.text);
    last.checked_mul(value).filter(|_| is_large && last < value)
}

/// `24 December`, `December 24` and `24th of December` are one date.
fn dates(tokens: &[Token]) -> Vec<Token> {
    let mut out = Vec::with_capacity(tokens.len());
    let mut rest = tokens;
    while let Some((first, others)) = rest.split_first() {
        let of = usize::from(others.first().is_some_and(|token| token.is("of")));
        let found = match (day(first), others.get(of).and_then(month)) {
            (Some(day), Some(month)) => Some((month, day, of + 2)),
            _ => month(first).zip(others.first().and_then(day)).map(|(month, day)| (month, day, 2)),
        };
        let taken = match found {
            Some((month, day, taken)) => {
                out.push(Token::new(format!("#{month}-{day}"), Kind::Exact));
                taken
            }
            None => {
                out.push(first.clone());
                1
            }
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    out
}

fn day(token: &Token) -> Option<u8> {
    let digits = match token.kind {
        Kind::Number => token.text.as_str(),
        Kind::Exact => token.text.strip_prefix('#')?.strip_suffix("th")?,
        _ => return None,
    };
    digits.parse().ok().filter(|day| (1..=31).contains(day))
}

fn month(token: &Token) -> Option<usize> {
    // Without a capital they may be words: "the 24 may go".
    let is_word = token.written.is_none() && ["may", "march"].contains(&token.text.as_str());
    MONTHS.iter().position(|month| token.kind == Kind::Word && !is_word && token.text == *month).map(|month| month + 1)
}
