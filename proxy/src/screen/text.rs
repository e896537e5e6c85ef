//! One text that arrives in pieces. What is decided goes on at once; from where something may have begun that is not over, it waits.
//!
//! What is decided depends on the text alone, not on how it is cut into pieces: what waits is a function of the text so far. Whether it
//! is too long to wait any more is asked only at certain places of the text, and only there is forgotten what was decided.

use std::collections::VecDeque;
use std::ops::Range;

use postern_plugins::detectors;
use postern_text::plain;

use super::rules::{Action, Hit, Rules};
use super::{Own, Seen};
use crate::redact::restore::placeholders;

/// So many bytes wait at most, and half as many again until the next place where that is asked.
const MOST: usize = 512;
/// Between two of those places, in bytes.
const STEP: usize = 256;
/// Decided bytes that are looked at once more, for what stands before a value: so many at least, and further back to where a word begins.
const BEFORE: usize = 128;
const MOST_BEFORE: usize = 1024;
/// The last line of a private key is not longer.
const KEY_LINE: usize = 160;

/// The state of one text.
#[derive(Debug, Default)]
pub(super) struct Text {
    /// Decided bytes, then those that wait; as they read.
    window: String,
    /// Up to here they are decided.
    done: usize,
    /// Those that wait as they are written, and how many bytes of it each character has; empty if that is the same.
    written: Option<Written>,
    /// Bytes that came, in all.
    came: usize,
    leaving_out: Option<LeavingOut>,
}

#[derive(Debug, Default)]
struct Written {
    text: String,
    widths: VecDeque<(u8, u8)>,
}

/// What goes on of a find that has its mark already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeavingOut {
    /// Up to the last line of a private key.
    Key,
    /// A value that is too long to wait for its end.
    Value,
}

impl Text {
    /// A text that is written otherwise than it reads: see [`push_written`](Self::push_written).
    pub(super) fn escaped() -> Self {
        Self { written: Some(Written::default()), ..Self::default() }
    }

    /// Takes the next piece, and gives out what is decided by now.
    pub(super) fn push(&mut self, rules: &Rules, own: Own<'_>, text: &str, out: &mut String, seen: &mut Seen) {
        let mut rest = text;
        while !rest.is_empty() && seen.stopped.is_none() {
            let room = STEP - self.came % STEP;
            let here = rest.ceil_char_boundary(room.min(rest.len()));
            let (piece, after) = rest.split_at_checked(here).unwrap_or((rest, ""));
            self.window.push_str(piece);
            // Counted in whole steps, however far over the last character reached.
            let overdue = piece.len() >= room;
            self.came += piece.len();
            self.settle(rules, own, (false, overdue), out, seen);
            if overdue {
                self.trim();
            }
            rest = after;
        }
    }

    /// As [`push`](Self::push), one character, which is written as that.
    pub(super) fn push_written(
        &mut self,
        rules: &Rules,
        own: Own<'_>,
        (c, as_written): (char, &str),
        out: &mut String,
        seen: &mut Seen,
    ) {
        let width = |len: usize| u8::try_from(len).unwrap_or(u8::MAX);
        if let Some(written) = &mut self.written {
            written.text.push_str(as_written);
            written.widths.push_back((width(c.len_utf8()), width(as_written.len())));
        }
        self.window.push(c);
        let overdue = self.came / STEP != (self.came + c.len_utf8()) / STEP;
        self.came += c.len_utf8();
        if overdue {
            self.settle(rules, own, (false, true), out, seen);
            self.trim();
        }
    }

    /// Gives out what is decided by now, after [`push_written`](Self::push_written).
    pub(super) fn look(&mut self, rules: &Rules, own: Own<'_>, out: &mut String, seen: &mut Seen) {
        if self.done < self.window.len() && seen.stopped.is_none() {
            self.settle(rules, own, (false, false), out, seen);
        }
    }

    /// The text has ended: gives out what waits. What comes next is another text, but stands behind this one.
    pub(super) fn finish(&mut self, rules: &Rules, own: Own<'_>, out: &mut String, seen: &mut Seen) {
        if seen.stopped.is_none() {
            self.settle(rules, own, (true, false), out, seen);
        }
        if self.leaving_out.take().is_some() {
            // The key that has no end is not to be found once more, in front of what comes.
            self.window.clear();
            self.done = 0;
        }
    }

    /// What stands before the next piece, and was looked at elsewhere.
    pub(super) fn stands_behind(&mut self, text: &str) {
        self.window.push_str(text);
        self.done = self.window.len();
        self.trim();
    }

    /// Drops what waits. False: it cannot be told where what is left out ends.
    pub(super) fn forget_held(&mut self) -> bool {
        self.window.truncate(self.done);
        if let Some(written) = &mut self.written {
            *written = Written::default();
        }
        self.leaving_out.is_none()
    }

    /// Gives out what is decided: all of it if the text has ended; if it is `overdue`, all but so much as may wait.
    fn settle(
        &mut self,
        rules: &Rules,
        own: Own<'_>,
        (ended, overdue): (bool, bool),
        out: &mut String,
        seen: &mut Seen,
    ) {
        while self.leave_out(ended) {
            let looked = rules.look(&self.window);
            let len = self.window.len();
            let open = if ended { len } else { looked.open.max(self.done) };
            let late = overdue && len - open > MOST;
            let open = if late { self.window.floor_char_boundary(len - MOST).max(open) } else { open };
            let own = match self.window.contains('[') {
                true => placeholders(own.vault, own.form, &self.window),
                false => Vec::new(),
            };
            for hit in looked.hits {
                if hit.end <= self.done {
                    continue;
                }
                // What is certain, and not over: it gets its mark, and the rest of it is left out as it comes.
                let goes_on = hit.start <= open && (hit.is_key || (late && hit.end > open));
                if !goes_on && (hit.start >= open || hit.end > open) {
                    break;
                }
                self.replace(&hit, &own, out, seen);
                if seen.stopped.is_some() {
                    return;
                }
                if goes_on {
                    self.leaving_out = Some(if hit.is_key { LeavingOut::Key } else { LeavingOut::Value });
                    break;
                }
            }
            if self.leaving_out.is_none() {
                self.give(open, out);
                return;
            }
        }
    }

    /// A mark instead of a hit, around what of it is the request's own.
    fn replace(&mut self, hit: &Hit, own: &[Range<usize>], out: &mut String, seen: &mut Seen) {
        self.give(hit.start.max(self.done), out);
        let mut is_marked = false;
        while self.done < hit.end {
            if let Some(own) = own.iter().find(|own| own.contains(&self.done)) {
                self.give(own.end, out);
                is_marked = false;
                continue;
            }
            if hit.action == Action::Stop {
                seen.stopped = Some(hit.kind.clone());
                return;
            }
            if hit.is_key {
                seen.masked(&hit.kind);
                mark(&hit.kind, out);
                // Where it ends is looked for anew: what stands against its last line is none of it.
                let from = hit.start.max(self.done);
                self.window.drain(..from);
                self.done -= from;
                return;
            }
            if !is_marked {
                seen.masked(&hit.kind);
                mark(&hit.kind, out);
                is_marked = true;
            }
            let next = own.iter().map(|own| own.start).find(|start| *start > self.done);
            self.drop_to(next.map_or(hit.end, |next| next.min(hit.end)));
        }
    }

    /// Leaves out what belongs to a find that has its mark. False: all that came does, so far.
    fn leave_out(&mut self, ended: bool) -> bool {
        let Some(what) = self.leaving_out else { return true };
        let waiting = self.window.get(self.done..).unwrap_or_default();
        match what {
            LeavingOut::Value => {
                let is_over = |c: char| plain(c).is_some_and(|c| !is_value(c));
                match waiting.find(is_over) {
                    Some(at) => {
                        self.drop_to(self.done + at);
                        self.leaving_out = None;
                        true
                    }
                    None => {
                        self.drop_to(self.window.len());
                        false
                    }
                }
            }
            LeavingOut::Key => {
                let from = self.window.floor_char_boundary(self.done.saturating_sub(KEY_LINE));
                let tail = self.window.get(from..).unwrap_or_default();
                // A fifth dash may follow the fourth.
                let end = detectors::private_key_end(tail)
                    .filter(|end| from + end >= self.done)
                    .filter(|end| ended || from + end < self.window.len() || tail.ends_with("-----"));
                match end {
                    Some(end) => {
                        self.drop_to(from + end);
                        self.window.drain(..self.done);
                        (self.done, self.leaving_out) = (0, None);
                        true
                    }
                    None => {
                        self.drop_to(self.window.len());
                        false
                    }
                }
            }
        }
    }

    /// Gives out what waits, up to a byte.
    fn give(&mut self, to: usize, out: &mut String) {
        match &mut self.written {
            None => out.push_str(self.window.get(self.done..to).unwrap_or_default()),
            Some(written) => out.push_str(&written.take(to.saturating_sub(self.done))),
        }
        self.done = self.done.max(to);
    }

    fn drop_to(&mut self, to: usize) {
        if let Some(written) = &mut self.written {
            let _dropped = written.take(to.saturating_sub(self.done));
        }
        self.done = self.done.max(to);
    }

    /// Forgets decided bytes that say nothing about what comes. They may yet say what else is found in what is left: it is called at
    /// places of the text, not where a piece happens to end.
    fn trim(&mut self) {
        let near = self.done.saturating_sub(BEFORE);
        if near <= BEFORE {
            return;
        }
        let far = self.done.saturating_sub(MOST_BEFORE);
        let word =
            self.window.as_bytes().get(far..near).and_then(|bytes| bytes.iter().rposition(u8::is_ascii_whitespace));
        let from = word.map_or(far, |space| far + space);
        let from = self.window.floor_char_boundary(from);
        self.window.drain(..from);
        self.done -= from;
        if word.is_none() && from > 0 {
            // What is left of a word must not look like the beginning of one.
            self.window.insert(0, '_');
            self.done += 1;
        }
    }
}

impl Written {
    /// So many bytes as it reads, as they are written.
    fn take(&mut self, mut read: usize) -> String {
        let mut len = 0;
        while read > 0 {
            let Some((reads, writes)) = self.widths.pop_front() else { break };
            read = read.saturating_sub(usize::from(reads));
            len += usize::from(writes);
        }
        let rest = self.text.split_off(len.min(self.text.len()));
        std::mem::replace(&mut self.text, rest)
    }
}

fn mark(kind: &str, out: &mut String) {
    out.push('[');
    out.push_str(&kind.to_ascii_uppercase());
    out.push(']');
}

/// What a long value may go on with.
fn is_value(c: char) -> bool {
    c.is_ascii_graphic() && !"\"'();[\\]`|".contains(c)
}
