//! Turns at what is done for a request before it has a place: few at a time, and one for each identity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::origin::Identity;

/// Identities that are remembered before those that wait for nothing are forgotten.
const REMEMBERED: usize = 256;

/// As many as the machine has cores, two at least: so that one identity alone never holds all.
#[derive(Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    of_identity: Mutex<HashMap<Identity, Arc<Semaphore>>>,
}

/// Over when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        Self { all: Arc::new(Semaphore::new(cores)), of_identity: Mutex::default() }
    }
}

impl Turns {
    /// Waits for a turn. `None` never comes while the engine runs.
    pub(crate) async fn take(&self, identity: &Identity) -> Option<Turn> {
        let own = self.own(identity).acquire_owned().await.ok()?;
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some(Turn { _all: all, _own: own })
    }

    fn own(&self, identity: &Identity) -> Arc<Semaphore> {
        let mut of_identity = self.of_identity.lock().unwrap_or_else(PoisonError::into_inner);
        if of_identity.len() >= REMEMBERED {
            // Whoever holds or waits for a turn has a share of it.
            of_identity.retain(|_, own| Arc::strong_count(own) > 1);
        }
        of_identity.entry(Arc::clone(identity)).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_identity_waits_for_itself_and_nobody_else_does() {
        let turns = Turns::default();
        let (a, b): (Identity, Identity) = (Arc::from("a"), Arc::from("b"));
        let first = turns.take(&a).await.unwrap();
        assert!(turns.take(&a).now_or_never().is_none());
        let other = turns.take(&b).now_or_never().flatten();
        assert!(other.is_some());
        drop(first);
        assert!(turns.take(&a).now_or_never().flatten().is_some());
        for number in 0..3 * REMEMBERED {
            drop(turns.take(&Arc::from(number.to_string())).await);
        }
        assert!(turns.of_identity.lock().unwrap().len() <= REMEMBERED + 1);
    }
}
