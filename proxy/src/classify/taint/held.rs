//! What this gateway remembers itself.
//!
//! Each identity has room of its own, so nobody can push out what others are known by: a mark stays for as long as one of those whose it is has room
//! for it. Whoever needs more loses their oldest, and nothing of theirs is below its label any more. Marks that were not seen for long go without that.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Mark;
use crate::classify::label::Label;

/// Marks of all identities together, about 100 bytes each. Beyond them, whoever has most loses some.
const MAX_MARKS: usize = 1_000_000;
/// Identities of which something is remembered.
const MAX_HOLDERS: usize = 100_000;
/// So often what was not seen for long is looked for.
const SWEEP_EVERY: u32 = 600;
/// A mark that was seen so short a time ago is not noted again.
const SEEN_AGAIN: u32 = 600;
/// Of what the one who has most loses, the part.
const PART_LOST: usize = 64;

/// There is no room for another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug)]
pub(super) struct Held {
    rooms: Rooms,
    begun: Instant,
    inner: Mutex<Inner>,
}

/// How much there is room for, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rooms {
    pub(super) of_identity: usize,
    pub(super) keep: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    tenants: HashMap<Arc<str>, Tenant>,
    /// Of all holders.
    marks: usize,
    holders: usize,
    swept: u32,
}

#[derive(Debug, Default)]
struct Tenant {
    marks: HashMap<Mark, Kept>,
    holders: HashMap<Arc<str>, Holder>,
}

#[derive(Debug)]
struct Kept {
    label: Label,
    holders: u32,
}

/// One identity. Times are seconds since the start.
#[derive(Debug, Default)]
struct Holder {
    seen: HashMap<Mark, u32>,
    /// By the time of `seen`, the oldest first; those with another time were seen again.
    order: VecDeque<(u32, Mark)>,
    /// What was lost for want of room, and when the last request was that it counted for.
    floor: Option<(Label, u32)>,
}

impl Holder {
    fn note(&mut self, mark: Mark, now: u32) -> bool {
        let is_new = match self.seen.entry(mark) {
            Entry::Occupied(seen) if now.saturating_sub(*seen.get()) < SEEN_AGAIN => return false,
            Entry::Occupied(mut seen) => {
                seen.insert(now);
                false
            }
            Entry::Vacant(seen) => {
                seen.insert(now);
                true
            }
        };
        self.order.push_back((now, mark));
        if self.order.len() > 2 * self.seen.len() + 16 {
            let seen = &self.seen;
            self.order.retain(|(at, mark)| seen.get(mark) == Some(at));
        }
        is_new
    }

    /// Takes out the mark that was not seen for longest, if that was before `before`.
    fn oldest(&mut self, before: u32) -> Option<Mark> {
        loop {
            let (at, mark) = *self.order.front()?;
            if self.seen.get(&mark) != Some(&at) {
                self.order.pop_front();
            } else if at < before {
                self.order.pop_front();
                self.seen.remove(&mark);
                return Some(mark);
            } else {
                return None;
            }
        }
    }

    /// True: it is higher than before.
    fn raise(&mut self, label: Option<Label>, now: u32) -> bool {
        let Some(label) = label else { return false };
        let before = self.floor.map(|(floor, _)| floor);
        self.floor = Some((before.map_or(label, |before| before.join(label)), now));
        before < Some(label)
    }
}

impl Tenant {
    /// One holder fewer: the label of the mark.
    fn let_go(&mut self, mark: &Mark) -> Option<Label> {
        let kept = self.marks.get_mut(mark)?;
        let label = kept.label;
        kept.holders = kept.holders.saturating_sub(1);
        if kept.holders == 0 {
            self.marks.remove(mark);
        }
        Some(label)
    }
}

impl Held {
    pub(super) fn new(rooms: Rooms) -> Self {
        Self { rooms, begun: Instant::now(), inner: Mutex::default() }
    }

    /// Whether nothing at all is remembered of a tenant: then nothing needs to be looked for.
    pub(super) fn is_empty(&self, tenant: &str) -> bool {
        !self.inner().tenants.contains_key(tenant)
    }

    /// The label of each mark, as far as it is known; and below which nothing of the identity is.
    pub(super) fn look<'a>(
        &self,
        (tenant, identity): (&str, &str),
        marks: impl Iterator<Item = &'a Mark>,
    ) -> (Vec<(Mark, Label)>, Option<Label>) {
        let now = self.now();
        let mut inner = self.inner();
        let Some(tenant) = inner.tenants.get_mut(tenant) else { return (Vec::new(), None) };
        let known = |mark: &Mark| tenant.marks.get(mark).map(|kept| (*mark, kept.label));
        let hits = marks.filter_map(known).collect();
        let floor = tenant.holders.get_mut(identity).and_then(|holder| holder.floor.as_mut());
        let floor = floor.map(|(label, used)| {
            *used = now;
            *label
        });
        (hits, floor)
    }

    /// Remembers each mark with at least that label.
    pub(super) fn keep(
        &self,
        (tenant, identity): (&Arc<str>, &Arc<str>),
        marks: impl Iterator<Item = (Mark, Label)>,
    ) -> Result<(), Full> {
        let now = self.now();
        let mut inner = self.inner();
        let inner = &mut *inner;
        if inner.holders >= MAX_HOLDERS {
            inner.sweep(now, self.rooms.keep);
        }
        let of_tenant = inner.tenants.entry(tenant.clone()).or_default();
        let holder = match of_tenant.holders.entry(identity.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if inner.holders >= MAX_HOLDERS => return Err(Full),
            Entry::Vacant(new) => {
                inner.holders += 1;
                new.insert(Holder::default())
            }
        };
        // Of one request no more than there is room for: the rest is lost at once.
        let mut lost = None::<Label>;
        for (number, (mark, label)) in marks.enumerate() {
            if number >= self.rooms.of_identity {
                lost = lost.max(Some(label));
                continue;
            }
            let kept = of_tenant.marks.entry(mark).or_insert(Kept { label, holders: 0 });
            kept.label = kept.label.join(label);
            if holder.note(mark, now) {
                kept.holders += 1;
                inner.marks += 1;
            }
        }
        holder.raise(lost, now);
        let extra = holder.seen.len();
        inner.lose((tenant, identity), extra.saturating_sub(self.rooms.of_identity), now);
        while inner.marks > MAX_MARKS && inner.lose_of_most(now) {}
        if now >= inner.swept.saturating_add(SWEEP_EVERY) {
            inner.sweep(now, self.rooms.keep);
        }
        Ok(())
    }

    /// Everybody of whom something is remembered.
    pub(super) fn holders(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let inner = self.inner();
        let of = |(name, tenant): (&Arc<str>, &Tenant)| {
            tenant.holders.keys().map(|identity| (name.clone(), identity.clone())).collect::<Vec<_>>()
        };
        inner.tenants.iter().flat_map(of).collect()
    }

    /// All that is remembered of one.
    pub(super) fn of(&self, (tenant, identity): (&str, &str)) -> (Vec<(Mark, Label)>, Option<Label>) {
        let inner = self.inner();
        let Some(tenant) = inner.tenants.get(tenant) else { return (Vec::new(), None) };
        let Some(holder) = tenant.holders.get(identity) else { return (Vec::new(), None) };
        let marks = holder.seen.keys().filter_map(|mark| Some((*mark, tenant.marks.get(mark)?.label)));
        (marks.collect(), holder.floor.map(|(label, _)| label))
    }

    fn now(&self) -> u32 {
        u32::try_from(self.begun.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// Locked for as long as it takes to look up what one request has.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// So many of the oldest marks of one identity.
    fn lose(&mut self, (tenant, identity): (&str, &str), extra: usize, now: u32) {
        let Some(tenant) = self.tenants.get_mut(tenant) else { return };
        let mut is_higher = false;
        for _ in 0..extra {
            let Some(mark) = tenant.holders.get_mut(identity).and_then(|holder| holder.oldest(u32::MAX)) else { break };
            self.marks -= 1;
            let label = tenant.let_go(&mark);
            is_higher |= tenant.holders.get_mut(identity).is_some_and(|holder| holder.raise(label, now));
        }
        if is_higher {
            tracing::warn!(
                identity,
                "more is labelled of it than there is room for (classification.taint.per_identity): nothing of it is below those labels any more"
            );
        }
    }

    /// Whoever has most. False: nobody has any.
    fn lose_of_most(&mut self, now: u32) -> bool {
        let each = self.tenants.iter().flat_map(|(name, tenant)| {
            tenant.holders.iter().map(move |(identity, holder)| (holder.seen.len(), name, identity))
        });
        let Some((most, tenant, identity)) = each.max_by_key(|(marks, ..)| *marks) else { return false };
        let (tenant, identity) = (tenant.clone(), identity.clone());
        self.lose((&tenant, &identity), most.div_ceil(PART_LOST), now);
        most > 0
    }

    fn sweep(&mut self, now: u32, keep: Duration) {
        let before = now.saturating_sub(u32::try_from(keep.as_secs()).unwrap_or(u32::MAX));
        self.swept = now;
        let (mut gone, mut holders) = (0, 0);
        for tenant in self.tenants.values_mut() {
            let mut old = Vec::new();
            tenant.holders.retain(|_, holder| {
                while let Some(mark) = holder.oldest(before) {
                    old.push(mark);
                }
                holder.floor = holder.floor.filter(|(_, used)| *used >= before);
                !holder.seen.is_empty() || holder.floor.is_some()
            });
            gone += old.len();
            for mark in &old {
                tenant.let_go(mark);
            }
            holders += tenant.holders.len();
        }
        self.tenants.retain(|_, tenant| !tenant.holders.is_empty());
        (self.marks, self.holders) = (self.marks - gone, holders);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::label::Labels;

    fn labels() -> [Label; 3] {
        let labels = Labels::new(["low", "middle", "high"].map(str::to_owned).to_vec()).unwrap();
        ["low", "middle", "high"].map(|name| labels.by_name(name).unwrap())
    }

    fn mark(number: usize) -> Mark {
        Mark((number as u128).to_le_bytes())
    }

    fn held(of_identity: usize) -> Held {
        Held::new(Rooms { of_identity, keep: Duration::from_secs(3_600) })
    }

    fn known(held: &Held, who: (&str, &str), marks: impl Iterator<Item = usize>) -> (usize, Option<Label>) {
        let marks: Vec<Mark> = marks.map(mark).collect();
        let (hits, floor) = held.look(who, marks.iter());
        (hits.len(), floor)
    }

    #[test]
    fn of_two_labels_the_higher_one_stays() {
        let (held, [low, middle, high]) = (held(100), labels());
        let who = (&Arc::from("t"), &Arc::from("amy"));
        for label in [middle, high, low] {
            held.keep(who, [(mark(1), label)].into_iter()).unwrap();
        }
        assert_eq!(held.look(("t", "bo"), [mark(1)].iter()), (vec![(mark(1), high)], None));
        assert_eq!(held.look(("u", "amy"), [mark(1)].iter()), (vec![], None), "another tenant");
    }

    #[test]
    fn whoever_has_too_many_loses_them_and_is_raised_and_nobody_else_is() {
        let (held, [_, middle, high]) = (held(100), labels());
        let (tenant, amy, bo) = (Arc::from("t"), Arc::from("amy"), Arc::from("bo"));
        let keep = |who: &Arc<str>, marks: std::ops::Range<usize>, label| {
            held.keep((&tenant, who), marks.map(|number| (mark(number), label))).unwrap();
        };
        keep(&amy, 0..10, high);
        keep(&bo, 5..20, middle);
        // The flood has no label of its own to speak of; what it pushes out has.
        keep(&amy, 1_000..1_095, middle);
        assert_eq!(known(&held, ("t", "amy"), 0..5), (0, Some(high)));
        assert_eq!(known(&held, ("t", "bo"), 5..20), (15, None), "they were the other one's as well");
        keep(&bo, 2_000..2_100, middle);
        assert_eq!(known(&held, ("t", "bo"), 10..20), (0, Some(high)), "of the mark that both had");
        assert_eq!(known(&held, ("t", "amy"), 1_000..1_095).0, 95);
        let inner = held.inner();
        assert_eq!((inner.marks, inner.holders), (200, 2));
    }

    #[test]
    fn what_is_seen_again_stays_and_what_is_not_goes() {
        let (held, [_, middle, high]) = (held(100), labels());
        let (tenant, amy): (Arc<str>, Arc<str>) = (Arc::from("t"), Arc::from("amy"));
        held.keep((&tenant, &amy), [(mark(1), high), (mark(2), high)].into_iter()).unwrap();
        let mut inner = held.inner();
        let holder = inner.tenants.get_mut("t").unwrap().holders.get_mut("amy").unwrap();
        assert!(!holder.note(mark(1), 700));
        inner.sweep(3_700, held.rooms.keep);
        drop(inner);
        assert_eq!(known(&held, ("t", "amy"), 1..3), (1, None), "time raises nothing");
        let mut inner = held.inner();
        inner.tenants.get_mut("t").unwrap().holders.get_mut("amy").unwrap().raise(Some(middle), 4_000);
        inner.sweep(7_000, held.rooms.keep);
        assert_eq!((inner.holders, inner.marks), (1, 0), "a floor stays for as long");
        inner.sweep(10_000, held.rooms.keep);
        assert!(inner.tenants.is_empty() && inner.marks == 0 && inner.holders == 0);
    }

    #[test]
    fn the_largest_make_room_when_all_is_full() {
        let (held, [_, middle, _]) = (held(usize::MAX), labels());
        let (tenant, amy, bo) = (Arc::from("t"), Arc::from("amy"), Arc::from("bo"));
        let keep = |who: &Arc<str>, marks: std::ops::Range<usize>| {
            held.keep((&tenant, who), marks.map(|number| (mark(number), middle))).unwrap();
        };
        keep(&bo, 0..1_000);
        keep(&amy, 1_000..MAX_MARKS + 1_000);
        assert!(held.inner().marks <= MAX_MARKS);
        assert_eq!(known(&held, ("t", "bo"), 0..1_000), (1_000, None));
        assert_eq!(known(&held, ("t", "amy"), 1_000..1_001), (0, Some(middle)));
    }
}
