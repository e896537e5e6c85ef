//! `postern model`, and an engine that makes vectors of texts: the real program, with tiny models of random weights.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_tests::postern::binary;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::SOON;

fn oracles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../local-engine/tests/oracles")
}

/// A hub that has one file, and gives only `first_bytes` of it to the first who asks.
fn hub(path: &'static str, content: Vec<u8>, first_bytes: usize) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        let mut give = first_bytes;
        for stream in listener.incoming().flatten() {
            // Whoever breaks off is the program under test.
            let _ended = answer(stream, path, &content, give);
            give = usize::MAX;
        }
    });
    Ok(endpoint)
}

fn answer(mut stream: TcpStream, path: &str, content: &[u8], give: usize) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut begin = 0;
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            begin = range.trim_end_matches('-').parse().unwrap_or(0);
        }
    }
    if request.split(' ').nth(1) != Some(path) {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let (all, length) = (content.len(), content.len() - begin);
    let status = if begin > 0 { "206 Partial Content" } else { "200 OK" };
    let range = if begin > 0 { format!("content-range: bytes {begin}-{}/{all}\r\n", all - 1) } else { String::new() };
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\netag: \"v1\"\r\n{range}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&content[begin..begin.saturating_add(give).min(all)])
}

fn model(cache: &Path, hub: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.arg("model").args(arguments).env("POSTERN_CACHE", cache).env("HF_ENDPOINT", hub).env_remove("HF_TOKEN");
    Ok(command.output()?)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_model_of_a_hub_is_fetched_in_two_goes_told_of_and_measured() -> Result<()> {
    tokio::task::spawn_blocking(|| -> Result<()> {
        let (cache, content) = (tempfile::tempdir()?, std::fs::read(oracles().join("qwen3.gguf"))?);
        let hub = hub("/them/tiny/resolve/main/qwen3.gguf", content.clone(), content.len() / 3)?;
        let name = "hf:them/tiny/qwen3.gguf";
        let run = |arguments: &[&str]| model(cache.path(), &hub, arguments);
        let missing = run(&["inspect", name])?;
        assert!(!missing.status.success() && said(&missing).contains("postern model pull"), "{missing:?}");
        let pulled = run(&["pull", name])?;
        assert!(pulled.status.success(), "{pulled:?}");
        let file = cache.path().join("models/hf/them--tiny/qwen3.gguf");
        assert!(std::fs::read(&file)? == content, "the very same bytes");
        let list = run(&["list"])?;
        assert!(
            said(&list).contains(name) && said(&list).contains("not here; `postern model pull gemma-3-270m`"),
            "{list:?}"
        );
        let inspected = run(&["inspect", name])?;
        // Its tokenizer has never been one: it was made to be computed only.
        for line in
            ["architecture: qwen3", "block_count: ", "weights: ", "the engine cannot run it", "it has no merges"]
        {
            assert!(!inspected.status.success() && said(&inspected).contains(line), "{line}: {inspected:?}");
        }
        let measured = run(&["bench", "--cpu", name])?;
        for line in ["prompt of ", "answers, 1 at a time: ", "answers, 32 at a time: "] {
            assert!(measured.status.success() && said(&measured).contains(line), "{line}: {measured:?}");
        }
        std::fs::write(&file, &content[..content.len() - 5000])?;
        let cut = run(&["inspect", name])?;
        assert!(!cut.status.success() && said(&cut).contains("is it cut short?"), "{cut:?}");
        let unknown = run(&["pull", "hf:them/tiny/other.gguf"])?;
        assert!(!unknown.status.success() && said(&unknown).contains("no file `other.gguf`"), "{unknown:?}");
        Ok(())
    })
    .await?
}

#[tokio::test]
async fn a_folder_with_a_pipe_in_it_is_refused_and_not_waited_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(oracles().join("llama").join(name), folder.path().join(name))?;
    }
    for name in ["tokenizer_config.json", "tokenizer.json"] {
        let made = Command::new("mkfifo").arg(folder.path().join(name)).status()?;
        assert!(made.success(), "mkfifo: {made}");
    }
    let mut inspecting = tokio::process::Command::new(binary()?);
    inspecting.args(["model", "inspect"]).arg(folder.path()).kill_on_drop(true);
    let said = tokio::time::timeout(SOON, inspecting.output()).await.context("it waits for somebody to write")??;
    let words = [said.stdout, said.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    assert!(words.contains("it has no tokenizer"), "{words}");
    Ok(())
}

/// The tiny encoder, with a tokenizer of its 96 tokens: some special ones, then words `w5`, `w6`, …
pub(crate) fn encoder(folder: &Path) -> Result<()> {
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(oracles().join("bert").join(name), folder.join(name))?;
    }
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let added = |(id, text): (usize, &&str)| {
        json!({
            "id": id, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false,
        })
    };
    let words = special.iter().map(|text| (*text).to_owned()).chain((special.len()..96).map(|id| format!("w{id}")));
    let vocabulary: serde_json::Map<String, Value> = words.enumerate().map(|(id, word)| (word, json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": special.iter().enumerate().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    Ok(())
}

async fn embed(engine: &mut SendRequest<Full<Bytes>>, body: &Value) -> Result<(u16, Value)> {
    let request = http::Request::post("http://engine/v1/embeddings").body(Full::new(Bytes::from(body.to_string())))?;
    let response = engine.send_request(request).await?;
    let status = response.status().as_u16();
    Ok((status, serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?))
}

#[tokio::test]
async fn an_engine_with_an_encoder_makes_vectors_of_texts() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("pt").tempdir()?;
    let tiny = folder.path().join("tiny");
    std::fs::create_dir(&tiny)?;
    encoder(&tiny)?;
    let socket = folder.path().join("engine.sock");
    let listener = UnixListener::bind(&socket)?;
    let mut command = tokio::process::Command::new(binary()?);
    command.arg("engine").arg("--model").arg(&tiny).arg("--connect").arg(&socket).args(["--device", "cpu"]);
    let mut child = command.kill_on_drop(true).spawn()?;
    let (stream, _) = tokio::time::timeout(SOON, listener.accept()).await.context("the engine did not dial")??;
    let (mut engine, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let (status, both) = embed(&mut engine, &json!({"model": "tiny", "input": ["w5 w6", "w7"]})).await?;
    assert_eq!((status, &both["usage"]["total_tokens"]), (200, &json!(4 + 3)), "{both}");
    let (_, one) = embed(&mut engine, &json!({"model": "tiny", "input": "w7"})).await?;
    assert_eq!(both["data"][1]["embedding"], one["data"][0]["embedding"]);
    let vector: Vec<f64> = serde_json::from_value(one["data"][0]["embedding"].clone())?;
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!(vector.len() == 32 && (length - 1.0).abs() < 1e-4, "{length}");
    let (status, long) = embed(&mut engine, &json!({"model": "tiny", "input": "w7 ".repeat(100)})).await?;
    assert_eq!((status, &long["error"]["code"]), (400, &json!("context_length_exceeded")), "{long}");
    let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)).context("it has ended")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    drop(engine);
    connection.abort();
    assert!(tokio::time::timeout(SOON, child.wait()).await??.success());
    Ok(())
}
