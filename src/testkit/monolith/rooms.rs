//! The room routes of the HTTP server: they create, load and delete rooms as the real ones do.

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::super::world::RoomInfo;
use super::frames;
use super::http::{Body, answer, json};
use super::shared::Shared;
use super::state::{State, UnloadReason, Waiter};

/// The largest body that the real server reads.
const BODY_LIMIT: usize = 100 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Create {
    name: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    is_temporary: bool,
    #[serde(default)]
    visibility: Option<String>,
}

/// What `PATCH` may change.
#[derive(Deserialize)]
struct Settings {
    title: Option<String>,
    description: Option<String>,
    visibility: Option<String>,
}

fn failure(status: StatusCode, name: &str, message: &str) -> Response<Body> {
    let (name, message) = (frames::quoted(name), frames::quoted(message));
    json(status, format!(r#"{{"success":false,"error":{{"name":{name},"message":{message}}}}}"#))
}

fn success() -> Response<Body> {
    json(StatusCode::OK, r#"{"success":true}"#)
}

/// Answers a request below `/api/room/`; `rest` is what follows.
pub(super) async fn respond(shared: &Shared, rest: &str, request: Request<Incoming>) -> Response<Body> {
    let (room, below) = rest.split_once('/').unwrap_or((rest, ""));
    match (request.method(), room, below) {
        (&Method::POST, "generate", "") => generate(shared),
        (&Method::POST, "create", "") => create(shared, request).await,
        (&Method::GET | &Method::HEAD, "list", "") => list(shared, &request),
        (&Method::OPTIONS, _, "") => answer(StatusCode::OK, "text/html; charset=utf-8", "GET,HEAD,PATCH,DELETE"),
        (&Method::DELETE, _, "") => delete(shared, room, &request),
        _ => existing(shared, room, below, request).await,
    }
}

fn generate(shared: &Shared) -> Response<Body> {
    let name = Uuid::new_v4().to_string();
    shared.change(|state| give_birth(state, RoomInfo::temporary(name.as_str()).unlisted()));
    json(StatusCode::CREATED, format!(r#"{{"success":true,"room":"{name}"}}"#))
}

/// `loaded` is queued on the links before the response exists.
fn give_birth(state: &mut State, info: RoomInfo) {
    state.world.create(info.clone());
    state.install(info);
}

async fn create(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    let body = match Limited::new(request.into_body(), BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return answer(StatusCode::PAYLOAD_TOO_LARGE, "text/html; charset=utf-8", "<pre>Payload Too Large</pre>");
        }
        Err(_) => return answer(StatusCode::BAD_REQUEST, "text/html; charset=utf-8", "<pre>Bad Request</pre>"),
    };
    if !shared.look(|state| state.knobs.answer_creations) {
        return std::future::pending().await;
    }
    let Ok(create) = serde_json::from_slice::<Create>(&body) else {
        return answer(StatusCode::BAD_REQUEST, "text/html; charset=utf-8", "<pre>Bad Request</pre>");
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if create.name.is_empty() || !create.name.bytes().all(allowed) {
        return failure(StatusCode::BAD_REQUEST, "ZodValidationError", "Validation error: Invalid at \"name\"");
    }
    let info = RoomInfo {
        title: create.title,
        description: create.description,
        is_temporary: create.is_temporary,
        visibility: create.visibility.unwrap_or_else(|| "unlisted".to_owned()),
        ..RoomInfo::permanent(create.name.as_str())
    };
    let created = shared.change(|state| {
        let free = !state.world.taken(&create.name) && state.room(&create.name).is_none();
        if free {
            give_birth(state, info);
        }
        free
    });
    if created {
        return json(StatusCode::CREATED, r#"{"success":true}"#);
    }
    let message = format!("The room \"{}\" is taken.", create.name);
    failure(StatusCode::BAD_REQUEST, "RoomNameTakenException", &message)
}

/// Public rooms, or all of them for whoever has the key; most users first, then by name.
fn list(shared: &Shared, request: &Request<Incoming>) -> Response<Body> {
    let all = match key_of(shared, request) {
        Key::Wrong => return unauthorized(),
        Key::Right => true,
        Key::None => false,
    };
    json(StatusCode::OK, shared.look(|state| state.room_list(all)))
}

enum Key {
    None,
    Right,
    Wrong,
}

fn key_of(shared: &Shared, request: &Request<Incoming>) -> Key {
    let Some(key) = request.headers().get("apikey") else { return Key::None };
    if shared.look(|state| state.knobs.api_key.as_bytes() == key.as_bytes()) { Key::Right } else { Key::Wrong }
}

fn unauthorized() -> Response<Body> {
    failure(StatusCode::UNAUTHORIZED, "MissingToken", "Missing valid auth token.")
}

fn delete(shared: &Shared, room: &str, request: &Request<Incoming>) -> Response<Body> {
    if !matches!(key_of(shared, request), Key::Right) {
        return unauthorized();
    }
    if shared.change(|state| state.unload(room, UnloadReason::Admin)) { success() } else { not_found() }
}

fn not_found() -> Response<Body> {
    failure(StatusCode::NOT_FOUND, "RoomNotFoundException", "Room not found")
}

/// Any request for a room loads it from the store, without a guard.
async fn existing(shared: &Shared, room: &str, below: &str, request: Request<Incoming>) -> Response<Body> {
    if shared.look(|state| state.room(room).is_none()) {
        let (answer, loaded) = oneshot::channel();
        shared.change(|state| state.start_load(room, Waiter::Http(answer)));
        if !loaded.await.unwrap_or_default() {
            return not_found();
        }
    }
    let page = shared.look(|state| state.room(room).map(|room| frames::room_page(&room.info)));
    match (page, request.method(), below) {
        (None, _, _) => not_found(),
        (Some(page), &Method::GET | &Method::HEAD, "") => json(StatusCode::OK, page),
        (Some(_), &Method::PATCH, "") => {
            let body = Limited::new(request.into_body(), BODY_LIMIT).collect().await;
            let settings = body.ok().and_then(|body| serde_json::from_slice::<Settings>(&body.to_bytes()).ok());
            let Some(settings) = settings else {
                return answer(StatusCode::BAD_REQUEST, "text/html; charset=utf-8", "<pre>Bad Request</pre>");
            };
            shared.change(|state| {
                if let Some(room) = state.room_mut(room) {
                    let info = &mut room.info;
                    info.title = settings.title.unwrap_or_else(|| std::mem::take(&mut info.title));
                    info.description = settings.description.unwrap_or_else(|| std::mem::take(&mut info.description));
                    info.visibility = settings.visibility.unwrap_or_else(|| std::mem::take(&mut info.visibility));
                }
            });
            success()
        }
        (Some(_), _, _) => success(),
    }
}
