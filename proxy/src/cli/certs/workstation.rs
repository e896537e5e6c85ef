//! `postern certs enrol` and `renew`: the workstation's half. Its key is made here and never leaves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use postern_certs::issue::write_beside;
use postern_certs::rotate::{Action, Failures, Schedule};
use postern_certs::{
    CertsError, Clock as _, Csr, IssuedLeaf, JoinToken, Reason, SpiffeId, SystemClock, Trust, material,
};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use tokio_rustls::TlsConnector;

use super::secret;
use crate::cli::say;
use crate::egress;
use crate::enrol::{ENROL_PATH, RENEW_PATH};

/// For the whole exchange.
const WITHIN: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const MAX_ANSWER: usize = 256 << 10;
const NOT_PROVED: &str = "did not prove to be the gateway";
/// Beside the certificate: who the gateway is.
const GATEWAY_FILE: &str = "gateway.json";

#[derive(Debug, Args)]
pub(crate) struct Enrol {
    /// The gateway's `enrol` address, such as ai.branch-17.example.org:8444.
    #[arg(long, value_name = "HOST:PORT")]
    gateway: String,
    /// Where the token is that `certs invite` printed; `-` is the standard input.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Where to write cert.pem, key.pem and ca.pem.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Renew {
    /// The gateway's own address, such as ai.branch-17.example.org:8443.
    #[arg(long, value_name = "HOST:PORT")]
    gateway: String,
    /// The folder that `enrol` wrote.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Also if it is not due.
    #[arg(long)]
    now: bool,
}

pub(super) fn enrol(arguments: &Enrol) -> anyhow::Result<()> {
    told(&arguments.out, &enrol_in(&arguments.out, &arguments.gateway, &arguments.token_file)?)
}

/// Makes a key, and gets a certificate for it with a token.
pub(crate) fn enrol_in(dir: &Path, gateway: &str, token_file: &Path) -> anyhow::Result<IssuedLeaf> {
    let token = JoinToken::parse(&secret(token_file)?)?;
    let csr = Csr::generate(token.id())?;
    let body = json!({"token": token.to_string(), "csr": postern_certs::pem::request(&csr.der)});
    let asked = exchange(gateway, token.client_config()?, ENROL_PATH, &body);
    let answer = asked.map_err(|error| with_advice_for_enrolment(error, gateway))?;
    let roots = certificates(&answer, "ca")?;
    let trusted = token.pinned(&roots);
    ensure!(!trusted.is_empty(), "none of the gateway's roots is the one that the token names");
    finish(dir, &csr, &answer, &trusted, token.gateway())
}

pub(super) fn renew(arguments: &Renew) -> anyhow::Result<()> {
    let dir = &arguments.dir;
    IssuedLeaf::complete(dir).with_context(|| format!("the certificate in {}", dir.display()))?;
    let leaf = read_leaf(dir).with_context(|| format!("the certificate in {}", dir.display()))?;
    let now = SystemClock.now();
    // No jitter: whoever calls this by a timer has its own.
    let due = Schedule::new(leaf.not_before, leaf.not_after, 0.5);
    if !arguments.now && due.next(now, Failures::default()) != Action::RenewNow {
        say(&format!("not due before {}; nothing was done", due.due().format(&Rfc3339)?));
        return Ok(());
    }
    told(dir, &renew_leaf(dir, &leaf, &arguments.gateway)?)
}

/// Replaces certificate and key in a folder now, for a process that keeps its own.
pub(crate) fn renew_in(dir: &Path, gateway: &str) -> anyhow::Result<IssuedLeaf> {
    IssuedLeaf::complete(dir)?;
    renew_leaf(dir, &read_leaf(dir)?, gateway)
}

fn renew_leaf(dir: &Path, leaf: &IssuedLeaf, address: &str) -> anyhow::Result<IssuedLeaf> {
    let roots = certificates_of(&dir.join("ca.pem"))?;
    let gateway = gateway_id(dir, &leaf.id)?;
    let trust = Arc::new(Trust::from_roots(&roots)?);
    let tls = postern_certs::client_config(leaf, &trust, gateway.clone())?;
    let csr = Csr::generate(&leaf.id)?;
    let asked = exchange(address, tls, RENEW_PATH, &renewal(&csr));
    let answer = asked.map_err(with_advice_for_renewal)?;
    take_up(dir, &csr, &answer, &gateway)
}

/// What a renewal asks for.
pub(crate) fn renewal(csr: &Csr) -> Value {
    json!({"csr": postern_certs::pem::request(&csr.der)})
}

/// Takes up the answer to a renewal. It came over a connection that the present roots vouch for, or was sealed by whom they vouch for, so
/// new roots may be taken up too.
pub(crate) fn take_up(dir: &Path, csr: &Csr, answer: &Value, gateway: &SpiffeId) -> anyhow::Result<IssuedLeaf> {
    let roots = certificates(answer, "ca")?;
    finish(dir, csr, answer, &roots, gateway)
}

fn finish(
    dir: &Path,
    csr: &Csr,
    answer: &Value,
    roots: &[CertificateDer<'static>],
    gateway: &SpiffeId,
) -> anyhow::Result<IssuedLeaf> {
    let leaf = material::leaf(certificates(answer, "certificate")?, csr.key.clone_key())?;
    material::check_key(&leaf).context("what the gateway signed is not for the key that was made here")?;
    write_gateway(dir, gateway)
        .and_then(|()| leaf.write(dir, roots))
        .with_context(|| format!("writing to {}", dir.display()))?;
    Ok(leaf)
}

/// Notes who the gateway is, for whoever uses the certificate in this folder.
pub(crate) fn write_gateway(dir: &Path, gateway: &SpiffeId) -> Result<(), CertsError> {
    write_beside(dir, GATEWAY_FILE, json!({"gateway": gateway.to_string()}).to_string().as_bytes())
}

fn told(dir: &Path, leaf: &IssuedLeaf) -> anyhow::Result<()> {
    let until = leaf.not_after.format(&Rfc3339)?;
    say(&format!("{}: cert.pem, key.pem and ca.pem for {}, valid until {until}", dir.display(), leaf.id));
    Ok(())
}

/// The certificate in a folder, also one that has ended.
pub(crate) fn read_leaf(dir: &Path) -> anyhow::Result<IssuedLeaf> {
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).context("key.pem")?;
    let leaf = material::leaf(certificates_of(&dir.join("cert.pem"))?, key)?;
    material::check_key(&leaf).context("key.pem does not belong to cert.pem")?;
    Ok(leaf)
}

/// As noted when it was enrolled; else the gateway of the whole trust domain.
pub(crate) fn gateway_id(dir: &Path, own: &SpiffeId) -> anyhow::Result<SpiffeId> {
    let Ok(text) = std::fs::read_to_string(dir.join(GATEWAY_FILE)) else {
        return Ok(SpiffeId::gateway(own.trust_domain())?);
    };
    let about: Value = serde_json::from_str(&text).context(GATEWAY_FILE)?;
    let id =
        about.get("gateway").and_then(Value::as_str).with_context(|| format!("{GATEWAY_FILE} has no `gateway`"))?;
    Ok(id.parse()?)
}

fn exchange(gateway: &str, tls: Arc<ClientConfig>, path: &str, body: &Value) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async { tokio::time::timeout(WITHIN, post(gateway, tls, path, body)).await });
    asked.map_err(|_| anyhow::anyhow!("{gateway} did not answer within {} s", WITHIN.as_secs()))?
}

async fn post(gateway: &str, tls: Arc<ClientConfig>, path: &str, body: &Value) -> anyhow::Result<Value> {
    let (host, _) = gateway.rsplit_once(':').context("--gateway is HOST:PORT")?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).context("--gateway is HOST:PORT")?;
    let stream = egress::dial_gateway(gateway).await.with_context(|| format!("connecting to {gateway}"))?;
    // One request: HTTP/1.1 whatever else is offered.
    let mut tls = ClientConfig::clone(&tls);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await;
    let stream = stream.with_context(|| format!("{gateway} {NOT_PROVED}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, gateway)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(anyhow::Error::from_boxed)?;
    driver.abort();
    let answer: Value = serde_json::from_slice(&answer.to_bytes()).context("not an answer of a gateway")?;
    if !status.is_success() {
        let why = answer.pointer("/error/message").and_then(Value::as_str).unwrap_or("it did not say why");
        bail!("{gateway} refused ({status}): {why}");
    }
    Ok(answer)
}

/// With another authority than the one that the token pins, it is another address, or somebody on the way: what TLS says of that helps nobody.
fn with_advice_for_enrolment(error: anyhow::Error, gateway: &str) -> anyhow::Error {
    const WHAT: &str = "it has to be the gateway's `enrol` address, which is another one than `listen`";
    match reason(&error) {
        Some(Reason::UnknownAuthority) => {
            anyhow!("{gateway} {NOT_PROVED} that the token is of: {WHAT}, and nothing may break TLS open on the way")
        }
        _ if error.to_string().ends_with(NOT_PROVED) => error.context(WHAT),
        _ if is_refused(&error) => {
            error.context("nobody listens there: is `enrol` in the gateway's configuration, and does the gateway run?")
        }
        _ => error,
    }
}

fn with_advice_for_renewal(error: anyhow::Error) -> anyhow::Error {
    match reason(&error) {
        Some(Reason::UnknownAuthority) => anyhow!(
            "{error:#}; if a middlebox breaks TLS open here: renewal needs a direct way to the gateway, see docs/nodes.md"
        ),
        _ => error,
    }
}

/// Why the peer's certificate was refused, if it was.
fn reason(error: &anyhow::Error) -> Option<Reason> {
    let mut inner = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()?.get_ref());
    Reason::of_handshake(inner.find_map(|inner| inner.downcast_ref())?)
}

fn is_refused(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::ConnectionRefused)
}

fn certificates(answer: &Value, field: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = answer.get(field).and_then(Value::as_str).with_context(|| format!("the answer has no `{field}`"))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    certificates.with_context(|| format!("`{field}` of the answer"))
}

/// Those in a file.
pub(crate) fn certificates_of(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>();
    read().with_context(|| path.display().to_string())
}
