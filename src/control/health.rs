//! How the control thread is doing, as atomics for readiness and metrics; and what the log says of Monoliths that fail.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::model::event::Ejection;

/// The control thread counts as late when it has not ticked for so long.
const LATE: Duration = Duration::from_secs(2);

/// What the control thread says of itself.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    ticked_ms: AtomicU64,
    waiting_since_ms: AtomicU64,
    pending: AtomicUsize,
    /// Decisions of `place`.
    pub decisions: DecisionStats,
}

/// How long decisions take.
#[derive(Debug, Default)]
pub struct DecisionStats {
    count: AtomicU64,
    total_ns: AtomicU64,
    slowest_ns: AtomicU64,
}

/// How joins fare, as of one tick.
pub(super) struct Progress {
    /// Whether one waits, for a Monolith or for its answer.
    pub(super) anyone_waits: bool,
    /// Whether a Monolith has answered one since the last tick.
    pub(super) answered: bool,
    /// How many wait for a room or, before their upgrade, for a Monolith.
    pub(super) pending: usize,
}

/// No join waits.
const NOBODY: u64 = u64::MAX;

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            ticked_ms: AtomicU64::new(0),
            waiting_since_ms: AtomicU64::new(NOBODY),
            pending: AtomicUsize::new(0),
            decisions: DecisionStats::default(),
        }
    }
}

impl Health {
    /// Whether the thread has not come round for two seconds.
    pub fn is_late(&self) -> bool {
        self.now_ms().saturating_sub(self.ticked_ms.load(Relaxed)) > LATE.as_millis() as u64
    }

    /// How long joins have been waiting without an answer of any Monolith to any of them.
    pub fn stalled_for(&self) -> Duration {
        match self.waiting_since_ms.load(Relaxed) {
            NOBODY => Duration::ZERO,
            since => Duration::from_millis(self.now_ms().saturating_sub(since)),
        }
    }

    /// How many joins and requests count towards `limits.pending_joins`.
    pub fn pending(&self) -> usize {
        self.pending.load(Relaxed)
    }

    pub(super) fn tick(&self, progress: Progress) {
        let now = self.now_ms();
        self.ticked_ms.store(now, Relaxed);
        self.pending.store(progress.pending, Relaxed);
        let since = self.waiting_since_ms.load(Relaxed);
        let since = match (progress.anyone_waits, progress.answered || since == NOBODY) {
            (false, _) => NOBODY,
            (true, true) => now,
            (true, false) => since,
        };
        self.waiting_since_ms.store(since, Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl DecisionStats {
    pub(super) fn add(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Relaxed);
        self.total_ns.fetch_add(ns, Relaxed);
        self.slowest_ns.fetch_max(ns, Relaxed);
    }

    /// How many there were, and how long they took together.
    pub fn total(&self) -> (u64, Duration) {
        (self.count.load(Relaxed), Duration::from_nanos(self.total_ns.load(Relaxed)))
    }

    /// The slowest one.
    pub fn slowest(&self) -> Duration {
        Duration::from_nanos(self.slowest_ns.load(Relaxed))
    }
}

/// Tells the log that a Monolith is left alone for a while, or is back.
pub(super) fn log(ejection: &Ejection) {
    match ejection {
        Ejection::Out { monolith, cause, lasts, times } => {
            let lasts = Duration::from_micros(*lasts);
            warn!(%monolith, cause = cause.label(), ?lasts, times, "ejected: no new rooms and no routed requests until it is over");
        }
        Ejection::Spared { monolith, cause } => {
            let cause = cause.label();
            warn!(%monolith, cause, "not ejected: as many are as may be (health.max_ejected_share), or nobody else serves");
        }
        Ejection::Back { monolith } => info!(%monolith, "back from its ejection"),
    }
}

#[cfg(test)]
#[path = "health_test.rs"]
mod tests;
