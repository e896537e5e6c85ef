//! `postern audit export` and `tail`.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::ensure;
use clap::{Args, ValueEnum};
use serde_json::Value;
use time::Date;

use super::{Place, day, plain};

/// How often --follow looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Records that `tail` begins with, at most.
const MOST: u64 = 100_000;
/// The columns of a table. What a record has beside them is in the last one, as JSON.
const COLUMNS: [&str; 18] = [
    "time",
    "kind",
    "record",
    "identity",
    "tenant",
    "label",
    "model",
    "placement",
    "reason",
    "target",
    "result",
    "status",
    "code",
    "cache",
    "prompt_tokens",
    "completion_tokens",
    "cost",
    "duration_ms",
];

/// Which records, and how.
#[derive(Debug, Args)]
pub(in crate::cli) struct Export {
    #[command(flatten)]
    place: Place,
    /// The first day (UTC), such as 2026-11-01. Absent: the first that is kept.
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<Date>,
    /// The last day, with it. Absent: today.
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<Date>,
    /// A line of JSON for each, as it is in the log; or a table.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Jsonl,
    Csv,
}

/// How many.
#[derive(Debug, Args)]
pub(in crate::cli) struct Tail {
    #[command(flatten)]
    place: Place,
    /// How many of the newest.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=MOST))]
    lines: u64,
    /// Go on with those that come.
    #[arg(short, long)]
    follow: bool,
}

pub(super) fn export(arguments: &Export) -> anyhow::Result<()> {
    if let (Some(from), Some(to)) = (arguments.from, arguments.to) {
        ensure!(from <= to, "--to is before --from");
    }
    let records = arguments.place.records()?;
    let is_terminal = std::io::stdout().is_terminal();
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    if arguments.format == Format::Csv {
        writeln!(output, "number,{},rest\r", COLUMNS.join(","))?;
    }
    for record in records.of_days(arguments.from, arguments.to)? {
        let record = record?;
        match arguments.format {
            // A file gets what is in the log, byte for byte.
            Format::Jsonl if is_terminal => writeln!(output, "{}", plain(&String::from_utf8_lossy(&record.bytes)))?,
            Format::Jsonl => {
                output.write_all(&record.bytes)?;
                output.write_all(b"\n")?;
            }
            Format::Csv if is_terminal => writeln!(output, "{}", plain(row(record.index, &record.bytes).trim_end()))?,
            Format::Csv => output.write_all(row(record.index, &record.bytes).as_bytes())?,
        }
    }
    Ok(output.flush()?)
}

/// A row of a table (RFC 4180).
fn row(number: u64, record: &[u8]) -> String {
    let mut fields = match serde_json::from_slice(record) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let mut row = number.to_string();
    for column in COLUMNS {
        row.push(',');
        match fields.shift_remove(column) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => row.push_str(&cell(&text)),
            Some(other) => row.push_str(&cell(&other.to_string())),
        }
    }
    row.push(',');
    row.push_str(&cell(&Value::Object(fields).to_string()));
    row.push_str("\r\n");
    row
}

/// Quoted where it must be. A formula of a spreadsheet is none: identities and names of targets are others' words.
fn cell(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']) && text.parse::<f64>().is_err();
    let text = if is_formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

pub(super) fn tail(arguments: &Tail) -> anyhow::Result<()> {
    let records = arguments.place.records()?;
    let files = records.files();
    let mut next = files.end()?;
    let first = next.saturating_sub(arguments.lines).max(files.first()?);
    let mut output = std::io::stdout();
    let mut print = |from, to| -> anyhow::Result<()> {
        for record in files.entries(from, to) {
            writeln!(output, "{}", plain(&String::from_utf8_lossy(&record?)))?;
        }
        Ok(output.flush()?)
    };
    print(first, next)?;
    if !arguments.follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(LOOK_EVERY);
        let end = files.end()?;
        print(next, end)?;
        next = next.max(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_row_whatever_is_in_it() {
        let record = br#"{"record":"1","kind":"outcome","time":"t","identity":"=cmd(\"x\")","target":"a,b","cost":-0.5,"attempts":[1]}"#;
        let row = row(7, record);
        assert!(row.starts_with("7,t,outcome,1,\"'=cmd(\"\"x\"\")\",,"), "{row}");
        assert!(row.contains(",\"a,b\",") && row.contains(",-0.5,"), "{row}");
        assert!(row.ends_with(",\"{\"\"attempts\"\":[1]}\"\r\n"), "{row}");
    }
}
