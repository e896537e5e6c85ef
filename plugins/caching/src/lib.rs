//! The first-party caching policy: answers are cached, unless they are likely to differ the next time.
//!
//! ```yaml
//! config:
//!   bypass: false            # true: cache nothing
//!   bypass_models: [live-*]  # `*` at the end: anything
//!   max_temperature: 1.0     # above it, callers want another answer each time
//!   ttl_seconds: 600         # absent: as the gateway is configured
//!   key_by: [identity]       # also `conversation`: do not share answers between those
//! ```
//! Requests with tools are not cached: what they answer depends on what the tools do.

use postern_policy_sdk::caching::{CachePlan, Policy, RequestFacts};
use postern_policy_sdk::{config, export_caching};
use serde::Deserialize;

struct Caching;

impl Policy for Caching {
    fn plan(request: RequestFacts) -> Result<CachePlan, String> {
        Ok(plan(&config()?, &request))
    }
}

export_caching!(Caching);

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    bypass: bool,
    bypass_models: Vec<String>,
    max_temperature: f64,
    ttl_seconds: Option<u32>,
    key_by: Vec<KeyBy>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeyBy {
    Identity,
    Conversation,
}

impl Default for Config {
    fn default() -> Self {
        Self { bypass: false, bypass_models: Vec::new(), max_temperature: 1.0, ttl_seconds: None, key_by: Vec::new() }
    }
}

fn plan(config: &Config, request: &RequestFacts) -> CachePlan {
    let model = |pattern: &String| match pattern.strip_suffix('*') {
        Some(prefix) => request.model.starts_with(prefix),
        None => request.model == *pattern,
    };
    // Said this way around, a temperature that is not a number is not cached.
    let cool = request.temperature.is_none_or(|temperature| temperature <= config.max_temperature);
    if config.bypass || request.tools || !cool || config.bypass_models.iter().any(model) {
        return CachePlan::bypass();
    }
    CachePlan {
        ttl_seconds: config.ttl_seconds,
        key_parts: config.key_by.iter().flat_map(|by| parts(*by, request)).collect(),
        ..CachePlan::exact()
    }
}

/// A SPIFFE ID may have 2,048 bytes and a part of the key 256: a long one makes several parts.
fn parts(by: KeyBy, request: &RequestFacts) -> Vec<String> {
    const PART_CHARS: usize = 200;
    let (name, value) = match by {
        KeyBy::Identity => ("identity", &request.identity),
        KeyBy::Conversation => ("conversation", &request.conversation),
    };
    let chars: Vec<char> = value.chars().collect();
    chars.chunks(PART_CHARS).map(|chunk| format!("{name}:{}", chunk.iter().collect::<String>())).collect()
}

#[cfg(test)]
mod tests {
    use postern_policy_sdk::caching::CacheMode;

    use super::*;

    fn request() -> RequestFacts {
        RequestFacts {
            identity: "spiffe://td/clerk/li".into(),
            tenant: "clerks".into(),
            label: "internal".into(),
            model: "chat".into(),
            stream: true,
            prompt_tokens: 100,
            conversation: "c1".into(),
            ..RequestFacts::default()
        }
    }

    fn of(config: &str, request: &RequestFacts) -> CachePlan {
        plan(&postern_policy_sdk::parse(config).unwrap(), request)
    }

    #[test]
    fn answers_are_cached_by_default() {
        assert_eq!(of("{}", &request()), CachePlan::exact());
        assert_eq!(of("{}", &RequestFacts { temperature: Some(1.0), ..request() }), CachePlan::exact());
    }

    #[test]
    fn what_would_differ_is_not_cached() {
        assert_eq!(of("{}", &RequestFacts { tools: true, ..request() }), CachePlan::bypass());
        assert_eq!(of("{}", &RequestFacts { temperature: Some(1.1), ..request() }), CachePlan::bypass());
        assert_eq!(of("{}", &RequestFacts { temperature: Some(f64::NAN), ..request() }), CachePlan::bypass());
        assert_eq!(
            of(r#"{"max_temperature": 0}"#, &RequestFacts { temperature: Some(0.1), ..request() }),
            CachePlan::bypass()
        );
        assert_eq!(of(r#"{"bypass": true}"#, &request()), CachePlan::bypass());
        assert_eq!(of(r#"{"bypass_models": ["x", "ch*"]}"#, &request()), CachePlan::bypass());
        assert_eq!(of(r#"{"bypass_models": ["x", "chat2"]}"#, &request()), CachePlan::exact());
    }

    #[test]
    fn life_and_key_are_as_configured() {
        let plan = of(r#"{"ttl_seconds": 60, "key_by": ["identity", "conversation"]}"#, &request());
        assert_eq!(plan.mode, CacheMode::Exact);
        assert_eq!(plan.ttl_seconds, Some(60));
        assert_eq!(plan.key_parts, ["identity:spiffe://td/clerk/li", "conversation:c1"]);
    }

    #[test]
    fn a_long_identity_keeps_to_the_bounds_of_key_parts() {
        let plan = of(r#"{"key_by": ["identity"]}"#, &RequestFacts { identity: "i".repeat(2048), ..request() });
        assert_eq!(plan.key_parts.len(), 11);
        assert!(plan.key_parts.iter().all(|part| part.len() <= 256));
    }

    #[test]
    fn a_misspelt_option_is_an_error() {
        assert!(postern_policy_sdk::parse::<Config>(r#"{"by_pass": true}"#).is_err());
    }
}
