//! The records: as written → as meant.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use postern_certs::SpiffeId;
use postern_tlog::{Key, WitnessKey};

use super::file::{self, File, Placed};
use super::shared::Wrong;

/// Witnesses at most: each is asked for each checkpoint.
const MAX_WITNESSES: usize = 8;
/// Logs of others that are kept here, at most.
const MAX_COPIES: usize = 16;
/// Logs that can be named as retired.
const MAX_RETIRED: usize = 64;

/// The records.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Folder of the log.
    pub dir: PathBuf,
    /// Where its key is.
    pub state_dir: PathBuf,
    /// How long records are kept; of the days that are older, the oldest is deleted once a day.
    pub retention: Duration,
    /// When the disk must have a record.
    pub sync: file::Sync,
    /// What is done with requests while nothing can be recorded.
    pub unwritable: file::Unwritable,
    /// Who is given each checkpoint.
    pub witnesses: Vec<Witness>,
    /// Who is given a copy.
    pub copy: Option<CopyTo>,
    /// Whose records are kept here as well.
    pub copies: Vec<CopyFrom>,
    /// Names of logs that the roster has as retired.
    pub retired: Vec<String>,
}

/// Somebody who is given each checkpoint.
#[derive(Debug, Clone)]
pub struct Witness {
    /// Where it takes them.
    pub url: Uri,
    /// Whose signature counts.
    pub key: WitnessKey,
    /// A private authority for its certificate.
    pub ca: Option<PathBuf>,
}

/// Another gateway that is given a copy.
#[derive(Debug, Clone)]
pub struct CopyTo {
    /// Its address.
    pub to: Uri,
    /// Who it must be.
    pub identity: SpiffeId,
}

/// A log of another gateway that is kept here.
#[derive(Debug, Clone)]
pub struct CopyFrom {
    /// Who may send it.
    pub identity: SpiffeId,
    /// Whose log it is.
    pub key: Key,
    /// Bytes that it may take here.
    pub max_size: u64,
    /// Where it is kept.
    pub dir: PathBuf,
}

/// Where copies of others are kept: beside the own log.
pub(crate) fn copies_dir(log: &Path) -> PathBuf {
    let mut name = log.file_name().unwrap_or_default().to_owned();
    name.push("-copies");
    log.with_file_name(name)
}

/// The section `audit`.
pub(super) fn audit(file: &File, base: &Path, state_dir: &Path) -> Result<Audit, Wrong> {
    let written = &file.audit;
    let dir = state_dir.join(&written.dir);
    let domain = file.trust.domain.value.as_str();
    let witnesses: Vec<Witness> =
        written.witnesses.iter().map(|written| witness(written, base)).collect::<Result<_, _>>()?;
    if let Some(extra) = written.witnesses.get(MAX_WITNESSES) {
        return Err((extra.url.referenced, format!("`audit.witnesses` has more than {MAX_WITNESSES}")));
    }
    unique(witnesses.iter().map(|one| one.key.file()).zip(written.witnesses.iter().map(|one| &one.key)))?;
    let copies = &written.copies.from;
    if let Some(extra) = copies.get(MAX_COPIES) {
        return Err((extra.key.referenced, format!("`audit.copies.from` has more than {MAX_COPIES}")));
    }
    let folder = copies_dir(&dir);
    let copies: Vec<CopyFrom> =
        copies.iter().map(|written| copy_from(written, domain, &folder)).collect::<Result<_, _>>()?;
    // The last part alone says in requests which log is meant.
    unique(copies.iter().map(|one| one.key.hash()).zip(written.copies.from.iter().map(|one| &one.key)))?;
    if let Some(extra) = written.retired.get(MAX_RETIRED) {
        return Err((extra.referenced, format!("`audit.retired` has more than {MAX_RETIRED}")));
    }
    let wrong = |name: &&Placed| !name.value.contains("/audit/") || name.value.contains([' ', '+', '\n']);
    if let Some(name) = written.retired.iter().find(wrong) {
        let what = "expected the name of a log, such as branch.example.org/audit/0123abcd (`postern audit key` prints it before the first `+`)";
        return Err((name.referenced, what.to_owned()));
    }
    Ok(Audit {
        dir,
        state_dir: state_dir.to_owned(),
        retention: written.retention.0,
        sync: written.sync,
        unwritable: written.unwritable,
        witnesses,
        copy: written.copy.as_ref().map(|to| copy_to(to, domain)).transpose()?,
        copies,
        retired: written.retired.iter().map(|name| name.value.clone()).collect(),
    })
}

fn witness(written: &file::Witness, base: &Path) -> Result<Witness, Wrong> {
    let expected = "expected the address of a witness, such as https://witness.example.org/log";
    let url = https(&written.url, expected)?;
    let url = format!("{}/add-checkpoint", url.to_string().trim_end_matches('/'));
    let url = url.parse().map_err(|_| (written.url.referenced, expected.to_owned()))?;
    let key = WitnessKey::parse(&written.key.value).map_err(|error| (written.key.referenced, error.to_string()))?;
    Ok(Witness { url, key, ca: written.ca.as_ref().map(|path| base.join(path)) })
}

fn copy_to(written: &file::CopyTo, domain: &str) -> Result<CopyTo, Wrong> {
    let expected = "expected the `listen` address of another gateway, such as https://gateway-b.example.org:8443";
    let to = https(&written.to, expected)?;
    if !matches!(to.path(), "" | "/") {
        return Err((written.to.referenced, expected.to_owned()));
    }
    Ok(CopyTo { to, identity: gateway(&written.identity, domain)? })
}

fn copy_from(written: &file::CopyFrom, domain: &str, folder: &Path) -> Result<CopyFrom, Wrong> {
    let key = Key::parse(&written.key.value).map_err(|error| (written.key.referenced, error.to_string()))?;
    let (identity, max_size, dir) = (gateway(&written.identity, domain)?, written.max_size.0, folder.join(key.file()));
    Ok(CopyFrom { identity, key, max_size, dir })
}

fn gateway(written: &Placed, domain: &str) -> Result<SpiffeId, Wrong> {
    let id = written.value.parse::<SpiffeId>().ok().filter(|id| id.trust_domain() == domain && !id.path().is_empty());
    let wanted = || format!("expected the SPIFFE ID of another gateway, such as spiffe://{domain}/branch-2/gateway");
    id.ok_or_else(|| (written.referenced, wanted()))
}

fn https(written: &Placed, expected: &str) -> Result<Uri, Wrong> {
    let wrong = |what: &str| (written.referenced, what.to_owned());
    let uri: Uri = written.value.parse().map_err(|_| wrong(expected))?;
    let authority = uri.authority().ok_or_else(|| wrong(expected))?;
    if uri.scheme_str() != Some("https") {
        return Err(wrong(&format!("https:// is needed: {expected}")));
    }
    if authority.as_str().contains('@') || uri.query().is_some() {
        return Err(wrong(expected));
    }
    Ok(uri)
}

fn unique<'a>(named: impl Iterator<Item = (String, &'a Placed)>) -> Result<(), Wrong> {
    let mut seen = BTreeSet::new();
    for (name, written) in named {
        if !seen.insert(name) {
            return Err((written.referenced, "the same key twice".to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::parse;

    const WITNESS: &str = "witness.example.org+f87cb30c+BHZvGkMDrE7WPkm2VsxG3rXxMXrYyvDu0V8O6G9ZyAyC";

    fn read(audit: &str) -> Result<super::Audit, String> {
        let text = format!(
            "listen: 127.0.0.1:8443\nadmin: 127.0.0.1:9443\nstate_dir: state\ntrust: {{domain: branch.example.org}}\n\
             identities: [{{match: spiffe://branch.example.org/clerk/*}}]\ntargets: []\naudit: {audit}\n"
        );
        let config = parse(&text, Path::new("/etc/postern/postern.yaml")).map_err(|error| error.to_string())?;
        Ok(config.audit)
    }

    fn log_key() -> String {
        let key = postern_tlog::SecretKey::generate("branch.example.org/audit/0123abcd").unwrap();
        postern_tlog::SecretKey::parse(&key).unwrap().public().to_string()
    }

    #[test]
    fn who_else_has_the_records_is_named_exactly() {
        let witness =
            |url: &str, key: &str| read(&format!("{{witnesses: [{{url: '{url}', key: '{key}', ca: w.pem}}]}}"));
        let witness_key = postern_tlog::WitnessKey::named("witness.example.org", [7; 32]).unwrap().to_string();
        let good = witness("https://witness.example.org/log/", &witness_key).unwrap();
        let one = &good.witnesses[0];
        assert_eq!(one.url, "https://witness.example.org/log/add-checkpoint");
        assert_eq!(one.ca.as_deref(), Some(Path::new("/etc/postern/w.pem")));
        for (url, key) in [
            ("http://witness.example.org", witness_key.as_str()),
            ("https://u@w.example.org", &witness_key),
            ("https://w.example.org", WITNESS),
        ] {
            let error = witness(url, key).unwrap_err();
            assert!(error.contains(":7:"), "{url}");
            assert_eq!(error.contains("https:// is needed"), url.starts_with("http:"), "{error}");
        }
        let twice = format!("{{url: 'https://w.example.org', key: '{witness_key}'}}");
        assert!(read(&format!("{{witnesses: [{twice}, {twice}]}}")).unwrap_err().contains("the same key twice"));

        let key = log_key();
        let from = |identity: &str, key: &str| {
            read(&format!(
                "{{dir: logs/audit, copies: {{from: [{{identity: '{identity}', key: '{key}', max_size: 1GiB}}]}}}}"
            ))
        };
        let good = from("spiffe://branch.example.org/b/gateway", &key).unwrap();
        let kept = format!(
            "/etc/postern/state/logs/audit-copies/branch.example.org_audit_0123abcd-{}",
            good.copies[0].key.hash()
        );
        assert_eq!((good.copies[0].dir.as_path(), good.copies[0].max_size), (Path::new(&kept), 1 << 30));
        assert!(from("spiffe://other.example/gateway", &key).unwrap_err().contains("SPIFFE ID of another gateway"));
        assert!(from("spiffe://branch.example.org/b/gateway", "x").unwrap_err().contains("public key of a log"));

        let to = |to: &str| read(&format!("{{copy: {{to: '{to}', identity: spiffe://branch.example.org/b/gateway}}}}"));
        assert!(to("https://gateway-b:8443").is_ok());
        assert!(to("https://gateway-b:8443/path").is_err() && to("http://gateway-b:8443").is_err());
        assert!(read("{retired: [branch.example.org/audit/0123abcd]}").is_ok());
        assert!(read("{retired: [0123abcd]}").unwrap_err().contains("the name of a log"));
    }
}
