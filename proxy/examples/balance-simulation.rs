//! The three ways to balance nodes, and taking them in turn, under the same load: a simulation with the code that decides in the
//! gateway. Prints CSV: way, requests a second, mean and 99th percentile of the time to an answer in ms.
//!
//! Three nodes answer in 380 ms on average, alone, the mission's figure; each works on eight requests at a time and slows down with each
//! beyond the first; one of them is three times slower than the others, and one is taken up by somebody else for a quarter of
//! the time. Requests come by chance (Poisson) at a mean rate; how long one takes is log-normal. What nodes say of their queues is up to two
//! seconds old; our own requests are known at once.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::indexing_slicing, reason = "a program for the documents")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use postern::config::Balance;
use postern::decide::balance::{Load, scores};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const NODES: [&str; 3] = ["oak", "elm", "ash"];
const BASE_MS: f64 = 380.0;
/// How much slower a node is.
const FACTOR: [f64; 3] = [1.0, 1.0, 3.0];
const SLOTS: usize = 8;
/// Each request beyond the first that a node works on makes all take this share longer.
const CROWD: f64 = 0.15;
/// Of 60 s the second node is slowed down for 15 s by so much.
const TAKEN_UP: f64 = 4.0;
const SAID_EVERY_MS: f64 = 2000.0;
const REQUESTS: usize = 40_000;
const FORGETS_IN_MS: f64 = 10_000.0;

#[derive(Clone, Copy, PartialEq)]
enum Way {
    InTurn,
    By(Balance),
}

#[derive(Default)]
struct Node {
    running: usize,
    line: std::collections::VecDeque<f64>,
    said_queue: f64,
    ours: f64,
    latency: Option<(f64, f64)>,
    lowest: Option<f64>,
}

impl Node {
    fn load(&self) -> Load {
        Load {
            base_ms: self.lowest,
            latency_ms: self.latency.map(|(ms, _)| ms),
            queue: self.said_queue.max(self.ours - SLOTS as f64).max(0.0).max(self.ours),
        }
    }

    fn learn(&mut self, took: f64, now: f64) {
        self.lowest = Some(self.lowest.map_or(took, |lowest| lowest.min(took)));
        self.latency = Some(match self.latency {
            Some((ms, at)) if took < ms => {
                let weight = (1.0 - (-(now - at) / FORGETS_IN_MS).exp()).max(0.2);
                (ms + weight * (took - ms), now)
            }
            _ => (took, now),
        });
    }
}

/// Time (in µs, so that it can be ordered), node, and when the request came.
type Event = Reverse<(u64, usize, u64)>;

fn simulate(way: Way, per_second: f64, seed: u64) -> Vec<f64> {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut nodes: [Node; 3] = Default::default();
    let mut ends: BinaryHeap<Event> = BinaryHeap::new();
    let (mut now, mut said_at, mut took) = (0.0, 0.0, Vec::with_capacity(REQUESTS));
    for number in 0..REQUESTS {
        now += -chance.random::<f64>().max(1e-12).ln() * 1000.0 / per_second;
        while let Some(Reverse((at, node, came))) =
            ends.peek().copied().filter(|Reverse((at, ..))| (*at as f64) < now * 1000.0)
        {
            ends.pop();
            let (at, came) = (at as f64 / 1000.0, came as f64 / 1000.0);
            took.push(at - came);
            nodes[node].learn(at - came, at);
            nodes[node].running -= 1;
            nodes[node].ours -= 1.0;
            if let Some(came) = nodes[node].line.pop_front() {
                start(&mut nodes[node], node, at, came, &mut ends, &mut chance);
            }
        }
        if now - said_at > SAID_EVERY_MS {
            said_at = now;
            nodes.iter_mut().for_each(|node| node.said_queue = node.line.len() as f64);
        }
        let node = match way {
            Way::InTurn => number % NODES.len(),
            Way::By(balance) => {
                let pool: Vec<_> = NODES.into_iter().zip(nodes.iter().map(Node::load)).collect();
                let scores = scores(balance, &pool, chance.random());
                (0..NODES.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap()
            }
        };
        nodes[node].ours += 1.0;
        if nodes[node].running < SLOTS {
            start(&mut nodes[node], node, now, now, &mut ends, &mut chance);
        } else {
            nodes[node].line.push_back(now);
        }
    }
    // The beginning, in which nothing is known of any node, is left out.
    took.drain(..took.len() / 20);
    took.sort_by(f64::total_cmp);
    took
}

fn start(node: &mut Node, at: usize, now: f64, came: f64, ends: &mut BinaryHeap<Event>, chance: &mut StdRng) {
    node.running += 1;
    let taken_up = if at == 1 && now % 60_000.0 < 15_000.0 { TAKEN_UP } else { 1.0 };
    let normal: f64 = (0..12).map(|_| chance.random::<f64>()).sum::<f64>() - 6.0;
    let spread = (0.4 * normal - 0.08).exp();
    let crowd = 1.0 + CROWD * (node.running - 1) as f64;
    let ms = BASE_MS * FACTOR[at] * taken_up * spread * crowd;
    ends.push(Reverse((((now + ms) * 1000.0) as u64, at, (came * 1000.0) as u64)));
}

fn main() {
    let ways = [
        ("in turn", Way::InTurn),
        ("federated", Way::By(Balance::Federated)),
        ("peak-ewma", Way::By(Balance::PeakEwma)),
        ("least-queue", Way::By(Balance::LeastQueue)),
    ];
    println!("way,requests_per_second,mean_ms,p99_ms");
    for (name, way) in ways {
        for per_second in [2, 4, 6, 8, 10, 12, 14, 16, 18, 20] {
            let took = simulate(way, f64::from(per_second), 7);
            let mean = took.iter().sum::<f64>() / took.len() as f64;
            let p99 = took[took.len() * 99 / 100];
            println!("{name},{per_second},{mean:.0},{p99:.0}");
        }
    }
}
