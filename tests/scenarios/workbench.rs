//! The author's workbench, `postern plugin …`, through the real binary.

mod tutorial;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use postern_tests::postern::binary;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Something that was named is wrong.
const WRONG: i32 = 78;

/// A folder of an author.
struct Bench(TempDir);

impl Bench {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
        Ok(std::fs::write(self.path(name), content)?)
    }

    /// `postern plugin …` there.
    fn plugin(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary()?);
        command.arg("plugin").args(arguments).current_dir(self.0.path());
        // Compiled policies are shared by all scenarios.
        command.env("POSTERN_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/workbench"));
        command.output().context("postern plugin")
    }

    fn good(&self, arguments: &[&str]) -> Result<String> {
        let output = self.plugin(arguments)?;
        ensure!(output.status.success(), "{arguments:?}: {}{}", said(&output), String::from_utf8_lossy(&output.stdout));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.good(arguments)?)?)
    }

    /// It is refused as wrong, and says these words.
    fn refused(&self, arguments: &[&str], words: &str) -> Result<()> {
        let output = self.plugin(arguments)?;
        let said = said(&output) + &String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(WRONG) && said.contains(words), "{arguments:?}: {words}: {said}");
        Ok(())
    }

    /// A component from the text of a core module, as C and Zig make one.
    fn packed(&self, name: &str, fixture: &str, world: &str, manifest: &str) -> Result<()> {
        self.write("core.wasm", wat::parse_file(fixtures().join(fixture))?)?;
        self.write("manifest.yaml", manifest)?;
        self.good(&["pack", "core.wasm", "--world", world, "--manifest", "manifest.yaml", "-o", name]).map(drop)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/host/tests/fixtures")
}

const MANIFEST: &str = "name: tried\nversion: 0.3.1\ndescription: For tests\ngrants: {headers: [x-desk], text: true}\n\
                        metrics: [kept]\nconfig_schema: {type: object, additionalProperties: false}\n";

#[test]
fn a_policy_is_packed_signed_and_verified() -> Result<()> {
    let bench = Bench::new()?;
    bench.packed("policy.wasm", "trap.wat", "full-policy", MANIFEST)?;
    bench.refused(&["verify", "policy.wasm", "--key", "ops.pub"], "ops.pub")?;
    let made = bench.good(&["keygen", "--out", "ops"])?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(bench.path("ops.key"))?.permissions());
    assert_eq!(mode & 0o777, 0o600);
    bench.refused(&["keygen", "--out", "ops"], "is there already")?;
    bench.refused(&["verify", "policy.wasm", "--key", "ops.pub"], "is not signed")?;
    let signed = bench.good(&["sign", "policy.wasm", "--key", "ops.key"])?;
    let verified = bench.good(&["verify", "policy.wasm", "--key", "ops.pub"])?;
    let id = made.rsplit_once("key ").context("an ID")?.1.trim();
    assert!(id.len() == 32 && signed.contains(id) && verified.contains(id), "{made}{signed}{verified}");
    assert!(verified.contains("tried 0.3.1") && verified.contains("ops.pub"), "{verified}");
    bench.good(&["keygen", "--out", "other"])?;
    bench.refused(&["verify", "policy.wasm", "--key", "other.pub"], "none of those that are trusted")?;
    bench.good(&["verify", "policy.wasm", "--key", "other.pub", "--key", "ops.pub"])?;
    bench.refused(&["verify", "policy.wasm", "--key", "ops.key"], "private key")?;
    let again = bench.good(&["sign", "policy.wasm", "--key", "other.key", "-o", "again.wasm"])?;
    assert!(again.contains(&format!("in the place of a signature by {id}")), "{again}");
    bench.good(&["verify", "again.wasm", "--key", "other.pub"])?;
    bench.good(&["verify", "policy.wasm", "--key", "ops.pub"])?;
    Ok(())
}

#[test]
fn openssl_makes_keys_for_it_and_agrees_on_signatures() -> Result<()> {
    let bench = Bench::new()?;
    let openssl = |arguments: &[&str]| -> Result<Output> {
        Ok(Command::new("openssl").args(arguments).current_dir(bench.0.path()).output()?)
    };
    assert!(openssl(&["genpkey", "-algorithm", "ed25519", "-out", "ops.key"])?.status.success());
    assert!(openssl(&["pkey", "-in", "ops.key", "-pubout", "-out", "ops.pub"])?.status.success());
    bench.packed("policy.wasm", "trap.wat", "full-policy", MANIFEST)?;
    let unsigned = std::fs::read(bench.path("policy.wasm"))?;
    bench.good(&["sign", "policy.wasm", "--key", "ops.key"])?;
    bench.good(&["verify", "policy.wasm", "--key", "ops.pub"])?;
    // As docs/plugins.md describes it: the bytes before the last section, hashed, behind the context.
    let signed = std::fs::read(bench.path("policy.wasm"))?;
    assert!(signed.starts_with(&unsigned));
    let section = String::from_utf8_lossy(&signed[unsigned.len()..]).into_owned();
    let section: Value = serde_json::from_str(&section[section.find('{').context("JSON")?..])?;
    bench.write("signature.b64", section["signature"].as_str().context("a signature")?)?;
    bench.write("signed-bytes", &unsigned)?;
    let message = "{ printf 'postern:policy-signature:v1\\n'; openssl dgst -sha256 -binary signed-bytes; } > message; \
                   openssl base64 -d -A -in signature.b64 -out signature; \
                   openssl pkeyutl -verify -pubin -inkey ops.pub -rawin -in message -sigfile signature";
    let output = Command::new("bash").args(["-c", message]).current_dir(bench.0.path()).output()?;
    assert!(output.status.success(), "{}", said(&output));
    bench.write("signed-bytes", [&unsigned[..], b"x"].concat())?;
    assert!(!Command::new("bash").args(["-c", message]).current_dir(bench.0.path()).output()?.status.success());
    assert!(openssl(&["genpkey", "-algorithm", "x25519", "-out", "other.key"])?.status.success());
    bench.refused(&["sign", "policy.wasm", "--key", "other.key"], "not an Ed25519 key")
}

#[test]
fn a_changed_file_is_refused_with_its_reason() -> Result<()> {
    let bench = Bench::new()?;
    bench.packed("policy.wasm", "trap.wat", "full-policy", MANIFEST)?;
    let unsigned = std::fs::read(bench.path("policy.wasm"))?;
    bench.good(&["keygen", "--out", "ops"])?;
    bench.good(&["sign", "policy.wasm", "--key", "ops.key"])?;
    let signed = std::fs::read(bench.path("policy.wasm"))?;
    let signature = &signed[unsigned.len()..];
    let mut flipped = signed.clone();
    flipped[unsigned.len() / 2] ^= 1;
    let mut renamed = signed.clone();
    let name = renamed.windows(5).position(|window| window == b"tried").context("the name")?;
    renamed[name] = b'f';
    for (changed, words) in [
        (unsigned.clone(), "is not signed"),
        (flipped, ""),
        (renamed, "was changed after it was signed"),
        (signed[..signed.len() - 1].to_vec(), "is the file cut?"),
        ([&signed[..], b"\0\x05\x04note"].concat(), "something was added behind it"),
        ([&signed[..], signature].concat(), "two sections `postern:signature`"),
        ([&signed[..8], signature, &signed[8..unsigned.len()]].concat(), "something was added behind it"),
    ] {
        bench.write("changed.wasm", changed)?;
        bench.refused(&["verify", "changed.wasm", "--key", "ops.pub"], words)?;
    }
    Ok(())
}

#[test]
fn a_check_tells_what_a_policy_is() -> Result<()> {
    let bench = Bench::new()?;
    bench.packed("policy.wasm", "trap.wat", "full-policy", MANIFEST)?;
    let output = bench.plugin(&["check", "policy.wasm"])?;
    let text = String::from_utf8(output.stdout)?;
    assert_eq!(output.status.code(), Some(WRONG), "it traps: {text}");
    for words in [
        "policy.wasm: tried 0.3.1\n  For tests\n",
        "postern:policy/routing@1.",
        "the text of messages; the headers x-desk",
        "metrics       kept",
        "fits the schema",
        "signature     none",
        "no: it loads, but fails when it is asked about an empty request",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    bench.write("wrong.yaml", "limit: 5")?;
    bench.refused(&["check", "policy.wasm", "--config", "wrong.yaml"], "its configuration does not fit")?;
    bench.refused(&["check", "builtin:coffee"], "builtin:routing")?;
    bench.refused(&["check", "nowhere.wasm"], "nowhere.wasm")?;
    bench.refused(&["check", "core.wasm"], "postern plugin pack")?;
    let checked = bench.json(&["check", "builtin:redaction", "--json"])?;
    assert_eq!((&checked["loads"], &checked["fault"]), (&json!(true), &Value::Null), "{checked}");
    assert_eq!(checked["digest"].as_str().map(str::len), Some(64));
    assert!(checked["memory_bytes"].as_u64() > Some(64 << 10) && checked["size_bytes"].as_u64() > Some(10_000));
    Ok(())
}

#[test]
fn nothing_that_is_loaded_makes_it_panic() -> Result<()> {
    let bench = Bench::new()?;
    bench.packed("policy.wasm", "big-strings.wat", "caching-policy", MANIFEST)?;
    bench.good(&["keygen", "--out", "ops"])?;
    bench.good(&["sign", "policy.wasm", "--key", "ops.key"])?;
    let file = std::fs::read(bench.path("policy.wasm"))?;
    // A sequence without a pattern, the same each time (Knuth, MMIX).
    let mut state = 17_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    for round in 0..40 {
        let mut changed = file.clone();
        if round % 2 == 0 {
            changed.truncate(random(file.len()));
        } else {
            for _ in 0..=random(8) {
                changed[random(file.len())] ^= 1 << random(8);
            }
        }
        bench.write("changed.wasm", changed)?;
        for arguments in [&["check", "changed.wasm"][..], &["verify", "changed.wasm", "--key", "ops.pub"]] {
            let output = bench.plugin(arguments)?;
            let said = said(&output);
            let is_told = output.status.code() == Some(WRONG) && !said.contains("panicked");
            assert!(is_told || output.status.success(), "round {round}, {arguments:?}: {:?} {said}", output.status);
        }
    }
    Ok(())
}

const RULES: &str =
    "rules:\n- {model: big, placement: local}\n- {label: confidential, deny: not here}\ndefault: cloud\n";

#[test]
fn a_policy_is_asked_about_one_request() -> Result<()> {
    let bench = Bench::new()?;
    bench.write("rules.yaml", RULES)?;
    bench.write("request.yaml", "request: {model: big}")?;
    let run = |request: &str| bench.good(&["run", "builtin:routing", "--config", "rules.yaml", "--request", request]);
    assert!(run("request.yaml")?.starts_with("routing: local  ("));
    bench.write(
        "denied.json",
        r#"{"request": {"label": "confidential", "messages": [{"role": "user", "text": "x"}]}}"#,
    )?;
    assert!(run("denied.json")?.starts_with("routing: deny (not here)"));
    bench.write("misspelt.yaml", "request: {modle: big}")?;
    bench.refused(&["run", "builtin:routing", "--request", "misspelt.yaml"], "there is no `modle`")?;
    bench.write("texts.yaml", "segments: ['Call 13800138000, or write to ann.lee@example.org.']")?;
    let found = bench.json(&["run", "builtin:redaction", "--request", "texts.yaml", "--json"])?;
    let spans = found["steps"]["redaction"]["answer"].as_array().context("spans")?;
    let kinds: Vec<_> = spans.iter().map(|span| span["kind"].as_str().unwrap_or_default()).collect();
    assert_eq!(kinds, ["phone", "email"], "{found}");
    bench.refused(&["run", "builtin:redaction", "--request", "request.yaml"], "under `segments`")?;
    bench.packed("policy.wasm", "trap.wat", "full-policy", "name: tried\nversion: 0.3.1\n")?;
    let failed = bench.plugin(&["run", "policy.wasm", "--request", "request.yaml"])?;
    let text = String::from_utf8(failed.stdout)?;
    assert!(failed.status.code() == Some(1) && text.contains("routing: policy failed (trap)"), "{text}");
    Ok(())
}

/// A line as a gateway records it.
fn recorded(model: &str, label: &str, tokens: u64, answers: &Value) -> String {
    let request = json!({"identity": "spiffe://b.example/clerk/amy", "tenant": "clerks", "label": label,
        "labels": ["public", "internal", "confidential"], "label_sources": ["identity"], "model": model, "stream": false,
        "prompt_tokens": tokens, "messages": [{"role": "user", "bytes": tokens * 4}], "tools": false, "images": false,
        "temperature": null, "placement_asked": null, "conversation": "c", "time": 1_795_000_000, "utc_offset_minutes": 0,
        "tokens_left": null, "headers": []});
    let target = json!({"name": "sun", "placement": "cloud", "clearance": "internal", "healthy": true,
        "predicted_ttft_ms": null, "queue_depth": 0, "price": null, "requests_left": null});
    let line = json!({"version": 1, "record": format!("r-{model}-{tokens}"), "seed": 1, "request": request,
        "fleet": {"targets": [target]}, "final_label": label, "answers": answers});
    format!("{line}\n")
}

#[test]
fn recorded_requests_show_which_decisions_change() -> Result<()> {
    let bench = Bench::new()?;
    let verdict = json!({"placement": "cloud", "targets": [], "model": null, "label": null, "deny": null, "weight": null,
        "annotations": []});
    let answers = json!([{"policy": "rules", "version": "1.0.0", "digest": "00", "answer": {"route": verdict}},
        {"policy": "other", "digest": "00", "answer": {"route-failed": "trap"}}]);
    let lines = [("small", "public"), ("big", "public"), ("small", "confidential"), ("small", "internal")];
    let records: String =
        lines.iter().zip(1..).map(|((model, label), n)| recorded(model, label, n, &answers)).collect();
    bench.write("records.jsonl", &records)?;
    bench.write("rules.yaml", RULES)?;
    bench.write("none.yaml", "default: cloud")?;
    let replay = ["replay", "builtin:routing", "--records", "records.jsonl", "--config", "rules.yaml"];
    let with = |more: &[&'static str]| [&replay[..], more].concat();
    let text = bench.good(&with(&["--name", "rules"]))?;
    assert!(text.contains("4 requests, 4 decisions compared, 2 changed, 0 failed"), "{text}");
    let rows: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(
        rows.iter()
            .any(|row| row[..]
                == ["2", "spiffe://b.example/clerk/amy", "public", "big", "2", "routing", "cloud", "local"]),
        "{text}"
    );
    assert!(text.contains("deny (not here)"), "{text}");
    let one = bench.good(&with(&["--name", "rules", "--rows", "1"]))?;
    assert!(one.contains("and 1 more"), "{one}");
    let against = bench.json(&with(&["--against", "builtin:routing", "--against-config", "none.yaml", "--json"]))?;
    assert_eq!(
        (&against["changed"], &against["changes"][1]["after"]),
        (&json!(2), &json!("deny (not here)")),
        "{against}"
    );
    let same = bench.json(&with(&["--against", "builtin:routing", "--json"]))?;
    assert_eq!((&same["compared"], &same["changed"]), (&json!(4), &json!(0)), "{same}");
    bench.refused(&with(&["--name", "nobody"]), "there are answers of other, rules")?;
    // A gateway that writes just now.
    bench.write("records.jsonl", format!("{records}\n{{\"version\": 1, \"rec"))?;
    assert!(bench.good(&with(&["--name", "rules"]))?.contains("4 requests,"));
    bench.write("records.jsonl", records + "{\"not\": \"a request\"}\n")?;
    bench.refused(&with(&["--name", "rules"]), "line 5 is not a recorded request")?;
    bench.refused(&["replay", "builtin:redaction", "--records", "records.jsonl"], "recordings have none")
}

#[test]
fn what_a_policy_costs_is_measured() -> Result<()> {
    let bench = Bench::new()?;
    for (policy, step) in
        [("builtin:routing", "routing"), ("builtin:caching", "caching"), ("builtin:redaction", "redaction")]
    {
        let cost = bench.json(&["bench", policy, "--calls", "100", "--json"])?;
        let measured = &cost["steps"][0];
        assert_eq!((&measured["step"], &cost["calls"]), (&json!(step), &json!(100)), "{cost}");
        let number = |name: &str| measured[name].as_f64().unwrap_or_default();
        assert!(number("p50_us") > 0.0 && number("p50_us") <= number("p99_us"), "{cost}");
        assert!(number("instructions") > 100.0 && number("memory_bytes") >= 65_536.0, "{cost}");
    }
    let text = bench.good(&["bench", "builtin:routing", "--calls", "10"])?;
    assert!(text.contains("step     p50") && text.contains("µs"), "{text}");
    Ok(())
}

#[test]
fn a_new_project_is_the_example_under_another_name() -> Result<()> {
    let bench = Bench::new()?;
    for (lang, file) in
        [("rust", "src/lib.rs"), ("js", "policy.js"), ("python", "app.py"), ("c", "policy.c"), ("zig", "policy.zig")]
    {
        let name = format!("night-{lang}");
        bench.good(&["new", "--lang", lang, &name])?;
        let read = |file: &str| std::fs::read_to_string(bench.path(&name).join(file));
        assert!(read("manifest.yaml")?.starts_with(&format!("name: {name}\n")));
        assert!(read(file)?.len() > 500 && read("wit/types.wit")?.contains("request-facts"));
        assert!(!read("build.sh")?.contains("../.."), "{}", read("build.sh")?);
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&bench.path(&name).join("build.sh").metadata()?.permissions());
        assert_eq!(mode & 0o111, 0o111);
        bench.refused(&["new", "--lang", lang, &name], "is there already")?;
    }
    bench.refused(&["new", "--lang", "rust", "Night_Shift"], "is no name for a policy")?;
    assert!(!bench.path("Night_Shift").exists());
    let unknown = bench.plugin(&["new", "--lang", "cobol", "night"])?;
    assert!(said(&unknown).contains("zig") && unknown.status.code() == Some(2));
    Ok(())
}
