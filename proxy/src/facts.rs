//! What policies are told: of a request its shape, and of its content what was granted; of targets how they are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use postern_plugins::{
    FleetFacts, Header, MAX_TEXT_BYTES, MessageFacts, Placement, Price, RequestFacts, TargetFacts, TargetPlacement,
};
use postern_wire::chat::MessageShape;

use crate::admission::Admitted;
use crate::classify::ClassifiedRequest;
use crate::classify::clearance::ENGINE;
use crate::config::file::TargetKind;
use crate::config::{self, Config, Target};
use crate::decide::EngineFacts;
use crate::redact::MaskedRequest;
use crate::request::ParsedRequest;
use crate::upstream::standing::Now;

/// Headers of one request that are kept for policies, over all of them.
const MAX_HEADERS: usize = 256;

/// The headers of a request that some policy was granted, in their order. A value that is long, or is not text, is left out.
#[must_use]
pub fn granted_headers(headers: &HeaderMap, granted: &BTreeSet<String>) -> Vec<Header> {
    if granted.is_empty() {
        return Vec::new();
    }
    let shown = headers.iter().filter(|(name, value)| granted.contains(name.as_str()) && value.len() <= MAX_TEXT_BYTES);
    let text = shown.filter_map(|(name, value)| {
        Some(Header { name: name.as_str().to_owned(), value: value.to_str().ok()?.to_owned() })
    });
    text.take(MAX_HEADERS).collect()
}

/// What is told of a request before it is routed. `with_text`: some policy was granted the text of messages.
#[must_use]
pub fn request(
    config: &Config,
    masked: &MaskedRequest,
    headers: Vec<Header>,
    admitted: Option<&Admitted>,
    with_text: bool,
) -> RequestFacts {
    let classified = masked.classified();
    let ParsedRequest { peer, call, prompt_tokens, marks } = classified.request();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    RequestFacts {
        identity: peer.id.as_str().to_owned(),
        tenant: peer.tenant.to_string(),
        label: config.labels.name(classified.label()).to_owned(),
        labels: config.labels.names().to_vec(),
        label_sources: label_sources(classified),
        model: call.model().to_owned(),
        stream: call.stream(),
        prompt_tokens: *prompt_tokens,
        messages: messages(masked, with_text),
        tools: call.tools(),
        images: call.opaque_parts(),
        temperature: call.temperature(),
        placement_asked: marks.placement.map(placement),
        conversation: classified.conversation().to_hex(),
        time: now.as_secs(),
        utc_offset_minutes: utc_offset_minutes(),
        tokens_left: admitted.and_then(Admitted::tokens_left),
        headers,
    }
}

/// What raised the label, as short names.
#[must_use]
pub fn label_sources(classified: &ClassifiedRequest) -> Vec<String> {
    classified.sources().iter().map(|source| source.source.clone()).collect()
}

fn messages(masked: &MaskedRequest, with_text: bool) -> Vec<MessageFacts> {
    let call = &masked.classified().request().call;
    // If a policy that should have looked did not, the text is not what would leave, and nobody sees it.
    let texts = if with_text && masked.is_complete() { call.message_texts(masked.body()) } else { Vec::new() };
    let mut texts = texts.into_iter();
    let message = |shape: MessageShape| MessageFacts {
        role: shape.role.to_owned(),
        bytes: shape.bytes as u64,
        text: texts.next(),
    };
    call.message_shapes().into_iter().map(message).collect()
}

/// What local time is ahead of UTC, by the time zone of this machine: it changes while we run, so it is asked each time (jiff
/// keeps the zone for some minutes).
fn utc_offset_minutes() -> i32 {
    jiff::Zoned::now().offset().seconds() / 60
}

/// All targets as they are now, also those that this request may not go to. `standings` has none if the gateway is offline.
#[must_use]
pub fn fleet(config: &Config, standings: &[(Arc<Target>, Now)], engine: EngineFacts) -> FleetFacts {
    let now = |target: &Target| standings.iter().find(|(known, _)| known.name == target.name).map(|(_, now)| *now);
    let remote = config.targets.iter().map(|target| remote(config, target, now(target)));
    let engine = config.engine.is_some().then(|| self::engine(config, engine));
    FleetFacts { targets: remote.chain(engine).collect() }
}

fn remote(config: &Config, target: &Target, now: Option<Now>) -> TargetFacts {
    let price = |price: config::file::Price| Price {
        input_per_million: price.input_per_million,
        output_per_million: price.output_per_million,
    };
    TargetFacts {
        name: target.name.clone(),
        placement: match target.kind {
            TargetKind::Cloud => TargetPlacement::Cloud,
            TargetKind::Edge => TargetPlacement::Edge,
        },
        clearance: config.labels.name(target.clearance).to_owned(),
        // Without a standing it is not used, since the gateway is offline.
        healthy: now.is_some_and(|now| now.healthy),
        predicted_ttft_ms: now.and_then(|now| now.ttft).map(milliseconds),
        queue_depth: now.map_or(0, |now| now.queue as u32),
        price: target.price.map(price),
        requests_left: now.and_then(|now| now.requests_left).map(clamped),
    }
}

fn engine(config: &Config, engine: EngineFacts) -> TargetFacts {
    TargetFacts {
        name: ENGINE.to_owned(),
        placement: TargetPlacement::Local,
        clearance: config.labels.name(config.labels.highest()).to_owned(),
        healthy: engine.ready,
        predicted_ttft_ms: engine.ttft.map(milliseconds),
        queue_depth: engine.load.queue as u32,
        price: None,
        requests_left: None,
    }
}

fn placement(placement: config::Placement) -> Placement {
    match placement {
        config::Placement::Cloud => Placement::Cloud,
        config::Placement::EdgeFirst => Placement::EdgeFirst,
        config::Placement::Local => Placement::Local,
    }
}

fn milliseconds(span: std::time::Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

fn clamped(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_headers_that_were_granted_are_kept() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-team", "blue"), ("x-other", "no"), ("x-team", "red"), ("authorization", "no")] {
            headers.append(name, value.parse().unwrap());
        }
        headers.append("x-team", "x".repeat(MAX_TEXT_BYTES + 1).parse().unwrap());
        headers.append("x-team", http::HeaderValue::from_bytes(b"\xff").unwrap());
        let granted = ["x-team".to_owned()].into();
        let values: Vec<_> = granted_headers(&headers, &granted).into_iter().map(|h| (h.name, h.value)).collect();
        assert_eq!(values, [("x-team".to_owned(), "blue".to_owned()), ("x-team".to_owned(), "red".to_owned())]);
        assert!(granted_headers(&headers, &BTreeSet::new()).is_empty());
    }

    #[test]
    fn local_time_is_within_a_day_of_utc() {
        assert!(utc_offset_minutes().abs() <= 14 * 60);
    }
}
