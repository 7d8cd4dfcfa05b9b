//! When somebody in a room said something last: noted by the tasks of its clients and by requests that change something,
//! read before the room moves.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Hashing, RoomKey};

/// Shared by the clients of one room on one link. Noting is one store, without a lock.
#[derive(Debug)]
pub struct Activity {
    since: Instant,
    /// Milliseconds after `since`.
    last: AtomicU64,
}

impl Default for Activity {
    /// Of a room whose first client comes now, which counts as the last thing that was said.
    fn default() -> Self {
        Self { since: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Activity {
    /// Somebody says something.
    pub fn note(&self) {
        self.last.store(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// When somebody said something last.
    pub(super) fn last(&self) -> Instant {
        self.since + Duration::from_millis(self.last.load(Relaxed))
    }
}

/// The rooms of one link that have clients here, for those who speak to a room without being in it.
#[derive(Debug, Default)]
pub struct Activities(Mutex<HashMap<RoomKey, Arc<Activity>, Hashing>>);

impl Activities {
    /// Somebody outside says something to a room.
    pub fn note(&self, room: &RoomKey) {
        let activity = self.lock().get(room).cloned();
        if let Some(activity) = activity {
            activity.note();
        }
    }

    /// A room has its first client.
    pub(super) fn begin(&self, room: RoomKey) -> Arc<Activity> {
        let activity = Arc::new(Activity::default());
        self.lock().insert(room, activity.clone());
        activity
    }

    /// Its last client has gone.
    pub(super) fn end(&self, room: &RoomKey) {
        self.lock().remove(room);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RoomKey, Arc<Activity>, Hashing>> {
        // No code that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
