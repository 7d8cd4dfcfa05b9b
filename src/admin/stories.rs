//! `GET /_usher/v1/rooms/{name}`: where a room is, and its story.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::cluster::RoomSummary;
use crate::control::stories::Story;
use crate::model::RoomKey;
use crate::model::story::Chapter;

/// The document of a room. `state` is `absent` for one that is gone and whose story is still kept; without a story there
/// is no document of such a room. Chapters are sorted by time; `decisions` are those in which it was placed.
pub(super) fn document(key: &RoomKey, room: Option<&RoomSummary>, story: &Story) -> Option<Value> {
    let mut document = match room {
        Some(room) => json!(room),
        None if story.chapters.is_empty() => return None,
        None => {
            json!({"name": key, "state": "absent", "monolith": null, "epoch": null, "clients": 0})
        }
    };
    let decisions: Vec<&Arc<Chapter>> = story.chapters.iter().filter(|chapter| chapter.what.is_decision()).collect();
    if let Some(document) = document.as_object_mut() {
        document.insert("decisions".into(), json!(decisions));
        document.insert("story".into(), json!(story.chapters));
        document.insert("forgotten".into(), story.forgotten.into());
    }
    Some(document)
}
