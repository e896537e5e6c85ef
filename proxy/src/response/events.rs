//! The events of a stream, from wherever they come.

use std::sync::Arc;

use postern_wire::json::Value;

use crate::cache::flight::{Follower, Lost};
use crate::error::Error;
use crate::upstream::{AttemptError, EventStream};

/// Where the events of a stream come from.
pub(super) enum Events {
    Live(Box<EventStream>),
    Cached { events: Arc<[Arc<Value>]>, next: usize },
    Shared(Follower),
}

impl Events {
    /// Why somebody else's answer broke off, if that is known.
    pub(super) fn why(&self) -> Option<Error> {
        match self {
            Self::Shared(follower) => follower.why(),
            Self::Live(_) | Self::Cached { .. } => None,
        }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Value>, AttemptError> {
        match self {
            Self::Live(events) => events.next().await,
            Self::Cached { events, next } => {
                let event = events.get(*next).map(|event| Value::clone(event));
                *next += 1;
                Ok(event)
            }
            Self::Shared(follower) => match follower.next().await {
                Ok(event) => Ok(event.map(|event| Value::clone(&event))),
                Err(Lost) => Err(AttemptError::Died),
            },
        }
    }
}
