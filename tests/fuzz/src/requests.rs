//! What clients send: JSON, chat requests with their headers, and requests to the admin address.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use postern::admin::guard::{Access, check_origin};
use postern::config::{self, Config};
use postern::open::OpenedRequest;
use postern::redact;
use postern::request::{ParsedRequest, Peer};
use postern_wire::call::Endpoint;
use postern_wire::json::{self as strict, Limits};
use serde_json::Value;

/// Longer bodies show nothing new.
const MAX_BYTES: usize = 256 << 10;

pub(crate) fn json(bytes: &[u8]) -> bool {
    let limits = Limits { depth: 16, values: 10_000 };
    let Ok(tree) = strict::parse(bytes, &limits) else { return false };
    let tree = Value::from(tree);
    assert!(depth(&tree) <= limits.depth && values(&tree) <= limits.values);
    let again = strict::written(&tree);
    assert_eq!(
        strict::parse(&again, &limits).map(Value::from).as_ref(),
        Ok(&tree),
        "what is sent on is what was looked at"
    );
    let generous: Value = serde_json::from_slice(bytes).expect("whoever reads JSON reads this");
    assert_eq!(keys(&generous), keys(&tree), "another reader sees other members");
    true
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn values(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(values).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(|value| 1 + values(value)).sum::<usize>(),
        _ => 1,
    }
}

fn keys(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(keys).collect(),
        Value::Object(members) => {
            members.iter().flat_map(|(key, value)| std::iter::once(key.clone()).chain(keys(value))).collect()
        }
        _ => Vec::new(),
    }
}

pub(crate) fn json_seeds() -> Result<Vec<Vec<u8>>> {
    let texts = [
        r#"{"a": [1, -2.5e3, true, null, "\u00e9\n"], "b": {"c": {}}}"#,
        r#"{"a": 1, "a": 2}"#,
        "[18446744073709551615, -9223372036854775808, 0.1, 1e308]",
    ];
    Ok(texts.map(|text| text.as_bytes().to_vec()).into())
}

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let text = "
listen: 127.0.0.1:0
admin: 127.0.0.1:0
state_dir: state
trust: {domain: fuzz.test}
identities: [{match: 'spiffe://fuzz.test/*', floor: internal}]
engine: {model: smollm2-135m-instruct, models: [chat]}
";
    config::parse(text, Path::new("postern.yaml")).expect("the configuration")
});

/// Lines of headers, an empty line, a body.
fn split(bytes: &[u8]) -> (HeaderMap, &[u8]) {
    let mut headers = HeaderMap::new();
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value.trim_ascii())) {
            headers.append(name, value);
        }
    }
    (headers, rest)
}

pub(crate) fn call(bytes: &[u8]) -> bool {
    Endpoint::ALL.map(|endpoint| call_to(endpoint, bytes)).contains(&true)
}

fn call_to(endpoint: Endpoint, bytes: &[u8]) -> bool {
    if bytes.len() > MAX_BYTES {
        return false;
    }
    let (headers, body) = split(bytes);
    let peer = Peer::resolve(&CONFIG, &"spiffe://fuzz.test/clerk".parse().unwrap()).unwrap();
    let marked = headers.contains_key("postern-label");
    let Ok(opened) = OpenedRequest::new(headers, Bytes::copy_from_slice(body)) else { return false };
    let Ok(request) = ParsedRequest::parse(&CONFIG, peer, endpoint, &opened) else { return false };
    assert_eq!(request.marks.label.is_some(), marked, "a label was overheard");
    let call = &request.call;
    assert!(CONFIG.knows_model(call.model()));
    assert_eq!((1..=16).contains(&call.choices()), endpoint != Endpoint::Embeddings);
    let segments = redact::segments(call.body());
    assert!(segments.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert!(call.estimated_prompt_tokens() <= body.len() as u64 + 2);
    assert_eq!(call.message_shapes().len(), call.message_texts(call.body()).len());
    true
}

pub(crate) fn call_seeds() -> Result<Vec<Vec<u8>>> {
    let head = "content-type: application/json\npostern-label: confidential\npostern-placement: local\n\n";
    let bodies = [
        r#"{"model":"chat","messages":[{"role":"user","content":"Hello, amy@example.org"}],"stream":true}"#,
        r#"{"model":"chat","messages":[{"role":"system","content":[{"type":"text","text":"x"}]},{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}],"content":null},{"role":"tool","tool_call_id":"1","content":"y"}],"n":2,"stop":["a"],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"temperature":0.5,"max_tokens":5}"#,
        r#"{"model":"chat","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,x"}}]}],"previous_response_id":"r"}"#,
        r#"{"model":"chat","input":["Hello, amy@example.org","四"],"encoding_format":"base64","dimensions":3}"#,
        r#"{"model":"chat","prompt":["Once"],"suffix":"x","stream":true,"n":2}"#,
    ];
    Ok(bodies.iter().map(|body| format!("{head}{body}").into_bytes()).collect())
}

pub(crate) fn origin(bytes: &[u8]) -> bool {
    let (headers, _) = split(bytes);
    if check_origin(Access::Loopback, &Method::POST, &headers, None, &["ai.fuzz.test".to_owned()]).is_err() {
        return false;
    }
    let host = headers["host"].to_str().unwrap().to_ascii_lowercase();
    assert!(["localhost", "127.", "[", "::1"].iter().any(|begin| host.starts_with(begin)), "{host} leads elsewhere");
    if let Some(origin) = headers.get("origin") {
        let origin = origin.to_str().unwrap().to_ascii_lowercase();
        assert_eq!(origin.split_once("://").unwrap().1, host, "a page of another origin");
    }
    true
}

pub(crate) fn origin_seeds() -> Result<Vec<Vec<u8>>> {
    let texts = [
        "host: 127.0.0.1:9443\norigin: http://127.0.0.1:9443\n",
        "host: [::1]:9443\nsec-fetch-site: same-origin\n",
        "host: evil.example\n",
        "host: localhost\nhost: localhost\n",
    ];
    Ok(texts.map(|text| text.as_bytes().to_vec()).into())
}
