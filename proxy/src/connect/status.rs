//! `postern connect status`: what a running connector says of itself, at a path of its own.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http::Request;
use http::header::{AUTHORIZATION, HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use postern_certs::rfc3339;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::front::Front;
use super::token::Token;
use crate::cli::say;
use crate::egress;

/// Where a connector says how it is.
pub(crate) const PATH: &str = "/postern/status";
/// In the connector's folder, for as long as it runs.
const FILE: &str = "connect.json";
const WITHIN: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 64 << 10;

/// Where a running connector is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) url: String,
    pub(super) socket: Option<String>,
    pub(super) pid: u32,
}

impl Place {
    /// Writes it down.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let (path, new) = (dir.join(FILE), dir.join(".connect.json.new"));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(serde_json::to_string(self)?.as_bytes())?;
            std::fs::rename(&new, &path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }

    /// It runs no more.
    pub(super) fn remove(dir: &Path) {
        if let Err(error) = std::fs::remove_file(dir.join(FILE)) {
            tracing::debug!(%error, "{FILE} could not be removed");
        }
    }
}

/// Arguments of `postern connect status`.
#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// The connector's folder.
    #[arg(long, value_name = "FOLDER")]
    dir: std::path::PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &StatusArguments) -> anyhow::Result<ExitCode> {
    let dir = &arguments.dir;
    let stopped = || format!("no `postern connect` is running with {}", dir.display());
    // Somebody else may listen where it did: nobody is shown the token but who holds the lock in the folder.
    ensure!(super::is_locked(dir)?, "{}", stopped());
    let place = std::fs::read(dir.join(FILE)).with_context(stopped)?;
    let place: Place = serde_json::from_slice(&place).with_context(stopped)?;
    let token = Token::present(dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async { tokio::time::timeout(WITHIN, ask(&place, token.as_ref())).await });
    let answer = asked.context("it did not answer in time").flatten().with_context(stopped)?;
    if arguments.json {
        say(&serde_json::to_string_pretty(&answer)?);
    } else {
        in_words(&answer, &place).iter().for_each(|line| say(line));
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(place: &Place, token: Option<&Token>) -> anyhow::Result<Value> {
    let address = place.url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let address: SocketAddr = address.parse().context("its address")?;
    let stream = egress::dial(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::get(PATH).header(HOST, address.to_string());
    if let Some(token) = token.and_then(Token::header) {
        request = request.header(AUTHORIZATION, token);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(anyhow::Error::from_boxed)?;
    driver.abort();
    ensure!(status.is_success(), "it answers {status}");
    let answer: Value = serde_json::from_slice(&answer.to_bytes()).context("it is something else")?;
    if answer.get("identity").is_none() {
        bail!("it is something else");
    }
    Ok(answer)
}

fn in_words(status: &Value, place: &Place) -> Vec<String> {
    let text = |pointer: &str| match status.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let is_connected = status.pointer("/connected") == Some(&Value::Bool(true));
    let connected =
        if is_connected { format!("connected since {}", text("/since")) } else { "not connected".to_owned() };
    let mut lines = vec![
        format!(
            "listening    {}{}",
            place.url,
            place.socket.as_ref().map(|at| format!(" and {at}")).unwrap_or_default()
        ),
        format!("identity     {}", text("/identity")),
        format!("gateway      {} at {}, {connected}", text("/gateway"), text("/gateway_address")),
        format!(
            "certificate  until {}, renewed from {}",
            text("/certificate/not_after"),
            text("/certificate/renew_due")
        ),
    ];
    if !is_connected && text("/last_error") != "-" {
        lines.insert(3, format!("             {}", text("/last_error")));
    }
    if text("/certificate/last_error") != "-" {
        lines.push(format!("             the last renewal failed: {}", text("/certificate/last_error")));
    }
    if is_connected {
        lines.push(format!("keys         number {}, until {}", text("/keys/id"), text("/keys/until")));
    }
    let (total, under_way, failed) = (text("/requests/total"), text("/requests/under_way"), text("/requests/failed"));
    lines.push(format!("requests     {total}, {under_way} under way, {failed} failed"));
    if let Some(Value::Object(_)) = status.pointer("/last_failure") {
        let (at, code, why) = (text("/last_failure/at"), text("/last_failure/code"), text("/last_failure/message"));
        lines.push(format!(
            "             the last that failed, at {at}: {} {code}: {why}",
            text("/last_failure/status")
        ));
    }
    lines
}

/// What a connector says of itself: no content, and no token.
pub(super) fn of(front: &Front) -> Value {
    let (identity, current, held) = (&front.identity, front.identity.current(), front.link.present());
    let key = held.as_ref().map(|held| held.key());
    let until = key.as_ref().and_then(|key| i64::try_from(key.until).ok());
    let until = until.and_then(|until| OffsetDateTime::from_unix_timestamp(until).ok());
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    json!({
        "identity": identity.own().to_string(),
        "gateway": identity.gateway().to_string(),
        "gateway_address": front.link.address(),
        "connected": held.is_some(),
        "since": held.as_ref().map(|held| rfc3339(held.since())),
        "last_error": front.link.trouble(),
        "certificate": {
            "not_after": rfc3339(current.not_after),
            "renew_due": rfc3339(current.schedule.due()),
            "last_error": identity.last_error(),
        },
        "keys": key.as_ref().map(|key| json!({"id": key.config.id(), "until": until.map(rfc3339)})),
        "requests": {
            "total": count(&front.counts.total),
            "under_way": count(&front.counts.under_way),
            "failed": count(&front.counts.failed),
        },
        "last_failure": front.counts.last_failure().map(|failure| json!({
            "at": rfc3339(failure.at),
            "status": failure.refusal.status().as_u16(),
            "code": failure.refusal.code(),
            "message": failure.refusal.told(),
        })),
        "version": env!("CARGO_PKG_VERSION"),
    })
}
