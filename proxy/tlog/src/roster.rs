//! Which logs belong together: a signed note with the public keys of all of them, signed by each. Names are only added. One that is retired
//! stays named as such, so whatever two writers add at the same time becomes one list, in whichever order they meet.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use signed_note::{Note, Signature};

use crate::note::MAX_NOTE;
use crate::{Files, Key, LogError, SecretKey, files, log};

/// Logs of a roster at most: a note has at most a hundred signatures, and each of them signs.
const MAX_LOGS: usize = 96;
/// The name of its file beside a log.
const FILE: &str = "roster";
const FIRST_WORD: &str = "postern-roster/v1";

/// What a roster says.
#[derive(Debug, Clone)]
pub struct Roster {
    /// Whose logs they are: a trust domain.
    pub domain: String,
    /// Each change has the next.
    pub generation: u64,
    /// Their keys, by how they are written.
    pub logs: BTreeMap<String, Key>,
    /// Names of logs of which an operator said that they need not be there any more.
    pub retired: BTreeSet<String>,
}

/// A roster, and who has signed it.
#[derive(Debug, Clone)]
pub struct SignedRoster {
    /// What it says.
    pub roster: Roster,
    /// The note.
    pub bytes: Vec<u8>,
    text: Vec<u8>,
}

impl Roster {
    fn text(&self) -> Vec<u8> {
        let mut text = format!("{FIRST_WORD} {}\ngeneration {}\n", self.domain, self.generation);
        for key in self.logs.keys() {
            text.push_str(&format!("log {key}\n"));
        }
        for name in &self.retired {
            text.push_str(&format!("retired {name}\n"));
        }
        text.into_bytes()
    }

    fn parse(text: &[u8]) -> Result<Self, LogError> {
        let bad = |what: &str| LogError::Note(format!("it is not a roster: {what}"));
        let text = std::str::from_utf8(text).map_err(|_| bad("it is not text"))?;
        let mut lines = text.lines();
        let domain = lines.next().and_then(|line| line.strip_prefix(FIRST_WORD)?.strip_prefix(' '));
        let domain = domain.ok_or_else(|| bad("its first line is another"))?.to_owned();
        let generation = lines.next().and_then(|line| line.strip_prefix("generation ")?.parse().ok());
        let generation = generation.ok_or_else(|| bad("it has no generation"))?;
        let (mut logs, mut retired) = (BTreeMap::new(), BTreeSet::new());
        for line in lines {
            match line.split_once(' ') {
                Some(("log", key)) => drop(logs.insert(key.to_owned(), Key::parse(key)?)),
                Some(("retired", name)) => drop(retired.insert(name.to_owned())),
                _ => return Err(bad("it has a line that is none of `log` and `retired`")),
            }
        }
        if logs.len() > MAX_LOGS || retired.len() > MAX_LOGS {
            return Err(bad("it has more logs than there may be"));
        }
        let roster = Self { domain, generation, logs, retired };
        if let Some(name) = roster.twice() {
            return Err(bad(&format!("it has two keys of the name {name}, and a log has one")));
        }
        // One way to write it, so that the same list has the same signatures.
        if roster.text() != text.as_bytes() { Err(bad("it is not written in order")) } else { Ok(roster) }
    }

    /// A name that two keys have: nobody could say which of both is shown, or retired.
    fn twice(&self) -> Option<&str> {
        let mut names = BTreeSet::new();
        self.logs.values().map(Key::name).find(|name| !names.insert(*name))
    }

    /// Whether it has all that the other has.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.logs.keys().all(|key| self.logs.contains_key(key)) && other.retired.is_subset(&self.retired)
    }
}

impl SignedRoster {
    /// Reads it, whoever signed it.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, LogError> {
        if bytes.len() > MAX_NOTE {
            return Err(LogError::Note("it is too long for a roster".into()));
        }
        let note = Note::from_bytes(bytes).map_err(|_| LogError::Note("it is not a signed note".into()))?;
        let text = note.text().to_vec();
        Ok(Self { roster: Roster::parse(&text)?, bytes: bytes.to_vec(), text })
    }

    /// What tells its text from any other: SHA-256, in hexadecimal digits. Who has signed it changes nothing in it.
    #[must_use]
    pub fn digest(&self) -> String {
        HEXLOWER.encode(digest(&SHA256, &self.text).as_ref())
    }

    /// Whether the log of this key, as it is written, has signed it.
    #[must_use]
    pub fn is_signed_by(&self, key: &Key) -> bool {
        key.text_of(&self.bytes).is_ok_and(|text| text == self.text)
    }

    /// The names of its logs that have not signed it.
    #[must_use]
    pub fn unsigned(&self) -> Vec<String> {
        let keys = self.roster.logs.values().filter(|key| !self.is_signed_by(key));
        keys.map(|key| key.name().to_owned()).collect()
    }

    /// Its signatures of those keys that it names, as lines.
    fn signatures(&self) -> Vec<Signature> {
        let lines = self.bytes.get(self.text.len() + 1..).unwrap_or_default().split(|byte| *byte == b'\n');
        let all = lines.filter_map(|line| Signature::from_bytes(line).ok());
        let is_named = |signature: &Signature| {
            let keys = self.roster.logs.values();
            keys.filter(|key| key.name() == signature.name() && key.hash() == format!("{:08x}", signature.id()))
                .any(|key| self.is_signed_by(key))
        };
        all.filter(is_named).collect()
    }
}

/// The roster that is kept beside a log, as it is there.
///
/// # Errors
/// It cannot be read.
pub fn read_roster(files: &Files) -> Result<Option<Vec<u8>>, LogError> {
    files::read(&files.dir().join(FILE), MAX_NOTE as u64)
}

/// Keeps a roster beside a log. It is there as a whole, and on the disk, or not at all.
///
/// # Errors
/// The disk says no.
pub fn keep_roster(files: &Files, bytes: &[u8]) -> Result<(), LogError> {
    log::write(&files.dir().join(FILE), bytes, true)
}

/// The roster that follows from those that are `known` and from what this writer has to say: its `own` keys, of which each signs, and names
/// that are `retired`. Nothing that is known goes.
///
/// # Errors
/// There would be more logs than there may be.
pub fn agree(
    domain: &str,
    known: &[SignedRoster],
    own: &[SecretKey],
    retired: &[String],
) -> Result<SignedRoster, LogError> {
    let known: Vec<&SignedRoster> = known.iter().filter(|known| known.roster.domain == domain).collect();
    let generation = known.iter().map(|known| known.roster.generation).max().unwrap_or(0);
    let mut all = Roster { domain: domain.to_owned(), generation, logs: BTreeMap::new(), retired: BTreeSet::new() };
    all.logs.extend(own.iter().map(|key| (key.public().to_string(), key.public().clone())));
    all.retired.extend(retired.iter().cloned());
    for known in &known {
        all.logs.extend(known.roster.logs.clone());
        all.retired.extend(known.roster.retired.iter().cloned());
    }
    if all.logs.len() > MAX_LOGS || all.retired.len() > MAX_LOGS {
        return Err(LogError::Note(format!(
            "the roster would have {} logs, {} of them retired, and no more than {MAX_LOGS} can sign one: none is added any more. Gateways that begin a log \
             only now and then keep `audit.dir`; for more, name another trust domain or another `replicas.key`, and begin another roster",
            all.logs.len(),
            all.retired.len()
        )));
    }
    if let Some(name) = all.twice() {
        return Err(LogError::Note(format!(
            "two keys have the name {name}, and a log has one: somebody made another of that name"
        )));
    }
    // Somebody has written just that already, in the newest generation.
    if !known.iter().any(|known| known.text == all.text()) {
        all.generation = generation.saturating_add(1);
    }
    let text = all.text();
    let mut signatures: BTreeMap<(String, u32), Signature> = BTreeMap::new();
    let mut add = |signed: &SignedRoster| {
        for signature in signed.signatures() {
            signatures.entry((signature.name().to_owned(), signature.id())).or_insert(signature);
        }
    };
    known.iter().filter(|known| known.text == text).for_each(|known| add(known));
    for key in own {
        add(&SignedRoster::parse(&key.sign(&text)?)?);
    }
    let mut bytes = text;
    bytes.push(b'\n');
    for signature in signatures.values() {
        bytes.extend_from_slice(&signature.to_bytes());
    }
    SignedRoster::parse(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> SecretKey {
        SecretKey::parse(&SecretKey::generate(&format!("branch.example.org/audit/{id}")).unwrap()).unwrap()
    }

    const DOMAIN: &str = "branch.example.org";

    fn agreed(known: Vec<SignedRoster>, own: Vec<SecretKey>, retired: Vec<String>) -> SignedRoster {
        agree(DOMAIN, &known, &own, &retired).unwrap()
    }

    #[test]
    fn whoever_adds_what_and_when_all_come_to_the_same_list_and_all_have_signed_it() {
        let [a, b, c] = ["00000001", "00000002", "00000003"].map(key);
        let one = agreed(vec![], vec![a.clone()], vec![]);
        assert_eq!((one.roster.generation, one.unsigned()), (1, vec![]));
        // Two join at the same time, and neither knows of the other.
        let with_b = agreed(vec![one.clone()], vec![b.clone()], vec![]);
        let with_c = agreed(vec![one.clone()], vec![c.clone()], vec![]);
        assert_eq!(with_b.unsigned(), [a.public().name()]);
        let both = agreed(vec![with_b, with_c], vec![b.clone()], vec![]);
        assert_eq!((both.roster.generation, both.roster.logs.len()), (3, 3));
        let more = agreed(vec![both.clone(), one.clone()], vec![a.clone()], vec![]);
        let all = agreed(vec![more, both], vec![c], vec![]);
        assert_eq!((all.roster.generation, all.unsigned()), (3, vec![]));
        // And stays so.
        let again = agreed(vec![all.clone()], vec![a.clone()], vec![]);
        assert_eq!(again.bytes, all.bytes);
        assert!(all.roster.covers(&one.roster) && !one.roster.covers(&all.roster));
        // What is retired stays named.
        let retired = agreed(vec![again.clone()], vec![a.clone()], vec![b.public().name().to_owned()]);
        assert_eq!((retired.roster.generation, retired.roster.logs.len()), (4, 3));
        let back = agreed(vec![again, retired.clone()], vec![b], vec![]);
        assert_eq!((back.roster.generation, &back.roster.retired), (4, &retired.roster.retired));
        // Of another domain nothing is taken.
        assert_eq!(agree("other.example", &[back], &[a], &[]).unwrap().roster.logs.len(), 1);
    }

    #[test]
    fn a_name_has_one_key_and_there_are_no_more_logs_than_can_sign() {
        let [a, other] = ["00000001", "00000001"].map(key);
        let error = agree(DOMAIN, &[], &[a.clone(), other.clone()], &[]).unwrap_err().to_string();
        assert!(error.contains("two keys"), "{error}");
        let mut lines = [&a, &other].map(|key| format!("log {}\n", key.public()));
        lines.sort();
        let text = format!("{FIRST_WORD} {DOMAIN}\ngeneration 1\n{}", lines.concat());
        let error = SignedRoster::parse(&a.sign(text.as_bytes()).unwrap()).unwrap_err().to_string();
        assert!(error.contains("two keys"), "{error}");

        let many: Vec<SecretKey> = (0..MAX_LOGS).map(|id| key(&format!("{id:08x}"))).collect();
        let all = agreed(vec![], many.clone(), vec![]);
        assert_eq!((all.roster.logs.len(), all.unsigned().len()), (MAX_LOGS, 0), "as many as may be can sign");
        let error = agree(DOMAIN, std::slice::from_ref(&all), &[key("ffffffff")], &[]).unwrap_err().to_string();
        assert!(error.contains("none is added"), "{error}");
        let fewer = agreed(vec![], many[1..].to_vec(), vec![]);
        assert_ne!(fewer.digest(), all.digest());
    }

    #[test]
    fn a_changed_roster_is_signed_by_nobody() {
        let [a, b] = ["00000001", "00000002"].map(key);
        let one = agreed(vec![], vec![a, b], vec![]);
        assert_eq!(one.unsigned().len(), 0);
        for at in 0..one.bytes.len() {
            let mut changed = one.bytes.clone();
            changed[at] ^= 1;
            let is_good = SignedRoster::parse(&changed)
                .is_ok_and(|changed| changed.unsigned().is_empty() && changed.roster.logs.len() == 2);
            assert!(!is_good, "{at}");
        }
        let text = String::from_utf8(one.bytes).unwrap();
        let cut: Vec<&str> =
            text.lines().filter(|line| !line.starts_with("log ") || !line.contains("00000002")).collect();
        let cut = SignedRoster::parse((cut.join("\n") + "\n").as_bytes()).unwrap();
        assert_eq!((cut.roster.logs.len(), cut.unsigned().len()), (1, 1));
        assert_eq!(cut.signatures().len(), 0, "signatures that are not good are not handed on");
        for bad in
            ["", "x\n\n", "postern-roster/v1 d\ngeneration x\n\n", "postern-roster/v1 d\ngeneration 1\nother x\n\n"]
        {
            assert!(SignedRoster::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
