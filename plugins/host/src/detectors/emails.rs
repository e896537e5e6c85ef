//! E-mail addresses, from their `@` to both sides.

use postern_text::latin;

use super::Bytes;
use super::work::Work;

/// Bounds of RFC 5321 and RFC 1035, in bytes.
const MAX_LOCAL: usize = 64;
const MAX_LABEL: usize = 63;
const MAX_LABELS: usize = 10;

/// Top-level domains that are not ASCII. Where no space follows, as in Chinese, only a list can tell where a domain ends.
/// (IANA's root zone: those of countries, and the most used others.)
const INTERNATIONAL: [&str; 46] = [
    "中国",
    "中國",
    "公司",
    "网络",
    "網絡",
    "香港",
    "台湾",
    "台灣",
    "澳门",
    "澳門",
    "新加坡",
    "中文网",
    "网址",
    "在线",
    "商城",
    "集团",
    "我爱你",
    "政务",
    "公益",
    "机构",
    "组织机构",
    "网店",
    "商标",
    "网站",
    "世界",
    "企业",
    "移动",
    "手机",
    "みんな",
    "コム",
    "ストア",
    "한국",
    "닷컴",
    "닷넷",
    "рф",
    "срб",
    "укр",
    "бел",
    "мкд",
    "қаз",
    "мон",
    "бг",
    "ελ",
    "भारत",
    "संगठन",
    "テスト",
];

/// The address whose `@` stands here, none of it before `from`. RFC 5322's dot-atom form; the domain may be of any script (RFC 6531),
/// or in its ASCII form (`xn--…`).
pub(super) fn email_at(text: &str, at: usize, from: usize, work: &mut Work<'_>) -> Option<Bytes> {
    work.spend(MAX_LOCAL);
    let start = text.get(from..at).and_then(local)?;
    let end = domain(text.get(at + 1..)?, work)?;
    Some(from + start..at + 1 + end)
}

/// The longest domain that is waited for, in bytes.
const MAX_OPEN: usize = 320;

/// Where an address may have begun that is not over.
pub(super) fn open(text: &str) -> usize {
    let back = |end: usize, most: usize, is_in: fn(char) -> bool| {
        let chars = text.get(..end).unwrap_or_default().char_indices().rev();
        chars.take_while(|(at, c)| is_in(*c) && end - at <= most).last().map_or(end, |(at, _)| at)
    };
    let is_domain = |c: char| c.is_alphanumeric() || c == '-' || c == '.' || is_wide_dot(c);
    let domain = back(text.len(), MAX_OPEN, is_domain);
    let is_begun = text.get(..domain).is_some_and(|before| before.ends_with('@'));
    let end = if is_begun { domain - 1 } else { text.len() };
    let start = back(end, MAX_LOCAL, is_local);
    let inner = text.get(start..end).unwrap_or_default();
    match inner.find(|c: char| c.is_alphanumeric() || c == '_') {
        Some(at) => start + at,
        None => text.len(),
    }
}

/// Where the local part at the end of `before` begins.
fn local(before: &str) -> Option<usize> {
    let mut start = before.len();
    for (at, c) in before.char_indices().rev() {
        if !is_local(c) || before.len() - at > MAX_LOCAL {
            break;
        }
        start = at;
    }
    // Punctuation of the sentence or the source code around it is no part of the address.
    let inner = before.get(start..)?.trim_start_matches(|c: char| !c.is_alphanumeric() && c != '_');
    (!inner.is_empty()).then(|| before.len() - inner.len())
}

/// Letters of alphabets count: nobody writes them against an address. Chinese characters do not: the sentence may end there.
fn is_local(c: char) -> bool {
    c.is_ascii_alphanumeric() || ".!#$%&'*+/=?^_`{|}~-".contains(c) || (c < '\u{590}' && c.is_alphabetic())
}

/// Where the domain at the beginning of `text` ends.
fn domain(text: &str, work: &mut Work<'_>) -> Option<usize> {
    let mut end = None;
    let mut at = 0;
    for labels in 0..MAX_LABELS {
        let rest = text.get(at..)?;
        if labels > 0
            && let Some(len) = top_level(rest)
        {
            end = Some(at + len);
        }
        let label = rest.find(|c: char| !c.is_alphanumeric() && c != '-').unwrap_or(rest.len()).min(rest.len());
        work.spend(label);
        let name = rest.get(..label)?;
        if name.is_empty() || name.starts_with('-') || name.ends_with('-') || name.chars().count() > MAX_LABEL {
            break;
        }
        let dot = rest.get(label..)?.chars().next().filter(|dot| *dot == '.' || (end.is_none() && is_wide_dot(*dot)));
        let Some(dot) = dot else { break };
        at += label + dot.len_utf8();
    }
    end
}

/// Browsers take these for dots (UTS 46); but they also end sentences, so only within a domain that is not complete.
fn is_wide_dot(c: char) -> bool {
    matches!(c, '\u{3002}' | '\u{ff61}')
}

/// The length of the top-level domain that `text` begins with.
fn top_level(text: &str) -> Option<usize> {
    let run = |text: &str, is_in: fn(u8) -> bool| text.bytes().take(MAX_LABEL).take_while(|byte| is_in(*byte)).count();
    if let Some(coded) = text.strip_prefix("xn--") {
        let len = run(coded, |byte| byte.is_ascii_alphanumeric() || byte == b'-');
        return (len >= 2).then_some(len + 4);
    }
    let letters = run(text, |byte| byte.is_ascii_alphabetic()).min(24);
    if letters >= 2 {
        return Some(letters);
    }
    let listed = INTERNATIONAL.iter().filter(|name| text.starts_with(**name)).map(|name| name.len()).max();
    // Letters that look like Latin ones: `.со` in Cyrillic.
    listed.or_else(|| {
        let alike = text.chars().take(MAX_LABEL).take_while(|c| c.is_ascii_alphabetic() || latin(*c).is_some());
        let (count, len) = alike.fold((0, 0), |(count, len), c| (count + 1, len + c.len_utf8()));
        (count >= 2).then_some(len)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::{NONE, found};

    #[test]
    fn addresses_are_found_wherever_they_stand() {
        let text = "Write to Li.Wei+bids@mail.example.com, <a_b@x.io>; 邮箱或wang@example.cn请回复。";
        assert_eq!(found(Kind::Email, text), ["Li.Wei+bids@mail.example.com", "a_b@x.io", "wang@example.cn"]);
        assert_eq!(found(Kind::Email, "'o@x.org'"), ["o@x.org"]);
        assert_eq!(found(Kind::Email, "_svc@corp.example"), ["_svc@corp.example"]);
        assert_eq!(found(Kind::Email, "a@x.com@b@y.com"), ["a@x.com", "b@y.com"]);
        assert_eq!(found(Kind::Email, "写信给wang@example.cn。谢谢"), ["wang@example.cn"]);
    }

    #[test]
    fn domains_of_every_script_are_found() {
        for address in [
            "user@例え.jp",
            "user@例子.中国",
            "li@邮箱.公司",
            "user@xn--r8jz45g.xn--zckzah",
            "user@xn--fsqu00a.xn--0zwm56d",
            "иван@почта.рф",
            "müller@straße.de",
            "li@example。com",
            "li@mail·example·com",
            "li@mail․example․com",
            "li﹫example.com",
            "li@exаmple.соm",
            "lі@example.со",
        ] {
            assert_eq!(found(Kind::Email, &format!("请联系 {address}，谢谢")), [address], "{address}");
        }
        assert_eq!(found(Kind::Email, "发给li@例え.jp谢谢"), ["li@例え.jp"]);
        assert_eq!(found(Kind::Email, "发给li@例子.中国谢谢"), ["li@例子.中国"]);
        assert_eq!(found(Kind::Email, "邮箱zhang@例.example.cn。"), ["zhang@例.example.cn"]);
    }

    #[test]
    fn what_only_looks_like_an_address_is_left() {
        for text in [
            "react@18.2.0",
            "@handle",
            "a@b",
            "a@b.c",
            "a@ b.com",
            "user at example.com",
            "1@2.3",
            "me@-x.com",
            "@x.com",
            "...@x.com",
            "@张三：你好。谢谢",
            "关注@公司。谢谢大家",
            "at@公司.谢谢",
            "x@y。中间没有域名",
            "git@main: ok",
            "3 @ 4.50 each",
            "@media (min-width: 1.5em)",
            "@Override\npublic void",
            "npm i left-pad@1.3.0",
        ] {
            assert_eq!(found(Kind::Email, text), NONE, "{text}");
        }
    }
}
