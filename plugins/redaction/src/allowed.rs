//! Finds that are left alone, such as the office's own address.

use postern_text::words::folded;

/// Values and patterns, as they are compared.
#[derive(Debug)]
pub(crate) struct Allowed(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    text: String,
    /// Anything may stand before it.
    open_start: bool,
    /// Anything may stand behind it.
    open_end: bool,
}

impl Allowed {
    pub(crate) fn new(patterns: &[String]) -> Result<Self, String> {
        patterns.iter().map(|pattern| Pattern::new(pattern)).collect::<Result<_, _>>().map(Self)
    }

    /// Is all of this allowed?
    pub(crate) fn has(&self, found: &str) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let found: String = found.chars().filter_map(folded).collect();
        self.0.iter().any(|pattern| pattern.fits(&found))
    }
}

impl Pattern {
    fn new(written: &str) -> Result<Self, String> {
        let (open_start, rest) = written.trim().strip_prefix('*').map_or((false, written.trim()), |rest| (true, rest));
        let (open_end, rest) = rest.strip_suffix('*').map_or((false, rest), |rest| (true, rest));
        let text: String = rest.trim().chars().filter_map(folded).collect();
        if text.is_empty() {
            return Err(format!("config: `allow` has `{written}`, which would leave everything alone or nothing"));
        }
        Ok(Self { text, open_start, open_end })
    }

    fn fits(&self, found: &str) -> bool {
        let text = self.text.as_str();
        match (self.open_start, self.open_end) {
            (false, false) => found == text,
            (true, false) => found.ends_with(text),
            (false, true) => found.starts_with(text),
            (true, true) => found.contains(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, found: &str) -> bool {
        Allowed::new(&[pattern.to_owned()]).unwrap().has(found)
    }

    #[test]
    fn values_and_patterns_are_whole() {
        assert!(allows("help@office.example", "Help@Office.example"));
        assert!(!allows("help@office.example", "xhelp@office.example"));
        assert!(!allows("help@office.example", "help@office.example.com"));
        assert!(allows("*@office.example", "li@office.example"));
        assert!(!allows("*@office.example", "li@office.example.com"));
        assert!(allows("+49 30 *", "+49 30 1234567"));
        assert!(!allows("+49 30 *", "0049 30 1234567"));
        assert!(allows("*office*", "li@office.example"));
        assert!(!Allowed::new(&[]).unwrap().has("x"));
    }

    #[test]
    fn a_pattern_that_allows_everything_is_an_error() {
        for pattern in ["*", "**", "", " * "] {
            assert!(Allowed::new(&[pattern.to_owned()]).is_err(), "{pattern}");
        }
    }
}
