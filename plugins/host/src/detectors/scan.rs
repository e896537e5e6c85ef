//! One pass over a text for all kinds: what may begin where, and which searches are tried there.

use super::secrets::{Secrets, azure_at, discord_at, telegram_at};
use super::triggers::{
    AT, AZURE, COLON, DIGITS, DISCORD, HEX, IBAN, KEY, PASSPORT, PLATE, SIGN, Searches, TELEGRAM, TOKEN, TRIGGERS, URL,
    WORD, Window,
};
use super::words::Announced;
use super::work::Work;
use super::{Bytes, Kind, cards, emails, ibans, ips, macs, passports, phones, plates, urls};

/// Bytes between two looks at whether to go on.
const CHUNK: usize = 1 << 12;

/// Everything of the given kinds in a plain text; `None` if the work was given up.
pub(super) fn scan(kinds: &[Kind], text: &str, work: &mut Work<'_>) -> Option<Vec<(Kind, Bytes)>> {
    let wanted = kinds.iter().fold(0, |wanted, kind| wanted | searches(*kind));
    let kinds = kinds.iter().fold(0, |kinds, kind| kinds | bit(*kind));
    let mut scan =
        Scan { text, kinds, ends: [0; Kind::ALL.len()], secrets: Secrets::default(), url_end: 0, found: Vec::new() };
    let triggers = &*TRIGGERS;
    let mut window = Window::new(triggers);
    for (chunk, bytes) in text.as_bytes().chunks(CHUNK).enumerate() {
        for (place, byte) in bytes.iter().enumerate() {
            let searches = window.push(triggers, *byte) & wanted;
            if searches != 0 {
                scan.look(searches, (chunk * CHUNK + place).saturating_sub(2), work);
                if work.is_over() {
                    return None;
                }
            }
        }
        if !work.spend(bytes.len()) {
            return None;
        }
    }
    // The last two bytes are places, too.
    for place in [text.len(), text.len() + 1] {
        let searches = window.push(triggers, b'\n') & wanted;
        if searches != 0 && place >= 2 {
            scan.look(searches, place - 2, work);
        }
    }
    (!work.is_over()).then_some(scan.found)
}

/// Where a kind may begin.
fn searches(kind: Kind) -> Searches {
    match kind {
        Kind::Email => AT,
        Kind::Phone => DIGITS | SIGN,
        Kind::IdCard | Kind::BankCard => DIGITS,
        Kind::Secret => TOKEN | WORD | KEY | URL | TELEGRAM | AZURE | DISCORD,
        Kind::Iban => IBAN,
        Kind::Ip => DIGITS | COLON,
        Kind::Mac => HEX,
        Kind::UrlCredentials => URL,
        Kind::Passport => PASSPORT | WORD,
        Kind::Plate => PLATE | WORD,
    }
}

fn bit(kind: Kind) -> u32 {
    1 << kind as u32
}

struct Scan<'a> {
    text: &'a str,
    /// Bits, by kind.
    kinds: u32,
    /// By kind: where the last find ends. The next begins behind it.
    ends: [usize; Kind::ALL.len()],
    secrets: Secrets,
    /// Up to here, the parameters of addresses were read.
    url_end: usize,
    found: Vec<(Kind, Bytes)>,
}

impl Scan<'_> {
    fn look(&mut self, searches: Searches, at: usize, work: &mut Work<'_>) {
        work.spend(1);
        let (text, bytes) = (self.text, self.text.as_bytes());
        let has = |some: Searches| searches & some != 0;
        if has(DIGITS) {
            self.keep(Kind::IdCard, at, || cards::id_at(bytes, at, work));
            self.keep(Kind::BankCard, at, || cards::card_at(bytes, at, work));
            self.keep(Kind::Ip, at, || ips::ipv4_at(bytes, at, work));
        }
        if has(DIGITS | SIGN) {
            self.keep(Kind::Phone, at, || phones::phone_at(text, at, work));
        }
        if has(AT) {
            let from = self.end(Kind::Email);
            self.keep(Kind::Email, at, || emails::email_at(text, at, from, work));
        }
        if has(COLON) {
            self.keep(Kind::Ip, at, || ips::ipv6_at(bytes, at, work));
        }
        if has(HEX) {
            self.keep(Kind::Mac, at, || macs::mac_at(bytes, at, work));
        }
        if has(IBAN) {
            self.keep(Kind::Iban, at, || ibans::iban_at(bytes, at, work));
        }
        if has(PASSPORT) {
            self.keep(Kind::Passport, at, || passports::passport_at(bytes, at));
        }
        if has(PLATE) {
            self.keep(Kind::Plate, at, || plates::plate_at(text, at));
        }
        if has(URL) {
            self.url(at + "://".len(), work);
        }
        if has(WORD) {
            self.word(searches, at, work);
        }
        if has(TOKEN | KEY | TELEGRAM | AZURE | DISCORD) && self.wants(Kind::Secret) {
            self.secret(searches, at, work);
        }
    }

    fn secret(&mut self, searches: Searches, at: usize, work: &mut Work<'_>) {
        let bytes = self.text.as_bytes();
        let found = [
            (searches & TOKEN != 0).then(|| self.secrets.token_at(bytes, searches, at, work)),
            (searches & KEY != 0).then(|| self.secrets.private_key_at(self.text, at, work)),
            (searches & TELEGRAM != 0).then(|| telegram_at(bytes, at)),
            (searches & AZURE != 0).then(|| azure_at(bytes, at)),
            (searches & DISCORD != 0).then(|| discord_at(bytes, at)),
        ];
        self.found.extend(found.into_iter().flatten().flatten().map(|span| (Kind::Secret, span)));
    }

    /// A word that announces a value, if there is one here.
    fn word(&mut self, searches: Searches, at: usize, work: &mut Work<'_>) {
        let bytes = self.text.as_bytes();
        let Some(word) = bytes.get(at..).and_then(|text| TRIGGERS.word(searches, text)) else { return };
        let end = at + word.text.len();
        match word.announces {
            Announced::Passport => self.keep(Kind::Passport, at, || passports::passport_behind(bytes, end)),
            Announced::Plate => self.keep(Kind::Plate, at, || plates::plate_behind(bytes, at..end)),
            Announced::Secret | Announced::Key if self.wants(Kind::Secret) => {
                let value = self.secrets.value_behind(bytes, at, word, work);
                self.found.extend(value.map(|span| (Kind::Secret, span)));
            }
            Announced::Secret | Announced::Key => {}
        }
    }

    /// An address whose slashes end here. Its password is a secret, its user and password are credentials.
    fn url(&mut self, from: usize, work: &mut Work<'_>) {
        if let Some(info) = urls::user_info(self.text, from, work) {
            if self.wants(Kind::Secret) {
                self.found.push((Kind::Secret, info.password..info.end));
            }
            if self.wants(Kind::UrlCredentials) {
                self.found.push((Kind::UrlCredentials, info.user..info.end));
                // What stands before this `@` is a password, and no part of an e-mail address.
                self.end_at(Kind::Email, info.end + 1);
            }
        }
        if self.wants(Kind::UrlCredentials) && from >= self.url_end {
            let found = &mut self.found;
            let keep = |span| found.push((Kind::UrlCredentials, span));
            self.url_end = urls::parameters(self.text.as_bytes(), from, work, keep);
        }
    }

    /// Keeps what a search finds, if its kind is wanted and this place is behind the last one's end.
    fn keep(&mut self, kind: Kind, at: usize, search: impl FnOnce() -> Option<Bytes>) {
        if at < self.end(kind) || !self.wants(kind) {
            return;
        }
        if let Some(span) = search() {
            self.end_at(kind, span.end);
            self.found.push((kind, span));
        }
    }

    fn wants(&self, kind: Kind) -> bool {
        self.kinds & bit(kind) != 0
    }

    fn end(&self, kind: Kind) -> usize {
        self.ends.get(kind as usize).copied().unwrap_or(0)
    }

    fn end_at(&mut self, kind: Kind, end: usize) {
        if let Some(last) = self.ends.get_mut(kind as usize) {
            *last = end;
        }
    }
}
