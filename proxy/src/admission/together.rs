//! Limits that several gateways keep together, over a Redis.
//!
//! Of a day or a month the Redis has what each gateway has used, one number for each of them: so what it loses is told again by those
//! who know it, and nothing is counted twice. A minute is one bucket for all. Of requests at a time it has what each gateway holds, for as
//! long as that says that it is there. One script takes out of all accounts of a request together,
//! or of none.
//!
//! All that is taken and corrected goes through one queue in order, and many at a time. While the Redis is away, each gateway goes by
//! what it knows, and keeps to its part (see [`Account`]).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;
use redis::Script;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::account::{Amount, Known, Measure, Moment, Period, Refused, until_next};
use super::books::{Bill, Books, Change, NotTaken, Part, Payers, Telling, Who};
use crate::keys::Keys;
use crate::store::{Away, Line, Store};

/// How long the Redis may take.
const WITHIN: Duration = Duration::from_millis(250);
/// Bytes of a reply: a few numbers for each rule.
pub const REPLY: usize = 4 << 10;
/// What is asked at a time.
const BATCH: usize = 128;
/// What waits. Of it, the last half is for what is given back.
const QUEUE: usize = 16_384;
/// For how long after its last use the Redis keeps what is counted.
const KEEP_MINUTE: Duration = Duration::from_secs(180);
const KEEP_DAY: Duration = Duration::from_secs(3 * 86_400);
const KEEP_MONTH: Duration = Duration::from_secs(40 * 86_400);
const KEEP_PLACES: Duration = Duration::from_secs(86_400);
/// For so long after it was heard of, a gateway still holds its places.
const ALIVE: Duration = Duration::from_secs(15);
/// So often it says that it is there.
const BEAT: Duration = Duration::from_secs(5);

/// Takes, or corrects, in all accounts of a request.
///
/// `KEYS`: until when each gateway is taken to be alive; then one for each rule.
/// `ARGV`: who asks; 1 if there must be room; who it is as long as it runs, and for how many milliseconds it is alive from now on; then for each rule its kind (`c` a day or
/// month, `b` a minute, `p` places), its limit, how much is
/// wanted, what is known (see [`Known::own`]), how that is meant (`=` it replaces what the Redis has, `^` the larger counts, `-` only if it
/// has nothing), how many milliseconds it is kept, and what was heard of the others. Numbers that somebody else wrote there are none below 0.
///
/// Where it has nothing at all, it has lost it: what was heard of the others is kept as `?` until they come and tell it themselves. Places
/// are held by those who are alive.
///
/// Returns for each key: what this gateway has used, or how full the bucket is; what the others have used; if there was no room,
/// after how many milliseconds there may be, or -1; and how much was taken. Behind them 1, if this gateway was not taken to be alive: then others may
/// have forgotten what it holds.
const SCRIPT: &str = r"
local me, must = ARGV[1], ARGV[2] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function count(value)
  local number = tonumber(value) or 0
  if number ~= number or number < 0 then return 0 end
  return number
end
local holder = ARGV[3]
local lapsed = count(redis.call('HGET', KEYS[1], holder)) <= now and 1 or 0
redis.call('HSET', KEYS[1], holder, string.format('%.0f', now + ARGV[4]))
redis.call('PEXPIRE', KEYS[1], 86400000)
if #KEYS == 1 then
  local all = redis.call('HGETALL', KEYS[1])
  for j = 1, #all, 2 do
    if count(all[j + 1]) <= now then redis.call('HDEL', KEYS[1], all[j]) end
  end
end
local room, all = true, {}
for i = 2, #KEYS do
  local key, at = KEYS[i], 5 + (i - 2) * 7
  local one = {kind = ARGV[at], most = tonumber(ARGV[at + 1]), wanted = tonumber(ARGV[at + 2]),
    others = 0, wait = 0, keep = ARGV[at + 5]}
  local known, how = tonumber(ARGV[at + 3]), ARGV[at + 4]
  if one.kind == 'c' then
    local fields, mine, lost = redis.call('HGETALL', key), nil, 0
    for j = 1, #fields, 2 do
      local value = tonumber(fields[j + 1])
      if fields[j] == me then mine = value elseif fields[j] == '?' then lost = value else one.others = one.others + value end
    end
    if #fields == 0 then
      one.lost = tonumber(ARGV[at + 6])
    elseif mine == nil and lost > 0 then
      one.lost = math.max(0, lost - known)
    end
    one.others = one.others + (one.lost or lost)
    if mine == nil or how == '=' or (how == '^' and known > mine) then mine = known end
    one.own = mine
    if one.wanted > 0 and mine + one.others + one.wanted > one.most then one.wait = -1 end
  elseif one.kind == 'p' then
    local fields, mine = redis.call('HGETALL', key), nil
    for j = 1, #fields, 2 do
      local holds = count(fields[j + 1])
      if fields[j] == holder then
        mine = holds
      elseif count(redis.call('HGET', KEYS[1], fields[j])) > now then
        one.others = one.others + holds
      else
        redis.call('HDEL', key, fields[j])
      end
    end
    if mine == nil or how == '=' then mine = known end
    one.own = mine
    if one.wanted > 0 and mine + one.others + one.wanted > one.most then one.wait = 1000 end
  else
    local kept = redis.call('HMGET', key, 'level', 'at')
    local level = known
    if kept[1] then
      level = math.min(one.most, tonumber(kept[1]) + math.max(0, now - tonumber(kept[2])) * one.most / 60000)
    end
    one.own = level
    local missing = math.min(one.wanted, one.most) - level
    if one.wanted > 0 and missing > 0 then one.wait = math.ceil(missing * 60000 / one.most) end
  end
  if one.wait ~= 0 then room = false end
  all[i] = one
end
local told = {}
for i = 2, #KEYS do
  local key, one = KEYS[i], all[i]
  local took = (room or not must) and one.wanted or 0
  if one.kind == 'c' then
    one.own = math.max(0, one.own + took)
    redis.call('HSET', key, me, string.format('%.0f', one.own))
    if one.lost and one.lost > 0 then redis.call('HSET', key, '?', string.format('%.0f', one.lost)) end
    if one.lost == 0 then redis.call('HDEL', key, '?') end
  elseif one.kind == 'p' then
    one.own = math.max(0, one.own + took)
    redis.call('HSET', key, holder, string.format('%.0f', one.own))
  else
    -- No more than a minute's debt; and only what was taken can be given back.
    took = math.min(took, math.max(0, one.own + one.most))
    one.own = math.min(one.most, one.own - took)
    redis.call('HSET', key, 'level', string.format('%.3f', one.own), 'at', string.format('%.0f', now))
  end
  redis.call('PEXPIRE', key, one.keep)
  told[#told + 1] = math.floor(one.own)
  told[#told + 1] = one.others
  told[#told + 1] = must and one.wait or 0
  told[#told + 1] = math.max(0, math.ceil(took))
end
told[#told + 1] = lapsed
return told
";

/// Where gateways count together.
#[derive(Debug)]
pub struct Together {
    store: Arc<Store>,
    keys: Keys,
    script: Script,
    /// This gateway among the others.
    me: String,
    /// The same, as long as it runs: what another start of it held, nobody holds.
    holder: String,
    /// Where it is said who is there.
    alive: String,
    /// Until it is being done.
    queue: Mutex<Option<Queue>>,
}

/// The end of the queue at which requests come in.
#[derive(Debug, Clone)]
pub struct Counter {
    queue: mpsc::Sender<Op>,
}

/// What is to be done with the accounts.
#[derive(Debug)]
enum Op {
    Take { payers: Payers, amount: Amount, reply: oneshot::Sender<Result<Grant, NotTaken>> },
    Correct(Correction),
    Flush(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Correction {
    payers: Payers,
    bill: Bill,
    change: Change,
}

/// What was taken. If nobody is there to have it, it is given back.
#[derive(Debug)]
pub struct Grant {
    taken: Option<(Payers, Bill)>,
    counter: Counter,
}

impl Grant {
    /// What was taken of each account.
    #[must_use]
    pub fn accept(mut self) -> Bill {
        self.taken.take().map(|(_, bill)| bill).unwrap_or_default()
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some((payers, bill)) = self.taken.take() {
            self.counter.correct(payers, bill, Change::Used(Amount::default()));
        }
    }
}

impl Counter {
    /// Takes so much of each payer's account, if all have room for it.
    ///
    /// # Errors
    /// One has not, or there is too much to do; nothing was taken.
    pub async fn take(&self, payers: &Payers, amount: Amount) -> Result<Bill, NotTaken> {
        if self.queue.capacity() < QUEUE / 2 {
            return Err(NotTaken::Full);
        }
        let (reply, taken) = oneshot::channel();
        let op = Op::Take { payers: payers.clone(), amount, reply };
        self.queue.try_send(op).map_err(|_| NotTaken::Full)?;
        // The other end is there for as long as the gateway is.
        taken.await.unwrap_or(Err(NotTaken::Full)).map(Grant::accept)
    }

    /// Waits until all is done that was begun before.
    pub async fn flush(&self) {
        let (reply, done) = oneshot::channel();
        if self.queue.send(Op::Flush(reply)).await.is_ok() {
            let _gone = done.await;
        }
    }

    /// Changes what was taken. False: there is too much to do.
    pub fn correct(&self, payers: Payers, bill: Bill, change: Change) -> bool {
        let queued = self.queue.try_send(Op::Correct(Correction { payers, bill, change })).is_ok();
        if !queued {
            tracing::warn!("too many requests end at the same time: what they give back, others hear of later");
        }
        queued
    }
}

/// What is waiting.
#[derive(Debug)]
struct Queue {
    ops: mpsc::Receiver<Op>,
    counter: Counter,
}

/// What the Redis was told over which connection.
#[derive(Default)]
struct Knows {
    begun_over: Option<u64>,
    all_over: Option<u64>,
    /// What it was not told yet.
    pending: Vec<Telling>,
}

/// What the Redis says of one operation.
struct Told {
    parts: Vec<Part>,
    /// Of each rule of each part: see [`SCRIPT`].
    said: Vec<[i64; 4]>,
}

impl Op {
    fn payers(&self) -> &Payers {
        match self {
            Self::Take { payers, .. } => payers,
            Self::Correct(correction) => &correction.payers,
            Self::Flush(_) => const { &Payers::nobody() },
        }
    }

    /// How much is taken of the rule with this number of the payer with that.
    fn wanted(&self, payer: usize, rule: usize, known: &Known) -> i64 {
        let measure = known.rule.measure;
        match self {
            Self::Flush(_) => 0,
            Self::Take { amount, .. } => i64::try_from(amount.of(measure)).unwrap_or(i64::MAX),
            // What began yesterday was yesterday's.
            Self::Correct(correction) => correction.bill.told(payer, rule, known).map_or(0, |told| {
                let left = correction.change.left(measure, told);
                let [told, left] = [told, left].map(|n| i64::try_from(n).unwrap_or(i64::MAX));
                left.saturating_sub(told)
            }),
        }
    }

    /// What follows from what was said: without that, it goes by what is known here.
    fn done(self, told: Option<Told>, books: &Books, counter: &Counter, now: Moment) {
        match self {
            // What was in front of it is done.
            Self::Flush(reply) => drop(reply.send(())),
            Self::Correct(Correction { payers, mut bill, change }) => {
                books.correct_here(&payers, &mut bill, change);
                told.iter().for_each(|told| books.hear(&told.parts, &told.said, now));
            }
            Self::Take { payers, amount, reply } => {
                let mut bill = Bill::default();
                let taken = match &told {
                    Some(told) => {
                        told.refusal(now).map_or_else(|| books.take_all(&payers, amount, &mut bill, now), Err)
                    }
                    None => {
                        let taken = books.take_here(&payers, amount, &mut bill, now);
                        // It may have been done there.
                        books.doubt(&payers);
                        taken
                    }
                };
                told.iter().for_each(|told| books.hear(&told.parts, &told.said, now));
                if let Some(Told { parts, said }) = &told {
                    bill.together(parts, said.iter().map(|[.., took]| u64::try_from(*took).unwrap_or_default()));
                }
                let grant = || Grant { taken: Some((payers, bill)), counter: counter.clone() };
                // A grant that nobody waits for any more is given back.
                let _nobody = reply.send(taken.map(|()| grant()));
            }
        }
    }
}

impl Told {
    /// The rule that says no for longest.
    fn refusal(&self, now: Moment) -> Option<NotTaken> {
        let rules = self.parts.iter().flat_map(|part| part.known.iter().map(move |known| (&part.who, known.rule)));
        let refusals = rules.zip(&self.said).filter_map(|((who, rule), [_, _, wait_ms, _])| {
            let retry_after = match wait_ms {
                0 => return None,
                wait_ms => u64::try_from(*wait_ms)
                    .map_or_else(|_| until_next(rule.period, now.time), Duration::from_millis)
                    .min(longest(rule.period, now)),
            };
            Some((who, Refused { rule, retry_after }))
        });
        let longest = refusals.max_by_key(|(_, refused)| refused.retry_after);
        longest.map(|(who, refused)| NotTaken::Rule(who.clone(), refused))
    }
}

impl Together {
    /// `me` tells this gateway from the others, also after a restart.
    #[must_use]
    pub fn new(store: Arc<Store>, keys: &Keys, me: String) -> (Self, Counter) {
        let (queue, ops) = mpsc::channel(QUEUE);
        let counter = Counter { queue };
        let queue = Mutex::new(Some(Queue { ops, counter: counter.clone() }));
        let keys = keys.derive("redis:limits", &[]);
        let alive = format!("postern:1:alive:{}", HEXLOWER.encode(&keys.hash("alive", &[])));
        let holder = uuid::Uuid::new_v4().to_string();
        (Self { store, keys, script: Script::new(SCRIPT), me, holder, alive, queue }, counter)
    }

    /// Keeps a connection, and does what is in the queue, for as long as it is polled.
    pub async fn keep_up(&self, books: &Books) {
        tokio::join!(self.store.keep_up(), self.count(books));
    }

    async fn count(&self, books: &Books) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut queue) = queue else { return };
        let (mut ops, mut lines, mut knows) = (Vec::with_capacity(BATCH), self.store.lines(), Knows::default());
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // The others should know at once what was used while it was away.
                _ = lines.changed() => {}
                _ = beat.tick() => {
                    if let Ok(line) = self.store.line()
                        && knows.all_over == Some(line.number())
                        && self.say_alive(&line).await.is_ok_and(|lapsed| lapsed)
                    {
                        knows = Knows::default();
                    }
                }
                received = queue.ops.recv_many(&mut ops, BATCH) => if received == 0 { return },
                () = std::future::ready(()), if !knows.pending.is_empty() => {}
            }
            let now = Moment::now();
            let told = match self.store.line() {
                Ok(line) if knows.all_over == Some(line.number()) => self.ask(&line, books, &ops, now).await,
                _ => Err(Away),
            };
            let (told, lapsed) = told.unwrap_or_default();
            let mut told = told.into_iter();
            for op in ops.drain(..) {
                // Else all is told when there is a connection.
                if !knows.pending.is_empty() {
                    books.note_untold(op.payers());
                }
                op.done(told.next(), books, &queue.counter, now);
            }
            if lapsed {
                knows = Knows::default();
            }
            // Nobody waits for this: meanwhile it goes by what it knows.
            if let Ok(line) = self.store.line()
                && knows.all_over != Some(line.number())
                && self.tell(&line, books, &mut knows, now).await.is_err()
            {
                knows = Knows::default();
            }
        }
    }

    /// For the places that this gateway holds. True: they were not taken to be held any more.
    async fn say_alive(&self, line: &Line) -> Result<bool, Away> {
        let mut asked = redis::pipe();
        asked.add_command(self.script_call([].into_iter(), false));
        let [[lapsed]]: [[i64; 1]; 1] = self.store.ask(line, &asked, WITHIN).await?;
        Ok(lapsed != 0)
    }

    /// The script, for rules of these names; up to what each of them takes.
    fn script_call(&self, names: impl ExactSizeIterator<Item = String>, must: bool) -> redis::Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.script.get_hash()).arg(names.len() + 1).arg(&self.alive);
        for name in names {
            call.arg(name);
        }
        call.arg(&self.me).arg(u8::from(must)).arg(&self.holder);
        call.arg(u64::try_from(ALIVE.as_millis()).unwrap_or(u64::MAX));
        call
    }

    /// Over a new connection: some more of what this gateway has used so far. The Redis may have lost it, or not heard of it.
    async fn tell(&self, line: &Line, books: &Books, knows: &mut Knows, now: Moment) -> Result<(), Away> {
        if knows.begun_over != Some(line.number()) {
            let mut load = redis::pipe();
            load.cmd("SCRIPT").arg("LOAD").arg(SCRIPT).ignore();
            let () = self.store.ask(line, &load, WITHIN).await?;
            self.say_alive(line).await?;
            drop(books.take_untold());
            *knows = Knows { begun_over: Some(line.number()), all_over: None, pending: books.to_tell(now) };
        }
        let rest = knows.pending.len().saturating_sub(BATCH);
        self.tell_some(line, &knows.pending.split_off(rest)).await?;
        if knows.pending.is_empty() {
            // What has changed since.
            knows.pending = books.take_untold().iter().flat_map(|who| books.to_tell_of(who)).collect();
            if knows.pending.len() <= BATCH {
                self.tell_some(line, &std::mem::take(&mut knows.pending)).await?;
                knows.all_over = Some(line.number());
            }
        }
        Ok(())
    }

    async fn tell_some(&self, line: &Line, some: &[Telling]) -> Result<(), Away> {
        let mut asked = redis::pipe();
        for Telling { who, spent, others, is_new } in some {
            let name = self.name(who, spent.measure, spent.period, spent.number);
            let mut call = self.script_call([name].into_iter(), false);
            let how = if *is_new && spent.period != Period::Now { "^" } else { "=" };
            call.arg(kind(spent.period)).arg(0).arg(0).arg(spent.spent).arg(how);
            call.arg(keep_ms(spent.period)).arg(*others);
            asked.add_command(call).ignore();
        }
        if some.is_empty() { Ok(()) } else { self.store.ask(line, &asked, WITHIN).await }
    }

    /// Asks for all of `ops`. What has come of each, or nothing: then nobody knows.
    async fn ask(&self, line: &Line, books: &Books, ops: &[Op], now: Moment) -> Result<(Vec<Told>, bool), Away> {
        if ops.is_empty() {
            return Ok(Default::default());
        }
        let (mut asked, mut all, mut seen) = (redis::pipe(), Vec::with_capacity(ops.len()), HashSet::new());
        for op in ops {
            let mut parts = books.parts(op.payers(), now);
            // What the first operation of an account has told, the others need not.
            parts.iter_mut().for_each(|part| part.is_new &= seen.insert(part.who.clone()));
            asked.add_command(self.call(op, &parts));
            all.push(parts);
        }
        let replies: Vec<Vec<i64>> = self.store.ask(line, &asked, WITHIN).await?;
        let told = |(parts, reply): (Vec<Part>, Vec<i64>)| {
            let (said, rest) = reply.as_chunks::<4>();
            let rules: usize = parts.iter().map(|part| part.known.len()).sum();
            let [lapsed] = rest else { return None };
            (said.len() == rules).then(|| (Told { parts, said: said.to_vec() }, *lapsed != 0))
        };
        let told: Option<Vec<(Told, bool)>> = all.into_iter().zip(replies).map(told).collect();
        let told = told.filter(|told| told.len() == ops.len()).ok_or_else(|| self.store.give_up(line))?;
        let lapsed = told.iter().any(|(_, lapsed)| *lapsed);
        Ok((told.into_iter().map(|(told, _)| told).collect(), lapsed))
    }

    fn call(&self, op: &Op, parts: &[Part]) -> redis::Cmd {
        let rules = || {
            let payers = parts.iter().enumerate();
            payers.flat_map(|(payer, part)| {
                part.known.iter().enumerate().map(move |(rule, known)| (payer, rule, part, known))
            })
        };
        let name = |(_, _, part, known): (usize, usize, &Part, &Known)| {
            self.name(&part.who, known.rule.measure, known.rule.period, known.number)
        };
        let names: Vec<String> = rules().map(name).collect();
        let mut call = self.script_call(names.into_iter(), matches!(op, Op::Take { .. }));
        for (payer, rule, part, known) in rules() {
            let how = match (part.is_new, known.rule.period) {
                (false, _) => "-",
                (true, Period::Now) => "=",
                (true, _) => "^",
            };
            call.arg(kind(known.rule.period)).arg(known.rule.most).arg(op.wanted(payer, rule, known)).arg(known.own);
            call.arg(how).arg(keep_ms(known.rule.period)).arg(known.others);
        }
        call
    }

    /// A keyed hash: whose limit it is, is nobody's business there.
    fn name(&self, who: &Who, measure: Measure, period: Period, number: u32) -> String {
        let (kind, name) = match who {
            Who::Identity(id) => ("identity", id),
            Who::Tenant(name) => ("tenant", name),
        };
        let rule = [measure as u8, period as u8];
        let parts = [kind.as_bytes(), name.as_bytes(), &rule, &number.to_le_bytes()];
        format!("postern:1:limit:{}", HEXLOWER.encode(&self.keys.hash("limit", &parts)))
    }
}

/// What a rule is called in the script.
fn kind(period: Period) -> &'static str {
    match period {
        Period::Minute => "b",
        Period::Day | Period::Month => "c",
        Period::Now => "p",
    }
}

/// Nobody is made to wait for longer, whatever it says.
fn longest(period: Period, now: Moment) -> Duration {
    match period {
        Period::Now => Duration::from_secs(5),
        Period::Minute => Duration::from_secs(120),
        Period::Day | Period::Month => until_next(period, now.time),
    }
}

/// For how long the Redis keeps what was counted, after its last use.
fn keep_ms(period: Period) -> u64 {
    let keep = match period {
        Period::Minute => KEEP_MINUTE,
        Period::Day => KEEP_DAY,
        Period::Month => KEEP_MONTH,
        Period::Now => KEEP_PLACES,
    };
    u64::try_from(keep.as_millis()).unwrap_or(u64::MAX)
}
