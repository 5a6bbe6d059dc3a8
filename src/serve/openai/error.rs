//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` with the status that goes with it.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::Error;

/// What a client is told instead of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    pub status: StatusCode,
    /// OpenAI's name for the kind of error.
    pub kind: &'static str,
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// 400: the field `param` is not what it should be.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..Self::bad(message) }
    }

    /// 400: the request as a whole is not what it should be.
    pub fn bad(message: impl Into<String>) -> ApiError {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// Another status for which the client is to blame.
    pub fn refused(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code: Some(code), ..Self::new(status, INVALID, message) }
    }

    /// 400: prompt and answer do not fit.
    pub fn too_long(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    /// 401.
    pub fn unauthorised(message: &str) -> ApiError {
        let error = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        ApiError { code: Some("invalid_api_key"), ..error }
    }

    /// 404: no model of this name.
    pub fn no_model(name: &str, known: &[String]) -> ApiError {
        let name: String = name.chars().take(100).collect();
        let message = format!("the model `{name}` does not exist; there are: {}", known.join(", "));
        let error = Self::new(StatusCode::NOT_FOUND, "not_found", message);
        ApiError { param: Some("model".into()), code: Some("model_not_found"), ..error }
    }

    /// 429: come back in a moment.
    pub fn busy(message: impl Into<String>) -> ApiError {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        ApiError { code: Some("queue_full"), retry_after: Some(1), ..error }
    }

    /// 503: the server stops.
    pub fn stopping() -> ApiError {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "the server is stopping");
        ApiError { code: Some("stopping"), retry_after: Some(5), ..error }
    }

    /// 504: the answer was not ready in time.
    pub fn timeout(seconds: f64) -> ApiError {
        let message = format!("the answer was not complete after {seconds} seconds, the most that a request may take");
        ApiError { code: Some("timeout"), ..Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, message) }
    }

    /// 500: not the client's fault.
    pub fn failed(message: impl Into<String>) -> ApiError {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, message)
    }

    /// What went wrong with a request's `param` in a part that does not know of HTTP: the client's fault, if the client
    /// chose what it went wrong with.
    pub fn of(param: &str, e: &Error) -> ApiError {
        // It may quote what the client sent, which may be long.
        let short = |text: &str| text.chars().take(300).collect::<String>();
        match e {
            Error::Tokenizer(why) => Self::invalid(param, short(why)),
            Error::Config { key, why } => Self::invalid(key.clone(), short(&format!("`{key}` {why}"))),
            Error::Shape { .. } => Self::invalid(param, short(&e.to_string())),
            other => Self::failed(short(&other.to_string())),
        }
    }

    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert("www-authenticate", HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Code(self.code.unwrap_or(self.kind)));
        response
    }
}

/// What the log calls an error.
#[derive(Debug, Clone, Copy)]
pub struct Code(pub &'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_openai_s() {
        let e = ApiError::invalid("temperature", "must be in [0, 2]; got 3");
        let want = json!({"error": {
            "message": "must be in [0, 2]; got 3", "type": "invalid_request_error", "param": "temperature", "code": null,
        }});
        assert_eq!(e.body(), want);
        assert_eq!(e.into_response().status(), 400);
        let full = ApiError::busy("128 requests wait").into_response();
        assert_eq!((full.status().as_u16(), &full.headers()["retry-after"]), (429, &HeaderValue::from(1)));
        let none = ApiError::no_model(&"x".repeat(10_000), &["base".into(), "medical".into()]);
        assert!(none.message.len() < 200 && none.message.ends_with("there are: base, medical"), "{}", none.message);
    }
}
