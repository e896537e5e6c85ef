//! Where a request may be answered: a pure function of facts, rules and votes.
//!
//! | first that holds | placement | reason |
//! | --- | --- | --- |
//! | a policy failed that counts as the strictest vote | `local` | `policy_failed` |
//! | the gateway is offline | `local` | `offline` |
//! | no remote target clears the label | `local` | `label` |
//! | the client asked for something stricter than the policies | what it asked for | `asked` |
//! | a policy voted (the strictest vote counts) | its vote | `policy` |
//! | nobody said anything | `routing.default` | `default` |
//!
//! | placement | targets, in this order; each serves the model, clears the label, and is named by the votes if they name any |
//! | --- | --- |
//! | `cloud` | clouds, edges, engine |
//! | `edge-first` | edges and engine that meet the `ttft` goal, the quickest first; clouds (raced after the goal); the other edges and engine |
//! | `edge-first`, none meets the goal | clouds, edges and engine; reason `predicted_slow` |
//! | `local` | engine |

use std::sync::Arc;
use std::time::Duration;

use crate::classify::clearance::Destination;
use crate::classify::label::{Label, Labels};
use crate::config::file::TargetKind;
use crate::config::{Placement, Target};
use crate::error::Error;
use crate::redact::MaskedRequest;
use crate::route::Votes;

/// Which text the targets of a plan see. A plan has one form: race, failover and cache keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// With placeholders.
    Masked,
    /// As it was written; only if every target is the engine on this machine.
    Plain,
}

/// Why a placement was chosen; a fixed word for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nobody said anything.
    Default,
    /// A policy voted.
    Policy,
    /// The client asked.
    Asked,
    /// The label allows nothing else.
    Label,
    /// The gateway is offline.
    Offline,
    /// A policy failed.
    PolicyFailed,
    /// The edge would be too slow.
    PredictedSlow,
}

impl Reason {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Policy => "policy",
            Self::Asked => "asked",
            Self::Label => "label",
            Self::Offline => "offline",
            Self::PolicyFailed => "policy_failed",
            Self::PredictedSlow => "predicted_slow",
        }
    }
}

/// What will be tried.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it may be answered.
    pub placement: Placement,
    /// In this order; never empty.
    pub targets: Vec<Destination>,
    /// If the first target has no token by then, the first cloud is asked as well.
    pub race_after: Option<Duration>,
    /// Our name for the model, which each target maps to its own.
    pub model: String,
    /// What they see.
    pub form: Form,
    /// Why.
    pub reason: Reason,
}

/// A request that was parsed, classified, masked and routed. Made only by [`plan`].
#[derive(Debug)]
pub struct PlannedRequest {
    masked: MaskedRequest,
    plan: Plan,
}

impl PlannedRequest {
    /// The request.
    #[must_use]
    pub fn masked(&self) -> &MaskedRequest {
        &self.masked
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// The engine on this machine, as far as planning goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineFacts {
    /// It answers to the model.
    pub serves: bool,
    /// It is connected.
    pub ready: bool,
    /// When its first token would come.
    pub ttft: Option<Duration>,
}

/// Everything that a decision depends on, beside the request.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The lattice.
    pub labels: &'a Labels,
    /// Remote targets in the order of preference, with the predicted time to first token of each.
    pub targets: &'a [(Arc<Target>, Option<Duration>)],
    /// The engine.
    pub engine: EngineFacts,
    /// What policies said.
    pub votes: &'a Votes,
    /// Placement if nobody says otherwise.
    pub default: Placement,
    /// Goal of `edge-first`.
    pub edge_goal: Option<Duration>,
    /// Only the engine.
    pub offline: bool,
}

/// Plans a request whose label is final.
///
/// # Errors
/// No permitted target: see [`decide`].
pub fn plan(facts: &Facts<'_>, masked: MaskedRequest) -> Result<PlannedRequest, Error> {
    let classified = masked.classified();
    let (label, asked) = (classified.label(), classified.request().marks.placement);
    let model = facts.votes.model.as_ref().unwrap_or(&classified.request().chat.model);
    let plan = decide(facts, label, asked, model, masked.is_complete())?;
    Ok(PlannedRequest { masked, plan })
}

/// The decision. `complete`: every redaction policy has looked at the text.
///
/// # Errors
/// [`Error::EngineStarting`], [`Error::Offline`] or [`Error::NoPermittedTarget`].
pub fn decide(
    facts: &Facts<'_>,
    label: Label,
    asked: Option<Placement>,
    model: &str,
    complete: bool,
) -> Result<Plan, Error> {
    let cleared: Vec<_> = facts.targets.iter().filter(|(target, _)| label <= target.clearance).collect();
    let (placement, mut reason) = placement(facts, asked, complete, cleared.is_empty());

    let named = |name: &str| facts.votes.targets.as_ref().is_none_or(|names| names.contains(name));
    let usable = |kind: TargetKind| {
        let serving = cleared.iter().filter(move |(target, _)| target.kind == kind && target.model(model).is_some());
        serving
            .filter(|(target, _)| named(&target.name))
            .map(|(target, ttft)| Candidate { to: Destination::Remote(target.clone()), ttft: *ttft })
    };
    let serves = facts.engine.serves && named("engine");
    let engine =
        (serves && facts.engine.ready).then_some(Candidate { to: Destination::Engine, ttft: facts.engine.ttft });

    let (targets, race_after) = match placement {
        Placement::Local => (engine.into_iter().map(|option| option.to).collect::<Vec<_>>(), None),
        Placement::Cloud => {
            let all = usable(TargetKind::Cloud).chain(usable(TargetKind::Edge)).chain(engine);
            (all.map(|option| option.to).collect(), None)
        }
        Placement::EdgeFirst => {
            let clouds: Vec<_> = usable(TargetKind::Cloud).map(|option| option.to).collect();
            let near = usable(TargetKind::Edge).chain(engine);
            let goal = facts.edge_goal;
            let (mut quick, slow): (Vec<_>, Vec<_>) =
                near.partition(|option| option.ttft.zip(goal).is_none_or(|(ttft, goal)| ttft <= goal));
            quick.sort_by_key(|option| option.ttft);
            let race_after = if quick.is_empty() || clouds.is_empty() { None } else { goal };
            if quick.is_empty() && !clouds.is_empty() {
                reason = Reason::PredictedSlow;
            }
            let quick = quick.into_iter().map(|option| option.to);
            (quick.chain(clouds).chain(slow.into_iter().map(|option| option.to)).collect(), race_after)
        }
    };
    if targets.is_empty() {
        return Err(match (serves && !facts.engine.ready, facts.offline) {
            (true, _) => Error::EngineStarting,
            (false, true) => Error::Offline,
            (false, false) => {
                let label = facts.labels.name(label).to_owned();
                Error::NoPermittedTarget { label, asked_local: placement == Placement::Local }
            }
        });
    }
    let local = targets.iter().all(|target| matches!(target, Destination::Engine));
    let form = if local { Form::Plain } else { Form::Masked };
    Ok(Plan { placement, targets, race_after, model: model.to_owned(), form, reason })
}

struct Candidate {
    to: Destination,
    ttft: Option<Duration>,
}

fn placement(facts: &Facts<'_>, asked: Option<Placement>, complete: bool, none_clears: bool) -> (Placement, Reason) {
    if !complete || facts.votes.strictest {
        return (Placement::Local, Reason::PolicyFailed);
    }
    if facts.offline {
        return (Placement::Local, Reason::Offline);
    }
    if none_clears && !facts.targets.is_empty() {
        return (Placement::Local, Reason::Label);
    }
    let (voted, reason) = match facts.votes.placement {
        Some(vote) => (vote, Reason::Policy),
        None => (facts.default, Reason::Default),
    };
    match asked {
        Some(asked) if asked > voted => (asked, Reason::Asked),
        _ => (voted, reason),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{self, Config};

    fn config() -> Config {
        let text = "
listen: 127.0.0.1:0
admin: 127.0.0.1:0
state_dir: state
trust: {domain: b.example}
identities: [{match: 'spiffe://b.example/*'}]
targets:
  - {name: sun, placement: cloud, clearance: internal, openai: {base_url: 'https://sun.example/v1'}}
  - {name: moon, placement: cloud, clearance: public, openai: {base_url: 'https://moon.example/v1'}}
  - {name: node, placement: edge, clearance: confidential, openai: {base_url: 'https://node.example/v1'}}
";
        config::parse(text, Path::new("postern.yaml")).unwrap()
    }

    struct Case {
        votes: Votes,
        offline: bool,
        engine: EngineFacts,
        node_ttft_ms: Option<u64>,
    }

    impl Default for Case {
        fn default() -> Self {
            let engine = EngineFacts { serves: true, ready: true, ttft: Some(Duration::from_millis(90)) };
            Self { votes: Votes::default(), offline: false, engine, node_ttft_ms: Some(50) }
        }
    }

    fn run(case: &Case, label: &str, asked: Option<Placement>) -> Result<Plan, Error> {
        let config = config();
        let node_ttft = case.node_ttft_ms.map(Duration::from_millis);
        let targets: Vec<_> =
            config.targets.iter().map(|t| (t.clone(), node_ttft.filter(|_| t.name == "node"))).collect();
        let facts = Facts {
            labels: &config.labels,
            targets: &targets,
            engine: case.engine,
            votes: &case.votes,
            default: Placement::Cloud,
            edge_goal: Some(Duration::from_millis(150)),
            offline: case.offline,
        };
        decide(&facts, config.labels.by_name(label).unwrap(), asked, "chat", true)
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.targets.iter().map(Destination::name).collect()
    }

    #[test]
    fn the_label_bounds_everything() {
        let case = Case::default();
        assert_eq!(names(&run(&case, "public", None).unwrap()), ["sun", "moon", "node", "engine"]);
        assert_eq!(names(&run(&case, "internal", None).unwrap()), ["sun", "node", "engine"]);
        assert_eq!(names(&run(&case, "confidential", None).unwrap()), ["node", "engine"]);
        let plan = run(&case, "classified", Some(Placement::Cloud)).unwrap();
        assert_eq!((names(&plan), plan.form, plan.reason), (vec!["engine"], Form::Plain, Reason::Label));
    }

    #[test]
    fn edge_first_takes_what_is_quick_and_races_the_cloud() {
        let plan = run(&Case::default(), "internal", Some(Placement::EdgeFirst)).unwrap();
        assert_eq!(names(&plan), ["node", "engine", "sun"]);
        assert_eq!((plan.race_after, plan.reason), (Some(Duration::from_millis(150)), Reason::Asked));
        let slow = EngineFacts { ttft: Some(Duration::from_secs(3)), ..Case::default().engine };
        let case = Case { node_ttft_ms: Some(400), engine: slow, ..Case::default() };
        let plan = run(&case, "internal", Some(Placement::EdgeFirst)).unwrap();
        assert_eq!((names(&plan), plan.race_after), (vec!["sun", "node", "engine"], None));
        assert_eq!(plan.reason, Reason::PredictedSlow);
    }

    #[test]
    fn votes_choose_within_bounds() {
        let votes = Votes { placement: Some(Placement::Local), ..Votes::default() };
        let case = Case { votes, ..Case::default() };
        let plan = run(&case, "public", Some(Placement::Cloud)).unwrap();
        assert_eq!((names(&plan), plan.reason), (vec!["engine"], Reason::Policy));
        let votes = Votes { targets: Some(["moon".to_owned()].into()), ..Votes::default() };
        let case = Case { votes, ..Case::default() };
        assert_eq!(names(&run(&case, "public", None).unwrap()), ["moon"]);
        assert!(matches!(run(&case, "internal", None), Err(Error::NoPermittedTarget { .. })));
        let case = Case { votes: Votes { strictest: true, ..Votes::default() }, ..Case::default() };
        assert_eq!(run(&case, "public", None).unwrap().reason, Reason::PolicyFailed);
    }

    #[test]
    fn refusals_say_why() {
        let down = EngineFacts { serves: true, ready: false, ttft: None };
        let case = Case { engine: down, ..Case::default() };
        assert!(matches!(run(&case, "classified", None), Err(Error::EngineStarting)));
        let case = Case { engine: EngineFacts::default(), offline: true, ..Case::default() };
        assert!(matches!(run(&case, "public", None), Err(Error::Offline)));
        let case = Case { engine: EngineFacts::default(), ..Case::default() };
        assert!(matches!(run(&case, "classified", None), Err(Error::NoPermittedTarget { asked_local: true, .. })));
    }

    proptest! {
        #[test]
        fn nothing_goes_where_the_label_forbids(
            label in 0usize..4, asked in 0usize..4, vote in 0usize..4, offline: bool, strictest: bool,
            ready: bool, serves: bool, node_ttft_ms in proptest::option::of(0u64..1000),
        ) {
            let placements = [None, Some(Placement::Cloud), Some(Placement::EdgeFirst), Some(Placement::Local)];
            let votes = Votes { placement: placements[vote], strictest, ..Votes::default() };
            let engine = EngineFacts { serves, ready, ttft: None };
            let case = Case { votes, offline, engine, node_ttft_ms };
            let name = ["public", "internal", "confidential", "classified"][label];
            let Ok(plan) = run(&case, name, placements[asked]) else { return Ok(()) };
            let config = config();
            let label = config.labels.by_name(name).unwrap();
            prop_assert!(!plan.targets.is_empty());
            for target in &plan.targets {
                if let Destination::Remote(target) = target {
                    prop_assert!(label <= target.clearance && !offline && !strictest);
                    prop_assert!(plan.form == Form::Masked && plan.placement != Placement::Local);
                }
            }
            prop_assert!(plan.placement >= placements[asked].unwrap_or_default());
            prop_assert!(plan.placement >= placements[vote].unwrap_or_default());
        }
    }
}
