//! A load generator for gateways and clouds of the OpenAI kind.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use postern_tests::load::{self, Options, Report};

/// Keeps a number of connections busy with one request each and says how fast the answers came.
#[derive(Debug, Parser)]
struct Arguments {
    /// Such as https://127.0.0.1:8443/v1/chat/completions; http:// for a port on this machine, such as a connector's.
    #[arg(long)]
    url: Uri,
    /// The authority to trust (PEM); not needed for http://.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The client certificate with its chain (PEM).
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Requests at a time, each on a connection of its own.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Measured time.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Time before it, with the same load, in seconds.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    warmup: f64,
    /// The body to send.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["handshakes", "idle"])]
    body: Option<PathBuf>,
    /// GET on a new connection each time, to measure handshakes.
    #[arg(long)]
    handshakes: bool,
    /// X25519 as the only key exchange.
    #[arg(long)]
    classical: bool,
    /// Open so many connections, say `open`, and hold them until the standard input ends.
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["handshakes", "stream"])]
    idle: Option<usize>,
    /// Another header, such as "Authorization: Bearer key"; may be given more than once.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The answer is a stream of events.
    #[arg(long)]
    stream: bool,
    /// HTTP/2 instead of HTTP/1.1.
    #[arg(long)]
    http2: bool,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (json, idle) = (arguments.json, arguments.idle);
    // One thread: see the module `load`.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(count) = idle {
        return runtime.block_on(load::idle(options(arguments)?, count, say_open, end_of_input()));
    }
    let report = runtime.block_on(load::run(options(arguments)?))?;
    print(&report, json)?;
    ensure!(report.completed > 0, "no request was answered with status 200");
    Ok(())
}

fn options(arguments: Arguments) -> Result<Options> {
    let body = match &arguments.body {
        Some(path) => std::fs::read(path).with_context(|| format!("the body {}", path.display()))?,
        None => Vec::new(),
    };
    ensure!(arguments.seconds > 0.0, "--seconds is more than 0");
    Ok(Options {
        url: arguments.url,
        ca: arguments.ca,
        identity: arguments.cert.zip(arguments.key),
        connections: arguments.connections,
        measure: Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?,
        warmup: Duration::try_from_secs_f64(arguments.warmup).context("--warmup")?,
        body: body.into(),
        headers: headers(&arguments.headers)?,
        stream: arguments.stream,
        http2: arguments.http2,
        handshakes: arguments.handshakes,
        classical: arguments.classical,
    })
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
fn say_open() {
    println!("open");
}

async fn end_of_input() {
    // What comes does not matter, and an error is an end as well.
    let read = || std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    let _end = tokio::task::spawn_blocking(read).await;
}

fn headers(lines: &[String]) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line}"))?;
        headers.append(HeaderName::try_from(name)?, HeaderValue::try_from(value.trim())?);
    }
    Ok(headers)
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    println!("requests/s    {:10.1}   ({} in {} s)", report.requests_per_second, report.completed, report.seconds);
    println!("p50           {:10.3} ms", report.p50_ms);
    println!("p99           {:10.3} ms", report.p99_ms);
    println!("slowest       {:10.3} ms", report.max_ms);
    println!("first byte    {:10.3} ms (p50)", report.ttfb_p50_ms);
    if let (Some(text), Some(half), Some(most)) = (report.ttft_p50_ms, report.gap_p50_ms, report.gap_p99_ms) {
        println!("first text    {text:10.3} ms (p50)");
        println!("between       {half:10.3} ms (p50), {most:.3} ms (p99)");
    }
    println!("errors        {:6}       {}", report.errors, report.first_error.as_deref().unwrap_or(""));
    println!("statuses      {:?}", report.statuses);
    Ok(())
}
