//! Quantised projections, and how candle's fast kernels are reached from files that it would compute slowly.
//!
//! On the CPU, candle 0.11 has vector instructions for Q4_0, but none for Q4_1: a prompt takes three times as long. A Q4_1 block of 32
//! weights is `scale · nibble + minimum`, and the same nibbles in a Q4_0 block are `scale · (nibble - 8)`: so a Q4_1
//! matrix IS a Q4_0 matrix plus one offset a block, `minimum + 8 · scale`, that is multiplied with the sum of the
//! block's inputs. No weight is rounded anew, and the offsets' part is computed without rounding the inputs.

mod dense;

use std::cell::OnceCell;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor, ggml_file::qtensor_from_ggml};
use candle_core::{D, DType, Device, Module, Result, Tensor};
use rayon::prelude::*;

use crate::host::with_numbers;

/// Weights of a block, in Q4_0 and Q4_1 alike.
const BLOCK: usize = 32;
/// Bytes of a Q4_1 block: two f16, scale and minimum, then the nibbles.
const Q4_1_BYTES: usize = 20;

/// Below so many multiplications, other threads are not worth waking.
const ALONE_MAX: usize = 500_000;
/// Sums that are made side by side.
const LANES: usize = 16;

/// `x · Wᵀ`. On the CPU a row's result does not depend on how many rows there are.
pub(crate) struct Linear {
    quantised: QMatMul,
    /// `[columns / 32, rows]`, of matrices that were Q4_1.
    offsets: Option<Tensor>,
    /// `[rows]`, added to every product.
    bias: Option<Tensor>,
}

/// What a projection is applied to: `[tokens, columns]`. Projections of the same input share its block sums.
pub(crate) struct Features {
    x: Tensor,
    block_sums: OnceCell<Tensor>,
}

impl Features {
    pub(crate) fn new(x: Tensor) -> Self {
        Self { x, block_sums: OnceCell::new() }
    }

    /// `[tokens, columns / 32]`.
    fn block_sums(&self) -> Result<&Tensor> {
        if let Some(sums) = self.block_sums.get() {
            return Ok(sums);
        }
        let (tokens, columns) = self.x.dims2()?;
        let sums = self.x.reshape((tokens, columns / BLOCK, BLOCK))?.sum(D::Minus1)?;
        Ok(self.block_sums.get_or_init(|| sums))
    }
}

impl Linear {
    /// From a matrix as it is in the file: `raw` holds `rows` × `columns` weights, whole blocks in every row.
    pub(crate) fn from_raw(raw: &[u8], dtype: GgmlDType, rows: usize, columns: usize, device: &Device) -> Result<Self> {
        if dtype != GgmlDType::Q4_1 || !device.is_cpu() {
            return Self::from_matrix(Arc::new(qtensor_from_ggml(dtype, raw, vec![rows, columns], device)?), device);
        }
        let (q4_0, offsets) = split_q4_1(raw, rows, columns, device)?;
        let q4_0 = qtensor_from_ggml(GgmlDType::Q4_0, &q4_0, vec![rows, columns], device)?;
        Ok(Self { quantised: QMatMul::from_qtensor(q4_0)?, offsets: Some(offsets), bias: None })
    }

    /// From a matrix that others may use too.
    pub(crate) fn from_matrix(matrix: Arc<QTensor>, device: &Device) -> Result<Self> {
        // On the CPU, unquantised numbers are not expanded: see `dense`.
        let quantised = if device.is_cpu() { QMatMul::QTensor(matrix) } else { QMatMul::from_arc(matrix)? };
        Ok(Self { quantised, offsets: None, bias: None })
    }

    /// The same with numbers that are added to every product, `[rows]`.
    pub(crate) fn with_bias(self, bias: Tensor) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// `[tokens, rows]`.
    pub(crate) fn forward(&self, input: &Features) -> Result<Tensor> {
        let mut product = self.product(&input.x)?;
        if let Some(offsets) = &self.offsets {
            product = add_offsets(&product, input.block_sums()?, offsets)?;
        }
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        // Alone, a row would get another kernel here than in company, and with it other last bits.
        let alone = x.device().is_cpu() && x.dim(0)? == 1;
        match &self.quantised {
            QMatMul::QTensor(matrix) if alone && matrix.dtype() == GgmlDType::Q6K => {
                self.quantised.forward(&Tensor::cat(&[x, x], 0)?)?.narrow(0, 0, 1)?.contiguous()
            }
            QMatMul::QTensor(matrix) if x.device().is_cpu() && dense::is_dense(matrix.dtype()) => {
                dense::product(x, matrix)
            }
            _ => self.quantised.forward(x),
        }
    }
}

/// `product + sums · offsets`, each sum in order of blocks: a general product's order would depend on the rows' number.
fn add_offsets(product: &Tensor, sums: &Tensor, offsets: &Tensor) -> Result<Tensor> {
    let ((tokens, rows), blocks) = (product.dims2()?, offsets.dim(0)?);
    let added = with_numbers(product, |product| {
        let mut output = product.to_vec();
        with_numbers(sums, |sums| {
            with_numbers(offsets, |offsets| {
                let add = |(output, sums): (&mut [f32], &[f32])| {
                    for (at, output) in output.chunks_mut(LANES).enumerate() {
                        add_offsets_of(output, sums, offsets, rows, at * LANES);
                    }
                };
                if tokens * blocks * rows <= ALONE_MAX {
                    output.chunks_mut(rows).zip(sums.chunks(blocks)).for_each(add);
                } else {
                    output.par_chunks_mut(rows).zip(sums.par_chunks(blocks)).for_each(add);
                }
                Ok(())
            })
        })?;
        Ok(output)
    })?;
    Tensor::from_vec(added, (tokens, rows), &Device::Cpu)
}

/// For up to [`LANES`] outputs, of which the first is number `begin`.
fn add_offsets_of(output: &mut [f32], sums: &[f32], offsets: &[f32], rows: usize, begin: usize) {
    let mut added = [0.0f32; LANES];
    for (sum, offsets) in sums.iter().zip(offsets.chunks_exact(rows)) {
        let offsets = offsets.get(begin..begin + output.len()).unwrap_or_default();
        for (added, offset) in added.iter_mut().zip(offsets) {
            *added += sum * offset;
        }
    }
    for (output, added) in output.iter_mut().zip(added) {
        *output += added;
    }
}

/// The bytes of the Q4_0 matrix and the offsets.
fn split_q4_1(raw: &[u8], rows: usize, columns: usize, device: &Device) -> Result<(Vec<u8>, Tensor)> {
    let (blocks, _) = raw.as_chunks::<Q4_1_BYTES>();
    let mut q4_0 = Vec::with_capacity(raw.len());
    let (mut scales, mut minima) = (Vec::with_capacity(2 * blocks.len()), Vec::with_capacity(2 * blocks.len()));
    for [s0, s1, m0, m1, nibbles @ ..] in blocks {
        q4_0.extend([s0, s1]);
        q4_0.extend(nibbles);
        scales.extend([s0, s1]);
        minima.extend([m0, m1]);
    }
    let of_blocks = |halves: &[u8]| {
        Tensor::from_raw_buffer(halves, DType::F16, &[rows, columns / BLOCK], device)?.to_dtype(DType::F32)
    };
    let offsets = (of_blocks(&minima)? + (of_blocks(&scales)? * 8.0)?)?;
    Ok((q4_0, offsets.t()?.contiguous()?))
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;

    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32).map(|i| ((i * 2_654_435_761u32.wrapping_add(seed)) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
    }

    #[test]
    fn a_split_matrix_is_the_same_matrix() {
        let (rows, columns) = (24, 96);
        let dense = Tensor::from_vec(numbers(rows * columns, 1), (rows, columns), &Device::Cpu).unwrap();
        let q4_1 = QTensor::quantize(&dense, GgmlDType::Q4_1).unwrap();
        let raw = q4_1.data().unwrap();
        let split = Linear::from_raw(&raw, GgmlDType::Q4_1, rows, columns, &Device::Cpu).unwrap();
        assert!(split.offsets.is_some());
        // Row `at` of the identity picks column `at` of the weights; its single 1 is not rounded.
        let identity = Features::new(Tensor::eye(columns, DType::F32, &Device::Cpu).unwrap());
        let ours = split.forward(&identity).unwrap().t().unwrap().to_vec2::<f32>().unwrap();
        let theirs = q4_1.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        for (ours, theirs) in ours.iter().flatten().zip(theirs.iter().flatten()) {
            assert!((ours - theirs).abs() < 2e-3, "{ours} {theirs}");
        }
    }

    #[test]
    fn other_types_are_left_as_they_are() {
        let dense = Tensor::from_vec(numbers(64, 3), (2, 32), &Device::Cpu).unwrap();
        let q8 = QTensor::quantize(&dense, GgmlDType::Q8_0).unwrap();
        let linear = Linear::from_raw(&q8.data().unwrap(), GgmlDType::Q8_0, 2, 32, &Device::Cpu).unwrap();
        assert!(linear.offsets.is_none());
        let x = Features::new(Tensor::from_vec(numbers(32, 9), (1, 32), &Device::Cpu).unwrap());
        let exact = x.x.matmul(&dense.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let ours = linear.forward(&x).unwrap().to_vec2::<f32>().unwrap();
        assert!(ours[0].iter().zip(&exact[0]).all(|(a, b)| (a - b).abs() < 0.1), "{ours:?} {exact:?}");
    }

    #[test]
    fn a_row_gets_the_same_bits_in_company() {
        for dtype in [
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q8_0,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
            GgmlDType::BF16,
        ] {
            let (rows, columns) = (48, 512);
            let dense = Tensor::from_vec(numbers(rows * columns, 1), (rows, columns), &Device::Cpu).unwrap();
            let raw = QTensor::quantize(&dense, dtype).unwrap();
            let linear = Linear::from_raw(&raw.data().unwrap(), dtype, rows, columns, &Device::Cpu).unwrap();
            let x = Tensor::from_vec(numbers(37 * columns, 5), (37, columns), &Device::Cpu).unwrap();
            let forward = |x: Tensor| linear.forward(&Features::new(x)).unwrap().to_vec2::<f32>().unwrap();
            let all = forward(x.clone());
            for row in [0, 17, 36] {
                let alone = forward(x.narrow(0, row, 1).unwrap().contiguous().unwrap());
                assert_eq!(alone[0], all[row], "{dtype:?}, row {row}");
            }
        }
    }
}
