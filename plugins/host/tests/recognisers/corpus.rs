//! Labelled texts: made ones, with a fixed seed, and those that were written by hand.

use std::ops::Range;

use postern_plugins::detectors::Kind;

use crate::evasions::Evasion;
use crate::random::Random;
use crate::values::{Value, value};

/// A text, and what is in it.
#[derive(Debug)]
pub(crate) struct Labelled {
    pub(crate) text: String,
    pub(crate) values: Vec<(Kind, Range<usize>)>,
}

/// Texts of each kind.
const TEXTS: usize = 200;

/// Where values stand, `{}`: in letters, tickets, tables, programs, logs and chats.
const AROUND: [&str; 20] = [
    "Please write it down: {}. It was changed last week.",
    "As agreed on 2026-11-24 at 12:30, here it is again: {}",
    "({})",
    "\"{}\"",
    "我的信息是{}，请尽快处理。",
    "请核对：{}。谢谢！",
    "客户王伟（{}）昨天来过，合同编号HT-2026-001234。",
    "{\"id\": 4711, \"value\": \"{}\", \"ok\": true}",
    "| 17 | {} | open | 3.5 % |",
    "let value = \"{}\"; // TODO #12345",
    "INFO 2026-11-24T12:30:59.123Z request=7f3a value={} took 15 ms",
    "Hi, it's {} - thanks, Amy",
    "1. {}\n2. see above\n",
    "Bitte an {} senden, danke.",
    "<td>{}</td>",
    "- value: {}\n  count: 3\n",
    "Contact: {}; fax on request",
    "用户反馈：「{}」无法使用，版本v1.2.3.4。",
    "'{}', 'second', 42",
    "Is {} still right?",
];

/// Texts with a value of this kind in each.
pub(crate) fn made(kind: Kind) -> Vec<Labelled> {
    let mut random = Random(Kind::ALL.iter().position(|other| *other == kind).unwrap() as u64 + 1);
    let text = |around: &&str| {
        let Value { before, text, after } = value(kind, &mut random);
        let (start_of, end_of) = around.split_once("{}").unwrap();
        let start = start_of.len() + before.len();
        let values = vec![(kind, start..start + text.len())];
        Labelled { text: format!("{start_of}{before}{text}{after}{end_of}"), values }
    };
    AROUND.iter().cycle().take(TEXTS).map(text).collect()
}

/// The same texts with their values rewritten: those in which there is anything to rewrite.
pub(crate) fn evaded(texts: &[Labelled], evasion: Evasion) -> Vec<Labelled> {
    let mut random = Random(99);
    let rewritten = |Labelled { text, values }: &Labelled| {
        let (kind, span) = values.first()?.clone();
        let written = evasion.rewrite(&text[span.clone()], &mut random)?;
        let values = vec![(kind, span.start..span.start + written.len())];
        Some(Labelled { text: format!("{}{written}{}", &text[..span.start], &text[span.end..]), values })
    };
    texts.iter().filter_map(rewritten).collect()
}

/// What was written by hand, a line each: `{{kind|value}}` is a value, everything else is none.
pub(crate) fn by_hand() -> Vec<Labelled> {
    let lines = include_str!("cases.txt").lines().filter(|line| !line.is_empty() && !line.starts_with("## "));
    lines.map(labelled).collect()
}

fn labelled(line: &str) -> Labelled {
    let mut read = Labelled { text: String::new(), values: Vec::new() };
    let mut rest = line;
    while let Some((before, (kind, value, after))) = rest.split_once("{{").and_then(|(before, rest)| {
        let (label, after) = rest.split_once("}}")?;
        let (kind, value) = label.split_once('|')?;
        Some((before, (kind, value, after)))
    }) {
        read.text.push_str(before);
        let start = read.text.len();
        read.text.push_str(value);
        read.values.push((Kind::from_name(kind).unwrap(), start..read.text.len()));
        rest = after;
    }
    read.text.push_str(rest);
    read
}

/// Prose in two languages, of words and numbers that mean nothing; nothing is to be found in it. No number stands right behind a word
/// that announces one (`password: 2026`): such a find is right as far as anybody can tell.
pub(crate) fn prose(bytes: usize) -> String {
    const WORDS: [&str; 60] = [
        "the",
        "of",
        "meeting",
        "contract",
        "address",
        "password",
        "token",
        "passport",
        "plate",
        "server",
        "version",
        "release",
        "report",
        "budget",
        "key",
        "secret",
        "account",
        "access",
        "card",
        "number",
        "phone",
        "mail",
        "is",
        "was",
        "and",
        "for",
        "with",
        "in",
        "on",
        "at",
        "first",
        "second",
        "quarter",
        "growth",
        "table",
        "figure",
        "section",
        "delivery",
        "invoice",
        "order",
        "room",
        "floor",
        "see",
        "call",
        "ask",
        "write",
        "host",
        "from",
        "to",
        "network",
        "bank",
        "transfer",
        "licence",
        "number plate",
        "price",
        "percent",
        "year",
        "month",
        "week",
        "today",
    ];
    const CHINESE: [&str; 40] = [
        "会议",
        "合同",
        "地址",
        "密码",
        "口令",
        "护照",
        "车牌",
        "服务器",
        "版本",
        "报告",
        "预算",
        "客户",
        "本月",
        "的",
        "是",
        "在",
        "和",
        "了",
        "请",
        "北京市",
        "上海市",
        "新的",
        "云南省",
        "海南省",
        "川菜",
        "江苏",
        "浙江",
        "价格",
        "增长",
        "订单",
        "编号",
        "房间",
        "电话",
        "邮箱",
        "银行",
        "转账",
        "网络",
        "今天",
        "明年",
        "第三季度",
    ];
    const ANNOUNCING: [&str; 10] =
        ["password", "token", "secret", "passport", "number plate", "plate number", "密码", "口令", "护照", "车牌"];
    let mut random = Random(7);
    let mut text = String::new();
    while text.len() < bytes {
        let chinese = random.below(3) == 0;
        for _ in 0..8 + random.below(12) {
            let announced =
                ANNOUNCING.iter().any(|word| text.trim_end_matches([' ', ',', ';', '-', ':']).ends_with(word));
            match (random.below(8), chinese) {
                (0, _) if !announced => text.push_str(&number(&mut random)),
                (_, true) => text.push_str(random.of(&CHINESE)),
                (_, false) => text.push_str(random.of(&WORDS)),
            }
            if !chinese {
                text.push_str(random.of(&[" ", " ", " ", " ", ", ", "; ", " - ", ": "]));
            }
        }
        text.push_str(if chinese { "。" } else { ".\n" });
    }
    text
}

/// Numbers of documents: years, dates, times, amounts, versions, orders, sections, hashes.
fn number(random: &mut Random) -> String {
    match random.below(14) {
        0 => format!("{}", 1990 + random.below(50)),
        1 => format!("2026-{:02}-{:02}", 1 + random.below(12), 1 + random.below(28)),
        2 => format!("{:02}:{:02}", random.below(24), random.below(60)),
        3 => format!("{}.{}", random.below(1000), random.digits(2)),
        4 => format!("v{}.{}.{}.{}", random.below(20), random.below(200), random.below(200), random.below(200)),
        5 => format!("{}.{}.{}", random.below(10), random.below(30), random.below(30)),
        6 => format!("{},{},{}", 1 + random.below(9), random.digits(3), random.digits(3)),
        7 => format!("HT-2026-{}", random.digits(6)),
        8 => {
            format!("§ {}.{}.{}.{}", 1 + random.below(9), 1 + random.below(9), 1 + random.below(9), 1 + random.below(9))
        }
        9 => random.text("0123456789abcdef", 8),
        10 => random.text("0123456789abcdef", 40),
        11 => format!("{} %", random.below(100)),
        12 => format!("#{}", random.digits(5)),
        _ => format!("{}", random.below(100)),
    }
}

/// Program text of several languages; nothing is to be found in it.
pub(crate) fn code() -> &'static str {
    include_str!("code.txt")
}
