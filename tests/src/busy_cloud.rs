//! A hosted model as the office meets it: OpenAI-shaped, over HTTPS, and often busy.
//!
//! It answers by repeating the last user message, so that what reached it can be read from the answer. [`Switches`] make
//! it misbehave; [`Report`] says what it saw. It is deterministic: the share of refusals is spread evenly, never drawn.
//!
//! [`reply`](plan::reply) decides what to say, as a pure function; [`server`] plays it over real sockets.

mod admission;
mod control;
mod exchange;
mod plan;
mod server;
mod stats;
mod switches;

pub use server::{Addresses, Options, serve};
pub use stats::Report;
pub use switches::{Malformed, Switches};
