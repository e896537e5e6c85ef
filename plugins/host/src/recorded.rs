//! A request as policies were told it, and what they answered: a line of the file that `plugins.record` names and
//! `postern plugin replay` reads. Never text of a prompt: [`crate::MessageFacts::text`] is not written.
//!
//! JSON Lines, one request a line, in UTF-8. A reader passes over what it does not know, in a line of a later version as well.

use serde::{Deserialize, Serialize};

use crate::facts::{CachePlan, FleetFacts, RequestFacts, Verdict};

/// The version of the format that is written.
pub const RECORDED_VERSION: u32 = 1;
/// No line is longer; what would be is not written.
pub const MAX_RECORDED_BYTES: usize = 4 << 20;

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// [`RECORDED_VERSION`].
    pub version: u32,
    /// Its `Postern-Record`, to find it in the records.
    pub record: String,
    /// What `random` followed from.
    pub seed: u64,
    /// As routing policies were told it. Caching policies were told the final label.
    pub request: RequestFacts,
    /// The targets as they were.
    pub fleet: FleetFacts,
    /// The label after all votes.
    pub final_label: String,
    /// What each policy answered, in the order in which they were asked.
    pub answers: Vec<Answered>,
}

/// What one policy answered at one step. Policies that look for text are left out, since their answers make sense with it only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Its name in the configuration.
    pub policy: String,
    /// Its version; empty if it has no manifest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The first digits of the SHA-256 of its file.
    pub digest: String,
    /// The answer.
    pub answer: Answer,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Of `routing.route`.
    Route(Verdict),
    /// Of `caching.plan`.
    Plan(CachePlan),
    /// `routing.route` failed, or was not called; why, as a fixed word.
    RouteFailed(String),
    /// `caching.plan` failed, or was not called; why, as a fixed word.
    PlanFailed(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::MessageFacts;

    #[test]
    fn a_line_is_read_as_it_was_written_but_for_the_text() {
        let message = MessageFacts { role: "user".into(), bytes: 5, text: Some("heron".into()) };
        let request = RequestFacts { model: "m".into(), messages: vec![message], ..RequestFacts::default() };
        let answered = |answer| Answered { policy: "p".into(), version: String::new(), digest: "00".into(), answer };
        let recorded = Recorded {
            version: RECORDED_VERSION,
            record: "r".into(),
            seed: u64::MAX,
            request,
            fleet: FleetFacts::default(),
            final_label: "public".into(),
            answers: vec![answered(Answer::Route(Verdict::default())), answered(Answer::PlanFailed("trap".into()))],
        };
        let line = serde_json::to_string(&recorded).unwrap();
        assert!(!line.contains("heron") && !line.contains('\n'), "{line}");
        let mut expected = recorded;
        expected.request.messages[0].text = None;
        assert_eq!(serde_json::from_str::<Recorded>(&line).unwrap(), expected);
        let later = line.replacen('{', "{\"more\":1,", 1);
        assert_eq!(serde_json::from_str::<Recorded>(&later).unwrap(), expected);
    }
}
