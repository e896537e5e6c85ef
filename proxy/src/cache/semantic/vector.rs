//! A vector of a text: content as the text is. In memory only, and wiped when it is dropped.

use data_encoding::BASE64;
use zeroize::Zeroize;

/// How far from 1 a length may be, for it to count as 1.
const TOLERANCE: f32 = 0.01;

/// Numbers whose squares add up to 1.
pub(super) struct Vector(Vec<f32>);

impl Vector {
    /// From base64 of 32-bit floats, the lowest byte first.
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut bytes = BASE64.decode(text.as_bytes()).ok()?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        let whole = rest.is_empty().then(|| Self(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect()));
        bytes.zeroize();
        // A length that is not a number is not near 1 either.
        whole.filter(|vector| (vector.nearness(vector) - 1.0).abs() < TOLERANCE)
    }

    /// The cosine of the angle between both; of different spaces, none is near.
    pub(super) fn nearness(&self, other: &Self) -> f32 {
        if self.0.len() != other.0.len() {
            return -1.0;
        }
        self.0.iter().zip(&other.0).map(|(one, other)| one * other).sum()
    }

    /// Bytes, about.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.0.as_slice()) + size_of::<Self>()
    }

    #[cfg(test)]
    pub(super) fn of(numbers: &[f32]) -> Self {
        let length = numbers.iter().map(|n| n * n).sum::<f32>().sqrt();
        Self(numbers.iter().map(|n| n / length).collect())
    }
}

impl std::fmt::Debug for Vector {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Vector({} numbers)", self.0.len())
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(numbers: &[f32]) -> Option<Vector> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        Vector::read(&BASE64.encode(&bytes))
    }

    #[test]
    fn only_what_has_length_one_is_a_vector() {
        assert!(read(&[0.6, 0.8]).is_some() && read(&[1.0]).is_some());
        for wrong in [&[][..], &[0.0, 0.0], &[2.0], &[f32::NAN, 1.0], &[f32::INFINITY]] {
            assert!(read(wrong).is_none(), "{wrong:?}");
        }
        assert!(Vector::read("AAA=").is_none() && Vector::read("?").is_none());
    }

    #[test]
    fn nearness_is_the_cosine_and_nothing_is_near_in_another_space() {
        let nearness = |a: &[f32], b: &[f32]| Vector::of(a).nearness(&Vector::of(b));
        assert!((nearness(&[1.0, 0.0], &[1.0, 1.0]) - 0.5_f32.sqrt()).abs() < 1e-6);
        assert!(nearness(&[1.0, 0.0], &[1.0, 0.0, 0.0]) < 0.0);
        assert!(!format!("{:?}", Vector::of(&[0.6, 0.8])).contains("0.6"));
    }
}
