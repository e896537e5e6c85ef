//! Texts as they are handed to a redaction policy: as they are written, and as they read without escapes.

use std::borrow::Cow;

use postern_text::Readings;

use crate::answer::MAX_SPANS;
use crate::error::{FailureKind, PolicyFailure};
use crate::facts::{Span, TextSegment};
use crate::joined::Joined;

/// Texts with more bytes in all are read on a thread of their own.
const INLINE_BYTES: usize = 64 << 10;

/// The most readings of one text.
const MAX_READINGS: usize = 3;

/// The segments for a policy, and the way back to those of the request.
#[derive(Debug)]
pub(crate) struct Read<'a> {
    segments: Cow<'a, [TextSegment]>,
    /// For each segment of a policy, which has its index as id: from which of `readings`, and how deep.
    origins: Vec<(usize, usize)>,
    /// With the id of the segment that was read. Empty: nothing has escapes, and the segments are those of the request.
    readings: Vec<(u32, Readings<'static>)>,
}

impl<'a> Read<'a> {
    pub(crate) async fn of(segments: &'a [TextSegment]) -> Result<Read<'a>, PolicyFailure> {
        if !segments.iter().any(|segment| segment.text.contains('\\')) {
            return Ok(Self { segments: Cow::Borrowed(segments), origins: Vec::new(), readings: Vec::new() });
        }
        let owned = segments.to_vec();
        if segments.iter().map(|segment| segment.text.len()).sum::<usize>() <= INLINE_BYTES {
            return Ok(read(owned));
        }
        let lost = |_| PolicyFailure::new(FailureKind::Deadline, "its texts could not be read");
        tokio::task::spawn_blocking(move || read(owned)).await.map_err(lost)
    }

    pub(crate) fn segments(&self) -> &[TextSegment] {
        &self.segments
    }

    /// The same may be found in every reading.
    pub(crate) fn max_spans(&self) -> usize {
        if self.readings.is_empty() { MAX_SPANS } else { MAX_SPANS * MAX_READINGS }
    }

    /// Spans of the request's segments, from those of a policy's; what overlaps is one.
    pub(crate) fn written(&self, spans: Vec<Span>) -> Result<Vec<Span>, PolicyFailure> {
        if self.readings.is_empty() {
            return Ok(spans);
        }
        let nowhere = || PolicyFailure::output("a span in a segment that does not exist");
        let mut found = Vec::with_capacity(spans.len());
        for span in spans {
            let (at, depth) = *self.origins.get(span.segment as usize).ok_or_else(nowhere)?;
            let (segment, readings) = self.readings.get(at).ok_or_else(nowhere)?;
            let place = readings.original(depth, span.start as usize..span.end as usize);
            let byte = |at: usize| u32::try_from(at).map_err(|_| nowhere());
            found.push(Span { segment: *segment, start: byte(place.start)?, end: byte(place.end)?, ..span });
        }
        Ok(Joined::of(found).into_spans())
    }
}

fn read(written: Vec<TextSegment>) -> Read<'static> {
    let (mut segments, mut origins, mut readings) = (Vec::with_capacity(written.len()), Vec::new(), Vec::new());
    for TextSegment { id, role, text } in written {
        let read = Readings::of(text);
        for (depth, text) in read.texts() {
            let id = u32::try_from(origins.len()).unwrap_or(u32::MAX);
            segments.push(TextSegment { id, role: role.clone(), text: text.to_owned() });
            origins.push((readings.len(), depth));
        }
        readings.push((id, read));
    }
    Read { segments: Cow::Owned(segments), origins, readings }
}
