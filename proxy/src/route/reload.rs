//! Exchanges the policies while requests go on: reads the configuration anew, compiles what has changed, tries it beside what is
//! there, and swaps. A request sees one set of policies from its beginning to its end; what is broken is refused as a whole, and what
//! was there stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::signal::unix::Signal;
use tokio::sync::{Mutex, Semaphore};

use super::load::Loader;
use super::loaded::Loaded;
use super::recent::Recent;
use super::served::Served;
use super::watch::Marks;
use super::{Policies, probe};
use crate::audit::{Action, RecordId};
use crate::config::{self, Config, ConfigError, PolicyPart};
use crate::gateway::Gateway;
use crate::telemetry::metrics::Metrics;

/// How often files are looked at. What has changed is read when it has looked the same twice: until then somebody may be writing it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The policies in force, and how they are exchanged.
#[derive(Debug)]
pub struct Live {
    policies: ArcSwap<Policies>,
    loader: Loader,
    file: PathBuf,
    state_dir: PathBuf,
    /// The last requests.
    pub recent: Recent,
    /// Held by the reload that an operator asked for.
    pub asked: Arc<Semaphore>,
    /// One reload at a time. How the files looked when they were read last.
    read: Mutex<Marks>,
    /// SHA-256 of the configuration that the gateway was started with.
    began_with: String,
    last: ArcSwap<Report>,
    metrics: Arc<Metrics>,
}

/// How a reload ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// When.
    pub at: SystemTime,
    /// What has changed, in words, or why nothing did.
    pub result: Result<Vec<String>, String>,
    /// Keys of the configuration that were changed and take a restart.
    pub needs_restart: Vec<String>,
}

/// What asked for a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// SIGHUP.
    Signal,
    /// `POST /api/reload`.
    Operator,
    /// A file looks different.
    File,
}

impl Live {
    /// Loads the policies for the first time. `file` is the configuration, to be read again later.
    ///
    /// # Errors
    /// As for [`Loader::load`].
    pub fn start(
        loader: Loader,
        (file, state_dir): (&Path, &Path),
        part: &PolicyPart,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ConfigError> {
        let policies = loader.load(file, part, None)?;
        Served::accept(&policies, state_dir).map_err(|message| ConfigError::Invalid {
            file: file.display().to_string(),
            line: 0,
            column: 0,
            message,
        })?;
        metrics.reloaded(true);
        let report = Report { at: SystemTime::now(), result: Ok(Vec::new()), needs_restart: Vec::new() };
        Ok(Self {
            policies: ArcSwap::from_pointee(policies),
            loader,
            file: file.to_owned(),
            state_dir: state_dir.to_owned(),
            recent: Recent::default(),
            asked: Arc::new(Semaphore::new(1)),
            // Of no file, so that the first look reads everything once more: something may have changed since it was read.
            read: Mutex::new(Marks::default()),
            began_with: digest(file),
            last: ArcSwap::from_pointee(report),
            metrics,
        })
    }

    /// The policies that are in force now.
    #[must_use]
    pub fn policies(&self) -> Arc<Policies> {
        self.policies.load_full()
    }

    /// How the last reload ended.
    #[must_use]
    pub fn last(&self) -> Arc<Report> {
        self.last.load_full()
    }

    /// Tries every policy, and tells the log which do not work.
    pub async fn try_all(&self) {
        for loaded in self.policies().all() {
            for (step, failure) in probe::empty(loaded).await {
                loaded.health.tried(step, Some(failure.kind));
                let (policy, step, kind) = (loaded.name(), step.name(), failure.kind.name());
                tracing::warn!(policy, step, kind, detail = %failure.detail, "a policy failed when it was tried: while it does, every request is treated as its `on_failure` says");
            }
        }
    }

    /// Reads everything anew and puts it in force, if all of it is good. `running` is the configuration that the gateway was started
    /// with: of the new one, only what concerns policies is used.
    pub async fn reload(&self, running: &Config, cause: Cause) -> Arc<Report> {
        let mut read = self.read.lock().await;
        let (marks, report) = self.attempt(running).await;
        // Last, so that a reload that is given up half way is made up for when files are looked at the next time.
        *read = marks;
        self.metrics.reloaded(report.result.is_ok());
        report.log(cause);
        let report = Arc::new(report);
        self.last.store(report.clone());
        report
    }

    /// Reloads when files have changed or SIGHUP comes, for as long as the gateway runs.
    pub async fn keep(self: Arc<Self>, gateway: Arc<Gateway>, mut hangup: Signal) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before = None;
        loop {
            tokio::select! {
                _ = hangup.recv() => self.reload_and_record(&gateway, Cause::Signal).await,
                _ = ticks.tick() => {
                    let now = self.look().await;
                    if now.is_some() && now == before {
                        self.reload_and_record(&gateway, Cause::File).await;
                    }
                    before = now;
                }
            }
        }
    }

    async fn reload_and_record(&self, gateway: &Gateway, cause: Cause) {
        let is_first_look = cause == Cause::File && *self.read.lock().await == Marks::default();
        let report = self.reload(&gateway.config, cause).await;
        // Nobody has changed anything: it was read once more.
        let is_as_it_began = report.result.as_ref().is_ok_and(Vec::is_empty) && self.digest().await == self.began_with;
        if is_first_look && is_as_it_began {
            return;
        }
        let by = if cause == Cause::Signal { "signal" } else { "file" };
        let result = if report.result.is_ok() { "done" } else { "failed" };
        let action = Action { by: by.into(), action: "reload", subject: Some(self.digest().await), result };
        if gateway.audit.action(RecordId::new(), &action).await.is_err() {
            tracing::error!("a reload could not be recorded");
        }
    }

    /// SHA-256 of the configuration as it is now, for records.
    pub async fn digest(&self) -> String {
        let file = self.file.clone();
        tokio::task::spawn_blocking(move || digest(&file)).await.unwrap_or_default()
    }

    /// How the files look, if that is not how they looked when they were read.
    async fn look(&self) -> Option<Marks> {
        let read = self.read.lock().await.clone();
        let file = self.file.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let mut now = read.again();
            now.extend(Marks::of([file.as_path()]));
            (now != read).then_some(now)
        });
        looked.await.ok().flatten()
    }

    async fn attempt(&self, running: &Config) -> (Marks, Report) {
        let (old, loader, file) = (self.policies(), self.loader.clone(), self.file.clone());
        let before = old.clone();
        let loading = tokio::task::spawn_blocking(move || {
            // Before they are read: a change that comes in between is seen the next time.
            let mut marks = Marks::of([file.as_path()]);
            let loaded = config::load(&file).and_then(|config| {
                marks.extend(Marks::of(config.policy_part.files()));
                Ok((loader.load(&file, &config.policy_part, Some(&before))?, config.sections))
            });
            (marks, loaded.map_err(|error| error.to_string()))
        });
        let at = SystemTime::now();
        let broken = |why: String| Report { at, result: Err(why), needs_restart: Vec::new() };
        let (new, sections, marks) = match loading.await {
            Ok((marks, Ok((new, sections)))) => (new, sections, marks),
            Ok((marks, Err(why))) => return (marks, broken(why)),
            Err(_) => return (Marks::default(), broken("loading broke off".to_owned())),
        };
        let needs_restart = running.sections.needing_restart(&sections);
        if let Err(why) = probe::compare(running, &new, &old, &self.recent.all()).await {
            return (marks, Report { needs_restart, ..broken(why) });
        }
        // What a start would refuse must not come into force here either.
        let (new, state_dir) = (Arc::new(new), self.state_dir.clone());
        let accepted = tokio::task::spawn_blocking({
            let new = new.clone();
            move || Served::accept(&new, &state_dir)
        });
        if let Err(why) = accepted.await.unwrap_or_else(|_| Err("accepting broke off".to_owned())) {
            return (marks, Report { needs_restart, ..broken(why) });
        }
        let changes = changes(&old, &new);
        // Also if nothing has changed: the order may have, or where a policy stands in the file.
        self.policies.store(new);
        (marks, Report { at, result: Ok(changes), needs_restart })
    }
}

impl Report {
    fn log(&self, cause: Cause) {
        let restart = self.needs_restart.join(", ");
        match &self.result {
            Ok(changes) if changes.is_empty() && restart.is_empty() && cause == Cause::File => {
                tracing::debug!("files were touched; nothing has changed");
            }
            Ok(changes) => {
                let changes = if changes.is_empty() { "none".to_owned() } else { changes.join("; ") };
                tracing::info!(changes, "the policies were reloaded");
            }
            Err(why) => {
                tracing::error!(
                    why,
                    "the policies were not reloaded, and those that were there stay; mend what is wrong"
                );
            }
        }
        if !restart.is_empty() {
            tracing::warn!(
                keys = restart,
                "keys of the configuration were changed that take a restart; until then they count as they were"
            );
        }
    }
}

/// What is different, in words.
fn changes(old: &Policies, new: &Policies) -> Vec<String> {
    let mut changes = Vec::new();
    for loaded in new.all() {
        let name = loaded.name();
        match old.named(name) {
            None => changes.push(format!("policy {name} is new, {}", version(loaded))),
            Some(before) if Arc::ptr_eq(before, loaded) => {}
            Some(before) if before.version.digest != loaded.version.digest => {
                changes.push(format!("policy {name}: {} in place of {}", version(loaded), version(before)));
            }
            Some(_) => changes.push(format!("policy {name}: configured anew")),
        }
    }
    let gone = old.all().iter().filter(|before| new.named(before.name()).is_none());
    changes.extend(gone.map(|before| format!("policy {} is gone", before.name())));
    let names = |policies: &Policies| policies.all().iter().map(|loaded| loaded.name().to_owned()).collect::<Vec<_>>();
    if changes.is_empty() && names(old) != names(new) {
        changes.push("the order of the policies".to_owned());
    }
    if old.routing() != new.routing() {
        changes.push("routing".to_owned());
    }
    if old.answers() != new.answers() {
        changes.push("answers".to_owned());
    }
    if old.recorder().map(|recorder| recorder.settings()) != new.recorder().map(|recorder| recorder.settings()) {
        changes.push("plugins.record".to_owned());
    }
    changes
}

fn version(loaded: &Loaded) -> String {
    let version = &loaded.version;
    match version.version.as_str() {
        "" => format!("file {}", version.digest),
        number => format!("version {number} ({})", version.digest),
    }
}

/// SHA-256 of the configuration, as hexadecimal digits; empty if it cannot be read.
pub(crate) fn digest(file: &std::path::Path) -> String {
    use sha2::Digest as _;
    std::fs::read(file)
        .map_or_else(|_| String::new(), |text| data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(text)))
}
