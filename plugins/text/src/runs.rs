//! The way from a text that was made back to the one that it was made from.

use std::ops::Range;

/// Pieces in which so many bytes of the made text came from so many bytes of the original, over and over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs {
    runs: Vec<Run>,
}

/// Texts are far below 4 GiB, and there can be one of these for each character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    made: u32,
    original: u32,
    /// Bytes of one step in the made text; 0: the original's vanish.
    made_step: u8,
    original_step: u8,
}

/// The longest text with a way back. Longer ones are not looked into; no body of a request comes near.
pub(crate) const MAX_BYTES: usize = u32::MAX as usize;

impl Runs {
    /// The next character: `made` bytes at `made_at`, which came from `original` bytes at `original_at`.
    pub(crate) fn push(&mut self, (made_at, made): (usize, usize), (original_at, original): (usize, usize)) {
        // Equal lengths run byte by byte, so that a text without changes is one run.
        let (made_step, original_step) = if made == original { (1, 1) } else { (short(made), short(original)) };
        if self.runs.last().is_none_or(|last| (last.made_step, last.original_step) != (made_step, original_step)) {
            self.runs.push(Run { made: place(made_at), original: place(original_at), made_step, original_step });
        }
    }

    /// The bytes of the original that a span (not empty, on character boundaries) of `made` came from.
    pub(crate) fn original(&self, made: &str, span: Range<usize>) -> Range<usize> {
        let last = made.get(span.clone()).and_then(|text| text.chars().next_back()).map_or(1, char::len_utf8);
        let last_at = span.end.saturating_sub(last);
        let (start, _) = self.step(span.start);
        let (last_start, step) = self.step(last_at);
        start..last_start + step.unwrap_or(last)
    }

    /// `span` of the original, widened so that it cuts nothing that became one character.
    pub(crate) fn widened(&self, span: Range<usize>) -> Range<usize> {
        self.whole(span.start).start..self.whole(span.end.saturating_sub(1)).end.max(span.end)
    }

    /// Where the character at this byte of the made text was, and how long, if not as long as it is now.
    fn step(&self, at: usize) -> (usize, Option<usize>) {
        // Several runs at one byte: characters vanished there, and the last run is behind them.
        let behind = self.runs.partition_point(|run| run.made as usize <= at);
        let Some(run) = behind.checked_sub(1).and_then(|i| self.runs.get(i)) else { return (at, None) };
        let (beyond, original) = (at - run.made as usize, run.original as usize);
        match (usize::from(run.made_step), usize::from(run.original_step)) {
            (1, 1) => (original + beyond, None),
            (made, step) => (original + beyond.checked_div(made).unwrap_or(0) * step, Some(step)),
        }
    }

    /// The step that a byte of the original is in.
    fn whole(&self, at: usize) -> Range<usize> {
        let behind = self.runs.partition_point(|run| run.original as usize <= at);
        let run = behind.checked_sub(1).and_then(|i| self.runs.get(i));
        match run.map(|run| (run.original as usize, usize::from(run.original_step))) {
            Some((original, step)) if step > 1 => {
                let start = at - (at - original) % step;
                start..start + step
            }
            _ => at..at + 1,
        }
    }
}

fn short(bytes: usize) -> u8 {
    u8::try_from(bytes).unwrap_or(u8::MAX)
}

fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
