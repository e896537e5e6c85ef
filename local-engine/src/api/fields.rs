//! Fields of a request.

use serde_json::{Map, Value};

use crate::error::EngineError;

/// Typed access; `null` counts as absent, as the API has it.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A value that `read` takes; otherwise the error says what was `wanted`.
    pub(super) fn typed<T>(
        &self,
        name: &str,
        wanted: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, EngineError> {
        let read = |value| read(value).ok_or_else(|| EngineError::invalid(name, format!("`{name}` must be {wanted}.")));
        self.value(name).map(read).transpose()
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, EngineError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(super) fn truth(&self, name: &str) -> Result<Option<bool>, EngineError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn count(&self, name: &str) -> Result<Option<u64>, EngineError> {
        self.typed(name, "a whole number, 1 or more", |value| value.as_u64().filter(|count| *count > 0))
    }

    pub(super) fn number(&self, name: &str, from: f64, to: f64) -> Result<Option<f32>, EngineError> {
        let within = |value: &Value| value.as_f64().filter(|number| (from..=to).contains(number));
        Ok(self.typed(name, &format!("a number from {from} to {to}"), within)?.map(|number| number as f32))
    }
}

pub(super) fn missing(name: &str) -> EngineError {
    EngineError::invalid(name, format!("`{name}` is missing."))
}

/// For what the API has and this engine does not do.
pub(super) fn unsupported(name: &str) -> EngineError {
    EngineError::unsupported(name, format!("`{name}` is not supported by the local engine yet."))
}
