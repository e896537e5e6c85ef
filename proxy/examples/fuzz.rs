//! Feeds the parsers of foreign bytes with broken input, and looks for panics, for calls that take too long, and for answers
//! that contradict each other. `make fuzz` runs it; `fuzz [--seconds N] [--seed S] [PARSER …]`.
//!
//! Inputs are good ones that were changed, as many as there is time for; with the same seed they are the same. It knows nothing of
//! the paths that an input takes: what it does not find may be there all the same.
#![allow(clippy::print_stdout, reason = "it is run by a person, who reads along")]

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use postern::classify::Conversation;
use postern::keys::Keys;
use postern::redact::restore::Restorer;
use postern::redact::vault::{Suffix, Vault};
use postern_certs::spiffe::Pattern;
use postern_certs::{
    Authority, AuthorityOptions, JoinToken, LeafRequest, PathPrefix, Role, SpiffeId, material, verify,
};
use postern_plugins::detectors::{self, Kind};
use postern_text::Readings;
use postern_wire::{chat::ChatRequest, json, sse};
use rustls::pki_types::CertificateDer;

/// For each parser, if nothing else is asked for.
const SECONDS: u64 = 60;
/// One call must not take longer, on a machine that is busy with something else.
const MAX_CALL: Duration = Duration::from_secs(2);
/// Bytes of an input.
const MAX_INPUT: usize = 16 << 10;
/// Changes of one input.
const MAX_CHANGES: u64 = 8;
/// Bytes that mean something to one parser or another.
const SPECIAL: [&[u8]; 28] = [
    b"\0",
    b"\n",
    b"\r\n",
    b"\"",
    b"\\",
    b"\\u",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"@",
    b"[EMAIL_",
    b"data:",
    b"1e999",
    b"-0",
    b"//",
    b"..",
    b"%2f",
    b"&a ",
    b"*a",
    b"\xff",
    b"\xe2\x80\x8b",
    b"\xf0\x9f\x98\x80",
    b"\xef\xbc\xa0",
    b"\x30\x82\xff\xff",
    b"\x80",
];

type Anything = Box<dyn std::error::Error>;

/// A parser: its name, good inputs, and what is done with any input.
struct Parser {
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    feed: fn(&[u8]),
}

fn main() -> Result<(), Anything> {
    let (seconds, seed, wanted) = arguments()?;
    // What is caught is told below, with its input.
    std::panic::set_hook(Box::new(|_| {}));
    for parser in parsers()?.iter().filter(|parser| wanted.is_empty() || wanted.iter().any(|name| name == parser.name))
    {
        print!("{:8} seed {seed:<20} ", parser.name);
        std::io::stdout().flush()?;
        let inputs = run(parser, Random(seed), Duration::from_secs(seconds))?;
        println!("{inputs:>10} inputs in {seconds} s: good");
    }
    Ok(())
}

fn arguments() -> Result<(u64, u64, Vec<String>), Anything> {
    let (mut seconds, mut wanted) = (SECONDS, Vec::new());
    let mut seed = std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => seconds = arguments.next().ok_or("how many seconds?")?.parse()?,
            "--seed" => seed = arguments.next().ok_or("which seed?")?.parse()?,
            _ => wanted.push(argument),
        }
    }
    Ok((seconds, seed, wanted))
}

/// The number of inputs that it was fed with, or what went wrong.
fn run(parser: &Parser, mut random: Random, time: Duration) -> Result<u64, Anything> {
    let started = Instant::now();
    let mut inputs = 0;
    while started.elapsed() < time {
        let input = random.input(&parser.corpus);
        let began = Instant::now();
        let fault = match std::panic::catch_unwind(|| (parser.feed)(&input)) {
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
            }
            Ok(()) if began.elapsed() > MAX_CALL => format!("it took {:?}", began.elapsed()),
            Ok(()) => {
                inputs += 1;
                continue;
            }
        };
        let path = std::env::temp_dir().join(format!("postern-fuzz-{}", parser.name));
        std::fs::write(&path, &input)?;
        return Err(format!("{fault}; the input is in {}", path.display()).into());
    }
    Ok(inputs)
}

/// A xorshift generator (Marsaglia 2003): the same inputs for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or(0)
    }

    fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let at = self.below(corpus.len());
        let mut input = corpus.get(at).cloned().unwrap_or_default();
        for _ in 0..=self.next() % MAX_CHANGES {
            self.change(&mut input, corpus);
            input.truncate(MAX_INPUT);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let end = (at + self.below(32)).min(input.len());
        match self.next() % 6 {
            0 => drop(input.splice(at..end, [])),
            1 => {
                let byte = self.next() as u8;
                if let Some(old) = input.get_mut(at) {
                    *old = byte;
                }
            }
            2 => {
                let special = self.below(SPECIAL.len());
                let special = SPECIAL.get(special).copied().unwrap_or_default();
                drop(input.splice(at..at, special.iter().copied()));
            }
            3 => {
                let piece: Vec<u8> = input.get(at..end).unwrap_or_default().repeat(1 + self.below(200));
                drop(input.splice(at..at, piece));
            }
            4 => {
                let other = self.below(corpus.len());
                let other = corpus.get(other).map_or(&[][..], Vec::as_slice);
                let from = self.below(other.len() + 1);
                drop(input.splice(at..end, other.iter().skip(from).take(64).copied()));
            }
            _ => input.truncate(at),
        }
    }
}

fn parsers() -> Result<Vec<Parser>, Anything> {
    let request = include_str!("../../tests/load/request.json");
    let personal = r#"{"model":"chat","n":2,"messages":[{"role":"user","content":[{"type":"text","text":
        "4111 1111 1111 1111, ann@example.org, +86 138 0013 8000 \ud83d\ude00"}]}],"x":[1.5e3,-0,null,true]}"#;
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n: note\r\nid: 7\r\ndata: b\r\ndata: c\r\n\r\ndata: [DONE]\n\n";
    let configurations = [
        include_str!("../../deploy/config/postern.yaml"),
        include_str!("../../deploy/config/minimal.yaml"),
        include_str!("../../deploy/config/offline.yaml"),
    ];
    let names =
        ["spiffe://b.example/clerk/amy", "spiffe://b.example/clerk/*", "/branch/17", "postern-join-1.eyJ9.AAAA"];
    let texts = [personal, "write to [EMAIL_7f3a] or ａｎｎ＠example．org, sk-proj-abcdefghijklmnopqrstuvwx"];
    let parser = |name, corpus: &[&str], feed| {
        let corpus = corpus.iter().map(|input| input.as_bytes().to_vec()).collect();
        Parser { name, corpus, feed }
    };
    Ok(vec![
        parser("json", &[request, personal], feed_json),
        parser("sse", &[stream], feed_sse),
        parser("config", &configurations, feed_config),
        parser("names", &names, feed_names),
        parser("text", &texts, feed_text),
        parser("restore", &texts, feed_restore),
        Parser { name: "x509", corpus: certificates()?, feed: feed_certificate },
    ])
}

/// A request's tree is written anew as what was read, and a chat request of it is refused or read.
fn feed_json(bytes: &[u8]) {
    let limits = json::Limits::default();
    let Ok(tree) = json::parse(bytes, &limits) else { return };
    let again = json::parse(tree.to_string().as_bytes(), &limits);
    assert!(again.as_ref() == Ok(&tree), "written anew it is something else: {again:?}");
    if let Ok(request) = ChatRequest::from_json(tree, 100) {
        let _counted = (request.message_shapes(), request.estimated_prompt_tokens(), request.values());
    }
}

/// The same events, wherever the stream is cut.
fn feed_sse(bytes: &[u8]) {
    let read = |size: usize| {
        let (mut decoder, mut events) = (sse::Decoder::new(4096), Vec::new());
        let ended = bytes.chunks(size).try_for_each(|piece| decoder.push(piece, &mut events));
        (events, ended)
    };
    let size = 1 + bytes.len() % 40;
    assert!(read(usize::MAX) == read(size), "in pieces of {size} it is something else");
}

fn feed_config(bytes: &[u8]) {
    let _refused = postern::config::parse(&String::from_utf8_lossy(bytes), Path::new("postern.yaml"));
}

fn feed_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = text.parse::<SpiffeId>() {
        let again = id.to_string().parse::<SpiffeId>();
        assert!(again.is_ok_and(|again| again == id), "{id} is another one when it is read again");
    }
    let _refused =
        (text.parse::<Pattern>().is_ok(), text.parse::<PathPrefix>().is_ok(), JoinToken::parse(&text).is_ok());
}

/// Whatever is found lies in the text, at the borders of characters.
fn feed_text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let readings = Readings::of(text.as_str());
    for (depth, reading) in readings.texts() {
        for found in detectors::find(&Kind::ALL, reading) {
            assert!(reading.get(found.start..found.end).is_some(), "{found:?} of {} bytes", reading.len());
            let original = readings.original(depth, found.start..found.end);
            assert!(text.get(original.clone()).is_some(), "{original:?} of {} bytes", text.len());
        }
    }
}

/// The same text comes out, wherever the stream is cut.
fn feed_restore(bytes: &[u8]) {
    let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
    vault.keep("email", "ann@example.org");
    let placeholder = vault.placeholder("email", "ann@example.org", Suffix::Wire);
    let text = String::from_utf8_lossy(bytes).replace("[EMAIL_7f3a]", &placeholder);
    let whole = Restorer::new(Suffix::Wire).whole(&vault, &text).restored;
    let (mut streamed, mut restorer) = (String::new(), Restorer::new(Suffix::Wire));
    let size = 1 + text.len() % 17;
    let characters: Vec<char> = text.chars().collect();
    for piece in characters.chunks(size) {
        streamed += &restorer.push(&vault, &piece.iter().collect::<String>()).restored;
    }
    streamed += &restorer.finish().restored;
    assert!(streamed == whole, "in pieces of {size}: {streamed:?}, not {whole:?}");
}

fn feed_certificate(bytes: &[u8]) {
    let certificate = CertificateDer::from(bytes);
    let _refused = (verify::peer(&certificate).is_ok(), verify::validity(&certificate).is_ok());
    let _refused = (material::split_certificates(bytes, 8).is_ok(), material::revocation_list(bytes.to_vec()).is_ok());
}

/// A leaf and its intermediate, in DER.
fn certificates() -> Result<Vec<Vec<u8>>, Anything> {
    let dir = tempfile::tempdir()?;
    let options = AuthorityOptions::new("b.example", Duration::from_secs(3600));
    let authority = Authority::open_or_create(&dir.path().join("authority"), options)?;
    let leaf = authority.issue(LeafRequest { id: "spiffe://b.example/clerk/amy".parse()?, role: Role::Workload })?;
    Ok(leaf.chain.iter().map(|certificate| certificate.to_vec()).collect())
}
