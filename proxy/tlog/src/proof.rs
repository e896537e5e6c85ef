//! That a record is in a log, for somebody who has neither (C2SP tlog-proof).

use data_encoding::BASE64;
use tlog_tiles::tlog::{check_record, prove_record, record_hash};

use crate::files::words;
use crate::note::{Key, MAX_NOTE};
use crate::{Files, Hash, Head, LogError, MAX_ENTRY};

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";
/// Hashes on the way to the root, at most.
const MAX_HASHES: usize = 63;
/// Bytes of a proof at most: its record in base64, hashes, a checkpoint.
const MAX_PROOF: usize = MAX_ENTRY * 2 + MAX_HASHES * 64 + MAX_NOTE;

/// A record, and why it is in the log of a checkpoint. It needs nothing but the log's public key to be checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    /// The record; written as the `extra` of the format.
    pub entry: Vec<u8>,
    /// Its number.
    pub index: u64,
    /// The hashes of its neighbours on the way to the root.
    pub hashes: Vec<Hash>,
    /// The checkpoint, as it was signed.
    pub checkpoint: Vec<u8>,
}

impl Proof {
    /// Of the record `index`, towards `checkpoint`.
    ///
    /// # Errors
    /// The checkpoint has no such record, or what is needed of the log is not there.
    pub fn of(files: &Files, checkpoint: &[u8], head: &Head, index: u64) -> Result<Self, LogError> {
        if index >= head.size {
            return Err(LogError::NoEntry { index, size: head.size });
        }
        let entry = files.entry(index)?;
        let tree = files.tree(head.size);
        let hashes = prove_record(head.size, index, &tree).map_err(|error| LogError::Missing(words(&error)))?;
        let proof = Self { entry, index, hashes, checkpoint: checkpoint.to_vec() };
        proof.holds(head)?;
        Ok(proof)
    }

    /// Checks it against the log's key.
    ///
    /// # Errors
    /// The checkpoint is not signed by it, or the record is not in its tree.
    pub fn check(&self, key: &Key) -> Result<Head, LogError> {
        let head = key.checkpoint(&self.checkpoint)?.head;
        self.holds(&head)?;
        Ok(head)
    }

    fn holds(&self, head: &Head) -> Result<(), LogError> {
        if self.index >= head.size {
            return Err(LogError::NoEntry { index: self.index, size: head.size });
        }
        check_record(&self.hashes, head.size, head.root, self.index, record_hash(&self.entry))
            .map_err(|_| LogError::Proof("this record is not in the tree of the checkpoint at that number".into()))
    }

    /// As it is written.
    #[must_use]
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = format!("{FIRST_LINE}\nextra {}\nindex {}\n", BASE64.encode(&self.entry), self.index);
        for hash in &self.hashes {
            text.push_str(&BASE64.encode(&hash.0));
            text.push('\n');
        }
        text.push('\n');
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&self.checkpoint);
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(bytes: &[u8]) -> Result<Self, LogError> {
        let none = |what: &str| LogError::Proof(format!("it is not written as one: {what}"));
        if bytes.len() > MAX_PROOF {
            return Err(none("it is too long"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| none("it is not text"))?;
        let (proof, checkpoint) = text.split_once("\n\n").ok_or_else(|| none("there is no checkpoint"))?;
        let mut lines = proof.split('\n');
        if lines.next() != Some(FIRST_LINE) {
            return Err(none("its first line is another"));
        }
        let decode = |text: &str| BASE64.decode(text.as_bytes()).ok();
        let entry = lines.next().and_then(|line| decode(line.strip_prefix("extra ")?));
        let index = lines.next().and_then(|line| line.strip_prefix("index ")?.parse().ok());
        let hash = |line: &str| decode(line).and_then(|bytes| bytes.try_into().ok()).map(Hash);
        let hashes: Option<Vec<Hash>> = lines.map(hash).collect();
        Ok(Self {
            entry: entry.ok_or_else(|| none("there is no record in it (`extra`)"))?,
            index: index.ok_or_else(|| none("there is no `index`"))?,
            hashes: hashes.filter(|hashes| hashes.len() <= MAX_HASHES).ok_or_else(|| none("its hashes are none"))?,
            checkpoint: checkpoint.as_bytes().to_vec(),
        })
    }
}
