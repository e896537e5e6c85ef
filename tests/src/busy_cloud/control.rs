//! The other port: plain HTTP on loopback, through which a test sets switches and reads statistics.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;

use super::Switches;
use super::server::Cloud;

/// Bytes of a set of switches.
const MAX_BODY: usize = 1 << 20;

pub(super) async fn handle(cloud: Arc<Cloud>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let method = request.method().clone();
    let (status, body) = match (method, request.uri().path()) {
        (Method::PUT, "/switches") => put_switches(&cloud, request.into_body()).await,
        (Method::GET, "/switches") => json(&*cloud.switches()),
        (Method::GET, "/stats") => json(&*cloud.stats.report()),
        (Method::DELETE, "/stats") => {
            cloud.stats.reset();
            (StatusCode::NO_CONTENT, String::new())
        }
        _ => (StatusCode::NOT_FOUND, "PUT or GET /switches; GET or DELETE /stats\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    Ok(response)
}

async fn put_switches(cloud: &Cloud, body: Incoming) -> (StatusCode, String) {
    let read = Limited::new(body, MAX_BODY).collect().await;
    match read.map_err(anyhow::Error::from_boxed).and_then(|body| Switches::parse(&body.to_bytes())) {
        Ok(switches) => {
            cloud.switch(switches);
            (StatusCode::NO_CONTENT, String::new())
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}\n")),
    }
}

fn json(value: &impl serde::Serialize) -> (StatusCode, String) {
    match serde_json::to_string(value) {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
