//! How well the recognisers do on a labelled corpus, and the table in `docs/redaction.md` that says so.
//!
//! ```text
//! WRITE=1 cargo test --release -p postern-plugins --test recognisers     # writes the table anew
//! CORPUS=corpus.jsonl cargo test --release -p postern-plugins --test recognisers    # the corpus, for other programs
//! ```
//! With `SHOW=1` and `--nocapture` every mistake is printed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::cast_precision_loss,
    reason = "a test: a panic is a failure, and counts are small"
)]

mod corpus;
mod encoded;
mod evasions;
mod random;
mod score;
mod values;

use std::fmt::Write as _;

use corpus::{Labelled, by_hand, code, evaded, made, prose};
use encoded::Written;
use evasions::Evasion;
use postern_plugins::detectors::Kind;
use score::{Score, false_finds, found_in, mistakes, score};
use serde_json::json;

const PROSE_BYTES: usize = 400 << 10;
const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/redaction.md");
const BEGIN: &str = "<!-- recognisers: made by plugins/host/tests/recognisers -->\n";
const BEGIN_ENCODED: &str = "<!-- encoded and split: made by plugins/host/tests/recognisers -->\n";
const END: &str = "<!-- end -->\n";

/// All texts without evasions: values of every kind, and what only looks like values.
fn plain_texts() -> Vec<Labelled> {
    Kind::ALL.into_iter().flat_map(made).chain(by_hand()).collect()
}

fn percent(part: f64) -> String {
    // Never rounded up to all of them.
    format!("{:.1}", (part * 1000.0).floor() / 10.0)
}

fn table() -> String {
    let mut table = "| kind | values | precision | recall | false, prose | false, code | full-width | invisible | signs | letters |\n\
                     | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    let (texts, prose) = (plain_texts(), prose(PROSE_BYTES));
    let mut names = Kind::ALL;
    names.sort_by_key(|kind| kind.name());
    for kind in names {
        let plain @ Score { there, .. } = score(kind, &texts);
        let evaded = Evasion::ALL.map(|evasion| {
            let texts = evaded(&found_in(kind, made(kind)), evasion);
            if texts.is_empty() { "–".to_owned() } else { percent(score(kind, &texts).recall()) }
        });
        let (precision, recall) = (percent(plain.precision()), percent(plain.recall()));
        let (in_prose, in_code) = (false_finds(kind, &prose), false_finds(kind, code()));
        let _ = writeln!(
            table,
            "| `{}` | {there} | {precision} | {recall} | {in_prose} | {in_code} | {} |",
            kind.name(),
            evaded.join(" | ")
        );
    }
    table
}

fn table_encoded() -> String {
    let mut table = "| kind | values | split | base64 | all in base64 | percent | false, decoded | false, split |\n\
                     | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    let prose = prose(PROSE_BYTES);
    let mut names = Kind::ALL;
    names.sort_by_key(|kind| kind.name());
    for kind in names {
        let texts = found_in(kind, made(kind));
        let recalls = Written::ALL.map(|written| {
            let (there, found) = encoded::recall(written, &texts);
            percent(found as f64 / there.max(1) as f64)
        });
        let [decoded, split] = [prose.as_str(), code()]
            .map(|text| encoded::false_finds(kind, text))
            .into_iter()
            .fold([0, 0], |[one, two], [more, most]| [one + more, two + most]);
        let _ =
            writeln!(table, "| `{}` | {} | {} | {decoded} | {split} |", kind.name(), texts.len(), recalls.join(" | "));
    }
    table
}

#[test]
fn the_tables_say_how_it_is() {
    for (begin, table) in [(BEGIN, table()), (BEGIN_ENCODED, table_encoded())] {
        let page = std::fs::read_to_string(TABLE).unwrap();
        let (before, rest) = page.split_once(begin).unwrap();
        let (written, after) = rest.split_once(END).unwrap();
        if std::env::var_os("WRITE").is_some() {
            std::fs::write(TABLE, format!("{before}{begin}{table}{END}{after}")).unwrap();
        } else {
            assert_eq!(written, table, "docs/redaction.md says something else; write it anew with WRITE=1");
        }
    }
}

/// At every beginning of every text: what is found before the byte from which on it may change is found in the whole text as well.
#[test]
fn what_is_settled_stays_in_the_corpus() {
    use postern_plugins::detectors::{find, find_begun};
    let made = Kind::ALL.into_iter().flat_map(|kind| made(kind).into_iter().step_by(4));
    for Labelled { text, .. } in made.chain(by_hand()) {
        let whole = find(&Kind::ALL, &text);
        for (end, _) in text.char_indices().skip(1) {
            let begun = &text[..end];
            let (found, open) = find_begun(&Kind::ALL, &postern_text::Plain::of(begun));
            let open = open.unwrap_or(end).min(postern_text::unsettled(begun).unwrap_or(end));
            let before = |found: &[postern_plugins::detectors::Match]| {
                found.iter().filter(|hit| hit.start < open).copied().collect::<Vec<_>>()
            };
            assert_eq!(before(&found), before(&whole), "{begun:?} is settled up to {open}, of {text:?}");
        }
    }
}

#[test]
fn values_are_found_and_nothing_else() {
    let texts = plain_texts();
    if std::env::var_os("SHOW").is_some() {
        eprintln!("{}", mistakes(&texts).join("\n"));
    }
    let prose = prose(PROSE_BYTES);
    for kind in Kind::ALL {
        let score = score(kind, &texts);
        // One in ten or so of some kinds is written so that nothing tells it: `values.rs` says which.
        assert!(score.recall() >= 0.8 && score.precision() >= 0.98, "{} {score:?}", kind.name());
        assert_eq!(false_finds(kind, code()), 0, "{}", kind.name());
        assert!(false_finds(kind, &prose) <= 5, "{}: {}", kind.name(), false_finds(kind, &prose));
    }
    let wrong = mistakes(&by_hand());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn evasions_hide_nothing() {
    for kind in Kind::ALL {
        for evasion in Evasion::ALL {
            let texts = evaded(&found_in(kind, made(kind)), evasion);
            let score = score(kind, &texts);
            if std::env::var_os("SHOW").is_some() {
                eprintln!("{evasion:?} {}", mistakes(&texts).join("\n"));
            }
            assert!(texts.is_empty() || score.recall() >= 0.95, "{} {evasion:?} {score:?}", kind.name());
        }
    }
}

/// For others than Postern, and for people.
#[test]
fn the_corpus_can_be_written() {
    let Some(file) = std::env::var_os("CORPUS") else { return };
    let mut lines = String::new();
    let mut write = |kind: &str, evasion: &str, texts: &[Labelled]| {
        for Labelled { text, values } in texts {
            let values: Vec<_> = values
                .iter()
                .map(|(kind, value)| json!({"kind": kind.name(), "start": value.start, "end": value.end}))
                .collect();
            let _ = writeln!(lines, "{}", json!({"set": kind, "evasion": evasion, "text": text, "values": values}));
        }
    };
    for kind in Kind::ALL {
        write(kind.name(), "none", &made(kind));
        for evasion in Evasion::ALL {
            write(kind.name(), &format!("{evasion:?}").to_lowercase(), &evaded(&found_in(kind, made(kind)), evasion));
        }
    }
    write("by-hand", "none", &by_hand());
    let nothing = |text: &str| Labelled { text: text.to_owned(), values: Vec::new() };
    write("prose", "none", &[nothing(&prose(PROSE_BYTES))]);
    write("code", "none", &[nothing(code())]);
    std::fs::write(file, lines).unwrap();
}
