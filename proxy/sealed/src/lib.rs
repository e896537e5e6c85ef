//! Sealed payloads, without I/O: what leaves a workstation is for the gateway alone, also where somebody breaks TLS open on the way.
//!
//! HPKE (RFC 9180) in base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM: a fresh Diffie–Hellman for each request. Around it
//! Oblivious HTTP: RFC 9458 for whole messages ([`whole`]), draft-ietf-ohai-chunked-ohttp for those that come in pieces ([`chunked`]);
//! what is sealed is [`binary`]. Or bodies alone, for clients that speak [`ehbp`]. Who sent a request, and whose a key is, is [`signed`].
//! The `ohttp` crate has no AES-256-GCM; the cryptography is `hpke`'s and `aes-gcm`'s, and only the framing is written here.
//!
//! Nothing that comes out of here was not authenticated. Every buffer has a bound; errors name what is wrong, and never hold any of it.
#![forbid(unsafe_code)]

pub mod at_rest;
pub mod binary;
pub mod chunked;
mod cipher;
pub mod config;
pub mod ehbp;
mod frames;
pub mod replays;
pub mod rotation;
pub mod signed;
pub mod whole;

pub use config::{Keys, PublicConfig, SecretKey};

/// Why a sealed message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It ends before its end: a piece of it is missing.
    #[error("the sealed message was cut")]
    Cut,
    /// It was changed on the way, is in another order, or was sealed for another key.
    #[error("the sealed message is not authentic")]
    NotAuthentic,
    /// Nobody here has a key of that number.
    #[error("the sealed message is for key {0}, which is not in use")]
    UnknownKey(u8),
    /// None of the keys here opens it, and it does not say which one it means.
    #[error("the sealed message is for a key that is not in use")]
    NoKey,
    /// It is sealed with other algorithms.
    #[error("the sealed message uses other algorithms than X25519, HKDF-SHA256 and AES-256-GCM")]
    Algorithms,
    /// A piece of it is larger than pieces may be.
    #[error("a piece of the sealed message is larger than it may be")]
    TooLarge,
    /// More comes behind its end.
    #[error("the sealed message has ended")]
    Ended,
    /// What was sealed is no HTTP message.
    #[error("what was sealed is not an HTTP message in binary form")]
    Message,
    /// A key configuration is none.
    #[error("the key configuration cannot be read")]
    Config,
}
