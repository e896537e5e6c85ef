//! Addresses of the internet protocol, version 4 and 6.

use super::Bytes;
use super::runs::{before, ends, goes_on_from_group, is_digit, is_hex, joins, run, run_back};
use super::work::Work;

/// The IPv4 address that begins here. Not reported are addresses that are nobody's (0/8, 127/8 and masks from 255), and what is more
/// likely a version: with `v`, a word such as `version` or an operator such as `>=` before it, behind a name and a dash, with a
/// suffix such as `-rc1`; and four numbers below ten, unless a word, a port or a prefix length says that it is an address.
pub(super) fn ipv4_at(bytes: &[u8], start: usize, work: &mut Work<'_>) -> Option<Bytes> {
    let previous = before(bytes, start);
    if joins(previous) || (previous == Some(b'.') && joins(start.checked_sub(2).and_then(|at| bytes.get(at)).copied()))
    {
        return None;
    }
    let (octets, end) = octets(bytes, start)?;
    work.spend(end - start + MAX_CONTEXT);
    let rest = bytes.get(end..).unwrap_or_default();
    let [first, ..] = octets;
    let is_free = !joins(rest.first().copied())
        && dot(rest).is_none_or(|len| !rest.get(len).is_some_and(u8::is_ascii_alphanumeric));
    let is_someones = !matches!(first, 0 | 127 | 255);
    let read = bytes.get(..start).unwrap_or_default();
    let is_version =
        is_version(read, rest) || (octets.iter().all(|octet| *octet < 10) && !is_called_address(read, rest));
    (is_free && is_someones && !is_version).then_some(start..end)
}

/// Four numbers below 256 with dots between them, and where they end.
fn octets(bytes: &[u8], start: usize) -> Option<([u32; 4], usize)> {
    let mut octets = [0; 4];
    let mut at = start;
    for (place, octet) in octets.iter_mut().enumerate() {
        if place > 0 {
            at += dot(bytes.get(at..)?)?;
        }
        let end = run(bytes.get(..bytes.len().min(at + 4)).unwrap_or_default(), at, is_digit);
        let digits = bytes.get(at..end).filter(|digits| (1..=3).contains(&digits.len()))?;
        *octet = digits.iter().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
        if *octet > 255 {
            return None;
        }
        at = end;
    }
    Some((octets, at))
}

/// The length of the dot that `text` begins with. Browsers take the full stops of Chinese and Japanese for one, too.
fn dot(text: &[u8]) -> Option<usize> {
    ["。", "｡", "."].iter().find(|dot| text.starts_with(dot.as_bytes())).map(|dot| dot.len())
}

/// Words are looked for so many bytes before the number.
const MAX_CONTEXT: usize = 16;

fn is_version(read: &[u8], rest: &[u8]) -> bool {
    const OPERATORS: [&str; 8] = ["==", ">=", "<=", "~=", "!=", "^", "~", "§"];
    const WORDS: [&str; 13] = [
        "version",
        "versions",
        "ver",
        "ver.",
        "release",
        "build",
        "firmware",
        "section",
        "chapter",
        "clause",
        "版本",
        "版本号",
        "章节",
    ];
    let words = read.trim_ascii_end();
    let words = words.strip_suffix(b":").or_else(|| words.strip_suffix(b"=")).unwrap_or(words);
    // `libfoo-4.11.1.2`, but not the second half of `10.0.0.1-10.0.0.9`.
    let behind_name = read.strip_suffix(b"-").is_some_and(|name| name.last().is_some_and(u8::is_ascii_alphabetic));
    let suffix = rest.strip_prefix(b"-").or_else(|| rest.strip_prefix(b"+"));
    behind_name
        || OPERATORS.iter().any(|operator| ends(words, operator) || ends(read.trim_ascii_end(), operator))
        || WORDS.iter().any(|word| is_word_at_end(words, word))
        || suffix.is_some_and(|suffix| suffix.first().is_some_and(u8::is_ascii_alphabetic))
}

fn is_called_address(read: &[u8], rest: &[u8]) -> bool {
    const WORDS: [&str; 17] = [
        "ip",
        "ipv4",
        "address",
        "addr",
        "host",
        "server",
        "dns",
        "gateway",
        "from",
        "ping",
        "nameserver",
        "peer",
        "client",
        "地址",
        "服务器",
        "主机",
        "网关",
    ];
    let words = read.trim_ascii_end();
    let words = [&b":"[..], b"=", b" is", b"\xe6\x98\xaf", b"\xe4\xb8\xba"]
        .iter()
        .find_map(|end| words.strip_suffix(*end))
        .unwrap_or(words);
    let number = |mark: &[u8]| rest.strip_prefix(mark).is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit));
    number(b":")
        || number(b"/")
        || ends(read, "//")
        || ends(read, "@")
        || WORDS.iter().any(|word| is_word_at_end(words, word))
}

fn is_word_at_end(text: &[u8], word: &str) -> bool {
    let is_whole = |text: &[u8]| !word.is_ascii() || !text.last().is_some_and(u8::is_ascii_alphanumeric);
    ends(text, word) && text.get(..text.len() - word.len()).is_some_and(is_whole)
}

/// The longest address: eight groups, the last two as IPv4.
const MAX_GROUPS: usize = 8;

/// The IPv6 address whose first colon stands here (RFC 4291, section 2.2), of those blocks that are given out or used: global
/// unicast, unique local, link-local, multicast, and IPv4 within IPv6. So names of programs (`a::b`) and times are none.
pub(super) fn ipv6_at(bytes: &[u8], colon: usize, work: &mut Work<'_>) -> Option<Bytes> {
    let start = run_back(bytes, colon, 5, is_hex);
    let previous = before(bytes, start);
    if colon - start > 4 || joins(previous) || previous == Some(b'.') || goes_on_from_group(bytes, start, b':', 4) {
        return None;
    }
    // `地址：2001:db8::1`: that colon is the sentence's.
    if start == colon && bytes.get(colon + 1) != Some(&b':') {
        return None;
    }
    let mut reading = Groups::default();
    let mut at = start;
    loop {
        let end = run(bytes.get(..bytes.len().min(at + 5)).unwrap_or_default(), at, is_hex);
        let group = bytes.get(at..end).filter(|group| group.len() <= 4)?;
        if bytes.get(end) == Some(&b'.')
            && let Some((_, end)) = octets(bytes, at)
        {
            reading.count += 2;
            at = end;
            break;
        }
        if !group.is_empty() {
            reading.push(group);
        }
        at = end;
        let rest = bytes.get(end..).unwrap_or_default();
        // Only a group or the gap may follow a colon: `2001:db8:` ends before it.
        if rest.starts_with(b"::") {
            if reading.gap {
                return None;
            }
            reading.gap = true;
            reading.gap_first = reading.count == 0;
            at += 2;
            if !bytes.get(at).is_some_and(u8::is_ascii_hexdigit) {
                break;
            }
        } else if rest.first() == Some(&b':') && rest.get(1).is_some_and(u8::is_ascii_hexdigit) {
            at += 1;
        } else {
            break;
        }
        if reading.count >= MAX_GROUPS {
            return None;
        }
    }
    work.spend(at - start);
    let goes_on = joins(bytes.get(at).copied())
        || (bytes.get(at) == Some(&b':') && bytes.get(at + 1).is_some_and(u8::is_ascii_alphanumeric));
    (reading.is_address() && !goes_on).then_some(start..at)
}

#[derive(Default)]
struct Groups {
    count: usize,
    first: u32,
    last: u32,
    gap: bool,
    /// It begins with `::`.
    gap_first: bool,
}

impl Groups {
    fn push(&mut self, group: &[u8]) {
        let value = |sum: u32, digit: &u8| sum * 16 + char::from(*digit).to_digit(16).unwrap_or(0);
        self.last = group.iter().fold(0, value);
        if self.count == 0 && !self.gap {
            self.first = self.last;
        }
        self.count += 1;
    }

    fn is_address(&self) -> bool {
        let whole = if self.gap { self.count < MAX_GROUPS } else { self.count == MAX_GROUPS };
        let known = match self.first {
            // `::ffff:192.0.2.1`, but neither `::` nor `::1`.
            0 => self.gap_first && self.last == 0xffff && self.count >= 3,
            0x2000..=0x3fff | 0xfc00..=0xfdff | 0xfe80..=0xfeff | 0xff00..=0xff0f => self.count >= 1,
            0x64 => self.count >= 2,
            _ => false,
        };
        whole && known
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::{NONE, found};

    #[test]
    fn addresses_of_both_versions_are_found() {
        for address in [
            "192.0.2.17",
            "10.0.0.1",
            "203.0.113.255",
            "１９２．０．２．１７",
            "192。0。2。17",
            "192․0․2․17",
            "192.0\u{200b}.2.17",
            "2001:db8::ff00:42:8329",
            "2001:0DB8:0000:0000:0000:ff00:0042:8329",
            "fe80::1",
            "fd12:3456:789a::",
            "::ffff:192.0.2.17",
            "2001:db8::192.0.2.33",
            "64:ff9b::192.0.2.33",
            "２００１：db8：：1",
        ] {
            assert_eq!(found(Kind::Ip, &format!("地址{address}，")), [address], "{address}");
            assert_eq!(found(Kind::Ip, &format!("({address})")), [address], "{address}");
            assert_eq!(found(Kind::Ip, &format!("地址：{address}；")), [address], "{address}");
            assert_eq!(found(Kind::Ip, &format!("IPv6:{address}")), [address], "{address}");
        }
        assert_eq!(found(Kind::Ip, "http://192.0.2.17:8080/x, [2001:db8::1]:443"), ["192.0.2.17", "2001:db8::1"]);
        assert_eq!(found(Kind::Ip, "10.0.0.1-10.0.0.9, 10.0.0.0/24."), ["10.0.0.1", "10.0.0.9", "10.0.0.0"]);
        assert_eq!(found(Kind::Ip, "server 1.2.3.4, ip=8.8.4.4, 1.1.1.1:53"), ["1.2.3.4", "8.8.4.4", "1.1.1.1"]);
    }

    #[test]
    fn versions_times_and_names_are_none() {
        for text in [
            "v1.2.3.4, version 10.20.30.40, libfoo-4.11.1.2, ver. 10.0.2.1",
            "foo>=10.2.3.4, bar==12.1.1.1, ^10.1.1.1, 10.2.3.4-rc1, 版本 10.2.3.4，版本号：10.2.3.4",
            "see 1.2.3.4 and § 3.4.1.2",
            "127.0.0.1, 0.0.0.0, 255.255.255.0, ::1, ::",
            "1.2.3, 1.2.3.4.5, 256.1.1.1, 10.0.0.1000, 10.0.0.1a, a10.0.0.1, 10.20.30.40.com",
            "std::vec, a::b, dead::beef, Abc::Def, x::1, f(::g)",
            "12:30:59, 1:2:3:4:5:6:7:8:9, 2001:db8:1:2, 2001:db8::1::2, 2001:db8:1:2:3:4:5:6:7",
            "00:1A:2B:3C:4D:5E, 3f:2a:9b:c0:d1:e4:f5:a6:b7:c8",
        ] {
            assert_eq!(found(Kind::Ip, text), NONE, "{text}");
        }
    }
}
