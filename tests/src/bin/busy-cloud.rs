//! A hosted model that is often busy, for demonstrations, tests and benchmarks.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use postern_tests::busy_cloud::{self, Addresses, Options, Switches};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::json;

/// A hosted model that is often busy: OpenAI-shaped, over HTTPS with a scratch authority. Prints one JSON line with
/// base_url, ca, control, client_cert and client_key when it is ready.
#[derive(Debug, Parser)]
struct Arguments {
    /// HTTPS.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Plain HTTP: PUT and GET /switches, GET and DELETE /stats.
    #[arg(long, default_value = "127.0.0.1:0")]
    control: SocketAddr,
    /// Folder for ca.pem and the certificates.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// End when the process that started this one ends.
    #[arg(long)]
    parent_death: bool,
    /// Take only clients that show client-cert.pem.
    #[arg(long)]
    client_certificates: bool,
    /// Use the authority and the certificates that are in the folder from before.
    #[arg(long)]
    again: bool,
    /// The switches to begin with.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    switches: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.parent_death {
        set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    let options = Options {
        listen: arguments.listen,
        control: arguments.control,
        out: std::path::absolute(arguments.out)?,
        client_certificates: arguments.client_certificates,
        again: arguments.again,
        switches: Switches::parse(arguments.switches.as_bytes()).context("--switches")?,
    };
    let out = options.out.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(busy_cloud::serve(options, |addresses| announce(addresses, &out)))
}

#[expect(clippy::print_stdout, reason = "this line is the program's output")]
fn announce(addresses: Addresses, out: &std::path::Path) {
    let line = json!({
        "base_url": format!("https://{}/v1", addresses.listen),
        "control": format!("http://{}", addresses.control),
        "ca": out.join("ca.pem"),
        "client_cert": out.join("client-cert.pem"),
        "client_key": out.join("client-key.pem"),
    });
    println!("{line}");
}
