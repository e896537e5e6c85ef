//! Durations (`20ms`, `72h`, `180d`), sizes (`256MiB`) and counts as people write them.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];

/// A time span: a whole number and one of `ms`, `s`, `m`, `h`, `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// An amount of money, above 0; counted in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(NonZeroU64);

impl Money {
    /// How many millionths.
    #[must_use]
    pub fn millionths(self) -> u64 {
        self.0.get()
    }
}

/// The most that is counted: any larger number is no limit.
const MOST_MONEY: f64 = 1e12;

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let amount = f64::deserialize(deserializer)?;
        let millionths =
            (amount > 0.0 && amount <= MOST_MONEY).then(|| NonZeroU64::new((amount * 1e6) as u64)).flatten();
        millionths.map(Self).ok_or_else(|| D::Error::custom("expected an amount of money above 0, such as 50 or 12.5"))
    }
}

impl JsonSchema for Money {
    fn schema_name() -> Cow<'static, str> {
        "Money".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "exclusiveMinimum": 0, "examples": [50, 12.5]})
    }
}

/// A number of bytes: a whole number and one of `B`, `KiB`, `MiB`, `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

fn read(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let ms = read(&text, &DURATIONS).filter(|ms| (1..=3_660 * 86_400_000).contains(ms));
        ms.map(|ms| Self(Duration::from_millis(ms))).ok_or_else(|| {
            D::Error::custom(
                "expected a duration above 0: a whole number and one of ms, s, m, h, d, such as 20ms or 72h",
            )
        })
    }
}

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "expected a size above 0: a whole number and one of B, KiB, MiB, GiB, such as 256MiB";
        read(text, &SIZES).filter(|bytes| *bytes > 0).map(Self).ok_or(wrong)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A whole number above 0, for `deserialize_with`: what serde says of its own of a `NonZero` is of no use to an operator.
pub(in crate::config) fn count<'de, D: Deserializer<'de>, N: TryFrom<NonZeroU64>>(
    deserializer: D,
) -> Result<N, D::Error> {
    struct Count<N>(PhantomData<N>);

    impl<N: TryFrom<NonZeroU64>> Visitor<'_> for Count<N> {
        type Value = N;

        fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(to, "a whole number from 1 to {}", u64::MAX >> (64 - 8 * size_of::<N>()))
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<N, E> {
            let fits = NonZeroU64::new(number).and_then(|number| N::try_from(number).ok());
            fits.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<N, E> {
            let unsigned = u64::try_from(number);
            self.visit_u64(
                unsigned.map_err(|_| E::invalid_value(Unexpected::Signed(number), &"a whole number above 0"))?,
            )
        }
    }

    deserializer.deserialize_u64(Count(PhantomData))
}

/// The same where nothing need be said.
pub(super) fn maybe_count<'de, D, N>(deserializer: D) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<NonZeroU64>,
{
    count(deserializer).map(Some)
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$", "examples": ["20ms", "72h"]})
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB)$", "examples": ["256MiB"]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_exact() {
        let span = |text: &str| serde_json::from_value::<Span>(text.into()).ok().map(|span| span.0);
        assert_eq!(span("20ms"), Some(Duration::from_millis(20)));
        assert_eq!(span("72h"), Some(Duration::from_secs(72 * 3600)));
        assert_eq!(span("180d"), Some(Duration::from_secs(180 * 86_400)));
        for wrong in ["", "20", "ms", "20 ms", "1.5s", "-1s", "0s", "20MS", "99999999999999999999s", "4000d", "٣s"] {
            assert_eq!(span(wrong), None, "{wrong}");
        }
        let size = |text: &str| serde_json::from_value::<Size>(text.into()).ok().map(|size| size.0);
        assert_eq!(size("256MiB"), Some(256 << 20));
        assert_eq!(size("256MB"), None);
    }
}
