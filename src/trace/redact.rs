//! Hides the names of rooms: the name of a temporary room opens it to whoever knows it.

use std::sync::Arc;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::record::TraceEvent;
use crate::model::policy::{Answer, Call, CallRoom};
use crate::model::read::{Kept, Read};

/// Turns names into hashes with a salt that is drawn for each trace and never written, so that equal names are equal
/// within a trace and nothing can be looked up from outside.
#[derive(Clone, Debug)]
pub struct Redactor {
    salt: [u8; 16],
}

impl Redactor {
    /// A redactor with a salt from the system.
    pub fn new() -> Self {
        Self { salt: *uuid::Uuid::new_v4().as_bytes() }
    }

    /// What stands for a name: `r-` and 16 hex digits, the same for every spelling.
    pub fn room(&self, name: &str) -> Arc<str> {
        let hash = Sha256::new().chain_update(self.salt).chain_update(name.to_ascii_lowercase()).finalize();
        let digits: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("r-{digits}").into()
    }

    /// An event with hashed names.
    pub(super) fn event<C>(&self, event: TraceEvent<C>) -> TraceEvent<C> {
        match event {
            TraceEvent::Loaded { monolith, room } => TraceEvent::Loaded { monolith, room: self.room(&room) },
            TraceEvent::Unloaded { monolith, room, reason } => {
                TraceEvent::Unloaded { monolith, room: self.room(&room), reason }
            }
            TraceEvent::Join { client, room, region, reconnect } => {
                TraceEvent::Join { client, room: self.room(&room), region, reconnect }
            }
            TraceEvent::Request { room, region } => {
                TraceEvent::Request { room: room.map(|room| self.room(&room)), region }
            }
            other @ (TraceEvent::MonolithUp { .. }
            | TraceEvent::MonolithDown { .. }
            | TraceEvent::Load { .. }
            | TraceEvent::Gossip { .. }
            | TraceEvent::Leave { .. }) => other,
        }
    }

    /// Hashes every name in a call, in what it read and in its answer. Texts about rooms go altogether: the metadata's,
    /// and the path and query of a request that names one.
    pub(super) fn decision(&self, call: &mut Call, reads: &mut [Read], answer: &mut Answer) {
        let mut hidden = None;
        if let Some(room) = &mut call.room {
            hidden = self.hide(room);
        }
        if let (Some((name, hash)), Some(request)) = (&hidden, &mut call.request) {
            request.path = replaced(&request.path, name, hash).into();
            request.query.clear();
        }
        if !call.rooms.is_empty() {
            let rooms = call.rooms.iter().map(|room| {
                let mut room = room.clone();
                self.hide(&mut room);
                room
            });
            call.rooms = rooms.collect();
        }
        for read in reads {
            if let Some((name, hash)) = &hidden {
                replace_texts(read, |text| replaced(text, name, hash));
            }
        }
        match answer {
            Answer::Moves(moves) => moves.iter_mut().for_each(|one| one.room = self.room(&one.room).to_string()),
            Answer::Reject { reason, .. } => {
                if let Some((name, hash)) = &hidden {
                    *reason = replaced(reason, name, hash);
                }
            }
            Answer::Default | Answer::Ranked(_) | Answer::Admit | Answer::Hold { .. } => {}
        }
    }

    /// Hides one room; returns its name and what stands for it.
    fn hide(&self, room: &mut CallRoom) -> Option<(Arc<str>, Arc<str>)> {
        if let Some(metadata) = &mut room.metadata {
            hide_texts(metadata);
        }
        let name = room.name.as_mut()?;
        let hash = self.room(name);
        Some((std::mem::replace(name, hash.clone()), hash))
    }
}

impl Default for Redactor {
    fn default() -> Self {
        Self::new()
    }
}

/// A text with every occurrence of a name, in any case, replaced.
fn replaced(text: &str, name: &str, by: &str) -> String {
    if name.is_empty() {
        return text.into();
    }
    let lower = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for (at, _) in lower.match_indices(name) {
        out.push_str(&text[from..at]);
        out.push_str(by);
        from = at + name.len();
    }
    out.push_str(&text[from..]);
    out
}

fn replace_texts(read: &mut Read, change: impl Fn(&str) -> String) {
    match read {
        Read::Now(_) | Read::Random(_) => {}
        Read::Counter(name, _) => *name = change(name).into(),
        Read::Get(key, value) => {
            *key = change(key).into();
            if let Some(Kept::Text(text)) = value {
                *text = change(text).into();
            }
        }
    }
}

fn hide_texts(json: &mut Json) {
    match json {
        Json::String(text) => text.clear(),
        Json::Array(items) => items.iter_mut().for_each(hide_texts),
        Json::Object(map) => map.values_mut().for_each(hide_texts),
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_everywhere_in_a_trace_and_in_no_other() {
        let (one, other) = (Redactor::new(), Redactor::new());
        assert_eq!(one.room("Movie"), one.room("movie"));
        assert_ne!(one.room("movie"), one.room("movies"));
        assert_ne!(one.room("movie"), other.room("movie"));
        assert!(!one.room("movie").contains("movie"));
    }

    #[test]
    fn names_are_found_in_texts_in_any_case() {
        assert_eq!(replaced("/api/room/MoViE/x?movie", "movie", "r-1"), "/api/room/r-1/x?r-1");
        assert_eq!(replaced("é MOVIE é", "movie", "r-1"), "é r-1 é");
    }
}
