//! What a policy may ask of the host: log, configuration, recognisers, counters, numbers, time. No file, no network, and
//! nothing that lasts before [`Effects`](crate::Effects) are committed.

use std::time::Duration;

use crate::answer::MAX_NAME_BYTES;
use crate::bindings::postern::policy::{
    clock, config, counters as wit_counters, detectors as wit_detectors, log, metrics as wit_metrics, random, types,
};
use crate::call::{Call, Phase};
use crate::counters::MAX_TTL;
use crate::detectors::{Kind, Match};
use crate::effects::{Add, MAX_COUNTERS, Number};
use crate::error::printable;

impl types::Host for Call {}

impl log::Host for Call {
    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        let level = match level {
            log::Level::Debug => tracing::Level::DEBUG,
            log::Level::Info => tracing::Level::INFO,
            log::Level::Warn => tracing::Level::WARN,
            log::Level::Error => tracing::Level::ERROR,
        };
        self.log(level, &message);
        Ok(())
    }
}

impl config::Host for Call {
    fn get(&mut self) -> wasmtime::Result<String> {
        Ok(self.owner.config.as_ref().to_owned())
    }
}

impl wit_counters::Host for Call {
    fn add(&mut self, key: String, by: i64, ttl_seconds: u32) -> wasmtime::Result<Result<i64, String>> {
        let ttl = Duration::from_secs(u64::from(ttl_seconds));
        if key.len() > MAX_NAME_BYTES {
            return Ok(Err(format!("a key of {} bytes, and {MAX_NAME_BYTES} is the most", key.len())));
        }
        if ttl.is_zero() || ttl > MAX_TTL {
            return Ok(Err(format!("a life of {ttl_seconds} s; it must be 1 to {}", MAX_TTL.as_secs())));
        }
        if self.phase == Phase::Start {
            return Ok(Ok(0));
        }
        let known = self.adds.iter().any(|add| add.key == key);
        if !known && self.adds.len() >= MAX_COUNTERS {
            return Ok(Err(format!("more than {MAX_COUNTERS} counters in one call")));
        }
        if !known && !self.owner.counters.has_room(&self.scope, &key) {
            return Ok(Err("no room for another counter".to_owned()));
        }
        match self.adds.iter_mut().find(|add| add.key == key) {
            Some(add) => add.by = add.by.saturating_add(by),
            None => self.adds.push(Add { key: key.clone(), by, ttl }),
        }
        Ok(Ok(self.counter(&key)))
    }

    fn get(&mut self, key: String) -> wasmtime::Result<i64> {
        Ok(if self.phase == Phase::Start { 0 } else { self.counter(&key) })
    }
}

impl wit_metrics::Host for Call {
    fn count(&mut self, name: String, by: u32) -> wasmtime::Result<()> {
        self.number(name, Number::Count(by));
        Ok(())
    }

    fn set(&mut self, name: String, value: f64) -> wasmtime::Result<()> {
        self.number(name, Number::Value(value));
        Ok(())
    }
}

impl random::Host for Call {
    fn next(&mut self) -> wasmtime::Result<u64> {
        Ok(self.next_random())
    }
}

impl clock::Host for Call {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.time_ms)
    }
}

impl wit_detectors::Host for Call {
    async fn find(
        &mut self,
        kinds: Vec<String>,
        text: String,
    ) -> wasmtime::Result<Result<Vec<wit_detectors::Hit>, String>> {
        self.charge(text.len())?;
        let known =
            |name: &String| Kind::from_name(name).ok_or_else(|| format!("unknown kind `{}`", printable(name, 64)));
        match kinds.iter().map(known).collect() {
            Ok(kinds) => Ok(self.search(kinds, text).await?.into_iter().map(hit).collect()),
            Err(unknown) => Ok(Err(unknown)),
        }
    }
}

fn hit(found: Match) -> Result<wit_detectors::Hit, String> {
    let byte = |at: usize| u32::try_from(at).map_err(|_| "the text is longer than 4 GiB".to_owned());
    Ok(wit_detectors::Hit { start: byte(found.start)?, end: byte(found.end)?, kind: found.kind.name().to_owned() })
}
