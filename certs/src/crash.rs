//! Dies at every moment that matters, to see what is left.

use std::sync::atomic::{AtomicU64, Ordering};

/// The step at which a child process of a test kills itself.
const DIE_AT: &str = "POSTERN_CERTS_DIE_AT";

static STEPS: AtomicU64 = AtomicU64::new(0);

/// Called by the store after each thing it does to the disk.
pub(crate) fn step() {
    let step = STEPS.fetch_add(1, Ordering::Relaxed) + 1;
    if std::env::var(DIE_AT).is_ok_and(|at| at == step.to_string()) {
        // As the kernel does it to a process that used too much memory: nothing is written or cleaned up.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

/// A folder for a test that writes durably a thousand times: in memory, where there is such a place.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

#[cfg(test)]
mod tests;
