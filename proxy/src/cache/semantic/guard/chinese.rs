//! Chinese, by characters: what is known to make no difference is left out or said in one way, and every other character counts.

/// Longest first where one begins as another does. The last column: it asks.
const SAID: [(&str, &str, bool); 32] = [
    ("怎么样", "怎么样", true),
    ("该怎么办", "怎么办", true),
    ("怎么办", "怎么办", true),
    ("怎么", "如何", true),
    ("怎样", "如何", true),
    ("如何", "如何", true),
    ("为什么", "为何", true),
    ("为何", "为何", true),
    ("什么时候", "何时", true),
    ("何时", "何时", true),
    ("什么地方", "哪里", true),
    ("哪里", "哪里", true),
    ("哪儿", "哪里", true),
    ("哪", "哪", true),
    ("什么", "什么", true),
    ("谁", "谁", true),
    ("多长时间", "多久", true),
    ("多久", "多久", true),
    ("多少", "多少", true),
    ("有没有", "有", true),
    ("是不是", "是", true),
    ("能不能", "能", true),
    ("可不可以", "可以", true),
    ("需要多长时间", "要多久", true),
    ("需要多久", "要多久", true),
    ("上涨", "上升", false),
    ("每日", "每天", false),
    ("星期天", "周日", false),
    ("星期日", "周日", false),
    ("周天", "周日", false),
    ("星期", "周", false),
    ("礼拜", "周", false),
];

/// With one of these, a text asks for something about words as such.
const ABOUT_WORDS: [&str; 14] = [
    "翻译",
    "改写",
    "润色",
    "校对",
    "句子",
    "拼写",
    "大写",
    "小写",
    "造句",
    "语法",
    "字数",
    "多少字",
    "几个字",
    "错别字",
];

/// What a text may begin with that makes no difference, and what has to follow.
const BEGINNINGS: [(&str, &[&str]); 6] = [
    ("请告诉我", &[]),
    ("能告诉我", &[]),
    ("可以告诉我", &[]),
    ("告诉我", &[]),
    ("请问", &[]),
    // 请假 is to take leave.
    ("请", &["总结", "解释", "列出", "计算", "说明", "介绍"]),
];

const DIGITS: [char; 10] = ['零', '一', '二', '三', '四', '五', '六', '七', '八', '九'];
/// A number before one of these is a number, and not a part of a word.
const COUNTED: &str = "个天年月日号点句段次位名元章页岁倍人张份件条小分秒公美欧";

pub(super) fn is_han(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '〇')
}

pub(super) fn is_about_words(text: &str) -> bool {
    ABOUT_WORDS.iter().any(|word| text.contains(word))
}

/// The reading of characters without a space, and whether it asks. `begins`: a text begins with them.
pub(super) fn read(run: &str, begins: bool) -> (String, bool) {
    let begin = if begins { BEGINNINGS.iter().find_map(|(from, verbs)| without(run, from, verbs)) } else { None };
    if let Some(rest) = begin {
        let (read, asks) = read(rest, false);
        // "Tell me a joke" asks for none.
        if asks || !run.contains("告诉我") {
            return (read, asks);
        }
    }
    let (mut out, mut asks) = (String::new(), false);
    let mut rest = run;
    while let Some(first) = rest.chars().next() {
        if let Some((from, to, asked)) = SAID.iter().find(|(from, ..)| rest.starts_with(from)) {
            out.push_str(to);
            asks |= asked;
            rest = rest.strip_prefix(from).unwrap_or_default();
        } else if rest == "吗" || rest == "呢" {
            return (out.trim().to_owned(), true);
        } else if let Some(left) = either_or_not(rest) {
            asks = true;
            rest = left;
        } else if is_numeral(first) {
            let left = rest.trim_start_matches(is_numeral);
            let numeral = rest.strip_suffix(left).unwrap_or(rest);
            match number(numeral).filter(|_| left.chars().next().is_some_and(|next| COUNTED.contains(next))) {
                Some(number) => out.push_str(&format!(" #{number} ")),
                None => out.push_str(numeral),
            }
            rest = left;
        } else {
            out.push(first);
            rest = rest.strip_prefix(first).unwrap_or_default();
        }
    }
    (out.trim().to_owned(), asks)
}

fn without<'a>(run: &'a str, from: &str, verbs: &[&str]) -> Option<&'a str> {
    let rest = run.strip_prefix(from).filter(|rest| !rest.is_empty())?;
    (verbs.is_empty() || verbs.iter().any(|verb| rest.starts_with(verb))).then_some(rest)
}

/// 开不开 asks for 开.
fn either_or_not(rest: &str) -> Option<&str> {
    let mut chars = rest.chars();
    let (verb, not, again) = (chars.next()?, chars.next()?, chars.next()?);
    (not == '不' && verb == again).then(|| rest.strip_prefix(verb).and_then(|rest| rest.strip_prefix('不'))).flatten()
}

fn is_numeral(c: char) -> bool {
    DIGITS.contains(&c) || "两〇十百千万亿".contains(c)
}

/// A number below ten thousand. `None`: it may be read in two ways. 一百二 is 120 to most people, and 二三 two or three.
fn number(numeral: &str) -> Option<u32> {
    let (mut sum, mut digit, mut scale, mut zero) = (0_u32, None, 10_000, false);
    for c in numeral.chars() {
        let value = if c == '两' { Some(2) } else { DIGITS.iter().zip(0..).find(|(d, _)| **d == c).map(|(_, n)| n) };
        let next = match c {
            '十' => 10,
            '百' => 100,
            '千' => 1000,
            _ => 0,
        };
        match value {
            Some(0) if digit.is_none() && sum > 0 => zero = true,
            Some(value) if digit.is_none() => digit = Some(value),
            None if next > 0 && next < scale && (sum == 0 || zero || next * 10 == scale) => {
                sum += digit.take().unwrap_or(1) * next;
                (scale, zero) = (next, false);
            }
            _ => return None,
        }
    }
    match digit {
        Some(_) if sum > 0 && scale > 10 && !zero => None,
        digit => Some(sum + digit.unwrap_or(0)),
    }
}
