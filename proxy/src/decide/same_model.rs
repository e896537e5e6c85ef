//! Which targets have the same model behind our name for it. Vectors of different models cannot be compared, so all that are made
//! under one name must come from one model: on failover, under another label, and tomorrow.
//!
//! So it does not depend on the request or on who is well: the first target in the configuration that serves the name fixes
//! what the model is called there, the engine coming last; and no other is asked for vectors but those that call it the same.

use crate::classify::clearance::{ENGINE, ENGINE_MODEL};
use crate::config::Config;

/// What a model is called by whom, as fixed by the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SameModel<'a> {
    /// Who fixes it.
    target: &'a str,
    /// Its name there.
    name: &'a str,
}

impl<'a> SameModel<'a> {
    /// What our name `model` means. `engine` is what the engine on this machine has loaded. `None`: nobody serves it.
    #[must_use]
    pub fn of(config: &'a Config, model: &'a str, engine: &'a str) -> Option<Self> {
        let remote = config.targets.iter().find_map(|target| {
            let name = target.model(model)?;
            Some(Self { target: &target.name, name })
        });
        let local = || config.engine.as_ref().is_some_and(|engine| engine.serves(model));
        remote.or_else(|| local().then_some(Self { target: ENGINE, name: engine }))
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'a str {
        self.name
    }

    /// Has a target that calls it `name` the same model? `engine` is whatever a node has loaded, so it is like no other.
    #[must_use]
    pub fn is_at(self, target: &str, name: &str) -> bool {
        name == self.name && (name != ENGINE_MODEL || target == self.target)
    }

    /// Has the engine, if it calls its model `name`?
    #[must_use]
    pub fn is_at_engine(self, name: &str) -> bool {
        self.is_at(ENGINE, name)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn config(targets: &str, engine: &str) -> Config {
        let text = format!(
            "
listen: 127.0.0.1:0
admin: 127.0.0.1:0
state_dir: state
trust: {{domain: b.example}}
identities: [{{match: 'spiffe://b.example/*'}}]
targets: [{targets}]
{engine}
"
        );
        config::parse(&text, Path::new("postern.yaml")).unwrap()
    }

    fn target(name: &str, models: &str) -> String {
        format!(
            "{{name: {name}, placement: cloud, clearance: public, openai: {{base_url: 'https://{name}.example/v1'}}, models: {{{models}}}}}"
        )
    }

    #[test]
    fn the_first_target_that_serves_a_name_says_what_it_means() {
        let targets = [target("sun", "chat: big"), target("moon", "embed: small"), target("star", "embed: other")];
        let config = config(&targets.join(", "), "engine: {model: all-minilm-l6-v2, models: [embed, mini]}");
        let of = |model| SameModel::of(&config, model, "all-minilm-l6-v2");
        let embed = of("embed").unwrap();
        assert_eq!(embed, SameModel { target: "moon", name: "small" });
        assert!(embed.is_at("moon", "small") && embed.is_at("sun", "small"));
        assert!(!embed.is_at("star", "other") && !embed.is_at_engine("all-minilm-l6-v2"));
        assert_eq!(of("mini"), Some(SameModel { target: "engine", name: "all-minilm-l6-v2" }));
        assert_eq!(of("none"), None);
    }

    #[test]
    fn a_target_that_passes_names_on_has_the_model_of_that_name() {
        let config = config(&target("sun", ""), "engine: {model: all-minilm-l6-v2}");
        let same = SameModel::of(&config, "all-minilm-l6-v2", "all-minilm-l6-v2").unwrap();
        assert!(same.is_at("sun", "all-minilm-l6-v2") && same.is_at_engine("all-minilm-l6-v2"));
        assert!(!SameModel::of(&config, "embed", "all-minilm-l6-v2").unwrap().is_at_engine("all-minilm-l6-v2"));
    }

    #[test]
    fn whatever_a_node_has_loaded_is_like_nothing_else() {
        let config = config(&[target("one", "embed: engine"), target("two", "embed: engine")].join(", "), "");
        let same = SameModel::of(&config, "embed", "").unwrap();
        assert!(same.is_at("one", "engine") && !same.is_at("two", "engine"));
    }
}
