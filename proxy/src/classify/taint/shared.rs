//! What gateways that stand in for each other remember together, in a Redis.
//!
//! It has hashes and the names of labels, and forgets what was not seen for long. Room is by identity as in [`Held`], in one script, so that several
//! gateways keep to it together. Each gateway remembers its own part as well: a Redis that has lost what it had is told again, and nothing is looked
//! up in it before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;
use tokio::time::MissedTickBehavior;

use super::Mark;
use super::held::{Held, Rooms};
use crate::classify::label::{Label, Labels};
use crate::keys::Keys;
use crate::store::{Away, Store};

/// How long the Redis may take.
const WITHIN: Duration = Duration::from_millis(250);
/// Marks that are asked for, or told, at a time.
const BATCH: usize = 1_024;
/// Batches that are on their way at a time.
const BATCHES: usize = 8;
/// So often it is looked whether the Redis has lost what it had.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a reply: a number and a label for each mark.
pub(crate) const REPLY: usize = 128 << 10;

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
    redis.call('SET', key, string.format('%d %s', holders - 1, label), 'KEEPTTL')
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
    /// What this gateway puts there if nothing is; and what was there when it last told all that it knows.
    own_word: String,
    word: Mutex<Option<String>>,
    /// Something could not be told.
    untold: AtomicBool,
    /// Held while all is told.
    telling: tokio::sync::Mutex<()>,
}

/// Marks that are known, and the floor.
type Known = (Vec<(Mark, Label)>, Option<Label>);

impl Shared {
    pub(super) fn new(store: Arc<Store>, keys: &Keys, labels: Labels, rooms: Rooms) -> Self {
        let keys = keys.derive("redis:taint", &[]);
        let prefix = format!("postern:1:taint:{}:", keys.short_hash("prefix", &[]));
        let own_word = uuid::Uuid::new_v4().to_string();
        let (word, untold, telling) = (Mutex::default(), AtomicBool::new(false), tokio::sync::Mutex::default());
        Self { store, keys, labels, prefix, rooms, own_word, word, untold, telling }
    }

    /// Keeps a connection, and tells what has to be told again, for as long as it is polled.
    pub(super) async fn keep_up(&self, held: &Held) {
        let telling = async {
            let mut look = tokio::time::interval(LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                look.tick().await;
                let _next_time = self.look(held, ("", ""), &[]).await;
            }
        };
        tokio::join!(self.store.keep_up(), telling);
    }

    /// See [`Held::look`]. What `held` has is told before, if the Redis may have lost it.
    pub(super) async fn look(&self, held: &Held, who: (&str, &str), marks: &[Mark]) -> Result<Known, Away> {
        if self.untold.load(Ordering::Acquire) || self.word().is_none() {
            self.tell_all(held).await?;
        }
        match self.ask(who, marks).await? {
            (word, known) if Some(&word) == self.word().as_ref() => Ok(known),
            // Another Redis, or one that has lost what it had.
            _ => {
                self.tell_all(held).await?;
                let (word, known) = self.ask(who, marks).await?;
                if Some(&word) == self.word().as_ref() { Ok(known) } else { Err(Away) }
            }
        }
    }

    /// See [`Held::keep`]. What cannot be told now is told later.
    pub(super) async fn keep(&self, who: (&str, &str), marks: &[(Mark, Label)]) -> Result<(), Away> {
        let told = self.tell(who, marks, None).await;
        let is_known = told.as_ref().is_ok_and(|word| Some(word) == self.word().as_ref());
        if !is_known {
            self.untold.store(true, Ordering::Release);
        }
        if is_known { Ok(()) } else { Err(Away) }
    }

    /// Tells all that this gateway remembers. Nobody waits for somebody else who does.
    async fn tell_all(&self, held: &Held) -> Result<(), Away> {
        let Ok(_alone) = self.telling.try_lock() else { return Err(Away) };
        // What cannot be told from here on is told the next time.
        self.untold.store(false, Ordering::Release);
        let told = async {
            let mut word = self.tell(("", ""), &[], None).await?;
            for (tenant, identity) in held.holders() {
                let (marks, floor) = held.of((&tenant, &identity));
                word = self.tell((&tenant, &identity), &marks, floor).await?;
            }
            *self.word.lock().unwrap_or_else(PoisonError::into_inner) = Some(word);
            Ok(())
        };
        let told = told.await;
        if told.is_err() {
            self.untold.store(true, Ordering::Release);
        }
        told
    }

    async fn ask(&self, who: (&str, &str), marks: &[Mark]) -> Result<(String, Known), Away> {
        let line = self.store.line()?;
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
                let call = asked.cmd("EVAL").arg(LOOK).arg(0).arg(&self.prefix).arg(&self.own_word);
                call.arg(self.name(who)).arg(self.keep_ms());
                for mark in *batch {
                    call.arg(&mark.0[..]);
                }
            }
            let replies: Vec<Vec<String>> = self.store.ask(&line, &asked, WITHIN).await?;
            for (batch, reply) in some.into_iter().zip(replies) {
                let [of, floor_name, pairs @ ..] = reply.as_slice() else { return Err(self.store.give_up(&line)) };
                if word.as_ref().is_some_and(|word| word != of) {
                    return Err(Away);
                }
                word = Some(of.clone());
                let named = Some(floor_name).filter(|name| !name.is_empty()).map(|name| self.label(name));
                floor = floor.max(named);
                for pair in pairs.chunks(2) {
                    let [number, label] = pair else { return Err(self.store.give_up(&line)) };
                    let mark = number.parse::<usize>().ok().and_then(|number| batch.get(number));
                    hits.push((*mark.ok_or_else(|| self.store.give_up(&line))?, self.label(label)));
                }
            }
        }
        Ok((word.ok_or(Away)?, (hits, floor)))
    }

    async fn tell(&self, who: (&str, &str), marks: &[(Mark, Label)], floor: Option<Label>) -> Result<String, Away> {
        let line = self.store.line()?;
        let names = self.labels.names();
        let (mut word, mut batches) = (None::<String>, marks.chunks(BATCH));
        let mut first = Some(batches.next().unwrap_or_default());
        while let Some(batch) = first.take().or_else(|| batches.next()) {
            let mut asked = redis::pipe();
            let call = asked.cmd("EVAL").arg(KEEP).arg(0).arg(&self.prefix).arg(&self.own_word);
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
            let replies: Vec<String> = self.store.ask(&line, &asked, WITHIN).await?;
            word = replies.into_iter().next();
        }
        word.ok_or_else(|| self.store.give_up(&line))
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

    fn word(&self) -> Option<String> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
