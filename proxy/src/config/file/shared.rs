//! What several gateways of one office share.

use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use crate::config::{Secret, units};

/// This gateway is one of several that stand in for each other.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replicas {
    /// How many there are at most. While their Redis is away, each keeps to its part of every limit.
    #[serde(deserialize_with = "units::count")]
    pub count: NonZeroU16,
    /// Where they count together what identities and tenants use; absent: each keeps to its part.
    #[serde(default)]
    #[schemars(with = "Option<Redis>")]
    pub redis: Option<Spanned<Redis>>,
    /// The key that all of them have in place of `installation.key`: 32 bytes, as 64 hexadecimal digits.
    #[serde(default)]
    pub key: Option<Secret>,
}

/// A Redis, or another server that speaks its protocol: its address alone, or with what it takes to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// `redis://HOST:PORT/DATABASE`, `rediss://…` with TLS, `unix:/path/of.sock`.
    pub url: String,
    /// Its user; absent: the default one.
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// A private authority to trust instead of the machine's.
    pub ca: Option<PathBuf>,
}

/// As it is written at length.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AtLength {
    /// `redis://HOST:PORT/DATABASE`, `rediss://…` with TLS, `unix:/path/of.sock`.
    url: String,
    /// Its user; absent: the default one.
    #[serde(default)]
    username: Option<String>,
    /// The password.
    #[serde(default)]
    password: Option<Secret>,
    /// A private authority to trust instead of the machine's.
    #[serde(default)]
    ca: Option<PathBuf>,
}

impl<'de> Deserialize<'de> for Redis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Redis;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an address such as redis://127.0.0.1:6379, or {url: …, password: …}")
            }

            fn visit_str<E: serde::de::Error>(self, url: &str) -> Result<Redis, E> {
                Ok(Redis { url: url.to_owned(), username: None, password: None, ca: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Redis, A::Error> {
                let AtLength { url, username, password, ca } = AtLength::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Redis { url, username, password, ca })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Redis {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Redis".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A Redis, or another server that speaks its protocol.",
            "anyOf": [{"type": "string"}, generator.subschema_for::<AtLength>()],
        })
    }
}
