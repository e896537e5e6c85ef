//! On the CPU, block by block, with a running softmax (Milakov and Gimelshein, "Online normalizer calculation for
//! softmax", 2018): a row's sums are always made in order of position, one block after the other. So a row gets the
//! same bits whatever else is computed with it, and whatever step it came in.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::Attention;
use crate::batch::{Batch, Segment};
use crate::host::with_numbers;
use crate::kv_pool::{BLOCK_TOKENS, HostStore, KvShape};

/// Rows of one piece of work: they share what is read of a block.
const TILE_ROWS: usize = 16;
/// Below so many multiplications, other threads are not worth waking.
const ALONE_MAX: usize = 200_000;
/// Numbers of an output that are summed side by side: as many as keep the processor's adders busy while each waits for its sum.
const LANES: usize = 64;
/// And of what is left where a head is no multiple of that.
const FEW_LANES: usize = 16;

pub(super) fn write(
    layer: usize,
    batch: &Batch,
    key: &Tensor,
    value: &Tensor,
    kv_width: usize,
    store: &mut HostStore,
) -> Result<()> {
    with_numbers(key, |keys| {
        with_numbers(value, |values| {
            let mut rows = keys.chunks_exact(kv_width).zip(values.chunks_exact(kv_width));
            for segment in batch.segments() {
                let positions = segment.position..segment.position + segment.rows.len();
                for (position, (key, value)) in positions.zip(rows.by_ref()) {
                    let block = segment.blocks.get(position / BLOCK_TOKENS).copied();
                    let Some(block) = block else { candle_core::bail!("position {position} has no KV block") };
                    store.write(layer, block, position % BLOCK_TOKENS, key, value)?;
                }
            }
            Ok(())
        })
    })
}

pub(super) fn attend(
    attention: &Attention,
    layer: usize,
    batch: &Batch,
    query: &Tensor,
    shape: KvShape,
    store: &HostStore,
) -> Result<Tensor> {
    let (rows, width) = query.dims2()?;
    let group_width = width / shape.kv_heads;
    let tiles = tiles(batch, shape.kv_heads);
    let work: usize = batch.segments().iter().map(|s| s.rows.len() * (s.position + s.rows.len()) * width).sum();
    let seen = with_numbers(query, |query| {
        let see = |tile: &Tile<'_>| {
            let place = |row: usize| row * width + tile.head * group_width;
            let own = tile.rows.clone().map(|row| query.get(place(row)..place(row) + group_width).unwrap_or_default());
            tile.see(attention, layer, &own.collect::<Vec<_>>(), shape, store)
        };
        if work <= ALONE_MAX {
            tiles.iter().map(see).collect::<Result<Vec<_>>>()
        } else {
            tiles.par_iter().map(see).collect::<Result<Vec<_>>>()
        }
    })?;
    let mut output = vec![0.0; rows * width];
    for (tile, seen) in tiles.iter().zip(&seen) {
        for (row, seen) in tile.rows.clone().zip(seen.chunks_exact(group_width)) {
            let begin = row * width + tile.head * group_width;
            if let Some(place) = output.get_mut(begin..begin + group_width) {
                place.copy_from_slice(seen);
            }
        }
    }
    Tensor::from_vec(output, (rows, width), &Device::Cpu)
}

/// Some rows of one segment, and the queries of one KV head.
struct Tile<'a> {
    segment: &'a Segment,
    rows: std::ops::Range<usize>,
    head: usize,
}

fn tiles(batch: &Batch, kv_heads: usize) -> Vec<Tile<'_>> {
    let mut tiles = Vec::new();
    for segment in batch.segments() {
        for begin in segment.rows.clone().step_by(TILE_ROWS) {
            let rows = begin..(begin + TILE_ROWS).min(segment.rows.end);
            tiles.extend((0..kv_heads).map(|head| Tile { segment, rows: rows.clone(), head }));
        }
    }
    tiles
}

/// A query on its way through the blocks.
struct Looking<'a> {
    query: &'a [f32],
    /// Positions that it sees.
    begin: usize,
    end: usize,
    greatest: f32,
    sum: f32,
    /// `[head_width]`.
    seen: &'a mut [f32],
}

impl Tile<'_> {
    /// `queries`: for each row `[group × head_width]`; the result is `[rows × group × head_width]`.
    fn see(
        &self,
        attention: &Attention,
        layer: usize,
        queries: &[&[f32]],
        shape: KvShape,
        store: &HostStore,
    ) -> Result<Vec<f32>> {
        let width = shape.head_width;
        let scaled: Vec<f32> = queries.iter().copied().flatten().map(|number| number * attention.scale).collect();
        let mut output = vec![0.0; scaled.len()];
        let group_width = scaled.len() / self.rows.len().max(1);
        let first_position = self.segment.position + (self.rows.start - self.segment.rows.start);
        let mut looking: Vec<Looking<'_>> = scaled
            .chunks_exact(width)
            .zip(output.chunks_exact_mut(width))
            .enumerate()
            .map(|(at, (query, seen))| {
                let end = first_position + at * width / group_width + 1;
                let begin = attention.window.map_or(0, |window| end.saturating_sub(window));
                Looking { query, begin, end, greatest: f32::NEG_INFINITY, sum: 0.0, seen }
            })
            .collect();
        let end = first_position + self.rows.len();
        let begin = attention.window.map_or(0, |window| (first_position + 1).saturating_sub(window));
        let (mut keys, mut values) = (vec![0.0; width * BLOCK_TOKENS], vec![0.0; width * BLOCK_TOKENS]);
        for at in begin / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS) {
            let Some(block) = self.segment.blocks.get(at) else { candle_core::bail!("KV block {at} is missing") };
            store.read(layer, self.head, *block, &mut keys, &mut values)?;
            let (keys, _) = keys.as_chunks::<BLOCK_TOKENS>();
            for looking in looking.chunks_mut(4) {
                look(attention, looking, at * BLOCK_TOKENS, keys, &values);
            }
        }
        for looking in looking {
            for number in looking.seen {
                *number /= looking.sum;
            }
        }
        Ok(output)
    }
}

/// Takes up to four queries over one block, whose first token is at `position`.
fn look(
    attention: &Attention,
    looking: &mut [Looking<'_>],
    position: usize,
    keys: &[[f32; BLOCK_TOKENS]],
    values: &[f32],
) {
    let mut scores = [[0.0; BLOCK_TOKENS]; 4];
    match &*looking {
        [a, b, c, d] => dot([a.query, b.query, c.query, d.query], keys, &mut scores),
        [a, b, c] => dot([a.query, b.query, c.query], keys, &mut scores),
        [a, b] => dot([a.query, b.query], keys, &mut scores),
        [a] => dot([a.query], keys, &mut scores),
        _ => {}
    }
    for (looking, scores) in looking.iter_mut().zip(&mut scores) {
        if looking.end > position && looking.begin < position + BLOCK_TOKENS {
            looking.take(attention, position, scores, values);
        }
    }
}

/// Products of `N` queries with all keys of a block. Each is summed in order of features, whatever `N` is.
fn dot<const N: usize>(queries: [&[f32]; N], keys: &[[f32; BLOCK_TOKENS]], scores: &mut [[f32; BLOCK_TOKENS]]) {
    let mut sums = [[0.0f32; BLOCK_TOKENS]; N];
    let mut features = queries.map(|query| query.iter());
    for key in keys {
        for (sums, features) in sums.iter_mut().zip(&mut features) {
            let Some(feature) = features.next() else { return };
            for (sum, key) in sums.iter_mut().zip(key) {
                *sum = multiply_add(*feature, *key, *sum);
            }
        }
    }
    for (scores, sums) in scores.iter_mut().zip(sums) {
        *scores = sums;
    }
}

impl Looking<'_> {
    /// Adds a block's values, weighted with its scores.
    fn take(&mut self, attention: &Attention, position: usize, scores: &mut [f32; BLOCK_TOKENS], values: &[f32]) {
        if let Some(cap) = attention.softcap {
            for score in scores.iter_mut() {
                *score = cap * (*score / cap).tanh();
            }
        }
        for (at, score) in (position..).zip(scores.iter_mut()) {
            if at < self.begin || at >= self.end {
                *score = f32::NEG_INFINITY;
            }
        }
        let greatest = scores.iter().copied().fold(self.greatest, f32::max);
        let fade = exponential(self.greatest - greatest);
        self.greatest = greatest;
        for score in scores.iter_mut() {
            *score = exponential(*score - greatest);
        }
        self.sum = scores.iter().fold(self.sum * fade, |sum, weight| sum + weight);
        let width = self.seen.len();
        let rest = add_weighted::<LANES>(self.seen, fade, scores, values, width);
        let rest = add_weighted::<FEW_LANES>(rest, fade, scores, values, width);
        add_weighted::<1>(rest, fade, scores, values, width);
    }
}

/// Fades what was seen of the last features of a head, `N` at a time, and adds a block's values of them, weighted; gives the
/// features that are left. Each is summed in order of position, however many are summed side by side.
fn add_weighted<'a, const N: usize>(
    seen: &'a mut [f32],
    fade: f32,
    weights: &[f32; BLOCK_TOKENS],
    values: &[f32],
    width: usize,
) -> &'a mut [f32] {
    let first = width - seen.len();
    let (places, rest) = seen.as_chunks_mut::<N>();
    for (place, begin) in places.iter_mut().zip((first..).step_by(N)) {
        let mut sums = place.map(|seen| seen * fade);
        for (weight, value) in weights.iter().zip(values.chunks_exact(width)) {
            let Some(value) = value.get(begin..).and_then(<[f32]>::first_chunk::<N>) else { break };
            for (sum, value) in sums.iter_mut().zip(value) {
                *sum = multiply_add(*weight, *value, *sum);
            }
        }
        *place = sums;
    }
    rest
}

/// `a · b + c`, rounded once where the processor can do that in one instruction.
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

/// e to the power of a number that is not above 0, to within a few units of the last place; 0 for what is below −87. In
/// plain arithmetic, so that the compiler computes many at a time.
///
/// `e^x = 2^n · e^r` with whole `n` and |r| ≤ ln 2 / 2; `e^r` by its Taylor series up to `r^7`.
fn exponential(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Not `max`, which would make a number of what is none.
    let within = if x < -87.0 { -87.0 } else { x };
    let n = (within * std::f32::consts::LOG2_E).round_ties_even();
    let r = multiply_add(n, -LN_2_LOW, multiply_add(n, -LN_2_HIGH, within));
    let coefficients = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let power = coefficients.into_iter().fold(1.0 / 5040.0, |sum: f32, each| multiply_add(sum, r, each));
    let two_to_n = f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < -87.0 { 0.0 } else { power * two_to_n }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_the_last_places() {
        for step in 0..=100_000 {
            let x = -87.0 * step as f32 / 100_000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exponential(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "e^{x} is {error:e} off");
        }
        assert_eq!((exponential(0.0), exponential(f32::NEG_INFINITY), exponential(-1000.0)), (1.0, 0.0, 0.0));
    }
}
