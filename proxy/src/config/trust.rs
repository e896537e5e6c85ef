//! Who issues the gateway's certificate: the keys of the configuration for issuers outside of it.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::file::{self, Placed, Trust};
use crate::issuer::files::Paths;

/// PEM files that somebody else writes; a change is picked up.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// The gateway's certificate, then its intermediates.
    pub cert: PathBuf,
    /// Its private key: mode 0600, or 0640 with a group that the gateway is in. May be the same file.
    pub key: PathBuf,
    /// The roots to trust.
    pub ca: PathBuf,
    /// Certificate revocation lists.
    #[serde(default)]
    pub crl: Option<PathBuf>,
}

/// A SPIFFE agent.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spiffe {
    /// The UNIX socket of its Workload API, such as /run/spire/agent.sock; unix:///run/spire/agent.sock is the same.
    #[schemars(with = "String")]
    pub socket: Placed,
}

/// Who issues the gateway's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuer {
    /// The authority under `state_dir`.
    Embedded,
    /// Whoever writes these files.
    Files(Paths),
    /// The SPIFFE agent behind this socket.
    Spiffe {
        /// Its path.
        socket: PathBuf,
    },
}

/// Takes the section of the chosen issuer; relative paths are relative to `base`. A section that nothing reads is an
/// error: whoever wrote it believes that it is in use.
pub(super) fn issuer(trust: &Trust, base: &Path) -> Result<Issuer, (Location, String)> {
    let chosen = trust.issuer.value;
    let unread = |section: &str, at: Location| (at, format!("`trust.{section}` is read only with `issuer: {section}`"));
    if let Some(files) = trust.files.as_ref().filter(|_| chosen != file::Issuer::Files) {
        return Err(unread("files", files.referenced));
    }
    if let Some(spiffe) = trust.spiffe.as_ref().filter(|_| chosen != file::Issuer::Spiffe) {
        return Err(unread("spiffe", spiffe.referenced));
    }
    let at = trust.issuer.referenced;
    match (chosen, &trust.files, &trust.spiffe) {
        (file::Issuer::Embedded, ..) => Ok(Issuer::Embedded),
        (file::Issuer::Files, Some(Spanned { value: files, .. }), _) => Ok(Issuer::Files(Paths {
            cert: base.join(&files.cert),
            key: base.join(&files.key),
            ca: base.join(&files.ca),
            crl: files.crl.as_ref().map(|crl| base.join(crl)),
        })),
        (file::Issuer::Files, None, _) => {
            Err((at, "`issuer: files` needs `files: {cert: …, key: …, ca: …}` beside it".to_owned()))
        }
        (file::Issuer::Spiffe, _, Some(spiffe)) => Ok(Issuer::Spiffe { socket: socket(&spiffe.value.socket, base)? }),
        (file::Issuer::Spiffe, _, None) => {
            Err((at, "`issuer: spiffe` needs `spiffe: {socket: /run/spire/agent.sock}` beside it".to_owned()))
        }
    }
}

/// A path, or the URI that others write into `SPIFFE_ENDPOINT_SOCKET` (SPIFFE Workload Endpoint, section 4).
fn socket(written: &Placed, base: &Path) -> Result<PathBuf, (Location, String)> {
    let wrong = || (written.referenced, "expected the path of a UNIX socket, such as /run/spire/agent.sock".to_owned());
    let text = written.value.as_str();
    let path = match text.strip_prefix("unix:") {
        Some(uri) => {
            let path = uri.strip_prefix("//").unwrap_or(uri);
            if !path.starts_with('/') {
                return Err(wrong());
            }
            path
        }
        None if text.is_empty() || text.contains("://") => return Err(wrong()),
        None => text,
    };
    Ok(base.join(path))
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn read(trust: &str) -> Result<Issuer, String> {
        let text = format!(
            "listen: 127.0.0.1:8443\nadmin: 127.0.0.1:9443\nstate_dir: state\ntrust:\n  domain: b.test\n{trust}\
             identities: [{{match: spiffe://b.test/clerk/*}}]\n"
        );
        match parse(&text, Path::new("/etc/postern/postern.yaml")) {
            Ok(config) => Ok(config.issuer),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_authority_of_the_gateway_is_the_default() {
        assert_eq!(read(""), Ok(Issuer::Embedded));
        assert_eq!(read("  issuer: embedded\n"), Ok(Issuer::Embedded));
    }

    #[test]
    fn files_are_relative_to_the_configuration() {
        let paths = Paths {
            cert: "/run/tls/tls.crt".into(),
            key: "/run/tls/tls.key".into(),
            ca: "/etc/postern/roots.pem".into(),
            crl: None,
        };
        let section = "  issuer: files\n  files: {cert: /run/tls/tls.crt, key: /run/tls/tls.key, ca: roots.pem}\n";
        assert_eq!(read(section), Ok(Issuer::Files(paths.clone())));
        let with_crl = section.replace("roots.pem}", "roots.pem, crl: crl.pem}");
        assert_eq!(read(&with_crl), Ok(Issuer::Files(Paths { crl: Some("/etc/postern/crl.pem".into()), ..paths })));
    }

    #[test]
    fn a_socket_is_a_path_or_what_spiffe_writes() {
        for written in ["/run/spire/agent.sock", "unix:///run/spire/agent.sock", "unix:/run/spire/agent.sock"] {
            let read = read(&format!("  issuer: spiffe\n  spiffe: {{socket: '{written}'}}\n"));
            assert_eq!(read, Ok(Issuer::Spiffe { socket: "/run/spire/agent.sock".into() }), "{written}");
        }
        for written in ["", "tcp://127.0.0.1:8000", "unix://run/agent.sock", "unix:agent.sock"] {
            let told = read(&format!("  issuer: spiffe\n  spiffe: {{socket: '{written}'}}\n")).unwrap_err();
            assert!(told.contains(":7:20: expected the path of a UNIX socket"), "{written}: {told}");
        }
    }

    #[test]
    fn a_section_and_its_issuer_come_together() {
        let files = "  files: {cert: c, key: k, ca: r}\n";
        let spiffe = "  spiffe: {socket: /s}\n";
        for (written, place, expected) in [
            (format!("  issuer: files\n{spiffe}"), ":7:", "`trust.spiffe` is read only with `issuer: spiffe`"),
            (format!("  issuer: spiffe\n{spiffe}{files}"), ":8:", "`trust.files` is read only with `issuer: files`"),
            (files.to_owned(), ":6:", "`trust.files` is read only with `issuer: files`"),
            ("  issuer: files\n".to_owned(), ":6:11", "needs `files: {cert"),
            ("  issuer: spiffe\n".to_owned(), ":6:11", "needs `spiffe: {socket"),
            ("  issuer: vault\n".to_owned(), "line 6", "embedded, files, spiffe"),
            ("  issuer: files\n  files: {cert: c, key: k}\n".to_owned(), "line 7", "`ca`"),
            ("  issuer: files\n  files: {cert: c, key: k, ca: r, chain: x}\n".to_owned(), "line 7", "chain"),
        ] {
            let told = read(&written).unwrap_err();
            assert!(told.contains(place) && told.contains(expected), "{written}: {told}");
        }
    }
}
