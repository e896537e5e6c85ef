//! The model file: its header, read with a bound on everything, and its tensors, checked before they are read.

mod gguf;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor, ggml_file::qtensor_from_ggml};
use candle_core::{Device, Tensor};

pub(crate) use gguf::Header;
use gguf::TensorEntry;

use crate::error::EngineError;
use crate::model::linear::Linear;

/// Whether `file`, which has `bytes` bytes, begins as a model file does. Nothing behind the header is looked at.
///
/// # Errors
/// Where and why not, for people.
pub fn check_header(file: impl Read, bytes: u64) -> Result<(), String> {
    gguf::read(file, bytes).map(drop)
}

/// An open model file.
pub(crate) struct WeightFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    header: Header,
    device: Device,
}

impl WeightFile {
    /// Opens a file and reads its header. Allocates no more than a small multiple of the header's own bytes.
    pub(crate) fn open(path: &Path, device: &Device) -> Result<Self, EngineError> {
        let io = |source| EngineError::Io { what: "cannot read", path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(damaged(path, "it is not a file"));
        }
        let header = gguf::read(&file, metadata.len()).map_err(|detail| damaged(path, &detail))?;
        Ok(Self { path: path.to_owned(), file, bytes: metadata.len(), header, device: device.clone() })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// An error about this file.
    pub(crate) fn damaged(&self, detail: &str) -> EngineError {
        damaged(&self.path, detail)
    }

    /// A matrix of `rows` × `columns`, kept quantised.
    pub(crate) fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Arc<QTensor>, EngineError> {
        Ok(Arc::new(self.tensor(name, &[rows, columns])?))
    }

    /// A projection from `columns` to `rows` features.
    pub(crate) fn projection(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, EngineError> {
        let (dtype, raw) = self.raw_tensor(name, &[rows, columns])?;
        Linear::from_raw(&raw, dtype, rows, columns, &self.device).map_err(|error| self.misfit(name, &error))
    }

    /// A vector of `length` numbers, as f32.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Tensor, EngineError> {
        Ok(self.tensor(name, &[length])?.dequantize(&self.device)?)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<QTensor, EngineError> {
        let (dtype, raw) = self.raw_tensor(name, shape)?;
        qtensor_from_ggml(dtype, &raw, shape.to_vec(), &self.device).map_err(|error| self.misfit(name, &error))
    }

    /// Reads a tensor that must have exactly this shape: so its size comes from numbers that are bounded already, never
    /// from the tensor's own entry.
    fn raw_tensor(&self, name: &str, shape: &[usize]) -> Result<(GgmlDType, Vec<u8>), EngineError> {
        let entry = self.header.tensors.get(name);
        let entry = entry.ok_or_else(|| self.damaged(&format!("tensor `{name}` is missing")))?;
        let wanted: Vec<u64> = shape.iter().rev().map(|dimension| *dimension as u64).collect();
        if entry.dimensions != wanted {
            let detail = format!("tensor `{name}` has the shape {:?} instead of {wanted:?}", entry.dimensions);
            return Err(self.damaged(&detail));
        }
        Ok((entry.dtype, self.tensor_bytes(name, entry, shape)?))
    }

    fn misfit(&self, name: &str, error: &candle_core::Error) -> EngineError {
        self.damaged(&format!("tensor `{name}`: {error}"))
    }

    fn tensor_bytes(&self, name: &str, entry: &TensorEntry, shape: &[usize]) -> Result<Vec<u8>, EngineError> {
        let columns = shape.last().copied().unwrap_or(0);
        let (block, block_bytes) = (entry.dtype.block_size(), entry.dtype.type_size());
        if columns == 0 || columns % block != 0 {
            return Err(self.damaged(&format!("rows of tensor `{name}` are not made of blocks of {block}")));
        }
        let elements: usize = shape.iter().product();
        let length = elements / block * block_bytes;
        let start = self.header.data_offset().checked_add(entry.offset);
        let end = start.and_then(|start| start.checked_add(length as u64));
        let (Some(start), Some(_)) = (start, end.filter(|end| *end <= self.bytes)) else {
            let detail = format!("tensor `{name}` lies beyond the end of the file; is it cut short?");
            return Err(self.damaged(&detail));
        };
        let io = |source| EngineError::Io { what: "cannot read", path: self.path.clone(), source };
        let mut raw = vec![0; length];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut raw)).map_err(io)?;
        Ok(raw)
    }
}

fn damaged(path: &Path, detail: &str) -> EngineError {
    EngineError::Damaged { path: path.to_owned(), detail: detail.to_owned() }
}

/// candle's type for a number in the file; what is not listed cannot be computed with.
/// Source: `enum ggml_type` of the GGUF specification.
fn dtype(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}
