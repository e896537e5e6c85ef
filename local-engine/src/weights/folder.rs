//! Models as Hugging Face's transformers writes them: a folder with `config.json` and safetensors files.
//!
//! What `config.json` says is put under the names that GGUF files have for it, and so are the tensors: everything else
//! reads one kind of header. Sources: the safetensors format (github.com/huggingface/safetensors); transformers' own
//! configuration classes.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

use super::gguf::{Header, TensorEntry, Value};
use super::map::Map;
use super::names;

/// Bytes of `config.json` at most, and of the list of files.
const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// Bytes of the header of a safetensors file at most.
const HEADER_BYTES_MAX: u64 = 32 << 20;
/// Files of one model at most.
const FILES_MAX: usize = 256;

/// The key under which a header says that rotated pairs lie half a head apart.
pub(crate) const ROTATES_HALVES: &str = "postern.rotates_halves";

/// What a folder holds.
pub(super) struct Folder {
    pub(super) header: Header,
    pub(super) maps: Vec<Map>,
    pub(super) bytes: u64,
}

/// Reads the headers of all files. The error says what is wrong, for people.
pub(super) fn open(folder: &Path) -> Result<Folder, String> {
    let config: Json = read_json(&folder.join("config.json"))?;
    let mut header = Header::default();
    let architecture = super::config::translate(&config, &mut header)?;
    let mut opened = Folder { header, maps: Vec::new(), bytes: 0 };
    for path in files(folder)? {
        opened.add(&path, architecture).map_err(|problem| format!("`{}`: {problem}", shown(&path)))?;
    }
    Ok(opened)
}

impl Folder {
    fn add(&mut self, path: &Path, architecture: &str) -> Result<(), String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let map = Map::new(&file).map_err(|error| error.to_string())?;
        let length = map.get(0..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        if length.is_none_or(|length| length > HEADER_BYTES_MAX) {
            return Err("it has no header of a possible length".to_owned());
        }
        let (header_bytes, metadata) = SafeTensors::read_metadata(map.all()).map_err(|error| {
            format!("its header does not fit its {} bytes ({error}); is it cut short?", map.all().len())
        })?;
        for (name, info) in metadata.tensors() {
            let Some(known) = names::gguf_name(&name, architecture) else { continue };
            let dtype = match info.dtype {
                Dtype::F32 => GgmlDType::F32,
                Dtype::F16 => GgmlDType::F16,
                Dtype::BF16 => GgmlDType::BF16,
                // Numbers of positions, which older checkpoints keep.
                Dtype::I64 => continue,
                other => return Err(format!("tensor `{name}` has the type {other:?}, which is not supported")),
            };
            let entry = TensorEntry {
                dimensions: info.shape.iter().rev().map(|dimension| *dimension as u64).collect(),
                dtype,
                offset: (8 + header_bytes + info.data_offsets.0) as u64,
                file: self.maps.len(),
                plus_one: architecture == "gemma3" && known.ends_with("norm.weight"),
            };
            if self.header.tensors.insert(known.clone(), entry).is_some() {
                return Err(format!("tensor `{name}` is there twice"));
            }
        }
        self.bytes += map.all().len() as u64;
        self.maps.push(map);
        Ok(())
    }
}

/// The weights' files: one, or those that the index names.
fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let one = folder.join("model.safetensors");
    if one.is_file() {
        return Ok(vec![one]);
    }
    let index: Json = read_json(&folder.join("model.safetensors.index.json"))?;
    let map = index.get("weight_map").and_then(Json::as_object).ok_or("the index names no weights")?;
    let mut names: Vec<&str> = map.values().filter_map(Json::as_str).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() || names.len() > FILES_MAX {
        return Err(format!("the index names {} files", names.len()));
    }
    // Only files beside it: an index from elsewhere does not choose what this process reads.
    let is_plain = |name: &str| Path::new(name).components().count() == 1 && !name.starts_with('.');
    match names.iter().find(|name| !is_plain(name)) {
        Some(_) => Err("the index names a file outside of its folder".to_owned()),
        None => Ok(names.into_iter().map(|name| folder.join(name)).collect()),
    }
}

/// A JSON file of a bounded size.
pub(super) fn read_json(path: &Path) -> Result<Json, String> {
    let wrong = |problem: String| format!("`{}`: {problem}", shown(path));
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}

fn read_text(path: &Path) -> Result<String, String> {
    let wrong = |problem: String| format!("`{}`: {problem}", shown(path));
    // Whoever opens a pipe waits for somebody to write.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(wrong("it is not a file".to_owned()));
    }
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mut text = String::new();
    let read = file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    if read as u64 > CONFIG_BYTES_MAX {
        return Err(wrong(format!("it is longer than {CONFIG_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// The chat template of a folder, wherever this version of transformers wrote it.
pub(super) fn chat_template(folder: &Path) -> Option<String> {
    if let Ok(text) = read_text(&folder.join("chat_template.jinja")) {
        return Some(text);
    }
    let config = read_json(&folder.join("tokenizer_config.json")).ok()?;
    let template = config.get("chat_template")?;
    let named =
        |list: &Vec<Json>| list.iter().find(|one| one.get("name").and_then(Json::as_str) == Some("default")).cloned();
    let template = template.as_array().map_or_else(|| Some(template.clone()), named)?;
    template.as_str().or_else(|| template.get("template")?.as_str()).map(str::to_owned)
}

fn shown(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// True for what [`open`] can be tried on.
pub(super) fn is_model(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_dir()) && path.join("config.json").is_file()
}

/// A value of the header.
pub(super) fn set(header: &mut Header, key: impl Into<String>, value: Value) {
    header.metadata.insert(key.into(), value);
}
