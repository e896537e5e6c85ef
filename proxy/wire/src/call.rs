//! What is asked for: a request to one of the endpoints that compute something. What they have in common is asked here, so
//! that one path serves them all.

use crate::json::{Map, Value};

use crate::chat::{ChatRequest, MessageShape, message_texts};
use crate::completion::{self, CompletionRequest};
use crate::embeddings::{self, EmbeddingsRequest};
use crate::fields::{Invalid, answers_made, estimated_tokens, values};

/// Tokens of an answer that has no bound of its own, for limits.
const ASSUMED_ANSWER_TOKENS: u64 = 512;

/// Where such a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A chat completion.
    Chat,
    /// A legacy completion of one prompt.
    Completions,
    /// Vectors of texts.
    Embeddings,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Completions, Self::Embeddings];

    /// The path after the version, such as `/chat/completions`.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
        }
    }

    /// The endpoint of a path such as `/v1/chat/completions`.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        let path = path.strip_prefix("/v1")?;
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }

    /// Do answers only fit together that come from the same model? Vectors of different models cannot be compared.
    #[must_use]
    pub fn keeps_model(self) -> bool {
        self == Self::Embeddings
    }
}

/// A request whose fields that matter here have the right types.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// `POST /v1/chat/completions`.
    Chat(ChatRequest),
    /// `POST /v1/completions`.
    Completion(CompletionRequest),
    /// `POST /v1/embeddings`.
    Embeddings(EmbeddingsRequest),
}

impl Call {
    /// Checks a tree that was sent to `endpoint`.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is missing, has a wrong type or a value that cannot be served.
    pub fn from_json(endpoint: Endpoint, tree: Value, max_messages: usize) -> Result<Self, Invalid> {
        match endpoint {
            Endpoint::Chat => ChatRequest::from_json(tree, max_messages).map(Self::Chat),
            Endpoint::Completions => CompletionRequest::from_json(tree).map(Self::Completion),
            Endpoint::Embeddings => EmbeddingsRequest::from_json(tree).map(Self::Embeddings),
        }
    }

    /// Where it was sent.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Self::Chat(_) => Endpoint::Chat,
            Self::Completion(_) => Endpoint::Completions,
            Self::Embeddings(_) => Endpoint::Embeddings,
        }
    }

    /// The whole request.
    #[must_use]
    pub fn body(&self) -> &Map {
        match self {
            Self::Chat(chat) => chat.body(),
            Self::Completion(completion) => completion.body(),
            Self::Embeddings(embeddings) => embeddings.body(),
        }
    }

    /// The model asked for.
    #[must_use]
    pub fn model(&self) -> &str {
        match self {
            Self::Chat(chat) => &chat.model,
            Self::Completion(completion) => &completion.model,
            Self::Embeddings(embeddings) => &embeddings.model,
        }
    }

    /// Is the answer a stream of events?
    #[must_use]
    pub fn stream(&self) -> bool {
        match self {
            Self::Chat(chat) => chat.stream,
            Self::Completion(completion) => completion.stream,
            Self::Embeddings(_) => false,
        }
    }

    /// Does the client want the usage at the end of the stream?
    #[must_use]
    pub fn include_usage(&self) -> bool {
        match self {
            Self::Chat(chat) => chat.include_usage,
            Self::Completion(completion) => completion.include_usage,
            Self::Embeddings(_) => false,
        }
    }

    /// Texts that a model is to make; none for vectors.
    #[must_use]
    pub fn choices(&self) -> u64 {
        match self {
            Self::Chat(chat) => chat.choices,
            Self::Completion(completion) => completion.choices,
            Self::Embeddings(_) => 0,
        }
    }

    /// Are tools offered?
    #[must_use]
    pub fn tools(&self) -> bool {
        matches!(self, Self::Chat(chat) if chat.tools)
    }

    /// Is there something in it that cannot be read as text?
    #[must_use]
    pub fn opaque_parts(&self) -> bool {
        match self {
            Self::Chat(chat) => chat.opaque_parts,
            Self::Completion(completion) => completion.opaque_parts,
            Self::Embeddings(embeddings) => embeddings.opaque_parts,
        }
    }

    /// `temperature`, if given.
    #[must_use]
    pub fn temperature(&self) -> Option<f64> {
        match self {
            Self::Chat(chat) => chat.temperature,
            Self::Completion(completion) => completion.temperature,
            Self::Embeddings(_) => None,
        }
    }

    /// The bound on new tokens of each text, if given.
    #[must_use]
    pub fn max_tokens(&self) -> Option<u64> {
        match self {
            Self::Chat(chat) => chat.max_tokens,
            Self::Completion(completion) => completion.max_tokens,
            Self::Embeddings(_) => None,
        }
    }

    /// Tokens of all its answers, at most; where it names no bound, as many as answers usually have.
    #[must_use]
    pub fn max_answer_tokens(&self) -> u64 {
        match self {
            Self::Embeddings(_) => 0,
            _ => self.max_tokens().unwrap_or(ASSUMED_ANSWER_TOKENS).saturating_mul(answers_made(self.body())),
        }
    }

    /// Does it go on with a conversation, in which there are answers already?
    #[must_use]
    pub fn goes_on(&self) -> bool {
        matches!(self, Self::Chat(chat) if chat.goes_on())
    }

    /// Values in the tree, keys included: what it costs in memory, beside its text.
    #[must_use]
    pub fn values(&self) -> u64 {
        values(self.body())
    }

    /// Role and size of each message, or text.
    #[must_use]
    pub fn message_shapes(&self) -> Vec<MessageShape> {
        match self {
            Self::Chat(chat) => chat.message_shapes(),
            Self::Completion(completion) => completion.message_shapes(),
            Self::Embeddings(embeddings) => embeddings.message_shapes(),
        }
    }

    /// The text of each of those, as it stands in `body`, which has the shape of this request.
    #[must_use]
    pub fn message_texts(&self, body: &Map) -> Vec<String> {
        match self {
            Self::Chat(_) => message_texts(body),
            Self::Completion(_) => completion::prompt(body).map(str::to_owned).collect(),
            Self::Embeddings(_) => embeddings::texts(body).map(str::to_owned).collect(),
        }
    }

    /// What users wrote.
    #[must_use]
    pub fn user_texts(&self) -> Vec<&str> {
        match self {
            Self::Chat(chat) => chat.user_texts(),
            Self::Completion(completion) => completion::prompt(completion.body()).collect(),
            Self::Embeddings(embeddings) => embeddings::texts(embeddings.body()).collect(),
        }
    }

    /// Estimated tokens of all that a model reads.
    #[must_use]
    pub fn estimated_prompt_tokens(&self) -> u64 {
        match self {
            Self::Chat(chat) => chat.estimated_prompt_tokens(),
            Self::Completion(completion) => completion.estimated_prompt_tokens(),
            Self::Embeddings(embeddings) => embeddings.estimated_tokens(),
        }
    }
}

/// Estimated tokens that a chat completion chunk shows: by the text of its choices, thoughts and tool calls among it, and at least one
/// for each that shows any.
#[must_use]
pub fn estimated_tokens_shown(chunk: &Value) -> u64 {
    let choices = chunk.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let deltas = choices.iter().filter_map(|choice| choice.get("delta")?.as_object());
    let shown = |delta: &Map| estimated_tokens(delta.iter().filter(|(key, _)| *key != "role").map(|(_, value)| value));
    deltas.map(shown).sum()
}

#[cfg(test)]
mod tests {
    use crate::json::json;

    use super::*;

    fn call(endpoint: Endpoint, tree: Value) -> Call {
        Call::from_json(endpoint, tree, 10).unwrap()
    }

    #[test]
    fn paths_are_those_of_the_api_and_no_others() {
        for endpoint in Endpoint::ALL {
            assert_eq!(Endpoint::of(&format!("/v1{}", endpoint.path())), Some(endpoint));
        }
        for path in ["/embeddings", "/v1/embeddings/", "/v1/v1/embeddings", "/v1", "/v2/embeddings"] {
            assert_eq!(Endpoint::of(path), None, "{path}");
        }
    }

    #[test]
    fn each_request_says_what_was_written() {
        let parts = json!([{"type": "text", "text": "b"}, {"type": "image_url"}]);
        let chat = json!({"model": "m", "messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "user", "content": parts},
        ]});
        let chat = call(Endpoint::Chat, chat);
        assert_eq!((chat.user_texts(), chat.message_texts(chat.body()).len()), (vec!["a", "b"], 3));
        let prompt = call(Endpoint::Completions, json!({"model": "m", "prompt": "a", "max_tokens": 5, "stream": true}));
        assert_eq!((prompt.user_texts(), prompt.max_tokens(), prompt.stream()), (vec!["a"], Some(5), true));
        let best = json!({"model": "m", "prompt": "a", "suffix": "z", "max_tokens": 5, "best_of": 4});
        let best = call(Endpoint::Completions, best);
        assert_eq!((best.user_texts(), best.max_answer_tokens(), prompt.max_answer_tokens()), (vec!["a", "z"], 20, 5));
        let vectors = call(Endpoint::Embeddings, json!({"model": "m", "input": ["a", "b"], "max_tokens": 5}));
        assert_eq!((vectors.user_texts(), vectors.max_tokens(), vectors.choices()), (vec!["a", "b"], None, 0));
        assert_eq!(
            (vectors.message_texts(vectors.body()), vectors.message_shapes().len()),
            (vec!["a".into(), "b".into()], 2)
        );
        for call in [chat, prompt, vectors] {
            assert_eq!(call.model(), "m");
        }
    }

    #[test]
    fn values_are_counted_with_their_keys() {
        let tree = json!({"model": "m", "input": ["a", "b"], "x": {"y": [1]}});
        assert_eq!(call(Endpoint::Embeddings, tree).values(), 3 + 1 + (1 + 2) + (1 + 1 + (1 + 1)));
    }

    #[test]
    fn a_chunk_is_counted_by_what_it_shows() {
        let chunk = |delta: Value| json!({"choices": [{"index": 0, "delta": delta}]});
        for (delta, tokens) in [
            (json!({"role": "assistant", "content": ""}), 0),
            (json!({"content": "a"}), 1),
            (json!({"content": "seven letters"}), 4),
            (json!({"content": "北风"}), 2),
            (json!({"reasoning_content": "hm", "content": null}), 1),
            (json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"a\": 1}"}}]}), 2),
        ] {
            assert_eq!(estimated_tokens_shown(&chunk(delta.clone())), tokens, "{delta}");
        }
        assert_eq!(estimated_tokens_shown(&json!({"choices": [], "usage": {}})), 0);
    }
}
