//! Courses through targets that follow a script, with a clock that jumps: what takes minutes is over at once, and is always the same
//! but for the jitter.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;

use super::*;
use crate::upstream::limiter::Limiter;

type Ending = Result<&'static str, AttemptError>;
type Script = Box<dyn Fn(usize, Instant) -> (Duration, Ending) + Send + Sync>;

/// A few targets and what they were asked.
struct World {
    targets: Vec<(Arc<Standing>, bool, Script)>,
    asked: Mutex<Vec<(usize, Instant)>>,
    cancelled: AtomicUsize,
    budget: RetryBudget,
    metrics: Metrics,
    begun: Instant,
}

const CLAIM: Claim = Claim { who: 1, model: Some(1), tokens: 1 };

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn busy() -> Ending {
    Err(AttemptError::Busy(None))
}

impl World {
    fn new() -> Self {
        Self {
            targets: Vec::new(),
            asked: Mutex::default(),
            cancelled: AtomicUsize::new(0),
            budget: RetryBudget::new(now()),
            metrics: Metrics::default(),
            begun: now(),
        }
    }

    /// `script`: for the how-manieth request, and the time, how long it takes and how it ends.
    fn with(self, script: impl Fn(usize, Instant) -> (Duration, Ending) + Send + Sync + 'static) -> Self {
        self.limited(0, script)
    }

    fn limited(
        mut self,
        per_minute: u32,
        script: impl Fn(usize, Instant) -> (Duration, Ending) + Send + Sync + 'static,
    ) -> Self {
        let limiter = Limiter::new(std::num::NonZeroU32::new(per_minute), None, Duration::ZERO);
        self.targets.push((Standing::new("target", limiter, 1024), false, Box::new(script)));
        self
    }

    fn ours(mut self) -> Self {
        self.targets.last_mut().unwrap().1 = true;
        self
    }

    fn ask(&self, index: usize, mut turn: Turn) -> BoxFuture<'_, Ending> {
        let (_, _, script) = &self.targets[index];
        let (took, ending) = {
            let mut asked = self.asked.lock().unwrap();
            asked.push((index, now()));
            script(asked.iter().filter(|(at, _)| *at == index).count(), now())
        };
        async move {
            let cancelled = Cancelled(Some(&self.cancelled));
            tokio::time::sleep(took).await;
            cancelled.not();
            settle(&mut turn, &ending, true);
            ending
        }
        .boxed()
    }

    async fn request(
        &self,
        queue: f64,
        race: Option<(f64, usize)>,
    ) -> (Result<(usize, &'static str), Lost>, Vec<Attempt>) {
        self.request_after(&mut Past::default(), queue, race).await
    }

    async fn request_after(
        &self,
        past: &mut Past,
        queue: f64,
        race: Option<(f64, usize)>,
    ) -> (Result<(usize, &'static str), Lost>, Vec<Attempt>) {
        let slots = self.targets.iter().zip(["a", "b", "c", "d"]);
        let slots = slots.map(|((standing, ours, _), name)| Slot { name, standing, ours: *ours }).collect();
        let rules = Rules {
            claim: CLAIM,
            queue: seconds(queue),
            race: race.map(|(after, rival)| (seconds(after), rival)),
            budget: &self.budget,
            metrics: &self.metrics,
        };
        let mut attempts = Vec::new();
        let ended = Course::new(slots, rules, past, &mut attempts, |index, turn| self.ask(index, turn)).run().await;
        (ended, attempts)
    }

    /// Whom it asked, and after how many seconds.
    fn asked(&self) -> Vec<(usize, f64)> {
        self.asked.lock().unwrap().iter().map(|(index, at)| (*index, (*at - self.begun).as_secs_f64())).collect()
    }

    fn count(&self, index: usize) -> usize {
        self.asked().iter().filter(|(at, _)| *at == index).count()
    }
}

struct Cancelled<'a>(Option<&'a AtomicUsize>);

impl Cancelled<'_> {
    fn not(mut self) {
        self.0 = None;
    }
}

impl Drop for Cancelled<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_ready_is_asked_before_anybody_is_waited_for() {
    let world = World::new().with(|_, _| (seconds(0.1), busy())).with(|_, _| (seconds(0.1), Ok("b")));
    let (ended, attempts) = world.request(30.0, None).await;
    assert_eq!(ended.unwrap(), (1, "b"));
    let noted: Vec<_> = attempts.iter().map(|attempt| (attempt.target.as_str(), attempt.result)).collect();
    assert_eq!(noted, [("a", "busy"), ("b", "ok")]);
    assert_eq!(
        world.asked().iter().map(|(index, at)| (*index, (at * 10.0) as u64)).collect::<Vec<_>>(),
        [(0, 0), (1, 1)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_may_pass_is_tried_again_after_a_while() {
    let world = World::new().with(|nth, _| (seconds(0.1), if nth < 3 { busy() } else { Ok("a") }));
    let (ended, attempts) = world.request(30.0, None).await;
    assert_eq!((ended.unwrap().1, attempts.len()), ("a", 3));
    let world = World::new().with(|_, _| (seconds(0.1), busy()));
    let (ended, attempts) = world.request(30.0, None).await;
    let lost = ended.unwrap_err();
    assert_eq!((lost.last, lost.failed, attempts.len()), (Some(AttemptError::Busy(None)), 1, TRIES as usize));
    for final_one in [AttemptError::NotFound, AttemptError::Credentials(401), AttemptError::FirstToken(seconds(1.0))] {
        let world = World::new().with(move |_, _| (seconds(0.1), Err(final_one.clone())));
        assert_eq!(world.request(30.0, None).await.1.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_wrong_for_everybody_ends_its_course() {
    let rejected = || Err(AttemptError::Rejected { context_length: true });
    let world = World::new().with(move |_, _| (seconds(0.1), rejected())).with(|_, _| (seconds(0.1), Ok("b")));
    let (ended, _) = world.request(30.0, None).await;
    assert_eq!(ended.unwrap_err().last, rejected().err());
    assert_eq!(world.count(1), 0);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_asks_us_to_wait_is_left_alone_by_everybody() {
    let wait = || Err(AttemptError::RateLimited(Some(seconds(7.0))));
    let world = World::new().with(move |nth, _| (seconds(0.1), if nth == 1 { wait() } else { Ok("a") }));
    let (first, second) = tokio::join!(world.request(30.0, None), async {
        tokio::time::sleep(seconds(1.0)).await;
        world.request(3.0, None).await
    });
    assert_eq!(first.0.unwrap().1, "a");
    assert_eq!(second.0.unwrap_err().last, None, "three seconds were not enough, and it was not asked");
    let asked = world.asked();
    assert!(asked.len() == 2 && asked[1].1 >= 7.1, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn retries_are_a_share_of_the_traffic() {
    let world = World::new().with(|_, _| (seconds(0.01), Err(AttemptError::Status(500))));
    // The breaker would spare it as well; so each request sees a target of its own.
    for _ in 0..1000 {
        let limiter = Limiter::new(None, None, Duration::ZERO);
        let fresh = Standing::new("target", limiter, 1024);
        let slots = vec![Slot { name: "a", standing: &fresh, ours: false }];
        let rules =
            Rules { claim: CLAIM, queue: seconds(30.0), race: None, budget: &world.budget, metrics: &world.metrics };
        let (mut past, mut attempts) = (Past::default(), Vec::new());
        let course = Course::new(slots, rules, &mut past, &mut attempts, |index, turn| world.ask(index, turn));
        assert!(course.run().await.is_err());
    }
    let took = (now() - world.begun).as_secs_f64();
    let retries = world.count(0) as f64 - 1000.0;
    assert!(retries <= 200.0 + 10.0 * took + 11.0, "{retries} in {took} s");
    assert!(retries >= 200.0, "{retries}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_target_is_spared_and_found_again() {
    let begun = now();
    let dead = move |_, at| if at < begun + seconds(20.0) { Err(AttemptError::Connect) } else { Ok("a") };
    let world = World::new().with(move |nth, at| (seconds(0.0), dead(nth, at))).with(|_, _| (seconds(0.0), Ok("b")));
    for _ in 0..600 {
        assert!(world.request(1.0, None).await.0.is_ok());
        tokio::time::sleep(seconds(0.1)).await;
    }
    let while_dead = world.asked().iter().filter(|(index, at)| *index == 0 && *at < 20.0).count();
    assert!((3..=12).contains(&while_dead), "200 requests, and {while_dead} of them asked it");
    let found_at = world.asked().iter().find(|(index, at)| *index == 0 && *at >= 20.0).unwrap().1;
    assert!(found_at < 40.0, "{found_at}");
    let after = world.asked().iter().filter(|(index, at)| *index == 0 && *at >= 41.0).count();
    assert_eq!(after, world.asked().iter().filter(|(_, at)| *at >= 41.0).count(), "as before");
}

#[tokio::test(start_paused = true)]
async fn the_cloud_is_raced_after_the_goal_and_the_loser_is_cancelled() {
    let world = World::new().with(|_, _| (seconds(9.0), Ok("a"))).with(|_, _| (seconds(0.2), Ok("b")));
    let (ended, attempts) = world.request(30.0, Some((0.15, 1))).await;
    assert_eq!((ended.unwrap(), now() - world.begun), ((1, "b"), seconds(0.35)));
    let noted: Vec<_> = attempts.iter().map(|attempt| (attempt.target.as_str(), attempt.result)).collect();
    assert_eq!(noted, [("a", "lost_race"), ("b", "ok")]);
    assert_eq!(world.cancelled.load(Ordering::Relaxed), 1);
    // Quick enough: nobody else is asked.
    let world = World::new().with(|_, _| (seconds(0.1), Ok("a"))).with(|_, _| (seconds(0.2), Ok("b")));
    assert_eq!(world.request(30.0, Some((0.15, 1))).await.0.unwrap(), (0, "a"));
    assert_eq!(world.count(1), 0);
    // Both fail: each was asked once, and the third is asked.
    let world = World::new()
        .with(|_, _| (seconds(0.3), Err(AttemptError::Malformed("shape"))))
        .with(|_, _| (seconds(0.1), Err(AttemptError::NotFound)))
        .with(|_, _| (seconds(0.1), Ok("c")));
    assert_eq!(world.request(30.0, Some((0.15, 1))).await.0.unwrap(), (2, "c"));
    assert_eq!((world.count(0), world.count(1)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_rival_that_fails_is_followed_by_the_next() {
    let fails = || Err(AttemptError::Status(500));
    let world = World::new()
        .with(|_, _| (seconds(30.0), Ok("a")))
        .with(move |_, _| (seconds(0.1), fails()))
        .with(|_, _| (seconds(0.1), Ok("c")));
    assert_eq!(world.request(30.0, Some((0.15, 1))).await.0.unwrap(), (2, "c"));
    assert_eq!(now() - world.begun, seconds(0.35), "nobody waits for the first, which is cancelled");
    assert_eq!(world.cancelled.load(Ordering::Relaxed), 1);
    // What is wrong for everybody is said at once.
    let rejected = || Err(AttemptError::Rejected { context_length: false });
    let world = World::new().with(|_, _| (seconds(30.0), Ok("a"))).with(move |_, _| (seconds(0.1), rejected()));
    let (ended, attempts) = world.request(30.0, Some((0.15, 1))).await;
    assert_eq!((ended.unwrap_err().last, now() - world.begun), (rejected().err(), seconds(0.25)));
    let noted: Vec<_> = attempts.iter().map(|attempt| attempt.result).collect();
    assert_eq!(noted, ["lost_race", "rejected"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_budget_forbids_takes_nothing_of_a_limit() {
    let world = World::new().limited(1000, |_, _| (seconds(0.0), Err(AttemptError::Broken)));
    let standing = &world.targets[0].0;
    // Each as somebody else, and well in between, so that no breaker is in the way.
    let each = (0..100).map(|who| {
        let slots = vec![Slot { name: "a", standing, ours: false }];
        let claim = Claim { who, ..CLAIM };
        let rules = Rules { claim, queue: seconds(30.0), race: None, budget: &world.budget, metrics: &world.metrics };
        async {
            let (mut past, mut attempts) = (Past::default(), Vec::new());
            let ask = |index, mut turn: Turn| {
                turn.ended(Health::Good);
                world.ask(index, turn)
            };
            assert!(Course::new(slots, rules, &mut past, &mut attempts, ask).run().await.is_err());
        }
    });
    futures_util::future::join_all(each).await;
    let left = standing.now(CLAIM, now()).requests_left.unwrap();
    assert!(world.count(0) < 300, "the budget was spent");
    assert_eq!(left, 1000 - world.count(0) as u64);
}

#[tokio::test(start_paused = true)]
async fn whoever_stands_in_for_the_first_races_as_well_for_what_is_left_of_the_time() {
    let world = World::new()
        .with(|_, _| (seconds(0.1), busy()))
        .with(|_, _| (seconds(9.0), Ok("b")))
        .with(|_, _| (seconds(0.2), Ok("c")));
    assert_eq!(world.request(30.0, Some((0.15, 2))).await.0.unwrap(), (2, "c"));
    assert_eq!(now() - world.begun, seconds(0.35));
}

#[tokio::test(start_paused = true)]
async fn a_race_never_waits_for_a_limit() {
    let world = World::new().with(|_, _| (seconds(1.0), Ok("a"))).limited(1, |_, _| (seconds(0.1), Ok("b")));
    assert_eq!(world.request(30.0, Some((0.1, 1))).await.0.unwrap(), (1, "b"));
    assert_eq!(world.request(30.0, Some((0.1, 1))).await.0.unwrap(), (0, "a"), "no turn is left for a race");
    assert_eq!(world.count(1), 1);
}

#[tokio::test(start_paused = true)]
async fn no_minute_holds_more_than_the_limit_and_those_who_wait_are_served() {
    let refused = |nth: usize| if nth.is_multiple_of(3) { busy() } else { Ok("a") };
    let world = Arc::new(World::new().limited(60, move |nth, _| (seconds(1.2), refused(nth))));
    // 90 within ten seconds, and then one every four.
    let mut coming = Vec::new();
    for at in 0..150 {
        let world = world.clone();
        let after = if at < 90 { at as f64 / 9.0 } else { 10.0 + 4.0 * (at - 90) as f64 };
        coming.push(tokio::spawn(async move {
            tokio::time::sleep(seconds(after)).await;
            world.request(240.0, None).await.0.is_ok()
        }));
    }
    let mut answered = 0;
    for request in coming {
        answered += usize::from(request.await.unwrap());
    }
    let asked = world.asked.lock().unwrap();
    for (_, from) in asked.iter() {
        let within = asked.iter().filter(|(_, at)| at >= from && *at < *from + seconds(60.0)).count();
        assert!(within <= 60, "{within} from {:?}", *from - world.begun);
    }
    assert!(answered >= 145, "{answered} of 150 were answered, with {} attempts", asked.len());
}

#[tokio::test(start_paused = true)]
async fn one_request_does_not_bring_down_all_engines_of_ours() {
    let breaks = |_, _| (seconds(0.1), Err(AttemptError::Broken));
    let world =
        World::new().with(breaks).ours().with(breaks).ours().with(breaks).ours().with(|_, _| (seconds(0.1), Ok("d")));
    assert_eq!(world.request(30.0, None).await.0.unwrap(), (3, "d"));
    assert_eq!((world.count(0), world.count(1), world.count(2)), (1, 1, 0));
}

/// An answer that breaks off after its first token, and is gone on with, until nobody goes on.
async fn breaking(world: &World, most: usize) -> Vec<Attempt> {
    let (mut past, mut all) = (Past::default(), Vec::new());
    for _ in 0..most {
        let (ended, attempts) = world.request_after(&mut past, 30.0, None).await;
        all.extend(attempts);
        let Ok((index, name)) = ended else { break };
        past.broke(name, world.targets[index].1, &AttemptError::Died);
    }
    all
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_gone_on_with_is_one_request_to_every_bound() {
    // It always begins, and always breaks off.
    let world = World::new().with(|_, _| (seconds(0.1), Ok("a"))).with(|_, _| (seconds(0.1), Ok("b")));
    breaking(&world, 100).await;
    assert_eq!((world.count(0), world.count(1)), (TRIES as usize, TRIES as usize));
    // What failed for good before the answer began is not asked for its rest.
    let world = World::new()
        .with(|_, _| (seconds(0.1), Err(AttemptError::NotFound)))
        .with(|_, _| (seconds(0.1), Ok("b")))
        .with(|_, _| (seconds(0.1), Ok("c")));
    assert_eq!(breaking(&world, 2).await.len(), 3);
    assert_eq!(world.count(0), 1);
}

#[tokio::test(start_paused = true)]
async fn going_on_comes_out_of_the_retry_budget() {
    let world = World::new().with(|_, _| (seconds(0.0), Ok("a"))).with(|_, _| (seconds(0.0), Ok("b")));
    while world.budget.withdraw(now()) {}
    let (mut past, mut asked) = (Past::default(), Vec::new());
    // No time passes, in which the budget would grow.
    while let (Ok((_, name)), _) = world.request_after(&mut past, 0.0, None).await {
        asked.push(name);
    }
    assert_eq!(asked, ["a", "b"], "each of them once is free, as a failover is");
    // A request counts once for the budget, however often it is gone on with.
    let world = World::new().with(|_, _| (seconds(0.0), Ok("a")));
    let before = (0..).take_while(|_| world.budget.withdraw(now())).count();
    let mut past = Past::default();
    for _ in 0..10 {
        let _ended = world.request_after(&mut past, 0.0, None).await;
        past.stops.clear();
    }
    assert_eq!((before, world.budget.withdraw(now())), (10, false), "ten deposits would have been two retries");
}

#[tokio::test(start_paused = true)]
async fn one_request_does_not_bring_down_all_engines_of_ours_in_the_middle_of_its_answer() {
    let world = World::new()
        .with(|_, _| (seconds(0.1), Ok("a")))
        .ours()
        .with(|_, _| (seconds(0.1), Err(AttemptError::Broken)))
        .ours()
        .with(|_, _| (seconds(0.1), Ok("c")))
        .ours()
        .with(|_, _| (seconds(0.1), Ok("d")));
    let mut past = Past::default();
    let began = world.request_after(&mut past, 30.0, None).await.0;
    past.broke(began.unwrap().1, true, &AttemptError::Died);
    // The next course asks the others first, as `go_on` does.
    world.targets[0].0.pause(CLAIM.model, now() + seconds(60.0), now());
    assert_eq!(world.request_after(&mut past, 30.0, None).await.0.unwrap(), (3, "d"));
    assert_eq!((world.count(0), world.count(1), world.count(2)), (1, 1, 0));
    // An engine that says what is wrong is not lost.
    let mut past = Past::default();
    past.broke("a", true, &AttemptError::Malformed("shape"));
    past.broke("b", false, &AttemptError::Died);
    assert_eq!(past.ours_broken, 0);
}

#[tokio::test(start_paused = true)]
async fn the_patience_of_a_request_is_for_all_its_courses() {
    let world = World::new().limited(1, |_, _| (seconds(0.0), Ok("a")));
    let other = world.request(30.0, None).await;
    assert!(other.0.is_ok());
    let mut past = Past::default();
    // Sixty seconds of waiting for the first turn; thirty are left for the second, which would come after sixty.
    assert!(world.request_after(&mut past, 90.0, None).await.0.is_ok());
    past.broke("a", false, &AttemptError::Died);
    let begun = now();
    assert!(world.request_after(&mut past, 90.0, None).await.0.is_err());
    assert_eq!(now(), begun, "which is known beforehand");
    assert!(world.request(90.0, None).await.0.is_ok(), "for another request they would be enough");
}
