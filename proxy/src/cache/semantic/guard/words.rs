//! The closed lists of English: what may be left out, and what is called in two ways.

/// After these, `'s` is `is`.
pub(super) const DRAWN_TO_IS: [&str; 12] =
    ["what", "who", "where", "when", "why", "how", "it", "that", "there", "he", "she", "which"];

/// And before these, it is not `has`.
pub(super) const AFTER_IS: [&str; 18] = [
    "the", "a", "an", "my", "our", "your", "this", "that", "these", "those", "in", "on", "at", "for", "not", "over",
    "more", "noon",
];

/// Beginnings that ask for an answer: what follows is the question.
pub(super) const TELL: [&[&str]; 6] = [
    &["tell", "me"],
    &["i", "want", "to", "know"],
    &["i", "need", "to", "know"],
    &["i", "would", "like", "to", "know"],
    &["do", "you", "know"],
    &["explain"],
];
/// Beginnings that ask for something to be done, before what only somebody who answers does: else "can you swim" would be an order.
pub(super) const ASK: [&[&str]; 4] =
    [&["can", "you"], &["could", "you"], &["would", "you", "please"], &["will", "you", "please"]];
pub(super) const ORDERS: [&str; 9] =
    ["please", "tell", "explain", "summarize", "summarise", "list", "show", "calculate", "convert"];
/// Beginnings without a meaning.
pub(super) const GREETINGS: [&[&str]; 5] = [&["please"], &["kindly"], &["hello"], &["hi"], &["hey"]];
/// Ends without a meaning.
pub(super) const THANKS: [&[&str]; 5] =
    [&["please"], &["thanks"], &["thank", "you"], &["many", "thanks"], &["thanks", "in", "advance"]];

/// Rows of words that are said in another way, the longer before the shorter. An article in the text is passed over.
pub(super) const SAID: [(&[&str], &[&str]); 20] = [
    (&["what", "is", "reason", "that"], &["why"]),
    (&["at", "what", "time"], &["when"]),
    (&["what", "time", "does"], &["when", "does"]),
    (&["what", "time", "do"], &["when", "do"]),
    (&["how", "can", "i"], &["how"]),
    (&["how", "do", "i"], &["how"]),
    (&["how", "to"], &["how"]),
    (&["is", "it", "allowed", "to"], &["may"]),
    (&["is", "it", "permitted", "to"], &["may"]),
    (&["am", "i", "allowed", "to"], &["may", "i"]),
    (&["give", "me", "list", "of"], &["list"]),
    (&["give", "me", "summary", "of"], &["summarize"]),
    (&["write", "me", "a"], &["write", "a"]),
    (&["turn", "on"], &["enable"]),
    (&["switch", "on"], &["enable"]),
    (&["turn", "off"], &["disable"]),
    (&["switch", "off"], &["disable"]),
    (&["per", "cent"], &["percent"]),
    (&["would", "like", "to"], &["want", "to"]),
    (&["less", "expensive"], &["cheaper"]),
];

/// Words that are said in another way.
pub(super) const SYNONYMS: [(&str, &str); 28] = [
    ("which", "what"),
    ("into", "to"),
    ("an", "a"),
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
    ("licence", "license"),
    ("catalogue", "catalog"),
    ("grey", "gray"),
    ("telephone", "phone"),
    ("required", "needed"),
    ("whether", "if"),
    ("everyone", "everybody"),
    ("anyone", "anybody"),
    ("someone", "somebody"),
    ("nobody", "no-one"),
    ("till", "until"),
    ("amongst", "among"),
    ("whilst", "while"),
];

/// What is counted where "over" means "more than".
pub(super) const AMOUNTS: [&str; 9] =
    ["dollar", "dollars", "euro", "euros", "pound", "pounds", "percent", "people", "employees"];

/// With a capital at the beginning of a sentence, these are the same as without: nothing is called so. Of others it is not known.
pub(super) const NO_NAMES: [&str; 36] = [
    "please",
    "kindly",
    "hello",
    "hi",
    "hey",
    "thanks",
    "thank",
    "tell",
    "explain",
    "list",
    "show",
    "write",
    "summarize",
    "summarise",
    "calculate",
    "convert",
    "delete",
    "add",
    "send",
    "give",
    "create",
    "compare",
    "sort",
    "find",
    "increase",
    "approve",
    "check",
    "draft",
    "copy",
    "insert",
    "remove",
    "my",
    "our",
    "your",
    "this",
    "these",
];
/// Names, unless one of those follows.
pub(super) const PERHAPS_NAMES: [&str; 2] = ["will", "may"];
pub(super) const SUBJECTS: [&str; 7] = [" I ", " i ", " we ", " you ", " the ", " my ", " it "];
/// "Please" before these is what is to be done.
pub(super) const PLEASED: [&str; 10] = ["the", "a", "an", "my", "our", "your", "him", "her", "them", "everyone"];

pub(super) const ARTICLES: [&str; 3] = ["the", "a", "an"];

pub(super) const QUESTIONS: [&str; 9] = ["what", "which", "who", "whom", "whose", "when", "where", "why", "how"];

/// What a question may begin with beside [`QUESTIONS`].
pub(super) const AUXILIARIES: [&str; 21] = [
    "is", "are", "am", "was", "were", "do", "does", "did", "can", "could", "may", "might", "must", "shall", "should",
    "will", "would", "has", "have", "had", "need",
];

/// At these ends what belongs to a noun.
pub(super) const BOUNDARIES: [&str; 58] = [
    "in", "on", "at", "by", "for", "from", "to", "into", "with", "without", "about", "after", "before", "during",
    "between", "over", "under", "above", "below", "near", "than", "as", "and", "or", "nor", "but", "if", "that",
    "because", "while", "until", "since", "per", "i", "we", "you", "he", "she", "it", "they", "me", "us", "him",
    "them", "there", "not", "be", "been", "being", "all", "each", "both", "most", "some", "many", "much", "any",
    "none",
];

/// With one of these, a text asks for something about words as such, and then each of them counts.
pub(super) const ABOUT_WORDS: [&str; 44] = [
    "translate",
    "translation",
    "rephrase",
    "paraphrase",
    "rewrite",
    "reword",
    "proofread",
    "grammar",
    "grammatical",
    "spell",
    "spelled",
    "spelling",
    "letter",
    "letters",
    "character",
    "characters",
    "word",
    "words",
    "sentence",
    "uppercase",
    "lowercase",
    "capitalize",
    "capitalise",
    "syllable",
    "syllables",
    "vowel",
    "vowels",
    "rhyme",
    "rhymes",
    "anagram",
    "palindrome",
    "typo",
    "typos",
    "verbatim",
    "punctuation",
    "passive",
    "reformulate",
    "polish",
    "improve",
    "shorten",
    "edit",
    "abbreviation",
    "acronym",
    "pronounce",
];

/// Without any of these, a text is in another language, where "a" or "do" may mean something.
pub(super) const ENGLISH: [&str; 50] = [
    "of", "thanks", "thank", "the", "is", "are", "does", "what", "how", "which", "who", "whose", "where", "when",
    "why", "my", "our", "please", "can", "could", "you", "your", "this", "that", "these", "with", "from", "and",
    "about", "without", "before", "after", "during", "between", "than", "must", "should", "would", "have", "has",
    "did", "not", "it", "they", "their", "there", "if", "list", "show", "convert",
];
