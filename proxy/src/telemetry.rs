//! What operators see: metrics, and log lines on standard error. Never content.

pub mod metrics;

use tracing_subscriber::EnvFilter;

/// What may stand in `POSTERN_LOG` beside `module=level`.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Log lines on standard error; `POSTERN_LOG` chooses (default `info`).
pub fn start_logging() {
    let asked = std::env::var("POSTERN_LOG").unwrap_or_default();
    // A word that is no level would be taken for the name of a module, and silence all others.
    let is_known = asked.split(',').all(|part| part.contains('=') || LEVELS.contains(&part.trim()));
    let filter = EnvFilter::try_new(&asked).ok().filter(|_| is_known);
    let is_wrong = filter.is_none() && !asked.is_empty();
    let filter = filter.unwrap_or_else(|| EnvFilter::new("info"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    if is_wrong {
        tracing::warn!(
            "POSTERN_LOG is not understood, so it is `info`: expected error, warn, info, debug, or module=level"
        );
    }
}
