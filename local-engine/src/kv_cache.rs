//! Keys and values of one sequence, outside the model: so any sequences can share a step.

use candle_core::{DType, Device, Result, Tensor};

/// A cache begins with room for this many tokens, and doubles when it is full.
const FIRST_TOKENS: usize = 256;

/// What a cache is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
}

impl CacheShape {
    /// Memory of one token, in bytes: keys and values as f32.
    pub(crate) fn bytes_per_token(self) -> usize {
        self.layers * self.kv_heads * self.head_width * 2 * DType::F32.size_in_bytes()
    }
}

/// The cache of one sequence.
pub(crate) struct KvCache {
    layers: Vec<Layer>,
    shape: CacheShape,
    device: Device,
    tokens: usize,
    capacity: usize,
    limit: usize,
}

/// `[kv_heads, capacity, head_width]` each.
struct Layer {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    /// An empty cache that may grow to `limit` tokens. Takes memory as it grows.
    pub(crate) fn new(shape: CacheShape, limit: usize, device: &Device) -> Self {
        Self { layers: Vec::new(), shape, device: device.clone(), tokens: 0, capacity: 0, limit }
    }

    /// Tokens in it: the position of the next one.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Makes room for `more` tokens after the present ones.
    pub(crate) fn reserve(&mut self, more: usize) -> Result<()> {
        let needed = self.tokens + more;
        if needed > self.limit {
            candle_core::bail!("a sequence of {needed} tokens, where {} were reserved", self.limit)
        }
        if needed <= self.capacity {
            return Ok(());
        }
        let capacity = needed.max(2 * self.capacity).max(FIRST_TOKENS).min(self.limit);
        let mut grown = Vec::with_capacity(self.shape.layers);
        for at in 0..self.shape.layers {
            let layer = Layer { keys: self.empty(capacity)?, values: self.empty(capacity)? };
            if let Some(old) = self.layers.get(at).filter(|_| self.tokens > 0) {
                layer.keys.slice_set(&old.keys.narrow(1, 0, self.tokens)?.contiguous()?, 1, 0)?;
                layer.values.slice_set(&old.values.narrow(1, 0, self.tokens)?.contiguous()?, 1, 0)?;
            }
            grown.push(layer);
        }
        self.layers = grown;
        self.capacity = capacity;
        Ok(())
    }

    /// Writes new tokens' keys and values (`[kv_heads, n, head_width]`, contiguous) behind the present ones, for which
    /// [`Self::reserve`] made room, and gives all of that layer's (`[kv_heads, tokens + n, head_width]`).
    pub(crate) fn append(&self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let Some(layer) = self.layers.get(layer) else { candle_core::bail!("the cache has no layer {layer}") };
        let all = self.tokens + keys.dim(1)?;
        layer.keys.slice_set(keys, 1, self.tokens)?;
        layer.values.slice_set(values, 1, self.tokens)?;
        Ok((layer.keys.narrow(1, 0, all)?, layer.values.narrow(1, 0, all)?))
    }

    /// Counts `tokens` that every layer has now.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    fn empty(&self, capacity: usize) -> Result<Tensor> {
        Tensor::zeros((self.shape.kv_heads, capacity, self.shape.head_width), DType::F32, &self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: CacheShape = CacheShape { layers: 2, kv_heads: 1, head_width: 2 };

    fn rows(from: usize, count: usize) -> Tensor {
        let numbers: Vec<f32> = (from * 2..(from + count) * 2).map(|n| n as f32).collect();
        Tensor::from_vec(numbers, (1, count, 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn what_was_appended_survives_growing() {
        let mut cache = KvCache::new(SHAPE, 700, &Device::Cpu);
        let mut tokens = 0;
        for count in [3, 250, 1, 100, 300] {
            cache.reserve(count).unwrap();
            for layer in 0..2 {
                let (keys, values) = cache.append(layer, &rows(tokens, count), &rows(tokens + 1, count)).unwrap();
                assert_eq!(keys.flatten_all().unwrap().to_vec1::<f32>().unwrap().len(), (tokens + count) * 2);
                let all = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(all.first(), Some(&2.0));
            }
            cache.advance(count);
            tokens += count;
        }
        cache.reserve(1).unwrap();
        let (keys, _) = cache.append(1, &rows(tokens, 1), &rows(0, 1)).unwrap();
        let expected: Vec<f32> = (0..(tokens + 1) * 2).map(|n| n as f32).collect();
        assert_eq!(keys.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
    }

    #[test]
    fn a_cache_never_grows_beyond_its_limit() {
        let mut cache = KvCache::new(SHAPE, 10, &Device::Cpu);
        assert!(cache.reserve(11).is_err());
        cache.reserve(10).unwrap();
        assert_eq!(cache.capacity, 10);
    }

    #[test]
    fn bytes_per_token_count_keys_and_values() {
        assert_eq!(CacheShape { layers: 30, kv_heads: 3, head_width: 64 }.bytes_per_token(), 46_080);
    }
}
