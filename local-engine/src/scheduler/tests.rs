use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn scheduler(running: usize, waiting: usize) -> Scheduler {
    Scheduler::new(Bounds { running, waiting })
}

fn job(id: SequenceId, identity: &str, priority: Priority, tokens: usize) -> Job {
    Job { id, identity: Arc::from(identity), priority, tokens }
}

fn add(s: &mut Scheduler, id: SequenceId, tokens: usize) {
    s.enqueue(job(id, "a", Priority::Interactive, tokens)).unwrap();
}

fn admit_all(s: &mut Scheduler) -> Vec<SequenceId> {
    let mut admitted = Vec::new();
    while let Some(id) = s.candidate() {
        s.admit(id, 0);
        admitted.push(id);
    }
    admitted
}

/// A step in which everybody who decodes draws a token.
fn step(s: &mut Scheduler, budget: usize) -> Vec<(SequenceId, usize)> {
    admit_all(s);
    let work = s.plan(budget);
    for work in &work {
        s.advance(work.id, work.count);
        if s.running.iter().any(|entry| entry.job.id == work.id && entry.lacks() == 0) {
            s.extend(work.id);
        }
    }
    work.iter().map(|work| (work.id, work.count)).collect()
}

#[test]
fn a_prompt_is_cut_into_chunks_then_decodes() {
    let mut s = scheduler(4, 4);
    add(&mut s, 1, 130);
    assert_eq!(step(&mut s, 64), [(1, 64)]);
    assert_eq!(s.queued_prompt_tokens(), 66);
    assert_eq!(step(&mut s, 64), [(1, 64)]);
    assert_eq!(step(&mut s, 64), [(1, 2)]);
    assert_eq!((s.queued_prompt_tokens(), s.decoding()), (0, 1));
    assert_eq!(step(&mut s, 64), [(1, 1)]);
}

#[test]
fn what_is_in_memory_already_is_not_computed_again_but_one_token_always_is() {
    let mut s = scheduler(4, 4);
    add(&mut s, 1, 100);
    add(&mut s, 2, 100);
    s.admit(1, 96);
    s.admit(2, 100);
    assert_eq!(step(&mut s, 64), [(2, 1), (1, 4)]);
}

#[test]
fn decoding_goes_on_within_the_budget_of_those_that_prefill() {
    let mut s = scheduler(4, 4);
    add(&mut s, 1, 10);
    step(&mut s, 64);
    add(&mut s, 2, 1000);
    add(&mut s, 3, 60);
    assert_eq!(step(&mut s, 8), [(1, 1), (2, 8)]);
    assert_eq!(step(&mut s, 8), [(1, 1), (3, 8)], "a long prompt does not hold up a short one");
    assert_eq!(step(&mut s, 100), [(1, 1), (2, 100)]);
    assert_eq!(step(&mut s, 100), [(1, 1), (3, 52), (2, 48)]);
    assert_eq!(step(&mut s, 0), [(1, 1), (3, 1)], "without a budget only those that decode");
}

#[test]
fn the_queue_is_bounded_and_a_removed_sequence_makes_room() {
    let mut s = scheduler(1, 2);
    for id in 1..=3 {
        add(&mut s, id, 5);
    }
    assert_eq!(s.enqueue(job(4, "a", Priority::Interactive, 5)), Err(QueueFull));
    assert_eq!(admit_all(&mut s), [1]);
    assert_eq!(s.enqueue(job(4, "a", Priority::Interactive, 5)), Err(QueueFull));
    s.remove(1);
    assert_eq!(admit_all(&mut s), [2]);
    add(&mut s, 5, 5);
    s.preempt(2);
    assert_eq!(s.waiting(), 3, "what ran already does not lose its place");
}

#[test]
fn identities_take_turns_however_many_requests_they_have() {
    let mut s = scheduler(1, 100);
    for id in 0..10 {
        s.enqueue(job(id, "greedy", Priority::Interactive, 50)).unwrap();
    }
    for id in 10..13 {
        s.enqueue(job(id, "modest", Priority::Interactive, 50)).unwrap();
    }
    let mut order = Vec::new();
    while !s.is_idle() {
        for (id, _) in step(&mut s, 64) {
            order.push(id);
            s.remove(id);
        }
    }
    assert_eq!(order[..7], [0, 10, 1, 11, 2, 12, 3]);
    assert!(s.served.is_empty(), "accounts end with the last request");
}

#[test]
fn whoever_was_away_is_not_ahead_for_it() {
    let mut s = scheduler(1, 100);
    for id in 0..6 {
        s.enqueue(job(id, "busy", Priority::Interactive, 500)).unwrap();
        step(&mut s, 1000);
        if id < 5 {
            s.remove(id);
        }
    }
    for id in 10..13 {
        s.enqueue(job(id, "back", Priority::Interactive, 500)).unwrap();
    }
    s.enqueue(job(20, "busy", Priority::Interactive, 500)).unwrap();
    s.remove(5);
    assert_eq!(admit_all(&mut s), [10]);
    step(&mut s, 1000);
    s.remove(10);
    assert_eq!(admit_all(&mut s), [20], "one turn, not three");
}

#[test]
fn interactive_goes_first_and_bulk_is_not_forgotten() {
    let mut s = scheduler(1, 100);
    for id in 0..20 {
        s.enqueue(job(id, "b", Priority::Bulk, 5)).unwrap();
    }
    for id in 100..120 {
        s.enqueue(job(id, "i", Priority::Interactive, 5)).unwrap();
    }
    let mut order = Vec::new();
    while let Some(id) = s.candidate() {
        s.admit(id, 0);
        order.push(id);
        s.remove(id);
    }
    assert_eq!(order.len(), 40);
    let bulk: Vec<usize> = (0..24).filter(|at| order[*at] < 100).collect();
    assert_eq!(bulk, [7, 15, 22, 23], "one of eight, and all when nobody else waits");
}

#[test]
fn bulk_makes_room_for_interactive_but_for_its_share() {
    let mut s = scheduler(4, 100);
    for id in 0..4 {
        s.enqueue(job(id, "b", Priority::Bulk, 5)).unwrap();
    }
    admit_all(&mut s);
    assert_eq!(s.in_the_way(), None, "nobody waits");
    for id in 10..20 {
        add(&mut s, id, 5);
    }
    let mut gone = Vec::new();
    while let Some(id) = s.in_the_way() {
        s.preempt(id);
        gone.push(id);
        admit_all(&mut s);
    }
    assert_eq!(gone, [3, 2, 1]);
    assert_eq!(s.running(), 4);
}

#[test]
fn the_last_in_order_gives_way_and_begins_anew() {
    let mut s = scheduler(4, 100);
    s.enqueue(job(1, "b", Priority::Bulk, 10)).unwrap();
    add(&mut s, 2, 10);
    add(&mut s, 3, 10);
    step(&mut s, 100);
    step(&mut s, 100);
    assert_eq!(s.last(), Some(1));
    s.preempt(1);
    assert_eq!(s.last(), Some(3));
    s.preempt(3);
    assert_eq!(s.last(), Some(2));
    assert_eq!(admit_all(&mut s), [3, 1]);
    assert_eq!(step(&mut s, 100), [(2, 1), (3, 12), (1, 12)], "with the tokens that it had drawn");
}

proptest! {
    #[test]
    fn every_token_is_computed_once_and_nobody_waits_for_ever(
        jobs in proptest::collection::vec((1usize..300, 0usize..6, 0usize..3, any::<bool>()), 1..20),
        running in 1usize..5,
        budget in 1usize..100,
        preemptions in proptest::collection::vec(0usize..40, 0..10),
    ) {
        let mut s = scheduler(running, 100);
        for (id, (tokens, _, identity, bulk)) in jobs.iter().enumerate() {
            let priority = if *bulk { Priority::Bulk } else { Priority::Interactive };
            s.enqueue(job(id as u64, ["a", "b", "c"][*identity], priority, *tokens)).unwrap();
        }
        let mut done = vec![0; jobs.len()];
        let mut drawn = vec![0; jobs.len()];
        for number in 0..20_000 {
            admit_all(&mut s);
            if preemptions.contains(&number) && let Some(last) = s.last() {
                s.preempt(last);
                done[last as usize] = 0;
            }
            prop_assert!(s.running() <= running);
            let work = s.plan(budget);
            let ids: HashSet<_> = work.iter().map(|work| work.id).collect();
            prop_assert_eq!(ids.len(), work.len());
            prop_assert!(work.iter().filter(|work| !work.is_decode).map(|work| work.count).sum::<usize>() <= budget);
            for work in work {
                let at = work.id as usize;
                let all = jobs[at].0 + drawn[at];
                prop_assert!(work.count >= 1 && done[at] + work.count <= all);
                done[at] += work.count;
                s.advance(work.id, work.count);
                if done[at] == all {
                    if drawn[at] == jobs[at].1 { s.remove(work.id) } else { s.extend(work.id); drawn[at] += 1 }
                }
            }
            if s.is_idle() { break; }
        }
        prop_assert!(s.is_idle() && s.served.is_empty());
        for (at, (tokens, answers, ..)) in jobs.iter().enumerate() {
            prop_assert_eq!((done[at], drawn[at]), (tokens + answers, *answers));
        }
    }
}

#[test]
fn whoever_has_all_slots_gives_one_to_somebody_who_has_none() {
    let mut s = scheduler(4, 8);
    (1..=5).for_each(|id| add(&mut s, id, 2));
    step(&mut s, 64);
    assert_eq!(s.in_the_way(), None, "one's own requests wait for each other");
    s.enqueue(job(9, "b", Priority::Interactive, 2)).unwrap();
    step(&mut s, 64);
    assert_eq!(s.in_the_way(), Some(4), "the last to come");
    s.preempt(4);
    assert_eq!(admit_all(&mut s), [9]);
    s.enqueue(job(10, "b", Priority::Interactive, 2)).unwrap();
    step(&mut s, 64);
    assert_eq!(s.in_the_way(), Some(3));
    s.preempt(3);
    assert_eq!(admit_all(&mut s), [10]);
    s.enqueue(job(11, "b", Priority::Interactive, 2)).unwrap();
    step(&mut s, 64);
    assert_eq!(s.in_the_way(), None, "two and two: nobody takes turns for ever");
}
