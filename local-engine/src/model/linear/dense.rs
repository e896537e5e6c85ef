//! Projections by weights of 16 or 32 bits, on the CPU. candle would round the inputs to the weights' type, which for BF16
//! leaves eight bits of them, or sum in an order that depends on the number of rows.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};
use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::host::with_numbers;

/// Sums that are made side by side.
const LANES: usize = 16;
/// Weights that are widened at a time.
const PIECE: usize = 64;
/// Rows of weights for one thread at a time.
const ROWS: usize = 8;

/// True if matrices of this type are computed here.
pub(super) fn is_dense(dtype: GgmlDType) -> bool {
    matches!(dtype, GgmlDType::F16 | GgmlDType::BF16 | GgmlDType::F32)
}

/// `x · Wᵀ` in 32 bits, each sum in one order: `x` is `[tokens, columns]`, the result `[tokens, rows]`.
pub(super) fn product(x: &Tensor, matrix: &QTensor) -> Result<Tensor> {
    let ((tokens, width), (rows, columns)) = (x.dims2()?, matrix.shape().dims2()?);
    let (dtype, raw) = (matrix.dtype(), matrix.data()?);
    let row_bytes = columns * dtype.type_size();
    if width != columns || columns == 0 || raw.len() != rows * row_bytes {
        candle_core::bail!("{width} features do not fit a matrix of {columns} columns")
    }
    if tokens == 0 || rows == 0 {
        return Tensor::zeros((tokens, rows), candle_core::DType::F32, &Device::Cpu);
    }
    // `[rows, tokens]`: each row of weights is widened once.
    let by_rows = with_numbers(x, |x| {
        let mut products = vec![0.0f32; rows * tokens];
        let weights = raw.par_chunks(row_bytes * ROWS);
        products.par_chunks_mut(tokens * ROWS).zip(weights).for_each(|(products, weights)| {
            let mut wide = vec![0.0; columns];
            for (products, weights) in products.chunks_mut(tokens).zip(weights.chunks(row_bytes)) {
                widen(weights, dtype, &mut wide);
                products.iter_mut().zip(x.chunks(columns)).for_each(|(product, x)| *product = dot(&wide, x));
            }
        });
        Ok(products)
    })?;
    if tokens == 1 {
        return Tensor::from_vec(by_rows, (1, rows), &Device::Cpu);
    }
    Tensor::from_vec(by_rows, (rows, tokens), &Device::Cpu)?.t()?.contiguous()
}

fn widen(raw: &[u8], dtype: GgmlDType, wide: &mut [f32]) {
    if dtype == GgmlDType::F32 {
        let (numbers, _) = raw.as_chunks::<4>();
        wide.iter_mut().zip(numbers).for_each(|(wide, number)| *wide = f32::from_le_bytes(*number));
        return;
    }
    let mut bits = [0u16; PIECE];
    for (raw, wide) in raw.chunks(2 * PIECE).zip(wide.chunks_mut(PIECE)) {
        let (numbers, _) = raw.as_chunks::<2>();
        bits.iter_mut().zip(numbers).for_each(|(bits, number)| *bits = u16::from_le_bytes(*number));
        let bits = bits.get(..wide.len()).unwrap_or_default();
        if dtype == GgmlDType::BF16 {
            bits.reinterpret_cast::<bf16>().convert_to_f32_slice(wide);
        } else {
            bits.reinterpret_cast::<f16>().convert_to_f32_slice(wide);
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest = a_rest.iter().zip(b_rest).fold(0.0, |sum, (a, b)| sum + a * b);
    sums.iter().fold(rest, |sum, lane| sum + lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_not_rounded_and_company_changes_nothing() {
        let numbers = |count: usize, seed: f32| (0..count).map(|n| ((n as f32 + seed) * 0.7).sin()).collect::<Vec<_>>();
        // Neither whole pieces nor whole lanes.
        let (rows, columns, tokens) = (19, 150, 5);
        let weights = Tensor::from_vec(numbers(rows * columns, 1.0), (rows, columns), &Device::Cpu).unwrap();
        let x = Tensor::from_vec(numbers(tokens * columns, 0.5), (tokens, columns), &Device::Cpu).unwrap();
        for dtype in [GgmlDType::F16, GgmlDType::BF16, GgmlDType::F32] {
            let matrix = QTensor::quantize(&weights, dtype).unwrap();
            let wide = matrix.dequantize(&Device::Cpu).unwrap();
            let exact = x.matmul(&wide.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            let ours = product(&x, &matrix).unwrap().to_vec2::<f32>().unwrap();
            let pairs = ours.iter().flatten().zip(exact.iter().flatten());
            let largest = pairs.fold(0.0f32, |largest, (a, b)| largest.max((a - b).abs()));
            assert!(largest < 1e-4, "{dtype:?}: {largest}");
            for (row, together) in ours.iter().enumerate() {
                let alone = product(&x.narrow(0, row, 1).unwrap(), &matrix).unwrap().to_vec2::<f32>().unwrap();
                assert_eq!(&alone[0], together, "{dtype:?}, row {row}");
            }
        }
    }
}
