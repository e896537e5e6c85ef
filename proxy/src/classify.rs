//! The label of a request: the join of everything that can raise one.
//!
//! Why it is here and not in a plugin: a plugin may raise the label later, but no plugin can undo what is found here.

pub mod clearance;
mod detect;
pub mod label;
mod taint;

use postern_wire::call::Call;
use postern_wire::json;
use serde::Serialize;
use serde_json::Value;

use crate::config::Config;
use crate::error::Error;
use crate::keys::Keys;
use crate::request::ParsedRequest;
use detect::Scanner;
use label::{Label, Labels};
use taint::{Taint, Traces};

/// Why a label is what it is; goes into the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// `floor`, `header`, `detector:…`, `marking`, `opaque`, `taint:text`, `taint:conversation`, `policy:…`.
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
        self.0.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A request whose label is known. Made only by [`Classifier::classify`].
#[derive(Debug)]
pub struct ClassifiedRequest {
    request: ParsedRequest,
    label: Label,
    sources: Vec<Source>,
    conversation: Conversation,
    traces: Traces,
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
        self.label
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

    /// Joins `label` to the request's.
    pub(crate) fn raise(&mut self, label: Label, source: Source) {
        self.label = self.label.join(label);
        self.sources.push(source);
    }
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
    scanner: Scanner,
    taint: Taint,
}

impl Classifier {
    /// By the rules of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            labels: config.labels.clone(),
            opaque: config.classification.opaque,
            scanner: Scanner::new(&config.classification),
            taint: Taint::default(),
        }
    }

    /// Joins floor, header, detectors, markings and taint.
    ///
    /// # Errors
    /// [`Error::LabelRefused`] if the label is above the identity's ceiling.
    pub async fn classify(&self, keys: &Keys, request: ParsedRequest) -> Result<ClassifiedRequest, Error> {
        let conversation = conversation(keys, &request);
        let traces = taint::traces(keys, &request, conversation);
        let source =
            |source: &str, label| Source { source: source.to_owned(), label: self.labels.name(label).to_owned() };

        let mut label = request.peer.floor;
        let mut sources = vec![source("floor", label)];
        // What is found in the request also taints what comes after it in the conversation; the floor does not.
        let (mut found, mut conversation_taint) = (self.labels.lowest(), self.labels.lowest());
        if let Some(marked) = request.marks.label {
            found = found.join(marked);
            sources.push(source("header", marked));
        }
        for (name, detected) in self.scanner.labels(request.call.body()).await {
            found = found.join(detected);
            sources.push(source(&name, detected));
        }
        if request.call.opaque_parts() {
            found = found.join(self.opaque);
            sources.push(source("opaque", self.opaque));
        }
        if let Some(tainted) = self.taint.of_texts(&traces) {
            found = found.join(tainted);
            sources.push(source("taint:text", tainted));
        }
        if let Some(tainted) = self.taint.of_conversation(&traces) {
            label = label.join(tainted);
            sources.push(source("taint:conversation", tainted));
            conversation_taint = tainted;
        }
        label = label.join(found);
        if label > request.peer.ceiling {
            let name = |label| self.labels.name(label).to_owned();
            return Err(Error::LabelRefused { label: name(label), ceiling: name(request.peer.ceiling) });
        }
        // Only what was accepted: who may not handle a label must not be able to put it on what others write.
        if conversation_taint > self.labels.lowest() {
            // What was said since belongs to it as well, but is not a marked text by itself.
            self.taint.remember_conversation(&traces, conversation_taint);
        }
        if found > self.labels.lowest() {
            self.taint.remember(&traces, found);
        }
        Ok(ClassifiedRequest { request, label, sources, conversation, traces })
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
        let (label, ceiling) = (request.label.join(found), request.request.peer.ceiling);
        if label > ceiling {
            return Err(Error::LabelRefused { label: name(label), ceiling: name(ceiling) });
        }
        if found > self.labels.lowest() {
            self.taint.remember_conversation(&request.traces, found);
        }
        Ok(ClassifiedBeginning { text: text.to_owned(), tokens, label, sources })
    }

    /// Remembers a label that a policy gave, for what comes after in the conversation.
    pub fn taint_conversation(&self, request: &ClassifiedRequest, label: Label) {
        self.taint.remember_conversation(&request.traces, label);
    }
}

/// (tenant, identity, `Postern-Conversation`), else (tenant, identity, the messages up to the first user turn). A request that has
/// no turns is a conversation of its own, known by its texts.
fn conversation(keys: &Keys, request: &ParsedRequest) -> Conversation {
    let identity = request.peer.id.to_string();
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
