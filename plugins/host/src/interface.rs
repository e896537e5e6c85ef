//! Which interfaces a component may ask for and may offer, by their names and versions. Pure.

use semver::{Version, VersionReq};

use crate::error::{PluginError, printable};
use crate::facts::Steps;

/// The package of policies, and the version of it that is offered here.
pub(crate) const PACKAGE: &str = "postern:policy";
pub(crate) const OFFERED: Version = Version::new(1, 0, 0);

const INTERFACES: [&str; 8] = ["types", "log", "config", "detectors", "counters", "metrics", "clock", "random"];
const EXPORTS: [&str; 4] = ["routing", "caching", "redaction", "startup"];
const WASI_PACKAGES: [&str; 7] = ["cli", "clocks", "filesystem", "http", "io", "random", "sockets"];
const MAX_SHOWN_BYTES: usize = 200;

/// Who answers an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Import {
    /// One of Postern's interfaces.
    Policy,
    /// An interface of WASI, behind which there is nothing.
    Wasi,
}

/// `namespace:package/interface@version`.
struct Name<'a> {
    package: &'a str,
    interface: &'a str,
    version: Version,
}

impl<'a> Name<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (path, version) = name.split_once('@')?;
        let (package, interface) = path.split_once('/')?;
        Some(Self { package, interface, version: Version::parse(version).ok()? })
    }
}

/// Who answers this import on a host that offers version `offered`.
///
/// # Errors
/// Nobody; or it is made for an interface that is newer than this host, or another one.
pub(crate) fn import(name: &str, offered: &Version) -> Result<Import, PluginError> {
    let unknown = || PluginError::UnknownImport(printable(name, MAX_SHOWN_BYTES));
    let parsed = Name::parse(name).ok_or_else(unknown)?;
    if parsed.package == PACKAGE {
        fits(name, &parsed, offered)?;
        return if INTERFACES.contains(&parsed.interface) { Ok(Import::Policy) } else { Err(unknown()) };
    }
    let is_wasi = parsed.package.strip_prefix("wasi:").is_some_and(|package| WASI_PACKAGES.contains(&package));
    let is_version = VersionReq::parse("0.2").is_ok_and(|known| known.matches(&parsed.version));
    if is_wasi && is_version { Ok(Import::Wasi) } else { Err(unknown()) }
}

/// The short name of an interface that a policy exports, in whatever version.
pub(crate) fn exported(name: &str) -> Option<&str> {
    let parsed = Name::parse(name).filter(|parsed| parsed.package == PACKAGE)?;
    EXPORTS.contains(&parsed.interface).then_some(parsed.interface)
}

/// The steps among the exports, and whether it has a start.
///
/// # Errors
/// There are none; or one is made for an interface that is newer than this host, or another one.
pub(crate) fn exports<'a>(
    names: impl Iterator<Item = &'a str>,
    offered: &Version,
) -> Result<(Steps, bool), PluginError> {
    let (mut steps, mut startup) = (Steps::default(), false);
    for name in names {
        let Some(parsed) = Name::parse(name).filter(|parsed| parsed.package == PACKAGE) else { continue };
        fits(name, &parsed, offered)?;
        match parsed.interface {
            "routing" => steps.routing = true,
            "caching" => steps.caching = true,
            "redaction" => steps.redaction = true,
            "startup" => startup = true,
            _ => {}
        }
    }
    if steps == Steps::default() { Err(PluginError::NoSteps) } else { Ok((steps, startup)) }
}

/// Within a major version interfaces only grow: whatever was made for this one or an earlier one works.
fn fits(name: &str, parsed: &Name<'_>, offered: &Version) -> Result<(), PluginError> {
    let version = &parsed.version;
    let fits = version.pre.is_empty() && version.major == offered.major && version.minor <= offered.minor;
    if fits { Ok(()) } else { Err(PluginError::OtherVersion(printable(name, MAX_SHOWN_BYTES))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: Version = Version::new(1, 1, 0);

    #[test]
    fn what_was_made_for_an_earlier_version_works() {
        for name in ["postern:policy/clock@1.0.0", "postern:policy/clock@1.0.3"] {
            assert_eq!(import(name, &OFFERED).unwrap(), Import::Policy);
            assert_eq!(import(name, &NEXT).unwrap(), Import::Policy);
        }
        let routing = ["postern:policy/routing@1.0.0", "postern:policy/startup@1.0.0", "something:else/routing@9.0.0"];
        for offered in [OFFERED, NEXT] {
            let (steps, startup) = exports(routing.into_iter(), &offered).unwrap();
            assert_eq!((steps, startup), (Steps { routing: true, ..Steps::default() }, true));
        }
    }

    #[test]
    fn what_was_made_for_another_version_is_refused_in_words() {
        for name in ["clock@1.1.0", "clock@2.0.0", "clock@0.9.0", "clock@1.0.0-rc.1"].map(|n| format!("{PACKAGE}/{n}"))
        {
            let error = import(&name, &OFFERED).unwrap_err();
            assert!(matches!(&error, PluginError::OtherVersion(shown) if *shown == name), "{error}");
            assert!(error.to_string().contains("offers postern:policy@1.0.0"), "{error}");
        }
        let error = exports(["postern:policy/routing@1.1.0"].into_iter(), &OFFERED).unwrap_err();
        assert!(matches!(error, PluginError::OtherVersion(_)));
        assert!(import("postern:policy/clock@1.1.0", &NEXT).is_ok());
    }

    #[test]
    fn anything_else_is_unknown() {
        for name in [
            "postern:policy/files@1.0.0",
            "postern:policy/routing@1.0.0",
            "postern:policy/log",
            "postern:policies/log@1.0.0",
            "log",
            "",
            "wasi:cli/environment@0.3.0",
            "wasi:cli/environment",
            "wasi:nn/graph@0.2.0",
            "other:cli/environment@0.2.0",
        ] {
            assert!(matches!(import(name, &OFFERED), Err(PluginError::UnknownImport(_))), "{name}");
        }
        for name in ["wasi:cli/environment@0.2.0", "wasi:io/streams@0.2.12"] {
            assert_eq!(import(name, &OFFERED).unwrap(), Import::Wasi);
        }
        assert!(matches!(exports(["run"].into_iter(), &OFFERED), Err(PluginError::NoSteps)));
    }
}
