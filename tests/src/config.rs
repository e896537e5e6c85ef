//! The configuration of a gateway under test.

use std::path::Path;

use serde_json::{Value, json};

use crate::BusyCloud;

/// The trust domain of every gateway under test.
pub const TRUST_DOMAIN: &str = "branch.test";
/// The variable that holds the key for a busy cloud, and what is in it.
pub const CLOUD_KEY: (&str, &str) = ("BUSY_CLOUD_KEY", "sk-busy-cloud-0123456789abcdef");

/// A configuration that grows; JSON is YAML, so it is written as JSON. Folder and ports are scratch.
#[derive(Debug, Clone)]
pub struct Config {
    value: Value,
    text: Option<String>,
    environment: Vec<(String, String)>,
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl Config {
    /// Free ports, a scratch `state_dir`, no target, no engine, no policy, and these identities:
    /// `clerk/*` (tenant clerks), `officer/*` (tenant officers, floor confidential), `guest/*` (its own tenant each,
    /// ceiling internal).
    #[must_use]
    pub fn new() -> Self {
        let id = |path: &str| format!("spiffe://{TRUST_DOMAIN}/{path}");
        let value = json!({
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "state_dir": "$STATE",
            "trust": {"domain": TRUST_DOMAIN},
            "identities": [
                {"match": id("clerk/*"), "tenant": "clerks"},
                {"match": id("officer/*"), "tenant": "officers", "floor": "confidential"},
                {"match": id("guest/*"), "ceiling": "internal"},
            ],
            "targets": [],
            "policies": [],
        });
        let (name, key) = CLOUD_KEY;
        Self { value, text: None, environment: vec![(name.into(), key.into())] }
    }

    /// YAML as a person writes it; `$STATE` stands for the scratch `state_dir`.
    #[must_use]
    pub fn yaml(text: &str) -> Self {
        Self { text: Some(text.to_owned()), ..Self::new() }
    }

    /// Adds a busy cloud as a target of placement `cloud`.
    #[must_use]
    pub fn cloud(self, name: &str, cloud: &BusyCloud, clearance: &str) -> Self {
        self.target(name, "cloud", cloud, clearance)
    }

    /// Adds a busy cloud as a target of placement `edge`.
    #[must_use]
    pub fn edge(self, name: &str, cloud: &BusyCloud, clearance: &str) -> Self {
        self.target(name, "edge", cloud, clearance)
    }

    /// Adds a policy, such as `builtin:redaction`, with its own section. Components that are files are allowed as well.
    #[must_use]
    pub fn policy(self, name: &str, component: &str, config: Value) -> Self {
        // A busy machine is no reason to fail: what a deadline does has a scenario of its own.
        let policy = json!({"name": name, "component": component, "config": config, "deadline": "5s"});
        self.set("/plugins", json!({"unsigned": "allow"})).push("/policies", policy)
    }

    /// Adds the three first-party policies: redaction of every kind, routing by what is asked for, caching.
    #[must_use]
    pub fn builtin_policies(self) -> Self {
        let kinds = json!({"kinds": ["email", "phone", "id-card", "bank-card", "secret"]});
        self.policy("route", "builtin:routing", json!({})).policy("redact", "builtin:redaction", kinds).policy(
            "cache",
            "builtin:caching",
            json!({}),
        )
    }

    /// The small real model on this machine. It must have been pulled.
    #[must_use]
    pub fn engine(self) -> Self {
        self.set("/engine", json!({"model": "smollm2-135m-instruct"}))
    }

    /// A cache in memory.
    #[must_use]
    pub fn cache(self) -> Self {
        self.set("/cache", json!({"memory": "16MiB", "ttl": "3600s"}))
    }

    /// Sets a value by its JSON pointer, such as `/timeouts/idle`; objects on the way are made, and `null` removes it.
    #[must_use]
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').unwrap_or(("", pointer));
        let object = made(&mut self.value, parent);
        if object.is_null() {
            *object = json!({});
        }
        match object {
            Value::Object(object) if value.is_null() => drop(object.shift_remove(name)),
            Value::Object(object) => drop(object.insert(name.to_owned(), value)),
            Value::Array(list) => {
                if let Some(place) = name.parse().ok().and_then(|index: usize| list.get_mut(index)) {
                    *place = value;
                }
            }
            _ => {}
        }
        self
    }

    /// Appends to a list by its JSON pointer, such as `/identities`.
    #[must_use]
    pub fn push(mut self, pointer: &str, value: Value) -> Self {
        let list = made(&mut self.value, pointer);
        match list {
            Value::Array(list) => list.push(value),
            other => *other = json!([value]),
        }
        self
    }

    /// Sets an environment variable of the gateway.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The file's text.
    #[must_use]
    pub fn render(&self, state_dir: &Path) -> String {
        let text = self.text.clone().unwrap_or_else(|| format!("{:#}\n", self.value));
        text.replace("$STATE", &state_dir.display().to_string())
    }

    /// Variables of the gateway.
    #[must_use]
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    fn target(self, name: &str, placement: &str, cloud: &BusyCloud, clearance: &str) -> Self {
        let (key, _) = CLOUD_KEY;
        let openai = json!({"base_url": cloud.base_url(), "ca": cloud.ca(), "api_key": {"env": key}});
        self.push("/targets", json!({"name": name, "placement": placement, "clearance": clearance, "openai": openai}))
    }
}

/// The value at `pointer`; what is missing on the way becomes an object.
fn made<'a>(root: &'a mut Value, pointer: &str) -> &'a mut Value {
    pointer.split('/').skip(1).fold(root, |value, name| {
        if let Value::Array(list) = value {
            let last = list.len().saturating_sub(1);
            let index = name.parse().unwrap_or(last).min(last);
            if list.is_empty() {
                list.push(json!({}));
            }
            // The list is not empty, so its entry exists.
            #[expect(clippy::indexing_slicing, reason = "the index is below the length, and the list is not empty")]
            return &mut list[index];
        }
        if !value.is_object() {
            *value = json!({});
        }
        &mut value[name]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_removes_and_appends() {
        let config = Config::new()
            .set("/timeouts/idle", json!("1s"))
            .set("/timeouts/total", json!("9s"))
            .set("/timeouts/total", Value::Null)
            .set("/identities/1/floor", json!("classified"))
            .push("/labels", json!("public"));
        let value: Value = serde_json::from_str(&config.render(Path::new("/scratch/state"))).unwrap();
        assert_eq!(value["timeouts"], json!({"idle": "1s"}));
        assert_eq!((&value["identities"][1]["floor"], &value["labels"]), (&json!("classified"), &json!(["public"])));
        assert_eq!(value["state_dir"], "/scratch/state");
        assert_eq!(Config::yaml("state_dir: $STATE/x\n").render(Path::new("/a")), "state_dir: /a/x\n");
    }
}
