//! Join tokens: one text that lets a new workstation find the right gateway and be let in, once.
//!
//! An operator makes it at the gateway and hands it over by a way of their own, such as a chat or a slip of paper. It
//! holds a secret, so it lives for minutes and is used up by the first who comes; and it pins the root, so that the
//! very first connection already knows whom it talks to.

use std::{fmt, str::FromStr};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use zeroize::{Zeroize, Zeroizing};

use crate::{CertsError, SpiffeId, trust::MAX_ROOTS};

/// What every token begins with: its kind and its version.
pub const TOKEN_PREFIX: &str = "postern-join-1.";
/// The longest token, bytes: two SPIFFE IDs of the greatest length, and all the pins that a bundle can have.
pub const MAX_TOKEN_BYTES: usize = 12 * 1024;
/// The length of the secret, bytes.
pub const SECRET_BYTES: usize = 32;

const PIN_BYTES: usize = 32;

/// What an operator hands to a new workstation. Its text is read strictly: a token that was changed in any place is
/// refused. `Debug` does not show the secret; `Display` is the token itself.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: Zeroizing<[u8; SECRET_BYTES]>,
    id: SpiffeId,
    expires: OffsetDateTime,
    pins: Vec<[u8; PIN_BYTES]>,
    gateway: SpiffeId,
}

/// What stands in the text, in this order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    secret: String,
    id: SpiffeId,
    expires: i64,
    pins: Vec<String>,
    gateway: SpiffeId,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl JoinToken {
    pub(crate) fn new(id: SpiffeId, expires: OffsetDateTime, roots: &[CertificateDer<'_>], gateway: SpiffeId) -> Self {
        let pins = roots.iter().map(|root| pin(root)).collect();
        Self { secret: Zeroizing::new(rand::random()), id, expires, pins, gateway }
    }

    /// Reads the text of a token.
    ///
    /// # Errors
    /// [`CertsError::JoinToken`] if it is none. Its time is not looked at: the authority does that.
    pub fn parse(text: &str) -> Result<Self, CertsError> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(CertsError::JoinToken("it is too long"));
        }
        let encoded = text.strip_prefix(TOKEN_PREFIX);
        let encoded = encoded.ok_or(CertsError::JoinToken("it does not begin with `postern-join-1.`"))?;
        let damaged = CertsError::JoinToken("it is damaged, perhaps cut while it was copied");
        let Some(token) = read(encoded) else { return Err(damaged) };
        // Many texts could mean the same; only the one that is written here is a token.
        if *token.text() == text { Ok(token) } else { Err(damaged) }
    }

    /// What proves the invitation: goes to the enrolment address of the gateway, and nowhere else.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        self.secret.as_slice()
    }

    /// Who is invited.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// After this nobody is let in with it.
    #[must_use]
    pub fn expires(&self) -> OffsetDateTime {
        self.expires
    }

    /// The gateway that invited, whose identity the server has to show.
    #[must_use]
    pub fn gateway(&self) -> &SpiffeId {
        &self.gateway
    }

    /// Those of these certificates that are pinned roots.
    #[must_use]
    pub fn pinned<'a>(&self, certificates: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
        certificates.iter().filter(|one| self.pins.contains(&pin(one))).cloned().collect()
    }

    fn text(&self) -> Zeroizing<String> {
        let body = Body {
            secret: BASE64URL_NOPAD.encode(self.secret.as_slice()),
            id: self.id.clone(),
            expires: self.expires.unix_timestamp(),
            pins: self.pins.iter().map(|pin| HEXLOWER.encode(pin)).collect(),
            gateway: self.gateway.clone(),
        };
        // Strings and numbers always can be written.
        let json = Zeroizing::new(serde_json::to_vec(&body).unwrap_or_default());
        Zeroizing::new(format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&json)))
    }
}

impl FromStr for JoinToken {
    type Err = CertsError;

    fn from_str(text: &str) -> Result<Self, CertsError> {
        Self::parse(text)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("JoinToken");
        shown.field("id", &self.id).field("gateway", &self.gateway).field("expires", &self.expires);
        shown.finish_non_exhaustive()
    }
}

fn read(encoded: &str) -> Option<JoinToken> {
    let json = Zeroizing::new(BASE64URL_NOPAD.decode(encoded.as_bytes()).ok()?);
    let body: Body = serde_json::from_slice(&json).ok()?;
    let secret = Zeroizing::new(BASE64URL_NOPAD.decode(body.secret.as_bytes()).ok()?);
    let pins = body.pins.iter().map(|pin| HEXLOWER.decode(pin.as_bytes()).ok()?.try_into().ok());
    let pins = pins.collect::<Option<Vec<_>>>().filter(|pins| (1..=MAX_ROOTS).contains(&pins.len()))?;
    Some(JoinToken {
        secret: Zeroizing::new(secret.as_slice().try_into().ok()?),
        id: body.id.clone(),
        expires: OffsetDateTime::from_unix_timestamp(body.expires).ok()?,
        pins,
        gateway: body.gateway.clone(),
    })
}

fn pin(certificate: &CertificateDer<'_>) -> [u8; PIN_BYTES] {
    Sha256::digest(certificate).into()
}

#[cfg(test)]
mod tests;
