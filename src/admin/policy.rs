//! `/_usher/v1/policy`: the versions, and which of them decides, answers beside, or is on trial.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::api::{bad_request, body};
use super::{Admin, AdminError, AdminRequest, json as answer, not_found, only};
use crate::control::policies::{SwapError, Trial};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    policy: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    policy: String,
    share: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stop {
    what: Trial,
}

impl Admin {
    /// Answers for what stands behind `policy/`.
    pub(super) async fn policy(&self, path: &str, request: &AdminRequest<'_>) -> Result<Response<Bytes>, AdminError> {
        let policies = &self.policies;
        if matches!(path, "" | "source" | "replay") {
            only(request, &[Method::GET])?;
        } else if matches!(path, "use" | "rollback" | "shadow" | "canary" | "promote" | "stop") {
            only(request, &[Method::POST])?;
        }
        let done = match path {
            "" => Ok(()),
            "source" => {
                let source = policies.active_source();
                let (version, file) = (source.version(), source.file());
                let document = json!({"name": source.name, "version": version, "file": file, "text": &*source.text});
                return Ok(answer(StatusCode::OK, &document));
            }
            "replay" => {
                let report = policies.replay_report().ok_or_else(no_replay)?;
                return Ok(answer(StatusCode::OK, &report));
            }
            "use" => {
                let Named { policy } = body(request, r#"{"policy": "least-loaded"}"#)?;
                policies.switch(&policy, "admin").await
            }
            "rollback" => policies.rollback("admin").await,
            "shadow" => {
                let Named { policy } = body(request, r#"{"policy": "least-loaded"}"#)?;
                policies.shadow(&policy, "admin").await
            }
            "canary" => {
                let Share { policy, share } = body(request, r#"{"policy": "least-loaded", "share": 5}"#)?;
                policies.canary(&policy, share, "admin").await
            }
            "promote" => policies.promote().await,
            "stop" => {
                let Stop { what } = body(request, r#"{"what": "shadow"} or {"what": "canary"}"#)?;
                policies.stop(what).await
            }
            _ => return Err(not_found()),
        };
        done.map_err(refused)?;
        Ok(answer(StatusCode::OK, &policies.document()))
    }
}

fn no_replay() -> AdminError {
    let message = "no version has come to the gate \"replay\" since the start (policy.gate = \"replay\")";
    AdminError::new(StatusCode::NOT_FOUND, "no_replay", message)
}

fn refused(error: SwapError) -> AdminError {
    match error {
        SwapError::NotAllowed(message) => bad_request(message),
        SwapError::Refused(message) => AdminError::new(StatusCode::CONFLICT, "refused", message),
    }
}
