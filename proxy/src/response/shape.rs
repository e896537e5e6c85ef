//! The last step of an answer: the shape of the endpoint that was asked, and the name of the model that the client knows.

use bytes::Bytes;
use postern_wire::call::Call;
use postern_wire::completion::{self, Part};
use postern_wire::json::Value;
use postern_wire::vectors::Wanted;
use postern_wire::{json, sse, vectors};

use super::event::rename_model;

/// One event of a stream.
pub(super) fn chunk(call: &Call, mut event: Value) -> Bytes {
    rename_model(&mut event, call.model());
    if matches!(call, Call::Completion(_)) {
        completion::from_chat(&mut event, Part::Delta);
    }
    sse::data(&event)
}

/// A whole answer.
pub(super) fn whole(call: &Call, mut answer: Value) -> Bytes {
    if let Call::Embeddings(asked) = call {
        // Millions of numbers take a while: other requests need their thread meanwhile.
        let write = || vectors::write(&answer, &asked.model, asked.base64).into();
        return if Wanted::from(asked).is_large() { tokio::task::block_in_place(write) } else { write() };
    }
    rename_model(&mut answer, call.model());
    if matches!(call, Call::Completion(_)) {
        completion::from_chat(&mut answer, Part::Message);
    }
    Bytes::from(json::written(&answer))
}
