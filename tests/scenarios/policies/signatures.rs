//! Who may bring policies: only those whose keys the configuration names, and a file that was changed since does not load.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use postern_tests::postern::check;
use postern_tests::{BusyCloud, Config, Postern};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Puppet, ask, config, described, path, postern_plugin, until, with};

/// Makes `NAME.key` and `NAME.pub`.
fn keys(puppet: &Puppet, name: &str) -> Result<(PathBuf, PathBuf)> {
    postern_plugin(&["plugin", "keygen", "--out", path(&puppet.at(name))])?;
    Ok((puppet.at(&format!("{name}.key")), puppet.at(&format!("{name}.pub"))))
}

fn signed(puppet: &Puppet, file: &Path, key: &Path, name: &str) -> Result<PathBuf> {
    let out = puppet.at(name);
    postern_plugin(&["plugin", "sign", path(file), "--key", path(key), "--out", path(&out)])?;
    Ok(out)
}

fn refusing(cloud: &BusyCloud, puppet: &Puppet, key: &Path) -> Config {
    let config = config(cloud, puppet.policy(json!({"tell_version": true})));
    config.set("/plugins/unsigned", json!("refuse")).set("/plugins/keys", json!([key]))
}

#[tokio::test]
async fn only_what_was_signed_by_the_right_key_and_not_changed_loads() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    let (ours, our_public) = keys(&puppet, "ours")?;
    let (theirs, _) = keys(&puppet, "theirs")?;
    let (one, two) = (puppet.version(1, &[])?, puppet.version(2, &[])?);
    let good = signed(&puppet, &one, &ours, "good.wasm")?;
    let foreign = signed(&puppet, &two, &theirs, "foreign.wasm")?;
    // The same length: only the signature can tell.
    let tampered = puppet.at("tampered.wasm");
    let mut bytes = std::fs::read(signed(&puppet, &two, &ours, "two.wasm")?)?;
    let at = bytes.windows(21).position(|bytes| bytes == b"puppet-version-000002").unwrap();
    bytes[at + 20] = b'3';
    std::fs::write(&tampered, bytes)?;
    let bad = [
        (&two, "it is not signed"),
        (&foreign, "which is none of those that are trusted"),
        (&tampered, "changed after it was signed"),
    ];

    // At the start, and by `postern check`, with the place in the configuration.
    let config = refusing(&cloud, &puppet, &our_public);
    for (file, why) in bad {
        puppet.install(file)?;
        let checked = check(&config)?;
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(checked.status.code(), Some(78), "{said}");
        assert!(said.contains(why) && said.contains("policy `puppet`") && !said.contains("postern.yaml:0"), "{said}");
        let refused = format!("{:#}", Postern::start(&config).await.unwrap_err());
        assert!(refused.contains(why), "{refused}");
    }
    puppet.install(&good)?;
    assert!(check(&config)?.status.success());
    let postern = Postern::start(&config).await?;
    let first = described(&postern, "puppet").await?;
    let signer = first["signer"].as_str().unwrap().to_owned();
    assert_eq!((signer.len(), &first["version"]), (32, &json!("1.1.0")));

    // In the place of one that runs.
    let client = postern.client("clerk/amy")?;
    for (file, why) in bad {
        puppet.install(file)?;
        let refused = postern.admin_post("/api/reload").await?;
        assert_eq!(refused.status, 422);
        assert!(refused.json()?["error"].as_str().unwrap().contains(why), "{}", refused.text());
        assert_eq!(postern.metrics().await?.value("postern_config_last_reload_successful", &[]), Some(0.0));
        assert_eq!(described(&postern, "puppet").await?["version"], "1.1.0");
        assert_eq!(ask(&client, "chat", "Hello").await?.status, 200, "the old one goes on");
    }
    puppet.install(&signed(&puppet, &two, &ours, "two.wasm")?)?;
    assert_eq!(postern.admin_post("/api/reload").await?.status, 200);
    let second = described(&postern, "puppet").await?;
    assert_eq!((&second["version"], second["signer"].as_str()), (&json!("1.2.0"), Some(&*signer)));
    assert_eq!(postern.metrics().await?.value("postern_config_last_reload_successful", &[]), Some(1.0));

    // A key that is trusted no more takes what it signed along.
    let other = keys(&puppet, "other")?.1;
    postern.configure(&refusing(&cloud, &puppet, &other))?;
    assert_eq!(postern.admin_post("/api/reload").await?.status, 422);
    Ok(())
}

/// A pipe that nobody writes to, and a device without an end: a reload that waited for them would be the last one.
#[tokio::test]
async fn a_key_that_is_no_file_is_refused_and_later_reloads_go_on() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let good = config(&cloud, puppet.policy(json!({})));
    let postern = Postern::start(&good).await?;
    let pipe = puppet.at("ops.pub");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status()?.success());
    for endless in [pipe.as_path(), Path::new("/dev/zero")] {
        postern.configure(&good.clone().set("/plugins/keys", json!([endless])))?;
        let reload = tokio::time::timeout(crate::SOON, postern.admin_post("/api/reload"));
        let refused = reload.await.context("a reload that waits for ever")??;
        assert!(refused.status == 422 && refused.text().contains("not a regular file"), "{}", refused.text());
        postern.configure(&good)?;
        assert_eq!(postern.admin_post("/api/reload").await?.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_does_not_fit_is_named_with_its_place() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    let schema = json!({
        "type": "object", "additionalProperties": false,
        "properties": {"at_most": {"type": "integer", "minimum": 1}, "tell_version": {"type": "boolean"}},
    });
    puppet.first(&[("config_schema", schema)])?;
    let of = |section: Value| config(&cloud, puppet.policy(section));
    assert!(check(&of(json!({"at_most": 3})))?.status.success());
    for (wrong, words) in [(json!({"at_most": 0}), "at_most"), (json!({"atmost": 3}), "atmost")] {
        let checked = check(&of(wrong))?;
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(checked.status.code(), Some(78), "{said}");
        let place = said.split("postern.yaml:").nth(1).unwrap().split(':').next().unwrap();
        assert!(said.contains(words) && place.parse::<u32>().unwrap() > 1, "{said}");
    }
    let postern = Postern::start(&of(json!({"at_most": 3}))).await?;
    postern.configure(&of(json!({"at_most": "three"})))?;
    let refused = postern.admin_post("/api/reload").await?;
    assert!(refused.status == 422 && refused.text().contains("at_most"), "{}", refused.text());
    Ok(())
}

#[tokio::test]
async fn another_policy_of_the_same_author_does_not_take_its_place() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    let (key, public) = keys(&puppet, "ours")?;
    let file = |number: u32, name: &str| -> Result<PathBuf> {
        signed(&puppet, &puppet.version(number, &[("name", json!(name))])?, &key, &format!("{name}-{number}.wasm"))
    };
    let (old, good, other) = (file(1, "puppet")?, file(2, "puppet")?, file(3, "marionette")?);
    let expecting = |version: &str| -> Config {
        let policy = with(puppet.policy(json!({})), &[("expect", json!({"name": "puppet", "version": version}))]);
        let config = config(&cloud, policy);
        config.set("/plugins/unsigned", json!("refuse")).set("/plugins/keys", json!([public]))
    };
    puppet.install(&good)?;
    let postern = Postern::start(&expecting(">=1.2, <2")).await?;
    assert_eq!(described(&postern, "puppet").await?["manifest"], "puppet");
    for (file, is) in [(&old, "puppet 1.1.0"), (&other, "marionette 1.3.0")] {
        puppet.install(file)?;
        let refused = postern.admin_post("/api/reload").await?;
        let why = refused.json()?["error"].as_str().unwrap().to_owned();
        assert!(
            refused.status == 422 && why.contains("`expect` asks for puppet >=1.2, <2") && why.contains(is),
            "{why}"
        );
        assert!(!check(&expecting(">=1.2, <2"))?.status.success());
    }
    Ok(())
}

#[tokio::test]
async fn a_file_that_takes_part_at_fewer_steps_than_before_is_refused() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let postern = Postern::start(&config(&cloud, puppet.policy(json!({})))).await?;
    let routing = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/plugins/routing.wasm");
    puppet.install(&routing)?;
    let refused = postern.admin_post("/api/reload").await?;
    let why = refused.json()?["error"].as_str().unwrap().to_owned();
    assert!(refused.status == 422 && why.contains("does not take part at redaction"), "{why}");
    assert_eq!(described(&postern, "puppet").await?["version"], "1.1.0");
    // Nor does it come into force by a crash: text would leave unmasked, and nothing would say so.
    let said = || postern.log().matches("does not take part at redaction").count();
    let before = said();
    postern.signal_child("gateway", Signal::KILL)?;
    until(async || Ok((said() > before).then_some(()))).await?;
    Ok(())
}
