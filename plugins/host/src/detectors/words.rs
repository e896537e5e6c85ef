//! Words that say what the value behind them is.

use super::runs::{begins, run};
use super::secrets::AUTHORIZATION;

/// What a word announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announced {
    Secret,
    /// A secret, if `key` follows.
    Key,
    Passport,
    Plate,
}

pub(super) struct Word {
    pub(super) text: &'static str,
    pub(super) announces: Announced,
}

const fn word(text: &'static str, announces: Announced) -> Word {
    Word { text, announces }
}

pub(super) const WORDS: [Word; 29] = [
    word("password", Announced::Secret),
    word("passwd", Announced::Secret),
    word("passphrase", Announced::Secret),
    word("passcode", Announced::Secret),
    word("passwort", Announced::Secret),
    word("kennwort", Announced::Secret),
    word("pwd", Announced::Secret),
    word("secret", Announced::Secret),
    word("token", Announced::Secret),
    word("bearer", Announced::Secret),
    word(AUTHORIZATION, Announced::Secret),
    word("密码", Announced::Secret),
    word("密碼", Announced::Secret),
    word("口令", Announced::Secret),
    word("密钥", Announced::Secret),
    word("令牌", Announced::Secret),
    word("api", Announced::Key),
    word("access", Announced::Key),
    word("account", Announced::Key),
    word("passport", Announced::Passport),
    word("passeport", Announced::Passport),
    word("pasaporte", Announced::Passport),
    word("reisepass", Announced::Passport),
    word("护照", Announced::Passport),
    word("護照", Announced::Passport),
    word("plate", Announced::Plate),
    word("kennzeichen", Announced::Plate),
    word("车牌", Announced::Plate),
    word("号牌", Announced::Plate),
];

/// The first character of a licence plate of the People's Republic of China (GA 36).
pub(super) const PROVINCES: &str = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼";

/// What may stand between such a word and its value, in this order of trying.
const FILLERS: [&str; 19] = [
    "numbers", "number", "no.", "nos.", "no", "nr.", "nr", "num", "id", "is", "was", "号码", "號碼", "编号", "号",
    "是", "为", "為", "nummer",
];

/// No more words than this stand there, and no more bytes.
const MAX_FILLERS: usize = 6;

/// Where the value behind a word of [`Announced::Passport`] or [`Announced::Plate`] begins.
pub(super) fn value(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    for _ in 0..MAX_FILLERS {
        let space = run(bytes.get(..bytes.len().min(at + 4)).unwrap_or_default(), at, |byte| {
            byte == b' ' || b":#=-\"'(".contains(&byte)
        });
        let rest = bytes.get(space..).unwrap_or_default();
        let filler = FILLERS.iter().find(|filler| {
            let next = rest.get(filler.len()).copied();
            begins(rest, filler) && (!filler.is_ascii() || !next.is_some_and(|next| next.is_ascii_alphanumeric()))
        });
        match filler {
            Some(filler) => at = space + filler.len(),
            None if space == at => break,
            None => at = space,
        }
    }
    at
}
