//! How long the recognisers take for text of an office: prose in two languages, program text, and some values. A table; time on the
//! processor, the least of several tries, so that a busy machine says much the same as an idle one.
//!
//! ```text
//! cargo run --release -p postern-plugins --example recogniser-times
//! ```
#![allow(clippy::print_stdout, reason = "it is run by a person")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use postern_plugins::detectors::{self, Kind};
use postern_text::Plain;
use postern_text::encoded::Encodings;

const SIZES_KIB: [usize; 3] = [1, 16, 128];
/// Bytes looked at in one try.
const TRY_BYTES: usize = 16 << 20;
const TRIES: usize = 5;

const PARTS: [&str; 6] = [
    "The meeting about the new contract is on 2026-11-24 at 12:30 in room 4.111; please bring the signed copies and the list of open \
     questions from last time. Questions go to amy@example.org or +49 30 901820 before noon.\n",
    "本次会议讨论了下一季度的采购计划，请各部门在周五之前提交预算。联系人王伟，电话13800138000，合同编号HT-2026-001234，价格：1,234,567.89元。\n",
    "fn main() {\n    let x = a[1] + b[2] * 3.14159; // see issue #12345\n    for i in 0..10 { println!(\"{i}: {}\", x.get(i)?); }\n}\n",
    "The card 4111 1111 1111 1111 was declined; the server at 192.0.2.17 answered after 350 ms. We ask you to try it again with another \
     one, or to write to the address that stands on the back of it.\n",
    "SELECT id, name FROM users WHERE id IN (1, 2, 3) AND created > '2026-01-01 00:00:00' ORDER BY name;\n",
    "服务器部署在上海机房，日志里没有异常；请把新的配置发给运维，并在下周一之前完成测试。谢谢大家的配合！\n",
];

fn main() {
    println!(
        "| text | all kinds, µs a KB | plain form alone | slowest kind alone | decoding, beside that |\n| --- | ---: | ---: | ---: | ---: |"
    );
    for kib in SIZES_KIB {
        let text = text(kib << 10);
        let per_kb = |work: &dyn Fn()| least(work, TRY_BYTES / text.len()).as_secs_f64() * 1e6 / kib as f64;
        let all = per_kb(&|| drop(black_box(detectors::find(&Kind::ALL, black_box(&text)))));
        let plain = per_kb(&|| drop(black_box(Plain::of(black_box(&text)))));
        let alone = Kind::ALL
            .map(|kind| (per_kb(&|| drop(black_box(detectors::find(&[kind], black_box(&text))))), kind.name()));
        let (slowest, name) =
            alone.into_iter().fold((0.0, ""), |worst, next| if next.0 > worst.0 { next } else { worst });
        let both = Encodings { base64: true, url: true };
        let decoding = per_kb(&|| drop(black_box(both.decoded(black_box(&text)))));
        println!("| {kib} KB | {all:.1} | {plain:.1} | {slowest:.1} (`{name}`) | {decoding:.1} |");
    }
    // What each chunk of an answer costs that is looked at.
    let text = text(256);
    for (kinds, name) in [(&[Kind::Secret][..], "`secret`"), (&Kind::ALL[..], "all kinds")] {
        let look = || drop(black_box(detectors::find_begun(kinds, &Plain::of(black_box(&text)))));
        println!(
            "a look at the last 256 bytes of an answer, {name}: {:.1} µs",
            least(&look, 20_000).as_secs_f64() * 1e6
        );
    }
}

fn text(bytes: usize) -> String {
    let mut text: String = PARTS.iter().cycle().take(bytes / 100 + 1).copied().collect();
    text.truncate(text.floor_char_boundary(bytes));
    text
}

/// The least time of one call.
fn least(work: &dyn Fn(), calls: usize) -> Duration {
    let calls = u32::try_from(calls).unwrap_or(u32::MAX).max(1);
    let once = || {
        let started = Clock::now();
        (0..calls).for_each(|_| work());
        started.elapsed() / calls
    };
    (0..TRIES).map(|_| once()).min().unwrap_or_default()
}

/// Time that this thread was on a processor, where the system says it.
struct Clock {
    wall: Instant,
    spent: Option<Duration>,
}

impl Clock {
    fn now() -> Self {
        Self { wall: Instant::now(), spent: spent() }
    }

    fn elapsed(&self) -> Duration {
        self.spent.zip(spent()).map_or_else(|| self.wall.elapsed(), |(before, now)| now.saturating_sub(before))
    }
}

fn spent() -> Option<Duration> {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    counted.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}
