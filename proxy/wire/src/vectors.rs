//! The answer to a request for vectors. It comes from a stranger: as many vectors as there were texts, of one length, of
//! finite numbers, within bounds; nothing else of it is kept.
//!
//! Between reading and writing a vector is base64 of little-endian 32-bit floats, which is what models compute and the most
//! compact form that a tree of JSON can hold.

use std::fmt;

use crate::json::{Map, Value, json};
use data_encoding::BASE64;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};

use crate::embeddings::{EmbeddingsRequest, MAX_DIMENSIONS};

/// Bytes of an answer that are not of a vector.
const BESIDE_BYTES: usize = 64 << 10;
/// Bytes of one vector: a number of a double has 24 of them at most, and a comma.
const VECTOR_BYTES: usize = 25 * MAX_DIMENSIONS;
/// Bytes of any answer.
const ANSWER_BYTES: usize = 64 << 20;
/// Beyond that an answer is a large one.
const LARGE_BYTES: usize = 8 << 20;
/// Bytes of one number.
const FLOAT_BYTES: usize = 4;

/// An answer that is not one. Holds nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an answer with the vectors that were asked for")]
pub struct Malformed;

/// What an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// As many vectors.
    pub texts: usize,
    /// Of as many numbers, if that was asked for.
    pub dimensions: Option<usize>,
}

impl From<&EmbeddingsRequest> for Wanted {
    fn from(request: &EmbeddingsRequest) -> Self {
        Self { texts: request.texts, dimensions: request.dimensions }
    }
}

impl Wanted {
    /// Bytes of the longest answer that is read.
    #[must_use]
    pub fn max_bytes(self) -> usize {
        self.texts.saturating_mul(VECTOR_BYTES).saturating_add(BESIDE_BYTES).min(ANSWER_BYTES)
    }

    /// Could a good answer be longer than that?
    #[must_use]
    pub fn is_bounded(self) -> bool {
        self.max_bytes() == ANSWER_BYTES
    }

    /// Is it so much that only a few should be held at a time?
    #[must_use]
    pub fn is_large(self) -> bool {
        self.max_bytes() > LARGE_BYTES
    }

    /// Reads an answer: `{"data": [base64, …], "usage": {…}}`, in the order of the texts.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(self, bytes: &[u8]) -> Result<Value, Malformed> {
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let answer = Answer { texts: self.texts }.deserialize(&mut reader).map_err(|_| Malformed)?;
        reader.end().map_err(|_| Malformed)?;
        let mut placed: Vec<Option<Vec<f32>>> = vec![None; self.texts];
        for (position, item) in answer.data.into_iter().enumerate() {
            let index = item.index.map_or(Some(position), |index| usize::try_from(index).ok()).ok_or(Malformed)?;
            let place = placed.get_mut(index).filter(|place| place.is_none()).ok_or(Malformed)?;
            *place = Some(item.embedding.0);
        }
        let vectors = placed.into_iter().collect::<Option<Vec<_>>>().ok_or(Malformed)?;
        let length = self.dimensions.or(vectors.first().map(Vec::len)).ok_or(Malformed)?;
        let good = |vector: &Vec<f32>| vector.len() == length && vector.iter().all(|number| number.is_finite());
        if length == 0 || !vectors.iter().all(good) {
            return Err(Malformed);
        }
        // Each is let go as soon as it is packed.
        let data = vectors.into_iter().map(|vector| Value::String(packed(&vector))).collect();
        let mut read = Map::from_iter([("data", Value::Array(data))]);
        if let Some((prompt, total)) = answer.usage {
            read.insert("usage", json!({"prompt_tokens": prompt, "total_tokens": total}));
        }
        Ok(Value::Object(read))
    }
}

/// Writes what was read in the shape of the API, under the name of a model.
#[must_use]
pub fn write(read: &Value, model: &str, base64: bool) -> Vec<u8> {
    let mut out = br#"{"object":"list","data":["#.to_vec();
    let vectors = read.get("data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (index, vector) in vectors.iter().filter_map(Value::as_str).enumerate() {
        let comma = if index == 0 { "" } else { "," };
        out.extend_from_slice(format!(r#"{comma}{{"object":"embedding","index":{index},"embedding":"#).as_bytes());
        if base64 {
            out.extend_from_slice(format!("\"{vector}\"").as_bytes());
        } else {
            // Written as 32-bit floats: with the fewest digits that mean the same.
            out.extend_from_slice(&serde_json::to_vec(&unpacked(vector).unwrap_or_default()).unwrap_or_default());
        }
        out.push(b'}');
    }
    out.extend_from_slice(format!(r#"],"model":{}"#, Value::from(model)).as_bytes());
    if let Some(usage) = read.get("usage") {
        out.extend_from_slice(format!(r#","usage":{usage}"#).as_bytes());
    }
    out.push(b'}');
    out
}

fn packed(vector: &[f32]) -> String {
    BASE64.encode(&vector.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())
}

fn unpacked(text: &str) -> Option<Vec<f32>> {
    let bytes = BASE64.decode(text.as_bytes()).ok()?;
    let (numbers, rest) = bytes.as_chunks::<FLOAT_BYTES>();
    (rest.is_empty() && numbers.len() <= MAX_DIMENSIONS)
        .then(|| numbers.iter().map(|number| f32::from_le_bytes(*number)).collect())
}

/// Reads the parts of an answer that matter, and stops where there are too many.
struct Answer {
    texts: usize,
}

struct Parts {
    data: Vec<Item>,
    usage: Option<(u64, u64)>,
}

impl<'de> DeserializeSeed<'de> for Answer {
    type Value = Parts;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parts, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Answer {
    type Value = Parts;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an answer with vectors")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Parts, A::Error> {
        let (mut data, mut usage) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "data" if data.is_none() => data = Some(map.next_value_seed(Items { most: self.texts })?),
                "usage" if usage.is_none() => usage = Some(map.next_value::<Option<Usage>>()?),
                // An error that comes with status 200; and what stands twice could be read in two ways.
                "error" if map.next_value::<Option<IgnoredAny>>()?.is_none() => {}
                "data" | "usage" | "error" => return Err(A::Error::custom("refused")),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        // All tokens are of the prompt, so some servers count them once.
        let usage = usage.flatten().and_then(|usage: Usage| {
            let prompt = usage.prompt_tokens.or(usage.total_tokens)?;
            Some((prompt, usage.total_tokens.unwrap_or(prompt)))
        });
        Ok(Parts { data: data.ok_or_else(|| A::Error::missing_field("data"))?, usage })
    }
}

#[derive(serde::Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    total_tokens: Option<u64>,
}

struct Items {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<Item>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Item>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<Item>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} vectors", self.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Item>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            if items.len() == self.most {
                return Err(A::Error::custom("too many"));
            }
            items.push(item);
        }
        Ok(items)
    }
}

#[derive(serde::Deserialize)]
struct Item {
    index: Option<u64>,
    embedding: Vector,
}

/// Numbers, or base64 of them.
struct Vector(Vec<f32>);

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl<'de> Visitor<'de> for Numbers {
            type Value = Vector;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("numbers, or base64")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vector, E> {
                unpacked(text).map(Vector).ok_or_else(|| E::custom("not base64 of floats"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vector, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = seq.next_element::<f64>()? {
                    if numbers.len() == MAX_DIMENSIONS {
                        return Err(A::Error::custom("too many"));
                    }
                    numbers.push(number as f32);
                }
                Ok(Vector(numbers))
            }
        }
        deserializer.deserialize_any(Numbers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO: Wanted = Wanted { texts: 2, dimensions: None };

    fn answer(vectors: &[Value]) -> Value {
        let data = vectors.iter().enumerate();
        let data: Vec<Value> =
            data.map(|(index, vector)| json!({"object": "embedding", "index": index, "embedding": vector})).collect();
        json!({"object": "list", "data": data, "model": "theirs", "usage": {"prompt_tokens": 7, "total_tokens": 7}})
    }

    fn read(wanted: Wanted, answer: &Value) -> Result<Value, Malformed> {
        wanted.read(answer.to_string().as_bytes())
    }

    fn written(read: &Value, base64: bool) -> Value {
        serde_json::from_slice(&write(read, "ours", base64)).unwrap()
    }

    #[test]
    fn numbers_and_base64_are_the_same_and_come_out_as_asked() {
        let numbers = answer(&[json!([0.5, -1, 0.002_306_425_5]), json!([1e-3, 2.0, 3])]);
        let kept = read(TWO, &numbers).unwrap();
        let floats = written(&kept, false);
        assert_eq!(floats["data"][0]["embedding"], json!([0.5, -1.0, 0.002_306_425_5]));
        assert_eq!(
            (&floats["model"], &floats["object"], &floats["data"][1]["index"]),
            (&json!("ours"), &json!("list"), &json!(1))
        );
        assert_eq!(floats["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}));
        let packed = written(&kept, true);
        assert_eq!(packed["data"][0]["embedding"], kept["data"][0]);
        assert_eq!(read(TWO, &packed).unwrap(), kept);
    }

    #[test]
    fn vectors_are_put_into_the_order_of_the_texts_and_nothing_else_is_kept() {
        let mut turned = answer(&[json!([1.0]), json!([2.0])]);
        turned["data"][0]["index"] = json!(1);
        turned["data"][1]["index"] = json!(0);
        turned["set_cookie"] = json!("no");
        turned["data"][0]["note"] = json!("no");
        let floats = written(&read(TWO, &turned).unwrap(), false);
        assert_eq!([&floats["data"][0]["embedding"], &floats["data"][1]["embedding"]], [&json!([2.0]), &json!([1.0])]);
        assert!(!floats.to_string().contains("no"), "{floats}");
        turned["usage"] = json!({"total_tokens": 9});
        assert_eq!(read(TWO, &turned).unwrap()["usage"], json!({"prompt_tokens": 9, "total_tokens": 9}));
        let bare = json!({"data": [{"embedding": [1.0]}, {"embedding": [2.0]}], "usage": {}});
        let floats = written(&read(TWO, &bare).unwrap(), false);
        assert_eq!((&floats["data"][1]["index"], floats.get("usage")), (&json!(1), None));
    }

    #[test]
    fn an_answer_that_was_not_asked_for_is_refused() {
        let good = [json!([1.0, 2.0]), json!([3.0, 4.0])];
        assert!(read(TWO, &answer(&good)).is_ok());
        assert!(read(Wanted { texts: 2, dimensions: Some(2) }, &answer(&good)).is_ok());
        assert!(read(Wanted { texts: 2, dimensions: Some(3) }, &answer(&good)).is_err(), "other dimensions");
        for vectors in [
            &good[..1],
            &[good[0].clone(), good[1].clone(), good[1].clone()],
            &[good[0].clone(), json!([1.0])],
            &[good[0].clone(), json!([1.0, null])],
            &[good[0].clone(), json!([1.0, "2"])],
            &[good[0].clone(), json!([1.0, 1e39])],
            &[good[0].clone(), json!("!!!!")],
            &[good[0].clone(), json!("AAAA")],
            &[good[0].clone(), json!(BASE64.encode(&[0, 0, 0, 0, 0, 0, 192, 127]))],
            &[good[0].clone(), json!(null)],
            &[json!([]), json!([])],
            &[json!(vec![0.0; MAX_DIMENSIONS + 1]), json!(vec![0.0; MAX_DIMENSIONS + 1])],
        ] {
            assert_eq!(read(TWO, &answer(vectors)), Err(Malformed), "{vectors:?}");
        }
        let mut twice = answer(&good);
        twice["data"][1]["index"] = json!(0);
        assert!(read(TWO, &twice).is_err());
        twice["data"][1]["index"] = json!(2);
        assert!(read(TWO, &twice).is_err());
        let mut failed = answer(&good);
        failed["error"] = json!({"message": "m"});
        assert!(read(TWO, &failed).is_err());
        failed["error"] = Value::Null;
        assert!(read(TWO, &failed).is_ok());
        for text in [
            "",
            "[]",
            "{}",
            r#"{"data":{}}"#,
            r#"{"data":[{"embedding":[1]},{"embedding":[2]}],"data":[{"embedding":[3]},{"embedding":[4]}]}"#,
            r#"{"data":[{"embedding":[1],"embedding":[3]},{"embedding":[2]}]}"#,
            r#"{"data":[{"embedding":[1]},{"embedding":[1e999]}]}"#,
            r#"{"data":[{"embedding":[1]},{"embedding":[2]}]} "#,
        ] {
            let ends_well = text.ends_with(' ');
            assert_eq!(TWO.read(text.as_bytes()).is_ok(), ends_well, "{text}");
        }
    }

    #[test]
    fn the_bound_grows_with_the_texts_and_ends() {
        let bytes = |texts| Wanted { texts, dimensions: None }.max_bytes();
        assert!(bytes(1) < 512 << 10 && bytes(100) > 10 << 20);
        assert_eq!(bytes(2048), ANSWER_BYTES);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = TWO.read(&bytes);
        }

        #[test]
        fn every_float_comes_out_as_it_went_in(numbers in proptest::collection::vec(any::<f32>(), 1..20)) {
            let finite: Vec<f32> = numbers.into_iter().filter(|number| number.is_finite()).collect();
            prop_assume!(!finite.is_empty());
            let kept = read(Wanted { texts: 1, dimensions: None }, &answer(&[json!(finite)])).unwrap();
            let floats = written(&kept, false);
            let again: Vec<f32> = serde_json::from_value(floats["data"][0]["embedding"].clone().into()).unwrap();
            prop_assert_eq!(again, finite);
        }
    }
}
