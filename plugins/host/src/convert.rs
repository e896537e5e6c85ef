//! Between our plain data and the types of the bindings. Nothing is judged here; [`crate::answer`] does that.

use crate::answer::{MAX_PARTS, MAX_TEXT_BYTES};
use crate::bindings::postern::policy::types as wit;
use crate::facts::{
    Annotation, CacheMode, CachePlan, FleetFacts, Header, MessageFacts, Placement, Price, RequestFacts, Span,
    SpanAction, TargetFacts, TargetPlacement, TextSegment, Verdict,
};
use crate::policy::Grants;

/// Lists of borrowed records need an owner for the time of a call.
pub(crate) struct RequestLists<'a> {
    labels: Vec<&'a str>,
    label_sources: Vec<&'a str>,
    messages: Vec<wit::MessageFacts<'a>>,
    headers: Vec<wit::Header<'a>>,
}

impl<'a> RequestLists<'a> {
    /// Of text and headers, only what was granted.
    pub(crate) fn of(request: &'a RequestFacts, grants: &Grants) -> Self {
        let message = |m: &'a MessageFacts| {
            let text = m.text.as_deref().filter(|_| grants.text);
            wit::MessageFacts { role: &m.role, bytes: m.bytes, text }
        };
        let headers = request.headers.iter().filter(|header| grants.show(&header.name));
        let headers = headers.filter(|header| header.value.len() <= MAX_TEXT_BYTES).take(MAX_PARTS);
        Self {
            labels: request.labels.iter().map(String::as_str).collect(),
            label_sources: request.label_sources.iter().map(String::as_str).collect(),
            messages: request.messages.iter().map(message).collect(),
            headers: headers.map(|Header { name, value }| wit::Header { name, value }).collect(),
        }
    }

    pub(crate) fn facts(&'a self, request: &'a RequestFacts) -> wit::RequestFacts<'a> {
        wit::RequestFacts {
            identity: &request.identity,
            tenant: &request.tenant,
            label: &request.label,
            labels: &self.labels,
            label_sources: &self.label_sources,
            model: &request.model,
            stream: request.stream,
            prompt_tokens: request.prompt_tokens,
            messages: &self.messages,
            tools: request.tools,
            images: request.images,
            temperature: request.temperature,
            placement_asked: request.placement_asked.map(placement_out),
            conversation: &request.conversation,
            time: request.time,
            utc_offset_minutes: request.utc_offset_minutes,
            tokens_left: request.tokens_left,
            headers: &self.headers,
        }
    }
}

pub(crate) fn targets(fleet: &FleetFacts) -> Vec<wit::TargetFacts<'_>> {
    fleet.targets.iter().map(target).collect()
}

fn target(target: &TargetFacts) -> wit::TargetFacts<'_> {
    let price =
        |p: Price| wit::Price { input_per_million: p.input_per_million, output_per_million: p.output_per_million };
    wit::TargetFacts {
        name: &target.name,
        placement: match target.placement {
            TargetPlacement::Cloud => wit::TargetPlacement::Cloud,
            TargetPlacement::Edge => wit::TargetPlacement::Edge,
            TargetPlacement::Local => wit::TargetPlacement::Local,
        },
        clearance: &target.clearance,
        healthy: target.healthy,
        predicted_ttft_ms: target.predicted_ttft_ms,
        queue_depth: target.queue_depth,
        price: target.price.map(price),
        requests_left: target.requests_left,
    }
}

pub(crate) fn segments(segments: &[TextSegment]) -> Vec<wit::TextSegment<'_>> {
    segments.iter().map(|s| wit::TextSegment { id: s.id, role: &s.role, text: &s.text }).collect()
}

pub(crate) fn verdict(verdict: wit::Verdict) -> Verdict {
    let wit::Verdict { placement, targets, model, label, deny, weight, annotations } = verdict;
    let annotation = |a: wit::Annotation| Annotation { key: a.key, value: a.value };
    Verdict {
        placement: placement.map(placement_in),
        targets,
        model,
        label,
        deny,
        weight,
        annotations: annotations.into_iter().map(annotation).collect(),
    }
}

pub(crate) fn plan(plan: wit::CachePlan) -> CachePlan {
    let mode = match plan.mode {
        wit::CacheMode::Exact => CacheMode::Exact,
        wit::CacheMode::Semantic => CacheMode::Semantic,
        wit::CacheMode::Bypass => CacheMode::Bypass,
    };
    CachePlan { mode, ttl_seconds: plan.ttl_seconds, key_parts: plan.key_parts }
}

pub(crate) fn spans(spans: Vec<wit::Span>) -> Vec<Span> {
    let span = |wit::Span { segment, start, end, kind, action }: wit::Span| {
        let action = match action {
            wit::SpanAction::Mask => SpanAction::Mask,
            wit::SpanAction::Flag => SpanAction::Flag,
        };
        Span { segment, start, end, kind, action }
    };
    spans.into_iter().map(span).collect()
}

fn placement_out(placement: Placement) -> wit::Placement {
    match placement {
        Placement::Cloud => wit::Placement::Cloud,
        Placement::EdgeFirst => wit::Placement::EdgeFirst,
        Placement::Local => wit::Placement::Local,
    }
}

fn placement_in(placement: wit::Placement) -> Placement {
    match placement {
        wit::Placement::Cloud => Placement::Cloud,
        wit::Placement::EdgeFirst => Placement::EdgeFirst,
        wit::Placement::Local => Placement::Local,
    }
}
