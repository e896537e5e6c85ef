//! What is wrong with a target, for the log: somebody can mend it. Each reason is said once a minute.

use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use postern_certs::refusal;

/// How often the same complaint is repeated.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What was said last about one target.
#[derive(Debug)]
pub(super) struct Complaints {
    target: String,
    what: String,
    last: Mutex<Option<(String, Instant)>>,
}

impl Complaints {
    /// `what`: in general, such as "it cannot be reached".
    pub(super) fn of(target: String, what: String) -> Self {
        Self { target, what, last: Mutex::default() }
    }

    /// Nothing of a request may be in such a text.
    pub(super) fn tell(&self, error: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let again = |(before, at): &(String, Instant)| before != error || at.elapsed() > AGAIN_AFTER;
        if last.as_ref().is_none_or(again) {
            tracing::warn!(target = self.target.as_str(), error, "{}", self.what);
            *last = Some((error.to_owned(), Instant::now()));
        }
    }
}

/// The reason of ours, if it was TLS; else all that the library says, the cause last.
pub(crate) fn in_words(error: &(dyn Error + 'static)) -> String {
    let (mut next, mut said) = (Some(error), Vec::new());
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref() {
            return refusal::in_words(tls);
        }
        // What the other side says when it ends a connection is its own, and could quote what it was asked.
        if let Some(reason) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            said.push(format!("HTTP/2: {reason}"));
            break;
        }
        // Libraries add where their manuals are.
        let words = error.to_string();
        said.push(words.split(": https://").next().unwrap_or_default().to_owned());
        // What an `io::Error` was made of is not its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    said.dedup();
    said.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_tls_is_told_in_our_words_however_deep_it_lies() {
        let refused = rustls::Error::General("the server is not the one".into());
        let deep = io::Error::other(io::Error::other(refused));
        assert_eq!(in_words(&deep), "unexpected error: the server is not the one");
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens");
        assert_eq!(in_words(&io::Error::other(refused)), "nobody listens");
    }
}
