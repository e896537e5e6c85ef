use super::*;

fn ask(body: &Value, switches: &Switches) -> Reply {
    reply((Kind::Chat, body.to_string().as_bytes()), Admission::Taken, switches, 7, 1_700_000_000)
}

fn question(stream: bool) -> Value {
    json!({
        "model": "m", "stream": stream,
        "messages": [{"role": "user", "content": "first"}, {"role": "user", "content": [{"type": "text", "text": "grüße"}]}],
    })
}

fn sent(reply: &Reply) -> String {
    let bytes =
        reply.steps.iter().filter_map(|step| if let Step::Send(bytes) = step { Some(&bytes[..]) } else { None });
    String::from_utf8(bytes.collect::<Vec<_>>().concat()).unwrap()
}

fn events(reply: &Reply) -> Vec<Value> {
    let text = sent(reply);
    let events =
        text.split("\n\n").filter(|event| !event.is_empty()).map(|event| event.strip_prefix("data: ").unwrap());
    events.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[test]
fn repeats_the_last_user_text() {
    let reply = ask(&question(false), &Switches::default());
    let body: Value = serde_json::from_str(&sent(&reply)).unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], "You asked: grüße");
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}));
}

#[test]
fn streams_in_pieces_and_counts_at_the_end_if_asked() {
    let mut body = question(true);
    body["stream_options"] = json!({"include_usage": true});
    let reply = ask(&body, &Switches::default());
    let events = events(&reply);
    let pieces: Vec<_> = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, ["", "You", " as", "ked", ": g", "rüß", "e"]);
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let [.., finish, usage] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&finish["choices"][0]["finish_reason"], &finish["usage"]), (&json!("stop"), &Value::Null));
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(9)));
    assert!(sent(&reply).ends_with("data: [DONE]\n\n"));
}

#[test]
fn each_choice_gets_the_whole_answer() {
    let mut body = question(true);
    body["n"] = json!(2);
    let events = events(&ask(&body, &Switches::default()));
    for index in 0..2 {
        let of_choice = events.iter().filter(|event| event["choices"][0]["index"] == index);
        let text: String = of_choice.filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, "You asked: grüße");
    }
}

#[test]
fn dies_or_hangs_after_the_pieces_that_were_asked_for() {
    let ends = |switches: Switches| {
        let reply = ask(&question(true), &switches);
        (events(&reply).len(), reply.steps.back().unwrap().clone())
    };
    assert_eq!(ends(Switches { die_after_chunks: Some(2), ..Switches::default() }), (3, Step::Cut));
    assert_eq!(ends(Switches { hang_after_chunks: Some(0), ..Switches::default() }), (1, Step::Hang));
    assert_eq!(ends(Switches { hang_after_chunks: Some(6), ..Switches::default() }), (7, Step::Hang));
    let (events, last) = ends(Switches { die_after_chunks: Some(7), ..Switches::default() });
    assert_eq!((events, last), (8, Step::Send(Bytes::from_static(DONE))));
    let plain = ask(&question(false), &Switches { die_after_chunks: Some(2), ..Switches::default() });
    assert!(sent(&plain).len() < plain.headers[CONTENT_LENGTH].to_str().unwrap().parse().unwrap());
    assert_eq!(plain.steps.back(), Some(&Step::Cut));
}

#[test]
fn waits_before_the_headers_and_before_each_piece() {
    let switches = Switches { latency_ms: 40, token_ms: 5, ..Switches::default() };
    let streamed = ask(&question(true), &switches);
    assert_eq!(streamed.wait, Some(Duration::from_millis(40)));
    assert_eq!(streamed.steps.iter().filter(|step| **step == Step::Wait(Duration::from_millis(5))).count(), 6);
    assert_eq!(ask(&question(false), &switches).wait, Some(Duration::from_millis(40 + 6 * 5)));
    assert_eq!(ask(&question(false), &Switches { hang_before_headers: true, ..Switches::default() }).wait, None);
}

#[test]
fn malformed_answers_are_malformed() {
    let of = |kind, stream| ask(&question(stream), &Switches { malformed: Some(kind), ..Switches::default() });
    assert!(serde_json::from_str::<Value>(&sent(&of(Malformed::Json, false))).is_err());
    assert!(sent(&of(Malformed::Json, true)).contains("\"delta\":\n\ndata: [DONE]"));
    let sse = sent(&of(Malformed::Sse, true));
    assert!(!sse.ends_with("\n\n") && !sse.contains("[DONE]"));
    assert_eq!(of(Malformed::Status, false).status.as_u16(), 999);
    assert_eq!(of(Malformed::ContentType, true).headers[CONTENT_TYPE], "text/html; charset=utf-8");
    for stream in [false, true] {
        let size: usize = sent(&of(Malformed::Huge, stream)).len();
        assert!(size > 64 << 20, "{size}");
    }
}

#[test]
fn refusals_have_their_status_and_headers() {
    let body = question(false).to_string();
    let refused = |admission, switches: &Switches| reply((Kind::Chat, body.as_bytes()), admission, switches, 1, 1);
    let none = Switches::default();
    let busy = refused(Admission::TooMany { retry_after_s: 9 }, &none);
    assert_eq!((busy.status.as_u16(), &busy.headers[RETRY_AFTER]), (429, &HeaderValue::from_static("9")));
    assert_eq!(refused(Admission::Unavailable, &none).status.as_u16(), 503);
    let failing = refused(Admission::Taken, &Switches { error_text: Some("secret".into()), ..Switches::default() });
    assert_eq!(failing.status.as_u16(), 500);
    assert!(sent(&failing).contains("\"secret\""));
    let elsewhere =
        Switches { redirect: Some("https://elsewhere.test/".into()), set_cookie: true, ..Switches::default() };
    let moved = refused(Admission::Taken, &elsewhere);
    assert_eq!(
        (moved.status.as_u16(), &moved.headers[LOCATION]),
        (307, &HeaderValue::from_static("https://elsewhere.test/"))
    );
    assert!(moved.headers.contains_key(SET_COOKIE) && moved.headers.contains_key("postern-label"));
    for wrong in [json!({}), json!({"model": "m"}), json!({"model": "m", "messages": []}), json!({"messages": [{}]})] {
        assert_eq!(ask(&wrong, &none).status.as_u16(), 400, "{wrong}");
    }
}
