//! Those who wait for one target. Identities take turns, so that one that sends many requests waits for itself; within an identity
//! whoever came first goes first. Bounded: when it is full, the last of whoever has most gives way to one who has less.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Debug)]
pub(super) struct Line {
    queues: Mutex<Queues>,
    /// As many as wait; looked at without the lock.
    length: AtomicUsize,
    most: usize,
}

/// Of each identity those who wait, in the order of their turns.
type Queues = VecDeque<(u64, VecDeque<Arc<Ticket>>)>;

#[derive(Debug, Default)]
struct Ticket {
    called: Notify,
    gave_way: AtomicBool,
}

/// A place in the line, until it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    line: &'a Line,
    who: u64,
    ticket: Arc<Ticket>,
}

impl Line {
    pub(super) fn new(most: usize) -> Self {
        Self { queues: Mutex::default(), length: AtomicUsize::new(0), most }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length.load(Ordering::Relaxed) == 0
    }

    /// `None`: it is full, and nobody has so many places that one of them should give way.
    pub(super) fn enter(&self, who: u64) -> Option<Place<'_>> {
        let ticket = Arc::new(Ticket::default());
        let mut queues = self.queues();
        let length = queues.iter().map(|(_, waiting)| waiting.len()).sum::<usize>();
        let own = queues.iter().position(|(other, _)| *other == who);
        if length >= self.most {
            let mine = own.and_then(|at| queues.get(at)).map_or(0, |(_, waiting)| waiting.len());
            let (_, most) = queues.iter_mut().max_by_key(|(_, waiting)| waiting.len())?;
            let last = if most.len() > mine + 1 { most.pop_back()? } else { return None };
            last.gave_way.store(true, Ordering::Relaxed);
            last.called.notify_one();
        }
        match own.and_then(|at| queues.get_mut(at)) {
            Some((_, waiting)) => waiting.push_back(ticket.clone()),
            None => queues.push_back((who, [ticket.clone()].into())),
        }
        self.counted(&queues);
        Some(Place { line: self, who, ticket })
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted(&self, queues: &Queues) {
        self.length.store(queues.iter().map(|(_, waiting)| waiting.len()).sum(), Ordering::Relaxed);
    }
}

fn first(queues: &Queues) -> Option<&Arc<Ticket>> {
    queues.front().and_then(|(_, waiting)| waiting.front())
}

impl Place<'_> {
    /// Waits until it is the first in line; false if it had to give way.
    pub(super) async fn first(&self) -> bool {
        loop {
            if self.ticket.gave_way.load(Ordering::Relaxed) {
                return false;
            }
            if first(&self.line.queues()).is_some_and(|first| Arc::ptr_eq(first, &self.ticket)) {
                return true;
            }
            // Called before it waits, it does not wait.
            self.ticket.called.notified().await;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queues = self.line.queues();
        let was_first = first(&queues).is_some_and(|first| Arc::ptr_eq(first, &self.ticket));
        if let Some((_, waiting)) = queues.iter_mut().find(|(who, _)| *who == self.who) {
            waiting.retain(|ticket| !Arc::ptr_eq(ticket, &self.ticket));
        }
        if was_first {
            queues.rotate_left(1);
        }
        queues.retain(|(_, waiting)| !waiting.is_empty());
        if let Some(first) = first(&queues) {
            first.called.notify_one();
        }
        self.line.counted(&queues);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn is_first(place: &Place<'_>) -> bool {
        place.first().now_or_never() == Some(true)
    }

    #[test]
    fn identities_take_turns() {
        let line = Line::new(10);
        let mut places: Vec<_> = [1, 1, 1, 2, 2, 3].into_iter().map(|who| line.enter(who).unwrap()).collect();
        let mut order = Vec::new();
        while !places.is_empty() {
            let at = places.iter().position(is_first).unwrap();
            order.push(places.remove(at).who);
        }
        assert_eq!((order, line.is_empty()), (vec![1, 2, 3, 1, 2, 1], true));
    }

    #[test]
    fn the_last_of_whoever_has_most_gives_way() {
        let line = Line::new(3);
        let greedy: Vec<_> = (0..3).map(|_| line.enter(1).unwrap()).collect();
        assert!(line.enter(1).is_none());
        let other = line.enter(2).unwrap();
        assert_eq!(greedy[2].first().now_or_never(), Some(false));
        assert!(line.enter(2).is_none(), "two of one, one of the other");
        assert!(line.enter(3).is_some());
        assert!(is_first(&greedy[0]) && !is_first(&other));
    }

    #[tokio::test]
    async fn who_leaves_calls_the_next() {
        let line = Line::new(3);
        let (one, two) = (line.enter(1).unwrap(), line.enter(2).unwrap());
        let leaving = async {
            tokio::task::yield_now().await;
            drop(one);
        };
        assert!(futures_util::future::join(two.first(), leaving).await.0);
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_somebody_is_always_first(steps in prop::collection::vec((0u64..4, 0usize..8), 1..100)) {
            let line = Line::new(5);
            let mut places: Vec<Place<'_>> = Vec::new();
            for (who, leaves) in steps {
                places.extend(line.enter(who));
                places.retain(|place| !place.ticket.gave_way.load(Ordering::Relaxed));
                if leaves < places.len() {
                    places.remove(leaves);
                }
                prop_assert!(places.len() <= 5 && line.length.load(Ordering::Relaxed) == places.len());
                prop_assert_eq!(places.iter().filter(|place| is_first(place)).count(), usize::from(!places.is_empty()));
            }
        }
    }
}
