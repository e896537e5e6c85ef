//! `postern check`: what can be said of a configuration without binding a port, reading a key or changing anything.

use std::path::Path;
use std::sync::Arc;

use postern_engine::catalog;
use postern_plugins::{HostOptions, PolicyHost};
use postern_wire::call::Endpoint;

use super::say;
use crate::cache::warm;
use crate::classify::clearance::ENGINE;
use crate::classify::label::Label;
use crate::config::{self, Config, ConfigError, PolicyPart, Target, trust};
use crate::route::load::Loader;
use crate::route::probe;
use crate::supervise::MAX_SOCKET_PATH;

pub(super) fn run(path: &Path) -> anyhow::Result<()> {
    let config = config::load(path)?;
    try_policies(path, &config)?;
    for warning in warnings(&config) {
        say(&format!("{}: warning: {warning}", path.display()));
    }
    let parts = [
        counted(config.identities.len(), "identity rule", "identity rules"),
        counted(config.targets.len(), "target", "targets"),
        counted(config.policy_part.policies.len(), "policy", "policies"),
    ];
    say(&format!("{}: good ({})", path.display(), parts.join(", ")));
    Ok(())
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Loads every policy as `run` does and calls it once: what its manifest has no schema for shows only then.
fn try_policies(path: &Path, config: &Config) -> anyhow::Result<()> {
    let loader = Loader::new(PolicyHost::new(HostOptions::default())?, Arc::default());
    // A check changes nothing, so nothing is recorded.
    let part = PolicyPart { record: None, ..config.policy_part.clone() };
    let policies = loader.load(path, &part, None)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for loaded in policies.all() {
        if let Some((_, failure)) = runtime.block_on(probe::empty(loaded)).first() {
            let message = format!("the policy `{}` does not work as configured: {}", loaded.name(), failure.detail);
            return Err(ConfigError::Parse { file: path.display().to_string(), message }.into());
        }
    }
    Ok(())
}

/// What is allowed, but opens more than somebody may have meant. `run` says it too.
pub(crate) fn dangers(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let asks_an_engine = |target: &Target| target.models.values().any(|model| model == ENGINE);
    for target in config.targets.iter().filter(|target| target.ca.is_some() && target.node.is_none()) {
        if asks_an_engine(target) {
            let name = &target.name;
            found.push(format!(
                "target `{name}` asks an `{ENGINE}` with `openai.ca` and without `openai.identity`: whoever has a certificate of that authority, as a middlebox on the way, reads prompts in clear. If it is a node of our own, name it as `openai.identity`: then they are sealed for it"
            ));
        }
    }
    for relay in &config.payload.relays {
        if let Some(rule) = config.identities.iter().find(|rule| rule.pattern.overlaps(relay)) {
            let pattern = &rule.pattern;
            found.push(format!(
                "`payload.relays` has {relay}, which the rule {pattern} of `identities` matches too: such a middlebox may then ask for itself as well. Write a narrower `match`, such as spiffe://{}/clerk/*",
                config.trust_domain
            ));
        }
    }
    found.extend(config.targets.iter().flat_map(|target| of_names(config, target)));
    found
}

/// Names that lead to a labelled model and have no such label themselves.
fn of_names(config: &Config, target: &Target) -> Vec<String> {
    let (routes, of) = (&config.classification.routes, &target.name);
    if target.models.is_empty() {
        let exact = routes.models().map(|(name, _)| name).filter(|name| !name.ends_with('*'));
        let open = |name| {
            format!(
                "`classification.models` has `{name}`, and target `{of}` takes any name, so it may know that model by another one, such as `{name}:latest`: write `{name}*`, or list the `models` of the target"
            )
        };
        return exact.map(open).collect();
    }
    let label = |name: &str| routes.label(Endpoint::Chat, name);
    let mut found = Vec::new();
    // Whatever an engine has loaded has many names; which of them is labelled is for the office to say.
    for (name, theirs) in target.models.iter().filter(|(_, theirs)| theirs.as_str() != ENGINE) {
        let lower = target.models.iter().find(|(other, also)| *also == theirs && label(other) < label(name));
        if let Some((other, _)) = lower {
            found.push(format!(
                "`classification.models` gives `{name}` a label, and target `{of}` calls `{other}` the same, which has none as high: whoever asks for `{other}` gets that model without the label"
            ));
        }
    }
    found
}

/// What is allowed, but will hardly work here. The file may be meant for another machine, so none of it is an error.
fn warnings(config: &Config) -> Vec<String> {
    let mut found = dangers(config);
    for target in &config.targets {
        if let Some(ca) = target.ca.as_ref().filter(|ca| !ca.is_file()) {
            let name = &target.name;
            found.push(format!("the `openai.ca` of target `{name}`, {}, is not there; `run` needs it", ca.display()));
        }
    }
    for target in &config.targets {
        let foreign = target.node.as_ref().filter(|id| !id.is_node_below(&config.prefix));
        if let (Some(id), trust::Issuer::Embedded) = (foreign, &config.issuer) {
            let (name, domain, prefix) = (&target.name, &config.trust_domain, &config.prefix);
            found.push(format!(
                "the `openai.identity` of target `{name}` is {id}, and the authority here issues certificates that serve only below spiffe://{domain}{prefix}/node"
            ));
        }
    }
    match config.cache.as_ref().and_then(|cache| cache.warm.as_deref()).map(warm::read_named) {
        Some(Err(error)) => found.push(format!("`cache.warm`: {error:#}; nothing is asked at the start")),
        Some(Ok(lines)) => {
            let strangers = lines.iter().filter(|line| !warm::is_known(config, line));
            found.extend(strangers.map(|line| format!("`cache.warm`: line {}: {}", line.number, warm::NOBODY)));
        }
        None => {}
    }
    let replicas = config.replicas.as_ref();
    let stores = [
        ("cache.redis", config.cache.as_ref().and_then(|cache| cache.redis.as_ref())),
        ("replicas.redis", replicas.and_then(|replicas| replicas.redis.as_ref())),
    ];
    let of_stores = stores.iter().filter_map(|(name, redis)| Some((*name, (*redis)?))).flat_map(|(name, redis)| {
        let password = redis.password.as_ref().map(|secret| (format!("{name}.password"), secret.file()));
        password.into_iter().chain([(format!("{name}.ca"), redis.ca.as_deref())])
    });
    let key = replicas.and_then(|replicas| replicas.key.as_ref()).map(|key| ("replicas.key".to_owned(), key.file()));
    for (name, file) in of_stores.chain(key) {
        if let Some(file) = file.filter(|file| !file.is_file()) {
            found.push(format!("`{name}`, {}, is not there; `run` needs it", file.display()));
        }
    }
    match (&config.engine, config.offline, config.targets.is_empty()) {
        (None, true, _) => found.push("`offline: true` without an `engine`: nobody may answer".to_owned()),
        (None, false, true) => found.push("neither `targets` nor an `engine`: nobody can answer".to_owned()),
        (Some(engine), ..) => found.extend(
            catalog::locate(&engine.model)
                .and_then(|path| postern_engine::serves(&path))
                .err()
                .map(|error| error.to_string()),
        ),
        _ => {}
    }
    if let Some(semantic) = &config.semantic {
        found.extend(match catalog::locate(&semantic.model).and_then(|path| postern_engine::serves(&path)) {
            Ok(postern_engine::Serves::Vectors) => None,
            Ok(postern_engine::Serves::Chats) => Some(format!(
                "the model `{}` of `cache.semantic` makes no vectors; all-minilm-l6-v2 does",
                semantic.model
            )),
            Err(error) => Some(format!("`cache.semantic` is not used yet: {error}")),
        });
    }
    let highest = config.targets.iter().map(|target| target.clearance).max();
    let above = |label: &Label| highest.is_none_or(|highest| *label > highest);
    if config.engine.is_none()
        && let Some(label) = config.classification.routes.labels().find(above)
    {
        found.push(format!(
            "`classification` gives a model or an endpoint the label {}, which no target is cleared for, and there is no `engine`: nobody may answer",
            config.labels.name(label)
        ));
    }
    found.extend(of_records(config));
    let socket = std::path::absolute(config.engine_socket()).unwrap_or_else(|_| config.engine_socket());
    let bytes = socket.as_os_str().len();
    if bytes > MAX_SOCKET_PATH {
        found.push(format!(
            "`state_dir` is too long: the engine's socket {} has a path of {bytes} bytes, and {MAX_SOCKET_PATH} are possible",
            socket.display()
        ));
    }
    found
}

/// Who else would have the records, and will not.
fn of_records(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let audit = &config.audit;
    for witness in &audit.witnesses {
        if let Some(ca) = witness.ca.as_ref().filter(|ca| !ca.is_file()) {
            found.push(format!(
                "the `ca` of the witness {}, {}, is not there; `run` needs it",
                witness.key.name(),
                ca.display()
            ));
        }
    }
    if config.offline {
        let unused = [
            ("audit.witnesses", !audit.witnesses.is_empty()),
            ("audit.copy", audit.copy.is_some()),
            ("cache.redis", config.cache.as_ref().is_some_and(|cache| cache.redis.is_some())),
            ("replicas.redis", config.replicas.as_ref().is_some_and(|replicas| replicas.redis.is_some())),
        ];
        let unused = unused.iter().filter(|(_, is_there)| *is_there);
        found.extend(
            unused.map(|(name, _)| format!("`{name}` is not used while the gateway is offline: it reaches nobody")),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(more: &str) -> String {
        let text = format!(
            "{{listen: '127.0.0.1:0', admin: '127.0.0.1:0', trust: {{domain: b.example}}, identities: [{{match: 'spiffe://b.example/*'}}], {more}}}"
        );
        warnings(&config::parse(&text, Path::new("/nowhere/postern.yaml")).unwrap()).join("\n")
    }

    #[test]
    fn what_will_hardly_work_is_said_and_nothing_else() {
        let target = |ca: &str| {
            format!(
                "state_dir: s, targets: [{{name: sun, placement: cloud, clearance: public, openai: {{base_url: 'https://x/v1'{ca}}}}}]"
            )
        };
        assert_eq!(of(&target("")), "");
        assert!(of(&target(", ca: gone.pem")).contains("target `sun`, /nowhere/gone.pem, is not there"));
        let node = |id: &str| {
            target("")
                .replace("cloud, clear", "edge, clear")
                .replace("/v1'", &format!("/v1', identity: 'spiffe://b.example/{id}'"))
        };
        assert_eq!(of(&node("node/gpu-1")), "");
        assert!(of(&node("clerk/amy")).contains("only below spiffe://b.example/node"));
        assert!(of(&format!("{}, offline: true", target(""))).contains("without an `engine`"));
        assert!(of("state_dir: s").contains("nobody can answer"));
        assert!(of(&format!("state_dir: {}", "s".repeat(100))).contains("has a path of 121 bytes"));
        assert!(!of(&format!("state_dir: {}", "s".repeat(86))).contains("too long"));
    }

    #[test]
    fn what_a_middlebox_could_read_or_ask_is_said() {
        let target = |openai: &str, model: &str| {
            of(&format!(
                "state_dir: s, targets: [{{name: gpu, placement: edge, clearance: public, openai: {{base_url: 'https://x/v1'{openai}}}, models: {{chat: {model}}}}}]"
            ))
        };
        let (ca, identity) = (", ca: /etc/hostname", ", identity: 'spiffe://b.example/node/gpu-1'");
        assert!(target(ca, "engine").contains("reads prompts in clear"));
        assert_eq!(target(&format!("{ca}{identity}"), "engine"), "");
        assert_eq!((target(ca, "llama"), target("", "engine")), (String::new(), String::new()));
        let relays = |relay: &str| of(&format!("offline: true, state_dir: s, payload: {{relays: ['{relay}']}}"));
        assert!(relays("spiffe://b.example/relay/*").contains("may then ask for itself"));
        let text = "{listen: '127.0.0.1:0', admin: '127.0.0.1:0', state_dir: s, trust: {domain: b.example}, identities: [{match: 'spiffe://b.example/clerk/*'}], payload: {relays: ['spiffe://b.example/relay/*']}}";
        assert!(dangers(&config::parse(text, Path::new("/nowhere/postern.yaml")).unwrap()).is_empty());
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(
            [0, 1, 2].map(|count| counted(count, "policy", "policies")),
            ["0 policies", "1 policy", "2 policies"]
        );
    }
}
