//! What gateways that stand in for each other remember together, in a Redis.
//!
//! It has hashes and the names of labels, and forgets what was not seen for long. Room is by identity as in [`Held`], in one script, so that several
//! gateways keep to it together. Each gateway remembers its own part as well: a Redis that has lost what it had is told again, in the background, and nothing
//! is looked up in it before, nor before others have had the time to do the same.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::Mark;
use super::held::{Held, Rooms};
use crate::classify::label::{Label, Labels};
use crate::keys::Keys;
use crate::store::{Away, Line, Store};

/// How long the Redis may take.
const WITHIN: Duration = Duration::from_millis(250);
/// Marks that are asked for, or told, at a time.
const BATCH: usize = 1_024;
/// Batches that are on their way at a time.
const BATCHES: usize = 2;
/// Questions of more than one batch, at a time, and how long each of their steps may take.
const LARGE_AT_ONCE: usize = 2;
const LARGE_WITHIN: Duration = Duration::from_secs(1);
/// Others notice within so long that the Redis has lost something, and tell it again.
const OTHERS_TELL_WITHIN: Duration = Duration::from_secs(3);
/// After it could not be told.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// So often it is looked whether the Redis has lost what it had.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a reply: a number and a label for each mark.
pub(crate) const REPLY: usize = 128 << 10;

/// Which run of the server it is, or nothing where it may not be asked.
const RUN: &str = r"
local said = redis.pcall('INFO', 'server')
return type(said) == 'string' and string.match(said, 'run_id:(%w+)') or ''
";

/// `ARGV`: what all keys begin with; a word by which it is known whether anything was lost; whose floor; for how many milliseconds that is kept; then marks.
///
/// Returns that word as it is; the floor, or nothing; then for each mark that is known its number and its label.
const LOOK: &str = r"
local prefix, floor = ARGV[1], ARGV[1] .. 'floor:' .. ARGV[3]
redis.call('SET', prefix .. 'word', ARGV[2], 'NX')
local label = redis.call('GET', floor)
if label then redis.call('PEXPIRE', floor, ARGV[4]) end
local told = {redis.call('GET', prefix .. 'word'), label or ''}
for i = 5, #ARGV do
  local kept = redis.call('GET', prefix .. 'mark:' .. ARGV[i])
  if kept then
    told[#told + 1] = tostring(i - 5)
    told[#told + 1] = string.match(kept, ' (.*)$') or ''
  end
end
return told
";

/// `ARGV`: what all keys begin with; that word; whose marks; for how many milliseconds they are kept; how many there may be; below which label nothing of
/// theirs is, or nothing; how many labels there are, and their names, the lowest first; then for each mark it and the number of its label.
///
/// A mark is `HOLDERS LABEL`. A label that is not among those named is above them. Returns the word.
const KEEP: &str = r"
local prefix, who, keep, most, names = ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
redis.call('SET', prefix .. 'word', ARGV[2], 'NX')
local rank = {}
for i = 1, names do rank[ARGV[7 + i]] = i end
local function higher(one, other)
  if not one or one == '' then return other end
  if not other or other == '' then return one end
  if (rank[one] or 99) >= (rank[other] or 99) then return one end
  return other
end
local function read(key)
  local holders, label = string.match(redis.call('GET', key) or '', '^(%d+) (.*)$')
  return tonumber(holders) or 0, label
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local seen = prefix .. 'seen:' .. who
for i = 8 + names, #ARGV, 2 do
  local key = prefix .. 'mark:' .. ARGV[i]
  local holders, label = read(key)
  holders = math.max(1, holders + redis.call('ZADD', seen, now, ARGV[i]))
  redis.call('SET', key, string.format('%d %s', holders, higher(label, ARGV[7 + ARGV[i + 1]])), 'PX', keep)
end
local function let_go(mark)
  local key = prefix .. 'mark:' .. mark
  local holders, label = read(key)
  if holders > 1 then
    redis.call('SET', key, string.format('%d %s', holders - 1, label), 'PX', math.max(1, redis.call('PTTL', key)))
  else
    redis.call('DEL', key)
  end
  redis.call('ZREM', seen, mark)
  return label
end
for _, mark in ipairs(redis.call('ZRANGEBYSCORE', seen, '-inf', now - keep, 'LIMIT', 0, 2048)) do let_go(mark) end
local floor, extra = ARGV[6], redis.call('ZCARD', seen) - most
if extra > 0 then
  for _, mark in ipairs(redis.call('ZRANGE', seen, 0, extra - 1)) do floor = higher(floor, let_go(mark)) end
end
if floor ~= '' then
  floor = higher(redis.call('GET', prefix .. 'floor:' .. who), floor)
  redis.call('SET', prefix .. 'floor:' .. who, floor, 'PX', keep)
end
redis.call('PEXPIRE', seen, keep)
return redis.call('GET', prefix .. 'word')
";

#[derive(Debug)]
pub(super) struct Shared {
    store: Arc<Store>,
    keys: Keys,
    labels: Labels,
    prefix: String,
    rooms: Rooms,
    /// Others may know what this gateway does not.
    are_others: bool,
    told: Mutex<Option<Told>>,
    /// It has lost something since.
    has_lost: AtomicBool,
    /// Whose marks could not be told since. They are known here, and others go on without them as if they had not been made yet.
    untold: Mutex<HashSet<(Arc<str>, Arc<str>)>>,
    wake: Notify,
    /// Large questions at a time: others are answered between them.
    large: Semaphore,
}

/// A Redis that was told all that this gateway knows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    /// What it had then, to be there as long as it loses nothing.
    word: String,
    /// Which run of it that was: one that starts again may have what it had some time ago. `None`: it does not say.
    run: Option<String>,
    /// Over which connection.
    line: u64,
}

/// Marks that are known, and the floor.
type Known = (Vec<(Mark, Label)>, Option<Label>);

/// Unless this ends well, what is known of an identity is told again: whoever waits for it may go at any moment.
struct Telling<'a> {
    shared: &'a Shared,
    who: Option<(Arc<str>, Arc<str>)>,
}

impl Telling<'_> {
    fn has_ended_well(mut self) {
        self.who = None;
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if let Some(who) = self.who.take() {
            self.shared.untold().insert(who);
            self.shared.wake.notify_one();
        }
    }
}

impl Shared {
    pub(super) fn new(store: Arc<Store>, keys: &Keys, labels: Labels, rooms: Rooms, are_others: bool) -> Self {
        let keys = keys.derive("redis:taint", &[]);
        let prefix = format!("postern:1:taint:{}:", keys.short_hash("prefix", &[]));
        let (told, has_lost, untold, wake) =
            (Mutex::default(), AtomicBool::new(false), Mutex::default(), Notify::new());
        Self {
            store,
            keys,
            labels,
            prefix,
            rooms,
            are_others,
            told,
            has_lost,
            untold,
            wake,
            large: Semaphore::new(LARGE_AT_ONCE),
        }
    }

    /// Keeps a connection, and tells what has to be told, for as long as it is polled.
    pub(super) async fn keep_up(&self, held: &Held) {
        let telling = async {
            let mut lines = self.store.lines();
            loop {
                tokio::select! {
                    () = self.wake.notified() => {}
                    _ = lines.changed() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
                let Ok(line) = self.store.line() else { continue };
                let told = match self.look(("", ""), &[]).await {
                    Ok(_) => self.tell_untold(held, &line).await,
                    Err(Away) => self.tell_all(held, &line).await,
                };
                if told.is_err() {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        };
        tokio::join!(self.store.keep_up(), telling);
    }

    /// See [`Held::look`].
    ///
    /// # Errors
    /// The Redis cannot be asked, or may have lost something and was not told of it yet.
    pub(super) async fn look(&self, who: (&str, &str), marks: &[Mark]) -> Result<Known, Away> {
        let (line, expected) = self.ready()?;
        let (word, known) = self.ask(&line, who, marks).await?;
        if word == expected { Ok(known) } else { Err(self.has_lost_something()) }
    }

    /// See [`Held::keep`]. What cannot be told now is told later.
    pub(super) async fn keep(&self, who: (&Arc<str>, &Arc<str>), marks: &[(Mark, Label)]) -> Result<(), Away> {
        let telling = Telling { shared: self, who: Some((who.0.clone(), who.1.clone())) };
        let (line, expected) = self.ready()?;
        if self.tell(&line, (who.0, who.1), marks, None).await? != expected {
            return Err(self.has_lost_something());
        }
        telling.has_ended_well();
        Ok(())
    }

    /// The connection over which all was told, and the word that has to be there.
    fn ready(&self) -> Result<(Line, String), Away> {
        let line = self.store.line()?;
        let told = self.told().clone().filter(|told| told.line == line.number());
        match told.filter(|_| !self.has_lost.load(Ordering::Acquire)) {
            Some(told) => Ok((line, told.word)),
            None => {
                self.wake.notify_one();
                Err(Away)
            }
        }
    }

    fn has_lost_something(&self) -> Away {
        // Which run it is, and so that it was told before, is known still.
        self.has_lost.store(true, Ordering::Release);
        self.wake.notify_one();
        Away
    }

    /// Tells what could not be told.
    async fn tell_untold(&self, held: &Held, line: &Line) -> Result<(), Away> {
        loop {
            let Some(who) = self.untold().iter().next().cloned() else { return Ok(()) };
            self.untold().remove(&who);
            let telling = Telling { shared: self, who: Some(who.clone()) };
            let (marks, floor) = held.of((&who.0, &who.1));
            self.tell(line, (&who.0, &who.1), &marks, floor).await?;
            telling.has_ended_well();
        }
    }

    /// Tells all that this gateway remembers. Where something may be lost, others are given the time to do the same before anything is looked up.
    async fn tell_all(&self, held: &Held, line: &Line) -> Result<(), Away> {
        // What is lost, or cannot be told, from here on is told the next time.
        self.has_lost.store(false, Ordering::Release);
        self.untold().clear();
        let before = self.told().take();
        let run = self.run(line).await?;
        let word = self.tell(line, ("", ""), &[], None).await?;
        let is_as_it_was = before.is_some_and(|told| told.word == word && told.run.is_some() && told.run == run);
        for (tenant, identity) in held.holders() {
            let (marks, floor) = held.of((&tenant, &identity));
            self.tell(line, (&tenant, &identity), &marks, floor).await?;
        }
        if self.are_others && !is_as_it_was {
            tokio::time::sleep(OTHERS_TELL_WITHIN).await;
        }
        // While it was told it may have lost it again.
        let (now, _) = self.ask(line, ("", ""), &[]).await?;
        if now != word {
            return Err(Away);
        }
        *self.told() = Some(Told { word, run, line: line.number() });
        Ok(())
    }

    async fn run(&self, line: &Line) -> Result<Option<String>, Away> {
        let mut asked = redis::pipe();
        asked.cmd("EVAL").arg(RUN).arg(0);
        let replies: Vec<String> = self.store.ask(line, &asked, WITHIN).await?;
        Ok(replies.into_iter().next().filter(|run| !run.is_empty()))
    }

    async fn ask(&self, line: &Line, who: (&str, &str), marks: &[Mark]) -> Result<(String, Known), Away> {
        let (_place, within) = self.place(marks.len()).await;
        let (mut word, mut hits, mut floor) = (None::<String>, Vec::new(), None::<Label>);
        let mut batches = marks.chunks(BATCH);
        let mut first = Some(batches.next().unwrap_or_default());
        loop {
            let some: Vec<&[Mark]> = first.take().into_iter().chain(batches.by_ref()).take(BATCHES).collect();
            if some.is_empty() {
                break;
            }
            let mut asked = redis::pipe();
            for batch in &some {
                let call = asked.cmd("EVAL").arg(LOOK).arg(0).arg(&self.prefix).arg(fresh_word());
                call.arg(self.name(who)).arg(self.keep_ms());
                for mark in *batch {
                    call.arg(&mark.0[..]);
                }
            }
            let replies: Vec<Vec<String>> = self.store.ask(line, &asked, within).await?;
            for (batch, reply) in some.into_iter().zip(replies) {
                let [of, floor_name, pairs @ ..] = reply.as_slice() else { return Err(self.store.give_up(line)) };
                if word.as_ref().is_some_and(|word| word != of) {
                    return Err(Away);
                }
                word = Some(of.clone());
                let named = Some(floor_name).filter(|name| !name.is_empty()).map(|name| self.label(name));
                floor = floor.max(named);
                for pair in pairs.chunks(2) {
                    let [number, label] = pair else { return Err(self.store.give_up(line)) };
                    let mark = number.parse::<usize>().ok().and_then(|number| batch.get(number));
                    hits.push((*mark.ok_or_else(|| self.store.give_up(line))?, self.label(label)));
                }
            }
        }
        Ok((word.ok_or(Away)?, (hits, floor)))
    }

    async fn tell(
        &self,
        line: &Line,
        who: (&str, &str),
        marks: &[(Mark, Label)],
        floor: Option<Label>,
    ) -> Result<String, Away> {
        let (_place, within) = self.place(marks.len()).await;
        let names = self.labels.names();
        let (mut word, mut batches) = (None::<String>, marks.chunks(BATCH));
        let mut first = Some(batches.next().unwrap_or_default());
        while let Some(batch) = first.take().or_else(|| batches.next()) {
            let mut asked = redis::pipe();
            let call = asked.cmd("EVAL").arg(KEEP).arg(0).arg(&self.prefix).arg(fresh_word());
            call.arg(self.name(who)).arg(self.keep_ms()).arg(self.rooms.of_identity);
            call.arg(floor.map_or("", |label| self.labels.name(label))).arg(names.len());
            for name in names {
                call.arg(name);
            }
            for (mark, label) in batch {
                let number =
                    names.iter().position(|name| name == self.labels.name(*label)).map_or(names.len(), |n| n + 1);
                call.arg(&mark.0[..]).arg(number);
            }
            let replies: Vec<String> = self.store.ask(line, &asked, within).await?;
            word = replies.into_iter().next();
        }
        word.ok_or_else(|| self.store.give_up(line))
    }

    /// A name that nobody here knows may be above all that are.
    fn label(&self, name: &str) -> Label {
        self.labels.by_name(name).unwrap_or(self.labels.highest())
    }

    /// A keyed hash: who it is, is nobody's business there.
    fn name(&self, (tenant, identity): (&str, &str)) -> String {
        HEXLOWER.encode(&self.keys.hash("who", &[tenant.as_bytes(), identity.as_bytes()]))
    }

    fn keep_ms(&self) -> u64 {
        u64::try_from(self.rooms.keep.as_millis()).unwrap_or(u64::MAX)
    }

    /// Of large questions only some are asked at a time, and they may take longer: it must be them that wait.
    async fn place(&self, marks: usize) -> (Option<SemaphorePermit<'_>>, Duration) {
        if marks <= BATCH {
            return (None, WITHIN);
        }
        // It is never closed; whoever waits goes when the time of the request is over.
        (self.large.acquire().await.ok(), LARGE_WITHIN)
    }

    fn untold(&self) -> MutexGuard<'_, HashSet<(Arc<str>, Arc<str>)>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Option<Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a Redis that has nothing gets: another one each time, so that nobody takes it for what was there before.
fn fresh_word() -> String {
    uuid::Uuid::new_v4().to_string()
}
