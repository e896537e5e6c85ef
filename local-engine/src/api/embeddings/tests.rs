use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api::embeddings_router;
use crate::options::DeviceChoice;
use crate::serve::serve_connection;

/// The tiny encoder of the oracles, with a tokenizer of its 96 tokens: some special ones, then words `w5`, `w6`, …
fn tiny() -> Arc<Embedder> {
    let (from, folder) = (crate::testing::manifest_folder().join("tests/oracles/bert"), tempfile::tempdir().unwrap());
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
    }
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let words = (special.len()..96).map(|id| (format!("w{id}"), json!(id)));
    let vocabulary: serde_json::Map<String, Value> =
        special.iter().enumerate().map(|(id, text)| ((*text).to_owned(), json!(id))).chain(words).collect();
    let added: Vec<Value> =
        special.iter().enumerate().map(|(id, text)| json!({
            "id": id, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Arc::new(Embedder::load(folder.path(), "tiny", DeviceChoice::Cpu).unwrap())
}

async fn ask(client: &mut SendRequest<Full<Bytes>>, path: &str, body: Value) -> (u16, Value) {
    let request = http::Request::post(format!("http://engine{path}")).body(Full::new(Bytes::from(body.to_string())));
    let response = client.send_request(request.unwrap()).await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
}

#[tokio::test]
async fn texts_become_vectors_in_their_order_and_whoever_asks_wrongly_is_told() {
    let embedder = tokio::task::spawn_blocking(tiny).await.unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let router = embeddings_router(Arc::clone(&embedder));
        serve_connection(theirs, router, embedder.as_ref(), &CancellationToken::new()).await;
    });
    let (mut client, connection) = handshake(TokioExecutor::new(), TokioIo::new(ours)).await.unwrap();
    tokio::spawn(connection);
    let (status, both) = ask(&mut client, "/v1/embeddings", json!({"model": "tiny", "input": ["w5 w6", "W7"]})).await;
    assert_eq!((status, &both["usage"]["prompt_tokens"]), (200, &json!(4 + 3)), "{both}");
    let (_, one) = ask(&mut client, "/v1/embeddings", json!({"model": "tiny", "input": "w7"})).await;
    assert_eq!(both["data"][1]["embedding"], one["data"][0]["embedding"]);
    assert_ne!(both["data"][0]["embedding"], one["data"][0]["embedding"]);
    assert_eq!(
        (both["data"][1]["index"].as_u64(), both["data"][1]["embedding"].as_array().unwrap().len()),
        (Some(1), 32)
    );
    let state = http::Request::get("http://engine/state").body(Full::default()).unwrap();
    let state = client.send_request(state).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&state).unwrap()["endpoints"], json!(["/embeddings"]));
    let page = http::Request::get("http://engine/metrics").body(Full::default()).unwrap();
    let page = client.send_request(page).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert!(page.starts_with(b"# HELP queue_depth") && page.ends_with(b"# EOF\n"), "{page:?}");
    let long = "w9 ".repeat(63);
    for (path, body, status, code) in [
        ("/v1/embeddings", json!({"model": "other", "input": "w7"}), 404, json!("model_not_found")),
        ("/v1/embeddings", json!({"model": "tiny", "input": long}), 400, json!("context_length_exceeded")),
        ("/v1/embeddings", json!({"model": "tiny"}), 400, Value::Null),
        ("/v1/chat/completions", json!({"model": "tiny", "messages": []}), 404, Value::Null),
        ("/v1/models", json!({}), 405, Value::Null),
    ] {
        let (found, answer) = ask(&mut client, path, body).await;
        assert_eq!((found, &answer["error"]["code"]), (status, &code), "{answer}");
    }
}

#[test]
fn base64_is_the_same_numbers_as_little_endian_floats() {
    let embedded = Embedded { vectors: vec![vec![1.0, -0.5]], tokens: 3 };
    let told = |base64| answer(base64, "m", &embedded);
    assert_eq!(told(false)["data"][0]["embedding"], json!([1.0, -0.5]));
    let bytes = BASE64.decode(told(true)["data"][0]["embedding"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(bytes, [0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf]);
    assert_eq!(told(true)["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
}

#[test]
fn inputs_are_a_text_or_some_and_nothing_else() {
    let parse = |body: Value| EmbeddingsRequest::from_json(&body, 4);
    let one = parse(json!({"model": "m", "input": "a"})).unwrap();
    assert_eq!((one.texts, one.base64), (vec!["a".to_owned()], false));
    let two = parse(json!({"model": "m", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4})).unwrap();
    assert_eq!((two.texts.len(), two.base64), (2, true));
    for (body, param) in [
        (json!({"input": "a"}), "model"),
        (json!({"model": "m"}), "input"),
        (json!({"model": "m", "input": []}), "input"),
        (json!({"model": "m", "input": ["a", ""]}), "input"),
        (json!({"model": "m", "input": [1, 2]}), "input"),
        (json!({"model": "m", "input": vec!["a"; 2049]}), "input"),
        (json!({"model": "m", "input": "a", "dimensions": 3}), "dimensions"),
        (json!({"model": "m", "input": "a", "encoding_format": "hex"}), "encoding_format"),
    ] {
        let error = parse(body).unwrap_err();
        assert!(matches!(&error, EngineError::Invalid { param: Some(found), .. } if found == param), "{error}");
    }
}
