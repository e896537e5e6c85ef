//! Lines on their way to the writer. A line that somebody waits for wakes it: where many requests are under way, when all that are ready on the
//! same worker have handed over theirs, so that they are written and synced together. Where that is quicker,
//! whoever waits takes the lines and writes them. One without which nothing would tell of its request wakes the writer at once. The others, which say how a request ended that is on record, are taken along with the next one of those, or a few
//! milliseconds later: they are no reason to wake a thread for each.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// How long a line may wait for another.
const LINGER: Duration = Duration::from_millis(5);

/// Lines that are taken together, at most.
const BATCH: usize = 256;

/// Requests under way (each has room for a line all the time), beyond which others are likely to be ready at the same moment as one.
const MANY: usize = 8;

/// A line for the log.
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    pub(super) pace: Pace,
    /// Its room in the queue, until it is written.
    pub(super) _room: Room,
}

/// When a line is written, and who is told then.
#[derive(Debug)]
pub(super) enum Pace {
    /// It may wait for another.
    Lingers,
    AtOnce,
    /// Something is done only when it is on the disk. For whoever does not wait any more, it is not written. Whoever waits calls the
    /// writer.
    Before(oneshot::Sender<()>),
    /// What it tells of has happened, so it is written in any case.
    After(oneshot::Sender<()>),
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
    size: usize,
    room: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    come: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<Line>,
    /// One of them does not linger.
    is_urgent: bool,
    /// The writer has been woken for them.
    is_called: bool,
    /// Nobody looks before somebody says that there is something.
    is_asleep: bool,
    /// Since the writer last looked, somebody else took some.
    were_taken: bool,
    is_closed: bool,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} lines", self.lines.len())
    }
}

/// A queue with room for so many lines.
pub(super) fn queue(room: usize) -> (Sender, Receiver) {
    let queue =
        Queue { size: room, room: Arc::new(Semaphore::new(room)), waiting: Mutex::default(), come: Condvar::new() };
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

    /// Whether it is worth while to let others hand over theirs before the writer is called: alone, one would only be late.
    pub(super) fn has_many(&self) -> bool {
        self.0.size.saturating_sub(self.0.room.available_permits()) > MANY
    }

    /// Hands a line over. Never waits.
    pub(super) fn send(&self, line: Line) {
        let mut waiting = self.0.lock();
        if self.0.room.is_closed() {
            return;
        }
        let calls = match line.pace {
            Pace::Lingers => waiting.is_asleep,
            Pace::AtOnce | Pace::After(_) => true,
            Pace::Before(_) => false,
        };
        waiting.is_urgent |= !matches!(line.pace, Pace::Lingers);
        waiting.lines.push(line);
        if calls {
            self.0.call(waiting);
        }
    }

    /// Wakes the writer, if nobody has and something does not linger.
    pub(super) fn call(&self) {
        let waiting = self.0.lock();
        if waiting.is_urgent {
            self.0.call(waiting);
        }
    }

    /// Takes the lines that there are out, in their order, to write them.
    pub(super) fn take(&self) -> Vec<Line> {
        self.0.take()
    }

    /// Puts back those that were taken and not written, before all others, and wakes the writer.
    pub(super) fn put_back(&self, mut lines: Vec<Line>) {
        let mut waiting = self.0.lock();
        lines.append(&mut waiting.lines);
        waiting.lines = lines;
        waiting.is_urgent = true;
        self.0.call(waiting);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.come.notify_one();
    }
}

impl Receiver {
    /// Waits until there are lines of which one does not linger, or that have done so long enough, or until it is `due`. False: there are
    /// no more, and never will be.
    pub(super) fn wait(&self, due: Instant) -> bool {
        let mut began = Instant::now();
        let mut waiting = self.0.lock();
        waiting.were_taken = false;
        loop {
            let now = Instant::now();
            let has_lingered = now >= began + LINGER;
            let is_empty = waiting.lines.is_empty();
            if waiting.is_urgent || !is_empty && (has_lingered || waiting.is_closed) || now >= due {
                return true;
            }
            if waiting.is_closed {
                return false;
            }
            // There will be more: whoever has some that linger need not wake anybody.
            if has_lingered && std::mem::take(&mut waiting.were_taken) {
                began = now;
                continue;
            }
            let until = if has_lingered { due } else { due.min(began + LINGER) };
            waiting.is_asleep = has_lingered;
            let woken = self.0.come.wait_timeout(waiting, until.saturating_duration_since(now));
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
            waiting.is_asleep = false;
        }
    }

    /// See [`Sender::take`].
    pub(super) fn take(&self) -> Vec<Line> {
        self.0.take()
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

    fn take(&self) -> Vec<Line> {
        let mut waiting = self.lock();
        let rest = match waiting.lines.len() > BATCH {
            true => waiting.lines.split_off(BATCH),
            false => Vec::new(),
        };
        // Those that are left have waited already.
        waiting.is_urgent = !rest.is_empty();
        waiting.is_called = false;
        waiting.were_taken = true;
        std::mem::replace(&mut waiting.lines, rest)
    }

    /// Once for what the writer takes together: it looks again before it waits.
    fn call(&self, mut waiting: MutexGuard<'_, Waiting>) {
        let is_called = std::mem::replace(&mut waiting.is_called, true);
        drop(waiting);
        if !is_called {
            self.come.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(sender: &Sender, text: &str, pace: Pace) -> Line {
        Line { bytes: text.into(), pace, _room: sender.room_now().unwrap() }
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| std::str::from_utf8(&line.bytes).unwrap()).collect()
    }

    fn take(receiver: &Receiver, due: Instant) -> Option<Vec<Line>> {
        receiver.wait(due).then(|| receiver.take())
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn what_somebody_waits_for_takes_the_others_along_in_their_order() {
        let (sender, receiver) = queue(3);
        let asked = Instant::now();
        sender.send(line(&sender, "one", Pace::Lingers));
        sender.send(line(&sender, "two", Pace::Before(oneshot::channel().0)));
        sender.send(line(&sender, "three", Pace::Lingers));
        assert!(sender.room_now().is_none(), "it is full");
        let taken = take(&receiver, in_a_minute()).unwrap();
        assert_eq!(texts(&taken), ["one", "two", "three"]);
        // Without anybody who waits it lingers, and comes all the same.
        drop(taken);
        sender.send(line(&sender, "four", Pace::Lingers));
        assert_eq!(texts(&take(&receiver, in_a_minute()).unwrap()), ["four"]);
        assert!(asked.elapsed() >= LINGER);
    }

    #[test]
    fn what_does_not_linger_comes_at_once_although_the_writer_waits_for_more() {
        let quickest = (0..20).map(|_| {
            let (sender, receiver) = queue(3);
            sender.send(line(&sender, "one", Pace::Lingers));
            let taking =
                std::thread::spawn(move || take(&receiver, in_a_minute()).map(|lines| (lines.len(), Instant::now())));
            let sent = Instant::now();
            sender.send(line(&sender, "two", Pace::AtOnce));
            let (count, taken) = taking.join().unwrap().unwrap();
            assert_eq!(count, 2);
            taken.saturating_duration_since(sent)
        });
        assert!(quickest.min().unwrap() < LINGER / 2);
    }

    #[test]
    fn what_somebody_waits_for_comes_when_they_call() {
        let (sender, receiver) = queue(3);
        sender.call();
        assert!(!sender.0.lock().is_called, "there is nothing to be called for");
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| take(&receiver, in_a_minute()).map(|lines| lines.len()));
            while !sender.0.lock().is_asleep {
                std::thread::yield_now();
            }
            for _ in 0..2 {
                sender.send(line(&sender, "one", Pace::Before(oneshot::channel().0)));
                std::thread::sleep(LINGER);
            }
            assert_eq!(sender.0.lock().lines.len(), 2, "nobody has called");
            sender.call();
            assert_eq!(taking.join().unwrap(), Some(2));
        });
        assert!(!sender.0.lock().is_called, "the next is called for again");
    }

    #[test]
    fn there_are_many_when_more_than_a_few_have_room() {
        let (sender, _receiver) = queue(MANY + 1);
        let mut rooms: Vec<_> = (0..MANY).map(|_| sender.room_now().unwrap()).collect();
        assert!(!sender.has_many());
        rooms.push(sender.room_now().unwrap());
        assert!(sender.has_many());
    }

    #[test]
    fn where_whoever_waits_takes_lines_the_others_wake_nobody() {
        // On a busy machine those who take come too late at times.
        let stays_awake = |_| {
            let (sender, receiver) = queue(3);
            std::thread::scope(|scope| {
                let taking = scope.spawn(|| take(&receiver, in_a_minute()).map(|lines| lines.len()));
                let began = Instant::now();
                while began.elapsed() < 4 * LINGER {
                    assert!(sender.take().is_empty());
                    std::thread::sleep(LINGER / 5);
                }
                let is_asleep = sender.0.lock().is_asleep;
                sender.send(line(&sender, "one", Pace::Lingers));
                assert_eq!(taking.join().unwrap(), Some(1), "it comes all the same");
                !is_asleep
            })
        };
        assert!((0..20).any(stays_awake));
    }

    #[test]
    fn what_was_not_written_comes_again_before_the_others() {
        let (sender, receiver) = queue(3);
        sender.send(line(&sender, "one", Pace::Before(oneshot::channel().0)));
        let taken = sender.take();
        sender.send(line(&sender, "two", Pace::Lingers));
        sender.put_back(taken);
        assert!(sender.0.lock().is_called);
        assert_eq!(texts(&take(&receiver, in_a_minute()).unwrap()), ["one", "two"]);
    }

    #[test]
    fn who_sleeps_is_woken_by_any_line_and_by_the_end() {
        let (sender, receiver) = queue(3);
        let sending = std::thread::spawn(move || {
            std::thread::sleep(5 * LINGER);
            sender.send(line(&sender, "one", Pace::Lingers));
            std::thread::sleep(5 * LINGER);
            sender.send(line(&sender, "last", Pace::Lingers));
        });
        assert_eq!(texts(&take(&receiver, in_a_minute()).unwrap()), ["one"]);
        assert_eq!(texts(&take(&receiver, in_a_minute()).unwrap()), ["last"]);
        assert!(take(&receiver, in_a_minute()).is_none());
        sending.join().unwrap();
    }

    #[test]
    fn what_is_too_much_for_once_comes_at_once_afterwards() {
        let (sender, receiver) = queue(2 * BATCH);
        (0..BATCH + 2).for_each(|number| sender.send(line(&sender, &number.to_string(), Pace::Lingers)));
        assert_eq!(take(&receiver, in_a_minute()).unwrap().len(), BATCH);
        assert!(receiver.0.lock().is_urgent, "without another wait");
        assert_eq!(texts(&take(&receiver, in_a_minute()).unwrap()), ["256", "257"]);
    }

    #[test]
    fn nothing_comes_until_it_is_due() {
        let (_sender, receiver) = queue(3);
        let due = Instant::now() + 3 * LINGER;
        assert!(take(&receiver, due).unwrap().is_empty());
        assert!(Instant::now() >= due);
    }

    #[tokio::test]
    async fn who_waits_learns_that_nobody_writes_any_more() {
        let (sender, receiver) = queue(3);
        let (written, waiting) = oneshot::channel();
        sender.send(line(&sender, "one", Pace::Before(written)));
        drop(receiver);
        assert!(waiting.await.is_err());
        assert!(sender.room().await.is_none());
    }
}
