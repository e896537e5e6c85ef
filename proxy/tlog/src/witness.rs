//! What a witness is asked and answers (C2SP tlog-witness, tlog-cosignature); who carries it is somebody else's task.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use data_encoding::BASE64;
use signed_note::{Note, Signature, Verifier, VerifierList};
use tlog_tiles::tlog::prove_tree;

use crate::files::{self, words};
use crate::note::{MAX_NOTE, file_name};
use crate::{Files, Key, LogError, Signed, log};

/// Ed25519 with a time, as signed-note numbers it.
const COSIGNATURE: u8 = 4;
/// Signatures that are read of one answer.
const MAX_SIGNATURES: usize = 16;

/// Whose cosignatures count: `NAME+HASH+KEY` of the kind of tlog-cosignature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessKey {
    name: String,
    id: u32,
    public: [u8; 32],
}

impl WitnessKey {
    /// Reads it.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(text: &str) -> Result<Self, LogError> {
        let none =
            || LogError::Note("not the public key of a witness, which is written NAME+8 HEX DIGITS+BASE64".into());
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else { return Err(none()) };
        let key = BASE64.decode(key.as_bytes()).map_err(|_| none())?;
        let is_named = signed_note::is_key_name_valid(name) && id.len() == 8;
        let id = u32::from_str_radix(id, 16).ok().filter(|id| is_named && *id == signed_note::key_id(name, &key));
        let (Some(id), Some((&COSIGNATURE, public))) = (id, key.split_first()) else { return Err(none()) };
        let public = public.try_into().map_err(|_| none())?;
        Ok(Self { name: name.to_owned(), id, public })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The one of this name.
    ///
    /// # Errors
    /// It cannot be the name of a key.
    pub fn named(name: &str, public: [u8; 32]) -> Result<Self, LogError> {
        if !signed_note::is_key_name_valid(name) {
            return Err(LogError::Note(format!("{name:?} cannot be the name of a witness: no spaces, no plus")));
        }
        let id = signed_note::key_id(name, &[&[COSIGNATURE], public.as_slice()].concat());
        Ok(Self { name: name.to_owned(), id, public })
    }

    /// The name of the file with what it signed last, in [`Files::witnessed`].
    #[must_use]
    pub fn file(&self) -> String {
        file_name(&self.name, self.id)
    }

    /// When it signed the checkpoint `bytes`, in seconds since 1970.
    ///
    /// # Errors
    /// It did not.
    pub fn time_of(&self, bytes: &[u8]) -> Result<u64, LogError> {
        let not = || LogError::Note(format!("it is not signed by the witness {}", self.name));
        let note = Note::from_bytes(bytes).map_err(|_| LogError::Note("it is not a signed note".into()))?;
        let (good, _) = note.verify(&VerifierList::new(vec![Box::new(self.clone())])).map_err(|_| not())?;
        let time = good.first().and_then(|signature| signature.signature().first_chunk::<8>()).ok_or_else(not)?;
        Ok(u64::from_be_bytes(*time))
    }
}

impl std::fmt::Display for WitnessKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = [&[COSIGNATURE], self.public.as_slice()].concat();
        write!(out, "{}+{:08x}+{}", self.name, self.id, BASE64.encode(&key))
    }
}

impl Verifier for WitnessKey {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        let Some((time, signature)) = signature.split_first_chunk::<8>() else { return false };
        let time = u64::from_be_bytes(*time);
        let signed = [format!("cosignature/v1\ntime {time}\n").as_bytes(), text].concat();
        UnparsedPublicKey::new(&ED25519, &self.public).verify(&signed, signature).is_ok()
    }
}

/// The body that asks a witness, which knows the tree of `old` entries, to sign `signed`.
///
/// # Errors
/// What the proof between the two needs is not there.
pub fn add_checkpoint(files: &Files, signed: &Signed, old: u64) -> Result<Vec<u8>, LogError> {
    let size = signed.head.size;
    let proof = match old {
        0 => Vec::new(),
        old if old >= size => Vec::new(),
        old => prove_tree(size, old, &files.tree(size)).map_err(|error| LogError::Missing(words(&error)))?,
    };
    let mut text = format!("old {old}\n");
    for hash in proof {
        text.push_str(&BASE64.encode(&hash.0));
        text.push('\n');
    }
    text.push('\n');
    Ok([text.as_bytes(), &signed.bytes].concat())
}

/// What a witness said.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It signed: the checkpoint with its signature.
    Signed(Vec<u8>),
    /// It knows a tree of another size, from which the proof must be; or of this size, and it is another tree.
    Knows(u64),
    /// What it has seen is not the beginning of this log.
    Contradicts,
    /// It does not, and why, in fixed words.
    Refused(&'static str),
}

/// Reads what a witness said to [`add_checkpoint`], by its status and body.
#[must_use]
pub fn answer(key: &WitnessKey, signed: &Signed, status: u16, body: &[u8]) -> Answer {
    match status {
        200 => cosigned(key, signed, body).map_or(Answer::Refused("its signature is none of its key"), Answer::Signed),
        409 => {
            let size = std::str::from_utf8(body).ok().and_then(|text| text.trim_end_matches('\n').parse().ok());
            size.map_or(Answer::Refused("it knows a tree of another size, and does not say which"), Answer::Knows)
        }
        404 => Answer::Refused("it does not know this log: give it the log's public key"),
        403 => Answer::Refused("it does not take the log's signature: it was given another public key"),
        422 => Answer::Contradicts,
        400 => Answer::Refused("it could not read what it was asked"),
        _ => Answer::Refused("it failed"),
    }
}

/// Keeps what a witness signed, beside the log. It is there as a whole, and on the disk, or not at all.
///
/// # Errors
/// The disk says no.
pub fn keep_cosigned(files: &Files, witness: &WitnessKey, bytes: &[u8]) -> Result<(), LogError> {
    log::write(&files.witnessed_path(&witness.file()), bytes, true)
}

/// What a witness signed last, as it is kept; `None`: nothing that both signed.
///
/// # Errors
/// It cannot be read.
pub fn kept_cosigned(files: &Files, log: &Key, witness: &WitnessKey) -> Result<Option<Signed>, LogError> {
    let bytes = files::read(&files.witnessed_path(&witness.file()), MAX_NOTE as u64)?;
    Ok(bytes.filter(|bytes| witness.time_of(bytes).is_ok()).and_then(|bytes| log.checkpoint(&bytes).ok()))
}

fn cosigned(key: &WitnessKey, signed: &Signed, body: &[u8]) -> Option<Vec<u8>> {
    let lines = body.split_inclusive(|byte| *byte == b'\n').take(MAX_SIGNATURES);
    let own = lines.filter_map(|line| Signature::from_bytes(line.strip_suffix(b"\n")?).ok());
    let own = own.filter(|signature| signature.name() == key.name && signature.id() == key.id);
    let mut bytes = signed.bytes.clone();
    for signature in own.take(1) {
        bytes.extend_from_slice(&signature.to_bytes());
    }
    key.time_of(&bytes).ok()?;
    Some(bytes)
}
