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
//! | placement | targets, in groups in this order; each serves the model (for vectors: the same model, see [`SameModel`]), clears the label, and is named by the votes if they name any |
//! | --- | --- |
//! | `cloud` | clouds, edges, engine |
//! | `edge-first` | edges and engine that meet the `ttft` goal; clouds (raced after the goal); the other edges and engine |
//! | `edge-first`, none meets the goal | clouds, edges and engine; reason `predicted_slow` |
//! | `local` | engine |
//!
//! Who may not be asked now (its breaker is open, its limit reached, it asked us to wait) comes after the others of its group, and
//! meets no goal.
//!
//! | what the votes say of the order | targets of a group |
//! | --- | --- |
//! | nothing | clouds as configured; edges and engine balanced (see [`balance`]) |
//! | names, no weight | as named; with `cloud`, that is the order of all of them, whatever their group |
//! | a weight | those with a share of the requests, one of them first for each conversation, as often as its share says; then the others, as named |

pub mod balance;
mod order;
mod same_model;

use std::sync::Arc;
use std::time::Duration;

use crate::classify::Conversation;
use crate::classify::clearance::{Destination, ENGINE};
use crate::classify::label::{Label, Labels};
use crate::config::file::TargetKind;
use crate::config::{Balance, Placement, Target, Weights};
use crate::error::Error;
use crate::redact::MaskedRequest;
use crate::route::Votes;
use crate::upstream::standing::Now;
use balance::Load;
use order::{Candidate, Group, Preference};
pub use same_model::SameModel;

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
    /// For vectors: the one name that the model has at all of them.
    pub same_model: Option<String>,
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

    /// Keeps a value that was found in the beginning of the answer, beside those of the request.
    pub(crate) fn keep(&mut self, kind: &str, value: &str) {
        self.masked.keep(kind, value);
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
    /// What it has to do.
    pub load: Load,
}

/// Everything that a decision depends on, beside the request.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The lattice.
    pub labels: &'a Labels,
    /// Remote targets as configured, and how each of them stands.
    pub targets: &'a [(Arc<Target>, Now)],
    /// The engine.
    pub engine: EngineFacts,
    /// What policies said.
    pub votes: &'a Votes,
    /// The shares that they named.
    pub weights: Option<&'a Weights>,
    /// What stays at its target, where there are shares.
    pub conversation: Conversation,
    /// Placement if nobody says otherwise.
    pub default: Placement,
    /// Goal of `edge-first`.
    pub edge_goal: Option<Duration>,
    /// Only the engine.
    pub offline: bool,
    /// How nodes are balanced.
    pub balance: Balance,
    /// See [`balance::scores`].
    pub spread: u64,
    /// For vectors: only targets that have this model.
    pub same_model: Option<SameModel<'a>>,
}

/// Plans a request whose label is final.
///
/// # Errors
/// No permitted target: see [`decide`].
pub fn plan(facts: &Facts<'_>, masked: MaskedRequest) -> Result<PlannedRequest, Error> {
    let classified = masked.classified();
    let (label, asked) = (classified.label(), classified.request().marks.placement);
    let call = &classified.request().call;
    let model = facts.votes.model_for(call.endpoint(), call.model());
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

    let names = facts.votes.targets.as_deref();
    let named = |name: &str| names.is_none_or(|names| names.iter().any(|known| known == name));
    let serves = facts.engine.serves && named(ENGINE);
    let is_same = |at: &str, name: &str| facts.same_model.is_none_or(|same| same.is_at(at, name));
    let has = |target: &Target| target.model(model).is_some_and(|name| is_same(&target.name, name));
    let remote = cleared.iter().filter(|(target, _)| has(target) && named(&target.name));
    let remote = remote.map(|(target, now)| Candidate {
        to: Destination::Remote(target.clone()),
        ttft: now.ttft,
        group: if target.kind == TargetKind::Cloud { Group::Cloud } else { Group::Edge },
        available: now.available,
        load: Load { base_ms: now.base_ms, latency_ms: now.latency_ms, queue: now.queue },
    });
    let EngineFacts { ttft, load, .. } = facts.engine;
    let engine = Candidate { to: Destination::Engine, ttft, group: Group::Engine, available: true, load };
    let mut candidates: Vec<_> = remote.chain((serves && facts.engine.ready).then_some(engine)).collect();

    let mut race_after = None;
    match placement {
        Placement::Local => candidates.retain(|candidate| candidate.group == Group::Engine),
        Placement::Cloud => {}
        Placement::EdgeFirst => {
            let goal = facts.edge_goal;
            for near in candidates.iter_mut().filter(|candidate| candidate.group != Group::Cloud) {
                let in_time = near.available && near.ttft.zip(goal).is_none_or(|(ttft, goal)| ttft <= goal);
                near.group = if in_time { Group::Quick } else { Group::Slow };
            }
            let any = |group| candidates.iter().any(|candidate| candidate.group == group);
            match (any(Group::Quick), any(Group::Cloud)) {
                (true, true) => race_after = goal,
                (false, true) => reason = Reason::PredictedSlow,
                (_, false) => {}
            }
        }
    }
    let over_groups = placement == Placement::Cloud;
    let (weights, conversation) = (facts.weights, facts.conversation);
    let (balance, spread) = (facts.balance, facts.spread);
    let preference = Preference { named: names, weights, conversation, over_groups, balance, spread };
    order::sort(&mut candidates, &preference);
    let targets: Vec<_> = candidates.into_iter().map(|candidate| candidate.to).collect();
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
    let same_model = facts.same_model.map(|same| same.name().to_owned());
    Ok(Plan { placement, targets, race_after, model: model.to_owned(), same_model, form, reason })
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
    use crate::route::votes::tests::any_vote;
    use crate::route::votes::{Ballot, Vote};

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
        weights: Option<Weights>,
        conversation: u8,
        away: Option<&'static str>,
        spread: u64,
    }

    impl Default for Case {
        fn default() -> Self {
            let engine = EngineFacts {
                serves: true,
                ready: true,
                ttft: Some(Duration::from_millis(90)),
                ..EngineFacts::default()
            };
            Self {
                votes: Votes::default(),
                offline: false,
                engine,
                node_ttft_ms: Some(50),
                weights: None,
                conversation: 0,
                away: None,
                spread: 0,
            }
        }
    }

    fn run(case: &Case, label: &str, asked: Option<Placement>) -> Result<Plan, Error> {
        let config = config();
        let node_ttft = case.node_ttft_ms.map(Duration::from_millis);
        let now = |name: &str| Now {
            ttft: node_ttft.filter(|_| name == "node"),
            available: case.away != Some(name),
            ..Now::default()
        };
        let targets: Vec<_> = config.targets.iter().map(|t| (t.clone(), now(&t.name))).collect();
        let facts = Facts {
            labels: &config.labels,
            targets: &targets,
            engine: case.engine,
            votes: &case.votes,
            weights: case.weights.as_ref(),
            conversation: Conversation([case.conversation; 32]),
            default: Placement::Cloud,
            edge_goal: Some(Duration::from_millis(150)),
            offline: case.offline,
            balance: Balance::LeastQueue,
            spread: case.spread,
            same_model: None,
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
        let mut near = names(&plan)[..2].to_vec();
        near.sort_unstable();
        assert_eq!((near, names(&plan)[2]), (vec!["engine", "node"], "sun"));
        assert_eq!((plan.race_after, plan.reason), (Some(Duration::from_millis(150)), Reason::Asked));
        let slow = EngineFacts { ttft: Some(Duration::from_secs(3)), ..Case::default().engine };
        let case = Case { node_ttft_ms: Some(400), engine: slow, ..Case::default() };
        let plan = run(&case, "internal", Some(Placement::EdgeFirst)).unwrap();
        assert_eq!((names(&plan)[0], names(&plan).len(), plan.race_after), ("sun", 3, None));
        assert_eq!(plan.reason, Reason::PredictedSlow);
    }

    #[test]
    fn who_may_not_be_asked_now_comes_last_and_meets_no_goal() {
        let case = Case { away: Some("sun"), ..Case::default() };
        assert_eq!(names(&run(&case, "public", None).unwrap()), ["moon", "sun", "node", "engine"]);
        let case = Case { away: Some("node"), ..Case::default() };
        let plan = run(&case, "internal", Some(Placement::EdgeFirst)).unwrap();
        assert_eq!(names(&plan), ["engine", "sun", "node"]);
    }

    #[test]
    fn nodes_share_the_requests_and_clouds_do_not() {
        let first = |spread| {
            let plan = run(&Case { spread, ..Case::default() }, "public", Some(Placement::EdgeFirst)).unwrap();
            assert_eq!(names(&plan)[2..], ["sun", "moon"]);
            names(&plan)[0].to_owned()
        };
        let nodes = (0..100).filter(|spread| first(*spread) == "node").count();
        assert!((25..75).contains(&nodes), "{nodes}");
    }

    #[test]
    fn votes_choose_within_bounds() {
        let votes = Votes { placement: Some(Placement::Local), ..Votes::default() };
        let case = Case { votes, ..Case::default() };
        let plan = run(&case, "public", Some(Placement::Cloud)).unwrap();
        assert_eq!((names(&plan), plan.reason), (vec!["engine"], Reason::Policy));
        let votes = Votes { targets: Some(vec!["moon".to_owned()]), ..Votes::default() };
        let case = Case { votes, ..Case::default() };
        assert_eq!(names(&run(&case, "public", None).unwrap()), ["moon"]);
        assert!(matches!(run(&case, "internal", None), Err(Error::NoPermittedTarget { .. })));
        let case = Case { votes: Votes { strictest: true, ..Votes::default() }, ..Case::default() };
        assert_eq!(run(&case, "public", None).unwrap().reason, Reason::PolicyFailed);
    }

    #[test]
    fn named_targets_come_in_the_order_of_the_votes() {
        let named = |names: &[&str], placement| {
            let targets = Some(names.iter().map(ToString::to_string).collect());
            Case { votes: Votes { placement, targets, ..Votes::default() }, ..Case::default() }
        };
        let case = named(&["node", "moon", "engine", "sun"], None);
        assert_eq!(names(&run(&case, "public", None).unwrap()), ["node", "moon", "engine", "sun"]);
        // What meets the goal still comes before what is raced after it.
        let case = named(&["moon", "engine", "sun", "node"], Some(Placement::EdgeFirst));
        assert_eq!(names(&run(&case, "public", None).unwrap()), ["engine", "node", "moon", "sun"]);
        let case = Case { node_ttft_ms: Some(400), ..case };
        assert_eq!(names(&run(&case, "public", None).unwrap()), ["engine", "moon", "sun", "node"]);
        // To be named clears nothing.
        let case = named(&["moon", "node"], None);
        assert_eq!(names(&run(&case, "internal", None).unwrap()), ["node"]);
    }

    #[test]
    fn weights_spread_conversations_within_a_group() {
        let weights: Weights = [("moon".to_owned(), 3), ("sun".to_owned(), 1), ("node".to_owned(), 9)].into();
        let first = |conversation, votes: &Votes| {
            let case = Case { weights: Some(weights.clone()), conversation, votes: votes.clone(), ..Case::default() };
            let plan = run(&case, "public", None).unwrap();
            let names: Vec<_> = names(&plan).into_iter().map(str::to_owned).collect();
            assert_eq!(names[2..], ["node", "engine"], "clouds come first, whatever the weight of an edge");
            names[0].clone()
        };
        let all = || (0..=255).map(|conversation| first(conversation, &Votes::default()));
        let moons = all().filter(|name| name == "moon").count();
        assert!((160..224).contains(&moons), "{moons} of 256");
        assert!(all().eq(all()), "a conversation stays where it is");
        // A target without a share, or with none, is behind the others, also if it is named first.
        let votes =
            Votes { targets: Some(["sun", "moon", "node", "engine"].map(str::to_owned).to_vec()), ..Votes::default() };
        let case =
            Case { votes, weights: Some([("moon".to_owned(), 1), ("sun".to_owned(), 0)].into()), ..Case::default() };
        assert_eq!(names(&run(&case, "public", None).unwrap()), ["moon", "sun", "node", "engine"]);
    }

    #[test]
    fn refusals_say_why() {
        let down = EngineFacts { serves: true, ..EngineFacts::default() };
        let case = Case { engine: down, ..Case::default() };
        assert!(matches!(run(&case, "classified", None), Err(Error::EngineStarting)));
        let case = Case { engine: EngineFacts::default(), offline: true, ..Case::default() };
        assert!(matches!(run(&case, "public", None), Err(Error::Offline)));
        let case = Case { engine: EngineFacts::default(), ..Case::default() };
        assert!(matches!(run(&case, "classified", None), Err(Error::NoPermittedTarget { asked_local: true, .. })));
    }

    proptest! {
        #[test]
        fn one_more_policy_never_adds_a_target(
            votes in prop::collection::vec(any_vote(), 0..5), more in any_vote(), place in any::<prop::sample::Index>(),
            label in 0usize..4, weighted: bool, node_ttft_ms in proptest::option::of(0u64..1000),
        ) {
            let ballot = |(at, vote): (usize, Option<Vote>)| {
                // Who names a model first decides who serves it; that is no matter of leave.
                let vote = vote.map(|vote| Vote { model: None, ..vote });
                Ballot { policy: format!("p{at}"), vote }
            };
            let before: Vec<_> = votes.into_iter().enumerate().map(ballot).collect();
            let mut after = before.clone();
            after.insert(place.index(before.len() + 1), ballot((9, more)));
            let weights: Option<Weights> = weighted.then(|| [("moon".to_owned(), 1)].into());
            let planned = |ballots: &[Ballot]| {
                let votes = Votes::merged(ballots);
                let lowest = config().labels.by_name(["public", "internal", "confidential", "classified"][label]).unwrap();
                let label = votes.raised.as_ref().map_or(lowest, |(raised, _)| lowest.join(*raised));
                let name = config().labels.name(label).to_owned();
                let case = Case { votes, node_ttft_ms, weights: weights.clone(), ..Case::default() };
                run(&case, &name, None).map(|plan| plan.targets.iter().map(|t| t.name().to_owned()).collect::<Vec<_>>())
            };
            let Ok(after) = planned(&after) else { return Ok(()) };
            let before = planned(&before);
            prop_assert!(before.as_ref().is_ok_and(|before| after.iter().all(|name| before.contains(name))), "{:?} {:?}", before, after);
        }

        #[test]
        fn nothing_goes_where_the_label_forbids(
            label in 0usize..4, asked in 0usize..4, vote in 0usize..4, offline: bool, strictest: bool,
            ready: bool, serves: bool, node_ttft_ms in proptest::option::of(0u64..1000),
        ) {
            let placements = [None, Some(Placement::Cloud), Some(Placement::EdgeFirst), Some(Placement::Local)];
            let votes = Votes { placement: placements[vote], strictest, ..Votes::default() };
            let engine = EngineFacts { serves, ready, ..EngineFacts::default() };
            let case = Case { votes, offline, engine, node_ttft_ms, ..Case::default() };
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
