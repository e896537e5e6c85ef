//! What memory the processes take, as the kernel counts it: with real models, through the real program.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use postern_engine::catalog;
use postern_tests::postern::binary;
use postern_tests::process::{Process, anonymous_bytes, resident_bytes};
use postern_tests::{Config, Postern};
use serde_json::json;

/// A model is read and has said something in this time, also where much else goes on.
const LOADED_WITHIN: Duration = Duration::from_secs(180);
/// Without policies, and with 32 streams that pass through. Measured: 4 MB.
const GATEWAY_BYTES_MAX: u64 = 64_000_000;
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Resident and anonymous bytes.
#[derive(Debug, Clone, Copy)]
struct Memory {
    resident: u64,
    anonymous: u64,
}

impl Memory {
    fn of(pid: u32) -> Result<Self> {
        let (resident, anonymous) = resident_bytes(pid).zip(anonymous_bytes(pid)).context("the process is gone")?;
        Ok(Self { resident, anonymous })
    }

    fn most(self, other: Self) -> Self {
        Self { resident: self.resident.max(other.resident), anonymous: self.anonymous.max(other.anonymous) }
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} MB resident, {} MB anonymous", self.resident / 1_000_000, self.anonymous / 1_000_000)
    }
}

/// A table of 262,144 tokens takes 0.7 GB when it is expanded: it must stay as it is in the file.
#[tokio::test]
async fn gemma_takes_no_more_than_twice_its_file() -> Result<()> {
    let Ok(path) = catalog::locate("gemma-3-270m") else {
        eprintln!("skipped: `postern model pull gemma-3-270m` fetches the model");
        return Ok(());
    };
    let mut command = Command::new(binary()?);
    command.args(["model", "bench", "--cpu", "gemma-3-270m"]);
    let mut measuring = Process::start("postern", command)?;
    // With this line it has said a first token; it goes on with a prompt, whose memory is little beside that of weights.
    measuring.line(LOADED_WITHIN, |line| line.contains("ready after").then_some(())).await?;
    let (memory, file) = (Memory::of(measuring.pid())?, std::fs::metadata(path)?.len());
    eprintln!("Gemma, a file of {} MB: {memory}", file / 1_000_000);
    assert!(memory.anonymous <= 2 * file, "{memory}");
    Ok(())
}

#[tokio::test]
async fn answers_side_by_side_take_little_beside_the_weights() -> Result<()> {
    let patience = json!({"first_token": "8m", "idle": "8m", "total": "10m"});
    let postern = Postern::start(&Config::new().engine().set("/timeouts", patience)).await?;
    postern.engine_ready().await?;
    let pids = ["gateway", "engine"].map(|name| postern.child(name));
    let [Some(gateway), Some(engine)] = pids else { anyhow::bail!("{pids:?} run") };
    let now = || Ok::<_, anyhow::Error>([Memory::of(gateway)?, Memory::of(engine)?]);
    let (idle, client) = (now()?, postern.client("clerk/amy")?);
    let answers = join_all((0..32).map(|number| {
        let client = client.clone();
        let body = json!({
            "model": "chat", "max_tokens": 48, "temperature": 2.0, "seed": number,
            "messages": [{"role": "user", "content": format!("Write a long story about the number {number}.")}],
        });
        async move {
            let mut stream = client.stream(&body).await?;
            ensure!(stream.status == 200, "status {}", stream.status);
            stream.rest().await
        }
    }));
    let (mut answers, mut most) = (std::pin::pin!(answers), idle);
    let answers = loop {
        let ended = tokio::time::timeout(LOOK_EVERY, answers.as_mut()).await;
        let [of_gateway, of_engine] = now()?;
        most = [most[0].most(of_gateway), most[1].most(of_engine)];
        if let Ok(answers) = ended {
            break answers;
        }
    };
    for events in answers {
        ensure!(events?.last().is_some_and(|event| event.is_done()), "no end");
    }
    let file = std::fs::metadata(catalog::locate("smollm2-135m-instruct")?)?.len();
    for (at, name) in ["gateway", "engine"].into_iter().enumerate() {
        eprintln!("{name}: idle {}; with 32 answers {}", idle[at], most[at]);
    }
    assert!(idle[1].anonymous <= 2 * file, "the engine, idle: {}", idle[1]);
    // Beside the weights there are keys and values of 32 answers, and the logits of one token of each.
    assert!(most[1].anonymous <= 3 * file, "the engine: {}", most[1]);
    assert!(most[0].anonymous <= GATEWAY_BYTES_MAX, "the gateway: {}", most[0]);
    Ok(())
}
