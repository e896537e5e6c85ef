//! What makes two requests the same.

use postern_wire::call::Call;
use postern_wire::json::{Map, Value};

use crate::classify::clearance::Destination;
use crate::decide::PlannedRequest;
use crate::keys::Keys;

/// A keyed hash; equal for two requests only if everything that matters is.
pub type CacheKey = [u8; 32];

/// Tenant, label, target with its model, form, endpoint, every field of the masked request, and what plugins add.
///
/// Plugins cannot take anything out of it, and the parts cannot run into each other. The order of members counts, since templates write
/// tools and their arguments as they stand; white space does not.
#[must_use]
pub fn key(
    keys: &Keys,
    labels: &crate::classify::label::Labels,
    request: &PlannedRequest,
    parts: &[String],
) -> CacheKey {
    let masked = request.masked();
    let body = match &masked.classified().request().call {
        // A vector is one of the text with the placeholders that went out; nothing in it can be mapped onto other values.
        Call::Embeddings(_) => masked.body().clone(),
        Call::Chat(_) | Call::Completion(_) => masked.canonical_body(),
    };
    key_of_body(keys, labels, request, (body, "cache"), parts)
}

/// As [`key`], of another body; `purpose` keeps keys of other kinds apart.
pub(super) fn key_of_body(
    keys: &Keys,
    labels: &crate::classify::label::Labels,
    request: &PlannedRequest,
    (body, purpose): (Map, &str),
    parts: &[String],
) -> CacheKey {
    let (masked, plan) = (request.masked(), request.plan());
    let classified = masked.classified();
    let call = &classified.request().call;
    let body = Value::Object(body).to_string();
    let target = plan.targets.first().map_or("", |target| target.name());
    let model = match plan.targets.first() {
        Some(Destination::Remote(target)) => target.model(&plan.model).unwrap_or(""),
        // Vectors of another model, which the engine may have had before, are not the same.
        _ => plan.same_model.as_deref().unwrap_or(&plan.model),
    };
    let mut fields: Vec<&[u8]> = vec![
        classified.request().peer.tenant.as_bytes(),
        labels.name(classified.label()).as_bytes(),
        target.as_bytes(),
        model.as_bytes(),
        plan.placement.as_str().as_bytes(),
        call.endpoint().path().as_bytes(),
        body.as_bytes(),
    ];
    fields.extend(parts.iter().map(String::as_bytes));
    keys.hash(purpose, &fields)
}

/// Of requests that may share an answer that is under way: those of one `key` that may be answered by the same targets, are as urgent, and
/// either all or none content with an answer to the same in other words.
#[must_use]
pub fn flight_key(keys: &Keys, request: &PlannedRequest, key: &CacheKey, semantic: bool) -> CacheKey {
    let mut names: Vec<&str> = request.plan().targets.iter().map(Destination::name).collect();
    names.sort_unstable();
    let marks = [u8::from(request.masked().classified().request().marks.bulk), u8::from(semantic)];
    let mut fields: Vec<&[u8]> = vec![key, &marks];
    fields.extend(names.iter().map(|name| name.as_bytes()));
    keys.hash("flight", &fields)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use http::HeaderMap;
    use postern_wire::call::Endpoint;
    use postern_wire::json::json;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::classify::Classifier;
    use crate::config::{self, Balance, Config};
    use crate::decide::{self, EngineFacts, Facts};
    use crate::open::OpenedRequest;
    use crate::redact::MaskedRequest;
    use crate::request::{ParsedRequest, Peer};
    use crate::route::Votes;
    use crate::upstream::standing::Now;

    fn config() -> Config {
        let text = "
listen: 127.0.0.1:0
admin: 127.0.0.1:0
state_dir: state
trust: {domain: b.example}
identities:
  - {match: 'spiffe://b.example/clerk/*', tenant: clerks}
  - {match: 'spiffe://b.example/guest/*'}
targets:
  - {name: sun, placement: cloud, clearance: internal, openai: {base_url: 'https://sun.example/v1'}}
  - {name: node, placement: edge, clearance: internal, openai: {base_url: 'https://node.example/v1'}}
";
        config::parse(text, Path::new("postern.yaml")).unwrap()
    }

    /// One request, as a client sends it.
    #[derive(Debug, Clone)]
    struct Sent {
        who: &'static str,
        headers: Vec<(&'static str, &'static str)>,
        endpoint: Endpoint,
        body: Value,
        parts: Vec<String>,
    }

    struct Office {
        config: Config,
        keys: Keys,
        runtime: tokio::runtime::Runtime,
    }

    impl Office {
        fn new() -> Self {
            let config = config();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
            Self { keys: Keys::random(), runtime, config }
        }

        /// `None`: it is not accepted.
        fn planned(&self, sent: &Sent, text: String) -> Option<PlannedRequest> {
            let peer = Peer::resolve(&self.config, &sent.who.parse().unwrap()).unwrap();
            let mut headers = HeaderMap::new();
            sent.headers.iter().for_each(|(name, value)| drop(headers.insert(*name, value.parse().unwrap())));
            let opened = OpenedRequest { headers, body: text.into() };
            let parsed = ParsedRequest::parse(&self.config, peer, sent.endpoint, &opened).ok()?;
            // A new one each time: it remembers what other requests were labelled.
            let classifier = Classifier::new(&self.config, &self.keys, None);
            let classified = self.runtime.block_on(classifier.classify(&self.keys, parsed)).ok()?;
            let spread = 0;
            let targets: Vec<_> = self.config.targets.iter().map(|t| (t.clone(), Now::default())).collect();
            let facts = Facts {
                labels: &self.config.labels,
                targets: &targets,
                engine: EngineFacts::default(),
                votes: &Votes::default(),
                weights: None,
                conversation: classified.conversation(),
                default: config::Placement::Cloud,
                edge_goal: None,
                offline: false,
                balance: Balance::LeastQueue,
                spread,
                same_model: None,
            };
            decide::plan(&facts, MaskedRequest::plain(&self.keys, classified)).ok()
        }

        fn key(&self, sent: &Sent) -> Option<CacheKey> {
            let planned = self.planned(sent, sent.body.to_string())?;
            Some(key(&self.keys, &self.config.labels, &planned, &sent.parts))
        }
    }

    fn any_leaf() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0_u32..5).prop_map(Value::from),
            (0_u8..20).prop_map(|n| json!(f64::from(n) / 10.0)),
            "[a-c ]{0,4}".prop_map(Value::from),
        ]
    }

    fn any_tree() -> impl Strategy<Value = Value> {
        any_leaf().prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-c]{1,3}", inner, 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn any_message() -> impl Strategy<Value = Value> {
        let role = prop::sample::select(vec!["system", "user", "assistant"]);
        (role, "[a-c 0-9]{0,8}", prop::option::of("[a-c]{1,3}")).prop_map(|(role, content, name)| {
            let mut message = json!({"role": role, "content": content});
            if let Some(name) = name {
                message["name"] = name.into();
            }
            message
        })
    }

    /// Parameters of sampling, of templates and of the answer's form, and what nobody knows yet.
    fn any_parameters() -> impl Strategy<Value = Map> {
        type Made = fn(u32) -> Value;
        let known: [(&str, Made); 16] = [
            ("temperature", |n| json!(f64::from(n) / 10.0)),
            ("top_p", |n| json!(f64::from(n % 10 + 1) / 10.0)),
            ("top_k", |n| json!(n)),
            ("min_p", |n| json!(f64::from(n % 10) / 10.0)),
            ("seed", |n| json!(n)),
            ("max_tokens", |n| json!(n + 1)),
            ("max_completion_tokens", |n| json!(n + 1)),
            ("presence_penalty", |n| json!(f64::from(n % 20) / 10.0)),
            ("frequency_penalty", |n| json!(f64::from(n % 20) / 10.0)),
            ("stop", |n| json!([n.to_string()])),
            ("logit_bias", |n| json!({n.to_string(): 1})),
            ("user", |n| json!(n.to_string())),
            ("reasoning_effort", |n| json!(n.to_string())),
            ("response_format", |n| json!({"type": "json_schema", "json_schema": {"name": n.to_string()}})),
            ("tools", |n| json!([{"type": "function", "function": {"name": format!("f{n}"), "parameters": {}}}])),
            ("chat_template_kwargs", |n| json!({"thinking": n % 2 == 0, "n": n})),
        ];
        let chosen = prop::collection::vec((0..known.len(), 0_u32..20), 0..6);
        let unknown = prop::option::of(("x_[a-c]{1,3}", any_tree()));
        let stream = prop::option::of((any::<bool>(), prop::option::of(any::<bool>())));
        (chosen, unknown, stream).prop_map(move |(chosen, unknown, stream)| {
            let mut all = Map::new();
            for (index, n) in chosen {
                let (name, value) = known[index];
                all.insert(name.to_owned(), value(n));
            }
            all.extend(unknown);
            if let Some((stream, usage)) = stream {
                all.insert("stream".to_owned(), stream.into());
                if let (true, Some(usage)) = (stream, usage) {
                    all.insert("stream_options".to_owned(), json!({"include_usage": usage}));
                }
            }
            all
        })
    }

    fn any_sent() -> impl Strategy<Value = Sent> {
        let who = prop::sample::select(vec!["spiffe://b.example/clerk/amy", "spiffe://b.example/guest/x"]);
        let messages = prop::collection::vec(any_message(), 1..4);
        let parts = prop::collection::vec("[a-c]{0,2}", 0..3);
        (who, messages, any_parameters(), parts).prop_map(|(who, messages, parameters, parts)| {
            let mut body = json!({"model": "chat", "messages": messages});
            body.as_object_mut().unwrap().extend(parameters);
            Sent { who, headers: Vec::new(), endpoint: Endpoint::Chat, body, parts }
        })
    }

    /// All places of a tree.
    fn places(value: &Value, at: String, all: &mut Vec<String>) {
        match value {
            Value::Object(members) => members.iter().for_each(|(key, value)| places(value, format!("{at}/{key}"), all)),
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(n, value)| places(value, format!("{at}/{n}"), all))
            }
            _ => {}
        }
        all.push(at);
    }

    /// Changes one thing.
    fn changed(sent: &Sent, what: u8, place: Index) -> Sent {
        let mut other = sent.clone();
        match what {
            0 => {
                other.who =
                    if sent.who.contains("clerk") { "spiffe://b.example/guest/x" } else { "spiffe://b.example/guest/y" }
            }
            1 => other.headers.push(("postern-label", "internal")),
            2 => other.headers.push(("postern-placement", "edge-first")),
            3 => other.body["model"] = json!("other"),
            4 => other.parts.push("z".to_owned()),
            5 => other.body["messages"].as_array_mut().unwrap().insert(0, json!({"role": "user", "content": "z"})),
            6 => other.body["new_field"] = json!(null),
            _ => {
                let mut all = Vec::new();
                places(&sent.body, String::new(), &mut all);
                let value = other.body.pointer_mut(place.get::<String>(&all)).unwrap();
                *value = match std::mem::take(value) {
                    Value::Null => json!("z"),
                    Value::Bool(yes) => json!(!yes),
                    Value::Number(n) if n.is_f64() => json!(n.as_f64().unwrap() / 2.0 + 0.01),
                    Value::Number(n) => json!(n.as_u64().unwrap() + 1),
                    Value::String(text) if what.is_multiple_of(2) => json!(format!("{text}z")),
                    Value::String(text) => json!(text.chars().rev().chain(" ".chars()).collect::<String>()),
                    Value::Array(items) if what.is_multiple_of(2) => {
                        items.into_iter().skip(1).collect::<Vec<_>>().into()
                    }
                    Value::Array(items) => items
                        .iter()
                        .chain(items.last())
                        .cloned()
                        .chain((items.is_empty()).then(|| json!(1)))
                        .collect::<Vec<_>>()
                        .into(),
                    Value::Object(mut members) => {
                        members.insert("zz".to_owned(), json!(1));
                        Value::Object(members)
                    }
                };
            }
        }
        other
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn requests_that_differ_in_one_thing_never_share(sent in any_sent(), what in 0_u8..24, place in any::<Index>()) {
            let office = OFFICE.get_or_init(Office::new);
            let other = changed(&sent, what, place);
            prop_assume!(sent.body != other.body || sent.who != other.who || sent.headers != other.headers || sent.parts != other.parts);
            let (Some(one), Some(two)) = (office.key(&sent), office.key(&other)) else { return Err(TestCaseError::reject("not accepted")) };
            prop_assert_ne!(one, two, "{:?} and {:?}", sent, other);
        }

        #[test]
        fn any_two_that_differ_never_share(one in any_sent(), two in any_sent()) {
            let office = OFFICE.get_or_init(Office::new);
            // As they are written: the order of members counts.
            let [first, second] = [&one.body, &two.body].map(Value::to_string);
            let same = first == second && one.who == two.who && one.parts == two.parts;
            let (Some(a), Some(b)) = (office.key(&one), office.key(&two)) else { return Err(TestCaseError::reject("not accepted")) };
            prop_assert_eq!(a == b, same, "{:?} and {:?}", one, two);
        }

        #[test]
        fn white_space_and_who_of_a_tenant_asks_make_no_difference(sent in any_sent()) {
            let office = OFFICE.get_or_init(Office::new);
            let other = Sent { who: if sent.who.contains("clerk") { "spiffe://b.example/clerk/bo" } else { sent.who }, ..sent.clone() };
            let (Some(one), Some(two)) =
                (office.planned(&sent, sent.body.to_string()), office.planned(&other, format!(" {}", serde_json::to_string_pretty(&sent.body).unwrap())))
            else { return Err(TestCaseError::reject("not accepted")) };
            let key = |planned| key(&office.keys, &office.config.labels, planned, &sent.parts);
            prop_assert_eq!(key(&one), key(&two));
        }
    }

    static OFFICE: std::sync::OnceLock<Office> = std::sync::OnceLock::new();

    #[test]
    fn the_endpoint_and_the_order_of_members_count() {
        let office = Office::new();
        let sent = |endpoint, body| Sent {
            who: "spiffe://b.example/clerk/amy",
            headers: vec![],
            endpoint,
            body,
            parts: vec![],
        };
        let body =
            json!({"model": "chat", "messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a"});
        let keys: Vec<_> = [Endpoint::Chat, Endpoint::Completions, Endpoint::Embeddings]
            .into_iter()
            .filter_map(|endpoint| office.key(&sent(endpoint, body.clone())))
            .collect();
        assert!(keys.len() > 1 && keys.iter().enumerate().all(|(n, key)| !keys[..n].contains(key)));
        let tools = |parameters: Value| {
            let tools = json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
            sent(
                Endpoint::Chat,
                json!({"model": "chat", "messages": [{"role": "user", "content": "a"}], "tools": tools}),
            )
        };
        let [one, two] =
            [json!({"a": 1, "b": 2}), json!({"b": 2, "a": 1})].map(|members| office.key(&tools(members)).unwrap());
        assert_ne!(one, two, "a template writes them as they stand");
    }

    #[test]
    fn only_those_share_what_is_under_way_who_may_be_answered_by_the_same_and_are_as_urgent() {
        let office = Office::new();
        let body = json!({"model": "chat", "messages": [{"role": "user", "content": "a"}]});
        let flight = |headers: Vec<(&'static str, &'static str)>| {
            let sent = Sent {
                who: "spiffe://b.example/clerk/amy",
                headers,
                endpoint: Endpoint::Chat,
                body: body.clone(),
                parts: vec![],
            };
            let planned = office.planned(&sent, body.to_string()).unwrap();
            flight_key(&office.keys, &planned, &key(&office.keys, &office.config.labels, &planned, &[]), false)
        };
        assert_eq!(flight(vec![]), flight(vec![("postern-conversation", "c")]));
        assert_ne!(flight(vec![]), flight(vec![("postern-priority", "bulk")]));
        assert_ne!(flight(vec![]), flight(vec![("postern-placement", "edge-first")]));
    }
}
