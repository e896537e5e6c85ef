//! A request on its way to an answer, as its connection sees it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use http::Response;
use tokio::runtime::Handle;

use crate::cache::flight::Flight;
use crate::error::Error;
use crate::response::{Body, Head};
use crate::workers;

/// What is known of an answer before it has begun.
#[derive(Default)]
pub(super) struct Known {
    /// For headers that cannot wait; of streams only.
    pub(super) head: OnceLock<Head>,
    /// It holds so much that other requests need their thread while it is worked on.
    pub(super) is_long: AtomicBool,
    /// What others follow.
    pub(super) flight: OnceLock<Arc<Flight>>,
}

/// The answer, or why there is none; and the label, as far as it is known.
pub(super) type Responded = (Result<Response<Body>, Error>, String);

/// A request that is being answered. If it is given up, it goes on by itself for as long as others follow it.
pub(super) struct Answering {
    pub(super) responding: Option<Pin<Box<dyn Future<Output = Responded> + Send>>>,
    pub(super) known: Arc<Known>,
}

impl Future for Answering {
    type Output = Responded;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Responded> {
        let is_long = self.known.is_long.load(Ordering::Relaxed);
        let mut poll = || {
            let Some(responding) = &mut self.responding else { return Poll::Pending };
            let responded = responding.as_mut().poll(context);
            if responded.is_ready() {
                self.responding = None;
            }
            responded
        };
        if is_long { workers::beside(poll) } else { poll() }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let (Some(responding), Some(flight)) = (self.responding.take(), self.known.flight.get().cloned()) else {
            return;
        };
        // Who joins from here on finds that there is no leader, and asks for itself.
        if let (true, Ok(runtime)) = (flight.is_followed(), Handle::try_current()) {
            runtime.spawn(async move {
                tokio::select! {
                    biased;
                    () = flight.nobody_left() => {}
                    // Its body has no reader, and goes on for the others as well.
                    _responded = responding => {}
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_long_holds_up_nobody_on_its_worker() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let label = workers::on_the_last(async move {
            let known = Arc::new(Known::default());
            known.is_long.store(true, Ordering::Relaxed);
            let other = tokio::spawn(async move { sender.send("told") });
            // It keeps its thread until somebody on the same worker has had a turn.
            let responding = async move {
                let heard = receiver.recv_timeout(Duration::from_secs(10)).unwrap_or("nobody else had a turn");
                (Err(Error::Busy), heard.to_owned())
            };
            let (_, label) = Answering { responding: Some(Box::pin(responding)), known }.await;
            let _sent = other.await;
            label
        });
        assert_eq!(label, "told");
    }
}
