//! How `redact-core` does on the same corpus, counted in the same way.
//!
//! ```text
//! CORPUS=/tmp/corpus.jsonl cargo test --release -p postern-plugins --test recognisers
//! cargo run --release --manifest-path plugins/host/tests/recognisers/peer/Cargo.toml -- /tmp/corpus.jsonl
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use redact_core::{AnalyzerEngine, EntityType};
use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    set: String,
    evasion: String,
    text: String,
    values: Vec<Value>,
}

#[derive(Deserialize)]
struct Value {
    kind: String,
    start: usize,
    end: usize,
}

#[derive(Default, Clone, Copy)]
struct Score {
    there: usize,
    covered: usize,
    found: usize,
    right: usize,
}

/// What Postern calls it. `None`: dates, names of hosts and the like, which nobody labelled.
fn kind(entity: &EntityType) -> Option<&'static str> {
    Some(match entity {
        EntityType::EmailAddress => "email",
        EntityType::PhoneNumber | EntityType::UkPhoneNumber | EntityType::UkMobileNumber => "phone",
        EntityType::CreditCard => "bank-card",
        EntityType::Iban | EntityType::IbanCode => "iban",
        EntityType::IpAddress => "ip",
        EntityType::MacAddress => "mac",
        EntityType::PassportNumber | EntityType::UsPassport | EntityType::UkPassportNumber => "passport",
        EntityType::DatabaseConnectionString | EntityType::HttpBasicAuth => "url-credentials",
        EntityType::PrivateKey
        | EntityType::JwtToken
        | EntityType::AwsAccessKey
        | EntityType::GithubToken
        | EntityType::GitlabToken
        | EntityType::SlackToken
        | EntityType::SlackWebhook
        | EntityType::StripeApiKey
        | EntityType::GoogleApiKey
        | EntityType::OpenAiApiKey
        | EntityType::AnthropicApiKey
        | EntityType::NpmToken
        | EntityType::PyPiToken
        | EntityType::SendGridApiKey
        | EntityType::TwilioApiKey
        | EntityType::TelegramBotToken
        | EntityType::HashicorpVaultToken
        | EntityType::HuggingFaceToken
        | EntityType::DatabricksToken
        | EntityType::DigitalOceanToken
        | EntityType::NotionApiKey
        | EntityType::PerplexityApiKey
        | EntityType::GenericSecret => "secret",
        _ => return None,
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("usage: recognisers-peer CORPUS.jsonl")?;
    let engine = AnalyzerEngine::new();
    let mut scores: BTreeMap<(String, String), Score> = BTreeMap::new();
    let mut false_finds: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in std::fs::read_to_string(file)?.lines() {
        let Line { set, evasion, text, values } = serde_json::from_str(line)?;
        let started = Instant::now();
        let found = engine.analyze(&text, None)?.detected_entities;
        if set == "prose" {
            let (bytes, took) = (text.len(), started.elapsed());
            eprintln!("{set}: {bytes} bytes, {:.0} µs a KB", took.as_secs_f64() * 1e6 / (bytes as f64 / 1024.0));
        }
        let found: Vec<_> = found.iter().filter_map(|hit| Some((kind(&hit.entity_type)?, hit.start..hit.end))).collect();
        for value in &values {
            let score = scores.entry((value.kind.clone(), evasion.clone())).or_default();
            score.there += 1;
            score.covered += usize::from((value.start..value.end).all(|byte| found.iter().any(|(_, find)| find.contains(&byte))));
        }
        for (of, find) in &found {
            if set == "prose" || set == "code" {
                *false_finds.entry(((*of).to_owned(), set.clone())).or_default() += 1;
                continue;
            }
            let score = scores.entry(((*of).to_owned(), evasion.clone())).or_default();
            score.found += 1;
            let right = |value: &Value| value.kind == *of && value.start < find.end && find.start < value.end;
            score.right += usize::from(values.iter().any(right));
        }
    }
    println!("| kind | precision | recall | false, prose | false, code | full-width | invisible | signs | letters |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let percent = |part: usize, whole: usize| {
        if whole == 0 { "–".to_owned() } else { format!("{:.1}", (part as f64 / whole as f64 * 1000.0).floor() / 10.0) }
    };
    let kinds: std::collections::BTreeSet<&String> = scores.keys().map(|(kind, _)| kind).collect();
    for kind in kinds {
        let of = |evasion: &str| scores.get(&(kind.clone(), evasion.to_owned())).copied().unwrap_or_default();
        let plain = of("none");
        let wrong = |set: &str| false_finds.get(&(kind.clone(), set.to_owned())).copied().unwrap_or(0);
        let evaded: Vec<String> = ["wide", "invisible", "signs", "letters"]
            .into_iter()
            .map(|evasion| percent(of(evasion).covered, of(evasion).there))
            .collect();
        println!(
            "| `{kind}` | {} | {} | {} | {} | {} |",
            percent(plain.right, plain.found),
            percent(plain.covered, plain.there),
            wrong("prose"),
            wrong("code"),
            evaded.join(" | ")
        );
    }
    Ok(())
}
