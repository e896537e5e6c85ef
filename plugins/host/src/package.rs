//! A policy as a file: the component with its manifest and its signature.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;

use crate::error::PluginError;
use crate::inspect::{self, Contents};
use crate::manifest::{MANIFEST_SECTION, Manifest};
use crate::policy::{Grants, MAX_COMPONENT_BYTES};
use crate::schema::ConfigSchema;
use crate::section;
use crate::signature::{KeyId, PublicKey, Signature};

/// Digits of the digest that records and logs show.
const SHORT_DIGEST: usize = 16;

/// A file that was looked through: whole, with a manifest that fits it if it has one. Nothing is said yet of who made it
/// ([`Package::verify`]), nor whether it can run ([`crate::PolicyHost::load`]).
#[derive(Debug, Clone)]
pub struct Package {
    bytes: Vec<u8>,
    contents: Contents,
    manifest: Option<Manifest>,
    signature: Option<Signature>,
    digest: String,
}

impl Package {
    /// Looks through a file.
    ///
    /// # Errors
    /// [`PluginError::File`], [`PluginError::NotAComponent`]: it is no component, damaged or too large. [`PluginError::Manifest`]: there are two, or it is wrong, or
    /// does not list what the component exports. [`PluginError::Signature`]: there are two, or it is not the end of the file.
    pub fn read(bytes: Vec<u8>) -> Result<Self, PluginError> {
        if bytes.len() > MAX_COMPONENT_BYTES {
            return Err(PluginError::File(format!("it is larger than {} MiB", MAX_COMPONENT_BYTES >> 20)));
        }
        let signature = Signature::read(&bytes)?;
        let manifest = manifest(&bytes)?;
        let contents = inspect::contents(&bytes)?;
        if let Some(manifest) = &manifest {
            manifest.fits(&contents.interfaces())?;
        }
        let mut hash = String::new();
        for byte in digest(&SHA256, &bytes).as_ref() {
            let _infallible = write!(hash, "{byte:02x}");
        }
        Ok(Self { bytes, contents, manifest, signature, digest: hash })
    }

    /// The whole file; it is what [`crate::PolicySpec::component`] takes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The whole file, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What it exports, imports and needs.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// What it says of itself.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Its version as the manifest has it; empty without one.
    #[must_use]
    pub fn version(&self) -> String {
        self.manifest.as_ref().map(|manifest| manifest.version.to_string()).unwrap_or_default()
    }

    /// SHA-256 of the whole file, 64 hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The first 16 digits of [`Package::digest`], for records and logs.
    #[must_use]
    pub fn short_digest(&self) -> &str {
        self.digest.get(..SHORT_DIGEST).unwrap_or_default()
    }

    /// The key that it says it was signed with. Anybody can write that: [`Package::verify`] proves it.
    #[must_use]
    pub fn claimed_signer(&self) -> Option<&KeyId> {
        self.signature.as_ref().map(|signature| &signature.key_id)
    }

    /// Was it signed with one of these keys, and not changed since? Says by which.
    ///
    /// # Errors
    /// [`PluginError::Unsigned`], [`PluginError::UnknownSigner`], or [`PluginError::Signature`] if it was changed.
    pub fn verify(&self, keys: &[PublicKey]) -> Result<KeyId, PluginError> {
        self.signature.as_ref().ok_or(PluginError::Unsigned)?.verify(&self.bytes, keys)
    }

    /// What it gets to see: what its manifest asks for and the operator grants. Without a manifest, nothing.
    #[must_use]
    pub fn grants(&self, by_operator: &Grants) -> Grants {
        self.manifest.as_ref().map(|manifest| manifest.grants.granted(by_operator)).unwrap_or_default()
    }

    /// The names of its numbers for operators.
    pub fn metrics(&self) -> impl Iterator<Item = &str> {
        self.manifest.iter().flat_map(|manifest| manifest.metrics.iter().map(String::as_str))
    }

    /// Does a configuration fit its `config_schema`? Without one, any does.
    ///
    /// # Errors
    /// [`PluginError::Config`], with places and without values.
    pub fn check_config(&self, config: &Value) -> Result<(), PluginError> {
        match self.manifest.as_ref().and_then(|manifest| manifest.config_schema.as_ref()) {
            Some(schema) => ConfigSchema::new(schema)?.check(config),
            None => Ok(()),
        }
    }
}

fn manifest(file: &[u8]) -> Result<Option<Manifest>, PluginError> {
    let mut found = None;
    for section in section::sections(file)? {
        let section = section?;
        if section.is(MANIFEST_SECTION) && found.replace(section).is_some() {
            let what = "there are two sections `postern:manifest`; pack the component again";
            return Err(PluginError::Manifest(what.to_owned()));
        }
    }
    let text = found.and_then(|section| section.custom).map(|(_, text)| text);
    text.map(Manifest::parse).transpose()
}

#[cfg(test)]
mod tests;
