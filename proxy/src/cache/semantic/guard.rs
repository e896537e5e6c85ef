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

/// Between sentences, and before what is read word by word. Nobody writes them: a text with control characters is not read.
const END: &str = "\u{1}";
const STRICT: &str = "\u{3}";
const BRACKETS: &str = "()[]{}⟨⟩〈〉【】〔〕〖〗⟦⟧";

/// What a text asks for; `is_own` knows the placeholders of its request. `None`: it is not read, since it is too long, holds code or brackets, is
/// about words as such (a translation, say), or nothing.
#[must_use]
pub fn reading(text: &str, is_own: impl Fn(&str) -> bool) -> Option<String> {
    if text.chars().nth(MAX_CHARS).is_some() || has_brackets(text, is_own) {
        return None;
    }
    let sentences = lex::sentences(text)?;
    if english::is_about_words(&sentences) || chinese::is_about_words(text) {
        return None;
    }
    let is_english = english::is_english(&sentences);
    let read = if is_english { english::read } else { english::read_strictly };
    let mut all = Vec::new();
    for sentence in sentences {
        let mut out = Vec::new();
        read(sentence, &mut out);
        all.extend((!out.is_empty()).then_some(out));
    }
    // Marks of a question alone ask for nothing. What was read in one way is not compared with what was read in the other.
    let asks = all.iter().flatten().any(|word| word != english::QUESTION);
    let all: Vec<String> = all.into_iter().map(|words| words.join(" ")).collect();
    asks.then(|| format!("{}{}", if is_english { "" } else { STRICT }, all.join(END)))
}

/// Are there others than those of placeholders of the request? What a client wrote like a placeholder would be read as one.
fn has_brackets(text: &str, is_own: impl Fn(&str) -> bool) -> bool {
    let text: String = text.chars().map(lex::plain).collect();
    let mut rest = text.as_str();
    while let Some((_, from)) = rest.find(|c| BRACKETS.contains(c)).and_then(|at| rest.split_at_checked(at)) {
        let own = lex::placeholder(from).and_then(|(.., bytes)| from.split_at_checked(bytes));
        match own.filter(|(placeholder, _)| is_own(placeholder)) {
            Some((_, left)) => rest = left,
            None => return true,
        }
    }
    false
}

/// What a vector of a text with a [`reading`] is made of: placeholders are words there, since a suffix means nothing to a model.
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
