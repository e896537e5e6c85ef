//! The right edge of the tree: all that is needed to append to it and to say its root.

use tlog_tiles::tile::Tile;
use tlog_tiles::tlog::{Error, HashReader, tree_hash};

use crate::Hash;
use crate::layout::{HASH, WIDTH};

/// Height of a tile.
pub(crate) const HEIGHT: u8 = 8;

/// A tree of which only the tiles at its right edge are held: 8 KiB a level, at most.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    size: u64,
    /// For each level the hashes of the tile that is not full, one after the other.
    edge: Vec<Vec<u8>>,
}

/// A tile that has just become full.
#[derive(Debug)]
pub(crate) struct Full {
    pub(crate) level: u8,
    pub(crate) index: u64,
    /// 256 hashes.
    pub(crate) hashes: Vec<u8>,
}

impl Tree {
    /// The tree of `size`, whose right edge is `edge`.
    pub(crate) fn with_edge(size: u64, edge: Vec<Vec<u8>>) -> Self {
        Self { size, edge }
    }

    /// Entries.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Appends an entry's hash; `full` gets what becomes full by it, from the lowest level on.
    pub(crate) fn push(&mut self, leaf: Hash, mut full: impl FnMut(Full)) {
        self.size += 1;
        let mut hash = leaf;
        for level in 0u8.. {
            let at = usize::from(level);
            if self.edge.len() <= at {
                self.edge.push(Vec::with_capacity(HASH));
            }
            let Some(tile) = self.edge.get_mut(at) else { return };
            tile.extend_from_slice(&hash.0);
            if (tile.len() as u64) < WIDTH * HASH as u64 {
                return;
            }
            let hashes = std::mem::take(tile);
            hash = Tile::subtree_hash(&hashes);
            full(Full { level, index: (self.size >> (u32::from(HEIGHT) * (u32::from(level) + 1))) - 1, hashes });
        }
    }

    /// The hashes of the tile at `level` that is not full.
    pub(crate) fn edge(&self, level: u8) -> &[u8] {
        self.edge.get(usize::from(level)).map_or(&[], Vec::as_slice)
    }

    /// The root (RFC 6962, section 2.1).
    ///
    /// # Errors
    /// None; the library has them.
    pub(crate) fn root(&self) -> Result<Hash, Error> {
        tree_hash(self.size, self)
    }
}

impl HashReader for Tree {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        let read = |index: &u64| {
            let wanted = Tile::from_index(HEIGHT, *index);
            let data = self.edge(wanted.level());
            let width = u32::try_from(data.len() / HASH).map_err(|_| Error::BadMath)?;
            if width == 0 {
                return Err(Error::IndexesNotInTree);
            }
            Tile::new(HEIGHT, wanted.level(), wanted.level_index(), width, false).hash_at_index(data, *index)
        };
        indexes.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use tlog_tiles::tlog::record_hash;

    use super::*;

    /// As RFC 6962 defines it, by recursion.
    fn root_of(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => tlog_tiles::tlog::EMPTY_HASH,
            [leaf] => *leaf,
            _ => {
                let half = leaves.len().next_power_of_two() / 2;
                tlog_tiles::tlog::node_hash(root_of(&leaves[..half]), root_of(&leaves[half..]))
            }
        }
    }

    #[test]
    fn the_root_is_that_of_the_definition_at_every_size() {
        let mut tree = Tree::default();
        let mut leaves = Vec::new();
        let mut full = Vec::new();
        assert_eq!(tree.root().unwrap(), root_of(&[]));
        for number in 0..1100u64 {
            let leaf = record_hash(&number.to_le_bytes());
            leaves.push(leaf);
            tree.push(leaf, |tile| full.push((tile.level, tile.index)));
            assert_eq!(tree.root().unwrap(), root_of(&leaves), "{number}");
        }
        assert_eq!(full, [(0, 0), (0, 1), (0, 2), (0, 3)]);
        for number in 1100..65_536u64 {
            tree.push(record_hash(&number.to_le_bytes()), |tile| full.push((tile.level, tile.index)));
        }
        assert_eq!(full.last(), Some(&(1, 0)));
        assert_eq!(full.len(), 257);
        assert!(tree.root().is_ok());
    }
}
