//! How a target stands: what we learned of it from the requests that it was sent, what it says of itself, and whether it may be
//! asked now. A [`Turn`] is leave to ask it once; whoever has one says how it ended.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, Health, State};
use super::limiter::Limiter;

/// What an average has forgotten of a sample after this time, but for 1/e of it.
const FORGETS_IN: f64 = 10.0;
/// The weight of a new sample at least, however close they come.
const NEWEST: f64 = 0.2;
/// After so long without a sample nothing is known.
const UNKNOWN_AFTER: Duration = Duration::from_secs(600);
/// The lowest time of late is looked for in windows of this length, the present one and the one before.
const BASE_WINDOW: Duration = Duration::from_secs(120);
/// What a target says of itself is believed for so long.
const SAID_FOR: Duration = Duration::from_secs(15);
/// A target that rests after failures is not waited for longer than this: that it fails quickly is what a breaker is for.
const RESTS_FOR: Duration = Duration::from_secs(3);
/// A failure is forgotten after this, if nobody asked since.
const FAILED_FOR: Duration = Duration::from_secs(30);
/// When it is looked again whether a breaker has closed that somebody else is trying.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a target's own page of metrics says (see [`super::scrape`]).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Said {
    /// Requests that wait there, from whomever.
    pub queue: Option<f64>,
    /// Milliseconds to the first token, as it measures them.
    pub latency_ms: Option<f64>,
    /// Prompt tokens that wait there.
    pub queued_tokens: Option<f64>,
    /// Prompt tokens that it reads in a second.
    pub prefill_rate: Option<f64>,
}

/// One target.
#[derive(Debug)]
pub struct Standing {
    known: Mutex<Known>,
    /// Requests of ours that have no first token yet.
    waiting: AtomicU32,
    /// Requests of ours that are not ended.
    under_way: AtomicU32,
    /// Those that wait for their turn, first come, first served.
    line: tokio::sync::Mutex<()>,
    in_line: AtomicU32,
    line_max: u32,
}

#[derive(Debug)]
struct Known {
    breaker: Breaker,
    limiter: Limiter,
    /// It asked us to wait until then.
    paused_until: Option<Instant>,
    first_token: Learned,
    said: Option<(Said, Instant)>,
    /// When it failed, if nothing has gone well since.
    failed_at: Option<Instant>,
}

/// Why it may not be asked now: until then it rests after failures, or is full.
enum Later {
    Rests(Instant),
    Full(Instant),
}

/// A target as it is now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Now {
    /// It may be asked at once, as far as is known.
    pub available: bool,
    /// It answered when it was last asked, or has not been asked for a while.
    pub healthy: bool,
    /// Its breaker.
    pub breaker: State,
    /// When its first token would come.
    pub ttft: Option<Duration>,
    /// Milliseconds to the first token, smoothed; peaks count at once.
    pub latency_ms: Option<f64>,
    /// The lowest of late: what it takes when it has nothing else to do.
    pub base_ms: Option<f64>,
    /// Requests that wait there: as it says itself, and those of ours that it may not have counted yet.
    pub queue: f64,
    /// Requests of ours that have no first token yet.
    pub waiting: u32,
    /// What we may still send in this minute; `None`: there is no limit.
    pub requests_left: Option<u64>,
}

/// Nothing is known.
impl Default for Now {
    fn default() -> Self {
        Self {
            available: true,
            healthy: true,
            breaker: State::Closed,
            ttft: None,
            latency_ms: None,
            base_ms: None,
            queue: 0.0,
            waiting: 0,
            requests_left: None,
        }
    }
}

impl Standing {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(limiter: Limiter, line_max: u32) -> Arc<Self> {
        let breaker = Breaker::default();
        let known = Known {
            breaker,
            limiter,
            paused_until: None,
            first_token: Learned::default(),
            said: None,
            failed_at: None,
        };
        Arc::new(Self {
            known: Mutex::new(known),
            waiting: AtomicU32::new(0),
            under_way: AtomicU32::new(0),
            line: tokio::sync::Mutex::new(()),
            in_line: AtomicU32::new(0),
            line_max,
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to ask it now, with a request of so many tokens.
    ///
    /// # Errors
    /// It may not be asked now; says when to come again. Those who wait already come first.
    pub fn turn(self: &Arc<Self>, tokens: u64, now: Instant) -> Result<Turn, Instant> {
        if self.in_line.load(Ordering::Relaxed) > 0 {
            return Err(now + LOOK_AGAIN);
        }
        self.take(tokens, now).map_err(|(Later::Rests(at) | Later::Full(at))| at)
    }

    /// When it may be asked, as far as is known now: those in line are not counted.
    #[must_use]
    pub fn free_at(&self, tokens: u64, now: Instant) -> Instant {
        let known = self.known();
        let all = [known.paused_until, known.breaker.rests_until(), known.limiter.room_at(tokens, now)];
        all.into_iter().flatten().max().map_or(now, |at| at.max(now))
    }

    /// Waits for leave, after those who came before, and at least until `from`. `None`: so many wait already that it would take
    /// too long, or it rests for a while. Dropping the future gives the place up.
    pub async fn turn_in_line(self: &Arc<Self>, tokens: u64, from: Instant) -> Option<Turn> {
        tokio::time::sleep_until(from.into()).await;
        let _place = self.stand_in_line()?;
        let _first = self.line.lock().await;
        loop {
            match self.take(tokens, now()) {
                Ok(turn) => return Some(turn),
                Err(Later::Rests(at)) if at > now() + RESTS_FOR => return None,
                Err(Later::Rests(at) | Later::Full(at)) => tokio::time::sleep_until(at.into()).await,
            }
        }
    }

    fn stand_in_line(&self) -> Option<Counted<'_>> {
        let place = Counted::new(&self.in_line);
        (self.in_line.load(Ordering::Relaxed) <= self.line_max).then_some(place)
    }

    fn take(self: &Arc<Self>, tokens: u64, now: Instant) -> Result<Turn, Later> {
        let mut known = self.known();
        if let Some(until) = known.paused_until.filter(|until| *until > now) {
            return Err(Later::Full(until));
        }
        let tried = known.breaker.admit(now).map_err(|at| Later::Rests(at.unwrap_or(now + LOOK_AGAIN)))?;
        if let Err(at) = known.limiter.take(tokens, now) {
            if tried {
                known.breaker.abandoned();
            }
            return Err(Later::Full(at));
        }
        drop(known);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let (ended, has_token, streams) = (false, false, false);
        Ok(Turn { standing: self.clone(), tried, ended, has_token, streams, began: now })
    }

    /// Requests of ours that are not ended.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed) as usize
    }

    /// It asked everybody to wait.
    pub fn pause(&self, until: Instant) {
        let mut known = self.known();
        known.paused_until = known.paused_until.max(Some(until));
    }

    /// What it says of itself. That it says anything shows that it is there.
    pub fn says(&self, said: Said, now: Instant) {
        let mut known = self.known();
        known.breaker.seen_well(now);
        known.said = Some((said, now));
    }

    /// It did not answer when it was looked at; counted as a request that failed.
    pub fn seen_dead(&self, now: Instant) {
        self.known().breaker.ended(Health::Dead, false, now, rand::random());
    }

    /// How it stands, for a request of so many tokens.
    #[must_use]
    pub fn now(&self, tokens: u64, now: Instant) -> Now {
        let (waiting, under_way) = (self.waiting.load(Ordering::Relaxed), self.under_way.load(Ordering::Relaxed));
        let known = self.known();
        let said = known.said.filter(|(_, at)| now.saturating_duration_since(*at) < SAID_FOR).map(|(said, _)| said);
        let breaker = known.breaker.state(now);
        let paused = known.paused_until.is_some_and(|until| until > now);
        let requests_left = known.limiter.requests_left(now);
        let learned = known.first_token.value(now);
        let said_latency = said.and_then(|said| said.latency_ms);
        // Its own count is of a moment ago, and has those of other gateways; ours is of now.
        let queue =
            said.and_then(|said| said.queue).map_or(f64::from(under_way), |queue| queue.max(f64::from(waiting)));
        Now {
            available: breaker != State::Open && !paused && requests_left != Some(0),
            healthy: known.failed_at.is_none_or(|at| now.saturating_duration_since(at) >= FAILED_FOR),
            breaker,
            ttft: predicted(said, tokens).or(learned.map(|ms| Duration::from_secs_f64(ms / 1e3))),
            latency_ms: learned.or(said_latency),
            base_ms: known.first_token.base(),
            queue,
            waiting,
            requests_left,
        }
    }
}

/// By what an engine of ours says: everything that waits is read first.
fn predicted(said: Option<Said>, tokens: u64) -> Option<Duration> {
    let said = said?;
    let rate = said.prefill_rate.filter(|rate| *rate > 0.0)?;
    let seconds = (said.queued_tokens.unwrap_or(0.0) + tokens as f64) / rate;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The clock that time in tests can be paused by.
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// One more as long as it lives.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Leave to ask a target once. Dropped without a word, it was given up.
#[derive(Debug)]
pub struct Turn {
    standing: Arc<Standing>,
    tried: bool,
    ended: bool,
    has_token: bool,
    /// Its first token is waited for.
    streams: bool,
    began: Instant,
}

impl Turn {
    /// An answer is asked for that shows its first token.
    pub fn streams(&mut self) {
        self.streams = true;
    }

    /// The first token has come, of an answer that is streamed.
    pub fn first_token(&mut self) {
        let now = now();
        self.standing.known().first_token.add(now.saturating_duration_since(self.began), now);
        self.token_came();
    }

    /// How it ended, or began well.
    pub fn ended(&mut self, health: Health) {
        self.ended = true;
        let now = now();
        let mut known = self.standing.known();
        // Of an answer that breaks off later it is no trial any more.
        known.breaker.ended(health, std::mem::take(&mut self.tried), now, rand::random());
        match health {
            Health::Good => known.failed_at = None,
            Health::Busy | Health::Dead => known.failed_at = Some(now),
            Health::Unknown => {}
        }
        drop(known);
        self.token_came();
    }

    fn token_came(&mut self) {
        if !std::mem::replace(&mut self.has_token, true) {
            self.standing.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.token_came();
        self.standing.under_way.fetch_sub(1, Ordering::Relaxed);
        if self.ended {
            return;
        }
        let now = now();
        let mut known = self.standing.known();
        if self.tried {
            known.breaker.abandoned();
        }
        // It lost a race, or the client lost patience: its first token would have come later still.
        let waited = now.saturating_duration_since(self.began);
        if self.streams && known.first_token.value(now).is_some_and(|ms| waited.as_secs_f64() * 1e3 > ms) {
            known.first_token.add(waited, now);
        }
    }
}

/// A time in ms that is learned: an average that decays with time and takes peaks at once (peak EWMA, as in Twitter's Finagle), and
/// the lowest value of late.
#[derive(Debug, Clone, Copy, Default)]
struct Learned {
    average: f64,
    at: Option<Instant>,
    lowest: f64,
    lowest_before: f64,
    window_from: Option<Instant>,
}

impl Learned {
    fn add(&mut self, took: Duration, now: Instant) {
        let ms = took.as_secs_f64() * 1e3;
        let before = self.at.map(|at| now.saturating_duration_since(at));
        self.average = match before.filter(|before| *before < UNKNOWN_AFTER) {
            Some(before) if ms < self.average => {
                let weight = (1.0 - (-before.as_secs_f64() / FORGETS_IN).exp()).max(NEWEST);
                self.average + weight * (ms - self.average)
            }
            _ => ms,
        };
        self.at = Some(now);
        match self.window_from {
            Some(from) if now.saturating_duration_since(from) < BASE_WINDOW => self.lowest = self.lowest.min(ms),
            _ => {
                (self.lowest_before, self.lowest, self.window_from) =
                    (if self.window_from.is_some() { self.lowest } else { ms }, ms, Some(now))
            }
        }
    }

    fn value(&self, now: Instant) -> Option<f64> {
        let at = self.at.filter(|at| now.saturating_duration_since(*at) < UNKNOWN_AFTER)?;
        // What was slow a while ago need not be any more: an old average sinks towards the best that was seen.
        let old = (now.saturating_duration_since(at).as_secs_f64() - FORGETS_IN).max(0.0);
        let base = self.base().unwrap_or(self.average).min(self.average);
        Some(base + (self.average - base) * (-old / FORGETS_IN).exp())
    }

    fn base(&self) -> Option<f64> {
        self.at.map(|_| self.lowest.min(self.lowest_before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_LATER: Duration = Duration::ZERO;

    fn standing(per_minute: u32) -> Arc<Standing> {
        Standing::new(Limiter::new(std::num::NonZeroU32::new(per_minute), None, NO_LATER), 4)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn peaks_count_at_once_and_are_forgotten() {
        let (mut learned, start) = (Learned::default(), Instant::now());
        assert_eq!(learned.value(start), None);
        learned.add(ms(100), start);
        learned.add(ms(500), start + ms(10));
        assert_eq!(learned.value(start + ms(10)), Some(500.0));
        learned.add(ms(100), start + ms(20));
        let soon = learned.value(start + ms(20)).unwrap();
        assert!((400.0..450.0).contains(&soon), "{soon}");
        let later = learned.value(start + Duration::from_secs(60)).unwrap();
        assert!((100.0..110.0).contains(&later), "{later}");
        assert_eq!(learned.value(start + UNKNOWN_AFTER * 2), None);
        assert_eq!(learned.base(), Some(100.0));
        for window in 1..4 {
            learned.add(ms(300), start + BASE_WINDOW * window);
        }
        assert_eq!(learned.base(), Some(300.0), "the best of late");
    }

    #[test]
    fn what_an_engine_says_predicts_its_first_token() {
        let (standing, start) = (standing(0), Instant::now());
        assert_eq!(standing.now(100, start).ttft, None);
        let said = Said { queue: Some(3.0), queued_tokens: Some(900.0), prefill_rate: Some(500.0), latency_ms: None };
        standing.says(said, start);
        let now = standing.now(100, start);
        assert_eq!((now.ttft, now.queue), (Some(Duration::from_secs(2)), 3.0));
        assert_eq!(standing.now(100, start + SAID_FOR).ttft, None, "long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_counted_until_they_end() {
        let standing = standing(0);
        let mut one = standing.turn(1, now()).unwrap();
        let two = standing.turn(1, now()).unwrap();
        assert_eq!((standing.now(1, now()).waiting, standing.now(1, now()).queue), (2, 2.0));
        one.first_token();
        one.ended(Health::Good);
        assert_eq!((standing.now(1, now()).waiting, standing.now(1, now()).queue), (1, 2.0));
        drop((one, two));
        assert_eq!((standing.now(1, now()).waiting, standing.now(1, now()).queue), (0, 0.0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_lost_a_race_is_known_to_be_slow() {
        let standing = standing(0);
        let mut quick = standing.turn(1, now()).unwrap();
        tokio::time::sleep(ms(50)).await;
        quick.first_token();
        quick.ended(Health::Good);
        let ttft = || standing.now(1, now()).ttft.unwrap();
        for (waits, streams, wanted) in [(20, true, 50), (900, false, 50), (900, true, 900)] {
            let mut lost = standing.turn(1, now()).unwrap();
            if streams {
                lost.streams();
            }
            tokio::time::sleep(ms(waits)).await;
            drop(lost);
            assert_eq!(ttft(), ms(wanted), "{waits} {streams}");
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(ttft() < ms(51), "it is given another chance");
    }

    #[tokio::test(start_paused = true)]
    async fn what_breaks_off_after_a_good_trial_is_one_failure_among_others() {
        let standing = standing(0);
        for _ in 0..3 {
            standing.turn(1, now()).unwrap().ended(Health::Dead);
        }
        assert!(standing.free_at(1, now()) > now());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut trial = standing.turn(1, now()).unwrap();
        trial.ended(Health::Good);
        trial.ended(Health::Dead);
        assert_eq!((standing.now(1, now()).breaker, standing.free_at(1, now())), (State::Closed, now()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_first_is_served_first_and_the_line_is_bounded() {
        let standing = standing(1);
        let _spent = standing.turn(1, now()).unwrap();
        let begun = now();
        let wait = |standing: Arc<Standing>| async move {
            let turn = standing.turn_in_line(1, now()).await;
            turn.map(|_| now())
        };
        let waiting: Vec<_> = (0..5).map(|_| tokio::spawn(wait(standing.clone()))).collect();
        tokio::time::sleep(ms(10)).await;
        assert!(standing.turn(1, now()).is_err());
        let mut came = Vec::new();
        for waiting in waiting {
            came.push(waiting.await.unwrap().map(|at| (at - begun).as_secs()));
        }
        assert_eq!(came, [Some(60), Some(120), Some(180), Some(240), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_is_given_up_is_given_to_the_next() {
        let standing = standing(0);
        for _ in 0..3 {
            standing.turn(1, now()).unwrap().ended(Health::Dead);
        }
        assert!(standing.turn(1, now()).is_err() && !standing.now(1, now()).available);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let trial = standing.turn(1, now()).unwrap();
        assert!(standing.turn(1, now()).is_err());
        drop(trial);
        let mut trial = standing.turn(1, now()).unwrap();
        trial.ended(Health::Good);
        assert!(standing.turn(1, now()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_counts_until_something_goes_well_or_it_is_forgotten() {
        let standing = standing(0);
        assert!(standing.now(1, now()).healthy);
        standing.turn(1, now()).unwrap().ended(Health::Busy);
        assert!(!standing.now(1, now()).healthy && standing.now(1, now() + FAILED_FOR).healthy);
        standing.turn(1, now()).unwrap().ended(Health::Good);
        assert!(standing.now(1, now()).healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_rests_for_long_is_not_waited_for() {
        let standing = standing(0);
        for _ in 0..3 {
            standing.turn(1, now()).unwrap().ended(Health::Dead);
        }
        let begun = now();
        for waited in [1, 3] {
            let mut turn = standing.turn_in_line(1, now()).await.unwrap();
            assert!((now() - begun).as_secs_f64() <= f64::from(waited));
            turn.ended(Health::Dead);
        }
        assert!(standing.turn_in_line(1, now()).await.is_none(), "four seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_us_to_wait_is_not_asked_meanwhile() {
        let standing = standing(0);
        standing.pause(now() + ms(500));
        standing.pause(now() + ms(100));
        assert_eq!(standing.turn(1, now()).err(), Some(now() + ms(500)));
        tokio::time::sleep(ms(500)).await;
        assert!(standing.turn(1, now()).is_ok());
    }
}
