//! Text for comparing.

use crate::plain::Plain;

/// Plain, in lower case, every piece of space one space, and none between characters of scripts that need none.
#[must_use]
pub fn folded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut space = false;
    for c in Plain::of(text).text().chars() {
        if c.is_whitespace() {
            space = true;
            continue;
        }
        let joined = out.chars().next_back().is_none_or(is_unspaced) || is_unspaced(c);
        if space && !joined {
            out.push(' ');
        }
        space = false;
        if matches!(c, '\u{3002}' | '\u{ff61}') {
            out.push('.');
        } else {
            out.extend(c.to_lowercase());
        }
    }
    out
}

/// Of a script that writes no spaces: Chinese, Japanese.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{312f}' | '\u{3190}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reads_the_same_folds_the_same() {
        for (written, like) in [
            ("ＳＥＣＲＥＴ／／", "secret//"),
            ("Top\u{a0}\n Secret", "top secret"),
            ("机\u{200b}密", "机密"),
            ("机 密", "机密"),
            ("内部・限", "内部.限"),
            ("N。F。", "n.f."),
            ("Éclair", "éclair"),
            ("SECRET⁄⁄", "secret//"),
            ("SЕCRЕT∕∕", "secret//"),
        ] {
            assert_eq!(folded(written), like, "{written}");
        }
        assert_ne!(folded("top secret"), folded("topsecret"));
        assert_eq!(folded(" a  b "), "a b");
    }
}
