//! From the bytes of tokens to text that may be shown: never half a character, never a part of a stop string.

/// What may be shown after a piece.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Text, possibly empty.
    pub(crate) text: String,
    /// A stop string was completed: nothing follows.
    pub(crate) stopped: bool,
}

/// Turns tokens' bytes into text. What is shown depends only on all the bytes together, not on how they were cut.
#[derive(Debug)]
pub(crate) struct TextStream {
    characters: Characters,
    stops: StopStrings,
    shown_bytes: usize,
}

impl TextStream {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { characters: Characters::default(), stops: StopStrings::new(stops), shown_bytes: 0 }
    }

    /// From `mark` on stop strings mean nothing: what follows is not for people.
    pub(crate) fn stopping_until(mut self, mark: &'static str) -> Self {
        self.stops.shield = Some(mark);
        self
    }

    /// Bytes of text that were given out.
    pub(crate) fn shown_bytes(&self) -> usize {
        self.shown_bytes
    }

    /// Takes the bytes of the next token.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Shown {
        let text = self.characters.push(bytes);
        let shown = self.stops.push(&text);
        self.shown_bytes += shown.text.len();
        shown
    }

    /// Gives out what was held back, when no more bytes follow.
    pub(crate) fn finish(&mut self) -> String {
        let rest = self.characters.finish();
        let shown = self.stops.push(&rest);
        let text = if shown.stopped { shown.text } else { shown.text + &std::mem::take(&mut self.stops.held) };
        self.shown_bytes += text.len();
        text
    }
}

/// Whole characters out of bytes; what is not UTF-8 becomes U+FFFD, as `String::from_utf8_lossy` does it.
#[derive(Debug, Default)]
struct Characters {
    /// The beginning of a character, 3 bytes at most.
    begun: Vec<u8>,
}

impl Characters {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.begun.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.begun.as_slice();
        while let Some(chunk) = rest.utf8_chunks().next() {
            text.push_str(chunk.valid());
            let read = chunk.valid().len() + chunk.invalid().len();
            let after = rest.get(read..).unwrap_or_default();
            if after.is_empty() && may_go_on(chunk.invalid()) {
                rest = chunk.invalid();
                break;
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            rest = after;
        }
        self.begun = rest.to_vec();
        text
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.begun)).into_owned()
    }
}

/// True if these bytes are the beginning of a character that more bytes could complete.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// Looks for stop strings over the borders of pieces. Text ends before the one that is completed first, and of those
/// completed by the same byte, before the one that begins first.
#[derive(Debug)]
struct StopStrings {
    stops: Vec<String>,
    /// Ends the search.
    shield: Option<&'static str>,
    /// Text not shown yet, because a stop string may have begun in it.
    held: String,
}

impl StopStrings {
    fn new(stops: Vec<String>) -> Self {
        Self { stops, shield: None, held: String::new() }
    }

    fn push(&mut self, text: &str) -> Shown {
        self.held.push_str(text);
        let find = |wanted: &str| self.held.find(wanted).map(|at| (at + wanted.len(), at));
        let shielded_from = self.shield.filter(|_| !self.stops.is_empty()).and_then(find);
        let found = self.stops.iter().filter_map(|stop| find(stop)).min();
        match (found, shielded_from) {
            (Some(stop), shield) if shield.is_none_or(|shield| stop < shield) => {
                self.held.truncate(stop.1);
                return Shown { text: std::mem::take(&mut self.held), stopped: true };
            }
            (_, Some(_)) => self.stops.clear(),
            _ => {}
        }
        let kept = self.held.split_off(self.safe_length());
        Shown { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// Bytes of `held` that cannot belong to a stop string.
    fn safe_length(&self) -> usize {
        if self.stops.is_empty() {
            return self.held.len();
        }
        let wanted = || self.stops.iter().map(String::as_str).chain(self.shield);
        let longest = wanted().map(str::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest.saturating_sub(1));
        let begins = self.held.char_indices().map(|(at, _)| at).skip_while(|at| *at < earliest);
        begins
            .filter(|at| self.held.get(*at..).is_some_and(|end| wanted().any(|wanted| wanted.starts_with(end))))
            .min()
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pieces: &[&[u8]], stops: &[&str]) -> (Vec<String>, bool) {
        let mut stream = TextStream::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut shown = Vec::new();
        for piece in pieces {
            let next = stream.push(piece);
            shown.push(next.text);
            if next.stopped {
                return (shown, true);
            }
        }
        shown.push(stream.finish());
        (shown, false)
    }

    /// Straight from the definition: byte by byte, the first time any stop string is complete.
    fn expected(text: &str, stops: &[String]) -> String {
        for end in (1..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let begun =
                stops.iter().filter(|stop| text.get(..end).unwrap().ends_with(*stop)).map(|stop| end - stop.len());
            if let Some(begin) = begun.min() {
                return text.get(..begin).unwrap().to_owned();
            }
        }
        text.to_owned()
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let (shown, _) = run(&[b"a\xe2", b"\x82", b"\xac!"], &[]);
        assert_eq!(shown, ["a", "", "€!", ""]);
    }

    #[test]
    fn a_broken_character_is_replaced_and_an_unfinished_one_too() {
        let (shown, _) = run(&[b"\xe2\x82", b"x", b"\xf0\x9f"], &[]);
        assert_eq!(shown, ["", "\u{fffd}x", "", "\u{fffd}"]);
    }

    #[test]
    fn a_stop_string_over_borders_is_not_shown() {
        let (shown, stopped) = run(&[b"one EN", b"D", b" two"], &["END"]);
        assert_eq!((shown.concat().as_str(), stopped), ("one ", true));
    }

    #[test]
    fn held_text_comes_out_when_it_was_not_a_stop_string() {
        let (shown, stopped) = run(&[b"E", b"N", b"x", b"EN"], &["END"]);
        assert_eq!(shown, ["", "", "ENx", "", "EN"]);
        assert!(!stopped);
    }

    #[test]
    fn the_stop_string_that_ends_first_counts() {
        assert_eq!(run(&[b"xabcd"], &["abcd", "bc"]).0.concat(), "xa");
        assert_eq!(run(&[b"xabc"], &["bc", "abc"]).0.concat(), "x");
    }

    #[test]
    fn a_shield_ends_the_search_for_stop_strings() {
        let shielded = |pieces: &[&str]| {
            let mut stream = TextStream::new(vec!["x".to_owned()]).stopping_until("<call>");
            let mut text = String::new();
            for piece in pieces {
                let shown = stream.push(piece.as_bytes());
                text += &shown.text;
                if shown.stopped {
                    return (text, true);
                }
            }
            text += &stream.finish();
            assert_eq!(stream.shown_bytes(), text.len());
            (text, false)
        };
        assert_eq!(shielded(&["ab<ca", "ll>x"]), ("ab<call>x".to_owned(), false));
        assert_eq!(shielded(&["ab<call>", "cdx"]), ("ab<call>cdx".to_owned(), false));
        assert_eq!(shielded(&["ax<call>"]), ("a".to_owned(), true));
        assert_eq!(shielded(&["a<ca", "x"]), ("a<ca".to_owned(), true));
    }

    fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut borders: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        borders.extend([0, bytes.len()]);
        borders.sort_unstable();
        borders.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect()
    }

    proptest! {
        #[test]
        fn any_bytes_cut_anywhere_give_the_same_text(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xe2), Just(0x82), Just(0xac), 0x20u8..0x7f], 0..40),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let pieces = cut(&bytes, &cuts);
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let (shown, _) = run(&pieces, &[]);
            prop_assert_eq!(shown.concat(), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn whole_characters_are_shown_at_once(text in "\\PC{0,12}", cuts in proptest::collection::vec(any::<usize>(), 0..8)) {
            let mut stream = TextStream::new(Vec::new());
            let (mut fed, mut shown) = (Vec::new(), String::new());
            for piece in cut(text.as_bytes(), &cuts) {
                fed.extend_from_slice(&piece);
                shown += &stream.push(&piece).text;
                let whole = match std::str::from_utf8(&fed) { Ok(all) => all.len(), Err(error) => error.valid_up_to() };
                prop_assert_eq!(shown.as_str(), text.get(..whole).unwrap());
            }
        }

        #[test]
        fn text_ends_before_the_first_stop_string_however_it_is_cut(
            text in "[abé]{0,24}", stops in proptest::collection::vec("[abé]{1,4}", 0..4),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let pieces = cut(text.as_bytes(), &cuts);
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let names: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (shown, stopped) = run(&pieces, &names);
            let wanted = expected(&text, &stops);
            prop_assert_eq!(stopped, wanted.len() < text.len());
            prop_assert_eq!(shown.concat(), wanted);
        }
    }
}
