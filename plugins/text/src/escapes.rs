//! Escapes as JSON and many languages write them: `\n`, `\"`, `\u0040`, `\x40`.

use crate::runs::Runs;

/// `text` with every escape replaced by what it stands for; `None`: there is none.
pub(crate) fn resolved(text: &str) -> Option<(String, Runs)> {
    let rest = |at: usize| text.get(at..).unwrap_or_default();
    let (first, _) = text.match_indices('\\').find(|(at, _)| escape(rest(*at)).is_some())?;
    let mut made = String::with_capacity(text.len());
    let mut runs = Runs::default();
    let mut at = 0;
    while at < text.len() {
        let (made_at, from) = (made.len(), rest(at));
        match escape(from).filter(|_| at >= first) {
            Some((c, len)) => {
                made.push(c);
                runs.push((made_at, c.len_utf8()), (at, len));
                at += len;
            }
            None => {
                let same = from.bytes().skip(1).position(|byte| byte == b'\\').map_or(from.len(), |next| next + 1);
                made.push_str(from.get(..same).unwrap_or_default());
                runs.push((made_at, 1), (at, 1));
                at += same;
            }
        }
    }
    Some((made, runs))
}

/// The escape that `text` begins with: what it stands for, and its length.
fn escape(text: &str) -> Option<(char, usize)> {
    let short = |c| Some((c, 2));
    match text.strip_prefix('\\')?.as_bytes().first()? {
        b'n' => short('\n'),
        b't' => short('\t'),
        b'r' => short('\r'),
        b'b' => short('\u{8}'),
        b'f' => short('\u{c}'),
        c @ (b'"' | b'\\' | b'/') => short(char::from(*c)),
        b'x' => Some((char::from_u32(hex(text.get(2..4)?)?)?, 4)),
        b'u' => unicode(text),
        _ => None,
    }
}

/// `\u0040`, or two of them as a surrogate pair (RFC 8259, section 7).
fn unicode(text: &str) -> Option<(char, usize)> {
    let unit = hex(text.get(2..6)?)?;
    if let Some(c) = char::from_u32(unit) {
        return Some((c, 6));
    }
    let low = text.get(6..)?.strip_prefix("\\u").and_then(|rest| rest.get(..4)).and_then(hex)?;
    let pair = (0xd800..0xdc00).contains(&unit) && (0xdc00..0xe000).contains(&low);
    let c = pair.then(|| 0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00)).and_then(char::from_u32)?;
    Some((c, 12))
}

fn hex(digits: &str) -> Option<u32> {
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_escape_becomes_its_character() {
        let text = r#"a\u0040\n\"\\\/\x2E\ud83d\ude00é\t"#;
        assert_eq!(resolved(text).unwrap().0, "a@\n\"\\/.😀é\t");
        assert_eq!(resolved(r"\u00e9\u4e2d").unwrap().0, "é中");
    }

    #[test]
    fn what_is_no_escape_stays() {
        for text in [
            "",
            "plain",
            r"C:\Windows\System",
            r"\",
            r"\u12",
            r"\ud83d",
            r"\ud83d\u0041x",
            r"\x4",
            r"\é",
            r"\+123é",
            r"\u+123",
        ] {
            assert!(resolved(text).is_none_or(|(made, _)| !made.is_empty()), "{text}");
        }
        assert!(resolved(r"C:\Windows\System").is_none());
        assert_eq!(resolved(r"\ud83d\u0041x").unwrap().0, "\\ud83dAx");
        assert_eq!(resolved(r"\d+\n").unwrap().0, "\\d+\n");
    }
}
