//! What sealing costs one core: GB/s of bodies, and nanoseconds of a token. `cargo run --release -p postern-sealed --example cost`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example says what it measured, and fails loudly")]

use std::hint::black_box;
use std::time::Instant;

use postern_sealed::chunked::{RequestOpener, RequestSealer, ResponseSealer};
use postern_sealed::{Keys, PublicConfig, SecretKey, binary, ehbp};

const ROUNDS: usize = 7;
const BODY: usize = 8 << 20;
const TOKENS: usize = 20_000;
/// An event with one token, as it is streamed.
const EVENT: usize = 230;

/// The median of what `measure` gives.
fn median(mut measure: impl FnMut() -> f64) -> f64 {
    let mut all: Vec<f64> = (0..ROUNDS).map(|_| measure()).collect();
    all.sort_by(f64::total_cmp);
    all.get(ROUNDS / 2).copied().unwrap_or_default()
}

fn seconds(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

fn main() {
    let mut rng = rand::rng();
    let keys = Keys::new(vec![SecretKey::generate(1, &mut rng)]);
    let config = PublicConfig::from_list(&keys.list()).unwrap();
    let body = vec![b'x'; BODY];
    let gigabytes = |seconds: f64| BODY as f64 / seconds / 1e9;

    let sealed = |rng: &mut _| {
        let mut out = Vec::with_capacity(BODY + (BODY >> 8));
        let (mut sealer, response) = RequestSealer::begin(&config, rng, &mut out).unwrap();
        sealer.push(&body, &mut out).unwrap();
        sealer.finish(&mut out).unwrap();
        (out, response)
    };
    let seal = median(|| seconds(|| drop(black_box(sealed(&mut rand::rng())))));
    println!("seal a request's body:    {:.2} GB/s", gigabytes(seal));
    let (request, _) = sealed(&mut rng);
    let open = median(|| {
        let mut plain = Vec::with_capacity(BODY);
        seconds(|| {
            let mut opener = RequestOpener::new(keys.clone());
            for piece in request.chunks(16 << 10) {
                opener.push(piece, &mut plain).unwrap();
            }
            opener.finish(&mut plain).unwrap();
        })
    });
    println!("open a request's body:    {:.2} GB/s", gigabytes(open));
    let exchange = || {
        let (mut sealed, mut plain) = (Vec::new(), Vec::new());
        let (sealer, response) = RequestSealer::begin(&config, &mut rand::rng(), &mut sealed).unwrap();
        sealer.finish(&mut sealed).unwrap();
        let mut opener = RequestOpener::new(keys.clone());
        opener.push(&sealed, &mut plain).unwrap();
        (opener.finish(&mut plain).unwrap(), response)
    };
    let once = median(|| seconds(|| drop(black_box(exchange()))));
    println!("both ends of a request:   {:.0} µs, without a body", once * 1e6);

    let event = vec![b'e'; EVENT];
    let (mut to_open, mut scratch) = (Vec::new(), Vec::new());
    let token = median(|| {
        let (exchange, _) = exchange();
        let mut out = Vec::with_capacity(512);
        let mut sealer = ResponseSealer::begin(&exchange, &mut rand::rng(), &mut out).unwrap();
        seconds(|| {
            for _ in 0..TOKENS {
                out.clear();
                scratch.clear();
                binary::put_content(&event, &mut scratch);
                sealer.push(&scratch, &mut out).unwrap();
                black_box(&out);
            }
        }) / TOKENS as f64
    });
    println!("seal a streamed token:    {:.0} ns", token * 1e9);
    let token = median(|| {
        let (exchange, mut opener) = exchange();
        to_open.clear();
        let mut pieces = Vec::new();
        let mut sealer = ResponseSealer::begin(&exchange, &mut rand::rng(), &mut to_open).unwrap();
        opener.push(&to_open, &mut Vec::new()).unwrap();
        for _ in 0..TOKENS {
            let mut piece = Vec::new();
            sealer.push(&event, &mut piece).unwrap();
            pieces.push(piece);
        }
        let mut plain = Vec::with_capacity(512);
        seconds(|| {
            for piece in &pieces {
                plain.clear();
                opener.push(piece, &mut plain).unwrap();
                black_box(&plain);
            }
        }) / TOKENS as f64
    });
    println!("open a streamed token:    {:.0} ns", token * 1e9);
    let token = median(|| {
        let (exchange, _) = exchange();
        let (mut sealer, _) = ehbp::ResponseSealer::begin(&exchange, &mut rand::rng()).unwrap();
        let mut out = Vec::with_capacity(512);
        seconds(|| {
            for _ in 0..TOKENS {
                out.clear();
                sealer.push(&event, &mut out).unwrap();
                black_box(&out);
            }
        }) / TOKENS as f64
    });
    println!("seal a token (EHBP):      {:.0} ns", token * 1e9);
}
