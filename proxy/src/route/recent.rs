//! The last requests as policies were told them, in memory: what a new version is tried on before it counts. Only requests that
//! may leave this machine, and never text.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use postern_plugins::Recorded;

/// So many are kept.
const KEPT: usize = 64;
/// A request with more messages is passed over: what it is made of takes memory.
const MAX_MESSAGES: usize = 256;

/// The last requests.
#[derive(Debug, Default)]
pub struct Recent(Mutex<VecDeque<Arc<Recorded>>>);

impl Recent {
    /// Keeps one, and forgets the oldest if there are too many.
    pub fn note(&self, request: Arc<Recorded>) {
        if request.request.messages.len() > MAX_MESSAGES {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(request);
    }

    /// All of them, the oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Recorded>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use postern_plugins::{FleetFacts, MessageFacts, RECORDED_VERSION, RequestFacts};

    use super::*;

    #[test]
    fn the_oldest_goes_and_the_largest_never_comes() {
        let recorded = |seed, messages| {
            let message = MessageFacts { role: "user".into(), bytes: 1, text: None };
            let request = RequestFacts { messages: vec![message; messages], ..RequestFacts::default() };
            let (fleet, answers, final_label) = (FleetFacts::default(), Vec::new(), String::new());
            let record = String::new();
            Arc::new(Recorded { version: RECORDED_VERSION, record, seed, request, fleet, final_label, answers })
        };
        let recent = Recent::default();
        recent.note(recorded(0, MAX_MESSAGES + 1));
        (1..=KEPT as u64 + 2).for_each(|seed| recent.note(recorded(seed, 1)));
        let seeds: Vec<_> = recent.all().iter().map(|recorded| recorded.seed).collect();
        assert_eq!((seeds.len(), seeds[0], seeds[KEPT - 1]), (KEPT, 3, KEPT as u64 + 2));
    }
}
