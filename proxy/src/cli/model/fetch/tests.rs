//! Against a hub on this machine that breaks off, redirects and changes its mind.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

/// A request: its path, where its range begins, and whether it had a token.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: String,
    range: Option<usize>,
    has_token: bool,
}

/// Answers every request with what `answer` writes, one connection each.
fn hub(answer: impl Fn(&Seen, usize, &mut TcpStream) + Send + 'static) -> (String, Arc<Mutex<Vec<Seen>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            let headers: Vec<String> =
                lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
            let header = |name: &str| headers.iter().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let range = header("range: bytes=").and_then(|range| range.trim_end_matches('-').parse().ok());
            let path = first.split(' ').nth(1).unwrap().to_owned();
            let request = Seen { path, range, has_token: header("authorization:").is_some() };
            log.lock().unwrap().push(request.clone());
            answer(&request, number, &mut stream);
        }
    });
    (endpoint, seen)
}

fn content() -> Vec<u8> {
    (0..200_000u32).map(|n| (n * 7 % 251) as u8).collect()
}

fn send(stream: &mut TcpStream, head: &str, body: &[u8]) {
    // Whoever breaks off on purpose does not mind.
    let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n").as_bytes());
    let _ = stream.write_all(body);
}

/// The file from where the range begins, with its tag.
fn serve(request: &Seen, stream: &mut TcpStream, content: &[u8], tag: &str, send_max: usize) {
    let begin = request.range.unwrap_or(0);
    let status = if request.range.is_some() { "206 Partial Content" } else { "200 OK" };
    let range = format!("content-range: bytes {begin}-{}/{}", content.len() - 1, content.len());
    let head = format!("{status}\r\ncontent-length: {}\r\netag: \"{tag}\"\r\n{range}", content.len() - begin);
    let end = begin.saturating_add(send_max).min(content.len());
    send(stream, &head, &content[begin..end]);
}

fn one_file() -> HubModel {
    HubModel::parse("hf:them/model/it.gguf").unwrap()
}

#[test]
fn a_download_that_breaks_off_goes_on_and_the_token_stays_at_home() {
    let digest = catalog::sha256(content().as_slice()).unwrap();
    let tag = digest.clone();
    // The other host is this machine by another name.
    let elsewhere = hub(move |request, number, stream| {
        let send_max = if number == 0 { 70_000 } else { usize::MAX };
        serve(request, stream, &content(), "other", send_max);
    });
    let target = elsewhere.0.clone();
    let home = hub(move |_, _, stream| {
        let linked = format!("x-linked-etag: \"{tag}\"\r\nx-linked-size: 200000");
        send(stream, &format!("302 Found\r\nlocation: {target}/cdn/it\r\n{linked}\r\ncontent-length: 0"), b"");
    });
    let cache = tempfile::tempdir().unwrap();
    let token = Some(http::HeaderValue::from_static("Bearer secret"));
    let mut lines = Vec::new();
    let path = fetch_from(&home.0, token, &one_file(), cache.path(), &mut |line| lines.push(line)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), content());
    assert!(lines.iter().any(|line| line.contains("going on")), "{lines:?}");
    let asked = home.1.lock().unwrap().clone();
    assert!(asked.iter().all(|seen| seen.has_token && seen.path == "/them/model/resolve/main/it.gguf"), "{asked:?}");
    let fetched = elsewhere.1.lock().unwrap().clone();
    assert_eq!(fetched.len(), 2);
    assert!(fetched.iter().all(|seen| !seen.has_token), "{fetched:?}");
    assert!(fetched[1].range.is_some_and(|begin| begin > 0 && begin <= 70_000), "{fetched:?}");
    let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    // A second pull asks nobody.
    fetch_from("http://127.0.0.1:9", None, &one_file(), cache.path(), &mut |_| {}).unwrap();
}

#[test]
fn wrong_bytes_never_become_a_model() {
    let digest = catalog::sha256(&b"something else"[..]).unwrap();
    let (endpoint, seen) = hub(move |request, _, stream| serve(request, stream, &content(), &digest, usize::MAX));
    let cache = tempfile::tempdir().unwrap();
    let error = fetch_from(&endpoint, None, &one_file(), cache.path(), &mut |_| {}).unwrap_err();
    assert!(format!("{error:#}").contains("SHA-256"), "{error:#}");
    assert!(!one_file().path_in(cache.path()).exists());
    assert_eq!(seen.lock().unwrap().len(), TRIES_MAX);
}

#[test]
fn a_file_that_changed_meanwhile_is_fetched_anew() {
    let (endpoint, seen) = hub(move |request, number, stream| {
        let (tag, send_max) = if number == 0 { ("old", 50_000) } else { ("new", usize::MAX) };
        serve(request, stream, &content(), tag, send_max);
    });
    let cache = tempfile::tempdir().unwrap();
    let path = fetch_from(&endpoint, None, &one_file(), cache.path(), &mut |_| {}).unwrap();
    assert_eq!(fs::read(path).unwrap(), content());
    let ranges: Vec<bool> = seen.lock().unwrap().iter().map(|seen| seen.range.is_some()).collect();
    assert_eq!(ranges, [false, true, false]);
}

#[test]
fn a_folder_is_there_whole_or_not_at_all() {
    let (endpoint, _) = hub(|request, _, stream| match request.path.rsplit('/').next().unwrap() {
        "config.json" | "tokenizer.json" => serve(request, stream, b"{}", "a", usize::MAX),
        "model.safetensors.index.json" => {
            let index = br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
            serve(request, stream, index, "b", usize::MAX);
        }
        "one.safetensors" | "two.safetensors" => serve(request, stream, &content(), "c", usize::MAX),
        _ => send(stream, "404 Not Found\r\ncontent-length: 0", b""),
    });
    let cache = tempfile::tempdir().unwrap();
    let model = HubModel::parse("hf:them/model").unwrap();
    let path = fetch_from(&endpoint, None, &model, cache.path(), &mut |_| {}).unwrap();
    assert_eq!(fs::read(path.join("two.safetensors")).unwrap(), content());
    assert!(path.join("config.json").is_file() && !path.join("chat_template.jinja").exists());
    assert_eq!(catalog::hub_models(cache.path()), [("hf:them/model".to_owned(), path)]);
}

#[test]
fn what_is_not_there_and_who_is_not_let_in_are_told() {
    let cache = tempfile::tempdir().unwrap();
    for (status, said) in [("404 Not Found", "no file `it.gguf`"), ("401 Unauthorized", "HF_TOKEN")] {
        let (endpoint, seen) = hub(move |_, _, stream| send(stream, &format!("{status}\r\ncontent-length: 0"), b""));
        let error = fetch_from(&endpoint, None, &one_file(), cache.path(), &mut |_| {}).unwrap_err();
        assert!(format!("{error:#}").contains(said), "{error:#}");
        assert_eq!(seen.lock().unwrap().len(), 1);
    }
}

#[test]
fn no_redirect_leads_to_less_protection_and_no_index_out_of_its_folder() {
    let from: Uri = "https://hub.example/a/b".parse().unwrap();
    assert_eq!(redirected(&from, "/c").unwrap(), "https://hub.example/c");
    assert_eq!(redirected(&from, "https://other.example/c").unwrap(), "https://other.example/c");
    assert_eq!(redirected(&from, "http://hub.example/c"), None);
    assert!(shards(r#"{"weight_map": {"a": "../../etc/x.safetensors"}}"#).is_err());
    assert!(shards(r#"{"weight_map": {}}"#).is_err());
}
