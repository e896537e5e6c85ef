//! Reads the header of a GGUF file, version 2 or 3.
//!
//! Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md). Not candle's own reader: that one keeps
//! each element of an array in 32 bytes, so a damaged file can make it ask for many times the file's size, and it
//! divides by the alignment that the file names, which may be zero.

use std::collections::HashMap;
use std::io::{BufReader, Read};

use candle_core::quantized::GgmlDType;

/// The magic number: the letters `GGUF`.
const MAGIC: [u8; 4] = *b"GGUF";
/// The bytes of a header at most; vocabularies of 256,000 tokens need about 10 MB.
const HEADER_BYTES_MAX: u64 = 32 << 20;
/// Metadata entries at most.
const ENTRIES_MAX: u64 = 4096;
/// Tensors at most.
const TENSORS_MAX: u64 = 65_536;
/// Bytes of a name at most; the specification allows 64 for tensors and 65,535 for keys.
const NAME_BYTES_MAX: u64 = 1024;
/// Dimensions of a tensor at most.
const DIMENSIONS_MAX: u32 = 4;
/// Where tensors begin if the file does not say: at a multiple of this.
const ALIGNMENT_DEFAULT: u64 = 32;

/// What the header says.
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, TensorEntry>,
    data_offset: u64,
}

/// One tensor's entry.
#[derive(Debug)]
pub(super) struct TensorEntry {
    /// Innermost first, as in the file.
    pub(super) dimensions: Vec<u64>,
    pub(super) dtype: GgmlDType,
    /// From the beginning of the tensor data.
    pub(super) offset: u64,
    /// Which of the model's files; GGUF models have one.
    pub(super) file: usize,
    /// The computation wants one more than what is stored.
    pub(super) plus_one: bool,
}

/// A metadata value. Arrays of other things than strings, floats and small integers are skipped: nothing here needs them.
#[derive(Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
    Floats(Vec<f32>),
    Skipped,
}

impl Header {
    /// Where the tensors' data begins, in bytes from the beginning of the file.
    pub(crate) fn data_offset(&self) -> u64 {
        self.data_offset
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn integer(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            Value::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Option<&[String]> {
        match self.metadata.get(key)? {
            Value::Texts(texts) => Some(texts),
            _ => None,
        }
    }

    pub(crate) fn floats(&self, key: &str) -> Option<&[f32]> {
        match self.metadata.get(key)? {
            Value::Floats(floats) => Some(floats),
            _ => None,
        }
    }

    pub(crate) fn integers(&self, key: &str) -> Option<&[i32]> {
        match self.metadata.get(key)? {
            Value::Integers(integers) => Some(integers),
            _ => None,
        }
    }
}

/// Reads a header from the beginning of `file`, which has `bytes` bytes. The error says where and why, for people.
pub(super) fn read(file: impl Read, bytes: u64) -> Result<Header, String> {
    let left = bytes.min(HEADER_BYTES_MAX);
    let mut reader = Reader { inner: BufReader::new(file), position: 0, left };
    let header = reader.header();
    header.map_err(|problem| format!("at byte {}: {problem}", reader.position))
}

struct Reader<R> {
    inner: R,
    position: u64,
    left: u64,
}

impl<R: Read> Reader<R> {
    fn header(&mut self) -> Result<Header, String> {
        if self.array::<4>()? != MAGIC {
            return Err("it does not begin with the letters GGUF".to_owned());
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("version {version} of the format is not known (2 and 3 are)"));
        }
        let tensors = self.count("tensors", TENSORS_MAX)?;
        let entries = self.count("metadata entries", ENTRIES_MAX)?;
        let mut header = Header::default();
        for _ in 0..entries {
            let key = self.name()?;
            let kind = self.u32()?;
            let value = self.value(kind)?;
            header.metadata.insert(key, value);
        }
        for _ in 0..tensors {
            let name = self.name()?;
            let entry = self.tensor_entry(&name)?;
            if header.tensors.insert(name.clone(), entry).is_some() {
                return Err(format!("tensor `{name}` is listed twice"));
            }
        }
        let alignment = header.integer("general.alignment").unwrap_or(ALIGNMENT_DEFAULT);
        if !(1..=1 << 20).contains(&alignment) {
            return Err(format!("an alignment of {alignment} is not possible"));
        }
        header.data_offset = self.position.next_multiple_of(alignment);
        Ok(header)
    }

    fn tensor_entry(&mut self, name: &str) -> Result<TensorEntry, String> {
        let dimensions = self.u32()?;
        if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
            return Err(format!("tensor `{name}` has {dimensions} dimensions"));
        }
        let dimensions = (0..dimensions).map(|_| self.u64()).collect::<Result<_, _>>()?;
        let number = self.u32()?;
        let dtype =
            super::dtype(number).ok_or_else(|| format!("tensor `{name}` has type {number}, which is not known"))?;
        Ok(TensorEntry { dimensions, dtype, offset: self.u64()?, file: 0, plus_one: false })
    }

    /// A value of the specification's type `kind`.
    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array()?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text(HEADER_BYTES_MAX)?),
            9 => self.array_value()?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("a value of type {kind}, which is not known")),
        })
    }

    fn array_value(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        let length = self.u64()?;
        match kind {
            // Each text takes 8 bytes of the file or more, so memory stays within a small multiple of the header.
            8 => (0..length).map(|_| self.text(HEADER_BYTES_MAX)).collect::<Result<_, _>>().map(Value::Texts),
            4 | 5 => {
                (0..length).map(|_| self.array().map(i32::from_le_bytes)).collect::<Result<_, _>>().map(Value::Integers)
            }
            0 | 1 | 7 => self.skip(length, 1),
            2 | 3 => self.skip(length, 2),
            6 => (0..length).map(|_| self.array().map(f32::from_le_bytes)).collect::<Result<_, _>>().map(Value::Floats),
            10..=12 => self.skip(length, 8),
            9 => Err("arrays of arrays are not supported".to_owned()),
            _ => Err(format!("an array of type {kind}, which is not known")),
        }
    }

    fn skip(&mut self, count: u64, bytes: u64) -> Result<Value, String> {
        let length = count.checked_mul(bytes).ok_or("an impossible length")?;
        self.take(length)?;
        let skipped = std::io::copy(&mut self.inner.by_ref().take(length), &mut std::io::sink());
        match skipped {
            Ok(skipped) if skipped == length => Ok(Value::Skipped),
            Ok(_) => Err("the file ends here".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn name(&mut self) -> Result<String, String> {
        self.text(NAME_BYTES_MAX)
    }

    /// A text; what is not UTF-8 in it is replaced.
    fn text(&mut self, max: u64) -> Result<String, String> {
        let length = self.u64()?;
        if length > max {
            return Err(format!("a text of {length} bytes, where {max} are allowed"));
        }
        self.take(length)?;
        let mut bytes = vec![0; usize::try_from(length).map_err(|error| error.to_string())?];
        self.inner.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn count(&mut self, what: &str, max: u64) -> Result<u64, String> {
        let count = self.u64()?;
        if count > max {
            return Err(format!("{count} {what}, where {max} are allowed"));
        }
        Ok(count)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// Counts bytes before they are read, so that no length in the file can ask for more than the file has.
    fn take(&mut self, bytes: u64) -> Result<(), String> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| match self.position + self.left {
            HEADER_BYTES_MAX => format!("the header is longer than {HEADER_BYTES_MAX} bytes"),
            _ => format!("{bytes} more bytes are needed, and the file has {}", self.left),
        })?;
        self.position += bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    /// A file with one text, one number, one array of texts, one of u8, and one tensor.
    fn sample() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(1u64.to_le_bytes());
        out.extend(4u64.to_le_bytes());
        text(&mut out, "general.architecture");
        out.extend(8u32.to_le_bytes());
        text(&mut out, "llama");
        text(&mut out, "llama.block_count");
        out.extend([4u32.to_le_bytes(), 30u32.to_le_bytes()].concat());
        text(&mut out, "tokens");
        out.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
        out.extend(2u64.to_le_bytes());
        text(&mut out, "a");
        text(&mut out, "b");
        text(&mut out, "bytes");
        out.extend([9u32.to_le_bytes(), 0u32.to_le_bytes()].concat());
        out.extend(3u64.to_le_bytes());
        out.extend([1, 2, 3]);
        text(&mut out, "w");
        out.extend(2u32.to_le_bytes());
        out.extend([32u64.to_le_bytes(), 4u64.to_le_bytes()].concat());
        out.extend(8u32.to_le_bytes());
        out.extend(64u64.to_le_bytes());
        out
    }

    fn parse(bytes: &[u8]) -> Result<Header, String> {
        read(bytes, bytes.len() as u64)
    }

    #[test]
    fn a_header_is_read() {
        let bytes = sample();
        let header = parse(&bytes).unwrap();
        assert_eq!(header.text("general.architecture"), Some("llama"));
        assert_eq!(header.integer("llama.block_count"), Some(30));
        assert_eq!(header.texts("tokens").unwrap(), ["a", "b"]);
        assert_eq!(header.metadata["bytes"], Value::Skipped);
        assert_eq!(header.tensors["w"].dimensions, [32, 4]);
        assert_eq!(header.data_offset, (bytes.len() as u64).next_multiple_of(32));
    }

    #[test]
    fn every_cut_is_an_error() {
        let bytes = sample();
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn impossible_lengths_are_refused_before_anything_is_allocated() {
        for (at, length) in [(8, u64::MAX), (16, 1 << 40), (24, u64::MAX / 2)] {
            let mut bytes = sample();
            bytes[at..at + 8].copy_from_slice(&length.to_le_bytes());
            let error = parse(&bytes).unwrap_err();
            assert!(error.contains("allowed") || error.contains("needed"), "{error}");
        }
    }

    #[test]
    fn an_alignment_of_zero_is_refused() {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend([0u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
        text(&mut bytes, "general.alignment");
        bytes.extend([4u32.to_le_bytes(), 0u32.to_le_bytes()].concat());
        assert!(parse(&bytes).unwrap_err().contains("alignment of 0"));
    }

    proptest! {
        #[test]
        fn changed_bytes_are_read_or_refused(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
            let mut bytes = sample();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let _ = parse(&bytes);
        }
    }
}
