//! Tries policies out before they count: what fails now would fail for every prompt, and the operator should not learn it from the
//! first user.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_plugins::{CallContext, FleetFacts, PolicyFailure, Recorded, RequestFacts};

use super::Policies;
use super::health::Step;
use super::loaded::Loaded;
use super::votes::Vote;
use crate::config::Config;

/// For all recorded requests together; what was not tried by then is not tried.
const WITHIN: Duration = Duration::from_secs(30);

/// For the whole of it.
const ALL_WITHIN: Duration = Duration::from_secs(60);

/// For calls about no request.
const NOBODY: CallContext<'static> = CallContext { tenant: "", label: "", seed: 0, time_ms: None };

/// Asks a policy about an empty request at each of its steps, and says what failed. Also makes the first real call as quick as
/// the others.
pub async fn empty(loaded: &Loaded) -> Vec<(Step, PolicyFailure)> {
    let request = RequestFacts { model: "probe".to_owned(), ..RequestFacts::default() };
    let mut failed = Vec::new();
    for step in Step::ALL.into_iter().filter(|step| loaded.takes_part_at(*step)) {
        let ended = match step {
            Step::Redaction => loaded.policy.try_find().await,
            Step::Routing => loaded.policy.route(&NOBODY, &request, &FleetFacts::default()).await.answer.map(drop),
            Step::Caching => loaded.policy.plan(&NOBODY, &request).await.answer.map(drop),
        };
        failed.extend(ended.err().map(|failure| (step, failure)));
    }
    failed
}

/// Sees that no policy of `new` does worse than the one of that name in `old`, on an empty request and on the last ones. What they
/// write is dropped.
///
/// # Errors
/// One does; says which, and how. Or that could not be seen in time.
pub(super) async fn compare(
    config: &Config,
    new: &Policies,
    old: &Policies,
    recent: &[Arc<Recorded>],
) -> Result<(), String> {
    let compared = tokio::time::timeout(ALL_WITHIN, compare_all(config, new, old, recent)).await;
    compared.unwrap_or_else(|_| {
        Err(format!("they could not be tried within {} s; give them a shorter `deadline`", ALL_WITHIN.as_secs()))
    })
}

async fn compare_all(config: &Config, new: &Policies, old: &Policies, recent: &[Arc<Recorded>]) -> Result<(), String> {
    let until = Instant::now() + WITHIN;
    for loaded in &new.all {
        let before = old.named(loaded.name());
        if before.is_some_and(|before| Arc::ptr_eq(before, loaded)) {
            continue;
        }
        let failed = empty(loaded).await;
        let failed_before = match before {
            Some(before) if !failed.is_empty() => empty(before).await,
            _ => Vec::new(),
        };
        if let Some((step, failure)) =
            failed.iter().find(|(step, _)| !failed_before.iter().any(|(before, _)| before == step))
        {
            let (name, step) = (loaded.name(), step.name());
            return Err(format!("the policy `{name}` does not work as configured ({step}): {}", failure.detail));
        }
        for request in recent.iter().take_while(|_| Instant::now() < until) {
            on(config, (loaded, new), before.map(|before| (before, old)), request).await?;
        }
    }
    Ok(())
}

/// One policy, and the set that it belongs to.
type Of<'a> = (&'a Arc<Loaded>, &'a Policies);

async fn on(config: &Config, new: Of<'_>, old: Option<Of<'_>>, request: &Recorded) -> Result<(), String> {
    for step in [Step::Routing, Step::Caching] {
        if !new.0.takes_part_at(step) {
            continue;
        }
        if ask(config, new, step, request).await.is_ok() {
            continue;
        }
        // A machine under load may be too slow once.
        let Err(failure) = ask(config, new, step, request).await else { continue };
        if let Some(old) = old.filter(|(old, _)| old.takes_part_at(step))
            && ask(config, old, step, request).await.is_err()
        {
            continue;
        }
        let (name, step, kind) = (new.0.name(), step.name(), failure.kind.name());
        return Err(format!(
            "the policy `{name}` fails ({step}, {kind}) on a request that was answered before, {}: {}",
            request.record, failure.detail
        ));
    }
    Ok(())
}

async fn ask(config: &Config, of: Of<'_>, step: Step, recorded: &Recorded) -> Result<(), PolicyFailure> {
    let (loaded, policies) = of;
    let mut request = recorded.request.clone();
    let context = |label| CallContext {
        tenant: &recorded.request.tenant,
        label,
        seed: recorded.seed,
        time_ms: Some(recorded.request.time * 1000),
    };
    if step == Step::Caching {
        request.label.clone_from(&recorded.final_label);
        return loaded.policy.plan(&context(&recorded.final_label), &request).await.answer.map(drop);
    }
    let verdict = loaded.policy.route(&context(&recorded.request.label), &request, &recorded.fleet).await.answer?;
    Vote::read(&verdict, &policies.choices(config, &request, &recorded.fleet)).map(drop)
}
