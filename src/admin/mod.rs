//! Health, readiness, metrics, state, event stream and policy control over HTTP.

mod api;
mod disguise;
mod metrics;
mod moves;
mod policy;
mod ready;
mod record;
mod stories;
pub mod stream;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, Response, StatusCode};
use serde::Serialize;
use subtle::ConstantTimeEq;

use crate::claims::Health;
use crate::config::Config;
use crate::control::Control;
use crate::control::policies::Policies;
use crate::control::recording::Recordings;
use crate::link::tap::Tap;
use crate::model::metrics::MetricsText;

pub use self::ready::Readiness;

/// Somebody who has numbers for `/api/status/metrics`.
pub type MetricsSource = Box<dyn Fn(&mut MetricsText) + Send + Sync>;

/// Somebody who knows whether a limit is reached, and which.
pub type LimitSource = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What the admin API reads and steers.
pub struct Admin {
    /// The configuration in force.
    pub config: Arc<ArcSwap<Config>>,
    /// The way to the control thread.
    pub control: Control,
    /// The policy and its versions.
    pub policies: Arc<Policies>,
    /// What is recorded.
    pub recordings: Arc<Recordings>,
    /// The event stream.
    pub tap: Arc<Tap>,
    /// Whether usher is stopping.
    pub stopping: Arc<AtomicBool>,
    /// Whether another usher has taken over.
    pub taken_over: Arc<AtomicBool>,
    /// How the store of claims is doing.
    pub claims: Arc<Health>,
    /// Whoever has limits that new clients meet.
    pub limits: Vec<LimitSource>,
    /// Whoever else has numbers.
    pub metrics: Vec<MetricsSource>,
}

/// A request as the admin API needs it.
#[derive(Debug)]
pub struct AdminRequest<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path.
    pub path: &'a str,
    /// The query.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The body, up to [`BODY_LIMIT`] bytes.
    pub body: &'a [u8],
}

/// The longest body that an admin request may have, in bytes.
pub const BODY_LIMIT: usize = 64 << 10;

/// Whose path it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Answered by [`Admin::answer`].
    Admin,
    /// The WebSocket of events: [`stream::serve`] after [`Admin::authorize`].
    Stream,
    /// Not the balancer's own.
    Front,
    /// A path of the balancer's own in another spelling: answered with 404 by whoever reads it first, so that no
    /// Monolith sees what was meant for the balancer, or the key that came with it.
    Disguised,
}

/// What anybody may read.
pub fn is_open(path: &str) -> bool {
    matches!(path.trim_end_matches('/'), "/api/status" | "/api/status/metrics" | "/_usher/ready")
}

/// Whose a path is. `/api/status` is answered wherever it is asked.
pub fn owner(path: &str) -> Owner {
    match path {
        "/api/state/stream" | "/api/state/stream/" => Owner::Stream,
        _ => match path.trim_end_matches('/') {
            "/api/status" | "/api/status/metrics" | "/api/state" | "/api/balancing" | "/_usher" => Owner::Admin,
            path if path.starts_with("/_usher/") => Owner::Admin,
            _ if disguise::is_disguised(path) => Owner::Disguised,
            _ => Owner::Front,
        },
    }
}

/// An error of the admin API: a status and what to tell whoever asked.
#[derive(Debug)]
pub struct AdminError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// The methods that there are, for 405.
    allow: Option<HeaderValue>,
}

impl AdminError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), allow: None }
    }

    fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "a valid bearer key is needed: set api_key and send it")
    }

    fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "usher is stopping")
    }

    /// The answer.
    pub fn response(&self) -> Response<Bytes> {
        let mut response =
            json(self.status, &serde_json::json!({"error": {"code": self.code, "message": self.message}}));
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allow) = &self.allow {
            response.headers_mut().insert(ALLOW, allow.clone());
        }
        response
    }
}

impl Admin {
    /// Answers a request for the balancer itself.
    pub async fn answer(&self, request: &AdminRequest<'_>) -> Response<Bytes> {
        match self.route(request).await {
            Ok(response) => response,
            Err(error) => error.response(),
        }
    }

    /// Checks the bearer key, in constant time. Without a configured key nobody gets in.
    pub fn authorize(&self, headers: &HeaderMap) -> Result<(), AdminError> {
        let config = self.config.load();
        let expected = config.api_key.expose().as_bytes();
        let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let given = match given.split_first_chunk::<7>() {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key.trim_ascii(),
            _ => b"",
        };
        if !expected.is_empty() && bool::from(expected.ct_eq(given)) { Ok(()) } else { Err(AdminError::unauthorized()) }
    }

    /// Whether the body of this request is to be read before [`Self::answer`]: not where nobody looks at it.
    ///
    /// # Errors
    /// If whoever asks needs a key and has none: then nothing more is read from them.
    pub fn wants_body(&self, path: &str, headers: &HeaderMap) -> Result<bool, AdminError> {
        if is_open(path) {
            return Ok(false);
        }
        self.authorize(headers).map(|()| true)
    }

    async fn route(&self, request: &AdminRequest<'_>) -> Result<Response<Bytes>, AdminError> {
        let path = request.path.trim_end_matches('/');
        match path {
            "/api/status" => {
                only(request, &[Method::GET, Method::HEAD])?;
                return Ok(text(StatusCode::OK, "text/plain; charset=utf-8", "OK".to_string()));
            }
            "/_usher/ready" => {
                only(request, &[Method::GET, Method::HEAD])?;
                let readiness = self.readiness();
                let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                return Ok(json(status, &readiness));
            }
            "/api/status/metrics" => {
                only(request, &[Method::GET, Method::HEAD])?;
                return self.metrics_text().await;
            }
            _ => {}
        }
        self.authorize(request.headers)?;
        match path {
            "/api/state" => {
                only(request, &[Method::GET])?;
                self.state().await
            }
            "/api/balancing" => {
                only(request, &[Method::GET])?;
                self.balancing().await
            }
            _ => match path.strip_prefix("/_usher/v1/") {
                Some(rest) => self.api(rest, request).await,
                None => Err(not_found()),
            },
        }
    }
}

fn not_found() -> AdminError {
    AdminError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here")
}

/// Refuses other methods than these.
fn only(request: &AdminRequest<'_>, methods: &[Method]) -> Result<(), AdminError> {
    if methods.contains(request.method) {
        return Ok(());
    }
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    let names = names.join(", ");
    let message = format!("{} is not allowed here; allowed: {names}", request.method);
    let error = AdminError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
    Err(AdminError { allow: HeaderValue::from_str(&names).ok(), ..error })
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Bytes> {
    let body = serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    text(status, "application/json", body)
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
