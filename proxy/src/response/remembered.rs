//! An answer has the label of its request, wherever it is sent again: it is remembered before anybody has it (see [`crate::classify`]).

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use postern_wire::json::Value;

use super::Chain;
use crate::classify::Remembering;
use crate::gateway::Gateway;

/// Reads what an event, or a whole answer, shows: every string of its choices, whatever it is called. Pieces that stand in the same place one after the other, in
/// a list or in the events of a stream, are one text.
pub(super) fn read(gateway: &Gateway, remembering: &mut Option<Remembering>, answer: &Value) {
    let Some(remembering) = remembering else { return };
    let choices = answer.get("choices").and_then(Value::as_array).into_iter().flatten();
    for (position, choice) in choices.enumerate() {
        let number = choice.get("index").and_then(Value::as_u64).unwrap_or(position as u64);
        let mut place = DefaultHasher::new();
        number.hash(&mut place);
        each(choice, &place, &mut |place, text| gateway.classifier.read(remembering, place, text));
    }
}

/// Trees were parsed with a bound on their depth.
fn each(value: &Value, place: &DefaultHasher, read: &mut impl FnMut(u64, &str)) {
    match value {
        Value::String(text) => read(place.finish(), text),
        Value::Array(items) => items.iter().for_each(|item| each(item, place, read)),
        Value::Object(members) => {
            let mut place = place.clone();
            // Which call of a tool, say.
            members.get("index").and_then(Value::as_u64).hash(&mut place);
            for (key, value) in members {
                let mut place = place.clone();
                key.hash(&mut place);
                each(value, &place, read);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl Chain {
    /// Remembers what was read since.
    pub(super) async fn remember(&mut self) {
        if let Some(remembering) = &mut self.remembering {
            self.gateway.classifier.keep_read(remembering).await;
        }
    }
}
