use candle_core::{DType, Tensor};
use proptest::prelude::*;

use super::*;

const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 3, head_width: 8 };

fn pool(blocks: usize, format: KvFormat) -> KvPool {
    KvPool::new(SHAPE, format, blocks, &Device::Cpu).unwrap()
}

fn host(pool: &mut KvPool) -> &mut HostStore {
    match &mut pool.store {
        Store::Host(host) => host,
        Store::Device(_) => panic!("not on a device"),
    }
}

/// Keys `[features, tokens]` and values `[tokens, features]`.
fn read(pool: &mut KvPool, layer: usize, head: usize, block: BlockId) -> (Vec<f32>, Vec<f32>) {
    let (mut keys, mut values) = (vec![f32::NAN; 8 * BLOCK_TOKENS], vec![f32::NAN; 8 * BLOCK_TOKENS]);
    host(pool).read(layer, head, block, &mut keys, &mut values).unwrap();
    (keys, values)
}

#[test]
fn what_is_written_is_read_again_and_nothing_else_changes() {
    for (format, error) in [(KvFormat::F16, 1e-3), (KvFormat::Q8, 1e-2)] {
        let mut pool = pool(4, format);
        let mut table = BlockTable::default();
        assert!(pool.reserve(&mut table, 20).unwrap());
        let block = table.blocks()[1];
        let key: Vec<f32> = (0..24).map(|n| n as f32 / 24.0).collect();
        let value: Vec<f32> = (0..24).map(|n| -(n as f32) / 24.0).collect();
        host(&mut pool).write(1, block, 5, &key, &value).unwrap();
        for (layer, head) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            let (keys, values) = read(&mut pool, layer, head, block);
            for token in 0..BLOCK_TOKENS {
                for feature in 0..8 {
                    let written = layer == 1 && token == 5;
                    let (k, v) =
                        if written { (key[head * 8 + feature], value[head * 8 + feature]) } else { (0.0, 0.0) };
                    assert!((keys[feature * BLOCK_TOKENS + token] - k).abs() <= error, "{format:?} {layer} {head}");
                    assert!((values[token * 8 + feature] - v).abs() <= error, "{format:?} {layer} {head}");
                }
            }
        }
        assert!(host(&mut pool).write(2, block, 5, &key, &value).is_err(), "there is no third layer");
        assert!(host(&mut pool).write(0, block, BLOCK_TOKENS, &key, &value).is_err(), "there is no such slot");
        assert!(host(&mut pool).write(0, 3, 0, &key, &value).is_err(), "nobody owns that block");
    }
}

#[test]
fn a_block_that_was_freed_comes_back_empty() {
    let mut pool = pool(1, KvFormat::F16);
    let mut table = BlockTable::default();
    assert!(pool.reserve(&mut table, 1).unwrap());
    host(&mut pool).write(0, 0, 0, &[7.0; 24], &[7.0; 24]).unwrap();
    pool.clear(&mut table);
    assert_eq!((pool.blocks_free(), table.tokens()), (1, 0));
    assert!(host(&mut pool).read(0, 0, 0, &mut [0.0; 128], &mut [0.0; 128]).is_err(), "its memory was given back");
    let mut next = BlockTable::default();
    assert!(pool.reserve(&mut next, 1).unwrap());
    assert_eq!(next.blocks(), [0]);
    let (keys, values) = read(&mut pool, 0, 0, 0);
    assert!(keys.iter().chain(&values).all(|number| *number == 0.0));
}

#[test]
fn a_full_pool_refuses_and_takes_nothing() {
    let mut pool = pool(3, KvFormat::F16);
    let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
    assert!(pool.reserve(&mut a, 17).unwrap());
    assert!(!pool.reserve(&mut b, 17).unwrap());
    assert_eq!((pool.blocks_free(), b.blocks().len()), (1, 0));
    assert!(pool.reserve(&mut b, 16).unwrap());
}

#[test]
fn whoever_writes_into_a_shared_block_gets_a_copy() {
    let mut pool = pool(4, KvFormat::F16);
    let mut first = BlockTable::default();
    assert!(pool.reserve(&mut first, 20).unwrap());
    host(&mut pool).write(0, first.blocks()[1], 3, &[1.0; 24], &[2.0; 24]).unwrap();
    first.advance(20);
    let mut second = pool.fork(&first);
    assert_eq!((second.tokens(), second.blocks(), pool.blocks_free()), (20, first.blocks(), 2));
    assert_eq!(pool.blocks_needed(&second, 1), 1);
    assert!(pool.reserve(&mut second, 1).unwrap());
    assert_eq!(second.blocks()[0], first.blocks()[0], "what nobody writes into stays shared");
    assert_ne!(second.blocks()[1], first.blocks()[1]);
    assert_eq!(read(&mut pool, 0, 0, second.blocks()[1]), read(&mut pool, 0, 0, first.blocks()[1]));
    host(&mut pool).write(0, second.blocks()[1], 4, &[9.0; 24], &[9.0; 24]).unwrap();
    assert_eq!(read(&mut pool, 0, 0, first.blocks()[1]).0[4], 0.0);
    // The first one owns its last block alone again.
    assert_eq!(pool.blocks_needed(&first, 1), 0);
    pool.clear(&mut first);
    pool.clear(&mut second);
    assert_eq!(pool.blocks_free(), 4);
}

#[test]
fn a_table_can_be_cut_back() {
    let mut pool = pool(4, KvFormat::F16);
    let mut table = BlockTable::default();
    assert!(pool.reserve(&mut table, 50).unwrap());
    table.advance(50);
    pool.truncate(&mut table, 33);
    assert_eq!((table.tokens(), table.blocks().len(), pool.blocks_free()), (33, 3, 1));
    pool.truncate(&mut table, 100);
    assert_eq!((table.tokens(), table.blocks().len()), (33, 3));
    pool.truncate(&mut table, 32);
    assert_eq!((table.tokens(), pool.blocks_free()), (32, 2));
}

#[test]
fn on_a_device_blocks_are_zeroed_and_copied_too() {
    let store = DeviceStore::new(SHAPE, 3, &Device::Cpu).unwrap();
    let mut pool = pool(3, KvFormat::F16);
    pool.store = Store::Device(store);
    let mut first = BlockTable::default();
    assert!(pool.reserve(&mut first, 1).unwrap());
    let ones = Tensor::ones((1, 24), DType::F16, &Device::Cpu).unwrap();
    let sum = |pool: &KvPool, block: BlockId| {
        let Store::Device(store) = &pool.store else { panic!() };
        let keys = store.layer(1).unwrap().0.narrow(0, block as usize * BLOCK_TOKENS, BLOCK_TOKENS).unwrap();
        keys.to_dtype(DType::F32).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
    };
    let Store::Device(store) = &pool.store else { panic!() };
    store.layer(1).unwrap().0.slice_set(&ones, 0, 2).unwrap();
    first.advance(1);
    let mut second = pool.fork(&first);
    assert!(pool.reserve(&mut second, 1).unwrap());
    assert_eq!((sum(&pool, first.blocks()[0]), sum(&pool, second.blocks()[0])), (24.0, 24.0));
    let freed = first.blocks()[0];
    pool.clear(&mut first);
    assert!(pool.reserve(&mut first, 1).unwrap());
    assert_eq!((first.blocks()[0], sum(&pool, freed)), (freed, 0.0));
}

proptest! {
    #[test]
    fn no_block_is_lost_or_owned_twice(actions in proptest::collection::vec((0usize..4, 0usize..5, 1usize..40), 1..60)) {
        let mut pool = pool(12, KvFormat::Q8);
        let mut tables: Vec<BlockTable> = (0..5).map(|_| BlockTable::default()).collect();
        for (action, at, count) in actions {
            match action {
                0 | 1 => {
                    let needed = pool.blocks_needed(&tables[at], count);
                    let free = pool.blocks_free();
                    let done = pool.reserve(&mut tables[at], count).unwrap();
                    prop_assert_eq!(done, needed <= free);
                    prop_assert_eq!(pool.blocks_free(), if done { free - needed } else { free });
                    if done { tables[at].advance(count); }
                }
                2 => pool.clear(&mut tables[at]),
                _ => {
                    let fork = pool.fork(&tables[at]);
                    let mut old = std::mem::replace(&mut tables[(at + 1) % 5], fork);
                    pool.clear(&mut old);
                }
            }
            let mut owners = vec![0; 12];
            for table in &tables {
                prop_assert!(table.blocks().len() * BLOCK_TOKENS >= table.tokens());
                for block in table.blocks() { owners[*block as usize] += 1; }
            }
            prop_assert_eq!(&owners, &pool.owners);
            prop_assert_eq!(owners.iter().filter(|owners| **owners == 0).count(), pool.blocks_free());
        }
    }
}
