//! Values in arguments of tools: for those that the configuration lists, whoever asks and however the answer comes.

use anyhow::Result;
use postern_tests::{BusyCloud, Client, Config, Event, Postern, chat_body};
use serde_json::{Value, json};

use crate::{SOON, config};

/// A name that would break JSON if it were put in as it is.
const CUSTOMER: &str = "Blue \"Heron\" \\ Sons";

fn listing(cloud: &BusyCloud, tools: &[&str]) -> Config {
    config(cloud)
        .set("/policies/1/config/words", json!({"customer": [CUSTOMER, "Globex"]}))
        .set("/answers", json!({"restore_arguments": tools}))
}

fn event(index: u64, delta: Value, finish: Value) -> String {
    let choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish});
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]});
    format!("data: {chunk}\n\n")
}

/// A stream of two choices, each with two calls at once, whose arguments come in pieces of so many characters, in turns.
fn calls(arguments: &str, size: usize) -> String {
    let call = |number: u64, more: Value| {
        let mut call = json!({"index": number});
        call.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"tool_calls": [call]})
    };
    let all = || [0, 1].into_iter().flat_map(|choice| [(choice, 0, "send_mail"), (choice, 1, "web_search")]);
    let mut ending = String::new();
    for (choice, number, name) in all() {
        let begun =
            json!({"id": format!("call_{number}"), "type": "function", "function": {"name": name, "arguments": ""}});
        ending += &event(choice, call(number, begun), Value::Null);
    }
    let characters: Vec<char> = arguments.chars().collect();
    for piece in characters.chunks(size) {
        let piece: String = piece.iter().collect();
        for (choice, number, _) in all() {
            ending += &event(choice, call(number, json!({"function": {"arguments": piece}})), Value::Null);
        }
    }
    for choice in [0, 1] {
        ending += &event(choice, json!({}), json!("tool_calls"));
    }
    ending + "data: [DONE]\n\n"
}

/// The arguments of a call, put together as clients do it.
fn arguments(events: &[Event], choice: u64, number: u64) -> String {
    let mut all = String::new();
    for event in events.iter().filter(|event| !event.is_done()) {
        let event = event.json();
        for part in event["choices"].as_array().into_iter().flatten().filter(|part| part["index"] == choice) {
            let calls = part["delta"]["tool_calls"].as_array().into_iter().flatten();
            let pieces = calls.filter(|call| call["index"] == number);
            all.extend(pieces.filter_map(|call| call["function"]["arguments"].as_str().map(str::to_owned)));
        }
    }
    all
}

fn asked(n: usize, mail: &str, customer: &str) -> Value {
    let mut body = chat_body(&format!("{n}: write to {mail} of {customer}"));
    body["n"] = json!(2);
    body["tools"] = json!([{"type": "function", "function": {"name": "send_mail", "parameters": {"type": "object"}}}]);
    body
}

fn mail(to: &str, of: &str) -> Value {
    json!({"to": [to], of: {"note": format!("é: {of}\n"), "n": 1.5}, "link": format!("https://e.example/?q={to}")})
}

/// What stands for a value in this conversation.
async fn placeholders(client: &Client, cloud: &BusyCloud, mail: &str, customer: &str) -> Result<[String; 2]> {
    let n = cloud.stats().await?.requests;
    client.chat(&format!("{n}: {mail} {customer}")).await?;
    let stats = serde_json::to_value(cloud.stats().await?)?;
    let seen = stats["bodies"].as_array().and_then(|bodies| bodies.last()).map(Value::to_string).unwrap_or_default();
    let one = |kind: &str| {
        let at = seen.find(&format!("[{kind}_")).unwrap();
        seen[at..].split_inclusive(']').next().unwrap().to_owned()
    };
    Ok([one("EMAIL"), one("CUSTOMER")])
}

fn only_the_link_is_masked(written: &str, placeholder: &str, wanted: &Value) -> Result<()> {
    let mut read: Value = serde_json::from_str(written)?;
    assert_eq!(read["link"], format!("https://e.example/?q={placeholder}"), "not into an address");
    read["link"] = wanted["link"].clone();
    assert_eq!(&read, wanted);
    Ok(())
}

#[tokio::test]
async fn a_tool_of_the_list_gets_the_values_and_no_other_does() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&listing(&cloud, &["send_*"])).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-conversation", "one");
    let [to, of] = placeholders(&client, &cloud, "ann@example.org", CUSTOMER).await?;
    let (masked, plain) = (mail(&to, &of), mail("ann@example.org", CUSTOMER));
    for (n, size) in [1, 3, 50, 5000].into_iter().enumerate() {
        cloud.switch(json!({"answer": "", "ending": calls(&masked.to_string(), size)})).await?;
        let mut stream = client.stream(&asked(n, "ann@example.org", CUSTOMER)).await?;
        let record = stream.header("postern-record").to_owned();
        let events = stream.rest().await?;
        assert!(events.last().unwrap().is_done(), "{events:?}");
        for choice in [0, 1] {
            only_the_link_is_masked(&arguments(&events, choice, 0), &to, &plain)?;
            assert_eq!(serde_json::from_str::<Value>(&arguments(&events, choice, 1))?, masked);
        }
        let outcome = postern.records().of(&record, SOON).await?.outcome;
        assert_eq!((&outcome["restored"], &outcome["restored_for_tools"]), (&json!(6), &json!({"send_*": 6})));
    }
    let call = |name: &str| json!({"id": name, "type": "function", "function": {"name": name, "arguments": masked.to_string()}});
    let message = json!({"role": "assistant", "content": null, "tool_calls": [call("web_search"), call("send_mail")]});
    cloud.switch(json!({"choice": {"message": message}, "finish_reason": "tool_calls"})).await?;
    let reply = client.post_json("/v1/chat/completions", &asked(9, "ann@example.org", CUSTOMER)).await?;
    let whole = reply.json()?;
    let given = |at: usize| whole["choices"][0]["message"]["tool_calls"][at]["function"]["arguments"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(given(0))?, masked);
    only_the_link_is_masked(given(1), &to, &plain)?;
    // The tool's result and the call that led to it mean the same to the model as before.
    let mut body = asked(9, "ann@example.org", CUSTOMER);
    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(whole["choices"][0]["message"].clone());
    messages.push(json!({"role": "tool", "tool_call_id": "send_mail", "content": "sent to ann@example.org"}));
    client.post_json("/v1/chat/completions", &body).await?;
    let stats = serde_json::to_value(cloud.stats().await?)?;
    let last = stats["bodies"].as_array().and_then(|bodies| bodies.last()).cloned().unwrap_or_default();
    let [_, .., before_last, result] = last["messages"].as_array().unwrap().as_slice() else { panic!("{last}") };
    assert_eq!(result["content"], format!("sent to {to}"));
    assert!(!before_last.to_string().contains("ann@") && before_last.to_string().contains(&to), "{before_last}");
    for text in [postern.records().text()?, postern.log()] {
        assert!(!text.contains("ann@example.org") && !text.contains("Heron"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn calls_of_tools_from_the_cache_and_of_others_get_everyones_own_values() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&listing(&cloud, &["send_mail"])).await?;
    let amy = postern.client("clerk/amy")?.with_header("postern-conversation", "amy");
    let bo = postern.client("clerk/bo")?.with_header("postern-conversation", "bo");
    let [to, of] = placeholders(&amy, &cloud, "ann@example.org", CUSTOMER).await?;
    let [bos_to, bos_of] = placeholders(&bo, &cloud, "bob@example.net", "Globex").await?;
    assert!(to != bos_to && of != bos_of);
    // The caching policy that comes along leaves requests with tools alone; without one they are kept.
    let asked = |mail: &str, customer: &str| {
        let mut body = asked(0, mail, customer);
        body.as_object_mut().unwrap().remove("tools");
        body
    };
    cloud.switch(json!({"answer": "Well. ", "chunk_chars": 1, "token_ms": 50, "ending": calls(&mail(&to, &of).to_string(), 3)})).await?;
    cloud.reset().await?;
    let mut first = amy.stream(&asked("ann@example.org", CUSTOMER)).await?;
    first.next().await?;
    let mut second = bo.stream(&asked("bob@example.net", "Globex")).await?;
    assert_eq!(second.header("postern-cache"), "shared");
    let (_, second) = tokio::try_join!(first.rest(), second.rest())?;
    let mut third = bo.stream(&asked("bob@example.net", "Globex")).await?;
    assert_eq!(third.header("postern-cache"), "exact");
    for events in [second, third.rest().await?] {
        only_the_link_is_masked(&arguments(&events, 1, 0), &bos_to, &mail("bob@example.net", "Globex"))?;
        assert_eq!(serde_json::from_str::<Value>(&arguments(&events, 0, 1))?, mail(&bos_to, &bos_of));
    }
    assert_eq!(cloud.stats().await?.requests, 1);
    Ok(())
}

#[tokio::test]
async fn a_target_that_renames_a_tool_half_way_is_not_believed() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&listing(&cloud, &["send_mail"])).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-conversation", "one");
    let [to, _] = placeholders(&client, &cloud, "ann@example.org", CUSTOMER).await?;
    let call = |name: &str, arguments: &str| {
        let function = json!({"name": name, "arguments": arguments});
        event(
            0,
            json!({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}),
            Value::Null,
        )
    };
    let ending = call("send_mail", "{\"a\":1,") + &call("_to_all", &format!("\"to\":\"{to}\"}}")) + "data: [DONE]\n\n";
    cloud.switch(json!({"answer": "", "ending": ending})).await?;
    let events = client.stream(&chat_body("Write to ann@example.org")).await?.rest().await?;
    assert_eq!(events.last().unwrap().error_code(), "stream_broken");
    assert!(!format!("{events:?}").contains("ann@example.org"));
    Ok(())
}

#[tokio::test]
async fn an_answer_that_must_be_json_stays_json_whatever_a_value_is() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&listing(&cloud, &[])).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-conversation", "one");
    let [to, of] = placeholders(&client, &cloud, "ann@example.org", CUSTOMER).await?;
    for chunk_chars in [1, 4, 1000] {
        cloud.switch(json!({"answer": mail(&to, &of).to_string(), "chunk_chars": chunk_chars})).await?;
        let mut body = chat_body(&format!("{chunk_chars}: mail ann@example.org of {CUSTOMER}"));
        body["response_format"] = json!({"type": "json_object"});
        let events = client.stream(&body).await?.rest().await?;
        let said = postern_tests::client::text(&events);
        only_the_link_is_masked(&said, &to, &mail("ann@example.org", CUSTOMER))?;
    }
    Ok(())
}

#[tokio::test]
async fn what_was_given_out_is_recorded_though_the_client_hangs_up() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&listing(&cloud, &["send_mail"])).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-conversation", "one");
    let [to, _] = placeholders(&client, &cloud, "ann@example.org", CUSTOMER).await?;
    let answer = format!("{to} {}", "and so on ".repeat(500));
    cloud.switch(json!({"answer": answer, "chunk_chars": 40, "token_ms": 200})).await?;
    let mut stream = client.stream(&chat_body("Write to ann@example.org")).await?;
    let record = stream.header("postern-record").to_owned();
    while !stream.next().await?.unwrap().delta().contains("ann@example.org") {}
    drop(stream);
    let outcome = postern.records().of(&record, SOON).await?.outcome;
    assert_eq!((&outcome["result"], &outcome["restored"]), (&json!("client_gone"), &json!(1)), "{outcome}");
    Ok(())
}
