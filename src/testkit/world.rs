//! What several simulated Monoliths share: the load epoch, and the store that rooms are loaded from.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

/// What a room is, as its metadata says on the wire (the order of the keys is the real server's).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomInfo {
    /// The name as it was spelled at its creation.
    pub name: String,
    /// A title for people.
    pub title: String,
    /// A longer text for people.
    pub description: String,
    /// Whether the room goes for good when it is unloaded as idle.
    pub is_temporary: bool,
    /// `public`, `unlisted` or `private`.
    pub visibility: String,
    /// `manual`, `vote`...
    pub queue_mode: String,
    /// What plays: null, or an object with a free set of keys.
    pub current_source: Value,
    /// Keys that the real server does not have, to see that they are passed on.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RoomInfo {
    /// A public room that survives its unload.
    pub fn permanent(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            title: String::new(),
            description: String::new(),
            is_temporary: false,
            visibility: "public".to_owned(),
            queue_mode: "manual".to_owned(),
            current_source: Value::Null,
            extra: Map::new(),
        }
    }

    /// A public room that goes for good once it is unloaded as idle.
    pub fn temporary(name: impl Into<String>) -> Self {
        Self { is_temporary: true, ..Self::permanent(name) }
    }

    /// The same room, not in public lists.
    #[must_use]
    pub fn unlisted(self) -> Self {
        Self { visibility: "unlisted".to_owned(), ..self }
    }
}

struct Stored {
    info: RoomInfo,
    /// A young temporary room is not written yet: nobody else can load it, and it dies with its Monolith.
    written_at: Instant,
}

struct Store {
    rooms: HashMap<String, Stored>,
    refused_tokens: HashSet<String>,
    flush_after: Duration,
}

struct Inner {
    epoch: AtomicU32,
    store: Mutex<Store>,
}

/// The database of a simulated cluster. Clones are handles to the same one.
#[derive(Clone)]
pub struct World(Arc<Inner>);

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// An empty store; the first room load has epoch 1; temporary rooms are written 5 s after their creation, as in
    /// the real system.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            epoch: AtomicU32::new(1),
            store: Mutex::new(Store {
                rooms: HashMap::new(),
                refused_tokens: HashSet::new(),
                flush_after: Duration::from_secs(5),
            }),
        }))
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch that the next room load gets.
    pub fn epoch(&self) -> u32 {
        self.0.epoch.load(Ordering::Relaxed)
    }

    /// Sets the epoch of the next room load, to test the wrap after `u32::MAX`.
    pub fn set_epoch(&self, next: u32) {
        self.0.epoch.store(next, Ordering::Relaxed);
    }

    pub(super) fn take_epoch(&self) -> u32 {
        self.0.epoch.fetch_add(1, Ordering::Relaxed)
    }

    /// How long a temporary room lives in its Monolith's memory alone. Zero: it is written at once.
    pub fn set_flush_after(&self, delay: Duration) {
        self.store().flush_after = delay;
    }

    /// Puts a room into the store, already written, replacing one of the same spelling.
    pub fn add(&self, info: RoomInfo) {
        self.store().rooms.insert(info.name.clone(), Stored { info, written_at: Instant::now() });
    }

    /// Adds a room that was just created somewhere: permanent ones are written at once, temporary ones after the
    /// flush delay.
    pub(super) fn create(&self, info: RoomInfo) {
        let mut store = self.store();
        let delay = if info.is_temporary { store.flush_after } else { Duration::ZERO };
        store.rooms.insert(info.name.clone(), Stored { info, written_at: Instant::now() + delay });
    }

    /// The room of exactly this spelling, if it can be loaded now.
    pub fn find(&self, name: &str) -> Option<RoomInfo> {
        let store = self.store();
        let stored = store.rooms.get(name)?;
        (stored.written_at <= Instant::now()).then(|| stored.info.clone())
    }

    /// Whether a name is taken: names are compared without case here, as in the real database.
    pub(super) fn taken(&self, name: &str) -> bool {
        self.store().rooms.keys().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Deletes a room.
    pub fn remove(&self, name: &str) {
        self.store().rooms.remove(name);
    }

    /// Forgets the temporary rooms in `names` that were not written yet: their Monolith has died.
    pub(super) fn forget_unwritten<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let now = Instant::now();
        let mut store = self.store();
        for name in names {
            if store.rooms.get(name).is_some_and(|stored| stored.written_at > now) {
                store.rooms.remove(name);
            }
        }
    }

    /// From now on a join with this token is refused with kick 4004.
    pub fn refuse_token(&self, token: impl Into<String>) {
        self.store().refused_tokens.insert(token.into());
    }

    pub(super) fn accepts(&self, token: &str) -> bool {
        !token.is_empty() && !self.store().refused_tokens.contains(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_temporary_room_cannot_be_loaded_and_dies_with_its_monolith() {
        let world = World::new();
        world.create(RoomInfo::temporary("young"));
        world.create(RoomInfo::permanent("Perm"));
        assert!(world.find("young").is_none());
        assert!(world.taken("YOUNG"));
        assert!(world.find("Perm").is_some());
        assert!(world.find("perm").is_none(), "the store is case-sensitive");
        world.forget_unwritten(["young", "Perm"].into_iter());
        assert!(!world.taken("young"));
        assert!(world.find("Perm").is_some());
    }

    #[test]
    fn the_epoch_wraps() {
        let world = World::new();
        assert_eq!(world.take_epoch(), 1);
        world.set_epoch(u32::MAX);
        assert_eq!((world.take_epoch(), world.take_epoch()), (u32::MAX, 0));
    }
}
