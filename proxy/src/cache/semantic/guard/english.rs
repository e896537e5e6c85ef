//! Sentences of English, or of any language that is written in words: what is known to make no difference is left out or said in one way.

use super::lex::{Kind, Sentence, Token};
use super::{numbers, words};

/// Stands at the end of what asks.
pub(super) const QUESTION: &str = "\u{2}";

/// Does a text ask for something about words as such?
pub(super) fn is_about_words(sentences: &[Sentence]) -> bool {
    has_any(sentences, &words::ABOUT_WORDS)
}

/// Is a text written in English, or not in words?
pub(super) fn is_english(sentences: &[Sentence]) -> bool {
    has_any(sentences, &words::ENGLISH)
}

fn has_any(sentences: &[Sentence], all: &[&str]) -> bool {
    let mut tokens = sentences.iter().flat_map(|sentence| &sentence.tokens);
    tokens.any(|token| token.kind == Kind::Word && all.contains(&token.text.as_str()))
}

/// Adds a sentence of another language to `out`, word by word.
pub(super) fn read_strictly(sentence: Sentence, out: &mut Vec<String>) {
    out.extend(sentence.tokens.iter().map(|token| match token.kind {
        Kind::Number => format!("#{}", token.text),
        _ => token.written.as_ref().unwrap_or(&token.text).clone(),
    }));
    if sentence.asks {
        out.push(QUESTION.to_owned());
    }
}

/// Adds the reading of a sentence to `out`.
pub(super) fn read(sentence: Sentence, out: &mut Vec<String>) {
    let Sentence { mut tokens, asks } = sentence;
    let frame = without_frames(&mut tokens);
    if tokens.iter().all(|token| token.kind == Kind::Break) {
        return;
    }
    let tokens = said_in_one_way(&numbers::read(tokens));
    let asks = asks_by_words(&tokens) || frame == Frame::Tell || (asks && frame != Frame::Ask);
    // A word alone with a question mark may ask for anything.
    let is_bare = tokens.len() == 1;
    let tokens = short_questions(&tokens).unwrap_or(tokens);
    let tokens = permissions(duties(tokens));
    write(&tokens, out);
    let marks = usize::from(asks) + usize::from(asks && is_bare);
    out.extend(std::iter::repeat_n(QUESTION.to_owned(), marks));
}

#[derive(PartialEq, Eq)]
enum Frame {
    None,
    Tell,
    Ask,
}

/// Takes away "please", "can you tell me" and the like.
fn without_frames(tokens: &mut Vec<Token>) -> Frame {
    let mut frame = Frame::None;
    loop {
        let before = tokens.len();
        while tokens.first().is_some_and(|token| token.kind == Kind::Break) {
            tokens.remove(0);
        }
        while tokens.last().is_some_and(|token| token.kind == Kind::Break) {
            tokens.pop();
        }
        let begins = |phrase: &[&str]| tokens.len() > phrase.len() && starts(tokens, phrase);
        let greets = |phrase: &[&str]| {
            let next = tokens.get(phrase.len());
            let pleases = next.is_some_and(|next| words::PLEASED.iter().any(|word| next.is(word)));
            match phrase {
                ["please" | "kindly"] => !pleases,
                _ => next.is_some_and(|next| next.kind == Kind::Break),
            }
        };
        let orders = |phrase: &[&str]| {
            phrase.contains(&"please")
                || tokens.get(phrase.len()).is_some_and(|next| words::ORDERS.iter().any(|word| next.is(word)))
        };
        if let Some(phrase) = words::GREETINGS.into_iter().find(|phrase| begins(phrase) && greets(phrase)) {
            tokens.drain(..phrase.len());
        } else if let Some(phrase) =
            words::TELL.into_iter().find(|phrase| begins(phrase) && asks_from(phrase, tokens.get(phrase.len())))
        {
            tokens.drain(..phrase.len());
            frame = Frame::Tell;
        } else if let Some(phrase) = words::ASK.into_iter().find(|phrase| begins(phrase) && orders(phrase)) {
            tokens.drain(..phrase.len());
            frame = Frame::Ask;
        }
        if let Some(phrase) = words::THANKS.into_iter().find(|phrase| ends_apart(tokens, phrase)) {
            tokens.truncate(tokens.len() - phrase.len());
        }
        if tokens.len() == before {
            return frame;
        }
    }
}

/// "Tell me why" and "tell me the price" ask for something; "tell me a joke" does not, nor does "do you know Anna", and whoever explains the
/// price says more than what it is.
fn asks_from(phrase: &[&str], next: Option<&Token>) -> bool {
    let known = ["if", "whether", "the", "my", "our"];
    let known = if phrase == ["explain"] { &[][..] } else { &known };
    next.is_some_and(|next| words::QUESTIONS.iter().chain(known).any(|word| next.is(word)))
}

fn starts(tokens: &[Token], phrase: &[&str]) -> bool {
    tokens.len() >= phrase.len() && tokens.iter().zip(phrase).all(|(token, word)| token.is(word))
}

/// "How do I say thanks" does not thank.
fn ends_apart(tokens: &[Token], phrase: &[&str]) -> bool {
    let split = tokens.len().checked_sub(phrase.len()).and_then(|from| tokens.split_at_checked(from));
    split.is_some_and(|(before, end)| starts(end, phrase) && before.last().is_none_or(|last| last.kind == Kind::Break))
}

fn is_article(token: &Token) -> bool {
    words::ARTICLES.iter().any(|article| token.is(article))
}

/// Tokens that `phrase` takes at the beginning of `tokens`, with articles between its words; 0: it is not there.
fn matched(tokens: &[Token], phrase: &[&str]) -> usize {
    let mut taken = 0;
    for (n, word) in phrase.iter().enumerate() {
        while n > 0 && tokens.get(taken).is_some_and(|token| is_article(token) && !token.is(word)) {
            taken += 1;
        }
        let is_word = tokens
            .get(taken)
            .is_some_and(|token| token.is(word) || (n == 0 && token.kind == Kind::Word && token.text == *word));
        if !is_word {
            return 0;
        }
        taken += 1;
    }
    taken
}

fn said_in_one_way(tokens: &[Token]) -> Vec<Token> {
    let mut out = Vec::with_capacity(tokens.len());
    let mut rest = tokens;
    while let Some(first) = rest.first() {
        let said = words::SAID.iter().map(|(from, to)| (matched(rest, from), to)).find(|(taken, _)| *taken > 0);
        let taken = match said {
            Some((taken, to)) if first.written.is_none() => {
                out.extend(to.iter().map(|word| Token::new(*word, Kind::Word)));
                taken
            }
            _ => {
                out.push(first.clone());
                1
            }
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    // "Over 5 euros" is "more than 5 euros"; "over 5 months" may be while they pass.
    let is_amount = |number: Option<&Token>, unit: Option<&Token>| {
        number.is_some_and(|number| number.kind == Kind::Number)
            && unit.is_some_and(|unit| words::AMOUNTS.iter().any(|word| unit.is(word)))
    };
    let before_amount: Vec<bool> = (0..out.len()).map(|n| is_amount(out.get(n + 1), out.get(n + 2))).collect();
    let mut compared = Vec::with_capacity(out.len());
    for (token, number) in out.into_iter().zip(before_amount) {
        let more = token.is("over") || token.is("above");
        let less = token.is("under") || token.is("below");
        match number && (more || less) {
            true => {
                compared.extend([if more { "more" } else { "less" }, "than"].map(|word| Token::new(word, Kind::Word)))
            }
            false => compared.push(token),
        }
    }
    compared
}

fn asks_by_words(tokens: &[Token]) -> bool {
    tokens.first().is_some_and(|first| {
        let text = first.text.as_str();
        first.kind == Kind::Word && (words::QUESTIONS.contains(&text) || words::AUXILIARIES.contains(&text))
    })
}

/// "What is the capital of France" asks for the capital of France; "what does it mean" for its meaning; "what does it cost" for its price.
fn short_questions(tokens: &[Token]) -> Option<Vec<Token>> {
    let begins = |words: &[&[&str]]| words.iter().find(|words| starts(tokens, words)).map(|words| words.len());
    let after = |taken: usize| tokens.get(taken..).map(<[Token]>::to_vec).filter(|rest| !rest.is_empty());
    let ends = |word: &str| tokens.last().is_some_and(|last| last.is(word));
    if let Some(taken) = begins(&[&["what", "is"], &["what", "are"]]) {
        // "What is a budget" asks for another thing than "what is the budget", and so may "what is budget".
        let next = tokens.get(taken);
        let is_known = next.is_some_and(|next| ["the", "my", "our"].iter().any(|word| next.is(word)));
        let owner = tokens.iter().skip(taken).take(4).take_while(|token| is_of_noun(token));
        let is_owned = owner.into_iter().any(|token| token.kind == Kind::Possessive);
        return if is_known || is_owned { after(taken) } else { None };
    }
    let what = begins(&[&["what", "do"], &["what", "does"]]);
    let how_much = begins(&[&["how", "much", "do"], &["how", "much", "does"]]);
    let (taken, noun) = match (what, what.or(how_much)) {
        (Some(taken), _) if ends("mean") => (taken, "meaning"),
        (_, Some(taken)) if ends("cost") => (taken, "price"),
        _ => return None,
    };
    let mut rest = after(taken)?;
    rest.pop();
    rest.push(Token::new(noun, Kind::Word));
    Some(rest)
}

/// May be a part of what owns or is owned. A number is not: of "15 % of 240" nothing is owned.
fn is_of_noun(token: &Token) -> bool {
    let text = token.text.as_str();
    let ends = [&words::BOUNDARIES[..], &words::ARTICLES, &words::QUESTIONS, &words::AUXILIARIES];
    match token.kind {
        Kind::Word => {
            (token.written.is_some() || !ends.iter().any(|list| list.contains(&text)))
                && text != "of"
                && text != "percent"
        }
        Kind::Exact | Kind::Possessive => true,
        Kind::Number | Kind::Break | Kind::Chinese => false,
    }
}

/// "Have to" and "need to" become "must", unless something is denied: "do not have to" is not "must not".
fn duties(tokens: Vec<Token>) -> Vec<Token> {
    let denied = tokens.iter().any(|token| ["not", "no", "never", "nothing"].iter().any(|word| token.is(word)));
    if denied {
        return tokens;
    }
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    for token in tokens {
        let duty = ["have", "has", "need", "needs"];
        match token.is("to").then(|| out.pop_if(|last| duty.iter().any(|word| last.is(word)))).flatten() {
            Some(_) => out.push(Token::new("must", Kind::Word)),
            None => out.push(token),
        }
    }
    // "Must I" is "do I have to".
    if let [first, second, ..] = out.as_mut_slice()
        && first.is("must")
        && ["i", "we", "you"].iter().any(|word| second.is(word))
    {
        std::mem::swap(first, second);
    }
    out
}

/// "May Anna" is "is Anna allowed to".
fn permissions(mut out: Vec<Token>) -> Vec<Token> {
    let is_plain =
        |tokens: &[Token]| !tokens.is_empty() && tokens.iter().all(|token| is_of_noun(token) || is_article(token));
    let allowed = out.iter().position(|token| token.is("allowed") || token.is("permitted"));
    if let (Some(at), true) = (allowed, starts(&out, &["is"]) || starts(&out, &["are"]))
        && out.get(1..at).is_some_and(is_plain)
        && out.get(at + 1).is_some_and(|next| next.is("to"))
    {
        out.drain(at..at + 2);
        out.splice(..1, [Token::new("may", Kind::Word)]);
    }
    out
}

fn write(tokens: &[Token], out: &mut Vec<String>) {
    for (n, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Number => out.push(format!("#{}", token.text)),
            Kind::Exact | Kind::Chinese | Kind::Break | Kind::Possessive => out.push(token.text.clone()),
            Kind::Word => match &token.written {
                Some(written) => out.push(written.clone()),
                None if is_left_out(token, tokens.get(n + 1)) => {}
                None => out.push(synonym(&token.text).unwrap_or(&token.text).to_owned()),
            },
        }
    }
}

/// "A" stays: who is a manager is not who is the manager, nor are a few employees few. So does what is to be done.
fn is_left_out(token: &Token, next: Option<&Token>) -> bool {
    let subjects = ["i", "we", "you", "they"];
    match token.text.as_str() {
        "the" => true,
        "does" => next.is_some(),
        "do" => next.is_some_and(|next| subjects.iter().any(|word| next.is(word))),
        _ => false,
    }
}

fn synonym(text: &str) -> Option<&'static str> {
    words::SYNONYMS.iter().find(|(from, _)| *from == text).map(|(_, to)| *to)
}
