//! Keys and values of all sequences, outside the model, in blocks of [`BLOCK_TOKENS`] tokens that sequences may share.
//!
//! A sequence has a [`BlockTable`]: its blocks in order of position. A block belongs to one table or to several (the same
//! beginning, or choices of one prompt); whoever writes into a shared block gets a copy first. Memory is taken when a
//! block is first needed and given back when its last owner lets go, and a new block is always zeroed: so no sequence
//! can ever see what another one left behind.
//!
//! Source for paging: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023.

mod store;

use candle_core::{Device, Result};

pub(crate) use store::{DeviceStore, HostStore, KvFormat, Store};

/// Tokens of one block.
pub(crate) const BLOCK_TOKENS: usize = 16;

/// Names a block of a pool.
pub(crate) type BlockId = u32;

/// What keys and values are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
}

impl KvShape {
    /// Numbers of one block: keys and values of all layers.
    pub(crate) fn block_numbers(self) -> usize {
        self.layers * self.kv_heads * self.head_width * 2 * BLOCK_TOKENS
    }

    /// Memory of one block, in bytes.
    pub(crate) fn block_bytes(self, format: KvFormat) -> usize {
        let numbers = self.block_numbers();
        match format {
            KvFormat::F16 => 2 * numbers,
            // A scale (f32) for each token's key and value of each head.
            KvFormat::Q8 => numbers + numbers / self.head_width.max(1) * 4,
        }
    }
}

/// The blocks of one sequence, in order of position, and how many tokens they hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockTable {
    blocks: Vec<BlockId>,
    tokens: usize,
}

impl BlockTable {
    /// Tokens in it: the position of the next one.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Its blocks, the first tokens' first.
    pub(crate) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Counts `tokens` that the model has written behind the present ones; [`KvPool::reserve`] made room for them.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }
}

/// All blocks of a model's sequences.
pub(crate) struct KvPool {
    shape: KvShape,
    store: Store,
    /// Owners of each block; 0: it is free.
    owners: Vec<u32>,
    free: Vec<BlockId>,
}

impl KvPool {
    /// Room for `blocks` blocks. On the CPU, memory is taken only as they are needed.
    pub(crate) fn new(shape: KvShape, format: KvFormat, blocks: usize, device: &Device) -> Result<Self> {
        let Ok(count) = BlockId::try_from(blocks) else {
            candle_core::bail!("{blocks} blocks are more than can be named")
        };
        let store = Store::new(shape, format, blocks, device)?;
        // The lowest number is on top, so that memory once touched is touched again.
        Ok(Self { shape, store, owners: vec![0; blocks], free: (0..count).rev().collect() })
    }

    pub(crate) fn shape(&self) -> KvShape {
        self.shape
    }

    /// Blocks in all.
    pub(crate) fn blocks_max(&self) -> usize {
        self.owners.len()
    }

    /// Blocks that nobody owns.
    pub(crate) fn blocks_free(&self) -> usize {
        self.free.len()
    }

    /// True if more than one table, or a table and the prefix cache, hold this block.
    pub(crate) fn is_shared(&self, block: BlockId) -> bool {
        self.owners.get(block as usize).is_some_and(|owners| *owners > 1)
    }

    /// Blocks that [`Self::reserve`] would take for `more` tokens of this table.
    pub(crate) fn blocks_needed(&self, table: &BlockTable, more: usize) -> usize {
        let whole = (table.tokens + more).div_ceil(BLOCK_TOKENS).saturating_sub(table.blocks.len());
        whole + usize::from(more > 0 && self.shared_tail(table).is_some())
    }

    /// Makes room for `more` tokens behind the present ones, in blocks that this table alone owns. False, and nothing
    /// taken, if there are not enough free blocks.
    pub(crate) fn reserve(&mut self, table: &mut BlockTable, more: usize) -> Result<bool> {
        if self.blocks_needed(table, more) > self.free.len() {
            return Ok(false);
        }
        if more > 0
            && let Some(shared) = self.shared_tail(table)
            && let Some(own) = self.take()?
        {
            self.store.copy(shared, own)?;
            if let Some(last) = table.blocks.get_mut(table.tokens / BLOCK_TOKENS) {
                *last = own;
            }
            self.release(shared);
        }
        while table.blocks.len() < (table.tokens + more).div_ceil(BLOCK_TOKENS) {
            let Some(block) = self.take()? else { return Ok(false) };
            table.blocks.push(block);
        }
        Ok(true)
    }

    /// A table that begins with these whole blocks, which it shares with whoever has them.
    pub(crate) fn share(&mut self, blocks: &[BlockId]) -> BlockTable {
        for block in blocks {
            self.retain(*block);
        }
        BlockTable { blocks: blocks.to_vec(), tokens: blocks.len() * BLOCK_TOKENS }
    }

    /// Another table with the same tokens. Blocks are copied when one of the two writes.
    #[cfg_attr(not(test), expect(dead_code, reason = "several answers to one prompt come next"))]
    pub(crate) fn fork(&mut self, table: &BlockTable) -> BlockTable {
        let used = table.tokens.div_ceil(BLOCK_TOKENS).min(table.blocks.len());
        let blocks = table.blocks.get(..used).unwrap_or_default();
        BlockTable { tokens: table.tokens, ..self.share(blocks) }
    }

    /// Puts a block that holds the same numbers in the place of a table's own.
    pub(crate) fn replace(&mut self, table: &mut BlockTable, at: usize, block: BlockId) {
        if let Some(place) = table.blocks.get_mut(at) {
            let own = std::mem::replace(place, block);
            self.retain(block);
            self.release(own);
        }
    }

    /// Forgets all but the first `tokens`, and gives up blocks that hold none of them.
    pub(crate) fn truncate(&mut self, table: &mut BlockTable, tokens: usize) {
        table.tokens = table.tokens.min(tokens);
        let kept = table.tokens.div_ceil(BLOCK_TOKENS);
        for block in table.blocks.split_off(kept.min(table.blocks.len())) {
            self.release(block);
        }
    }

    /// Gives up a table's blocks.
    pub(crate) fn clear(&mut self, table: &mut BlockTable) {
        for block in std::mem::take(table).blocks {
            self.release(block);
        }
    }

    /// One more owner of a block that has one.
    pub(crate) fn retain(&mut self, block: BlockId) {
        if let Some(owners) = self.owners.get_mut(block as usize) {
            *owners += 1;
        }
    }

    /// One owner fewer; the last one's block is free, and its memory is given back.
    pub(crate) fn release(&mut self, block: BlockId) {
        let Some(owners) = self.owners.get_mut(block as usize).filter(|owners| **owners > 0) else { return };
        *owners -= 1;
        if *owners == 0 {
            self.store.clear(block);
            self.free.push(block);
        }
    }

    pub(crate) fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// The block that the next token goes into, if others have it too.
    fn shared_tail(&self, table: &BlockTable) -> Option<BlockId> {
        let tail = table.blocks.get(table.tokens / BLOCK_TOKENS).copied();
        tail.filter(|block| self.is_shared(*block))
    }

    fn take(&mut self) -> Result<Option<BlockId>> {
        let Some(block) = self.free.pop() else { return Ok(None) };
        if let Some(owners) = self.owners.get_mut(block as usize) {
            *owners = 1;
        }
        self.store.prepare(block)?;
        Ok(Some(block))
    }
}

#[cfg(test)]
mod tests;
