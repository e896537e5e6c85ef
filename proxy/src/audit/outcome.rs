//! What happened.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::classify::Source;
use crate::route::Said;

/// Written when the stream has ended, however it ended.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// `answered`, `refused`, `failed`, `broken` (after the beginning), `stopped` (by what the model made), `client_gone`, `cut` (by us: the certificate was
    /// revoked or ended, or the gateway), or `interrupted`: the gateway was killed
    /// before it could say.
    pub result: &'static str,
    /// SPIFFE ID.
    pub identity: String,
    /// How the payload was sealed: `ohttp-chunked`, `ohttp` or `ehbp`; absent: it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed: Option<&'static str>,
    /// Over whose connection it came, if that is somebody else's: a SPIFFE ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// HTTP status; absent if the client went before there was one.
    pub status: Option<u16>,
    /// Error code, if it was not answered.
    pub code: Option<&'static str>,
    /// The label, as far as it was known, if it was not answered; or the one that the beginning of its answer called for when it broke
    /// off, if that is above the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What in the beginning of the answer called for that label.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label_sources: Vec<Source>,
    /// What policies said that the intent does not have: it ended before there was one, or they looked at the beginning of an answer
    /// that broke off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Said>,
    /// Who answered; if it was gone on with, who did last.
    pub target: Option<String>,
    /// `miss`, `exact`, `shared` (with somebody who had asked for the same just before) or `bypass`.
    pub cache: Option<&'static str>,
    /// What was tried, in this order.
    pub attempts: Vec<Attempt>,
    /// Milliseconds to the first token.
    pub ttft_ms: Option<f64>,
    /// Milliseconds in all.
    pub duration_ms: f64,
    /// Tokens of the prompt, as the target counted them.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, as the target counted them.
    pub completion_tokens: Option<u64>,
    /// What it cost, in the currency of the prices; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Placeholders that were restored.
    pub restored: u64,
    /// How many of them in arguments of tools, by what the configuration calls the tool.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub restored_for_tools: BTreeMap<String, u64>,
    /// How much of what the model made was masked, by kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub answer_masked: BTreeMap<String, u64>,
    /// The kind of what the model made that ended the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_stopped: Option<String>,
    /// How often it broke off and another target went on with it.
    #[serde(skip_serializing_if = "is_zero")]
    pub continued: u32,
    /// Why nobody went on with it when it broke off, as an error code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_continued: Option<&'static str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// One attempt at one target.
#[derive(Debug, Clone, Serialize)]
pub struct Attempt {
    /// Its name.
    pub target: String,
    /// `ok`, or why not, as a fixed word.
    pub result: &'static str,
    /// Milliseconds until that was known.
    pub ms: f64,
}

impl Attempt {
    /// May the target have worked for it, and charge for it? Not if it was not reached, or said no.
    #[must_use]
    pub fn may_have_cost(&self) -> bool {
        let worked =
            ["ok", "abandoned", "lost_race", "broken", "died", "first_token_timeout", "idle_timeout", "malformed"];
        worked.contains(&self.result)
    }
}
