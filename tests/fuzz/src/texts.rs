//! Texts that people and programs wrote, as the recognisers read them.

use anyhow::Result;
use postern_plugins::detectors::{self, Kind};
use postern_text::{Plain, Readings, folded};

/// UTF-8, or nothing.
pub(crate) fn as_text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

pub(crate) fn text(bytes: &[u8]) -> bool {
    let Some(text) = as_text(bytes) else { return false };
    let plain = Plain::of(text);
    let mut found = detectors::find(&Kind::ALL, text);
    for hit in &found {
        assert!(text.get(hit.start..hit.end).is_some_and(|hit| !hit.is_empty()), "{}..{}", hit.start, hit.end);
    }
    let _shown = folded(plain.text());
    let readings = Readings::of(text);
    for (depth, reading) in readings.texts() {
        assert!(reading.len() <= text.len(), "a reading that is longer than what was written");
        for hit in detectors::find(&Kind::ALL, reading) {
            let span = readings.original(depth, hit.start..hit.end);
            assert!(text.get(span.clone()).is_some_and(|hit| !hit.is_empty()), "{span:?} at depth {depth}");
        }
    }
    let any = !found.is_empty();
    found = detectors::disjoint(found);
    assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
    any
}

pub(crate) fn seeds() -> Result<Vec<Vec<u8>>> {
    let texts = [
        "Write to amy@example.org or call +49 30 1234567.",
        "ａｍｙ＠example.org, 4111 1111 1111 1111, am\u{200b}y@example.org",
        r#"{"to": "li\u0040example.com\nGlobex", "in": "{\"deeper\": \"\\u0061my@example.org\"}"}"#,
        "11010519491231002X sk-abcdefghijklmnopqrstuvwxyz0123456789ABCD",
        "DE89 3704 0044 0532 0130 00, GB29NWBK60161331926819, DЕ89370400440532013000",
        "192.0.2.17 2001:db8::ff00:42:8329 ::ffff:192.0.2.17 v1.2.3.4 00:1a:2b:3c:4d:5e 001a.2b3c.4d5e",
        "postgres://app:s3cr3t@db.example/x https://a.example/?access_token=abc123def456&b=1",
        "护照号码：E12345678 passport no. C01X00T47 京A·12345 license plate: 7ABC123 аdmin@exаmple.соm",
        "password: hunter22 Bearer abc.123 -----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY----- xoxe.xoxp-1-a",
    ];
    Ok(texts.map(|text| text.as_bytes().to_vec()).into())
}
