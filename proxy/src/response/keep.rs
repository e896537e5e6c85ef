//! What of an answer others may have: the cache, and those who follow it while it comes. The cache keeps complete answers, of the shape
//! that was asked for, in which every placeholder is ours.
//!
//! An answer that is not kept costs one more request; one that should not have been is wrong for everybody who gets it.

use std::sync::Arc;

use postern_wire::json::Value;

use super::Fill;
use super::event::{bracketed, size};
use crate::audit::Outcome;
use crate::cache::flight::{Flight, Leading};
use crate::cache::{Entry, MAX_ENTRY};
use crate::error::Error;
use crate::redact::restore::Restorer;
use crate::redact::vault::{Suffix, Vault};
use crate::upstream::openai;

/// Ends of a choice after which nothing is missing. What a filter cut off is not among them.
const COMPLETE: [&str; 4] = ["stop", "length", "tool_calls", "function_call"];

/// An answer on its way to others.
#[derive(Debug)]
pub(super) struct Kept {
    /// `None`: the cache does not keep it.
    fill: Option<Fill>,
    /// `None`: nobody follows it.
    leading: Option<Leading>,
    events: Vec<Arc<Value>>,
    bytes: usize,
    /// Of each choice: has it ended?
    ended: Vec<bool>,
}

/// Who may have a piece of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// Who asked for it, only.
    Nobody,
    /// Who asks for the same now.
    Followers,
    /// Who asks for the same later, as well.
    Cache,
}

impl Kept {
    /// `None` if nobody else gets it.
    pub(super) fn new(fill: Option<Fill>, leading: Option<Leading>, choices: u64) -> Option<Self> {
        let choices = usize::try_from(choices).unwrap_or(usize::MAX);
        let anybody = fill.is_some() || leading.is_some();
        anybody.then(|| Self { fill, leading, events: Vec::new(), bytes: 0, ended: vec![false; choices] })
    }

    /// What others follow.
    pub(super) fn flight(&self) -> Option<Arc<Flight>> {
        self.leading.as_ref().map(|leading| leading.flight().clone())
    }

    /// Adds one event of a stream whose texts are in the cache's form. One that is not fit for others ends it all.
    pub(super) fn chunk(kept: &mut Option<Self>, event: Option<Value>) {
        let (Some(all), Some(mut event)) = (kept.as_mut(), event) else { return };
        let fit = all.chunk_fits(&mut event);
        Self::add(kept, event, fit);
    }

    /// Adds a whole answer whose texts are in the cache's form.
    pub(super) fn whole(kept: &mut Option<Self>, vault: &Vault, answer: Option<Value>) {
        let (Some(all), Some(mut answer)) = (kept.as_mut(), answer) else { return };
        let fit = all.whole_fits(vault, &mut answer);
        Self::add(kept, answer, fit);
    }

    /// There is something in it that is not of this request: nobody else gets any more of it.
    pub(super) fn unfit(kept: &mut Option<Self>) {
        if let Some(leading) = kept.take().and_then(|all| all.leading) {
            leading.unfit();
        }
    }

    /// It ends here for everybody.
    pub(super) fn failed(kept: &mut Option<Self>, error: &Error) {
        if let Some(leading) = kept.take().and_then(|all| all.leading) {
            leading.failed(error);
        }
    }

    /// Puts it into the cache, if it is complete; then those who followed have all of it.
    pub(super) fn finish(self, outcome: &Outcome) {
        if let Some(fill) = self.fill.filter(|_| !self.events.is_empty() && self.ended.iter().all(|ended| *ended)) {
            let entry = Entry {
                target: outcome.target.as_deref().unwrap_or_default().into(),
                events: self.events.into(),
                bytes: self.bytes,
                tokens: (outcome.prompt_tokens, outcome.completion_tokens),
            };
            let key = fill.slot.key;
            fill.cache.put(fill.slot, entry, fill.ttl);
            if let Some(asked) = fill.asked {
                asked.keep(key, fill.ttl);
            }
        }
        if let Some(leading) = self.leading {
            leading.complete();
        }
    }

    fn add(kept: &mut Option<Self>, event: Value, fit: Fit) {
        let Some(all) = kept else { return };
        if fit == Fit::Nobody {
            return Self::unfit(kept);
        }
        let bytes = size(&event);
        let event = Arc::new(event);
        if let Some(leading) = &all.leading {
            leading.publish(&event, bytes);
        }
        all.bytes += bytes;
        if fit < Fit::Cache || all.bytes > MAX_ENTRY {
            all.fill = None;
            all.events = Vec::new();
        }
        match (&all.fill, &all.leading) {
            (Some(_), _) => all.events.push(event),
            (None, Some(_)) => {}
            (None, None) => *kept = None,
        }
    }

    fn chunk_fits(&mut self, event: &mut Value) -> Fit {
        // What is not read as one text comes in pieces as well, and none of it is held back until a placeholder is whole: the
        // beginning of one is enough.
        let mut may_hold_placeholder = false;
        bracketed(event, "delta", &mut |_, _| may_hold_placeholder = true);
        if may_hold_placeholder || has(event, "error") {
            return Fit::Nobody;
        }
        let choices = event.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        self.choices_fit(choices, false)
    }

    fn whole_fits(&mut self, vault: &Vault, answer: &mut Value) -> Fit {
        let mut foreign = false;
        bracketed(answer, "message", &mut |text, is_key| {
            let mut restorer = Restorer::without_values(Suffix::Wire);
            let canonical = restorer.whole(vault, text).cacheable;
            // A key stays what it is, so it must not hold a placeholder of ours either.
            foreign |= restorer.saw_foreign() || (is_key && canonical != *text);
            *text = canonical;
        });
        let choices = answer.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if foreign || has(answer, "error") || choices.len() != self.ended.len() {
            return Fit::Nobody;
        }
        self.choices_fit(choices, true)
    }

    fn choices_fit(&mut self, choices: &[Value], whole: bool) -> Fit {
        let each = choices.iter().enumerate().map(|(position, choice)| self.choice_fits(position, choice, whole));
        each.min().unwrap_or(Fit::Cache)
    }

    /// Notes the end of a choice. A whole one has nothing else.
    fn choice_fits(&mut self, position: usize, choice: &Value, whole: bool) -> Fit {
        let index = openai::choice_index(position, choice, self.ended.len() as u64);
        let Some(ended) = index.and_then(|index| self.ended.get_mut(usize::try_from(index).ok()?)) else {
            return Fit::Nobody;
        };
        // Nothing comes after the end of a choice, and no choice comes twice. Log probabilities repeat the text in pieces that
        // cannot be mapped onto other values.
        if *ended || has(choice, "error") || has(choice, "logprobs") {
            return Fit::Nobody;
        }
        match choice.get("finish_reason") {
            None | Some(Value::Null) if whole => Fit::Followers,
            None | Some(Value::Null) => Fit::Cache,
            Some(reason) => {
                *ended = true;
                let is_complete = reason.as_str().is_some_and(|reason| COMPLETE.contains(&reason));
                if is_complete { Fit::Cache } else { Fit::Followers }
            }
        }
    }
}

fn has(value: &Value, field: &str) -> bool {
    value.get(field).is_some_and(|member| !member.is_null())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postern_wire::json::json;

    use super::*;
    use crate::cache::{MemoryCache, Slot, Tiers};
    use crate::classify::Conversation;
    use crate::config;
    use crate::keys::Keys;

    fn cache() -> Arc<Tiers> {
        let config = config::Cache { memory: 1 << 20, ttl: Duration::from_secs(60), redis: None, warm: None };
        Arc::new(Tiers { memory: MemoryCache::new(&config), redis: None })
    }

    fn vault() -> (Vault, String, String) {
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        vault.keep("email", "ann@example.org");
        let [wire, cached] =
            [Suffix::Wire, Suffix::Cache].map(|form| vault.placeholder("email", "ann@example.org", form));
        (vault, wire, cached)
    }

    /// What the cache has after an answer: `None` if it was not kept.
    fn kept(choices: u64, add: impl FnOnce(&mut Option<Kept>)) -> Option<Vec<Value>> {
        let cache = cache();
        let mut kept = Kept::new(
            Some(Fill { cache: cache.clone(), slot: Slot { key: [0; 32], owner: None }, ttl: None, asked: None }),
            None,
            choices,
        );
        add(&mut kept);
        kept?.finish(&Outcome::default());
        cache.memory.get(&[0; 32]).map(|entry| entry.events.iter().map(|event| Value::clone(event)).collect())
    }

    fn streamed(choices: u64, events: &[Value]) -> bool {
        let all = kept(choices, |kept| events.iter().for_each(|event| Kept::chunk(kept, Some(event.clone()))));
        all.is_some()
    }

    fn whole(choices: u64, answer: Value) -> Option<Value> {
        kept(choices, |kept| Kept::whole(kept, &vault().0, Some(answer))).map(|mut events| events.remove(0))
    }

    fn chunk(index: u64, delta: Value, finish: Value) -> Value {
        json!({"choices": [{"index": index, "delta": delta, "logprobs": null, "finish_reason": finish}]})
    }

    #[test]
    fn a_stream_is_kept_only_if_every_choice_came_to_its_end() {
        let text = |index| chunk(index, json!({"content": "Hi [EMAIL_"}), Value::Null);
        let end = |index, reason: &str| chunk(index, json!({}), json!(reason));
        assert!(streamed(1, &[text(0), end(0, "stop"), json!({"choices": [], "usage": {}})]));
        assert!(streamed(2, &[text(1), end(1, "length"), text(0), end(0, "stop")]));
        for events in [
            &[][..],
            &[text(0)],
            &[text(0), end(0, "content_filter")],
            &[text(0), end(0, "error")],
            &[end(0, "stop"), text(0)],
            &[text(0), json!({"choices": [], "error": {"message": "m"}}), end(0, "stop")],
            &[text(0), text(1), end(0, "stop")],
            &[chunk(0, json!({"tool_calls": [{"function": {"name": "[EMA"}}]}), Value::Null), end(0, "stop")],
            &[json!({"choices": [{"delta": {"content": "a"}, "logprobs": {"content": []}, "finish_reason": "stop"}]})],
        ] {
            assert!(!streamed(1, events), "{events:?}");
        }
        assert!(!streamed(2, &[text(0), end(0, "stop"), text(1)]));
    }

    #[test]
    fn a_whole_answer_is_kept_only_if_it_is_what_was_asked_for() {
        let choice =
            |index, reason: &str| json!({"index": index, "message": {"content": "Hi"}, "finish_reason": reason});
        let answer = |choices: &[Value]| json!({"id": "a", "choices": choices});
        assert!(whole(1, answer(&[choice(0, "stop")])).is_some());
        assert!(whole(2, answer(&[choice(1, "stop"), choice(0, "tool_calls")])).is_some());
        for choices in [
            &[][..],
            &[choice(0, "content_filter")],
            &[choice(1, "stop")],
            &[choice(0, "stop"), choice(1, "stop")],
            &[json!({"index": 0, "message": {"content": "Hi"}})],
            &[json!({"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop", "error": {"code": 502}})],
        ] {
            assert!(whole(1, answer(choices)).is_none(), "{choices:?}");
        }
        assert!(whole(2, answer(&[choice(0, "stop"), choice(0, "stop")])).is_none());
        assert!(whole(1, json!({"error": {"code": 502}, "choices": [choice(0, "stop")]})).is_none());
    }

    #[test]
    fn every_string_gets_the_form_of_the_cache_or_the_answer_is_not_kept() {
        let (vault, wire, cached) = vault();
        let answer = |arguments: String| {
            let call = json!({"id": "c", "function": {"name": "mail", "parsed_arguments": arguments}});
            let message = json!({"content": null, "tool_calls": [call]});
            json!({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
        };
        let keep = |answer| kept(1, |kept| Kept::whole(kept, &vault, Some(answer)));
        assert_eq!(
            keep(answer(format!("{{\"to\":[\"{wire}\"]}}"))).unwrap(),
            [answer(format!("{{\"to\":[\"{cached}\"]}}"))]
        );
        assert!(keep(answer("[EMAIL_1_aaaaaaaa]".to_owned())).is_none());
        let mut odd = answer("{}".to_owned());
        odd["choices"][0]["message"]["annotations"] = json!({wire: 1});
        assert!(keep(odd).is_none());
    }
}
