//! Pieces with their lengths in front of them, from bytes that are cut anywhere. Source: the chunked draft, 4 and 5; lengths as RFC 9000, 16, has
//! them. The last piece has a length of 0, and goes to the end.

use crate::SealError;
use crate::chunked::MAX_CHUNK;
use crate::cipher::TAG;

/// The most bytes of a piece, sealed.
const MOST: usize = MAX_CHUNK + TAG;

/// Reads pieces.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    at: At,
    /// Of a length, or a piece, that is not all there.
    begun: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Length,
    Piece(usize),
    Last,
}

impl Frames {
    /// Calls `each` with every piece that is all there by now, but the last.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        each: &mut dyn FnMut(&[u8]) -> Result<(), SealError>,
    ) -> Result<(), SealError> {
        while !bytes.is_empty() {
            match self.at {
                At::Length => {
                    let (first, rest) = bytes.split_first().ok_or(SealError::Cut)?;
                    self.begun.push(*first);
                    bytes = rest;
                    if let Some(length) = length(&self.begun) {
                        self.begun.clear();
                        self.at = match usize::try_from(length).ok().filter(|length| *length <= MOST) {
                            Some(0) => At::Last,
                            Some(length) => At::Piece(length),
                            None => return Err(SealError::TooLarge),
                        };
                    }
                }
                At::Piece(length) => {
                    let missing = length.saturating_sub(self.begun.len());
                    let (more, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
                    if self.begun.is_empty() && more.len() == length {
                        each(more)?;
                        self.at = At::Length;
                    } else {
                        self.begun.extend_from_slice(more);
                        if self.begun.len() == length {
                            each(&self.begun)?;
                            self.begun.clear();
                            self.at = At::Length;
                        }
                    }
                    bytes = rest;
                }
                At::Last => {
                    if self.begun.len() + bytes.len() > MOST {
                        return Err(SealError::TooLarge);
                    }
                    self.begun.extend_from_slice(bytes);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// No more comes: the last piece.
    pub(crate) fn last(&self) -> Result<&[u8], SealError> {
        if self.at == At::Last { Ok(&self.begun) } else { Err(SealError::Cut) }
    }
}

/// The length that is written so; `None`: it is not all there.
pub(crate) fn length(written: &[u8]) -> Option<u64> {
    let (first, rest) = written.split_first()?;
    let more = (1_usize << (first >> 6)) - 1;
    (rest.len() == more)
        .then(|| rest.iter().fold(u64::from(first & 0x3f), |length, byte| length << 8 | u64::from(*byte)))
}

/// Writes a length, as short as it can be.
pub(crate) fn put_length(length: usize, out: &mut Vec<u8>) {
    let length = length as u64;
    match length {
        0..0x40 => out.extend_from_slice(&length.to_be_bytes()[7..]),
        0x40..0x4000 => out.extend_from_slice(&(length | 0x4000).to_be_bytes()[6..]),
        0x4000..0x4000_0000 => out.extend_from_slice(&(length | 0x8000_0000).to_be_bytes()[4..]),
        _ => out.extend_from_slice(&(length | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_as_they_are_written_and_as_rfc_9000_has_them() {
        for wanted in [0, 1, 63, 64, 15_293, 16_383, 16_384, 494_878_333, usize::MAX >> 2] {
            let mut written = Vec::new();
            put_length(wanted, &mut written);
            assert_eq!(length(&written), Some(wanted as u64));
            assert_eq!(length(&written[..written.len() - 1]), None);
        }
        // RFC 9000, A.1.
        assert_eq!(length(&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]), Some(151_288_809_941_952_652));
        assert_eq!([length(&[0x9d, 0x7f, 0x3e, 0x7d]), length(&[0x40, 0x25])], [Some(494_878_333), Some(37)]);
    }
}
