//! Which texts of a request a model reads as one.

use std::borrow::Cow;
use std::collections::HashMap;

use postern_plugins::{Joint, Span};
use postern_wire::json::{Map, Value};

use super::Segment;

/// Joined texts are segments too; these numbers are above those of all others.
const FIRST: u32 = 1 << 31;

/// The parts of each message that has several; with `messages`, all that a user says in a row.
#[must_use]
pub fn joints(body: &Map, segments: &[Segment<'_>], messages: bool) -> Vec<Joint> {
    let list = body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if !list.iter().any(|message| message.get("content").is_some_and(Value::is_array)) && !messages {
        return Vec::new();
    }
    // By where they are in memory: equal texts in several places are not the same.
    let place = |text: &str| (text.as_ptr().addr(), text.len());
    let ids: HashMap<_, u32> = segments
        .iter()
        .filter_map(|segment| match &segment.text {
            Cow::Borrowed(text) if !text.is_empty() => Some((place(text), segment.id)),
            _ => None,
        })
        .collect();
    let mut joints = Vec::new();
    let mut row: Vec<(u32, &str)> = Vec::new();
    let mut before = None;
    for message in list {
        let role = message.get("role").and_then(Value::as_str);
        if !(messages && role == Some("user") && before == role) {
            joints.extend(Joint::of(&std::mem::take(&mut row)));
        }
        before = role;
        let parts = match message.get("content") {
            Some(Value::Array(parts)) => parts.as_slice(),
            Some(whole) => std::slice::from_ref(whole),
            None => &[],
        };
        for part in parts {
            let text = part.as_str().or_else(|| part.get("text").and_then(Value::as_str));
            match text {
                Some(text) => row.extend(ids.get(&place(text)).map(|id| (*id, text))),
                // An image, say, stands between.
                None => joints.extend(Joint::of(&std::mem::take(&mut row))),
            }
        }
    }
    joints.extend(Joint::of(&row));
    joints
}

/// What a joint is called as a segment.
pub(super) fn id(number: usize) -> u32 {
    FIRST.saturating_add(u32::try_from(number).unwrap_or(u32::MAX))
}

/// Spans in joints become their pieces.
pub(super) fn in_pieces(spans: Vec<Span>, joints: &[Joint]) -> Vec<Span> {
    let mut all = Vec::with_capacity(spans.len());
    for span in spans {
        let Some(number) = span.segment.checked_sub(FIRST) else {
            all.push(span);
            continue;
        };
        let Some(joint) = joints.get(number as usize) else { continue };
        all.extend(joint.pieces(span.start as usize..span.end as usize).filter_map(|(segment, piece)| {
            let (start, end) = (u32::try_from(piece.start).ok()?, u32::try_from(piece.end).ok()?);
            Some(Span { segment, start, end, ..span.clone() })
        }));
    }
    all
}

#[cfg(test)]
mod tests {
    use postern_wire::json::json;

    use super::*;
    use crate::redact::segments;

    fn texts(body: &Value, messages: bool) -> Vec<String> {
        let body = body.as_object().unwrap();
        joints(body, &segments(body), messages).iter().map(|joint| joint.text().to_owned()).collect()
    }

    #[test]
    fn parts_of_a_message_are_one_text_and_messages_if_they_are_asked_for() {
        let part = |text: &str| json!({"type": "text", "text": text});
        let body = json!({"messages": [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": [part("a"), part("b"), {"type": "image_url", "image_url": {"url": "x"}}, part("c"), part("d")]},
            {"role": "user", "content": "e"},
            {"role": "assistant", "content": "f"},
            {"role": "user", "content": [part("a")]},
        ]});
        assert_eq!(texts(&body, false), ["ab", "cd"]);
        assert_eq!(texts(&body, true), ["ab", "cde"]);
        assert_eq!(texts(&json!({"messages": [{"role": "user", "content": "alone"}]}), false), [""; 0]);
    }

    #[test]
    fn spans_become_pieces_of_the_segments_of_the_request() {
        let body = json!({"messages": [{"role": "user", "content": [{"text": "ann@exam"}, {"text": "ple.org"}]}]});
        let body = body.as_object().unwrap();
        let segments = segments(body);
        let joints = joints(body, &segments, false);
        let span = |segment, start, end| Span {
            segment,
            start,
            end,
            kind: "email".into(),
            action: postern_plugins::SpanAction::Mask,
        };
        let found = in_pieces(vec![span(segments[0].id, 0, 3), span(id(0), 0, 15)], &joints);
        let (left, right) = (segments[0].id, segments[1].id);
        assert_eq!(found, [span(left, 0, 3), span(left, 0, 8), span(right, 0, 7)]);
    }
}
