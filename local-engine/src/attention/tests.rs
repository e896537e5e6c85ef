//! Against the textbook's sum, on a pool in memory and on one of tensors; and the same bits in any company.

use candle_core::Device;

use super::*;
use crate::kv_pool::{BLOCK_TOKENS, BlockTable, DeviceStore, KvFormat, KvShape};

const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 2, head_width: 24 };
const HEADS: usize = 6;

fn plain() -> Attention {
    Attention { heads: HEADS, scale: 0.2, window: None, softcap: None }
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut random = seed;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * 2.0).collect()
}

/// All of a sequence's queries, keys and values.
struct Sequence {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    table: BlockTable,
}

impl Sequence {
    fn new(tokens: usize, seed: u64) -> Self {
        let kv_width = SHAPE.kv_heads * SHAPE.head_width;
        let part = |width: usize, seed| numbers(tokens * width, seed);
        Self {
            query: part(HEADS * SHAPE.head_width, seed),
            key: part(kv_width, seed + 1),
            value: part(kv_width, seed + 2),
            table: BlockTable::default(),
        }
    }
}

/// One step of some tokens of some sequences; what each sees.
fn step(attention: &Attention, pool: &mut KvPool, parts: &mut [(&mut Sequence, usize)]) -> Vec<Vec<f32>> {
    let (q_width, kv_width) = (HEADS * SHAPE.head_width, SHAPE.kv_heads * SHAPE.head_width);
    let mut batch = Batch::default();
    let (mut query, mut key, mut value) = (Vec::new(), Vec::new(), Vec::new());
    for (sequence, count) in parts.iter_mut() {
        assert!(pool.reserve(&mut sequence.table, *count).unwrap());
        batch.push(&vec![0; *count], &sequence.table, 0);
        let rows = sequence.table.tokens()..sequence.table.tokens() + *count;
        query.extend_from_slice(&sequence.query[rows.start * q_width..rows.end * q_width]);
        key.extend_from_slice(&sequence.key[rows.start * kv_width..rows.end * kv_width]);
        value.extend_from_slice(&sequence.value[rows.start * kv_width..rows.end * kv_width]);
        sequence.table.advance(*count);
    }
    let rows = batch.tokens().len();
    let tensor = |numbers: Vec<f32>, width| Tensor::from_vec(numbers, (rows, width), &Device::Cpu).unwrap();
    let (query, key, value) = (tensor(query, q_width), tensor(key, kv_width), tensor(value, kv_width));
    attention.forward(1, &batch, &query, &key, &value, pool).unwrap().to_vec2().unwrap()
}

/// The textbook's formula, in double precision, for one row.
fn exact(attention: &Attention, sequence: &Sequence, row: usize) -> Vec<f64> {
    let width = SHAPE.head_width;
    let kv_width = SHAPE.kv_heads * width;
    let begin = attention.window.map_or(0, |window| (row + 1).saturating_sub(window));
    let mut seen = Vec::new();
    for head in 0..HEADS {
        let kv_head = head / (HEADS / SHAPE.kv_heads);
        let query = &sequence.query[row * HEADS * width + head * width..][..width];
        let of = |all: &[f32], at: usize| all[at * kv_width + kv_head * width..][..width].to_vec();
        let weights: Vec<f64> = (begin..=row)
            .map(|at| {
                let key = of(&sequence.key, at);
                let products = query.iter().zip(&key).map(|(q, k)| f64::from(*q) * f64::from(*k));
                let score = products.sum::<f64>() * f64::from(attention.scale);
                attention.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
            })
            .collect();
        let sum: f64 = weights.iter().sum();
        for feature in 0..width {
            let parts =
                weights.iter().enumerate().map(|(at, w)| w * f64::from(of(&sequence.value, begin + at)[feature]));
            seen.push(parts.sum::<f64>() / sum);
        }
    }
    seen
}

fn pools() -> [KvPool; 2] {
    let host = KvPool::new(SHAPE, KvFormat::F16, 40, &Device::Cpu).unwrap();
    let mut device = KvPool::new(SHAPE, KvFormat::F16, 40, &Device::Cpu).unwrap();
    *device.store_mut() = Store::Device(DeviceStore::new(SHAPE, 40, &Device::Cpu).unwrap());
    [host, device]
}

#[test]
fn every_row_sees_what_the_formula_says() {
    let kinds = [
        plain(),
        Attention { window: Some(20), ..plain() },
        Attention { softcap: Some(1.5), ..plain() },
        Attention { window: Some(3), softcap: Some(4.0), ..plain() },
    ];
    for attention in kinds {
        for mut pool in pools() {
            let (mut a, mut b) = (Sequence::new(70, 1), Sequence::new(70, 50));
            let mut rows: [Vec<Vec<f32>>; 2] = [Vec::new(), Vec::new()];
            for (of_a, of_b) in [(33, 1), (1, 40), (2, 1), (20, 1)] {
                let mut both = step(&attention, &mut pool, &mut [(&mut a, of_a), (&mut b, of_b)]);
                rows[1].extend(both.split_off(of_a));
                rows[0].extend(both);
            }
            for (rows, sequence) in rows.iter().zip([&a, &b]) {
                for (row, seen) in rows.iter().enumerate() {
                    for (ours, theirs) in seen.iter().zip(exact(&attention, sequence, row)) {
                        // Keys and values are kept in half precision.
                        assert!((f64::from(*ours) - theirs).abs() < 5e-3, "{attention:?}, row {row}: {ours} {theirs}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_gets_the_same_bits_in_any_company_and_any_cut() {
    let attention = Attention { window: Some(50), ..plain() };
    let mut pool = KvPool::new(SHAPE, KvFormat::F16, 200, &Device::Cpu).unwrap();
    let mut alone = Sequence::new(200, 7);
    let whole = step(&attention, &mut pool, &mut [(&mut alone, 200)]);
    let (mut cut, mut other) = (Sequence::new(200, 7), Sequence::new(400, 3));
    let mut rows = Vec::new();
    for count in [1, 2, 30, 16, 1, 64, 5, 81] {
        let mut both = step(&attention, &mut pool, &mut [(&mut other, 40), (&mut cut, count)]);
        rows.extend(both.split_off(40));
    }
    assert_eq!(rows, whole);
    assert_eq!(BLOCK_TOKENS * alone.table.blocks().len(), 208);
}

#[test]
fn eight_bits_are_nearly_as_good() {
    let (mut half, mut eight) = (Sequence::new(60, 7), Sequence::new(60, 7));
    let mut pool = KvPool::new(SHAPE, KvFormat::F16, 40, &Device::Cpu).unwrap();
    let exact = step(&plain(), &mut pool, &mut [(&mut half, 60)]);
    let mut pool = KvPool::new(SHAPE, KvFormat::Q8, 40, &Device::Cpu).unwrap();
    let rounded = step(&plain(), &mut pool, &mut [(&mut eight, 60)]);
    let differences = exact.iter().flatten().zip(rounded.iter().flatten()).map(|(a, b)| (a - b).abs());
    let greatest = differences.fold(0.0f32, f32::max);
    assert!(greatest > 0.0 && greatest < 0.03, "{greatest}");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut pool = KvPool::new(SHAPE, KvFormat::F16, 4, &Device::Cpu).unwrap();
    let zeros = |width: usize| Tensor::zeros((1, width), candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut batch = Batch::default();
    batch.push(&[0], &BlockTable::default(), 0);
    let (q, kv) = (zeros(144), zeros(48));
    assert!(plain().forward(0, &batch, &zeros(143), &kv, &kv, &mut pool).is_err());
    assert!(plain().forward(0, &batch, &q, &kv, &zeros(47), &mut pool).is_err());
    let error = plain().forward(0, &batch, &q, &kv, &kv, &mut pool).unwrap_err();
    assert!(error.to_string().contains("no KV block"), "{error}");
}
