//! A stream whose headers go out before it is known who answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use postern_wire::sse;

use super::outlet::Outlet;
use super::{Body, Cut, EVENTS, known_headers};
use crate::error::Error;

/// What is known of an answer when its headers have to go out before it has begun.
#[derive(Debug)]
pub struct Head {
    /// They have gone out: with status 200, whatever comes of it.
    pub sent: AtomicBool,
    /// The final label.
    pub label: String,
    /// Where it may be answered.
    pub placement: &'static str,
    /// Why.
    pub reason: &'static str,
    /// How the cache was used.
    pub cache: &'static str,
}

/// A streamed response whose headers go out now: comments keep the connection open until there is an answer, which then follows,
/// or an error in its place. Source of the comments: the HTML standard, 9.2.7, which asks for one every 15 s or so.
pub fn late(
    head: &Head,
    keep_alive: Duration,
    answering: impl Future<Output = Result<Response<Body>, Error>> + Send + 'static,
) -> Response<Body> {
    head.sent.store(true, Ordering::Relaxed);
    let (outlet, body) = Outlet::new();
    tokio::spawn(wait(keep_alive, answering, outlet));
    let mut response = Response::new(body);
    *response.headers_mut() = known_headers(EVENTS, [head.placement, head.reason, head.cache]);
    response
}

async fn wait(keep_alive: Duration, answering: impl Future<Output = Result<Response<Body>, Error>>, outlet: Outlet) {
    let mut answering = std::pin::pin!(answering);
    let answered = loop {
        let waited = async {
            let _read = outlet.send(Bytes::from_static(sse::COMMENT.as_bytes())).await;
            tokio::time::sleep(keep_alive).await;
        };
        tokio::select! {
            biased;
            // Dropping what is under way cancels it.
            () = outlet.closed() => return,
            answered = &mut answering => break answered,
            () = waited => {}
        }
    };
    let mut body = match answered {
        Ok(response) => response.into_body(),
        Err(error) => {
            let _read = outlet.send(sse::data(&error.reply().body.to_json())).await;
            return;
        }
    };
    loop {
        let frame = tokio::select! {
            biased;
            () = outlet.closed() => return,
            frame = body.frame() => frame,
        };
        let bytes = match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(bytes))) => bytes,
            Some(Ok(Err(_)) | Err(Cut)) => return outlet.cut(),
            None => return,
        };
        if !outlet.send(bytes).await {
            return;
        }
    }
}
