//! Every example configuration is accepted by the real binary, and what is wrong is named with its place.

use anyhow::Result;
use postern_tests::postern::{check, run};
use postern_tests::{BusyCloud, Config};
use serde_json::json;

use crate::config;

#[test]
fn every_example_configuration_loads() -> Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config");
    let mut checked = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let output = run(&["check", "--config", path.to_str().unwrap()])?;
            assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
            checked += 1;
        }
    }
    assert!(checked >= 3, "{checked} examples in {folder}");
    Ok(())
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_its_place() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    for (wrong, expected) in [
        (config(&cloud).set("/lisen", json!("127.0.0.1:0")), "lisen"),
        (config(&cloud).set("/timeouts", json!({"connect": 2})), "such as 20ms"),
        (config(&cloud).policy("mine", "no-such-policy.wasm", json!({})), "no component at"),
        (config(&cloud).set("/targets/0/clearance", json!("secret")), "expected one of: public"),
        (config(&cloud).set("/targets/0/openai/api_key", json!("sk-written-in-the-wrong-place")), "{env: NAME}"),
        (config(&cloud).policy("typo", "builtin:redaction", json!({"kinds": ["emial"]})), "`/kinds/0`"),
        (
            config(&cloud).set("/targets/0/openai/base_url", json!("https://x/v1/chat/completions")),
            "base_url ends with",
        ),
        (config(&cloud).set("/identities", json!([])), "nobody could ask"),
        (Config::yaml("state_dir: a\nstate_dir: b\n"), "the same key twice: state_dir; write each key once"),
    ] {
        let output = check(&wrong)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("postern.yaml:") && said.to_lowercase().contains(&expected.to_lowercase()), "{said}");
        let has_place = said.contains("line ") || said.contains("postern.yaml:") && said.matches(':').count() >= 3;
        assert!(has_place, "{said}");
        assert!(!said.contains("sk-written"), "{said}");
    }
    assert!(check(&Config::new())?.status.success());
    Ok(())
}

#[tokio::test]
async fn a_check_says_what_will_hardly_work() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let good = check(&config(&cloud))?;
    let said = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(said.ends_with("(3 identity rules, 1 target, 3 policies)\n") && !said.contains("warning"), "{said}");
    let odd = check(&config(&cloud).set("/targets/0/openai/ca", json!("gone.pem")).set("/offline", json!(true)))?;
    let said = String::from_utf8_lossy(&odd.stdout).into_owned();
    assert!(
        odd.status.success() && said.contains("gone.pem, is not there") && said.contains("nobody may answer"),
        "{said}"
    );
    let redis = json!({"memory": "16MiB", "ttl": "3600s", "redis": {"url": "redis://127.0.0.1:6379"}});
    let apart = check(&config(&cloud).set("/cache", redis).set("/offline", json!(true)))?;
    let said = String::from_utf8_lossy(&apart.stdout).into_owned();
    assert!(said.contains("`cache.redis` is not used while"), "{said} {}", String::from_utf8_lossy(&apart.stderr));
    // A name is labelled, not a model: where another name leads to the same one, somebody may not have meant it.
    let (one, two) = (json!({"models": {"hr": "internal"}}), json!({"models": {"hr*": "classified"}}));
    for (rules, models, expected) in [
        (&one, json!({}), "target `sun` takes any name"),
        (&one, json!({"hr": "large", "chat": "large"}), "target `sun` calls `chat` the same"),
        (&two, json!({}), "the label classified, which no target is cleared for"),
    ] {
        let warned =
            check(&config(&cloud).set("/classification", rules.clone()).set("/targets/0/models", models.clone()))?;
        let said = String::from_utf8_lossy(&warned.stdout).into_owned();
        assert!(warned.status.success() && said.contains(expected), "{rules} {models}: {said}");
        assert_eq!(said.matches("warning").count(), 1, "{said}");
    }
    let hand = run(&["gateway", "--config", "postern.yaml"])?;
    let said = String::from_utf8_lossy(&hand.stderr).into_owned();
    assert!(hand.status.code() == Some(78) && said.contains("a part of `postern run`"), "{said}");
    Ok(())
}

#[test]
fn what_does_not_get_better_by_itself_ends_with_78_and_anything_else_with_1() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("postern.yaml");
    let start = |state_dir: &std::path::Path| -> Result<(Option<i32>, String)> {
        std::fs::write(&file, Config::new().render(state_dir))?;
        let output = run(&["run", "--config", file.to_str().unwrap()])?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let (code, said) = start(&file.join("below-a-file"))?;
    assert!(code == Some(78) && said.contains("state_dir") && said.contains("below-a-file"), "{code:?} {said}");
    let open = dir.path().join("open");
    std::fs::create_dir(&open)?;
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let (code, said) = start(&open)?;
    assert!(code == Some(78) && said.contains("chmod 700"), "{code:?} {said}");
    let good = dir.path().join("good");
    std::fs::create_dir(&good)?;
    std::fs::set_permissions(&good, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let lock = std::fs::File::create(good.join("running.lock"))?;
    lock.lock()?;
    let (code, said) = start(&good)?;
    assert!(code == Some(1) && said.contains("another postern runs"), "{code:?} {said}");
    Ok(())
}

#[test]
fn the_schema_names_every_key_of_the_example() -> Result<()> {
    let schema: serde_json::Value = serde_json::from_slice(&run(&["config", "schema"])?.stdout)?;
    for key in ["listen", "identities", "targets", "policies", "engine", "offline", "classification"] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
    assert_eq!(schema["additionalProperties"], false);
    Ok(())
}
