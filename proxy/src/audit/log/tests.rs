use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use postern_tlog::{Files, Trusted, verify};
use serde_json::Value;

use super::writer::Took;
use super::*;
use crate::audit::{LogKeys, Records};

fn settings(dir: &Path) -> config::Audit {
    config::Audit {
        dir: dir.join("audit"),
        state_dir: dir.to_owned(),
        retention: Duration::MAX,
        sync: config::file::Sync::Each,
        unwritable: config::file::Unwritable::Refuse,
        witnesses: Vec::new(),
        copy: None,
        copies: Vec::new(),
        retired: Vec::new(),
    }
}

fn open(settings: &config::Audit) -> (AuditLog, Flushed) {
    AuditLog::open(settings, ("branch.example.org", "c".into(), false), Arc::default()).unwrap()
}

fn outcome() -> Outcome {
    Outcome { result: "answered", ..Outcome::default() }
}

fn intent(redactions: &BTreeMap<String, u64>) -> Intent<'_> {
    Intent {
        identity: "spiffe://branch.example.org/clerk",
        tenant: "",
        label: "",
        label_sources: &[],
        model: "",
        placement: "",
        targets: Vec::new(),
        reason: "",
        form: "",
        policies: &[],
        redactions,
        flagged: redactions,
        prompt_tokens_estimated: 0,
        request_hash: String::new(),
    }
}

async fn write_intent(log: &AuditLog) -> RecordId {
    let (record, none) = (RecordId::new(), BTreeMap::new());
    let mut place = log.place().await.unwrap();
    log.intent((record, &mut place), &intent(&none), (true, false)).await.unwrap();
    record
}

fn lines(dir: &Path) -> Vec<Value> {
    let records = Records::in_folder(dir);
    records.of_days(None, None).unwrap().map(|record| serde_json::from_slice(&record.unwrap().bytes).unwrap()).collect()
}

fn kinds(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["kind"].as_str().unwrap()).collect()
}

fn is_good(settings: &config::Audit) -> bool {
    let key = LogKeys::of(&settings.state_dir, &settings.dir).public().unwrap().unwrap();
    let trusted = Trusted { key: &key, later: &[], witnesses: &[] };
    verify(&Files::new(&settings.dir), &trusted, |_, _| {}).unwrap().is_good()
}

#[tokio::test]
async fn an_intent_wakes_a_writer_that_sleeps_whether_few_or_many_are_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _flushed) = open(&settings(dir.path()));
    for others in [0, 16] {
        let mut places = Vec::new();
        for _ in 0..others {
            places.push(log.place().await.unwrap());
        }
        let mut quickest = Duration::MAX;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let asked = Instant::now();
            write_intent(&log).await;
            quickest = quickest.min(asked.elapsed());
        }
        // By itself it looks once a second.
        assert!(quickest < Duration::from_millis(500), "beside {others}: {quickest:?}");
    }
}

#[tokio::test]
async fn whoever_waits_writes_where_the_disk_is_quick_and_nobody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let writer = Writer::open(&settings, "branch.example.org").unwrap();
    let (source, (queue, lines)) = (Arc::new(writer.source()), queue::queue(8));
    // Without the writer's thread.
    let log = AuditLog {
        writer: Arc::new(Mutex::new(writer)),
        queue: Arc::new(queue),
        state: Arc::new(State::new()),
        metrics: Arc::default(),
        spares_lowest: false,
        source,
    };
    let is_written = async || tokio::time::timeout(Duration::from_millis(100), write_intent(&log)).await.is_ok();
    assert!(!is_written().await, "the disk is slow");
    assert_eq!(lines.take().len(), 1);
    log.state.is_quick.store(true, Ordering::Relaxed);
    assert!(is_written().await);
    assert!(lines.take().is_empty());
    log.state.is_quick.store(true, Ordering::Relaxed);
    let writing = log.writer.lock().unwrap();
    assert!(!log.write_here(), "somebody writes");
    drop(writing);
    assert_eq!(self::lines(&settings.dir).len(), 1);
}

#[test]
fn a_disk_that_was_slow_once_is_not_quick_for_a_while() {
    let mut disk = Took::default();
    disk.note(Duration::from_micros(20), 1);
    assert!(disk.is_quick());
    disk.note(Duration::from_micros(600), 120);
    assert!(disk.is_quick(), "many records are hashed");
    disk.note(Duration::from_millis(5), 1);
    let again = (1..500).find(|_| {
        disk.note(Duration::from_micros(20), 1);
        disk.is_quick()
    });
    assert!((20..60).contains(&again.unwrap()), "{again:?}");
}

/// Those who wait and the writer's thread write one log.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_log_that_many_write_has_each_record_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let (log, flushed) = open(&settings);
    let (tasks, requests) = (24, 40);
    let writing = (0..tasks).map(|task| {
        let log = log.clone();
        tokio::spawn(async move {
            for number in 0..requests {
                log.state.is_quick.store((task + number) % 3 > 0, Ordering::Relaxed);
                let (record, none) = (RecordId::new(), BTreeMap::new());
                let mut place = log.place().await.unwrap();
                log.intent((record, &mut place), &intent(&none), (true, false)).await.unwrap();
                place.outcome(record, &outcome());
            }
        })
    });
    for written in writing.collect::<Vec<_>>() {
        written.await.unwrap();
    }
    drop(log);
    assert!(flushed.wait(Duration::from_secs(5)));
    assert!(is_good(&settings));
    let mut open = std::collections::BTreeSet::new();
    let mut ended = 0;
    for line in lines(&settings.dir) {
        let record = line["record"].as_str().unwrap().to_owned();
        match line["kind"].as_str().unwrap() {
            "intent" => assert!(open.insert(record)),
            "outcome" => {
                assert!(open.remove(&record), "an outcome without an intent before it");
                ended += 1;
            }
            _ => {}
        }
    }
    assert_eq!((open.len(), ended), (0, tasks * requests));
}

#[tokio::test]
async fn a_request_that_a_kill_left_open_is_closed_once() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let (log, flushed) = open(&settings);
    let (open_one, whole) = (write_intent(&log).await, write_intent(&log).await);
    let mut place = log.place().await.unwrap();
    place.outcome(whole, &outcome());
    place.outcome(whole, &outcome());
    drop((log, place));
    assert!(flushed.wait(Duration::from_secs(5)));
    for _ in 0..2 {
        let (log, flushed) = open(&settings);
        drop(log);
        assert!(flushed.wait(Duration::from_secs(5)));
    }
    let lines = lines(&settings.dir);
    let expected = ["start", "intent", "intent", "outcome", "stop", "outcome", "start", "stop", "start", "stop"];
    assert_eq!(kinds(&lines), expected);
    assert_eq!((&lines[5]["record"], &lines[5]["result"]), (&open_one.to_string().into(), &"interrupted".into()));
    assert_eq!(lines[5]["identity"], "spiffe://branch.example.org/clerk");
    assert_eq!((&lines[6]["interrupted"], &lines[8]["interrupted"]), (&1.into(), &0.into()));
    assert!(is_good(&settings));
}

#[tokio::test]
async fn who_changes_the_journal_is_noticed_and_nothing_is_lost() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("removed", |path| std::fs::remove_file(path).unwrap()),
        ("cut", |path| std::fs::write(path, "").unwrap()),
        ("extended", |path| {
            let text = std::fs::read_to_string(path).unwrap();
            std::fs::write(path, format!("{text}{text}")).unwrap();
        }),
        ("replaced", |path| {
            let other = path.with_extension("other");
            std::fs::copy(path, &other).unwrap();
            std::fs::rename(other, path).unwrap();
        }),
    ];
    for (what, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        let (log, flushed) = open(&settings);
        let before = write_intent(&log).await;
        change(&settings.dir.join("journal/00000000000000000000.jsonl"));
        write_intent(&log).await;
        write_intent(&log).await;
        drop(log);
        assert!(flushed.wait(Duration::from_secs(5)));
        let lines = lines(&settings.dir);
        assert_eq!(kinds(&lines), ["start", "intent", "notice", "intent", "intent", "stop"], "{what}");
        assert_eq!((&lines[1]["record"], &lines[2]["what"]), (&before.to_string().into(), &what.into()));
        assert!(is_good(&settings));
    }
}

#[test]
fn two_writers_do_not_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let _first = lock::Lock::take(dir.path()).unwrap();
    let error = lock::Lock::take_within(dir.path(), Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().contains("another gateway"), "{error}");
}

#[tokio::test]
async fn a_log_that_is_lost_is_not_begun_anew_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let (log, flushed) = open(&settings);
    write_intent(&log).await;
    drop(log);
    assert!(flushed.wait(Duration::from_secs(5)));
    let refused = || {
        format!(
            "{:#}",
            AuditLog::open(&settings, ("branch.example.org", "c".into(), false), Arc::default()).unwrap_err()
        )
    };
    std::fs::rename(settings.dir.join("key.pub"), dir.path().join("aside")).unwrap();
    assert!(refused().contains("put it back"), "{}", refused());
    std::fs::rename(dir.path().join("aside"), settings.dir.join("key.pub")).unwrap();
    std::fs::rename(dir.path().join("audit-keys"), dir.path().join("aside")).unwrap();
    assert!(refused().contains("name another one for `audit.dir`"), "{}", refused());
    std::fs::rename(dir.path().join("aside"), dir.path().join("audit-keys")).unwrap();
    let journal = settings.dir.join("journal/00000000000000000000.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, text.lines().next().unwrap()).unwrap();
    assert!(refused().contains("are missing"), "{}", refused());
    std::fs::write(&journal, text).unwrap();
    let (log, flushed) = open(&settings);
    drop(log);
    assert!(flushed.wait(Duration::from_secs(5)));
    // All of it gone: another log, with another name, that says that there was one.
    std::fs::remove_dir_all(&settings.dir).unwrap();
    let (log, flushed) = open(&settings);
    drop(log);
    assert!(flushed.wait(Duration::from_secs(5)));
    assert_eq!(lines(&settings.dir)[0]["logs"], 2);
}

#[tokio::test]
async fn what_the_disk_does_not_take_is_refused_or_spared() {
    for spares in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        if spares {
            settings.unwritable = config::file::Unwritable::Public;
        }
        let (log, flushed) = open(&settings);
        log.state.healthy.store(false, Ordering::Relaxed);
        let none = BTreeMap::new();
        let place = log.place().await;
        assert_eq!(place.is_ok(), spares);
        if let Ok(mut place) = place {
            let record = RecordId::new();
            let mut write =
                async |is_lowest| log.intent((record, &mut place), &intent(&none), (true, is_lowest)).await.is_ok();
            assert!(write(true).await);
            assert!(!write(false).await, "above the lowest label nothing is done without a record");
            place.outcome(record, &outcome());
        }
        assert!(
            log.action(RecordId::new(), &Action { by: "x".into(), action: "reload", subject: None, result: "done" })
                .await
                .is_err()
        );
        log.state.healthy.store(true, Ordering::Relaxed);
        write_intent(&log).await;
        drop(log);
        assert!(flushed.wait(Duration::from_secs(5)));
        let lines = lines(&settings.dir);
        let unrecorded: Vec<_> = lines.iter().filter(|line| line["what"] == "unrecorded").collect();
        assert_eq!(unrecorded.len(), usize::from(spares));
        assert!(unrecorded.iter().all(|line| line["requests"] == 1));
    }
}

fn stopped(settings: &config::Audit, intents: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (log, flushed) = open(settings);
        for _ in 0..intents {
            write_intent(&log).await;
        }
        drop(log);
        assert!(flushed.wait(Duration::from_secs(5)));
    });
}

#[test]
fn what_somebody_writes_after_a_gateway_has_ended_is_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    stopped(&settings, 1);
    let journal = settings.dir.join("journal/00000000000000000000.jsonl");
    let forged = "{\"record\":\"1\",\"kind\":\"notice\",\"what\":\"retention\",\"before\":256}\n";
    std::fs::write(&journal, std::fs::read_to_string(&journal).unwrap() + forged).unwrap();
    stopped(&settings, 0);
    let lines = lines(&settings.dir);
    // Nothing was answered, so the next gateway closes what it finds open.
    assert_eq!(kinds(&lines), ["start", "intent", "stop", "notice", "outcome", "start", "stop"]);
    let notice = lines.iter().find(|line| line["kind"] == "notice").unwrap();
    assert_eq!((&notice["what"], &notice["records"]), (&"foreign".into(), &1.into()));
    assert!(is_good(&settings));
}

#[tokio::test]
async fn what_a_kill_left_without_a_signature_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let (log, _flushed) = open(&settings);
    write_intent(&log).await;
    // As it stands on the disk at this moment, less than a second after the last checkpoint.
    let copy = config::Audit { dir: dir.path().join("copy"), ..settings.clone() };
    let copied = std::process::Command::new("cp").arg("-a").arg(&settings.dir).arg(&copy.dir).status().unwrap();
    assert!(copied.success());
    let (again, flushed) = open(&copy);
    drop(again);
    assert!(flushed.wait(Duration::from_secs(5)));
    let lines = lines(&copy.dir);
    let notice = lines.iter().find(|line| line["what"] == "unsigned").unwrap();
    assert_eq!((&notice["from"], &notice["records"]), (&1.into(), &1.into()), "{lines:?}");
    assert!(is_good(&copy));
}

#[test]
fn a_log_is_not_begun_anew_under_a_name_that_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    stopped(&settings, 1);
    std::fs::remove_file(settings.dir.join("checkpoint")).unwrap();
    for folder in ["journal", "tile"] {
        std::fs::remove_dir_all(settings.dir.join(folder)).unwrap();
    }
    let refused = AuditLog::open(&settings, ("branch.example.org", "c".into(), false), Arc::default()).unwrap_err();
    assert!(format!("{refused:#}").contains("was begun"), "{refused:#}");
}

#[test]
fn a_checkpoint_under_an_old_days_name_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::Audit { retention: Duration::from_secs(86_400), ..settings(dir.path()) };
    stopped(&settings, 300);
    std::fs::copy(settings.dir.join("checkpoint"), settings.dir.join("checkpoints/2000-01-01")).unwrap();
    let mut writer = Writer::open(&settings, "branch.example.org").unwrap();
    writer.delete_oldest().unwrap();
    drop(writer);
    assert!(lines(&settings.dir).len() > 300, "all are there");
}

#[test]
fn whoever_gave_up_waiting_is_not_recorded_as_about_to_act() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let mut writer = Writer::open(&settings, "branch.example.org").unwrap();
    let state = State::new();
    let (waits, gave_up) = (oneshot::channel(), oneshot::channel());
    drop(gave_up.1);
    let body = serde_json::Map::new();
    let (queue, _lines) = queue::queue(3);
    let of = |name, pace| Line { bytes: line(name, "intent", &body), pace, _room: queue.room_now().unwrap() };
    // What has happened is recorded in any case.
    let after = oneshot::channel().0;
    let batch = vec![
        of("waits", Pace::Before(waits.0)),
        of("gave up", Pace::Before(gave_up.0)),
        of("happened", Pace::After(after)),
    ];
    writer.write(batch, &state, &Metrics::default());
    drop(writer);
    let lines = lines(&settings.dir);
    let names: Vec<_> = lines.iter().map(|line| line["record"].as_str().unwrap()).collect();
    assert_eq!(names, ["waits", "happened"]);
}

#[test]
fn what_could_not_be_written_at_once_is_given_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let mut writer = Writer::open(&settings, "branch.example.org").unwrap();
    let state = State::new();
    state.is_quick.store(true, Ordering::Relaxed);
    let (queue, _lines) = queue::queue(2);
    let (waits, mut waiting) = oneshot::channel();
    let of = |bytes: &str, pace| Line { bytes: bytes.into(), pace, _room: queue.room_now().unwrap() };
    // The log takes no line breaks.
    let batch = vec![of("{}", Pace::Before(waits)), of("{\n}", Pace::Lingers)];
    let Err(back) = writer.write_once(batch, &state, &Metrics::default()) else { panic!("it was written") };
    assert_eq!(back.iter().map(|line| line.bytes.as_slice()).collect::<Vec<_>>(), [&b"{}"[..], b"{\n}"]);
    assert!(waiting.try_recv().is_err(), "nobody was told that it was");
    assert!(!state.healthy.load(Ordering::Relaxed) && !state.is_quick.load(Ordering::Relaxed));
    // The next says for how long nothing was written.
    let whole = back.into_iter().take(1).collect();
    writer.write_once(whole, &state, &Metrics::default()).unwrap_or_else(|_| panic!("it is whole"));
    assert!(waiting.try_recv().is_ok() && state.healthy.load(Ordering::Relaxed));
    drop(writer);
    let lines = lines(&settings.dir);
    assert_eq!((lines.len(), &lines[1]["what"]), (2, &"unwritable".into()));
}

#[test]
fn a_clock_that_was_set_back_over_a_restart_ends_no_day_a_second_time() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    std::fs::create_dir_all(&settings.dir).unwrap();
    let key = LogKeys::of(&settings.state_dir, &settings.dir).open("branch.example.org").unwrap();
    let mut log = postern_tlog::Log::open(&settings.dir, key, |_| false).unwrap();
    let at = |day: &str| format!("{{\"record\":\"1\",\"kind\":\"action\",\"time\":\"{day}T12:00:00Z\"}}");
    log.append(&[at("2026-01-04")], true).unwrap();
    let ended = log.end_segment("2026-01-04").unwrap();
    log.append(&[at("2026-01-03")], true).unwrap();
    log.checkpoint().unwrap();
    drop(log);
    let (log, flushed) = open(&settings);
    drop(log);
    assert!(flushed.wait(Duration::from_secs(5)));
    let files = Files::new(&settings.dir);
    assert_eq!(files.kept().unwrap(), ["2026-01-04"], "the next is of the next day");
    assert_eq!(files.kept_one("2026-01-04").unwrap().unwrap(), ended.bytes);
    assert!(is_good(&settings));
}
