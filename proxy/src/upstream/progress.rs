//! How far a stream of events is: which choices have ended, and for how long nothing came that says anything.

use std::collections::BTreeMap;
use std::time::Duration;

use postern_wire::json::Value;

use super::AttemptError;
use super::openai::choice_index;

/// Events in a row that show nothing.
const MAX_EMPTY: u32 = 1024;

/// Of one stream.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Of each choice that began: has it ended?
    ended: BTreeMap<u64, bool>,
    /// Something was shown.
    begun: bool,
    empty: u32,
    silent: Duration,
}

impl Progress {
    /// Notes an event.
    ///
    /// # Errors
    /// There were too many that show nothing.
    pub(super) fn note(&mut self, event: &Value) -> Result<(), AttemptError> {
        let choices = event.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for (position, choice) in choices.iter().enumerate() {
            let Some(index) = choice_index(position, choice, u64::MAX) else { continue };
            *self.ended.entry(index).or_default() |= has_ended(choice);
        }
        let shows = shows_something(event);
        if shows || (choices.is_empty() && event.get("usage").is_some_and(Value::is_object)) {
            (self.begun, self.silent) = (true, Duration::ZERO);
        }
        self.empty = if shows { 0 } else { self.empty + 1 };
        if self.empty > MAX_EMPTY { Err(AttemptError::Malformed("empty events")) } else { Ok(()) }
    }

    /// May the stream end here? A choice that began and did not end was cut.
    pub(super) fn is_complete(&self) -> bool {
        !self.ended.is_empty() && self.ended.values().all(|ended| *ended)
    }

    /// For how long it may still be silent, of `idle` in all.
    pub(super) fn patience(&self, idle: Duration) -> Duration {
        idle.saturating_sub(self.silent)
    }

    /// Notes that bytes were awaited for so long. What counts is the time between two events that say something: comments do not break a
    /// silence. Before the first one there is a bound of its own, and some servers keep connections open with comments while a model thinks.
    pub(super) fn waited(&mut self, span: Duration) {
        if self.begun {
            self.silent += span;
        }
    }
}

/// Has an event anything for a client? A role alone is nothing yet.
#[must_use]
pub(crate) fn shows_something(event: &Value) -> bool {
    let choices = event.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    choices.iter().any(|choice| {
        let delta = choice.get("delta").and_then(Value::as_object);
        let says = delta.is_some_and(|delta| {
            delta.iter().any(|(key, value)| match value {
                Value::String(text) => key != "role" && !text.is_empty(),
                Value::Array(items) => !items.is_empty(),
                Value::Object(_) => true,
                _ => false,
            })
        });
        has_ended(choice) || says
    })
}

fn has_ended(choice: &Value) -> bool {
    choice.get("finish_reason").is_some_and(|reason| !reason.is_null())
}

#[cfg(test)]
mod tests {
    use postern_wire::json::json;

    use super::*;

    fn event(index: u64, delta: Value, finish: Value) -> Value {
        json!({"choices": [{"index": index, "delta": delta, "finish_reason": finish}]})
    }

    #[test]
    fn a_role_is_no_token() {
        assert!(!shows_something(&event(0, json!({"role": "assistant", "content": ""}), Value::Null)));
        assert!(!shows_something(&json!({"choices": []})));
        assert!(shows_something(&event(0, json!({"content": "Hi"}), Value::Null)));
        assert!(shows_something(&event(0, json!({"tool_calls": [{"index": 0}]}), Value::Null)));
        assert!(shows_something(&event(0, json!({}), json!("stop"))));
    }

    #[test]
    fn a_stream_is_complete_when_each_choice_that_began_has_ended() {
        let mut progress = Progress::default();
        assert!(!progress.is_complete(), "nothing is no answer");
        for (index, finish, complete) in
            [(0, json!(null), false), (0, json!("stop"), true), (1, json!(null), false), (1, json!("length"), true)]
        {
            progress.note(&event(index, json!({"content": "a"}), finish)).unwrap();
            assert_eq!(progress.is_complete(), complete, "{index}");
        }
        progress.note(&json!({"choices": [], "usage": {"prompt_tokens": 1}})).unwrap();
        assert!(progress.is_complete());
    }

    #[test]
    fn only_what_says_something_breaks_a_silence() {
        let (idle, second) = (Duration::from_secs(60), Duration::from_secs(1));
        let mut progress = Progress::default();
        let role = event(0, json!({"role": "assistant", "content": ""}), Value::Null);
        progress.note(&role).unwrap();
        progress.waited(second * 50);
        assert_eq!(progress.patience(idle), idle, "before the first token");
        progress.note(&event(0, json!({"content": "a"}), Value::Null)).unwrap();
        progress.waited(second * 50);
        for nothing in [&role, &json!({"choices": []})] {
            progress.note(nothing).unwrap();
            assert_eq!(progress.patience(idle), second * 10);
        }
        progress.waited(second * 50);
        assert_eq!(progress.patience(idle), Duration::ZERO);
        progress.note(&json!({"choices": [], "usage": {"prompt_tokens": 1}})).unwrap();
        assert_eq!(progress.patience(idle), idle);
    }

    #[test]
    fn events_that_show_nothing_are_bounded() {
        let mut progress = Progress::default();
        for _ in 0..2 {
            progress.note(&event(0, json!({"content": "a"}), Value::Null)).unwrap();
            (0..MAX_EMPTY).for_each(|_| progress.note(&json!({"choices": []})).unwrap());
        }
        assert_eq!(progress.note(&json!({"choices": []})), Err(AttemptError::Malformed("empty events")));
    }
}
