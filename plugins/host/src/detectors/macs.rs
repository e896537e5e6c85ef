//! Hardware addresses of networks: IEEE 802's 48 and 64 bits.

use super::Bytes;
use super::runs::{before, goes_on_from_group, is_hex, joins, run, run_back};
use super::work::Work;

/// The address whose first separator stands here: `00:1a:2b:3c:4d:5e`, `00-1A-…` or `001a.2b3c.4d5e`; of 64 bits, two or one more.
pub(super) fn mac_at(bytes: &[u8], at: usize, work: &mut Work<'_>) -> Option<Bytes> {
    let separator = *bytes.get(at)?;
    let len = if separator == b'.' { 4 } else { 2 };
    let start = run_back(bytes, at, len + 1, is_hex);
    let joined = joins(before(bytes, start)) || goes_on_from_group(bytes, start, separator, len);
    if at - start != len || joined {
        return None;
    }
    let mut end = at;
    let mut groups = 1;
    while bytes.get(end) == Some(&separator) && groups <= 8 {
        let group = run(bytes.get(..bytes.len().min(end + 1 + len)).unwrap_or_default(), end + 1, is_hex);
        if group - end - 1 != len {
            break;
        }
        groups += 1;
        end = group;
    }
    work.spend(end - start);
    // Not a part of something longer, such as a fingerprint or an interface's number in IPv6.
    let goes_on = match bytes.get(end) {
        Some(byte) if *byte == separator => bytes.get(end + 1).is_some_and(u8::is_ascii_alphanumeric),
        Some(byte) => byte.is_ascii_alphanumeric() || *byte == b'_',
        None => false,
    };
    let written = bytes.get(start..end)?;
    let digits = || written.iter().filter(|byte| is_hex(**byte));
    // Nobody's: nothing, and everybody. Dashes and dots are also between the numbers of dates and amounts.
    let is_someones = digits().any(|byte| *byte != b'0') && digits().any(|byte| !byte.eq_ignore_ascii_case(&b'f'));
    let is_number = separator != b':' && digits().all(u8::is_ascii_digit);
    let is_whole = matches!((groups, len), (6 | 8, 2) | (3 | 4, 4)) && !goes_on;
    (is_whole && is_someones && !is_number).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::tests::{NONE, found};

    #[test]
    fn hardware_addresses_are_found() {
        for address in [
            "00:1A:2B:3C:4D:5E",
            "00:11:22:33:44:55",
            "00-1a-2b-3c-4d-5e",
            "001a.2b3c.4d5e",
            "00:1a:2b:ff:fe:3c:4d:5e",
            "００：１Ａ：２Ｂ：３Ｃ：４Ｄ：５Ｅ",
            "00∶1A∶2B∶3C∶4D∶5E",
            "00:1A:2B\u{200b}:3C:4D:5E",
            "00‑1a‑2b‑3c‑4d‑5e",
        ] {
            for text in [format!("地址{address}。"), format!("地址：{address}，"), format!("mac:{address}")] {
                assert_eq!(found(Kind::Mac, &text), [address], "{text}");
            }
        }
    }

    #[test]
    fn other_groups_are_left() {
        for text in [
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "12:30:59",
            "20-26-11-24-12-30",
            "1234.5678.9012",
            "3f:2a:9b:c0:d1:e4:f5:a6:b7:c8:3f:2a:9b:c0:d1:e4:f5:a6:b7:c8",
            "550e8400-e29b-41d4-a716-446655440000",
            "00:1A:2B:3C:4D",
            "00:1A:2B:3C:4D:5E:6F",
            "00:1A-2B:3C-4D:5E",
            "x00:1A:2B:3C:4D:5E",
            "00:1A:2B:3C:4D:5Ex",
        ] {
            assert_eq!(found(Kind::Mac, text), NONE, "{text}");
        }
    }
}
