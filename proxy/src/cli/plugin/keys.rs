//! `postern plugin keygen`, `sign` and `verify`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use postern_plugins::{MAX_COMPONENT_BYTES, MAX_KEY_BYTES, MAX_KEYS, Package, PublicKey, SigningKey};
use zeroize::Zeroizing;

use super::{Wrong, file};
use crate::cli::say;

const PRIVATE_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;

#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// Writes NAME.key, which stays with whoever signs, and NAME.pub, which gateways are given.
    #[arg(long, value_name = "NAME")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// The policy.
    #[arg(value_name = "FILE")]
    policy: PathBuf,
    /// The private key: Ed25519, PKCS #8 in PEM, as `keygen` or `openssl genpkey -algorithm ed25519` makes it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where to write the signed policy; absent: in the place of the unsigned one.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The policy.
    #[arg(value_name = "FILE")]
    policy: PathBuf,
    /// A public key that is trusted; may be said several times.
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
}

pub(super) fn keygen(command: &Keygen) -> anyhow::Result<ExitCode> {
    let key = SigningKey::generate()?;
    let (private, public) = (with_ending(&command.out, "key"), with_ending(&command.out, "pub"));
    if public.exists() {
        return Err(Wrong::because(format!("{} is there already; move it away, or name another", public.display())));
    }
    file::write_new(&private, key.to_pem()?.as_bytes(), PRIVATE_MODE)?;
    file::write_new(&public, key.public().to_pem().as_bytes(), PUBLIC_MODE)?;
    say(&format!("{}: keep it where policies are signed, off the gateways", private.display()));
    say(&format!("{}: for `plugins: {{keys: [...]}}` of gateways; key {}", public.display(), key.public().id()));
    Ok(ExitCode::SUCCESS)
}

/// A name may have dots: `ops.2026` gives `ops.2026.key`.
fn with_ending(name: &Path, ending: &str) -> PathBuf {
    let mut whole = name.as_os_str().to_owned();
    whole.push(".");
    whole.push(ending);
    PathBuf::from(whole)
}

pub(super) fn sign(command: &Sign) -> anyhow::Result<ExitCode> {
    let text = Zeroizing::new(file::read(&command.key, MAX_KEY_BYTES)?);
    let key = SigningKey::from_pem(&text).with_context(|| command.key.display().to_string())?;
    let named = || command.policy.display().to_string();
    let package = Package::read(file::read(&command.policy, MAX_COMPONENT_BYTES)?).with_context(named)?;
    if package.manifest().is_none() {
        let what =
            "there is no manifest in it, so the signature would not say what it is; `postern plugin pack` adds one";
        return Err(Wrong::because(format!("{}: {what}", named())));
    }
    let before = package.claimed_signer().cloned();
    let signed = Package::read(key.sign(package.bytes())?).with_context(named)?;
    let out = command.out.as_ref().unwrap_or(&command.policy);
    file::replace(out, signed.bytes())?;
    let instead = before.map(|id| format!(", in the place of a signature by {id}")).unwrap_or_default();
    say(&format!(
        "{}: signed by the key {}{instead}; digest {}",
        out.display(),
        key.public().id(),
        signed.short_digest()
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn verify(command: &Verify) -> anyhow::Result<ExitCode> {
    let keys = read_keys(&command.keys)?;
    let named = || command.policy.display().to_string();
    let package = Package::read(file::read(&command.policy, MAX_COMPONENT_BYTES)?).with_context(named)?;
    let trusted: Vec<_> = keys.iter().map(|(_, key)| key.clone()).collect();
    let signer = package.verify(&trusted).with_context(named)?;
    let (name, version) = (package.manifest().map_or("without a manifest", |m| m.name.as_str()), package.version());
    let file = file_of(&keys, &signer);
    say(&format!("{}: {name} {version}, signed by the key {signer} ({file}) and not changed since", named()));
    Ok(ExitCode::SUCCESS)
}

/// Public keys with the files that they are from.
pub(super) fn read_keys(files: &[PathBuf]) -> anyhow::Result<Vec<(PathBuf, PublicKey)>> {
    if files.len() > MAX_KEYS {
        return Err(Wrong::because(format!("{} keys, and {MAX_KEYS} is the most", files.len())));
    }
    let read = |path: &PathBuf| {
        let key = PublicKey::from_pem(&file::read(path, MAX_KEY_BYTES)?);
        Ok((path.clone(), key.with_context(|| path.display().to_string())?))
    };
    files.iter().map(read).collect()
}

pub(super) fn file_of(keys: &[(PathBuf, PublicKey)], id: &postern_plugins::KeyId) -> String {
    let file = keys.iter().find(|(_, key)| key.id() == id).map(|(path, _)| path.display().to_string());
    file.unwrap_or_default()
}
