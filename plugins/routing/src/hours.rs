//! Hours of a day and days of a week.

use serde::Deserialize;

const MINUTES_OF_DAY: i64 = 24 * 60;

/// From the first minute of a day to the one before the second; over midnight if that is earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Hours {
    from: i64,
    until: i64,
}

impl Hours {
    /// Is this moment, in seconds of local time, among them?
    pub(crate) fn contain(self, local_time: i64) -> bool {
        let minute = local_time.div_euclid(60).rem_euclid(MINUTES_OF_DAY);
        if self.from <= self.until {
            (self.from..self.until).contains(&minute)
        } else {
            minute >= self.from || minute < self.until
        }
    }
}

impl TryFrom<String> for Hours {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hours = text.split_once('-').and_then(|(from, until)| {
            let hours = Self { from: minute(from)?, until: minute(until)? };
            (hours.from != hours.until && hours.from < MINUTES_OF_DAY).then_some(hours)
        });
        hours.ok_or_else(|| format!("`{text}` are no hours such as 08:00-18:30"))
    }
}

fn minute(text: &str) -> Option<i64> {
    let (hour, minute) = text.trim().split_once(':')?;
    let digits = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = |text: &str| digits(text).then(|| text.parse().ok()).flatten();
    let (hour, minute): (i64, i64) = (number(hour)?, number(minute)?);
    let whole = hour * 60 + minute;
    (minute < 60 && whole <= MINUTES_OF_DAY).then_some(whole)
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    /// That of a moment, in seconds of local time; 1970-01-01 was a Thursday.
    pub(crate) fn of(local_time: i64) -> Self {
        match local_time.div_euclid(MINUTES_OF_DAY * 60).rem_euclid(7) {
            0 => Self::Thu,
            1 => Self::Fri,
            2 => Self::Sat,
            3 => Self::Sun,
            4 => Self::Mon,
            5 => Self::Tue,
            _ => Self::Wed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(text: &str) -> Result<Hours, String> {
        text.to_owned().try_into()
    }

    fn at(hour: i64, minute: i64) -> i64 {
        // 2026-11-26, a Thursday.
        20_783 * 86_400 + hour * 3600 + minute * 60
    }

    #[test]
    fn hours_end_before_their_end() {
        let office = hours("08:00-18:30").unwrap();
        let inside = [(7, 59), (8, 0), (18, 29), (18, 30)].map(|(hour, minute)| office.contain(at(hour, minute)));
        assert_eq!(inside, [false, true, true, false]);
        assert!(hours("00:00-24:00").unwrap().contain(at(23, 59)));
    }

    #[test]
    fn a_night_goes_over_midnight() {
        let night = hours("20:00-07:00").unwrap();
        let inside = [(19, 59), (20, 0), (23, 59), (0, 0), (6, 59), (7, 0)].map(|(h, m)| night.contain(at(h, m)));
        assert_eq!(inside, [false, true, true, true, true, false]);
    }

    #[test]
    fn what_are_no_hours_is_an_error() {
        for text in [
            "",
            "8-18",
            "08:00",
            "08:00-08:00",
            "24:00-07:00",
            "08:00-24:01",
            "08:60-09:00",
            "8:00-18:00",
            "+8:00-09:00",
        ] {
            assert!(hours(text).is_err(), "{text}");
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(Day::of(at(0, 0)), Day::Thu);
        assert_eq!(Day::of(at(23, 59) + 60), Day::Fri);
        assert_eq!(Day::of(at(0, 0) - 1), Day::Wed);
        assert_eq!(Day::of(-1), Day::Wed);
    }
}
