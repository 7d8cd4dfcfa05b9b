//! `/_usher/v1/record`: recording live traffic into a file of the record folder.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::Deserialize;

use super::api::{bad_request, body};
use super::{Admin, AdminError, AdminRequest, json as answer, only};
use crate::config::units;
use crate::control::recording::RecordError;

/// `{"path"?, "for"?}`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    path: Option<String>,
    #[serde(rename = "for")]
    time: Option<String>,
}

impl Admin {
    /// `GET`: how it goes. `POST`: starts; 400 for a path outside the record folder, 409 if one is under way. `DELETE`:
    /// stops; 409 if none is.
    pub(super) async fn record(&self, request: &AdminRequest<'_>) -> Result<Response<Bytes>, AdminError> {
        only(request, &[Method::GET, Method::POST, Method::DELETE])?;
        let document = match *request.method {
            Method::POST => {
                // Nothing has to be said.
                let asked: Asked = match request.body.trim_ascii().is_empty() {
                    true => Asked::default(),
                    false => body(request, r#"{"path": "evening.trace.jsonl.zst", "for": "10m"}"#)?,
                };
                let time = asked.time.as_deref().map(duration).transpose()?;
                self.recordings.start(asked.path.as_deref(), time).await.map_err(refused)?
            }
            Method::DELETE => self.recordings.stop().await.map_err(refused)?,
            _ => self.recordings.document(),
        };
        Ok(answer(StatusCode::OK, &document))
    }
}

fn duration(text: &str) -> Result<Duration, AdminError> {
    units::duration(text).ok_or_else(|| {
        bad_request(format!("for: {text:?} is no duration with a unit; write such as \"90s\", \"10m\" or \"2h\""))
    })
}

fn refused(error: RecordError) -> AdminError {
    match error {
        RecordError::NotAllowed(message) => bad_request(message),
        RecordError::Conflict(message) => AdminError::new(StatusCode::CONFLICT, "refused", message),
        RecordError::Unable(message) => AdminError::new(StatusCode::INTERNAL_SERVER_ERROR, "not_recorded", message),
    }
}
