//! The texts that a Monolith writes, in the shapes and the key order of the real one.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::super::world::RoomInfo;

/// A text as JSON, quotes included.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

pub(super) fn init(port: u16, region: &str, id: &str, token: Option<&str>) -> String {
    let token = token.map(|token| format!(r#","token":{}"#, quoted(token))).unwrap_or_default();
    format!(r#"{{"type":"init","payload":{{"port":{port},"region":{},"id":{}{token}}}}}"#, quoted(region), quoted(id))
}

/// A room's metadata with its number of users, as in `loaded`, `gossip` and the room list.
pub(super) fn metadata(info: &RoomInfo, users: usize) -> String {
    let mut text = json(info);
    text.pop();
    // Writing to a `String` cannot fail.
    let _ = write!(text, r#","users":{users}}}"#);
    text
}

pub(super) fn entry(info: &RoomInfo, users: usize, epoch: u32) -> String {
    format!(r#"{{"room":{},"load_epoch":{epoch}}}"#, metadata(info, users))
}

pub(super) fn loaded(info: &RoomInfo, epoch: u32) -> String {
    format!(r#"{{"type":"loaded","payload":{}}}"#, entry(info, 0, epoch))
}

pub(super) fn gossip(entries: &[String]) -> String {
    format!(r#"{{"type":"gossip","payload":{{"rooms":[{}]}}}}"#, entries.join(","))
}

pub(super) fn unloaded(name: &str, reason: &str) -> String {
    format!(r#"{{"type":"unloaded","payload":{{"name":{},"reason":{}}}}}"#, quoted(name), quoted(reason))
}

pub(super) fn kick(client: &str, reason: &Value) -> String {
    format!(r#"{{"type":"kick","payload":{{"client_id":{},"reason":{reason}}}}}"#, quoted(client))
}

/// A message to one client, or to everybody: then the key `client_id` is absent. `room` is quoted already.
pub(super) fn room_msg(room: &str, client: Option<&str>, payload: &str) -> String {
    let mut text = String::with_capacity(payload.len() + room.len() + 110);
    text.push_str(r#"{"type":"room_msg","payload":{"room":"#);
    text.push_str(room);
    if let Some(client) = client {
        text.push_str(r#","client_id":"#);
        text.push_str(&quoted(client));
    }
    text.push_str(r#","payload":"#);
    text.push_str(payload);
    text.push_str("}}");
    text
}

/// A user of a room, as every message about it shows it.
pub(super) fn user(client: &str, name: &str, status: &str) -> String {
    format!(
        r#"{{"id":{},"name":{},"isLoggedIn":false,"status":{},"role":0}}"#,
        quoted(client),
        quoted(name),
        quoted(status)
    )
}

const GRANTS: &str = "[[0,113250303],[1,113250303],[2,113250303],[3,133173247],[4,134217727],[-1,134217727]]";
const SKIPPED: &str = r#"["sponsor","intro","outro","interaction","selfpromo","music_offtopic","preview"]"#;

/// The whole state of a room: what a client gets first.
pub(super) fn full_sync(info: &RoomInfo) -> String {
    format!(
        r#"{{"action":"sync","name":{},"title":{},"description":{},"isTemporary":{},"visibility":{},"queueMode":{},"currentSource":{},"queue":[],"isPlaying":false,"playbackPosition":0,"playbackSpeed":1,"grants":{GRANTS},"hasOwner":false,"voteCounts":[],"videoSegments":[],"autoSkipSegmentCategories":{SKIPPED},"prevQueue":null,"restoreQueueBehavior":1,"enableVoteSkip":false,"votesToSkip":[]}}"#,
        quoted(&info.name),
        quoted(&info.title),
        quoted(&info.description),
        info.is_temporary,
        quoted(&info.visibility),
        quoted(&info.queue_mode),
        info.current_source,
    )
}

pub(super) const POSITION_SYNC: &str = r#"{"action":"sync","playbackPosition":0}"#;

pub(super) fn event_joined(client: &str, name: &str, user: &str) -> String {
    format!(
        r#"{{"action":"event","request":{{"type":0,"info":{{"id":{},"username":{}}}}},"user":{user},"additional":{{}}}}"#,
        quoted(client),
        quoted(name)
    )
}

pub(super) fn event_left(user: &str) -> String {
    format!(r#"{{"action":"event","request":{{"type":1}},"user":{user},"additional":{{"user":{user}}}}}"#)
}

pub(super) fn event_request(request: &str, user: &str) -> String {
    format!(r#"{{"action":"event","request":{request},"user":{user},"additional":{{}}}}"#)
}

pub(super) fn user_update(user: &str) -> String {
    format!(r#"{{"action":"user","update":{{"kind":"update","value":{user}}}}}"#)
}

pub(super) fn user_remove(client: &str) -> String {
    format!(r#"{{"action":"user","update":{{"kind":"remove","value":{}}}}}"#, quoted(client))
}

pub(super) fn user_list<'a>(users: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::from(r#"{"action":"user","update":{"kind":"init","value":["#);
    for (index, user) in users.enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(user);
    }
    text.push_str("]}}");
    text
}

pub(super) fn you(client: &str) -> String {
    format!(r#"{{"action":"you","info":{{"id":{}}}}}"#, quoted(client))
}

pub(super) fn chat(user: &str, text: &str) -> String {
    format!(r#"{{"action":"chat","from":{user},"text":{text}}}"#)
}

/// What `GET /api/room/NAME` answers.
pub(super) fn room_page(info: &RoomInfo) -> String {
    format!(
        r#"{{"name":{},"title":{},"description":{},"isTemporary":{},"visibility":{},"queueMode":{},"users":[],"grants":{GRANTS},"autoSkipSegmentCategories":{SKIPPED},"restoreQueueBehavior":1,"enableVoteSkip":false,"queue":[],"hasOwner":false}}"#,
        quoted(&info.name),
        quoted(&info.title),
        quoted(&info.description),
        info.is_temporary,
        quoted(&info.visibility),
        quoted(&info.queue_mode),
    )
}
