//! The label of a request: the join of everything that can raise one.
//!
//! Why it is here and not in a plugin: a plugin may raise the label later, but no plugin can undo what is found here.

pub mod clearance;
mod detect;
pub mod label;
pub mod route;
pub(crate) mod taint;

use std::sync::Arc;

use data_encoding::HEXLOWER;
use postern_wire::call::Call;
use postern_wire::json;
use postern_wire::json::Value;
use serde::Serialize;

use crate::config::Config;
use crate::error::Error;
use crate::keys::Keys;
use crate::request::ParsedRequest;
use crate::store::Store;
use detect::Scanner;
use label::{Label, Labels};
use route::Routes;
use taint::{AnswerReading, Fresh, Taint, Who};

/// Why a label is what it is; goes into the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// `floor`, `route`, `header`, `detector:…`, `marking`, `opaque`, `taint:text`, `taint:conversation`, `taint:evicted`, `taint:unavailable`, `policy:…`.
    pub source: String,
    /// The label that it called for.
    pub label: String,
}

/// A conversation of one identity of one tenant, as a keyed hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conversation(pub [u8; 32]);

impl Conversation {
    /// For plugins: the same for the same conversation, and of no use outside.
    #[must_use]
    pub fn to_hex(self) -> String {
        HEXLOWER.encode(self.0.split_at(16).0)
    }
}

/// A request whose label is known. Made only by [`Classifier::classify`].
#[derive(Debug)]
pub struct ClassifiedRequest {
    request: ParsedRequest,
    /// As far as it is known.
    known: Label,
    sources: Vec<Source>,
    conversation: Conversation,
    who: Who,
    /// What of the label is for what is said, and not for whoever says it.
    sticky: Label,
    /// It may be higher than anybody can say just now: as high as this.
    doubted: Option<Label>,
}

impl ClassifiedRequest {
    /// What was asked, and by whom.
    #[must_use]
    pub fn request(&self) -> &ParsedRequest {
        &self.request
    }

    /// The label so far.
    #[must_use]
    pub fn label(&self) -> Label {
        self.doubted.unwrap_or(self.known)
    }

    /// What raised it.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// What it belongs to.
    #[must_use]
    pub fn conversation(&self) -> Conversation {
        self.conversation
    }

    /// Whether the label is what all gateways together know; if not, it is the highest.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.doubted.is_none()
    }

    /// Joins `label` to the request's.
    pub(crate) fn raise(&mut self, label: Label, source: Source) {
        self.known = self.known.join(label);
        self.sticky = self.sticky.join(label);
        self.sources.push(source);
    }

    /// It may be higher than anybody can say, so it is the highest. That is no reason to refuse it to somebody who may not have that one: what
    /// stays here may be above a ceiling unknown to everybody.
    pub(crate) fn doubt(&mut self, labels: &Labels) {
        let highest = labels.highest();
        if self.doubted.replace(highest).is_none() {
            self.sources
                .push(Source { source: "taint:unavailable".to_owned(), label: labels.name(highest).to_owned() });
        }
    }

    /// # Errors
    /// The label is above the identity's ceiling.
    pub(crate) fn check(&self, labels: &Labels) -> Result<(), Error> {
        let ceiling = self.request.peer.ceiling;
        if self.known <= ceiling {
            return Ok(());
        }
        let name = |label| labels.name(label).to_owned();
        Err(Error::LabelRefused { label: name(self.known), ceiling: name(ceiling), sources: self.sources.clone() })
    }
}

/// Remembers an answer as it comes, under the label of its request.
#[derive(Debug)]
pub struct Remembering {
    reading: AnswerReading,
    fresh: Fresh,
    label: Label,
}

/// The beginning of an answer whose label is known. Made only by [`Classifier::classify_beginning`].
#[derive(Debug)]
pub struct ClassifiedBeginning {
    text: String,
    tokens: u64,
    label: Label,
    sources: Vec<Source>,
}

impl ClassifiedBeginning {
    /// The request's label, joined with what was found in the text.
    #[must_use]
    pub fn label(&self) -> Label {
        self.label
    }

    /// What was found in the text.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The text, and about how many tokens it has.
    pub(crate) fn into_text(self) -> (String, u64) {
        (self.text, self.tokens)
    }
}

/// Classifies requests.
#[derive(Debug)]
pub struct Classifier {
    labels: Labels,
    opaque: Label,
    routes: Routes,
    scanner: Scanner,
    taint: Taint,
}

impl Classifier {
    /// By the rules of a configuration; `store`: where gateways that stand in for each other remember labels together.
    #[must_use]
    pub fn new(config: &Config, keys: &Keys, store: Option<Arc<Store>>) -> Self {
        Self {
            labels: config.labels.clone(),
            opaque: config.classification.opaque,
            routes: config.classification.routes.clone(),
            scanner: Scanner::new(&config.classification),
            taint: Taint::new(config, keys, store),
        }
    }

    /// Keeps in touch with other gateways that remember labels, for as long as it is polled.
    pub async fn keep_up(&self) {
        self.taint.keep_up().await;
    }

    /// Joins floor, route, header, detectors, markings and taint, and remembers what follows from them.
    ///
    /// # Errors
    /// [`Error::LabelRefused`] if the label is above the identity's ceiling.
    pub async fn classify(&self, keys: &Keys, request: ParsedRequest) -> Result<ClassifiedRequest, Error> {
        let conversation = conversation(keys, &request);
        let who = Who::of(keys, &request);
        let (traces, known) = self.taint.look(&who, &request, conversation).await;
        let source =
            |source: &str, label| Source { source: source.to_owned(), label: self.labels.name(label).to_owned() };

        let (floor, lowest) = (request.peer.floor, self.labels.lowest());
        let mut sources = vec![source("floor", floor)];
        let route = self.routes.label(request.call.endpoint(), request.call.model());
        sources.extend(route.map(|label| source("route", label)));
        // What is said or found of the text itself marks it; what was known of parts of it does not mark the rest.
        let mut marked = None::<Label>;
        let mut mark = |name: &str, label: Label| {
            marked = marked.max(Some(label));
            sources.push(source(name, label));
        };
        request.marks.label.into_iter().for_each(|label| mark("header", label));
        self.scanner.labels(request.call.body()).await.into_iter().for_each(|(name, label)| mark(&name, label));
        if request.call.opaque_parts() {
            mark("opaque", self.opaque);
        }
        let tainted = [("taint:text", known.texts), ("taint:conversation", known.talk), ("taint:evicted", known.lost)];
        sources.extend(tainted.into_iter().filter_map(|(name, label)| Some(source(name, label?))));
        let marked = marked.filter(|label| *label > lowest);
        // It taints what comes after it in the conversation; floors do not. What is no talk and has no name comes again with its route.
        let has_next = matches!(request.call, Call::Chat(_)) || request.marks.conversation.is_some();
        let join = |labels: [Option<Label>; 4]| labels.into_iter().flatten().fold(lowest, Label::join);
        let sticky = join([marked, route, known.texts, known.talk]);
        let talk = join([marked, route.filter(|_| has_next), known.texts, known.talk]);
        let label = known.lost.into_iter().fold(floor.join(sticky), Label::join);
        let mut classified =
            ClassifiedRequest { request, known: label, sources, conversation, who, sticky, doubted: None };
        // Only what was accepted is remembered: who may not handle a label must not be able to put it on what others write.
        classified.check(&self.labels)?;
        let ClassifiedRequest { request, who, .. } = &classified;
        let kept = match talk > lowest {
            true => self.taint.keep(who, (request, conversation), (traces, &known), (marked, talk)).await,
            false => Ok(()),
        };
        if known.is_incomplete || kept.is_err() {
            classified.doubt(&self.labels);
        }
        Ok(classified)
    }

    /// Joins the label of `request` with what detectors and markings find in the beginning of its answer, which another target is to
    /// go on from: to that one it is a text like those of the request.
    ///
    /// # Errors
    /// [`Error::LabelRefused`] if the label is above the identity's ceiling.
    pub async fn classify_beginning(
        &self,
        request: &ClassifiedRequest,
        text: &str,
        tokens: u64,
    ) -> Result<ClassifiedBeginning, Error> {
        let name = |label| self.labels.name(label).to_owned();
        let (mut found, mut sources) = (self.labels.lowest(), Vec::new());
        for (source, detected) in self.scanner.labels_of(vec![text]).await {
            found = found.join(detected);
            sources.push(Source { source, label: name(detected) });
        }
        // A target may have made, or repeated, what is known from elsewhere.
        if let Some(known) = self.taint.of_text(&request.who, text).await.map_err(|_| Error::LabelsUnavailable)? {
            found = found.join(known);
            sources.push(Source { source: "taint:text".to_owned(), label: name(known) });
        }
        let (label, ceiling) = (request.label().join(found), request.request.peer.ceiling);
        if request.known.join(found) > ceiling {
            return Err(Error::LabelRefused { label: name(label), ceiling: name(ceiling), sources });
        }
        if found > self.labels.lowest() && !self.taint_conversation(request, found).await {
            return Err(Error::LabelsUnavailable);
        }
        Ok(ClassifiedBeginning { text: text.to_owned(), tokens, label, sources })
    }

    /// Remembers a label that a policy gave, for what comes after in the conversation. False: others do not know it, or it may be forgotten.
    pub async fn taint_conversation(&self, request: &ClassifiedRequest, label: Label) -> bool {
        self.taint.keep_talk(&request.who, (&request.request, request.conversation), label).await.is_ok()
    }

    /// What remembers the answer to `request`; nothing does, if there is nothing about it but a floor.
    #[must_use]
    pub fn remembering(&self, request: &ClassifiedRequest) -> Option<Remembering> {
        (request.sticky > self.labels.lowest()).then(|| Remembering {
            reading: AnswerReading::new(request.who.clone()),
            fresh: Fresh::default(),
            label: request.known,
        })
    }

    /// Reads the next piece of a text of an answer.
    pub fn read(&self, remembering: &mut Remembering, place: u64, text: &str) {
        self.taint.read(&mut remembering.reading, place, text, &mut remembering.fresh);
    }

    /// Remembers what was read. What others cannot be told now is told them later.
    pub async fn keep_read(&self, remembering: &mut Remembering) {
        let Remembering { reading, fresh, label } = remembering;
        let _later = self.taint.keep_fresh(&reading.who, fresh, *label).await;
    }
}

/// (tenant, identity, `Postern-Conversation`), else (tenant, identity, the messages up to the first user turn). A request that has
/// no turns is a conversation of its own, known by its texts.
fn conversation(keys: &Keys, request: &ParsedRequest) -> Conversation {
    let identity = request.peer.id.as_str();
    let tenant = request.peer.tenant.as_bytes();
    if let Some(id) = &request.marks.conversation {
        return Conversation(keys.hash("conversation:named", &[tenant, identity.as_bytes(), id.as_bytes()]));
    }
    let call = &request.call;
    if !matches!(call, Call::Chat(_)) {
        let texts = call.message_texts(call.body());
        let mut parts = vec![tenant, identity.as_bytes(), call.endpoint().path().as_bytes()];
        parts.extend(texts.iter().map(String::as_bytes));
        return Conversation(keys.hash("conversation:texts", &parts));
    }
    let messages = call.body().get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let is_user = |message: &Value| message.get("role").and_then(Value::as_str) == Some("user");
    let end = messages.iter().position(is_user).map_or(messages.len(), |index| index + 1);
    let beginning: Vec<Vec<u8>> = messages.iter().take(end).map(json::written).collect();
    let mut parts = vec![tenant, identity.as_bytes()];
    parts.extend(beginning.iter().map(Vec::as_slice));
    Conversation(keys.hash("conversation:begun", &parts))
}

#[cfg(test)]
mod tests;
