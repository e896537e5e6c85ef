//! The engine of the present model; beside it, for a while, the one of the next model; and those that only finish what
//! they began.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postern_engine::{Serves, catalog};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::control::Requests;
use super::pulse::{self, Pulse};
use super::{ENGINE_WITHIN, Service, end_child, engine_command};
use crate::config::Config;

/// For the engine of another model to read it.
const LOADED_WITHIN: Duration = Duration::from_secs(300);
/// For requests that an engine began before it was replaced; the engine itself cuts them a little earlier.
const FINISHED_WITHIN: Duration = Duration::from_secs(660);
/// Engines that only finish, at most: each holds a model in memory.
const MAX_FINISHING: usize = 2;

type Starter<'a> = Box<dyn FnMut() -> anyhow::Result<Command> + 'a>;

pub(super) struct Engines<'a> {
    config: &'a Config,
    /// The present model; the current service is started with it.
    model: Arc<Mutex<String>>,
    current: Service<'a, Starter<'a>>,
    next: Option<Next>,
    finishing: JoinSet<u8>,
    requests: Rc<Requests>,
}

struct Next {
    id: u64,
    model: String,
    child: Child,
    pulse: Option<Pulse>,
    since: Instant,
}

impl<'a> Engines<'a> {
    /// `None` if no engine is configured.
    pub(super) fn new(config: &'a Config, requests: Rc<Requests>) -> Option<Self> {
        let engine = config.engine.as_ref()?;
        let model = Arc::new(Mutex::new(engine.model.clone()));
        let (to_start, to_find) = (Arc::clone(&model), Arc::clone(&model));
        let start: Starter<'a> = Box::new(move || engine_command(config, &present(&to_start)));
        let current = Service::new("engine", start)
            .hung_after(engine.hung_after)
            .needs(move || serves(&present(&to_find)).map(drop));
        Some(Self { config, model, current, next: None, finishing: JoinSet::new(), requests })
    }

    /// Does what is next. Cancel-safe: what was waited for is waited for again.
    pub(super) async fn step(&mut self) -> anyhow::Result<()> {
        let left = self.next.as_ref().map(|next| LOADED_WITHIN.saturating_sub(next.since.elapsed()));
        let Self { current, next, finishing, .. } = self;
        let mut alone = None;
        let (child, pulse) = match next {
            Some(next) => (Some(&mut next.child), &mut next.pulse),
            None => (None, &mut alone),
        };
        tokio::select! {
            stepped = current.step() => { stepped?; }
            status = async { match child {
                Some(child) => child.wait().await,
                None => std::future::pending().await,
            } } => {
                let status = status?;
                let pulse = self.next.as_mut().and_then(|next| next.pulse.as_mut());
                let words = match pulse {
                    Some(pulse) => pulse.last_words().await,
                    None => None,
                };
                let words = words.map_or_else(String::new, |words| format!(": {words}"));
                self.give_up(&format!("its engine ended ({status}){words}"));
            }
            () = async { match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            } } => self.give_up("it was not loaded in time"),
            _ = pulse::lost(pulse) => self.give_up("its engine hangs"),
            Some(_) = finishing.join_next() => {}
        }
        Ok(())
    }

    /// Ends them all.
    pub(super) async fn end(&mut self) {
        if let Some(next) = self.next.take() {
            end_child("engine", next.child, ENGINE_WITHIN).await;
        }
        // Those children end with their handles.
        self.finishing.abort_all();
        self.current.end(ENGINE_WITHIN).await;
    }

    /// Another model is wanted.
    pub(super) fn swap(&mut self, id: u64, model: &str) {
        if let Err(refusal) = self.begin(id, model) {
            self.requests.answer(id, Some(refusal));
        }
    }

    /// The engine of this process has its model.
    pub(super) fn connected(&mut self, pid: u32) {
        if self.next.as_ref().is_some_and(|next| next.child.id() == Some(pid)) {
            self.promote();
        } else if self.current.pid() == Some(pid) {
            self.current.is_well();
        }
    }

    fn begin(&mut self, id: u64, model: &str) -> Result<(), String> {
        if self.next.is_some() {
            return Err("another model is being loaded".to_owned());
        }
        // First what waiting does not mend.
        let wanted = serves(model)?;
        if serves(&present(&self.model)).is_ok_and(|serves| serves != wanted) {
            return Err(match wanted {
                Serves::Vectors => "it makes vectors of texts, and the present one answers chats".to_owned(),
                Serves::Chats => "it answers chats, and the present one makes vectors of texts".to_owned(),
            });
        }
        if self.finishing.len() >= MAX_FINISHING {
            return Err("engines of earlier models still finish their requests; try again later".to_owned());
        }
        let child =
            engine_command(self.config, model).and_then(|mut command| Ok(command.kill_on_drop(true).spawn()?));
        let mut child = child.map_err(|error| format!("its engine cannot be started: {error}"))?;
        let pulse = self.config.engine.as_ref().map(|engine| Pulse::of(&mut child, engine.hung_after));
        tracing::info!(model, "loading another model");
        self.next = Some(Next { id, model: model.to_owned(), child, pulse, since: Instant::now() });
        Ok(())
    }

    /// The next engine has its model, and the gateway gives it what comes from now on.
    fn promote(&mut self) {
        let Some(Next { id, model, child, pulse, since }) = self.next.take() else { return };
        tracing::info!(model, took_ms = since.elapsed().as_millis() as u64, "another model answers now");
        *self.model.lock().unwrap_or_else(PoisonError::into_inner) = model;
        if let Some(old) = self.current.replace(child, pulse) {
            self.finishing.spawn(end_child("engine", old, FINISHED_WITHIN));
        }
        self.requests.answer(id, None);
    }

    fn give_up(&mut self, why: &str) {
        let Some(next) = self.next.take() else { return };
        tracing::error!(model = next.model, why, "the other model does not come; the present one goes on");
        self.requests.answer(next.id, Some(format!("model `{}` is not there: {why}", next.model)));
    }
}

/// What an engine does with such a model; or why there is none.
pub(super) fn serves(model: &str) -> Result<Serves, String> {
    catalog::locate(model).and_then(|path| postern_engine::serves(&path)).map_err(|error| error.to_string())
}

fn present(model: &Mutex<String>) -> String {
    model.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
