//! Identities, certificates, requests for them, tokens, and what other issuers send.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, Result};
use postern::issuer::files::{Files, Paths};
use postern::issuer::spiffe::message as workload_api;
use postern_certs::authority::{create_root, sign_intermediate};
use postern_certs::rotate::{Action, Failures, Schedule};
use postern_certs::spiffe::{MAX_ID_BYTES, Pattern};
use postern_certs::{
    Authority, AuthorityOptions, Csr, IssuedLeaf, JoinToken, LeafRequest, PathPrefix, Role, SpiffeId, Trust, material,
    pem as pem_text, verify,
};
use postern_tests::pki::{self, gateway::GatewayLeaf};
use postern_tests::workload_api::X509SvidResponse;
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::texts::as_text;

const DOMAIN: &str = "fuzz.test";
/// The most that the enrol address reads.
const MAX_BYTES: usize = 64 << 10;

pub(crate) fn id(bytes: &[u8]) -> bool {
    let Some(text) = as_text(bytes) else { return false };
    let id = text.parse::<SpiffeId>();
    if let Ok(id) = &id {
        assert_eq!(id.to_string(), text, "an identity has one text");
        assert!(text.len() <= MAX_ID_BYTES && text.is_ascii() && !text.ends_with('/'));
        assert!(text.strip_prefix("spiffe://").is_some_and(|rest| !rest.contains("//") && !rest.contains('%')));
        assert!(id.path().split('/').all(|segment| !matches!(segment, "." | "..")));
    }
    let pattern = text.parse::<Pattern>();
    if let Ok(pattern) = &pattern {
        assert_eq!(pattern.to_string(), text);
        assert!(id.as_ref().is_ok_and(|id| pattern.matches(id)) || text.ends_with("/*"));
    }
    let prefix = text.parse::<PathPrefix>();
    if let Ok(prefix) = &prefix {
        assert_eq!(prefix.as_str(), text);
        let below = |path: &str| format!("spiffe://{DOMAIN}{text}{path}").parse::<SpiffeId>();
        assert!(below("/x").is_ok_and(|id| prefix.covers(&id)));
        assert!(text.is_empty() || below("").is_ok_and(|id| !prefix.covers(&id)));
        assert!(text.is_empty() || below("7/x").is_ok_and(|id| !prefix.covers(&id)), "by whole segments");
    }
    id.is_ok() || pattern.is_ok() || prefix.is_ok()
}

pub(crate) fn id_seeds() -> Result<Vec<Vec<u8>>> {
    let texts = ["spiffe://fuzz.test/clerk/amy", "spiffe://fuzz.test/clerk/*", "/branch-1/floor_2", "spiffe://a/../b"];
    Ok(texts.map(|text| text.as_bytes().to_vec()).into())
}

/// An authority in a folder that goes with it, and a workstation.
struct Branch {
    leaf: IssuedLeaf,
    authority: Authority,
    folder: TempDir,
}

impl Branch {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let options = AuthorityOptions::new(DOMAIN, Duration::from_secs(72 * 3600));
        let authority = Authority::open_or_create(&folder.path().join("authority"), options)?;
        let id = format!("spiffe://{DOMAIN}/clerk/amy").parse()?;
        let leaf = authority.issue(LeafRequest { id, role: Role::Workload })?;
        Ok(Self { leaf, authority, folder })
    }
}

/// What targets need again and again, without a folder: nothing cleans up behind a static.
struct Known {
    roots: Vec<CertificateDer<'static>>,
    leaf: CertificateDer<'static>,
    /// Key and certificate of a root.
    root_pem: Vec<u8>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let branch = Branch::new().expect("no branch to begin with");
    let vault = branch.folder.path().join("root");
    create_root(&vault, DOMAIN, OffsetDateTime::now_utc()).expect("no root to begin with");
    let root_pem = std::fs::read(vault.join("root.pem")).expect("the root");
    Known { roots: branch.authority.trust_bundle(), leaf: branch.leaf.chain[0].clone(), root_pem }
});

pub(crate) fn certificate(bytes: &[u8]) -> bool {
    let der = CertificateDer::from(bytes.to_vec());
    let peer = verify::peer(&der);
    if let Ok(peer) = &peer {
        assert_eq!(verify::peer_id(&der).unwrap(), peer.id);
        assert!(!peer.id.path().is_empty(), "a leaf names a workload");
        assert_eq!(verify::validity(&der).unwrap().1, peer.not_after);
    }
    let trust = Trust::from_roots(std::slice::from_ref(&der));
    if let Ok(trust) = &trust {
        assert_eq!(trust.roots(), std::slice::from_ref(&der));
    }
    if let Ok(many) = material::split_certificates(bytes, material::MAX_ROOTS) {
        let lengths = many.iter().map(|one| one.len()).sum::<usize>();
        assert_eq!(lengths, bytes.len(), "no byte is passed over");
    }
    peer.is_ok() || trust.is_ok()
}

pub(crate) fn certificate_seeds() -> Result<Vec<Vec<u8>>> {
    let branch = Branch::new()?;
    Ok(branch.leaf.chain.iter().chain(&branch.authority.trust_bundle()).map(|one| one.to_vec()).collect())
}

pub(crate) fn list(bytes: &[u8]) -> bool {
    let Ok(list) = material::revocation_list(bytes.to_vec()) else { return false };
    let Ok(trust) = Trust::from_roots(&KNOWN.roots).unwrap().with_crls(&[list]) else { return false };
    assert!(trust.next_update().is_some(), "a list without an end is never outdated");
    let peer = verify::peer(&KNOWN.leaf).unwrap();
    let _either = trust.is_revoked(&peer);
    true
}

pub(crate) fn list_seeds() -> Result<Vec<Vec<u8>>> {
    let branch = Branch::new()?;
    let list = || branch.authority.trust().crls().unwrap_or_default();
    let empty = list();
    branch.authority.revoke_id(&branch.leaf.id)?;
    Ok(empty.into_iter().chain(list()).map(|one| one.to_vec()).collect())
}

pub(crate) fn csr(bytes: &[u8]) -> bool {
    let request = pem_text::request(bytes);
    let (prefix, now) = (PathPrefix::whole_domain(), OffsetDateTime::now_utc());
    let signed = sign_intermediate(&KNOWN.root_pem, request.as_bytes(), &prefix, 30, now);
    let Ok(signed) = signed else { return false };
    let der = CertificateDer::from_pem_slice(signed.as_bytes()).expect("what was signed is a certificate");
    assert!(verify::peer_id(&der).is_err(), "an authority is nobody's leaf, whatever the request asks for");
    assert!(bytes.len() <= postern_certs::csr::MAX_CSR_BYTES);
    true
}

pub(crate) fn csr_seeds() -> Result<Vec<Vec<u8>>> {
    let domain = SpiffeId::of_trust_domain(DOMAIN)?;
    let mut seeds =
        vec![Csr::generate(&domain)?.der.clone(), Csr::generate(&verify::peer_id(&KNOWN.leaf)?)?.der.clone()];
    for algorithm in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(domain.to_string().try_into()?)];
        seeds.push(params.serialize_request(&KeyPair::generate_for(algorithm)?)?.der().to_vec());
    }
    Ok(seeds)
}

pub(crate) fn token(bytes: &[u8]) -> bool {
    let Some(text) = as_text(bytes) else { return false };
    let Ok(token) = JoinToken::parse(text) else { return false };
    assert_eq!(token.to_string(), text, "a token has one text");
    assert!(!format!("{token:?}").contains(&data_encoding::BASE64URL_NOPAD.encode(token.secret())));
    token.client_config().expect("whoever has a token can use it");
    true
}

pub(crate) fn token_seeds() -> Result<Vec<Vec<u8>>> {
    let branch = Branch::new()?;
    let token = branch.authority.invite(&branch.leaf.id, Duration::from_secs(600))?;
    Ok(vec![token.to_string().into_bytes(), b"postern-join-1.e30".to_vec()])
}

/// A life, a chance, and moments at which somebody looks, some of which fail to renew; clocks go back and forth meanwhile.
pub(crate) fn schedule(bytes: &[u8]) -> bool {
    let mut numbers = bytes.chunks_exact(8).map(|eight| i64::from_le_bytes(eight.try_into().unwrap()));
    let (Some(life), Some(chance)) = (numbers.next(), numbers.next()) else { return false };
    let start = OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
    let ends = start.saturating_add(time::Duration::seconds(life));
    let schedule = Schedule::new(start, ends, f64::from_bits(chance.cast_unsigned()));
    let (mut failures, mut health) = (Failures::default(), None);
    for number in numbers.take(64) {
        // Within some thousand years.
        let now = start.saturating_add(time::Duration::milliseconds((number >> 1) % (1 << 46)));
        match schedule.next(now, failures) {
            Action::RenewNow => {
                assert!(now >= schedule.due(), "too early");
                if number & 1 == 1 {
                    failures = failures.and_at(now);
                    assert!(schedule.next(now, failures) != Action::RenewNow, "two renewals at once");
                }
            }
            Action::WaitUntil(later) => {
                assert!(later > now, "a wait goes forward");
                let then = match schedule.next(later, failures) {
                    // It was due, and the clock went back.
                    Action::WaitUntil(again) => schedule.next(again, failures),
                    now => now,
                };
                assert_eq!(then, Action::RenewNow, "a gap");
                assert!(now < schedule.due() || later <= now + time::Duration::HOUR, "a wait of more than an hour");
            }
        }
        let concern = (now, schedule.health(now));
        let (first, second) =
            if health.is_some_and(|(then, _)| then > now) { (Some(concern), health) } else { (health, Some(concern)) };
        assert!(first.zip(second).is_none_or(|(first, second)| first.1 <= second.1), "concern only grows");
        health = Some(concern);
    }
    true
}

pub(crate) fn schedule_seeds() -> Result<Vec<Vec<u8>>> {
    let seed = |life: i64, chance: f64, at: &[i64]| -> Vec<u8> {
        let first = [life, chance.to_bits().cast_signed()];
        first.iter().chain(at).flat_map(|number| number.to_le_bytes()).collect()
    };
    let hours = |hours: i64| (hours * 3_600_000) << 1;
    Ok(vec![
        seed(72 * 3600, 0.5, &[hours(1), hours(36) | 1, hours(36) + 240_001, hours(80)]),
        seed(10, 0.0, &[9_001, 9_201, 9_401, 8_000, 30_001]),
        seed(-5, f64::NAN, &[1, 3, i64::MAX, i64::MIN]),
    ])
}

pub(crate) fn message(bytes: &[u8]) -> bool {
    let Ok(material) = workload_api::material(bytes, Path::new("/run/agent.sock")) else { return false };
    assert!(!material.roots.is_empty() && !material.leaf.chain.is_empty());
    assert_eq!(verify::peer_id(&material.leaf.chain[0]).unwrap(), material.leaf.id);
    true
}

pub(crate) fn message_seeds() -> Result<Vec<Vec<u8>>> {
    let (authority, id) = (pki::Authority::new("agent")?, format!("spiffe://{DOMAIN}/gateway"));
    let leaf = authority.gateway(GatewayLeaf::of(&id))?;
    let plain = X509SvidResponse::of(&id, &leaf, &[&authority])?;
    Ok(vec![plain.encode_to_vec(), X509SvidResponse::default().encode_to_vec()])
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("no runtime")
});

/// One file that is everything at once: key, chain, roots and lists.
pub(crate) fn pem(bytes: &[u8]) -> bool {
    if bytes.len() > MAX_BYTES {
        return false;
    }
    // Made with mode 0600.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let path = || file.path().to_owned();
    let paths = Paths { cert: path(), key: path(), ca: path(), crl: Some(path()) };
    match RUNTIME.block_on(Files::new(paths).next()) {
        Ok(material) => {
            assert!(!material.roots.is_empty() && !material.crls.is_empty());
            material::check_key(&material.leaf).expect("key and certificate belong together");
            true
        }
        Err(error) => {
            assert!(error.to_string().len() < 1000, "an error of any length");
            false
        }
    }
}

pub(crate) fn pem_seeds() -> Result<Vec<Vec<u8>>> {
    let branch = Branch::new()?;
    let folder = branch.folder.path().join("amy");
    branch.leaf.write(&folder, &branch.authority.trust_bundle())?;
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).context("what was written");
    let lists = branch.authority.trust().crls().unwrap_or_default();
    let lists: String = lists.iter().map(|list| section("X509 CRL", list)).collect();
    let key = PrivateKeyDer::from_pem_slice(text("key.pem")?.as_bytes())?;
    let odd = section("EC PRIVATE KEY", key.secret_der());
    let whole = [text("key.pem")?, text("cert.pem")?, text("ca.pem")?, lists].concat();
    Ok(vec![whole.clone().into_bytes(), [odd, whole].concat().into_bytes()])
}

fn section(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
