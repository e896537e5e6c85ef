//! When two questions may share an answer, whatever their vectors say. Pure.
//!
//! Vectors of "in 2023" and "in 2024", of "with" and "without", of "from A to B" and "from B to A" are nearly the same. So a question is
//! read into a row of words that says what it asks for, and only questions with the same reading share. A word that is not known to make no
//! difference is in it, at its place: the closed lists here name what may be left out or is called in two ways, and all else counts. Numbers,
//! names, negations, opposites, units, identifiers, quoted text and placeholders count for that reason, and not because they are recognised.
//!
//! A list that is too short costs an answer from the cache; one that is too long gives a wrong one.

mod chinese;
mod english;
mod lex;
mod numbers;
mod words;

/// The longest text that is read, in characters.
pub const MAX_CHARS: usize = 2000;

/// What a text asks for. `None`: it is not read, since it is too long, holds code, is about words as such (a translation, say), or nothing.
#[must_use]
pub fn reading(text: &str) -> Option<String> {
    if text.chars().nth(MAX_CHARS).is_some() {
        return None;
    }
    let sentences = lex::sentences(text)?;
    if english::is_about_words(&sentences) || chinese::is_about_words(text) {
        return None;
    }
    let is_english = english::is_english(&sentences);
    let read = if is_english { english::read } else { english::read_strictly };
    let mut out = Vec::new();
    sentences.into_iter().for_each(|sentence| read(sentence, &mut out));
    // Marks of a question alone ask for nothing. What was read in one way is not compared with what was read in the other.
    let asks = out.iter().any(|word| word != english::QUESTION);
    asks.then(|| format!("{}{}", if is_english { "" } else { "= " }, out.join(" ")))
}

/// What a vector is made of: placeholders are words there, since a suffix means nothing to a model.
#[must_use]
pub fn without_suffixes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.find('[').and_then(|at| rest.split_at_checked(at)) {
        out.push_str(before);
        if let Some((kind, number, bytes)) = lex::placeholder(from) {
            out.push_str(&format!("{} {number}", kind.to_ascii_lowercase()));
            rest = from.get(bytes..).unwrap_or_default();
        } else {
            out.push('[');
            rest = from.get(1..).unwrap_or_default();
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
