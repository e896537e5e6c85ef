//! `postern demo`: the real thing in a scratch folder. A busy cloud in a process of its own, an engine, a gateway, real
//! certificates, real requests through the TLS port; and a check of every claim, so that the exit code means something.

pub(crate) mod client;
mod scenes;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::say;
use stage::Stage;

/// Arguments of `postern demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Leave everything running until Ctrl-C, and say how to reach it, instead of playing the scenes.
    #[arg(long)]
    keep: bool,
    /// With --keep: say it as one line of JSON.
    #[arg(long, requires = "keep")]
    json: bool,
    /// The program that plays the cloud; beside this one by default.
    #[arg(long, value_name = "FILE")]
    busy_cloud: Option<std::path::PathBuf>,
}

/// Runs the demo. The exit code is 0 only if every step did what it says.
///
/// # Errors
/// Something could not be set up.
pub fn run(arguments: &DemoArguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stage = Stage::set(arguments.busy_cloud.as_deref(), arguments.json).await?;
        let played = if arguments.keep { keep(&stage, arguments.json).await } else { scenes::play(&stage).await };
        stage.strike().await;
        played
    })
}

async fn keep(stage: &Stage, json: bool) -> anyhow::Result<ExitCode> {
    let [mut interrupt, mut term, mut hangup] =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    let (gateway, admin) = (stage.gateway, stage.admin);
    let clerk = stage.folder.join("clerk");
    let file = |name: &str| clerk.join(name).display().to_string();
    let config = stage.folder.join("postern.yaml").display().to_string();
    if json {
        let line = serde_json::json!({
            "gateway": format!("https://{gateway}"), "admin": format!("http://{admin}"), "ca": file("ca.pem"),
            "cert": file("cert.pem"), "key": file("key.pem"), "config": config,
            "connect": format!("http://{}/v1", stage.connect), "connect_token": stage.connect_token(),
        });
        say(&line.to_string());
    } else {
        let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
        let (connect, token) = (stage.connect, stage.connect_token().display().to_string());
        let question = r#"-H 'Content-Type: application/json' \
  -d '{"model":"chat","messages":[{"role":"user","content":"Hello"}]}'"#;
        say(&format!(
            "\nPostern serves on https://{gateway} (a fake cloud behind it), operators' side on http://{admin}\n\
             configuration: {config}\n\n\
             export POSTERN_URL=https://{gateway}/v1 POSTERN_CA={ca} POSTERN_CERT={cert} POSTERN_KEY={key}\n\n\
             curl --cacert $POSTERN_CA --cert $POSTERN_CERT --key $POSTERN_KEY $POSTERN_URL/chat/completions \\\n  \
             {question}\n\n\
             For applications without certificates, `postern connect` serves on http://{connect}/v1 and seals what they ask. \
             Their API key is in {token}\n\n\
             curl http://{connect}/v1/chat/completions -H \"Authorization: Bearer $(cat {token})\" \\\n  \
             {question}\n\n\
             Ctrl-C ends everything and removes the folder."
        ));
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = term.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// How long anything in the demo may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(120);
