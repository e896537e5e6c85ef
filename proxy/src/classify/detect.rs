//! What the host recognises in the text by itself: detectors and markings that the operator gave a label.

use std::collections::BTreeMap;
use std::sync::Arc;

use postern_plugins::Joint;
use postern_plugins::detectors::{self, Kind};
use postern_text::encoded::Encodings;
use postern_text::{Readings, folded};
use postern_wire::json::Map;
use tokio::sync::Semaphore;

use super::label::Label;
use crate::config::Classification;
use crate::redact::joints::joints;
use crate::redact::segments;

/// Requests with more bytes of text than this are scanned off the worker threads, which have other requests to serve.
const INLINE_BYTES: usize = 64 << 10;
/// So many of them at once; the others wait, for the request's own deadline at most.
const MAX_SCANS: usize = 4;

/// Scans requests by the rules of a configuration.
#[derive(Debug)]
pub(super) struct Scanner {
    rules: Arc<Rules>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Rules {
    detect: Vec<(Kind, Label)>,
    /// Folded, since that is how texts are compared with them.
    markings: Vec<(String, Label)>,
    decode: Encodings,
    join_messages: bool,
}

/// Each rule that found something, with its label.
type Found = BTreeMap<String, Label>;

impl Scanner {
    pub(super) fn new(rules: &Classification) -> Self {
        let markings = rules.markings.iter().map(|(marking, label)| (folded(marking), *label)).collect();
        let (decode, join_messages) = (rules.decode, rules.join_messages);
        let rules = Rules { detect: rules.detect.clone(), markings, decode, join_messages };
        Self { rules: Arc::new(rules), room: Arc::new(Semaphore::new(MAX_SCANS)) }
    }

    pub(super) async fn labels(&self, body: &Map) -> Found {
        if self.rules.are_none() {
            return Found::new();
        }
        let segments = segments(body);
        let joints = joints(body, &segments, self.rules.join_messages);
        let texts = segments.iter().map(|segment| &*segment.text);
        self.labels_of(texts.chain(joints.iter().map(Joint::text)).collect()).await
    }

    pub(super) async fn labels_of(&self, texts: Vec<&str>) -> Found {
        if self.rules.are_none() {
            return Found::new();
        }
        if texts.iter().map(|text| text.len()).sum::<usize>() <= INLINE_BYTES {
            return self.rules.scan(texts.into_iter());
        }
        let texts: Vec<String> = texts.into_iter().map(str::to_owned).collect();
        let Ok(room) = Arc::clone(&self.room).acquire_owned().await else { return self.rules.worst() };
        let rules = Arc::clone(&self.rules);
        let scan = tokio::task::spawn_blocking(move || {
            let _room = room;
            rules.scan(texts.iter().map(String::as_str))
        });
        // What could not be looked at may have anything in it.
        scan.await.unwrap_or_else(|_| self.rules.worst())
    }
}

impl Rules {
    fn are_none(&self) -> bool {
        self.detect.is_empty() && self.markings.is_empty()
    }

    fn scan<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Found {
        let mut found = Found::new();
        // One find of a kind is enough.
        let mut missing: Vec<Kind> = self.detect.iter().map(|(kind, _)| *kind).collect();
        for text in texts {
            let readings = Readings::of(text);
            for (_, text) in readings.texts() {
                self.scan_one(text, &mut missing, &mut found);
                for run in self.decode.decoded(text) {
                    self.scan_one(&run.text, &mut missing, &mut found);
                }
            }
        }
        found
    }

    fn scan_one(&self, text: &str, missing: &mut Vec<Kind>, found: &mut Found) {
        for hit in detectors::find(missing, text) {
            if let Some((kind, label)) = self.detect.iter().find(|(kind, _)| *kind == hit.kind) {
                found.insert(format!("detector:{}", kind.name()), *label);
                missing.retain(|missing| missing != kind);
            }
        }
        self.mark(text, found);
    }

    fn mark(&self, text: &str, found: &mut Found) {
        if self.markings.is_empty() {
            return;
        }
        let text = folded(text);
        for (_, label) in self.markings.iter().filter(|(marking, _)| text.contains(marking)) {
            let entry = found.entry("marking".to_owned()).or_insert(*label);
            *entry = entry.join(*label);
        }
    }

    fn worst(&self) -> Found {
        let labels = self.detect.iter().map(|(_, label)| label).chain(self.markings.iter().map(|(_, label)| label));
        labels.max().map(|label| ("not-scanned".to_owned(), *label)).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use postern_wire::json::json;

    use super::*;
    use crate::classify::label::Labels;

    fn scanner() -> (Scanner, [Label; 2]) {
        let labels = Labels::new(["public", "internal", "secret"].map(str::to_owned).to_vec()).unwrap();
        let [internal, secret] = ["internal", "secret"].map(|name| labels.by_name(name).unwrap());
        let marking = |text: &str| (text.to_owned(), secret);
        let rules = Classification {
            detect: vec![(Kind::Email, internal), (Kind::Phone, internal)],
            markings: vec![marking("机密"), marking("SECRET//"), marking("Top Secret"), marking("N.F.")],
            decode: Encodings { base64: true, url: true },
            join_messages: false,
            opaque: secret,
            ..Classification::default()
        };
        (Scanner::new(&rules), [internal, secret])
    }

    async fn found(text: &str) -> Vec<(String, Label)> {
        let body = json!({"messages": [{"role": "user", "content": text}]});
        scanner().0.labels(body.as_object().unwrap()).await.into_iter().collect()
    }

    #[tokio::test]
    async fn markings_are_seen_through_disguises() {
        let (_, [_, secret]) = scanner();
        for text in [
            "本文件为机密。",
            "机\u{200b}密",
            "机 密",
            "secret//noforn",
            "ＳＥＣＲＥＴ／／",
            "se\u{ad}cret//",
            "SECRET\u{2215}\u{2215}",
            "TOP\u{a0}SECRET",
            "top\n  secret",
            r#"{"note": "\u673a\u5bc6"}"#,
            r#"{"note": "top\nsecret"}"#,
            r#"{"args": "{\"note\": \"SECRET\\u002f/\"}"}"#,
            "N·F·",
            "n。f。",
        ] {
            assert_eq!(found(text).await, [("marking".to_owned(), secret)], "{text}");
        }
        for text in ["机会密集", "a secret", "https://secret.example", "topsecret", "nf"] {
            assert_eq!(found(text).await, [], "{text}");
        }
    }

    #[tokio::test]
    async fn detectors_read_escapes() {
        let (_, [internal, _]) = scanner();
        assert_eq!(found(r#"{"to": "li\u0040example.com"}"#).await, [("detector:email".to_owned(), internal)]);
        assert_eq!(found(r#"{"to": "li example.com"}"#).await, []);
    }

    #[tokio::test]
    async fn what_is_encoded_or_split_over_parts_is_seen() {
        let (_, [internal, secret]) = scanner();
        for text in ["bGlAZXhhbXBsZS5jb20=", "to=li%40example.com", r#"{"x": "bGlAZXhhbXBsZS5jb20"}"#] {
            assert_eq!(found(text).await, [("detector:email".to_owned(), internal)], "{text}");
        }
        assert_eq!(found("本文件为 5py65a+GIOaWh+S7tg==").await, [("marking".to_owned(), secret)]);
        let body = json!({"messages": [{"role": "user", "content": [{"text": "li@exam"}, {"text": "ple.com"}]}]});
        assert_eq!(
            scanner().0.labels(body.as_object().unwrap()).await,
            [("detector:email".to_owned(), internal)].into()
        );
    }

    /// One thread for everything: if the scan held it, the other task could not count.
    #[tokio::test(flavor = "current_thread")]
    async fn others_go_on_while_a_long_text_is_scanned() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let turns = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&turns);
        let other = tokio::spawn(async move {
            loop {
                tokio::task::yield_now().await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let found = found(&("4 ".repeat(2 << 20) + "li@example.com")).await;
        other.abort();
        assert_eq!(found.len(), 1);
        let turns = turns.load(Ordering::Relaxed);
        assert!(turns > 100, "{turns} turns");
    }
}
