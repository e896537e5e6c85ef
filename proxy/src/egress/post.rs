//! Connections to somebody who is told something now and then, and whose answers are short: witnesses of the log.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;

use super::complaints::{Complaints, in_words};
use super::{Bounded, authority, connector, machine_authorities, pool};

/// For name, TCP and TLS together.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// From the first byte of the question to the last of the answer.
const WITHIN: Duration = Duration::from_secs(15);
/// Bytes of an answer, and of its headers.
const MAX_ANSWER: usize = 16 << 10;
const MAX_READ: usize = 16 << 10;
const WINDOW: u32 = 64 << 10;

/// One address of somebody.
#[derive(Debug)]
pub(crate) struct Post {
    client: Client<Bounded, Full<Bytes>>,
    to: Uri,
    complaints: Complaints,
}

impl Post {
    /// Connects to nothing yet. `lacks`: what is missing while it cannot be asked, for the log.
    ///
    /// # Errors
    /// The authorities are not to be had, or TLS cannot be set up.
    pub(crate) fn new(name: &str, to: Uri, ca: Option<&Path>, lacks: &str) -> Result<Self, String> {
        let roots = ca.map_or_else(machine_authorities, authority)?;
        let connector = connector(roots, CONNECT_WITHIN).map_err(|error| format!("TLS: {error}"))?;
        let mut pool = pool();
        pool.http1_max_buf_size(MAX_READ).http2_initial_stream_window_size(WINDOW);
        pool.http2_initial_connection_window_size(WINDOW).http2_max_header_list_size(MAX_READ as u32);
        let complaints = Complaints::of(name.to_owned(), lacks.to_owned());
        Ok(Self { client: pool.build(connector), to, complaints })
    }

    /// Sends `body`, and returns status and body of the answer. Why there is none is in the log.
    pub(crate) async fn send(&self, media_type: &'static str, body: Vec<u8>) -> Option<(u16, Bytes)> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.to.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("postern/", env!("CARGO_PKG_VERSION"))));
        let asked = tokio::time::timeout(WITHIN, async {
            let answer = self.client.request(request).await.map_err(|error| in_words(&error))?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|_| "its answer is too long, or broke off".to_owned())?;
            Ok((status, body.to_bytes()))
        });
        let answer = asked.await.unwrap_or_else(|_| Err("it does not answer in time".to_owned()));
        answer.map_err(|why| self.complain(&why)).ok()
    }

    /// Says what is wrong with it, each reason once a minute.
    pub(crate) fn complain(&self, why: &str) {
        self.complaints.tell(why);
    }
}
