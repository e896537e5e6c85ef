//! Sealed payload → plain. This version opens none: a sealed payload is refused in words, never passed on unread.

use bytes::Bytes;
use http::HeaderMap;

use crate::error::Error;

/// A request as it arrived: its payload may be sealed.
#[derive(Debug)]
pub struct SealedRequest {
    /// The client's headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// A request whose payload is plain.
#[derive(Debug)]
pub struct OpenedRequest {
    /// The client's headers.
    pub headers: HeaderMap,
    /// The whole body, in clear.
    pub body: Bytes,
}

impl SealedRequest {
    /// Opens the payload.
    ///
    /// # Errors
    /// It is sealed, or it is not announced as JSON.
    pub fn open(self) -> Result<OpenedRequest, Error> {
        let media_type =
            self.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let essence = media_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        if essence.starts_with("message/ohttp") || self.headers.contains_key("ehbp-encapsulated-key") {
            return Err(Error::SealedUnsupported);
        }
        if essence != "application/json" {
            return Err(Error::MediaType);
        }
        Ok(OpenedRequest { headers: self.headers, body: self.body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_announced_json_passes() {
        let open = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            SealedRequest { headers, body: Bytes::new() }.open().map(|_| ())
        };
        assert!(open("content-type", "application/json; charset=utf-8").is_ok());
        assert!(matches!(open("content-type", "text/plain"), Err(Error::MediaType)));
        assert!(matches!(open("accept", "application/json"), Err(Error::MediaType)));
        assert!(matches!(open("content-type", "message/ohttp-chunked-req"), Err(Error::SealedUnsupported)));
    }
}
