//! An answer has the label of its request, wherever it is sent again: it is remembered before anybody has it (see [`crate::classify`]).

use serde_json::Value;

use super::Chain;
use crate::answer::{each, each_whole};
use crate::classify::Remembering;
use crate::gateway::Gateway;

/// Reads what an event, or a whole answer, shows.
pub(super) fn read(gateway: &Gateway, remembering: &mut Option<Remembering>, answer: &mut Value) {
    let Some(remembering) = remembering else { return };
    let choices = answer.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten();
    for (position, choice) in choices.enumerate() {
        let number = choice.get("index").and_then(Value::as_u64).unwrap_or(position as u64);
        let each = if choice.get("delta").is_some() { each } else { each_whole };
        let part = if choice.get("delta").is_some() { "delta" } else { "message" };
        let Some(message) = choice.get_mut(part).and_then(Value::as_object_mut) else { continue };
        // What reads never finds fault; what is malformed was refused before.
        let _never = each(message, &mut |found| {
            gateway.classifier.read(remembering, (number, found.place), found.text);
            Ok(())
        });
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
