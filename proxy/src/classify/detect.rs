//! What the host recognises in the text by itself: detectors and markings that the operator gave a label.

use std::collections::BTreeMap;

use postern_plugins::detectors;
use serde_json::{Map, Value};

use super::label::Label;
use crate::config::Classification;
use crate::redact::segments;

/// Each rule that found something, with its label.
pub(super) fn labels(rules: &Classification, body: &Map<String, Value>) -> BTreeMap<String, Label> {
    let mut found = BTreeMap::new();
    if rules.detect.is_empty() && rules.markings.is_empty() {
        return found;
    }
    let kinds: Vec<_> = rules.detect.iter().map(|(kind, _)| *kind).collect();
    for segment in segments(body) {
        for hit in detectors::find(&kinds, segment.text) {
            if let Some((kind, label)) = rules.detect.iter().find(|(kind, _)| *kind == hit.kind) {
                found.insert(format!("detector:{}", kind.name()), *label);
            }
        }
        if !rules.markings.is_empty() {
            let text = segment.text.to_lowercase();
            for (_, label) in rules.markings.iter().filter(|(marking, _)| text.contains(&marking.to_lowercase())) {
                let entry = found.entry("marking".to_owned()).or_insert(*label);
                *entry = entry.join(*label);
            }
        }
    }
    found
}
