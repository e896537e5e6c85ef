//! An answer broke off, and another target is to go on with it. What the client has of it goes the way of a request's text before
//! anybody sees it: classified, looked at by the redaction policies that the request was decided with, and masked.

use postern_plugins::CallContext;

use super::Chain;
use crate::classify::ClassifiedBeginning;
use crate::dispatch::Answer;
use crate::error::Error;
use crate::redact;
use crate::redact::beginning::MaskedBeginning;
use crate::route::health::Step;
use crate::route::heard::{Fate, Heard};
use crate::upstream::AttemptError;

impl Chain {
    /// Asks those for the rest who may see the beginning. If there is none, says why in a word for the record.
    pub(super) async fn ask_others(
        &mut self,
        text: &str,
        tokens: u64,
        broken: (&str, &AttemptError),
    ) -> Result<Answer, &'static str> {
        let from = match text {
            "" => None,
            _ => {
                let begun = self.classify(text, tokens).await.map_err(|error| error.code())?;
                Some(self.mask(begun).await.map_err(|error| error.code())?)
            }
        };
        if from.is_some() {
            self.restoration.passed(text);
        }
        let (past, attempts) = (&mut self.going_on.past, &mut self.exchange.outcome.attempts);
        self.gateway.dispatcher.go_on(&self.request, from.as_ref(), broken, past, attempts).await
    }

    /// The record tells a label that is above the request's, also if it is too high for the client.
    async fn classify(&mut self, text: &str, tokens: u64) -> Result<ClassifiedBeginning, Error> {
        let classified = self.request.masked().classified();
        let outcome = &mut self.exchange.outcome;
        let begun = self.gateway.classifier.classify_beginning(classified, text, tokens).await;
        match &begun {
            Ok(begun) if begun.label() > classified.label() => {
                outcome.label = Some(self.gateway.config.labels.name(begun.label()).to_owned());
                outcome.label_sources = begun.sources().to_vec();
            }
            Ok(_) => {}
            Err(Error::LabelRefused { label, .. }) => outcome.label = Some(label.clone()),
            Err(_) => {}
        }
        begun
    }

    async fn mask(&mut self, begun: ClassifiedBeginning) -> Result<MaskedBeginning, Error> {
        let config = &self.gateway.config;
        let policies = &self.going_on.policies;
        let is_cleared = config.is_cleared(begun.label());
        let label = config.labels.name(begun.label());
        let tenant = self.request.masked().classified().request().peer.tenant.clone();
        // As with a request: policies are about to read what nobody elsewhere may, and what is spent must not tell of it.
        self.exchange.stays |= config.clears_anything() && !is_cleared && policies.count_at(Step::Redaction);
        let context = CallContext { tenant: &tenant, label, seed: self.exchange.record.seed(), time_ms: None };
        let mut heard = Heard::default();
        let masked =
            redact::beginning::mask(&self.gateway, policies, &context, &mut self.request, begun, &mut heard).await;
        if let Ok(masked) = &masked {
            heard.settle(if is_cleared { Fate::Commit(label) } else { Fate::Drop });
            if is_cleared {
                masked.counts().iter().for_each(|(kind, count)| self.gateway.metrics.redacted(kind, *count));
            }
        }
        self.exchange.outcome.policies.extend(heard.into_said());
        masked
    }
}
