//! The only place that turns an error into a status. Nothing of the inside gets out: a client learns what it may do, the
//! log and the metrics learn the rest.

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};

use super::body::Body;
use super::upstream::SendErrorKind;

/// What a client may be told when it asks for something that it does not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400: the request is malformed.
    BadRequest,
    /// 401: no key, or the wrong one.
    Unauthorized,
    /// 404: there is nothing at this path.
    NotFound,
    /// 405: not with this method; the ones that there are, as `Allow` lists them.
    MethodNotAllowed(&'static str),
    /// 409: it clashes with what is; the reason is for the one who asked.
    Conflict(String),
    /// 408: the body comes too slowly.
    TooSlow,
    /// 413: the body is too large.
    TooLarge,
    /// 431: the head is too large.
    HeaderTooLarge,
    /// 500: our own fault.
    Internal,
    /// 502: the Monolith broke off, or answered nonsense.
    BadGateway,
    /// 503: nobody can serve it now; ask again after this long.
    Unavailable(Duration),
    /// 504: the Monolith did not answer in time.
    GatewayTimeout,
    /// What a policy decided: a status from 400 to 599, and why.
    Policy {
        /// The status; anything that is no error becomes 503.
        status: u16,
        /// For the user.
        reason: String,
    },
}

/// The shortest time that `Retry-After` names when nobody knows better.
const RETRY: Duration = Duration::from_secs(1);
/// What is drawn on top of it.
const SPREAD: Duration = Duration::from_secs(3);

impl Refusal {
    /// 503 with a time that differs from client to client, so that those who are refused together do not come back together.
    pub fn unavailable() -> Self {
        let random = f64::from((foldhash::fast::RandomState::default().hash_one(0_u8) >> 32) as u32);
        // The header counts in whole seconds, rounded up.
        let seconds = (SPREAD.as_secs_f64() * random / f64::from(u32::MAX)).round();
        Self::Unavailable(RETRY + Duration::from_secs_f64(seconds))
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Policy { status, .. } => StatusCode::from_u16(*status)
                .ok()
                .filter(|status| status.is_client_error() || status.is_server_error())
                .unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    /// A stable label for metrics, and the `code` of the body.
    pub fn label(&self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::Conflict(_) => "conflict",
            Self::TooSlow => "too_slow",
            Self::TooLarge => "too_large",
            Self::HeaderTooLarge => "header_too_large",
            Self::Internal => "internal",
            Self::BadGateway => "bad_gateway",
            Self::Unavailable(_) => "unavailable",
            Self::GatewayTimeout => "gateway_timeout",
            Self::Policy { .. } => "policy",
        }
    }

    fn message(&self) -> Cow<'_, str> {
        Cow::Borrowed(match self {
            Self::BadRequest => "the request is malformed",
            Self::Unauthorized => "a valid key is needed",
            Self::NotFound => "there is nothing here",
            Self::MethodNotAllowed(_) => "this method is not allowed here",
            Self::Conflict(reason) | Self::Policy { reason, .. } => reason,
            Self::TooSlow => "the body comes too slowly",
            Self::TooLarge => "the body is too large",
            Self::HeaderTooLarge => "the header is too large",
            Self::Internal => "something went wrong here",
            Self::BadGateway => "the server broke off its answer",
            Self::Unavailable(_) => "no server can take this now, try again soon",
            Self::GatewayTimeout => "the server did not answer in time",
        })
    }

    /// The whole answer.
    pub fn response(&self) -> Response<Body> {
        let text = serde_json::json!({"error": {"code": self.label(), "message": self.message()}}).to_string();
        let mut response = Response::new(Body::Full(Bytes::from(text)));
        let status = self.status();
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self {
            Self::MethodNotAllowed(methods) => drop(headers.insert(ALLOW, HeaderValue::from_static(methods))),
            Self::Unauthorized => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            _ => {}
        }
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            let after = if let Self::Unavailable(after) = self { *after } else { RETRY };
            // Rounded up: an early retry is refused again.
            let seconds = after.as_millis().div_ceil(1000).max(1);
            headers.insert(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)));
        }
        response
    }
}

impl From<SendErrorKind> for Refusal {
    fn from(kind: SendErrorKind) -> Self {
        match kind {
            SendErrorKind::Connect | SendErrorKind::ConnectTimeout => Self::unavailable(),
            SendErrorKind::HeadTimeout => Self::GatewayTimeout,
            SendErrorKind::Broken | SendErrorKind::Invalid => Self::BadGateway,
            SendErrorKind::Request => Self::BadRequest,
            SendErrorKind::SlowRequest => Self::TooSlow,
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn check(refusal: Refusal, status: u16, retry: Option<&str>) {
        let response = refusal.response();
        assert_eq!(response.status(), status, "{refusal:?}");
        assert_eq!(response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap()), retry, "{refusal:?}");
        let body = futures_util::FutureExt::now_or_never(response.into_body().collect()).unwrap().unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], refusal.label());
        assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
        assert_eq!(body.as_object().unwrap().len(), 1);
    }

    #[test]
    fn every_refusal_has_its_status_and_a_json_body() {
        check(Refusal::BadRequest, 400, None);
        check(Refusal::Unauthorized, 401, None);
        check(Refusal::NotFound, 404, None);
        check(Refusal::MethodNotAllowed("GET"), 405, None);
        check(Refusal::Conflict("the gate refused it".into()), 409, None);
        check(Refusal::TooSlow, 408, None);
        check(Refusal::TooLarge, 413, None);
        check(Refusal::HeaderTooLarge, 431, None);
        check(Refusal::Internal, 500, None);
        check(Refusal::BadGateway, 502, None);
        check(Refusal::Unavailable(Duration::from_millis(1500)), 503, Some("2"));
        check(Refusal::Unavailable(Duration::ZERO), 503, Some("1"));
        check(Refusal::GatewayTimeout, 504, None);
        check(Refusal::Policy { status: 451, reason: "not in your country".into() }, 451, None);
        check(Refusal::Policy { status: 429, reason: "slowly".into() }, 429, Some("1"));
        check(Refusal::Policy { status: 503, reason: "full \"now\"\n".into() }, 503, Some("1"));
        check(Refusal::Policy { status: 200, reason: "no error".into() }, 503, Some("1"));
    }
    #[test]
    fn those_who_are_refused_together_do_not_come_back_together() {
        let mut seconds = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let response = Refusal::unavailable().response();
            seconds.insert(response.headers()[RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap());
        }
        assert_eq!(seconds, (1..=4).collect());
    }
}
