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
}

impl Limiter {
    /// Nothing was sent yet. `late`: how long a request may take to reach the target.
    #[must_use]
    pub fn new(requests: Option<NonZeroU32>, tokens: Option<NonZeroU32>, late: Duration) -> Self {
        let window = |most: NonZeroU32| Window { most: most.get().into(), used: 0, log: VecDeque::new() };
        Self { requests: requests.map(window), tokens: tokens.map(window), span: MINUTE + late }
    }

    /// Takes one request of so many tokens, or nothing. What is larger than a whole minute's tokens takes a whole minute's.
    ///
    /// # Errors
    /// Says when there will be room.
    pub fn take(&mut self, tokens: u64, now: Instant) -> Result<(), Instant> {
        if let Some(at) = self.room_at(tokens, now) {
            return Err(at);
        }
        let span = self.span;
        for (window, amount) in [(&mut self.requests, 1), (&mut self.tokens, tokens)] {
            if let Some(window) = window {
                window.take(amount, span, now);
            }
        }
        Ok(())
    }

    /// When there is room for one request of so many tokens; `None`: now.
    #[must_use]
    pub fn room_at(&self, tokens: u64, now: Instant) -> Option<Instant> {
        let windows = [(&self.requests, 1), (&self.tokens, tokens)].into_iter();
        windows.filter_map(|(window, amount)| window.as_ref()?.room_at(amount, self.span, now)).max()
    }

    /// Requests that could be sent now; `None`: there is no limit.
    #[must_use]
    pub fn requests_left(&self, now: Instant) -> Option<u64> {
        let window = self.requests.as_ref()?;
        let ended = window.log.iter().take_while(|(at, _)| now >= *at + self.span);
        let ended: u64 = ended.map(|(_, amount)| amount).sum();
        Some(window.most - (window.used - ended).min(window.most))
    }
}

impl Window {
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

    fn take(&mut self, amount: u64, span: Duration, now: Instant) {
        let amount = amount.min(self.most);
        while let Some((_, freed)) = self.log.front().filter(|(at, _)| now >= *at + span) {
            self.used -= freed;
            self.log.pop_front();
        }
        self.used += amount;
        self.log.push_back((now, amount));
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
        assert_eq!((limiter.take(9, start), limiter.take(9, at(10))), (Ok(()), Ok(())));
        assert_eq!(limiter.take(9, at(20)), Err(at(62)));
        assert_eq!((limiter.requests_left(at(61)), limiter.requests_left(at(62))), (Some(0), Some(1)));
        assert_eq!(limiter.take(9, at(62)), Ok(()));
        assert_eq!(limiter.take(9, at(62)), Err(at(72)));
        assert_eq!(per_minute(0, 0).requests_left(start), None);
    }

    #[test]
    fn tokens_count_as_well_and_one_request_may_take_them_all() {
        let (mut limiter, start) = (per_minute(100, 1000), Instant::now());
        assert_eq!(limiter.take(600, start), Ok(()));
        assert_eq!(limiter.take(600, start), Err(start + MINUTE + LATE));
        assert_eq!(limiter.requests_left(start), Some(99), "what was refused took nothing");
        assert_eq!(limiter.take(400, start), Ok(()));
        assert_eq!(
            limiter.take(u64::MAX, start + MINUTE + LATE),
            Ok(()),
            "more than there ever is waits for all of it"
        );
        assert!(limiter.take(1, start + MINUTE + LATE).is_err());
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
                    Ok(()) => sent.push((now + Duration::from_millis(late), tokens)),
                    Err(at) => {
                        prop_assert!(at > now && at <= now + MINUTE + LATE);
                        let mut then = Limiter { requests: None, tokens: None, span: limiter.span };
                        std::mem::swap(&mut then, &mut limiter);
                        prop_assert_eq!(then.take(tokens, at), Ok(()), "it said when");
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
