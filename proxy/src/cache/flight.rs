//! Identical requests that are under way at the same time: the first is answered by a target, the others follow its answer as it
//! comes.
//!
//! What is shared is what the cache would keep: events in the cache's form, each in memory once. Whoever follows maps them onto its own
//! vault, and has its own client, limits, deadline and record. The answer is published in order, each follower reads at its own pace,
//! and neither waits for the other: who is too far behind an answer that is too long to be held finds that its next event is gone.
//!
//! A flight ends when its [`Leading`] does, also by being dropped, so nobody follows what does not come any more.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use postern_wire::json::Value;
use tokio::sync::{Notify, watch};

use super::{CacheKey, Entry, MAX_ENTRY};
use crate::error::Error;

/// Bytes of one answer that are held for followers. Who follows an answer of more and is further behind loses it.
pub const MAX_BEHIND: usize = 8 << 20;
/// Bytes of all answers beyond which each is held for [`MAX_ENTRY`] only.
const MAX_HELD: usize = 128 << 20;
/// Flights at a time; beyond it, everybody asks for itself.
const MAX_FLIGHTS: usize = 65_536;

/// All flights of one process.
#[derive(Debug, Default)]
pub struct Flights {
    open: Mutex<HashMap<CacheKey, Arc<Flight>>>,
    held: AtomicUsize,
}

/// What a request is to do about others like it.
#[derive(Debug)]
pub enum Role {
    /// Ask a target: others may follow.
    Lead(Leading),
    /// Somebody asks already.
    Follow(Follower),
    /// Ask a target; nobody follows.
    Alone,
}

/// One answer that is under way.
#[derive(Debug)]
pub struct Flight {
    key: CacheKey,
    home: Arc<Flights>,
    log: Mutex<Log>,
    /// How it ended. Sent to followers, also without a change, whenever there is something new.
    end: watch::Sender<Option<End>>,
    joined: Notify,
}

#[derive(Debug)]
struct Log {
    target: Arc<str>,
    /// It comes from the cache, where it was given to what means the same.
    similar: bool,
    /// Number of the first event that is held.
    first: u64,
    events: VecDeque<(Arc<Value>, usize)>,
    bytes: usize,
    until: Instant,
}

#[derive(Debug, Clone)]
enum End {
    /// The answer is complete.
    Complete,
    /// There is none.
    Failed(Arc<Error>),
    /// It has something that is of the leader's request alone.
    Unfit,
    /// Whoever led went away.
    Lost,
}

/// The end at which an answer is put in.
#[derive(Debug)]
pub struct Leading {
    flight: Arc<Flight>,
}

/// The end at which it is read.
#[derive(Debug)]
pub struct Follower {
    flight: Arc<Flight>,
    news: watch::Receiver<Option<End>>,
    next: u64,
}

/// What came of an answer that is followed, at its beginning.
#[derive(Debug)]
pub enum Begun {
    /// It has begun, at this target.
    Answer(Arc<str>),
    /// What is wrong is wrong with the request.
    Refused(Error),
    /// There is none from this leader: another one may do better. With the error, if that may be told to others.
    Again(Option<Error>),
    /// It cannot be shared: everybody has to ask for itself.
    Alone,
}

/// An answer that was followed ended before its end, or went on too far ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

impl Flights {
    /// Joins the flight of `key`, or begins it, for a request that ends at `deadline`.
    #[must_use]
    pub fn enter(self: &Arc<Self>, key: CacheKey, deadline: Instant) -> Role {
        let mut open = self.open();
        if let Some(flight) = open.get(&key) {
            return flight.join(deadline).map_or(Role::Alone, Role::Follow);
        }
        if open.len() >= MAX_FLIGHTS {
            return Role::Alone;
        }
        let log = Log {
            target: Arc::default(),
            similar: false,
            first: 0,
            events: VecDeque::new(),
            bytes: 0,
            until: deadline,
        };
        let flight = Arc::new(Flight {
            key,
            home: self.clone(),
            log: Mutex::new(log),
            end: watch::Sender::new(None),
            joined: Notify::new(),
        });
        open.insert(key, flight.clone());
        Role::Lead(Leading { flight })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<CacheKey, Arc<Flight>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Does somebody follow?
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.end.receiver_count() > 0
    }

    /// Waits until somebody else follows.
    pub async fn joined(&self) {
        self.joined.notified().await;
    }

    /// Waits until nobody follows. Nobody will afterwards.
    pub async fn nobody_left(&self) {
        loop {
            self.end.closed().await;
            let mut open = self.home.open();
            // Joining takes the same lock, so nobody can have come since.
            if !self.is_followed() {
                self.leave(&mut open);
                return;
            }
        }
    }

    /// When the last of those who lead or followed wants to have its answer.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.log().until
    }

    fn join(self: &Arc<Self>, deadline: Instant) -> Option<Follower> {
        let mut log = self.log();
        if log.first > 0 {
            return None;
        }
        log.until = log.until.max(deadline);
        // Under the lock: what is published next is held for it already.
        let follower = Follower { flight: self.clone(), news: self.end.subscribe(), next: 0 };
        drop(log);
        self.joined.notify_one();
        Some(follower)
    }

    fn leave(&self, open: &mut HashMap<CacheKey, Arc<Self>>) {
        if open.get(&self.key).is_some_and(|flight| std::ptr::eq(&**flight, self)) {
            open.remove(&self.key);
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let bytes = self.log().bytes;
        self.home.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Leading {
    /// What others follow.
    #[must_use]
    pub fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Who answers.
    pub fn answers(&self, target: &str) {
        self.flight.log().target = target.into();
    }

    /// Adds the next event, of about so many bytes.
    pub fn publish(&self, event: &Arc<Value>, bytes: usize) {
        let flight = &self.flight;
        let held = flight.home.held.fetch_add(bytes, Ordering::Relaxed);
        let mut log = flight.log();
        let most = if held < MAX_HELD && flight.is_followed() { MAX_BEHIND } else { MAX_ENTRY };
        log.bytes += bytes;
        log.events.push_back((event.clone(), bytes));
        let mut freed = 0;
        // The newest is held, however large it is.
        while log.bytes - freed > most && log.events.len() > 1 {
            let Some((_, bytes)) = log.events.pop_front() else { break };
            freed += bytes;
            log.first += 1;
        }
        // Without its beginning nobody joins, and nobody has: it need not be held at all.
        if log.first > 0 && !flight.is_followed() {
            freed = log.bytes;
            log.first += log.events.len() as u64;
            log.events = VecDeque::new();
        }
        log.bytes -= freed;
        drop(log);
        flight.home.held.fetch_sub(freed, Ordering::Relaxed);
        flight.end.send_modify(|_| {});
    }

    /// The answer is one of the cache, to what means the same; and complete.
    pub fn pass_on(self, entry: &Entry) {
        self.flight.log().similar = true;
        self.answers(&entry.target);
        let each = entry.bytes / entry.events.len().max(1);
        entry.events.iter().for_each(|event| self.publish(event, each));
        self.complete();
    }

    /// The answer is complete. Whoever asks from here on must find it in the cache already, if that keeps it.
    pub fn complete(self) {
        self.ends(End::Complete);
    }

    /// There is no answer.
    pub fn failed(self, error: &Error) {
        self.ends(error.repeated().map_or(End::Lost, |error| End::Failed(Arc::new(error))));
    }

    /// What comes is of the leader's request alone.
    pub fn unfit(self) {
        self.ends(End::Unfit);
    }

    fn ends(&self, end: End) {
        // Nobody joins an answer that has ended in another way than it should: the key is free first.
        self.flight.leave(&mut self.flight.home.open());
        self.flight.end.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(end);
            }
            first
        });
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.ends(End::Lost);
    }
}

impl Follower {
    /// Does the answer come from the cache, where it was given to what means the same?
    #[must_use]
    pub fn is_similar(&self) -> bool {
        self.flight.log().similar
    }

    /// Waits until the answer has begun, or will not. May be dropped and asked again.
    pub async fn begun(&mut self) -> Begun {
        loop {
            let end = self.news.borrow_and_update().clone();
            match self.event() {
                Ok(Some(_)) => return Begun::Answer(self.flight.log().target.clone()),
                Ok(None) => {}
                Err(Lost) => return Begun::Alone,
            }
            match end {
                None => {}
                Some(End::Failed(error)) => {
                    return match error.repeated() {
                        Some(error) if error.is_of_the_request() => Begun::Refused(error),
                        error => Begun::Again(error),
                    };
                }
                Some(End::Unfit) => return Begun::Alone,
                Some(End::Lost | End::Complete) => return Begun::Again(None),
            }
            if self.news.changed().await.is_err() {
                return Begun::Again(None);
            }
        }
    }

    /// The next event; `None` after the last one. May be dropped and asked again.
    ///
    /// # Errors
    /// The answer broke off, or this one is too far behind.
    pub async fn next(&mut self) -> Result<Option<Arc<Value>>, Lost> {
        loop {
            // Looked at before the events: what comes between is seen by one or the other.
            let end = self.news.borrow_and_update().clone();
            match (self.event()?, end) {
                (Some(event), _) => {
                    self.next += 1;
                    return Ok(Some(event));
                }
                (None, Some(End::Complete)) => return Ok(None),
                (None, Some(_)) => return Err(Lost),
                (None, None) => self.news.changed().await.map_err(|_| Lost)?,
            }
        }
    }

    /// Why an answer broke off that had begun, if that may be told to others.
    #[must_use]
    pub fn why(&self) -> Option<Error> {
        match &*self.news.borrow() {
            Some(End::Failed(error)) => error.repeated(),
            _ => None,
        }
    }

    /// The next event, if it is there.
    fn event(&self) -> Result<Option<Arc<Value>>, Lost> {
        let log = self.flight.log();
        let at = self.next.checked_sub(log.first).ok_or(Lost)?;
        Ok(usize::try_from(at).ok().and_then(|at| log.events.get(at)).map(|(event, _)| event.clone()))
    }
}

#[cfg(test)]
mod tests;
