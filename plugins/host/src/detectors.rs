//! Recognises what is nearly always personal or secret: e-mail addresses, telephone numbers, identity and bank cards, accounts,
//! passports, licence plates, addresses of networks, credentials in URLs, keys.
//!
//! One pass over the text for all kinds ([`scan`]), whose work is linear in it, whatever is in it. Numbers with a check digit are checked. Full-width digits, dashes
//! and spaces of all kinds and invisible characters, and letters of another alphabet that look alike, are seen through ([`postern_text::Plain`]): spans are bytes of the text
//! as it was given. Escapes are not: [`postern_text::Readings`] comes first.
//!
//! Where in doubt, a find is reported: a placeholder is restored in the answer, so one too many costs little.

mod cards;
mod digits;
mod emails;
mod ibans;
mod ips;
mod issuers;
mod macs;
mod open;
mod passports;
mod phones;
mod plates;
mod runs;
mod scan;
mod secrets;
mod triggers;
mod urls;
mod words;
pub(crate) mod work;

use postern_text::Plain;
use regex::Regex;

use work::Work;

/// What can be recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An e-mail address (RFC 5322's dot-atom form); the domain in any script, or as `xn--…`.
    Email,
    /// A telephone number: E.164 with `+`; Chinese mobile and area-code numbers; North American ten digits with
    /// separators.
    Phone,
    /// A resident identity number of the People's Republic of China: 18 characters, date and check character right (GB 11643).
    IdCard,
    /// A payment card: prefix and length of a known network, check digit right (ISO/IEC 7812, Luhn).
    BankCard,
    /// A key, token or password: by the issuer's prefix, as a PEM private key, or behind a word such as `password:`.
    Secret,
    /// An international bank account number: its country's length, check digits right (ISO 13616).
    Iban,
    /// An address of the internet protocol, version 4 or 6, that is somebody's, and no version of a program.
    Ip,
    /// A hardware address of 48 or 64 bits (IEEE 802).
    Mac,
    /// User and password in an address (RFC 3986, section 3.2.1), or the value of a parameter such as `access_token` in it.
    UrlCredentials,
    /// A passport: a Chinese one by its form, others behind a word such as `passport`.
    Passport,
    /// A licence plate: a Chinese one by its form (GA 36), others behind words such as `licence plate`.
    Plate,
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
    pub const ALL: [Self; 11] = [
        Self::UrlCredentials,
        Self::Secret,
        Self::Iban,
        Self::IdCard,
        Self::BankCard,
        Self::Mac,
        Self::Ip,
        Self::Email,
        Self::Passport,
        Self::Plate,
        Self::Phone,
    ];

    /// Its name in configurations, placeholders and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Phone => "phone",
            Self::IdCard => "id-card",
            Self::BankCard => "bank-card",
            Self::Secret => "secret",
            Self::Iban => "iban",
            Self::Ip => "ip",
            Self::Mac => "mac",
            Self::UrlCredentials => "url-credentials",
            Self::Passport => "passport",
            Self::Plate => "plate",
        }
    }

    /// The kind of that [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its place among [`ALL`](Self::ALL).
    fn rank(self) -> usize {
        Self::ALL.iter().position(|kind| *kind == self).unwrap_or(Self::ALL.len())
    }
}

/// Everything of the given kinds in a text, in the order of the text. Finds of different kinds may overlap; see [`disjoint`].
#[must_use]
pub fn find(kinds: &[Kind], text: &str) -> Vec<Match> {
    find_within(kinds, text, &mut Work::unbounded()).unwrap_or_default()
}

/// As [`find`]; `None` if the work was given up.
pub(crate) fn find_within(kinds: &[Kind], text: &str, work: &mut Work<'_>) -> Option<Vec<Match>> {
    let plain = Plain::of(text);
    let found = scan::scan(kinds, plain.text(), work)?;
    let original = |(kind, span)| {
        let std::ops::Range { start, end } = plain.original(span);
        Match { kind, start, end }
    };
    let mut found: Vec<Match> = found.into_iter().map(original).collect();
    found.sort_by_key(|hit| (hit.start, hit.end, hit.kind.rank()));
    Some(found)
}

/// As [`find`], in a text of which more will come: and from which byte on that may change what is found. (`None`: nothing may.)
#[must_use]
pub fn find_begun(kinds: &[Kind], plain: &Plain<'_>) -> (Vec<Match>, Option<usize>) {
    let text = plain.text();
    let found = scan::scan(kinds, text, &mut Work::unbounded()).unwrap_or_default();
    let mut open = open::open(kinds, text);
    // What ends where the text does may go on; and what is cut is not over.
    while let Some(start) = found
        .iter()
        .filter(|(_, span)| span.start < open && (span.end > open || span.end == text.len()))
        .map(|(_, span)| span.start)
        .min()
    {
        open = start;
    }
    let open =
        text.get(open..).and_then(|rest| rest.chars().next()).map(|c| plain.original(open..open + c.len_utf8()).start);
    let original = |(kind, span)| {
        let std::ops::Range { start, end } = plain.original(span);
        Match { kind, start, end }
    };
    let mut found: Vec<Match> = found.into_iter().map(original).collect();
    found.sort_by_key(|hit| (hit.start, hit.end, hit.kind.rank()));
    (found, open)
}

/// Is a find of [`Kind::Secret`] a private key?
#[must_use]
pub fn is_private_key(found: &str) -> bool {
    secrets::begins_key(Plain::of(found).text())
}

/// Where the last line of a private key ends that began before this text.
#[must_use]
pub fn private_key_end(text: &str) -> Option<usize> {
    let plain = Plain::of(text);
    let end = secrets::key_end(plain.text(), 0)?;
    let last = plain.text().get(..end)?.chars().next_back()?.len_utf8();
    Some(plain.original(end - last..end).end)
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

#[expect(clippy::expect_used, reason = "patterns are constants, and the tests of each detector compile them")]
fn pattern(pattern: &'static str) -> Regex {
    Regex::new(pattern).expect("a constant pattern")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) const NONE: [&str; 0] = [];

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

    /// What makes searches slow: things that begin everywhere and end nowhere, with what differs each time in between, so
    /// that no automaton gets to know it.
    fn adversarial(bytes: usize) -> Vec<(&'static str, String)> {
        let pieces = [
            "a@",
            "a@a.",
            "@",
            "a.",
            "a-",
            "1",
            "1 ",
            "4",
            "4 ",
            "4-",
            "4111-",
            "4111 1111 1111 111",
            "1-1_1/1.",
            "+",
            "+1",
            "+1(",
            "(0",
            "138 0013 800",
            "11010519491231002",
            "110105 19491231 00",
            " ",
            "f0",
            "eyJ",
            "eyJ-",
            "eyJ.",
            "eyJabcdefgh.",
            "eyJ.eyJabcdefgh.",
            "SG.",
            "SG.-",
            "sk-",
            "sk-a ",
            "AKIA ",
            "://",
            "x://u:",
            "x://:@",
            "-----BEGIN PRIVATE KEY----",
            "password ",
            "password:",
            "token is ",
            "password=a",
            "密码",
            "。",
            "．",
            "a\u{200b}",
            "１ ",
            "@例.",
            "\n",
            "\\",
            "::",
            "a:",
            "2001:db8:",
            "2001:db8::",
            "00:1a:",
            "00-1a-",
            "1.2.",
            "192.0.2.",
            "DE89 ",
            "DE893704004405320130",
            "MT84 MALT 0110 0001 2345 MTLC AST0 ",
            "E1234567 ",
            "passport ",
            "passport no is ",
            "护照号",
            "plate number ",
            "京A1234",
            "京",
            "https://a.example/?token=",
            "?token=a1b2c3d4&",
            "://?key=",
            "https://x?https://",
            "-----BEGIN A PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----END ",
            "---- BEGIN ",
            "1234567890:AA",
            "M.a1b2c3.",
            "abc8Q~",
            "SK0a1b2c3d",
            "xoxe.xoxp-",
            "аb",
            "аbѕ\u{200b}",
        ];
        let mut texts: Vec<_> = pieces.iter().map(|piece| (*piece, piece.repeat(bytes / piece.len()))).collect();
        // Two of them in an order that never repeats.
        for (name, one, other) in
            [("eyJ…", "eyJ-", "eyJ--"), ("sk…", "sk-a-", "sk.b-"), ("+…", "+1 2", "+1(34)"), ("4…", "4 11-", "41 1")]
        {
            let mut seed = 7_u32;
            let mut text = String::new();
            while text.len() < bytes {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                text.push_str(if seed >> 31 == 0 { one } else { other });
            }
            texts.push((name, text));
        }
        texts
    }

    /// Counted, so that a machine under load says the same.
    #[test]
    fn work_is_linear_in_the_text() {
        for ((piece, one), (_, four)) in adversarial(1 << 18).into_iter().zip(adversarial(1 << 20)) {
            for kind in Kind::ALL {
                let steps = |text: &str| {
                    let mut work = Work::unbounded();
                    let _found = find_within(&[kind], text, &mut work).unwrap();
                    work.steps()
                };
                let (one_steps, four_steps) = (steps(&one), steps(&four));
                assert!(four_steps < one_steps * 5, "{piece} {kind:?}: {one_steps} {four_steps}");
                assert!(one_steps < 100 * one.len() as u64, "{piece} {kind:?}: {one_steps} steps for {}", one.len());
            }
        }
    }

    /// The count above must not be the only witness: some of the work is done in libraries.
    #[test]
    fn time_is_linear_in_the_text() {
        // Time on a processor: other tests run at the same time.
        let spent = || {
            let counted = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
            counted.split(' ').next()?.parse().ok().map(std::time::Duration::from_nanos)
        };
        let clock = std::time::Instant::now();
        let now = || spent().unwrap_or_else(|| clock.elapsed());
        let time = |text: &str| {
            let once = || {
                let started = now();
                let _found = find(&Kind::ALL, text);
                now().saturating_sub(started)
            };
            (0..3).map(|_| once()).min().unwrap_or_default().as_secs_f64()
        };
        for ((piece, one), (_, four)) in adversarial(1 << 19).into_iter().zip(adversarial(1 << 21)) {
            let (one, four) = (time(&one), time(&four));
            if std::env::var_os("SHOW").is_some() {
                eprintln!("{piece:30} {:8.1} ms  {:8.1} ms", one * 1e3, four * 1e3);
            }
            // With room for a machine that is busy with something else; four times the square would be seconds.
            assert!(four < one * 8.0 + 0.25, "{piece}: {one} s and {four} s");
        }
    }

    /// What is found before the byte from which on it may change is found in the whole text as well, and nothing else is.
    #[track_caller]
    fn is_settled(kinds: &[Kind], text: &str) {
        let whole = find(kinds, text);
        for (end, _) in text.char_indices().skip(1) {
            let begun = text.get(..end).unwrap();
            let (found, open) = find_begun(kinds, &Plain::of(begun));
            let open = open.unwrap_or(end).min(postern_text::unsettled(begun).unwrap_or(end));
            let cut = found.iter().find(|hit| hit.start < open && hit.end > open);
            assert!(cut.is_none(), "{kinds:?} {begun:?} {cut:?} {open}");
            let before = |found: &[Match]| found.iter().filter(|hit| hit.start < open).copied().collect::<Vec<_>>();
            assert_eq!(before(&found), before(&whole), "{kinds:?}: {begun:?} is settled up to {open}, of {text:?}");
        }
    }

    #[test]
    fn what_is_settled_stays() {
        for line in include_str!("../tests/recognisers/cases.txt").lines() {
            let line = line.replace("{{", "").replace("}}", "");
            for kind in Kind::ALL {
                is_settled(&[kind], &line);
            }
        }
    }

    #[test]
    fn prose_is_hardly_held_back() {
        let text = "It was agreed to meet on Monday; the report of the second quarter is ready. 会议在星期三举行，请准备材料。";
        let held = |kinds: &[Kind]| {
            let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
            ends.map(|end| end - find_begun(kinds, &Plain::of(text.get(..end).unwrap())).1.unwrap_or(end)).max()
        };
        // `Monday` may be the beginning of a token of Discord.
        assert!(held(&[Kind::Secret]) <= Some("Monday".len()), "{:?}", held(&[Kind::Secret]));
        assert!(held(&Kind::ALL) <= Some("agreed".len() + 4), "{:?}", held(&Kind::ALL));
    }

    #[test]
    fn a_search_can_be_given_up() {
        let text = "1 ".repeat(1 << 20);
        let looks = std::cell::Cell::new(0);
        let late = || {
            looks.set(looks.get() + 1);
            looks.get() > 3
        };
        assert!(find_within(&Kind::ALL, &text, &mut Work::until(&late)).is_none());
        assert_eq!(looks.get(), 4);
    }

    #[test]
    fn ordinary_text_has_nothing() {
        // What is written in offices and programs, and looks a little like what is searched for.
        for text in [
            "The meeting is on 2026-11-24 at 12:30; room 4.111, floor 13, seat 8000-1.",
            "Table 3: 2021 2022 2023 2024 2025; growth 4.1 % 5.2 % 6.3 %",
            "Version 1.13.800 of libfoo-4.11.1, see https://example.com/a/b?c=1&d=2#e and RFC 5322 §3.4.1.",
            "SELECT id, name FROM users WHERE id IN (1, 2, 3) AND created > '2026-01-01 00:00:00';",
            "let x = a[1] + b[2] * 3.14159; // see issue #12345, commit 3f2a9bc0d1e4f5a6b7c8",
            "地址：北京市海淀区中关村大街27号，邮编100080，合同编号HT-2026-001234。",
            "价格：1,234,567.89元；订单2026112400012345；增长3.5%。",
            "UUID 550e8400-e29b-41d4-a716-446655440000, SHA-1 3f:2a:9b:c0:d1:e4:f5:a6:b7:c8:3f:2a:9b:c0:d1:e4:f5:a6:b7:c8",
            "00000000  7f 45 4c 46 02 01 01 00  00 00 00 00 00 00 00 00",
            "127.0.0.1 - - [24/Nov/2026:12:30:59 +0000] \"GET / HTTP/1.1\" 200 5123",
            "x = 100/200/300; y = (1+2)/3; ratio 16:9; 10/11/12/13",
            "@param name the name. @return a value. user@ host, @mention @all",
            "the password must be changed; a token is a word; see secret santa",
        ] {
            let hits: Vec<_> = find(&Kind::ALL, text)
                .into_iter()
                .map(|hit| (hit.kind, text.get(hit.start..hit.end).unwrap()))
                .collect();
            assert!(hits.is_empty(), "{text}: {hits:?}");
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
        fn nothing_that_is_settled_changes(text in "[a-f0-9EGM@:/ .+(-]{0,40}|(sk-|password|AKIA|eyJ|://|-----BEGIN |[a-zA-Z0-9:=. ]){0,30}|[0-9 -]{0,40}|[京A-Z0-9 车牌passport:.]{0,30}") {
            for kind in Kind::ALL {
                is_settled(&[kind], &text);
            }
            is_settled(&Kind::ALL, &text);
        }

        #[test]
        fn an_address_is_found_in_any_surroundings(before in "[ ,;:\"(中文]{0,8}", after in "[ ,;:\")中文]{0,8}") {
            let text = format!("{before}a.b@example.org{after}");
            prop_assert_eq!(found(Kind::Email, &text), ["a.b@example.org"]);
        }

        #[test]
        fn kinds_do_not_disturb_each_other(text in "(?s)[\\PC\u{200b}１a@.0-9:/ -]{0,100}") {
            let alone: Vec<Match> = Kind::ALL
                .into_iter()
                .filter(|kind| !matches!(kind, Kind::Email | Kind::UrlCredentials))
                .flat_map(|kind| find(&[kind], &text))
                .collect();
            let mut together = find(&Kind::ALL, &text);
            together.retain(|hit| !matches!(hit.kind, Kind::Email | Kind::UrlCredentials));
            prop_assert_eq!(together.len(), alone.len());
            prop_assert!(alone.iter().all(|hit| together.contains(hit)));
        }
    }
}
