//! Rotary positions. Source: Su et al., "RoFormer", 2021.

use candle_core::{D, Device, Result, Tensor};

use crate::batch::Batch;
use crate::host::with_numbers;

/// Which two features of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairing {
    /// 2i and 2i + 1.
    Neighbours,
    /// i and i + width / 2.
    #[cfg_attr(not(test), expect(dead_code, reason = "architectures that come next pair so"))]
    Halves,
}

/// How far each pair turns for each position.
pub(super) struct Rope {
    pairing: Pairing,
    /// Radians a position, one for each pair.
    frequencies: Vec<f64>,
}

/// The angles of a batch's rows.
pub(super) struct Angles {
    /// `[rows × pairs]`, in order.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    pub(super) fn new(pairing: Pairing, head_width: usize, base: f64) -> Self {
        let frequency = |pair: usize| base.powf(-2.0 * pair as f64 / head_width as f64);
        Self { pairing, frequencies: (0..head_width / 2).map(frequency).collect() }
    }

    pub(super) fn angles(&self, batch: &Batch) -> Angles {
        let angles = batch.positions().flat_map(|at| self.frequencies.iter().map(move |each| at as f64 * each));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Angles { cos, sin }
    }

    /// Turns `[rows, heads × head_width]`.
    pub(super) fn rotate(&self, x: &Tensor, angles: &Angles) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let pairs = self.frequencies.len();
        if pairs == 0 || width % (2 * pairs) != 0 || angles.cos.len() != rows * pairs {
            candle_core::bail!("{rows} rows of {width} features do not fit the rotation")
        }
        if !x.device().is_cpu() {
            return self.rotate_tensor(x, angles);
        }
        let turned = with_numbers(x, |numbers| {
            let mut turned = numbers.to_vec();
            let angles = angles.cos.chunks_exact(pairs).zip(angles.sin.chunks_exact(pairs));
            for (row, (cos, sin)) in turned.chunks_exact_mut(width).zip(angles) {
                for head in row.chunks_exact_mut(2 * pairs) {
                    self.turn(head, cos, sin);
                }
            }
            Ok(turned)
        })?;
        Tensor::from_vec(turned, (rows, width), &Device::Cpu)
    }

    fn turn(&self, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let turned = |a: f32, b: f32, cos: f32, sin: f32| (a * cos - b * sin, a * sin + b * cos);
        let angles = cos.iter().zip(sin);
        match self.pairing {
            Pairing::Neighbours => {
                let (pairs, _) = head.as_chunks_mut::<2>();
                for ([a, b], (cos, sin)) in pairs.iter_mut().zip(angles) {
                    (*a, *b) = turned(*a, *b, *cos, *sin);
                }
            }
            Pairing::Halves => {
                let (first, second) = head.split_at_mut(cos.len());
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                    (*a, *b) = turned(*a, *b, *cos, *sin);
                }
            }
        }
    }

    /// The same with tensors, for devices whose memory is not this process's.
    fn rotate_tensor(&self, x: &Tensor, angles: &Angles) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let pairs = self.frequencies.len();
        let heads = width / (2 * pairs);
        let (shape, axis) = match self.pairing {
            Pairing::Neighbours => ((rows, heads, pairs, 2), D::Minus1),
            Pairing::Halves => ((rows, heads, 2, pairs), D::Minus2),
        };
        let column = |numbers: &[f32]| {
            let shape = if self.pairing == Pairing::Neighbours { (rows, 1, pairs, 1) } else { (rows, 1, 1, pairs) };
            Tensor::from_slice(numbers, shape, x.device())
        };
        let (cos, sin) = (column(&angles.cos)?, column(&angles.sin)?);
        let x = x.reshape(shape)?;
        let (a, b) = (x.narrow(axis, 0, 1)?.contiguous()?, x.narrow(axis, 1, 1)?.contiguous()?);
        let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let turned_b = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
        Tensor::cat(&[turned_a, turned_b], axis)?.reshape((rows, width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_pool::BlockTable;

    #[test]
    fn tensors_turn_as_numbers_do_and_a_position_turns_by_its_angle() {
        let mut table = BlockTable::default();
        table.advance(3);
        let mut batch = Batch::default();
        batch.push(&[0, 0], &table, 0);
        let numbers: Vec<f32> = (0..2 * 2 * 8).map(|n| n as f32 / 7.0 - 1.0).collect();
        let x = Tensor::from_slice(&numbers, (2, 16), &Device::Cpu).unwrap();
        for (pairing, partner) in [(Pairing::Neighbours, 1), (Pairing::Halves, 4)] {
            let rope = Rope::new(pairing, 8, 100.0);
            let angles = rope.angles(&batch);
            let turned = rope.rotate(&x, &angles).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(rope.rotate_tensor(&x, &angles).unwrap().to_vec2::<f32>().unwrap(), turned);
            // The first pair turns by one radian a position; row 1 is at position 4.
            let (a, b) = (numbers[16], numbers[16 + partner]);
            assert!((turned[1][0] - (a * 4f32.cos() - b * 4f32.sin())).abs() < 1e-5);
            assert!((turned[1][partner] - (a * 4f32.sin() + b * 4f32.cos())).abs() < 1e-5);
        }
    }
}
