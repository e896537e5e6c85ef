//! How a target stands: what we learned of it from the requests that it was sent, what it says of itself, and whether it may be
//! asked now. A [`Turn`] is leave to ask it once; whoever has one says how it ended.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, Health, State, Tried};
use super::limiter::{Limiter, Taken};
use super::line::Line;

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
/// That it is left alone is told so often, while it goes on.
const TOLD_FOR: Duration = Duration::from_secs(60);
/// When it is looked again whether a breaker has closed that somebody else is trying.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// When it is looked again whether answers have used fewer tokens than they might have.
const TOKENS_AGAIN: Duration = Duration::from_millis(250);
/// Models of one target that are paused at a time; of more, the one that may be asked soonest is.
const PAUSES: usize = 64;

/// What a request asks of a target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claim {
    /// Whose it is: a digest of the identity.
    pub who: u64,
    /// For which model: a digest of its name; `None`: whichever.
    pub model: Option<u64>,
    /// What it counts for in limits of tokens.
    pub tokens: u64,
}

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
    /// For the log.
    name: String,
    known: Mutex<Known>,
    /// Requests of ours that have no first token yet.
    waiting: AtomicU32,
    /// Requests of ours that are not ended.
    under_way: AtomicU32,
    /// Those that wait for their turn.
    line: Line,
}

#[derive(Debug)]
struct Known {
    breaker: Breaker,
    limiter: Limiter,
    /// Models for which it asked us to wait, and until when.
    pauses: Vec<(u64, Instant)>,
    first_token: Learned,
    said: Option<(Said, Instant)>,
    /// When it failed, if nothing has gone well since.
    failed_at: Option<Instant>,
    /// When the log was told that it is left alone, and whether it was not told yet that it is not any more.
    told: Option<(Instant, bool)>,
}

impl Known {
    fn paused_until(&self, model: Option<u64>, now: Instant) -> Option<Instant> {
        let concerns = |paused: &u64| model.is_none_or(|model| model == *paused);
        self.pauses.iter().filter(|(paused, until)| concerns(paused) && *until > now).map(|(_, until)| *until).max()
    }
}

/// Why it may not be asked now: until then it rests after failures, asked us to wait, or is full; and then not before `surely`,
/// whatever those use that were sent.
enum Later {
    Rests(Instant),
    Paused(Instant),
    Full { at: Instant, surely: Option<Instant> },
}

impl Later {
    fn at(&self) -> Instant {
        match self {
            Self::Rests(at) | Self::Paused(at) | Self::Full { at, .. } => *at,
        }
    }
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
    /// The same of tokens.
    pub tokens_left: Option<u64>,
    /// Identities to which alone its breaker is not closed.
    pub kept_out: usize,
    /// It may not be asked for so long: it rests after failures, or asked us to wait.
    pub rests_for: Option<Duration>,
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
            tokens_left: None,
            kept_out: 0,
            rests_for: None,
        }
    }
}

impl Standing {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(name: &str, limiter: Limiter, line_max: usize) -> Arc<Self> {
        let breaker = Breaker::default();
        let known = Known {
            breaker,
            limiter,
            pauses: Vec::new(),
            first_token: Learned::default(),
            said: None,
            failed_at: None,
            told: None,
        };
        Arc::new(Self {
            name: name.to_owned(),
            known: Mutex::new(known),
            waiting: AtomicU32::new(0),
            under_way: AtomicU32::new(0),
            line: Line::new(line_max),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the breaker something, and the log if it opens, at most once a minute, and that it has closed after that.
    fn tell(&self, known: &mut Known, now: Instant, what: impl FnOnce(&mut Breaker)) {
        what(&mut known.breaker);
        let (to_all, kept_out) = (known.breaker.all_until().is_some(), known.breaker.kept_out());
        let (left_alone, target) = (to_all || kept_out > 0, self.name.as_str());
        match known.told {
            Some((at, true)) if !left_alone => {
                tracing::info!(target, "the target answers again");
                known.told = Some((at, false));
            }
            Some((at, _)) if now.saturating_duration_since(at) < TOLD_FOR => {}
            _ if left_alone => {
                let left_alone_by = if to_all { "everybody" } else { "some identities" };
                tracing::warn!(
                    target,
                    left_alone_by,
                    "a target fails again and again: it is left alone, and tried now and then"
                );
                known.told = Some((now, true));
            }
            _ => {}
        }
    }

    /// Leave to ask it now.
    ///
    /// # Errors
    /// It may not be asked now; says when to come again. Those who wait already come first.
    pub fn turn(self: &Arc<Self>, claim: Claim, now: Instant) -> Result<Turn, Instant> {
        if !self.line.is_empty() {
            return Err(now + LOOK_AGAIN);
        }
        self.take(claim, now).map_err(|later| later.at())
    }

    /// When it may be asked, as far as is known now: those in line are not counted.
    #[must_use]
    pub fn free_at(&self, claim: Claim, now: Instant) -> Instant {
        let known = self.known();
        let pause = known.paused_until(claim.model, now);
        let all = [pause, known.breaker.rests_until(claim.who), known.limiter.room_at(claim.tokens, now)];
        all.into_iter().flatten().max().map_or(now, |at| at.max(now))
    }

    /// Waits for leave in the line, at least until `from`. `None`: there is no room in the line, it rests for a while, or leave
    /// cannot come before `until`. Dropping the future gives the place up.
    pub async fn turn_in_line(self: &Arc<Self>, claim: Claim, from: Instant, until: Instant) -> Option<Turn> {
        // What keeps back this identity, or this model, is waited for outside of the line, where it holds up nobody else.
        let mut outside = from.max(self.paused_until(claim.model, now()).unwrap_or(from));
        loop {
            if outside.max(self.request_at(now()).unwrap_or(outside)) > until {
                return None;
            }
            tokio::time::sleep_until(outside.into()).await;
            let place = self.line.enter(claim.who)?;
            if !place.first().await {
                return None;
            }
            outside = loop {
                let wake = match self.take(claim, now()) {
                    Ok(turn) => return Some(turn),
                    Err(Later::Rests(at)) if at > now() + RESTS_FOR => return None,
                    Err(Later::Rests(at) | Later::Paused(at)) => break at,
                    Err(Later::Full { surely: Some(surely), .. }) if surely > until => return None,
                    Err(Later::Full { at, surely }) if surely == Some(at) => at,
                    Err(Later::Full { at, .. }) => at.min(now() + TOKENS_AGAIN),
                };
                tokio::time::sleep_until(wake.into()).await;
            };
        }
    }

    fn paused_until(&self, model: Option<u64>, now: Instant) -> Option<Instant> {
        self.known().paused_until(model, now)
    }

    /// No request may be sent before then, whatever those use that were.
    fn request_at(&self, now: Instant) -> Option<Instant> {
        self.known().limiter.request_at(now)
    }

    fn take(self: &Arc<Self>, claim: Claim, now: Instant) -> Result<Turn, Later> {
        let mut known = self.known();
        if let Some(until) = known.paused_until(claim.model, now) {
            return Err(Later::Paused(until));
        }
        let tried = known.breaker.admit(claim.who, now).map_err(|at| Later::Rests(at.unwrap_or(now + LOOK_AGAIN)))?;
        let taken = known.limiter.take(claim.tokens, now);
        let taken = taken.map_err(|at| {
            known.breaker.abandoned(claim.who, tried);
            Later::Full { at, surely: known.limiter.request_at(now) }
        })?;
        drop(known);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let (ended, has_token, streams) = (false, false, false);
        let who = claim.who;
        Ok(Turn { standing: self.clone(), who, taken, used: None, tried, ended, has_token, streams, began: now })
    }

    /// It asked everybody who wants this model to wait.
    pub fn pause(&self, model: Option<u64>, until: Instant, now: Instant) {
        let Some(model) = model else { return };
        let mut known = self.known();
        known.pauses.retain(|(_, until)| *until > now);
        known.pauses.push((model, until));
        if known.pauses.len() > PAUSES {
            known.pauses.sort_unstable_by_key(|(_, until)| *until);
            known.pauses.remove(0);
        }
    }

    /// What it says of itself. That it says anything shows that it is there.
    pub fn says(&self, said: Said, now: Instant) {
        let mut known = self.known();
        known.breaker.seen_well(now);
        known.said = Some((said, now));
    }

    /// It did not answer when it was looked at; counted as a request that failed.
    pub fn seen_dead(&self, now: Instant) {
        self.tell(&mut self.known(), now, |breaker| {
            breaker.ended(Health::Dead, None, Tried::default(), false, now, rand::random());
        });
    }

    /// How it stands, for a request.
    #[must_use]
    pub fn now(&self, claim: Claim, now: Instant) -> Now {
        let (waiting, under_way) = (self.waiting.load(Ordering::Relaxed), self.under_way.load(Ordering::Relaxed));
        let known = self.known();
        let said = known.said.filter(|(_, at)| now.saturating_duration_since(*at) < SAID_FOR).map(|(said, _)| said);
        let breaker = known.breaker.state(now);
        let pause = known.paused_until(claim.model, now);
        let requests_left = known.limiter.requests_left(now);
        let learned = known.first_token.value(now);
        let said_latency = said.and_then(|said| said.latency_ms);
        // Its own count is of a moment ago, and has those of other gateways; ours is of now.
        let queue =
            said.and_then(|said| said.queue).map_or(f64::from(under_way), |queue| queue.max(f64::from(waiting)));
        Now {
            available: known.breaker.passes(claim.who, now) && pause.is_none() && requests_left != Some(0),
            healthy: known.failed_at.is_none_or(|at| now.saturating_duration_since(at) >= FAILED_FOR),
            breaker,
            ttft: predicted(said, claim.tokens).or(learned.map(|ms| Duration::from_secs_f64(ms / 1e3))),
            latency_ms: learned.or(said_latency),
            base_ms: known.first_token.base(),
            queue,
            waiting,
            requests_left,
            tokens_left: known.limiter.tokens_left(now),
            kept_out: known.breaker.kept_out(),
            rests_for: known.breaker.all_until().max(pause).map(|until| until.saturating_duration_since(now)),
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

/// Leave to ask a target once. Dropped without a word, it was given up.
#[derive(Debug)]
pub struct Turn {
    standing: Arc<Standing>,
    who: u64,
    taken: Taken,
    /// Tokens that the target has counted so far.
    used: Option<u64>,
    tried: Tried,
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
        let mut known = self.standing.known();
        known.first_token.add(now.saturating_duration_since(self.began), now);
        // If it breaks off later, that is no trial any more.
        let tried = std::mem::take(&mut self.tried);
        self.standing.tell(&mut known, now, |breaker| breaker.began(self.who, tried));
        known.failed_at = None;
        drop(known);
        self.token_came();
    }

    /// It was not asked after all.
    pub fn unused(mut self) {
        self.ended = true;
        let mut known = self.standing.known();
        known.breaker.abandoned(self.who, self.tried);
        known.limiter.give_back(self.taken);
    }

    /// The target has counted so many tokens so far; some say so with every event. The last word counts, when it has ended.
    pub fn used(&mut self, tokens: u64) {
        self.used = Some(tokens);
    }

    /// How it ended.
    pub fn ended(&mut self, health: Health) {
        self.ended = true;
        let now = now();
        let mut known = self.standing.known();
        let (tried, begun) = (std::mem::take(&mut self.tried), self.has_token);
        self.standing.tell(&mut known, now, |breaker| {
            breaker.ended(health, Some(self.who), tried, begun, now, rand::random());
        });
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
        let is_over = self.ended || self.has_token;
        self.token_came();
        self.standing.under_way.fetch_sub(1, Ordering::Relaxed);
        if let Some(tokens) = self.used {
            self.standing.known().limiter.settle(self.taken, tokens);
        }
        if is_over {
            return;
        }
        let now = now();
        let mut known = self.standing.known();
        known.breaker.abandoned(self.who, self.tried);
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
    const FAR: Duration = Duration::from_secs(3600);
    const ONE: Claim = Claim { who: 1, model: Some(1), tokens: 1 };
    const HUNDRED: Claim = Claim { tokens: 100, ..ONE };
    const NINETY: Claim = Claim { tokens: 90, ..ONE };

    fn standing(per_minute: u32) -> Arc<Standing> {
        Standing::new("target", Limiter::new(std::num::NonZeroU32::new(per_minute), None, NO_LATER), 4)
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
        assert_eq!(standing.now(HUNDRED, start).ttft, None);
        let said = Said { queue: Some(3.0), queued_tokens: Some(900.0), prefill_rate: Some(500.0), latency_ms: None };
        standing.says(said, start);
        let now = standing.now(HUNDRED, start);
        assert_eq!((now.ttft, now.queue), (Some(Duration::from_secs(2)), 3.0));
        assert_eq!(standing.now(HUNDRED, start + SAID_FOR).ttft, None, "long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_counted_until_they_end() {
        let standing = standing(0);
        let mut one = standing.turn(ONE, now()).unwrap();
        let two = standing.turn(ONE, now()).unwrap();
        assert_eq!((standing.now(ONE, now()).waiting, standing.now(ONE, now()).queue), (2, 2.0));
        one.first_token();
        one.ended(Health::Good);
        assert_eq!((standing.now(ONE, now()).waiting, standing.now(ONE, now()).queue), (1, 2.0));
        drop((one, two));
        assert_eq!((standing.now(ONE, now()).waiting, standing.now(ONE, now()).queue), (0, 0.0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_lost_a_race_is_known_to_be_slow() {
        let standing = standing(0);
        let mut quick = standing.turn(ONE, now()).unwrap();
        tokio::time::sleep(ms(50)).await;
        quick.first_token();
        quick.ended(Health::Good);
        let ttft = || standing.now(ONE, now()).ttft.unwrap();
        for (waits, streams, wanted) in [(20, true, 50), (900, false, 50), (900, true, 900)] {
            let mut lost = standing.turn(ONE, now()).unwrap();
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
    async fn answers_that_begin_well_and_break_off_close_it() {
        let standing = standing(0);
        for _ in 0..3 {
            let mut turn = standing.turn(ONE, now()).unwrap();
            turn.first_token();
            turn.ended(Health::Dead);
        }
        assert!(standing.free_at(ONE, now()) > now() && !standing.now(ONE, now()).available);
        let other = Claim { who: 2, ..ONE };
        assert!(
            standing.free_at(other, now()) == now() && standing.now(other, now()).available,
            "one's own fault, maybe"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut trial = standing.turn(ONE, now()).unwrap();
        trial.first_token();
        assert!(standing.turn(ONE, now()).is_ok(), "its end is not waited for");
        trial.ended(Health::Good);
        assert_eq!((standing.now(ONE, now()).breaker, standing.free_at(ONE, now())), (State::Closed, now()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_sent_or_not_used_counts_for_nothing() {
        let limiter = Limiter::new(std::num::NonZeroU32::new(2), std::num::NonZeroU32::new(100), NO_LATER);
        let standing = Standing::new("target", limiter, 4);
        standing.turn(HUNDRED, now()).unwrap().unused();
        let mut turn = standing.turn(HUNDRED, now()).unwrap();
        let waiting = tokio::spawn({
            let standing = standing.clone();
            async move { standing.turn_in_line(NINETY, now(), now() + FAR).await.map(|_| now()) }
        });
        tokio::time::sleep(ms(100)).await;
        turn.used(0);
        turn.used(100);
        turn.used(1);
        tokio::time::sleep(ms(500)).await;
        assert!(!waiting.is_finished(), "it has not ended");
        drop(turn);
        let begun = now();
        assert!(waiting.await.unwrap().unwrap() - begun < Duration::from_secs(1), "it need not wait for the minute");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_kept_back_alone_holds_up_nobody() {
        let standing = Standing::new("target", Limiter::new(None, None, NO_LATER), 4);
        let (eve, other_model) = (Claim { who: 2, ..ONE }, Claim { model: Some(2), ..ONE });
        for _ in 0..3 {
            standing.turn(eve, now()).unwrap().ended(Health::Dead);
        }
        standing.pause(other_model.model, now() + ms(900), now());
        let wait = |claim| {
            let standing = standing.clone();
            tokio::spawn(async move { standing.turn_in_line(claim, now(), now() + FAR).await.map(|_| now()) })
        };
        let (eves, paused, begun) = (wait(eve), wait(other_model), now());
        tokio::time::sleep(ms(10)).await;
        assert!(standing.turn(ONE, now()).is_ok());
        assert_eq!(wait(ONE).await.unwrap().map(|at| at - begun), Some(ms(10)));
        assert_eq!(paused.await.unwrap().map(|at| at - begun), Some(ms(900)));
        assert!(eves.await.unwrap().unwrap() - begun >= ms(800));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_come_in_time_is_not_waited_for() {
        let standing = standing(1);
        let _spent = standing.turn(ONE, now()).unwrap();
        let begun = now();
        assert!(standing.turn_in_line(ONE, now(), now() + Duration::from_secs(59)).await.is_none());
        standing.pause(Some(2), now() + FAR, now());
        let other = Claim { model: Some(2), ..ONE };
        assert!(standing.turn_in_line(other, now(), now() + Duration::from_secs(61)).await.is_none());
        assert_eq!(now(), begun);
        assert!(standing.turn_in_line(ONE, now(), now() + Duration::from_secs(61)).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_first_is_served_first_and_the_line_is_bounded() {
        let standing = standing(1);
        let _spent = standing.turn(ONE, now()).unwrap();
        let begun = now();
        let wait = |standing: Arc<Standing>| async move {
            let turn = standing.turn_in_line(ONE, now(), now() + FAR).await;
            turn.map(|_| now())
        };
        let waiting: Vec<_> = (0..5).map(|_| tokio::spawn(wait(standing.clone()))).collect();
        tokio::time::sleep(ms(10)).await;
        assert!(standing.turn(ONE, now()).is_err());
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
            standing.turn(ONE, now()).unwrap().ended(Health::Dead);
        }
        assert!(standing.turn(ONE, now()).is_err() && !standing.now(ONE, now()).available);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let trial = standing.turn(ONE, now()).unwrap();
        assert!(standing.turn(ONE, now()).is_err());
        drop(trial);
        let mut trial = standing.turn(ONE, now()).unwrap();
        trial.ended(Health::Good);
        assert!(standing.turn(ONE, now()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_counts_until_something_goes_well_or_it_is_forgotten() {
        let standing = standing(0);
        assert!(standing.now(ONE, now()).healthy);
        standing.turn(ONE, now()).unwrap().ended(Health::Busy);
        assert!(!standing.now(ONE, now()).healthy && standing.now(ONE, now() + FAILED_FOR).healthy);
        standing.turn(ONE, now()).unwrap().ended(Health::Good);
        assert!(standing.now(ONE, now()).healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_rests_for_long_is_not_waited_for() {
        let standing = standing(0);
        for _ in 0..3 {
            standing.turn(ONE, now()).unwrap().ended(Health::Dead);
        }
        let begun = now();
        for waited in [1, 3] {
            let mut turn = standing.turn_in_line(ONE, now(), now() + FAR).await.unwrap();
            assert!((now() - begun).as_secs_f64() <= f64::from(waited));
            turn.ended(Health::Dead);
        }
        assert!(standing.turn_in_line(ONE, now(), now() + FAR).await.is_none(), "four seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_us_to_wait_is_not_asked_meanwhile() {
        let standing = standing(0);
        standing.pause(ONE.model, now() + ms(500), now());
        standing.pause(ONE.model, now() + ms(100), now());
        assert!(standing.turn(Claim { model: Some(2), ..ONE }, now()).is_ok(), "of another model it said nothing");
        assert_eq!(standing.turn(ONE, now()).err(), Some(now() + ms(500)));
        tokio::time::sleep(ms(500)).await;
        assert!(standing.turn(ONE, now()).is_ok());
    }
}
