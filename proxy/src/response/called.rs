//! What a tool is called with, as it comes: which tool it is, and whether it gets values.

use crate::answer::{Call, Malformed, Numbered, Place};
use crate::config::Tools;
use crate::redact::json::{JsonRestorer, Values};
use crate::redact::restore::{Piece, Restorer};
use crate::redact::vault::{Suffix, Vault};

/// The longest name of a tool. What is longer is on no list.
const MAX_NAME: usize = 256;

/// Arguments, or the input, of a call. A model could be made to send a value to whoever a tool talks to, so only those on the list get any. Clients put
/// the pieces of a call together in different ways; values go in only where all of them would say that it is one of a listed tool: its name came in
/// one piece, before its arguments, and each piece says surely which call it is of.
#[derive(Debug)]
pub(super) struct Called {
    /// What it calls itself, as a keyed hash: some servers put kilobytes there.
    id: Option<u64>,
    name: String,
    /// It is not certain which tool it calls.
    doubtful: bool,
    /// Its place on the list.
    tool: Option<usize>,
    input: Input,
}

/// Whose a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    /// The call's that is under way.
    Same,
    /// Another one's, under the same number. It may be doubtful which tool it calls.
    Another { doubtful: bool },
}

#[derive(Debug)]
enum Input {
    /// Nothing of it came yet.
    Awaited {
        is_json: bool,
    },
    Json(JsonRestorer),
    Text(Restorer),
}

impl Called {
    /// One of which nothing came yet.
    pub(super) fn new(place: Place) -> Self {
        let is_json = !matches!(place, Place::Input(_));
        Self { id: None, name: String::new(), doubtful: false, tool: None, input: Input::Awaited { is_json } }
    }

    /// Takes more of the arguments, and gives out what is certain by now.
    pub(super) fn push(&mut self, from: Suffix, tools: &Tools, vault: &Vault, text: &str) -> Piece {
        if text.is_empty() {
            return Piece::default();
        }
        if let Input::Awaited { is_json } = self.input {
            self.tool = tools.place_of(&self.name).filter(|_| !self.doubtful);
            self.input = match (is_json, self.tool) {
                (true, Some(_)) => Input::Json(JsonRestorer::new(from, Values::Strings)),
                (true, None) => Input::Json(JsonRestorer::new(from, Values::Nowhere)),
                (false, Some(_)) => Input::Text(Restorer::argument(from)),
                (false, None) => Input::Text(Restorer::without_values(from)),
            };
        }
        match &mut self.input {
            Input::Awaited { .. } => Piece::default(),
            Input::Json(json) => json.push(vault, text),
            Input::Text(restorer) => restorer.push(vault, text),
        }
    }

    /// Notes what the next piece says of its call; `has_text`: it has more of the arguments.
    pub(super) fn note(&mut self, call: Call<'_>, id: Option<u64>, has_text: bool) -> Result<Noted, Malformed> {
        let (is_awaited, is_complete) = (matches!(self.input, Input::Awaited { .. }), self.is_complete());
        let is_named = !call.tool.is_empty();
        let is_other = id.is_some() && self.id.is_some() && id != self.id;
        // Some servers give several calls one number, or none. A client that goes by it puts both together: that is no JSON if both have arguments.
        if is_complete && (is_other || is_named) {
            if has_text || self.restored() == 0 || call.tool == self.name {
                return Ok(Noted::Another { doubtful: false });
            }
            if is_named {
                return Err(Malformed);
            }
        }
        if is_awaited && self.is_begun() && (is_other || (is_named && call.number == Numbered::No)) {
            let is_renamed = !self.name.is_empty() && call.tool != self.name;
            return Ok(Noted::Another { doubtful: self.doubtful || is_renamed });
        }
        // A client may take it for more of the name, or for another one: then another tool would get what was meant for this one.
        if is_named && self.tool.is_some() && call.tool != self.name {
            return Err(Malformed);
        }
        let is_whole_name = is_awaited && self.name.is_empty() && call.tool.len() <= MAX_NAME;
        let is_sure =
            !call.is_odd && !is_other && (is_whole_name || !is_named) && (call.number == Numbered::Surely || is_named);
        if !is_sure {
            self.doubt();
        }
        if is_named && is_whole_name {
            call.tool.clone_into(&mut self.name);
        }
        self.id = self.id.or(id);
        Ok(Noted::Same)
    }

    /// It gets no values from here on.
    pub(super) fn doubt(&mut self) {
        self.doubtful = true;
        match &mut self.input {
            Input::Awaited { .. } => {}
            Input::Json(json) => json.no_more_values(),
            Input::Text(restorer) => restorer.no_more_values(),
        }
    }

    /// Has anything been said of it?
    fn is_begun(&self) -> bool {
        self.id.is_some() || !self.name.is_empty() || self.doubtful
    }

    fn is_complete(&self) -> bool {
        match &self.input {
            Input::Json(json) => json.is_complete(),
            Input::Awaited { .. } | Input::Text(_) => false,
        }
    }

    /// The arguments have ended: what was held back was no placeholder.
    pub(super) fn finish(&mut self) -> Piece {
        match &mut self.input {
            Input::Awaited { .. } => Piece::default(),
            Input::Json(json) => json.finish(),
            Input::Text(restorer) => restorer.finish(),
        }
    }

    /// How many placeholders were restored.
    pub(super) fn restored(&self) -> u64 {
        match &self.input {
            Input::Awaited { .. } => 0,
            Input::Json(json) => json.restored(),
            Input::Text(restorer) => restorer.restored(),
        }
    }

    /// True if there is a placeholder that is not of this request.
    pub(super) fn saw_foreign(&self) -> bool {
        match &self.input {
            Input::Awaited { .. } => false,
            Input::Json(json) => json.saw_foreign(),
            Input::Text(restorer) => restorer.saw_foreign(),
        }
    }

    /// Its place on the list.
    pub(super) fn tool(&self) -> Option<usize> {
        self.tool
    }
}
