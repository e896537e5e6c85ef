//! Who may do what on the admin address: by where it listens, by role, by `Host` and by `Origin`.
//!
//! On a loopback address everybody on the machine may read, and start what costs nothing but work; off it a client
//! certificate and a role are needed. `Host` and `Origin` are looked at in both cases: a web page in an operator's browser
//! must not reach the address under a name of its own (DNS rebinding), nor send what the operator did not ask for.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;

/// What somebody is there for; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reads everything.
    Auditor,
    /// Reads everything, and keeps the gateway running: rotation, reload.
    Operator,
    /// Reads everything, rotates, and revokes.
    Security,
}

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Over the loopback address, by somebody on this machine.
    Loopback,
    /// Over mTLS.
    Role(Role),
}

/// What an endpoint asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// To look.
    Reading,
    /// To keep it running.
    Operating,
    /// To take trust away. Over the loopback address the command line does this, for whoever may write `state_dir`.
    Securing,
}

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer.
    pub status: StatusCode,
    /// Its text.
    pub message: &'static str,
}

const HOST: Refusal = Refusal {
    status: StatusCode::MISDIRECTED_REQUEST,
    message: "The admin address answers to its own names only: use an IP address, `localhost`, or one of `names`.\n",
};
const ORIGIN: Refusal =
    Refusal { status: StatusCode::FORBIDDEN, message: "This request comes from a page of another origin.\n" };
const ROLE: Refusal =
    Refusal { status: StatusCode::FORBIDDEN, message: "Your role does not allow this; see `operators`.\n" };

/// Whether `access` is enough for what an endpoint asks for.
///
/// # Errors
/// The refusal to answer with.
pub fn allowed(access: Access, needs: Needs) -> Result<(), Refusal> {
    let enough = match (access, needs) {
        (_, Needs::Reading) | (Access::Loopback, Needs::Operating) => true,
        (Access::Role(Role::Operator | Role::Security), Needs::Operating) => true,
        (Access::Role(Role::Security), Needs::Securing) => true,
        (Access::Role(Role::Auditor), Needs::Operating)
        | (Access::Loopback | Access::Role(Role::Auditor | Role::Operator), Needs::Securing) => false,
    };
    if enough { Ok(()) } else { Err(ROLE) }
}

/// Whether `Host` (or `:authority`) and `Origin` are of this address. `names` are those of the gateway's certificate.
///
/// # Errors
/// The refusal to answer with.
pub fn check_origin(
    access: Access,
    method: &Method,
    headers: &HeaderMap,
    authority: Option<&str>,
    names: &[String],
) -> Result<(), Refusal> {
    let host = match (single(headers, &header::HOST)?, authority) {
        (Some(host), Some(authority)) if host != authority => return Err(HOST),
        (Some(host), _) => host,
        (None, Some(authority)) => authority,
        (None, None) => return Err(HOST),
    };
    if !is_ours(access, name_of(host).ok_or(HOST)?, names) {
        return Err(HOST);
    }
    let Some(origin) = single(headers, &header::ORIGIN).map_err(|_| ORIGIN)? else {
        // Browsers name the origin of everything but simple reading; programs never do.
        let from_page = headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
        return if from_page && method != Method::GET { Err(ORIGIN) } else { Ok(()) };
    };
    let same = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")) == Some(host);
    if same { Ok(()) } else { Err(ORIGIN) }
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(text)), None) => Ok(Some(text)),
        _ => Err(HOST),
    }
}

/// The host without its port; `None` if it is neither a name nor an address.
fn name_of(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address, port.strip_prefix(':').or(port.is_empty().then_some("0")))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("0")),
        },
    };
    port?.parse::<u16>().is_ok().then_some(name)
}

fn is_ours(access: Access, name: &str, names: &[String]) -> bool {
    if let Ok(address) = name.parse::<IpAddr>() {
        // A name can be made to lead here; an address is what was typed.
        return access != Access::Loopback || address.is_loopback();
    }
    name.eq_ignore_ascii_case("localhost")
        || (access != Access::Loopback && names.iter().any(|own| own.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Access; 4] =
        [Access::Loopback, Access::Role(Role::Auditor), Access::Role(Role::Operator), Access::Role(Role::Security)];

    #[test]
    fn each_role_may_do_its_work() {
        let may = |needs| ALL.map(|access| allowed(access, needs).is_ok());
        assert_eq!(may(Needs::Reading), [true, true, true, true]);
        assert_eq!(may(Needs::Operating), [true, false, true, true]);
        assert_eq!(may(Needs::Securing), [false, false, false, true]);
    }

    fn check(access: Access, pairs: &[(&'static str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        check_origin(access, &Method::POST, &headers, None, &["ai.example.org".to_owned()]).is_ok()
    }

    #[test]
    fn only_own_names_are_answered_to() {
        let remote = Access::Role(Role::Auditor);
        for host in ["127.0.0.1:9443", "127.0.0.1", "[::1]:9443", "[::1]", "localhost:9443", "LocalHost"] {
            assert!(check(Access::Loopback, &[("host", host)]), "{host}");
            assert!(check(remote, &[("host", host)]), "{host}");
        }
        for host in ["ai.example.org", "AI.example.org:9443", "10.1.2.3:9443", "[fd00::1]:9443"] {
            assert!(check(remote, &[("host", host)]) && !check(Access::Loopback, &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "]127.0.0.1[",
            "[127.0.0.1]",
            "127.0.0.1:x",
            "127.0.0.1:",
            "",
            "[::1",
        ] {
            assert!(!check(remote, &[("host", host)]) && !check(Access::Loopback, &[("host", host)]), "{host}");
        }
        assert!(!check(remote, &[]), "no host at all");
        assert!(!check(remote, &[("host", "localhost"), ("host", "localhost")]), "two hosts");
    }

    #[test]
    fn pages_of_others_cannot_send_anything() {
        let access = Access::Loopback;
        let host = ("host", "127.0.0.1:9443");
        assert!(check(access, &[host, ("origin", "http://127.0.0.1:9443")]));
        assert!(check(access, &[host, ("sec-fetch-site", "same-origin")]));
        for origin in ["http://evil.example", "null", "http://127.0.0.1:9443.evil.example", "http://127.0.0.1:1"] {
            assert!(!check(access, &[host, ("origin", origin)]), "{origin}");
        }
        assert!(!check(access, &[host, ("sec-fetch-site", "cross-site")]));
    }

    #[test]
    fn host_and_authority_must_agree() {
        let mut headers = HeaderMap::new();
        let check = |headers: &HeaderMap, authority| {
            check_origin(Access::Loopback, &Method::GET, headers, Some(authority), &[]).is_ok()
        };
        assert!(check(&headers, "localhost:1"));
        headers.insert("host", "localhost:1".parse().unwrap());
        assert!(check(&headers, "localhost:1") && !check(&headers, "127.0.0.1:1"));
    }
}
