//! The model's files: their header, read with a bound on everything, and their tensors, checked before they are read.

mod config;
mod folder;
mod gguf;
mod map;
mod names;

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};

pub(crate) use folder::ROTATES_HALVES;
pub(crate) use gguf::Header;
use gguf::TensorEntry;
use map::Map;

use crate::error::EngineError;
use crate::model::linear::Linear;

/// Numbers of one tensor at most.
const TENSOR_NUMBERS_MAX: usize = 1 << 40;

/// Whether `file`, which has `bytes` bytes, begins as a model file does. Nothing behind the header is looked at.
///
/// # Errors
/// Where and why not, for people.
pub fn check_header(file: impl Read, bytes: u64) -> Result<(), String> {
    gguf::read(file, bytes).map(drop)
}

/// An open model: one GGUF file, or a folder of Hugging Face's. Files are mapped, and given back when this is dropped.
pub(crate) struct WeightFile {
    path: PathBuf,
    maps: Vec<Map>,
    bytes: u64,
    header: Header,
    device: Device,
}

impl WeightFile {
    /// Opens a model and reads its header. Allocates no more than a small multiple of the header's own bytes.
    pub(crate) fn open(path: &Path, device: &Device) -> Result<Self, EngineError> {
        let device = device.clone();
        if folder::is_model(path) {
            let folder::Folder { header, maps, bytes } = folder::open(path).map_err(|detail| damaged(path, &detail))?;
            return Ok(Self { path: path.to_owned(), maps, bytes, header, device });
        }
        let io = |source| EngineError::Io { what: "cannot read", path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(damaged(path, "it is neither a GGUF file nor a folder with a config.json"));
        }
        let header = gguf::read(&file, metadata.len()).map_err(|detail| damaged(path, &detail))?;
        let maps = vec![Map::new(&file).map_err(io)?];
        Ok(Self { path: path.to_owned(), maps, bytes: metadata.len(), header, device })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// Tokens that the model has embeddings of.
    pub(crate) fn embedding_rows(&self) -> Option<usize> {
        usize::try_from(*self.header.tensors.get("token_embd.weight")?.dimensions.last()?).ok()
    }

    /// Type and numbers of every tensor.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (GgmlDType, u64)> {
        let numbers = |entry: &TensorEntry| entry.dimensions.iter().fold(1u64, |all, each| all.saturating_mul(*each));
        self.header.tensors.values().map(move |entry| (entry.dtype, numbers(entry)))
    }

    /// Checks that every tensor lies within its file.
    pub(crate) fn check_tensors(&self) -> Result<(), EngineError> {
        for (name, entry) in &self.header.tensors {
            let shape: Option<Vec<usize>> =
                entry.dimensions.iter().rev().map(|each| usize::try_from(*each).ok()).collect();
            let count =
                shape.as_ref().and_then(|shape| shape.iter().try_fold(1usize, |all, each| all.checked_mul(*each)));
            let bounded = count.filter(|count| *count <= TENSOR_NUMBERS_MAX);
            let (Some(shape), Some(_)) = (shape, bounded) else {
                return Err(self.damaged(&format!("tensor `{name}` has an impossible shape")));
            };
            self.tensor_bytes(name, entry, &shape)?;
        }
        Ok(())
    }

    /// The template that chats are written with, if the model has one.
    pub(crate) fn chat_template(&self) -> Option<Cow<'_, str>> {
        let in_header = self.header.text("tokenizer.chat_template").map(Cow::Borrowed);
        in_header.or_else(|| folder::chat_template(&self.path).map(Cow::Owned))
    }

    /// `tokenizer.json`, which folders have and GGUF files do not.
    pub(crate) fn tokenizer_json(&self) -> Option<Result<serde_json::Value, EngineError>> {
        self.has_tokenizer_json()
            .then(|| folder::read_json(&self.path.join("tokenizer.json")).map_err(|detail| self.damaged(&detail)))
    }

    pub(crate) fn has_tokenizer_json(&self) -> bool {
        self.path.join("tokenizer.json").is_file()
    }

    /// Tokens of a text at most, where the folder says so for texts that become vectors.
    pub(crate) fn sentence_tokens_max(&self) -> Option<usize> {
        let config = folder::read_json(&self.path.join("sentence_bert_config.json")).ok()?;
        usize::try_from(config.get("max_seq_length")?.as_u64()?).ok().filter(|tokens| *tokens > 2)
    }

    /// An error about this file.
    pub(crate) fn damaged(&self, detail: &str) -> EngineError {
        damaged(&self.path, detail)
    }

    /// A matrix of `rows` × `columns`, kept as it is in the file.
    pub(crate) fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Arc<QTensor>, EngineError> {
        let (dtype, raw) = self.raw_tensor(name, &[rows, columns])?;
        self.stored(name, dtype, raw, &[rows, columns], &self.device).map(Arc::new)
    }

    /// A projection from `columns` to `rows` features.
    pub(crate) fn projection(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, EngineError> {
        let (dtype, raw) = self.raw_tensor(name, &[rows, columns])?;
        Linear::from_raw(raw, dtype, rows, columns, &self.device).map_err(|error| self.misfit(name, &error))
    }

    /// A vector of `length` numbers, as f32.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Tensor, EngineError> {
        let (dtype, raw) = self.raw_tensor(name, &[length])?;
        let vector = self.stored(name, dtype, raw, &[length], &Device::Cpu)?.dequantize(&Device::Cpu)?;
        let plus_one = self.header.tensors.get(name).is_some_and(|entry| entry.plus_one);
        let vector = if plus_one { (vector + 1.0)? } else { vector };
        Ok(vector.to_device(&self.device)?)
    }

    fn stored(
        &self,
        name: &str,
        dtype: GgmlDType,
        raw: &[u8],
        shape: &[usize],
        device: &Device,
    ) -> Result<QTensor, EngineError> {
        let stored = QStorage::from_data(Cow::Borrowed(raw), device, dtype);
        stored.and_then(|storage| QTensor::new(storage, shape)).map_err(|error| self.misfit(name, &error))
    }

    /// The bytes of a tensor that must have exactly this shape: so its size comes from numbers that are bounded already,
    /// never from the tensor's own entry.
    fn raw_tensor(&self, name: &str, shape: &[usize]) -> Result<(GgmlDType, &[u8]), EngineError> {
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

    fn tensor_bytes(&self, name: &str, entry: &TensorEntry, shape: &[usize]) -> Result<&[u8], EngineError> {
        let columns = shape.last().copied().unwrap_or(0);
        let (block, block_bytes) = (entry.dtype.block_size(), entry.dtype.type_size());
        if columns == 0 || columns % block != 0 {
            return Err(self.damaged(&format!("rows of tensor `{name}` are not made of blocks of {block}")));
        }
        let elements: usize = shape.iter().product();
        let length = elements / block * block_bytes;
        let start = self.header.data_offset().checked_add(entry.offset).and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        let bytes = self.maps.get(entry.file).and_then(|map| map.get(range?));
        let bytes = bytes.ok_or_else(|| {
            self.damaged(&format!("tensor `{name}` lies beyond the end of the file; is it cut short?"))
        })?;
        // candle takes the bytes for numbers of two or four bytes where they lie.
        if !bytes.as_ptr().cast::<f32>().is_aligned() {
            return Err(self.damaged(&format!("tensor `{name}` does not begin at a multiple of 4 bytes")));
        }
        Ok(bytes)
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
