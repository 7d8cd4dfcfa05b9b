//! When somebody in a room said something last: noted by the tasks of its clients, read before the room moves.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by the clients of one room on one link. Noting is one store, without a lock.
#[derive(Debug)]
pub struct Activity {
    since: Instant,
    /// Milliseconds after `since`.
    last: AtomicU64,
}

impl Activity {
    /// Of a room whose first client comes now, which counts as the last thing that was said.
    pub fn new() -> Self {
        Self { since: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Somebody says something.
    pub fn note(&self) {
        self.last.store(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// When somebody said something last.
    pub(super) fn last(&self) -> Instant {
        self.since + Duration::from_millis(self.last.load(Relaxed))
    }
}
