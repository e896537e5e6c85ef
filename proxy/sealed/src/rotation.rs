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

    /// A new key now, and none of those before: what was sealed for them is not opened any more.
    pub fn restart(&mut self, rng: &mut impl CryptoRng) {
        self.renew(rng);
        self.keys.truncate(1);
    }

    /// A new key now: the newest has been used too often. The one before is accepted as long as it would be anyway; no third one is.
    pub fn renew(&mut self, rng: &mut impl CryptoRng) {
        let id = self.keys.first().map_or(0, |(key, _)| key.id().wrapping_add(1));
        self.keys.insert(0, (SecretKey::generate(id, rng), Duration::ZERO));
        self.keys.truncate(2);
    }

    /// Time has passed. True: there is a new key to publish, or one less is accepted.
    pub fn pass(&mut self, elapsed: Duration, rng: &mut impl CryptoRng) -> bool {
        self.keys.iter_mut().for_each(|(_, age)| *age = age.saturating_add(elapsed));
        let is_due = self.keys.first().is_none_or(|(_, age)| *age >= NEWEST);
        if is_due {
            self.renew(rng);
        }
        let before = self.keys.len();
        self.keys.retain(|(_, age)| *age < ACCEPTED);
        is_due || self.keys.len() < before
    }

    /// For how long the newest will be accepted.
    #[must_use]
    pub fn newest_for(&self) -> Duration {
        self.keys.first().map_or(Duration::ZERO, |(_, age)| ACCEPTED.saturating_sub(*age))
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
        assert_eq!(rotation.newest_for(), ACCEPTED);
        assert!(!rotation.pass(HOUR * 23, &mut rng) && newest(&rotation) == first);
        assert_eq!(rotation.newest_for(), HOUR * 25);
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
        // Used too often: the third one is not accepted any more.
        rotation.renew(&mut rng);
        rotation.renew(&mut rng);
        assert_eq!((rotation.keys.len(), rotation.newest_for()), (2, ACCEPTED));
        assert!(!rotation.pass(HOUR, &mut rng));
        rotation.restart(&mut rng);
        assert_eq!(rotation.keys.len(), 1);
    }
}
