//! The end of a text of which more will come: where in it something may have begun that is not over.
//!
//! Kind by kind, what the searches read. It may say too much, which holds text back for longer than need be; it must never say too
//! little: `what_is_settled_stays` holds that to every beginning of every text of a corpus.

use super::ibans;
use super::issuers::{MAIL_KEY, WEB_TOKEN};
use super::runs::{before, begins, is_base64url, is_digit, is_hex, is_upper, joins, run, run_back};
use super::secrets::{MAX_LABEL, announced, is_value};
use super::triggers::TRIGGERS;
use super::urls::is_in_url;
use super::words::{Announced, PROVINCES, WORDS, Word, value};
use super::{Kind, emails};

/// What is longer is looked at no further back than this, in bytes.
const MAX_BACK: usize = 1024;
/// A word and what may stand between it and its value.
const MAX_ANNOUNCED: usize = 120;
/// The longest telephone number or card with what stands between its digits, and what must not follow.
const MAX_NUMBER: usize = 80;
/// The longest IPv6 address likewise.
const MAX_ADDRESS: usize = 64;
/// The longest account number with a separator before each character.
const MAX_IBAN: usize = 72;

/// Where in a plain text something of the kinds may have begun that more text could complete, extend or undo. The length of the text:
/// nowhere.
pub(super) fn open(kinds: &[Kind], text: &str) -> usize {
    let bytes = text.as_bytes();
    let of = |kind: &Kind| match kind {
        Kind::Email => emails::open(text),
        Kind::Phone => numbers(
            bytes,
            |byte| is_digit(byte) || b" -./+()".contains(&byte),
            |byte| is_digit(byte) || matches!(byte, b'+' | b'('),
        ),
        Kind::IdCard | Kind::BankCard => numbers(bytes, |byte| is_digit(byte) || b" -./_xX".contains(&byte), is_digit),
        Kind::Ip => ip(bytes),
        Kind::Mac => first_free(bytes, 32, |byte| is_hex(byte) || b":-.".contains(&byte), is_hex),
        Kind::Iban => iban(bytes),
        Kind::Passport => passport(bytes),
        Kind::Plate => plate(text),
        Kind::Secret => secret(text),
        Kind::UrlCredentials => user_info(bytes).min(parameter(bytes)),
    };
    kinds.iter().map(of).min().unwrap_or(text.len())
}

/// The first byte that may begin something among those that may be in it, at the end.
fn numbers(bytes: &[u8], is_in: fn(u8) -> bool, may_begin: fn(u8) -> bool) -> usize {
    let start = run_back(bytes, bytes.len(), MAX_NUMBER, is_in);
    let rest = bytes.get(start..).unwrap_or_default();
    rest.iter().position(|byte| may_begin(*byte)).map_or(bytes.len(), |at| start + at)
}

/// As [`numbers`], where it cannot begin within a word.
fn first_free(bytes: &[u8], most: usize, is_in: fn(u8) -> bool, may_begin: fn(u8) -> bool) -> usize {
    let start = run_back(bytes, bytes.len(), most, is_in);
    (start..bytes.len())
        .find(|at| bytes.get(*at).is_some_and(|byte| may_begin(*byte)) && !joins(before(bytes, *at)))
        .unwrap_or(bytes.len())
}

fn ip(bytes: &[u8]) -> usize {
    // The bytes of wide dots (`。`, `｡`) are in no other character that could stand here and matter.
    let is_in = |byte: u8| is_hex(byte) || b".:-+/".contains(&byte) || !byte.is_ascii();
    first_free(bytes, MAX_ADDRESS, is_in, |byte| is_digit(byte) || matches!(byte, b'f' | b'F' | b':'))
}

fn iban(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(MAX_IBAN);
    let is_free = |at: usize| !before(bytes, at).is_some_and(|byte| byte.is_ascii_alphanumeric());
    (from..bytes.len())
        .find(|at| is_free(*at) && bytes.get(*at..).is_some_and(ibans::may_become))
        .unwrap_or(bytes.len())
}

fn passport(bytes: &[u8]) -> usize {
    let by_form = |rest: &[u8]| {
        let is_in = |(place, byte): (usize, &u8)| is_digit(*byte) || (place < 2 && byte.is_ascii_uppercase());
        rest.first().is_some_and(|byte| b"EGSDP".contains(byte)) && rest.iter().enumerate().all(is_in)
    };
    let from = bytes.len().saturating_sub(9);
    let formed = (from..bytes.len()).find(|at| !joins(before(bytes, *at)) && bytes.get(*at..).is_some_and(by_form));
    let announced = behind(bytes, Announced::Passport, |rest| {
        rest.len() <= 14 && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || b" -".contains(byte))
    });
    formed.unwrap_or(bytes.len()).min(announced)
}

fn plate(text: &str) -> usize {
    let bytes = text.as_bytes();
    let from = text.floor_char_boundary(text.len().saturating_sub(24));
    let by_form = |(at, c): (usize, char)| {
        let rest = text.get(from + at + c.len_utf8()..).unwrap_or_default();
        let rest = rest.strip_suffix(|end: char| !end.is_ascii()).unwrap_or(rest);
        let is_serial = |byte: u8| byte.is_ascii_alphanumeric() || b" .-".contains(&byte);
        (PROVINCES.contains(c) && rest.len() <= 13 && rest.bytes().all(is_serial)).then_some(from + at)
    };
    let formed = text.get(from..).unwrap_or_default().char_indices().find_map(by_form);
    let announced = behind(bytes, Announced::Plate, |rest| {
        rest.len() <= 36 && rest.iter().all(|byte| is_upper(*byte) || b" .-".contains(byte))
    });
    formed.unwrap_or(bytes.len()).min(announced)
}

/// Where the value begins behind a word that announces it, if it may go on.
fn behind(bytes: &[u8], announces: Announced, goes_on: fn(&[u8]) -> bool) -> usize {
    let from = bytes.len().saturating_sub(MAX_ANNOUNCED);
    let values = announcing(bytes, from).filter(|(_, word)| word.announces == announces).map(|(at, word)| {
        let start = value(bytes, at + word.text.len());
        if bytes.get(start..).is_some_and(goes_on) { start } else { bytes.len() }
    });
    values.min().unwrap_or(bytes.len())
}

/// Words that announce something, from a byte on.
fn announcing(bytes: &[u8], from: usize) -> impl Iterator<Item = (usize, &'static Word)> {
    (from..bytes.len()).flat_map(move |at| {
        let rest = bytes.get(at..).unwrap_or_default();
        // Nearly no byte begins one of them.
        let begins_one =
            rest.first().is_some_and(|byte| !byte.is_ascii() || b"abknprst".contains(&byte.to_ascii_lowercase()));
        let words = if begins_one { &WORDS[..] } else { &[] };
        words.iter().filter(move |word| begins(rest, word.text)).map(move |word| (at, word))
    })
}

fn secret(text: &str) -> usize {
    let bytes = text.as_bytes();
    let all = [private_key(text), token(bytes), parts(bytes), announced_secret(bytes), user_info(bytes)];
    all.into_iter().min().unwrap_or(bytes.len())
}

/// The first line of a private key.
fn private_key(text: &str) -> usize {
    let bytes = text.as_bytes();
    let from = bytes.len().saturating_sub(MAX_LABEL + 20);
    let mut at = from;
    while let Some(dash) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'-')) {
        let start = at + dash;
        let end = run(bytes, start, |byte| byte == b'-');
        let rest = bytes.get(end..).unwrap_or_default();
        let rest = rest.strip_prefix(b" ").unwrap_or(rest);
        let is_begin = b"BEGIN ".starts_with(rest)
            || rest.strip_prefix(b"BEGIN ").is_some_and(|label| {
                let name = run(label, 0, |byte| byte.is_ascii_uppercase() || is_digit(byte) || byte == b' ');
                label.iter().skip(name).all(|byte| *byte == b'-')
            });
        if is_begin && (rest.is_empty() || end - start >= 4) {
            return run_back(bytes, end, 5, |byte| byte == b'-');
        }
        at = end;
    }
    bytes.len()
}

/// A token by how its issuer begins it.
fn token(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(MAX_BACK);
    let is_begun = |rest: &[u8]| {
        let may_be = |prefix: &str| {
            let prefix = prefix.as_bytes();
            prefix.starts_with(rest) || rest.starts_with(prefix)
        };
        let mut all = TRIGGERS.tokens().filter(|(prefix, _)| may_be(prefix));
        all.any(|(prefix, issuer)| {
            let is_in = |byte: &u8| (issuer.is_in)(*byte) || (matches!(*prefix, WEB_TOKEN | MAIL_KEY) && *byte == b'.');
            rest.get(prefix.len()..).is_none_or(|body| body.iter().all(is_in))
        })
    };
    let may_begin = |at: usize| !joins(before(bytes, at)) && bytes.get(at).is_some_and(u8::is_ascii_alphanumeric);
    // All of them are of such characters, so none goes on over others.
    let start = run_back(bytes, bytes.len(), MAX_BACK, |byte| byte.is_ascii_graphic()).max(from);
    (start..bytes.len()).find(|at| may_begin(*at) && bytes.get(*at..).is_some_and(is_begun)).unwrap_or(bytes.len())
}

/// Tokens that are known by their parts: Telegram, Azure, Discord.
fn parts(bytes: &[u8]) -> usize {
    let from = run_back(bytes, bytes.len(), 90, |byte| is_base64url(byte) || b".~:".contains(&byte));
    let is = |byte: Option<u8>, is_in: fn(u8) -> bool| byte.is_some_and(is_in);
    let telegram = |at: usize, rest: &[u8]| {
        let digits = run(rest, 0, is_digit);
        let body = rest.get(digits..).unwrap_or_default();
        !is(before(bytes, at), is_digit)
            && (1..=10).contains(&digits)
            && body.first().is_none_or(|colon| *colon == b':')
            && body.len() <= 37
            && body.iter().skip(1).all(|byte| is_base64url(*byte))
            && body.iter().skip(1).take(2).all(|byte| *byte == b'A')
    };
    let azure = |at: usize, rest: &[u8]| {
        let is_in = |byte: u8| is_base64url(byte) || matches!(byte, b'.' | b'~');
        !is(before(bytes, at), is_in)
            && rest.len() <= 41
            && rest.iter().all(|byte| is_in(*byte))
            && rest.get(3).is_none_or(u8::is_ascii_digit)
            && rest.get(4).is_none_or(|byte| *byte == b'Q')
            && rest.get(5).is_none_or(|byte| *byte == b'~')
    };
    let discord = |at: usize, rest: &[u8]| {
        let mut parts = rest.split(|byte| *byte == b'.');
        let most = |part: Option<&[u8]>, most: usize| {
            part.is_none_or(|part| part.len() <= most && part.iter().all(|byte| is_base64url(*byte)))
        };
        !is(before(bytes, at), is_base64url)
            && matches!(rest.first(), Some(b'M' | b'N' | b'O'))
            && most(parts.next(), 28)
            && most(parts.next(), 6)
            && most(parts.next(), 39)
            && parts.next().is_none()
    };
    (from..bytes.len())
        .find(|at| {
            let rest = bytes.get(*at..).unwrap_or_default();
            telegram(*at, rest) || azure(*at, rest) || discord(*at, rest)
        })
        .unwrap_or(bytes.len())
}

/// The value behind a word such as `password`.
fn announced_secret(bytes: &[u8]) -> usize {
    let start = run_back(bytes, bytes.len(), MAX_BACK, is_value);
    if start == bytes.len() {
        return start;
    }
    let words = announcing(bytes, start.saturating_sub(MAX_ANNOUNCED / 2));
    let secrets = words.filter(|(_, word)| matches!(word.announces, Announced::Secret | Announced::Key));
    let values = secrets.filter_map(|(at, word)| announced(bytes, at + word.text.len(), word));
    values
        .filter(|from| bytes.get(*from..).is_some_and(|value| value.iter().all(|byte| is_value(*byte))))
        .min()
        .unwrap_or(bytes.len())
}

/// User and password of an address.
fn user_info(bytes: &[u8]) -> usize {
    let Some(user) = behind_slashes(bytes) else { return bytes.len() };
    let is_over = bytes.get(user..).is_some_and(|rest| rest.iter().any(|byte| b"/?#@".contains(byte)));
    if is_over { bytes.len() } else { user }
}

/// The value of a parameter of an address.
fn parameter(bytes: &[u8]) -> usize {
    let start = run_back(bytes, bytes.len(), 2 * MAX_BACK, is_in_url);
    let address = bytes.get(start..).unwrap_or_default();
    let behind = address.windows(3).position(|three| three == b"://").map(|slashes| slashes + 3);
    let mark =
        behind.and_then(|from| Some(from + address.get(from..)?.iter().rposition(|byte| b"?&;#".contains(byte))?));
    mark.map_or(bytes.len(), |mark| start + mark + 1)
}

/// Where an address goes on whose slashes stand in the last word of the text.
fn behind_slashes(bytes: &[u8]) -> Option<usize> {
    let tail = bytes.get(bytes.len().saturating_sub(MAX_BACK)..)?;
    let word = tail.iter().rposition(u8::is_ascii_whitespace).map_or(0, |space| space + 1);
    let word = tail.get(word..)?;
    let slashes = word.windows(3).rposition(|three| three == b"://")?;
    Some(bytes.len() - word.len() + slashes + 3)
}
