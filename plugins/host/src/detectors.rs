//! Recognises what is nearly always personal or secret: e-mail addresses, telephone numbers, identity and bank cards, keys.
//!
//! Every pattern runs in time linear in the text, and numbers with a check digit are checked. Full-width digits, dashes of
//! all lengths and invisible characters are seen through: spans are bytes of the text as it was given.
//!
//! Where in doubt, a find is reported: a placeholder is restored in the answer, so one too many costs little.

mod normal;
mod numbers;
mod secrets;

use std::sync::LazyLock;

use regex::Regex;

use normal::Normalised;

/// What can be recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An e-mail address with an ASCII domain (RFC 5322's dot-atom form).
    Email,
    /// A telephone number: E.164 with `+`; Chinese mobile and area-code numbers; North American ten digits with separators.
    Phone,
    /// A resident identity number of the People's Republic of China: 18 characters, date and check character right (GB 11643).
    IdCard,
    /// A payment card: prefix and length of a known network, check digit right (ISO/IEC 7812, Luhn).
    BankCard,
    /// A key, token or password: by the issuer's prefix, as a PEM private key, or behind a word such as `password:`.
    Secret,
}

/// A find: bytes `start..end` of the text, on character boundaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// What it is.
    pub kind: Kind,
    /// First byte.
    pub start: usize,
    /// The byte after the last one.
    pub end: usize,
}

impl Kind {
    /// All of them, the surest first: where two overlap, the earlier names the find.
    pub const ALL: [Self; 5] = [Self::Secret, Self::IdCard, Self::BankCard, Self::Email, Self::Phone];

    /// Its name in configurations, placeholders and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Phone => "phone",
            Self::IdCard => "id-card",
            Self::BankCard => "bank-card",
            Self::Secret => "secret",
        }
    }

    /// The kind of that [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn rank(self) -> usize {
        Self::ALL.iter().position(|kind| *kind == self).unwrap_or(Self::ALL.len())
    }
}

/// Everything of the given kinds in a text, in the order of the text. Finds of different kinds may overlap; see [`disjoint`].
#[must_use]
pub fn find(kinds: &[Kind], text: &str) -> Vec<Match> {
    let normalised = Normalised::of(text);
    let mut found = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kinds.contains(kind)) {
        let spans = match kind {
            Kind::Email => emails(normalised.text()),
            Kind::Phone => numbers::phones(normalised.text()),
            Kind::IdCard => numbers::id_cards(normalised.text()),
            Kind::BankCard => numbers::bank_cards(normalised.text()),
            Kind::Secret => secrets::secrets(normalised.text()),
        };
        found.extend(spans.into_iter().map(|span| {
            let (start, end) = normalised.original(span);
            Match { kind, start, end }
        }));
    }
    found.sort_by_key(|hit| (hit.start, hit.end, hit.kind.rank()));
    found
}

/// Joins finds that overlap into one, named by the surest kind, so that no byte of any of them is left over.
#[must_use]
pub fn disjoint(mut found: Vec<Match>) -> Vec<Match> {
    found.sort_by_key(|hit| (hit.start, hit.end));
    let mut kept: Vec<Match> = Vec::with_capacity(found.len());
    for hit in found {
        match kept.last_mut() {
            Some(last) if hit.start < last.end => {
                last.end = last.end.max(hit.end);
                if hit.kind.rank() < last.kind.rank() {
                    last.kind = hit.kind;
                }
            }
            _ => kept.push(hit),
        }
    }
    kept
}

/// Bytes of the normalised text.
type Bytes = std::ops::Range<usize>;

fn emails(text: &str) -> Vec<Bytes> {
    // Bounds of RFC 5321: 64 octets before the @, 63 for each label.
    static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}(?:[A-Za-z]{2,24}|xn--[A-Za-z0-9-]{2,59})",
        )
    });
    if !text.contains('@') {
        return Vec::new();
    }
    EMAIL
        .find_iter(text)
        .filter_map(|found| {
            // Punctuation of the sentence or the source code around it is no part of the address.
            let local = found.as_str().split('@').next().unwrap_or_default();
            let inner = local.trim_start_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let trimmed = local.len() - inner.len();
            (!inner.is_empty()).then(|| found.start() + trimmed..found.end())
        })
        .collect()
}

#[expect(clippy::expect_used, reason = "patterns are constants, and the tests of each detector compile them")]
fn pattern(pattern: &'static str) -> Regex {
    Regex::new(pattern).expect("a constant pattern")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What was found, as text.
    pub(super) fn found(kind: Kind, text: &str) -> Vec<&str> {
        find(&[kind], text).into_iter().map(|hit| text.get(hit.start..hit.end).unwrap()).collect()
    }

    #[test]
    fn names_lead_back_to_kinds() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(Kind::from_name("e-mail"), None);
    }

    #[test]
    fn addresses_are_found_wherever_they_stand() {
        let text =
            "Write to Li.Wei+bids@mail.example.com, <a_b@x.io>; 邮箱zhang@例.example.cn或wang@example.cn请回复。";
        assert_eq!(found(Kind::Email, text), ["Li.Wei+bids@mail.example.com", "a_b@x.io", "wang@example.cn"]);
        assert_eq!(found(Kind::Email, "'o@x.org'"), ["o@x.org"]);
        assert_eq!(found(Kind::Email, "_svc@corp.example"), ["_svc@corp.example"]);
    }

    #[test]
    fn what_only_looks_like_an_address_is_left() {
        for text in [
            "react@18.2.0",
            "@handle",
            "a@b",
            "a@b.c",
            "a@ b.com",
            "user at example.com",
            "1@2.3",
            "me@-x.com",
            "@x.com",
            "...@x.com",
        ] {
            assert_eq!(found(Kind::Email, text), [""; 0], "{text}");
        }
    }

    #[test]
    fn disguises_are_seen_through() {
        let text = "给ｌｉ＠ｅｘａｍｐｌｅ．ｃｏｍ和l\u{200b}i@exa\u{ad}mple.com写信";
        assert_eq!(found(Kind::Email, text), ["ｌｉ＠ｅｘａｍｐｌｅ．ｃｏｍ", "l\u{200b}i@exa\u{ad}mple.com"]);
        assert_eq!(found(Kind::Phone, "call 138\u{2011}0013\u{2011}8000 now"), ["138\u{2011}0013\u{2011}8000"]);
        assert_eq!(found(Kind::Phone, "１３８００１３８０００"), ["１３８００１３８０００"]);
    }

    #[test]
    fn overlapping_finds_become_one_that_covers_both() {
        let hit = |kind, start, end| Match { kind, start, end };
        let joined = disjoint(vec![hit(Kind::Phone, 5, 20), hit(Kind::Secret, 10, 15), hit(Kind::Email, 20, 30)]);
        assert_eq!(joined, [hit(Kind::Secret, 5, 20), hit(Kind::Email, 20, 30)]);
    }

    #[test]
    fn a_megabyte_of_near_misses_takes_linear_time() {
        for piece in ["a@", "1", "1 ", "4111-", "eyJ", "-----BEGIN PRIVATE KEY----", "password ", "+1", "a.b-"] {
            let started = std::time::Instant::now();
            let _found = find(&Kind::ALL, &piece.repeat(1_000_000 / piece.len()));
            assert!(started.elapsed().as_secs() < 10, "{piece}: {:?}", started.elapsed());
        }
    }

    proptest! {
        #[test]
        fn spans_are_always_text(text in "(?s)[\\PC\u{200b}１a@.0-9 -]{0,200}") {
            for hit in find(&Kind::ALL, &text) {
                prop_assert!(hit.start < hit.end);
                prop_assert!(text.get(hit.start..hit.end).is_some());
            }
        }

        #[test]
        fn an_address_is_found_in_any_surroundings(before in "[ ,;:\"(中文]{0,8}", after in "[ ,;:\")中文]{0,8}") {
            let text = format!("{before}a.b@example.org{after}");
            prop_assert_eq!(found(Kind::Email, &text), ["a.b@example.org"]);
        }
    }
}
