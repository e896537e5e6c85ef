//! At which steps each policy took part when it was in force last. A file that was exchanged while nobody looked, or that a reload has
//! refused, must not come into force at the next start: what was masked or kept here would not be any more, and nothing would say so.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use postern_certs::issue::write_beside;
use serde::{Deserialize, Serialize};

use super::Policies;
use super::health::Step;
use super::loaded::Loaded;
use crate::config::read::bounded;

/// In `state_dir`.
const FILE: &str = "policies.json";
/// Many more policies than there may be.
const MAX_BYTES: usize = 1 << 20;

/// What is kept, by the names of policies.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Served(BTreeMap<String, Entry>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    component: PathBuf,
    steps: Vec<String>,
}

impl Served {
    /// Keeps at which steps `policies` take part from now on. Reads and writes a file: not for a thread that must not wait.
    ///
    /// # Errors
    /// A file takes part at fewer steps than the one before in its place, or it cannot be seen whether it does; says what to do.
    pub fn accept(policies: &Policies, state_dir: &Path) -> Result<(), String> {
        let before = Self::read(state_dir)?;
        if let Some(missing) = before.missing(policies) {
            return Err(missing);
        }
        let now = Self::of(policies);
        if before == now {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&now).map_err(|error| error.to_string());
        let kept = text.and_then(|text| write_beside(state_dir, FILE, &text).map_err(|error| error.to_string()));
        if let Err(error) = kept {
            tracing::warn!(%error, "it could not be kept at which steps policies take part; free the disk or mend the folder");
        }
        Ok(())
    }

    /// What was in force before; nothing at the first start.
    fn read(state_dir: &Path) -> Result<Self, String> {
        let path = state_dir.join(FILE);
        let wrong = |error: &dyn std::fmt::Display| {
            format!("{}: {error}; if nobody exchanged the files of policies meanwhile, remove it", path.display())
        };
        match bounded(&path, MAX_BYTES) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| wrong(&error)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(wrong(&error)),
        }
    }

    fn of(policies: &Policies) -> Self {
        let entry = |loaded: &Loaded| {
            let steps = Step::ALL.into_iter().filter(|step| loaded.counts_at(*step)).map(|step| step.name().to_owned());
            Entry { component: loaded.settings.component.clone(), steps: steps.collect() }
        };
        Self(policies.all().iter().map(|loaded| (loaded.name().to_owned(), entry(loaded))).collect())
    }

    /// What `policies` leave out at the same places, in words.
    fn missing(&self, policies: &Policies) -> Option<String> {
        policies.all().iter().find_map(|loaded| {
            let before = self.0.get(loaded.name()).filter(|before| before.component == loaded.settings.component)?;
            let was = |step: &Step| before.steps.iter().any(|name| name == step.name());
            let step = Step::ALL.into_iter().find(|step| was(step) && !loaded.takes_part_at(*step))?;
            Some(format!(
                "policy `{}`: its file does not take part at {}, as the one before it does; if that is meant, give the entry \
                 another name",
                loaded.name(),
                step.name()
            ))
        })
    }
}
