//! As written → as meant.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postern_certs::{RootPlace, SpiffeId, spiffe};
use postern_engine::catalog;
use postern_plugins::detectors::Kind;
use postern_text::encoded::Encodings;
use postern_wire::call::Endpoint;
use postern_wire::is_model_name;
use serde_saphyr::{Location, Spanned};

use super::file::{self, File, Placed};
use super::sections::Sections;
use super::{
    Cache, Classification, Config, ConfigError, Engine, Health, IdentityRule, Semantic, Target, Timeouts, audit,
    policies, read, shared,
};
use crate::classify::clearance::ENGINE;
use crate::classify::label::{Label, Labels};
use crate::classify::route::Routes;

/// The longest configuration file.
const MAX_FILE_BYTES: usize = 8 << 20;

/// Reads a configuration file; relative paths in it are relative to its folder.
///
/// # Errors
/// See [`ConfigError`].
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let unread = |source| ConfigError::Read { path: path.to_owned(), source };
    let bytes = read::bounded(path, MAX_FILE_BYTES).map_err(unread)?;
    let text = String::from_utf8(bytes).map_err(|error| unread(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    parse(&text, path)
}

/// Reads a configuration from `text`; `path` names it in errors.
///
/// # Errors
/// See [`ConfigError`].
pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let name = path.display().to_string();
    let file: File = serde_saphyr::from_str_with_options(text, serde_saphyr::options! { with_snippet: false })
        .map_err(|error| ConfigError::Parse {
            file: name.clone(),
            message: in_our_words(&error.to_string()).replace("<input>", &name),
        })?;
    let base = path.parent().unwrap_or(Path::new("."));
    Resolver { name, base }.config(file, Sections::of(text))
}

/// The parser's advice is for who calls it, not for who wrote the file.
fn in_our_words(message: &str) -> String {
    message
        .replace("duplicate mapping key: ", "the same key twice: ")
        .replace(", set DuplicateKeyPolicy in Options if acceptable", "; write each key once,")
        .replace("invalid boolean", "expected true or false")
        .replace("expected sequence start", "expected a list, such as [one, two]")
        .replace("expected mapping start", "expected keys and values")
        .replace("invalid u16", "expected a whole number")
        .replace("invalid u32", "expected a whole number")
        .replace("invalid u64", "expected a whole number")
}

/// How models of hubs begin.
const HUB: &str = "hf:";
/// What an engine takes.
const MAX_BATCH: u16 = 256;
/// How often a page of metrics may be looked at: what it says is believed for a few seconds.
const MIN_LOOK: Duration = Duration::from_millis(500);
const MAX_LOOK: Duration = Duration::from_secs(10);
/// Several times the pause between two signs of life.
const MIN_HUNG_AFTER: Duration = Duration::from_secs(2);
/// Bytes of keys and values: less holds no conversation of a small model.
const KV_MEMORY: std::ops::RangeInclusive<u64> = 16 << 20..=1024 << 30;

struct Resolver<'a> {
    name: String,
    base: &'a Path,
}

impl Resolver<'_> {
    fn config(&self, mut file: File, sections: Sections) -> Result<Config, ConfigError> {
        let labels = self.labels(&file.labels)?;
        self.check(&file)?;
        let state_dir = self.base.join(&file.state_dir);
        let domain = &file.trust.domain.value;
        let targets =
            file.targets.iter().map(|target| self.target(target, domain, &labels)).collect::<Result<Vec<_>, _>>()?;
        self.unique(file.targets.iter().map(|target| &target.name), "target")?;
        self.unique(policies::names(&file.policies), "policy")?;
        let compiled_dir = state_dir.join(&file.plugins.compiled);
        let engine_price = file.engine.as_ref().and_then(|engine| engine.price.as_ref());
        let engine_price = engine_price.map(|price| self.price(price)).transpose()?;
        let part = policies::policy_part(&mut file, self.base, &state_dir, &targets);
        let replicas = shared::replicas(&file, self.base);
        let audit = audit::audit(&file, self.base, &state_dir);
        let cache = file.cache.as_ref().map(|cache| self.cache(cache)).transpose();
        Ok(Config {
            listen: file.listen,
            enrol: file.enrol,
            admin: file.admin.value,
            probe: file.probe,
            trust_domain: file.trust.domain.value.clone(),
            issuer: super::trust::issuer(&file.trust, self.base).map_err(|(at, what)| self.error(&at, &what))?,
            prefix: file.trust.prefix,
            root: match file.trust.root {
                file::RootKey::Here => RootPlace::Here,
                file::RootKey::Offline => RootPlace::Offline,
            },
            leaf_ttl: file.trust.leaf_ttl.value.0,
            identities: file
                .identities
                .iter()
                .map(|rule| self.identity(rule, &file.trust.domain.value, &labels))
                .collect::<Result<_, _>>()?,
            tenants: self.tenants(&file.tenants, &file.identities)?,
            operators: file
                .operators
                .iter()
                .map(|operator| Ok((self.pattern(&operator.pattern, &file.trust.domain.value)?, operator.role)))
                .collect::<Result<_, _>>()?,
            targets,
            timeouts: Timeouts {
                connect: file.timeouts.connect.0,
                first_token: file.timeouts.first_token.0,
                idle: file.timeouts.idle.0,
                total: file.timeouts.total.0,
                queue: file.timeouts.queue.0,
                headers: file.timeouts.headers.0,
            },
            placements: file.placements,
            compiled_dir,
            policy_part: part.map_err(|(at, what)| self.error(&at, &what))?,
            classification: self.classification(&file.classification, &labels)?,
            semantic: file.cache.as_ref().map_or(Ok(None), |cache| self.semantic(cache))?,
            cache: cache.map_err(|(at, what)| self.error(&at, &what))?,
            replicas: replicas.map_err(|(at, what)| self.error(&at, &what))?,
            engine: file.engine.map(|engine| Engine {
                model: self.model(&engine.model),
                models: engine.models,
                price: engine_price,
                device: engine.device,
                max_batch_size: usize::from(engine.max_batch_size.get()),
                max_wait: engine.max_wait.0,
                max_queue: engine.max_queue.get(),
                kv_memory: engine.kv_memory.value.0,
                kv_format: engine.kv_format,
                hung_after: engine.hung_after.value.0,
                user: engine.user,
            }),
            audit: audit.map_err(|(at, what)| self.error(&at, &what))?,
            payload: super::Payload {
                required: file.payload.required,
                relays: (file.payload.relays.iter())
                    .map(|relay| self.pattern(relay, &file.trust.domain.value))
                    .collect::<Result<_, _>>()?,
            },
            limits: file.limits,
            offline: file.offline,
            names: file.names,
            labels,
            state_dir,
            sections,
        })
    }

    /// What a type cannot say.
    fn check(&self, file: &File) -> Result<(), ConfigError> {
        if !file.admin.value.ip().is_loopback() && file.operators.is_empty() {
            let what = "`admin` is not on a loopback address, so it needs mTLS and roles: list who may use it under `operators`, or use `probe` for health and metrics";
            return Err(self.error(&file.admin.referenced, what));
        }
        if let Err(error) = format!("spiffe://{}/gateway", file.trust.domain.value).parse::<spiffe::SpiffeId>() {
            return Err(self.error(&file.trust.domain.referenced, &format!("not a SPIFFE trust domain: {error}")));
        }
        if file.trust.leaf_ttl.value.0 < Duration::from_secs(10)
            || file.trust.leaf_ttl.value.0 > Duration::from_secs(72 * 3600)
        {
            return Err(self.error(&file.trust.leaf_ttl.referenced, "`leaf_ttl` must be between 10s and 72h"));
        }
        if file.offline && file.trust.issuer.value == file::Issuer::Spiffe {
            let what = "`issuer: spiffe` asks an agent again and again, and with `offline: true` the kernel lets this gateway connect to nobody: use `embedded` or `files`";
            return Err(self.error(&file.trust.issuer.referenced, what));
        }
        if file.enrol.is_some() && file.trust.issuer.value != file::Issuer::Embedded {
            let what = "`enrol` needs `issuer: embedded`: with another one, workstations enrol there";
            return Err(self.error(&file.trust.issuer.referenced, what));
        }
        let is_name = |name: &str| name == "*" || is_model_name(name.strip_suffix('*').unwrap_or(name));
        if let Some((name, label)) = file.classification.models.iter().find(|(name, _)| !is_name(name)) {
            let what = format!(
                "`classification.models`: nobody can ask for `{name}`; a name has the characters a-z A-Z 0-9 . _ : / + -, and a * at its end stands for all that begin so"
            );
            return Err(self.error(&label.referenced, &what));
        }
        let answers_any = file.targets.iter().any(|target| target.models.is_empty())
            || file.engine.as_ref().is_some_and(|engine| engine.models.is_empty());
        let remote = file.targets.iter().flat_map(|target| target.models.keys());
        let served: HashSet<String> = remote
            .chain(file.engine.iter().flat_map(|engine| &engine.models))
            .map(|name| name.to_lowercase())
            .collect();
        let unserved = |(name, _): &(&String, &Placed)| {
            let name = name.to_lowercase();
            !answers_any
                && match name.strip_suffix('*') {
                    Some(beginning) => !served.iter().any(|served| served.starts_with(beginning)),
                    None => !served.contains(&name),
                }
        };
        if let Some((name, label)) = file.classification.models.iter().find(unserved) {
            let what = format!("`classification.models`: no target and no engine serves `{name}`");
            return Err(self.error(&label.referenced, &what));
        }
        if file.identities.is_empty() {
            return Err(self.error(&Location::UNKNOWN, "`identities` is empty: nobody could ask for anything"));
        }
        let limits =
            file.identities.iter().map(|rule| rule.limits).chain(file.tenants.values().map(|tenant| tenant.limits));
        if limits.into_iter().any(|limits| limits.cost_per_month.is_some()) {
            let without =
                |target: &&file::Target| target.placement == file::TargetKind::Cloud && target.price.is_none();
            if let Some(target) = file.targets.iter().find(without) {
                let what = "`cost_per_month` is a limit of somebody, and this target has no `price`: what is asked there would cost nothing";
                return Err(self.error(&target.name.referenced, what));
            }
        }
        let addresses = [
            ("listen", Some(file.listen)),
            ("admin", Some(file.admin.value)),
            ("enrol", file.enrol),
            ("probe", file.probe),
        ];
        let taken = addresses.iter().enumerate().find_map(|(at, (name, address))| {
            let address = address.filter(|address| address.port() != 0)?;
            let (other, _) = addresses.iter().take(at).find(|(_, other)| *other == Some(address))?;
            Some(format!("`{name}` must not be the same address as `{other}`"))
        });
        if let Some(what) = taken {
            return Err(self.error(&file.admin.referenced, &what));
        }
        if let Some(batch) =
            file.engine.as_ref().map(|engine| engine.max_batch_size).filter(|size| size.get() > MAX_BATCH)
        {
            let what = format!("`engine.max_batch_size` is {batch}, and {MAX_BATCH} is the most");
            return Err(self.error(&Location::UNKNOWN, &what));
        }
        let named = catalog::names_a_model;
        if let Some(engine) = file.engine.as_ref().filter(|engine| !named(&self.model(&engine.model))) {
            let what = format!(
                "`engine.model: {}` is neither a name of `postern model list`, nor `hf:OWNER/REPOSITORY`, nor a file",
                engine.model
            );
            return Err(self.error(&Location::UNKNOWN, &what));
        }
        if let Some(engine) = file.engine.as_ref().filter(|engine| engine.hung_after.value.0 < MIN_HUNG_AFTER) {
            let what = "`hung_after` must be at least 2s: a machine that is busy answers late";
            return Err(self.error(&engine.hung_after.referenced, what));
        }
        if let Some(engine) = file.engine.as_ref().filter(|engine| !KV_MEMORY.contains(&engine.kv_memory.value.0)) {
            let what = "`kv_memory` must be between 16MiB and 1024GiB";
            return Err(self.error(&engine.kv_memory.referenced, what));
        }
        let counts = [file.limits.connections, file.limits.requests, file.limits.messages];
        if counts.iter().any(|count| !(1..=1_000_000).contains(count)) {
            let what = "`limits.connections`, `requests` and `messages` must be 1 to 1000000";
            return Err(self.error(&Location::UNKNOWN, what));
        }
        if file.limits.bodies.0 < file.limits.body.0 {
            return Err(self.error(&Location::UNKNOWN, "`limits.bodies` must be at least `limits.body`"));
        }
        if file.limits.json_depth > 100 || file.limits.json_depth == 0 {
            return Err(self.error(&Location::UNKNOWN, "`limits.json_depth` must be 1 to 100"));
        }
        Ok(())
    }

    fn semantic(&self, cache: &file::Cache) -> Result<Option<Semantic>, ConfigError> {
        let Some(part) = &cache.semantic else { return Ok(None) };
        part.resolve(self.model(&part.model.value)).map(Some).map_err(|(at, what)| self.error(&at, &what))
    }

    /// A name or a place on a hub as it is; a file below the folder of the configuration, as all others.
    fn model(&self, written: &str) -> String {
        if catalog::known(written).is_some() || written.starts_with(HUB) {
            return written.to_owned();
        }
        self.base.join(written).to_string_lossy().into_owned()
    }

    fn labels(&self, names: &Spanned<Vec<String>>) -> Result<Labels, ConfigError> {
        Labels::new(names.value.clone()).map_err(|what| self.error(&names.referenced, what))
    }

    fn label(&self, name: &Placed, labels: &Labels) -> Result<Label, ConfigError> {
        labels.by_name(&name.value).ok_or_else(|| {
            let what = format!("unknown label `{}`; expected one of: {}", name.value, labels.names().join(", "));
            self.error(&name.referenced, &what)
        })
    }

    fn pattern(&self, written: &Placed, domain: &str) -> Result<spiffe::Pattern, ConfigError> {
        let pattern = written.value.parse().map_err(|error| {
            let what = format!("expected a SPIFFE ID such as spiffe://domain/clerk/*: {error}");
            self.error(&written.referenced, &what)
        })?;
        if written.value.starts_with(&format!("spiffe://{domain}/")) {
            return Ok(pattern);
        }
        let what = format!("no certificate of the trust domain `{domain}` could ever match this");
        Err(self.error(&written.referenced, &what))
    }

    fn identity(&self, rule: &file::Identity, domain: &str, labels: &Labels) -> Result<IdentityRule, ConfigError> {
        let pattern = self.pattern(&rule.pattern, domain)?;
        let floor = rule.floor.as_ref().map_or(Ok(labels.lowest()), |name| self.label(name, labels))?;
        let ceiling = rule.ceiling.as_ref().map_or(Ok(labels.highest()), |name| self.label(name, labels))?;
        if ceiling < floor {
            return Err(
                self.error(&rule.pattern.referenced, "its `ceiling` is below its `floor`: nothing would be accepted")
            );
        }
        Ok(IdentityRule { pattern, tenant: rule.tenant.clone(), floor, ceiling, limits: rule.limits })
    }

    fn target(&self, target: &file::Target, domain: &str, labels: &Labels) -> Result<Arc<Target>, ConfigError> {
        let name = &target.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
        if name.value.is_empty() || name.value.len() > 64 || !name.value.chars().all(plain) || name.value == ENGINE {
            let what = "a target's name has 1 to 64 of the characters a-z A-Z 0-9 - _ . and is not `engine`";
            return Err(self.error(&name.referenced, what));
        }
        let clearance = self.label(&target.clearance, labels)?;
        if clearance == labels.highest() {
            let what = format!(
                "no remote target may see `{}`, the last label: it never leaves this machine",
                target.clearance.value
            );
            return Err(self.error(&target.clearance.referenced, &what));
        }
        Ok(Arc::new(Target {
            name: name.value.clone(),
            kind: target.placement,
            clearance,
            base_url: self.base_url(&target.openai.base_url)?,
            api_key: target.openai.api_key.clone().map(|secret| secret.below(self.base)),
            ca: target.openai.ca.as_ref().map(|path| self.base.join(path)),
            node: target.openai.identity.as_ref().map(|id| self.node(target, id, domain)).transpose()?,
            sealed: self.sealed(&target.openai)?,
            models: target.models.clone(),
            requests_per_minute: target.limits.requests_per_minute,
            tokens_per_minute: target.limits.tokens_per_minute,
            price: target.price.as_ref().map(|price| self.price(price)).transpose()?,
            health: self.health(target)?,
            continues: target
                .openai
                .continues
                .or_else(|| target.openai.identity.as_ref().map(|_| file::Continues::FinalMessage)),
        }))
    }

    fn sealed(&self, openai: &file::OpenAi) -> Result<bool, ConfigError> {
        match (&openai.sealed, &openai.identity) {
            (Some(sealed), None) => {
                let what =
                    "`sealed` is for a node of our own, which `identity` names: others do not open what is sealed";
                Err(self.error(&sealed.referenced, what))
            }
            (Some(sealed), Some(_)) if !sealed.value && openai.ca.is_some() => {
                let what = "`ca` lets a middlebox break TLS open before this node, so what it is asked has to be sealed: leave out `sealed: false`, or `ca`";
                Err(self.error(&sealed.referenced, what))
            }
            (sealed, identity) => Ok(identity.is_some() && sealed.as_ref().is_none_or(|sealed| sealed.value)),
        }
    }

    fn health(&self, target: &file::Target) -> Result<Option<Health>, ConfigError> {
        let resolved = |health: &file::Health| Health { metrics: health.metrics.clone(), every: health.every.0 };
        let Some(written) = &target.health else {
            return Ok(target.openai.identity.as_ref().map(|_| resolved(&file::Health::default())));
        };
        let path = &written.value.metrics;
        if !path.starts_with('/') || path.len() > 256 || path.parse::<http::uri::PathAndQuery>().is_err() {
            return Err(self.error(&written.referenced, "`metrics` is a path such as /metrics"));
        }
        if written.value.every.0 < MIN_LOOK || written.value.every.0 > MAX_LOOK {
            return Err(self.error(&written.referenced, "`every` is from 500ms to 10s"));
        }
        Ok(Some(resolved(&written.value)))
    }

    /// Whom a node of our own has to prove to be.
    fn node(&self, target: &file::Target, written: &Placed, domain: &str) -> Result<SpiffeId, ConfigError> {
        let wanted = |what: &str| Err(self.error(&written.referenced, what));
        let Ok(id) = written.value.parse::<SpiffeId>() else {
            return wanted(&format!("expected the SPIFFE ID of the node, such as spiffe://{domain}/node/gpu-1"));
        };
        if id.trust_domain() != domain || id.path().is_empty() {
            return wanted(&format!("no node of the trust domain `{domain}` could ever be called so"));
        }
        if id.is_reserved_for_gateway() {
            return wanted("a gateway is no engine: name the node, such as spiffe://domain/node/gpu-1");
        }
        if target.placement != file::TargetKind::Edge {
            return wanted("a target with an `identity` is a node of our own, so its `placement` is `edge`");
        }
        if target.openai.api_key.is_some() {
            return wanted("certificates of the trust domain say who is who, so leave out `api_key`");
        }
        if !target.openai.base_url.value.starts_with("https://") {
            return wanted("`identity` is proved in TLS, so `base_url` must begin with https://");
        }
        Ok(id)
    }

    /// Limits of a tenant that nobody belongs to would be a mistake that nobody notices.
    fn tenants(
        &self,
        tenants: &BTreeMap<String, file::Tenant>,
        identities: &[file::Identity],
    ) -> Result<BTreeMap<String, file::IdentityLimits>, ConfigError> {
        let is_named = |name: &String| {
            let by_rule = identities.iter().any(|rule| rule.tenant.as_ref() == Some(name));
            // Who has no tenant by a rule is one of their own.
            by_rule || name.starts_with("spiffe://")
        };
        match tenants.keys().find(|name| !is_named(name)) {
            None => Ok(tenants.iter().map(|(name, tenant)| (name.clone(), tenant.limits)).collect()),
            Some(name) => {
                let what = format!("`tenants` names `{name}`, which is the `tenant` of no entry of `identities`");
                Err(self.error(&Location::UNKNOWN, &what))
            }
        }
    }

    fn price(&self, price: &Spanned<file::Price>) -> Result<file::Price, ConfigError> {
        let good = |amount: f64| amount.is_finite() && amount >= 0.0;
        if good(price.value.input_per_million) && good(price.value.output_per_million) {
            return Ok(price.value);
        }
        Err(self.error(&price.referenced, "a price is a number, and not below 0"))
    }

    fn cache(&self, cache: &file::Cache) -> Result<Cache, shared::Wrong> {
        let redis = cache.redis.as_ref().map(|redis| shared::redis(redis, self.base)).transpose()?;
        Ok(Cache {
            memory: cache.memory.0,
            ttl: cache.ttl.0,
            redis,
            warm: cache.warm.as_ref().map(|file| self.base.join(file)),
        })
    }

    fn base_url(&self, text: &Placed) -> Result<http::Uri, ConfigError> {
        let wanted = |what: &str| self.error(&text.referenced, what);
        let uri: http::Uri = text
            .value
            .trim_end_matches('/')
            .parse()
            .map_err(|_| wanted("expected a URL such as https://api.example.com/v1"))?;
        let loopback = match uri.host() {
            Some("localhost") => true,
            Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
            None => return Err(wanted("expected a URL with a host, such as https://api.example.com/v1")),
        };
        if Endpoint::ALL.iter().any(|endpoint| uri.path().ends_with(endpoint.path())) {
            return Err(wanted(
                "a base_url ends with the version, such as /v1; /chat/completions and the like are added to it",
            ));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) || uri.query().is_some() {
            return Err(wanted("a base_url holds no user name, password or query; keys come from `api_key`"));
        }
        match uri.scheme_str() {
            Some("https") => Ok(uri),
            Some("http") if loopback => Ok(uri),
            Some("http") => Err(wanted("http:// is allowed on a loopback address only; use https://")),
            _ => Err(wanted("expected https://…")),
        }
    }

    fn classification(&self, written: &file::Classification, labels: &Labels) -> Result<Classification, ConfigError> {
        let mut detect = Vec::new();
        for (kind, label) in &written.detect {
            let known = Kind::from_name(kind).ok_or_else(|| {
                let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                let what = format!("unknown detector `{kind}`; expected one of {}", kinds.join(", "));
                self.error(&label.referenced, &what)
            })?;
            detect.push((known, self.label(label, labels)?));
        }
        let mut markings = Vec::new();
        for (text, label) in &written.markings {
            if postern_text::folded(text).is_empty() {
                return Err(self.error(&label.referenced, "a marking must not be empty: every text would match"));
            }
            markings.push((text.clone(), self.label(label, labels)?));
        }
        let opaque = written.opaque.as_ref().map_or(Ok(labels.second_highest()), |name| self.label(name, labels))?;
        let has = |encoding| written.decode.contains(&encoding);
        let decode = Encodings { base64: has(file::Encoding::Base64), url: has(file::Encoding::Url) };
        let file::Taint { per_identity, keep, common, unavailable } = &written.taint;
        let common = common.clone();
        let taint = file::Taint { per_identity: *per_identity, keep: *keep, common, unavailable: *unavailable }.into();
        let routes = self.routes(written, labels)?;
        Ok(Classification { detect, markings, decode, join_messages: written.join_messages, opaque, routes, taint })
    }

    fn routes(&self, written: &file::Classification, labels: &Labels) -> Result<Routes, ConfigError> {
        let mut models = Vec::new();
        for (model, label) in &written.models {
            models.push((model.clone(), self.label(label, labels)?));
        }
        let mut endpoints = Vec::new();
        for (path, label) in &written.endpoints {
            let endpoint = Endpoint::of(path).ok_or_else(|| {
                let all: Vec<String> = Endpoint::ALL.iter().map(|endpoint| format!("/v1{}", endpoint.path())).collect();
                let what = format!(
                    "`classification.endpoints`: unknown endpoint `{path}`; expected one of {}",
                    all.join(", ")
                );
                self.error(&label.referenced, &what)
            })?;
            endpoints.push((endpoint, self.label(label, labels)?));
        }
        Ok(Routes::new(models, endpoints))
    }

    fn unique<'a>(&self, names: impl Iterator<Item = &'a Placed>, what: &str) -> Result<(), ConfigError> {
        let mut seen = HashSet::new();
        for name in names {
            if !seen.insert(name.value.as_str()) {
                return Err(self.error(&name.referenced, &format!("two {what} entries are named `{}`", name.value)));
            }
        }
        Ok(())
    }

    fn error(&self, at: &Location, message: &str) -> ConfigError {
        ConfigError::Invalid {
            file: self.name.clone(),
            line: at.line(),
            column: at.column(),
            message: message.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "
listen: 127.0.0.1:8443
admin: 127.0.0.1:9443
state_dir: state
trust: {domain: branch.example.org}
identities:
  - match: spiffe://branch.example.org/clerk/*
    floor: internal
targets:
  - name: cloud
    placement: cloud
    clearance: internal
    openai: {base_url: https://api.example.com/v1/, api_key: {env: KEY}}
    models: {chat: their-chat}
";

    fn read(text: &str) -> Result<Config, String> {
        parse(text, Path::new("/etc/postern/postern.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_small_file_is_enough() {
        let config = read(SMALL).unwrap();
        assert_eq!(config.state_dir, Path::new("/etc/postern/state"));
        assert_eq!(config.leaf_ttl, Duration::from_secs(259_200));
        assert_eq!(config.targets[0].model("chat"), Some("their-chat"));
        assert!(config.knows_model("chat") && !config.knows_model("other"));
        assert_eq!(config.targets[0].base_url, "https://api.example.com/v1");
    }

    #[test]
    fn an_engine_has_a_model_of_the_catalogue_of_a_hub_or_of_this_machine_and_its_name() {
        let with = |model: &str| read(&format!("{SMALL}engine: {{model: \"{model}\"}}\n"));
        for (model, name) in [
            ("smollm2-135m-instruct", "smollm2-135m-instruct"),
            ("hf:Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
            ("hf:them/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q4_K_M.gguf", "Qwen3-0.6B-Q4_K_M"),
        ] {
            let engine = with(model).unwrap().engine.unwrap();
            assert_eq!(crate::config::Engine::own_name(&engine.model), name);
        }
        for model in ["no-such-model", "hf:them", "hf:them/model/weights.bin", "/no/such/file.gguf"] {
            assert!(with(model).unwrap_err().contains("neither a name of `postern model list`"), "{model}");
        }
    }

    #[test]
    fn a_node_of_our_own_is_named_exactly_and_needs_nothing_else() {
        let target = |placement: &str, openai: &str| {
            let node =
                format!("  - {{name: gpu, placement: {placement}, clearance: confidential, openai: {{{openai}}}}}\n");
            read(&format!("{SMALL}{node}"))
        };
        let url = "base_url: 'https://gpu-1:8445/v1'";
        let good = target("edge", &format!("{url}, identity: spiffe://branch.example.org/node/gpu-1")).unwrap();
        let ids: Vec<_> = good.targets.iter().map(|target| target.node.as_ref().map(SpiffeId::to_string)).collect();
        assert_eq!(ids, [None, Some("spiffe://branch.example.org/node/gpu-1".to_owned())]);
        // Behind a middlebox.
        let good =
            target("edge", &format!("{url}, identity: spiffe://branch.example.org/node/gpu-1, ca: x.pem")).unwrap();
        assert!(good.targets.iter().any(|target| target.node.is_some() && target.ca.is_some() && target.sealed));
        for (placement, openai, expected) in [
            ("edge", format!("{url}, identity: gpu-1"), "expected the SPIFFE ID of the node"),
            ("edge", format!("{url}, identity: spiffe://other.example/node/gpu-1"), "could ever be called so"),
            ("edge", format!("{url}, identity: spiffe://branch.example.org"), "could ever be called so"),
            ("edge", format!("{url}, identity: spiffe://branch.example.org/gateway"), "a gateway is no engine"),
            ("cloud", format!("{url}, identity: spiffe://branch.example.org/node/gpu-1"), "its `placement` is `edge`"),
            (
                "edge",
                format!("{url}, identity: spiffe://branch.example.org/node/gpu-1, api_key: {{env: KEY}}"),
                "leave out `api_key`",
            ),
            (
                "edge",
                format!("{url}, identity: spiffe://branch.example.org/node/gpu-1, ca: x.pem, sealed: false"),
                "leave out `sealed: false`, or `ca`",
            ),
            (
                "edge",
                "base_url: 'http://127.0.0.1:1/v1', identity: spiffe://branch.example.org/node/gpu-1".to_owned(),
                "must begin with https://",
            ),
        ] {
            let error = target(placement, &openai).unwrap_err();
            assert!(error.contains(expected) && error.contains(":15:"), "{openai}: {error}");
        }
    }

    #[test]
    fn faults_are_named_with_their_place() {
        for (from, to, place, expected) in [
            ("listen:", "lisen:", "2", "lisen"),
            ("floor: internal", "floor: secret", "8:12", "expected one of: public, internal, confidential, classified"),
            ("clearance: internal", "clearance: classified", "12:16", "never leaves this machine"),
            ("https://api.example.com", "http://api.example.com", "13:24", "loopback"),
            ("https://api", "https://u:p@api", "13:24", "no user name"),
            ("127.0.0.1:9443", "0.0.0.0:9443", "3:8", "loopback"),
            (
                "state_dir: state",
                "state_dir: state\nprobe: 127.0.0.1:9443",
                "3:8",
                "`probe` must not be the same address",
            ),
            ("branch.example.org}", "Branch Org}", "5:17", "trust domain"),
            ("spiffe://branch.example.org/clerk/*", "clerk", "7:12", "expected a SPIFFE ID"),
            ("models: {chat: their-chat}", "limits: {requests_per_minute: 0}", "14", "a whole number from 1 to"),
            ("models: {chat: their-chat}", "limits: {requests_per_minute: many}", "14", "expected a whole number"),
            (
                "state_dir: state",
                "state_dir: state\nclassification: {models: {chatty: internal}}",
                "5:35",
                "no target and no engine serves `chatty`",
            ),
            (
                "state_dir: state",
                "state_dir: state\nclassification: {models: {'ch**': internal}}",
                "5:35",
                "nobody can ask for `ch**`",
            ),
            (
                "state_dir: state",
                "state_dir: state\nclassification: {endpoints: {/v1/chat: internal}}",
                "5:40",
                "expected one of /v1/chat/completions, /v1/completions, /v1/embeddings",
            ),
            ("state_dir: state", "state_dir: state\noffline: maybe", "5", "expected true or false"),
            ("state_dir: state", "state_dir: state\nnames: localhost", "5", "expected a list"),
            (
                "trust: {domain: branch.example.org}",
                "trust: {domain: branch.example.org, leaf_ttl: 72}",
                "5",
                "such as 20ms or 72h",
            ),
            ("name: cloud", "name: engine", "10:11", "not `engine`"),
            ("state_dir: state", "admin: 127.0.0.1:1", "line 4", "the same key twice: admin; write each key once, at"),
        ] {
            assert!(SMALL.contains(from), "{from}");
            let error = read(&SMALL.replace(from, to)).unwrap_err();
            assert!(error.contains(place) && error.contains(expected), "{to}: {error}");
            assert!(!error.contains("Policy in Options"), "{to}: {error}");
        }
    }
}
