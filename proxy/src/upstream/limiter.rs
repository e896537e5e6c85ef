//! What we may send to one target in any minute. Pure: the time is handed in.
//!
//! Providers count in windows of their own, which we do not see: so no minute, wherever it begins, may hold more than the limit.
//! A bucket that fills at a constant rate does not promise that (a full one gives twice the limit within a minute); a log of what
//! was sent does.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// The limits of one target.
#[derive(Debug)]
pub struct Limiter {
    requests: Option<Window>,
    tokens: Option<Window>,
    /// A minute, and what a request may take to arrive: one that was late must not come into the minute of those after it.
    span: Duration,
}

#[derive(Debug)]
struct Window {
    most: u64,
    used: u64,
    log: VecDeque<(Instant, u64)>,
    /// How many were taken from the front of the log.
    gone: u64,
}

/// What was taken, by its places in the logs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    request: Option<u64>,
    tokens: Option<u64>,
}

impl Limiter {
    /// Nothing was sent yet. `late`: how long a request may take to reach the target.
    #[must_use]
    pub fn new(requests: Option<NonZeroU32>, tokens: Option<NonZeroU32>, late: Duration) -> Self {
        let window = |most: NonZeroU32| Window { most: most.get().into(), used: 0, log: VecDeque::new(), gone: 0 };
        Self { requests: requests.map(window), tokens: tokens.map(window), span: MINUTE + late }
    }

    /// Takes one request of so many tokens, or nothing. What is larger than a whole minute's tokens takes a whole minute's.
    ///
    /// # Errors
    /// Says when there will be room.
    pub fn take(&mut self, tokens: u64, now: Instant) -> Result<Taken, Instant> {
        if let Some(at) = self.room_at(tokens, now) {
            return Err(at);
        }
        let span = self.span;
        let take = |window: &mut Option<Window>, amount| window.as_mut().map(|window| window.take(amount, span, now));
        Ok(Taken { request: take(&mut self.requests, 1), tokens: take(&mut self.tokens, tokens) })
    }

    /// It was not sent after all.
    pub fn give_back(&mut self, taken: Taken) {
        for (window, at) in [(&mut self.requests, taken.request), (&mut self.tokens, taken.tokens)] {
            if let Some((window, at)) = window.as_mut().zip(at) {
                window.lower(at, 0);
            }
        }
    }

    /// It used so many tokens, which may be less than was taken.
    pub fn settle(&mut self, taken: Taken, tokens: u64) {
        if let Some((window, at)) = self.tokens.as_mut().zip(taken.tokens) {
            window.lower(at, tokens);
        }
    }

    /// When there is room for one request of so many tokens; `None`: now.
    #[must_use]
    pub fn room_at(&self, tokens: u64, now: Instant) -> Option<Instant> {
        let windows = [(&self.requests, 1), (&self.tokens, tokens)].into_iter();
        windows.filter_map(|(window, amount)| window.as_ref()?.room_at(amount, self.span, now)).max()
    }

    /// When there is room for one more request, whatever becomes of those that were sent; `None`: now.
    #[must_use]
    pub fn request_at(&self, now: Instant) -> Option<Instant> {
        self.requests.as_ref()?.room_at(1, self.span, now)
    }

    /// Requests that could be sent now; `None`: there is no limit.
    #[must_use]
    pub fn requests_left(&self, now: Instant) -> Option<u64> {
        Some(self.requests.as_ref()?.left(self.span, now))
    }

    /// Tokens that are left now; `None`: there is no limit.
    #[must_use]
    pub fn tokens_left(&self, now: Instant) -> Option<u64> {
        Some(self.tokens.as_ref()?.left(self.span, now))
    }
}

impl Window {
    fn left(&self, span: Duration, now: Instant) -> u64 {
        let ended = self.log.iter().take_while(|(at, _)| now >= *at + span);
        let ended: u64 = ended.map(|(_, amount)| amount).sum();
        self.most - (self.used - ended).min(self.most)
    }

    /// `None`: now.
    fn room_at(&self, amount: u64, span: Duration, now: Instant) -> Option<Instant> {
        let amount = amount.min(self.most);
        let mut used = self.used;
        // The oldest go first, until there is room.
        let freed = self.log.iter().find_map(|(at, freed)| {
            if used + amount <= self.most {
                return Some(None);
            }
            used -= freed;
            (used + amount <= self.most).then_some(Some(*at + span))
        });
        freed.flatten().filter(|at| *at > now)
    }

    /// Says where it is in the log.
    fn take(&mut self, amount: u64, span: Duration, now: Instant) -> u64 {
        let amount = amount.min(self.most);
        while let Some((_, freed)) = self.log.front().filter(|(at, _)| now >= *at + span) {
            self.used -= freed;
            self.log.pop_front();
            self.gone += 1;
        }
        self.used += amount;
        self.log.push_back((now, amount));
        self.gone + self.log.len() as u64 - 1
    }

    fn lower(&mut self, at: u64, amount: u64) {
        let index = at.checked_sub(self.gone).and_then(|index| usize::try_from(index).ok());
        if let Some((_, taken)) = index.and_then(|index| self.log.get_mut(index)) {
            let freed = taken.saturating_sub(amount);
            *taken -= freed;
            self.used -= freed;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LATE: Duration = Duration::from_secs(2);

    fn per_minute(requests: u32, tokens: u32) -> Limiter {
        Limiter::new(NonZeroU32::new(requests), NonZeroU32::new(tokens), LATE)
    }

    #[test]
    fn room_comes_when_the_oldest_are_a_minute_old() {
        let (mut limiter, start) = (per_minute(2, 0), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(limiter.take(9, start).is_ok() && limiter.take(9, at(10)).is_ok());
        assert_eq!(limiter.take(9, at(20)).err(), Some(at(62)));
        assert_eq!((limiter.requests_left(at(61)), limiter.requests_left(at(62))), (Some(0), Some(1)));
        assert!(limiter.take(9, at(62)).is_ok());
        assert_eq!(limiter.take(9, at(62)).err(), Some(at(72)));
        assert_eq!(per_minute(0, 0).requests_left(start), None);
    }

    #[test]
    fn tokens_count_as_well_and_one_request_may_take_them_all() {
        let (mut limiter, start) = (per_minute(100, 1000), Instant::now());
        assert!(limiter.take(600, start).is_ok());
        assert_eq!(limiter.take(600, start).err(), Some(start + MINUTE + LATE));
        assert_eq!(limiter.requests_left(start), Some(99), "what was refused took nothing");
        assert!(limiter.take(400, start).is_ok());
        let all = limiter.take(u64::MAX, start + MINUTE + LATE);
        assert!(all.is_ok(), "more than there ever is waits for all of it");
        assert!(limiter.take(1, start + MINUTE + LATE).is_err());
    }

    #[test]
    fn what_was_not_used_is_there_for_others() {
        let (mut limiter, start) = (per_minute(2, 1000), Instant::now());
        let first = limiter.take(u64::MAX, start).unwrap();
        limiter.settle(first, 5000);
        assert!(limiter.take(1, start).is_err(), "more than was taken frees nothing");
        limiter.settle(first, 13);
        limiter.settle(first, 14);
        let second = limiter.take(987, start).unwrap();
        assert!(limiter.take(1, start).is_err(), "neither requests nor tokens are left");
        limiter.give_back(second);
        assert_eq!(limiter.requests_left(start), Some(1));
        let later = start + MINUTE + LATE;
        let third = limiter.take(900, later).unwrap();
        assert_eq!((limiter.tokens_left(later), per_minute(1, 0).tokens_left(later)), (Some(100), None));
        limiter.settle(first, 0);
        limiter.give_back(second);
        assert_eq!((limiter.requests_left(later), limiter.take(101, later).is_err()), (Some(1), true), "long gone");
        limiter.settle(third, 899);
        assert!(limiter.take(101, later).is_ok());
    }

    proptest! {
        #[test]
        fn no_minute_holds_more_than_the_limit(
            steps in prop::collection::vec((0u64..20_000, 1u64..400, 0u64..2_000), 1..200),
        ) {
            let (mut limiter, start) = (per_minute(7, 1000), Instant::now());
            let (mut now, mut sent) = (start, Vec::new());
            for (wait, tokens, late) in steps {
                now += Duration::from_millis(wait);
                match limiter.take(tokens, now) {
                    Ok(_) => sent.push((now + Duration::from_millis(late), tokens)),
                    Err(at) => {
                        prop_assert!(at > now && at <= now + MINUTE + LATE);
                        let mut then = Limiter { requests: None, tokens: None, span: limiter.span };
                        std::mem::swap(&mut then, &mut limiter);
                        prop_assert!(then.take(tokens, at).is_ok(), "it said when");
                        sent.push((at + Duration::from_millis(late), tokens));
                        now = at;
                        limiter = then;
                    }
                }
            }
            for (begin, _) in &sent {
                let within = sent.iter().filter(|(at, _)| at >= begin && *at < *begin + MINUTE);
                prop_assert!(within.clone().count() <= 7 && within.map(|(_, tokens)| tokens).sum::<u64>() <= 1000);
            }
        }
    }
}
