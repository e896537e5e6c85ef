//! Records as they are written: an object of JSON in one line, with the ID and kind first.

use postern_tlog::MAX_ENTRY;
use serde::Serialize;
use serde_json::{Map, Value};

use super::timestamp;

/// What somebody did with the gateway itself.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Action {
    /// Who: a SPIFFE ID; `loopback`: somebody on this machine; `file` or `signal`: whoever changed the configuration or sent SIGHUP;
    /// `authority`: whoever changed what is trusted, on the command line or here.
    pub by: String,
    /// What, as a fixed word.
    pub action: &'static str,
    /// With what, such as the identity whose certificate was revoked, or the SHA-256 of the configuration that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// `asked`, and then `done`, `failed` or `refused`.
    pub result: &'static str,
}

/// The log about itself.
#[derive(Debug, Default, Serialize)]
pub(super) struct Notice {
    /// `removed`, `replaced`, `cut` or `extended`: what somebody else did to the journal. `retention`: what is past its time is about
    /// to be deleted. `unrecorded`: there are answers without a record. `unwritable`: nothing could be written for so long. `unsigned`: what a
    /// killed gateway left had no signature yet, and was taken as it stood. `foreign`: what somebody wrote after a gateway had ended was
    /// set aside. `witness`: a witness, its name is the `subject`, has seen so many `records`, or others, when there were those before
    /// `from`. `copy`: so has the copy at the gateway `subject`. `copied`: of the log `subject` so many `records` are here, and it has
    /// signed another history of those before `from`. `roster`: the logs that belong together are others now.
    pub(super) what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes_expected: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes_found: Option<u64>,
    /// The segment whose end is past its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) segment: Option<String>,
    /// Records with lower numbers are deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<u64>,
    /// The first of the records that had no signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<u64>,
    /// How many there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) records: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seconds: Option<u64>,
    /// Whom or what it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<String>,
    /// Of a roster: each change has the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<u64>,
    /// How many logs it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logs: Option<u64>,
    /// What tells its text from any other of that generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
    /// How many answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) requests: Option<u64>,
}

/// The gateway began, or ended in order.
#[derive(Debug, Serialize)]
pub(super) struct Began {
    pub(super) version: &'static str,
    /// SHA-256 of the configuration that it was started with.
    pub(super) configuration: String,
    /// It can reach nobody, as long as it runs.
    pub(super) offline: bool,
    /// Requests that the gateway before left without an outcome: it was killed.
    pub(super) interrupted: usize,
    /// How many logs this gateway has begun, this one with them. Where it is the first record, that says how many there are before.
    pub(super) logs: usize,
}

/// A record. One that is longer than a record may be loses its largest fields, and names them.
pub(super) fn line(record: impl Serialize, kind: &'static str, body: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Whole<'a, R, T> {
        record: R,
        kind: &'static str,
        time: String,
        #[serde(flatten)]
        body: &'a T,
    }
    let bytes = serde_json::to_vec(&Whole { record, kind, time: timestamp(), body }).unwrap_or_default();
    if bytes.len() <= MAX_ENTRY { bytes } else { shortened(&bytes) }
}

fn shortened(bytes: &[u8]) -> Vec<u8> {
    let mut fields: Map<String, Value> = serde_json::from_slice(bytes).unwrap_or_default();
    let mut left_out = Vec::new();
    loop {
        fields.insert("left_out".into(), Value::from(left_out.clone()));
        let bytes = serde_json::to_vec(&fields).unwrap_or_default();
        if bytes.len() <= MAX_ENTRY {
            return bytes;
        }
        let size = |value: &Value| value.to_string().len();
        let largest =
            fields.iter().filter(|(name, _)| name.as_str() != "left_out").max_by_key(|(_, value)| size(value));
        let Some(name) = largest.map(|(name, _)| name.clone()) else { return bytes };
        fields.shift_remove(&name);
        left_out.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_left_out_and_named() {
        #[derive(Serialize)]
        struct Long {
            identity: &'static str,
            policies: Vec<String>,
            attempts: Vec<String>,
        }
        let long = Long {
            identity: "spiffe://branch/clerk",
            policies: vec!["p".repeat(50); 2000],
            attempts: vec!["a".repeat(50); 1900],
        };
        let bytes = line("1", "outcome", &long);
        assert!(bytes.len() <= MAX_ENTRY);
        let read: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(read["left_out"], serde_json::json!(["policies", "attempts"]));
        assert_eq!((&read["record"], &read["identity"]), (&"1".into(), &"spiffe://branch/clerk".into()));
    }
}
