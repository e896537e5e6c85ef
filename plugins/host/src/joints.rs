//! Texts that a model reads as one, such as the parts of a message: what is split over them is found in a text of all of them.

use std::ops::Range;

/// Texts of more bytes together are looked at around the places where they meet.
const MOST: usize = 64 << 10;
/// So many bytes on each side.
const AROUND: usize = 512;

/// Texts in a row, as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joint {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    id: u32,
    /// Where it is in the text of all.
    here: Range<usize>,
    /// Where that begins in its own.
    from: usize,
}

impl Joint {
    /// What it is of, in order.
    pub fn parts(&self) -> impl Iterator<Item = u32> {
        self.parts.iter().map(|part| part.id)
    }

    /// Of these texts, each with what it is called.
    #[must_use]
    pub fn of(texts: &[(u32, &str)]) -> Vec<Self> {
        if texts.iter().map(|(_, text)| text.len()).sum::<usize>() <= MOST {
            return if texts.len() < 2 {
                Vec::new()
            } else {
                vec![Self::all(texts.iter().map(|(id, text)| (*id, *text, 0)))]
            };
        }
        let meeting = |pair: &[(u32, &str)]| match pair {
            [(left, before), (right, after)] => {
                let from = before.floor_char_boundary(before.len().saturating_sub(AROUND));
                let to = after.ceil_char_boundary(AROUND.min(after.len()));
                let parts = [(*left, before.get(from..)?, from), (*right, after.get(..to)?, 0)];
                Some(Self::all(parts.into_iter()))
            }
            _ => None,
        };
        texts.windows(2).filter_map(meeting).collect()
    }

    /// What a model reads.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The pieces of a span of it, in the texts that it was made of.
    pub fn pieces(&self, span: Range<usize>) -> impl Iterator<Item = (u32, Range<usize>)> {
        self.parts.iter().filter_map(move |Part { id, here, from }| {
            let (start, end) = (span.start.max(here.start), span.end.min(here.end));
            (start < end).then(|| (*id, start - here.start + from..end - here.start + from))
        })
    }

    fn all<'a>(texts: impl Iterator<Item = (u32, &'a str, usize)>) -> Self {
        let mut joint = Self { text: String::new(), parts: Vec::new() };
        for (id, text, from) in texts {
            let start = joint.text.len();
            joint.text.push_str(text);
            joint.parts.push(Part { id, here: start..joint.text.len(), from });
        }
        joint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lead_back_to_the_pieces_that_they_were_made_of() {
        let joints = Joint::of(&[(3, "to ann@exam"), (7, "ple.org, "), (9, "bye")]);
        let [joint] = &joints[..] else { panic!("{joints:?}") };
        assert_eq!(joint.text(), "to ann@example.org, bye");
        assert_eq!(joint.pieces(3..18).collect::<Vec<_>>(), [(3, 3..11), (7, 0..7)]);
        assert_eq!(joint.pieces(20..23).collect::<Vec<_>>(), [(9, 0..3)]);
        assert!(Joint::of(&[(1, "alone")]).is_empty());
    }

    #[test]
    fn long_texts_are_joined_where_they_meet() {
        let (long, other) = (format!("{}ann@exam", "x ".repeat(40_000)), format!("ple.org{}", " y".repeat(40_000)));
        let joints = Joint::of(&[(1, &long), (2, &other)]);
        let [joint] = &joints[..] else { panic!("{}", joints.len()) };
        assert!(joint.text().len() <= 2 * AROUND);
        let at = joint.text().find("ann@example.org").unwrap();
        let pieces: Vec<_> = joint.pieces(at..at + 15).collect();
        assert_eq!(pieces, [(1, long.len() - 8..long.len()), (2, 0..7)]);
    }
}
