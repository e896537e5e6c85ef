//! The votes of routing policies, and how they become one. Pure.
//!
//! | what policies say | merged | does the order of policies matter? |
//! | --- | --- | --- |
//! | placement | the strictest (`cloud` < `edge-first` < `local`) | no |
//! | label | the join | no |
//! | deny | one is enough | no; the record has all of them, the client reads the name of the first |
//! | failure | the strictest vote | no |
//! | targets | those that every policy names which names any | no; their order is that of the first which names any |
//! | model | the first that is named; none for vectors | yes |
//! | weight | the first that is named | yes |
//!
//! So a policy that is added can take targets away, raise the label, make the placement stricter or refuse, and can never add a
//! target to what the others allow. (`routing.default` counts only while nobody votes for a placement.)

use postern_plugins::{PolicyFailure, TargetFacts, Verdict};
use postern_wire::call::Endpoint;

use crate::classify::label::Label;
use crate::classify::route::Routes;
use crate::config::policies::Routing;
use crate::config::{Config, Placement};

/// One verdict, checked against what exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vote {
    /// Where to answer.
    pub placement: Option<Placement>,
    /// Only these targets, in this order of preference. Never an empty list, and no name twice.
    pub targets: Option<Vec<String>>,
    /// Another model.
    pub model: Option<String>,
    /// Raise the label to this.
    pub raised: Option<Label>,
    /// Refuse.
    pub denied: bool,
    /// Spread by the weights of this name.
    pub weight: Option<String>,
}

/// What one policy answered at the routing step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ballot {
    /// Who.
    pub policy: String,
    /// Its vote; `None`: it failed.
    pub vote: Option<Vote>,
}

/// Merged votes on where a request may go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Votes {
    /// The strictest placement that was voted for.
    pub placement: Option<Placement>,
    /// Targets that every policy which named any has named, in the order of the first.
    pub targets: Option<Vec<String>>,
    /// The first model that was named.
    pub model: Option<String>,
    /// The join of labels, and who raised.
    pub raised: Option<(Label, String)>,
    /// Who denied first.
    pub denied: Option<String>,
    /// The first name of weights.
    pub weight: Option<String>,
    /// A policy failed, which counts as the strictest vote.
    pub strictest: bool,
}

/// What a verdict may choose from.
#[derive(Debug, Clone, Copy)]
pub struct Choices<'a> {
    /// Labels, and who serves which model.
    pub config: &'a Config,
    /// All targets.
    pub targets: &'a [TargetFacts],
    /// Weights and models.
    pub routing: &'a Routing,
    /// The model that was asked for.
    pub asked_model: &'a str,
}

impl Vote {
    /// Reads a verdict.
    ///
    /// # Errors
    /// It names a label, target, model or weight that is not there to be chosen: the policy failed.
    pub fn read(verdict: &Verdict, choices: &Choices<'_>) -> Result<Self, PolicyFailure> {
        let wrong = |what: &str| Err(PolicyFailure::output(what));
        let raised = verdict.label.as_deref().map(|name| choices.config.labels.by_name(name));
        if raised == Some(None) {
            return wrong("raised to a label that does not exist");
        }
        let exists = |name: &String| choices.targets.iter().any(|target| target.name == *name);
        if !verdict.targets.iter().all(exists) {
            return wrong("named a target that does not exist");
        }
        // What nobody wrote down could be words of a prompt, on their way to a target that takes any name.
        let may_name = |model: &str| model == choices.asked_model || choices.routing.models.contains(model);
        if verdict.model.as_deref().is_some_and(|model| !may_name(model) || !choices.config.knows_model(model)) {
            return wrong(
                "named a model that the configuration does not; `routing.models` lists more than targets and engine do",
            );
        }
        if verdict.weight.as_ref().is_some_and(|name| !choices.routing.weights.contains_key(name)) {
            return wrong("named a weight that is not in `routing.weights`");
        }
        let mut targets: Vec<String> = Vec::with_capacity(verdict.targets.len());
        for name in &verdict.targets {
            if !targets.contains(name) {
                targets.push(name.clone());
            }
        }
        Ok(Self {
            placement: verdict.placement.map(placement_in),
            targets: (!targets.is_empty()).then_some(targets),
            model: verdict.model.clone(),
            raised: raised.flatten(),
            denied: verdict.deny.is_some(),
            weight: verdict.weight.clone(),
        })
    }

    /// In a word, for the record.
    #[must_use]
    pub fn said(&self) -> &'static str {
        match (self.denied, self.placement) {
            (true, _) => "deny",
            (false, Some(placement)) => placement.as_str(),
            (false, None) => "pass",
        }
    }
}

fn placement_in(placement: postern_plugins::Placement) -> Placement {
    match placement {
        postern_plugins::Placement::Cloud => Placement::Cloud,
        postern_plugins::Placement::EdgeFirst => Placement::EdgeFirst,
        postern_plugins::Placement::Local => Placement::Local,
    }
}

impl Votes {
    /// Merges votes in the order of their policies; see the table above.
    #[must_use]
    pub fn merged<'a>(ballots: impl IntoIterator<Item = &'a Ballot>) -> Self {
        ballots.into_iter().fold(Self::default(), Self::with)
    }

    /// The model that is meant where `asked` is asked for. Vectors are always of that one: what a policy that thinks of chats says of
    /// long prompts must not mix those of two models.
    #[must_use]
    pub fn model_for<'a>(&'a self, endpoint: Endpoint, asked: &'a str) -> &'a str {
        self.model.as_deref().filter(|_| !endpoint.keeps_model()).unwrap_or(asked)
    }

    /// What these call for beyond the label so far, and who does: labels that policies raised to, and that of another model than
    /// `asked`, which they chose.
    #[must_use]
    pub fn labels(&self, routes: &Routes, endpoint: Endpoint, asked: &str) -> Vec<(Label, String)> {
        let raised = self.raised.iter().map(|(label, policy)| (*label, format!("policy:{policy}")));
        let chosen = Some(self.model_for(endpoint, asked)).filter(|model| *model != asked);
        let chosen = chosen.and_then(|model| routes.label(endpoint, model)).map(|label| (label, "route".to_owned()));
        raised.chain(chosen).collect()
    }

    fn with(mut self, Ballot { policy, vote }: &Ballot) -> Self {
        let Some(vote) = vote else {
            self.strictest = true;
            return self;
        };
        self.placement = self.placement.max(vote.placement);
        self.targets = match (self.targets.take(), &vote.targets) {
            (Some(mut ours), Some(theirs)) => {
                ours.retain(|name| theirs.contains(name));
                Some(ours)
            }
            (ours, theirs) => ours.or_else(|| theirs.clone()),
        };
        self.model = self.model.take().or_else(|| vote.model.clone());
        self.weight = self.weight.take().or_else(|| vote.weight.clone());
        if let Some(label) = vote.raised
            && self.raised.as_ref().is_none_or(|(before, _)| *before < label)
        {
            self.raised = Some((label, policy.clone()));
        }
        if vote.denied && self.denied.is_none() {
            self.denied = Some(policy.clone());
        }
        self
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use postern_plugins::TargetPlacement;
    use proptest::prelude::*;

    use super::*;
    use crate::classify::label::Labels;

    const TARGETS: [&str; 3] = ["sun", "moon", "engine"];

    fn config() -> Config {
        let text = "
listen: 127.0.0.1:0
admin: 127.0.0.1:0
state_dir: state
trust: {domain: b.example}
identities: [{match: 'spiffe://b.example/*'}]
targets:
  - {name: sun, placement: cloud, clearance: public, openai: {base_url: 'https://sun.example/v1'}, models: {chat: a, asked: b}}
routing: {weights: {canary: {sun: 1}}}
";
        crate::config::parse(text, std::path::Path::new("postern.yaml")).unwrap()
    }

    fn labels() -> Labels {
        config().labels
    }

    fn read(verdict: Verdict) -> Result<Vote, PolicyFailure> {
        let target = |name: &str| TargetFacts {
            name: name.into(),
            placement: TargetPlacement::Cloud,
            clearance: "public".into(),
            healthy: true,
            predicted_ttft_ms: None,
            queue_depth: 0,
            price: None,
            requests_left: None,
        };
        let (config, targets) = (config(), TARGETS.map(target));
        let mut routing = config.policy_part.routing.clone();
        routing.models.insert("gone".to_owned());
        let choices = Choices { config: &config, targets: &targets, routing: &routing, asked_model: "asked" };
        Vote::read(&verdict, &choices)
    }

    #[test]
    fn what_exists_may_be_named() {
        let names = ["moon", "sun", "moon"].map(str::to_owned).to_vec();
        let vote = read(Verdict { targets: names, weight: Some("canary".into()), ..Verdict::default() }).unwrap();
        assert_eq!(vote.targets.unwrap(), ["moon", "sun"]);
        for model in ["chat", "asked"] {
            let vote = read(Verdict { model: Some(model.into()), ..Verdict::default() }).unwrap();
            assert_eq!(vote.model.as_deref(), Some(model));
        }
        let vote = read(Verdict { label: Some("internal".into()), deny: Some("no".into()), ..Verdict::default() });
        assert_eq!((vote.as_ref().unwrap().raised, vote.unwrap().said()), (labels().by_name("internal"), "deny"));
        assert_eq!(read(Verdict::default()).unwrap(), Vote::default());
    }

    #[test]
    fn what_does_not_exist_is_a_failure() {
        for (verdict, why) in [
            (Verdict { label: Some("secret".into()), ..Verdict::default() }, "label"),
            (Verdict { targets: vec!["sun".into(), "mars".into()], ..Verdict::default() }, "target"),
            (Verdict { model: Some("the-heron-project-moves".into()), ..Verdict::default() }, "model"),
            (Verdict { model: Some("gone".into()), ..Verdict::default() }, "model"),
            (Verdict { weight: Some("blue".into()), ..Verdict::default() }, "weight"),
        ] {
            let failure = read(verdict).unwrap_err();
            assert!(failure.detail.contains(why), "{failure}");
        }
    }

    fn ballot(policy: &str, vote: Vote) -> Ballot {
        Ballot { policy: policy.into(), vote: Some(vote) }
    }

    fn names(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_first_that_names_a_model_a_weight_or_targets_sets_it() {
        let first = Vote { model: Some("a".into()), targets: names(&["moon", "sun", "engine"]), ..Vote::default() };
        let second = Vote {
            model: Some("b".into()),
            weight: Some("w".into()),
            targets: names(&["engine", "moon"]),
            ..Vote::default()
        };
        let third = Vote { weight: Some("v".into()), ..Vote::default() };
        let votes = Votes::merged(&[
            ballot("none", Vote::default()),
            ballot("first", first),
            ballot("second", second),
            ballot("third", third),
        ]);
        assert_eq!((votes.model.as_deref(), votes.weight.as_deref()), (Some("a"), Some("w")));
        assert_eq!((votes.model_for(Endpoint::Chat, "c"), votes.model_for(Endpoint::Embeddings, "c")), ("a", "c"));
        assert_eq!(votes.targets.unwrap(), ["moon", "engine"]);
    }

    #[test]
    fn nothing_in_common_is_nothing_and_not_everything() {
        let one = |name| Vote { targets: names(&[name]), ..Vote::default() };
        let votes = Votes::merged(&[ballot("a", one("sun")), ballot("b", one("moon")), ballot("c", one("sun"))]);
        assert_eq!(votes.targets.unwrap(), Vec::<String>::new());
    }

    /// Any answer of one policy.
    pub(crate) fn any_vote() -> impl Strategy<Value = Option<Vote>> {
        let placements = vec![None, Some(Placement::Cloud), Some(Placement::EdgeFirst), Some(Placement::Local)];
        let raised = prop::option::of(prop::sample::select(labels().names().to_vec()));
        let targets = prop::option::of(prop::sample::subsequence(TARGETS.to_vec(), 1..=3).prop_shuffle());
        let words = || prop::option::of(prop::sample::select(vec!["a".to_owned(), "b".to_owned()]));
        let vote = (prop::sample::select(placements), targets, words(), raised, any::<bool>(), words());
        let vote = vote.prop_map(|(placement, targets, model, raised, denied, weight)| Vote {
            placement,
            targets: targets.map(|names| names.into_iter().map(str::to_owned).collect()),
            model,
            raised: raised.and_then(|name| labels().by_name(&name)),
            denied,
            weight,
        });
        prop::option::weighted(0.9, vote)
    }

    fn ballots(votes: Vec<Option<Vote>>) -> Vec<Ballot> {
        let ballot = |(at, vote)| Ballot { policy: format!("p{at}"), vote };
        votes.into_iter().enumerate().map(ballot).collect()
    }

    /// What must not depend on the order.
    fn unordered(votes: Votes) -> impl PartialEq + std::fmt::Debug {
        let mut targets = votes.targets;
        targets.iter_mut().for_each(|names| names.sort_unstable());
        let label = votes.raised.as_ref().map(|(label, _)| *label);
        (votes.placement, targets, label, votes.denied.is_some(), votes.strictest)
    }

    /// Names that exist, and any others.
    fn any_name() -> impl Strategy<Value = String> {
        let known = ["sun", "moon", "engine", "chat", "asked", "gone", "canary", "internal", "classified", ""];
        prop_oneof![prop::sample::select(known.to_vec()).prop_map(str::to_owned), "\\PC{0,12}"]
    }

    proptest! {
        #[test]
        fn of_any_verdict_only_what_exists_is_taken(
            label in prop::option::of(any_name()),
            targets in prop::collection::vec(any_name(), 0..5),
            model in prop::option::of(any_name()),
            weight in prop::option::of(any_name()),
            deny in prop::option::of(any_name()),
        ) {
            let verdict = Verdict { label, targets, model, weight, deny, ..Verdict::default() };
            if let Ok(vote) = read(verdict.clone()) {
                let all = |targets: Vec<String>| !targets.is_empty() && targets.iter().all(|name| TARGETS.contains(&name.as_str()));
                prop_assert!(vote.targets.is_none_or(all));
                prop_assert!(vote.model.is_none_or(|model| ["chat", "asked"].contains(&model.as_str())));
                prop_assert!(vote.weight.is_none_or(|weight| weight == "canary"));
                prop_assert_eq!(vote.raised, verdict.label.as_deref().and_then(|name| labels().by_name(name)));
                prop_assert_eq!(vote.denied, verdict.deny.is_some());
            }
        }

        #[test]
        fn the_order_of_policies_matters_only_where_it_is_said(
            votes in prop::collection::vec(any_vote(), 0..6), seed in any::<prop::sample::Index>(),
        ) {
            let straight = ballots(votes);
            let mut turned = straight.clone();
            turned.reverse();
            let at = if turned.is_empty() { 0 } else { seed.index(turned.len()) };
            turned.rotate_left(at);
            prop_assert_eq!(unordered(Votes::merged(&straight)), unordered(Votes::merged(&turned)));
        }

        #[test]
        fn one_more_policy_only_makes_it_narrower(
            votes in prop::collection::vec(any_vote(), 0..6), more in any_vote(), place in any::<prop::sample::Index>(),
        ) {
            let before = ballots(votes);
            let mut after = before.clone();
            after.insert(place.index(before.len() + 1), Ballot { policy: "new".into(), vote: more });
            let (before, after) = (Votes::merged(&before), Votes::merged(&after));
            prop_assert!(after.placement >= before.placement);
            prop_assert!(after.raised.as_ref().map(|(l, _)| *l) >= before.raised.as_ref().map(|(l, _)| *l));
            prop_assert!(after.strictest >= before.strictest && after.denied.is_some() >= before.denied.is_some());
            if let Some(before) = before.targets {
                prop_assert!(after.targets.is_some_and(|after| after.iter().all(|name| before.contains(name))));
            }
        }
    }
}
