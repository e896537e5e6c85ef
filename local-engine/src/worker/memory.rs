//! Keys and values of sequences, and of beginnings that are kept for later: one pool for both.

use candle_core::Result;

use super::running::Sequence;
use crate::kv_pool::{BLOCK_TOKENS, BlockTable, KvPool};
use crate::prefix_cache::PrefixCache;

pub(super) struct Memory {
    pub(super) kv: KvPool,
    prefixes: PrefixCache,
}

impl Memory {
    pub(super) fn new(kv: KvPool) -> Self {
        Self { kv, prefixes: PrefixCache::default() }
    }

    /// Blocks that running sequences will still need for the tokens that they have and one more.
    pub(super) fn promised<'a>(&self, sequences: impl Iterator<Item = &'a Sequence>) -> usize {
        let running = sequences.filter(|sequence| sequence.is_running());
        let missing = running.map(|s| self.kv.blocks_needed(&s.table, s.tokens.len() + 1 - s.table.tokens()));
        missing.sum()
    }

    /// Gives a sequence the longest beginning of its tokens that is kept, if all its tokens fit beside what is promised to
    /// others; false, and nothing done, if not.
    pub(super) fn begin(&mut self, sequence: &mut Sequence, promised: usize) -> bool {
        let partition = sequence.submission.generation.origin.partition.as_ref();
        let found = partition.map_or_else(Vec::new, |partition| self.prefixes.find(partition, &sequence.tokens));
        // Those are counted among what can be had back, but will not be.
        let spared = found.iter().filter(|block| !self.kv.is_shared(**block)).count();
        let available = (self.kv.blocks_free() + self.prefixes.reclaimable(&self.kv)).saturating_sub(spared);
        let needed = (sequence.tokens.len() + 1).div_ceil(BLOCK_TOKENS).saturating_sub(found.len());
        if needed + promised > available {
            return false;
        }
        sequence.table = self.kv.share(&found);
        true
    }

    /// Makes room for `more` tokens of a table; false if there is not enough even without anything kept.
    pub(super) fn reserve(&mut self, table: &mut BlockTable, more: usize) -> Result<bool> {
        let missing = self.kv.blocks_needed(table, more).saturating_sub(self.kv.blocks_free());
        if missing > 0 {
            self.prefixes.evict(&mut self.kv, missing);
        }
        self.kv.reserve(table, more)
    }

    /// Keeps what is computed of a sequence for others of the same tenant and label.
    pub(super) fn keep(&mut self, sequence: &mut Sequence) {
        if let Some(partition) = &sequence.submission.generation.origin.partition {
            self.prefixes.insert(&mut self.kv, partition, &sequence.tokens, &mut sequence.table);
        }
    }

    /// Keeps what is computed, and gives up the sequence's own hold on it.
    pub(super) fn end(&mut self, sequence: &mut Sequence) {
        self.keep(sequence);
        self.kv.clear(&mut sequence.table);
    }

    pub(super) fn prefix_blocks(&self) -> usize {
        self.prefixes.blocks()
    }
}
