//! How the store of claims is doing: what the control thread looks at before it asks, and what operators are shown.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::model::metrics::MetricsText;

/// Whether claims can be made, and what was measured. Anybody may read it.
#[derive(Debug, Default)]
pub struct Health {
    up: AtomicBool,
    state: Mutex<State>,
    outages: AtomicU64,
    pub(super) dropped: AtomicU64,
    trips: AtomicU64,
    trips_us: AtomicU64,
    slowest_us: AtomicU64,
}

#[derive(Debug, Default)]
enum State {
    /// Nobody wants claims.
    #[default]
    Off,
    /// The first connection is being made.
    Connecting,
    /// It answers.
    Up,
    /// It does not; rooms are placed without claims.
    Down { since: Instant, why: String },
}

impl Health {
    /// Whether it is worth asking.
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// What an operator should know, if anything.
    pub fn detail(&self) -> Option<String> {
        match &*self.state() {
            State::Off | State::Connecting | State::Up => None,
            State::Down { since, why } => {
                let seconds = since.elapsed().as_secs();
                Some(format!("rooms are placed without claims since {seconds} s: {why}"))
            }
        }
    }

    /// Writes every metric.
    pub fn write_metrics(&self, out: &mut MetricsText) {
        let micros = |value: &AtomicU64| Duration::from_micros(value.load(Relaxed)).as_secs_f64();
        out.gauge("usher_claims_up", "1 if the store of claims answers.", u8::from(self.is_up()));
        out.counter("usher_claims_outages_total", "Times that it stopped to.", self.outages.load(Relaxed));
        let help = "Commands for it that found no room in its queue, or no store.";
        out.counter("usher_claims_dropped_total", help, self.dropped.load(Relaxed));
        out.counter("usher_claims_round_trips_total", "Batches that it answered.", self.trips.load(Relaxed));
        out.counter("usher_claims_seconds_total", "Time that they took.", micros(&self.trips_us));
        out.gauge("usher_claims_seconds_max", "The slowest of them.", micros(&self.slowest_us));
    }

    pub(super) fn answered(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.trips.fetch_add(1, Relaxed);
        self.trips_us.fetch_add(took, Relaxed);
        self.slowest_us.fetch_max(took, Relaxed);
    }

    /// It is not to be asked any more; why comes later.
    pub(super) fn closes(&self) {
        self.up.store(false, Relaxed);
    }

    pub(super) fn off(&self) {
        self.up.store(false, Relaxed);
        *self.state() = State::Off;
    }

    pub(super) fn connecting(&self) {
        self.up.store(false, Relaxed);
        *self.state() = State::Connecting;
    }

    pub(crate) fn works(&self, at: &str) {
        let mut state = self.state();
        match &*state {
            State::Down { since, .. } => info!(at, after_s = since.elapsed().as_secs(), "rooms are claimed again"),
            State::Off | State::Connecting => info!(at, "rooms are claimed"),
            State::Up => {}
        }
        *state = State::Up;
        self.up.store(true, Relaxed);
    }

    /// It is told once, however often it is tried again.
    pub(crate) fn fails(&self, at: &str, why: String) {
        self.up.store(false, Relaxed);
        let mut state = self.state();
        let since = match &*state {
            State::Down { since, .. } => *since,
            State::Off | State::Connecting | State::Up => {
                warn!(at, why, "the store of claims fails: rooms are placed without claims until it answers");
                self.outages.fetch_add(1, Relaxed);
                Instant::now()
            }
        };
        *state = State::Down { since, why };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
