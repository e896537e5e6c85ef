//! The language model server on the gateway's own machine.
//!
//! A prompt's way through it: [`serve`] answers HTTP on a connection to the gateway (`api`), a chat becomes
//! text (`chat_template`) and token ids (`tokenizer`), gets a place if one is free (`admission`), waits for its turn
//! (`scheduler`), and is worked on by the one thread that owns the model (`worker`): what an earlier prompt began with
//! alike is there already (`prefix_cache`), the rest is prefilled in chunks beside the answers under way (`batch`, `model`,
//! `attention`, `kv_pool`), then comes one token a step, or several where `speculation` guesses well (`sampler`, within a
//! `grammar` if one was asked for; `logprobs` tells its probability), whose bytes become text again (`text_stream`) and calls of the application's functions
//! (`tools`). The engine keeps no state on disk, so it may be killed at any time.
//!
//! Prompts and answers never appear in logs, errors or metrics.

mod admission;
mod api;
mod attention;
mod batch;
pub mod catalog;
mod chat_template;
mod device;
mod embed;
mod engine;
mod error;
mod grammar;
mod host;
mod inspect;
mod kv_pool;
mod logprobs;
mod measure;
mod meters;
mod model;
mod options;
mod origin;
mod prefix_cache;
mod rates;
mod sampler;
mod scheduler;
mod sequence;
mod serve;
mod speculation;
#[cfg(test)]
mod testing;
mod text_stream;
mod tokenizer;
mod tools;
mod turns;
mod weights;
mod worker;

pub use device::computes_on_gpus;
pub use embed::{Embedder, makes_embeddings};
pub use engine::{Engine, Progress};
pub use error::EngineError;
pub use grammar::Grammar;
pub use inspect::{Inspection, Serves, inspect, serves};
pub use logprobs::{ScoredToken, TokenScore};
pub use measure::{Measurement, measure};
pub use options::{DeviceChoice, EngineOptions, thread_environment};
pub use origin::HEADERS as ORIGIN_HEADERS;
pub use origin::{Origin, Priority};
pub use sequence::{FinishReason, Generation, GenerationEvent, Sampling, Usage};
pub use serve::{embeddings_router, router, serve, serve_embeddings, stopped};
pub use weights::check_header;
