//! The beginning of an answer that broke off, for another target to go on from. To that target it is a text that leaves like those of
//! the request: what one model may write for this client, another one need not be cleared to read.

use std::collections::BTreeMap;
use std::ops::Range;

use postern_plugins::{CallContext, Joined, Span, TextSegment};

use super::mask_text;
use super::restore::placeholders;
use super::vault::Suffix;
use crate::classify::ClassifiedBeginning;
use crate::classify::label::Label;
use crate::decide::{Form, PlannedRequest};
use crate::error::Error;
use crate::gateway::Gateway;
use crate::route::Policies;
use crate::route::answers::joined;
use crate::route::health::Step;
use crate::route::heard::Heard;

/// A beginning that may be shown to targets that clear its label. Made only by [`mask`].
#[derive(Debug)]
pub struct MaskedBeginning {
    text: String,
    tokens: u64,
    label: Label,
    counts: BTreeMap<String, u64>,
    complete: bool,
}

impl MaskedBeginning {
    /// The text, in the form of the plan.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// About how many tokens it has.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The request's label, joined with what was found in the text.
    #[must_use]
    pub fn label(&self) -> Label {
        self.label
    }

    /// How many values of each kind were masked, beside those that were placeholders already.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// False if a policy failed that should have looked, or none needed to: then the text stays on this machine.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }
}

/// Lets every redaction policy look at the beginning of the answer to `request`, and masks what they find, for the vault of the request:
/// whoever goes on may repeat it. What they say and write goes to `heard`.
///
/// # Errors
/// A policy failed whose configuration says `on_failure: reject`.
pub async fn mask(
    gateway: &Gateway,
    policies: &Policies,
    context: &CallContext<'_>,
    request: &mut PlannedRequest,
    begun: ClassifiedBeginning,
    heard: &mut Heard,
) -> Result<MaskedBeginning, Error> {
    let label = begun.label();
    let (text, tokens) = begun.into_text();
    let counts = BTreeMap::new();
    if request.plan().form == Form::Plain {
        return Ok(MaskedBeginning { text, tokens, label, counts, complete: false });
    }
    if !policies.count_at(Step::Redaction) {
        return Ok(MaskedBeginning { text, tokens, label, counts, complete: true });
    }
    let segments = [TextSegment { id: 0, role: "assistant".to_owned(), text }];
    let found = policies.find(&gateway.config, label, context, &segments, heard).await?;
    let Joined { masked: spans, .. } = joined(&found.finds);
    let [TextSegment { text, .. }] = segments;
    let spans = around(&spans, &placeholders(request.masked().vault(), Suffix::Wire, &text));
    let mut counts = counts;
    for span in &spans {
        if let Some(value) = text.get(span.start as usize..span.end as usize) {
            request.keep(&span.kind, value);
            *counts.entry(span.kind.clone()).or_insert(0) += 1;
        }
    }
    let text = mask_text(&text, &spans, request.masked().vault(), Suffix::Wire);
    Ok(MaskedBeginning { text, tokens, label, counts, complete: found.complete })
}

/// What of `spans` is in none of `placeholders`, which are masked already: one that was masked again would be restored to a placeholder.
/// Both are in the order of the text, and neither overlap among themselves.
fn around(spans: &[Span], placeholders: &[Range<usize>]) -> Vec<Span> {
    let mut rest = Vec::new();
    for span in spans {
        let mut from = span.start;
        for placeholder in placeholders {
            let (start, end) = (placeholder.start as u32, placeholder.end as u32);
            if end <= from || start >= span.end {
                continue;
            }
            if from < start {
                rest.push(Span { start: from, end: start, ..span.clone() });
            }
            from = end;
        }
        if from < span.end {
            rest.push(Span { start: from, ..span.clone() });
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use postern_plugins::SpanAction;
    use proptest::prelude::*;

    use super::*;
    use crate::classify::Conversation;
    use crate::keys::Keys;
    use crate::redact::restore::Restorer;
    use crate::redact::vault::Vault;

    fn span(start: usize, end: usize) -> Span {
        Span { segment: 0, start: start as u32, end: end as u32, kind: "secret".into(), action: SpanAction::Mask }
    }

    fn vault() -> Vault {
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        vault.keep("email", "ann@example.org");
        vault
    }

    fn masked(vault: &mut Vault, text: &str, spans: &[Span]) -> String {
        let spans = around(spans, &placeholders(vault, Suffix::Wire, text));
        for span in &spans {
            vault.keep(&span.kind, text.get(span.start as usize..span.end as usize).unwrap());
        }
        mask_text(text, &spans, vault, Suffix::Wire)
    }

    #[test]
    fn what_is_masked_already_is_not_masked_again() {
        let mut vault = vault();
        let ann = vault.placeholder("email", "ann@example.org", Suffix::Wire);
        let text = format!("password: {ann} and swordfish{ann}x, [EMAIL_1_aaaaaaaa]");
        let at = |part: &str| text.find(part).unwrap();
        let spans =
            [span(10, 10 + ann.len()), span(at("swordfish"), at("x, ") + 1), span(at("[EMAIL_1_aaaaaaaa"), text.len())];
        let out = masked(&mut vault, &text, &spans);
        let [fish, x, foreign] =
            ["swordfish", "x", "[EMAIL_1_aaaaaaaa]"].map(|value| vault.placeholder("secret", value, Suffix::Wire));
        assert_eq!(out, format!("password: {ann} and {fish}{ann}{x}, {foreign}"));
        // The second time, when that one broke off as well, nothing is left to find.
        let all = [span(0, out.len())];
        assert_eq!(placeholders(&vault, Suffix::Wire, &out).len(), 5);
        assert!(masked(&mut vault, &out, &all).matches("[EMAIL_").count() == 2);
    }

    proptest! {
        #[test]
        fn whatever_policies_find_the_client_can_be_given_back(
            words in proptest::collection::vec(0usize..6, 1..12),
            cuts in proptest::collection::vec(0usize..300, 0..10),
        ) {
            let mut vault = vault();
            let ann = vault.placeholder("email", "ann@example.org", Suffix::Wire);
            let words = words.into_iter().map(|word| ["[", "四", " pin 4711 ", "]", "[EMAIL_1_", ann.as_str()][word]);
            let text = words.collect::<String>();
            let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| text.is_char_boundary(*cut)).collect();
            cuts.sort_unstable();
            cuts.dedup();
            let spans: Vec<_> = cuts.chunks_exact(2).map(|pair| span(pair[0], pair[1])).collect();
            let out = masked(&mut vault, &text, &spans);
            prop_assert_eq!(out.matches(&ann).count(), text.matches(&ann).count());
            for part in around(&spans, &placeholders(&vault, Suffix::Wire, &text)) {
                prop_assert!(part.start < part.end);
            }
            // Back again, once.
            let restored = Restorer::new(Suffix::Wire).whole(&vault, &out).restored;
            prop_assert_eq!(restored, text.replace(&ann, "ann@example.org"));
        }
    }
}
