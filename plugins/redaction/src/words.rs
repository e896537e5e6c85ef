//! Finds the words of a list in one pass over a text.

use std::collections::BTreeMap;

use crate::Found;

/// Words by their first byte, the longest first.
#[derive(Debug)]
pub(crate) struct Words<'a> {
    by_first: BTreeMap<u8, Vec<(&'a str, &'a str)>>,
}

impl<'a> Words<'a> {
    /// From kind → words.
    pub(crate) fn new(words: &'a BTreeMap<String, Vec<String>>) -> Self {
        let mut by_first: BTreeMap<u8, Vec<(&'a str, &'a str)>> = BTreeMap::new();
        for (kind, list) in words {
            for word in list {
                if let Some(first) = word.bytes().next() {
                    by_first.entry(first.to_ascii_lowercase()).or_default().push((word, kind));
                }
            }
        }
        for list in by_first.values_mut() {
            list.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));
        }
        Self { by_first }
    }

    /// Where they stand as whole words. Scripts without spaces have no whole words: there, anywhere.
    pub(crate) fn find(&self, text: &str) -> Vec<Found> {
        let mut found = Vec::new();
        if self.by_first.is_empty() {
            return found;
        }
        let mut from = 0;
        for (start, first) in text.bytes().enumerate() {
            let Some(candidates) = self.by_first.get(&first.to_ascii_lowercase()).filter(|_| start >= from) else {
                continue;
            };
            if let Some((word, kind)) = candidates.iter().find(|(word, _)| stands_at(text, start, word)) {
                from = start + word.len();
                if let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(from)) {
                    found.push(Found { start, end, kind: (*kind).to_owned() });
                }
            }
        }
        found
    }
}

fn stands_at(text: &str, start: usize, word: &str) -> bool {
    let end = start + word.len();
    let joins = |inside: Option<char>, outside: Option<char>| {
        let letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        letter(inside) && letter(outside)
    };
    // `get` is `None` in the middle of a character.
    let (Some(here), Some(before), Some(after)) = (text.get(start..end), text.get(..start), text.get(end..)) else {
        return false;
    };
    here.eq_ignore_ascii_case(word)
        && !joins(word.chars().next(), before.chars().next_back())
        && !joins(word.chars().next_back(), after.chars().next())
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
    fn characters_are_never_cut() {
        // é is C3 A9, ã is C3 A3: the same first byte.
        assert_eq!(found(&[("x", &["é"])], "ãéã"), [pair("x", "é")]);
        assert_eq!(found(&[("x", &["", "中"])], "丯中中"), [pair("x", "中"), pair("x", "中")]);
    }
}
