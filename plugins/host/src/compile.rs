//! Compiles components without holding up requests, and keeps the result.

use std::path::Path;

use wasmtime::{Cache, CacheConfig};

use crate::engine::sandbox_error;
use crate::error::PluginError;

/// How much the threads that compile give way to others (`nice`): a new version of a policy is compiled while requests are
/// served, on whatever they leave.
const NICE: i32 = 5;

/// What is kept on disk, after compression. wasmtime removes what was used least, once an hour at most.
const MAX_CACHE_BYTES: u64 = 512 << 20;
const MAX_CACHE_FILES: u64 = 4_096;

/// Threads that compile.
#[derive(Debug)]
pub(crate) struct Compiler(rayon::ThreadPool);

impl Compiler {
    pub(crate) fn new() -> Result<Self, PluginError> {
        let polite = |_| {
            // On Linux a thread has a priority of its own. Where that is not allowed, it competes as others do.
            let _changed = rustix::process::setpriority_process(None, NICE);
        };
        let threads =
            rayon::ThreadPoolBuilder::new().thread_name(|i| format!("policy-compile-{i}")).start_handler(polite);
        threads.build().map(Self).map_err(|error| PluginError::Sandbox(error.to_string()))
    }

    /// Runs it on one of the threads, and what it does in parallel on all of them.
    pub(crate) fn run<T: Send>(&self, compile: impl FnOnce() -> T + Send) -> T {
        self.0.install(compile)
    }
}

/// Keeps compiled components in `dir`, under a SHA-256 of the component's bytes and of all settings of the engine that change
/// what is compiled, in a folder for this version of wasmtime.
///
/// # Errors
/// Somebody else can write there, or it cannot be made.
pub(crate) fn cache(dir: &Path) -> Result<Cache, PluginError> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
    let wrong = |what: String| PluginError::Sandbox(format!("cache folder {}: {what}", dir.display()));
    let io = |error: std::io::Error| wrong(error.to_string());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    // What lies there is executed without another check.
    if std::fs::metadata(dir).map_err(io)?.uid() != rustix::process::geteuid().as_raw() {
        return Err(wrong("it belongs to somebody else".to_owned()));
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(io)?;
    let mut config = CacheConfig::new();
    config.with_directory(dir.canonicalize().map_err(io)?);
    config.with_files_total_size_soft_limit(MAX_CACHE_BYTES).with_file_count_soft_limit(MAX_CACHE_FILES);
    Cache::new(config).map_err(sandbox_error)
}
