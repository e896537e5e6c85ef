//! Who sent a sealed request, and when.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Request, header};
use moka::sync::Cache;
use postern_certs::{CertsError, SpiffeId, Trust, clock, signature, verify};
use postern_sealed::replays::SKEW;
use postern_sealed::signed::{SENDER, SIGNATURE, Sent};
use postern_sealed::whole::Exchange;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use crate::connect::keys::chain_of_text;
use crate::error::Error;

/// Senders whose certificates were judged, and for how long that counts at most: what leads from them to a root may end.
const KNOWN: u64 = 10_000;
const KNOWN_FOR: Duration = Duration::from_secs(60);
const UNREAD: Error = Error::PayloadSender("its certificates or its signature cannot be read");

/// Refuses what was not sealed just now. Without a date a request could be sent again when nobody remembers it any more.
pub(super) fn check_date(headers: &HeaderMap) -> Result<(), Error> {
    let date = one(headers, header::DATE.as_str())?.and_then(|date| httpdate::parse_http_date(date).ok());
    // By the clock of the wall as it is: keys are replaced where that goes back.
    let now = SystemTime::now();
    let is_near = |date: SystemTime| {
        let away = now.duration_since(date).unwrap_or_else(|later| later.duration());
        away <= SKEW
    };
    if date.is_some_and(is_near) { Ok(()) } else { Err(Error::PayloadDate) }
}

/// Certificates that were judged of late. Nobody's are judged anew for each request: that takes longer than all the rest of opening one.
#[derive(Debug)]
pub(super) struct Senders(Cache<[u8; 32], Arc<Known>>);

/// Whose certificates these are, as long as `trust` is what the gateway trusts.
#[derive(Debug)]
struct Known {
    trust: Arc<Trust>,
    leaf: CertificateDer<'static>,
    peer: verify::Peer,
}

impl Default for Senders {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(KNOWN).time_to_live(KNOWN_FOR).build())
    }
}

impl Senders {
    fn of(&self, trust: &Arc<Trust>, domain: &str, text: &str) -> Result<Arc<Known>, Error> {
        let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let is_good =
            |known: &Arc<Known>| Arc::ptr_eq(&known.trust, trust) && clock::steady_now() <= known.peer.not_after;
        if let Some(known) = self.0.get(&hash).filter(is_good) {
            return Ok(known);
        }
        let chain = chain_of_text(text).ok_or(UNREAD)?;
        let peer = trust.client(&chain, domain).map_err(|error| refused(&error))?;
        let leaf = chain.into_iter().next().ok_or(UNREAD)?;
        let known = Arc::new(Known { trust: trust.clone(), leaf, peer });
        self.0.insert(hash, known.clone());
        Ok(known)
    }
}

/// Who signed it; `None`: nobody.
pub(super) fn of(
    senders: &Senders,
    trust: &Arc<Trust>,
    own: &str,
    exchange: &Exchange,
    request: &Request<()>,
    body: &[u8],
) -> Result<Option<verify::Peer>, Error> {
    let headers = request.headers();
    let (chain, signature) = match (one(headers, SENDER)?, one(headers, SIGNATURE)?) {
        (None, None) => return Ok(None),
        (Some(chain), Some(signature)) => (chain, signature),
        _ => {
            return Err(Error::PayloadSender("certificates and signature belong together, and one of them is missing"));
        }
    };
    let own_id: SpiffeId = own.parse().map_err(|_| UNREAD)?;
    let known = senders.of(trust, own_id.trust_domain(), chain)?;
    let signature = data_encoding::BASE64.decode(signature.trim().as_bytes()).map_err(|_| UNREAD)?;
    let sent = Sent {
        encapsulated: exchange.encapsulated(),
        key: exchange.key_id(),
        gateway: own,
        method: request.method().as_str(),
        path: request.uri().path_and_query().map_or("/", |path| path.as_str()),
        date: one(headers, header::DATE.as_str())?.unwrap_or_default(),
        // One that stands there twice is refused for that, by who reads labels.
        label: one(headers, "postern-label").ok().flatten().unwrap_or_default(),
        body,
    };
    signature::check(&known.leaf, &sent.to_bytes(), &signature).map_err(|error| refused(&error))?;
    Ok(Some(known.peer.clone()))
}

fn refused(error: &CertsError) -> Error {
    // Whoever has a certificate can have it said as often as it likes; the record says that it was refused.
    tracing::debug!(%error, "the signature of a sealed request is refused");
    Error::PayloadSender("its signature is not good, or its certificate is not valid now")
}

/// A header that may stand once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Error> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| twice()),
        _ => Err(twice()),
    }
}

fn twice() -> Error {
    Error::PayloadSender("one of its headers that are signed stands there twice, or is not visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_may_be_a_minute_away_and_must_be_there() {
        let at = |seconds: i64| {
            let now = SystemTime::now();
            let span = Duration::from_secs(seconds.unsigned_abs());
            let date = if seconds < 0 { now - span } else { now + span };
            let mut headers = HeaderMap::new();
            headers.insert(header::DATE, httpdate::fmt_http_date(date).parse().unwrap());
            check_date(&headers)
        };
        assert!(at(0).is_ok() && at(-58).is_ok() && at(58).is_ok());
        assert!(matches!(at(-62), Err(Error::PayloadDate)));
        assert!(matches!(at(62), Err(Error::PayloadDate)));
        let mut headers = HeaderMap::new();
        assert!(matches!(check_date(&headers), Err(Error::PayloadDate)));
        let now = httpdate::fmt_http_date(SystemTime::now());
        headers.append(header::DATE, now.parse().unwrap());
        headers.append(header::DATE, now.parse().unwrap());
        assert!(matches!(check_date(&headers), Err(Error::PayloadSender(_))));
    }
}
