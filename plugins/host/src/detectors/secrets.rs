//! Keys, tokens and passwords.

use std::sync::LazyLock;

use regex::Regex;

use super::work::Work;
use super::{Bytes, pattern};

/// Secrets. Of `password: …` and the like only the value is part of the find.
pub(super) fn secrets(text: &str, work: &mut Work<'_>) -> Vec<Bytes> {
    let mut found: Vec<Bytes> = Vec::new();
    tokens(text, work, &mut found);
    if text.contains("-----BEGIN") && work.spend(text.len()) {
        found.extend(PRIVATE_KEY.find_iter(text).map(|key| key.range()));
    }
    url_passwords(text, work, &mut found);
    assigned(text, work, &mut found);
    found
}

/// How tokens of an issuer begin, so that they can be recognised; their characters; how many there are at least.
struct Issuer {
    prefixes: &'static [&'static str],
    is_in: fn(u8) -> bool,
    least: usize,
}

const ISSUERS: [Issuer; 12] = [
    Issuer { prefixes: &["sk-"], is_in: is_base64url, least: 20 }, // OpenAI, Anthropic, DeepSeek and many like them
    Issuer { prefixes: &["sk_live_", "sk_test_", "rk_live_", "rk_test_"], is_in: is_alphanumeric, least: 16 }, // Stripe
    Issuer { prefixes: &["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "npm_"], is_in: is_alphanumeric, least: 36 },
    Issuer { prefixes: &["github_pat_"], is_in: is_base64url, least: 22 },
    Issuer { prefixes: &["glpat-"], is_in: is_base64url, least: 20 },
    Issuer { prefixes: &["AKIA", "ASIA"], is_in: is_upper, least: 16 }, // AWS
    Issuer { prefixes: &["LTAI", "AKID"], is_in: is_alphanumeric, least: 12 }, // Alibaba Cloud, Tencent Cloud
    Issuer { prefixes: &["AIza"], is_in: is_base64url, least: 35 },     // Google
    Issuer {
        prefixes: &["xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-"], // Slack
        is_in: is_base64url,
        least: 10,
    },
    Issuer { prefixes: &["hf_", "gsk_"], is_in: is_alphanumeric, least: 30 },
    Issuer { prefixes: &["pypi-"], is_in: is_base64url, least: 50 },
    Issuer { prefixes: &["AGE-SECRET-KEY-1"], is_in: is_upper, least: 58 },
];

/// All of the beginnings above and below. The bodies are read by hand: a pattern that counts to thousands, at each of
/// thousands of beginnings, takes thousands of steps for each byte.
static PREFIX: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"(?-u:\b)(?:sk-|[sr]k_(?:live|test)_|gh[pousr]_|npm_|github_pat_|glpat-|AKIA|ASIA|LTAI|AKID|AIza|xox[abeoprs]-",
        r"|hf_|gsk_|pypi-|AGE-SECRET-KEY-1|SG\.|eyJ)",
    ))
});

fn tokens(text: &str, work: &mut Work<'_>, found: &mut Vec<Bytes>) {
    let bytes = text.as_bytes();
    // Up to here, no beginning can become a JSON Web Token: one that began earlier failed here.
    let mut hopeless = 0;
    let mut from = 0;
    while let Some(prefix) = PREFIX.find_at(text, from) {
        if !work.spend(prefix.end() - from) {
            return;
        }
        from = prefix.end();
        let token = match prefix.as_str() {
            "eyJ" if prefix.start() < hopeless => None,
            "eyJ" => match web_token(bytes, from, work) {
                Ok(end) => Some(end),
                Err(until) => {
                    hopeless = until;
                    None
                }
            },
            "SG." => mail_key(bytes, from),
            name => ISSUERS.iter().find(|issuer| issuer.prefixes.contains(&name)).and_then(|issuer| {
                let end = run(bytes, from, issuer.is_in);
                (end - from >= issuer.least).then_some(end)
            }),
        };
        if let Some(end) = token {
            work.spend(end - from);
            found.push(prefix.start()..end);
            from = end;
        }
    }
}

/// Three parts, of which the first two are JSON (RFC 7519). `Err`: there is none, nor from any other place before that byte.
fn web_token(bytes: &[u8], header: usize, work: &mut Work<'_>) -> Result<usize, usize> {
    let header_end = run(bytes, header, is_base64url);
    let payload = header_end + 1;
    work.spend(header_end - header);
    if bytes.get(header_end) != Some(&b'.') || bytes.get(payload..).is_none_or(|rest| !rest.starts_with(b"eyJ")) {
        return Err(header_end);
    }
    let payload_end = run(bytes, payload, is_base64url);
    let end = run(bytes, payload_end + 1, is_base64url);
    work.spend(end.saturating_sub(payload));
    let is_token = header_end - header >= 8
        && payload_end - payload >= 11
        && bytes.get(payload_end) == Some(&b'.')
        && end.saturating_sub(payload_end + 1) >= 8;
    if is_token { Ok(end) } else { Err(header_end) }
}

/// SendGrid: two parts.
fn mail_key(bytes: &[u8], from: usize) -> Option<usize> {
    // The parts are short, and a bound keeps a long run from being read again at each beginning in it.
    let part = |from: usize| run(bytes.get(..bytes.len().min(from + 100)).unwrap_or_default(), from, is_base64url);
    let dot = part(from);
    let end = part(dot + 1);
    (dot - from >= 16 && bytes.get(dot) == Some(&b'.') && end.saturating_sub(dot + 1) >= 16).then_some(end)
}

/// RFC 7468 and its older forms. A cut one (no END) counts up to the end of the text.
static PRIVATE_KEY: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\z)",
    )
});

/// `scheme://user:password@host` (RFC 3986, section 3.2.1).
fn url_passwords(text: &str, work: &mut Work<'_>, found: &mut Vec<Bytes>) {
    let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '@');
    for (at, slashes) in text.match_indices("://") {
        let scheme = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let user = at + slashes.len();
        let rest = text.get(user..).unwrap_or_default();
        let end = rest.find(ends).unwrap_or(rest.len());
        if !work.spend(end + slashes.len()) {
            return;
        }
        let (Some(info), true) = (rest.get(..end), rest.get(end..).is_some_and(|rest| rest.starts_with('@'))) else {
            continue;
        };
        let before = text.as_bytes().get(..at).unwrap_or_default();
        if let Some(colon) = info.find(':').filter(|colon| colon + 1 < end && scheme(before.last())) {
            found.push(user + colon + 1..user + end);
        }
    }
}

/// A word that announces a secret, with what stands between it and the value.
static ANNOUNCED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"(?:[Pp]ass(?:word|wd|phrase)|PASS(?:WORD|WD|PHRASE)|[Pp]wd|PWD|[Ss]ecret(?:[_-]?[Kk]ey)?|SECRET(?:_KEY)?|[Tt]oken|TOKEN",
        r"|[Aa]pi[_ -]?[Kk]ey|API[_ -]?KEY|[Aa]ccess[_-]?[Kk]ey|ACCESS_KEY|[Bb]earer|密码|口令|密钥|令牌)",
        r#"["'`]?(?:\s{0,3}(?::=|=>|[:=是为])\s{0,3}|\s{1,3}(?:is\s{1,3})?)["'`]?"#,
    ))
});

const LEAST_VALUE: usize = 6;

fn assigned(text: &str, work: &mut Work<'_>, found: &mut Vec<Bytes>) {
    let bytes = text.as_bytes();
    let mut from = 0;
    while let Some(announced) = ANNOUNCED.find_at(text, from) {
        let end = run(bytes, announced.end(), is_value);
        if !work.spend(end - from) {
            return;
        }
        let value = bytes.get(announced.end()..end).unwrap_or_default();
        // Too short: the next word may announce one. (`password: token: …`)
        from = announced.end();
        if value.len() >= LEAST_VALUE {
            from = end;
            // Prose follows such words too ("password: required"); what nobody could guess has a digit in it.
            found.extend(value.iter().any(u8::is_ascii_digit).then_some(announced.end()..end));
        }
    }
}

/// Where the characters that begin at `from` end.
fn run(bytes: &[u8], from: usize, is_in: fn(u8) -> bool) -> usize {
    from + bytes.get(from..).unwrap_or_default().iter().take_while(|byte| is_in(**byte)).count()
}

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn is_upper(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

/// No quotes, round or square brackets, semicolons, backslashes or bars.
fn is_value(byte: u8) -> bool {
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
