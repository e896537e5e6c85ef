//! What is signed: by a workstation that it sent a request, and by a gateway that keys are its own. HPKE in base mode says neither.
//!
//! Each is a text of its own, with the length of every part in front of it, so no two things that are signed have the same bytes.

use sha2::{Digest as _, Sha256};

use crate::cipher::ENC;

/// The header of a sealed request that has the sender's certificates: DER in Base64, the leaf first, between commas.
pub const SENDER: &str = "postern-sender";
/// The header of a sealed request that has the sender's signature: scheme and signature, in Base64.
pub const SIGNATURE: &str = "postern-signature";
/// The header beside a list of keys that has the gateway's certificates, as [`SENDER`].
pub const KEYS_SENDER: &str = "postern-keys-sender";
/// The header beside a list of keys that has the gateway's signature, as [`SIGNATURE`].
pub const KEYS_SIGNATURE: &str = "postern-keys-signature";
/// The header beside a list of keys that says until when it may be used: seconds since 1970.
pub const KEYS_UNTIL: &str = "postern-keys-until";

/// A request, as its sender signs it.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    /// What the sealed request encapsulates. It stands for all that was sealed with it, since nobody else can have sealed that.
    pub encapsulated: &'a [u8; ENC],
    /// The number of the key that it was sealed for.
    pub key: u8,
    /// For whom.
    pub gateway: &'a str,
    /// What is asked.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// The `Date` header.
    pub date: &'a str,
    /// The `Postern-Label` header; empty without one.
    pub label: &'a str,
    /// The content.
    pub body: &'a [u8],
}

impl Sent<'_> {
    /// What is signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        parts(&[
            b"postern sealed request 1",
            self.encapsulated,
            &[self.key],
            self.gateway.as_bytes(),
            self.method.as_bytes(),
            self.path.as_bytes(),
            self.date.as_bytes(),
            self.label.as_bytes(),
            &Sha256::digest(self.body),
        ])
    }
}

/// A list of keys, as a gateway signs it: its own ID, until when, the list.
#[must_use]
pub fn keys(gateway: &str, until: u64, list: &[u8]) -> Vec<u8> {
    parts(&[b"postern payload keys 1", gateway.as_bytes(), &until.to_be_bytes(), &Sha256::digest(list)])
}

/// Each with its length in front of it.
pub(crate) fn parts(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| [&(part.len() as u64).to_be_bytes(), *part].concat()).collect()
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn every_part_of_a_request_is_signed_as_it_is_written_down() {
        let sent = Sent {
            encapsulated: &[7; ENC],
            key: 9,
            gateway: "spiffe://b.example/gateway",
            method: "POST",
            path: "/v1/chat/completions",
            date: "Fri, 27 Nov 2026 12:00:00 GMT",
            label: "internal",
            body: b"{}",
        };
        let bytes = sent.to_bytes();
        // Somebody else has written a client for it.
        let digest = HEXLOWER.encode(&Sha256::digest(&bytes));
        assert_eq!(digest, "40e3c66bd053b1df4a2dae7fe475db4ff7ed6a520332f7c5004723e8991fd04d");
        let (mut other, mut encapsulated) = (vec![], sent.encapsulated.to_owned());
        encapsulated[31] ^= 1;
        other.push(Sent { encapsulated: &encapsulated, ..sent }.to_bytes());
        other.push(Sent { key: 8, ..sent }.to_bytes());
        other.push(Sent { gateway: "spiffe://b.example/gatewa", ..sent }.to_bytes());
        other.push(Sent { method: "PUT", ..sent }.to_bytes());
        other.push(Sent { path: "/v1/chat/completions?", ..sent }.to_bytes());
        other.push(Sent { date: "", ..sent }.to_bytes());
        other.push(Sent { label: "", ..sent }.to_bytes());
        other.push(Sent { body: b"{ }", ..sent }.to_bytes());
        other.push(Sent { date: "", label: "Fri, 27 Nov 2026 12:00:00 GMTinternal", ..sent }.to_bytes());
        assert!(!other.contains(&bytes));
        assert_ne!(keys("a", 1, b"list"), keys("a", 2, b"list"));
    }
}
