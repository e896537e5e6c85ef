use proptest::prelude::*;

use super::*;

/// `weather(city)` and `now()`.
pub(crate) fn two_tools(choice: Value, parallel: bool) -> Tools {
    Tools::from_json(Some(&two_tools_json()), Some(&choice), Some(parallel)).unwrap().unwrap()
}

pub(crate) fn two_tools_json() -> Value {
    let city = json!({"type": "string", "maxLength": 12});
    let parameters = json!({
        "type": "object", "properties": {"city": city}, "required": ["city"], "additionalProperties": false,
    });
    json!([
        {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": parameters}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn refused(tools: &Value, choice: Option<Value>) -> (Option<String>, Option<&'static str>) {
    match Tools::from_json(Some(tools), choice.as_ref(), None).unwrap_err() {
        EngineError::Invalid { param, code, .. } => (param, code),
        other => panic!("{other}"),
    }
}

#[test]
fn wrong_tools_name_their_field() {
    let tool = |function: Value| json!([{"type": "function", "function": function}]);
    for (tools, param) in [
        (json!("x"), "tools"),
        (json!([7]), "tools[0].type"),
        (json!([{"type": "function"}]), "tools[0].function"),
        (tool(json!({})), "tools[0].function.name"),
        (tool(json!({"name": "a b"})), "tools[0].function.name"),
        (tool(json!({"name": "a\""})), "tools[0].function.name"),
        (tool(json!({"name": "a", "description": 1})), "tools[0].function.description"),
        (tool(json!({"name": "a", "parameters": []})), "tools[0].function.parameters"),
        (tool(json!({"name": "a", "parameters": {"type": "string"}})), "tools[0].function.parameters.type"),
        (tool(json!({"name": "a", "parameters": {"not": {}}})), "tools[0].function.parameters"),
        (json!(vec![two_tools_json()[1].clone(); 2]), "tools[1].function.name"),
        (json!(vec![json!({}); FUNCTIONS_MAX + 1]), "tools"),
    ] {
        assert_eq!(refused(&tools, None).0.as_deref(), Some(param), "{tools}");
    }
    assert_eq!(refused(&json!([{"type": "custom"}]), None).1, Some("unsupported_parameter"));
}

#[test]
fn a_choice_is_one_of_the_apis() {
    let tools = two_tools_json();
    let read = |choice: Value| Tools::from_json(Some(&tools), Some(&choice), None);
    assert!(read(json!("none")).unwrap().is_none());
    assert!(read(json!("auto")).unwrap().is_some());
    for wrong in [json!("any"), json!(7), json!({"type": "function", "function": {"name": "other"}})] {
        assert_eq!(refused(&tools, Some(wrong)), (Some("tool_choice".to_owned()), None));
    }
    assert_eq!(refused(&tools, Some(json!({"type": "allowed_tools"}))).1, Some("unsupported_parameter"));
    assert_eq!(refused(&json!([]), Some(json!("required"))).0.as_deref(), Some("tool_choice"));
    assert_eq!(Tools::from_json(None, None, None).unwrap(), None);
}

#[test]
fn the_model_hears_of_every_function() {
    let text = two_tools(json!("auto"), true).introduction();
    let told: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(told[0]["function"]["description"], "Tells the weather.");
    assert_eq!(told[0]["function"]["parameters"]["required"], json!(["city"]));
    assert_eq!(told[1]["function"]["name"], "now");
}

#[test]
fn a_written_call_is_what_the_reader_reads() {
    let text = format!("So.\n{}\n{}", written_call("weather", "{\"city\": \"}\\\"{\"}"), written_call("now", "{}"));
    let said = read(&[&text]);
    let name = |name: &str| name.to_owned();
    assert_eq!(
        said,
        [
            Said::Text("So.".to_owned()),
            Said::Call { index: 0, name: name("weather") },
            Said::Arguments { index: 0, text: "{\"city\": \"}\\\"{\"}".to_owned() },
            Said::Call { index: 1, name: name("now") },
            Said::Arguments { index: 1, text: "{}".to_owned() },
        ]
    );
}

#[test]
fn text_that_only_begins_like_a_call_is_text() {
    let (begin, end) = reader::marks();
    for text in ["a < b", "a <tool_", "a\n", end, begin.get(1..).unwrap()] {
        assert_eq!(read(&[text]), [Said::Text(text.to_owned())], "{text}");
    }
    assert_eq!(read(&["\n \n"]), []);
}

#[test]
fn a_call_that_was_cut_is_told_as_far_as_it_came() {
    assert_eq!(read(&["<tool_call>\n{\"name\": \"now\", \"argum"]), []);
    let said = read(&["<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": [1"]);
    assert_eq!(said.len(), 2);
    assert_eq!(said[1], Said::Arguments { index: 0, text: "{\"a\": [1".to_owned() });
}

#[test]
fn text_is_told_as_soon_as_it_can_be() {
    let mut reader = CallReader::default();
    assert_eq!(reader.push("one "), [Said::Text("one".to_owned())]);
    assert_eq!(reader.push("two<"), [Said::Text(" two".to_owned())]);
    assert_eq!(reader.push("3"), [Said::Text("<3".to_owned())]);
    assert_eq!(reader.calls(), 0);
}

/// All that is said, neighbours of one kind put together.
fn read(pieces: &[&str]) -> Vec<Said> {
    let mut reader = CallReader::default();
    let mut said: Vec<Said> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    said.extend(reader.finish());
    let mut whole: Vec<Said> = Vec::new();
    for part in said {
        match (whole.last_mut(), part) {
            (Some(Said::Text(text)), Said::Text(more)) => text.push_str(&more),
            (Some(Said::Arguments { text, .. }), Said::Arguments { text: more, .. }) => text.push_str(&more),
            (_, part) => whole.push(part),
        }
    }
    whole
}

proptest! {
    #[test]
    fn an_answer_cut_anywhere_is_read_the_same(
        text in "[a<> \\n]{0,12}", value in "[a}{\\\\\"\\[\\]é]{0,8}", calls in 0usize..3,
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let call = written_call("weather", &json!({"city": value}).to_string());
        let answer = format!("{text}{}", vec![call; calls].join("\n"));
        let mut borders: Vec<usize> = cuts.iter().map(|cut| cut.index(answer.len() + 1)).collect();
        borders.retain(|at| answer.is_char_boundary(*at));
        borders.extend([0, answer.len()]);
        borders.sort_unstable();
        let pieces: Vec<&str> = borders.windows(2).map(|pair| answer.get(pair[0]..pair[1]).unwrap()).collect();
        let said = read(&pieces);
        prop_assert_eq!(&said, &read(&[&answer]));
        let arguments = said.iter().filter_map(|part| match part {
            Said::Arguments { text, .. } => Some(serde_json::from_str::<Value>(text).unwrap()),
            _ => None,
        });
        prop_assert_eq!(arguments.collect::<Vec<_>>(), vec![json!({"city": value}); calls]);
    }
}
