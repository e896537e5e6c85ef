use proptest::prelude::*;
use time::macros::datetime;

use super::*;

fn token() -> JoinToken {
    let roots = [CertificateDer::from(vec![1, 2, 3]), CertificateDer::from(vec![4, 5])];
    let gateway = "spiffe://td/branch-1/gateway".parse().unwrap();
    JoinToken::new("spiffe://td/branch-1/ada".parse().unwrap(), datetime!(2026-11-01 08:00 UTC), &roots, gateway)
}

#[test]
fn round_trips_and_names_what_it_pins() {
    let token = token();
    let text = token.to_string();
    assert!(text.starts_with(TOKEN_PREFIX));
    let read: JoinToken = text.parse().unwrap();
    assert_eq!(read, token);
    assert_eq!((read.secret().len(), read.id(), read.gateway()), (SECRET_BYTES, token.id(), token.gateway()));
    let known = CertificateDer::from(vec![4, 5]);
    assert_eq!(read.pinned(&[CertificateDer::from(vec![9]), known.clone()]), [known]);
}

#[test]
fn is_different_each_time_and_not_shown() {
    assert_ne!(token().secret(), token().secret());
    let token = token();
    let shown = format!("{token:?}");
    assert!(shown.contains("spiffe://td/branch-1/ada") && !shown.contains("secret"), "{shown}");
}

#[test]
fn refuses_what_it_did_not_write() {
    let body = |json: &str| format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(json.as_bytes()));
    let secret = BASE64URL_NOPAD.encode(&[7; SECRET_BYTES]);
    let (id, gateway, pin) = ("spiffe://td/a", "spiffe://td/gateway", "ab".repeat(32));
    let good = format!(r#"{{"secret":"{secret}","id":"{id}","expires":1,"pins":["{pin}"],"gateway":"{gateway}"}}"#);
    JoinToken::parse(&body(&good)).unwrap();
    for bad in [
        good.replace("\"expires\"", " \"expires\""),
        good.replace("\"expires\":1", "\"expires\":1,\"more\":1"),
        good.replace("\"expires\":1", "\"expires\":1.0"),
        good.replace(&pin, &pin.to_uppercase()),
        good.replace(&format!("\"{pin}\""), ""),
        good.replace(&format!("\"{pin}\""), &vec![format!("\"{pin}\""); MAX_ROOTS + 1].join(",")),
        good.replace(&secret, secret.get(..40).unwrap()),
        good.replace(gateway, "https://td"),
    ] {
        assert!(matches!(JoinToken::parse(&body(&bad)), Err(CertsError::JoinToken(_))), "{bad}");
    }
    let text = token().to_string();
    for bad in [
        format!(" {text}"),
        format!("{text}\n"),
        format!("{text}="),
        text.replace("join-1", "join-2"),
        "x".repeat(MAX_TOKEN_BYTES + 1),
    ] {
        assert!(matches!(JoinToken::parse(&bad), Err(CertsError::JoinToken(_))), "{bad}");
    }
}

proptest! {
    #[test]
    fn a_changed_token_is_none_or_another_and_never_crashes(
        position in any::<prop::sample::Index>(),
        with in "[a-zA-Z0-9_-]",
        cut in any::<prop::sample::Index>(),
        foreign in ".{0,200}",
    ) {
        let good = token().to_string();
        let position = position.index(good.len());
        let changed = format!("{}{with}{}", good.get(..position).unwrap(), good.get(position + 1..).unwrap());
        if let Ok(read) = JoinToken::parse(&changed) {
            prop_assert_eq!(read.to_string(), changed, "one text for each token");
        }
        prop_assert!(JoinToken::parse(good.get(..cut.index(good.len())).unwrap()).is_err());
        prop_assert!(JoinToken::parse(&foreign).is_err());
        prop_assert!(JoinToken::parse(&[TOKEN_PREFIX, &foreign].concat()).is_err());
    }
}
