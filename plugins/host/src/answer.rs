//! Judges what policies answer, by the bounds that the WIT package promises. Pure.

use std::collections::{BTreeSet, HashMap};

use crate::error::PolicyFailure;
use crate::facts::{CachePlan, Span, TextSegment, Verdict};
use crate::kinds::{OTHER, is_kind};

/// Bytes of a name, kind or key.
pub const MAX_NAME_BYTES: usize = 256;
/// Bytes of a reason or another text.
pub const MAX_TEXT_BYTES: usize = 1024;
/// Names of targets in a verdict.
pub const MAX_TARGETS: usize = 256;
/// Annotations in a verdict, and parts of a cache key.
pub const MAX_PARTS: usize = 16;
/// Finds in a request.
pub const MAX_SPANS: usize = 10_000;
/// Bytes of the kind of a find.
pub const MAX_KIND_BYTES: usize = 32;

type Checked<T> = Result<T, PolicyFailure>;

pub(crate) fn verdict(verdict: Verdict) -> Checked<Verdict> {
    at_most("targets", verdict.targets.len(), MAX_TARGETS)?;
    at_most("annotations", verdict.annotations.len(), MAX_PARTS)?;
    let annotated = verdict.annotations.iter().map(|a| &a.key);
    let names =
        verdict.targets.iter().chain(&verdict.model).chain(&verdict.label).chain(&verdict.weight).chain(annotated);
    short("a name", names, MAX_NAME_BYTES)?;
    let texts = verdict.deny.iter().chain(verdict.annotations.iter().map(|a| &a.value));
    short("a text", texts, MAX_TEXT_BYTES)?;
    Ok(verdict)
}

pub(crate) fn plan(plan: CachePlan) -> Checked<CachePlan> {
    at_most("key parts", plan.key_parts.len(), MAX_PARTS)?;
    short("a key part", plan.key_parts.iter(), MAX_NAME_BYTES)?;
    Ok(plan)
}

/// The spans in the order of segments (as their ids say) and bytes.
pub(crate) fn spans(segments: &[TextSegment], mut spans: Vec<Span>, max: usize) -> Checked<Vec<Span>> {
    at_most("spans", spans.len(), max)?;
    if spans.is_empty() {
        return Ok(spans);
    }
    let texts: HashMap<u32, &str> = segments.iter().map(|segment| (segment.id, segment.text.as_str())).collect();
    for span in &spans {
        let text =
            texts.get(&span.segment).ok_or_else(|| PolicyFailure::output("a span in a segment that does not exist"))?;
        if span.start >= span.end {
            return Err(PolicyFailure::output("an empty span"));
        }
        if text.get(span.start as usize..span.end as usize).is_none() {
            let len = text.len();
            let Span { start, end, .. } = span;
            let what = if *end as usize > len { "ends behind the text" } else { "cuts a character" };
            return Err(PolicyFailure::output(format!("span {start}..{end} {what} ({len} bytes)")));
        }
        if !is_kind(&span.kind) {
            return Err(PolicyFailure::output("a kind must be 1 to 32 of a-z, 0-9 and `-`, the first a letter"));
        }
    }
    spans.sort_by_key(|span| (span.segment, span.start));
    let overlap = |pair: &[Span]| matches!(pair, [a, b] if a.segment == b.segment && b.start < a.end);
    if spans.windows(2).any(overlap) {
        return Err(PolicyFailure::output("two spans overlap"));
    }
    Ok(spans)
}

/// The kind of a find goes into placeholders and records, so a policy that has seen the text must not choose its letters.
pub(crate) fn named(mut spans: Vec<Span>, kinds: &BTreeSet<String>) -> Checked<Vec<Span>> {
    at_most("spans", spans.len(), MAX_SPANS)?;
    for span in spans.iter_mut().filter(|span| !kinds.contains(&span.kind)) {
        OTHER.clone_into(&mut span.kind);
    }
    Ok(spans)
}

fn at_most(what: &str, count: usize, max: usize) -> Checked<()> {
    if count > max { Err(PolicyFailure::output(format!("{count} {what}, and {max} is the most"))) } else { Ok(()) }
}

fn short<'a>(what: &str, mut texts: impl Iterator<Item = &'a String>, max: usize) -> Checked<()> {
    match texts.find(|text| text.len() > max) {
        Some(text) => Err(PolicyFailure::output(format!("{what} of {} bytes, and {max} is the most", text.len()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::facts::{Annotation, CacheMode, SpanAction};

    fn segments() -> Vec<TextSegment> {
        [(3, "héllo"), (1, "ab")].map(|(id, text)| TextSegment { id, role: "user".into(), text: text.into() }).into()
    }

    fn span(segment: u32, start: u32, end: u32) -> Span {
        Span { segment, start, end, kind: "email".into(), action: SpanAction::Mask }
    }

    #[test]
    fn right_spans_come_back_in_order() {
        let right = vec![span(3, 3, 6), span(1, 0, 2), span(3, 0, 3)];
        assert_eq!(spans(&segments(), right, MAX_SPANS).unwrap(), [span(1, 0, 2), span(3, 0, 3), span(3, 3, 6)]);
    }

    #[test]
    fn wrong_spans_are_refused() {
        let kind = |kind: &str| Span { kind: kind.into(), ..span(3, 0, 1) };
        for (wrong, why) in [
            (vec![span(2, 0, 1)], "does not exist"),
            (vec![span(3, 1, 1)], "empty"),
            (vec![span(3, 2, 1)], "empty"),
            (vec![span(3, 0, 7)], "behind"),
            (vec![span(3, u32::MAX - 1, u32::MAX)], "behind"),
            (vec![span(3, 0, 2)], "character"),
            (vec![span(3, 2, 4)], "character"),
            (vec![span(3, 3, 5), span(3, 0, 4)], "overlap"),
            (vec![span(3, 0, 1), span(3, 0, 1)], "overlap"),
            (vec![kind("")], "kind"),
            (vec![kind("E-Mail")], "kind"),
            (vec![kind("1a")], "kind"),
            (vec![kind(&"a".repeat(33))], "kind"),
            (vec![span(1, 0, 1); MAX_SPANS + 1], "the most"),
        ] {
            let failure = spans(&segments(), wrong, MAX_SPANS).unwrap_err();
            assert!(failure.detail.contains(why), "{failure}: {why}");
        }
    }

    #[test]
    fn a_kind_that_nobody_declared_has_no_name() {
        let kind = |kind: &str| Span { kind: kind.into(), ..span(3, 0, 3) };
        let kinds = ["email", "project"].map(str::to_owned).into();
        let named = named(vec![kind("email"), kind("project"), kind("my-secret-is-4711")], &kinds).unwrap();
        assert_eq!(named.iter().map(|span| span.kind.as_str()).collect::<Vec<_>>(), ["email", "project", "data"]);
    }

    #[test]
    fn a_verdict_is_bounded() {
        let name = || "n".repeat(MAX_NAME_BYTES);
        let annotation = || Annotation { key: name(), value: "v".repeat(MAX_TEXT_BYTES) };
        let full = || Verdict {
            targets: vec![name(); MAX_TARGETS],
            model: Some(name()),
            deny: Some("d".repeat(MAX_TEXT_BYTES)),
            annotations: vec![annotation(); MAX_PARTS],
            ..Verdict::default()
        };
        assert!(verdict(full()).is_ok());
        assert!(verdict(Verdict { targets: vec![name(); MAX_TARGETS + 1], ..full() }).is_err());
        assert!(verdict(Verdict { label: Some(name() + "x"), ..full() }).is_err());
        assert!(verdict(Verdict { deny: Some("d".repeat(MAX_TEXT_BYTES + 1)), ..full() }).is_err());
        assert!(verdict(Verdict { annotations: vec![annotation(); MAX_PARTS + 1], ..full() }).is_err());
    }

    #[test]
    fn a_cache_plan_is_bounded() {
        let of = |key_parts| CachePlan { mode: CacheMode::Exact, ttl_seconds: None, key_parts };
        assert!(plan(of(vec!["k".repeat(MAX_NAME_BYTES); MAX_PARTS])).is_ok());
        assert!(plan(of(vec![String::new(); MAX_PARTS + 1])).is_err());
        assert!(plan(of(vec!["k".repeat(MAX_NAME_BYTES + 1)])).is_err());
    }

    /// What the WIT package says of spans, word by word.
    fn is_allowed(segments: &[TextSegment], spans: &[Span], max: usize) -> bool {
        let text = |id| segments.iter().find(|segment| segment.id == id).map(|segment| &segment.text);
        let stands = |span: &Span| {
            let (start, end) = (span.start as usize, span.end as usize);
            text(span.segment).is_some_and(|text| {
                start < end && end <= text.len() && text.is_char_boundary(start) && text.is_char_boundary(end)
            })
        };
        let overlap = |a: &Span, b: &Span| a.segment == b.segment && a.start < b.end && b.start < a.end;
        let apart = |i: usize, a: &Span| spans.iter().skip(i + 1).all(|b| !overlap(a, b));
        spans.len() <= max
            && spans.iter().all(|span| stands(span) && is_kind(&span.kind))
            && spans.iter().enumerate().all(|(i, span)| apart(i, span))
    }

    /// Mostly within a text, so that some are right.
    fn any_span() -> impl Strategy<Value = Span> {
        let place = prop_oneof![8 => (0_u32..20, 0_u32..6), 1 => any::<(u32, u32)>()];
        let kind = prop_oneof![8 => Just("email".to_owned()), 1 => any::<String>()];
        let segment = prop_oneof![8 => 0_u32..4, 1 => any::<u32>()];
        (segment, place, kind).prop_map(|(segment, (start, length), kind)| Span {
            segment,
            start,
            end: start.wrapping_add(length),
            kind,
            action: SpanAction::Mask,
        })
    }

    /// Of a length around a bound, or of any.
    fn text(max: usize) -> impl Strategy<Value = String> {
        prop_oneof![4 => any::<String>(), 1 => (max - 1..max + 2).prop_map(|length| "x".repeat(length))]
    }

    fn texts(count: usize, max: usize) -> impl Strategy<Value = Vec<String>> {
        prop_oneof![
            4 => proptest::collection::vec(text(max), 0..3),
            1 => (count - 1..count + 2).prop_map(|count| vec![String::new(); count]),
        ]
    }

    proptest! {
        #[test]
        fn spans_are_judged_by_what_is_promised(
            written in proptest::collection::vec("[a-zé中 ]{0,12}", 0..4),
            found in proptest::collection::vec(any_span(), 0..4),
            max in 0_usize..5,
        ) {
            let segments: Vec<_> =
                written.into_iter().zip(0..).map(|(text, id)| TextSegment { id, role: String::new(), text }).collect();
            let judged = spans(&segments, found.clone(), max);
            prop_assert_eq!(judged.is_ok(), is_allowed(&segments, &found, max), "{:?}", judged);
            if let Ok(judged) = judged {
                prop_assert_eq!(judged.len(), found.len());
                prop_assert!(judged.is_sorted_by_key(|span| (span.segment, span.start)));
            }
        }

        #[test]
        fn verdicts_are_judged_by_what_is_promised(
            targets in texts(MAX_TARGETS, MAX_NAME_BYTES),
            names in proptest::array::uniform3(proptest::option::of(text(MAX_NAME_BYTES))),
            deny in proptest::option::of(text(MAX_TEXT_BYTES)),
            notes in proptest::collection::vec((text(MAX_NAME_BYTES), text(MAX_TEXT_BYTES)), 0..3),
            repeat in prop_oneof![Just(1_usize), Just(MAX_PARTS), Just(MAX_PARTS + 1)],
        ) {
            let annotations: Vec<_> =
                notes.iter().cycle().take(notes.len() * repeat).map(|(key, value)| Annotation { key: key.clone(), value: value.clone() }).collect();
            let [model, label, weight] = names;
            let given = Verdict { placement: None, targets, model, label, deny, weight, annotations };
            let names = given.targets.iter().chain(&given.model).chain(&given.label).chain(&given.weight);
            let are_short = names.chain(given.annotations.iter().map(|a| &a.key)).all(|name| name.len() <= 256)
                && given.deny.iter().chain(given.annotations.iter().map(|a| &a.value)).all(|text| text.len() <= 1024);
            let is_allowed = are_short && given.targets.len() <= 256 && given.annotations.len() <= 16;
            match verdict(given.clone()) {
                Ok(judged) => prop_assert!(is_allowed && judged == given),
                Err(_) => prop_assert!(!is_allowed),
            }
        }

        #[test]
        fn plans_are_judged_by_what_is_promised(key_parts in texts(MAX_PARTS, MAX_NAME_BYTES), ttl_seconds: Option<u32>) {
            let given = CachePlan { mode: CacheMode::Semantic, ttl_seconds, key_parts };
            let is_allowed = given.key_parts.len() <= 16 && given.key_parts.iter().all(|part| part.len() <= 256);
            prop_assert_eq!(plan(given).is_ok(), is_allowed);
        }
    }
}
