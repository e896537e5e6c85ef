//! One choice of an answer: its text, and the functions that it calls.

use serde_json::{Value, json};

use crate::logprobs::{ScoredToken, TokenScore};
use crate::tools::{CallReader, Said};

/// What a choice has said so far.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// `None` if nothing can be called: then all is text.
    reader: Option<CallReader>,
    text: String,
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Call {
    name: String,
    arguments: String,
}

impl Choice {
    pub(super) fn new(calls: bool) -> Self {
        Self { reader: calls.then(CallReader::default), ..Self::default() }
    }

    /// Takes text that is told when the choice is whole.
    pub(super) fn push(&mut self, text: &str) {
        match &mut self.reader {
            None => self.text.push_str(text),
            Some(reader) => {
                let said = reader.push(text);
                self.keep(said);
            }
        }
    }

    /// No more text follows.
    pub(super) fn finish(&mut self) {
        let said = self.reader.as_mut().map_or_else(Vec::new, CallReader::finish);
        self.keep(said);
    }

    /// The deltas that tell a text. Nothing is kept of it.
    pub(super) fn deltas(&mut self, text: &str) -> Vec<Value> {
        match &mut self.reader {
            None if text.is_empty() => Vec::new(),
            None => vec![json!({"content": text})],
            Some(reader) => reader.push(text).into_iter().map(delta).collect(),
        }
    }

    /// The deltas that tell what was held back.
    pub(super) fn last_deltas(&mut self) -> Vec<Value> {
        self.reader.as_mut().map_or_else(Vec::new, CallReader::finish).into_iter().map(delta).collect()
    }

    pub(super) fn has_calls(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.calls() > 0)
    }

    pub(super) fn into_message(self) -> Value {
        if self.calls.is_empty() {
            return json!({"role": "assistant", "content": self.text, "refusal": null});
        }
        let content = (!self.text.is_empty()).then_some(self.text);
        let calls = self.calls.into_iter().map(|call| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call_id(), "type": "function", "function": function})
        });
        json!({"role": "assistant", "content": content, "refusal": null, "tool_calls": calls.collect::<Vec<_>>()})
    }

    fn keep(&mut self, said: Vec<Said>) {
        for said in said {
            match said {
                Said::Text(text) => self.text.push_str(&text),
                Said::Call { name, .. } => self.calls.push(Call { name, arguments: String::new() }),
                Said::Arguments { text, .. } => {
                    if let Some(call) = self.calls.last_mut() {
                        call.arguments.push_str(&text);
                    }
                }
            }
        }
    }
}

/// The first delta of a call has its id and name, the others only arguments: they belong together by the index.
fn delta(said: Said) -> Value {
    match said {
        Said::Text(text) => json!({"content": text}),
        Said::Call { index, name } => {
            let function = json!({"name": name, "arguments": ""});
            json!({"tool_calls": [{"index": index, "id": call_id(), "type": "function", "function": function}]})
        }
        Said::Arguments { index, text } => json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]}),
    }
}

fn call_id() -> String {
    format!("call_{}", uuid::Uuid::new_v4().simple())
}

/// `logprobs` of some tokens.
pub(super) fn scores_json(tokens: &[TokenScore]) -> Value {
    let told = |token: &ScoredToken| {
        // A part of a character has no text of its own; its bytes tell it.
        let text = String::from_utf8_lossy(&token.bytes);
        json!({"token": text, "logprob": token.logprob, "bytes": token.bytes})
    };
    let content = tokens.iter().map(|token| {
        let mut entry = told(&token.drawn);
        let top: Vec<Value> = token.top.iter().map(told).collect();
        super::put(&mut entry, "top_logprobs", Value::Array(top));
        entry
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}
