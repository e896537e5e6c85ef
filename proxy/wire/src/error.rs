//! The error body of the OpenAI API: `{"error":{"message","type","param","code"}}`.

use crate::json::{Value, json};
use bytes::Bytes;
use serde::Serialize;

/// One error as a client reads it. The message says what to do; it never holds a secret, a path, or another's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// For a person.
    pub message: String,
    /// `invalid_request_error`, `rate_limit_error`, `server_error`, …
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field at fault, such as `messages[3].role`.
    pub param: Option<String>,
    /// For a program; fixed words such as `label_refused`.
    pub code: Option<&'static str>,
}

impl ErrorBody {
    /// The whole object, with `error` as its only key.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }

    /// The same as a problem of a type that clients look for (RFC 9457): `type` and `title` beside `error`.
    #[must_use]
    pub fn as_problem(&self, kind: &str) -> Bytes {
        let mut problem = json!({"type": kind, "title": self.message});
        if let (Some(problem), Value::Object(error)) = (problem.as_object_mut(), self.to_json()) {
            problem.extend(error);
        }
        Bytes::from(problem.to_string())
    }

    /// [`to_json`](Self::to_json) as text.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from(self.to_json().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_shape_that_openai_clients_expect() {
        let body = ErrorBody {
            message: "No.".into(),
            kind: "invalid_request_error",
            param: None,
            code: Some("label_refused"),
        };
        assert_eq!(
            body.to_bytes(),
            r#"{"error":{"message":"No.","type":"invalid_request_error","param":null,"code":"label_refused"}}"#
        );
    }
}
