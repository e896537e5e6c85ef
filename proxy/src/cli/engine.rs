//! `postern engine`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use postern_engine::{DeviceChoice, Embedder, Engine, EngineError, EngineOptions, Progress, catalog};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::supervise::{self, pulse};

#[derive(Debug, Args)]
pub(super) struct EngineArguments {
    /// A name of `postern model list`, a GGUF file, or a folder with safetensors.
    #[arg(long)]
    model: String,
    /// The gateway's UNIX socket.
    #[arg(long, value_name = "SOCKET")]
    connect: PathBuf,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
    /// Sequences at a time.
    #[arg(long, default_value_t = 32)]
    max_batch_size: usize,
    /// How long an idle engine waits for more requests.
    #[arg(long, default_value_t = 50, value_name = "MS")]
    max_wait_ms: u64,
    /// Requests that may wait for a sequence.
    #[arg(long, default_value_t = 256)]
    max_queue: usize,
    /// Memory for keys and values, in bytes.
    #[arg(long, default_value_t = 2 << 30, value_name = "BYTES")]
    kv_bytes: usize,
    /// Keep keys and values in eight bits, not sixteen.
    #[arg(long)]
    kv_eight_bit: bool,
    /// How long a step of the model may take; an engine that needs longer hangs, and ends.
    #[arg(long, default_value_t = 120_000, value_name = "MS")]
    hung_after_ms: u64,
    /// End when the process that started this one ends, and tell it on standard output that this one does not hang.
    #[arg(long, hide = true)]
    supervised: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
}

pub(super) fn run(arguments: EngineArguments) -> anyhow::Result<ExitCode> {
    if arguments.supervised {
        supervise::die_with_parent(rustix::process::Signal::KILL)?;
    }
    // Loading may take minutes, and no other thread of this process runs meanwhile.
    let loading = arguments.supervised.then(pulse::beat_from_a_thread).transpose()?;
    let file = catalog::locate(&arguments.model)?;
    let mut options = EngineOptions::new(file, config::Engine::own_name(&arguments.model));
    options.device = if arguments.device == Device::Cpu { DeviceChoice::Cpu } else { DeviceChoice::Auto };
    options.max_batch_size = arguments.max_batch_size;
    options.max_wait = Duration::from_millis(arguments.max_wait_ms);
    options.max_queue = arguments.max_queue;
    options.kv_bytes = arguments.kv_bytes;
    options.kv_eight_bit = arguments.kv_eight_bit;
    options.hung_after = Duration::from_millis(arguments.hung_after_ms);
    let loaded = Loaded::load(&options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        if arguments.supervised {
            tokio::spawn(pulse::beat());
        }
        drop(loading);
        let shutdown = CancellationToken::new();
        let ending = shutdown.clone();
        let mut term = signal(SignalKind::terminate())?;
        tokio::spawn(async move {
            term.recv().await;
            ending.cancel();
        });
        match loaded {
            Loaded::Chats(engine) => postern_engine::serve(engine, &arguments.connect, shutdown).await?,
            Loaded::Vectors(embedder) => {
                postern_engine::serve_embeddings(embedder, &arguments.connect, shutdown).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A model that is ready.
enum Loaded {
    /// It answers chats.
    Chats(Arc<Engine>),
    /// It makes vectors of texts.
    Vectors(Arc<Embedder>),
}

impl Loaded {
    fn load(options: &EngineOptions) -> Result<Self, EngineError> {
        if postern_engine::makes_embeddings(&options.model)? {
            let embedder = Embedder::load(&options.model, &options.name, options.device)?;
            return Ok(Self::Vectors(Arc::new(embedder)));
        }
        let mut told = 0;
        let engine = Engine::load(options, &mut |progress| match progress {
            Progress::Weights(share) => {
                let quarter = (share * 4.0) as u32;
                if quarter > told {
                    told = quarter;
                    tracing::info!("loading the model: {} %", quarter * 25);
                }
            }
            Progress::WarmUp => tracing::info!("loading the model: first computation"),
        })?;
        Ok(Self::Chats(Arc::new(engine)))
    }
}
