//! In which order targets are asked, when again, and for how long one is waited for. Knows nothing of requests and connections: it
//! is tried with a clock of its own.
//!
//! The targets come in the order of the plan. The first that may be asked now is; if it fails, the next that may. Nobody is waited
//! for as long as somebody may be asked. If nobody may (limits, breakers, pauses that targets asked for, the time after a failure),
//! the first that may is waited for, within the bound. A target is asked again only if its failure may pass, at most
//! [`TRIES`] times, after a random time that doubles, and if the retry budget has it.
//!
//! Only what has shown nothing yet is repeated: the first token ends a course. If the answer breaks off later, another course looks for
//! somebody to go on with it, and begins with the [`Past`] of the one before: to the bounds, both are one request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use super::budget::RetryBudget;
use crate::audit::Attempt;
use crate::telemetry::metrics::Metrics;
use crate::upstream::AttemptError;
use crate::upstream::breaker::Health;
use crate::upstream::standing::{Claim, Standing, Turn, now};

/// How often one target is asked for one request.
const TRIES: u32 = 4;
/// The first time after a failure is a random one up to this; it doubles each time, up to the bound.
const BACK_OFF: Duration = Duration::from_millis(200);
const BACK_OFF_MOST: Duration = Duration::from_secs(5);
/// Engines of our own that may lose their connection to one request: it may be what kills them.
const OURS_BROKEN: u32 = 2;

/// One target of a plan.
pub(super) struct Slot<'a> {
    pub(super) name: &'a str,
    pub(super) standing: &'a Arc<Standing>,
    /// An engine of our own.
    pub(super) ours: bool,
}

/// What holds for one request.
pub(super) struct Rules<'a> {
    /// What it asks of each target.
    pub(super) claim: Claim,
    /// How long turns may be waited for, in all.
    pub(super) queue: Duration,
    /// Whom those before it race, and how long after the beginning.
    pub(super) race: Option<(Duration, usize)>,
    pub(super) budget: &'a RetryBudget,
    pub(super) metrics: &'a Metrics,
}

/// Nobody answered.
#[derive(Debug)]
pub(super) struct Lost {
    /// Why the last one did not; `None`: nobody was asked.
    pub(super) last: Option<AttemptError>,
    /// How many of the targets failed.
    pub(super) failed: usize,
    /// When it may help to come again.
    pub(super) retry_after: Duration,
}

/// What a request has behind it when its answer breaks off.
#[derive(Debug, Default)]
pub struct Past {
    stops: BTreeMap<String, Been>,
    ours_broken: u32,
    /// What is left of it; `None`: this is the first course.
    patience: Option<Duration>,
}

/// What became of a target in the courses before.
#[derive(Debug, Clone, Copy)]
struct Been {
    tries: u32,
    not_before: Instant,
    out: bool,
}

impl Past {
    /// The answer of `target` broke off, after the course had ended with it.
    pub(super) fn broke(&mut self, target: &str, ours: bool, error: &AttemptError) {
        if let Some(been) = self.stops.get_mut(target) {
            been.not_before = now() + back_off(been.tries).mul_f64(rand::random::<f64>());
        }
        self.ours_broken += u32::from(ours && error.lost_connection());
    }
}

/// One request's way through the targets. `ask` asks the target at an index, with leave to do so once.
pub(super) struct Course<'a, F> {
    slots: Vec<Stop<'a>>,
    rules: Rules<'a>,
    past: &'a mut Past,
    attempts: &'a mut Vec<Attempt>,
    ask: F,
    begun: Instant,
    ours_broken: u32,
    patience: Duration,
    last: Option<AttemptError>,
}

/// What became of a target so far.
struct Stop<'a> {
    slot: Slot<'a>,
    tries: u32,
    not_before: Instant,
    out: bool,
}

impl<'a, R, F> Course<'a, F>
where
    R: 'a,
    F: Fn(usize, Turn) -> BoxFuture<'a, Result<R, AttemptError>>,
{
    pub(super) fn new(
        slots: Vec<Slot<'a>>,
        rules: Rules<'a>,
        past: &'a mut Past,
        attempts: &'a mut Vec<Attempt>,
        ask: F,
    ) -> Self {
        let begun = now();
        let stop = |slot: Slot<'a>| {
            let fresh = Been { tries: 0, not_before: begun, out: false };
            let Been { tries, not_before, out } = past.stops.get(slot.name).copied().unwrap_or(fresh);
            let out = out || tries >= TRIES || (slot.ours && past.ours_broken >= OURS_BROKEN);
            Stop { slot, tries, not_before, out }
        };
        let slots = slots.into_iter().map(stop).collect();
        let (ours_broken, patience) = (past.ours_broken, past.patience.unwrap_or(rules.queue));
        Self { slots, rules, past, attempts, ask, begun, ours_broken, patience, last: None }
    }

    /// Goes on until one answers; says which.
    pub(super) async fn run(mut self) -> Result<(usize, R), Lost> {
        if self.past.patience.is_none() {
            self.rules.budget.deposit();
        }
        while let Some((index, turn)) = self.next().await {
            let (index, result) = match self.rules.race.filter(|(_, rival)| index < *rival) {
                Some((after, rival)) => self.race((index, turn), after, rival).await,
                None => (index, self.alone(index, turn).await),
            };
            match result {
                Ok(reply) => {
                    self.remember();
                    return Ok((index, reply));
                }
                Err(error) if self.failed(index, &error) => return Err(self.lost()),
                Err(_) => {}
            }
        }
        Err(self.lost())
    }

    /// For the course that goes on if the answer breaks off.
    fn remember(&mut self) {
        for Stop { slot, tries, not_before, out } in &self.slots {
            let been = Been { tries: *tries, not_before: *not_before, out: *out };
            self.past.stops.insert(slot.name.to_owned(), been);
        }
        (self.past.ours_broken, self.past.patience) = (self.ours_broken, Some(self.patience));
    }

    fn lost(self) -> Lost {
        let (now, claim) = (now(), self.rules.claim);
        let failed = self.slots.iter().filter(|stop| stop.tries > 0).count();
        let free_at = |stop: &Stop<'_>| stop.not_before.max(stop.slot.standing.free_at(claim, now));
        let soonest = self.slots.iter().map(free_at).min().unwrap_or(now);
        Lost { last: self.last, failed, retry_after: soonest.saturating_duration_since(now) }
    }

    /// Who is asked next: whoever may be, else whoever may be first. `None`: nobody, or not in time.
    async fn next(&mut self) -> Option<(usize, Turn)> {
        loop {
            let (index, turn) = match self.at_once() {
                Some(found) => return Some(found),
                None => self.in_line().await?,
            };
            let stop = self.slots.get_mut(index)?;
            if stop.may_ask(self.rules.budget) {
                return Some((index, turn));
            }
            turn.unused();
            stop.out = true;
        }
    }

    fn at_once(&mut self) -> Option<(usize, Turn)> {
        let (now, claim) = (now(), self.rules.claim);
        for (index, stop) in self.slots.iter_mut().enumerate().filter(|(_, stop)| !stop.out && stop.not_before <= now) {
            match stop.slot.standing.turn(claim, now) {
                Ok(turn) if stop.may_ask(self.rules.budget) => return Some((index, turn)),
                Ok(turn) => {
                    turn.unused();
                    stop.out = true;
                }
                Err(_later) => {}
            }
        }
        None
    }

    async fn in_line(&mut self) -> Option<(usize, Turn)> {
        let (begun, claim) = (now(), self.rules.claim);
        let until = begun + self.patience;
        let usable = self.slots.iter().enumerate().filter(|(_, stop)| !stop.out);
        let mut coming: FuturesUnordered<_> = usable
            .map(|(index, stop)| {
                let (standing, from) = (stop.slot.standing, stop.not_before);
                async move { standing.turn_in_line(claim, from, until).await.map(|turn| (index, turn)) }
            })
            .collect();
        // Whoever has no room in line gives nothing; the others are still waited for.
        let first = async {
            while let Some(found) = coming.next().await {
                if found.is_some() {
                    return found;
                }
            }
            None
        };
        let found = timeout(self.patience, first).await.ok().flatten();
        self.patience = self.patience.saturating_sub(now().saturating_duration_since(begun));
        found
    }

    async fn alone(&mut self, index: usize, turn: Turn) -> Result<R, AttemptError> {
        if self.slots.get(index).is_some_and(|stop| stop.tries > 1) {
            self.rules.metrics.retried(self.name(index));
        }
        let note = self.note(index);
        let result = (self.ask)(index, turn).await;
        self.noted(note, code(&result));
        result
    }

    /// Asks the first; if it has no token after a while, asks the rival as well, if that may be asked at once, and others after it if
    /// that fails. The first token wins, and the other one is cancelled. Gives who ended it, and how.
    async fn race(
        &mut self,
        (index, turn): (usize, Turn),
        after: Duration,
        rival: usize,
    ) -> (usize, Result<R, AttemptError>) {
        let note = self.note(index);
        let mut near = (self.ask)(index, turn);
        let after = after.saturating_sub(now().saturating_duration_since(self.begun));
        if let Ok(result) = timeout(after, &mut near).await {
            self.noted(note, code(&result));
            return (index, result);
        }
        while let Some((rival, turn)) = self.rival(rival) {
            let rival_note = self.note(rival);
            let far = (self.ask)(rival, turn);
            match select(near, far).await {
                Either::Left((Ok(reply), _)) => {
                    self.raced(rival, "lost");
                    self.noted(note, "ok");
                    self.noted(rival_note, "lost_race");
                    return (index, Ok(reply));
                }
                Either::Right((Ok(reply), _)) => {
                    self.raced(rival, "won");
                    self.noted(note, "lost_race");
                    self.noted(rival_note, "ok");
                    return (rival, Ok(reply));
                }
                Either::Left((Err(error), far)) => {
                    self.noted(note, error.code());
                    if self.failed(index, &error) {
                        self.noted(rival_note, "lost_race");
                        return (index, Err(error));
                    }
                    let result = far.await;
                    self.raced(rival, if result.is_ok() { "won" } else { "failed" });
                    self.noted(rival_note, code(&result));
                    return (rival, result);
                }
                Either::Right((Err(error), still)) => {
                    self.raced(rival, "failed");
                    self.noted(rival_note, error.code());
                    if self.failed(rival, &error) {
                        self.noted(note, "lost_race");
                        return (rival, Err(error));
                    }
                    near = still;
                }
            }
        }
        let result = near.await;
        self.noted(note, code(&result));
        (index, result)
    }

    /// The first from the rival on that may be asked without waiting, and was not yet.
    fn rival(&mut self, rival: usize) -> Option<(usize, Turn)> {
        let (now, claim) = (now(), self.rules.claim);
        let stops = self.slots.iter_mut().enumerate().skip(rival).filter(|(_, stop)| !stop.out && stop.tries == 0);
        let (index, stop, turn) = stops
            .filter_map(|(index, stop)| stop.slot.standing.turn(claim, now).ok().map(|turn| (index, stop, turn)))
            .next()?;
        stop.tries += 1;
        Some((index, turn))
    }

    fn raced(&self, rival: usize, result: &'static str) {
        self.rules.metrics.raced(self.name(rival), result);
    }

    /// Noted before it is known how it ends: if the client goes away meanwhile, the record still says who was asked.
    fn note(&mut self, index: usize) -> (usize, Instant) {
        let attempt = Attempt { target: self.name(index).to_owned(), result: "abandoned", ms: 0.0 };
        self.attempts.push(attempt);
        (self.attempts.len() - 1, now())
    }

    fn noted(&mut self, (at, since): (usize, Instant), result: &'static str) {
        if let Some(attempt) = self.attempts.get_mut(at) {
            attempt.result = result;
            attempt.ms = now().saturating_duration_since(since).as_secs_f64() * 1e3;
        }
    }

    fn name(&self, index: usize) -> &'a str {
        self.slots.get(index).map_or("", |stop| stop.slot.name)
    }

    /// Notes whether and when it may be asked again; true if nobody else would do better.
    fn failed(&mut self, index: usize, error: &AttemptError) -> bool {
        self.put_off(index, error);
        let is_final = !error.is_worth_another_target();
        // What is wrong with the request is worth more than how others were when they were asked after it.
        if !self.last.as_ref().is_some_and(AttemptError::is_of_the_request) {
            self.last = Some(error.clone());
        }
        is_final
    }

    fn put_off(&mut self, index: usize, error: &AttemptError) {
        let (now, model) = (now(), self.rules.claim.model);
        let ours_before = self.ours_broken;
        let Some(stop) = self.slots.get_mut(index) else { return };
        // Also of those who say that they need no time at all.
        let at_least = back_off(stop.tries).mul_f64(rand::random::<f64>());
        let pause = error.retry_after();
        stop.not_before = now + pause.map_or(at_least, |pause| pause.max(at_least));
        if let (Some(_), AttemptError::RateLimited(_)) = (pause, error) {
            stop.slot.standing.pause(model, stop.not_before, now);
        }
        stop.out = !error.may_pass() || stop.tries >= TRIES;
        if stop.slot.ours && error.lost_connection() {
            stop.out = true;
            self.ours_broken += 1;
        }
        if self.ours_broken >= OURS_BROKEN && ours_before < OURS_BROKEN {
            self.slots.iter_mut().filter(|stop| stop.slot.ours).for_each(|stop| stop.out = true);
        }
        let from = self.name(index);
        let next = self.slots.iter().find(|stop| !stop.out && stop.tries == 0);
        if let Some(next) = next {
            self.rules.metrics.fell_back(from, next.slot.name, error.code());
        }
    }
}

impl Stop<'_> {
    /// The first time is free; the others come out of the budget.
    fn may_ask(&mut self, budget: &RetryBudget) -> bool {
        let may = self.tries == 0 || budget.withdraw(now());
        self.tries += u32::from(may);
        may
    }
}

/// How long a target is left alone after that many tries, at most.
fn back_off(tries: u32) -> Duration {
    BACK_OFF.saturating_mul(1 << (tries.clamp(1, 8) - 1)).min(BACK_OFF_MOST)
}

fn code<R>(result: &Result<R, AttemptError>) -> &'static str {
    result.as_ref().map_or_else(AttemptError::code, |_| "ok")
}

/// Tells the target's standing how an attempt ended.
pub(super) fn settle<R>(turn: &mut Turn, result: &Result<R, AttemptError>, stream: bool) {
    match result {
        // How it ends is told by its stream.
        Ok(_) if stream => turn.first_token(),
        Ok(_) => turn.ended(Health::Good),
        Err(error) => turn.ended(error.health()),
    }
}

#[cfg(test)]
mod tests;
