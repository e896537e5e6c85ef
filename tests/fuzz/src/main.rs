//! One target of [`postern_fuzz`] under libFuzzer: `POSTERN_FUZZ_TARGET=NAME POSTERN_FUZZ_CORPUS=FOLDER postern-fuzz FOLDER`.
#![no_main]
#![allow(unsafe_code, reason = "the macro gives libFuzzer its entry points")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fuzzer that cannot start says so by failing")]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use postern_fuzz::Target;

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("POSTERN_FUZZ_TARGET").expect("POSTERN_FUZZ_TARGET names a target");
    postern_fuzz::target(&name).expect("there is no target of this name")
});

fuzz_target!(
    init: {
        // Before libFuzzer reads the folder.
        if let Ok(folder) = std::env::var("POSTERN_FUZZ_CORPUS") {
            for (number, seed) in (TARGET.seeds)().unwrap().iter().enumerate() {
                std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed).unwrap();
            }
        }
    },
    |bytes: &[u8]| -> Corpus {
        (TARGET.read)(bytes);
        Corpus::Keep
    }
);
