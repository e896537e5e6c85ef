//! Answers to questions that were asked in other words.
//!
//! Two requests may share an answer so only if everything in them is equal but the text of the last message, which a user wrote: tenant,
//! label, target, model, parameters, tools, the conversation before, what policies add. The texts must have the same
//! [reading](guard::reading), which keeps apart what vectors do not, and vectors that are near. The answer itself lies in the cache under the
//! key of the request that it was given to; here is only where to look.
//!
//! A vector is made by a process of its own ([`encoder`]). While that is away or slow, nothing is compared, and a target is asked.

mod encoder;
pub mod guard;
mod index;
mod vector;

use std::sync::Arc;
use std::time::Duration;

use postern_wire::call::Call;
use postern_wire::json::{Map, Value};

use super::key::key_of_body;
use super::{CacheKey, Entry, MemoryCache};
use crate::classify::label::{Label, Labels};
use crate::config::{self, Config};
use crate::decide::PlannedRequest;
use crate::keys::Keys;
use crate::telemetry::metrics::Metrics;
pub use encoder::Encoder;
use index::Index;
use vector::Vector;

/// The highest label of which vectors are kept, if there is one of that name; else it is the lowest of all.
const HIGHEST_LABEL: &str = "internal";
/// Who wants more chance than this wants another answer each time.
const MAX_TEMPERATURE: f64 = 1.0;
/// However long answers live.
const MAX_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What is known of questions, in this process's memory only.
#[derive(Debug)]
pub struct Semantic {
    encoder: Arc<Encoder>,
    index: Index,
    threshold: f32,
    highest: Label,
    ttl: Duration,
}

/// The question of one request.
#[derive(Debug)]
pub struct Question {
    semantic: Arc<Semantic>,
    /// Of all questions that differ in their words only, and have the same reading.
    group: CacheKey,
    /// Of the request, with its own words.
    exact: CacheKey,
    /// As the cache would keep it: with placeholders.
    text: String,
}

/// What became of a question.
#[derive(Debug)]
pub enum Sought {
    /// It was answered, in other words.
    Answered(Entry),
    /// It was not. With what is to be kept of it, if there is a vector.
    New(Option<Asked>),
}

/// A question that is being answered.
#[derive(Debug)]
pub struct Asked {
    semantic: Arc<Semantic>,
    group: CacheKey,
    vector: Vector,
}

impl Semantic {
    /// Forgets all questions.
    pub fn clear(&self) {
        self.index.clear();
    }

    /// Knows nothing yet.
    #[must_use]
    pub fn new(config: &Config, semantic: &config::Semantic) -> Self {
        let ttl = config.cache.as_ref().map_or(Duration::ZERO, |cache| cache.ttl).min(MAX_LIFE);
        Self {
            encoder: Encoder::new(config::Engine::own_name(&semantic.model), semantic.wait),
            index: Index::new(semantic.memory, ttl),
            threshold: semantic.threshold,
            highest: highest(&config.labels),
            ttl,
        }
    }

    /// What makes the vectors.
    #[must_use]
    pub fn encoder(&self) -> &Arc<Encoder> {
        &self.encoder
    }

    /// The question of a request that has the key `exact` in the cache. `None`: it is answered by its own words only.
    #[must_use]
    pub fn question(
        self: &Arc<Self>,
        keys: &Keys,
        labels: &Labels,
        request: &PlannedRequest,
        parts: &[String],
        exact: CacheKey,
    ) -> Option<Question> {
        let classified = request.masked().classified();
        let call = &classified.request().call;
        let is_chance =
            call.choices() != 1 || call.temperature().is_some_and(|temperature| temperature > MAX_TEMPERATURE);
        if !matches!(call, Call::Chat(_)) || classified.label() > self.highest || is_chance {
            return None;
        }
        let mut body = request.masked().canonical_body();
        let text = take_last_text(&mut body)?;
        let vault = request.masked().vault();
        let reading = guard::reading(&text, |placeholder| vault.is_in_cache(placeholder))?;
        let rest = key_of_body(keys, labels, request, (body, "cache:semantic"), parts);
        let group = keys.hash("cache:reading", &[&rest, reading.as_bytes()]);
        Some(Question { semantic: self.clone(), group, exact, text })
    }
}

impl Question {
    /// Looks for an answer to the same in other words.
    pub async fn seek(self, cache: &MemoryCache, metrics: &Metrics) -> Sought {
        let Self { semantic, group, exact, text } = self;
        // Who asked with these words before has been compared.
        if let Some(entry) = semantic.index.found_before(&exact).and_then(|key| cache.get(&key)) {
            return Sought::Answered(entry);
        }
        let Some(vector) = semantic.encoder.vector(&guard::without_suffixes(&text)).await else {
            metrics.vector_missed();
            return Sought::New(None);
        };
        match semantic.index.nearest(&group, &vector, semantic.threshold, |key| Some((*key, cache.get(key)?))) {
            Some((key, entry)) => {
                semantic.index.note_found(exact, key);
                Sought::Answered(entry)
            }
            None => Sought::New(Some(Asked { semantic, group, vector })),
        }
    }
}

impl Asked {
    /// Its answer is in the cache, under `key`, for `ttl` if that is shorter than the configured life.
    pub fn keep(self, key: CacheKey, ttl: Option<Duration>) {
        let ttl = ttl.unwrap_or(self.semantic.ttl).min(self.semantic.ttl);
        self.semantic.index.keep(self.group, key, self.vector, ttl);
    }
}

fn highest(labels: &Labels) -> Label {
    labels.by_name(HIGHEST_LABEL).unwrap_or_else(|| labels.lowest())
}

/// The text of the last message, if a user wrote it and it is nothing but text; it is empty in `body` afterwards.
fn take_last_text(body: &mut Map) -> Option<String> {
    let last = body.get_mut("messages")?.as_array_mut()?.last_mut()?.as_object_mut()?;
    if last.get("role").and_then(Value::as_str) != Some("user") {
        return None;
    }
    let text = match last.get_mut("content")? {
        Value::String(text) => text,
        Value::Array(parts) => {
            let [Value::Object(part)] = parts.as_mut_slice() else { return None };
            if part.get("type").and_then(Value::as_str) != Some("text") {
                return None;
            }
            match part.get_mut("text")? {
                Value::String(text) => text,
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(std::mem::take(text))
}

#[cfg(test)]
mod measured;

#[cfg(test)]
mod tests {
    use postern_wire::json::json;

    use super::*;

    fn taken(last: Value) -> Option<String> {
        let body = json!({"model": "m", "messages": [{"role": "system", "content": "s"}, last]});
        let Value::Object(mut body) = body else { return None };
        take_last_text(&mut body)
    }

    #[test]
    fn only_a_user_s_text_alone_is_a_question() {
        let text = |text: &str| json!({"type": "text", "text": text});
        for content in [json!("q"), json!([text("q")])] {
            assert_eq!(taken(json!({"role": "user", "content": content})).as_deref(), Some("q"));
            assert_eq!(taken(json!({"role": "assistant", "content": content})), None);
        }
        let image = json!({"type": "image_url", "image_url": {"url": "u"}});
        for content in
            [json!(null), json!([]), json!([text("a"), text("b")]), json!([image]), json!([{"type": "text"}])]
        {
            assert_eq!(taken(json!({"role": "user", "content": content})), None);
        }
    }

    #[test]
    fn the_rest_of_the_body_stays_what_it_is() {
        let mut body = Map::new();
        body.insert("messages", json!([{"role": "user", "name": "n", "content": "q"}]));
        body.insert("seed", json!(1));
        take_last_text(&mut body).unwrap();
        assert_eq!(Value::Object(body), json!({"messages": [{"role": "user", "name": "n", "content": ""}], "seed": 1}));
    }

    #[test]
    fn nothing_above_internal_takes_part_and_where_there_is_no_such_label_only_the_lowest() {
        let labels = |names: &[&str]| Labels::new(names.iter().map(ToString::to_string).collect()).unwrap();
        let (usual, own) = (labels(&["public", "internal", "confidential"]), labels(&["open", "closed"]));
        assert_eq!((usual.name(highest(&usual)), own.name(highest(&own))), ("internal", "open"));
    }
}
