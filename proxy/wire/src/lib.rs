//! Wire formats of Postern, without I/O: strict JSON, the OpenAI types that keep unknown fields, SSE framing and the
//! error body. Everything here is a pure function of bytes, so that it can be tested and fuzzed without a socket.
#![forbid(unsafe_code)]

pub mod call;
pub mod chat;
pub mod completion;
pub mod embeddings;
pub mod error;
mod fields;
pub mod json;
pub mod sse;
pub mod vectors;

pub use fields::is_model_name;
