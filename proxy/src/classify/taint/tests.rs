//! What requests are known by.

use postern_wire::call::{Call, Endpoint};
use postern_wire::json::{Value, json};

use super::traces::LINKS;
use super::*;
use crate::classify::label::Labels;
use crate::config::file::IdentityLimits;
use crate::request::{Marks, Peer};

struct Scene {
    taint: Taint,
    keys: Keys,
    low: Label,
    high: Label,
}

fn scene() -> Scene {
    let labels = Labels::new(["low", "high"].map(str::to_owned).to_vec()).unwrap();
    let (keys, rooms) = (Keys::random(), Rooms { of_identity: 10_000, keep: std::time::Duration::from_secs(60) });
    let taint = Taint { passages: Passages::new(&keys, &[]), held: Held::new(rooms), shared: None, goes_on: false };
    Scene { taint, keys, low: labels.lowest(), high: labels.highest() }
}

impl Scene {
    fn request(&self, id: &str, messages: &Value) -> ParsedRequest {
        let limits = IdentityLimits::default();
        let (floor, ceiling) = (self.low, self.high);
        let id = format!("spiffe://b.example/{id}").parse().unwrap();
        let peer = Peer { id, tenant: "t".into(), floor, ceiling, limits, tenant_limits: limits };
        let tree = json!({"model": "m", "messages": messages});
        let call = Call::from_json(Endpoint::Chat, tree, 5_000).unwrap();
        ParsedRequest { prompt_tokens: call.estimated_prompt_tokens(), peer, call, marks: Marks::default() }
    }

    async fn known(&self, id: &str, messages: &[Value]) -> Known {
        let request = self.request(id, &json!(messages));
        let who = Who::of(&self.keys, &request);
        self.taint.look(&who, &request, Conversation(rand::random())).await.1
    }

    async fn keep(&self, id: &str, messages: &[Value], marked: Option<Label>) {
        let request = self.request(id, &json!(messages));
        let who = Who::of(&self.keys, &request);
        let talk = Conversation([1; 32]);
        let (traces, known) = self.taint.look(&who, &request, talk).await;
        self.taint.keep(&who, (&request, talk), (traces, &known), (marked, self.high)).await.unwrap();
    }
}

fn says(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[tokio::test]
async fn a_conversation_is_known_without_its_beginning() {
    let scene = scene();
    let talk =
        [says("system", "Be brief."), says("user", "Where?"), says("assistant", "The harbour."), says("user", "When?")];
    scene.keep("amy", &talk, None).await;
    let goes_on = [says("assistant", "In spring."), says("user", "And then?")];
    let known = async |id: &str, messages: &[Value]| scene.known(id, messages).await.talk;
    assert_eq!(known("amy", &[&talk[2..], &goes_on].concat()).await, Some(scene.high), "the beginning was left out");
    let other = [says("system", "Be brief. It is 12:04."), talk[1].clone(), talk[2].clone(), says("user", "Why?")];
    assert_eq!(known("amy", &other).await, Some(scene.high), "another system prompt");
    assert_eq!(known("bo", &talk).await, None, "somebody else's");
    assert_eq!(known("amy", &[&talk[..2], &goes_on].concat()).await, Some(scene.high), "it begins in the same way");
    let aside = [says("user", "Who?"), talk[1].clone(), goes_on[0].clone(), goes_on[1].clone()];
    assert_eq!(known("amy", &aside).await, None, "the same question in another conversation");
    let split = [says("user", "Where?"), says("system", "Careful."), says("assistant", "The harbour.")];
    assert_eq!(known("amy", &split).await, Some(scene.high), "instructions in between");
}

#[tokio::test]
async fn what_a_program_says_in_each_request_marks_none_but_is_looked_at() {
    let scene = scene();
    let long = |word: &str| format!("{word} ").repeat(40);
    scene
        .keep(
            "amy",
            &[says("system", &long("program")), says("user", &long("letter")), says("tool", &long("file"))],
            Some(scene.high),
        )
        .await;
    for (role, word, is_known) in
        [("user", "program", false), ("user", "letter", true), ("system", "letter", true), ("assistant", "file", true)]
    {
        let known = scene.known("bo", &[says(role, &long(word))]).await.texts;
        assert_eq!(known.is_some(), is_known, "{role} {word}");
    }
}

#[tokio::test]
async fn a_long_request_leaves_its_last_links_only() {
    let scene = scene();
    let turns: Vec<Value> = (0..2_000).map(|n| says("user", &n.to_string())).collect();
    let of = |turns: &[Value]| {
        let request = scene.request("amy", &json!(turns));
        let who = Who::of(&scene.keys, &request);
        scene.taint.traces(&who, &request, Conversation([0; 32])).talk
    };
    // And two for where it begins.
    assert_eq!(of(&turns).len(), LINKS + 2);
    assert_eq!(of(&turns)[..LINKS], of(&turns[1_000..])[..LINKS]);
    assert_eq!((of(&turns[..1]).len(), of(&turns[..2]).len()), (2, 3));
}
