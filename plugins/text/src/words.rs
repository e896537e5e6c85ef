//! Finds the words of a list in one pass over a text, however their characters are written.

use std::collections::BTreeMap;

use crate::plain::plain;

/// Pieces of space between two parts of a word count as one, up to so many characters.
const MAX_SPACES: usize = 8;

/// Words of a text that is not over are looked for so far back.
const MAX_BACK: usize = 512;

/// Words by their first character, the longest first.
#[derive(Debug, PartialEq, Eq)]
pub struct Words {
    by_first: BTreeMap<char, Vec<Word>>,
    /// Do some begin with a character that begins with this byte? Most of most texts is passed over by that.
    first_bytes: [bool; 256],
}

/// Bytes `start..end` of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// First byte.
    pub start: u32,
    /// The byte after the last one.
    pub end: u32,
    /// Whose word it is.
    pub kind: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Word {
    /// Plain, in lower case, with one space for each piece of them.
    characters: Vec<char>,
    kind: String,
    /// It need not stand alone.
    anywhere: bool,
}

/// How a word fits a place.
struct Fit {
    /// Its bytes, if it stands there.
    len: Option<usize>,
    /// More text could make it fit, or not.
    open: bool,
}

impl Words {
    /// From kind → words, which stand alone.
    #[must_use]
    pub fn new(words: &BTreeMap<String, Vec<String>>) -> Self {
        Self::and_anywhere(words, &BTreeMap::new())
    }

    /// With others, which may also be parts of words.
    #[must_use]
    pub fn and_anywhere(words: &BTreeMap<String, Vec<String>>, others: &BTreeMap<String, Vec<String>>) -> Self {
        let mut by_first: BTreeMap<char, Vec<Word>> = BTreeMap::new();
        let all = words.iter().map(|words| (words, false)).chain(others.iter().map(|others| (others, true)));
        for ((kind, list), anywhere) in all {
            for word in list {
                let mut characters: Vec<char> = word.trim().chars().filter_map(folded).collect();
                characters.dedup_by(|next, last| *next == ' ' && *last == ' ');
                if let Some(first) = characters.first() {
                    by_first.entry(*first).or_default().push(Word { characters, kind: kind.clone(), anywhere });
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

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_first.is_empty()
    }

    /// Where they stand as whole words. Scripts without spaces have no whole words: there, anywhere.
    #[must_use]
    pub fn find(&self, text: &str) -> Vec<Found> {
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
            let stands = |word: &Word| word.fit(outside, rest).len.map(|len| (start + len, word.kind.clone()));
            if let Some((end, kind)) = candidates.iter().find_map(stands) {
                from = end;
                if let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) {
                    found.push(Found { start, end, kind });
                }
            }
        }
        found
    }

    /// Where in a text a word may have begun that more text could complete, extend or undo. `None`: nowhere.
    #[must_use]
    pub fn open(&self, text: &str) -> Option<usize> {
        if self.by_first.is_empty() {
            return None;
        }
        let from = text.floor_char_boundary(text.len().saturating_sub(MAX_BACK));
        let tail = text.get(from..)?;
        let mut outside = text.get(..from).and_then(|before| before.chars().next_back()).and_then(folded);
        for (at, c) in tail.char_indices() {
            let Some(first) = folded(c) else { continue };
            let before = outside.replace(first);
            let rest = tail.get(at..).unwrap_or_default();
            let candidates = self.by_first.get(&first).map_or(&[][..], Vec::as_slice);
            if candidates.iter().any(|word| word.fit(before, rest).open) {
                return Some(from + at);
            }
        }
        None
    }
}

impl Word {
    /// At the beginning of `text`, behind the character `outside`.
    fn fit(&self, outside: Option<char>, text: &str) -> Fit {
        let no = Fit { len: None, open: false };
        let mut written = text.char_indices().filter_map(|(at, c)| Some((at + c.len_utf8(), folded(c)?))).peekable();
        let mut end = 0;
        let mut last = None;
        let joins = |inside: Option<&char>, outside: Option<char>| {
            let of_word = |c: char| c.is_ascii_alphanumeric();
            !self.anywhere && inside.is_some_and(|c| of_word(*c)) && outside.is_some_and(of_word)
        };
        if joins(self.characters.first(), outside) {
            return no;
        }
        for &wanted in &self.characters {
            let spaces = if wanted == ' ' || last.is_some_and(|last| is_unspaced(last) && is_unspaced(wanted)) {
                std::iter::from_fn(|| written.next_if(|(_, c)| *c == ' ')).take(MAX_SPACES).count()
            } else {
                0
            };
            if written.peek().is_none() {
                return Fit { open: true, ..no };
            }
            if wanted != ' ' {
                let Some((at, _)) = written.next_if(|(_, c)| self.same(*c, wanted)) else { return no };
                end = at;
            } else if spaces == 0 && !written.peek().is_some_and(|(_, c)| is_unspaced(*c)) {
                return no;
            }
            last = Some(wanted);
        }
        let after = written.next().map(|(_, c)| c);
        Fit { len: (!joins(self.characters.last(), after)).then_some(end), open: after.is_none() }
    }

    /// Where it need not stand alone, it is a marking: between `N.F.` and `N。F。` there is no difference.
    fn same(&self, written: char, wanted: char) -> bool {
        written == wanted || (self.anywhere && wanted == '.' && matches!(written, '\u{3002}' | '\u{ff61}'))
    }
}

/// As it is compared: plain, in lower case, every space the same; `None`: invisible.
#[must_use]
pub fn folded(c: char) -> Option<char> {
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
    fn what_may_go_on_is_open_and_nothing_else() {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let words = Words::and_anywhere(
            &[("customer".to_owned(), list(&["Globex", "Blue Heron"]))].into(),
            &[("marking".to_owned(), list(&["机密", "N.F."]))].into(),
        );
        for (text, open) in [
            ("for Glo", Some(4)),
            ("for Globex", Some(4)),
            ("for Globex ", None),
            ("a Glox", None),
            ("blue  ", Some(0)),
            ("blue heron!", None),
            ("机", Some(0)),
            ("机\u{200b} ", Some(0)),
            ("N。f", Some(0)),
            ("aGlo", None),
            ("", None),
        ] {
            assert_eq!(words.open(text), open, "{text}");
        }
        let found: Vec<_> = words.find("an.f.x 机会机 密").into_iter().map(|found| (found.start, found.end)).collect();
        assert_eq!(found, [(1, 5), (13, 20)]);
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
