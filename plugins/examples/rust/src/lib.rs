//! Office hours: requests are answered while the office is open; long prompts, and those of one desk, stay close by; who has
//! had many answers in this hour gets the rest from the engine on this machine.

use postern_policy_sdk::routing::{Annotation, FleetFacts, Placement, Policy, RequestFacts, Verdict};
use postern_policy_sdk::startup::{Prepared, Startup};
use postern_policy_sdk::{config, counters, export_routing, export_startup, log};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default)]
struct Office {
    opens: i64,
    closes: i64,
    long_prompt_tokens: u64,
    near_desk: String,
    requests_an_hour: i64,
}

impl Default for Office {
    fn default() -> Self {
        Self { opens: 7, closes: 20, long_prompt_tokens: 2000, near_desk: String::new(), requests_an_hour: 1000 }
    }
}

static OFFICE: Prepared<Office> = Prepared::new(config);

struct OfficeHours;

impl Startup for OfficeHours {
    /// Called once, when the policy is loaded: what it leaves in statics is there in every call.
    fn start() -> Result<(), String> {
        OFFICE.get().map(drop)
    }
}

impl Policy for OfficeHours {
    fn route(request: RequestFacts, _fleet: FleetFacts) -> Result<Verdict, String> {
        let office = OFFICE.get()?;
        if !office.is_open(&request) {
            return Ok(Verdict { deny: Some("the office is closed".into()), ..Verdict::default() });
        }
        // Counters are kept for each tenant.
        if counters::add("requests", 1, 3600)? > office.requests_an_hour {
            log::info("many requests in this hour: this one stays here");
            return Ok(Verdict { placement: Some(Placement::Local), ..Verdict::default() });
        }
        Ok(office.vote(&request))
    }
}

export_startup!(OfficeHours);
export_routing!(OfficeHours);

impl Office {
    fn is_open(&self, request: &RequestFacts) -> bool {
        let local_seconds = request.time.cast_signed() + i64::from(request.utc_offset_minutes) * 60;
        (self.opens..self.closes).contains(&(local_seconds / 3600 % 24))
    }

    fn vote(&self, request: &RequestFacts) -> Verdict {
        let at_desk = request.headers.iter().any(|header| header.name == "x-desk" && header.value == self.near_desk);
        match (at_desk, request.prompt_tokens > self.long_prompt_tokens) {
            (true, _) => stay_close("desk"),
            (_, true) => stay_close("long"),
            _ => Verdict::default(),
        }
    }
}

fn stay_close(why: &str) -> Verdict {
    let note = Annotation { key: "near".into(), value: why.into() };
    Verdict { placement: Some(Placement::EdgeFirst), annotations: vec![note], ..Verdict::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prompts_stay_close() {
        let asked = |prompt_tokens| Office::default().vote(&RequestFacts { prompt_tokens, ..RequestFacts::default() });
        assert_eq!(asked(2000), Verdict::default());
        assert_eq!(asked(2001).placement, Some(Placement::EdgeFirst));
    }
}
