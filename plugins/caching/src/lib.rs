//! The first-party caching policy: answers are cached for requests that are equal, unless they are likely to differ the next
//! time.
//!
//! ```yaml
//! config:
//!   never:                        # what fits any of these is not cached; `*` at the end of a text: anything
//!     - {model: "live-*"}
//!     - {label: confidential}
//!     - {}                        # nothing is cached at all
//!   semantic:                     # what fits any of these may be answered as a request that means the same was
//!     - {model: faq, max_prompt_tokens: 200}
//!   max_temperature: 1.0          # above it, callers want another answer each time
//!   ttl_seconds: 600              # absent: as the gateway is configured
//!   key_by: [identity]            # also `conversation`: do not share answers between those
//! ```
//! Requests with tools are not cached: what they answer depends on what the tools do.

use postern_policy_sdk::caching::{CacheMode, CachePlan, Policy, RequestFacts};
use postern_policy_sdk::startup::{Prepared, Startup};
use postern_policy_sdk::{config, export_caching, export_startup};
use serde::Deserialize;

static CONFIG: Prepared<Config> = Prepared::new(config);

struct Caching;

impl Startup for Caching {
    fn start() -> Result<(), String> {
        CONFIG.get().map(drop)
    }
}

impl Policy for Caching {
    fn plan(request: RequestFacts) -> Result<CachePlan, String> {
        Ok(CONFIG.get()?.plan(&request))
    }
}

export_startup!(Caching);
export_caching!(Caching);

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    never: Vec<Which>,
    semantic: Vec<Which>,
    max_temperature: f64,
    ttl_seconds: Option<u32>,
    key_by: Vec<KeyBy>,
}

/// Requests for which everything holds that is said.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Which {
    model: Option<String>,
    identity: Option<String>,
    tenant: Option<String>,
    label: Option<String>,
    max_prompt_tokens: Option<u64>,
    stream: Option<bool>,
    images: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeyBy {
    Identity,
    Conversation,
}

impl Default for Config {
    fn default() -> Self {
        Self { never: Vec::new(), semantic: Vec::new(), max_temperature: 1.0, ttl_seconds: None, key_by: Vec::new() }
    }
}

impl Config {
    fn plan(&self, request: &RequestFacts) -> CachePlan {
        let any = |list: &[Which]| list.iter().any(|which| which.fits(request));
        // Said this way around, a temperature that is not a number is not cached.
        let cool = request.temperature.is_none_or(|temperature| temperature <= self.max_temperature);
        if request.tools || !cool || any(&self.never) {
            return CachePlan::bypass();
        }
        CachePlan {
            mode: if any(&self.semantic) { CacheMode::Semantic } else { CacheMode::Exact },
            ttl_seconds: self.ttl_seconds,
            key_parts: self.key_by.iter().flat_map(|by| parts(*by, request)).collect(),
        }
    }
}

impl Which {
    fn fits(&self, request: &RequestFacts) -> bool {
        like(self.model.as_deref(), &request.model)
            && like(self.identity.as_deref(), &request.identity)
            && like(self.tenant.as_deref(), &request.tenant)
            && like(self.label.as_deref(), &request.label)
            && self.max_prompt_tokens.is_none_or(|max| request.prompt_tokens <= max)
            && self.stream.is_none_or(|stream| request.stream == stream)
            && self.images.is_none_or(|images| request.images == images)
    }
}

fn like(pattern: Option<&str>, text: &str) -> bool {
    pattern.is_none_or(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix),
        None => text == pattern,
    })
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
        postern_policy_sdk::parse::<Config>(config).unwrap().plan(request)
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
    }

    #[test]
    fn what_the_office_says_is_not_cached() {
        assert_eq!(of(r#"{"never": [{}]}"#, &request()), CachePlan::bypass());
        assert_eq!(of(r#"{"never": [{"model": "x"}, {"model": "ch*"}]}"#, &request()), CachePlan::bypass());
        let all = r#"{"never": [{"model": "chat", "identity": "spiffe://td/clerk/*", "tenant": "clerks", "label": "internal",
            "max_prompt_tokens": 100, "stream": true, "images": false}]}"#;
        assert_eq!(of(all, &request()), CachePlan::bypass());
        for other in [
            RequestFacts { model: "chat2".into(), ..request() },
            RequestFacts { identity: "spiffe://td/guest/li".into(), ..request() },
            RequestFacts { tenant: "guests".into(), ..request() },
            RequestFacts { label: "public".into(), ..request() },
            RequestFacts { prompt_tokens: 101, ..request() },
            RequestFacts { stream: false, ..request() },
            RequestFacts { images: true, ..request() },
        ] {
            assert_eq!(of(all, &other), CachePlan::exact(), "{other:?}");
        }
    }

    #[test]
    fn what_means_the_same_is_answered_the_same_where_the_office_says_so() {
        let config = r#"{"semantic": [{"model": "ch*", "max_prompt_tokens": 100}], "never": [{"images": true}], "ttl_seconds": 60}"#;
        let plan = of(config, &request());
        assert_eq!((plan.mode, plan.ttl_seconds), (CacheMode::Semantic, Some(60)));
        assert_eq!(of(config, &RequestFacts { prompt_tokens: 101, ..request() }).mode, CacheMode::Exact);
        assert_eq!(of(config, &RequestFacts { images: true, ..request() }).mode, CacheMode::Bypass);
    }

    #[test]
    fn life_and_key_are_as_configured() {
        let plan = of(r#"{"ttl_seconds": 60, "key_by": ["identity", "conversation"]}"#, &request());
        assert_eq!((plan.mode, plan.ttl_seconds), (CacheMode::Exact, Some(60)));
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
        assert!(postern_policy_sdk::parse::<Config>(r#"{"nevver": []}"#).is_err());
        assert!(postern_policy_sdk::parse::<Config>(r#"{"never": [{"modle": "x"}]}"#).is_err());
    }
}
