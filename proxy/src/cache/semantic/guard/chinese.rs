//! Chinese, by characters: what is known to make no difference is left out or said in one way, and every other character counts.

/// Longest first where one begins as another does. The last column: it asks.
const SAID: [(&str, &str, bool); 60] = [
    ("请告诉我", "", true),
    ("告诉我", "", true),
    ("请问", "", true),
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
    ("是哪里", "在哪里", true),
    ("哪里", "哪里", true),
    ("哪儿", "哪里", true),
    ("哪", "哪", true),
    ("什么", "什么", true),
    ("谁", "谁", true),
    ("多长时间", "多久", true),
    ("多久", "多久", true),
    ("多少", "多少", true),
    ("几天", "多少天", true),
    ("几年", "多少年", true),
    ("几个", "多少个", true),
    ("几次", "多少次", true),
    ("有没有", "有", true),
    ("是不是", "是", true),
    ("能不能", "可以", true),
    ("可不可以", "可以", true),
    ("是否", "", true),
    ("需要多长时间", "要多久", true),
    ("需要多久", "要多久", true),
    ("上涨", "上升", false),
    ("未来", "未来", false),
    ("未必", "未必", false),
    ("尚未", "没", false),
    ("未", "没", false),
    ("没有", "没", false),
    ("可以", "可以", false),
    ("不能", "不可以", false),
    ("功能", "功能", false),
    ("可能", "可能", false),
    ("智能", "智能", false),
    ("性能", "性能", false),
    ("能力", "能力", false),
    ("能源", "能源", false),
    ("能量", "能量", false),
    ("能", "可以", false),
    ("每日", "每天", false),
    ("星期天", "周日", false),
    ("星期日", "周日", false),
    ("周天", "周日", false),
    ("星期", "周", false),
    ("礼拜", "周", false),
    ("目的", "目的", false),
    ("的", "", false),
    ("吗", "", true),
    ("呢", "", true),
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

const DIGITS: [char; 10] = ['零', '一', '二', '三', '四', '五', '六', '七', '八', '九'];
/// A number before one of these is a number, and not a part of a word.
const COUNTED: &str = "个天年月日号点句段次位名元章页岁倍人张份件条小分秒公美欧";

pub(super) fn is_han(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '〇')
}

pub(super) fn is_about_words(text: &str) -> bool {
    ABOUT_WORDS.iter().any(|word| text.contains(word))
}

/// The reading of characters without a space, and whether it asks.
pub(super) fn read(run: &str) -> (String, bool) {
    let (mut out, mut asks) = (String::new(), false);
    // "Please", unless it is 请假 (to take leave) and the like.
    let without_please =
        run.strip_prefix('请').filter(|rest| !rest.starts_with(['假', '客', '求', '教', '愿', '示', '问']));
    let mut rest = without_please.filter(|rest| !rest.is_empty() && !run.starts_with("请告诉")).unwrap_or(run);
    while let Some(first) = rest.chars().next() {
        if let Some((from, to, asked)) = SAID.iter().find(|(from, ..)| rest.starts_with(from)) {
            out.push_str(to);
            asks |= asked;
            rest = rest.strip_prefix(from).unwrap_or_default();
        } else if let Some(left) = either_or_not(rest) {
            asks = true;
            rest = left;
        } else if let Some((number, left)) = number(rest) {
            out.push_str(&format!(" #{number} "));
            rest = left;
        } else {
            out.push(first);
            rest = rest.strip_prefix(first).unwrap_or_default();
        }
    }
    (out.trim().to_owned(), asks)
}

/// 开不开 asks for 开.
fn either_or_not(rest: &str) -> Option<&str> {
    let mut chars = rest.chars();
    let (verb, not, again) = (chars.next()?, chars.next()?, chars.next()?);
    (not == '不' && verb == again).then(|| rest.strip_prefix(verb).and_then(|rest| rest.strip_prefix('不'))).flatten()
}

/// A number below ten thousand, where something is counted.
fn number(rest: &str) -> Option<(u32, &str)> {
    let (mut sum, mut digit, mut left) = (0_u32, None, rest);
    while let Some(c) = left.chars().next() {
        let value = if c == '两' { Some(2) } else { DIGITS.iter().zip(0..).find(|(d, _)| **d == c).map(|(_, n)| n) };
        let scale = match c {
            '十' => 10,
            '百' => 100,
            '千' => 1000,
            _ => 0,
        };
        match (value, scale) {
            (Some(0), _) if digit.is_none() && sum > 0 => {}
            (Some(value), _) if digit.is_none() => digit = Some(value),
            (None, 1..) => sum += digit.take().unwrap_or(1) * scale,
            _ => break,
        }
        left = left.strip_prefix(c).unwrap_or_default();
    }
    let counts = left.chars().next().is_some_and(|next| COUNTED.contains(next));
    (counts && left.len() < rest.len()).then_some((sum + digit.unwrap_or(0), left))
}
