//! Plays a day on which the cloud is busy, in three set-ups after each other, and prints what became of the requests as JSON.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use postern_tests::day::{self, Day, SetUp};

/// The same load of requests, with a cloud that refuses 35 % of them, takes 60 a minute and dies twice: for a client that tries
/// again by itself, for Postern with two nodes, and for Postern with the engine on this machine as well.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long each of the three is.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Requests a second.
    #[arg(long, default_value_t = 2.0)]
    rate: f64,
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut reports = Vec::new();
    for set_up in [SetUp::Alone, SetUp::Nodes, SetUp::Local] {
        let lasts = Duration::from_secs(arguments.seconds);
        reports.push(runtime.block_on(day::play(&Day {
            lasts,
            per_second: arguments.rate,
            cloud_takes: 60,
            set_up,
        }))?);
    }
    println!("{}", serde_json::to_string(&reports)?);
    Ok(())
}
