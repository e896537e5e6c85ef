//! Places for those who have not said who they are: few in all, and fewer for each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections, by address. Holds nothing about an address that has none.
#[derive(Debug)]
pub(crate) struct Places {
    counts: Arc<Mutex<Counts>>,
    most: usize,
    most_per_address: usize,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    counts: Arc<Mutex<Counts>>,
    address: IpAddr,
}

impl Places {
    pub(crate) fn new(most: usize, most_per_address: usize) -> Self {
        Self { counts: Arc::default(), most, most_per_address }
    }

    /// A place, if there is one for this address.
    pub(crate) fn take(&self, address: IpAddr) -> Option<Place> {
        let address = network(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let here = counts.by_address.get(&address).copied().unwrap_or(0);
        if counts.all >= self.most || here >= self.most_per_address {
            return None;
        }
        counts.all += 1;
        counts.by_address.insert(address, here + 1);
        Some(Place { counts: self.counts.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        if let Some(here) = counts.by_address.get_mut(&self.address) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

/// What counts as one machine: an IPv4 address, or a network of 64 bits, all of which an IPv6 machine may use.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        four @ IpAddr::V4(_) => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places() {
        let places = Places::new(5, 3);
        let (one, other): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut held: Vec<_> = (0..3).map(|_| places.take(one).unwrap()).collect();
        assert!(places.take(one).is_none());
        held.extend((0..2).map(|_| places.take(other).unwrap()));
        assert!(places.take(other).is_none(), "all places are taken");
        drop(held.pop());
        assert!(places.take(one).is_none() && places.take(other).is_some());
        let six = |text: &str| network(text.parse().unwrap());
        assert_eq!(six("fd00::1"), six("fd00::ffff:1"), "one machine");
        assert_ne!(six("fd00:0:0:1::1"), six("fd00::1"));
        assert_eq!(six("::ffff:10.0.0.1"), one);
        drop(held);
        assert!(places.counts.lock().unwrap().by_address.is_empty(), "nothing is kept of who is gone");
    }
}
