use proptest::prelude::*;

use super::*;

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

#[test]
fn patterns_overlap_where_an_id_matches_both() {
    for (one, other, expected) in [
        ("spiffe://td/*", "spiffe://td/relay/*", true),
        ("spiffe://td/relay/*", "spiffe://td/relay/*", true),
        ("spiffe://td/relay/box", "spiffe://td/relay/*", true),
        ("spiffe://td/relay/box", "spiffe://td/relay/box", true),
        ("spiffe://td/relay/east/*", "spiffe://td/relay/*", true),
        ("spiffe://td/relay", "spiffe://td/relay/*", false),
        ("spiffe://td/relay/box", "spiffe://td/relay/boxes", false),
        ("spiffe://td/clerk/*", "spiffe://td/relay/*", false),
        ("spiffe://td/relays/*", "spiffe://td/relay/*", false),
        ("spiffe://other/*", "spiffe://td/*", false),
    ] {
        assert_eq!(pattern(one).overlaps(&pattern(other)), expected, "{one} {other}");
        assert_eq!(pattern(other).overlaps(&pattern(one)), expected, "{other} {one}");
    }
}

#[test]
fn reads_the_parts_of_an_id() {
    let ada = id("spiffe://branch-17.example.org/clerk/Ada_L.2");
    assert_eq!(ada.trust_domain(), "branch-17.example.org");
    assert_eq!(ada.path(), "/clerk/Ada_L.2");
    assert_eq!(id("spiffe://td").path(), "");
    assert_eq!(SpiffeId::gateway("td").unwrap(), id("spiffe://td/gateway"));
    let branch = "/branch-1".parse().unwrap();
    assert_eq!(SpiffeId::gateway_below("td", &branch).unwrap(), id("spiffe://td/branch-1/gateway"));
}

#[test]
fn refuses_what_the_specification_refuses() {
    for text in [
        "",
        "spiffe",
        "spiffe:/td/a",
        "spiffe://",
        "spiffe:///a",
        "SPIFFE://td/a",
        "https://td/a",
        " spiffe://td/a",
        "spiffe://td/a ",
        "spiffe://Td/a",
        "spiffe://user@td/a",
        "spiffe://td:443/a",
        "spiffe://td/",
        "spiffe://td/a/",
        "spiffe://td//a",
        "spiffe://td/a//b",
        "spiffe://td/.",
        "spiffe://td/a/../b",
        "spiffe://td/a/./b",
        "spiffe://td/a?b",
        "spiffe://td/a#b",
        "spiffe://td?a",
        "spiffe://td#a",
        "spiffe://td/%61",
        "spiffe://td/a*",
        "spiffe://td/*",
        "spiffe://t*d/a",
        "spiffe://td/é",
        "spiffe://tđ/a",
        "spiffe://td/a\0",
        "spiffe://td/a\n",
    ] {
        assert!(text.parse::<SpiffeId>().is_err(), "{text:?} was accepted");
    }
    assert!("spiffe://td/...".parse::<SpiffeId>().is_ok(), "three dots are an ordinary name");
}

#[test]
fn length_limits_are_exact() {
    let longest = format!("spiffe://td/{}", "a".repeat(MAX_ID_BYTES - 12));
    assert_eq!(longest.len(), MAX_ID_BYTES);
    assert!(longest.parse::<SpiffeId>().is_ok());
    assert!(format!("{longest}a").parse::<SpiffeId>().is_err());
    let trust_domain = "t".repeat(MAX_TRUST_DOMAIN_BYTES);
    assert!(format!("spiffe://{trust_domain}/a").parse::<SpiffeId>().is_ok());
    assert!(format!("spiffe://{trust_domain}t/a").parse::<SpiffeId>().is_err());
}

#[test]
fn patterns_match_whole_segments() {
    let clerks = pattern("spiffe://td/clerk/*");
    assert!(clerks.matches(&id("spiffe://td/clerk/ada")));
    assert!(clerks.matches(&id("spiffe://td/clerk/ada/laptop")));
    assert!(!clerks.matches(&id("spiffe://td/clerk")));
    assert!(!clerks.matches(&id("spiffe://td/clerks/ada")));
    assert!(!clerks.matches(&id("spiffe://td/clerk-admin")));
    assert!(!clerks.matches(&id("spiffe://td/a/clerk/ada")));
    assert!(!clerks.matches(&id("spiffe://td.evil/clerk/ada")));

    let everyone = pattern("spiffe://td/*");
    assert!(everyone.matches(&id("spiffe://td/clerk")));
    assert!(!everyone.matches(&id("spiffe://td")), "the trust domain itself is not a workload");
    assert!(!everyone.matches(&id("spiffe://td2/clerk")));

    let ada = pattern("spiffe://td/clerk/ada");
    assert!(ada.matches(&id("spiffe://td/clerk/ada")));
    assert!(!ada.matches(&id("spiffe://td/clerk/ada/laptop")));
    assert!(!ada.matches(&id("spiffe://td/clerk/Ada")));
}

#[test]
fn refuses_patterns_that_say_something_else_than_meant() {
    for text in [
        "*",
        "spiffe://*",
        "spiffe://*/a",
        "spiffe://td",
        "spiffe://td/*/a",
        "spiffe://td/a*",
        "spiffe://td/**",
        "spiffe:///*",
        "spiffe://td//*",
        "spiffe://td/*/*",
    ] {
        assert!(matches!(text.parse::<Pattern>(), Err(CertsError::Pattern(_))), "{text:?} was accepted");
    }
}

#[test]
fn reserves_the_gateways_own_branch() {
    assert!(id("spiffe://td/gateway").is_reserved_for_gateway());
    assert!(id("spiffe://td/gateway/spare").is_reserved_for_gateway());
    assert!(!id("spiffe://td/gateways").is_reserved_for_gateway());
    assert!(id("spiffe://td/branch-1/gateway").is_reserved_for_gateway(), "that of the gateway below /branch-1");
    assert!(!id("spiffe://gateway/clerk").is_reserved_for_gateway());
}

#[test]
fn is_its_text_in_json() {
    let ada = id("spiffe://td/clerk/ada");
    assert_eq!(serde_json::to_string(&ada).unwrap(), r#""spiffe://td/clerk/ada""#);
    assert_eq!(serde_json::from_str::<Pattern>(r#""spiffe://td/*""#).unwrap(), pattern("spiffe://td/*"));
    assert!(serde_json::from_str::<SpiffeId>(r#""spiffe://td/a/""#).is_err());
}

/// The grammar, written a second time and differently: character by character from the specification.
fn is_id_by_the_book(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let mut parts = rest.split('/');
    let trust_domain = parts.next().unwrap_or_default();
    let segments: Vec<&str> = parts.collect();
    text.len() <= 2048
        && (1..=255).contains(&trust_domain.len())
        && trust_domain.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_'))
        && segments.iter().all(|s| {
            !["", ".", ".."].contains(s)
                && s.chars().all(|c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
        })
}

fn any_id() -> impl Strategy<Value = SpiffeId> {
    let segment = "[a-zA-Z0-9_.-]{1,12}".prop_filter("dots", |s| s != "." && s != "..");
    ("[a-z0-9._-]{1,20}", prop::collection::vec(segment, 0..5)).prop_map(|(trust_domain, segments)| {
        let path: String = segments.iter().map(|s| format!("/{s}")).collect();
        id(&format!("spiffe://{trust_domain}{path}"))
    })
}

proptest! {
    #[test]
    fn accepts_exactly_the_grammar(text in "(spiffe://)?[a-zA./%_*: -]{0,12}") {
        prop_assert_eq!(text.parse::<SpiffeId>().is_ok(), is_id_by_the_book(&text));
    }

    #[test]
    fn any_text_at_all_is_answered(text in ".*") {
        prop_assert_eq!(text.parse::<SpiffeId>().is_ok(), is_id_by_the_book(&text));
    }

    #[test]
    fn text_and_id_are_one_to_one(a in any_id()) {
        prop_assert_eq!(a.to_string().parse::<SpiffeId>().unwrap(), a);
    }

    #[test]
    fn a_star_matches_what_is_below_and_nothing_else(base in any_id(), other in any_id(), child in "[a-z]{1,8}") {
        let star = pattern(&format!("{base}/*"));
        prop_assert!(!star.matches(&base));
        let below = id(&format!("{base}/{child}"));
        prop_assert!(star.matches(&below));
        let deeper = id(&format!("{below}/x"));
        prop_assert!(star.matches(&deeper));
        let stem = if base.path().is_empty() { "/" } else { base.path() };
        let sibling = id(&format!("spiffe://{}{stem}{child}/x", base.trust_domain()));
        prop_assert_eq!(star.matches(&sibling), base.path().is_empty());
        prop_assert_eq!(star.matches(&other), other.to_string().starts_with(&format!("{base}/")));
        prop_assert_eq!(star.to_string().parse::<Pattern>().unwrap(), star);
    }

    #[test]
    fn an_exact_pattern_matches_itself_alone(a in any_id(), b in any_id()) {
        prop_assume!(!a.path().is_empty());
        prop_assert!(pattern(&a.to_string()).matches(&a));
        prop_assert_eq!(pattern(&a.to_string()).matches(&b), a == b);
    }
}
