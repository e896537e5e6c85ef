//! The closed lists of English: what may be left out, and what is called in two ways.

/// After these, `'s` is `is`.
pub(super) const DRAWN_TO_IS: [&str; 12] =
    ["what", "who", "where", "when", "why", "how", "it", "that", "there", "he", "she", "which"];

/// Beginnings that ask for an answer: what follows is the question.
pub(super) const TELL: [&[&str]; 9] = [
    &["tell", "me"],
    &["let", "me", "know"],
    &["i", "want", "to", "know"],
    &["i", "need", "to", "know"],
    &["i", "would", "like", "to", "know"],
    &["do", "you", "know"],
    &["explain", "why"],
    &["explain", "how"],
    &["explain", "what"],
];
/// Beginnings that ask for something to be done: what follows is an order.
pub(super) const ASK: [&[&str]; 4] = [&["can", "you"], &["could", "you"], &["would", "you"], &["will", "you"]];
/// Beginnings without a meaning.
pub(super) const GREETINGS: [&[&str]; 5] = [&["please"], &["kindly"], &["hello"], &["hi"], &["hey"]];
/// Ends without a meaning.
pub(super) const THANKS: [&[&str]; 5] =
    [&["please"], &["thanks"], &["thank", "you"], &["many", "thanks"], &["thanks", "in", "advance"]];

/// Rows of words that are said in another way, the longer before the shorter. An article in the text is passed over.
pub(super) const SAID: [(&[&str], &[&str]); 40] = [
    (&["what", "is", "reason", "that"], &["why"]),
    (&["what", "is", "way", "to"], &["how"]),
    (&["at", "what", "time"], &["when"]),
    (&["what", "time", "does"], &["when", "does"]),
    (&["what", "time", "do"], &["when", "do"]),
    (&["how", "can", "i"], &["how"]),
    (&["how", "can", "we"], &["how"]),
    (&["how", "can", "you"], &["how"]),
    (&["how", "could", "i"], &["how"]),
    (&["how", "do", "i"], &["how"]),
    (&["how", "do", "we"], &["how"]),
    (&["how", "do", "you"], &["how"]),
    (&["how", "would", "i"], &["how"]),
    (&["how", "to"], &["how"]),
    (&["where", "can", "i"], &["where"]),
    (&["where", "do", "i"], &["where"]),
    (&["is", "it", "allowed", "to"], &["may"]),
    (&["is", "it", "permitted", "to"], &["may"]),
    (&["is", "it", "possible", "to"], &["may"]),
    (&["is", "it", "ok", "to"], &["may"]),
    (&["is", "it", "okay", "to"], &["may"]),
    (&["am", "i", "allowed", "to"], &["may"]),
    (&["are", "we", "allowed", "to"], &["may"]),
    (&["give", "me", "list", "of"], &["list"]),
    (&["give", "me", "summary", "of"], &["summarize"]),
    (&["show", "me"], &["show"]),
    (&["write", "me"], &["write"]),
    (&["find", "me"], &["find"]),
    (&["turn", "on"], &["enable"]),
    (&["switch", "on"], &["enable"]),
    (&["turn", "off"], &["disable"]),
    (&["switch", "off"], &["disable"]),
    (&["go", "up"], &["increase"]),
    (&["go", "down"], &["decrease"]),
    (&["close", "to"], &["near"]),
    (&["per", "cent"], &["percent"]),
    (&["would", "like", "to"], &["want", "to"]),
    (&["of", "both"], &["of", "two"]),
    (&["which", "one", "of"], &["what", "of"]),
    (&["less", "expensive"], &["cheaper"]),
];

/// Words that are said in another way.
pub(super) const SYNONYMS: [(&str, &str); 65] = [
    ("which", "what"),
    ("our", "my"),
    ("into", "to"),
    ("am", "is"),
    ("are", "is"),
    ("were", "was"),
    ("has", "have"),
    ("usd", "us dollar"),
    ("eur", "euro"),
    ("gbp", "pound"),
    ("summarise", "summarize"),
    ("organise", "organize"),
    ("organisation", "organization"),
    ("optimise", "optimize"),
    ("analyse", "analyze"),
    ("recognise", "recognize"),
    ("categorise", "categorize"),
    ("prioritise", "prioritize"),
    ("authorise", "authorize"),
    ("customise", "customize"),
    ("colour", "color"),
    ("favourite", "favorite"),
    ("centre", "center"),
    ("programme", "program"),
    ("cheque", "check"),
    ("licence", "license"),
    ("catalogue", "catalog"),
    ("grey", "gray"),
    ("purchase", "buy"),
    ("begin", "start"),
    ("insert", "add"),
    ("erase", "delete"),
    ("remove", "delete"),
    ("repair", "fix"),
    ("large", "big"),
    ("larger", "bigger"),
    ("largest", "biggest"),
    ("quick", "fast"),
    ("quickly", "fast"),
    ("kid", "child"),
    ("kids", "child"),
    ("children", "child"),
    ("women", "woman"),
    ("men", "man"),
    ("feet", "foot"),
    ("shop", "store"),
    ("telephone", "phone"),
    ("mobile", "cellphone"),
    ("compute", "calculate"),
    ("required", "needed"),
    ("necessary", "needed"),
    ("rise", "increase"),
    ("display", "show"),
    ("whether", "if"),
    ("everyone", "everybody"),
    ("anyone", "anybody"),
    ("someone", "somebody"),
    ("nobody", "no-one"),
    ("mails", "email"),
    ("dearer", "more expensive"),
    ("during", "in"),
    ("till", "until"),
    ("upon", "on"),
    ("amongst", "among"),
    ("whilst", "while"),
];

/// Not one more of the same: without the `s` they mean something else, or are no word.
pub(super) const NO_PLURALS: [&str; 46] = [
    "always", "perhaps", "towards", "sometimes", "besides", "across", "afterwards", "this", "his", "hers", "its", "ours",
    "yours", "theirs", "news", "customs", "goods", "savings", "earnings", "contents", "means", "series", "species", "physics",
    "economics", "politics", "mathematics", "ethics", "athletics", "glasses", "clothes", "arms", "works", "terms", "minutes",
    "times", "stairs", "premises", "proceeds", "thanks", "regards", "less", "versus", "plus", "minus", "yes",
];

pub(super) const WEEKDAYS: [&str; 7] =
    ["mondays", "tuesdays", "wednesdays", "thursdays", "fridays", "saturdays", "sundays"];

/// `this` and `that` before one of these say when.
pub(super) const TIMES: [&str; 14] = [
    "day", "week", "month", "quarter", "year", "morning", "afternoon", "evening", "night", "time", "weekend", "summer", "winter",
    "century",
];

pub(super) const ARTICLES: [&str; 3] = ["the", "a", "an"];

pub(super) const QUESTIONS: [&str; 9] = ["what", "which", "who", "whom", "whose", "when", "where", "why", "how"];

/// What a question may begin with beside [`QUESTIONS`].
pub(super) const AUXILIARIES: [&str; 21] = [
    "is", "are", "am", "was", "were", "do", "does", "did", "can", "could", "may", "might", "must", "shall", "should", "will",
    "would", "has", "have", "had", "need",
];

/// At these ends what belongs to a noun.
pub(super) const BOUNDARIES: [&str; 58] = [
    "in", "on", "at", "by", "for", "from", "to", "into", "with", "without", "about", "after", "before", "during", "between",
    "over", "under", "above", "below", "near", "than", "as", "and", "or", "nor", "but", "if", "that", "because", "while", "until",
    "since", "per", "i", "we", "you", "he", "she", "it", "they", "me", "us", "him", "them", "there", "not", "be", "been", "being",
    "all", "each", "both", "most", "some", "many", "much", "any", "none",
];
