//! The manifest of a policy: what it is, which interfaces it has, what it asks to see. JSON in the custom section
//! `postern:manifest` of the component, so that a policy is one file.

use std::collections::BTreeSet;

use semver::Version;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::{MAX_PARTS, MAX_TEXT_BYTES};
use crate::error::PluginError;
use crate::metrics::{MAX_METRICS, is_metric_name};
use crate::policy::Grants;
use crate::schema::ConfigSchema;
use crate::section;

/// The custom section that it is in.
pub const MANIFEST_SECTION: &str = "postern:manifest";
/// The longest manifest, as JSON text.
pub const MAX_MANIFEST_BYTES: usize = 128 << 10;
/// Bytes of the name of a policy.
const MAX_POLICY_NAME_BYTES: usize = 64;
const MAX_HEADER_NAME_BYTES: usize = 64;

/// Headers that carry credentials. Neither can a manifest ask for them nor an operator grant them.
const NEVER_GRANTED: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];
/// Headers of Postern itself; what they say is in the facts, judged.
const OWN_HEADERS: &str = "postern-";

/// What a policy says of itself. A key that is not known here is an error: it could ask for something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1 to 64 of a–z, 0–9 and `-`, the first a letter.
    pub name: String,
    /// As <https://semver.org> has it.
    pub version: Version,
    /// For people; 1,024 bytes at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The interfaces of `postern:policy` that it exports, all of them and no other: `routing`, `caching`, `redaction`, `startup`.
    #[serde(default)]
    pub interfaces: BTreeSet<String>,
    /// What it asks to see.
    #[serde(default, skip_serializing_if = "Asked::is_nothing")]
    pub grants: Asked,
    /// The names of its numbers for operators.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub metrics: BTreeSet<String>,
    /// JSON Schema, draft 2020-12, of its section of the configuration. See [`ConfigSchema`] for its bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_schema: Option<Value>,
}

/// In place of the name of a header: any.
pub const ANY_HEADER: &str = "*";

/// What a policy asks to see of the content of requests. It gets what the operator grants as well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Headers of requests, in lower case; 16 at most. [`ANY_HEADER`]: whichever the operator names, for a policy whose configuration
    /// says which it looks at.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub headers: BTreeSet<String>,
    /// The text of messages, masked, for `routing` and `caching`. (`redaction` sees text in any case.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub text: bool,
}

impl Asked {
    /// Does it ask for nothing?
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.headers.is_empty() && !self.text
    }

    /// What it gets: what it asks for and the operator grants.
    #[must_use]
    pub fn granted(&self, by_operator: &Grants) -> Grants {
        let any = self.headers.contains(ANY_HEADER);
        let asked = |name: &&String| (any || self.headers.contains(*name)) && may_be_granted(name);
        let headers = by_operator.headers.iter().filter(asked).cloned().collect();
        Grants { headers, text: self.text && by_operator.text }
    }
}

/// May this header, named in lower case, be shown to a policy at all? Not if it carries credentials or is Postern's own.
#[must_use]
pub fn may_be_granted(header: &str) -> bool {
    !NEVER_GRANTED.contains(&header) && !header.starts_with(OWN_HEADERS)
}

impl Manifest {
    /// Reads JSON text and judges it.
    ///
    /// # Errors
    /// [`PluginError::Manifest`]: too long, not JSON, an unknown key, or a field out of its bounds.
    pub fn parse(text: &[u8]) -> Result<Self, PluginError> {
        if text.len() > MAX_MANIFEST_BYTES {
            return Err(wrong(format!("{} bytes, and {MAX_MANIFEST_BYTES} is the most", text.len())));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Adds it to a component, in the place of the one that is there. A signature does not survive that and is taken away.
    ///
    /// # Errors
    /// [`PluginError::Manifest`] if it is out of its bounds, [`PluginError::File`] if that is not a component.
    pub fn add_to(&self, component: &[u8]) -> Result<Vec<u8>, PluginError> {
        self.check()?;
        let text = serde_json::to_vec(self).map_err(|error| wrong(error.to_string()))?;
        if text.len() > MAX_MANIFEST_BYTES {
            return Err(wrong(format!("{} bytes, and {MAX_MANIFEST_BYTES} is the most", text.len())));
        }
        let mut file = section::without(component, &[MANIFEST_SECTION, crate::signature::SIGNATURE_SECTION])?;
        file.extend(section::encode(MANIFEST_SECTION, &text));
        Ok(file)
    }

    fn check(&self) -> Result<(), PluginError> {
        if !is_policy_name(&self.name) {
            let what = format!("`name` must be 1 to {MAX_POLICY_NAME_BYTES} of a-z, 0-9 and `-`, the first a letter");
            return Err(wrong(what));
        }
        if self.version.to_string().len() > MAX_POLICY_NAME_BYTES {
            return Err(wrong(format!("`version` has more than {MAX_POLICY_NAME_BYTES} bytes")));
        }
        let described = self.description.as_deref().unwrap_or_default();
        if described.len() > MAX_TEXT_BYTES || described.chars().any(char::is_control) {
            return Err(wrong(format!("`description` is one line of at most {MAX_TEXT_BYTES} bytes")));
        }
        if self.metrics.len() > MAX_METRICS || !self.metrics.iter().all(|name| is_metric_name(name)) {
            let what = "`metrics` are at most 16 names of 1 to 32 of a-z, 0-9 and `_`, the first a letter";
            return Err(wrong(what.to_owned()));
        }
        self.check_headers()?;
        self.config_schema.as_ref().map_or(Ok(()), |schema| ConfigSchema::new(schema).map(drop))
    }

    fn check_headers(&self) -> Result<(), PluginError> {
        let asked = &self.grants.headers;
        if asked.len() > MAX_PARTS {
            return Err(wrong(format!("`grants.headers` has {} names, and {MAX_PARTS} is the most", asked.len())));
        }
        if !asked.iter().all(|name| is_header_name(name)) {
            let what = format!("`grants.headers` are names in lower case, of at most {MAX_HEADER_NAME_BYTES} bytes");
            return Err(wrong(what));
        }
        match asked.iter().find(|name| !may_be_granted(name)) {
            Some(name) => Err(wrong(format!("`grants.headers` asks for `{name}`, which no policy may see"))),
            None => Ok(()),
        }
    }

    /// Does it list what the component exports?
    pub(crate) fn fits(&self, exported: &BTreeSet<String>) -> Result<(), PluginError> {
        if self.interfaces == *exported {
            return Ok(());
        }
        let list = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let (says, has) = (list(&self.interfaces), list(exported));
        Err(wrong(format!("`interfaces` says [{says}], but the component exports [{has}]; they must be equal")))
    }
}

/// May a policy be called that in its manifest? 1 to 64 of a–z, 0–9 and `-`, the first a letter.
#[must_use]
pub fn is_policy_name(name: &str) -> bool {
    name.len() <= MAX_POLICY_NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
}

/// A field name (RFC 9110, section 5.1), in lower case.
fn is_header_name(name: &str) -> bool {
    let token = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&c);
    !name.is_empty() && name.len() <= MAX_HEADER_NAME_BYTES && name.bytes().all(token)
}

fn wrong(what: String) -> PluginError {
    PluginError::Manifest(what)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(changed: &str, to: Value) -> Result<Manifest, PluginError> {
        let mut manifest = json!({"name": "night-shift", "version": "1.2.0", "interfaces": ["routing"],
            "grants": {"headers": ["x-department"], "text": true}, "metrics": ["kept"], "config_schema": {"type": "object"}});
        manifest[changed] = to;
        Manifest::parse(manifest.to_string().as_bytes())
    }

    #[test]
    fn what_is_written_can_be_read() {
        let manifest = parsed("description", json!("Keeps the night local.")).unwrap();
        assert_eq!(Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap(), manifest);
        let least = br#"{"name": "a", "version": "0.1.0", "interfaces": ["caching"]}"#;
        let least = Manifest::parse(least).unwrap();
        assert!(least.grants.is_nothing() && least.metrics.is_empty());
        assert_eq!(
            serde_json::to_string(&least).unwrap(),
            r#"{"name":"a","version":"0.1.0","interfaces":["caching"]}"#
        );
    }

    #[test]
    fn every_field_has_its_bounds_and_its_words() {
        let many: Vec<_> = (0..17).map(|i| format!("m{i}")).collect();
        for (field, value, word) in [
            ("name", json!("Night"), "`name`"),
            ("name", json!("n".repeat(65)), "`name`"),
            ("version", json!("1.2"), "minor"),
            ("version", json!(format!("1.2.3-{}", "a".repeat(80))), "`version`"),
            ("description", json!("two\nlines"), "`description`"),
            ("description", json!("d".repeat(1025)), "`description`"),
            ("metrics", json!(["Not_A_Name"]), "`metrics`"),
            ("metrics", json!(many), "`metrics`"),
            ("grants", json!({"headers": many}), "16 is the most"),
            ("grants", json!({"headers": ["X-Department"]}), "lower case"),
            ("grants", json!({"headers": ["authorization"]}), "no policy may see"),
            ("grants", json!({"headers": ["cookie"]}), "no policy may see"),
            ("grants", json!({"headers": ["postern-label"]}), "no policy may see"),
            ("grants", json!({"files": true}), "unknown field `files`"),
            ("imports", json!([]), "unknown field `imports`"),
            ("config_schema", json!({"type": "objekt"}), "config_schema"),
            ("config_schema", json!({"description": "d".repeat(MAX_MANIFEST_BYTES)}), "is the most"),
        ] {
            let said = parsed(field, value).unwrap_err().to_string();
            assert!(said.contains(word), "{field}: {said}");
        }
    }

    #[test]
    fn what_is_granted_was_asked_for_and_given() {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let asked = Asked { headers: set(&["x-a", "x-b"]), text: true };
        let given = Grants { headers: set(&["x-b", "x-c"]), text: false };
        assert_eq!(asked.granted(&given), Grants { headers: set(&["x-b"]), text: false });
        assert!(asked.granted(&Grants { text: true, ..Grants::default() }).text);
        let any = Asked { headers: set(&["*"]), text: false };
        let given = Grants { headers: set(&["x-b", "cookie"]), text: true };
        assert_eq!(any.granted(&given), Grants { headers: set(&["x-b"]), text: false });
        let forbidden = Asked { headers: set(&["cookie"]), text: false };
        assert!(forbidden.granted(&Grants { headers: set(&["cookie"]), text: true }).headers.is_empty());
    }
}
