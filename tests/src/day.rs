//! A day on which the cloud is busy: it refuses 35 % of all requests with 503, takes so many a minute from one address, takes 1.2 s
//! for an answer, and dies twice, while requests come at a constant rate. What becomes of them shows what a gateway is good for.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Client, Reply, text};
use crate::config::CLOUD_KEY;
use crate::{BusyCloud, Config, Postern, chat_body};

/// When the cloud dies, as shares of the day, and for which share of it.
const DEATHS: [f64; 2] = [0.3, 0.65];
const DEAD_FOR: f64 = 0.08;
/// The client alone waits a second after the first failure, twice as long after each other, and gives up after so many tries.
const TRIES: u32 = 6;
/// Every so-manieth request is classified, where there is an engine for those.
const CLASSIFIED: usize = 10;
/// Dollars for 1000 requests, and the coefficients of the mission.
const COSTS: [(&str, f64, f64); 3] = [("cloud", 0.02, 1.0), ("nodes", 0.008, 1.8), ("local", 0.0, 3.5)];

/// Who answers beside the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SetUp {
    /// Nobody: the client asks the cloud itself, and tries again.
    Alone,
    /// Postern with the cloud and two nodes.
    Nodes,
    /// The same and the engine on this machine, which also answers what is classified.
    Local,
}

/// One day.
#[derive(Debug, Clone, Copy)]
pub struct Day {
    /// Its length.
    pub lasts: Duration,
    /// Requests a second.
    pub per_second: f64,
    /// What the cloud takes in a minute.
    pub cloud_takes: u32,
    /// Who answers.
    pub set_up: SetUp,
}

/// What became of the requests.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Who answered.
    pub set_up: SetUp,
    /// How many came.
    pub requests: usize,
    /// How many were answered to the end.
    pub answered: usize,
    /// Those of the classified ones, and how many of those were answered here.
    pub classified: (usize, usize),
    /// Milliseconds to the whole answer, of those that were answered.
    pub mean_ms: f64,
    /// The same.
    pub p50_ms: f64,
    /// The same.
    pub p99_ms: f64,
    /// Who answered how many.
    pub by_placement: BTreeMap<&'static str, usize>,
    /// Answers that one target began and another ended.
    pub continued: usize,
    /// Dollars for 1000 requests like these; what nodes and machines cost by the month is not in it.
    pub dollars_per_1000: f64,
    /// The mean coefficient.
    pub coefficient: f64,
    /// How often the cloud said that it was too much.
    pub too_many: u64,
    /// What went wrong, and how often.
    pub failures: BTreeMap<String, usize>,
    /// For each request: seconds from the beginning, milliseconds that it took, who answered; nobody: it failed.
    pub each: Vec<(f64, f64, Option<&'static str>)>,
}

/// One request.
struct Ended {
    began: Duration,
    took: Duration,
    classified: bool,
    /// Who answered, or why nobody did.
    by: Result<&'static str, String>,
}

/// Plays one day.
///
/// # Errors
/// Something cannot be started. Requests that fail are no error.
pub async fn play(day: &Day) -> Result<Report> {
    let limit = json!({"requests_per_minute": day.cloud_takes});
    let mut switches = json!({"unavailable_share": 0.35, "latency_ms": 450, "token_ms": 50});
    merge(&mut switches, &limit);
    let mut cloud = BusyCloud::start().await?;
    let (oak, elm) = (BusyCloud::start().await?, BusyCloud::start().await?);
    cloud.switch(switches.clone()).await?;
    for node in [&oak, &elm] {
        node.switch(json!({"latency_ms": 300, "token_ms": 8})).await?;
    }
    let postern = match day.set_up {
        SetUp::Alone => None,
        SetUp::Nodes | SetUp::Local => {
            let mut config = Config::new()
                .cloud("sun", &cloud, "internal")
                .edge("oak", &oak, "confidential")
                .edge("elm", &elm, "confidential")
                .set("/targets/0/limits", limit)
                .set("/plugins/compiled", json!(std::env::temp_dir().join("postern-day-compiled")))
                .builtin_policies();
            for target in 0..3 {
                config = config.set(&format!("/targets/{target}/openai/continues"), json!("message"));
            }
            if day.set_up == SetUp::Local {
                config = config.engine();
            }
            let postern = Postern::start(&config).await?;
            if day.set_up == SetUp::Local {
                postern.engine_ready().await?;
            }
            Some(postern)
        }
    };
    let client = match &postern {
        Some(postern) => postern.client("clerk/amy")?.http2(),
        None => direct(&cloud)?,
    };
    let (started, mut asking, mut ended) = (Instant::now(), JoinSet::new(), Vec::new());
    let requests = (day.lasts.as_secs_f64() * day.per_second).round() as usize;
    let mut too_many = 0;
    let deaths = async {
        for death in DEATHS {
            tokio::time::sleep_until((started + day.lasts.mul_f64(death)).into()).await;
            // It forgets what it saw.
            too_many += refused(&cloud).await?;
            cloud.dies_for(day.lasts.mul_f64(DEAD_FOR), &switches).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let load = async {
        for number in 0..requests {
            tokio::time::sleep_until((started + Duration::from_secs_f64(number as f64 / day.per_second)).into()).await;
            let classified = day.set_up == SetUp::Local && number % CLASSIFIED == CLASSIFIED - 1;
            let client = if classified { client.with_header("postern-label", "classified") } else { client.clone() };
            let alone = day.set_up == SetUp::Alone;
            asking.spawn(async move {
                let (began, since) = (started.elapsed(), Instant::now());
                let by = ask(&client, number, alone).await;
                Ended { began, took: since.elapsed(), classified, by }
            });
        }
        while let Some(one) = asking.join_next().await {
            ended.push(one.context("a request of the day")?);
        }
        Ok::<_, anyhow::Error>(())
    };
    let (died, loaded) = tokio::join!(deaths, load);
    died.and(loaded)?;
    too_many += refused(&cloud).await?;
    let records = postern.as_ref().map(|postern| postern.records().all()).transpose()?.unwrap_or_default();
    let continued = records.iter().filter(|record| record.outcome.get("continued").is_some()).count();
    Ok(report(day.set_up, ended, too_many, continued))
}

/// How often it said that it was too much.
async fn refused(cloud: &BusyCloud) -> Result<u64> {
    Ok(cloud.stats().await?.statuses.get(&429).copied().unwrap_or_default())
}

fn merge(into: &mut Value, more: &Value) {
    if let (Some(into), Some(more)) = (into.as_object_mut(), more.as_object()) {
        into.extend(more.clone());
    }
}

fn direct(cloud: &BusyCloud) -> Result<Client> {
    let address = cloud.base_url().split('/').nth(2).unwrap_or_default().parse()?;
    let ca: &Path = cloud.ca();
    Ok(Client::new(address, ca, None).with_header("authorization", &format!("Bearer {}", CLOUD_KEY.1)))
}

/// Every second answer is streamed.
async fn ask(client: &Client, number: usize, alone: bool) -> Result<&'static str, String> {
    let mut last = String::new();
    for attempt in 0..if alone { TRIES } else { 1 } {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_secs(1 << (attempt - 1))).await;
        }
        let mut body = chat_body(&format!("What is request number {number} about?"));
        if let Some(body) = body.as_object_mut() {
            body.insert("max_tokens".to_owned(), 8.into());
        }
        match if number.is_multiple_of(2) { whole(client, &body).await } else { streamed(client, &body).await } {
            Ok(target) => return Ok(placement(&target)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn placement(target: &str) -> &'static str {
    match target {
        "engine" => "local",
        "oak" | "elm" => "nodes",
        _ => "cloud",
    }
}

async fn whole(client: &Client, body: &Value) -> Result<String, String> {
    let reply: Reply = client.post_json("/v1/chat/completions", body).await.map_err(|_| "no connection".to_owned())?;
    if reply.status == 200 && !reply.answer().is_empty() {
        return Ok(reply.header("postern-target").to_owned());
    }
    Err(format!("{} {}", reply.status, reply.error_code()))
}

async fn streamed(client: &Client, body: &Value) -> Result<String, String> {
    let mut events = client.stream(body).await.map_err(|_| "no connection".to_owned())?;
    if events.status != 200 {
        return Err(format!("{}", events.status));
    }
    let target = events.header("postern-target").to_owned();
    let events = events.rest().await.map_err(|_| "the stream broke".to_owned())?;
    match events.last() {
        Some(last) if last.is_done() && !text(&events).is_empty() => Ok(target),
        Some(last) => Err(last.error_code()),
        None => Err("an empty stream".to_owned()),
    }
}

fn report(set_up: SetUp, mut ended: Vec<Ended>, too_many: u64, continued: usize) -> Report {
    ended.sort_by_key(|one| one.began);
    let ms = |span: Duration| (span.as_secs_f64() * 1e4).round() / 10.0;
    let mut took: Vec<f64> = ended.iter().filter(|one| one.by.is_ok()).map(|one| ms(one.took)).collect();
    took.sort_by(f64::total_cmp);
    let percentile = |share: f64| took.get(((took.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied();
    let (mut by_placement, mut failures) = (BTreeMap::new(), BTreeMap::new());
    for one in &ended {
        match &one.by {
            Ok(placement) => *by_placement.entry(*placement).or_default() += 1,
            Err(error) => *failures.entry(error.clone()).or_default() += 1,
        }
    }
    let classified = ended.iter().filter(|one| one.classified);
    let answered = took.len();
    let share = |name: &str| by_placement.get(name).copied().unwrap_or(0) as f64 / answered.max(1) as f64;
    Report {
        set_up,
        requests: ended.len(),
        answered,
        classified: (
            classified.clone().count(),
            classified.filter(|one| one.by.as_ref().is_ok_and(|placement| *placement == "local")).count(),
        ),
        mean_ms: (took.iter().sum::<f64>() / answered.max(1) as f64).round(),
        p50_ms: percentile(0.5).unwrap_or_default(),
        p99_ms: percentile(0.99).unwrap_or_default(),
        continued,
        dollars_per_1000: COSTS.iter().map(|(name, dollars, _)| share(name) * dollars).sum(),
        coefficient: COSTS.iter().map(|(name, _, coefficient)| share(name) * coefficient).sum(),
        by_placement,
        too_many,
        failures,
        each: ended.iter().map(|one| (one.began.as_secs_f64(), ms(one.took), one.by.as_ref().ok().copied())).collect(),
    }
}
