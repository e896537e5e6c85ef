//! How often two questions share an answer that should, and that should not; with the real model, on the questions in `labelled`.

use std::collections::{HashMap, HashSet};

use postern_engine::{DeviceChoice, Embedder, catalog};

use super::guard;
use super::vector::Vector;

const MODEL: &str = "all-minilm-l6-v2";
const PARTS: [(&str, &str); 3] = [
    ("tuned", include_str!("labelled/tuned.txt")),
    ("held out", include_str!("labelled/held-out.txt")),
    ("found by attack", include_str!("labelled/found-by-attack.txt")),
];
const THRESHOLDS: [f32; 4] = [0.98, 0.95, 0.9, 0.85];

/// Two questions, and whether they have the same answer.
struct Pair<'a> {
    one: &'a str,
    other: &'a str,
    same: bool,
}

/// Groups are apart by an empty line; a near miss begins with what makes the difference.
fn pairs(text: &str) -> Vec<Pair<'_>> {
    let mut all = Vec::new();
    for group in text.trim().split("\n\n") {
        let (first, others) = group.split_once('\n').unwrap();
        let one = first.strip_prefix("= ").unwrap();
        all.extend(others.lines().map(|line| match line.strip_prefix("+ ") {
            Some(other) => Pair { one, other, same: true },
            None => Pair { one, other: line.strip_prefix("- [").unwrap().split_once("] ").unwrap().1, same: false },
        }));
    }
    all
}

/// Of pairs that share an answer: those that should, and that should not.
fn shared(pairs: &[Pair<'_>], shares: impl Fn(&Pair<'_>) -> bool) -> (usize, usize) {
    let shared = pairs.iter().filter(|pair| shares(pair));
    shared.fold((0, 0), |(right, wrong), pair| if pair.same { (right + 1, wrong) } else { (right, wrong + 1) })
}

/// What ends so is of the request itself, and all else is what somebody wrote.
fn reading(text: &str) -> Option<String> {
    guard::reading(text, |placeholder| placeholder.ends_with("_k3f9q2ab]"))
}

fn have_one_reading(pair: &Pair<'_>) -> bool {
    reading(pair.one).is_some_and(|one| reading(pair.other) == Some(one))
}

#[test]
fn the_sets_are_as_large_as_is_said() {
    let all: Vec<Pair<'_>> = PARTS.iter().flat_map(|(_, text)| pairs(text)).collect();
    let same = all.iter().filter(|pair| pair.same).count();
    assert!(same >= 200 && all.len() - same >= 300, "{same} of {}", all.len());
}

#[test]
fn no_two_groups_have_a_reading_in_common() {
    let mut readings: HashMap<String, &str> = HashMap::new();
    for (_, text) in PARTS {
        for group in text.trim().split("\n\n") {
            let name = group.lines().next().unwrap();
            let own = group
                .lines()
                .filter_map(|line| line.strip_prefix("= ").or(line.strip_prefix("+ ")))
                .filter_map(reading);
            for reading in own.collect::<HashSet<_>>() {
                assert_eq!(readings.insert(reading, name), None, "{name}");
            }
        }
    }
}

#[test]
fn precision_is_at_least_099_with_the_real_model() {
    let path = catalog::locate(MODEL).expect("`postern model pull all-minilm-l6-v2` fetches the model");
    let embedder = Embedder::load(&path, MODEL, DeviceChoice::Cpu).unwrap();
    let mut vectors: HashMap<&str, Vector> = HashMap::new();
    for pair in PARTS.iter().flat_map(|(_, text)| pairs(text)) {
        for text in [pair.one, pair.other] {
            vectors.entry(text).or_insert_with(|| {
                let numbers = embedder.vectors(&[guard::without_suffixes(text)]).unwrap().remove(0);
                Vector::of(&numbers)
            });
        }
    }
    let near = |pair: &Pair<'_>, threshold| vectors[pair.one].nearness(&vectors[pair.other]) >= threshold;
    eprintln!(
        "| questions | threshold | same answer: shared | other answer: shared | precision | recall | without the guard: precision | recall |"
    );
    for (part, text) in PARTS {
        let pairs = pairs(text);
        let same = pairs.iter().filter(|pair| pair.same).count();
        for threshold in THRESHOLDS {
            let (right, wrong) = shared(&pairs, |pair| have_one_reading(pair) && near(pair, threshold));
            let (bare_right, bare_wrong) = shared(&pairs, |pair| near(pair, threshold));
            let precision = |right: usize, wrong: usize| right as f64 / (right + wrong).max(1) as f64;
            let recall = |right: usize| right as f64 / same as f64;
            eprintln!(
                "| {part} | {threshold} | {right} of {same} | {wrong} of {} | {:.3} | {:.2} | {:.3} | {:.2} |",
                pairs.len() - same,
                precision(right, wrong),
                recall(right),
                precision(bare_right, bare_wrong),
                recall(bare_right),
            );
            assert!(
                right > 0 && precision(right, wrong) >= 0.99,
                "{part} at {threshold}: {right} right, {wrong} wrong"
            );
            // The guard is what makes the difference: vectors alone are wrong often enough for this to be a test.
            assert!(precision(bare_right, bare_wrong) < 0.9, "{part} at {threshold}");
        }
    }
}
