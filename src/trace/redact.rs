//! Hides the names of rooms: the name of a temporary room opens it to whoever knows it.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::record::{Outcome, TraceEvent};
use crate::model::policy::{Answer, Call, CallRequest, CallRoom};
use crate::model::read::{Kept, Read};

/// Names that are remembered at least, to be found again in texts that a policy made; at most twice as many.
const NAMES: usize = 1 << 16;

/// Turns names into hashes with a salt that is drawn for each trace and never written, so that equal names are equal
/// within a trace and nothing can be looked up from outside.
#[derive(Clone, Debug)]
pub struct Redactor {
    salt: [u8; 16],
    names: RefCell<Names>,
}

/// The names that were hidden, in two generations of which the older one is forgotten as a whole.
#[derive(Clone, Debug, Default)]
struct Names {
    new: HashSet<Box<str>>,
    old: HashSet<Box<str>>,
}

impl Names {
    fn add(&mut self, name: String) {
        if self.new.len() >= NAMES {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.insert(name.into());
    }

    fn holds(&self, name: &str) -> bool {
        self.new.contains(name) || self.old.contains(name)
    }
}

impl Redactor {
    /// A redactor with a salt from the system.
    pub fn new() -> Self {
        Self { salt: *uuid::Uuid::new_v4().as_bytes(), names: RefCell::default() }
    }

    /// What stands for a name: `r-` and 16 hex digits, the same for every spelling.
    pub fn room(&self, name: &str) -> Arc<str> {
        let key = name.to_ascii_lowercase();
        let hash = self.hash(&key);
        self.names.borrow_mut().add(key);
        hash
    }

    fn hash(&self, key: &str) -> Arc<str> {
        let hash = Sha256::new().chain_update(self.salt).chain_update(key).finalize();
        let digits: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("r-{digits}").into()
    }

    /// A text without the name of the room that it is about, and without any other name that was hidden so far: a policy
    /// may keep the name of one room and read it when it is asked about another.
    fn text(&self, text: &str, about: Option<&(Arc<str>, Arc<str>)>) -> String {
        let text = about.map_or_else(|| text.into(), |(name, hash)| replaced(text, name, hash));
        let (names, mut out) = (self.names.borrow(), String::with_capacity(text.len()));
        let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let mut rest = text.as_str();
        while let Some(start) = rest.find(of_name) {
            let (before, word) = rest.split_at(start);
            let end = word.find(|c| !of_name(c)).unwrap_or(word.len());
            let (word, after) = word.split_at(end);
            out.push_str(before);
            let key = word.to_ascii_lowercase();
            if names.holds(&key) {
                out.push_str(&self.hash(&key))
            } else {
                out.push_str(word)
            }
            rest = after;
        }
        out.push_str(rest);
        out
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

    /// Hashes every name in a call, in what it read and in what came of it. Texts about rooms go altogether: the
    /// metadata's, and the query of a request that names one.
    pub(super) fn decision(&self, call: &mut Call, outcome: &mut Outcome) {
        let about = call.room.as_mut().and_then(|room| self.hide(room));
        if !call.rooms.is_empty() {
            let rooms = call.rooms.iter().map(|room| {
                let mut room = room.clone();
                self.hide(&mut room);
                room
            });
            call.rooms = rooms.collect();
        }
        let text = |text: &str| self.text(text, about.as_ref());
        if let Some(request) = &mut call.request {
            if about.is_some() {
                request.query.clear();
            }
            hide_request(request, text);
        }
        for read in &mut outcome.reads {
            replace_texts(read, text);
        }
        match &mut outcome.answer {
            Answer::Moves(moves) => moves.iter_mut().for_each(|one| one.room = self.room(&one.room).to_string()),
            Answer::Reject { reason, .. } => *reason = text(reason),
            Answer::Default | Answer::Ranked(_) | Answer::Admit | Answer::Hold { .. } => {}
        }
        if let Some(fault) = &mut outcome.fallback {
            fault.message = text(&fault.message);
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

fn hide_request(request: &mut CallRequest, change: impl Fn(&str) -> String) {
    request.path = change(&request.path).into();
    for value in request.headers.values_mut().chain(request.query.values_mut()) {
        *value = change(value);
    }
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
    fn a_name_that_was_hidden_once_is_hidden_in_every_text() {
        let redactor = Redactor::new();
        let hash = redactor.room("Other-Room");
        assert_eq!(redactor.text("last:OTHER-room, /x", None), format!("last:{hash}, /x"));
        assert_eq!(redactor.text("other-rooms é", None), "other-rooms é");
        for number in 0..NAMES {
            redactor.room(&format!("n{number}"));
        }
        assert_eq!(redactor.text("other-room", None), *hash, "one generation is kept");
    }

    #[test]
    fn names_are_found_in_texts_in_any_case() {
        assert_eq!(replaced("/api/room/MoViE/x?movie", "movie", "r-1"), "/api/room/r-1/x?r-1");
        assert_eq!(replaced("é MOVIE é", "movie", "r-1"), "é r-1 é");
    }
}
