//! The sections of a configuration file as they were written, to tell what a reload does not apply.

use serde_json::{Map, Value};

/// Sections of which a reload applies every key.
const RELOADED: [&str; 3] = ["answers", "policies", "routing"];
/// The section of which it applies all but one.
const PLUGINS: &str = "plugins";
const NOT_RELOADED: &str = "compiled";

/// The sections of one file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sections(Map<String, Value>);

impl Sections {
    /// Of a file that could be read as a configuration.
    pub(super) fn of(text: &str) -> Self {
        let tree = serde_saphyr::from_str_with_options(text, serde_saphyr::options! { with_snippet: false });
        Self(tree.unwrap_or_default())
    }

    /// The keys that are written differently there and take a restart, in the order of the alphabet.
    #[must_use]
    pub fn needing_restart(&self, other: &Self) -> Vec<String> {
        let mut names: Vec<&String> = self.0.keys().chain(other.0.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let differs = |name: &&String| !RELOADED.contains(&name.as_str()) && self.0.get(*name) != other.0.get(*name);
        let key = |name: &String| match name.as_str() {
            PLUGINS => self.compiled() != other.compiled(),
            _ => true,
        };
        let named = |name: &String| match name.as_str() {
            PLUGINS => format!("{PLUGINS}.{NOT_RELOADED}"),
            other => other.to_owned(),
        };
        names.into_iter().filter(differs).filter(|name| key(name)).map(named).collect()
    }

    fn compiled(&self) -> Option<&Value> {
        self.0.get(PLUGINS)?.get(NOT_RELOADED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_a_restart_is_named_and_nothing_else() {
        let before = "listen: a\nlimits: {body: 1MiB}\npolicies: []\nplugins: {unsigned: allow}\n";
        let restart = |after: &str| Sections::of(before).needing_restart(&Sections::of(after));
        assert!(restart(&before.replace(": [", ":   [")).is_empty());
        let after =
            "# new\npolicies: [{name: x}]\nlisten: a\nrouting: {}\nplugins: {keys: [k]}\nlimits: {body: 1MiB}\n";
        assert!(restart(after).is_empty());
        let after = "listen: b\npolicies: []\nplugins: {unsigned: allow, compiled: x}\ntargets: []\n";
        assert_eq!(restart(after), ["limits", "listen", "plugins.compiled", "targets"]);
    }
}
