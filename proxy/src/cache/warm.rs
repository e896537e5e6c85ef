//! What is asked before anybody asks it, so that the answers are there when people come to work: by `postern cache warm` through the
//! gateway's port, or by the gateway itself when it starts.

use std::future::Future;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postern_certs::SpiffeId;
use postern_certs::verify::Peer as Leaf;
use postern_wire::call::Endpoint;
use serde_json::Value;
use time::OffsetDateTime;

use crate::config::Config;
use crate::connection::session::Session;
use crate::demo::client::{Answer, exchange};
use crate::gateway::Gateway;
use crate::open::Payload;
use crate::pipeline;
use crate::request::Peer;

/// Bytes of one line.
const MAX_LINE: u64 = 8 << 20;
/// Bytes of all lines.
const MAX_FILE: u64 = 256 << 20;
/// How often a request that comes too early is sent again, and how long is waited for it at most.
const TRIES: u32 = 20;
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Requests at a time at the start: those of people go on meanwhile.
const PARALLEL: usize = 2;
/// Bytes under way between the gateway and itself.
const PIPE: usize = 64 << 10;
/// Why a line is not asked.
pub(crate) const NOBODY: &str = "no rule of `identities` matches the ID in `as`";
const DAY: time::Duration = time::Duration::DAY;

/// One line of a file.
#[derive(Debug)]
pub(crate) struct Line {
    /// From 1.
    pub(crate) number: usize,
    /// Whose answer it is to be; `None`: the file does not say.
    pub(crate) identity: Option<SpiffeId>,
    /// Where it is asked.
    pub(crate) path: &'static str,
    /// The body.
    pub(crate) body: String,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Answered, and kept if the answer is fit for it.
    pub(crate) kept: usize,
    /// Known before.
    pub(crate) there: usize,
    /// Not for the cache.
    pub(crate) bypassed: usize,
    /// Not answered.
    pub(crate) failed: usize,
}

/// All lines of a file. A mistake in the last line is told before the first one is paid for.
///
/// # Errors
/// Says which line is no request, and why.
pub(crate) fn read(file: &Path) -> anyhow::Result<Vec<Line>> {
    let name = file.display();
    let opened = std::fs::File::open(file).with_context(|| format!("{name}"))?;
    let mut reader = BufReader::new(opened);
    let (mut lines, mut bytes) = (Vec::new(), 0);
    for number in 1.. {
        let mut text = String::new();
        let read = reader.by_ref().take(MAX_LINE + 1).read_line(&mut text);
        let read = read.with_context(|| format!("{name}: line {number}"))? as u64;
        bytes += read;
        if read > MAX_LINE || bytes > MAX_FILE {
            bail!("{name}: line {number}: a line has at most 8 MiB, and all of them 256 MiB");
        }
        if read == 0 {
            break;
        }
        if !text.trim().is_empty() {
            lines.push(line(number, text.trim()).with_context(|| format!("{name}: line {number}"))?);
        }
    }
    if lines.is_empty() {
        bail!("{name} has no requests");
    }
    Ok(lines)
}

/// A body alone, or with whose it is: `{"as": "spiffe://…", "body": {…}}`. What it asks for shows by its fields, as in the API.
fn line(number: usize, text: &str) -> anyhow::Result<Line> {
    let mut body: Value =
        serde_json::from_str(text).map_err(|error| anyhow::anyhow!("not JSON, at column {}", error.column()))?;
    let mut identity = None;
    if let Some(named) = body.get("as").and_then(Value::as_str) {
        identity = Some(named.parse().map_err(|error| anyhow::anyhow!("`as`: {error}"))?);
        body = body.get_mut("body").map(Value::take).context("`as` without a `body`")?;
    }
    let paths = [("messages", "/v1/chat/completions"), ("prompt", "/v1/completions"), ("input", "/v1/embeddings")];
    let path = paths.iter().find(|(field, _)| body.get(field).is_some());
    let (_, path) = path.context("not a request: it has neither `messages`, nor `prompt`, nor `input`")?;
    Ok(Line { number, identity, path, body: body.to_string() })
}

/// Asks all lines, `parallel` at a time; those that come too early again. `tell` gets what went wrong with a line.
///
/// # Errors
/// A request could not be sent at all: the others would not do better.
pub(crate) async fn warm<F: Future<Output = anyhow::Result<Answer>>>(
    lines: Vec<Line>,
    parallel: usize,
    ask: impl Fn(Arc<Line>) -> F,
    tell: impl Fn(usize, &str),
) -> anyhow::Result<Counts> {
    let ask = &ask;
    let asked = futures_util::stream::iter(lines).map(|line| async move {
        let line = Arc::new(line);
        (line.number, patiently(|| ask(line.clone())).await)
    });
    let mut asked = asked.buffer_unordered(parallel);
    let mut counts = Counts::default();
    while let Some((number, answer)) = asked.next().await {
        let answer = answer.with_context(|| format!("line {number}"))?;
        match (answer.status, answer.header("postern-cache")) {
            (200, _) if !answer.complete => {
                tell(number, "the answer broke off");
                counts.failed += 1;
            }
            (200, "exact" | "semantic" | "shared") => counts.there += 1,
            (200, "miss") => counts.kept += 1,
            (200, _) => counts.bypassed += 1,
            (status, _) => {
                let error: Value = serde_json::from_str(&answer.text).unwrap_or_default();
                let message = error.pointer("/error/message").and_then(Value::as_str).unwrap_or("no reason was given");
                tell(number, &format!("status {status}: {message}"));
                counts.failed += 1;
            }
        }
    }
    Ok(counts)
}

/// Asks, and again where a limit, or an engine that starts, wants it later.
async fn patiently<F: Future<Output = anyhow::Result<Answer>>>(ask: impl Fn() -> F) -> anyhow::Result<Answer> {
    let mut tries = 0;
    loop {
        let answer = ask().await?;
        let later = answer.header("retry-after").parse().ok().map(Duration::from_secs);
        tries += 1;
        // A limit of the day is not waited for.
        match later.filter(|later| matches!(answer.status, 429 | 503) && tries < TRIES && *later <= MAX_WAIT) {
            Some(later) => tokio::time::sleep(later).await,
            None => return Ok(answer),
        }
    }
}

/// Asks what the file of the configuration has, as those whose answers they are to be: through the whole pipeline, with their label, limits
/// and records.
pub(crate) async fn at_start(gateway: Arc<Gateway>) {
    let Some(file) = gateway.config.cache.as_ref().and_then(|cache| cache.warm.clone()) else { return };
    let name = file.display().to_string();
    let lines = match tokio::task::spawn_blocking(move || read_named(&file)).await {
        Ok(Ok(lines)) => lines,
        Ok(Err(error)) => return tracing::error!("the cache is not warmed: {error:#}"),
        Err(_panicked) => return,
    };
    let tell =
        |number, what: &str| tracing::warn!(file = name, line = number, "the cache is not warmed with it: {what}");
    let (lines, strangers): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| is_known(&gateway.config, line));
    strangers.iter().for_each(|line| tell(line.number, NOBODY));
    let asked = warm(lines, PARALLEL, |line| ask_inside(gateway.clone(), line), tell).await;
    match asked {
        Ok(Counts { kept, there, bypassed, failed }) => {
            let failed = failed + strangers.len();
            tracing::info!(file = name, kept, there, bypassed, failed, "the cache was warmed");
        }
        Err(error) => tracing::error!(file = name, "the cache is not warmed: {error:#}"),
    }
}

/// Is it asked as somebody whom a rule matches?
pub(crate) fn is_known(config: &Config, line: &Line) -> bool {
    line.identity.as_ref().is_some_and(|id| Peer::resolve(config, id).is_ok())
}

/// All lines of a file, each of which says whose it is.
///
/// # Errors
/// As [`read`], and a line that does not.
pub(crate) fn read_named(file: &Path) -> anyhow::Result<Vec<Line>> {
    let lines = read(file)?;
    match lines.iter().find(|line| line.identity.is_none()) {
        Some(line) => {
            bail!(
                "{}: line {}: it does not say whose answer it is: {{\"as\": \"spiffe://…\", \"body\": {{…}}}}",
                file.display(),
                line.number
            )
        }
        None => Ok(lines),
    }
}

async fn ask_inside(gateway: Arc<Gateway>, line: Arc<Line>) -> anyhow::Result<Answer> {
    let id = line.identity.clone().context("nobody is named")?;
    let peer = Peer::resolve(&gateway.config, &id).map_err(|error| anyhow::anyhow!("{id}: {error}"))?;
    let endpoint = Endpoint::of(line.path).context("no such endpoint")?;
    let until = OffsetDateTime::now_utc() + DAY;
    let session = Arc::new(Session::new(Leaf::inside(id, until), until));
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let service = service_fn(move |request: Request<Incoming>| {
        let (gateway, session, peer) = (gateway.clone(), session.clone(), peer.clone());
        let request = request.map(Payload::Inside);
        async move { Ok::<_, std::convert::Infallible>(pipeline::call(&gateway, &session, peer, endpoint, request).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
    let request = Request::post(line.path).header("host", "localhost").header("content-type", "application/json");
    let request = request.body(Full::new(line.body.clone().into()))?;
    let asking = exchange(ours, request);
    tokio::select! {
        answer = asking => answer,
        _ended = async { drop(serving.await); std::future::pending::<()>().await } => bail!("it was not served"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_line_is_a_request_or_it_is_said_which_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("warm.jsonl");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            super::read(&file).map_err(|error| format!("{error:#}"))
        };
        let lines = read("{\"messages\": []}\n\n {\"prompt\": \"a\"}\r\n{\"input\": \"a\"}").unwrap();
        let told: Vec<_> = lines.iter().map(|line| (line.number, line.path)).collect();
        assert_eq!(told, [(1, "/v1/chat/completions"), (3, "/v1/completions"), (4, "/v1/embeddings")]);
        for (text, wanted) in [
            ("{\"messages\": []}\n{\"message\": []}", "line 2: not a request"),
            ("{\"messages\": [}", "line 1: not JSON, at column 15"),
            ("{\"as\": \"clerk\", \"body\": {\"messages\": []}}", "line 1: `as`"),
            ("{\"as\": \"spiffe://b.example/clerk/amy\"}", "`as` without a `body`"),
            ("\n\n", "has no requests"),
        ] {
            let error = read(text).err().unwrap();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(super::read(&dir.path().join("other")).is_err());
        let named = "{\"as\": \"spiffe://b.example/clerk/amy\", \"body\": {\"prompt\": \"a\"}}";
        assert_eq!(read(named).unwrap()[0].body, "{\"prompt\":\"a\"}");
        let all = super::read_named(&file).unwrap();
        assert_eq!(all[0].identity, Some("spiffe://b.example/clerk/amy".parse().unwrap()));
        read(&format!("{named}\n{{\"prompt\": \"a\"}}")).unwrap();
        assert!(super::read_named(&file).unwrap_err().to_string().contains("line 2"));
    }
}
