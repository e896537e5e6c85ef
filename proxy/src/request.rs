//! Bytes → one checked tree, with what the headers say about it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use postern_certs::spiffe::SpiffeId;
use postern_wire::call::{Call, Endpoint};
use postern_wire::json;

use crate::admission::Admitted;
use crate::admission::books::Who;
use crate::classify::label::Label;
use crate::config::file::IdentityLimits;
use crate::config::{Config, Placement};
use crate::error::Error;
use crate::open::OpenedRequest;

/// The most values (and keys) of one request.
const MAX_JSON_VALUES: usize = 200_000;
/// The longest `Postern-Conversation`.
const MAX_CONVERSATION: usize = 200;

/// What a client may say in headers.
const MARKS: [&str; 4] = ["postern-label", "postern-placement", "postern-conversation", "postern-priority"];

/// Bytes of a refused body that are read, and for how long.
const DISCARDED: usize = 256 << 10;
const DISCARD_WITHIN: Duration = Duration::from_millis(200);

/// Who asks, and what the rules say of them.
#[derive(Debug, Clone)]
pub struct Peer {
    /// From the client certificate.
    pub id: SpiffeId,
    /// Whose cache, vault, budgets.
    pub tenant: Arc<str>,
    /// Nothing from them is below this.
    pub floor: Label,
    /// Nothing above this is accepted from them.
    pub ceiling: Label,
    /// Their limits.
    pub limits: IdentityLimits,
    /// Those of all of their tenant together.
    pub tenant_limits: IdentityLimits,
}

impl Peer {
    /// All rules that match apply: floors join, the tightest ceiling and limits win, the first tenant named counts.
    ///
    /// # Errors
    /// [`Error::IdentityUnknown`] if no rule matches.
    pub fn resolve(config: &Config, id: &SpiffeId) -> Result<Self, Error> {
        let mut rules = config.identities.iter().filter(|rule| rule.pattern.matches(id));
        let first = rules.next().ok_or(Error::IdentityUnknown)?;
        let mut tenant = first.tenant.clone();
        let (mut floor, mut ceiling, mut limits) = (first.floor, first.ceiling, first.limits);
        for rule in rules {
            tenant = tenant.or_else(|| rule.tenant.clone());
            floor = floor.join(rule.floor);
            ceiling = ceiling.min(rule.ceiling);
            limits = limits.tighter(rule.limits);
        }
        let tenant: Arc<str> = tenant.unwrap_or_else(|| id.as_str().to_owned()).into();
        let tenant_limits = config.tenants.get(&*tenant).copied().unwrap_or_default();
        Ok(Self { id: id.clone(), tenant, floor, ceiling, limits, tenant_limits })
    }

    /// Who carries requests of others. No rule is of them: what they carry is admitted by whose it is.
    #[must_use]
    pub fn carrier(config: &Config, id: &SpiffeId) -> Self {
        let (floor, ceiling) = (config.labels.lowest(), config.labels.lowest());
        let (limits, tenant_limits) = (IdentityLimits::default(), IdentityLimits::default());
        Self { id: id.clone(), tenant: id.as_str().into(), floor, ceiling, limits, tenant_limits }
    }

    /// For their own account.
    #[must_use]
    pub fn who(&self) -> Who {
        Who::Identity(self.id.as_str().into())
    }
}

/// What `Postern-*` headers of a request say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// Raises the label.
    pub label: Option<Label>,
    /// Narrows the placement.
    pub placement: Option<Placement>,
    /// The conversation that this belongs to.
    pub conversation: Option<String>,
    /// How the cache may be used.
    pub cache: CacheUse,
    /// Work in bulk, for which nobody waits: at the engine it goes behind what people wait for.
    pub bulk: bool,
}

/// What `Cache-Control` of a request says (RFC 9111, section 5.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheUse {
    /// As the policies say.
    #[default]
    Any,
    /// `no-cache`: nothing that was there before is the answer; the answer may be kept.
    Fresh,
    /// `no-store`: no use at all.
    None,
}

/// A request that is well-formed. Nothing is known yet of what it may reveal.
#[derive(Debug)]
pub struct ParsedRequest {
    /// Who asks.
    pub peer: Peer,
    /// What is asked.
    pub call: Call,
    /// Tokens that a model reads of it, estimated.
    pub prompt_tokens: u64,
    /// What the headers say.
    pub marks: Marks,
}

impl ParsedRequest {
    /// Parses what was opened, a request to `endpoint`.
    ///
    /// # Errors
    /// The body is not JSON that we accept, not a request that we accept, or a header is not understood.
    pub fn parse(config: &Config, peer: Peer, endpoint: Endpoint, opened: &OpenedRequest) -> Result<Self, Error> {
        let marks = marks(config, &opened.headers)?;
        let limits = json::Limits { depth: config.limits.json_depth, values: MAX_JSON_VALUES };
        let tree = json::parse(&opened.body, &limits)?;
        let call = Call::from_json(endpoint, tree, config.limits.messages)?;
        if !config.knows_model(call.model()) {
            return Err(Error::ModelUnknown);
        }
        Ok(Self { prompt_tokens: call.estimated_prompt_tokens(), peer, call, marks })
    }
}

/// Reads what a client that is refused has sent already. Answering first would cut it off in the middle of sending, and some (curl over
/// HTTP/2) never show the answer then.
pub async fn discard(mut body: Incoming) {
    let some = async {
        let mut left = DISCARDED;
        while let (Some(Ok(frame)), true) = (body.frame().await, left > 0) {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    let _late = tokio::time::timeout(DISCARD_WITHIN, some).await;
}

/// Reads a whole body of at most `limit` bytes, which are charged to nobody. Of one that is larger, some more is taken in, so that who sends
/// it comes to read why it is refused.
///
/// # Errors
/// It is larger, takes longer than `within`, or breaks off.
pub async fn read_small(mut body: Incoming, limit: usize, within: Duration) -> Result<Bytes, Error> {
    let read = tokio::time::timeout(within, Limited::new(&mut body, limit).collect()).await;
    match read.map_err(|_| Error::ReceiveTimeout(within))? {
        Ok(read) => Ok(read.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            discard(body).await;
            Err(Error::TooLarge { limit: limit as u64 })
        }
        Err(_) => Err(Error::ReceiveBroken),
    }
}

/// Reads a whole body, within its bounds, and charges it to `admitted` as it comes.
///
/// # Errors
/// It is larger than `limit` bytes, takes longer than `within`, breaks off, or there is no memory for it.
pub async fn read_body(body: Incoming, limit: u64, within: Duration, admitted: &mut Admitted) -> Result<Bytes, Error> {
    // Said before a byte is read: who announces too much need not send it.
    if body.size_hint().lower() > limit {
        return Err(Error::TooLarge { limit });
    }
    tokio::time::timeout(within, collect(body, limit, admitted)).await.map_err(|_| Error::ReceiveTimeout(within))?
}

async fn collect(mut body: Incoming, limit: u64, admitted: &mut Admitted) -> Result<Bytes, Error> {
    let mut collected = Vec::new();
    while let Some(frame) = body.frame().await {
        // Trailers say nothing to us.
        let Ok(data) = frame.map_err(|_| Error::ReceiveBroken)?.into_data() else { continue };
        let length = (collected.len() + data.len()) as u64;
        if length > limit {
            return Err(Error::TooLarge { limit });
        }
        admitted.charge(length)?;
        collected.extend_from_slice(&data);
    }
    Ok(collected.into())
}

fn marks(config: &Config, headers: &HeaderMap) -> Result<Marks, Error> {
    // Who misspells `Postern-Label` believes that it was heard.
    let unknown = |name: &&HeaderName| name.as_str().starts_with("postern-") && !MARKS.contains(&name.as_str());
    if headers.keys().any(|name| unknown(&name)) {
        return Err(Error::UnknownHeader);
    }
    let label = match single(headers, "postern-label")? {
        Some(name) => Some(config.labels.by_name(name).ok_or_else(|| Error::Header {
            name: "Postern-Label",
            expected: format!("one of: {}", config.labels.names().join(", ")),
        })?),
        None => None,
    };
    let placement = match single(headers, "postern-placement")? {
        Some("cloud") => Some(Placement::Cloud),
        Some("edge-first") => Some(Placement::EdgeFirst),
        Some("local") => Some(Placement::Local),
        Some(_) => {
            let expected = "cloud, edge-first or local".to_owned();
            return Err(Error::Header { name: "Postern-Placement", expected });
        }
        None => None,
    };
    let conversation = match single(headers, "postern-conversation")? {
        Some(id) if (1..=MAX_CONVERSATION).contains(&id.len()) => Some(id.to_owned()),
        Some(_) => {
            let expected = format!("1 to {MAX_CONVERSATION} visible ASCII characters");
            return Err(Error::Header { name: "Postern-Conversation", expected });
        }
        None => None,
    };
    let bulk = match single(headers, "postern-priority")? {
        Some("bulk") => true,
        Some("interactive") | None => false,
        Some(_) => {
            let expected = "interactive or bulk".to_owned();
            return Err(Error::Header { name: "Postern-Priority", expected });
        }
    };
    Ok(Marks { label, placement, conversation, cache: cache_use(headers), bulk })
}

/// The strictest of what is said. Directives that we do not know are passed over, as the RFC wants it.
fn cache_use(headers: &HeaderMap) -> CacheUse {
    let lines = headers.get_all(http::header::CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    let each =
        lines.flat_map(|line| line.split(',')).map(|directive| match directive.trim().to_ascii_lowercase().as_str() {
            "no-store" => CacheUse::None,
            "no-cache" | "max-age=0" => CacheUse::Fresh,
            _ => CacheUse::Any,
        });
    each.max().unwrap_or_default()
}

/// The value of a header that may stand once. Sent twice, it could say two things.
fn single<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Error> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match (value.to_str(), values.next()) {
        (Ok(text), None) => Ok(Some(text.trim())),
        _ => Err(Error::Header { name, expected: "sent once, in visible ASCII".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config() -> Config {
        let text = "
listen: 127.0.0.1:0
admin: 127.0.0.1:0
state_dir: state
trust: {domain: b.example}
identities:
  - {match: 'spiffe://b.example/clerk/*', floor: internal, limits: {concurrency: 8}}
  - {match: 'spiffe://b.example/clerk/amy', tenant: amy, ceiling: confidential, limits: {concurrency: 4, requests_per_minute: 9}}
engine: {model: smollm2-135m-instruct, models: [chat]}
";
        crate::config::parse(text, Path::new("postern.yaml")).unwrap()
    }

    #[test]
    fn all_rules_that_match_apply() {
        let config = config();
        let peer = |id: &str| Peer::resolve(&config, &id.parse().unwrap());
        let amy = peer("spiffe://b.example/clerk/amy").unwrap();
        assert_eq!((config.labels.name(amy.floor), config.labels.name(amy.ceiling)), ("internal", "confidential"));
        assert_eq!((&*amy.tenant, amy.limits.concurrency.unwrap().get()), ("amy", 4));
        assert_eq!(&*peer("spiffe://b.example/clerk/bo").unwrap().tenant, "spiffe://b.example/clerk/bo");
        assert!(matches!(peer("spiffe://b.example/guest"), Err(Error::IdentityUnknown)));
    }

    #[test]
    fn headers_are_understood_or_refused() {
        let config = config();
        let read = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            marks(&config, &headers)
        };
        let marks = read(&[("postern-label", "classified"), ("postern-placement", "local")]).unwrap();
        assert_eq!((marks.label, marks.placement), (Some(config.labels.highest()), Some(Placement::Local)));
        assert!(read(&[("postern-label", "Classified")]).is_err());
        assert!(read(&[("postern-label", "public"), ("postern-label", "classified")]).is_err());
        assert!(read(&[("postern-lable", "classified")]).is_err());
        assert!(read(&[("postern-placement", "moon")]).is_err());
        assert!(read(&[("postern-conversation", "")]).is_err());
    }

    #[test]
    fn the_strictest_word_on_the_cache_counts() {
        let config = config();
        let read = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("cache-control", line.parse().unwrap());
            }
            marks(&config, &headers).unwrap().cache
        };
        assert_eq!(read(&[]), CacheUse::Any);
        assert_eq!(read(&["max-age=60, only-if-cached"]), CacheUse::Any);
        assert_eq!(read(&["max-age=0"]), CacheUse::Fresh);
        assert_eq!(read(&["max-age=60,No-Cache"]), CacheUse::Fresh);
        assert_eq!(read(&["no-store", "no-cache"]), CacheUse::None);
        assert_eq!(read(&["no-cache, no-store"]), CacheUse::None);
    }
}
