//! Files of `torch.save`, as data: reading runs no code that a file names, and bounds its memory by the file's size; writing makes
//! what `torch.load(weights_only=True)` reads.
//!
//! No crate does: pytorch-reader 0.22 cannot open every eightieth file, by the length of its name (its zip archives' beginning is
//! searched for, see [`crate::fs::open_zip`]), takes gigabytes for a small hostile file and is silent about calls; serde-pickle 1.2
//! knows no storages, and candle's reader comes with candle.

mod machine;
mod objects;
mod pickle;
mod read;
mod tensors;
#[cfg(test)]
mod tests;
mod view;
mod write;

pub use read::{Checkpoint, Format};
pub use view::View;
pub use write::write;

use serde_json::json;
use std::fmt;
use tch::Kind;

/// Element types by the names of their storages and of the types themselves in torch.
const KINDS: [(&str, &str, Kind); 10] = [
    ("FloatStorage", "float32", Kind::Float),
    ("DoubleStorage", "float64", Kind::Double),
    ("HalfStorage", "float16", Kind::Half),
    ("BFloat16Storage", "bfloat16", Kind::BFloat16),
    ("LongStorage", "int64", Kind::Int64),
    ("IntStorage", "int32", Kind::Int),
    ("ShortStorage", "int16", Kind::Int16),
    ("CharStorage", "int8", Kind::Int8),
    ("ByteStorage", "uint8", Kind::Uint8),
    ("BoolStorage", "bool", Kind::Bool),
];

/// A Python value. `T` is a tensor: where it lies in a file that is read, itself where one is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<T> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A list, tuple, set or `torch.Size`.
    List(Vec<Value<T>>),
    /// In the file's order. Of equal keys the last one counts, as in Python.
    Dict(Vec<(Value<T>, Value<T>)>),
    Tensor(T),
    /// What is not read, by the name of its type.
    Opaque(String),
}

impl<T> Value<T> {
    pub fn dict<K: Into<String>>(entries: impl IntoIterator<Item = (K, Value<T>)>) -> Self {
        Value::Dict(entries.into_iter().map(|(key, value)| (Value::Text(key.into()), value)).collect())
    }

    /// The value under a key of a dictionary.
    pub fn get(&self, key: &str) -> Option<&Value<T>> {
        let Value::Dict(entries) = self else { return None };
        entries.iter().rev().find(|(name, _)| matches!(name, Value::Text(name) if name == key)).map(|(_, value)| value)
    }

    /// What a person would call it.
    pub fn kind(&self) -> &str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an int",
            Value::Float(_) => "a float",
            Value::Text(_) => "a str",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Tensor(_) => "a tensor",
            Value::Opaque(name) => name,
        }
    }

    /// Plain values as JSON; tensors and what is not read by their kind in words, floats that are not finite as null.
    pub fn json(&self) -> serde_json::Value {
        match self {
            Value::None => json!(null),
            Value::Bool(value) => json!(value),
            Value::Int(value) => json!(value),
            Value::Float(value) => json!(value),
            Value::Text(value) => json!(value),
            Value::List(values) => values.iter().map(Value::json).collect(),
            Value::Dict(entries) => entries.iter().map(|(key, value)| (key.to_string(), value.json())).collect(),
            Value::Tensor(_) | Value::Opaque(_) => json!(self.kind()),
        }
    }
}

impl<T> From<&serde_json::Value> for Value<T> {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match value {
            Json::Null => Value::None,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(value) => Value::Int(value),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Text(text.clone()),
            Json::Array(values) => Value::List(values.iter().map(Value::from).collect()),
            Json::Object(map) => Value::dict(map.iter().map(|(key, value)| (key, Value::from(value)))),
        }
    }
}

/// As the key of a dictionary.
impl<T> fmt::Display for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Value::Text(text) => f.write_str(text),
            Value::Int(value) => write!(f, "{value}"),
            other => f.write_str(other.kind()),
        }
    }
}
