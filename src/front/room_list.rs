//! `/api/room/list`: the public rooms of all Monoliths, or with an `apikey` what every Monolith says itself.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_RANGE, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
};
use http::response::Parts;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::body::Body;
use super::respond::Refusal;
use super::upload::RequestBody;
use super::upstream::Pool;
use crate::control::routes::Target;
use crate::control::{Control, Stopped};
use crate::model::RoomKey;

/// How long a Monolith may take to list its rooms before it is left out.
const PATIENCE: Duration = Duration::from_secs(2);
/// What one Monolith's list may weigh.
const LIST_LIMIT: usize = 64 << 20;
/// Names the Monoliths that are missing from a list.
const PARTIAL: HeaderName = HeaderName::from_static("x-usher-partial");
/// Fields of a request that would have a Monolith answer with less than its list, or wait for a body that is not sent on.
const OF_ONE_ANSWER: [HeaderName; 8] =
    [ACCEPT_ENCODING, CONTENT_LENGTH, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE, TRANSFER_ENCODING];
const API_KEY: HeaderName = HeaderName::from_static("apikey");

/// The list as it was last made.
#[derive(Debug, Default)]
pub struct RoomList {
    cached: ArcSwap<Option<(u64, Bytes)>>,
}

impl RoomList {
    /// The public rooms: most users first, then by name; each as its Monolith describes it, but for `users`, which is
    /// never less than our own clients in it.
    pub async fn public(&self, control: &Control) -> Result<Response<Body>, Refusal> {
        let version = control.routes().list_version();
        if let Some((of, list)) = &**self.cached.load()
            && *of == version
        {
            return Ok(json(list.clone()));
        }
        let read = control.query(|cluster| (cluster.list_version(), cluster.public_rooms())).await;
        let (version, mut rooms) = read.map_err(|Stopped| Refusal::unavailable())?;
        rooms.sort_by(|(a, a_metadata, a_own), (b, b_metadata, b_own)| {
            let users = b_metadata.users.max(*b_own).cmp(&a_metadata.users.max(*a_own));
            users.then_with(|| a.spelling().cmp(b.spelling()))
        });
        let mut text = String::with_capacity(2 + rooms.iter().map(|(_, m, _)| m.raw().len() + 8).sum::<usize>());
        text.push('[');
        for (at, (_, metadata, own)) in rooms.iter().enumerate() {
            if at > 0 {
                text.push(',');
            }
            metadata.write_with_users(metadata.users.max(*own), &mut text);
        }
        text.push(']');
        let list = Bytes::from(text);
        self.cached.store(Arc::new(Some((version, list.clone()))));
        Ok(json(list))
    }
}

/// Whether a request is for all rooms, in the name of whoever holds the Monoliths' key.
pub fn is_privileged(headers: &HeaderMap) -> bool {
    headers.contains_key(API_KEY)
}

/// Asks every Monolith, with the headers of the request as they go upstream. The first 4xx, in the order of ids, is
/// passed on; who does not answer is left out and named.
pub async fn privileged(
    pool: &Pool,
    control: &Control,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Response<Body>, Refusal> {
    let mut headers = headers.clone();
    for name in OF_ONE_ANSWER {
        headers.remove(name);
    }
    let published = control.routes().published();
    let mut asked = Vec::with_capacity(published.targets.len());
    for target in published.targets.values() {
        let mut request = Request::new(RequestBody::empty());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers.clone();
        let (pool, target) = (pool.clone(), target.clone());
        asked.push(tokio::spawn(async move {
            let answer = tokio::time::timeout(PATIENCE, ask(&pool, &target, request)).await;
            (target, answer.ok().flatten())
        }));
    }
    let mut lists = Vec::new();
    let mut partial = Vec::new();
    for answer in asked {
        let Ok((target, answer)) = answer.await else { continue };
        match answer {
            Some((parts, body)) if parts.status.is_success() => lists.push((target, body)),
            Some((parts, body)) if parts.status.is_client_error() => {
                let mut response = json(body);
                *response.status_mut() = parts.status;
                for name in [CONTENT_TYPE, RETRY_AFTER] {
                    if let Some(value) = parts.headers.get(&name) {
                        response.headers_mut().insert(name, value.clone());
                    }
                }
                return Ok(response);
            }
            Some(_) | None => partial.push(target.id.as_str().to_string()),
        }
    }
    if lists.is_empty() {
        return Err(Refusal::unavailable());
    }
    let (merged, garbled) = merge(control, &lists);
    partial.extend(garbled);
    let mut response = json(Bytes::from(merged));
    if !partial.is_empty()
        && let Ok(value) = HeaderValue::from_str(&partial.join(","))
    {
        response.headers_mut().insert(PARTIAL, value);
    }
    Ok(response)
}

async fn ask(pool: &Pool, target: &Target, request: Request<RequestBody>) -> Option<(Parts, Bytes)> {
    let response = pool.send(target.http, request, None).await.ok()?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, LIST_LIMIT).collect().await.ok()?;
    Some((parts, body.to_bytes()))
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    #[serde(default)]
    users: u64,
}

/// One list of several; names of Monoliths whose answer is no list of rooms. A room that two of them list counts once,
/// as the one has it that it is bound to.
fn merge(control: &Control, lists: &[(Arc<Target>, Bytes)]) -> (String, Vec<String>) {
    let mut rooms: HashMap<RoomKey, (bool, Listed, &str)> = HashMap::new();
    let mut garbled = Vec::new();
    for (target, body) in lists {
        let Ok(list) = serde_json::from_slice::<Vec<&RawValue>>(body) else {
            garbled.push(target.id.as_str().to_string());
            continue;
        };
        for raw in list {
            let Ok(listed) = serde_json::from_str::<Listed>(raw.get()) else { continue };
            let key = RoomKey::of(&listed.name);
            let owns = control.routes().find(&key).is_some_and(|owner| owner.id == target.id);
            if owns || !rooms.contains_key(&key) {
                rooms.insert(key, (owns, listed, raw.get()));
            }
        }
    }
    let mut rooms: Vec<(bool, Listed, &str)> = rooms.into_values().collect();
    rooms.sort_by(|(_, a, _), (_, b, _)| (Reverse(a.users), &a.name).cmp(&(Reverse(b.users), &b.name)));
    let texts: Vec<&str> = rooms.iter().map(|(_, _, raw)| *raw).collect();
    (format!("[{}]", texts.join(",")), garbled)
}

fn json(body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Full(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    response
}
