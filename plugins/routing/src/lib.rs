//! The first-party routing policy: the first rule that matches a request says where it is answered.
//!
//! ```yaml
//! config:
//!   rules:                       # every condition that is given must hold; `*` at the end of a text: anything
//!     - {label: confidential, placement: local}
//!     - {identity: "spiffe://branch-17.example.org/kiosk/*", model: "gpt-*", deny: "kiosks use small models"}
//!     - {hours: "20:00-07:00", deny: "the office is closed"}
//!     - {min_prompt_tokens: 8000, max_cost: 0.02, targets: [large, larger]}
//!   preset: interactive          # general | interactive | classified: what holds where no rule matches
//! ```
//! What a rule may say is in `rule.rs`. The presets are the three uses that the three placements are made for:
//!
//! | preset | requests |
//! | --- | --- |
//! | `general` | are answered in the cloud |
//! | `interactive` | that are streamed, so that somebody waits for them, are answered close by if that is quick; others in the cloud |
//! | `classified` | stay on this machine |
//!
//! With `general` and `interactive`, what has the highest label stays on this machine. Instead of a preset, `default` may
//! name a placement. Without a configuration the policy votes for nothing. What a caller asks for is the gateway's business:
//! it can only narrow.

mod hours;
mod rule;

use postern_policy_sdk::routing::{FleetFacts, Policy, RequestFacts, Verdict};
use postern_policy_sdk::startup::{Prepared, Startup};
use postern_policy_sdk::{config, export_routing, export_startup};
use rule::{Rule, Where};
use serde::Deserialize;

static CONFIG: Prepared<Config> = Prepared::new(|| config::<Config>()?.complete());

struct Routing;

impl Startup for Routing {
    fn start() -> Result<(), String> {
        CONFIG.get().map(drop)
    }
}

impl Policy for Routing {
    fn route(request: RequestFacts, fleet: FleetFacts) -> Result<Verdict, String> {
        CONFIG.get()?.vote(&request, &fleet)
    }
}

export_startup!(Routing);
export_routing!(Routing);

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    rules: Vec<Rule>,
    preset: Option<Preset>,
    default: Option<Where>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    General,
    Interactive,
    Classified,
}

impl Config {
    /// With the rules of its preset or default behind its own.
    fn complete(mut self) -> Result<Self, String> {
        let last = match (self.preset, self.default) {
            (Some(_), Some(_)) => return Err("config: `preset` and `default` exclude each other".into()),
            (Some(preset), None) => preset.rules(),
            (None, default) => vec![Rule { placement: default, ..Rule::default() }],
        };
        self.rules.extend(last);
        Ok(self)
    }

    fn vote(&self, request: &RequestFacts, fleet: &FleetFacts) -> Result<Verdict, String> {
        for rule in &self.rules {
            if let Some(verdict) = rule.verdict(request, fleet)? {
                return Ok(verdict);
            }
        }
        Ok(Verdict::default())
    }
}

impl Preset {
    fn rules(self) -> Vec<Rule> {
        let to = |placement| Rule { placement: Some(placement), ..Rule::default() };
        let highest = Rule { highest_label: Some(true), ..to(Where::Local) };
        let awaited = Rule { stream: Some(true), ..to(Where::EdgeFirst) };
        match self {
            Self::General => vec![highest, to(Where::Cloud)],
            Self::Interactive => vec![highest, awaited, to(Where::Cloud)],
            Self::Classified => vec![to(Where::Local)],
        }
    }
}

#[cfg(test)]
mod tests;
