use std::time::Duration;

use postern_wire::json::json;

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn lead(flights: &Arc<Flights>, key: u8) -> Leading {
    match flights.enter([key; 32], soon()) {
        Role::Lead(leading) => leading,
        other => panic!("{other:?}"),
    }
}

fn follow(flights: &Arc<Flights>, key: u8) -> Follower {
    match flights.enter([key; 32], soon()) {
        Role::Follow(follower) => follower,
        other => panic!("{other:?}"),
    }
}

fn event(n: usize) -> Arc<Value> {
    Arc::new(json!(n))
}

fn is_free(flights: &Arc<Flights>, key: u8) -> bool {
    matches!(flights.enter([key; 32], soon()), Role::Lead(_))
}

#[tokio::test]
async fn what_the_leader_finds_in_other_words_is_everybodys_at_once() {
    let flights = Arc::new(Flights::default());
    let leading = lead(&flights, 1);
    let mut follower = follow(&flights, 1);
    let events: Arc<[Arc<Value>]> = (0..3).map(event).collect();
    leading.pass_on(&Entry { target: "sun".into(), events: events.clone(), bytes: 9, tokens: (None, None) });
    assert!(matches!(follower.begun().await, Begun::Answer(target) if &*target == "sun"));
    assert!(follower.is_similar());
    for expected in &*events {
        assert_eq!(follower.next().await.unwrap().as_ref(), Some(expected));
    }
    assert_eq!(follower.next().await, Ok(None));
    drop(follower);
    assert!(is_free(&flights, 1) && flights.held.load(Ordering::Relaxed) == 0);
}

#[tokio::test]
async fn everybody_gets_every_event_in_order_whenever_they_come() {
    let flights = Arc::new(Flights::default());
    let leading = lead(&flights, 1);
    leading.answers("sun");
    let read = |mut follower: Follower| async move {
        let begun = follower.begun().await;
        assert!(matches!(&begun, Begun::Answer(target) if &**target == "sun"), "{begun:?}");
        let mut all = Vec::new();
        while let Some(event) = follower.next().await.unwrap() {
            all.push(event);
        }
        all
    };
    let mut readers: Vec<_> = (0..100).map(|_| tokio::spawn(read(follow(&flights, 1)))).collect();
    for n in 0..1000 {
        leading.publish(&event(n), 10);
        if n % 100 == 50 {
            readers.push(tokio::spawn(read(follow(&flights, 1))));
            tokio::task::yield_now().await;
        }
    }
    leading.complete();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), (0..1000).map(event).collect::<Vec<_>>());
    }
    assert!(is_free(&flights, 1));
    assert_eq!(flights.held.load(Ordering::Relaxed), 0);
    assert!(flights.open().is_empty());
}

#[tokio::test]
async fn nobody_waits_for_a_leader_that_is_gone() {
    let flights = Arc::new(Flights::default());
    let leading = lead(&flights, 1);
    let (mut early, mut late) = (follow(&flights, 1), follow(&flights, 1));
    let waiting = tokio::spawn(async move { early.begun().await });
    tokio::task::yield_now().await;
    drop(leading);
    assert!(matches!(waiting.await.unwrap(), Begun::Again(None)));
    assert!(matches!(late.begun().await, Begun::Again(None)));
    let leading = lead(&flights, 1);
    let mut cut = follow(&flights, 1);
    leading.publish(&event(0), 1);
    drop(leading);
    assert!(matches!(cut.begun().await, Begun::Answer(_)));
    assert!(cut.next().await.unwrap().is_some());
    assert_eq!(cut.next().await, Err(Lost));
}

#[tokio::test]
async fn what_went_wrong_is_told_to_those_whom_it_concerns() {
    let flights = Arc::new(Flights::default());
    let begun = async |end: fn(Leading)| {
        let leading = lead(&flights, 1);
        let mut follower = follow(&flights, 1);
        end(leading);
        follower.begun().await
    };
    let rejected = begun(|leading| leading.failed(&Error::UpstreamRejected)).await;
    assert!(matches!(rejected, Begun::Refused(Error::UpstreamRejected)));
    let refused = begun(|leading| leading.failed(&Error::UpstreamRefusesUs)).await;
    assert!(matches!(refused, Begun::Again(Some(Error::UpstreamRefusesUs))));
    let own = begun(|leading| leading.failed(&Error::Busy)).await;
    assert!(matches!(own, Begun::Again(None)), "what concerns the leader only");
    assert!(matches!(begun(Leading::unfit).await, Begun::Alone));
}

#[tokio::test]
async fn a_leader_knows_whether_it_is_followed_and_nobody_joins_what_is_given_up() {
    let flights = Arc::new(Flights::default());
    let leading = lead(&flights, 1);
    let flight = leading.flight().clone();
    assert!(!flight.is_followed());
    let follower = follow(&flights, 1);
    flight.joined().await;
    assert!(flight.is_followed());
    let waiting = tokio::spawn(async move { flight.nobody_left().await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(follower);
    waiting.await.unwrap();
    // The key is free although the leader is still there, and stays the next one's when it goes.
    let next = lead(&flights, 1);
    drop(leading);
    let _joined = follow(&flights, 1);
    drop(next);
}

#[tokio::test]
async fn what_is_held_is_bounded_and_who_is_too_far_behind_knows_it() {
    let flights = Arc::new(Flights::default());
    let leading = lead(&flights, 1);
    let piece = MAX_ENTRY / 4;
    let (mut quick, mut slow, mut absent) = (follow(&flights, 1), follow(&flights, 1), follow(&flights, 1));
    leading.publish(&event(0), piece);
    assert!(slow.next().await.unwrap().is_some());
    for n in 1..100 {
        assert!(quick.next().await.unwrap().is_some());
        leading.publish(&event(n), piece);
        assert!(flights.held.load(Ordering::Relaxed) <= MAX_BEHIND);
    }
    assert!(quick.next().await.unwrap().is_some());
    assert_eq!(slow.next().await, Err(Lost));
    assert!(matches!(absent.begun().await, Begun::Alone), "nothing of it was sent yet");
    assert!(matches!(flights.enter([1; 32], soon()), Role::Alone), "its beginning is gone");
    drop((quick, slow, absent));
    leading.publish(&event(100), piece);
    assert_eq!(flights.held.load(Ordering::Relaxed), 0, "for itself it need not be held");
    leading.complete();
    assert!(is_free(&flights, 1));
}

#[tokio::test]
async fn those_who_wait_set_the_time() {
    let flights = Arc::new(Flights::default());
    let leading = lead(&flights, 1);
    let later = soon() + Duration::from_secs(600);
    let _follower = flights.enter([1; 32], later);
    assert_eq!(leading.flight().until(), later);
}
