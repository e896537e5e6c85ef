//! One rule: conditions on the request, what is left of the targets, and a vote.

use std::collections::BTreeMap;

use postern_policy_sdk::routing::{Annotation, FleetFacts, Placement, RequestFacts, TargetFacts, Verdict};
use serde::Deserialize;

use crate::hours::{Day, Hours};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rule {
    /// Noted in the record of each request that it decided, as `rule`.
    pub(crate) name: Option<String>,

    // Conditions. Texts may end in `*`.
    pub(crate) model: Option<String>,
    pub(crate) identity: Option<String>,
    pub(crate) tenant: Option<String>,
    pub(crate) label: Option<String>,
    /// This label or a higher one.
    pub(crate) min_label: Option<String>,
    /// Is the label the highest that there is?
    pub(crate) highest_label: Option<bool>,
    pub(crate) min_prompt_tokens: Option<u64>,
    pub(crate) max_prompt_tokens: Option<u64>,
    pub(crate) stream: Option<bool>,
    pub(crate) tools: Option<bool>,
    pub(crate) images: Option<bool>,
    pub(crate) placement_asked: Option<Where>,
    /// Name in lower case → value. Grant the policy these headers.
    pub(crate) headers: BTreeMap<String, String>,
    /// Local time of the gateway: `08:00-18:30`; `20:00-07:00` is the night.
    pub(crate) hours: Option<Hours>,
    /// `mon`, `tue`, … The hours behind midnight belong to the new day.
    pub(crate) days: Vec<Day>,
    /// The identity has at most so many tokens left in this minute.
    pub(crate) max_tokens_left: Option<u64>,

    // What narrows the targets; the rule matches only if one is left.
    /// These, in this order. Absent: all.
    pub(crate) targets: Vec<String>,
    /// Those that answer, and are predicted to begin within so many milliseconds.
    pub(crate) max_ttft_ms: Option<u32>,
    /// Those where the prompt costs at most so much, in the operator's currency. What has no price costs nothing.
    pub(crate) max_cost: Option<f64>,

    // The vote. Without one: no opinion, and no later rule is asked.
    pub(crate) placement: Option<Where>,
    /// Ask for this model instead.
    pub(crate) use_model: Option<String>,
    /// Spread by the weights of this name.
    pub(crate) weight: Option<String>,
    pub(crate) raise_label: Option<String>,
    /// Refuse, for this reason.
    pub(crate) deny: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Where {
    Cloud,
    EdgeFirst,
    Local,
}

impl Rule {
    /// Its vote, if it matches.
    pub(crate) fn verdict(&self, request: &RequestFacts, fleet: &FleetFacts) -> Result<Option<Verdict>, String> {
        if !self.matches(request)? {
            return Ok(None);
        }
        let targets = self.left_of(request, fleet);
        if targets.is_empty() && self.narrows() {
            return Ok(None);
        }
        let named = self.name.iter().map(|name| Annotation { key: "rule".into(), value: name.clone() });
        Ok(Some(Verdict {
            placement: self.placement.map(Where::wit),
            targets,
            model: self.use_model.clone(),
            label: self.raise_label.clone(),
            deny: self.deny.clone(),
            weight: self.weight.clone(),
            annotations: named.collect(),
        }))
    }

    fn matches(&self, request: &RequestFacts) -> Result<bool, String> {
        let local_time = request.time.cast_signed().saturating_add(i64::from(request.utc_offset_minutes) * 60);
        Ok(like(self.model.as_deref(), &request.model)
            && like(self.identity.as_deref(), &request.identity)
            && like(self.tenant.as_deref(), &request.tenant)
            && like(self.label.as_deref(), &request.label)
            && is(self.highest_label, request.labels.last() == Some(&request.label))
            && self.min_prompt_tokens.is_none_or(|min| request.prompt_tokens >= min)
            && self.max_prompt_tokens.is_none_or(|max| request.prompt_tokens <= max)
            && is(self.stream, request.stream)
            && is(self.tools, request.tools)
            && is(self.images, request.images)
            && self.placement_asked.is_none_or(|asked| request.placement_asked == Some(asked.wit()))
            && self.headers.iter().all(|(name, value)| has_header(request, name, value))
            && self.hours.is_none_or(|hours| hours.contain(local_time))
            && (self.days.is_empty() || self.days.contains(&Day::of(local_time)))
            && self.max_tokens_left.is_none_or(|max| request.tokens_left.is_some_and(|left| left <= max))
            && self.min_label.as_ref().map_or(Ok(true), |min| is_at_least(request, min))?)
    }

    fn narrows(&self) -> bool {
        !self.targets.is_empty() || self.max_ttft_ms.is_some() || self.max_cost.is_some()
    }

    /// The names of the targets that are left; none if it narrows nothing.
    fn left_of(&self, request: &RequestFacts, fleet: &FleetFacts) -> Vec<String> {
        if !self.narrows() {
            return Vec::new();
        }
        let quick = |target: &TargetFacts, max| target.healthy && target.predicted_ttft_ms.is_some_and(|ms| ms <= max);
        let fits = |target: &&TargetFacts| {
            self.max_ttft_ms.is_none_or(|max| quick(target, max))
                && self.max_cost.is_none_or(|max| cost(request, target) <= max)
        };
        let named = |name: &String| fleet.targets.iter().find(|target| target.name == *name);
        if self.targets.is_empty() {
            fleet.targets.iter().filter(fits).map(|target| target.name.clone()).collect()
        } else {
            self.targets.iter().filter_map(named).filter(fits).map(|target| target.name.clone()).collect()
        }
    }
}

fn like(pattern: Option<&str>, text: &str) -> bool {
    pattern.is_none_or(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix),
        None => text == pattern,
    })
}

fn is(wanted: Option<bool>, is: bool) -> bool {
    wanted.is_none_or(|wanted| wanted == is)
}

fn has_header(request: &RequestFacts, name: &str, value: &str) -> bool {
    request.headers.iter().any(|header| header.name == name && like(Some(value), &header.value))
}

/// A label that does not exist is no condition that fails: the rule was to keep something back.
fn is_at_least(request: &RequestFacts, min: &str) -> Result<bool, String> {
    let place = |wanted: &str| request.labels.iter().position(|label| label == wanted);
    match (place(min), place(&request.label)) {
        (Some(min), Some(label)) => Ok(label >= min),
        _ => Err(format!("config: there is no label {min}")),
    }
}

/// Of the prompt; what the answer will cost is not known yet.
#[expect(clippy::cast_precision_loss, reason = "an estimate of tokens is far from where that matters")]
fn cost(request: &RequestFacts, target: &TargetFacts) -> f64 {
    target.price.map_or(0.0, |price| request.prompt_tokens as f64 * price.input_per_million / 1e6)
}

impl Where {
    fn wit(self) -> Placement {
        match self {
            Self::Cloud => Placement::Cloud,
            Self::EdgeFirst => Placement::EdgeFirst,
            Self::Local => Placement::Local,
        }
    }
}
