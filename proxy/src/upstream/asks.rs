//! Which kind of answer a request asks for, as far as reading it goes.

use postern_wire::call::{Call, Endpoint};
use postern_wire::vectors::Wanted;

/// A kind of answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// A chat completion.
    Chat {
        /// Event by event.
        stream: bool,
    },
    /// A legacy completion.
    Completion {
        /// Event by event.
        stream: bool,
    },
    /// Vectors of texts.
    Vectors(Wanted),
}

impl Asks {
    /// What `call` asks for.
    #[must_use]
    pub fn of(call: &Call) -> Self {
        match call {
            Call::Chat(chat) => Self::Chat { stream: chat.stream },
            Call::Completion(completion) => Self::Completion { stream: completion.stream },
            Call::Embeddings(embeddings) => Self::Vectors(embeddings.into()),
        }
    }

    /// Is it a stream?
    #[must_use]
    pub fn stream(self) -> bool {
        matches!(self, Self::Chat { stream: true } | Self::Completion { stream: true })
    }

    /// Who is asked for it.
    #[must_use]
    pub fn endpoint(self) -> Endpoint {
        match self {
            Self::Chat { .. } => Endpoint::Chat,
            Self::Completion { .. } => Endpoint::Completions,
            Self::Vectors(_) => Endpoint::Embeddings,
        }
    }
}
