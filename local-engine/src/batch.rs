//! What one step computes: rows of any sequences, each at its own position, one after the other without padding.

use std::ops::Range;

use crate::kv_pool::{BlockId, BlockTable};

/// Consecutive tokens of one sequence, as rows of the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its rows.
    pub(crate) rows: Range<usize>,
    /// The position of its first row in the sequence: so many tokens are in the blocks already.
    pub(crate) position: usize,
    /// The sequence's blocks, with room for the rows.
    pub(crate) blocks: Vec<BlockId>,
}

/// The rows of a step.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    tokens: Vec<u32>,
    segments: Vec<Segment>,
    wanted: Vec<u32>,
}

impl Batch {
    /// Adds tokens that follow those in `table`, in which [`crate::kv_pool::KvPool::reserve`] made room for them. The
    /// logits of the last `wanted` of them are asked for.
    pub(crate) fn push(&mut self, tokens: &[u32], table: &BlockTable, wanted: usize) {
        let begin = self.tokens.len();
        let end = begin + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.wanted.extend((end - wanted.min(tokens.len())..end).map(|row| row as u32));
        self.segments.push(Segment { rows: begin..end, position: table.tokens(), blocks: table.blocks().to_vec() });
    }

    /// Token ids of all rows.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// In order of their rows.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The rows whose logits are asked for, in order.
    pub(crate) fn wanted(&self) -> &[u32] {
        &self.wanted
    }

    /// The position of each row in its sequence.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().flat_map(|segment| segment.position..segment.position + segment.rows.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_side_by_side_and_keep_their_positions() {
        let mut table = BlockTable::default();
        table.advance(7);
        let mut batch = Batch::default();
        batch.push(&[5, 6, 7], &table, 2);
        batch.push(&[8], &BlockTable::default(), 0);
        batch.push(&[9], &table, 1);
        assert_eq!(batch.tokens(), [5, 6, 7, 8, 9]);
        assert_eq!(batch.positions().collect::<Vec<_>>(), [7, 8, 9, 0, 7]);
        assert_eq!(batch.wanted(), [1, 2, 4]);
        assert_eq!(batch.segments()[1].rows, 3..4);
    }
}
