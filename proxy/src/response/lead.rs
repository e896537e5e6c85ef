//! A stream that others may follow. As long as somebody does, it goes on when its own client goes away, is too slow, or has had its
//! time: what followers get must not depend on whoever happened to ask first.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use postern_wire::sse;
use tokio::time::{sleep_until, timeout_at};

use super::Chain;
use super::events::Events;
use super::outlet::{FRAME, Outlet, Silence};
use crate::cache::flight::{Flight, MAX_BEHIND};
use crate::error::Error;

/// What the leader's own client has not taken, while followers go on.
#[derive(Default)]
struct Backlog {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Backlog {
    fn push(&mut self, mut bytes: Bytes) {
        self.bytes += bytes.len();
        while bytes.len() > FRAME {
            self.frames.push_back(bytes.split_to(FRAME));
        }
        self.frames.push_back(bytes);
    }

    /// Gives all of it out. False: the client has gone. What was given out is not given out again if this is dropped on the way.
    async fn flush(&mut self, outlet: Option<&Outlet>) -> bool {
        let Some(outlet) = outlet else { return false };
        while let Some(frame) = self.frames.front() {
            let bytes = frame.len();
            if !outlet.send(frame.clone()).await {
                return false;
            }
            self.frames.pop_front();
            self.bytes -= bytes;
        }
        true
    }
}

/// Gives out a stream, and feeds those who follow it.
pub(super) async fn lead(mut chain: Box<Chain>, mut events: Events, outlet: Outlet, flight: Arc<Flight>) {
    let session = chain.exchange.session().clone();
    let mut last_words = pin!(session.last_words());
    let (deadline, overdue, too_slow) = (chain.deadline, chain.overdue(), Error::StreamBroken);
    let mut due = pin!(sleep_until(deadline.into()));
    let mut silence = Silence::new(chain.gateway.config.timeouts.headers);
    let left = chain.left.clone();
    let mut outlet = Some(outlet);
    let mut backlog = Backlog::default();
    // Why its own client gets no more, where it is still there.
    let mut cut_off = None;
    loop {
        let got = {
            let mut next = pin!(chain.next(&mut events));
            loop {
                let (here, behind) = (outlet.is_some(), !backlog.frames.is_empty());
                // A client that does not read holds its own stream up, but nobody else's.
                let reads_on = !here || !behind || flight.is_followed();
                tokio::select! {
                    biased;
                    () = closed(outlet.as_ref()), if here => outlet = None,
                    () = &mut last_words, if here => {
                        outlet.take().into_iter().for_each(|outlet| outlet.last(sse::data(&Error::Drained.reply().body.to_json())));
                    }
                    () = &mut due, if here => {
                        outlet.take().into_iter().for_each(|outlet| match behind {
                            true => outlet.cut(),
                            false => outlet.last(sse::data(&overdue.reply().body.to_json())),
                        });
                        cut_off = Some(&overdue);
                    }
                    // Dropping the chain drops the upstream's connection, and closes the books.
                    () = flight.nobody_left(), if !here => break None,
                    sent = backlog.flush(outlet.as_ref()), if here && behind => if !sent { outlet = None },
                    () = flight.joined(), if !reads_on => {}
                    got = filled(&mut silence, next.as_mut(), outlet.as_ref()), if reads_on => break Some(got),
                }
                left.store(outlet.is_none(), Ordering::Relaxed);
            }
        };
        let Some((bytes, goes_on)) = got else { break };
        if outlet.is_some() {
            backlog.push(bytes);
        }
        if !goes_on {
            break;
        }
        if backlog.bytes > MAX_BEHIND && flight.is_followed() {
            outlet.take().into_iter().for_each(Outlet::cut);
            cut_off = Some(&too_slow);
        }
        if outlet.is_none() {
            backlog = Backlog::default();
            left.store(true, Ordering::Relaxed);
            // Nobody can follow any more.
            if chain.keep.is_none() {
                break;
            }
        }
    }
    if let Some(why) = cut_off {
        chain.note_restored();
        chain.exchange.broken(why);
    }
    let Some(outlet) = outlet else { return };
    let giving = async {
        tokio::select! {
            biased;
            () = outlet.closed() => {}
            () = &mut last_words => {}
            _ = backlog.flush(Some(&outlet)) => {}
        }
    };
    if timeout_at(deadline.into(), giving).await.is_err() {
        outlet.cut();
    } else if !backlog.frames.is_empty() {
        outlet.last(sse::data(&Error::Drained.reply().body.to_json()));
    }
}

async fn closed(outlet: Option<&Outlet>) {
    match outlet {
        Some(outlet) => outlet.closed().await,
        None => std::future::pending().await,
    }
}

async fn filled<T>(silence: &mut Silence, next: Pin<&mut impl Future<Output = T>>, outlet: Option<&Outlet>) -> T {
    match outlet {
        Some(outlet) => silence.filled(next, outlet).await,
        None => next.await,
    }
}
