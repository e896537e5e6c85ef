//! A policy that does what its configuration says, good or bad, for scenarios. It takes part at every step.
//!
//! With `leak` it tries everything that could carry what it learnt from one request over to another: see [`leak`] and
//! [`use_what_leaked`].

use postern_policy_sdk::caching::{CacheMode, CachePlan};
use postern_policy_sdk::redaction::{Span, TextSegment};
use postern_policy_sdk::routing::{Annotation, FleetFacts, Placement, RequestFacts, Verdict};
use postern_policy_sdk::{caching, config, counters, log, metrics, redaction, routing};
use postern_policy_sdk::{export_caching, export_redaction, export_routing};
use serde::Deserialize;

/// Scenarios write a number over the digits, so that files differ in nothing but it.
static VERSION: [u8; 21] = *b"puppet-version-000000";

/// A text with this is classified by the scenarios, and what is behind it is what must not get out.
const SECRET: &str = "the secret is ";
/// A week.
const LIFE_SECONDS: u32 = 604_800;

struct Puppet;

export_routing!(Puppet);
export_caching!(Puppet);
export_redaction!(Puppet);

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Do everything that is forbidden.
    leak: bool,
    /// Notes on what it was told.
    tell_facts: bool,
    /// The number in the file, as a note.
    tell_version: bool,
    /// Crash at the routing step if this model is asked for.
    trap_on_model: Option<String>,
    /// Crash at the redaction step if this is in the text.
    trap_on_text: Option<String>,
    /// Vote as in `vote` only if this is in the text of a message, which must have been granted.
    if_text: Option<String>,
    vote: Vote,
    /// Bypass the cache.
    bypass: bool,
    /// Count requests under this name and deny from this number on.
    at_most: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Vote {
    placement: Option<String>,
    targets: Vec<String>,
    model: Option<String>,
    label: Option<String>,
    deny: Option<String>,
    weight: Option<String>,
    /// Deny only those who ask for this model.
    only_model: Option<String>,
}

impl redaction::Policy for Puppet {
    fn find(segments: Vec<TextSegment>) -> Result<Vec<Span>, String> {
        let config: Config = config()?;
        let has = |words: &String| segments.iter().any(|segment| segment.text.contains(words.as_str()));
        if config.trap_on_text.as_ref().is_some_and(has) {
            crash();
        }
        if config.leak {
            segments.iter().filter_map(|segment| segment.text.split_once(SECRET)).for_each(|(_, secret)| leak(secret));
        }
        Ok(Vec::new())
    }
}

impl routing::Policy for Puppet {
    fn route(request: RequestFacts, fleet: FleetFacts) -> Result<Verdict, String> {
        let config: Config = config()?;
        if config.trap_on_model.as_ref() == Some(&request.model) {
            crash();
        }
        let mut verdict = vote(&config, &request);
        if config.tell_version {
            note(&mut verdict, "version", version());
        }
        if config.tell_facts {
            tell(&mut verdict, &request, &fleet);
        }
        if let Some(most) = config.at_most {
            let count = counters::add("requests", 1, LIFE_SECONDS)?;
            metrics::count("requests", 1);
            metrics::set("last", count as f64);
            if count > most {
                verdict.deny = Some(format!("request {count} of {most}"));
            }
        }
        if config.leak {
            // Sizes are known here, and say what was written as well as words would.
            let length = request.messages.iter().map(|message| message.bytes).sum::<u64>();
            leak(&format!("{length} {}", request.model));
            note(&mut verdict, "length", &length.to_string());
            use_what_leaked(&request, &mut verdict);
        }
        Ok(verdict)
    }
}

impl caching::Policy for Puppet {
    fn plan(request: RequestFacts) -> Result<CachePlan, String> {
        let config: Config = config()?;
        let mut plan = CachePlan { mode: CacheMode::Exact, ttl_seconds: None, key_parts: Vec::new() };
        if config.bypass {
            plan.mode = CacheMode::Bypass;
        }
        if config.leak {
            leak(&request.model);
            // As a name only: a key of the gateway is in it, so two gateways have two.
            let _full = counters::add(&request.conversation, 1, LIFE_SECONDS);
            plan.key_parts.push(request.conversation);
            plan.ttl_seconds = Some(u32::try_from(counters::get("leaks")).unwrap_or(1).max(1));
        }
        Ok(plan)
    }
}

fn vote(config: &Config, request: &RequestFacts) -> Verdict {
    let has = |words: &String| {
        request.messages.iter().any(|m| m.text.as_ref().is_some_and(|text| text.contains(words.as_str())))
    };
    let Vote { placement, targets, model, label, deny, weight, only_model } = &config.vote;
    let applies =
        config.if_text.as_ref().is_none_or(has) && only_model.as_ref().is_none_or(|only| *only == request.model);
    if !applies {
        return Verdict::default();
    }
    Verdict {
        placement: placement.as_deref().and_then(|placement| match placement {
            "cloud" => Some(Placement::Cloud),
            "edge-first" => Some(Placement::EdgeFirst),
            "local" => Some(Placement::Local),
            _ => None,
        }),
        targets: targets.clone(),
        model: model.clone(),
        label: label.clone(),
        deny: deny.clone(),
        weight: weight.clone(),
        annotations: Vec::new(),
    }
}

/// Writes a secret wherever something can be written.
fn leak(secret: &str) {
    log::warn(secret);
    let short = secret.get(..secret.len().min(200)).unwrap_or(secret);
    let number = secret.bytes().fold(7_i64, |sum, byte| sum.wrapping_mul(31).wrapping_add(i64::from(byte))) & 0xffff;
    // As a name, as a number, and as the number of numbers.
    let _full = counters::add(short, 1, LIFE_SECONDS);
    let _full = counters::add("number", number, LIFE_SECONDS);
    let _full = counters::add("leaks", 1, LIFE_SECONDS);
    metrics::count("leaks", u32::try_from(number).unwrap_or(1));
    metrics::set("number", number as f64);
}

/// Lets a later request show what an earlier one wrote: by the model, by the target, by being refused.
fn use_what_leaked(request: &RequestFacts, verdict: &mut Verdict) {
    // This request has written once by itself here.
    if counters::get("leaks") > 1 {
        verdict.model = Some(if counters::get("number") % 2 == 0 { "even" } else { "odd" }.to_owned());
    }
    if request.label == "classified" {
        verdict.deny = Some(format!("because {}", request.conversation));
    }
}

fn tell(verdict: &mut Verdict, request: &RequestFacts, fleet: &FleetFacts) {
    note(verdict, "label", &format!("{} of {}", request.label, request.labels.join(" ")));
    note(verdict, "sources", &request.label_sources.join(" "));
    let headers: Vec<_> = request.headers.iter().map(|header| format!("{}={}", header.name, header.value)).collect();
    note(verdict, "headers", &headers.join(" "));
    note(verdict, "tokens", &format!("{} left {:?}", request.prompt_tokens, request.tokens_left));
    note(verdict, "offset", &request.utc_offset_minutes.to_string());
    let text = request.messages.iter().filter(|message| message.text.is_some()).count();
    note(verdict, "messages", &format!("{} with text {text}", request.messages.len()));
    for target in &fleet.targets {
        let price = target.price.map(|price| (price.input_per_million, price.output_per_million));
        let told = format!(
            "clearance {} healthy {} ttft {:?} queue {} price {price:?} left {:?}",
            target.clearance, target.healthy, target.predicted_ttft_ms, target.queue_depth, target.requests_left
        );
        note(verdict, &target.name, &told);
    }
}

fn note(verdict: &mut Verdict, key: &str, value: &str) {
    verdict.annotations.push(Annotation { key: key.to_owned(), value: value.to_owned() });
}

/// As it stands in the file, which the compiler must not know.
fn version() -> &'static str {
    std::str::from_utf8(std::hint::black_box(&VERSION)).unwrap_or("?")
}

fn crash() {
    #[cfg(target_arch = "wasm32")]
    std::arch::wasm32::unreachable();
}
