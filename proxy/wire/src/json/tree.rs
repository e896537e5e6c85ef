//! A JSON document in memory, as small as a request needs it: the members of an object stand in a list in their order, with
//! short keys in place, and are looked for one after the other. What has many members has an index, so that nobody makes us slow
//! by sending an object with a million.
//!
//! It has the names of `serde_json::Value`, whose objects hash each key with a keyed hash and hold it apart: with the few members
//! that messages and answers have, that was a fifteenth of what a request cost.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::{Index, IndexMut};

use compact_str::CompactString;
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};
pub use serde_json::Number;

/// The name of a member. Up to 24 bytes need no memory of their own.
pub type Key = CompactString;

/// Members from which on an object has an index.
const MANY: usize = 16;

static NULL: Value = Value::Null;

/// Any JSON value.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Value {
    /// `null`
    #[default]
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number: of 64 bits, or a double.
    Number(Number),
    /// A text.
    String(String),
    /// A list.
    Array(Vec<Value>),
    /// An object.
    Object(Map),
}

impl Value {
    /// The text, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// The truth value, if it is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The number, if it is a whole one from 0 on.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        if let Self::Number(number) = self { number.as_u64() } else { None }
    }

    /// The number as a double, if it is one.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        if let Self::Number(number) = self { number.as_f64() } else { None }
    }

    /// The list, if it is one.
    #[must_use]
    pub fn as_array(&self) -> Option<&Vec<Self>> {
        if let Self::Array(items) = self { Some(items) } else { None }
    }

    /// The same, to be changed.
    pub fn as_array_mut(&mut self) -> Option<&mut Vec<Self>> {
        if let Self::Array(items) = self { Some(items) } else { None }
    }

    /// The object, if it is one.
    #[must_use]
    pub fn as_object(&self) -> Option<&Map> {
        if let Self::Object(members) = self { Some(members) } else { None }
    }

    /// The same, to be changed.
    pub fn as_object_mut(&mut self) -> Option<&mut Map> {
        if let Self::Object(members) = self { Some(members) } else { None }
    }

    /// Is it `null`?
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Is it a number?
    #[must_use]
    pub fn is_number(&self) -> bool {
        matches!(self, Self::Number(_))
    }

    /// Is it a text?
    #[must_use]
    pub fn is_string(&self) -> bool {
        matches!(self, Self::String(_))
    }

    /// Is it a list?
    #[must_use]
    pub fn is_array(&self) -> bool {
        matches!(self, Self::Array(_))
    }

    /// Is it an object?
    #[must_use]
    pub fn is_object(&self) -> bool {
        matches!(self, Self::Object(_))
    }

    /// The member of an object, or the item of a list, if it is there.
    #[must_use]
    pub fn get(&self, at: impl At) -> Option<&Self> {
        at.of(self)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, at: impl At) -> Option<&mut Self> {
        at.of_mut(self)
    }

    /// What stands at a JSON pointer of plain names (RFC 6901, without its escapes).
    #[must_use]
    pub fn pointer(&self, pointer: &str) -> Option<&Self> {
        pointer.split('/').skip(1).try_fold(self, |value, name| match value {
            Self::Array(items) => items.get(name.parse::<usize>().ok()?),
            _ => value.get(name),
        })
    }

    /// The same, to be changed.
    pub fn pointer_mut(&mut self, pointer: &str) -> Option<&mut Self> {
        pointer.split('/').skip(1).try_fold(self, |value, name| match value {
            Self::Array(items) => items.get_mut(name.parse::<usize>().ok()?),
            _ => value.get_mut(name),
        })
    }

    /// Leaves `null` in its place.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

/// Where in a value another one stands.
pub trait At {
    /// It, if it is there.
    fn of(self, value: &Value) -> Option<&Value>;
    /// The same, to be changed.
    fn of_mut(self, value: &mut Value) -> Option<&mut Value>;
}

impl At for &str {
    fn of(self, value: &Value) -> Option<&Value> {
        value.as_object()?.get(self)
    }

    fn of_mut(self, value: &mut Value) -> Option<&mut Value> {
        value.as_object_mut()?.get_mut(self)
    }
}

impl At for usize {
    fn of(self, value: &Value) -> Option<&Value> {
        value.as_array()?.get(self)
    }

    fn of_mut(self, value: &mut Value) -> Option<&mut Value> {
        value.as_array_mut()?.get_mut(self)
    }
}

/// `null` for what is not there.
impl<A: At> Index<A> for Value {
    type Output = Self;

    fn index(&self, at: A) -> &Self {
        at.of(self).unwrap_or(&NULL)
    }
}

/// A member that is not there is made, and what is no object becomes one.
impl IndexMut<&str> for Value {
    fn index_mut(&mut self, name: &str) -> &mut Self {
        if !self.is_object() {
            *self = Self::Object(Map::new());
        }
        match self {
            Self::Object(members) => members.entry(name).or_insert(Self::Null),
            // It was made one.
            other => other,
        }
    }
}

/// An item that is not there is made, with those before it, and what is no list becomes one: for tests, which know their lists.
impl IndexMut<usize> for Value {
    fn index_mut(&mut self, at: usize) -> &mut Self {
        if !self.is_array() {
            *self = Self::Array(Vec::new());
        }
        match self {
            Self::Array(items) => {
                if items.len() <= at {
                    items.resize(at + 1, Self::Null);
                }
                #[expect(clippy::indexing_slicing, reason = "the list has that many")]
                &mut items[at]
            }
            // It was made one.
            other => other,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(std::str::from_utf8(&super::write::written(self)).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(items) => serializer.collect_seq(items),
            Self::Object(members) => members.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_json::Value::deserialize(deserializer).map(Self::from)
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => Self::Number(number),
            serde_json::Value::String(text) => Self::String(text),
            serde_json::Value::Array(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(members) => {
                Self::Object(members.into_iter().map(|(name, value)| (name, Self::from(value))).collect())
            }
        }
    }
}

impl From<Value> for serde_json::Value {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => Self::Number(number),
            Value::String(text) => Self::String(text),
            Value::Array(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            Value::Object(members) => {
                Self::Object(members.into_iter().map(|(name, value)| (name.into_string(), Self::from(value))).collect())
            }
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<Vec<Self>> for Value {
    fn from(items: Vec<Self>) -> Self {
        Self::Array(items)
    }
}

impl From<Map> for Value {
    fn from(members: Map) -> Self {
        Self::Object(members)
    }
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl From<$number> for Value {
            fn from(number: $number) -> Self {
                Self::Number(number.into())
            }
        }

        impl PartialEq<$number> for Value {
            fn eq(&self, other: &$number) -> bool {
                matches!(self, Self::Number(number) if *number == Number::from(*other))
            }
        }
    )*};
}
numbers!(i32 i64 u32 u64 usize);

impl PartialEq<str> for Value {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == Some(other)
    }
}

impl PartialEq<&str> for Value {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == Some(*other)
    }
}

impl PartialEq<String> for Value {
    fn eq(&self, other: &String) -> bool {
        self.as_str() == Some(other)
    }
}

impl PartialEq<bool> for Value {
    fn eq(&self, other: &bool) -> bool {
        self.as_bool() == Some(*other)
    }
}

/// The members of an object, in their order, each name once.
#[derive(Clone, Default)]
pub struct Map {
    members: Vec<(Key, Value)>,
    /// Where they stand, if there are more than [`MANY`].
    index: Option<Box<Places>>,
}

/// By the keyed hashes of their names, which are held once.
#[derive(Clone, Default)]
struct Places {
    hasher: RandomState,
    /// Of several with one hash, the first.
    by_hash: HashMap<u64, usize>,
}

impl Places {
    fn note(&mut self, name: &str, at: usize) {
        self.by_hash.entry(self.hasher.hash_one(name)).or_insert(at);
    }
}

impl Map {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { members: Vec::new(), index: None }
    }

    /// How many members it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Has it none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn place(&self, name: &str) -> Option<usize> {
        let look_through = || self.members.iter().position(|(key, _)| key == name);
        let Some(index) = &self.index else { return look_through() };
        let at = *index.by_hash.get(&index.hasher.hash_one(name))?;
        match self.members.get(at) {
            Some((key, _)) if key == name => Some(at),
            // Another name has its hash, which nobody can bring about.
            _ => look_through(),
        }
    }

    /// The member of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(self.place(name)?).map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        let at = self.place(name)?;
        self.members.get_mut(at).map(|(_, value)| value)
    }

    /// Has it a member of that name?
    #[must_use]
    pub fn contains_key(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    /// Sets a member, and returns what it was. A new one is the last.
    pub fn insert(&mut self, name: impl Into<Key>, value: Value) -> Option<Value> {
        let name = name.into();
        if let Some(begun) = self.get_mut(&name) {
            return Some(std::mem::replace(begun, value));
        }
        self.push(name, value);
        None
    }

    /// Adds a member whose name is not there yet.
    pub(super) fn push(&mut self, name: Key, value: Value) {
        if let Some(index) = &mut self.index {
            index.note(&name, self.members.len());
        }
        self.members.push((name, value));
        if self.index.is_none() && self.members.len() > MANY {
            self.index_all();
        }
    }

    fn index_anew(&mut self) {
        if self.index.take().is_some() && self.members.len() > MANY {
            self.index_all();
        }
    }

    fn index_all(&mut self) {
        let mut places = Box::<Places>::default();
        self.members.iter().enumerate().for_each(|(at, (name, _))| places.note(name, at));
        self.index = Some(places);
    }

    /// Takes a member out. The others keep their order; in a large object that takes as long as to go through it.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        let at = self.place(name)?;
        let (_, value) = self.members.remove(at);
        self.index_anew();
        Some(value)
    }

    /// Keeps the members for which `is_kept` says so.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&str, &mut Value) -> bool) {
        self.members.retain_mut(|(name, value)| is_kept(name, value));
        self.index_anew();
    }

    /// The place of a member, which may be empty.
    pub fn entry(&mut self, name: impl Into<Key>) -> Entry<'_> {
        Entry { map: self, name: name.into() }
    }

    /// The members in their order.
    pub fn iter(&self) -> Iter<'_> {
        let split: for<'a> fn(&'a (Key, Value)) -> (&'a str, &'a Value) = |(name, value)| (name, value);
        self.members.iter().map(split)
    }

    /// The same; values may be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Value)> {
        self.members.iter_mut().map(|(name, value)| (name.as_str(), value))
    }

    /// The names in their order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|(name, _)| name.as_str())
    }

    /// The values in their order.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.members.iter().map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        self.members.iter_mut().map(|(_, value)| value)
    }
}

/// The members of an object in their order.
pub type Iter<'a> = std::iter::Map<std::slice::Iter<'a, (Key, Value)>, fn(&'a (Key, Value)) -> (&'a str, &'a Value)>;

/// The place of a member, which may be empty.
#[derive(Debug)]
pub struct Entry<'a> {
    map: &'a mut Map,
    name: Key,
}

impl<'a> Entry<'a> {
    /// What is there, or `value`, which is put there.
    pub fn or_insert(self, value: Value) -> &'a mut Value {
        self.or_insert_with(|| value)
    }

    /// What is there, or what `make` makes.
    pub fn or_insert_with(self, make: impl FnOnce() -> Value) -> &'a mut Value {
        let Self { map, name } = self;
        let at = map.place(&name).unwrap_or_else(|| {
            map.push(name, make());
            map.members.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "the place of a member that was found or added")]
        &mut map.members[at].1
    }
}

/// In whatever order.
impl PartialEq for Map {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(name, value)| other.get(name) == Some(value))
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self).finish()
    }
}

impl Serialize for Map {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<K: Into<Key>> FromIterator<(K, Value)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(members: I) -> Self {
        let mut map = Self::new();
        map.extend(members);
        map
    }
}

impl<K: Into<Key>> Extend<(K, Value)> for Map {
    fn extend<I: IntoIterator<Item = (K, Value)>>(&mut self, members: I) {
        for (name, value) in members {
            self.insert(name, value);
        }
    }
}

impl IntoIterator for Map {
    type Item = (Key, Value);
    type IntoIter = std::vec::IntoIter<(Key, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.members.into_iter()
    }
}

impl<'a> IntoIterator for &'a Map {
    type Item = (&'a str, &'a Value);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// `postern_wire::json::json!`: a [`Value`] as it is written in JSON, with expressions in it. For what is made seldom, and tests.
#[doc(hidden)]
#[macro_export]
macro_rules! __json_of {
    ($($json:tt)+) => { $crate::json::Value::from($crate::json::serde_json::json!($($json)+)) };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json::{json, written};

    #[test]
    fn a_value_is_small() {
        assert_eq!((size_of::<Value>(), size_of::<(Key, Value)>()), (32, 56));
    }

    #[test]
    fn members_keep_their_order_when_others_go() {
        let mut map = Map::from_iter(["d", "a", "c", "b"].map(|name| (name, Value::from(name))));
        assert_eq!(map.remove("a"), Some(Value::from("a")));
        assert_eq!(map.insert("c", Value::Null), Some(Value::from("c")));
        map.insert("a", Value::from(1_u64));
        assert_eq!(written(&map), br#"{"d":"d","c":null,"b":"b","a":1}"#);
        map.retain(|name, _| name != "d");
        assert_eq!((map.get("d"), map.get("b"), map.len()), (None, Some(&Value::from("b")), 3));
    }

    #[test]
    fn equal_whatever_the_order() {
        assert_eq!(json!({"a": 1, "b": [2]}), json!({"b": [2], "a": 1}));
        assert_ne!(json!({"a": 1, "b": 2}), json!({"a": 1, "c": 2}));
        assert_ne!(json!({"a": 1}), json!({"a": 1, "b": 2}));
    }

    #[test]
    fn what_is_not_there_is_null_and_is_made_when_it_is_set() {
        let mut value = json!({"a": [{"b": 1}]});
        assert_eq!((&value["x"]["y"][3], &value["a"][0]["b"]), (&Value::Null, &Value::from(1)));
        assert_eq!((value.pointer("/a/0/b"), value.pointer("/a/1/b")), (Some(&Value::from(1)), None));
        value["a"][1]["c"] = Value::from(true);
        assert_eq!(value, json!({"a": [{"b": 1}, {"c": true}]}));
    }

    #[test]
    fn names_that_share_a_hash_are_told_apart() {
        let mut map: Map = (0..20_u64).map(|number| (number.to_string(), Value::from(number))).collect();
        let index = map.index.as_mut().unwrap();
        let (three, seven) = (index.hasher.hash_one("3"), index.hasher.hash_one("7"));
        index.by_hash.insert(seven, index.by_hash[&three]);
        assert_eq!((map.get("3"), map.get("7")), (Some(&Value::from(3)), Some(&Value::from(7))));
        assert_eq!(map.remove("7"), Some(Value::from(7)));
        assert_eq!((map.get("7"), map.len()), (None, 19));
    }

    /// What may be done with an object.
    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8, u64),
        Remove(u8),
        Retain(u8),
        Entry(u8, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..60_u8, any::<u64>()).prop_map(|(name, value)| Step::Insert(name, value)),
            2 => (0..60_u8).prop_map(Step::Remove),
            1 => (0..60_u8).prop_map(Step::Retain),
            2 => (0..60_u8, any::<u64>()).prop_map(|(name, value)| Step::Entry(name, value)),
        ]
    }

    proptest! {
        /// With an index or without, it is a list of pairs.
        #[test]
        fn it_is_what_a_list_would_be(steps in prop::collection::vec(step(), 0..200)) {
            let (mut map, mut list) = (Map::new(), Vec::<(String, Value)>::new());
            // Some names are longer than what stands in place.
            let name = |number: u8| format!("{}{number}", "x".repeat(usize::from(number)));
            for step in steps {
                match step {
                    Step::Insert(number, value) => {
                        map.insert(name(number), Value::from(value));
                        match list.iter_mut().find(|(key, _)| *key == name(number)) {
                            Some((_, begun)) => *begun = Value::from(value),
                            None => list.push((name(number), Value::from(value))),
                        }
                    }
                    Step::Remove(number) => {
                        let at = list.iter().position(|(key, _)| *key == name(number));
                        prop_assert_eq!(map.remove(&name(number)), at.map(|at| list.remove(at).1));
                    }
                    Step::Retain(number) => {
                        map.retain(|key, _| key.len() % 7 != usize::from(number % 7));
                        list.retain(|(key, _)| key.len() % 7 != usize::from(number % 7));
                    }
                    Step::Entry(number, value) => {
                        let was = list.iter().find(|(key, _)| *key == name(number)).map(|(_, value)| value.clone());
                        let now = map.entry(name(number)).or_insert(Value::from(value)).clone();
                        prop_assert_eq!(&now, &was.clone().unwrap_or_else(|| Value::from(value)));
                        if was.is_none() {
                            list.push((name(number), now));
                        }
                    }
                }
                let same = map.iter().eq(list.iter().map(|(key, value)| (key.as_str(), value)));
                prop_assert!(same, "{:?} {:?}", map, list);
                prop_assert!(list.iter().all(|(key, value)| map.get(key) == Some(value)));
                prop_assert_eq!(map.index.is_some(), map.len() > MANY);
            }
        }
    }
}
