//! What the scenarios stand on: a busy cloud, a load generator, and a harness around the real `postern` binary.
//!
//! Nothing here knows the gateway's insides. A scenario starts [`Postern`] with a [`Config`], points it at a
//! [`BusyCloud`], asks as a [`Client`] with a certificate from the gateway's own authority, and then reads what the
//! outside world can read: the answer, the cloud's statistics, the metrics, the records. Every wait is bounded.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "the rules about outgoing connections are the gateway's")]

pub mod busy_cloud;
pub mod client;
pub mod cloud;
pub mod config;
pub mod connector;
pub mod day;
pub mod fake_time;
pub mod load;
pub mod metrics;
pub mod middlebox;
pub mod node;
pub mod pki;
pub mod postern;
pub mod process;
pub mod records;
pub mod redis;
pub mod sealed;
pub mod tls;
pub mod wire;
pub mod workload_api;

pub use client::{Client, Event, Events, RawConnection, Reply, chat_body};
pub use cloud::BusyCloud;
pub use config::Config;
pub use connector::Connector;
pub use fake_time::FakeTime;
pub use metrics::Metrics;
pub use middlebox::{Middlebox, Trick};
pub use node::Node;
pub use postern::Postern;
pub use records::{Record, Records};
pub use redis::Redis;
pub use sealed::{Draft, Workstation};
pub use wire::Wire;
pub use workload_api::WorkloadApi;
