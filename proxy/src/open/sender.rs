//! Who sent a sealed request, and when.

use std::time::SystemTime;

use http::{HeaderMap, Request, header};
use postern_certs::{SpiffeId, Trust, clock, verify};
use postern_sealed::replays::SKEW;
use postern_sealed::signed::{SENDER, SIGNATURE, Sent};
use postern_sealed::whole::Exchange;

use crate::connect::keys::chain_of_text;
use crate::error::Error;

/// Refuses what was not sealed just now. Without a date a request could be sent again when nobody remembers it any more.
pub(super) fn check_date(headers: &HeaderMap) -> Result<(), Error> {
    let date = one(headers, header::DATE.as_str())?.and_then(|date| httpdate::parse_http_date(date).ok());
    let now = SystemTime::from(clock::steady_now());
    let is_near = |date: SystemTime| {
        let away = now.duration_since(date).unwrap_or_else(|later| later.duration());
        away <= SKEW
    };
    if date.is_some_and(is_near) { Ok(()) } else { Err(Error::PayloadDate) }
}

/// Who signed it; `None`: nobody.
pub(super) fn of(
    trust: &Trust,
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
    let unread = || Error::PayloadSender("its certificates or its signature cannot be read");
    let signature = data_encoding::BASE64.decode(signature.trim().as_bytes()).map_err(|_| unread())?;
    let chain = chain_of_text(chain).ok_or_else(unread)?;
    let sent = Sent {
        encapsulated: exchange.encapsulated(),
        key: exchange.key_id(),
        gateway: own,
        method: request.method().as_str(),
        path: request.uri().path_and_query().map_or("/", |path| path.as_str()),
        date: one(headers, header::DATE.as_str())?.unwrap_or_default(),
        label: one(headers, "postern-label")?.unwrap_or_default(),
        body,
    };
    let own: SpiffeId = own.parse().map_err(|_| unread())?;
    let sender = trust.signed_by_client(&chain, own.trust_domain(), &sent.to_bytes(), &signature);
    sender.map(Some).map_err(|error| {
        tracing::warn!(%error, "the signature of a sealed request is refused");
        Error::PayloadSender("its signature is not good, or its certificate is not valid now")
    })
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_date_may_be_a_minute_away_and_must_be_there() {
        let at = |seconds: i64| {
            let now = SystemTime::from(clock::steady_now());
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
        let now = httpdate::fmt_http_date(SystemTime::from(clock::steady_now()));
        headers.append(header::DATE, now.parse().unwrap());
        headers.append(header::DATE, now.parse().unwrap());
        assert!(matches!(check_date(&headers), Err(Error::PayloadSender(_))));
    }
}
