use rustls::{ClientConnection, ServerConnection, pki_types::ServerName};

use super::*;
use crate::{Csr, JoinToken, Reason, client_config, enrol_server_config, server_config, verify};

const TEN_MINUTES: StdDuration = StdDuration::from_secs(600);

fn eve() -> SpiffeId {
    format!("spiffe://{TRUST_DOMAIN}/clerk/eve").parse().unwrap()
}

fn invited(authority: &Authority) -> JoinToken {
    authority.invite(&eve(), TEN_MINUTES).unwrap().to_string().parse().unwrap()
}

#[test]
fn an_invitation_gives_one_leaf_of_a_workload() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let token = invited(&authority);
    assert_eq!((token.id(), token.gateway()), (&eve(), authority.gateway_id()));
    assert_eq!(token.pinned(&authority.trust_bundle()).len(), 1);
    let csr = Csr::generate(token.id()).unwrap();
    let leaf = authority.enrol(token.secret(), &csr.der).unwrap();
    assert_eq!((&leaf.id, leaf.not_after), (&eve(), START + Duration::hours(72)));
    assert_eq!(leaf.roots, authority.trust_bundle());
    let peer = verify::peer(&leaf.chain[0]).unwrap();
    assert_eq!((&peer.id, &peer.serial), (&eve(), &leaf.serial));
    tls::check_chain(&leaf.chain, &authority.trust(), TRUST_DOMAIN, START).unwrap();
    let serving = verify::leaf_for(&leaf.chain[0], verify::Purpose::Server);
    assert_eq!(serving.unwrap_err().reason(), Some(Reason::Purpose));
    for again in [&scratch.open().unwrap(), &authority] {
        let error = again.enrol(token.secret(), &Csr::generate(token.id()).unwrap().der).unwrap_err();
        assert!(matches!(error, CertsError::InviteRefused), "{error}");
    }
    assert_eq!((authority.status().issued, authority.status().invited), (1, 0));
}

#[test]
fn what_does_not_fit_is_refused_and_the_invitation_stays() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let token = invited(&authority);
    let csr = Csr::generate(token.id()).unwrap();
    assert!(matches!(authority.enrol(&[7; 32], &csr.der), Err(CertsError::InviteRefused)));
    assert!(matches!(authority.enrol(b"", &csr.der), Err(CertsError::InviteRefused)));
    let other = Csr::generate(&ada().id).unwrap();
    assert!(matches!(authority.enrol(token.secret(), &other.der), Err(CertsError::Csr(_))));
    assert!(matches!(authority.enrol(token.secret(), b"junk"), Err(CertsError::Csr(_))));
    authority.enrol(token.secret(), &csr.der).unwrap();

    let late = invited(&authority);
    scratch.clock.advance(Duration::minutes(10) + Duration::SECOND);
    assert!(matches!(authority.enrol(late.secret(), &csr.der), Err(CertsError::InviteRefused)));
}

#[test]
fn who_may_be_invited() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    for ttl in [StdDuration::ZERO, TEN_MINUTES + StdDuration::from_secs(1)] {
        assert!(matches!(authority.invite(&eve(), ttl), Err(CertsError::NotInvitable(_))), "{ttl:?}");
    }
    for id in [authority.gateway_id().to_string(), "spiffe://other/a".into(), format!("spiffe://{TRUST_DOMAIN}")] {
        let refused = authority.invite(&id.parse().unwrap(), TEN_MINUTES);
        assert!(matches!(refused, Err(CertsError::NotIssuable { .. })), "{id}");
    }
    let token = invited(&authority);
    authority.revoke_id(&eve()).unwrap();
    let csr = Csr::generate(&eve()).unwrap();
    assert!(matches!(authority.enrol(token.secret(), &csr.der), Err(CertsError::InviteRefused)), "withdrawn");
}

#[test]
fn a_renewal_keeps_the_identity_and_needs_a_new_key() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let token = invited(&authority);
    let csr = Csr::generate(token.id()).unwrap();
    let first = authority.enrol(token.secret(), &csr.der).unwrap();
    let peer = verify::peer(&first.chain[0]).unwrap();
    scratch.clock.advance(Duration::hours(36));
    let same_key = authority.renew(&peer, &csr.der).unwrap_err().to_string();
    assert!(same_key.contains("make a new one each time"), "{same_key}");
    let other_name = Csr::generate(&ada().id).unwrap();
    assert!(matches!(authority.renew(&peer, &other_name.der), Err(CertsError::Csr(_))));
    let second = authority.renew(&peer, &Csr::generate(&eve()).unwrap().der).unwrap();
    assert_eq!((&second.id, second.not_after), (&eve(), START + Duration::hours(108)));

    let stranger = Scratch::new().open().unwrap().issue(ada()).unwrap();
    let why = |peer: &verify::Peer| match authority.renew(peer, &Csr::generate(&peer.id).unwrap().der) {
        Err(CertsError::NotRenewable { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert!(why(&verify::peer(&stranger.chain[0]).unwrap()).contains("another authority"));
    scratch.clock.advance(Duration::hours(37));
    assert!(why(&peer).contains("expired"));
    authority.revoke_id(&eve()).unwrap();
    assert!(why(&verify::peer(&second.chain[0]).unwrap()).contains("revoked"));
}

#[test]
fn nobody_fills_the_register_by_renewing() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let peer = verify::peer(&authority.issue(ada()).unwrap().chain[0]).unwrap();
    let renew = || authority.renew(&peer, &Csr::generate(&peer.id).unwrap().der);
    for _ in 1..16 {
        renew().unwrap();
    }
    assert!(matches!(renew(), Err(CertsError::NotRenewable { .. })));
    let other = verify::peer(&authority.issue(gateway()).unwrap().chain[0]).unwrap();
    assert_ne!(other.id, peer.id, "others are not concerned");
}

#[test]
fn a_gateways_leaf_is_not_renewed_by_request() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let leaf = authority.issue(gateway()).unwrap();
    let peer = verify::peer(&leaf.chain[0]).unwrap();
    let csr = Csr::generate(&peer.id).unwrap();
    assert!(matches!(authority.renew(&peer, &csr.der), Err(CertsError::NotIssuable { .. })));
}

fn handshake(
    server: &Arc<rustls::ServerConfig>,
    client: &Arc<rustls::ClientConfig>,
) -> Result<(ServerConnection, ClientConnection), rustls::Error> {
    let mut client = ClientConnection::new(Arc::clone(client), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    for _ in 0..8 {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut to_server).unwrap();
        }
        server.read_tls(&mut &to_server[..]).unwrap();
        server.process_new_packets()?;
        while server.wants_write() {
            server.write_tls(&mut to_client).unwrap();
        }
        client.read_tls(&mut &to_client[..]).unwrap();
        client.process_new_packets()?;
    }
    Ok((server, client))
}

#[test]
fn a_newcomer_knows_the_gateway_by_its_token_alone() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let options = AuthorityOptions::new(TRUST_DOMAIN, StdDuration::from_secs(3600));
        Authority::open_or_create(&folder.path().join(name), options).unwrap()
    };
    let (ours, theirs) = (open("ours"), open("theirs"));
    let serve = |authority: &Authority, roots: &[CertificateDer<'static>]| {
        enrol_server_config(&authority.issue(gateway()).unwrap(), roots).unwrap()
    };
    let token = invited(&ours);
    let client = token.client_config().unwrap();
    let server = serve(&ours, &ours.trust_bundle());
    assert!(!server.session_storage.can_cache() && server.send_tls13_tickets == 0);
    let (server, connection) = handshake(&server, &client).unwrap();
    assert_eq!(server.alpn_protocol(), Some(&b"http/1.1"[..]), "the one version that is spoken there");
    assert_eq!(token.pinned(connection.peer_certificates().unwrap()), ours.trust_bundle());

    let refused = |server| Reason::of_handshake(&handshake(&server, &client).err().unwrap());
    assert_eq!(refused(serve(&theirs, &theirs.trust_bundle())), Some(Reason::UnknownAuthority));
    let both = [theirs.trust_bundle(), ours.trust_bundle()].concat();
    assert_eq!(refused(serve(&theirs, &both)), Some(Reason::UnknownAuthority), "a root that is shown signs nothing");
    assert_eq!(refused(serve(&ours, &[])), Some(Reason::UnknownAuthority));
    let workload = ours.issue(ada()).unwrap();
    assert!(enrol_server_config(&workload, &[]).is_err(), "a workload cannot serve");

    // And with what it got it comes in at the other door.
    let csr = Csr::generate(token.id()).unwrap();
    let signed = ours.enrol(token.secret(), &csr.der).unwrap();
    let (leaf, trust) = signed.with_key(csr.key.clone_key(), OffsetDateTime::now_utc()).unwrap();
    let trust = Arc::new(trust);
    let inside = server_config(&ours.issue(gateway()).unwrap(), &ours.trust()).unwrap();
    let (server, _) = handshake(&inside, &client_config(&leaf, &trust, token.gateway().clone()).unwrap()).unwrap();
    let peer = verify::peer(&server.peer_certificates().unwrap()[0]).unwrap();
    assert_eq!(peer.id, eve());
    ours.revoke_serial(&peer.serial).unwrap();
    let inside = server_config(&ours.issue(gateway()).unwrap(), &ours.trust()).unwrap();
    let refused = handshake(&inside, &client_config(&leaf, &trust, token.gateway().clone()).unwrap()).err().unwrap();
    assert_eq!(Reason::of_handshake(&refused), Some(Reason::Revoked));
}
