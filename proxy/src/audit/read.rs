//! Records as they are read again: for a time, in the order in which they were written.

use std::path::Path;

use postern_tlog::{Files, LogError};
use serde::Deserialize;
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime};

/// A log's records.
#[derive(Debug)]
pub(crate) struct Records {
    files: Files,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Record {
    /// Its number.
    pub(crate) index: u64,
    /// An object of JSON.
    pub(crate) bytes: Vec<u8>,
}

impl Records {
    /// Of the log in `dir`.
    pub(crate) fn in_folder(dir: &Path) -> Self {
        Self { files: Files::new(dir) }
    }

    /// The log.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Those of the days from `from` to `to`, both with them; without a day, from the first that is kept, to the last that is written.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn of_days(
        &self,
        from: Option<Date>,
        to: Option<Date>,
    ) -> Result<impl Iterator<Item = Result<Record, LogError>> + '_, LogError> {
        let ends = self.files.ends()?;
        let day_of = |name: &str| {
            let mut parts = name.splitn(3, '-');
            let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
            let month = time::Month::try_from(month.parse::<u8>().ok()?).ok()?;
            Date::from_calendar_date(year.parse().ok()?, month, day.parse().ok()?).ok()
        };
        let days: Vec<(Date, u64)> = ends.iter().filter_map(|(name, end)| Some((day_of(name)?, *end))).collect();
        // Names of days are not signed, so the record before an end has to say itself of which day it is.
        let is_end = |end: u64, is_so: &dyn Fn(Date) -> bool| {
            let last = end.checked_sub(1).and_then(|last| self.files.entry(last).ok());
            last.and_then(|last| super::day_of(&last)).is_some_and(is_so)
        };
        let before = |wanted: Date| {
            let end = days.iter().filter(|(day, _)| *day < wanted).map(|(_, end)| *end).max()?;
            is_end(end, &|day| day < wanted).then_some(end)
        };
        // A record is written a little after its time.
        let after = |wanted: Date| {
            let end = days.iter().filter(|(day, _)| *day > wanted).map(|(_, end)| *end).min()?;
            is_end(end, &|day| day > wanted).then_some(end)
        };
        let first = from.and_then(before).unwrap_or(0).max(self.files.first()?);
        let end = match to.and_then(after) {
            Some(end) => end,
            None => self.files.end()?,
        };
        let is_wanted = move |bytes: &[u8]| {
            let day = super::day_of(bytes);
            from.is_none_or(|from| day.is_some_and(|day| day >= from))
                && to.is_none_or(|to| day.is_some_and(|day| day <= to))
        };
        let numbered = (first..).zip(self.files.entries(first, end));
        Ok(numbered.filter_map(move |(index, bytes)| match bytes {
            Ok(bytes) => is_wanted(&bytes).then_some(Ok(Record { index, bytes })),
            Err(error) => Some(Err(error)),
        }))
    }
}

/// The day of a record (UTC); `None` if it has none.
pub(crate) fn day_of(record: &[u8]) -> Option<Date> {
    #[derive(Deserialize)]
    struct Timed<'a> {
        #[serde(borrow)]
        time: std::borrow::Cow<'a, str>,
    }
    let timed: Timed<'_> = serde_json::from_slice(record).ok()?;
    Some(OffsetDateTime::parse(&timed.time, &Rfc3339).ok()?.date())
}

#[cfg(test)]
mod tests {
    use postern_tlog::{Log, SecretKey};
    use time::macros::date;

    use super::*;

    #[test]
    fn days_are_those_of_the_records_whatever_somebody_calls_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::parse(&SecretKey::generate("branch/audit/0123abcd").unwrap()).unwrap();
        let mut log = Log::open(dir.path(), key, |_| false).unwrap();
        for day in ["2026-11-01", "2026-11-02", "2026-11-03"] {
            let records = ["00:00:00Z", "23:59:59Z"].map(|time| format!("{{\"time\":\"{day}T{time}\"}}"));
            log.append(&records, false).unwrap();
            log.end_segment(day).unwrap();
        }
        let records = Records::in_folder(dir.path());
        let read =
            |from, to| -> Vec<u64> { records.of_days(from, to).unwrap().map(|record| record.unwrap().index).collect() };
        let all = || {
            assert_eq!(read(None, None), [0, 1, 2, 3, 4, 5]);
            assert_eq!(read(Some(date!(2026 - 11 - 02)), None), [2, 3, 4, 5]);
            assert_eq!(read(None, Some(date!(2026 - 11 - 02))), [0, 1, 2, 3]);
            assert_eq!(read(Some(date!(2026 - 11 - 02)), Some(date!(2026 - 11 - 02))), [2, 3]);
            assert_eq!(read(Some(date!(2026 - 11 - 04)), None), [0; 0]);
        };
        all();
        let ends = dir.path().join("checkpoints");
        std::fs::copy(ends.join("2026-11-03"), ends.join("2026-11-01")).unwrap();
        all();
        std::fs::copy(ends.join("2026-11-02"), ends.join("2026-11-03")).unwrap();
        all();
    }
}
