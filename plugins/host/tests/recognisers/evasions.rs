//! How somebody writes a value so that a pattern does not see it, and a reader does.

use crate::random::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evasion {
    /// Full-width letters, digits and signs.
    Wide,
    /// A zero-width character between two others, here and there.
    Invisible,
    /// Dots, at signs, colons and dashes that look like the usual ones.
    Signs,
    /// Cyrillic and Greek letters that look like Latin ones, in place of some.
    Letters,
}

impl Evasion {
    pub(crate) const ALL: [Self; 4] = [Self::Wide, Self::Invisible, Self::Signs, Self::Letters];

    /// `None`: nothing in it can be written otherwise.
    pub(crate) fn rewrite(self, text: &str, random: &mut Random) -> Option<String> {
        let written = match self {
            Self::Wide => text.chars().map(wide).collect(),
            Self::Invisible => invisible(text, random),
            Self::Signs => text.chars().map(|c| sign(c, random)).collect(),
            Self::Letters => letters(text, random),
        };
        (written != text).then_some(written)
    }
}

fn wide(c: char) -> char {
    match c {
        '!'..='~' => char::from_u32(u32::from(c) + 0xfee0).unwrap_or(c),
        ' ' => '\u{3000}',
        _ => c,
    }
}

fn invisible(text: &str, random: &mut Random) -> String {
    let mut written = String::new();
    for (place, c) in text.chars().enumerate() {
        if place > 0 && random.below(3) == 0 {
            written.push(random.of(&['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}', '\u{feff}', '\u{ad}']));
        }
        written.push(c);
    }
    written
}

fn sign(c: char, random: &mut Random) -> char {
    match c {
        '.' => random.of(&['．', '․', '·', '・', '﹒']),
        '@' => random.of(&['＠', '﹫']),
        ':' => random.of(&['：', '∶', '꞉', '﹕']),
        '-' => random.of(&['‐', '‑', '–', '—', '−', '﹣']),
        '/' => random.of(&['／', '⁄', '∕']),
        ' ' => random.of(&['\u{a0}', '\u{2009}', '\u{202f}', '\u{3000}']),
        '+' => random.of(&['＋', '﹢']),
        '_' => '＿',
        _ => c,
    }
}

/// Words of which at least one letter or digit stays what it was: nobody can tell a whole word of such letters from Russian.
fn letters(text: &str, random: &mut Random) -> String {
    const ALIKE: [(char, char); 24] = [
        ('a', 'а'),
        ('c', 'с'),
        ('e', 'е'),
        ('i', 'і'),
        ('j', 'ј'),
        ('o', 'о'),
        ('p', 'р'),
        ('s', 'ѕ'),
        ('x', 'х'),
        ('y', 'у'),
        ('A', 'А'),
        ('B', 'В'),
        ('C', 'С'),
        ('E', 'Е'),
        ('H', 'Н'),
        ('I', 'І'),
        ('K', 'К'),
        ('M', 'М'),
        ('N', 'Ν'),
        ('O', 'О'),
        ('P', 'Р'),
        ('S', 'Ѕ'),
        ('T', 'Т'),
        ('X', 'Х'),
    ];
    let mut written = String::new();
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let alike = |c: char| ALIKE.iter().find(|(latin, _)| *latin == c).map(|(_, alike)| *alike);
        let others = word.chars().filter(|c| c.is_ascii_alphanumeric() && alike(*c).is_none()).count();
        for (place, c) in word.chars().enumerate() {
            let stays = others == 0 && place == 0;
            let alike = alike(c).filter(|_| !stays && random.below(2) == 0);
            written.push(alike.unwrap_or(c));
        }
    }
    written
}
