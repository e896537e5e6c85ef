//! Credentials in addresses of the web and of services.

use super::Bytes;
use super::runs::begins;
use super::work::Work;

/// Names of parameters that carry a key, a token or a signature: those of OAuth 2 and OpenID Connect, and of signed addresses at AWS,
/// Google, Azure and Alibaba.
const PARAMETERS: [&str; 34] = [
    "token",
    "access_token",
    "refresh_token",
    "id_token",
    "auth_token",
    "authtoken",
    "private_token",
    "oauth_token",
    "bearer_token",
    "api_token",
    "key",
    "api_key",
    "apikey",
    "api-key",
    "access_key",
    "accesskey",
    "accesskeyid",
    "appkey",
    "app_secret",
    "appsecret",
    "client_secret",
    "secret",
    "password",
    "passwd",
    "pwd",
    "auth",
    "sig",
    "signature",
    "sessionid",
    "session_token",
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "x-goog-signature",
];

/// Values shorter than this are numbers of pages and the like.
const LEAST_VALUE: usize = 8;

/// User and password in an address.
pub(super) struct UserInfo {
    pub(super) user: usize,
    /// Behind the colon.
    pub(super) password: usize,
    /// Where the `@` stands.
    pub(super) end: usize,
}

/// Of `scheme://user:password@host`, whose slashes end here (RFC 3986, section 3.2.1).
pub(super) fn user_info(text: &str, user: usize, work: &mut Work<'_>) -> Option<UserInfo> {
    let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '@');
    let rest = text.get(user..)?;
    let end = rest.find(ends).unwrap_or(rest.len());
    work.spend(end);
    let info = rest.get(..end).filter(|_| rest.get(end..).is_some_and(|rest| rest.starts_with('@')))?;
    let colon = info.find(':').filter(|colon| colon + 1 < end)?;
    Some(UserInfo { user, password: user + colon + 1, end: user + end })
}

/// The values of such parameters in an address that goes on here, and where it ends.
pub(super) fn parameters(bytes: &[u8], from: usize, work: &mut Work<'_>, mut found: impl FnMut(Bytes)) -> usize {
    let end = super::runs::run(bytes, from, is_in_url);
    work.spend(end - from);
    let mut at = from;
    while let Some(mark) = bytes.get(at..end).and_then(|rest| rest.iter().position(|byte| b"?&;#".contains(byte))) {
        let name = at + mark + 1;
        at = name;
        let rest = bytes.get(name..end).unwrap_or_default();
        let Some(parameter) =
            PARAMETERS.iter().find(|parameter| begins(rest, parameter) && rest.get(parameter.len()) == Some(&b'='))
        else {
            continue;
        };
        let value = name + parameter.len() + 1;
        let written = bytes.get(value..end).unwrap_or_default();
        let len = written.iter().position(|byte| b"&;#".contains(byte)).unwrap_or(written.len());
        let written = written.get(..len).unwrap_or_default();
        // What nobody could guess has a digit in it or is long.
        if len >= LEAST_VALUE && (written.iter().any(u8::is_ascii_digit) || len >= 20) {
            found(value..value + len);
        }
        at = value + len;
    }
    end
}

/// What RFC 3986 allows, but for what sentences and program text put around an address.
pub(super) fn is_in_url(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"'<>`(){}[]|\\^".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::{NONE, found};

    #[test]
    fn credentials_in_addresses_are_found() {
        for (text, values) in [
            ("postgres://app:s3cr3t@db.example/x", &["app:s3cr3t"][..]),
            ("git clone https://li:p4ss%21@git.example.com/a.git", &["li:p4ss%21"]),
            ("ｈｔｔｐｓ：／／li：p4ss＠example.com", &["li：p4ss"]),
            ("https：//li:p4\u{200b}ss@example.com", &["li:p4\u{200b}ss"]),
            ("redis://:hunter2@cache:6379", &[":hunter2"]),
            ("https://x.example/a?b=1&access_token=abc123def456&c=2", &["abc123def456"]),
            ("https://x.blob.example/c?sv=2024&sig=a%2Bb3cdefgh%3D)", &["a%2Bb3cdefgh%3D"]),
            ("https://u:p1@a.example/?next=https://v:p2@b.example", &["u:p1", "v:p2"]),
        ] {
            assert_eq!(found(Kind::UrlCredentials, text), values, "{text}");
        }
    }

    #[test]
    fn other_addresses_are_left() {
        for text in [
            "https://example.com:8443/a@b",
            "ssh://git@example.com/x",
            "https://example.com/?key=name&token=1&page=12345678",
            "https://example.com/a?monkey=abcdefgh12345678",
            "see https://example.com/: and me@example.com",
            "http://user:@example.com",
            "://u:p@x",
        ] {
            assert_eq!(found(Kind::UrlCredentials, text), NONE, "{text}");
        }
    }
}
