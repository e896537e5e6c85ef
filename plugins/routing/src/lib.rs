//! The first-party routing policy: the first rule that matches a request says where it is answered.
//!
//! ```yaml
//! config:
//!   rules:                       # every condition that is given must hold; `*` at the end of a text: anything
//!     - {label: confidential, placement: local}
//!     - {identity: "spiffe://branch-17.example.org/kiosk/*", model: "gpt-*", deny: "kiosks use small models"}
//!     - {stream: true, max_prompt_tokens: 500, placement: edge-first}
//!   default: cloud               # where no rule matches; absent: no vote
//! ```
//! Without a configuration it votes for nothing. What a caller asks for is the gateway's business: it can only narrow.

use postern_policy_sdk::routing::{FleetFacts, Placement, Policy, RequestFacts, Verdict};
use postern_policy_sdk::{config, export_routing};
use serde::Deserialize;

struct Routing;

impl Policy for Routing {
    fn route(request: RequestFacts, _fleet: FleetFacts) -> Result<Verdict, String> {
        Ok(vote(&config()?, &request))
    }
}

export_routing!(Routing);

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    rules: Vec<Rule>,
    default: Option<Where>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rule {
    model: Option<String>,
    identity: Option<String>,
    label: Option<String>,
    max_prompt_tokens: Option<u64>,
    stream: Option<bool>,
    placement_asked: Option<Where>,
    /// The vote.
    placement: Option<Where>,
    /// The other vote: refuse, for this reason.
    deny: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Where {
    Cloud,
    EdgeFirst,
    Local,
}

fn vote(config: &Config, request: &RequestFacts) -> Verdict {
    match config.rules.iter().find(|rule| rule.matches(request)) {
        Some(rule) => {
            Verdict { placement: rule.placement.map(Where::wit), deny: rule.deny.clone(), ..Verdict::default() }
        }
        None => Verdict { placement: config.default.map(Where::wit), ..Verdict::default() },
    }
}

impl Rule {
    fn matches(&self, request: &RequestFacts) -> bool {
        let text = |pattern: &Option<String>, text: &str| pattern.as_ref().is_none_or(|pattern| like(pattern, text));
        text(&self.model, &request.model)
            && text(&self.identity, &request.identity)
            && text(&self.label, &request.label)
            && self.max_prompt_tokens.is_none_or(|max| request.prompt_tokens <= max)
            && self.stream.is_none_or(|stream| request.stream == stream)
            && self.placement_asked.is_none_or(|asked| request.placement_asked == Some(asked.wit()))
    }
}

fn like(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix),
        None => text == pattern,
    }
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
            ..RequestFacts::default()
        }
    }

    fn placed(config: &str, request: &RequestFacts) -> Option<Placement> {
        vote(&postern_policy_sdk::parse(config).unwrap(), request).placement
    }

    #[test]
    fn what_was_asked_widens_no_vote() {
        let asked = RequestFacts { placement_asked: Some(Placement::EdgeFirst), ..request() };
        assert_eq!(placed("{}", &request()), None);
        assert_eq!(placed("{}", &asked), None);
        assert_eq!(placed(r#"{"default": "cloud"}"#, &request()), Some(Placement::Cloud));
        assert_eq!(placed(r#"{"default": "local"}"#, &asked), Some(Placement::Local));
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules = r#"{"rules": [{"stream": false, "placement": "cloud"}, {"model": "ch*", "placement": "local"}, {"placement": "cloud"}]}"#;
        assert_eq!(placed(rules, &request()), Some(Placement::Local));
        assert_eq!(placed(rules, &RequestFacts { model: "other".into(), ..request() }), Some(Placement::Cloud));
    }

    #[test]
    fn every_condition_must_hold() {
        let all = r#"{"rules": [{"model": "chat", "identity": "spiffe://td/clerk/*", "label": "internal", "max_prompt_tokens": 100,
            "stream": true, "placement_asked": "cloud", "placement": "local"}]}"#;
        let fits = || RequestFacts { placement_asked: Some(Placement::Cloud), ..request() };
        assert_eq!(placed(all, &fits()), Some(Placement::Local));
        for other in [
            RequestFacts { model: "chat2".into(), ..fits() },
            RequestFacts { identity: "spiffe://td/guest/li".into(), ..fits() },
            RequestFacts { label: "public".into(), ..fits() },
            RequestFacts { prompt_tokens: 101, ..fits() },
            RequestFacts { stream: false, ..fits() },
        ] {
            assert_eq!(placed(all, &other), None, "{other:?}");
        }
        assert_eq!(placed(all, &request()), None);
    }

    #[test]
    fn a_rule_may_deny() {
        let config = postern_policy_sdk::parse(r#"{"rules": [{"label": "internal", "deny": "not here"}]}"#).unwrap();
        assert_eq!(vote(&config, &request()).deny.as_deref(), Some("not here"));
    }

    #[test]
    fn a_misspelt_rule_is_an_error() {
        let error = postern_policy_sdk::parse::<Config>(r#"{"rules": [{"modle": "x"}]}"#).unwrap_err();
        assert!(error.contains("modle"), "{error}");
    }
}
