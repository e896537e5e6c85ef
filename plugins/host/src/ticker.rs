//! The clock of deadlines: while any policy runs, the engine's epoch advances every millisecond. Without calls it sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wasmtime::Engine;

/// How finely deadlines are kept.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// Ticks without any call after which the thread goes to sleep; waking it costs a call some microseconds.
const IDLE_TICKS: u32 = 100;

/// A thread that advances the epoch.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    calls: AtomicUsize,
    stop: AtomicBool,
}

/// A call that runs; the epoch advances while there is one.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a Shared);

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (seen, engine) = (Arc::clone(&shared), engine.clone());
        let thread = thread::Builder::new().name("policy-ticker".into()).spawn(move || tick(&seen, &engine))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn run(&self) -> Running<'_> {
        if self.shared.calls.fetch_add(1, Ordering::SeqCst) == 0
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
        Running(&self.shared)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread only sleeps and counts, so it can neither panic nor take longer than a tick.
            let _ended = thread.join();
        }
    }
}

fn tick(shared: &Shared, engine: &Engine) {
    let mut idle = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.calls.load(Ordering::SeqCst) > 0 {
            idle = 0;
        } else if idle < IDLE_TICKS {
            idle += 1;
        } else {
            // A call that comes between the look above and this line has left a token, which makes it return at once.
            thread::park();
            continue;
        }
        thread::sleep(TICK);
        engine.increment_epoch();
    }
}
