//! What policies are told, and what they answer: plain data, the same as in the WIT package, without wasmtime's types.
//!
//! It is serialisable so that it can be recorded and replayed, and so that the sandbox could become a process of its own.

use serde::{Deserialize, Serialize};

/// Where a request may be answered, from the freest to the strictest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// A provider, then other nodes, then the engine.
    Cloud,
    /// A node close by if it answers in time, the cloud otherwise.
    EdgeFirst,
    /// The engine on this machine and nothing else.
    Local,
}

/// Where a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetPlacement {
    /// A provider.
    Cloud,
    /// Another node of ours.
    Edge,
    /// The engine on this machine.
    Local,
}

/// What a policy may know about a request. It has sizes; text and headers only as far as they were granted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestFacts {
    /// SPIFFE ID of the caller.
    pub identity: String,
    /// The tenant of that identity.
    pub tenant: String,
    /// The label so far; a policy may raise it.
    pub label: String,
    /// All labels, the lowest first.
    pub labels: Vec<String>,
    /// What raised the label, as short names such as `identity` or `detector:email`.
    pub label_sources: Vec<String>,
    /// The model that was asked for.
    pub model: String,
    /// Is the answer to be streamed?
    pub stream: bool,
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u64,
    /// The messages, in their order.
    pub messages: Vec<MessageFacts>,
    /// Does the request offer tools?
    pub tools: bool,
    /// Does the request have images or other parts that are not text?
    pub images: bool,
    /// The sampling temperature, if the request says one.
    pub temperature: Option<f64>,
    /// The placement that the caller asked for.
    pub placement_asked: Option<Placement>,
    /// Opaque key of the conversation: equal for two turns of the same one.
    pub conversation: String,
    /// Wall time in seconds since 1970-01-01 UTC.
    pub time: u64,
    /// Local time minus UTC, in minutes.
    pub utc_offset_minutes: i32,
    /// Tokens that the identity may still use in this minute, if it has a limit.
    pub tokens_left: Option<u64>,
    /// All headers that any policy may have been granted; each policy sees those of its own grants.
    pub headers: Vec<Header>,
}

/// A header of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// In lower case.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// The shape of one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageFacts {
    /// `system`, `user`, `assistant`, `tool`, …
    pub role: String,
    /// Length of its text in bytes of UTF-8.
    pub bytes: u64,
    /// Its text with placeholders, for policies that were granted it. Never serialised: records have no content.
    #[serde(skip)]
    pub text: Option<String>,
}

/// The targets that exist, with their state now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetFacts {
    /// All of them, in the order of the configuration; also those that the request's label forbids.
    pub targets: Vec<TargetFacts>,
}

/// One target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is.
    pub placement: TargetPlacement,
    /// The highest label that it may see.
    pub clearance: String,
    /// Does it answer at present?
    pub healthy: bool,
    /// Predicted time to first token in milliseconds, if there is ground for a prediction.
    pub predicted_ttft_ms: Option<u32>,
    /// Requests that wait there.
    pub queue_depth: u32,
    /// What it costs, if configured.
    pub price: Option<Price>,
    /// Requests that it may still be sent in this minute, if it has a limit.
    pub requests_left: Option<u32>,
}

/// A price in the operator's currency for each million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Price {
    /// For tokens of the prompt.
    pub input_per_million: f64,
    /// For tokens of the answer.
    pub output_per_million: f64,
}

/// The vote of a routing policy. `Verdict::default()` votes for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Where the request should be answered.
    pub placement: Option<Placement>,
    /// The targets to consider, in the order of preference; empty: all, as configured.
    pub targets: Vec<String>,
    /// Another model than the one asked for.
    pub model: Option<String>,
    /// Raise the label to this one. A lower one has no effect.
    pub label: Option<String>,
    /// Refuse the request, for this reason. Clients see a fixed code.
    pub deny: Option<String>,
    /// Spread requests over the targets by the weights of this name.
    pub weight: Option<String>,
    /// Notes on the request, for its record.
    pub annotations: Vec<Annotation>,
}

/// A note: a name and a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotation {
    /// What it says.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Whether an answer may be taken from the cache and put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// For requests that are equal in every parameter.
    Exact,
    /// Also for requests that mean the same, where that is configured.
    Semantic,
    /// Neither read nor written.
    Bypass,
}

/// The plan of a caching policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachePlan {
    /// Use the cache?
    pub mode: CacheMode,
    /// Life of the entry in seconds; `None`: as configured. It can only shorten.
    pub ttl_seconds: Option<u32>,
    /// Added to the host's own key, which they can only make narrower.
    pub key_parts: Vec<String>,
}

/// A piece of text in which a redaction policy looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextSegment {
    /// Names it in [`Span::segment`]; unique within a call.
    pub id: u32,
    /// Role of the message that it comes from, or another word for its place.
    pub role: String,
    /// The text.
    pub text: String,
}

/// What is done about a find.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpanAction {
    /// A placeholder stands there in what leaves.
    #[default]
    Mask,
    /// The record counts it.
    Flag,
}

/// A find: bytes `start..end` of the text of a segment, on character boundaries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// [`TextSegment::id`].
    pub segment: u32,
    /// First byte.
    pub start: u32,
    /// The byte after the last one.
    pub end: u32,
    /// What it is, in lower case letters, digits and `-`: `email`, `project-name`. The placeholder shows it.
    pub kind: String,
    /// What is done about it.
    #[serde(default)]
    pub action: SpanAction,
}

/// The steps of the request path at which a policy takes part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// It exports `routing`.
    pub routing: bool,
    /// It exports `caching`.
    pub caching: bool,
    /// It exports `redaction`.
    pub redaction: bool,
}
