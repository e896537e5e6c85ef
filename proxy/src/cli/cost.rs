//! What answers cost: as a model of a month, and as it was by the records.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::ensure;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use time::{Date, Month};

use super::say;
use crate::audit::Records;
use crate::classify::clearance::ENGINE;
use crate::config::{self, Config, file::TargetKind};

/// Days in a month of the model.
const DAYS: f64 = 30.0;

/// What answers cost.
#[derive(Debug, Subcommand)]
pub(super) enum CostCommand {
    /// What a month would cost, in each placement alone and mixed. Needs no configuration.
    WhatIf(WhatIf),
    /// What was paid in a month, by the records: for each placement, target and identity.
    Report(Report),
}

/// The model: what requests cost by the thousand, and what a placement costs whether it is used or not.
#[derive(Debug, Args)]
pub(super) struct WhatIf {
    /// Requests a day.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    requests: u64,
    /// A thousand requests in the cloud.
    #[arg(long, value_name = "MONEY", default_value_t = 0.02)]
    cloud: f64,
    /// A thousand requests at the edge.
    #[arg(long, value_name = "MONEY", default_value_t = 0.008)]
    edge: f64,
    /// Nodes at the edge, a month.
    #[arg(long, value_name = "MONEY", default_value_t = 50.0)]
    edge_monthly: f64,
    /// The hardware of a local engine, a month.
    #[arg(long, value_name = "MONEY", default_value_t = 150.0)]
    local_hardware: f64,
    /// The operation of a local engine, a month.
    #[arg(long, value_name = "MONEY", default_value_t = 100.0)]
    local_operation: f64,
    /// Shares of requests in the cloud, at the edge and on the machine, such as 70,20,10; only their ratio counts.
    #[arg(long, value_name = "C,E,L", default_value = "70,20,10", value_parser = mix)]
    mix: [f64; 3],
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// A month of records.
#[derive(Debug, Args)]
pub(super) struct Report {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The month, such as 2026-11; absent: this one, so far. Days are those of UTC.
    #[arg(long, value_name = "YYYY-MM", value_parser = month)]
    month: Option<Date>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &CostCommand) -> anyhow::Result<()> {
    match command {
        CostCommand::WhatIf(model) => what_if(model),
        CostCommand::Report(report) => self::report(report),
    }
}

/// A month in one placement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Monthly {
    name: &'static str,
    /// Whether it is used or not.
    fixed: f64,
    /// For the requests.
    by_request: f64,
}

impl Monthly {
    fn sum(self) -> f64 {
        self.fixed + self.by_request
    }
}

impl WhatIf {
    /// Each placement alone.
    fn alone(&self) -> [Monthly; 3] {
        let thousands = self.requests as f64 * DAYS / 1e3;
        [
            Monthly { name: "cloud", fixed: 0.0, by_request: thousands * self.cloud },
            Monthly { name: "edge", fixed: self.edge_monthly, by_request: thousands * self.edge },
            Monthly { name: "local", fixed: self.local_hardware + self.local_operation, by_request: 0.0 },
        ]
    }

    /// All of them, each with its share of the requests. One without a share is not there, and costs nothing.
    fn mixed(&self) -> f64 {
        let all: f64 = self.mix.iter().sum();
        let parts = self.alone().into_iter().zip(self.mix).filter(|(_, share)| *share > 0.0);
        parts.map(|(month, share)| month.fixed + month.by_request * share / all).sum()
    }

    /// From how many requests a day on it is cheaper to have the machine than to ask the cloud; `None`: never.
    fn break_even(&self, fixed: f64, by_thousand: f64) -> Option<u64> {
        let saved = self.cloud - by_thousand;
        (saved > 0.0).then(|| (fixed / saved * 1e3 / DAYS).ceil() as u64)
    }
}

fn what_if(model: &WhatIf) -> anyhow::Result<()> {
    let amounts = [model.cloud, model.edge, model.edge_monthly, model.local_hardware, model.local_operation];
    ensure!(amounts.iter().all(|amount| amount.is_finite() && *amount >= 0.0), "amounts of money are not below 0");
    let (mixed, alone) = (model.mixed(), model.alone());
    let fixed = model.local_hardware + model.local_operation;
    let edge = model.break_even(model.edge_monthly, model.edge);
    let local = model.break_even(fixed, 0.0);
    if model.json {
        let told = serde_json::json!({
            "requests_per_day": model.requests, "days": DAYS, "alone": alone, "mix": model.mix, "mixed": mixed,
            "cheaper_than_cloud_from": {"edge": edge, "local": local},
        });
        say(&told.to_string());
        return Ok(());
    }
    say(&format!("{} requests a day, {DAYS} days", model.requests));
    say(&format!("{:<22} {:>10} {:>12} {:>10}", "all of them", "fixed", "by request", "a month"));
    for month in alone {
        let Monthly { name, fixed, by_request } = month;
        say(&format!("{name:<22} {fixed:>10.2} {by_request:>12.2} {:>10.2}", month.sum()));
    }
    let shares: Vec<String> = model.mix.iter().map(f64::to_string).collect();
    say(&format!("{:<22} {:>34.2}", format!("mixed {}", shares.join(" : ")), mixed));
    for (name, from) in [("edge", edge), ("local", local)] {
        match from {
            Some(from) => say(&format!("{name} alone is cheaper than the cloud from {from} requests a day on")),
            None => say(&format!("{name} alone is never cheaper than the cloud")),
        }
    }
    Ok(())
}

/// What is read of an outcome.
#[derive(Debug, Deserialize)]
struct Outcome {
    kind: String,
    #[serde(default)]
    identity: Option<String>,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    cache: Option<String>,
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    cost: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Sum {
    requests: u64,
    from_cache: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    cost: f64,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.requests += 1;
        self.from_cache += u64::from(matches!(outcome.cache.as_deref(), Some("exact" | "semantic" | "shared")));
        self.prompt_tokens += outcome.prompt_tokens.unwrap_or_default();
        self.completion_tokens += outcome.completion_tokens.unwrap_or_default();
        self.cost += outcome.cost.unwrap_or_default();
    }
}

#[derive(Debug, Default, Serialize)]
struct Sums {
    month: String,
    placements: BTreeMap<String, Sum>,
    targets: BTreeMap<String, Sum>,
    identities: BTreeMap<String, Sum>,
    total: Sum,
    /// Lines that could not be read.
    unreadable: u64,
}

fn report(report: &Report) -> anyhow::Result<()> {
    let config = config::load(&report.config)?;
    let this_month = || time::OffsetDateTime::now_utc().date().replace_day(1);
    let first = report.month.map_or_else(this_month, Ok)?;
    let mut sums = Sums { month: format!("{}-{:02}", first.year(), u8::from(first.month())), ..Sums::default() };
    let last = Date::from_calendar_date(first.year(), first.month(), first.month().length(first.year()))?;
    if config.audit.dir.exists() {
        let records = Records::in_folder(&config.audit.dir);
        for record in records.of_days(Some(first), Some(last))? {
            sums.add_record(&config, &record?.bytes);
        }
    }
    if report.json {
        say(&serde_json::to_string(&sums)?);
    } else {
        sums.tell();
    }
    Ok(())
}

/// Three shares.
fn mix(written: &str) -> Result<[f64; 3], &'static str> {
    const EXPECTED: &str = "expected three shares that are not below 0, and not all 0, such as 70,20,10";
    let shares: Result<Vec<f64>, _> = written.split(',').map(|share| share.trim().parse()).collect();
    let shares = <[f64; 3]>::try_from(shares.map_err(|_| EXPECTED)?).map_err(|_| EXPECTED)?;
    let good = shares.iter().all(|share| share.is_finite() && *share >= 0.0) && shares.iter().sum::<f64>() > 0.0;
    if good { Ok(shares) } else { Err(EXPECTED) }
}

/// The first day of a month.
fn month(written: &str) -> Result<Date, &'static str> {
    let date = written.split_once('-').and_then(|(year, month)| {
        let month = Month::try_from(month.parse::<u8>().ok()?).ok()?;
        Date::from_calendar_date(year.parse().ok()?, month, 1).ok()
    });
    date.ok_or("expected a month such as 2026-11")
}

impl Sums {
    fn add_record(&mut self, config: &Config, record: &[u8]) {
        match serde_json::from_slice::<Outcome>(record) {
            Ok(outcome) if outcome.kind == "outcome" => self.add(config, &outcome),
            Ok(_) => {}
            Err(_) => self.unreadable += 1,
        }
    }

    fn add(&mut self, config: &Config, outcome: &Outcome) {
        let target = outcome.target.as_deref().unwrap_or("none");
        let placement = match config.targets.iter().find(|known| known.name == target).map(|known| known.kind) {
            Some(TargetKind::Cloud) => "cloud",
            Some(TargetKind::Edge) => "edge",
            None if target == ENGINE => "local",
            None => "none",
        };
        self.placements.entry(placement.to_owned()).or_default().add(outcome);
        self.targets.entry(target.to_owned()).or_default().add(outcome);
        let identity = outcome.identity.as_deref().unwrap_or("none");
        self.identities.entry(identity.to_owned()).or_default().add(outcome);
        self.total.add(outcome);
    }

    fn tell(&self) {
        say(&format!("{}: what the records say; in the currency of the prices", self.month));
        let groups = [("placement", &self.placements), ("target", &self.targets), ("identity", &self.identities)];
        for (what, sums) in groups {
            let width = sums.keys().map(String::len).chain([what.len(), 12]).max().unwrap_or(12);
            say("");
            say(&format!(
                "{what:<width$} {:>10} {:>10} {:>14} {:>14} {:>12}",
                "requests", "from cache", "prompt tokens", "answer tokens", "cost"
            ));
            for (name, sum) in sums.iter().map(|(name, sum)| (name.as_str(), sum)).chain([("all", &self.total)]) {
                let Sum { requests, from_cache, prompt_tokens, completion_tokens, cost } = sum;
                say(&format!(
                    "{name:<width$} {requests:>10} {from_cache:>10} {prompt_tokens:>14} {completion_tokens:>14} {cost:>12.4}"
                ));
            }
        }
        if self.unreadable > 0 {
            say(&format!("\n{} lines could not be read", self.unreadable));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        model: WhatIf,
    }

    fn model(arguments: &[&str]) -> WhatIf {
        Only::parse_from(["x"].into_iter().chain(arguments.iter().copied())).model
    }

    #[test]
    fn the_model_of_the_mission_is_the_default() {
        let model = model(&[]);
        assert_eq!(model.alone().map(|month| month.sum().round() as i64), [60, 74, 250]);
        // 0.7 × 60 + 50 + 0.2 × 24 + 250
        assert_eq!((model.mixed() * 100.0).round(), 34_680.0);
        assert_eq!(model.break_even(50.0, 0.008), Some(138_889));
        assert_eq!((model.break_even(250.0, 0.0), model.break_even(1.0, 0.02)), (Some(416_667), None));
    }

    #[test]
    fn who_has_no_share_costs_nothing() {
        assert_eq!(model(&["--mix", "1,0,0"]).mixed().round(), 60.0);
        for wrong in ["0,0,0", "1,2", "1,-1,1", "1,NaN,1", "1,2,3,4", "a,b,c", ""] {
            assert!(Only::try_parse_from(["x", &format!("--mix={wrong}")]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_month_is_read_as_it_is_written_in_iso_8601() {
        assert_eq!(month("2026-02").unwrap().to_string(), "2026-02-01");
        for wrong in ["2026", "2026-13", "02-2026x", ""] {
            assert!(month(wrong).is_err(), "{wrong}");
        }
    }
}
