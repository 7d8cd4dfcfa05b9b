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
use crate::model::{MonolithId, RoomKey};

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
            Some((parts, body)) if parts.status.is_success() => lists.push((target.id.clone(), body)),
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
    let owns = |room: &RoomKey, id: &MonolithId| control.routes().find(room).is_some_and(|owner| owner.id == *id);
    let (merged, garbled) = merge(owns, &lists);
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
/// as the one has it that owns it.
fn merge(owns: impl Fn(&RoomKey, &MonolithId) -> bool, lists: &[(MonolithId, Bytes)]) -> (String, Vec<String>) {
    let mut rooms: HashMap<RoomKey, (bool, Listed, &str)> = HashMap::new();
    let mut garbled = Vec::new();
    for (id, body) in lists {
        let Ok(list) = serde_json::from_slice::<Vec<&RawValue>>(body) else {
            garbled.push(id.as_str().to_string());
            continue;
        };
        for raw in list {
            let Ok(listed) = serde_json::from_str::<Listed>(raw.get()) else { continue };
            let key = RoomKey::of(&listed.name);
            let owns = owns(&key, id);
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// What Monoliths put into their lists, and what they do not.
    const ENTRIES: [&str; 10] = [
        r#"{"name":"a","users":3,"hidden":true}"#,
        r#"{"name":"A","users":9}"#,
        r#"{"users":1,"name":"b"}"#,
        r#"{"name":"c"}"#,
        r#"{"name":"c","users":18446744073709551615}"#,
        r#"{"name":"d","users":-1}"#,
        r#"{"name":7}"#,
        r#"[{"name":"e"}]"#,
        "null",
        r#"{"name":"\u0041","users":2}"#,
    ];

    fn list() -> impl Strategy<Value = String> {
        let whole = proptest::collection::vec(proptest::sample::select(&ENTRIES[..]), 0..6);
        let whole = whole.prop_map(|entries| format!("[{}]", entries.join(",")));
        let bent = (whole.clone(), any::<proptest::sample::Index>(), any::<u8>()).prop_map(|(text, at, byte)| {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            String::from_utf8_lossy(&bytes).into_owned()
        });
        prop_oneof![3 => whole, 2 => bent, 1 => any::<String>()]
    }

    proptest! {
        #[test]
        fn whatever_monoliths_list_each_room_is_there_once_as_its_owner_has_it(
            bodies in proptest::collection::vec(list(), 0..4),
            owner in 0_usize..4,
        ) {
            let id = |number: usize| MonolithId::from(format!("m{number}").as_str());
            let lists: Vec<_> = bodies.iter().enumerate().map(|(at, body)| (id(at), Bytes::from(body.clone()))).collect();
            let (merged, garbled) = merge(|_, monolith| *monolith == id(owner), &lists);
            let rooms: Vec<&RawValue> = serde_json::from_str(&merged).expect("a list");
            let listed: Vec<Listed> = rooms.iter().map(|raw| serde_json::from_str(raw.get()).unwrap()).collect();
            let keys: HashSet<_> = listed.iter().map(|listed| RoomKey::of(&listed.name)).collect();
            prop_assert_eq!(keys.len(), listed.len());
            prop_assert!(listed.is_sorted_by_key(|listed| Reverse(listed.users)));
            prop_assert!(rooms.iter().all(|raw| bodies.iter().any(|body| body.contains(raw.get()))));
            let no_list = |body: &str| serde_json::from_str::<Vec<Value>>(body).is_err();
            prop_assert_eq!(garbled.len(), bodies.iter().filter(|body| no_list(body)).count());
            if let Some(body) = bodies.get(owner)
                && let Ok(of_owner) = serde_json::from_str::<Vec<&RawValue>>(body)
            {
                for raw in of_owner {
                    let Ok(own) = serde_json::from_str::<Listed>(raw.get()) else { continue };
                    let found = listed.iter().position(|other| RoomKey::of(&other.name) == RoomKey::of(&own.name));
                    let shown = rooms[found.expect("it is in the list")].get();
                    prop_assert!(body.contains(shown), "{} is not as {} has it", shown, owner);
                }
            }
        }
    }
}
