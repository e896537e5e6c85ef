//! What becomes of what a model made: the section `answers`.

use std::collections::BTreeMap;

use postern_plugins::detectors::Kind;

use super::file::{File, Placed};
use super::policies::{Fault, Policy};
use crate::screen::{Action, MARKING, PRIVATE_KEY, Rules};

/// The words of the redaction policies that count are the office's; the section says which kinds of them matter in answers.
pub(super) fn rules(file: &File, policies: &[Policy]) -> Result<Option<Rules>, Fault> {
    let Some(written) = &file.answers else { return Ok(None) };
    let words = words(policies);
    let markings: Vec<String> = file.classification.markings.keys().cloned().collect();
    let mut actions = BTreeMap::new();
    let masked = written.mask.iter().map(|name| (name, Action::Mask));
    let stopped = written.stop.iter().map(|name| (name, Action::Stop));
    for (name, action) in masked.chain(stopped) {
        known(name, &markings, &words)?;
        if actions.insert(name.value.clone(), action).is_some() {
            return Err((name.referenced, format!("`answers` names `{}` twice", name.value)));
        }
    }
    Ok((!actions.is_empty()).then(|| Rules::new(&actions, &markings, &words)))
}

fn known(name: &Placed, markings: &[String], words: &BTreeMap<String, Vec<String>>) -> Result<(), Fault> {
    let written = name.value.as_str();
    if written == MARKING && markings.is_empty() {
        return Err((name.referenced, "`marking` stands for `classification.markings`, and there is none".to_owned()));
    }
    if Kind::from_name(written).is_some() || [MARKING, PRIVATE_KEY].contains(&written) || words.contains_key(written) {
        return Ok(());
    }
    let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).chain([PRIVATE_KEY, MARKING]).collect();
    let what = format!(
        "unknown kind `{written}`; expected one of {}, or a kind under `words` of a policy builtin:redaction",
        kinds.join(", ")
    );
    Err((name.referenced, what))
}

fn words(policies: &[Policy]) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for policy in policies.iter().filter(|policy| policy.builtin && !policy.shadow) {
        let Some(kinds) = policy.config.get("words").and_then(serde_json::Value::as_object) else { continue };
        for (kind, list) in kinds {
            let list = list.as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
            all.entry(kind.clone()).or_default().extend(list.map(str::to_owned));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;

    fn read(more: &str) -> Result<bool, String> {
        let text = format!(
            "listen: 127.0.0.1:8443\nadmin: 127.0.0.1:9443\nstate_dir: state\ntrust: {{domain: b.test}}\n\
             identities: [{{match: spiffe://b.test/clerk/*}}]\n\
             policies: [{{name: mask, component: 'builtin:redaction', config: {{words: {{customer: [Globex]}}}}}}]\n{more}\n"
        );
        let config = parse(&text, Path::new("/etc/postern/postern.yaml")).map_err(|error| error.to_string())?;
        Ok(config.policy_part.answers.is_some())
    }

    #[test]
    fn what_is_named_must_exist_and_have_one_meaning() {
        assert_eq!(read(""), Ok(false));
        assert_eq!(read("answers: {}"), Ok(false));
        assert_eq!(read("answers: {mask: [secret, private-key, customer]}"), Ok(true));
        assert_eq!(read("answers: {stop: [marking]}\nclassification: {markings: {机密: classified}}"), Ok(true));
        for (more, expected) in [
            ("answers: {mask: [secrets]}", "7:18: unknown kind `secrets`"),
            ("answers: {stop: [marking]}", "7:18: `marking` stands for `classification.markings`"),
            ("answers: {mask: [email], stop: [email]}", "7:33: `answers` names `email` twice"),
            ("answers: {hide: [email]}", "hide"),
        ] {
            let error = read(more).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
