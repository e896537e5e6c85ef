//! Postern: the AI egress point of a branch office.
//!
//! Read [`pipeline`] first: it is the way of a request from top to bottom, and every step is a module of that name.
//! [`supervise`] is the process tree, [`config`] what an operator writes, [`classify::clearance`] and `egress` the wall.
#![forbid(unsafe_code)]

pub mod admin;
pub mod admission;
pub mod answer;
pub mod audit;
pub mod cache;
pub mod classify;
pub mod cli;
pub mod config;
pub mod confine;
pub mod connect;
mod connection;
pub mod cost;
pub mod decide;
pub mod demo;
pub mod dispatch;
pub mod doctor;
mod egress;
mod enrol;
pub mod erase;
pub mod error;
pub mod exchange;
pub mod facts;
pub mod gateway;
pub mod issuer;
pub mod keys;
mod listener;
mod node;
pub mod open;
pub mod pipeline;
pub mod redact;
pub mod request;
pub mod response;
pub mod route;
pub mod screen;
mod seal;
pub mod serve;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod tls;
pub mod upstream;
mod workers;
