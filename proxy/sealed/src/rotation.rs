//! When payload keys change: a new one each day, and the one before is accepted for a day more. So whoever steals the key of a gateway opens what was
//! recorded of two days at most. Pure: the time is handed in.

use std::time::Duration;

use rand::CryptoRng;

use crate::config::{Keys, SecretKey};

/// For how long a key is the newest.
pub const NEWEST: Duration = Duration::from_secs(24 * 3600);
/// For how long it is accepted in all.
pub const ACCEPTED: Duration = Duration::from_secs(48 * 3600);

/// The keys of a gateway, the newest first, each with its age at the last look.
#[derive(Debug)]
pub struct Rotation {
    keys: Vec<(SecretKey, Duration)>,
}

impl Rotation {
    /// With one new key. Its number is drawn: after a restart no client's old configuration names a new key.
    #[must_use]
    pub fn new(rng: &mut impl CryptoRng) -> Self {
        let mut id = [0];
        rng.fill_bytes(&mut id);
        let [id] = id;
        Self { keys: vec![(SecretKey::generate(id, rng), Duration::ZERO)] }
    }

    /// Time has passed. True: there is a new key to publish, or one less is accepted.
    pub fn pass(&mut self, elapsed: Duration, rng: &mut impl CryptoRng) -> bool {
        self.keys.iter_mut().for_each(|(_, age)| *age = age.saturating_add(elapsed));
        let (before, newest) = (self.keys.len(), self.keys.first());
        let next = newest.filter(|(_, age)| *age >= NEWEST).map(|(key, _)| key.id().wrapping_add(1));
        self.keys.retain(|(_, age)| *age < ACCEPTED);
        let changed = self.keys.len() < before;
        if let Some(id) = next {
            self.keys.insert(0, (SecretKey::generate(id, rng), Duration::ZERO));
        }
        changed || next.is_some()
    }

    /// How long until [`pass`](Self::pass) has something to do.
    #[must_use]
    pub fn due_in(&self) -> Duration {
        let ends = self.keys.iter().map(|(_, age)| ACCEPTED.saturating_sub(*age));
        let renewal = self.keys.first().map_or(Duration::ZERO, |(_, age)| NEWEST.saturating_sub(*age));
        ends.chain([renewal]).min().unwrap_or_default()
    }

    /// Those that are accepted.
    #[must_use]
    pub fn keys(&self) -> Keys {
        Keys::new(self.keys.iter().map(|(key, _)| key.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PublicConfig, SealError, whole};

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_key_is_the_newest_for_a_day_and_accepted_for_two() {
        let mut rng = rand::rng();
        let mut rotation = Rotation::new(&mut rng);
        let newest = |rotation: &Rotation| PublicConfig::from_list(&rotation.keys().list()).unwrap();
        let first = newest(&rotation);
        let (sealed, _) = whole::seal_request(&first, b"a", &mut rng).unwrap();
        assert_eq!(rotation.due_in(), NEWEST);
        assert!(!rotation.pass(HOUR * 23, &mut rng) && newest(&rotation) == first);
        assert_eq!(rotation.due_in(), HOUR);
        assert!(rotation.pass(HOUR, &mut rng));
        let second = newest(&rotation);
        assert_eq!(second.id(), first.id().wrapping_add(1));
        assert_ne!(second.public_key(), first.public_key());
        assert!(!rotation.pass(HOUR * 23, &mut rng));
        assert!(whole::open_request(&rotation.keys(), &sealed).is_ok());
        assert!(rotation.pass(HOUR, &mut rng));
        assert_eq!(whole::open_request(&rotation.keys(), &sealed).unwrap_err(), SealError::UnknownKey(first.id()));
        assert_eq!(rotation.keys.len(), 2);
        // After a long sleep there is one new key, and no old one.
        let third = newest(&rotation);
        assert!(rotation.pass(HOUR * 1000, &mut rng) && rotation.keys.len() == 1);
        assert_eq!(newest(&rotation).id(), third.id().wrapping_add(1));
        assert_eq!(rotation.due_in(), NEWEST);
    }
}
