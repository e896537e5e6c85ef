//! Weeks in a second: a gateway and workstations that follow the schedule, with a clock of their own.

use proptest::prelude::*;

use super::*;
use crate::{
    Csr,
    rotate::{Action, Failures, Health, Schedule},
    verify,
};

/// How often everybody looks at the clock here.
const TICK: Duration = Duration::HOUR;

/// Somebody with a leaf.
struct Holder {
    chain: Vec<CertificateDer<'static>>,
    schedule: Schedule,
    failures: Failures,
    renewals: u32,
}

impl Holder {
    fn of(chain: &[CertificateDer<'static>], jitter: f64) -> Self {
        let (not_before, not_after) = verify::validity(&chain[0]).unwrap();
        let schedule = Schedule::new(not_before, not_after, jitter);
        Self { chain: chain.to_vec(), schedule, failures: Failures::default(), renewals: 0 }
    }

    /// Does what the schedule says. Without an issuer every renewal fails.
    fn follow(&mut self, authority: Option<&Authority>, now: OffsetDateTime) {
        if self.schedule.next(now, self.failures) != Action::RenewNow {
            return;
        }
        let peer = verify::peer(&self.chain[0]).unwrap();
        let renewed = authority.and_then(|authority| {
            let csr = Csr::generate(&peer.id).unwrap();
            authority.renew(&peer, &csr.der).ok()
        });
        match renewed {
            Some(leaf) => {
                let renewals = self.renewals + 1;
                *self = Self { renewals, ..Self::of(&leaf.chain, rand::random()) };
                assert_ne!(self.schedule.next(now, self.failures), Action::RenewNow, "not twice at once");
            }
            None => self.failures = self.failures.and_at(now),
        }
    }

    fn is_accepted(&self, authority: &Authority, now: OffsetDateTime) -> bool {
        tls::check_chain(&self.chain, &authority.trust(), TRUST_DOMAIN, now).is_ok()
    }
}

fn simulate(days: i64) {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let mut everybody: Vec<_> = (0..3)
        .map(|number| {
            let id: SpiffeId = format!("spiffe://{TRUST_DOMAIN}/clerk/n{number}").parse().unwrap();
            let leaf = authority.issue(LeafRequest { id, role: Role::Workload }).unwrap();
            Holder::of(&leaf.chain, rand::random())
        })
        .collect();
    let mut intermediates = std::collections::HashSet::new();
    let end = START + Duration::days(days);
    while scratch.clock.now() < end {
        scratch.clock.advance(TICK);
        let now = scratch.clock.now();
        authority.refresh().unwrap();
        for holder in &mut everybody {
            holder.follow(Some(&authority), now);
            assert!(holder.is_accepted(&authority, now), "a gap at {now}");
            assert_eq!(holder.schedule.health(now), Health::Good);
            intermediates.insert(holder.chain[1].clone());
        }
    }
    let (least, most) = (days * 24 / 41, days * 24 / 31);
    for holder in everybody {
        assert!((least..=most).contains(&i64::from(holder.renewals)), "{} renewals in {days} days", holder.renewals);
    }
    assert_eq!(intermediates.len() as i64, 1 + days / 15 - i64::from(days % 15 == 0 && days < 15));
}

#[test]
fn a_week_without_a_gap() {
    simulate(7);
}

#[test]
fn a_month_without_a_gap_over_renewed_intermediates() {
    simulate(34);
}

#[test]
fn three_days_without_an_issuer_end_in_an_alarm_a_refusal_and_a_recovery() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let mut ada = Holder::of(&authority.issue(ada()).unwrap().chain, 0.5);
    let mut gateway_leaf = Holder::of(&authority.issue(gateway()).unwrap().chain, 0.5);
    let mut seen = Vec::new();
    while scratch.clock.now() < START + Duration::hours(73) {
        scratch.clock.advance(TICK);
        let now = scratch.clock.now();
        ada.follow(None, now);
        gateway_leaf.follow(None, now);
        let health = ada.schedule.health(now);
        if seen.last().is_none_or(|(last, _)| *last != health) {
            seen.push((health, (now - START).whole_hours()));
        }
        assert_eq!(
            health == Health::Expired,
            Trust::from_roots(&authority.trust_bundle())
                .is_ok_and(|trust| { tls::check_chain(&ada.chain, &trust, TRUST_DOMAIN, now).is_err() })
        );
    }
    assert_eq!(seen, [(Health::Good, 1), (Health::Warning, 48), (Health::Alarm, 60), (Health::Expired, 73)]);
    let now = scratch.clock.now();
    authority.refresh().unwrap();
    assert!(!ada.is_accepted(&authority, now));
    // The gateway issues to itself again; the workstation has to be invited.
    assert!(matches!(
        authority.renew(&verify::peer(&ada.chain[0]).unwrap(), &Csr::generate(&super::ada().id).unwrap().der),
        Err(CertsError::NotRenewable { .. })
    ));
    let token = authority.invite(&super::ada().id, StdDuration::from_secs(60)).unwrap();
    let leaf = authority.enrol(token.secret(), &Csr::generate(token.id()).unwrap().der).unwrap();
    assert!(Holder::of(&leaf.chain, 0.5).is_accepted(&authority, now));
    assert!(Holder::of(&authority.issue(gateway()).unwrap().chain, 0.5).is_accepted(&authority, now));
}

#[derive(Clone, Debug)]
enum Event {
    Wait(i64),
    SetBack(i64),
    FarBack(i64),
    JumpAhead(i64),
    Restart,
    IssuerAway(i64),
    RevokeSomebodyElse,
    SwitchRoot,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(
        prop_oneof![
            4 => (1_i64..30 * 60).prop_map(Event::Wait),
            1 => (0_i64..5).prop_map(Event::SetBack),
            1 => (1_i64..1000).prop_map(Event::FarBack),
            1 => (1_i64..20).prop_map(Event::JumpAhead),
            1 => Just(Event::Restart),
            1 => (1_i64..20).prop_map(Event::IssuerAway),
            1 => Just(Event::RevokeSomebodyElse),
            1 => Just(Event::SwitchRoot),
        ],
        1..25,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn whatever_happens_there_is_no_gap(events in events(), jitter in 0.0..1.0) {
        let scratch = Scratch::new();
        let mut authority = scratch.open().unwrap();
        let mut holder = Holder::of(&authority.issue(ada()).unwrap().chain, jitter);
        for event in events {
            // Away for less than what half a life leaves of time, as an office that is closed over night.
            let (span, away) = match event {
                Event::Wait(minutes) => (Duration::minutes(minutes), false),
                Event::IssuerAway(hours) => (Duration::hours(hours), true),
                Event::SetBack(minutes) => { scratch.clock.advance(Duration::minutes(-minutes)); (TICK, false) }
                Event::FarBack(hours) => {
                    // Nothing is issued then, and what is in force stays as it was.
                    scratch.clock.advance(Duration::hours(-hours));
                    let set_back = |error| matches!(error, CertsError::ClockSetBack { .. } | CertsError::ClockNeverSet { .. });
                    prop_assert!(authority.issue(ada()).is_err_and(set_back));
                    let _ = authority.refresh();
                    scratch.clock.advance(Duration::hours(hours));
                    (TICK, false)
                }
                Event::JumpAhead(hours) => { scratch.clock.advance(Duration::hours(hours)); (TICK, false) }
                Event::Restart => { authority = scratch.open().unwrap(); (TICK, false) }
                Event::RevokeSomebodyElse => {
                    let id: SpiffeId = format!("spiffe://{TRUST_DOMAIN}/clerk/eve").parse().unwrap();
                    authority.issue(LeafRequest { id: id.clone(), role: Role::Workload }).unwrap();
                    authority.revoke_id(&id).unwrap();
                    (TICK, false)
                }
                Event::SwitchRoot => { let _ = authority.begin_root_switch(); (TICK, false) }
            };
            let until = scratch.clock.now() + span;
            while scratch.clock.now() < until {
                scratch.clock.advance(TICK.min(until - scratch.clock.now()));
                let now = scratch.clock.now();
                if !away { authority.refresh().unwrap(); }
                holder.follow((!away).then_some(&authority), now);
            }
            // The longest pause between two attempts.
            scratch.clock.advance(if away { Duration::HOUR } else { Duration::ZERO });
            authority.refresh().unwrap();
            let now = scratch.clock.now();
            holder.follow(Some(&authority), now);
            prop_assert!(holder.is_accepted(&authority, now), "a gap at {}", now);
            prop_assert_eq!(authority.status().intermediates.iter().filter(|one| one.stage == Stage::Issuing).count(), 1);
        }
    }
}
