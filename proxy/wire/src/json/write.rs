//! JSON trees → text (RFC 8259), as `serde_json` writes it, but eight characters at a time: texts are most of what goes through.

use super::{Map, Value};

/// What can be written as JSON.
pub trait Write {
    /// Adds it to `out`.
    fn write(&self, out: &mut Vec<u8>);
}

/// It as text.
#[must_use]
pub fn written(value: &impl Write) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    value.write(&mut out);
    out
}

impl Write for Value {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Number(number) => serde_written(number, out),
            Self::String(text) => string(text, out),
            Self::Array(items) => {
                out.push(b'[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
            Self::Object(members) => members.write(out),
        }
    }
}

impl Write for Map {
    fn write(&self, out: &mut Vec<u8>) {
        object(self, out);
    }
}

/// Of one who has those trees.
impl Write for serde_json::Value {
    fn write(&self, out: &mut Vec<u8>) {
        serde_written(self, out);
    }
}

fn serde_written(value: &impl serde::Serialize, out: &mut Vec<u8>) {
    // Writing it into memory cannot fail: all keys are strings.
    let _infallible = serde_json::to_writer(out, value);
}

/// An object of these members.
pub fn object<'a>(members: impl IntoIterator<Item = (&'a str, &'a Value)>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (at, (name, value)) in members.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        string(name, out);
        out.push(b':');
        value.write(out);
    }
    out.push(b'}');
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some((head, tail)) = rest.split_at_checked(plain(rest)) {
        out.extend_from_slice(head);
        let Some((special, behind)) = tail.split_first() else { break };
        escape(*special, out);
        rest = behind;
    }
    out.push(b'"');
}

/// How many bytes stand before the first that needs an escape.
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    // The lowest high bit of the result is that of the first byte below `bound`, which is at most 0x80. (After the first one a
    // borrow may set others.) Source: S. E. Anderson, "Bit Twiddling Hacks".
    let below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word & HIGHS;
    let (words, tail) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let special = below(word, 0x20) | below(word ^ (ONES * 0x22), 1) | below(word ^ (ONES * 0x5c), 1);
        if special != 0 {
            return at * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let needs_none = |byte: &&u8| !matches!(**byte, 0..0x20 | b'"' | b'\\');
    words.len() * 8 + tail.iter().take_while(needs_none).count()
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        _ => {
            let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + value - 10 };
            return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 0xf)]);
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json::json;

    #[test]
    fn every_character_in_every_place_is_written_as_serde_json_writes_it() {
        for special in (0..=0x200).filter_map(char::from_u32).chain(['\u{2028}', '四', '\u{1f600}']) {
            for before in 0..18 {
                let text = format!("{}{special}{special}x{special}", "a".repeat(before));
                assert_eq!(written(&Value::from(text.as_str())), serde_json::to_vec(&text).unwrap(), "{text:?}");
            }
        }
    }

    #[test]
    fn any_value_is_written_as_serde_json_writes_it() {
        let value =
            json!({"a": [null, true, false, -1, 0.5, 1e300, u64::MAX, "x\"\u{1}\\"], "": {}, "\n": [[], {"b": ""}]});
        assert_eq!(written(&value), serde_json::to_vec(&value).unwrap());
    }

    proptest! {
        #[test]
        fn any_text_is_written_as_serde_json_writes_it(text in any::<String>(), more in "[ -~\u{0}-\u{1f}\"\\\\]{0,80}") {
            let text = text + &more;
            prop_assert_eq!(written(&Value::from(text.as_str())), serde_json::to_vec(&text).unwrap());
        }
    }
}
