//! Whatever is configured, asked and voted: a label is the join of all that calls for one, nothing goes where it is not cleared, and to raise
//! anything opens no way.

use std::collections::BTreeSet;
use std::path::Path;

use http::HeaderMap;
use postern_wire::call::Endpoint;
use postern_wire::json::{Value, json};
use proptest::prelude::*;

use super::*;
use crate::classify::clearance::Destination;
use crate::config::{self, Balance, Placement};
use crate::decide::{self, EngineFacts, Facts};
use crate::open::OpenedRequest;
use crate::redact::MaskedRequest;
use crate::request::Peer;
use crate::route::votes::tests::any_vote;
use crate::route::votes::{Ballot, Vote, Votes};
use crate::upstream::standing::Now;

const LABELS: [&str; 4] = ["public", "internal", "confidential", "classified"];
const LONG: &str =
    "The heron project moves its second site to the harbour in spring, and nobody outside of the board knows it yet.";

/// What is configured, by the number of each label.
#[derive(Debug, Clone)]
struct Office {
    floor: usize,
    ceiling: usize,
    email: usize,
    marking: usize,
    opaque: usize,
    /// Of the model that is asked, and of one that a policy may choose.
    models: [usize; 2],
    clearances: [usize; 3],
    offline: bool,
    engine: bool,
    default: Placement,
}

/// What is asked, and what was said before.
#[derive(Debug, Clone)]
struct Sent {
    header: Option<usize>,
    mail: bool,
    marked: bool,
    image: bool,
    /// A colleague sent the same text with that label.
    known: Option<usize>,
    /// The conversation had that label.
    talk: Option<usize>,
    asked: Option<Placement>,
}

fn any_office() -> impl Strategy<Value = Office> {
    let label = 0usize..4;
    let placements = prop::sample::select(vec![Placement::Cloud, Placement::EdgeFirst, Placement::Local]);
    let labels = (label.clone(), label.clone(), label.clone(), label.clone(), label);
    let (clearances, models) = (prop::array::uniform3(0usize..3), prop::array::uniform2(0usize..4));
    (labels, models, clearances, any::<bool>(), any::<bool>(), placements).prop_map(
        |((floor, ceiling, email, marking, opaque), models, clearances, offline, engine, default)| {
            let ceiling = ceiling.max(floor);
            Office { floor, ceiling, email, marking, opaque, models, clearances, offline, engine, default }
        },
    )
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let label = || prop::option::of(0usize..4);
    let asked = prop::option::of(prop::sample::select(vec![Placement::Cloud, Placement::EdgeFirst, Placement::Local]));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (label(), label(), label(), flags, asked).prop_map(|(header, known, talk, (mail, marked, image), asked)| Sent {
        header,
        mail,
        marked,
        image,
        known,
        talk,
        asked,
    })
}

impl Office {
    fn config(&self) -> Config {
        let Self { floor, ceiling, email, marking, opaque, .. } = self;
        let [floor, ceiling, email, marking, opaque] =
            [floor, ceiling, email, marking, opaque].map(|number| LABELS[*number]);
        let [chat, chosen] = self.models.map(|number| LABELS[number]);
        let [sun, moon, node] = self.clearances.map(|number| LABELS[number]);
        let text = format!(
            "
listen: 127.0.0.1:0
admin: 127.0.0.1:0
state_dir: state
trust: {{domain: b.example}}
identities:
  - {{match: 'spiffe://b.example/amy', tenant: t, floor: {floor}, ceiling: {ceiling}}}
  - {{match: 'spiffe://b.example/bo', tenant: t}}
targets:
  - {{name: sun, placement: cloud, clearance: {sun}, openai: {{base_url: 'https://sun.example/v1'}}}}
  - {{name: moon, placement: cloud, clearance: {moon}, openai: {{base_url: 'https://moon.example/v1'}}}}
  - {{name: node, placement: edge, clearance: {node}, openai: {{base_url: 'https://node.example/v1'}}}}
classification:
  detect: {{email: {email}}}
  markings: {{'TOP SECRET': {marking}}}
  opaque: {opaque}
  models: {{chat: {chat}, a: {chosen}}}
"
        );
        config::parse(&text, Path::new("postern.yaml")).unwrap()
    }
}

struct Scene {
    config: Config,
    keys: Keys,
    classifier: Classifier,
}

impl Scene {
    fn new(office: &Office) -> Self {
        let (config, keys) = (office.config(), Keys::random());
        let classifier = Classifier::new(&config, &keys, None);
        Self { config, keys, classifier }
    }

    async fn classify(
        &self,
        who: &str,
        talk: &str,
        header: Option<usize>,
        content: &Value,
    ) -> Result<ClassifiedRequest, Error> {
        let peer = Peer::resolve(&self.config, &format!("spiffe://b.example/{who}").parse().unwrap()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("postern-conversation", talk.parse().unwrap());
        header.into_iter().for_each(|label| drop(headers.insert("postern-label", LABELS[label].parse().unwrap())));
        let body = json!({"model": "chat", "messages": [{"role": "user", "content": content}]});
        let opened = OpenedRequest { headers, body: body.to_string().into() };
        let parsed = ParsedRequest::parse(&self.config, peer, Endpoint::Chat, &opened)?;
        self.classifier.classify(&self.keys, parsed).await
    }

    /// The label that it has in the end, and where it may go.
    async fn planned(&self, office: &Office, sent: &Sent, votes: &Votes) -> Result<(Label, Vec<Destination>), Error> {
        if sent.known.is_some() {
            self.classify("bo", "b", sent.known, &json!(LONG)).await.unwrap();
        }
        if sent.talk.is_some() {
            // Who may not is not heard.
            let _refused = self.classify("amy", "a", sent.talk, &json!("Yes")).await;
        }
        let mut text = format!("He said: {}", LONG.to_uppercase());
        text.push_str(if sent.mail { " Write to ann.lee@example.org." } else { "" });
        text.push_str(if sent.marked { " This is Top Secret." } else { "" });
        let mut parts = vec![json!({"type": "text", "text": text})];
        if sent.image {
            parts.push(json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}));
        }
        let mut classified = self.classify("amy", "a", sent.header, &json!(parts)).await?;
        classified.request.marks.placement = sent.asked;
        let conversation = classified.conversation();
        let mut masked = MaskedRequest::plain(&self.keys, classified);
        for (label, source) in votes.labels(&self.config.classification.routes, Endpoint::Chat, "chat") {
            masked.raise(label, Source { source, label: self.config.labels.name(label).to_owned() });
        }
        masked.classified().check(&self.config.labels)?;
        let targets: Vec<_> = self.config.targets.iter().map(|target| (target.clone(), Now::default())).collect();
        let facts = Facts {
            labels: &self.config.labels,
            targets: &targets,
            engine: EngineFacts { serves: office.engine, ready: office.engine, ..EngineFacts::default() },
            votes,
            weights: None,
            conversation,
            default: office.default,
            edge_goal: None,
            offline: office.offline,
            balance: Balance::LeastQueue,
            spread: 0,
            same_model: None,
        };
        let planned = decide::plan(&facts, masked)?;
        Ok((planned.masked().classified().label(), planned.plan().targets.clone()))
    }
}

/// The labels that are called for, by their numbers.
fn called_for(office: &Office, sent: &Sent, votes: &Votes, labels: &Labels) -> Vec<usize> {
    let number = |label: &Label| LABELS.iter().position(|name| *name == labels.name(*label));
    let found = [(sent.mail, office.email), (sent.marked, office.marking), (sent.image, office.opaque)];
    let found = found.into_iter().filter_map(|(is_there, label)| is_there.then_some(label));
    // What is above the ceiling is not heard, so nothing remembers it.
    let talk = sent.talk.filter(|talk| *talk.max(&office.models[0]) <= office.ceiling);
    let raised = votes.raised.as_ref().and_then(|(label, _)| number(label));
    let chosen = votes.model.as_ref().filter(|model| *model == "a").map(|_| office.models[1]);
    let said = [Some(office.floor), Some(office.models[0]), sent.header, sent.known, talk, raised, chosen];
    found.chain(said.into_iter().flatten()).collect()
}

/// The same with something raised, or found that was not.
fn raised(office: &Office, sent: &Sent, what: usize) -> (Office, Sent) {
    let (mut office, mut sent) = (office.clone(), sent.clone());
    let up = |label: usize| (label + 1).min(3);
    match what {
        0 => office.floor = up(office.floor).min(office.ceiling),
        1 => sent.header = Some(sent.header.map_or(1, up)),
        2 => sent.known = Some(sent.known.map_or(1, up)),
        3 => sent.talk = Some(sent.talk.map_or(1, up).min(office.ceiling.max(sent.talk.unwrap_or(0)))),
        4 => (sent.mail, office.email) = (true, up(office.email)),
        5 => (sent.marked, office.marking) = (true, up(office.marking)),
        6 => office.models[0] = up(office.models[0]),
        7 => office.models[1] = up(office.models[1]),
        _ => (sent.image, office.opaque) = (true, up(office.opaque)),
    }
    (office, sent)
}

fn ballots(votes: &[Option<Vote>]) -> Votes {
    let ballot = |(at, vote): (usize, &Option<Vote>)| Ballot { policy: format!("p{at}"), vote: vote.clone() };
    Votes::merged(&votes.iter().enumerate().map(ballot).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_label_is_the_join_of_all_and_no_plan_goes_beyond_it(
        office in any_office(), sent in any_sent(), votes in prop::collection::vec(any_vote(), 0..3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (scene, votes) = (Scene::new(&office), ballots(&votes));
        let labels = &scene.config.labels;
        let all = called_for(&office, &sent, &votes, labels);
        let join = labels.by_name(LABELS[all.into_iter().max().unwrap_or(0)]).unwrap();
        let ceiling = labels.by_name(LABELS[office.ceiling]).unwrap();
        match runtime.block_on(scene.planned(&office, &sent, &votes)) {
            Ok((label, targets)) => {
                prop_assert_eq!(label, join);
                prop_assert!(label <= ceiling && !targets.is_empty());
                for target in targets {
                    if let Destination::Remote(target) = target {
                        prop_assert!(label <= target.clearance && label < labels.highest() && !office.offline);
                    }
                }
            }
            Err(Error::LabelRefused { .. }) => prop_assert!(join > ceiling),
            Err(_) => prop_assert!(join <= ceiling),
        }
    }

    #[test]
    fn to_raise_anything_opens_no_way(
        office in any_office(), sent in any_sent(), votes in prop::collection::vec(any_vote(), 0..3), what in 0usize..9,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let votes = ballots(&votes);
        let ways = |office: &Office, sent: &Sent| -> BTreeSet<String> {
            let planned = runtime.block_on(Scene::new(office).planned(office, sent, &votes));
            planned.map_or_else(|_| BTreeSet::new(), |(_, targets)| targets.iter().map(|target| target.name().to_owned()).collect())
        };
        let (higher_office, higher) = raised(&office, &sent, what);
        let (before, after) = (ways(&office, &sent), ways(&higher_office, &higher));
        // The engine may answer what nobody else may any more; it is no way out.
        let out = |ways: BTreeSet<String>| ways.into_iter().filter(|name| name != "engine").collect::<BTreeSet<_>>();
        prop_assert!(out(after).is_subset(&out(before)));
    }
}
