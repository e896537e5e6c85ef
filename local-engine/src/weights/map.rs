//! A file's bytes, mapped into memory.
#![allow(unsafe_code, reason = "mapping a file is unsafe; the argument is below")]

use std::fs::File;
use std::ops::Range;

use memmap2::Mmap;

/// A file whose pages are read when they are looked at.
pub(super) struct Map(Mmap);

impl Map {
    pub(super) fn new(file: &File) -> std::io::Result<Self> {
        // SAFETY: the map is read only, and what is read is taken as numbers, for which every bit pattern is one, or is
        // checked by the reader of the header. Another process that changes the file while it is loaded can make the
        // model wrong, and one that cuts it can make this process end by a signal, as it could by changing any file
        // that a program runs from: model files are put in place by renaming, never written in place.
        unsafe { Mmap::map(file) }.map(Self)
    }

    pub(super) fn all(&self) -> &[u8] {
        &self.0
    }

    /// The bytes of a range, if the file has them all.
    pub(super) fn get(&self, range: Range<usize>) -> Option<&[u8]> {
        self.0.get(range)
    }
}
