//! Where an answer comes from: the cache, somebody who is getting the same now, or a target.

use std::sync::Arc;
use std::time::Instant;

use crate::cache::flight::{Begun, Follower, Lost, Role};
use crate::cache::semantic::{Question, Sought};
use crate::cache::{CacheKey, Entry};
use crate::error::Error;
use crate::gateway::Gateway;
use crate::response::{Fill, Others, Source};

/// How many others, one after the other, may fail with a request that waits for the same answer.
const LEADERS: u32 = 3;

/// Where an answer is taken from.
pub(super) enum Way {
    /// It was given before.
    Hit(Entry),
    /// It was given before, to what means the same.
    Similar(Entry),
    /// Somebody is waiting for it already.
    Follow(Follower, Shared),
    /// Targets are asked; who else gets it.
    Ask(Others),
}

/// A place in the cache, and one among the answers under way.
pub(super) struct Shared {
    pub(super) fill: Fill,
    pub(super) flight: CacheKey,
    pub(super) deadline: Instant,
}

/// Where an answer comes from.
pub(super) enum Found {
    Hit(Entry),
    Similar(Entry),
    /// From whom somebody else asked, and its beginning.
    Shared(Arc<str>, Box<Source>),
    /// As before, but whoever was followed found it in the cache, given to what means the same.
    SharedSimilar(Arc<str>, Box<Source>),
    Ask(Box<Others>),
}

impl Way {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Hit(_) => "exact",
            Self::Similar(_) => "semantic",
            Self::Follow(..) => "shared",
            Self::Ask(others) => others.word(),
        }
    }

    /// Is nobody asked any more?
    pub(super) fn is_hit(&self) -> bool {
        matches!(self, Self::Hit(_) | Self::Similar(_))
    }

    /// Looks whether what means the same was asked before, if a target would be asked otherwise. Whoever follows gets what is found as
    /// well: they asked for exactly the same, and are content with it.
    pub(super) async fn in_other_words(self, gateway: &Gateway, question: Option<Question>) -> Self {
        let Some(question) = question else { return self };
        let Self::Ask(mut others) = self else { return self };
        let Some(fill) = &mut others.fill else { return Self::Ask(others) };
        match question.seek(&fill.cache.memory, &gateway.metrics).await {
            Sought::Answered(entry) => {
                if let Some(leading) = others.leading {
                    leading.pass_on(&entry);
                }
                Self::Similar(entry)
            }
            Sought::New(asked) => {
                fill.asked = asked;
                Self::Ask(others)
            }
        }
    }
}

impl Found {
    fn shared(target: Arc<str>, source: Source, similar: bool) -> Self {
        match similar {
            true => Self::SharedSimilar(target, Box::new(source)),
            false => Self::Shared(target, Box::new(source)),
        }
    }

    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Hit(_) => "exact",
            Self::Similar(_) | Self::SharedSimilar(..) => "semantic",
            Self::Shared(..) => "shared",
            Self::Ask(others) => others.word(),
        }
    }
}

impl Shared {
    /// What is there by now: in the cache, or under way.
    pub(super) async fn seek(self, gateway: &Gateway) -> Way {
        let here = || self.fill.cache.memory.get(&self.fill.slot.key);
        if let Some(entry) = here() {
            return Way::Hit(entry);
        }
        let leading = match gateway.flights.enter(self.flight, self.deadline) {
            Role::Follow(follower) => return Way::Follow(follower, self),
            Role::Alone => None,
            // An answer is put into the cache before its flight ends: it may have come between the two looks.
            Role::Lead(leading) => match here() {
                Some(entry) => return Way::Hit(entry),
                None => Some(leading),
            },
        };
        // Whoever follows meanwhile finds it in memory when there is no flight any more.
        match self.fill.cache.fetch(&self.fill.slot).await {
            Some(entry) => Way::Hit(entry),
            None => Way::Ask(Others { fill: Some(self.fill), leading }),
        }
    }
}

/// Waits until an answer that somebody else asked for has begun. If it does not come, the next of those who wait asks.
pub(super) async fn follow(gateway: &Gateway, mut way: Way, stream: bool) -> Result<Found, Error> {
    let mut failed = 0;
    loop {
        let (mut follower, shared) = match way {
            Way::Hit(entry) => return Ok(Found::Hit(entry)),
            Way::Similar(entry) => return Ok(Found::Similar(entry)),
            Way::Ask(others) => return Ok(Found::Ask(Box::new(others))),
            Way::Follow(follower, shared) => (follower, shared),
        };
        let error = match follower.begun().await {
            Begun::Answer(target) if stream => {
                let similar = follower.is_similar();
                return Ok(Found::shared(target, Source::Shared(follower), similar));
            }
            Begun::Answer(target) => match follower.next().await {
                Ok(Some(answer)) => {
                    return Ok(Found::shared(target, Source::SharedWhole(answer), follower.is_similar()));
                }
                Ok(None) | Err(Lost) => None,
            },
            Begun::Refused(error) => return Err(error),
            Begun::Alone => return Ok(Found::Ask(Box::new(Others { fill: Some(shared.fill), leading: None }))),
            Begun::Again(error) => error,
        };
        failed += 1;
        way = match error {
            _ if failed < LEADERS => shared.seek(gateway).await,
            Some(error) => return Err(error),
            None => Way::Ask(Others { fill: Some(shared.fill), leading: None }),
        };
    }
}
