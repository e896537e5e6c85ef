//! Values of each kind as people, programs and issuers write them, with check digits that are right.

use postern_plugins::detectors::Kind;

use crate::random::Random;

const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const PLATE: &str = "ABCDEFGHJKLMNPQRSTUVWXYZ";
const ALNUM: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const HEX: &str = "0123456789abcdef";

/// A value, with what stands on both sides if it is only known by that; it is not part of the value.
pub(crate) struct Value {
    pub(crate) before: &'static str,
    pub(crate) text: String,
    pub(crate) after: &'static str,
}

fn bare(text: String) -> Value {
    Value { before: "", text, after: "" }
}

pub(crate) fn value(kind: Kind, random: &mut Random) -> Value {
    match kind {
        Kind::Email => bare(email(random)),
        Kind::Phone => bare(phone(random)),
        Kind::IdCard => bare(id_card(random)),
        Kind::BankCard => bare(bank_card(random)),
        Kind::Iban => bare(iban(random)),
        Kind::Ip => bare(ip(random)),
        Kind::Mac => bare(mac(random)),
        Kind::Passport => passport(random),
        Kind::Plate => plate(random),
        Kind::Secret => secret(random),
        Kind::UrlCredentials => url_credentials(random),
    }
}

fn email(random: &mut Random) -> String {
    let names = ["li.wei", "amy", "j.smith+bids", "wang_fang", "o-brien", "müller", "zhang88", "info", "x"];
    let hosts = [
        "example.com",
        "mail.example.org",
        "example.co.uk",
        "corp.example.cn",
        "例子.中国",
        "straße.de",
        "xn--fsqu00a.xn--0zwm56d",
    ];
    format!("{}@{}", random.of(&names), random.of(&hosts))
}

fn phone(random: &mut Random) -> String {
    let second = random.of(&["3", "5", "7", "8", "9"]);
    let mobile = format!("1{second}{}", random.digits(9));
    match random.below(9) {
        0 | 1 => mobile,
        // As in the country itself: nothing says that it is a telephone.
        8 => format!("0{} {} {}", random.of(&["6", "7"]), random.digits(3), random.digits(5)),
        2 => format!("{} {} {}", &mobile[..3], &mobile[3..7], &mobile[7..]),
        3 => format!("+86-{}-{}-{}", &mobile[..3], &mobile[3..7], &mobile[7..]),
        4 => format!("010-8{}", random.digits(7)),
        5 => format!("+49 30 9{}", random.digits(6)),
        6 => format!("(212) 5{}-{}", random.digits(2), random.digits(4)),
        _ => format!("+44 20 7{} {}", random.digits(3), random.digits(4)),
    }
}

fn id_card(random: &mut Random) -> String {
    let area = random.of(&["110105", "310101", "440524", "510104", "320583"]);
    let (year, month, day) = (1950 + random.below(60), 1 + random.below(12), 1 + random.below(28));
    let body = format!("{area}{year}{month:02}{day:02}{}", random.digits(3));
    let sum = body.bytes().fold(0, |sum, digit| (sum + u32::from(digit - b'0')) * 2 % 11);
    let check = (12 - sum) % 11;
    let check = char::from_digit(check, 10).unwrap_or('X');
    match random.below(3) {
        0 => format!("{} {} {}{check}", &body[..6], &body[6..14], &body[14..]),
        _ => format!("{body}{check}"),
    }
}

/// Appends the digit that makes the sum of Luhn right.
fn luhn(body: &str) -> String {
    let sum: u32 = body
        .bytes()
        .rev()
        .enumerate()
        .map(|(place, digit)| {
            let digit = u32::from(digit - b'0') * if place % 2 == 0 { 2 } else { 1 };
            digit / 10 + digit % 10
        })
        .sum();
    format!("{body}{}", (10 - sum % 10) % 10)
}

fn bank_card(random: &mut Random) -> String {
    let (prefix, length) =
        random.of(&[("4", 16), ("51", 16), ("55", 16), ("6222", 19), ("6217", 16), ("37", 15), ("6011", 16)]);
    let body = format!("{prefix}{}", random.digits(length - 1 - prefix.len()));
    let card = luhn(&body);
    let group = random.of(&["", " ", "-", " "]);
    if length == 15 || group.is_empty() {
        return card;
    }
    let groups: Vec<&str> = card.as_bytes().chunks(4).map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(group)
}

fn iban(random: &mut Random) -> String {
    let (country, bank) = match random.below(6) {
        0 => ("DE", random.digits(18)),
        1 => ("GB", random.text(UPPER, 4) + &random.digits(14)),
        2 => ("FR", random.digits(10) + &random.text(UPPER, 1) + &random.digits(12)),
        3 => ("NL", random.text(UPPER, 4) + &random.digits(10)),
        4 => ("CH", random.digits(17)),
        _ => ("NO", random.digits(11)),
    };
    let as_digits = |text: &str| text.chars().map(|c| c.to_digit(36).unwrap().to_string()).collect::<String>();
    let rest = as_digits(&format!("{bank}{country}00"))
        .bytes()
        .fold(0, |rest, digit| (rest * 10 + u32::from(digit - b'0')) % 97);
    let whole = format!("{country}{:02}{bank}", 98 - rest);
    if random.below(2) == 0 {
        return whole;
    }
    let groups: Vec<&str> = whole.as_bytes().chunks(4).map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(" ")
}

fn ip(random: &mut Random) -> String {
    match random.below(20) {
        // Taken for a section.
        19 => {
            let small = [0; 4].map(|_| (1 + random.below(9)).to_string());
            small.join(".")
        }
        0 => format!("10.{}.{}.{}", random.below(256), random.below(256), random.below(256)),
        1 => format!("192.168.{}.{}", random.below(256), random.below(256)),
        2..=9 => {
            format!("{}.{}.{}.{}", 128 + random.below(96), random.below(256), random.below(256), random.below(256))
        }
        10..=13 => format!("2001:db8::{}:{}", random.text("123456789abcdef", 4), random.text("123456789abcdef", 2)),
        14..=16 => {
            let groups: Vec<String> = (0..7).map(|_| random.text(HEX, 4)).collect();
            format!("2a0{}:{}", random.below(10), groups.join(":"))
        }
        _ => format!("fe80::{}", random.text("123456789abcdef", 3)),
    }
}

fn mac(random: &mut Random) -> String {
    let hex = format!("{}a{}", random.text(HEX, 5), random.text(HEX, 6));
    let by = |len: usize, separator: &str| {
        let groups: Vec<&str> = hex.as_bytes().chunks(len).map(|group| std::str::from_utf8(group).unwrap()).collect();
        groups.join(separator)
    };
    match random.below(4) {
        0 | 1 => by(2, ":"),
        2 => by(2, "-").to_uppercase(),
        _ => by(4, "."),
    }
}

fn passport(random: &mut Random) -> Value {
    match random.below(8) {
        // No word says what it is.
        6 => bare(format!("{}{}", random.of(&["P", "S", "9", "5"]), random.digits(8))),
        0 => bare(format!("E{}{}", 3 + random.below(7), random.digits(7))),
        1 => bare(format!("E{}{}", random.text("ABCDEFGHJKLMN", 1), random.digits(7))),
        2 => bare(format!("G{}{}", 3 + random.below(7), random.digits(7))),
        3 => Value {
            before: "护照号码：",
            text: format!("{}{}", random.of(&["P", "S", "D", "H", "K"]), random.digits(8)),
            after: "",
        },
        4 => Value { before: "passport number ", text: format!("9{}", random.digits(8)), after: "" },
        _ => {
            Value { before: "Passport No. ", text: format!("C{}X{}T47", random.digits(2), random.digits(2)), after: "" }
        }
    }
}

fn plate(random: &mut Random) -> Value {
    let province = random.of(&["京", "沪", "粤", "浙", "川", "苏"]);
    let city = random.text("ABCDEFGH", 1);
    let dot = random.of(&["", "", "·", " "]);
    match random.below(8) {
        // No word says what it is.
        6 => bare(format!("{}{} {}", random.text(PLATE, 2), random.digits(2), random.text(PLATE, 3))),
        0 | 1 => bare(format!("{province}{city}{dot}{}", random.digits(5))),
        2 => bare(format!("{province}{city}{dot}{}{}{}", random.digits(2), random.text(PLATE, 1), random.digits(2))),
        3 => bare(format!("{province}{city}{dot}{}{}", random.text("DF", 1), random.digits(5))),
        4 => Value {
            before: "license plate ",
            text: format!("{}-{}", random.text(PLATE, 3), random.digits(4)),
            after: "",
        },
        _ => Value {
            before: "车牌号：",
            text: format!("{}{} {}", random.text(PLATE, 2), random.digits(2), random.text(PLATE, 3)),
            after: "",
        },
    }
}

/// Put together here, so that no scanner takes this file for a leak.
fn secret(random: &mut Random) -> Value {
    let token = |random: &mut Random, prefix: &str, count| bare(format!("{prefix}{}", random.text(ALNUM, count)));
    match random.below(20) {
        // Nothing tells these from words and numbers.
        18 => Value { before: "password: ", text: random.text("abcdefghijklmnopqrstuvwxyz", 12), after: "" },
        19 => bare(random.text(HEX, 32)),
        0 => token(random, "sk-proj-", 48),
        1 => token(random, "sk-ant-api03-", 90),
        2 => token(random, "ghp_", 36),
        3 => token(random, "github_pat_", 60),
        4 => token(random, "glpat-", 20),
        5 => bare(format!("AKIA{}", random.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16))),
        6 => token(random, "AIza", 35),
        7 => bare(format!("xoxb-{}-{}", random.digits(12), random.text(ALNUM, 24))),
        8 => token(random, "sk_live_", 24),
        9 => token(random, "hf_", 34),
        10 => token(random, "npm_", 36),
        11 => token(random, "pypi-AgEIcHlwaS5vcmc", 60),
        12 => bare(format!("SG.{}.{}", random.text(ALNUM, 22), random.text(ALNUM, 43))),
        13 => bare(format!("SK{}", random.text(HEX, 32))),
        14 => bare(format!("eyJ{}.eyJ{}.{}", random.text(ALNUM, 33), random.text(ALNUM, 60), random.text(ALNUM, 43))),
        15 => Value { before: "password: ", text: format!("Tr0{}!", random.text(ALNUM, 8)), after: "" },
        16 => Value { before: "密码是", text: format!("Ab{}", random.digits(6)), after: "" },
        _ => bare(format!("-----BEGIN {0}-----\n{1}\n-----END {0}-----", "RSA PRIVATE KEY", random.text(ALNUM, 64))),
    }
}

fn url_credentials(random: &mut Random) -> Value {
    match random.below(4) {
        0 => Value { before: "postgres://", text: format!("app:{}", random.text(ALNUM, 10)), after: "@db.example/x" },
        1 => Value {
            before: "https://",
            text: format!("deploy:{}", random.text(ALNUM, 14)),
            after: "@git.example.org/a.git",
        },
        2 => Value {
            before: "https://api.example.com/v1/list?page=2&access_token=",
            text: format!("7{}", random.text(ALNUM, 24)),
            after: "",
        },
        _ => Value {
            before: "https://files.example.net/a.zip?sig=",
            text: format!("7{}", random.text(ALNUM, 40)),
            after: "",
        },
    }
}
