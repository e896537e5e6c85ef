//! Fetches models from Hugging Face's hub, or what stands in for it at `HF_ENDPOINT`.
//!
//! A file comes into `NAME.part` and is put in place by renaming when its size, and the SHA-256 that the hub names for
//! large files, are right. What was broken off is gone on with, unless the hub's file has changed meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RANGE};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use postern_engine::catalog::{self, HubModel};

use crate::config::read::bounded;
use crate::egress::Hub;

/// Where models are fetched from, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// Redirects of one file at most: the hub sends large files elsewhere.
const REDIRECTS_MAX: usize = 5;
/// How often a file that broke off is gone on with.
const TRIES_MAX: usize = 6;
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// A hub that sends nothing for so long is given up, and asked again.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes of one file at most.
const FILE_BYTES_MAX: u64 = 1 << 40;
/// Files that a safetensors model is made of: name, and whether there is none without it.
const FOLDER_FILES: [(&str, bool); 5] = [
    ("config.json", true),
    ("tokenizer.json", true),
    ("tokenizer_config.json", false),
    ("chat_template.jinja", false),
    ("sentence_bert_config.json", false),
];
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// Bytes of an index.
const INDEX_BYTES_MAX: usize = 64 << 20;
/// Files that an index may name.
const SHARDS_MAX: usize = 256;

/// Fetches a model into a cache, unless it is there. `told` gets a line now and then, for people.
///
/// # Errors
/// The hub is not reached, has no such file, or sends other bytes than it names.
pub(super) fn fetch(model: &HubModel, cache: &Path, told: &mut dyn FnMut(String)) -> anyhow::Result<PathBuf> {
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| ENDPOINT.to_owned());
    fetch_from(&endpoint, token()?, model, cache, told)
}

fn fetch_from(
    endpoint: &str,
    token: Option<http::HeaderValue>,
    model: &HubModel,
    cache: &Path,
    told: &mut dyn FnMut(String),
) -> anyhow::Result<PathBuf> {
    let place = model.path_in(cache);
    if place.exists() {
        return Ok(place);
    }
    let hub = Hub::new(CONNECT_WITHIN).map_err(|what| anyhow!(what))?;
    let base = format!("{}/{}/resolve/main", endpoint.trim_end_matches('/'), model.repository);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let source = Source { hub, base, token };
    runtime.block_on(async {
        match &model.file {
            Some(file) => source.file(file, &place, told).await?.ok_or_else(|| no_such_file(file))?,
            None => source.folder(&place, told).await?,
        }
        Ok(place)
    })
}

struct Source {
    hub: Hub,
    base: String,
    token: Option<http::HeaderValue>,
}

/// What the hub says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Announced {
    /// Names the file's content: its SHA-256 if it is large.
    tag: String,
    bytes: Option<u64>,
}

impl Source {
    /// All files of a safetensors model, into a folder beside its place first.
    async fn folder(&self, place: &Path, told: &mut dyn FnMut(String)) -> anyhow::Result<()> {
        let partial = place.with_extension("part");
        for (name, is_needed) in FOLDER_FILES {
            let found = self.file(name, &partial.join(name), told).await?;
            if found.is_none() && is_needed {
                return Err(no_such_file(name));
            }
        }
        if self.file(WEIGHTS, &partial.join(WEIGHTS), told).await?.is_none() {
            let index = partial.join(WEIGHTS_INDEX);
            self.file(WEIGHTS_INDEX, &index, told).await?.ok_or_else(|| no_such_file(WEIGHTS))?;
            for shard in shards(&String::from_utf8(bounded(&index, INDEX_BYTES_MAX)?)?)? {
                self.file(&shard, &partial.join(&shard), told).await?.ok_or_else(|| no_such_file(&shard))?;
            }
        }
        fs::rename(&partial, place).with_context(|| format!("cannot write {}", place.display()))
    }

    /// One file; `None` if the hub has none of that name.
    async fn file(&self, name: &str, place: &Path, told: &mut dyn FnMut(String)) -> anyhow::Result<Option<()>> {
        if place.exists() {
            return Ok(Some(()));
        }
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut problem = anyhow!("it was never tried");
        for attempt in 0..TRIES_MAX {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            match self.attempt(name, place, told).await {
                Ok(Attempt::Done) => return Ok(Some(())),
                Ok(Attempt::NoSuchFile) => return Ok(None),
                Ok(Attempt::BrokenOff(what)) => {
                    told(format!("{name}: {what}; going on"));
                    problem = anyhow!("{name}: {what}");
                }
                Err(error) => return Err(error.context(name.to_owned())),
            }
        }
        Err(problem.context(format!("given up after {TRIES_MAX} tries; the next `pull` goes on from there")))
    }

    async fn attempt(&self, name: &str, place: &Path, told: &mut dyn FnMut(String)) -> anyhow::Result<Attempt> {
        let (part, tag_file) = (beside(place, "part"), beside(place, "tag"));
        let have = fs::metadata(&part).map_or(0, |found| found.len());
        let known_tag = fs::read_to_string(&tag_file).unwrap_or_default();
        let (answer, announced) = match self.ask(name, have).await {
            Ok(answered) => answered,
            Err(what) => return Ok(Attempt::BrokenOff(what)),
        };
        match answer.status() {
            StatusCode::NOT_FOUND => return Ok(Attempt::NoSuchFile),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                bail!("the hub wants to know who asks: set HF_TOKEN to a token that may read the repository")
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                fs::remove_file(&part).context("the partial file cannot be removed")?;
                return Ok(Attempt::BrokenOff("what was here already is too long".to_owned()));
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Ok(Attempt::BrokenOff(format!("the hub answers {status}")));
            }
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
            status => bail!("the hub answers {status}"),
        }
        let goes_on = answer.status() == StatusCode::PARTIAL_CONTENT
            && begin_of(answer.headers()) == Some(have)
            && (announced.tag == known_tag && !known_tag.is_empty());
        if answer.status() == StatusCode::PARTIAL_CONTENT && !goes_on {
            fs::remove_file(&part).context("the partial file cannot be removed")?;
            return Ok(Attempt::BrokenOff("the hub's file has changed".to_owned()));
        }
        fs::write(&tag_file, &announced.tag).context("the cache cannot be written")?;
        let mut out = OpenOptions::new().create(true).append(goes_on).write(true).truncate(!goes_on).open(&part)?;
        let begun = if goes_on { have } else { 0 };
        if let Err(what) =
            copy(answer, &mut out, begun, &announced, &mut |bytes| told(shown(name, bytes, &announced))).await?
        {
            return Ok(Attempt::BrokenOff(what));
        }
        out.sync_all()?;
        if let Some(what) = wrong(&part, &announced)? {
            fs::remove_file(&part).context("the partial file cannot be removed")?;
            return Ok(Attempt::BrokenOff(what));
        }
        fs::rename(&part, place).with_context(|| format!("cannot write {}", place.display()))?;
        // Only of use for going on.
        let _ = fs::remove_file(tag_file);
        Ok(Attempt::Done)
    }

    /// Asks for a file from byte `have` on, wherever the hub sends us. The first answer is the one that describes the file.
    async fn ask(&self, name: &str, have: u64) -> Result<(Response<Incoming>, Announced), String> {
        let mut uri: Uri = format!("{}/{name}", self.base).parse().map_err(|_| "HF_ENDPOINT is no URL".to_owned())?;
        let home = uri.authority().cloned();
        let mut announced = None;
        for _ in 0..=REDIRECTS_MAX {
            let mut request =
                Request::get(uri.clone()).body(Full::<Bytes>::default()).map_err(|error| error.to_string())?;
            if have > 0 {
                let range =
                    http::HeaderValue::from_str(&format!("bytes={have}-")).map_err(|error| error.to_string())?;
                request.headers_mut().insert(RANGE, range);
            }
            // Nobody else learns the token.
            if let Some(token) = self.token.as_ref().filter(|_| uri.authority() == home.as_ref()) {
                request.headers_mut().insert(AUTHORIZATION, token.clone());
            }
            let answer = tokio::time::timeout(IDLE_MAX, self.hub.get(request)).await;
            let answer = answer.map_err(|_| "the hub does not answer".to_owned())??;
            let described = announced.take().unwrap_or_else(|| describe(answer.headers(), answer.status()));
            if !answer.status().is_redirection() {
                return Ok((answer, described));
            }
            announced = Some(described);
            let to = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
            uri = redirected(&uri, to).ok_or_else(|| "the hub redirects to nowhere".to_owned())?;
        }
        Err("the hub redirects too often".to_owned())
    }
}

enum Attempt {
    Done,
    NoSuchFile,
    /// Worth another try.
    BrokenOff(String),
}

/// Writes the body; `Ok(Err)` if it broke off.
async fn copy(
    answer: Response<Incoming>,
    out: &mut File,
    begun: u64,
    announced: &Announced,
    told: &mut dyn FnMut(u64),
) -> anyhow::Result<Result<(), String>> {
    let mut body = answer.into_body();
    let mut bytes = begun;
    loop {
        let frame = match tokio::time::timeout(IDLE_MAX, body.frame()).await {
            Err(_) => return Ok(Err("the hub has stopped sending".to_owned())),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Ok(Err(format!("the connection broke off ({error})"))),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        bytes += data.len() as u64;
        if bytes > announced.bytes.unwrap_or(FILE_BYTES_MAX) {
            bail!("the hub sends more than it says");
        }
        out.write_all(&data).context("the cache cannot be written")?;
        told(bytes);
    }
    Ok(Ok(()))
}

/// What is wrong with a file that came to its end.
fn wrong(part: &Path, announced: &Announced) -> anyhow::Result<Option<String>> {
    let file = File::open(part)?;
    let bytes = file.metadata()?.len();
    if let Some(expected) = announced.bytes.filter(|expected| *expected != bytes) {
        return Ok(Some(format!("{bytes} bytes came instead of {expected}")));
    }
    if announced.tag.len() == 64 {
        let found = catalog::sha256(file)?;
        if found != announced.tag {
            return Ok(Some(format!("its SHA-256 is {found} instead of {}", announced.tag)));
        }
    }
    Ok(None)
}

fn describe(headers: &HeaderMap, status: StatusCode) -> Announced {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let tag = text("x-linked-etag").or_else(|| text(ETAG.as_str())).unwrap_or_default();
    let tag = tag.trim_start_matches("W/").trim_matches('"').to_owned();
    let whole = text(CONTENT_RANGE.as_str()).and_then(|range| range.rsplit_once('/')).map(|(_, whole)| whole);
    let length = text(CONTENT_LENGTH.as_str()).filter(|_| status == StatusCode::OK);
    let bytes = text("x-linked-size").or(whole).or(length).and_then(|bytes| bytes.parse().ok());
    Announced { tag, bytes }
}

/// Where a partial answer begins.
fn begin_of(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// The address that a redirect names, never one that is less protected.
fn redirected(from: &Uri, to: &str) -> Option<Uri> {
    let uri: Uri = match to.strip_prefix('/') {
        Some(path) => format!("{}://{}/{path}", from.scheme_str()?, from.authority()?).parse().ok()?,
        None => to.parse().ok()?,
    };
    (from.scheme() == uri.scheme() || uri.scheme_str() == Some("https")).then_some(uri)
}

/// The files that an index names, all beside it.
fn shards(index: &str) -> anyhow::Result<Vec<String>> {
    let index: serde_json::Value = serde_json::from_str(index)?;
    let map = index.get("weight_map").and_then(serde_json::Value::as_object).context("the index names no weights")?;
    let mut names: Vec<String> = map.values().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    names.sort_unstable();
    names.dedup();
    let is_plain = |name: &String| name.ends_with(".safetensors") && !name.contains(['/', '\\', '?', '#', '%']);
    if names.is_empty() || names.len() > SHARDS_MAX || !names.iter().all(is_plain) {
        bail!("the index names impossible files");
    }
    Ok(names)
}

fn token() -> anyhow::Result<Option<http::HeaderValue>> {
    let Ok(token) = std::env::var("HF_TOKEN") else { return Ok(None) };
    let value = http::HeaderValue::from_str(&format!("Bearer {}", token.trim()));
    let mut value = value.map_err(|_| anyhow!("HF_TOKEN has characters that no header may hold"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn shown(name: &str, bytes: u64, announced: &Announced) -> String {
    let whole = announced.bytes.map(|whole| format!(" of {}", whole / 1_000_000)).unwrap_or_default();
    format!("{name}: {}{whole} MB", bytes / 1_000_000)
}

fn beside(place: &Path, ending: &str) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

fn no_such_file(name: &str) -> anyhow::Error {
    anyhow!("the hub has no file `{name}` there")
}

#[cfg(test)]
mod tests;
