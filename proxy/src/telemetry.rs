//! What operators see: metrics, and log lines on standard error. Never content.

pub mod metrics;

use tracing_subscriber::EnvFilter;

/// Log lines on standard error; `POSTERN_LOG` chooses (default `info`).
pub fn start_logging() {
    let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
}
