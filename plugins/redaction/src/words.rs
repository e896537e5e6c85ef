//! Finds the words of a list in one pass over a text, however their characters are written.

use std::collections::BTreeMap;

use postern_text::plain;

use crate::Found;

/// Pieces of space between two parts of a word count as one, up to so many characters.
const MAX_SPACES: usize = 8;

/// Words by their first character, the longest first.
#[derive(Debug)]
pub(crate) struct Words {
    by_first: BTreeMap<char, Vec<Word>>,
    /// Do some begin with a character that begins with this byte? Most of most texts is passed over by that.
    first_bytes: [bool; 256],
}

#[derive(Debug)]
struct Word {
    /// Plain, in lower case, with one space for each piece of them.
    characters: Vec<char>,
    kind: String,
}

impl Words {
    /// From kind → words.
    pub(crate) fn new(words: &BTreeMap<String, Vec<String>>) -> Self {
        let mut by_first: BTreeMap<char, Vec<Word>> = BTreeMap::new();
        for (kind, list) in words {
            for word in list {
                let mut characters: Vec<char> = word.trim().chars().filter_map(folded).collect();
                characters.dedup_by(|next, last| *next == ' ' && *last == ' ');
                if let Some(first) = characters.first() {
                    by_first.entry(*first).or_default().push(Word { characters, kind: kind.clone() });
                }
            }
        }
        for list in by_first.values_mut() {
            list.sort_by_key(|word| std::cmp::Reverse(word.characters.len()));
        }
        let begins = |byte: u8| {
            let first = char::from(byte);
            !first.is_ascii() || folded(first).is_some_and(|first| by_first.contains_key(&first))
        };
        let first_bytes = std::array::from_fn(|byte| u8::try_from(byte).is_ok_and(begins));
        Self { by_first, first_bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_first.is_empty()
    }

    /// Where they stand as whole words. Scripts without spaces have no whole words: there, anywhere.
    pub(crate) fn find(&self, text: &str) -> Vec<Found> {
        let mut found = Vec::new();
        if self.by_first.is_empty() {
            return found;
        }
        let (mut at, mut from, mut before) = (0, 0, None);
        while let Some(rest) = text.get(at..) {
            // Only characters of one byte are passed over, so this is never within one.
            let passed = rest.bytes().take_while(|byte| self.first_bytes.get(usize::from(*byte)) == Some(&false));
            if let Some((last, byte)) = passed.enumerate().last() {
                at += last + 1;
                before = Some(char::from(byte));
            }
            let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) else { break };
            let start = at;
            at += c.len_utf8();
            let Some(first) = folded(c) else { continue };
            let outside = before.replace(first);
            let Some(candidates) = self.by_first.get(&first).filter(|_| start >= from) else { continue };
            let rest = text.get(start..).unwrap_or_default();
            let stands = |word: &Word| word.length(outside, rest).map(|len| (start + len, word.kind.clone()));
            if let Some((end, kind)) = candidates.iter().find_map(stands) {
                from = end;
                if let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) {
                    found.push(Found { start, end, kind });
                }
            }
        }
        found
    }
}

impl Word {
    /// How many bytes of `text` it takes up, if it stands at its beginning, behind the character `outside`.
    fn length(&self, outside: Option<char>, text: &str) -> Option<usize> {
        let mut written = text.char_indices().filter_map(|(at, c)| Some((at + c.len_utf8(), folded(c)?))).peekable();
        let mut end = 0;
        let mut last = None;
        for &wanted in &self.characters {
            let spaces = if wanted == ' ' || last.is_some_and(|last| is_unspaced(last) && is_unspaced(wanted)) {
                std::iter::from_fn(|| written.next_if(|(_, c)| *c == ' ')).take(MAX_SPACES).count()
            } else {
                0
            };
            if wanted != ' ' {
                end = written.next_if(|(_, c)| *c == wanted)?.0;
            } else if spaces == 0 && !written.peek().is_some_and(|(_, c)| is_unspaced(*c)) {
                return None;
            }
            last = Some(wanted);
        }
        let after = written.next().map(|(_, c)| c);
        let joins = |inside: Option<&char>, outside: Option<char>| {
            inside.is_some_and(char::is_ascii_alphanumeric) && outside.is_some_and(|c| c.is_ascii_alphanumeric())
        };
        (!joins(self.characters.first(), outside) && !joins(self.characters.last(), after)).then_some(end)
    }
}

/// As it is compared: plain, in lower case, every space the same; `None`: invisible.
pub(crate) fn folded(c: char) -> Option<char> {
    let c = plain(c)?;
    if c.is_ascii() {
        return Some(if c.is_ascii_whitespace() { ' ' } else { c.to_ascii_lowercase() });
    }
    let mut lower = c.to_lowercase();
    let first = lower.next().filter(|_| lower.len() == 0).unwrap_or(c);
    Some(if first.is_whitespace() { ' ' } else { first })
}

/// Of a script that writes no spaces: between two of these, spaces mean nothing.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{312f}' | '\u{3190}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(words: &[(&str, &[&str])], text: &str) -> Vec<(String, String)> {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let words: BTreeMap<String, Vec<String>> =
            words.iter().map(|(kind, words)| ((*kind).to_owned(), list(words))).collect();
        let found = Words::new(&words).find(text);
        found.into_iter().map(|f| (f.kind, text.get(f.start as usize..f.end as usize).unwrap().to_owned())).collect()
    }

    fn pair(kind: &str, text: &str) -> (String, String) {
        (kind.to_owned(), text.to_owned())
    }

    #[test]
    fn whole_words_are_found_in_either_case() {
        let words: &[(&str, &[&str])] = &[("customer", &["Globex"]), ("project", &["Blue Heron", "Blue", "北风计划"])];
        let text = "GLOBEX wants blue heron; the blueprint of 北风计划的 Globexes is Blue.";
        let expected = [
            pair("customer", "GLOBEX"),
            pair("project", "blue heron"),
            pair("project", "北风计划"),
            pair("project", "Blue"),
        ];
        assert_eq!(found(words, text), expected);
    }

    #[test]
    fn words_are_found_however_they_are_written() {
        let words: &[(&str, &[&str])] =
            &[("project", &["Blue Heron", "北风计划", "Éclair"]), ("customer", &["Globex"])];
        for written in [
            "Blue\u{a0}Heron",
            "Blue  Heron",
            "Blue\n\tHeron",
            "Ｂｌｕｅ　Ｈｅｒｏｎ",
            "Bl\u{200b}ue\u{2009}Her\u{ad}on",
            "北\u{200b}风计划",
            "北 风 计 划",
            "ÉCLAIR",
        ] {
            assert_eq!(found(words, &format!("about {written}.")), [pair("project", written)]);
        }
        assert_eq!(found(words, "Ｇlobe\u{2060}x"), [pair("customer", "Ｇlobe\u{2060}x")]);
        for other in
            ["BlueHeron", "Blue, Heron", "Glo bex", "aGlobex", "Globex1", "１Globex", "北风的计划", "blue heronry"]
        {
            assert_eq!(found(words, other), [], "{other}");
        }
    }

    #[test]
    fn long_runs_of_nothing_cost_no_more_than_they_are_long() {
        let words: &[(&str, &[&str])] = &[("x", &["g g", "gggggggg h", "机 密"])];
        for piece in ["g", "g ", " ", "g\u{200b}", "机 ", "\u{200b}"] {
            let time = |len: usize| {
                let text = piece.repeat(len / piece.len());
                let started = std::time::Instant::now();
                let _found = found(words, &text);
                started.elapsed().as_secs_f64()
            };
            let (one, four) = (time(1 << 18), time(1 << 20));
            assert!(four < one * 8.0 + 0.5, "{piece:?}: {one} {four}");
        }
        let hole = format!("g{}", "\u{200b}".repeat(1 << 18)).repeat(2);
        assert_eq!(found(words, &hole).len(), 0);
    }

    #[test]
    fn characters_are_never_cut() {
        // é is C3 A9, ã is C3 A3: the same first byte.
        assert_eq!(found(&[("x", &["é"])], "ãéã"), [pair("x", "é")]);
        assert_eq!(found(&[("x", &["", "中"])], "丯中中"), [pair("x", "中"), pair("x", "中")]);
    }
}
