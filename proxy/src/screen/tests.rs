//! However an answer is cut into pieces, the same comes out, and nothing of what must not.
#![expect(clippy::string_slice, reason = "a test: a wrong index is a failure")]

use proptest::prelude::*;

use super::*;
use crate::classify::Conversation;
use crate::keys::Keys;

fn token() -> String {
    format!("sk-{}", "aB3dE".repeat(6))
}

fn key(lines: usize) -> String {
    format!(
        "-----BEGIN {0}-----\n{1}-----END {0}-----",
        "PRIVATE KEY",
        "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n".repeat(lines)
    )
}

fn rules(actions: &[(&str, Action)]) -> Arc<Rules> {
    let actions = actions.iter().map(|(kind, action)| ((*kind).to_owned(), *action)).collect();
    let words = [("customer".to_owned(), vec!["Blue Heron".to_owned(), "Globex".to_owned()])].into();
    Arc::new(Rules::new(&actions, &["TOP SECRET".to_owned(), "机密".to_owned()], &words))
}

fn all() -> Arc<Rules> {
    use postern_plugins::detectors::Kind;
    let kinds = Kind::ALL.into_iter().map(Kind::name).chain([MARKING, PRIVATE_KEY, "customer"]);
    rules(&kinds.map(|kind| (kind, Action::Mask)).collect::<Vec<_>>())
}

fn masking(kinds: &[&str]) -> Arc<Rules> {
    rules(&kinds.iter().map(|kind| (*kind, Action::Mask)).collect::<Vec<_>>())
}

fn vault() -> Vault {
    let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
    vault.keep("secret", "their-own-p4ss");
    vault
}

/// What comes out of these pieces, and the most that waited.
fn pieces<'a>(rules: &Rules, place: Place, pieces: impl Iterator<Item = &'a str>) -> (String, Seen, usize) {
    let vault = vault();
    let own = Own { vault: &vault, form: Suffix::Wire };
    let (mut reading, mut seen, mut out, mut came, mut most) =
        (Reading::new(place), Seen::default(), String::new(), 0, 0);
    for piece in pieces {
        came += piece.len();
        out += &reading.push(rules, own, piece, &mut seen);
        most = most.max(came.saturating_sub(out.len()));
    }
    out += &reading.finish(rules, own, &mut seen);
    (out, seen, most)
}

const CONTENT: Place = Place::Field("content");

fn once(rules: &Rules, text: &str) -> String {
    pieces(rules, CONTENT, [text].into_iter()).0
}

fn by_char(text: &str) -> impl Iterator<Item = &str> {
    text.char_indices().filter_map(|(at, c)| text.get(at..at + c.len_utf8()))
}

/// Cut at these places.
fn cut(text: &str, mut places: Vec<usize>) -> Vec<&str> {
    places.sort_unstable();
    let mut at = 0;
    let mut pieces = Vec::new();
    for place in places {
        let place = text.floor_char_boundary(place % (text.len() + 1)).max(at);
        pieces.push(&text[at..place]);
        at = place;
    }
    pieces.push(&text[at..]);
    pieces
}

#[test]
fn what_the_model_made_is_masked_and_the_rest_is_not() {
    let (token, key) = (token(), key(20));
    for (text, expected) in [
        (format!("Use {token}, then go on."), "Use [SECRET], then go on.".to_owned()),
        (format!("{key}\nthat was it"), "[PRIVATE-KEY]\nthat was it".to_owned()),
        (format!("a {key} b {key} c {token}"), "a [PRIVATE-KEY] b [PRIVATE-KEY] c [SECRET]".to_owned()),
        (format!("cut: {}", &key[..400]), "cut: [PRIVATE-KEY]".to_owned()),
        (
            "password: hunter22 for Globex and Globexes".to_owned(),
            "password: [SECRET] for [CUSTOMER] and Globexes".to_owned(),
        ),
        ("blue  heron is top\nsecret, 机 密".to_owned(), "[CUSTOMER] is [MARKING], [MARKING]".to_owned()),
        (token.chars().map(|c| format!("{c}\u{200b}")).collect::<String>() + "!", "[SECRET]\u{200b}!".to_owned()),
        (format!(r#"print("\n{token}")"#), r#"print("\n[SECRET]")"#.to_owned()),
        (r#"{"to": "li\u0040example.com"}"#.to_owned(), r#"{"to": "[EMAIL]"}"#.to_owned()),
        ("call 138 0013 8000 now".to_owned(), "call [PHONE] now".to_owned()),
        ("ab [SECRET] [EMAIL_1_x cd".to_owned(), "ab [SECRET] [EMAIL_1_x cd".to_owned()),
    ] {
        assert_eq!(once(&all(), &text), expected);
        assert_eq!(pieces(&all(), CONTENT, by_char(&text)).0, expected);
    }
}

#[test]
fn what_is_forgotten_does_not_depend_on_the_cutting() {
    // Without the word in front of it, the second one is a name of what follows.
    let text = format!("top secret: password\\n{}138 0013 8000DE89 3704 0044 0532 0130 00", "x".repeat(700));
    let (rules, whole) = (all(), once(&all(), &text));
    assert_eq!(pieces(&rules, CONTENT, by_char(&text)).0, whole);
    for at in 0..text.len() {
        assert_eq!(pieces(&rules, CONTENT, cut(&text, vec![at]).into_iter()).0, whole);
    }
}

#[test]
fn only_what_is_named_is_looked_for() {
    let text = format!("{} and ann@example.org {}", token(), key(3));
    assert_eq!(once(&masking(&["email"]), &text), text.replace("ann@example.org", "[EMAIL]"));
    assert_eq!(once(&masking(&["private-key"]), &text), text.replace(&key(3), "[PRIVATE-KEY]"));
    assert_eq!(once(&masking(&["secret"]), &text), "[SECRET] and ann@example.org [SECRET]");
}

#[test]
fn values_of_the_request_are_not_touched() {
    let vault = vault();
    let own = vault.placeholder("secret", "their-own-p4ss", Suffix::Wire);
    let text = format!("postgres://app:{own}@db.example/x with password: {own} and {}", token());
    let (mut screen, mut answer) =
        (Screen::new(masking(&["secret"])), json!({"choices": [{"message": {"content": text}}]}));
    let seen = screen.message(Own { vault: &vault, form: Suffix::Wire }, &mut answer);
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(
        said.starts_with(&format!("postgres://app:{own}@db.example/x with password: {own} and [SECRET]")),
        "{said}"
    );
    assert_eq!(seen.count(), 1);
}

#[test]
fn a_value_without_end_is_left_out_and_what_follows_is_not() {
    for text in [format!("a sk-{} b", "aB3dE".repeat(1000)), format!("a password={}1 b", "x1".repeat(3000))] {
        let expected = if text.contains("sk-") { "a [SECRET] b" } else { "a password=[SECRET] b" };
        assert_eq!(once(&all(), &text), expected);
        let (out, _, most) = pieces(&all(), CONTENT, by_char(&text));
        assert_eq!(out, expected);
        assert!(most > 4000, "nothing of it came out");
    }
    let inner = format!("hunter22sk-{}", "x".repeat(1500));
    assert_eq!(pieces(&all(), CONTENT, by_char(&inner)).0, inner, "no token begins within a word");
    let blob = format!("data:image/png;base64,{}= end", "iVBORw0KGgo".repeat(400));
    let (out, seen, most) = pieces(&all(), CONTENT, by_char(&blob));
    assert_eq!((out, seen.count()), (blob.clone(), 0));
    assert!(most <= 800, "{most}");
}

#[test]
fn ordinary_text_passes_and_hardly_waits() {
    let text = "It was agreed to meet on Monday; the report of the second quarter is ready. 会议在星期三举行。\n\n- one\n- two: `a[1] = b`\n";
    for (rules, bound) in [(masking(&["secret", "private-key", "marking"]), 6), (all(), 12)] {
        let (out, seen, most) = pieces(&rules, CONTENT, by_char(text));
        assert_eq!((out.as_str(), seen.count()), (text, 0));
        assert!(most <= bound, "{most}");
    }
}

#[test]
fn arguments_stay_json() {
    let token = token();
    for (arguments, expected) in [
        (format!(r#"{{"key": "{token}", "n": 1}}"#), json!({"key": "[SECRET]", "n": 1})),
        (json!({"text": format!("a\n\"{token}\"\\ é")}).to_string(), json!({"text": "a\n\"[SECRET]\"\\ é"})),
        (r#"{"password":"hunter22","ok":true}"#.to_owned(), json!({"password": "[SECRET]", "ok": true})),
        (
            r#"{"phone":13800138000,"list":[1,2.5,-3e4,null]}"#.to_owned(),
            json!({"phone": "[PHONE]", "list": [1, 2.5, -3e4, null]}),
        ),
        (r#"{"to":"li\u0040example.com\ud83d\ude00 \ud83d!"}"#.replace(" \\ud83d!", ""), json!({"to": "[EMAIL]😀"})),
        (json!({"pem": key(5), "next": "x"}).to_string(), json!({"pem": "[PRIVATE-KEY]", "next": "x"})),
        (json!({"pem": &key(5)[..60], "next": "x"}).to_string(), json!({"pem": "[PRIVATE-KEY]", "next": "x"})),
        (
            json!({token.clone(): {"deep": [{"x": token}]}}).to_string(),
            json!({"[SECRET]": {"deep": [{"x": "[SECRET]"}]}}),
        ),
        (json!({"inner": json!({"key": token}).to_string()}).to_string(), json!({"inner": "{\"key\":\"[SECRET]\"}"})),
        ("{}".to_owned(), json!({})),
    ] {
        for place in [Place::Call(0), Place::Function] {
            let (out, ..) = pieces(&all(), place, by_char(&arguments));
            assert_eq!(serde_json::from_str::<Value>(&out).ok(), Some(expected.clone()), "{arguments} became {out}");
            assert_eq!(pieces(&all(), place, [arguments.as_str()].into_iter()).0, out);
        }
    }
    let untouched = r#"{ "a\/b" : "\u00e9\u4e2d\\n \ud83d", "n":[ 1.50 , 1e9]} "#;
    assert_eq!(pieces(&all(), Place::Call(0), by_char(untouched)).0, untouched);
    let (out, ..) = pieces(&all(), Place::Call(0), by_char("call 138 0013 8000"));
    assert_eq!(out, "call [PHONE]");
}

fn delta(index: u64, delta: Value, finish: Option<&str>) -> Value {
    json!({"id": "a", "choices": [{"index": index, "delta": delta, "logprobs": {"content": [1]}, "finish_reason": finish}]})
}

fn chunk(screen: &mut Screen, event: Value) -> (Value, Seen) {
    let vault = vault();
    let mut event = event;
    let seen = screen.chunk(Own { vault: &vault, form: Suffix::Wire }, 2, &mut event).unwrap();
    (event["choices"][0].take(), seen)
}

#[test]
fn choices_and_fields_are_texts_of_their_own_and_end_with_their_choice() {
    let mut screen = Screen::new(masking(&["secret"]));
    let token = token();
    let (one, two) = token.split_at(9);
    let call = |text: &str| json!({"tool_calls": [{"index": 3, "function": {"arguments": text}}]});
    for (index, said) in [
        (0, json!({"content": one})),
        (1, json!({"content": "no ", "reasoning": two})),
        (0, call("{\"a\":\"")),
        (0, call(one)),
    ] {
        let (choice, seen) = chunk(&mut screen, delta(index, said, None));
        let text = choice["delta"].to_string();
        assert!(!text.contains("sk-") && seen.count() == 0, "{text}");
        assert_eq!(choice["logprobs"], Value::Null, "they say it once more");
    }
    let (choice, _) = chunk(&mut screen, delta(1, json!({"content": two}), Some("stop")));
    assert_eq!(choice["delta"]["content"], two, "another choice has none of the beginning");
    chunk(&mut screen, delta(0, call(two), None));
    let (choice, seen) = chunk(&mut screen, delta(0, json!({"content": two}), Some("tool_calls")));
    assert_eq!(choice["delta"]["content"], "[SECRET]");
    assert_eq!(choice["delta"]["tool_calls"], json!([{"index": 3, "function": {"arguments": "[SECRET]"}}]));
    assert_eq!(seen.count(), 2);
    let (rest, _) = screen.rest(Own { vault: &vault(), form: Suffix::Wire });
    assert_eq!(rest, None);
}

#[test]
fn only_what_the_protocol_needs_is_left_out_and_only_where_it_stands() {
    let secret = token();
    let mut message = json!({
        "role": "assistant", "id": secret, "content": [{"type": "text", "text": secret}],
        "annotations": [{"id": secret, "type": secret, "input": secret, "arguments": secret}],
        "tool_calls": [{"id": secret, "type": "function", "input": secret, "function": {"name": secret, "arguments": {"input": secret}}}],
    });
    let mut looked = 0;
    others(message.as_object_mut().unwrap(), &mut |text| {
        looked += usize::from(*text == secret);
        text.clear();
    });
    let left: Vec<_> = ["/id", "/tool_calls/0/id"].map(|place| message.pointer(place).unwrap()).into();
    assert!(left.iter().all(|left| **left == secret), "{message}");
    assert_eq!((looked, message.to_string().matches(&secret).count()), (8, 2), "{message}");
}

#[test]
fn what_ends_an_answer_leaves_what_came_before() {
    let stop = rules(&[("marking", Action::Stop), ("secret", Action::Mask)]);
    let mut screen = Screen::new(stop.clone());
    let (choice, seen) = chunk(&mut screen, delta(0, json!({"content": "This is TOP"}), None));
    assert_eq!((choice["delta"]["content"].as_str(), seen.stopped), (Some("This is "), None));
    let (choice, seen) =
        chunk(&mut screen, delta(0, json!({"content": " SECRET. More", "refusal": "x"}), Some("stop")));
    assert_eq!(seen.stopped.as_deref(), Some("marking"));
    assert_eq!((&choice["delta"]["content"], &choice["finish_reason"]), (&json!(""), &Value::Null));
    let mut whole =
        json!({"choices": [{"message": {"content": "a"}}, {"message": {"content": null, "notes": [{"x": "机密"}]}}]});
    let seen = Screen::new(stop).message(Own { vault: &vault(), form: Suffix::Wire }, &mut whole);
    assert_eq!(seen.stopped.as_deref(), Some("marking"));
}

#[test]
fn a_stream_without_ends_gives_the_rest_and_odd_events_are_refused() {
    let mut screen = Screen::new(masking(&["secret"]));
    chunk(&mut screen, delta(1, json!({"content": "see sk-"}), None));
    let vault = vault();
    let own = Own { vault: &vault, form: Suffix::Wire };
    let (rest, _) = screen.rest(own);
    assert_eq!(rest.unwrap()["choices"], json!([{"index": 1, "delta": {"content": "sk-"}, "finish_reason": null}]));
    for mut event in [json!({}), delta(7, json!({"content": "x"}), None)] {
        assert!(screen.chunk(own, 2, &mut event).is_err(), "{event}");
    }
    let calls: Vec<Value> = (0..600).map(|n| json!({"index": n, "function": {"arguments": ""}})).collect();
    assert!(screen.chunk(own, 2, &mut delta(0, json!({"tool_calls": calls}), None)).is_err());
}

#[test]
fn what_was_held_back_is_forgotten_but_not_in_the_middle_of_a_key() {
    let mut screen = Screen::new(masking(&["secret"]));
    let (choice, _) = chunk(&mut screen, delta(0, json!({"content": "a sk-12"}), None));
    assert_eq!(choice["delta"]["content"], "a ");
    assert!(screen.forget_held());
    let (choice, _) = chunk(&mut screen, delta(0, json!({"content": "bold "}), None));
    assert_eq!(choice["delta"]["content"], "bold ");
    chunk(&mut screen, delta(0, json!({"content": &key(3)[..60]}), None));
    assert!(!screen.forget_held());
}

/// Pieces of texts, many of which are or become finds.
fn text() -> impl Strategy<Value = String> {
    let token = token();
    let pieces = prop::sample::select(vec![
        token.clone(),
        token[..7].to_owned(),
        "AKIA".to_owned() + &"AB34".repeat(4),
        key(2),
        key(2)[..30].to_owned(),
        "-----BEGIN ".to_owned(),
        "password".to_owned(),
        ": ".to_owned(),
        "hunter22".to_owned(),
        "ann@example.org".to_owned(),
        "138 0013 8000".to_owned(),
        "4111 1111 1111 1111".to_owned(),
        "11010519491231002X".to_owned(),
        "DE89 3704 0044 0532 0130 00".to_owned(),
        "https://app:s3cr3t@db.example/?token=a1b2c3d4e5".to_owned(),
        "10.20.30.40".to_owned(),
        "Globex".to_owned(),
        "blue heron".to_owned(),
        "top secret".to_owned(),
        "机密".to_owned(),
        "ｓｋ－".to_owned(),
        "раssword=".to_owned(),
        "\\u0040".to_owned(),
        "\\n".to_owned(),
        "the report is ready".to_owned(),
        " ".to_owned(),
        " ".to_owned(),
        ", ".to_owned(),
        "\n".to_owned(),
        "。".to_owned(),
        "[EMAIL_1_".to_owned(),
        "x".repeat(700),
    ]);
    prop::collection::vec(pieces, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn however_it_is_cut_the_same_comes_out(text in text(), places in prop::collection::vec(0..2000_usize, 0..20)) {
        let rules = all();
        let (whole, seen, _) = pieces(&rules, CONTENT, [text.as_str()].into_iter());
        let (chars, by_chars, most) = pieces(&rules, CONTENT, by_char(&text));
        let (some, of_some, _) = pieces(&rules, CONTENT, cut(&text, places).into_iter());
        prop_assert_eq!(&whole, &chars);
        prop_assert_eq!(&whole, &some);
        prop_assert_eq!(seen.count(), by_chars.count());
        prop_assert_eq!(seen.count(), of_some.count());
        if seen.count() == 0 {
            prop_assert_eq!(&whole, &text);
            prop_assert!(most <= 800, "{} waited", most);
        }
    }

    #[test]
    fn it_is_what_a_look_at_the_whole_text_finds(text in text()) {
        // What is longer may be decided before it is whole.
        prop_assume!(!text.contains(&"x".repeat(700)) && !text.contains("-----BEGIN"));
        let rules = all();
        let looked = rules.look(&text);
        let mut expected = String::new();
        let mut at = 0;
        for hit in looked.hits {
            expected += &text[at..hit.start];
            expected += &format!("[{}]", hit.kind.to_ascii_uppercase());
            at = hit.end;
        }
        expected += &text[at..];
        prop_assert_eq!(pieces(&rules, CONTENT, by_char(&text)).0, expected);
    }

    #[test]
    fn nothing_of_a_token_leaves(before in "[a-z :=\n]{0,20}", after in "[a-z ,.\n]{0,20}", places in prop::collection::vec(0..100_usize, 0..8)) {
        let token = token();
        let text = format!("{before} {token} {after}");
        let (out, seen, _) = pieces(&masking(&["secret"]), CONTENT, cut(&text, places).into_iter());
        prop_assert!(!out.contains("sk-") && !out.contains("aB3"), "{}", out);
        prop_assert!(seen.count() >= 1);
    }

    #[test]
    fn arguments_are_json_however_they_are_cut(
        values in prop::collection::vec((text(), any::<u32>()), 0..4),
        places in prop::collection::vec(0..3000_usize, 0..20),
    ) {
        let arguments: Map =
            values.iter().enumerate().map(|(n, (text, number))| (format!("k{n}"), json!([text, number]))).collect();
        let arguments = Value::Object(arguments).to_string();
        let rules = all();
        let (out, seen, _) = pieces(&rules, Place::Call(0), cut(&arguments, places).into_iter());
        let read: Result<Value, _> = serde_json::from_str(&out);
        prop_assert!(read.is_ok(), "{} became {}", arguments, out);
        prop_assert_eq!(&out, &pieces(&rules, Place::Call(0), by_char(&arguments)).0);
        if seen.count() == 0 {
            prop_assert_eq!(out, arguments);
        }
    }
}
