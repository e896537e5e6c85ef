//! The way to the gateway that keeps a copy of the log: mutual TLS between two gateways, each of which knows whom it expects.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Limited};
use postern_certs::SpiffeId;

use super::node::{Node, Proof};
use crate::tls::Certificate;

/// For name, TCP and TLS together.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// From the first byte of the question to the last of the answer: a disk may be slow.
const WITHIN: Duration = Duration::from_secs(60);
/// Bytes of an answer.
const MAX_ANSWER: usize = 16 << 10;

/// One log at one gateway.
#[derive(Debug)]
pub(crate) struct CopyWay {
    node: Node,
    to: Uri,
}

impl CopyWay {
    /// Connects to nothing yet. `None`: there is no such address.
    pub(crate) fn new(to: &Uri, path: &str, identity: SpiffeId, certificate: &Arc<Certificate>) -> Option<Self> {
        let mut parts = to.clone().into_parts();
        parts.path_and_query = Some(path.parse().ok()?);
        let to = Uri::from_parts(parts).ok()?;
        let what = format!("the gateway {identity} has no copy of the newest records");
        let proof = Proof { identity, is_sealed: false, middlebox: None };
        Some(Self { node: Node::named("audit.copy".into(), what, proof, certificate.clone(), CONNECT_WITHIN), to })
    }

    /// Asks without a body, or sends one; returns status and body of the answer. Why there is none is in the log.
    pub(crate) async fn ask(&self, body: Option<Vec<u8>>) -> Option<(u16, Bytes)> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::new(Bytes::from(body.unwrap_or_default()));
        *request.method_mut() = method;
        *request.uri_mut() = self.to.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("postern/", env!("CARGO_PKG_VERSION"))));
        let asked = tokio::time::timeout(WITHIN, async {
            // What went wrong is told by the node.
            let answer = self.node.request(request).await.ok()?;
            let status = answer.status().as_u16();
            match Limited::new(answer.into_body(), MAX_ANSWER).collect().await {
                Ok(body) => Some((status, body.to_bytes())),
                Err(_) => {
                    self.complain("its answer is too long, or broke off");
                    None
                }
            }
        });
        asked.await.unwrap_or_else(|_| {
            self.complain("it does not answer in time");
            None
        })
    }

    /// Says what is wrong with it, each reason once a minute.
    pub(crate) fn complain(&self, why: &str) {
        self.node.complain(why);
    }
}
