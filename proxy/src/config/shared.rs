//! What several gateways share: as written → as meant.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use serde_saphyr::{Location, Spanned};

use super::Secret;
use super::file::{File, shared as file};

/// Databases of one server, at most.
const MAX_DATABASE: u32 = 65_535;
const PORT: u16 = 6379;

/// This gateway is one of several.
#[derive(Debug, Clone)]
pub struct Replicas {
    /// How many at most.
    pub count: NonZeroU16,
    /// Where they count together.
    pub redis: Option<Redis>,
    /// The key that all of them have.
    pub key: Option<Secret>,
}

/// A Redis.
#[derive(Debug, Clone)]
pub struct Redis {
    /// Where it listens.
    pub place: Place,
    /// Its number.
    pub database: u32,
    /// Its user.
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// A private authority.
    pub ca: Option<PathBuf>,
}

/// Where a Redis listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On a port, with TLS or without.
    Port {
        /// Its name or address, without brackets.
        host: String,
        /// The port.
        port: u16,
        /// With TLS.
        tls: bool,
    },
    /// On a socket of this machine.
    Socket(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port { host, port, .. } => write!(out, "{host}:{port}"),
            Self::Socket(path) => write!(out, "{}", path.display()),
        }
    }
}

/// An error, and where.
pub(super) type Wrong = (Location, String);

/// The section `replicas`.
pub(super) fn replicas(file: &File, base: &Path) -> Result<Option<Replicas>, Wrong> {
    let Some(written) = &file.replicas else { return Ok(None) };
    let place = written.redis.as_ref().map(|redis| redis.referenced);
    let redis = written.redis.as_ref().map(|written| redis(written, base)).transpose()?;
    if let (Some(place), None) = (place, &written.key) {
        let what = "`replicas.redis` needs `replicas.key`, the same for all: without it none would find what the others have counted";
        return Err((place, what.to_owned()));
    }
    Ok(Some(Replicas { count: written.count, redis, key: written.key.clone().map(|key| key.below(base)) }))
}

/// A Redis of any section.
pub(super) fn redis(written: &Spanned<file::Redis>, base: &Path) -> Result<Redis, Wrong> {
    let wrong = |what: &str| (written.referenced, what.to_owned());
    let value = &written.value;
    let (place, database) = address(&value.url, base).map_err(wrong)?;
    if let (Some(_), Place::Port { tls: false, .. } | Place::Socket(_)) = (&value.ca, &place) {
        return Err(wrong("`ca` is for `rediss://`"));
    }
    Ok(Redis {
        place,
        database,
        username: value.username.clone(),
        password: value.password.clone().map(|password| password.below(base)),
        ca: value.ca.as_ref().map(|path| base.join(path)),
    })
}

fn address(url: &str, base: &Path) -> Result<(Place, u32), &'static str> {
    const EXPECTED: &str = "expected `redis://HOST:PORT/DATABASE`, `rediss://…` for TLS, or `unix:/path/of.sock`, such as redis://127.0.0.1:6379";
    if let Some(path) = url.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok((Place::Socket(base.join(path)), 0));
    }
    let uri: http::Uri = url.parse().map_err(|_| EXPECTED)?;
    let tls = match uri.scheme_str() {
        Some("redis") => false,
        Some("rediss") => true,
        _ => return Err(EXPECTED),
    };
    let authority = uri.authority().ok_or(EXPECTED)?;
    if authority.as_str().contains('@') {
        return Err("no user or password in the address: write `{url: …, username: …, password: {env: NAME}}`");
    }
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let database = match uri.path().trim_start_matches('/') {
        "" => 0,
        number => number.parse().ok().filter(|number| *number <= MAX_DATABASE).ok_or(EXPECTED)?,
    };
    if host.is_empty() || uri.query().is_some() {
        return Err(EXPECTED);
    }
    let here = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    if !tls && !here {
        return Err("without TLS only on a loopback address: write `rediss://…`, or `unix:/path/of.sock`");
    }
    Ok((Place::Port { host, port: authority.port_u16().unwrap_or(PORT), tls }, database))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_what_would_go_in_the_clear_is_refused() {
        let read = |url| address(url, Path::new("/etc/postern"));
        let port = |host: &str, port, tls| Place::Port { host: host.to_owned(), port, tls };
        assert_eq!(read("redis://127.0.0.1").unwrap(), (port("127.0.0.1", 6379, false), 0));
        assert_eq!(read("redis://[::1]:7000/3").unwrap(), (port("::1", 7000, false), 3));
        assert_eq!(read("rediss://cache.example.org/1").unwrap(), (port("cache.example.org", 6379, true), 1));
        assert_eq!(read("unix:run/r.sock").unwrap(), (Place::Socket("/etc/postern/run/r.sock".into()), 0));
        let refused = [
            "",
            "http://127.0.0.1",
            "redis://",
            "redis://cache.example.org",
            "redis://a:b@127.0.0.1",
            "redis://127.0.0.1/x",
            "redis://127.0.0.1/0?a=b",
            "unix:",
        ];
        for url in refused {
            assert!(read(url).is_err(), "{url}");
        }
    }
}
