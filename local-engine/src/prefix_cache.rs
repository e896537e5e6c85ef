//! Beginnings of prompts that are computed already, as a tree of KV blocks for each tenant and label.
//!
//! A node is one whole block of tokens; the path to it is the beginning that it ends. Keys and values of a token depend on
//! all tokens before it, so a block serves only a prompt with the same whole beginning. Trees are never shared between
//! tenants or labels: the time to the first token would tell one what another asked.
//!
//! The cache owns its blocks beside the sequences that use them. Memory that only the cache holds is given back when it is
//! needed, the least recently used ends of paths first.
//!
//! Source: Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs", 2024 (radix attention).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::kv_pool::{BLOCK_TOKENS, BlockId, BlockTable, KvPool};
use crate::origin::Partition;

type NodeId = usize;
type Tokens = [u32; BLOCK_TOKENS];

/// All trees.
#[derive(Default)]
pub(crate) struct PrefixCache {
    /// The first blocks of each tree.
    roots: HashMap<Partition, HashMap<Tokens, NodeId>>,
    /// At most as many as the pool has blocks, since each holds one.
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
    clock: u64,
}

struct Node {
    block: BlockId,
    tokens: Tokens,
    parent: Parent,
    children: HashMap<Tokens, NodeId>,
    used: u64,
}

#[derive(Clone)]
enum Parent {
    Root(Partition),
    Node(NodeId),
}

impl PrefixCache {
    /// Blocks in it.
    pub(crate) fn blocks(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Blocks that nobody else uses: they can be had back.
    pub(crate) fn reclaimable(&self, kv: &KvPool) -> usize {
        self.nodes.iter().flatten().filter(|node| !kv.is_shared(node.block)).count()
    }

    /// The blocks of the longest beginning of `tokens` that is here; at least one token is left to compute.
    pub(crate) fn find(&mut self, partition: &Partition, tokens: &[u32]) -> Vec<BlockId> {
        self.clock += 1;
        let usable = tokens.get(..tokens.len().saturating_sub(1)).unwrap_or_default();
        let mut blocks = Vec::new();
        let mut children = self.roots.get(partition);
        for block in usable.as_chunks::<BLOCK_TOKENS>().0 {
            let Some(id) = children.and_then(|children| children.get(block)).copied() else { break };
            let Some(node) = self.nodes.get_mut(id).and_then(Option::as_mut) else { break };
            node.used = self.clock;
            blocks.push(node.block);
            children = self.nodes.get(id).and_then(Option::as_ref).map(|node| &node.children);
        }
        blocks
    }

    /// Keeps the whole blocks of a sequence that are computed. Where the same beginning is here already, the sequence
    /// takes over those blocks and lets go of its own, which hold the same numbers.
    pub(crate) fn insert(&mut self, kv: &mut KvPool, partition: &Partition, tokens: &[u32], table: &mut BlockTable) {
        self.clock += 1;
        let computed = tokens.get(..table.tokens().min(tokens.len())).unwrap_or_default();
        let mut parent = Parent::Root(partition.clone());
        for (at, tokens) in computed.as_chunks::<BLOCK_TOKENS>().0.iter().enumerate() {
            let Some(own) = table.blocks().get(at).copied() else { break };
            let known = self.children(&parent).and_then(|children| children.get(tokens)).copied();
            let id = match known {
                Some(id) => id,
                None => {
                    kv.retain(own);
                    self.add(Node { block: own, tokens: *tokens, parent, children: HashMap::new(), used: self.clock })
                }
            };
            if let Some(node) = self.nodes.get_mut(id).and_then(Option::as_mut) {
                node.used = self.clock;
                if node.block != own {
                    kv.replace(table, at, node.block);
                }
            }
            parent = Parent::Node(id);
        }
    }

    /// Gives back up to `wanted` blocks that nobody else uses; how many it were.
    pub(crate) fn evict(&mut self, kv: &mut KvPool, wanted: usize) -> usize {
        let mut ends: BinaryHeap<Reverse<(u64, NodeId)>> =
            (0..self.nodes.len()).filter_map(|id| self.end(kv, id)).map(Reverse).collect();
        let mut evicted = 0;
        while evicted < wanted
            && let Some(Reverse((_, id))) = ends.pop()
        {
            let parent = self.remove(kv, id);
            evicted += 1;
            ends.extend(parent.and_then(|parent| self.end(kv, parent)).map(Reverse));
        }
        evicted
    }

    /// When a node was last used, if it is the end of a path and only the cache holds its block.
    fn end(&self, kv: &KvPool, id: NodeId) -> Option<(u64, NodeId)> {
        let node = self.nodes.get(id)?.as_ref()?;
        (node.children.is_empty() && !kv.is_shared(node.block)).then_some((node.used, id))
    }

    fn children(&self, parent: &Parent) -> Option<&HashMap<Tokens, NodeId>> {
        match parent {
            Parent::Root(partition) => self.roots.get(partition),
            Parent::Node(id) => self.nodes.get(*id)?.as_ref().map(|node| &node.children),
        }
    }

    fn add(&mut self, node: Node) -> NodeId {
        let (parent, tokens) = (node.parent.clone(), node.tokens);
        let id = self.free.pop().unwrap_or(self.nodes.len());
        match self.nodes.get_mut(id) {
            Some(place) => *place = Some(node),
            None => self.nodes.push(Some(node)),
        }
        match parent {
            Parent::Root(partition) => {
                self.roots.entry(partition).or_default().insert(tokens, id);
            }
            Parent::Node(parent) => {
                if let Some(parent) = self.nodes.get_mut(parent).and_then(Option::as_mut) {
                    parent.children.insert(tokens, id);
                }
            }
        }
        id
    }

    /// Takes out a node without children; gives its parent.
    fn remove(&mut self, kv: &mut KvPool, id: NodeId) -> Option<NodeId> {
        let node = self.nodes.get_mut(id)?.take()?;
        self.free.push(id);
        kv.release(node.block);
        match node.parent {
            Parent::Root(partition) => {
                let children = self.roots.get_mut(&partition)?;
                children.remove(&node.tokens);
                if children.is_empty() {
                    self.roots.remove(&partition);
                }
                None
            }
            Parent::Node(parent) => {
                self.nodes.get_mut(parent)?.as_mut()?.children.remove(&node.tokens);
                Some(parent)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::kv_pool::{KvFormat, KvShape};
    use crate::origin::{Origin, Priority};

    fn partition(tenant: &str, label: &str) -> Partition {
        Origin::new("", tenant, label, Priority::Interactive).partition.unwrap()
    }

    fn pool(blocks: usize) -> KvPool {
        KvPool::new(KvShape { layers: 1, kv_heads: 1, head_width: 2 }, KvFormat::F16, blocks, &Device::Cpu).unwrap()
    }

    fn computed(kv: &mut KvPool, tokens: &[u32]) -> BlockTable {
        let mut table = BlockTable::default();
        assert!(kv.reserve(&mut table, tokens.len()).unwrap());
        table.advance(tokens.len());
        table
    }

    #[test]
    fn a_common_beginning_is_found_and_a_token_is_always_left() {
        let (mut cache, mut kv, here) = (PrefixCache::default(), pool(20), partition("a", "internal"));
        let tokens: Vec<u32> = (0..70).collect();
        let mut table = computed(&mut kv, &tokens);
        cache.insert(&mut kv, &here, &tokens, &mut table);
        assert_eq!(cache.blocks(), 4, "the fifth block is not whole");
        assert_eq!(cache.find(&here, &tokens), table.blocks()[..4]);
        assert_eq!(cache.find(&here, &tokens[..64]), table.blocks()[..3], "the last token is to be computed");
        assert_eq!(cache.find(&here, &tokens[..65]), table.blocks()[..4]);
        let mut other = tokens.clone();
        other[20] = 999;
        assert_eq!(cache.find(&here, &other), table.blocks()[..1]);
        other[0] = 999;
        assert!(cache.find(&here, &other).is_empty());
    }

    #[test]
    fn nothing_is_shared_across_tenants_or_labels() {
        let (mut cache, mut kv) = (PrefixCache::default(), pool(20));
        let tokens: Vec<u32> = (0..40).collect();
        let mut table = computed(&mut kv, &tokens);
        cache.insert(&mut kv, &partition("a", "internal"), &tokens, &mut table);
        assert_eq!(cache.find(&partition("a", "internal"), &tokens).len(), 2);
        for (tenant, label) in [("b", "internal"), ("a", "public"), ("", "ainternal"), ("ai", "nternal")] {
            assert!(cache.find(&partition(tenant, label), &tokens).is_empty());
        }
    }

    #[test]
    fn what_was_computed_twice_is_kept_once() {
        let (mut cache, mut kv, here) = (PrefixCache::default(), pool(6), partition("a", "b"));
        let tokens: Vec<u32> = (0..40).collect();
        let (mut first, mut second) = (computed(&mut kv, &tokens), computed(&mut kv, &tokens));
        assert_eq!(kv.blocks_free(), 0);
        cache.insert(&mut kv, &here, &tokens, &mut first);
        cache.insert(&mut kv, &here, &tokens, &mut second);
        assert_eq!(first.blocks()[..2], second.blocks()[..2]);
        assert_eq!((kv.blocks_free(), cache.blocks(), cache.reclaimable(&kv)), (2, 2, 0));
        kv.clear(&mut first);
        kv.clear(&mut second);
        assert_eq!((kv.blocks_free(), cache.reclaimable(&kv)), (4, 2));
    }

    #[test]
    fn the_least_recently_used_ends_go_first_and_what_is_in_use_stays() {
        let (mut cache, mut kv, here) = (PrefixCache::default(), pool(20), partition("a", "b"));
        let (old, new): (Vec<u32>, Vec<u32>) = ((0..49).collect(), (100..149).collect());
        for tokens in [&old, &new] {
            let mut table = computed(&mut kv, tokens);
            cache.insert(&mut kv, &here, tokens, &mut table);
            kv.clear(&mut table);
        }
        cache.find(&here, &old);
        assert_eq!(cache.evict(&mut kv, 2), 2);
        assert_eq!((cache.find(&here, &old).len(), cache.find(&here, &new).len()), (3, 1));
        let used = cache.find(&here, &old);
        let mut table = kv.share(&used);
        assert_eq!(cache.evict(&mut kv, 100), 1, "three blocks are in use");
        assert_eq!(cache.find(&here, &old), used);
        kv.clear(&mut table);
        assert_eq!(cache.evict(&mut kv, 100), 3);
        assert_eq!((kv.blocks_free(), cache.blocks(), cache.roots.len()), (20, 0, 0));
    }

    proptest! {
        #[test]
        fn what_is_found_is_the_same_beginning_and_no_block_is_lost(
            prompts in proptest::collection::vec((0usize..2, proptest::collection::vec(0u32..2, 1..5), 0usize..6), 1..30),
        ) {
            let (mut cache, mut kv) = (PrefixCache::default(), pool(12));
            let partitions = [partition("a", "x"), partition("b", "x")];
            let mut contents: HashMap<BlockId, (usize, Vec<u32>)> = HashMap::new();
            for (tenant, blocks, evicted) in prompts {
                let tokens: Vec<u32> = blocks.iter().flat_map(|token| [*token; BLOCK_TOKENS]).chain([7]).collect();
                let found = cache.find(&partitions[tenant], &tokens);
                for (at, block) in found.iter().enumerate() {
                    let whole = (tenant, tokens[..(at + 1) * BLOCK_TOKENS].to_vec());
                    prop_assert_eq!(contents.get(block), Some(&whole));
                }
                let mut table = kv.share(&found);
                let missing = tokens.len() - table.tokens();
                let needed = kv.blocks_needed(&table, missing);
                if needed > kv.blocks_free() {
                    let wanted = needed - kv.blocks_free();
                    cache.evict(&mut kv, wanted);
                }
                prop_assert!(kv.reserve(&mut table, missing).unwrap());
                table.advance(missing);
                for (at, block) in table.blocks().iter().enumerate().skip(found.len()) {
                    contents.insert(*block, (tenant, tokens[..((at + 1) * BLOCK_TOKENS).min(tokens.len())].to_vec()));
                }
                cache.insert(&mut kv, &partitions[tenant], &tokens, &mut table);
                kv.clear(&mut table);
                cache.evict(&mut kv, evicted);
                prop_assert_eq!(cache.blocks() + kv.blocks_free(), 12);
                prop_assert_eq!(cache.reclaimable(&kv), cache.blocks());
            }
        }
    }
}
