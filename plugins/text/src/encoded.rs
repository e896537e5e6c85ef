//! Text in text: runs of base64 (RFC 4648, both alphabets, with padding or without) and of percent-encoding (RFC 3986), decoded once.

use std::ops::Range;

/// What is decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Encodings {
    /// Runs of 16 characters of base64 or more that are text.
    pub base64: bool,
    /// Words with `%40` and the like.
    pub url: bool,
}

/// A run, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Its bytes in the text that it was found in.
    pub span: Range<usize>,
    /// Decoded, with what stands before and behind it: a word there may say what it is.
    pub text: String,
    /// Where in that the decoded bytes are.
    pub inside: Range<usize>,
}

/// So many bytes before a run, and behind it.
const BEFORE: usize = 96;
const BEHIND: usize = 32;

impl Decoded {
    fn new(written: &str, span: Range<usize>, decoded: &str) -> Self {
        let from = written.floor_char_boundary(span.start.saturating_sub(BEFORE));
        let to = written.ceil_char_boundary(written.len().min(span.end + BEHIND));
        let before = written.get(from..span.start).unwrap_or_default();
        let behind = written.get(span.end..to).unwrap_or_default();
        let inside = before.len()..before.len() + decoded.len();
        Self { span, text: [before, decoded, behind].concat(), inside }
    }

    /// Is any of it in what was decoded?
    #[must_use]
    pub fn has(&self, span: Range<usize>) -> bool {
        span.start < self.inside.end && self.inside.start < span.end
    }
}

/// The shortest run of base64 that is looked into: it holds twelve bytes.
const LEAST: usize = 16;
/// Lines of a longer run have so many characters or more.
const LINE: usize = 60;
/// Bytes of one text that are decoded, at most.
const MOST: usize = 256 << 10;
/// A run that is none as a whole may be one behind a sign that is of the alphabet as well: so many are tried.
const TRIED: usize = 4;

impl Encodings {
    /// Nothing is decoded.
    #[must_use]
    pub fn are_none(self) -> bool {
        self == Self::default()
    }

    /// Every run in `text` that is text itself.
    #[must_use]
    pub fn decoded(self, text: &str) -> Vec<Decoded> {
        let mut all = Vec::new();
        if self.base64 {
            base64_runs(text, &mut all);
        }
        if self.url && text.contains('%') {
            url_runs(text, &mut all);
        }
        all
    }
}

fn base64_runs(text: &str, all: &mut Vec<Decoded>) {
    let bytes = text.as_bytes();
    let (mut at, mut room) = (0, MOST);
    while let Some(start) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| is_base64(*byte))) {
        let start = at + start;
        let end = run_end(bytes, start);
        at = end.max(start + 1);
        if end - start < LEAST || room == 0 {
            continue;
        }
        let signs = (start..end).filter(|at| bytes.get(*at).is_some_and(|byte| b"+/-_".contains(byte)));
        let starts = std::iter::once(start).chain(signs.take(TRIED).map(|sign| sign + 1));
        for from in starts.filter(|from| end - from >= LEAST) {
            if let Some(decoded) = bytes.get(from..end).and_then(|run| base64(run, room)) {
                let padded =
                    end + bytes.get(end..).unwrap_or_default().iter().take(2).take_while(|byte| **byte == b'=').count();
                room = room.saturating_sub(decoded.len());
                all.push(Decoded::new(text, from..padded, &decoded));
                break;
            }
        }
    }
}

/// Where a run ends that may be broken into long lines.
fn run_end(bytes: &[u8], start: usize) -> usize {
    let mut line = start;
    loop {
        let end = line + bytes.get(line..).unwrap_or_default().iter().take_while(|byte| is_base64(**byte)).count();
        let rest = bytes.get(end..).unwrap_or_default();
        let broken = if rest.starts_with(b"\r\n") { 2 } else { usize::from(rest.starts_with(b"\n")) };
        let goes_on = broken > 0
            && end - line >= LINE
            && (end - line).is_multiple_of(4)
            && rest.get(broken).is_some_and(|byte| is_base64(*byte));
        if !goes_on {
            return end;
        }
        line = end + broken;
    }
}

/// `None`: it is not text.
fn base64(run: &[u8], most: usize) -> Option<String> {
    // Nearly everything that is none shows it in its first bytes.
    let first = sextets(run).take(LEAST).collect::<Vec<_>>();
    let beginning = bytes(&first);
    if !std::str::from_utf8(&beginning).map_or_else(|error| error.error_len().is_none(), |_| true) {
        return None;
    }
    let all: Vec<u8> = sextets(run).take(most / 3 * 4).collect();
    if all.len() % 4 == 1 {
        return None;
    }
    let mut decoded = bytes(&all);
    if let Err(error) = std::str::from_utf8(&decoded) {
        // Cut at the bound, in the middle of a character.
        error.error_len().is_none().then(|| decoded.truncate(error.valid_up_to()))?;
    }
    let text = String::from_utf8(decoded).ok()?;
    is_readable(&text).then_some(text)
}

fn sextets(run: &[u8]) -> impl Iterator<Item = u8> {
    run.iter().filter_map(|byte| {
        Some(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        })
    })
}

fn bytes(sextets: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(sextets.len() / 4 * 3 + 2);
    for group in sextets.chunks(4) {
        let bits = group.iter().fold(0_u32, |bits, sextet| bits << 6 | u32::from(*sextet)) << (6 * (4 - group.len()));
        let [_, one, two, three] = bits.to_be_bytes();
        out.extend([one, two, three].into_iter().take(group.len().saturating_sub(1)));
    }
    out
}

fn url_runs(text: &str, all: &mut Vec<Decoded>) {
    let bytes = text.as_bytes();
    let (mut at, mut room) = (0, MOST);
    while let Some(percent) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'%')) {
        let percent = at + percent;
        let before = bytes.get(at..percent).unwrap_or_default();
        let start = percent - before.iter().rev().take_while(|byte| is_in_url(**byte)).count();
        let end =
            percent + bytes.get(percent..).unwrap_or_default().iter().take_while(|byte| is_in_url(**byte)).count();
        at = end.max(percent + 1);
        if let Some(decoded) = bytes.get(start..end).filter(|run| run.len() <= room).and_then(percent_decoded) {
            room -= end - start;
            all.push(Decoded::new(text, start..end, &decoded));
        }
    }
}

/// `None`: nothing in it is encoded, or it is not text.
fn percent_decoded(run: &[u8]) -> Option<String> {
    let digit = |byte: Option<&u8>| {
        byte.and_then(|byte| char::from(*byte).to_digit(16)).and_then(|digit| u8::try_from(digit).ok())
    };
    let mut out = Vec::with_capacity(run.len());
    let mut rest = run;
    while let Some((first, after)) = rest.split_first() {
        let encoded = digit(after.first()).zip(digit(after.get(1))).filter(|_| *first == b'%');
        match encoded {
            Some((high, low)) => {
                out.push(high << 4 | low);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    (out.len() < run.len()).then(|| String::from_utf8(out).ok()).flatten().filter(|text| is_readable(text))
}

/// Mostly: some texts have a character that controls something.
fn is_readable(text: &str) -> bool {
    let control = text.chars().filter(|c| c.is_control() && !c.is_ascii_whitespace()).count();
    control * 20 <= text.chars().count()
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/-_".contains(&byte)
}

/// What RFC 3986 calls unreserved, `%`, and a plus.
fn is_in_url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%+".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Encodings = Encodings { base64: true, url: true };

    fn decoded(text: &str) -> Vec<(&str, String)> {
        let read = |found: Decoded| {
            let says = found.text.get(found.inside.clone()).unwrap().to_owned();
            (text.get(found.span).unwrap(), says)
        };
        BOTH.decoded(text).into_iter().map(read).collect()
    }

    #[test]
    fn runs_are_decoded_where_they_stand() {
        for (text, run, says) in [
            ("see YW5uQGV4YW1wbGUub3Jn!", "YW5uQGV4YW1wbGUub3Jn", "ann@example.org"),
            ("see=YW5uLmxlZUBleGFtcGxlLm9yZw==.", "YW5uLmxlZUBleGFtcGxlLm9yZw==", "ann.lee@example.org"),
            ("x YW5uLmxlZUBleGFtcGxlLm9yZw", "YW5uLmxlZUBleGFtcGxlLm9yZw", "ann.lee@example.org"),
            ("user/YW5uQGV4YW1wbGUub3Jn", "YW5uQGV4YW1wbGUub3Jn", "ann@example.org"),
            ("5a-G56CB5pivIEhlbGxvMjAyNg", "5a-G56CB5pivIEhlbGxvMjAyNg", "密码是 Hello2026"),
            ("?q=ann%40example.org&x=1", "ann%40example.org", "ann@example.org"),
            ("%E5%AF%86%E7%A0%81", "%E5%AF%86%E7%A0%81", "密码"),
        ] {
            assert_eq!(decoded(text), [(run, says.to_owned())], "{text}");
        }
        let long = "YW5uQGV4YW1wbGUub3JnIGFubkBleGFtcGxlLm9yZyBhbm5AZXhhbXBsZS5vcmcg\nYW5uQGV4YW1wbGUub3Jn";
        assert_eq!(decoded(&format!("{long} "))[0].0, long);
    }

    #[test]
    fn what_stands_around_a_run_is_read_with_it() {
        let found = BOTH.decoded("passport no. %45%31%32345678, please").remove(0);
        assert_eq!(found.text, "passport no. E12345678, please");
        assert!(found.has(13..22) && !found.has(0..8));
    }

    #[test]
    fn what_is_no_text_is_left() {
        for text in [
            "",
            "internationalisation",
            "/usr/local/lib/python3/dist-packages",
            "3f2a9bc0d1e4f5a6b7c83f2a9bc0d1e4f5a6b7c8",
            "100% sure, 5%zz, 50%",
            "%ff%fe",
            "a_function_name_of_some_length",
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
        ] {
            assert_eq!(decoded(text), [], "{text}");
        }
        let much = "QUFB".repeat(1 << 20);
        assert!(BOTH.decoded(&much).iter().map(|found| found.inside.len()).sum::<usize>() <= MOST);
    }
}
