//! Keys, tokens and passwords.

use super::Bytes;
use super::issuers::{MAIL_KEY, WEB_TOKEN};
use super::runs::{begins, is_base64url, is_digit, run, run_back};
use super::triggers::{Searches, TRIGGERS};
use super::words::{Announced, Word};
use super::work::Work;

/// What the search for secrets remembers, so that nothing is read twice.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    tokens_from: usize,
    values_from: usize,
    keys_from: usize,
    /// Up to here, no beginning can become a JSON Web Token: one that began earlier failed here.
    hopeless: usize,
    /// Up to here no private key ends: the whole rest of the text was looked at.
    unended_from: Option<usize>,
}

impl Secrets {
    /// A token that begins here with what its issuer begins them with. The bodies are read by hand: a pattern that counts to
    /// thousands, at each of thousands of beginnings, takes thousands of steps for each byte.
    pub(super) fn token_at(
        &mut self,
        bytes: &[u8],
        searches: Searches,
        start: usize,
        work: &mut Work<'_>,
    ) -> Option<Bytes> {
        if start < self.tokens_from {
            return None;
        }
        let (prefix, issuer) = TRIGGERS.token(searches, bytes.get(start..)?)?;
        let from = start + prefix.len();
        let end = match prefix {
            WEB_TOKEN => self.web_token(bytes, start, work),
            MAIL_KEY => mail_key(bytes, from),
            _ => {
                let end = run(bytes, from, issuer.is_in);
                work.spend(end - from);
                (end - from >= issuer.least).then_some(end)
            }
        };
        self.tokens_from = end.unwrap_or(from);
        end.map(|end| start..end)
    }

    /// Three parts, of which the first two are JSON (RFC 7519).
    fn web_token(&mut self, bytes: &[u8], start: usize, work: &mut Work<'_>) -> Option<usize> {
        if start < self.hopeless {
            return None;
        }
        let header = start + WEB_TOKEN.len();
        let header_end = run(bytes, header, is_base64url);
        let payload = header_end + 1;
        work.spend(header_end - header);
        self.hopeless = header_end;
        if bytes.get(header_end) != Some(&b'.') || bytes.get(payload..).is_none_or(|rest| !rest.starts_with(b"eyJ")) {
            return None;
        }
        let payload_end = run(bytes, payload, is_base64url);
        let end = run(bytes, payload_end + 1, is_base64url);
        work.spend(end.saturating_sub(payload));
        let is_token = header_end - header >= 8
            && payload_end - payload >= 11
            && bytes.get(payload_end) == Some(&b'.')
            && end.saturating_sub(payload_end + 1) >= 8;
        is_token.then_some(end)
    }

    /// A private key whose first line has its `-BE` here: RFC 7468, its older forms (RSA, EC, OpenSSH, PGP), and SSH2's (RFC 4716)
    /// with four dashes and a space. A cut one (no END) counts up to the end of the text.
    pub(super) fn private_key_at(&mut self, text: &str, dash: usize, work: &mut Work<'_>) -> Option<Bytes> {
        let bytes = text.as_bytes();
        let dashes = dash + usize::from(bytes.get(dash) == Some(&b'-'));
        let start = run_back(bytes, dashes, 5, |byte| byte == b'-');
        if start < self.keys_from || dashes - start < 4 {
            return None;
        }
        let label = text.get(dash + 1..)?.strip_prefix("BEGIN ")?;
        let body = dash + 1 + "BEGIN ".len() + key_label(label)?;
        let end = match self.unended_from {
            Some(from) if from <= body => text.len(),
            _ => {
                let end = key_end(text, body);
                work.spend(end.map_or(text.len(), |end| end) - body);
                if end.is_none() {
                    self.unended_from = Some(body);
                }
                end.unwrap_or(text.len())
            }
        };
        self.keys_from = end;
        Some(start..end)
    }

    /// The value behind a word that announces one, such as `password: …`; the word is no part of it.
    pub(super) fn value_behind(
        &mut self,
        bytes: &[u8],
        start: usize,
        word: &Word,
        work: &mut Work<'_>,
    ) -> Option<Bytes> {
        if start < self.values_from {
            return None;
        }
        let from = announced(bytes, start + word.text.len(), word)?;
        let end = run(bytes, from, is_value);
        work.spend(end - start);
        let value = bytes.get(from..end)?;
        // Too short: the next word may announce one. (`password: token: …`)
        self.values_from = from;
        if value.len() < LEAST_VALUE {
            return None;
        }
        self.values_from = end;
        // Prose follows such words too ("password: required"); what nobody could guess has a digit in it.
        let is_guessed = !value.iter().any(u8::is_ascii_digit) && word.text != AUTHORIZATION;
        (!is_guessed).then_some(from..end)
    }
}

pub(super) const MAX_LABEL: usize = 80;
const LEAST_VALUE: usize = 6;
/// The header: its value is base64.
pub(super) const AUTHORIZATION: &str = "authorization";

/// SendGrid: two parts.
fn mail_key(bytes: &[u8], from: usize) -> Option<usize> {
    // The parts are short, and a bound keeps a long run from being read again at each beginning in it.
    let part = |from: usize| run(bytes.get(..bytes.len().min(from + 100)).unwrap_or_default(), from, is_base64url);
    let dot = part(from);
    let end = part(dot + 1);
    (dot - from >= 16 && bytes.get(dot) == Some(&b'.') && end.saturating_sub(dot + 1) >= 16).then_some(end)
}

/// Telegram's bots, at the colon: eight to ten digits, then 35 characters of which the first two are `AA`.
pub(super) fn telegram_at(bytes: &[u8], colon: usize) -> Option<Bytes> {
    let start = run_back(bytes, colon, 11, is_digit);
    let end = bounded(bytes, colon + 1, 36);
    ((8..=10).contains(&(colon - start)) && end - colon - 1 == 35).then_some(start..end)
}

/// Client secrets of Azure (Entra ID), at the `Q`: three characters and a digit before it, `~` and 31 to 34 behind.
pub(super) fn azure_at(bytes: &[u8], at: usize) -> Option<Bytes> {
    let is_in = |byte: u8| is_base64url(byte) || matches!(byte, b'.' | b'~');
    let start = run_back(bytes, at, 5, is_in);
    let end = run(bytes.get(..bytes.len().min(at + 37)).unwrap_or_default(), at + 2, is_in);
    (at - start == 4 && (31..=34).contains(&(end - at - 2))).then_some(start..end)
}

/// Discord's bots, at the first dot: an account's number in base64, six characters, 27 to 38 characters.
pub(super) fn discord_at(bytes: &[u8], dot: usize) -> Option<Bytes> {
    if bytes.get(dot + 7) != Some(&b'.') || bounded(bytes, dot + 1, 7) != dot + 7 {
        return None;
    }
    let start = run_back(bytes, dot, 29, is_base64url);
    let end = bounded(bytes, dot + 8, 39);
    let is_account = matches!(bytes.get(start), Some(b'M' | b'N' | b'O')) && (23..=28).contains(&(dot - start));
    (is_account && (27..=38).contains(&(end - dot - 8))).then_some(start..end)
}

/// Where characters of tokens end, `most` of them at most.
fn bounded(bytes: &[u8], from: usize, most: usize) -> usize {
    run(bytes.get(..bytes.len().min(from + most)).unwrap_or_default(), from, is_base64url)
}

/// Does this begin with the first line of a private key?
pub(super) fn begins_key(text: &str) -> bool {
    let label = text.trim_start_matches('-').trim_start_matches(' ').strip_prefix("BEGIN ");
    label.and_then(key_label).is_some()
}

/// Where the last line of a private key ends.
pub(super) fn key_end(text: &str, from: usize) -> Option<usize> {
    let rest = text.get(from..)?;
    for (at, end) in rest.match_indices("END ") {
        let label = rest.get(at + end.len()..)?;
        if let Some(len) = key_label(label) {
            return Some(from + at + end.len() + len);
        }
    }
    None
}

/// The length of the rest of the first or last line of a private key, with its dashes.
fn key_label(text: &str) -> Option<usize> {
    let line = text.as_bytes().get(..text.len().min(MAX_LABEL))?;
    let label = run(line, 0, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' ');
    let end = run(line.get(..line.len().min(label + 5))?, label, |byte| byte == b'-');
    let name = text.get(..label)?.trim_ascii_end();
    ((name.ends_with("PRIVATE KEY") || name.ends_with("PRIVATE KEY BLOCK")) && end - label >= 4).then_some(end)
}

/// Where the value behind such a word begins: after a quote, and `:`, `=`, `:=`, `=>`, `is`, `是`, `为` or a space. `None`: none does.
pub(super) fn announced(bytes: &[u8], word_end: usize, word: &Word) -> Option<usize> {
    let rest = |at: usize| bytes.get(at..).unwrap_or_default();
    let keyed = |at: usize| {
        let gap = at + usize::from(rest(at).first().is_some_and(|byte| b"_- ".contains(byte)));
        begins(rest(gap), "key").then_some(gap + "key".len())
    };
    let mut at = match (word.announces, word.text) {
        (Announced::Key, _) => keyed(word_end)?,
        (_, "secret") => keyed(word_end).unwrap_or(word_end),
        _ => word_end,
    };
    let quote = |at: usize| usize::from(rest(at).first().is_some_and(|byte| b"\"'`".contains(byte)));
    let spaces = |at: usize| {
        run(bytes.get(..bytes.len().min(at + 3)).unwrap_or_default(), at, |byte| byte.is_ascii_whitespace())
    };
    at += quote(at);
    let first = spaces(at);
    let sign = [":=", "=>", ":", "=", "是", "为", "為"].iter().find(|sign| rest(first).starts_with(sign.as_bytes()));
    let mut value = match sign {
        Some(sign) => spaces(first + sign.len()),
        None if first == at => return None,
        None => {
            let is = spaces(first + "is".len());
            if begins(rest(first), "is") && is > first + "is".len() { is } else { first }
        }
    };
    value += quote(value);
    if word.text != AUTHORIZATION {
        return Some(value);
    }
    // Its scheme comes first (RFC 7617). `Bearer` is a word of its own.
    begins(rest(value), "basic ").then_some(value + "basic ".len())
}

/// No quotes, round or square brackets, semicolons, backslashes or bars.
pub(super) fn is_value(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"'();[\\]`|".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::{NONE, found};

    /// Put together here, so that no scanner takes this file for a leak.
    fn token(prefix: &str, body: &str, times: usize) -> String {
        format!("{prefix}{}", body.repeat(times))
    }

    #[test]
    fn tokens_are_found_by_their_prefix() {
        for token in [
            token("sk-", "aB3dE", 8),
            token("sk-proj-", "aB3_-", 8),
            token("ghp_", "aB3dEf", 6),
            token("AKIA", "AB34", 4),
            token("LTAI", "aB3d", 4),
            token("AIza", "aB3dE", 7),
            token("xoxb-", "12345-", 4),
            token("hf_", "aB3dE", 7),
            token("xoxe.xoxp-", "1-Mi0xLTA", 3),
            token("glpat-", "aB3_-", 4),
            token("whsec_", "aB3d+/Ef", 5),
            token("SK", "0a1b2c3d", 4),
            token("SG.", "aB3dEfGh", 3) + &token(".", "aB3dEfGh", 5),
            token("npm_", "aB3dEf", 6),
            token("sk-ant-api03-", "aB3_-", 18),
            token("github_pat_", "aB3dE_", 12),
            token("123456789:", "AA", 1) + &token("", "x1Y2z", 6) + "abc",
            token("aB3", "8Q~", 1) + &token("", "aB3dEfGh", 4) + "ab",
            token("MTIzNDU2Nzg5MDEyMzQ1Njc4.", "G1xYz_", 1) + &token(".", "aB3dEfGhi", 3),
            token("hooks.slack.com/services/T", "0AB12CD", 2) + &token("/B", "0AB12CD3/", 3),
            token("eyJ", "hbGciOi", 3) + "." + &token("eyJ", "zdWIiOiI", 2) + "." + &token("", "sig_nature-", 2),
        ] {
            assert_eq!(found(Kind::Secret, &format!("用 {token} 试试")), [token.as_str()]);
            assert_eq!(found(Kind::Secret, &format!("(\"{token}\")")), [token.as_str()]);
        }
    }

    #[test]
    fn a_private_key_is_found_whole_even_when_it_is_cut() {
        let key = format!("-----BEGIN {}PRIVATE KEY-----\nMIIEvQ\n-----END {}PRIVATE KEY-----", "RSA ", "RSA ");
        assert_eq!(found(Kind::Secret, &format!("see\n{key}\nthanks")), [key.as_str()]);
        let cut = key.get(..40).unwrap();
        assert_eq!(found(Kind::Secret, &format!("see {cut}")), [cut]);
        for label in ["", "EC ", "OPENSSH ", "ENCRYPTED ", "DSA "] {
            let key = format!("-----BEGIN {label}PRIVATE KEY-----\\nMIIEvQ\\n-----END {label}PRIVATE KEY-----");
            assert_eq!(found(Kind::Secret, &format!("{{\"private_key\": \"{key}\\n\"}}")), [key.as_str()]);
        }
        for key in [
            format!("-----BEGIN PGP {0} BLOCK-----\n\nlQOY\n-----END PGP {0} BLOCK-----", "PRIVATE KEY"),
            format!("---- BEGIN SSH2 ENCRYPTED {0} ----\nComment: x\n---- END SSH2 ENCRYPTED {0} ----", "PRIVATE KEY"),
        ] {
            assert_eq!(found(Kind::Secret, &format!("see\n{key}\nthanks")), [key.as_str()]);
        }
        assert_eq!(found(Kind::Secret, "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----"), NONE);
    }

    #[test]
    fn the_value_behind_a_word_is_found_and_the_word_is_left() {
        for (text, value) in [
            ("password: hunter22", "hunter22"),
            ("\"password\": \"p4ss-w0rd!\",", "p4ss-w0rd!"),
            ("DB_PASSWORD=Tr0ub4dor&3", "Tr0ub4dor&3"),
            ("api_key = 'abc123def456'", "abc123def456"),
            ("Authorization: Bearer abc.123.def", "abc.123.def"),
            ("密码是 Hello2026", "Hello2026"),
            ("口令：Wang1234", "Wang1234"),
            ("the password is tiger99!", "tiger99!"),
            ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
            ("AccountName=x;AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1==;", "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1=="),
            ("Authorization: Basic dXNlcjpwYXNzMQ==", "dXNlcjpwYXNzMQ=="),
            ("раssword: hunter22", "hunter22"),
            ("ｐａｓｓｗｏｒｄ：ｈｕｎｔｅｒ２２", "ｈｕｎｔｅｒ２２"),
        ] {
            assert_eq!(found(Kind::Secret, text), [value], "{text}");
        }
        assert_eq!(found(Kind::Secret, "postgres://app:s3cr3t@db.example/x"), ["s3cr3t"]);
    }

    #[test]
    fn prose_about_secrets_is_left() {
        for text in [
            "password: required",
            "the password must be at least 12 characters",
            "max_tokens=4096",
            "token = tokenizer.encode(text)",
            "a secret: pt2",
            "sk-short",
            "risk-assessment-of-the-year-and-more",
            "AKIA is the prefix",
            "https://example.com:8443/a@b",
            "密码为空",
            "eyJhbGciOiJ.only",
        ] {
            assert_eq!(found(Kind::Secret, text), NONE, "{text}");
        }
    }
}
