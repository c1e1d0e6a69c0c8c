//! A request's JSON, read strictly: bounded, no unknown fields, and errors that name the field.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use zeroize::Zeroize;

use super::Failure;
use crate::api::{MAX_BODY, Refusal};

/// The JSON body of a request.
pub(super) struct Strict<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Strict<T> {
    type Rejection = Failure;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, Failure> {
        let body = to_bytes(request.into_body(), MAX_BODY).await.map_err(|error| {
            let message = format!("the body cannot be read, or is larger than {} MiB: {error}", MAX_BODY >> 20);
            Failure::new(StatusCode::BAD_REQUEST, Refusal::new(message))
        })?;
        let parsed = parse(&body);
        wipe(body);
        parsed.map(Strict).map_err(|refusal| Failure::new(StatusCode::BAD_REQUEST, refusal))
    }
}

/// Zeroes what may have held keys, where the buffer is ours alone.
fn wipe(body: Bytes) {
    if let Ok(mut body) = body.try_into_mut() {
        body.zeroize();
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.inner();
        if inner.is_syntax() || inner.is_eof() {
            let message = format!("the body is no JSON: line {}, column {}", inner.line(), inner.column());
            return Refusal::new(message);
        }
        // serde's words may quote the value, and this one may be a key.
        if path.rsplit('.').next() == Some("key") {
            return Refusal::of(path, "the key is not a string", crate::credential::ACCEPTED);
        }
        let message = inner.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        Refusal { message, field: (path != ".").then_some(path), accepted: None }
    })?;
    match deserializer.end() {
        Ok(()) => Ok(parsed),
        Err(_) => Err(Refusal::new("the body goes on behind its JSON value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{AddKey, ImportKeys};

    #[test]
    fn names_the_field_that_is_to_blame() {
        let refusal =
            parse::<ImportKeys>(br#"{"entries":[{"name":"a","key":"k"},{"name":1,"key":"k"}]}"#).expect_err("a number");
        assert_eq!(refusal.field.as_deref(), Some("entries[1].name"));
        assert_eq!(refusal.message, "invalid type: integer `1`, expected a string");
        let refusal = parse::<AddKey>(br#"{"name":"a","limits":"5/s"}"#).expect_err("an unknown field");
        assert_eq!(
            refusal.message,
            "unknown field `limits`, expected one of `name`, `label`, `limit`, `plan`, `not_before`, `expires`"
        );
        let refusal = parse::<AddKey>(b"{}").expect_err("a missing field");
        assert_eq!(refusal.message, "missing field `name`");
    }

    #[test]
    fn never_quotes_what_stands_in_the_place_of_a_key() {
        let refusal = parse::<ImportKeys>(br#"{"entries":[{"name":"a","key":123456789}]}"#).expect_err("a number");
        assert_eq!(refusal.field.as_deref(), Some("entries[0].key"));
        assert!(!refusal.to_string().contains("123456789"));
    }

    #[test]
    fn refuses_what_is_no_json_or_too_much_of_it() {
        assert_eq!(parse::<AddKey>(b"{\"name\":").expect_err("cut").message, "the body is no JSON: line 1, column 8");
        assert_eq!(parse::<AddKey>(b"").expect_err("empty").message, "the body is no JSON: line 1, column 0");
        let refusal = parse::<AddKey>(br#"{"name":"a"} {}"#).expect_err("two values");
        assert_eq!(refusal.message, "the body goes on behind its JSON value");
    }
}
