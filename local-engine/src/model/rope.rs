//! Rotary positions. Source: Su et al., "RoFormer", 2021.

use candle_core::{Device, Result, Tensor};
use candle_nn::rotary_emb::{rope, rope_i};

use crate::batch::Batch;
use crate::host::with_numbers;

/// Which two features of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairing {
    /// 2i and 2i + 1.
    Neighbours,
    /// i and i + width / 2.
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
    /// The same where the device's memory is not this process's: `[rows, 1, pairs]` each.
    on_device: Option<(Tensor, Tensor)>,
}

impl Rope {
    pub(super) fn new(pairing: Pairing, head_width: usize, base: f64) -> Self {
        let frequency = |pair: usize| base.powf(-2.0 * pair as f64 / head_width as f64);
        Self { pairing, frequencies: (0..head_width / 2).map(frequency).collect() }
    }

    /// The same, with each pair slowed down by its factor.
    pub(super) fn slowed(self, factors: &[f32]) -> Self {
        let frequencies =
            self.frequencies.iter().zip(factors).map(|(each, factor)| each / f64::from(*factor)).collect();
        Self { frequencies, ..self }
    }

    pub(super) fn angles(&self, batch: &Batch, device: &Device) -> Result<Angles> {
        let angles = batch.positions().flat_map(|at| self.frequencies.iter().map(move |each| at as f64 * each));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        let pairs = self.frequencies.len();
        let on_device = |numbers: &[f32]| Tensor::from_slice(numbers, (numbers.len() / pairs.max(1), 1, pairs), device);
        let on_device = (!device.is_cpu()).then(|| Ok::<_, candle_core::Error>((on_device(&cos)?, on_device(&sin)?)));
        Ok(Angles { on_device: on_device.transpose()?, cos, sin })
    }

    /// Turns `[rows, heads × head_width]`.
    pub(super) fn rotate(&self, x: &Tensor, angles: &Angles) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let pairs = self.frequencies.len();
        if pairs == 0 || width % (2 * pairs) != 0 || angles.cos.len() != rows * pairs {
            candle_core::bail!("{rows} rows of {width} features do not fit the rotation")
        }
        if let Some((cos, sin)) = &angles.on_device {
            return self.rotate_tensor(x, cos, sin);
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
    fn rotate_tensor(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let head_width = 2 * self.frequencies.len();
        let heads = x.contiguous()?.reshape((rows, width / head_width, 1, head_width))?;
        let turned = match self.pairing {
            Pairing::Neighbours => rope_i(&heads, cos, sin)?,
            Pairing::Halves => rope(&heads, cos, sin)?,
        };
        turned.reshape((rows, width))
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
            let angles = rope.angles(&batch, &Device::Cpu).unwrap();
            let turned = rope.rotate(&x, &angles).unwrap().to_vec2::<f32>().unwrap();
            let column = |numbers: &[f32]| Tensor::from_slice(numbers, (2, 1, 4), &Device::Cpu).unwrap();
            let (cos, sin) = (column(&angles.cos), column(&angles.sin));
            assert_eq!(rope.rotate_tensor(&x, &cos, &sin).unwrap().to_vec2::<f32>().unwrap(), turned);
            // The first pair turns by one radian a position; row 1 is at position 4.
            let (a, b) = (numbers[16], numbers[16 + partner]);
            assert!((turned[1][0] - (a * 4f32.cos() - b * 4f32.sin())).abs() < 1e-5);
            assert!((turned[1][partner] - (a * 4f32.sin() + b * 4f32.cos())).abs() < 1e-5);
        }
    }
}
