//! What is shown, and checked.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Answer;
use super::stage::{Stage, well_behaved};
use crate::cli::say;

const GENERAL: &str = "Write one friendly line for the notice board of the kitchen.";
const PERSONAL: &str = "Draft a note to Ann: mail ann.lee@example.org, phone +86 138 0013 8000.";

/// What went through `postern connect`.
const SEALED: &str = "general, by postern connect";

/// One row of the table.
struct Row {
    prompt: &'static str,
    answer: Answer,
}

/// Claims, and whether they held.
#[derive(Default)]
struct Claims(Vec<(bool, String)>);

impl Claims {
    fn check(&mut self, holds: bool, claim: impl Into<String>) {
        self.0.push((holds, claim.into()));
    }

    fn header(&mut self, answer: &Answer, name: &str, wanted: &str, what: &str) {
        let have = answer.header(name);
        self.check(answer.status == 200 && have == wanted, format!("{what}: {name} is {wanted}"));
        if have != wanted {
            self.0.push((false, format!("  (status {}, {name}: {have:?})", answer.status)));
        }
    }
}

/// Plays all scenes. 0 only if every claim holds.
pub(super) async fn play(stage: &Stage) -> anyhow::Result<ExitCode> {
    let clerk = stage.client("clerk")?;
    let mut claims = Claims::default();
    let mut rows = Vec::new();
    say("\nEight requests through the TLS port, and one through `postern connect`, sealed …");
    stage.cloud_behaves(well_behaved()).await?;

    let answer = clerk.ask("chat", GENERAL, false, &[]).await?;
    claims.header(&answer, "postern-target", "busy-cloud", "a general prompt is answered in the cloud");
    rows.push(Row { prompt: "general", answer });

    stage.cloud_behaves(json!({"unavailable_share": 1.0})).await?;
    let answer = clerk.ask("chat", "Name one colour of the rainbow.", false, &[]).await?;
    claims.header(&answer, "postern-target", "engine", "the cloud answers 503, and the engine takes over");
    rows.push(Row { prompt: "general, cloud answers 503", answer });
    stage.cloud_behaves(well_behaved()).await?;

    let answer = clerk.ask("assistant", "What is the capital of France?", true, &[]).await?;
    claims.header(
        &answer,
        "postern-placement",
        "edge-first",
        "the routing policy sends an interactive prompt to the edge",
    );
    claims.header(&answer, "postern-target", "engine", "the edge is the engine on this machine");
    rows.push(Row { prompt: "interactive", answer });

    let answer = clerk.ask("chat", PERSONAL, false, &[]).await?;
    let seen = last_prompt(&stage.cloud_saw().await?);
    let restored = answer.text.clone();
    claims.header(&answer, "postern-target", "busy-cloud", "a prompt with personal data is answered in the cloud");
    claims.check(
        !seen.contains("ann.lee@") && !seen.contains("138 0013"),
        "what the cloud received holds neither address nor number",
    );
    claims.check(
        restored.contains("ann.lee@example.org") && restored.contains("+86 138 0013 8000"),
        "the answer has them again",
    );
    rows.push(Row { prompt: "with e-mail and phone", answer });

    let before = requests(&stage.cloud_saw().await?);
    let answer = clerk.ask("chat", GENERAL, false, &[]).await?;
    claims.header(&answer, "postern-cache", "exact", "a repeated prompt comes from the cache");
    claims.check(requests(&stage.cloud_saw().await?) == before, "and the cloud was not asked");
    rows.push(Row { prompt: "general, again", answer });

    let answer = stage.ask_through_connector("chat", GENERAL).await?;
    claims.header(&answer, "postern-cache", "exact", "postern connect answers an application that has no certificate");
    rows.push(Row { prompt: SEALED, answer });

    let answer =
        clerk.ask("chat", "The codename of the project is Heron.", false, &[("postern-label", "classified")]).await?;
    claims.header(&answer, "postern-target", "engine", "a classified prompt is answered on this machine");
    claims.header(&answer, "postern-reason", "label", "because of its label");
    claims.check(
        requests(&stage.cloud_saw().await?) == before,
        format!("and the cloud's request count did not change ({before})"),
    );
    rows.push(Row { prompt: "classified", answer });

    let headers = [("postern-label", "classified"), ("postern-placement", "cloud")];
    let answer = clerk.ask("chat", "Please send this one to the cloud all the same.", false, &headers).await?;
    claims.header(&answer, "postern-target", "engine", "asking for the cloud does not help a classified prompt");
    claims.check(requests(&stage.cloud_saw().await?) == before, "the cloud's request count did not change");
    rows.push(Row { prompt: "classified, asks for cloud", answer });

    let streamed = format!("{PERSONAL} Make it short.");
    let answer = clerk.ask("chat", &streamed, true, &[]).await?;
    claims.header(&answer, "postern-target", "busy-cloud", "a streamed prompt is answered in the cloud");
    claims.check(answer.pieces > 5, format!("it came in {} pieces", answer.pieces));
    claims.check(answer.text.contains("ann.lee@example.org"), "placeholders that were split over pieces are restored");
    rows.push(Row { prompt: "streamed, with e-mail", answer });

    table(&rows);
    say(&format!("\nWhat the cloud received:  {seen}\nWhat the client reads:    {restored}"));
    records(stage, &rows, &mut claims).await?;
    sealed(stage, &rows, &mut claims)?;
    say("");
    for (holds, claim) in &claims.0 {
        say(&format!("{} {claim}", if *holds { "ok    " } else { "FAILED" }));
    }
    let broken = claims.0.iter().filter(|(holds, _)| !holds).count();
    say(&match broken {
        0 => "\nAll of it held. `make run` leaves the same set-up serving, for requests of your own.".to_owned(),
        broken => format!("\n{broken} of it did not hold."),
    });
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(rows: &[Row]) {
    let line = |cells: [&str; 7]| {
        let [prompt, placement, target, first, cache, label, reason] = cells;
        say(&format!("{prompt:<28} {placement:<11} {target:<11} {first:>12}  {cache:<7} {label:<12} {reason}"));
    };
    say("");
    line(["prompt", "placement", "target", "first token", "cache", "label", "reason"]);
    say(&"─".repeat(96));
    for Row { prompt, answer } in rows {
        let first = format!("{:.0} ms", answer.first_token.as_secs_f64() * 1000.0);
        let cell = |name| answer.header(name);
        let (placement, target) = (cell("postern-placement"), cell("postern-target"));
        line([prompt, placement, target, &first, cell("postern-cache"), cell("postern-label"), cell("postern-reason")]);
    }
    say("(first token: for an answer that is not streamed, the whole answer; goal of edge-first in this demo: 5 s)");
}

/// Every request has its two records, and none of them holds content.
async fn records(stage: &Stage, rows: &[Row], claims: &mut Claims) -> anyhow::Result<()> {
    // An outcome is written when the stream has ended, which the client may notice first.
    let mut by_kind = HashMap::new();
    for _ in 0..50 {
        by_kind = count(&stage.records()?, rows);
        if by_kind.get("outcome") == Some(&rows.len()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let kinds = ["intent", "outcome"].map(|kind| by_kind.get(kind).copied().unwrap_or(0));
    claims.check(
        kinds == [rows.len(); 2],
        format!("the log has two records of each request ({} and {})", kinds[0], kinds[1]),
    );
    let text = stage.records()?.iter().map(Value::to_string).collect::<String>();
    claims.check(!text.contains("ann.lee") && !text.contains("Heron"), "and none of them holds content");
    if let Some(intent) = stage.records()?.iter().find(|record| record["label"] == "classified") {
        say(&format!("\nOne record, of the classified prompt:\n{}", serde_json::to_string_pretty(intent)?));
    }
    Ok(())
}

/// What its record says of the one that went through `postern connect`.
fn sealed(stage: &Stage, rows: &[Row], claims: &mut Claims) -> anyhow::Result<()> {
    let id = rows.iter().find(|row| row.prompt == SEALED).map(|row| row.answer.header("postern-record"));
    let outcome =
        stage.records()?.into_iter().find(|record| record["kind"] == "outcome" && record["record"].as_str() == id);
    let field = |name: &str| outcome.as_ref().and_then(|outcome| outcome.get(name)?.as_str()).unwrap_or("nothing");
    let (form, identity) = (field("sealed"), field("identity"));
    say(&format!("\nOn record of the one by postern connect:  sealed: {form}, identity: {identity}"));
    claims.check(
        form == "ohttp-chunked" && identity.ends_with("/office/workstation"),
        "what went through postern connect was sealed for the gateway, in the workstation's name",
    );
    Ok(())
}

fn count(records: &[Value], rows: &[Row]) -> HashMap<String, usize> {
    let mut by_kind = HashMap::new();
    let text = |record: &Value, field: &str| record.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
    for record in records {
        if rows.iter().any(|row| row.answer.header("postern-record") == text(record, "record")) {
            *by_kind.entry(text(record, "kind")).or_insert(0) += 1;
        }
    }
    by_kind
}

fn requests(stats: &Value) -> u64 {
    stats.get("requests").and_then(Value::as_u64).unwrap_or(u64::MAX)
}

fn last_prompt(stats: &Value) -> String {
    let last = stats.get("bodies").and_then(Value::as_array).and_then(|bodies| bodies.last());
    let content = last.and_then(|body| body.pointer("/messages/0/content")).and_then(Value::as_str);
    content.unwrap_or("").to_owned()
}
