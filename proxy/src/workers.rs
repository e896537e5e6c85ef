//! The threads that serve: one for each processor, each with a runtime of its own. What belongs to a request (the connection that it
//! came on, its way through the pipeline, the connection to a target) stays on one thread, so that no thread has to wake another for it
//! and nothing is handed over between processors. Work that would hold a thread up leaves it as everywhere in tokio: `block_in_place`
//! and `spawn_blocking`.

use std::cell::OnceCell;
use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use hyper::rt::Executor;
use tokio::runtime::{Builder, Handle, Runtime};

/// How often a worker that has nothing to do looks at its clock.
const BEAT: Duration = Duration::from_secs(1);

/// What is longer takes so many milliseconds to read or to write that others would notice: bytes.
const LONG: usize = 128 << 10;

thread_local! {
    static HERE: OnceCell<(Arc<Crew>, usize)> = const { OnceCell::new() };
}

/// All of them, until they are dropped or [ended](Workers::end).
#[derive(Debug)]
pub(crate) struct Workers {
    runtimes: Vec<Runtime>,
    crew: Arc<Crew>,
}

/// Where there is work for them. Empty until the last has started.
#[derive(Debug, Default)]
pub(crate) struct Crew(OnceLock<Vec<Worker>>);

#[derive(Debug)]
struct Worker {
    handle: Handle,
    connections: AtomicUsize,
    streams: AtomicUsize,
}

/// A worker that has one connection, or one stream of HTTP/2, more to serve until this is dropped.
#[derive(Debug)]
pub(crate) struct Post {
    crew: Arc<Crew>,
    index: usize,
    what: fn(&Worker) -> &AtomicUsize,
}

/// As many as there are processors for this process.
pub(crate) fn number() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Which worker's thread this is, counted from 1; 0: of none.
pub(crate) fn here() -> usize {
    HERE.with(|here| here.get().map_or(0, |(_, index)| index + 1))
}

/// Is this so long that work on it should be done [beside] what else there is?
pub(crate) fn is_long(bytes: usize) -> bool {
    bytes > LONG
}

/// Does work that takes long. If this is the thread of a worker, another takes over what else the worker has to do.
pub(crate) fn beside<T>(work: impl FnOnce() -> T) -> T {
    if here() > 0 { tokio::task::block_in_place(work) } else { work() }
}

impl Workers {
    /// Starts [`number`] of them.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn start() -> io::Result<Self> {
        let crew = Arc::new(Crew::default());
        let runtimes = (0..number()).map(|index| {
            let crew = crew.clone();
            // Of the kind with many threads, although it has one: only there another takes over while `block_in_place` blocks it.
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().thread_name(format!("worker-{index}"));
            builder.on_thread_start(move || HERE.with(|here| drop(here.set((crew.clone(), index)))));
            builder.build()
        });
        let runtimes = runtimes.collect::<io::Result<Vec<_>>>()?;
        runtimes.iter().for_each(|runtime| drop(runtime.spawn(beat())));
        let worker = |runtime: &Runtime| Worker {
            handle: runtime.handle().clone(),
            connections: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
        };
        crew.0.get_or_init(|| runtimes.iter().map(worker).collect());
        Ok(Self { runtimes, crew })
    }

    /// For whoever has work for them.
    pub(crate) fn crew(&self) -> Arc<Crew> {
        self.crew.clone()
    }

    /// Drops what still runs there, and waits for what blocks, for `within` at most.
    pub(crate) fn end(self, within: Duration) {
        // All at the same time: one would wait for what blocks another, and its requests for those of the other.
        std::thread::scope(|scope| {
            for runtime in self.runtimes {
                scope.spawn(move || runtime.shutdown_timeout(within));
            }
        });
    }
}

impl Crew {
    /// The one with the fewest connections.
    pub(crate) fn post(self: &Arc<Self>) -> Post {
        Post::at(self, 0, |worker| &worker.connections)
    }

    fn workers(&self) -> &[Worker] {
        self.0.get().map_or(&[], Vec::as_slice)
    }
}

impl Post {
    /// Of the worker that has the fewest; `here` if it is one of those.
    fn at(crew: &Arc<Crew>, here: usize, what: fn(&Worker) -> &AtomicUsize) -> Self {
        let load = |index: &usize| {
            let count = crew.workers().get(*index).map_or(usize::MAX, |worker| what(worker).load(Ordering::Relaxed));
            (count, *index != here)
        };
        let index = (0..crew.workers().len()).min_by_key(load).unwrap_or_default();
        if let Some(worker) = crew.workers().get(index) {
            what(worker).fetch_add(1, Ordering::Relaxed);
        }
        Self { crew: crew.clone(), index, what }
    }

    /// Its runtime.
    pub(crate) fn handle(&self) -> Handle {
        self.crew.workers().get(self.index).map_or_else(Handle::current, |worker| worker.handle.clone())
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        if let Some(worker) = self.crew.workers().get(self.index) {
            (self.what)(worker).fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Each time that a timer is set that would be the first to end, tokio wakes the thread that waits for the first, even if that is the
/// one that sets it: two system calls and a round for nothing, several times a request, for time limits that are seldom reached. So there
/// is always one that ends earlier than any of more than a second.
async fn beat() {
    loop {
        tokio::time::sleep(BEAT).await;
    }
}

/// Runs each stream of an HTTP/2 connection on the worker with the fewest, its own if it is one of those: one connection may carry what
/// needs all processors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spread {
    fn execute(&self, future: F) {
        let post = HERE.with(|here| {
            let (crew, index) = here.get()?;
            Some(Post::at(crew, *index, |worker| &worker.streams))
        });
        match post {
            // Not in an `async` block: it would have room for the future twice, once before it is awaited.
            Some(post) => drop(post.handle().spawn(future.map(move |()| drop(post)))),
            None => drop(tokio::spawn(future)),
        }
    }
}

/// Runs it on a worker, the last one.
#[cfg(test)]
pub(crate) fn on_the_last<T: Send + 'static>(run: impl Future<Output = T> + Send + 'static) -> T {
    let workers = Workers::start().unwrap();
    let last = workers.runtimes.last().unwrap();
    let given = last.block_on(last.spawn(run)).unwrap();
    workers.end(Duration::from_secs(1));
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_spread_evenly() {
        let workers = Workers::start().unwrap();
        let count = number();
        let posts: Vec<_> = (0..2 * count).map(|_| workers.crew().post()).collect();
        let on = |index| posts.iter().filter(|post| post.index == index).count();
        assert!((0..count).all(|index| on(index) == 2));
        assert_eq!(here(), 0);
        workers.end(Duration::from_secs(1));
    }

    #[test]
    fn streams_stay_where_they_are_if_they_can_and_are_spread_if_there_are_more() {
        let places = on_the_last(async {
            let (sender, mut places) = tokio::sync::mpsc::unbounded_channel();
            let mut all = Vec::new();
            for _ in 0..number() {
                let sender = sender.clone();
                Spread.execute(async move {
                    let _open = sender.send(here());
                    std::future::pending::<()>().await;
                });
                all.push(places.recv().await.unwrap());
            }
            all
        });
        assert_eq!(places.first(), Some(&number()), "the first stays");
        let mut sorted = places;
        sorted.sort_unstable();
        assert_eq!(sorted, (1..=number()).collect::<Vec<_>>());
    }

    #[test]
    fn who_works_for_long_holds_nobody_up() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let heard = on_the_last(async move {
            let other = tokio::spawn(async move { sender.send("the other") });
            let heard = beside(|| receiver.recv_timeout(Duration::from_secs(10)));
            let _sent = other.await;
            heard
        });
        assert_eq!(heard, Ok("the other"));
    }
}
