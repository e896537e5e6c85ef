//! Finds that overlap, because several policies looked or because a text was looked at in several readings.

use std::cmp::Reverse;

use crate::facts::{Span, SpanAction};

/// Finds of which no two overlap, each list in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joined {
    /// To be masked.
    pub masked: Vec<Span>,
    /// To be counted.
    pub flagged: Vec<Span>,
}

impl Joined {
    /// What overlaps is one find, with the kind of the one that begins first. Nothing is flagged where something is masked.
    #[must_use]
    pub fn of(spans: Vec<Span>) -> Self {
        let (masked, flagged): (Vec<_>, Vec<_>) = spans.into_iter().partition(|span| span.action == SpanAction::Mask);
        let (masked, mut flagged) = (disjoint(masked), disjoint(flagged));
        flagged.retain(|flag| {
            let ends_before = |mask: &Span| (mask.segment, mask.end) <= (flag.segment, flag.start);
            let next = masked.get(masked.partition_point(ends_before));
            !next.is_some_and(|mask| mask.segment == flag.segment && mask.start < flag.end)
        });
        Self { masked, flagged }
    }

    /// All of them, in order.
    #[must_use]
    pub fn into_spans(self) -> Vec<Span> {
        let mut spans = self.masked;
        spans.extend(self.flagged);
        spans.sort_by_key(|span| (span.segment, span.start));
        spans
    }
}

fn disjoint(mut spans: Vec<Span>) -> Vec<Span> {
    spans.retain(|span| span.start < span.end);
    spans.sort_by_key(|span| (span.segment, span.start, Reverse(span.end)));
    spans.dedup_by(|next, last| {
        let overlap = next.segment == last.segment && next.start < last.end;
        if overlap {
            last.end = last.end.max(next.end);
        }
        overlap
    });
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(segment: u32, start: u32, end: u32) -> Span {
        Span { segment, start, end, kind: "email".into(), action: SpanAction::Mask }
    }

    fn flag(segment: u32, start: u32, end: u32) -> Span {
        Span { action: SpanAction::Flag, ..mask(segment, start, end) }
    }

    #[test]
    fn overlapping_finds_become_one() {
        let spans = vec![mask(1, 5, 9), mask(1, 0, 6), mask(1, 9, 12), mask(2, 0, 3), mask(2, 1, 1), mask(2, 1, 2)];
        assert_eq!(Joined::of(spans).masked, [mask(1, 0, 9), mask(1, 9, 12), mask(2, 0, 3)]);
    }

    #[test]
    fn nothing_is_flagged_where_something_is_masked() {
        let spans = vec![
            flag(1, 0, 3),
            flag(1, 2, 5),
            mask(1, 5, 9),
            flag(1, 8, 11),
            flag(1, 11, 12),
            flag(2, 5, 9),
            mask(3, 0, 9),
            flag(3, 2, 3),
        ];
        let joined = Joined::of(spans);
        assert_eq!(joined.masked, [mask(1, 5, 9), mask(3, 0, 9)]);
        assert_eq!(joined.flagged, [flag(1, 0, 5), flag(1, 11, 12), flag(2, 5, 9)]);
        let in_order = [flag(1, 0, 5), mask(1, 5, 9), flag(1, 11, 12), flag(2, 5, 9), mask(3, 0, 9)];
        assert_eq!(joined.into_spans(), in_order);
    }
}
