//! Lines on their way to the writer. A line that somebody waits for wakes it; the others are taken along with the next one of those,
//! or a few milliseconds later: that a request has ended is no reason to wake a thread for each.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// How long a line that nobody waits for may wait for another.
const LINGER: Duration = Duration::from_millis(5);

/// A line for the log.
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    /// Whoever waits until it is written.
    pub(super) written: Option<oneshot::Sender<()>>,
    /// Its room in the queue, until it is written.
    pub(super) _room: Room,
}

/// Room for one line.
pub(super) type Room = OwnedSemaphorePermit;

/// The end that lines go into.
#[derive(Debug)]
pub(super) struct Sender(Arc<Queue>);

/// The end that they come out of. Without it, nothing goes in.
pub(super) struct Receiver(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    room: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    come: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<Line>,
    /// Somebody waits for one of them.
    is_urgent: bool,
    /// Nobody looks before somebody says that there is something.
    is_asleep: bool,
    is_closed: bool,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} lines", self.lines.len())
    }
}

/// A queue with room for so many lines.
pub(super) fn queue(room: usize) -> (Sender, Receiver) {
    let queue = Queue { room: Arc::new(Semaphore::new(room)), waiting: Mutex::default(), come: Condvar::new() };
    let queue = Arc::new(queue);
    (Sender(queue.clone()), Receiver(queue))
}

impl Sender {
    /// Waits for room; `None`: nobody writes any more.
    pub(super) async fn room(&self) -> Option<Room> {
        self.0.room.clone().acquire_owned().await.ok()
    }

    /// Room, if there is some.
    pub(super) fn room_now(&self) -> Option<Room> {
        self.0.room.clone().try_acquire_owned().ok()
    }

    /// Hands a line over. Never waits.
    pub(super) fn send(&self, line: Line) {
        let mut waiting = self.0.lock();
        if self.0.room.is_closed() {
            return;
        }
        waiting.is_urgent |= line.written.is_some();
        waiting.lines.push(line);
        let wakes = waiting.is_urgent || waiting.is_asleep;
        drop(waiting);
        if wakes {
            self.0.come.notify_one();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.come.notify_one();
    }
}

impl Receiver {
    /// All lines that there are, in their order, when somebody waits for one or they have waited long enough; none: it is `due`. `None`:
    /// there are no more, and never will be.
    pub(super) fn take(&self, due: Instant) -> Option<Vec<Line>> {
        let began = Instant::now();
        let mut waiting = self.0.lock();
        loop {
            let now = Instant::now();
            let has_lingered = now >= began + LINGER;
            let is_empty = waiting.lines.is_empty();
            if waiting.is_urgent || !is_empty && (has_lingered || waiting.is_closed) || now >= due {
                waiting.is_urgent = false;
                return Some(std::mem::take(&mut waiting.lines));
            }
            if waiting.is_closed {
                return None;
            }
            let until = if has_lingered { due } else { due.min(began + LINGER) };
            waiting.is_asleep = has_lingered;
            let woken = self.0.come.wait_timeout(waiting, until.saturating_duration_since(now));
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
            waiting.is_asleep = false;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.room.close();
        // Whoever waits for one of these learns that it is not written.
        drop(std::mem::take(&mut self.0.lock().lines));
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(sender: &Sender, text: &str, written: Option<oneshot::Sender<()>>) -> Line {
        Line { bytes: text.into(), written, _room: sender.room_now().unwrap() }
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| std::str::from_utf8(&line.bytes).unwrap()).collect()
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn what_somebody_waits_for_takes_the_others_along_in_their_order() {
        let (sender, receiver) = queue(3);
        let asked = Instant::now();
        sender.send(line(&sender, "one", None));
        sender.send(line(&sender, "two", Some(oneshot::channel().0)));
        sender.send(line(&sender, "three", None));
        assert!(sender.room_now().is_none(), "it is full");
        let taken = receiver.take(in_a_minute()).unwrap();
        assert_eq!(texts(&taken), ["one", "two", "three"]);
        // Without anybody who waits it lingers, and comes all the same.
        drop(taken);
        sender.send(line(&sender, "four", None));
        assert_eq!(texts(&receiver.take(in_a_minute()).unwrap()), ["four"]);
        assert!(asked.elapsed() >= LINGER);
    }

    #[test]
    fn who_sleeps_is_woken_by_any_line_and_by_the_end() {
        let (sender, receiver) = queue(3);
        let sending = std::thread::spawn(move || {
            std::thread::sleep(5 * LINGER);
            sender.send(line(&sender, "one", None));
            std::thread::sleep(5 * LINGER);
            sender.send(line(&sender, "last", None));
        });
        assert_eq!(texts(&receiver.take(in_a_minute()).unwrap()), ["one"]);
        assert_eq!(texts(&receiver.take(in_a_minute()).unwrap()), ["last"]);
        assert!(receiver.take(in_a_minute()).is_none());
        sending.join().unwrap();
    }

    #[test]
    fn nothing_comes_until_it_is_due() {
        let (_sender, receiver) = queue(3);
        let due = Instant::now() + 3 * LINGER;
        assert!(receiver.take(due).unwrap().is_empty());
        assert!(Instant::now() >= due);
    }

    #[tokio::test]
    async fn who_waits_learns_that_nobody_writes_any_more() {
        let (sender, receiver) = queue(3);
        let (written, waiting) = oneshot::channel();
        sender.send(line(&sender, "one", Some(written)));
        drop(receiver);
        assert!(waiting.await.is_err());
        assert!(sender.room().await.is_none());
    }
}
