//! What becomes of what a model made: the section `answers`.

use std::collections::BTreeMap;
use std::sync::Arc;

use postern_plugins::detectors::Kind;

use super::file::{File, Placed};
use super::policies::{Fault, Policy};
use crate::screen::{Action, MARKING, PRIVATE_KEY, Rules};

/// The most names of tools.
const MAX_TOOLS: usize = 256;

/// What becomes of what a model made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerPart {
    /// What of it is masked, or ends the answer; `None`: it is not looked at.
    pub rules: Option<Arc<Rules>>,
    /// Tools whose arguments get values back.
    pub tools: Arc<Tools>,
}

/// Names of tools; one that ends with `*` stands for all that begin so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tools(Vec<String>);

impl Tools {
    /// Which of them a tool is, the first that fits.
    #[must_use]
    pub fn place_of(&self, tool: &str) -> Option<usize> {
        let fits = |name: &String| match name.strip_suffix('*') {
            Some(beginning) => tool.starts_with(beginning),
            None => tool == name,
        };
        self.0.iter().position(fits).filter(|_| !tool.is_empty())
    }

    /// What the configuration calls it.
    #[must_use]
    pub fn name(&self, place: usize) -> Option<&str> {
        self.0.get(place).map(String::as_str)
    }
}

#[cfg(test)]
impl<const N: usize> From<[&str; N]> for Tools {
    fn from(names: [&str; N]) -> Self {
        Self(names.map(str::to_owned).into())
    }
}

pub(super) fn answers(file: &File, policies: &[Policy]) -> Result<AnswerPart, Fault> {
    Ok(AnswerPart { rules: rules(file, policies)?.map(Arc::new), tools: Arc::new(tools(file)?) })
}

fn tools(file: &File) -> Result<Tools, Fault> {
    let written = file.answers.as_ref().map_or(&[][..], |answers| &answers.restore_arguments);
    let mut names: Vec<String> = Vec::new();
    for name in written {
        let at = name.referenced;
        if names.len() == MAX_TOOLS {
            return Err((at, format!("{MAX_TOOLS} tools is the most; a name that ends with * stands for many")));
        }
        let bare = name.value.strip_suffix('*').unwrap_or(&name.value);
        // As the API has them, and those of other servers with dots and slashes.
        let is_name = bare.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':'));
        if !is_name || name.value.is_empty() {
            let what = format!(
                "`{}` is no name of a tool; expected letters, digits and _-./: with a * at the end, if it stands for several",
                name.value
            );
            return Err((at, what));
        }
        if names.contains(&name.value) {
            return Err((at, format!("`answers.restore_arguments` names `{}` twice", name.value)));
        }
        names.push(name.value.clone());
    }
    Ok(Tools(names))
}

/// The words of the redaction policies that count are the office's; the section says which kinds of them matter in answers.
fn rules(file: &File, policies: &[Policy]) -> Result<Option<Rules>, Fault> {
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
    use super::Tools;

    fn read(more: &str) -> Result<bool, String> {
        let text = format!(
            "listen: 127.0.0.1:8443\nadmin: 127.0.0.1:9443\nstate_dir: state\ntrust: {{domain: b.test}}\n\
             identities: [{{match: spiffe://b.test/clerk/*}}]\n\
             policies: [{{name: mask, component: 'builtin:redaction', config: {{words: {{customer: [Globex]}}}}}}]\n{more}\n"
        );
        let config = parse(&text, Path::new("/etc/postern/postern.yaml")).map_err(|error| error.to_string())?;
        Ok(config.policy_part.answers.rules.is_some())
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
            ("answers: {restore_arguments: [send mail]}", "7:31: `send mail` is no name of a tool"),
            ("answers: {restore_arguments: ['*a']}", "7:31: `*a` is no name of a tool"),
            ("answers: {restore_arguments: [a, a]}", "7:34: `answers.restore_arguments` names `a` twice"),
        ] {
            let error = read(more).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(read("answers: {restore_arguments: [send_mail, 'crm/*']}"), Ok(false));
    }

    #[test]
    fn a_tool_is_listed_by_its_whole_name_or_the_beginning_of_it() {
        let tools = Tools::from(["send_mail", "crm.*", "crm.find"]);
        let named = |tool| tools.place_of(tool).and_then(|place| tools.name(place));
        assert_eq!(named("send_mail"), Some("send_mail"));
        assert_eq!([named("crm.find"), named("crm.")], [Some("crm.*"); 2]);
        assert_eq!([named("send_mails"), named("Send_mail"), named("crm"), named("")], [None; 4]);
        assert_eq!(Tools::from(["*"]).place_of(""), None);
    }
}
