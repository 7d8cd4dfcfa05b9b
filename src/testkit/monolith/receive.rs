//! What a Monolith does with each frame that a balancer sends, sharp edges of the real one included.

use std::borrow::Cow;
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::frames;
use super::records::{FrameRecord, JoinRecord, LeaveRecord, LinkNumber, UnloadRecord};
use super::state::{State, UnloadReason, Waiter};

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Init {
    id: String,
}

#[derive(Deserialize)]
struct RoomOnly<'a> {
    #[serde(borrow)]
    room: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Join {
    room: String,
    client: String,
    #[serde(default)]
    token: Option<String>,
}

#[derive(Deserialize)]
struct Leave<'a> {
    #[serde(borrow)]
    client: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ClientMsg<'a> {
    #[serde(borrow)]
    client_id: Cow<'a, str>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Action<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(borrow)]
    request: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    reason: Option<Value>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(rename = "type")]
    kind: i64,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

/// The request types of the web client that are answered here.
const REQUEST_CHAT: i64 = 11;
const REQUEST_PLAYBACK: i64 = 2;
const REQUEST_SKIP: i64 = 3;
const REQUEST_SEEK: i64 = 4;

impl State {
    /// Handles one text frame. Frames that are no JSON, of unknown type or without payload are ignored.
    pub(super) fn receive(&mut self, link: LinkNumber, text: Utf8Bytes) {
        let at = Instant::now();
        self.frames.push_with(|| FrameRecord { at, link, text: text.clone() });
        let Ok(Envelope { kind, payload: Some(payload) }) = serde_json::from_str::<Envelope<'_>>(&text) else { return };
        let payload = payload.get();
        match &*kind {
            "init" => {
                if let Ok(init) = serde_json::from_str::<Init>(payload) {
                    self.introduce(link, init.id);
                }
            }
            "load" => {
                if let Ok(load) = serde_json::from_str::<RoomOnly<'_>>(payload)
                    && self.room(&load.room).is_none()
                {
                    self.start_load(&load.room, Waiter::Nobody);
                }
            }
            "unload" => {
                if let Ok(unload) = serde_json::from_str::<RoomOnly<'_>>(payload) {
                    self.receive_unload(link, at, &unload.room);
                }
            }
            "join" => {
                if let Ok(join) = serde_json::from_str::<Join>(payload) {
                    self.receive_join(link, at, join);
                }
            }
            "leave" => {
                if let Ok(leave) = serde_json::from_str::<Leave<'_>>(payload) {
                    let known = self.leave(&leave.client);
                    let client = leave.client.into_owned();
                    self.leaves.push_with(|| LeaveRecord { at, link, client, known });
                }
            }
            "client_msg" => {
                if let Ok(message) = serde_json::from_str::<ClientMsg<'_>>(payload) {
                    self.receive_message(&message.client_id, message.payload);
                }
            }
            _ => {}
        }
    }

    fn receive_unload(&mut self, link: LinkNumber, at: Instant, room: &str) {
        let loaded = self.unload(room, UnloadReason::Commanded);
        self.unloads.push_with(|| UnloadRecord { at, link, room: room.to_owned(), loaded });
        if !loaded {
            self.die(format!("unload of {room:?}, which is not loaded"));
        }
    }

    fn receive_join(&mut self, link: LinkNumber, at: Instant, join: Join) {
        let Join { room, client, token } = join;
        let token = token.unwrap_or_default();
        self.joins.push_with(|| JoinRecord {
            at,
            link,
            room: room.clone(),
            client: client.clone(),
            token: token.clone(),
        });
        if !self.world.accepts(&token) {
            self.send(link, frames::kick(&client, &Value::from(4004)));
        } else if self.room(&room).is_some() {
            self.admit(link, &room, client, &token);
        } else {
            self.start_load(&room, Waiter::Join { link, client, token });
        }
    }

    /// A message of a client. `null` kills the process; what is no object is ignored; requests that are answered are
    /// those that the web client sends most.
    fn receive_message(&mut self, client: &str, payload: Option<&RawValue>) {
        let Some(member) = self.member(client) else { return };
        let Some(payload) = payload.map(RawValue::get) else {
            return self.die(format!("client_msg of {client} whose payload is null"));
        };
        let Ok(action) = serde_json::from_str::<Action<'_>>(payload) else { return };
        match &*action.action {
            "req" => {
                let Some(raw) = action.request else { return self.kick(&member, &Value::from(4000)) };
                let Ok(request) = serde_json::from_str::<Request<'_>>(raw.get()) else { return };
                match (request.kind, request.text) {
                    (REQUEST_CHAT, Some(text)) => {
                        self.broadcast(&member.room, &frames::chat(&member.user, text.get()));
                    }
                    (REQUEST_PLAYBACK | REQUEST_SKIP | REQUEST_SEEK, _) => {
                        self.broadcast(&member.room, &frames::event_request(raw.get(), &member.user));
                    }
                    _ => {}
                }
            }
            // Two shorthands that the real server does not know: one to everybody, one to the sender alone.
            "chat" => {
                if let Some(text) = action.text {
                    self.broadcast(&member.room, &frames::chat(&member.user, text.get()));
                }
            }
            "echo" => self.unicast(&member, payload),
            "kickme" => self.kick(&member, &action.reason.unwrap_or_else(|| Value::from(4000))),
            "status" => {
                if let Some(status) = &action.status {
                    self.set_status(&member, status);
                }
            }
            _ => {}
        }
    }
}
