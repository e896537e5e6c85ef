//! Keys, tokens and passwords.

use std::sync::LazyLock;

use regex::Regex;

use super::{Bytes, pattern};

/// Secrets. Of `password: …` and the like only the value is part of the find.
pub(super) fn secrets(text: &str) -> Vec<Bytes> {
    let mut found: Vec<Bytes> = Vec::new();
    found.extend(TOKEN.find_iter(text).map(|token| token.range()));
    if text.contains("-----BEGIN") {
        found.extend(PRIVATE_KEY.find_iter(text).map(|key| key.range()));
    }
    if text.contains("://") {
        found.extend(URL_PASSWORD.captures_iter(text).filter_map(|url| url.get(1)).map(|password| password.range()));
    }
    let assigned = ASSIGNED.captures_iter(text).filter_map(|assignment| assignment.get(1));
    // Prose follows such words too ("password: required"); what nobody could guess has a digit in it.
    found.extend(
        assigned.filter(|value| value.as_str().contains(|c: char| c.is_ascii_digit())).map(|value| value.range()),
    );
    found
}

/// By the prefixes that issuers gave their tokens so that they can be recognised.
static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"(?-u:\b)(?:",
        r"sk-[A-Za-z0-9_-]{20,200}", // OpenAI, Anthropic, DeepSeek and many like them
        r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,120}", // Stripe
        r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}",
        r"|glpat-[A-Za-z0-9_-]{20,100}",
        r"|(?:AKIA|ASIA)[0-9A-Z]{16}",                     // AWS
        r"|LTAI[A-Za-z0-9]{12,30}|AKID[A-Za-z0-9]{13,40}", // Alibaba Cloud, Tencent Cloud
        r"|AIza[0-9A-Za-z_-]{35}",                         // Google
        r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}",             // Slack
        r"|hf_[A-Za-z0-9]{30,60}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,300}|gsk_[A-Za-z0-9]{40,80}",
        r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}",
        r"|AGE-SECRET-KEY-1[0-9A-Z]{58}",
        r"|eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{8,2000}", // JSON Web Token (RFC 7519)
        r")",
    ))
});

/// RFC 7468 and its older forms. A cut one (no END) counts up to the end of the text.
static PRIVATE_KEY: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\z)",
    )
});

/// `scheme://user:password@host` (RFC 3986, section 3.2.1).
static URL_PASSWORD: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"[A-Za-z][A-Za-z0-9+.-]{1,30}://[^\s/?#:@]{0,100}:([^\s/?#@]{1,200})@"));

/// A word that announces a secret, and the value behind it, with or without quotes.
static ASSIGNED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"(?:[Pp]ass(?:word|wd|phrase)|PASS(?:WORD|WD|PHRASE)|[Pp]wd|PWD|[Ss]ecret(?:[_-]?[Kk]ey)?|SECRET(?:_KEY)?|[Tt]oken|TOKEN",
        r"|[Aa]pi[_ -]?[Kk]ey|API[_ -]?KEY|[Aa]ccess[_-]?[Kk]ey|ACCESS_KEY|[Bb]earer|密码|口令|密钥|令牌)",
        r#"["'`]?(?:\s{0,3}(?::=|=>|[:=是为])\s{0,3}|\s{1,3}(?:is\s{1,3})?)["'`]?([!#-&*-:<-Z^-_a-{}~]{6,200})"#,
    ))
});

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::found;

    const NONE: [&str; 0] = [];

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
