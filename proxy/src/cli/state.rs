//! `postern state`: what a gateway keeps.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use postern_certs::SpiffeId;

use super::{say, warn};
use crate::config::{self, Config};
use crate::erase::Wish;
use crate::keys::Keys;
use crate::keys::tenants::TenantKeys;
use crate::request::Peer;
use crate::supervise::folder;

/// How long the command waits for the gateway.
const WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Names that are listed for somebody who has mistyped one.
const MAX_LISTED: usize = 20;

/// What a gateway keeps.
#[derive(Debug, Subcommand)]
pub(super) enum StateCommand {
    /// Destroy the keys of what is kept of a tenant: its cached answers, and what its hashes in the records are of.
    Erase(Erase),
}

/// Whose.
#[derive(Debug, Args)]
pub(super) struct Erase {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The tenant that a rule of `identities` names; where none does, the SPIFFE ID.
    #[arg(long, value_name = "TENANT")]
    tenant: String,
}

pub(super) fn run(command: &StateCommand) -> anyhow::Result<ExitCode> {
    let StateCommand::Erase(Erase { config: file, tenant }) = command;
    let config = config::load(file)?;
    ensure!(!tenant.is_empty() && tenant.len() <= 2048, "--tenant: a name of 1 to 2048 bytes");
    let (wish, state_dir) = (Wish { tenant: tenant.clone() }, &config.audit.state_dir);
    // Somebody who has mistyped a name would be told that something was destroyed, and it would be on record so.
    if !is_configured(&config, tenant) && !wish.waits(state_dir) && !has_key(&config, tenant)? {
        warn(&nothing_kept(&config, tenant));
        return Ok(ExitCode::FAILURE);
    }
    let done = wish.leave(state_dir).context("state_dir")?;
    let until = Instant::now() + WITHIN;
    while !done.exists() {
        if Instant::now() > until {
            warn(&not_yet(&config, folder::is_taken(state_dir), &done));
            return Ok(ExitCode::FAILURE);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    say(&erased(&config, tenant));
    Ok(ExitCode::SUCCESS)
}

/// Whether somebody is of this tenant by the rules.
fn is_configured(config: &Config, tenant: &str) -> bool {
    let by_rule = config.identities.iter().any(|rule| rule.tenant.as_deref() == Some(tenant));
    by_rule || own_tenant(config, tenant).as_deref() == Some(tenant)
}

/// Of which tenant a SPIFFE ID is; `None`: it is none, or no rule matches it.
fn own_tenant(config: &Config, id: &str) -> Option<String> {
    let id: SpiffeId = id.parse().ok()?;
    Some(Peer::resolve(config, &id).ok()?.tenant.to_string())
}

/// Whether a gateway with this `state_dir` has kept something of it. Who was taken out of the configuration has a key still.
fn has_key(config: &Config, tenant: &str) -> anyhow::Result<bool> {
    let shared = config.replicas.as_ref().and_then(|replicas| replicas.key.as_ref());
    let keys = match shared {
        Some(key) => {
            let unseen = |what| {
                format!(
                    "no rule of the configuration names `{tenant}`, and whether it has a key cannot be seen: `replicas.key` {what}"
                )
            };
            Some(Keys::shared(key).map_err(|what| anyhow::anyhow!(unseen(what)))?)
        }
        None => Keys::present(&config.state_dir).context("state_dir")?,
    };
    Ok(keys.is_some_and(|keys| TenantKeys::has(&config.state_dir, &keys, tenant)))
}

fn nothing_kept(config: &Config, tenant: &str) -> String {
    if let Some(other) = own_tenant(config, tenant) {
        return format!("nothing is kept under `{tenant}`: by the rules of this file it is of the tenant `{other}`");
    }
    let named: BTreeSet<&str> = config.identities.iter().filter_map(|rule| rule.tenant.as_deref()).collect();
    let mut listed: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
    let alone = config.identities.iter().filter(|rule| rule.tenant.is_none());
    listed.extend(alone.map(|rule| format!("each SPIFFE ID of {} by itself", rule.pattern)));
    let more = listed.len().saturating_sub(MAX_LISTED);
    listed.truncate(MAX_LISTED);
    if more > 0 {
        listed.push(format!("{more} more"));
    }
    let elsewhere = match config.cache.as_ref().is_some_and(|cache| cache.redis.is_some()) {
        true => {
            ". Of a tenant that only another replica has served, and that no rule names any more, say it there, or name a file with --config that has its rule"
        }
        false => "",
    };
    format!("nothing is kept under `{tenant}`; tenants in this file: {}{elsewhere}", listed.join(", "))
}

/// `runs`: whether a gateway does, if that can be seen.
fn not_yet(config: &Config, runs: Option<bool>, done: &Path) -> String {
    let has_redis = config.cache.as_ref().is_some_and(|cache| cache.redis.is_some());
    let why = match (runs, has_redis) {
        (Some(false), _) => "no gateway runs with this state_dir. The next one that does will do it",
        (Some(true), true) => {
            "the gateway could not do it within 10 s: the Redis of the cache is away, perhaps, or the gateway is offline; its log says which. It goes on trying"
        }
        (Some(true), false) => "the gateway has not done it within 10 s; its log says why. It goes on trying",
        (None, _) => {
            "the gateway has not done it within 10 s: it does not run with this state_dir, or its log says why. It is done as soon as it can be"
        }
    };
    format!("not done yet: {why}; {} is there then", done.display())
}

fn erased(config: &Config, tenant: &str) -> String {
    let mut said = format!("the keys of {tenant} are destroyed");
    if config.replicas.is_some() {
        said.push_str(
            ". Run this on each replica: what another holds in memory, and its own keys of hashes, stay until then",
        );
    }
    if config.cache.as_ref().is_some_and(|cache| cache.redis.is_some()) {
        said.push_str(". A copy of the Redis from before holds keys and answers still");
    }
    said
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn config(dir: &Path, more: &str) -> Config {
        let text = format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nstate_dir: {}\ntrust: {{domain: b.example}}\nidentities:\n  - {{match: 'spiffe://b.example/clerk/*', tenant: clerks}}\n  - {{match: 'spiffe://b.example/guest/*'}}\n{more}",
            dir.display()
        );
        config::parse(&text, Path::new("/nowhere/postern.yaml")).unwrap()
    }

    #[tokio::test]
    async fn a_name_counts_if_a_rule_yields_it_or_a_key_of_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "");
        let is_known = |name| is_configured(&config, name) || has_key(&config, name).unwrap();
        assert!(is_known("clerks") && is_known("spiffe://b.example/guest/x"));
        for unknown in ["clerk", "Clerks", "spiffe://b.example/clerk/amy", "spiffe://b.example/x/y", "officers"] {
            assert!(!is_known(unknown), "{unknown}");
        }
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "looking makes nothing");
        // Who had a rule once has a key still, until it is destroyed.
        let keys = Arc::new(TenantKeys::open(dir.path(), &Keys::open(dir.path()).unwrap()).unwrap());
        keys.of("officers").await.unwrap();
        keys.of("spiffe://b.example/clerk/amy").await.unwrap();
        assert!(is_known("officers") && is_known("spiffe://b.example/clerk/amy") && !is_known("clerk"));
        keys.erase("officers").unwrap();
        assert!(!is_known("officers"));
    }

    #[test]
    fn what_is_said_is_of_this_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, done) = (config(dir.path(), ""), Path::new("x.done"));
        assert_eq!(
            nothing_kept(&plain, "clerk"),
            "nothing is kept under `clerk`; tenants in this file: clerks, each SPIFFE ID of spiffe://b.example/guest/* by itself"
        );
        assert!(nothing_kept(&plain, "spiffe://b.example/clerk/amy").ends_with("it is of the tenant `clerks`"));
        assert_eq!(erased(&plain, "clerks"), "the keys of clerks are destroyed");
        let alone = not_yet(&plain, Some(false), done);
        assert!(alone.contains("no gateway runs with this state_dir") && !alone.contains("Redis"), "{alone}");
        assert!(!not_yet(&plain, Some(true), done).contains("Redis"));
        let redis = "cache: {redis: 'redis://127.0.0.1:6379'}\nreplicas: {count: 2, key: {env: KEY}}\n";
        let shared = config(dir.path(), redis);
        let said = erased(&shared, "clerks");
        assert!(said.contains("on each replica") && said.contains("copy of the Redis"), "{said}");
        assert!(not_yet(&shared, Some(true), done).contains("Redis"));
        assert!(!not_yet(&shared, Some(false), done).contains("Redis"));
    }
}
